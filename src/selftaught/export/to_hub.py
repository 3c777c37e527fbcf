"""The layout of Hugging Face's `PyTorchModelHubMixin`: `config.json` and `model.safetensors`, read back by name.

`config.json` holds the arguments of `HubNetwork`, which needs selftaught for the encoder's code; nothing of
huggingface_hub is needed to write it, or to read it from a folder.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from selftaught.artifacts.files import read_json, write_json, write_text
from selftaught.artifacts.tensors import load_tensors, save_tensors
from selftaught.core.errors import ConfigError, RunError
from selftaught.export.checking import difference, torch_runner
from selftaught.export.folder import refuse_existing, write_folder
from selftaught.export.network import Exportable, LinearHead, Network, plain
from selftaught.nets import build_encoder

_CONFIG, _WEIGHTS = "config.json", "model.safetensors"
_FIELDS = {"encoder", "options", "channels", "size", "classes", "temperature"}


class HubNetwork(nn.Module):
    """`export.network.Network` from plain values: uint8 RGB [B S S 3] -> (embedding,) or (embedding, probability).

    Raises ConfigError for an encoder that is not known.
    """

    def __init__(
        self,
        encoder: str,
        channels: int,
        size: int,
        options: dict[str, Any] | None = None,
        classes: Sequence[str] = (),
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        # JSON has no tuples, which encoders take for their widths.
        given = {k: tuple(v) if isinstance(v, list) else v for k, v in (options or {}).items()}
        built = build_encoder(encoder, channels, size, 0, **given)
        width = int(built.width)  # type: ignore[arg-type]
        zeros = torch.zeros(len(classes), width)
        head = LinearHead(zeros, zeros.sum(-1), temperature, tuple(classes)) if classes else None
        self.network = Network(built, channels, head)
        self.size = size
        self.classes = tuple(classes)

    def forward(self, pictures: Tensor) -> tuple[Tensor, ...]:
        """See `Network`."""
        return self.network(pictures)


def export_hub(what: Exportable, out: Path) -> float:
    """Write `config.json`, `model.safetensors` and a card as the new folder `out`; gives the largest difference.

    Raises ConfigError for an encoder that `build_encoder` does not make, RunError where `out` exists, SaveError
    where what is read back computes something else or the folder cannot be written.
    """
    refuse_existing(out)
    if set(what.build) != {"encoder", "options"}:
        raise ConfigError("this encoder has no name by which it could be built again; use --format onnx or torch")
    classes = () if what.head is None else what.head.classes
    config = {
        "encoder": what.build["encoder"],
        "options": _public(what.build["options"]),
        "channels": what.channels,
        "size": what.size,
        "classes": list(classes),
        "temperature": 1.0 if what.head is None else what.head.temperature,
    }
    network = HubNetwork(**config)
    network.network = Network(plain(what.encoder), what.channels, what.head)
    found = [0.0]

    def fill(folder: Path) -> None:
        write_json(folder / _CONFIG, config)
        save_tensors(folder / _WEIGHTS, network.state_dict(), {"format": "pt"})
        write_text(folder / "README.md", card(what))
        found[0] = difference(what, torch_runner(load_hub(folder)))

    write_folder(out, fill)
    return found[0]


def _public(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options without folders of this machine: of the file a run began with, the name alone."""
    made = {k: v for k, v in options.items() if k != "adapter_rank"}
    if "weights" in made:
        made["weights"] = Path(made["weights"]).name
    if isinstance(made.get("config"), Mapping):
        made["config"] = {k: v for k, v in made["config"].items() if k != "_name_or_path"}
    return made


def load_hub(folder: str | Path) -> HubNetwork:
    """The network of an exported folder, in evaluation mode, without huggingface_hub.

    Raises RunError where a file is missing, broken, or does not fit the other.
    """
    place = Path(folder)
    config = read_json(place / _CONFIG)
    if set(config) != _FIELDS:
        raise RunError(f"{place / _CONFIG} is no export of this version: fields {sorted(set(config) ^ _FIELDS)}")
    tensors, _ = load_tensors(place / _WEIGHTS)
    try:
        network = HubNetwork(**config)
        network.load_state_dict(tensors)
    except (TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise RunError(
            f"{place}: {_CONFIG} and {_WEIGHTS} do not fit each other ({error}); export again"
        ) from error
    return network.eval()


def hub_class() -> type[nn.Module]:
    """`HubNetwork` with `from_pretrained` and `push_to_hub`: `hub_class().from_pretrained(folder).eval()`.

    Raises ConfigError where huggingface_hub is not installed.
    """
    try:
        from huggingface_hub import PyTorchModelHubMixin
    except ImportError as error:
        raise ConfigError("this needs huggingface_hub: pip install 'selftaught[hub]', or use load_hub") from error

    class SelftaughtNetwork(  # type: ignore[call-arg, unused-ignore]
        HubNetwork, PyTorchModelHubMixin, library_name="selftaught"
    ):
        """An exported network on the Hugging Face Hub."""

    return SelftaughtNetwork


def card(what: Exportable) -> str:
    """The model card, with the metadata that the Hub reads."""
    classes = "" if what.head is None else f"Classes: {', '.join(what.head.classes)}.\n\n"
    said = ", ".join(f"{k} {v}" for k, v in what.trained.items())
    return (
        "---\nlibrary_name: selftaught\npipeline_tag: image-feature-extraction\n"
        "tags: [few-shot, self-supervised]\n---\n\n"
        f"# A picture encoder{'' if what.head is None else ' with a few-shot classifier'}\n\n"
        f"{said.capitalize() + '.' if said else ''}\n\n{classes}"
        f"Input: uint8 RGB pictures [batch {what.size} {what.size} 3]; outputs: {', '.join(what.outputs)}.\n\n"
        '```python\nfrom selftaught.export.to_hub import load_hub\n\nnetwork = load_hub("THIS FOLDER")\n```\n'
    )
