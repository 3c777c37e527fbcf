"""What torch.compile and bfloat16 would gain: one SimCLR step, loss and gradient, with each and without.

torch.compile is put on the encoder in place (`Module.compile()`), with an empty cache, so that its first call
shows what every new run and every new shape pays. Seconds are those of the processor, with compilers it starts.
bfloat16 is torch's autocast, also where the processor would only imitate it and the library therefore refuses.
"""

import os
import resource
import shlex
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from benchmarks.measure import paired_rounds, summary
from selftaught.app import provenance
from selftaught.artifacts.files import read_json, write_json
from selftaught.core.precision import has_bfloat16
from selftaught.core.types import Examples, Task
from selftaught.methods.simclr import SimCLR
from selftaught.nets import build_encoder

EAGER, COMPILED, LOW = "as it is", "torch.compile", "bfloat16"

Step = Callable[[], tuple[Tensor, ...]]


@final
@dataclass(frozen=True)
class Compile:
    """Seconds of a SimCLR step of one encoder, the cost of the first compiled one, and what compiling refuses.
    The outcomes of several encoders stand beside each other in `out`."""

    net: str = "resnet18"
    """The encoder."""
    pictures: int = 4
    """Pictures of a step, in two views each."""
    size: int = 32
    """Height and width in pixels, three channels."""
    rounds: int = 20
    """Steps of each variant after warm-up, by turns."""
    threads: int = 1
    """Threads of torch."""
    out: Path = Path("benchmarks/results/compile.json")

    def run(self) -> None:
        """Measure, print, and write after each part."""
        torch.set_num_threads(self.threads)
        content: dict[str, Any] = {
            "command": shlex.join(["python", "-m", "benchmarks", "compile", "--net", self.net]),
            "commit": provenance.commit(),
            "machine": provenance.machine(),
            "step": f"SimCLR, {2 * self.pictures} views of {self.size} x {self.size} pixels, loss and gradient",
            "bfloat16 instructions": has_bfloat16(torch.device("cpu")),
        }
        eager = step(self, compiled=False)
        seconds(eager)
        low = partial(in_bfloat16, eager)
        seconds(low)
        found = paired_rounds({EAGER: eager, LOW: low}, 3)
        self._write(content | {LOW: summary(found[LOW], found[EAGER])})
        with tempfile.TemporaryDirectory() as empty:
            # Compilers one at a time, in processes whose seconds are counted.
            os.environ |= {"TORCHINDUCTOR_CACHE_DIR": empty, "TORCHINDUCTOR_COMPILE_THREADS": "1"}
            compiled = step(self, compiled=True)
            content |= self._read()["nets"][self.net] | {"first compiled step, s": seconds(compiled)}
            content["second compiled step, s"] = seconds(compiled)
            self._write(content)
            found = paired_rounds({EAGER: eager, COMPILED: compiled}, self.rounds)
            content[COMPILED] = summary(found[COMPILED], found[EAGER])
            content["twice differentiated"] = refusal(self)
            self._write(content)
        print(self._read()["nets"][self.net])

    def _read(self) -> dict[str, Any]:
        return read_json(self.out) if self.out.exists() else {"nets": {}}

    def _write(self, content: dict[str, Any]) -> None:
        known = self._read()
        write_json(self.out, {"nets": {**known["nets"], self.net: content}})


def step(asked: Compile, compiled: bool, graph: bool = False) -> Step:
    """One step on seeded pictures; all start from the same numbers."""
    method, count = SimCLR(), asked.pictures
    torch.manual_seed(0)
    net = method.network(build_encoder(asked.net, channels=3, size=asked.size, seed=0))
    if compiled:
        net.get_submodule("encoder").compile()
    params, slow = method.init(net)
    x = torch.rand(1, 2 * count, 3, asked.size, asked.size, generator=torch.Generator().manual_seed(1))
    tasks = Task(Examples(x[:, :count]), Examples(x[:, count:]), count)

    def call() -> tuple[Tensor, ...]:
        leaves = {k: v.detach().requires_grad_() for k, v in params.items()}
        loss, _ = method.loss(net, leaves, slow, tasks)
        found = torch.autograd.grad(loss, list(leaves.values()), create_graph=graph)
        if not graph:
            return found
        squares = torch.stack([g.square().sum() for g in found]).sum()
        return torch.autograd.grad(squares, list(leaves.values()))

    return call


def in_bfloat16(call: Step) -> tuple[Tensor, ...]:
    """The same under torch's autocast, whatever the processor."""
    with torch.autocast("cpu", torch.bfloat16):
        return call()


def refusal(asked: Compile) -> str:
    """What a compiled encoder says when its gradient is differentiated, as every second-order method does."""
    try:
        step(asked, compiled=True, graph=True)()
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return "works"


def seconds(call: Callable[[], object]) -> float:
    """Processor seconds of one call, with those of processes it started and waited for."""
    before = _spent()
    call()
    return _spent() - before


def _spent() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)
