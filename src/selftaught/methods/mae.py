"""MAE: see a quarter of the patches, predict the others.

Paper: He, Chen, Xie, Li, Dollár, Girshick, "Masked Autoencoders Are Scalable Vision Learners", CVPR 2022,
arXiv 2111.06377. What hides patches from a convolution follows Xie et al., "SimMIM: A Simple Framework for Masked
Image Modeling", CVPR 2022, arXiv 2111.09886.

    hidden    in every picture `ratio` of its patches, uniformly at random
    predicted = decoder(encoder(what is seen)), all patches of `patch` x `patch` pixels
    loss      = mean over hidden patches of (predicted - (x - mean x) / std x)^2,  mean and std of each patch

The paper's, with a ViT: random masks, an encoder that gets the seen patches and no others, a narrower and
shallower decoder with one learned token for all hidden patches, pixels normalised by patch, the loss on hidden
patches alone. SimMIM's, with any other encoder: it gets all of the picture, hidden patches filled with a learned
value. Our choice: that this value is a colour, painted into the pixels; that the decoder then has the encoder's
D numbers to work from (the learner uses no more) and makes each patch of them and its place; the views of the
recipe (the paper's are crop and mirror), small decoders, variances with divisor E and 1e-6 added, and `precision`.
Neither paper's code was read.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from selftaught.core.errors import ConfigError
from selftaught.core.functional import apply_update, buffers_of, params_of
from selftaught.core.precision import Precision, encoding
from selftaught.core.types import Aux, Params, Task
from selftaught.data.pictures import Pictures
from selftaught.data.views import Views
from selftaught.learners.prototype import PrototypeLearner
from selftaught.losses.reconstruction import hidden_square_error, patches_of, standardised
from selftaught.nets.masked import MaskedAutoencoder, hidden_patches
from selftaught.tasks.noise import NoiseBeside, without_noise
from selftaught.tasks.views import ViewTasks


@dataclass(frozen=True)
class MAE:
    """`ratio` of the patches is hidden; `hidden`, `depth`, `heads` are the decoder's; `batch` pictures.

    Raises ConfigError for a ratio outside (0, 1), pictures that `patch` does not divide, a ViT of other patches.
    """

    ratio: float = 0.75
    patch: int = 4
    normalise: bool = True
    hidden: int = 64
    depth: int = 1
    heads: int = 4
    batch: int = 128
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        if not 0 < self.ratio < 1 or self.patch < 1:
            raise ConfigError(f"MAE: use a ratio between 0 and 1 and a patch of 1 px or more, not {self}")

    def source(self, pictures: Pictures, views: Views) -> NoiseBeside:
        """One task of the whole batch: one support view of each picture, with the mask's noise; no queries."""
        height, width = pictures.x.shape[-2:]
        if height % self.patch or width % self.patch or height * width <= self.patch**2:
            raise ConfigError(
                f"MAE cuts pictures into patches of {self.patch} px, and these are {height} x {width}; use a "
                "patch that divides both and fits more than once, or another size of pictures"
            )
        return NoiseBeside(ViewTasks(pictures, views, 1, self.batch, 1, 0))

    def network(self, encoder: nn.Module) -> nn.Module:
        """Encoder, decoder, and what stands where a patch is hidden."""
        return MaskedAutoencoder(encoder, self.patch, self.ratio, self.hidden, self.depth, self.heads)

    def init(self, net: nn.Module) -> tuple[Params, Params]:
        """The skeleton's numbers; `slow` holds only normalisation statistics."""
        return params_of(net), buffers_of(net)

    def loss(self, net: nn.Module, params: Params, slow: Params, tasks: Task) -> tuple[Tensor, Aux]:
        """Mean square over hidden patches; `explained` is the part of their variance that is predicted."""
        x = tasks.support.x.flatten(0, 1)  # [B C+1 H W]
        with encoding(self.precision, x.device):
            predicted, buffers = apply_update(net, params, slow, x)
        picture, noise = without_noise(x, 1)
        hidden = hidden_patches(noise, self.patch, self.ratio)
        target = patches_of(picture, self.patch)
        target = standardised(target) if self.normalise else target
        loss = hidden_square_error(predicted.to(x.dtype), target, hidden)
        explained = 1 - loss.detach() / target[hidden].var(correction=0).clamp(min=1e-12)
        return loss, Aux({"explained": explained}, buffers)

    def refresh(self, net: nn.Module, slow: Params, params: Params, tasks: Task, aux: Aux) -> Params:
        """Statistics as the forward pass left them."""
        return aux.buffers

    def learner(self, net: nn.Module) -> PrototypeLearner:
        """Nearest class mean by cosine on the encoder's output for whole pictures."""
        return PrototypeLearner(net, distance="cosine")
