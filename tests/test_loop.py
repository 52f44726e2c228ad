"""The loop's evaluation; training end to end is in test_train.py."""

from __future__ import annotations

from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np
import pytest

from vgg_jax.data.pipeline import Batch
from vgg_jax.training.validation import evaluate_batches


def batch(labels: list[int], valid: list[bool]) -> Batch:
    rows = len(labels)
    return Batch(
        np.zeros((rows, 2, 2, 3), np.uint8),
        np.array(labels, np.int32),
        np.array(valid),
        np.zeros((rows, 3), np.uint32),
        np.arange(rows, dtype=np.int32),
    )


def losses_and_shares(given):
    labels = jnp.asarray(given.labels)
    return labels * 1.0, jnp.stack([labels, labels], 1)


def test_padding_is_left_out_and_the_order_kept():
    counts = []
    batches = [batch([3, 1], [True, True]), batch([2, 9], [True, False])]
    losses, shares = evaluate_batches(losses_and_shares, batches, counts.append)
    assert losses.tolist() == [3, 1, 2]
    assert shares.shape == (3, 2)
    assert counts == [2, 1]


def test_readers_are_closed_when_the_evaluation_fails():
    closed = []

    def batches() -> Iterator[Batch]:
        try:
            yield batch([1], [True])
        finally:
            closed.append(True)

    def fail(given):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        evaluate_batches(fail, batches())
    assert closed == [True]
