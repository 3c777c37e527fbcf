"""selftaught: representations from few unlabelled pictures, new tasks from 1-5 labels a class.

    model = selftaught.pretrain("photos/", out="run")
    classifier = model.adapt("labelled/")
    classifier.predict("new.jpg")

Names are loaded when first used, so that importing the package is quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from selftaught.app.classifier import Classifier as Classifier
    from selftaught.app.loading import load as load
    from selftaught.app.model import Model as Model
    from selftaught.app.pretrain import pretrain as pretrain
    from selftaught.core.errors import SelftaughtError as SelftaughtError
    from selftaught.evaluate.estimators import EncoderTransformer as EncoderTransformer
    from selftaught.evaluate.estimators import FewShotClassifier as FewShotClassifier
    from selftaught.methods import METHODS as METHODS

_PLACES = {
    "Classifier": "selftaught.app.classifier",
    "EncoderTransformer": "selftaught.evaluate.estimators",
    "FewShotClassifier": "selftaught.evaluate.estimators",
    "METHODS": "selftaught.methods",
    "Model": "selftaught.app.model",
    "SelftaughtError": "selftaught.core.errors",
    "load": "selftaught.app.loading",
    "pretrain": "selftaught.app.pretrain",
}

__all__ = [*_PLACES, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'selftaught' has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
