"""`torch.export`: the graph and its numbers as one .pt2 file that needs torch and nothing of selftaught."""

import io
from pathlib import Path

import torch
from torch.export import Dim, ExportedProgram

from selftaught.export.checking import difference, torch_runner
from selftaught.export.folder import refuse_existing, write_model
from selftaught.export.network import Exportable, traceable

FILE = "model.pt2"


def export_torch(what: Exportable, out: Path) -> float:
    """Write `model.pt2`, `model.json`, script and page as the new folder `out`; gives the largest difference.

    Raises RunError where `out` exists, SaveError where the exported model computes something else or the folder
    cannot be written.
    """
    refuse_existing(out)
    buffer = io.BytesIO()
    torch.export.save(traced(what), buffer)
    buffer.seek(0)
    # What is compared is what was read back, not what was to be written.
    gap = difference(what, torch_runner(torch.export.load(buffer).module()))
    write_model(out, what, "torch", FILE, buffer.getvalue(), gap)
    return gap


def traced(what: Exportable) -> ExportedProgram:
    """The graph for any number of pictures."""
    example = torch.zeros(2, what.size, what.size, 3, dtype=torch.uint8)
    with torch.no_grad():
        made = torch.export.export(traceable(what), (example,), dynamic_shapes={"pictures": {0: Dim("batch")}})
    for node in made.graph.nodes:
        node.meta.pop("stack_trace", None)  # it names the folders of this machine
    return made
