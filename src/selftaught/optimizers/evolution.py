"""Evolution on the outer objective, for few numbers and losses without a useful gradient: CMA-ES by pycma.

Hansen, Ostermeier, "Completely Derandomized Self-Adaptation in Evolution Strategies", Evolutionary Computation
2001. The algorithm is that of the package `cma`; ours is the form: state as named tensors, the population in one
`vmap`.
"""

import math
import warnings
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import vmap

from selftaught.core.errors import ConfigError
from selftaught.core.types import Aux, LossFn, Params
from selftaught.optimizers.gradient import NotFiniteError


@dataclass(frozen=True)
class CMAES:
    """`population` candidates a step around a mean, the parameters; `sigma` is their first deviation.

    The state is where the search began and all losses since: the search is repeated from them where it is not at
    hand (a restored run), so saving needs no pickle. A candidate whose loss is not finite counts as worse than
    all others. `batched` evaluates the population by `vmap`; else one by one, for losses that `vmap` refuses.
    Needs the extra `blur` (the package cma). `loss_fn` must be a function of the parameters alone.
    """

    population: int = 16
    sigma: float = 0.1
    seed: int = 0
    batched: bool = True
    _live: list[tuple[Tensor, Tensor, Any]] = field(default_factory=list, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.population < 4 or self.sigma <= 0:
            raise ConfigError(
                f"CMA-ES needs population >= 4 and sigma > 0, got {self.population} and {self.sigma}"
            )

    def init(self, params: Params) -> Params:
        """The flat start [P] and an empty list of losses [0 population]."""
        start = torch.cat([v.detach().double().reshape(-1).cpu() for v in params.values()])
        return {"start": start, "losses": torch.zeros(0, self.population, dtype=torch.float64)}

    @torch.no_grad()
    def step(self, loss_fn: LossFn, params: Params, opt: Params) -> tuple[Params, Params, Aux]:
        """One generation. Raises NotFiniteError where no candidate has a finite loss; nothing was changed then."""
        search = self._search(opt["start"], opt["losses"])
        found = search.ask()
        losses, figures = self._evaluated(loss_fn, params, torch.from_numpy(np.stack(found)))
        if not bool(losses.isfinite().any()):
            self._live.clear()
            raise NotFiniteError(
                f"no candidate of generation {len(opt['losses'])} has a finite loss: nothing was updated. "
                "Start elsewhere, or with a smaller sigma."
            )
        losses = _ranked_last(losses)
        search.tell(found, losses.tolist())
        history = torch.cat([opt["losses"], losses[None]])
        self._live[:] = [(opt["start"], history, search)]
        new = unflattened(torch.from_numpy(np.array(search.mean)), params)
        log = {"loss": losses.mean(), "best": losses.min(), "sigma": torch.tensor(float(search.sigma)), **figures}
        return new, {"start": opt["start"], "losses": history}, Aux(log)

    def _search(self, start: Tensor, losses: Tensor) -> Any:
        """The strategy after these losses: the one at hand where it is the same search, or all of it again."""
        if self._live:
            began, told, search = self._live.pop()
            if torch.equal(began, start) and torch.equal(told, losses):
                return search
        cma = _cma()
        numbers = np.random.default_rng(self.seed)
        # Own random numbers: the package would seed and use numpy's global generator.
        options = {
            "popsize": self.population, "randn": lambda *shape: numbers.standard_normal(shape),
            "seed": math.nan, "verbose": -9, "verb_log": 0, "verb_disp": 0,
        }  # fmt: skip
        search = cma.CMAEvolutionStrategy(start.tolist(), self.sigma, options)
        for row in losses.tolist():
            search.tell(search.ask(), row)
        return search

    def _evaluated(self, loss_fn: LossFn, params: Params, found: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Losses [population] in float64, and the other figures as means over the finite candidates."""

        def one(vector: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            loss, aux = loss_fn(unflattened(vector, params))
            return loss, aux.metrics

        if self.batched:
            losses, figures = vmap(one)(found)
        else:
            each = [one(v) for v in found]
            losses = torch.stack([loss for loss, _ in each])
            figures = {k: torch.stack([m[k] for _, m in each]) for k in each[0][1]}
        good = losses.isfinite()
        means = {k: v[good].float().mean() for k, v in figures.items() if bool(good.any())}
        return losses.double().cpu(), means


def unflattened(vector: Tensor, like: Params) -> Params:
    """`vector` [P] in the names, shapes, type and device of `like`."""
    parts = vector.split([v.numel() for v in like.values()])
    return {k: p.reshape(v.shape).to(v) for (k, v), p in zip(like.items(), parts, strict=True)}


def _ranked_last(losses: Tensor) -> Tensor:
    """Losses that are not finite become worse than the worst: the strategy looks at ranks alone."""
    good = losses.isfinite()
    worst = losses[good].max()
    return torch.where(good, losses, worst + worst.abs() + 1)


def _cma() -> Any:
    try:
        with warnings.catch_warnings():
            # It warns at import that it cannot plot.
            warnings.simplefilter("ignore")
            import cma
    except ImportError as error:
        raise ConfigError("CMA-ES needs the package cma: pip install 'selftaught[blur]'") from error
    return cma
