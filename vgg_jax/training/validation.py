"""Evaluation of a split, batch by batch."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from typing import Any, Protocol, TypeVar

import jax
import numpy as np


class _Masked(Protocol):
    @property
    def valid(self) -> np.ndarray | jax.Array: ...


_Batch = TypeVar("_Batch", bound=_Masked)


def evaluate_batches(
    evaluate: Callable[[_Batch], tuple[jax.Array, jax.Array]],
    batches: Iterable[_Batch],
    done: Callable[[int], None] = lambda count: None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return losses `[N]` and probabilities `[N, K]` of all valid examples, in order.

    Args:
        evaluate: Gives the losses and probabilities of a batch.
        batches: Batches with a field `valid`, or chunks of them.
        done: Told how many examples a batch had.
    """
    pieces: list[tuple[np.ndarray, np.ndarray]] = []
    waiting: collections.deque[tuple[np.ndarray, tuple[jax.Array, jax.Array]]] = collections.deque()

    def fetch() -> None:
        valid, (losses, probabilities) = waiting.popleft()
        pieces.append((np.asarray(losses)[valid], np.asarray(probabilities)[valid]))
        done(int(valid.sum()))

    for batch in closing_at_end(batches):
        waiting.append((np.asarray(batch.valid), evaluate(batch)))
        if len(waiting) > 1:  # the devices are at work on one while the next is made ready
            fetch()
    while waiting:
        fetch()
    losses, probabilities = (np.concatenate(parts) for parts in zip(*pieces, strict=True))
    return losses, probabilities


def closing_at_end(batches: Iterable[Any]) -> Iterator[Any]:
    """Iterate, and close the iterator when the consumer stops early."""
    iterator = iter(batches)
    if not hasattr(iterator, "close"):
        yield from iterator
        return
    with closing(iterator):  # pyright: ignore[reportArgumentType]
        yield from iterator
