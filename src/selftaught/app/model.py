"""A trained encoder in use: embed pictures, adapt to a few labels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np
import torch
from torch import Tensor, nn

from selftaught.app.config import Config
from selftaught.app.sources import as_pictures
from selftaught.artifacts.card import model_card
from selftaught.artifacts.model import load_model, save_model
from selftaught.core.errors import DataError, RunError
from selftaught.core.functional import in_batches, part
from selftaught.core.types import Learner, Params
from selftaught.data.pictures import Pictures

if TYPE_CHECKING:
    from selftaught.app.classifier import Classifier, Head


@final
@dataclass(frozen=True)
class Model:
    """`net` is the skeleton, `weights` the trained numbers (parameters and statistics), `config` the run's."""

    net: nn.Module
    weights: Params
    config: Config

    @property
    def encoder(self) -> nn.Module:
        """The encoder alone, with the trained numbers in place and in evaluation mode: a plain module."""
        encoder = self.net.get_submodule("encoder")
        encoder.load_state_dict(part(self.weights, "encoder"))
        return encoder.eval()

    @property
    def width(self) -> int:
        """D of an embedding."""
        return int(self.net.get_submodule("encoder").width)  # type: ignore[arg-type]

    @property
    def learner(self) -> Learner:
        """The method's own way of meeting a new task."""
        return self.config.build_method().learner(self.net)

    def read(self, data: Any, *, labelled: bool = False) -> Pictures:
        """Pictures in the size and channels this model was trained on (see `app.sources.as_pictures`)."""
        return as_pictures(data, self.config.size, self.config.channels, labelled=labelled)

    def features(self, pictures: Pictures) -> Tensor:
        """Encoder output [B D], with the statistics of training; no gradient."""
        encoder = self.net.get_submodule("encoder")
        return in_batches(encoder, part(self.weights, "encoder"), pictures.x)

    def embed(self, data: Any) -> "np.ndarray[Any, np.dtype[np.float32]]":
        """Embeddings [n D] float32 of a folder, files, arrays or a picture set, in the order read."""
        return self.features(self.read(data)).numpy()

    def adapt(self, examples: Any, head: "Head" = "prototype") -> "Classifier":
        """A classifier from 1-5 pictures a class: a folder with one subfolder a class, or {class: pictures}.

        Raises DataError when there are fewer than two classes or a class has no readable picture.
        """
        from selftaught.app.classifier import Classifier

        if isinstance(examples, Mapping):
            support = self._from_mapping(examples)
        else:
            support = self.read(examples, labelled=True)
        return Classifier.fit(self, support, head)

    def _from_mapping(self, examples: Mapping[str, Any]) -> Pictures:
        parts = {name: self.read(_listed(given)) for name, given in examples.items()}
        if not parts:
            raise DataError("no classes given: adapt({'cat': [...], 'dog': [...]})")
        return Pictures(
            x=torch.cat([p.x for p in parts.values()]),
            names=tuple(name for p in parts.values() for name in p.names),
            y=torch.cat([torch.full((len(p),), i) for i, p in enumerate(parts.values())]),
            classes=tuple(parts),
            skipped=tuple(s for p in parts.values() for s in p.skipped),
        )

    def save(self, folder: str | Path, rows: Sequence[Mapping[str, Any]] = ()) -> None:
        """Write safetensors, configuration and model card; raises SaveError."""
        shown = {k: v for k, v in self.config.as_json().items() if k not in ("data", "command")}
        counts = {k: v for k, v in self.config.data.items() if isinstance(v, int)}
        card = model_card(shown, rows, counts, self.config.command)
        save_model(folder, self.weights, self.config.as_json(), card)

    @classmethod
    def load(cls, folder: str | Path) -> "Model":
        """From a model folder or a finished run; raises RunError when it does not fit together."""
        weights, content = load_model(folder)
        config = Config.from_json(content, f"{folder}: config.json")
        net = config.build_network()
        expected = {k: v.shape for k, v in net.state_dict().items()}
        found = {k: v.shape for k, v in weights.items() if k in expected}
        if found != expected:
            wrong = sorted(k for k in expected if found.get(k) != expected[k])
            raise RunError(f"{folder}: weights do not fit the network of config.json at {', '.join(wrong[:3])}")
        return cls(net, weights, config)


def _listed(given: Any) -> Any:
    """One path as a list of one; arrays of one picture [H W (C)] as a batch of one."""
    if isinstance(given, str | Path) and not Path(given).is_dir():
        return [given]
    if isinstance(given, np.ndarray | Tensor) and given.ndim in (2, 3) and given.shape[-1] in (1, 3):
        return given[None]
    return given
