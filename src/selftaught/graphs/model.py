"""HEGR: graphs of two modalities that read each other, a hypergraph for each moment, and a text about each.

Paper: Zheng, Yan, Gou, Wang, "Two Heads are Better Than One: Hypergraph-Enhanced Graph Reasoning for Visual Event
Ratiocination", ICML 2021. Only its abstract could be read and no code was found, so every equation here is ours,
built of standard parts in the order that the abstract gives:

    nodes      X_v of objects (features, box, tag), X_t of mentions (words, tag) and the place
    intra      X_m <- X_m + GAT(norm X_m)                                 a complete graph in each modality
    inter      X_v <- X_v + Attn(X_v, X_t),   X_t <- X_t + Attn(X_t, X_v)
    hyper      X^r = X + P_r gelu( D^-1 H_r W (B^-1 H_r^t norm(X) Theta_r + shift_r) )         for each moment r
    project    Z^r = Attn(query_r, norm X^r), the first state of a GRU; it reads norm X^r at every word
    loss       mean cross-entropy of the words of all moments, given the words before

`hyper` names what stands in the third step's place, with as many parameters and the same nodes, tags and words:

    "moments"   a hypergraph for each moment
    "one"       the union of the moments' hyperedges, one Theta three times as wide, one X^r for all moments
    "cliques"   for each moment the same hyperedges as plain edges, graph attention over H_r H_r^t > 0
    "none"      every node a hyperedge of its own (H = identity): nodes learn nothing of each other here
"""

from dataclasses import asdict, dataclass
from typing import Literal, get_args

import torch
from einops import rearrange, repeat
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from selftaught.core.errors import ConfigError, DataError
from selftaught.data.tokens import START, WordTokenizer
from selftaught.graphs.attention import CrossAttention, GraphAttention
from selftaught.graphs.events import MOMENTS, EventBatch
from selftaught.graphs.hypergraph import HypergraphLayer

Hyper = Literal["moments", "one", "cliques", "none"]


