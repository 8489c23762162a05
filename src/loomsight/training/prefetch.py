"""Batches made by threads while the network computes, handed out in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from typing import TypeVar, cast

import torch
from torch import Tensor

BatchT = TypeVar("BatchT")


@contextmanager
def prefetched(
    batches: Callable[[int], BatchT],
    *,
    start: int,
    stop: int | None,
    workers: int,
    device: torch.device,
    channels_last: bool,
) -> Iterator[Iterator[BatchT]]:
    """Yield an iterator over ``batches(start)``, …, ``batches(stop - 1)`` (None: without end) on ``device``.

    Threads and not processes: decoding, NumPy, OpenCV and torch release the GIL, and nothing is copied.
    At most ``2 * workers`` batches wait at a time. An error in ``batches`` is raised where its batch is
    taken; when the block is left, nothing more is begun and the threads have ended.
    """
    waiting: deque[Future[BatchT]] = deque()

    def make(number: int) -> BatchT:
        return cast(BatchT, _placed(batches(number), device, channels_last))

    def in_order() -> Iterator[BatchT]:
        for number in count(start) if stop is None else range(start, stop):
            waiting.append(pool.submit(make, number))
            if len(waiting) >= 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    with ThreadPoolExecutor(workers, thread_name_prefix="batches") as pool:
        try:
            yield in_order()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _placed(batch: object, device: torch.device, channels_last: bool) -> object:
    """``batch`` with every tensor in its dicts, tuples and lists moved; anything else is left alone."""
    if isinstance(batch, Tensor):
        if channels_last and batch.ndim == 4:
            batch = batch.contiguous(memory_format=torch.channels_last)
        if device.type == "cuda" and batch.device.type == "cpu":
            batch = batch.pin_memory()  # a copy from pinned memory does not hold up the GPU
        return batch.to(device, non_blocking=True)
    if isinstance(batch, dict):
        return {key: _placed(value, device, channels_last) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        make: Callable[..., object] = type(batch)  # a named tuple takes its fields one by one
        return make(*(_placed(value, device, channels_last) for value in batch))
    if isinstance(batch, list | tuple):
        placed = [_placed(value, device, channels_last) for value in batch]
        return placed if isinstance(batch, list) else tuple(placed)
    return batch
