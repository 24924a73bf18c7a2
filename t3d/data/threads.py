"""Work on a stream of things in several threads, its results in order."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item, Result = TypeVar("Item"), TypeVar("Result")
AHEAD = 12  # results that may wait to be taken
_END = object()


def in_order(
    work: Callable[[Item], Result], items: Iterable[Item], threads: int = 2, ahead: int = AHEAD
) -> Iterator[Result]:
    """work(item) of each item, in the items' order, worked on in several threads.

    Only `ahead` items are taken before their results are asked for, so that a film of any length
    passes through. Pays where `work` lets go of the interpreter's lock: PIL, cv2, av, MediaPipe,
    numba's nogil, and numpy on arrays of pictures.
    """
    items, waiting = iter(items), deque()
    pool = ThreadPoolExecutor(threads)
    try:
        for item in itertools.islice(items, ahead):
            waiting.append(pool.submit(work, item))
        while waiting:
            result = waiting.popleft().result()
            for item in itertools.islice(items, 1):
                waiting.append(pool.submit(work, item))
            yield result
    finally:
        pool.shutdown(cancel_futures=True)


def prefetched(items: Iterable[Item], ahead: int = 4) -> Iterator[Item]:
    """The items, the next few of them taken in another thread while one is worked on."""
    items, pool = iter(items), ThreadPoolExecutor(1)
    try:
        waiting = deque(pool.submit(next, items, _END) for _ in range(ahead))
        while (item := waiting.popleft().result()) is not _END:
            waiting.append(pool.submit(next, items, _END))
            yield item
    finally:
        pool.shutdown(cancel_futures=True)
