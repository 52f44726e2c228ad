"""Evaluation of a split, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from typing import Any

import jax
import numpy as np

from vgg_jax.training.steps import Batch, put_batch


def evaluate_batches(
    evaluate: Callable[[Batch], tuple[jax.Array, jax.Array]],
    batches: Iterable[Any],
    mesh: jax.sharding.Mesh,
    done: Callable[[int], None] = lambda count: None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return losses `[N]`, probabilities `[N, K]` and labels `[N]` of all valid examples, in order.

    `evaluate` gives the losses and probabilities of one batch; `done` is told how many examples it
    had.
    """
    pieces: list[tuple[np.ndarray, ...]] = []
    for batch in closing_at_end(batches):
        losses, probabilities = evaluate(put_batch(mesh, for_device(batch)))
        keep = batch.valid
        pieces.append(
            (np.asarray(losses)[keep], np.asarray(probabilities)[keep], batch.labels[keep])
        )
        done(int(keep.sum()))
    losses, probabilities, labels = (np.concatenate(parts) for parts in zip(*pieces, strict=True))
    return losses, probabilities, labels


def for_device(batch: Any) -> Mapping[str, np.ndarray]:
    """Return those fields of a batch that the steps take."""
    return {name: getattr(batch, name) for name in ("images", "labels", "valid", "content")}


def closing_at_end(batches: Iterable[Any]) -> Iterator[Any]:
    """Iterate, and close the iterator when the consumer stops early."""
    iterator = iter(batches)
    if not hasattr(iterator, "close"):
        yield from iterator
        return
    with closing(iterator):  # pyright: ignore[reportArgumentType]
        yield from iterator
