"""The inference loss is what a slow version with loops says, and windows over a change are left out."""

import math

import pytest
import torch
from torch.func import functional_call

from selftaught.control import MoSS, PointRobot, start
from selftaught.control.moss import contexts, normalised
from selftaught.control.replay import sample
from selftaught.core.functional import part

FAMILY = PointRobot(horizon=8)
CONFIG = MoSS(
    hidden=8, recurrent=6, components=3, latent=2, window=3, looks=3, decoded=4, worlds=5, batch=5, change=0.6
)


def test_reconstruction_and_divergence_are_the_slow_ones() -> None:
    tasks = FAMILY.draw(6, torch.Generator().manual_seed(0))
    net = CONFIG.network(FAMILY, 0)
    state = start(CONFIG, net, FAMILY, tasks, 0)
    played = sample(part(state.slow, "replay"), 5, torch.Generator().manual_seed(1))
    assert (played.ids.diff(dim=1) != 0).any()
    x = normalised(state.slow, played)
    _, belief = contexts(CONFIG, net, state.params, x, played.tasks)
    assert belief is not None
    _, found = CONFIG.inference(net, state.params, x, played.ids, belief, torch.Generator().manual_seed(2))

    g = torch.Generator().manual_seed(2)
    at = torch.randint(9, (5, 3), generator=g)
    told = torch.randint(8, (5, 12), generator=g).unflatten(1, (3, 4))
    noise = torch.randn(5, 3, 3, 2, generator=g)
    weights, prior = part(state.params, "decoder"), state.params["head.prior"]
    errors, divergences, left_out = [], [], 0
    for b in range(5):
        for j in range(3):
            t = int(at[b, j])
            mine = [int(u) for u in told[b, j] if played.ids[b, u] == played.ids[b, max(t - 1, 0)]]
            left_out += 4 - len(mine)
            error = divergence = torch.zeros(())
            for k in range(3):
                y, mean, log_var = belief.log_y[b, t, k].exp(), belief.mean[b, t, k], belief.log_var[b, t, k]
                z = mean + log_var.div(2).exp() * noise[b, j, k]
                for u in mine:
                    known = torch.cat([x.seen[b, u], x.actions[b, u]])
                    guess = functional_call(net["decoder"], weights, (known, z))
                    off = (guess[0] - x.rewards[b, u]).square() + (guess[1:] - x.moves[b, u]).square().mean()
                    error = error + y * off / 2 / len(mine)
                spread = math.exp(CONFIG.prior_log_var)
                apart = (log_var.exp() + (mean - prior[k]).square()) / spread - 1 - log_var + CONFIG.prior_log_var
                divergence = divergence + y * apart.sum() / 2
            errors.append(float(error.detach()))
            divergences.append(float(divergence.detach()))
    assert left_out
    assert found["reconstruction"].item() == pytest.approx(sum(errors) / 15, rel=1e-4)
    assert found["kl"].item() == pytest.approx(sum(divergences) / 15, rel=1e-4)


def test_windows_over_a_change_are_no_pairs() -> None:
    """Where every step is of another task no window is of one, and the contrast is nothing."""
    tasks = FAMILY.draw(6, torch.Generator().manual_seed(0))
    net = CONFIG.network(FAMILY, 0)
    state = start(CONFIG, net, FAMILY, tasks, 0)
    x = normalised(state.slow, sample(part(state.slow, "replay"), 5, torch.Generator()))
    always = torch.arange(8).expand(5, 8)
    assert CONFIG._contrast(net, state.params, x, always, torch.Generator()).item() == 0
    never = torch.arange(5)[:, None].expand(5, 8)
    assert CONFIG._contrast(net, state.params, x, never, torch.Generator()).item() > 0
    # All of one task: no negatives, nothing to tell apart.
    alone = CONFIG._contrast(net, state.params, x, torch.zeros(5, 8, dtype=torch.int64), torch.Generator())
    assert alone.item() == pytest.approx(0, abs=1e-6)
