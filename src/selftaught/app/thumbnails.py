"""Pictures for a page: PNG data addresses within a budget of bytes, and a place in the plane for each."""

import base64
import io
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from selftaught.core.errors import ConfigError

TSNE_FROM = 30
"""Pictures from which on `embedding_map` uses t-SNE; below, neighbourhoods are too small for it."""
_PROBE = 16
"""Pictures by which the bytes of all are guessed."""


def embedding_map(features: Float[Tensor, "n D"], seed: int = 0) -> Float[Tensor, "n 2"]:
    """A place in the plane for each picture: t-SNE from 30 pictures on, else PCA.

    Features are scaled to length one first, as the nearest neighbours use the cosine. Features that are all
    alike (a collapsed encoder) all land on 0. Equal features and seed give equal places on one machine.
    Raises `ConfigError` for a wrong shape or values that are not finite.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    if features.ndim != 2 or features.shape[1] < 1:
        raise ConfigError(f"the map needs features [n D], not {list(features.shape)}; flatten them first")
    if not torch.isfinite(features).all():
        raise ConfigError(f"features {list(features.shape)} hold values that are not finite; was training stable?")
    x = torch.nn.functional.normalize(features.detach().double().cpu(), dim=1).numpy()
    if len(x) < 2 or np.ptp(x, axis=0).max() < 1e-9:
        return torch.zeros(len(x), 2)
    if x.shape[1] == 1:
        x = np.pad(x, ((0, 0), (0, 1)))
    if len(x) < TSNE_FROM:
        flat = PCA(n_components=2, svd_solver="full").fit_transform(x)
    else:
        near = min(30.0, (len(x) - 1) / 3)
        flat = TSNE(perplexity=near, init="pca", learning_rate="auto", random_state=seed).fit_transform(x)
    return torch.from_numpy(np.ascontiguousarray(flat)).float()


def png_addresses(pictures: UInt8[Tensor, "n C H W"], budget: int) -> list[str]:
    """`data:` addresses of the pictures as PNG; all shrink together until they fit into `budget` characters.

    One channel is grey, three RGB, four RGBA; of any other number the first is shown. Raises `ConfigError`
    for anything but uint8 [n C H W].
    """
    if pictures.dtype != torch.uint8 or pictures.ndim != 4:
        found = f"{pictures.dtype} {list(pictures.shape)}"
        raise ConfigError(f"thumbnails are uint8 [n C H W], not {found}; scale 0..1 pictures by 255 and round")
    images = [_image(p) for p in pictures.cpu()]
    probe = [images[i] for i in evenly(len(images), _PROBE)]
    guess = sum(len(_address(i)) for i in probe) * len(images) // max(1, len(probe))
    if guess > 2 * budget:  # far too much: nothing is gained by compressing it all at that size first
        images = _smaller(images, budget / guess)
    out = [_address(i) for i in images]
    while (size := sum(map(len, out))) > budget and max(images[0].size) > 8:
        images = _smaller(images, budget / size)
        out = [_address(i) for i in images]
    return out


def _smaller(images: Sequence[Image.Image], share: float) -> list[Image.Image]:
    """All at one smaller size, of which about `share` of the bytes is left."""
    # PNG bytes grow about with the area; a little less than the root lands inside the budget.
    factor = min(0.9, 0.97 * share**0.5)
    small = [max(8, round(n * factor)) for n in images[0].size]
    return [i.resize((small[0], small[1]), Image.Resampling.BOX) for i in images]


def evenly(count: int, most: int) -> Sequence[int]:
    """At most `most` positions spread evenly over `count`."""
    if count <= most:
        return range(count)
    return [n * count // most for n in range(most)]


def _image(picture: Tensor) -> Image.Image:
    if picture.shape[0] not in (3, 4):
        return Image.fromarray(picture[0].contiguous().numpy())
    return Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy())


def _address(image: Image.Image) -> str:
    with io.BytesIO() as file:
        image.save(file, "PNG", compress_level=9)
        return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")
