"""ONNX with any number of pictures in a batch, compared with the trained model before it is written."""

import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from selftaught.core.errors import ConfigError
from selftaught.export.checking import Bytes, Numbers, Runner, difference
from selftaught.export.folder import refuse_existing, write_model
from selftaught.export.network import Exportable
from selftaught.export.to_torch import traced

_NEEDED = ("onnx", "onnxruntime", "onnxscript")
FILE = "model.onnx"
_OUT = "selftaught."
_TALKATIVE = {
    "torch.onnx._internal.exporter._registration": logging.ERROR,
    "onnxscript": logging.WARNING,
    "onnx_ir": logging.WARNING,
}


def export_onnx(what: Exportable, out: Path) -> float:
    """Write `model.onnx`, `model.json`, script and page as the new folder `out`; gives the largest difference.

    Raises ConfigError where the extra is not installed, RunError where `out` exists, SaveError where the exported
    model computes something else or the folder cannot be written.
    """
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise ConfigError(f"ONNX needs {', '.join(missing)}: pip install 'selftaught[export]', or --format torch")
    refuse_existing(out)
    content = _graph(what)
    gap = difference(what, runner(content))
    write_model(out, what, "onnx", FILE, content, gap)
    return gap


def _graph(what: Exportable) -> bytes:
    with _quiet():
        made = torch.onnx.export(
            traced(what), dynamo=True, input_names=["pictures"],
            output_names=[_OUT + name for name in what.outputs], verbose=False,
        )  # fmt: skip
    assert made is not None
    proto = made.model_proto
    graph = proto.graph
    _name_outputs(graph, what.outputs)
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.initializer, *graph.value_info):
        del part.metadata_props[:]  # the exporter's notes name the folders of this machine
    if what.head is not None:
        proto.metadata_props.add(key="classes", value=json.dumps(what.head.classes, ensure_ascii=False))
    return proto.SerializeToString()


def _name_outputs(graph: Any, names: Sequence[str]) -> None:
    """Outputs as they shall be called; values inside may have these names already, as of torch's `embedding`."""
    new = {name: f"{name}.inside" for name in names} | {_OUT + name: name for name in names}
    for node in graph.node:
        for values in (node.input, node.output):
            values[:] = [new.get(value, value) for value in values]
    for value in (*graph.output, *graph.value_info, *graph.initializer):
        value.name = new.get(value.name, value.name)


def runner(content: bytes) -> Runner:
    """The model in `content` under onnxruntime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def run(pictures: Bytes) -> list[Numbers]:
        return session.run(None, {"pictures": pictures})

    return run


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter says of itself: an outdated call, what it removed, that torchvision is missing."""
    loggers = {logging.getLogger(name): level for name, level in _TALKATIVE.items()}
    before = {one: one.level for one in loggers}
    try:
        for one, level in loggers.items():
            one.setLevel(level)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)`", FutureWarning)
            yield
    finally:
        for one, level in before.items():
            one.setLevel(level)
