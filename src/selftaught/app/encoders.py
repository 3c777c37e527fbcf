"""`--encoder` in full: which network, and which file its first numbers come from.

    conv4                        one of ours, fresh
    timm:NAME                    with published weights that are already in Hugging Face's cache on this machine
    timm:NAME=FILE.safetensors   with the numbers of a file; openclip:NAME=FILE and hf:NAME=FILE likewise
    timm:NAME=download           fetches the published weights (timm and hf); nothing else opens a connection
    timm:NAME=random             fresh numbers
    hf:FOLDER                    config.json and model.safetensors as transformers saves them
    path:FOLDER_OR_FILE          a run or model of ours, a folder of timm or transformers, or a safetensors file
                                 whose metadata say "encoder"
    ...+lora8                    any of another library: it stays as it is, and adapters of rank 8 are trained

A run writes down name, library with version, file and its SHA-256; a trained model needs the file no longer.
Pickled weights are refused by their names and never opened.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from torch import Tensor, nn

from selftaught.artifacts.files import read_json
from selftaught.artifacts.tensors import load_tensors
from selftaught.core.errors import ConfigError, RunError
from selftaught.nets.hub import HubEncoder, check_name, current_names, divided_name, is_hub, library, version_of

PICKLED = (".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt", ".tar", ".npy", ".joblib")
WEIGHTS = "model.safetensors"
_ADAPTED = re.compile(r"(.*)\+lora(\d+)")
TRUNK_SHARE = 0.1
"""A trunk that comes with weights learns at this share of the rate, where no rate is given for it: our choice."""

_UNSAFE = (
    "is a pickled file, which can run code when it is opened, and is never opened here. Convert it where you "
    "trust it, by safetensors.torch.save_file, and name the .safetensors file"
)


@final
@dataclass(frozen=True)
class Chosen:
    """What `--encoder` means: a name of `build_encoder`, its options, or a run whose encoder to go on with."""

    encoder: str
    options: dict[str, Any] = field(default_factory=dict)
    init_from: Path | None = None

    @property
    def trained(self) -> bool:
        """Whether another library's weights are trained themselves; adapters begin at nothing, as heads do."""
        return self.options.get("weights", "random") != "random" and not self.options.get("adapter_rank")


def chosen_encoder(encoder: str, options: Mapping[str, Any]) -> Chosen:
    """Reads `--encoder` and looks for the files it names.

    Raises ConfigError for unknown kinds and names, missing libraries and pickled files, RunError for files that
    are missing or broken.
    """
    if asked := _ADAPTED.fullmatch(encoder):
        encoder, options = asked[1], {**options, "adapter_rank": int(asked[2])}
        if not int(asked[2]):
            raise ConfigError("the rank of adapters is at least 1: +lora1, +lora8")
    if not is_hub(encoder):
        _refuse_adapters(encoder, options)
        return Chosen(encoder, dict(options))
    name, _, source = encoder.partition("=")
    if name.startswith("path:"):
        return _from_path(Path(encoder.removeprefix("path:")), options)
    kind, rest = divided_name(name)
    check_name(kind, rest)
    if kind == "hf" and Path(rest).is_dir():
        return _from_transformers(Path(rest), options, source)
    found = dict(options)
    if kind == "hf" and "config" not in found:
        found |= _described(
            _file(rest, "config.json", source), _file(rest, "preprocessor_config.json", source, False)
        )
    return _with_weights(name, found, _source(kind, rest, source))


def load_trunk(net: nn.Module, options: Mapping[str, Any]) -> None:
    """Copies the file named in `options` into the encoder of `net`; nothing where none is named.

    Raises RunError where the file changed since the run began or does not fit, naming tensors and shapes.
    """
    encoder, source = net.get_submodule("encoder"), options.get("weights", "random")
    if not isinstance(encoder, HubEncoder) or source == "random":
        return
    path = Path(source)
    _refuse_pickles(path)
    if options.get("sha256") not in (None, _sha256(path)):
        raise RunError(f"{path} is not the file this run began with (its SHA-256 differs): restore it")
    tensors = current_names(encoder.name, options, load_tensors(path)[0])
    mine = {k: v for k, v in encoder.trunk.state_dict().items() if not _unneeded(k, encoder)}
    given = {_renamed(k, encoder, mine): v for k, v in tensors.items()}
    missing = sorted(set(mine) - set(given))
    wrong = [k for k in mine if k in given and given[k].shape != mine[k].shape]
    if missing or wrong:
        said = f"lacks {len(missing)} of {len(mine)} tensors ({', '.join(missing[:3])})" if missing else ""
        shapes = ", ".join(f"{k} {list(given[k].shape)} for {list(mine[k].shape)}" for k in wrong[:3])
        raise RunError(
            f"{path} does not fit {encoder.name}: {' and '.join(filter(None, [said, shapes]))}. "
            "Name the network the file was saved from."
        )
    encoder.trunk.load_state_dict({k: given[k] for k in mine}, strict=False)


def _unneeded(name: str, encoder: HubEncoder) -> bool:
    """Whether a file of weights may lack this tensor: the count of batches, and what the library derives."""
    return name.endswith("num_batches_tracked") or name in encoder.derived


def _renamed(name: str, encoder: HubEncoder, mine: Mapping[str, Tensor]) -> str:
    """The trunk's own name of a tensor, which a file may have under another model's prefix."""
    plain = name.removeprefix("module.")
    for candidate in (plain, plain.removeprefix(encoder.prefix)):
        if encoder.inside + candidate in mine:
            return encoder.inside + candidate
    return plain


