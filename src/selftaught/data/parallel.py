"""A job over many files in worker processes that may die; the results come in order all the same."""

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

R = TypeVar("R")
Job = Callable[[Sequence[str]], list[R]]

CHUNK = 16
"""Files that travel to a worker together."""


def default_workers() -> int:
    """As many as this process may use cores, at most 8: beyond that the disk is the limit."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(8, allowed)


def in_order(job: Job[R], items: Sequence[str], workers: int, crashed: R) -> Iterator[R]:
    """The results of `job` for `items`, one by one and in order.

    `job` takes some of the items and gives one result for each; with more than one worker it must be
    importable by name. An item that kills its worker gets the result `crashed`, the others are done again.
    Where processes cannot be started at all, the work is done in this one.
    """
    chunks = [items[i : i + CHUNK] for i in range(0, len(items), CHUNK)]
    if workers > 1 and not _can_start(job):
        workers = 1
    if workers <= 1:
        for chunk in chunks:
            yield from job(chunk)
        return
    done = 0
    while done < len(chunks):
        pool = _pool(min(workers, len(chunks) - done))
        try:
            for results in _flow(pool, job, chunks[done:], 2 * workers):
                done += 1
                yield from results
        except BrokenProcessPool:
            # Any of the chunks on their way may hold the culprit: one process alone for each of them.
            suspects = chunks[done : done + 2 * workers]
            for chunk in suspects:
                done += 1
                yield from _alone(job, chunk, crashed)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _pool(workers: int) -> ProcessPoolExecutor:
    # A forked copy of a process with torch's threads may hang; spawned ones start clean.
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))


def _can_start(job: Job[R]) -> bool:
    """Whether a worker lives long enough for an empty job: not in a daemonic process or a script on stdin."""
    try:
        with _pool(1) as pool:
            pool.submit(job, []).result()
    except (BrokenProcessPool, OSError, AssertionError, ImportError):
        return False
    return True


def _flow(pool: ProcessPoolExecutor, job: Job[R], chunks: list[Sequence[str]], ahead: int) -> Iterator[list[R]]:
    """Results chunk by chunk; never more than `ahead` chunks are under way, which bounds the memory."""
    under_way: deque[Future[list[R]]] = deque()
    for chunk in chunks:
        under_way.append(pool.submit(job, chunk))
        if len(under_way) >= ahead:
            yield under_way.popleft().result()
    while under_way:
        yield under_way.popleft().result()


def _alone(job: Job[R], chunk: Sequence[str], crashed: R) -> list[R]:
    """One process for the chunk, and if that dies, one for each item."""
    try:
        with _pool(1) as pool:
            return pool.submit(job, chunk).result()
    except BrokenProcessPool:
        if len(chunk) == 1:
            return [crashed]
    return [result for item in chunk for result in _alone(job, [item], crashed)]