@dataclass(frozen=True)
class HEGR:
    """`features` numbers an object; `vocabulary`: words with spaces between; `context` tokens a text.

    `width` of nodes, `hidden` of the hypergraph step, tags up to `tags`. Raises ConfigError for sizes that do not
    fit.
    """

    features: int
    vocabulary: str
    context: int = 12
    width: int = 64
    hidden: int = 64
    heads: int = 2
    tags: int = 32
    hyper: Hyper = "moments"

    def __post_init__(self) -> None:
        if self.hyper not in get_args(Hyper):
            raise ConfigError(f"hyper={self.hyper!r}: choose one of {', '.join(get_args(Hyper))}")
        if min(self.features, self.tags, self.width, self.hidden) < 1 or self.context < 3 or self.heads < 1:
            raise ConfigError(f"{self}: sizes are at least 1 and the context at least 3")
        if not self.vocabulary.split():
            raise ConfigError("HEGR writes words: give it a vocabulary (data.tokens.vocabulary_of)")

    def tokenizer(self) -> WordTokenizer:
        """Words to numbers; rare words are the unknown one."""
        return WordTokenizer(tuple(self.vocabulary.split()), self.context, strict=False)

    def network(self, seed: int) -> "HEGRNet":
        """A freshly initialised network; the global generator keeps its state."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return HEGRNet(self)

    def options(self) -> dict[str, int | str]:
        """As plain values, for files."""
        return asdict(self)


class HEGRNet(nn.Module):
    """`forward`: X^r [B 3 N D]; `loss`; `write`. Absent nodes have any numbers and are read by none."""

    def __init__(self, config: HEGR) -> None:
        super().__init__()
        self.config = config
        d, words = config.width, config.tokenizer().size
        self.feature = nn.Linear(config.features, d)
        self.box = nn.Linear(4, d, bias=False)
        self.tag = nn.Embedding(config.tags + 1, d)
        self.word = nn.Embedding(words, d)
        self.kind = nn.Parameter(torch.zeros(2, d))
        self.norms = nn.ModuleDict(
            {k: nn.LayerNorm(d) for k in ("v", "t", "intra_v", "intra_t", "hyper", "memory")}
        )
        self.intra = nn.ModuleList(GraphAttention(d, d, config.heads) for _ in range(2))
        self.inter = nn.ModuleList(CrossAttention(d, config.heads) for _ in range(2))
        self.enhance = Enhancement(config)
        self.query = nn.Parameter(torch.randn(len(MOMENTS), d) / d**0.5)
        self.readout = CrossAttention(d, config.heads)
        self.gru = nn.GRU(d, d, batch_first=True)
        self.look = CrossAttention(d, config.heads)
        self.out = nn.Linear(2 * d, words)

    def forward(self, batch: EventBatch) -> Float[Tensor, "B 3 N D"]:
        """The enhanced nodes of each moment."""
        visual, text = self.nodes(batch)
        seen, said = batch.there.split([visual.shape[1], text.shape[1]], dim=1)
        visual, text = self._intra(0, visual, seen), self._intra(1, text, said)
        v, t = self.norms["v"](visual), self.norms["t"](text)
        x = torch.cat([visual + self.inter[0](v, t, said), text + self.inter[1](t, v, seen)], dim=1)
        return x[:, None] + self.enhance(self.norms["hyper"](x), batch.incidence, batch.there)

    def nodes(self, batch: EventBatch) -> tuple[Tensor, Tensor]:
        """[B V D] and [B E+1 D], before any of them knows another. Raises DataError for tags beyond `tags`."""
        highest = max(int(t.max()) if t.numel() else 0 for t in (batch.object_tags, batch.mention_tags))
        if highest > self.config.tags:
            raise DataError(f"tag {highest} is beyond tags={self.config.tags}: build the model with more")
        visual = self.feature(batch.features) + self.box(batch.boxes) + self.tag(batch.object_tags) + self.kind[0]
        used = (batch.words > 0)[..., None]
        mean = (self.word(batch.words) * used).sum(-2) / used.sum(-2).clamp(min=1)
        return visual, mean + self.tag(batch.mention_tags) + self.kind[1]

    def _intra(self, which: int, x: Tensor, there: Tensor) -> Tensor:
        complete = there[:, :, None] & there[:, None]
        return x + self.intra[which](self.norms[f"intra_{'vt'[which]}"](x), complete)

    def loss(self, batch: EventBatch) -> Tensor:
        """Mean cross-entropy over the words to be written, ends included. Raises DataError where none are."""
        target = batch.target.flatten(0, 1)
        wanted = target[:, 1:].reshape(-1)
        if not bool((wanted > 0).any()):
            raise DataError("these events have no texts to learn from")
        memory, there, state = self._read(batch)
        logits, _ = self._decode(target[:, :-1], state, memory, there)
        return F.cross_entropy(logits.flatten(0, 1), wanted, ignore_index=0)

    @torch.no_grad()
    def write(self, batch: EventBatch) -> Int64[Tensor, "B 3 T"]:
        """The most likely word at every place, for each moment; what stands behind an end does not count."""
        memory, there, state = self._read(batch)
        word = torch.full((len(memory), 1), START, device=memory.device)
        out = [word]
        for _ in range(self.config.context - 1):
            logits, state = self._decode(word, state, memory, there)
            word = logits.argmax(-1)
            out.append(word)
        return torch.cat(out, dim=1).unflatten(0, (-1, len(MOMENTS)))

    def _read(self, batch: EventBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Memory [3B N D], which of it is there, and the decoder's first state [1 3B D]."""
        memory = self.norms["memory"](self(batch)).flatten(0, 1)
        there = repeat(batch.there, "b n -> (b r) n", r=len(MOMENTS))
        query = repeat(self.query, "r d -> (b r) 1 d", b=len(batch))
        return memory, there, rearrange(self.readout(query, memory, there), "b 1 d -> 1 b d").tanh()

    def _decode(self, words: Tensor, state: Tensor, memory: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [3B T words] after each of `words` [3B T], and the state behind them."""
        heard, state = self.gru(self.word(words), state.contiguous())
        return self.out(torch.cat([heard, self.look(heard, memory, there)], dim=-1)), state


class Enhancement(nn.Module):
    """X [B N D] and H [B 3 N M] -> what is added to X at each moment, [B 3 N D]; 0 for nodes in no hyperedge."""

    def __init__(self, config: HEGR) -> None:
        super().__init__()
        self.hyper = config.hyper
        count = 1 if config.hyper == "one" else len(MOMENTS)
        hidden = config.hidden * len(MOMENTS) // count
        if config.hyper == "cliques":
            self.layers = nn.ModuleList(GraphAttention(config.width, hidden, config.heads) for _ in range(count))
        else:
            self.layers = nn.ModuleList(HypergraphLayer(config.width, hidden, shift=True) for _ in range(count))
        self.back = nn.ModuleList(nn.Linear(hidden, config.width, bias=False) for _ in range(count))

    def forward(self, x: Tensor, incidence: Tensor, there: Tensor) -> Tensor:
        graphs = self._graphs(incidence, there)
        out = [back(F.gelu(layer(x, g))) for layer, back, g in zip(self.layers, self.back, graphs, strict=True)]
        return torch.stack(out * (len(MOMENTS) // len(out)), dim=1)

    def _graphs(self, incidence: Tensor, there: Tensor) -> list[Tensor]:
        if self.hyper == "one":
            return [rearrange(incidence, "b r n m -> b n (r m)")]
        if self.hyper == "none":
            return [torch.diag_embed(there.to(incidence.dtype))] * len(MOMENTS)
        if self.hyper == "cliques":
            incidence = (incidence @ incidence.mT) > 0
        return list(incidence.unbind(1))
