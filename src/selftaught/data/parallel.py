"""A job over many files, or their bytes, in worker processes that may die; the results come in order even so."""

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain
from typing import TypeVar

T = TypeVar("T", str, bytes)
R = TypeVar("R")
Job = Callable[[Sequence[T]], list[R]]

CHUNK, CHUNK_BYTES = 16, 1 << 22
"""Items travel to a worker together: so many, or fewer if they are large."""


def default_workers() -> int:
    """As many as this process may use cores, at most 8: beyond that the disk is the limit."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(8, allowed)


def in_order(job: Job[T, R], items: Iterable[T], workers: int, crashed: R) -> Iterator[R]:
    """The results of `job` for `items` (paths, or contents of files), one by one and in order.

    `job` takes some of the items and gives one result for each; with more than one worker it must be
    importable by name. An item that kills its worker gets the result `crashed`, the others are done again.
    Where processes cannot be started at all, the work is done in this one. Items are drawn as they are needed: at
    any time no more than a few chunks for each worker are held.
    """
    chunks = chunked(items)
    first = next(chunks, None)
    if first is None:
        return
    chunks = chain([first], chunks)
    if workers > 1 and not _can_start(job):
        workers = 1
    if workers <= 1:
        for chunk in chunks:
            yield from job(chunk)
        return
    under_way: deque[list[T]] = deque()
    while True:
        pool = _pool(workers)
        try:
            for results in _flow(pool, job, chunks, under_way, 2 * workers):
                yield from results
            return
        except BrokenProcessPool:
            # Any of the chunks on their way may hold the culprit: one process alone for each of them.
            while under_way:
                yield from _alone(job, under_way.popleft(), crashed)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def chunked(items: Iterable[T]) -> Iterator[list[T]]:
    """The items in lists of at most `CHUNK`, and hardly more than `CHUNK_BYTES` (long paths count too)."""
    chunk: list[T] = []
    size = 0
    for item in items:
        chunk.append(item)
        size += len(item)
        if len(chunk) >= CHUNK or size >= CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _pool(workers: int) -> ProcessPoolExecutor:
    # A forked copy of a process with torch's threads may hang; spawned ones start clean.
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))


def _can_start(job: Job[T, R]) -> bool:
    """Whether a worker lives long enough for an empty job: not in a daemonic process or a script on stdin."""
    try:
        with _pool(1) as pool:
            pool.submit(job, []).result()
    except (BrokenProcessPool, OSError, AssertionError, ImportError):
        return False
    return True


def _flow(
    pool: ProcessPoolExecutor, job: Job[T, R], chunks: Iterator[list[T]], under_way: deque[list[T]], ahead: int
) -> Iterator[list[R]]:
    """Results chunk by chunk. Those `under_way` are never more than `ahead`, which bounds the memory."""
    futures: deque[Future[list[R]]] = deque()
    for chunk in chunks:
        under_way.append(chunk)
        futures.append(pool.submit(job, chunk))
        if len(futures) >= ahead:
            yield _first(futures, under_way)
    while futures:
        yield _first(futures, under_way)


def _first(futures: deque[Future[list[R]]], under_way: deque[list[T]]) -> list[R]:
    results = futures.popleft().result()
    under_way.popleft()
    return results


def _alone(job: Job[T, R], chunk: Sequence[T], crashed: R) -> list[R]:
    """One process for the chunk, and if that dies, one for each item."""
    try:
        with _pool(1) as pool:
            return pool.submit(job, chunk).result()
    except BrokenProcessPool:
        if len(chunk) == 1:
            return [crashed]
    return [result for item in chunk for result in _alone(job, [item], crashed)]
