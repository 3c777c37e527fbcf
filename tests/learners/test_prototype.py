"""What the three treatments of batch normalisation promise, and what must not depend on the other queries."""

import pytest
import torch
from jaxtyping import jaxtyped
from torch import Tensor, nn

from selftaught.core.errors import ConfigError
from selftaught.core.functional import buffers_of, params_of, part
from selftaught.core.types import Examples, Params, merged
from selftaught.learners.heads import prototype_logits
from selftaught.learners.prototype import LearnerNorm, PrototypeLearner, apply_recorded
from selftaught.nets.heads import EncoderOnly
from shape_checks import check


class Net(nn.Module):
    def __init__(self, group: bool = False) -> None:
        super().__init__()
        norm = [nn.GroupNorm(2, 8), nn.GroupNorm(2, 8)] if group else [nn.BatchNorm2d(8), nn.BatchNorm2d(8)]
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 8, 3, bias=False), norm[0], nn.ReLU(), nn.Conv2d(8, 8, 3), norm[1], nn.Flatten()
        )
        self.projector = nn.Linear(8 * 16, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.projector(self.encoder(x))


def setting(group: bool = False) -> tuple[Net, Params, Tensor, Tensor]:
    torch.manual_seed(0)
    net = Net(group)
    for module in net.modules():  # statistics far from the start, so that a mix-up shows
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.2, 3)
            nn.init.normal_(module.bias)
    weights = merged(params_of(net), buffers_of(net))
    return net, weights, torch.randn(10, 1, 8, 8), torch.randn(15, 1, 8, 8) * 2 + 1


@pytest.mark.parametrize("norm", ["running", "support"])
@pytest.mark.parametrize("embed_with", ["encoder", "net"])
def test_inductive_predictions_do_not_see_the_other_queries(norm: LearnerNorm, embed_with: str) -> None:
    net, weights, support, query = setting()
    learner = PrototypeLearner(net, norm, embed_with=embed_with)  # type: ignore[arg-type]
    adapted = learner.adapt(weights, Examples(support), 5)
    whole = learner.predict(adapted, query)
    order = torch.randperm(15)
    assert torch.allclose(learner.predict(adapted, query[order]), whole[order], atol=1e-4)
    for size in (1, 4, 15):
        parts = torch.cat([learner.predict(adapted, q) for q in query.split(size)])
        assert torch.allclose(parts, whole, atol=1e-4)
    for gone in (0, 7):
        keep = [i for i in range(15) if i != gone]
        assert torch.allclose(learner.predict(adapted, query[keep]), whole[keep], atol=1e-4)


def test_transductive_predictions_do() -> None:
    net, weights, support, query = setting()
    learner = PrototypeLearner(net, "transductive")
    adapted = learner.adapt(weights, Examples(support), 5)
    whole = learner.predict(adapted, query)
    order = torch.randperm(15)
    assert torch.allclose(learner.predict(adapted, query[order]), whole[order], atol=1e-3)
    parts = torch.cat([learner.predict(adapted, q) for q in query.split(4)])
    assert not torch.allclose(parts, whole, atol=0.1)
    assert not torch.allclose(learner.predict(adapted, query[1:]), whole[1:], atol=0.1)


def test_running_is_the_module_in_evaluation_mode() -> None:
    net, weights, support, query = setting()
    got = PrototypeLearner(net, distance="cosine")
    logits = got.predict(got.adapt(weights, Examples(support), 5), query)
    net.eval()
    assert torch.allclose(logits, prototype_logits(net.encoder(support), net.encoder(query), 5), atol=1e-5)


def test_support_statistics_are_those_of_the_support_batch() -> None:
    """A module in training mode whose running statistics are the support's own, biased ones."""
    net, weights, support, query = setting()
    learner = PrototypeLearner(net, "support")
    adapted = learner.adapt(weights, Examples(support), 5)
    net.encoder.train()
    for module in net.encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.track_running_stats = False
    z = net.encoder(support)  # batch statistics
    assert torch.allclose(adapted.centres, z.unflatten(0, (2, 5)).mean(0), atol=1e-5)
    # The support pictures as queries get the very features the prototypes were made of.
    one_shot = learner.adapt(weights, Examples(support), 10)
    assert learner.predict(one_shot, support).diagonal().abs().max() < 1e-3
    assert learner.predict(one_shot, query).isfinite().all()


def test_adapting_changes_neither_weights_nor_module() -> None:
    net, weights, support, query = setting()
    before = {k: v.clone() for k, v in weights.items()}
    in_module = {k: v.clone() for k, v in net.state_dict().items()}
    for norm in ("running", "support", "transductive"):
        learner = PrototypeLearner(net, norm)
        learner.predict(learner.adapt(weights, Examples(support), 5), query)
    assert all(torch.equal(before[k], v) for k, v in weights.items())
    assert all(torch.equal(in_module[k], v) for k, v in net.state_dict().items())
    assert not any(m._forward_pre_hooks for m in net.modules())


def test_group_norm_is_the_same_under_all_three() -> None:
    net, weights, support, query = setting(group=True)
    logits = []
    for norm in ("running", "support", "transductive"):
        learner = PrototypeLearner(net, norm)
        logits.append(learner.predict(learner.adapt(weights, Examples(support), 5), query))
    assert torch.equal(logits[0], logits[1]) and torch.equal(logits[0], logits[2])


def test_labels_allow_unequal_support_and_gradients_flow() -> None:
    net, weights, support, _ = setting()
    y = torch.tensor([0, 0, 0, 1, 2, 2, 2, 2, 2, 2])
    params = {k: v.requires_grad_() if v.is_floating_point() else v for k, v in weights.items()}
    adapted = PrototypeLearner(net, "support").adapt(params, Examples(support, y), 3)
    z = apply_recorded(net.encoder, part(params, "encoder"), support)[0]
    assert torch.allclose(adapted.centres[1], z[3], atol=1e-6)
    adapted.centres.sum().backward()
    assert params["encoder.0.weight"].grad is not None


def test_missing_statistics_are_an_error_not_a_silent_change() -> None:
    net, _, support, _ = setting()
    with pytest.raises(ConfigError, match=r"running_mean.*lacks it"):
        PrototypeLearner(net).adapt(params_of(net), Examples(support), 5)
    bare = nn.Sequential(nn.BatchNorm2d(1, track_running_stats=False), nn.Flatten())
    with pytest.raises(ConfigError, match="keeps none"):
        PrototypeLearner(bare, embed_with="net").adapt(params_of(bare), Examples(support), 5)
    with pytest.raises(ConfigError, match="no part `encoder`"):
        PrototypeLearner(bare)
    with pytest.raises(ConfigError, match="transductive"):
        PrototypeLearner(net, "eval")  # type: ignore[arg-type]


def test_sets_of_points_are_classified_like_pictures() -> None:
    """Encoders of sets [B P d] are learners' encoders too; every class has its own corner."""

    class Mean(nn.Module):
        width = 2

        def forward(self, x: Tensor) -> Tensor:
            return x.mean(1)

    corners = torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0]])
    noise = torch.randn(2, 3, 7, 2, generator=torch.Generator().manual_seed(0)) / 4
    support, query = corners[:, None] + noise
    net = EncoderOnly(Mean())
    learner = PrototypeLearner(net)
    predict = jaxtyped(typechecker=check)(PrototypeLearner.predict)  # what is annotated holds for sets too
    found = predict(learner, learner.adapt({}, Examples(support), 3), query)
    assert found.argmax(-1).tolist() == [0, 1, 2]
    assert torch.allclose(found[0, 1], -(query[0].mean(0) - support[1].mean(0)).square().sum())
