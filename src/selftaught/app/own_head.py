"""A method's own learner after it met one support set: the head "own" of a classifier."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from selftaught.app.model import Model
from selftaught.core.errors import RunError
from selftaught.core.functional import to_float
from selftaught.core.types import Examples, Learner, Params
from selftaught.data.pictures import Pictures

_AT_ONCE = 512


@final
@dataclass(frozen=True)
class OwnHead:
    """`adapted` is what `learner` made of the support: for gradient steps the weights after them."""

    learner: Learner
    adapted: Any

    @classmethod
    def fit(cls, model: Model, support: Pictures) -> "OwnHead":
        """Meet the classes of `support`, whose labels count from 0; the model keeps its numbers."""
        learner, examples = model.learner, Examples(to_float(support.x), support.y)
        adapted = learner.adapt(model.weights, examples, len(support.classes))
        if isinstance(adapted, dict):
            # As a file gives them back: in another memory layout the last bits of a product differ.
            adapted = {k: adapted[k].contiguous() for k in sorted(adapted)}
        return cls(learner, adapted)

    @classmethod
    def restored(cls, model: Model, support: Pictures, tensors: Mapping[str, Tensor]) -> "OwnHead":
        """From the `tensors` of before, or from the support again. Raises RunError where they do not fit."""
        if not tensors:
            return cls.fit(model, support)
        found = cls(model.learner, dict(tensors))
        try:
            found.probabilities(support.x[:1])
        except (KeyError, RuntimeError) as error:
            raise RunError(f"the adapted weights do not fit the model ({error}); adapt again") from error
        return found

    @property
    def tensors(self) -> Params:
        """What a file has to keep: adapted weights. Class means and solved heads follow from the support."""
        return self.adapted if isinstance(self.adapted, dict) else {}

    @torch.no_grad()
    def probabilities(self, x: Tensor) -> "np.ndarray[Any, np.dtype[np.float32]]":
        """[B M], softmax of the learner's logits, for pictures [B C H W]; those of cosines are flat."""
        logits = [self.learner.predict(self.adapted, to_float(part)) for part in x.split(_AT_ONCE)]
        return torch.cat(logits).softmax(-1).numpy()
