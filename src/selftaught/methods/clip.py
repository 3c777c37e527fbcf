"""CLIP: find the caption of each picture of a batch, and the picture of each caption.

Paper: Radford, Kim, Hallacy et al., "Learning Transferable Visual Models From Natural Language Supervision",
ICML 2021, arXiv 2103.00020.

    L_ij = s * cos(W_i encoder(x_i), W_t text(t_j)),   s = exp(log_scale) <= 100, from 1 / 0.07
    loss = (cross-entropy of the rows of L + cross-entropy of its columns) / 2,   pair i being right for i

In this library's words it is ProtoNet whose support is text: B ways, one caption the one shot of each, pictures as
queries (and the same turned round).
The paper's: the loss, linear projections without bias, the learned and limited scale, a causal text transformer
read at its end. Our choice: sizes for small sets, words or bytes where no byte pairs are given, a limited scale's
gradient (it passes), views of any recipe, and `collisions`: a text that is said of another picture of the batch
too is by default left out of that picture's negatives; the paper's batch counts it ("negatives").
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from selftaught.core.errors import ConfigError
from selftaught.core.functional import apply_update, buffers_of, params_of
from selftaught.core.types import Aux, Params, Task
from selftaught.data.pictures import Pictures
from selftaught.data.tokens import BytePairTokenizer, ByteTokenizer, WordTokenizer, build_tokenizer
from selftaught.data.views import Views
from selftaught.learners.zero_shot import ZeroShotLearner
from selftaught.losses.image_text import symmetric_info_nce
from selftaught.nets.text import TextTransformer, TwoTowers, clamped_scale
from selftaught.tasks.captions import CaptionTasks


@dataclass(frozen=True)
class CLIP:
    """`vocabulary`: words with spaces between, or a byte-pair file's text ("": bytes); `text_*`: the text tower.

    `context` counts tokens of a text, `out` is the width of the common space, `chunk` the rows of L alive at a
    time (0: all). Needs captions, which are the names of the pictures' classes, one a line. Raises ConfigError for
    a context that holds no text.
    """

    vocabulary: str = ""
    context: int = 32
    text_width: int = 64
    text_depth: int = 2
    text_heads: int = 4
    out: int = 64
    batch: int = 128
    collisions: Literal["left out", "negatives"] = "left out"
    chunk: int = 0

    def __post_init__(self) -> None:
        if self.context < 3:
            raise ConfigError(f"context={self.context} holds no text between start and end; use 3 or more")

    def tokenizer(self, *, strict: bool = True) -> WordTokenizer | ByteTokenizer | BytePairTokenizer:
        """Texts to numbers; `strict` refuses words outside the vocabulary."""
        return build_tokenizer(self.vocabulary, self.context, strict=strict)

    def source(self, pictures: Pictures, views: Views) -> CaptionTasks:
        """Batches of captioned pictures: texts as support, pictures as queries."""
        return CaptionTasks(pictures, views, self.tokenizer(strict=False), self.batch)

    def network(self, encoder: nn.Module) -> nn.Module:
        """Picture tower (the encoder), text tower, projections, scale."""
        size = self.tokenizer().size
        text = TextTransformer(size, self.context, self.text_width, self.text_depth, self.text_heads)
        return TwoTowers(encoder, text, self.out)

    def init(self, net: nn.Module) -> tuple[Params, Params]:
        """The skeleton's numbers; `slow` holds only normalisation statistics."""
        return params_of(net), buffers_of(net)

    def loss(self, net: nn.Module, params: Params, slow: Params, tasks: Task) -> tuple[Tensor, Aux]:
        """The symmetric loss of the one batch in `tasks` (`CaptionTasks`)."""
        texts, pictures = tasks.support, tasks.query
        image, buffers = apply_update(net, params, slow, pictures.x[0])
        text, _ = apply_update(net, params, slow, texts.x[0])  # nothing there is normalised by the batch
        scale = clamped_scale(params["log_scale"])
        said = texts.y[0].bool().mT if self.collisions == "left out" and texts.y is not None else None
        loss = symmetric_info_nce(image, text, scale, said, chunk=self.chunk)
        return loss, Aux({"scale": scale.detach()}, buffers)

    def refresh(self, net: nn.Module, slow: Params, params: Params, tasks: Task, aux: Aux) -> Params:
        """Statistics as the forward pass left them."""
        return aux.buffers

    def learner(self, net: nn.Module) -> ZeroShotLearner:
        """Nearest class by cosine in the common space, a class being its texts or its pictures."""
        return ZeroShotLearner(net)
