"""Encoders of other libraries, trained or not, as modules [B C H W] -> [B D]: timm, open_clip, transformers.

A name is `timm:NAME`, `openclip:NAME` or `hf:NAME`. This file knows how a network is built and what pictures it
was made for; where its numbers come from is `app.hub_weights`. Nothing here reads weights or opens a connection.

Our choices, the same for all three: pictures arrive in 0..1 and are resized (bilinear, averaging where they
shrink) and normalised inside the module, as the network was trained; grey ones are repeated in three channels;
batch normalisation keeps the statistics it came with (`norm="frozen"`), because those of a few pictures are worse
than those of a million; attention is written out, since the fused kernels have no second derivative.
"""

import difflib
import importlib
import importlib.metadata
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal, final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from selftaught.core.errors import ConfigError
from selftaught.core.functional import to_float
from selftaught.core.types import Params
from selftaught.nets.adapters import Adapters
from selftaught.nets.frozen import freeze_statistics

TrunkNorm = Literal["frozen", "batch"]
"""`frozen`: batch normalisation with the statistics it came with, scale and shift still trained. `batch`: as in
our own encoders, by the batch in training and by running averages in use."""

EXTRAS = {"timm": ("timm", "encoders"), "openclip": ("open_clip", "openclip"), "hf": ("transformers", "hf")}
"""What stands before the colon -> the module to import and the extra that installs it."""

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_INPUT = 224


@final
@dataclass(frozen=True)
class Trunk:
    """A network as its library builds it, and the pictures it was made for.

    `input` is their side in pixels, `mean` and `std` are per channel in 0..1. `prefix` is what weights
    may have before every name, `inside` what `net` has there.
    """

    net: nn.Module
    input: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    prefix: str = ""
    inside: str = ""


def is_hub(name: str) -> bool:
    """Whether an encoder's name says that another library builds it."""
    return ":" in name


def divided_name(name: str) -> tuple[str, str]:
    """`timm:resnet18` -> ("timm", "resnet18"). Raises ConfigError for an unknown kind or an empty name."""
    kind, _, rest = name.partition(":")
    if kind not in EXTRAS or not rest:
        known = ", ".join(f"{k}:NAME" for k in EXTRAS)
        raise ConfigError(f"encoder {name!r}: known are {known}, and path:FOLDER_OR_FILE to begin a run")
    return kind, rest


def library(kind: str) -> Any:
    """The module behind `kind`. Raises ConfigError, naming the extra, where it cannot be imported."""
    module, extra = EXTRAS[kind]
    way = f"pip install 'selftaught[{extra}]'"
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(f"encoders {kind}:... need {module}, which is not installed ({error}): {way}") from error
    except (RuntimeError, OSError) as error:
        raise ConfigError(
            f"{module} does not start beside torch {torch.__version__} ({error}). torchvision has to come from "
            f"the same index as torch: install both anew, then {way}"
        ) from error


def version_of(kind: str) -> str:
    """Name and version of the library, for example "timm 1.0.31"."""
    module = library(kind)
    return f"{EXTRAS[kind][0]} {getattr(module, '__version__', 'of unknown version')}"


def trunk_of(name: str, options: Mapping[str, Any]) -> Trunk:
    """The network `name` with fresh numbers, from torch's global generator; `options` as for `build_hub`.

    Raises ConfigError for an unknown name, with those that are near, and where the library is missing.
    """
    kind, rest = divided_name(name)
    check_name(kind, rest)
    return _TRUNKS[kind](library(kind), rest, options)


def build_hub(name: str, channels: int, **options: Any) -> "HubEncoder":
    """An encoder with fresh numbers for pictures of 1 or 3 channels, from torch's global generator.

    `options`: `input` pixels square to resize to (default: the network's own), `norm` (TrunkNorm), `mean` and
    `std`; `pool` ("pooler", "first" or "mean" of the tokens) and `config` for transformers; `adapter_rank` above
    0 freezes the network and trains low-rank adapters (`nets.adapters`) instead. `library`, `weights` and
    `sha256` are a record of where a run began and change nothing here. Raises ConfigError.
    """
    if unknown := sorted(set(options) - _OPTIONS):
        raise ConfigError(
            f"encoder {name} has no option {', '.join(unknown)}; it has {', '.join(sorted(_OPTIONS))}"
        )
    if channels not in (1, 3):
        raise ConfigError(f"encoder {name} takes pictures of 1 or 3 channels, got {channels}")
    trunk = trunk_of(name, options)
    norm = options.get("norm", "frozen")
    if norm not in ("frozen", "batch"):
        raise ConfigError(f"encoder {name}: norm is 'frozen' or 'batch', got {norm!r}")
    quiet(trunk.net)
    given = {k: options[k] for k in ("input", "mean", "std") if options.get(k) is not None}
    net = freeze_statistics(trunk.net) if norm == "frozen" else trunk.net
    return HubEncoder(replace(trunk, net=net, **given), name, channels, options.get("adapter_rank", 0))


