"""The loop: in which order it works, and its evaluation; trainings are in test_train.py."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vgg_jax.data.pipeline import Batch
from vgg_jax.training import epoch
from vgg_jax.training.features import Features
from vgg_jax.training.steps import Steps, Totals
from vgg_jax.training.validation import evaluate_batches
from vgg_jax.workflows.train import train


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


def test_a_batch_is_made_ready_before_the_step_in_flight_is_waited_for(
    options, tmp_path, monkeypatch
):
    events, in_flight = [], []  # the latter: the totals of the latest step
    take_step = Steps.train

    def recorded(name, function):
        def call(*args):
            events.append(name)
            return function(*args)

        return call

    def step(*args):
        events.append("step")
        state, totals = take_step(*args)
        in_flight[:] = [totals]
        return state, totals

    def wait(values):
        latest = not in_flight or values is in_flight[0]  # nothing is in flight at first
        events.append("wait" if latest else "wait for another")
        return values

    monkeypatch.setattr(epoch, "_SECONDS_BETWEEN_REPORTS", 1e9)  # none within the epoch
    monkeypatch.setattr(Features, "_inputs", recorded("batch", Features._inputs))
    monkeypatch.setattr(Steps, "train", step)
    monkeypatch.setattr(Totals, "fetch", recorded("metrics", Totals.fetch))
    monkeypatch.setattr(jax, "block_until_ready", wait)
    train(**{**options, "epochs": 1}, features="off", run=str(tmp_path / "run"))
    steps = ["batch", "wait", "step"] * 3  # of 21 pictures
    # Metrics: the last report, and the epoch's sums. Then two batches of validation.
    assert events == [*steps, "metrics", "metrics", "batch", "batch"]