def _from_path(path: Path, options: Mapping[str, Any]) -> Chosen:
    if path.is_file():
        _refuse_pickles(path)
        name = load_tensors(path)[1].get("encoder", "")
        if not is_hub(name):
            raise ConfigError(
                f"{path} does not say which network it holds: name it, for example --encoder timm:NAME={path}"
            )
        return _with_weights(name, dict(options), path)
    if not (path / "config.json").is_file():
        raise RunError(f"{path} is no folder of a run, of timm or of transformers: config.json is missing")
    content = read_json(path / "config.json")
    inner = content.get("config", content)
    if isinstance(inner, dict) and "method" in inner and "encoder" in inner:
        named, own = str(inner["encoder"]), inner.get("options", {})
        if options.get("adapter_rank", own.get("adapter_rank")) != own.get("adapter_rank"):
            _refuse_adapters(str(path), options)
        return Chosen(named, {**own, **options}, path)
    if "architecture" in content:
        cfg = content.get("pretrained_cfg", {})
        made: dict[str, Any] = {k: list(cfg[k]) for k in ("mean", "std") if k in cfg}
        if "input_size" in cfg:
            made["input"] = int(cfg["input_size"][-1])
        return _with_weights(f"timm:{content['architecture']}", {**made, **options}, _weights_in(path))
    if "model_type" in content:
        return _from_transformers(path, options, "")
    raise RunError(f"{path}: config.json is neither a run's nor one of timm or transformers")


def _from_transformers(folder: Path, options: Mapping[str, Any], source: str) -> Chosen:
    asked = Path(source) if source not in ("", "random", "download") else None
    path = None if source == "random" else asked or _weights_in(folder)
    described = _described(folder / "config.json", folder / "preprocessor_config.json")
    return _with_weights(f"hf:{folder.resolve().name}", {**described, **options}, path)


def _described(config: Path | None, preprocessor: Path | None) -> dict[str, Any]:
    """Options of a transformers network: its configuration, and the pictures it was trained on."""
    assert config is not None
    found: dict[str, Any] = {"config": read_json(config)}
    if preprocessor is not None and preprocessor.is_file():
        said = read_json(preprocessor)
        found |= {k: said[f"image_{k}"] for k in ("mean", "std") if f"image_{k}" in said}
        size = said.get("crop_size") or said.get("size")
        sides = [size] if isinstance(size, int) else [*size.values()] if isinstance(size, dict) else []
        found |= {"input": sides[0]} if sides else {}
    return found


def _with_weights(name: str, options: dict[str, Any], path: Path | None) -> Chosen:
    """The record a run keeps; a pooler that the weights lack is left out for the first token."""
    kind, _ = divided_name(name)
    record = {**options, "library": version_of(kind)}
    if path is None:
        return Chosen(name, record | {"weights": "random"})
    _refuse_pickles(path)
    if kind == "hf" and "pool" not in options and not any("pooler." in k for k in load_tensors(path)[0]):
        record["pool"] = "first" if "vit" in str(options.get("config", {}).get("model_type")) else "pooler"
    return Chosen(name, record | {"weights": str(path), "sha256": _sha256(path)})


def _source(kind: str, rest: str, source: str) -> Path | None:
    """The file of weights; None for fresh numbers."""
    if source == "random":
        return None
    if source not in ("", "download"):
        return Path(source)
    if kind == "openclip":
        raise ConfigError(f"openclip:{rest} needs a file: --encoder openclip:{rest}=FILE.safetensors (or =random)")
    if kind == "hf":
        return _file(rest, WEIGHTS, source)
    cfg = library(kind).get_pretrained_cfg(rest, allow_unregistered=False)
    repository = getattr(cfg, "hf_hub_id", None)
    if not repository:
        raise ConfigError(f"timm knows no published weights of {rest}: --encoder timm:{rest}=FILE.safetensors")
    return _file(str(repository), WEIGHTS, source)


def _file(repository: str, name: str, source: str, needed: bool = True) -> Path | None:
    """A file of a repository of Hugging Face: from the cache, or fetched where "download" asks for it."""
    try:
        import huggingface_hub as hub
    except ImportError as error:
        raise ConfigError(
            f"published weights need huggingface_hub: pip install 'selftaught[hub]' ({error})"
        ) from error
    if source == "download":
        try:
            return Path(hub.hf_hub_download(repository, name))
        except Exception as error:  # of the network, of the service, of names: many kinds
            if not needed:
                return None
            raise RunError(f"{repository}/{name} could not be fetched: {error}") from error
    found = hub.try_to_load_from_cache(repository, name)
    if isinstance(found, str):
        return Path(found)
    if not needed:
        return None
    raise ConfigError(
        f"{name} of {repository} is not on this machine. Add =download to fetch it, =FILE.safetensors for a file "
        "of yours, or =random for fresh numbers"
    )


def _weights_in(folder: Path) -> Path:
    if (folder / WEIGHTS).is_file():
        return folder / WEIGHTS
    if (folder / f"{WEIGHTS}.index.json").is_file():
        raise RunError(f"{folder}: weights in several files are not read; save them as one {WEIGHTS}")
    for path in sorted(folder.iterdir()):
        _refuse_pickles(path)
    raise RunError(f"{folder / WEIGHTS} is missing")


def _refuse_adapters(where: str, options: Mapping[str, Any]) -> None:
    if options.get("adapter_rank"):
        raise ConfigError(
            f"{where} cannot have adapters: they go with the weights of another library, for example "
            f"--encoder timm:NAME=FILE.safetensors+lora{options['adapter_rank']}"
        )


def _refuse_pickles(path: Path) -> None:
    if path.suffix.lower() in PICKLED:
        raise ConfigError(f"{path} {_UNSAFE}")


def _sha256(path: Path) -> str:
    if not path.is_file():
        raise RunError(f"{path} is missing. Check the name of the file or folder.")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