_OPTIONS = frozenset(
    {"input", "norm", "mean", "std", "pool", "config", "adapter_rank", "library", "weights", "sha256"}
)


@final
class HubEncoder(nn.Module):
    """Pictures [B C H W], uint8 or float in 0..1, of any size -> embeddings [B D] of the network of `made`.

    `derived` names the trunk's buffers that its library computes and does not save (positions, indices): here a
    state holds every tensor, and files of weights need not have them. Raises ConfigError where the network cannot
    take pictures of its size or gives no [B D].
    """

    mean: Tensor
    std: Tensor

    def __init__(self, made: Trunk, name: str, channels: int, adapter_rank: int = 0) -> None:
        super().__init__()
        self.trunk, self.name, self.channels, self.side = made.net, name, channels, made.input
        self.prefix, self.inside = made.prefix, made.inside
        self.derived = keep_buffers(made.net)
        self.register_buffer("mean", torch.tensor(made.mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(made.std).view(1, -1, 1, 1))
        # torch's own attention module calls fused kernels.
        self.fused = any(isinstance(m, nn.MultiheadAttention) for m in made.net.modules())
        self.adapters: Adapters | None = None
        self.width = self._width()
        if adapter_rank:
            self.adapters = Adapters(made.net, adapter_rank)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D"]:
        if x.ndim != 4 or x.shape[1] != self.channels:
            raise ConfigError(f"{self.name} takes pictures [B {self.channels} H W] here, got {list(x.shape)}")
        x = to_float(x).expand(-1, 3, -1, -1)
        height, width = x.shape[-2:]
        if (height, width) != (self.side, self.side):
            shrinks = max(height, width) > self.side
            x = F.interpolate(x, (self.side, self.side), mode="bilinear", align_corners=False, antialias=shrinks)
        with _written_out() if self.fused else nullcontext():
            return _flat(self._through((x - self.mean) / self.std))

    def _through(self, x: Tensor) -> Any:
        if self.adapters is None:
            return self.trunk(x)
        return functional_call(self.trunk, self.adapters.weights(self.trunk), (x,))

    def merge(self) -> None:
        """Add what adapters learned to the weights, in place, and drop them: the same network, and a plain one."""
        if self.adapters is not None:
            self.adapters.merge_into(self.trunk)
            self.adapters = None

    def lower(self, x: Tensor) -> Tensor:
        """Raises ConfigError: nothing says where the last block of another library's network begins."""
        raise ConfigError(
            f"adapt='last' needs an encoder of ours; {self.name} goes with adapt='head' or adapt='all'"
        )

    def _width(self) -> int:
        training = [m for m in self.trunk.modules() if m.training]
        self.trunk.eval()
        try:
            with torch.no_grad():
                z = self(torch.zeros(1, self.channels, self.side, self.side))
        except (RuntimeError, AssertionError, ValueError, TypeError) as error:
            raise ConfigError(
                f"{self.name} cannot take pictures of {self.side} x {self.side} pixels: {error}. "
                "Leave out the option `input`, or name another network."
            ) from error
        finally:
            for module in training:
                module.training = True
        if not isinstance(z, Tensor) or z.ndim != 2:
            raise ConfigError(f"{self.name} gives no embeddings [B D], and cannot be an encoder here")
        return z.shape[1]


def _flat(z: Any) -> Any:
    """[B D h w] and [B N D] as the mean over places, [B D] as it is."""
    if isinstance(z, Tensor) and z.ndim == 4:
        return z.mean((2, 3))
    return z.mean(1) if isinstance(z, Tensor) and z.ndim == 3 else z


def keep_buffers(net: nn.Module) -> frozenset[str]:
    """Let a state of `net` hold all its buffers; gives the names of those it would have left out."""
    left_out = {k for k, _ in net.named_buffers()} - set(net.state_dict())
    for module in net.modules():
        module._non_persistent_buffers_set.clear()
    return frozenset(left_out)


def quiet(net: nn.Module) -> None:
    """Activations not in place and attention written out: both would break second derivatives."""
    for module in net.modules():
        if getattr(module, "inplace", False) is True:
            module.inplace = False  # type: ignore[assignment]
        if hasattr(module, "fused_attn"):
            module.fused_attn = False  # type: ignore[assignment]


def _timm(timm: Any, name: str, options: Mapping[str, Any]) -> Trunk:
    side, made = options.get("input"), {"pretrained": False, "num_classes": 0}
    try:
        net = timm.create_model(name, **made)
        cfg = net.pretrained_cfg
        if side and tuple(cfg["input_size"][1:]) != (side, side) and hasattr(net, "pos_embed"):
            # Positions are then interpolated, and weights keep their shapes.
            net = timm.create_model(name, **made, dynamic_img_size=True)
    except (TypeError, RuntimeError, ValueError) as error:
        raise ConfigError(f"timm cannot build {name!r}: {error}") from error
    return Trunk(
        net, int(cfg.get("input_size", (3, _INPUT, _INPUT))[-1]), tuple(cfg.get("mean", _MEAN)),
        tuple(cfg.get("std", _STD)),
    )  # fmt: skip


def _openclip(open_clip: Any, name: str, options: Mapping[str, Any]) -> Trunk:
    with _unlogged():
        net = open_clip.create_model(name, pretrained=None).visual
    size = getattr(net, "image_size", _INPUT)
    mean, std = getattr(net, "image_mean", None), getattr(net, "image_std", None)
    return Trunk(
        net, int(size if isinstance(size, int) else size[0]), tuple(mean or open_clip.OPENAI_DATASET_MEAN),
        tuple(std or open_clip.OPENAI_DATASET_STD), "visual.",
    )  # fmt: skip


@contextmanager
def _written_out() -> Iterator[None]:
    """torch's own attention without fused kernels, which have no second derivative or no batched form."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


@contextmanager
def _unlogged() -> Iterator[None]:
    """open_clip tells the root logger that weights are missing, which also makes it print what all others say."""
    root, silent = logging.getLogger(), logging.NullHandler()
    root.addHandler(silent)
    try:
        yield
    finally:
        root.removeHandler(silent)


def _hf(transformers: Any, name: str, options: Mapping[str, Any]) -> Trunk:
    config, whole = _whole(transformers, name, options)
    vision = getattr(config, "vision_config", None)  # of a model of pictures and text, the pictures' part
    part = getattr(whole, "vision_model", None)
    net = whole if part is None else part
    pool = options.get("pool", "pooler")
    if pool != "pooler" and getattr(net, "pooler", None) is not None:
        net.pooler = None
    side = getattr(vision or config, "image_size", _INPUT)
    prefix = "" if part is None else "vision_model."
    return Trunk(Pooled(net, pool), int(side if isinstance(side, int) else side[0]), _MEAN, _STD, prefix, "net.")


def _whole(transformers: Any, name: str, options: Mapping[str, Any]) -> tuple[Any, Any]:
    """Configuration and model, of which a trunk may be a part."""
    made = dict(options.get("config") or {})
    if "model_type" not in made:
        raise ConfigError(f"hf:{name}: the option `config` must hold the network's config.json")
    try:
        config = transformers.AutoConfig.for_model(**made)
        return config, transformers.AutoModel.from_config(config, attn_implementation="eager")
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"transformers cannot build hf:{name} ({made['model_type']}): {error}") from error


def current_names(name: str, options: Mapping[str, Any], tensors: Params) -> Params:
    """Tensors of a file under the names that the installed library uses; transformers renamed many over the years.

    Raises ConfigError where transformers cannot fit them.
    """
    kind, rest = divided_name(name)
    if kind != "hf":
        return tensors
    transformers = library(kind)
    try:
        with torch.random.fork_rng(devices=[]):
            config, whole = _whole(transformers, rest, options)
            loaded, said = type(whole).from_pretrained(
                None,
                config=config,
                state_dict=dict(tensors),
                output_loading_info=True,
                attn_implementation="eager",
            )
    except (RuntimeError, ValueError) as error:
        raise ConfigError(f"transformers cannot fit the weights to {name}: {error}") from error
    return {k: v for k, v in loaded.state_dict().items() if k not in said["missing_keys"]}


@final
class Pooled(nn.Module):
    """One embedding a picture from a transformers model: its pooler's, else its first token, or the mean."""

    def __init__(self, net: nn.Module, pool: str) -> None:
        super().__init__()
        if pool not in ("pooler", "first", "mean"):
            raise ConfigError(f"pool is 'pooler', 'first' or 'mean', got {pool!r}")
        self.net, self.pool = net, pool

    def forward(self, x: Tensor) -> Tensor:
        out = self.net(pixel_values=x)
        pooled, hidden = getattr(out, "pooler_output", None), out.last_hidden_state
        if self.pool == "pooler" and pooled is not None:
            return pooled.flatten(1)
        return hidden[:, 0] if self.pool == "first" and hidden.ndim == 3 else hidden


def check_name(kind: str, name: str) -> None:
    """Raises ConfigError where the library is missing, and with near names for a network it does not have."""
    module = library(kind)
    if kind == "hf":  # any folder or repository
        return
    names = list(module.list_models())
    if (name.split(".")[0] if kind == "timm" else name) not in names:
        near = difflib.get_close_matches(name, names, n=4, cutoff=0.5)
        hint = f"; near: {', '.join(near)}" if near else ""
        raise ConfigError(f"{EXTRAS[kind][0]} has no network {name!r} among {len(names)}{hint}")


_TRUNKS: dict[str, Callable[[Any, str, Mapping[str, Any]], Trunk]] = {
    "timm": _timm,
    "openclip": _openclip,
    "hf": _hf,
}
