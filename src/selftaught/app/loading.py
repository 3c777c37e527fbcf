"""Open whatever selftaught wrote: a run, a model, a classifier."""

from pathlib import Path

from selftaught.app.classifier import Classifier
from selftaught.app.model import Model
from selftaught.core.errors import RunError


def load(folder: str | Path) -> Model | Classifier:
    """A `Classifier` from a folder written by `adapt`, else the `Model` of a run or model folder.

    Raises RunError naming the file that is missing or broken.
    """
    path = Path(folder)
    if not path.is_dir():
        raise RunError(f"{path} is not a folder. Give the folder of a run, a model or a classifier.")
    return Classifier.load(path) if (path / "classifier.json").is_file() else Model.load(path)
