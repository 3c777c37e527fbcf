"""The next meta-batches drawn by one background thread, with the same bits as drawn on demand."""

import threading
from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from selftaught.core.types import Task, TaskSource

THREAD = "selftaught-prefetch"
"""How the thread's name begins."""

Draws = Generator[tuple[Task, torch.Generator], None, None]


def draws(source: TaskSource, generator: torch.Generator, count: int, ahead: int = 0) -> Draws:
    """`count` meta-batches, each with the generator as its draw left it; `generator` itself is not moved.

    Up to `ahead` batches are drawn while the caller works on one; 0 draws each when it is asked for, without a
    thread. What `source` raises arrives with the batch it belongs to. The thread ends with the iterator: when it
    is used up, closed, collected, or left by an exception; at most one draw under way is waited for.

    Raises ValueError for a negative `ahead`.
    """
    if ahead < 0:
        raise ValueError(f"batches drawn ahead cannot be fewer than 0, got {ahead}")
    own = generator.clone_state()
    return _in_background(source, own, count, ahead) if ahead else _on_demand(source, own, count)


def _on_demand(source: TaskSource, own: torch.Generator, count: int) -> Draws:
    for _ in range(count):
        yield _draw(source, own)


def _in_background(source: TaskSource, own: torch.Generator, count: int, ahead: int) -> Draws:
    # One worker, so draws follow one another; an executor's thread also ends with the program.
    pool = ThreadPoolExecutor(1, THREAD)
    waiting: deque[Future[tuple[Task, torch.Generator]]] = deque()
    try:
        for position in range(count):
            while len(waiting) < min(ahead + 1, count - position):
                waiting.append(pool.submit(_draw, source, own))
            found = waiting.popleft().result()
            yield found
            del found  # else it would live on while the next one is waited for
    finally:
        # A forgotten iterator may be collected in the very thread that would be waited for.
        inside = threading.current_thread().name.startswith(THREAD)
        pool.shutdown(wait=not inside, cancel_futures=True)


def _draw(source: TaskSource, own: torch.Generator) -> tuple[Task, torch.Generator]:
    tasks = source(own)
    # A copy: the caller's generator must not move with the next draw.
    return tasks, own.clone_state()
