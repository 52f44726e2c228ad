"""Checkpoints of epochs that follow one another too quickly to be written one by one."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from test_checkpoints import after, metrics, save_epochs, state

from vgg_jax.errors import RunError
from vgg_jax.progress import EpochMetrics
from vgg_jax.training import checkpoints as checkpoints_module
from vgg_jax.training.checkpoint_store import CheckpointStore
from vgg_jax.training.checkpoints import Checkpoints


@pytest.fixture
def written(monkeypatch) -> list[int]:
    """The numbers of the checkpoints that were written, in their order."""
    numbers: list[int] = []
    save = CheckpointStore.save

    def saving(store, number, *others):
        numbers.append(number)
        save(store, number, *others)

    monkeypatch.setattr(CheckpointStore, "save", saving)
    return numbers


def test_epochs_in_quick_succession_are_not_all_written(tmp_path, written, monkeypatch):
    monkeypatch.setattr(checkpoints_module, "_SECONDS_BETWEEN", 3600.0)
    checkpoints = save_epochs(tmp_path, [0.1, 0.5, 0.9, *[0.4] * 20])
    assert written == [1, 3, 22, 23]
    assert checkpoints.epochs() == [3, 22, 23]
    assert checkpoints.restore(3).position.step == 30
    np.testing.assert_array_equal(checkpoints.restore(22).trained["head/kernel"], 22.0)


def test_epochs_that_are_far_apart_are_all_written(tmp_path, written, monkeypatch):
    monkeypatch.setattr(checkpoints_module, "_SECONDS_BETWEEN", 0.0)
    save_epochs(tmp_path, [0.1, 0.9, *[0.4] * 4])
    assert written == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("seed", range(5))
def test_whenever_a_training_is_killed_the_best_of_its_epochs_is_there(
    tmp_path, written, monkeypatch, seed
):
    """And what it would go on from is no older than the last one that was written."""
    rng = np.random.default_rng(seed)
    clock = iter(np.cumsum(rng.uniform(0, 0.6, 1000)))
    now = [0.0]
    monkeypatch.setattr(checkpoints_module.time, "monotonic", lambda: now[0])
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    history: list[EpochMetrics] = []
    for epoch in range(1, 41):
        now[0] = next(clock)
        history.append(metrics(epoch, rng.integers(0, 8) / 8))
        checkpoints.save_epoch(after(*history), state(epoch))
        checkpoints._epochs.wait()
        there = checkpoints.epochs()
        assert there[-1] == written[-1]
        known = history[: there[-1]]
        assert max(known, key=lambda each: (each.rank, each.epoch)).epoch in there
    assert 10 < len(written) < 30
    assert written == sorted(written)
    checkpoints.close()
    assert {39, 40} < {*checkpoints.epochs()} or checkpoints.epochs() == [39, 40]


def test_what_is_held_is_written_before_the_epoch_under_way(tmp_path, written, monkeypatch):
    monkeypatch.setattr(checkpoints_module, "_SECONDS_BETWEEN", 3600.0)
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    for count in (1, 2):
        checkpoints.save_epoch(after(*(metrics(n + 1, 0.5) for n in range(count))), state(count))
    assert written == [1]
    checkpoints.save_unfinished(after(metrics(1, 0.5), metrics(2, 0.5)), state(3))
    assert written == [1, 2, 20]
    checkpoints.close()
    assert checkpoints.epochs() == [1, 2]


def test_what_is_held_is_not_written_into_a_run_that_was_lost(tmp_path, written, monkeypatch):
    monkeypatch.setattr(checkpoints_module, "_SECONDS_BETWEEN", 3600.0)
    lost: list[RunError] = []

    def check():
        if lost:
            raise lost[0]

    checkpoints = Checkpoints(tmp_path / "checkpoints", check)
    for count in (1, 2):
        checkpoints.save_epoch(after(*(metrics(n + 1, 0.5) for n in range(count))), state(count))
    lost.append(RunError("taken over"))
    with pytest.raises(RunError, match="taken over"):
        checkpoints.close()
    checkpoints.close()  # nothing is left to write
    assert written == [1]


def test_where_writing_fails_it_is_not_tried_again(tmp_path, written, monkeypatch):
    monkeypatch.setattr(checkpoints_module, "_SECONDS_BETWEEN", 3600.0)
    usage = shutil.disk_usage(tmp_path)
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=4000))
    for count in (1, 2, 3):
        checkpoints.save_epoch(after(*(metrics(n + 1, 0.5) for n in range(count))), state(count))
    with pytest.raises(RunError, match="No space left"):
        checkpoints.wait()
    checkpoints.close()
    assert written == [1]
