"""`selftaught export`: a run or a classifier for use where selftaught is not installed."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console
from tyro.conf import Positional

from selftaught.core.errors import ConfigError, RunError

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

    from selftaught.app.classifier import Classifier
    from selftaught.app.model import Model
    from selftaught.export.network import Exportable, LinearHead

Format = Literal["onnx", "torch", "hf"]

_out = Console(soft_wrap=True, highlight=False, markup=False)


def export(run: Positional[Path], out: Path = Path("exported"), format: Format = "onnx") -> None:
    """Write a model for use without selftaught, compared with the trained one before it is written.

    Args:
        run: A run, model or classifier folder; with a classifier, class names and probabilities go along.
        out: The new folder to make.
        format: onnx (needs the extra `export`), torch (torch.export, a .pt2 file) or hf (Hugging Face's layout).
    """
    from selftaught.app.loading import load
    from selftaught.export.folder import refuse_existing
    from selftaught.export.to_hub import export_hub
    from selftaught.export.to_onnx import export_onnx
    from selftaught.export.to_torch import export_torch

    refuse_existing(out)
    what = exportable(load(run), str(run))
    gap = {"onnx": export_onnx, "torch": export_torch, "hf": export_hub}[format](what, out)
    _out.print(f"exported: {out} ({', '.join(what.outputs)}; differs from the trained model by {gap:.1g} at most)")
    script = "predict.py" if what.head is not None else "embed.py"
    if format != "hf":
        _out.print(f"next: python {out / script} PICTURE")


def exportable(found: "Model | Classifier", where: str = "the model") -> "Exportable":
    """The encoder of a model and, from a classifier, its head.

    Raises RunError, with `where`, for a method without an encoder of pictures.
    """
    from selftaught.app.classifier import Classifier
    from selftaught.export.network import Exportable

    model = found.model if isinstance(found, Classifier) else found
    config = model.config
    try:
        encoder = model.encoder
    except AttributeError as error:
        raise RunError(
            f"{where}: {config.method} has no encoder of pictures, so there is nothing to export. "
            "Methods that have one: selftaught methods"
        ) from error
    return Exportable(
        encoder, config.size, config.channels, head_of(found) if isinstance(found, Classifier) else None,
        {"encoder": config.encoder, "options": dict(config.options)}, _trained(found),
    )  # fmt: skip


def head_of(classifier: "Classifier") -> "LinearHead":
    """The fitted head as numbers: weights [M D], biases [M], temperature, class names.

    Raises ConfigError for the head "own", which is no layer on fixed embeddings.
    """
    import torch

    from selftaught.export.network import LinearHead

    if str(classifier.head) == "own":
        raise ConfigError(
            "a classifier with the head 'own' cannot be exported: it is no layer on fixed embeddings. "
            "Make one with selftaught adapt RUN LABELLED --head prototype (or ridge, logistic)"
        )

    estimator = classifier.estimator
    weight, bias = (torch.from_numpy(x).float() for x in (estimator.coef_, estimator.intercept_))
    return LinearHead(weight, bias, estimator.temperature_, classifier.classes)


def as_pipeline(classifier: "Classifier") -> "Pipeline":
    """The same classifier as a fitted scikit-learn Pipeline: pictures in, class names out.

    A pipeline is kept by `Classifier.save` and comes back by `load` and this; nothing is pickled.
    Raises ConfigError for the head "own", which is no estimator of embeddings.
    """
    from sklearn.pipeline import Pipeline

    from selftaught.evaluate.estimators import EncoderTransformer, FewShotClassifier

    head_of(classifier)
    y = classifier.support.y
    assert y is not None
    named = [classifier.classes[i] for i in y.tolist()]
    encoder = EncoderTransformer(classifier.model).fit(classifier.support.x[:1].numpy())
    return Pipeline(
        [("encoder", encoder), ("head", FewShotClassifier(classifier.head).fit(classifier.vectors.numpy(), named))]
    )


def _trained(found: "Model | Classifier") -> dict[str, Any]:
    """What a reader of the export should know; no path of this machine."""
    from selftaught.app.classifier import Classifier

    config = (found.model if isinstance(found, Classifier) else found).config
    said: dict[str, Any] = {"method": config.method, "encoder": config.encoder, "steps": config.steps}
    if isinstance(found, Classifier):
        said |= {"head": found.head, "labelled pictures": len(found.support)}
    return said
