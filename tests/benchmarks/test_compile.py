"""The step that `python -m benchmarks compile` times, and how its seconds are counted; it compiles nothing."""

import subprocess
import sys

import torch
from benchmarks.compile import Compile, in_bfloat16, seconds, step

TOY = Compile(net="conv4", pictures=2, size=16)


def test_the_step_is_a_gradient_and_the_same_each_time() -> None:
    a, b = step(TOY, compiled=False)(), step(TOY, compiled=False)()
    assert len(a) > 8 and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert any(x.abs().sum() > 0 for x in a)


def test_it_can_be_differentiated_twice_where_it_is_not_compiled() -> None:
    twice = step(TOY, compiled=False, graph=True)()
    assert [x.shape for x in twice] == [x.shape for x in step(TOY, compiled=False)()]


def test_bfloat16_is_near() -> None:
    plain = step(TOY, compiled=False)
    a, b = (torch.cat([x.flatten().float() for x in found]) for found in (plain(), in_bfloat16(plain)))
    assert not torch.equal(a, b) and torch.nn.functional.cosine_similarity(a, b, dim=0) > 0.9


def test_seconds_of_programs_it_starts_count_too() -> None:
    burn = "import time\nwhile time.process_time() < 0.3: pass"
    assert seconds(lambda: subprocess.run([sys.executable, "-c", burn], check=True)) >= 0.3
