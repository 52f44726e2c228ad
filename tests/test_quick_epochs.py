"""Checkpoints of epochs that follow one another too quickly to be written one by one."""

from __future__ import annotations

import math
import shutil
import threading
from concurrent.futures import wait
from contextlib import nullcontext

import numpy as np
import pytest
from test_checkpoints import after, metrics, save_epochs, state

from vgg_jax.errors import RunError, TrainingDiverged
from vgg_jax.progress import EpochMetrics
from vgg_jax.training import checkpoint_store
from vgg_jax.training import checkpoints as checkpoints_module
from vgg_jax.training.checkpoint_store import CheckpointStore
from vgg_jax.training.checkpoints import Checkpoints
from vgg_jax.training.epoch_end import metrics_of_epoch
from vgg_jax.training.position import Sums
from vgg_jax.training.run_folder import RunFolder
from vgg_jax.weights.checksums import array_sha256


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


@pytest.fixture
def _held(monkeypatch):
    """Hold all until the end."""
    monkeypatch.setattr(checkpoints_module, "_SLOW_SECONDS", 3600.0)
    monkeypatch.setattr(checkpoints_module, "_SECONDS_BETWEEN", 3600.0)


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """The time, to be set."""
    time = [100.0]
    monkeypatch.setattr(checkpoints_module.time, "monotonic", lambda: time[0])
    return time


def save_few(
    checkpoints: Checkpoints, count: int, clock: list[float] | None = None, *, first: int = 1
) -> None:
    """Save so many epochs; by the clock, if given, of 0.6 s each, one a second written."""
    checkpoints.most_seconds = 1.0 if clock else math.inf
    for last in range(first, first + count):
        if clock:
            clock[0] += 0.6
        checkpoints.save_epoch(after(*(metrics(n, 0.5) for n in range(1, last + 1))), state(last))


@pytest.mark.usefixtures("_held")
def test_epochs_in_quick_succession_are_not_all_written(tmp_path, written):
    """The first is, so that something is there, and it is known that the disk takes it."""
    checkpoints = save_epochs(tmp_path, [0.1, 0.5, 0.9, *[0.4] * 20])
    assert written == [1, 3, 22, 23]
    assert checkpoints.epochs() == [3, 22, 23]
    assert checkpoints.restore(3).position.step == 30
    np.testing.assert_array_equal(checkpoints.restore(22).trained["head/kernel"], 22.0)


@pytest.mark.parametrize(
    "limits", [{"_SLOW_SECONDS": -1.0}, {"_MOST_HELD_BYTES": 1000, "_SMALL_BYTES": 1000}]
)
def test_those_that_are_far_apart_or_large_are_all_written(tmp_path, written, monkeypatch, limits):
    """They wait for each other."""
    for name, value in limits.items():
        monkeypatch.setattr(checkpoints_module, name, value)
    save_epochs(tmp_path, [0.1, 0.9, *[0.4] * 4])
    assert written == [1, 2, 3, 4, 5, 6]


def test_a_slow_disk_holds_nobody_up(tmp_path, written, clock, monkeypatch):
    monkeypatch.setattr(checkpoints_module, "_SMALL_BYTES", 0)
    goes_on = threading.Event()

    def waiting(array):
        assert goes_on.wait(60)
        return array_sha256(array)

    monkeypatch.setattr(checkpoint_store, "array_sha256", waiting)
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    save_few(checkpoints, 9, clock)
    assert written == [1]
    goes_on.set()
    checkpoints.close()
    assert written == [1, 8, 9]


@pytest.mark.usefixtures("_held")
@pytest.mark.parametrize("limits", [(), ("_SMALL_BYTES",), ("_SMALL_BYTES", "_MOST_HELD_BYTES")])
def test_a_first_epoch_is_there_before_the_next_begins(tmp_path, written, monkeypatch, limits):
    """Unless writing it takes long; a second one is held unless it is larger still."""
    for limit in limits:
        monkeypatch.setattr(checkpoints_module, limit, 1000)
    is_awaited, is_held = not limits, len(limits) < 2
    goes_on = threading.Event()

    def slowly(array):
        goes_on.wait(0.1 if is_awaited else 60)
        return array_sha256(array)

    monkeypatch.setattr(checkpoint_store, "array_sha256", slowly)
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    save_few(checkpoints, 1)
    assert written == [1]
    assert checkpoints.epochs() == ([1] if is_awaited else [])
    goes_on.set()
    save_few(checkpoints, 1, first=2)
    assert written == ([1] if is_held else [1, 2])
    checkpoints.close()
    assert checkpoints.epochs() == [1, 2]


@pytest.mark.usefixtures("_held")
@pytest.mark.parametrize("are_small", [False, True])
def test_runs_that_are_trained_at_a_time_hold_less_each(tmp_path, written, monkeypatch, are_small):
    if not are_small:
        monkeypatch.setattr(checkpoints_module, "_SMALL_BYTES", 1000)
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.holders = 10**6
    save_few(checkpoints, 3)
    assert written == ([1] if are_small else [1, 2, 3])
    checkpoints.close()


def test_runs_that_are_trained_at_a_time_are_not_slow_because_the_others_save(
    tmp_path, written, clock
):
    """Twenty take 0.1 s each."""
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.holders = 20
    for last in range(1, 5):
        clock[0] += 2.0
        checkpoints.save_epoch(after(*(metrics(n, 0.5) for n in range(1, last + 1))), state(last))
    assert written == [1]
    clock[0] += 20.0
    checkpoints.save_epoch(after(*(metrics(n, 0.5) for n in range(1, 6))), state(5))
    assert written == [1, 4, 5]
    checkpoints.close()


def test_an_epoch_is_not_slow_because_the_one_before_was_waited_for(
    tmp_path, written, clock, monkeypatch
):
    wait = CheckpointStore.wait

    def waiting(store):
        clock[0] += 1.5
        wait(store)

    monkeypatch.setattr(CheckpointStore, "wait", waiting)
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    save_few(checkpoints, 3)
    assert written == [1]
    checkpoints.close()


@pytest.mark.parametrize("seed", range(6))
def test_whenever_a_training_is_killed_the_best_of_its_epochs_is_there(
    tmp_path, monkeypatch, clock, seed
):
    """Looked at before each checkpoint is written, and at the end."""
    rng = np.random.default_rng(seed)
    history, written = [], []
    folder = tmp_path / "checkpoints"
    save = CheckpointStore.save

    def look():
        there = Checkpoints(folder).epochs()
        assert there[-1:] == written[-1:]
        known: list[EpochMetrics] = history[: there[-1]] if there else []
        best = max(known, key=lambda each: (each.rank, each.epoch), default=None)
        assert best is None or best.epoch in there

    def saving(store, number, *others):
        store.wait()
        look()
        written.append(number)
        save(store, number, *others)

    monkeypatch.setattr(CheckpointStore, "save", saving)
    checkpoints = Checkpoints(folder)
    checkpoints.most_seconds = 1.0
    for epoch in range(1, 41):
        clock[0] += rng.uniform(0, 0.6)
        history.append(metrics(epoch, rng.integers(0, 8) / 8))
        checkpoints.save_epoch(after(*history), state(epoch))
        if rng.random() < 0.5:  # else it is still being written, perhaps
            checkpoints._epochs.wait()
    checkpoints.close()
    look()
    assert len(written) < 30
    assert written == sorted(written)
    assert checkpoints.epochs()[-1] == 40


@pytest.mark.usefixtures("_held")
def test_what_is_held_is_written_before_the_epoch_under_way(tmp_path, written):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    save_few(checkpoints, 2)
    assert written == [1]
    checkpoints.save_unfinished(after(metrics(1, 0.5), metrics(2, 0.5)), state(3))
    assert written == [1, 2, 20]
    checkpoints.close()
    assert checkpoints.epochs() == [1, 2]


@pytest.mark.usefixtures("_held")
def test_what_is_held_is_not_written_into_a_run_that_was_lost(tmp_path, written, monkeypatch):
    """Lost, even, while the one before was being written."""
    lost: list[RunError] = []

    def check():
        if lost:
            raise lost[0]

    def losing(array):
        lost.append(RunError("taken over"))
        return array_sha256(array)

    checkpoints = Checkpoints(tmp_path / "checkpoints", check)
    monkeypatch.setattr(checkpoint_store, "array_sha256", losing)
    save_few(checkpoints, 2)
    with pytest.raises(RunError, match="taken over"):
        checkpoints.close()
    checkpoints.close()  # nothing is left to write
    assert written == [1]


@pytest.mark.usefixtures("_held")
def test_where_writing_fails_it_is_not_tried_again(tmp_path, written, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    save_few(checkpoints, 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=4000))
    save_few(checkpoints, 2, first=2)
    with pytest.raises(RunError, match="No space left"):
        checkpoints.wait()
    checkpoints.close()
    assert written == [1, 2]


@pytest.mark.usefixtures("_held")
def test_a_disk_that_takes_no_checkpoint_is_told_after_the_first_epoch(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=4000))
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    with pytest.raises(RunError, match="No space left"):
        save_few(checkpoints, 1)
    checkpoints.close()


@pytest.mark.usefixtures("_held")
def test_a_training_that_diverged_says_what_could_not_be_saved(tmp_path, monkeypatch):
    run = RunFolder(tmp_path)
    save_few(run.checkpoints, 1)
    run.checkpoints.wait()
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=4000))
    save_few(run.checkpoints, 2, first=2)
    lost = np.array([np.nan])
    given = {"epoch": 4, "step": 40, "learning_rate": 1e-3, "seconds": 1, "training_seconds": 1}
    with pytest.raises(TrainingDiverged) as stop:
        metrics_of_epoch(Sums(1.0, 1, 1), lost, lost, run, **given)
    assert "could not be written" in str(stop.value)
    assert "No space left" in str(stop.value)
    assert "The last good checkpoint is that of epoch 1." in str(stop.value)


@pytest.mark.usefixtures("_held")
def test_nothing_is_written_after_what_failed_in_an_unforeseen_way(tmp_path, written, monkeypatch):
    def fail(array):
        raise MemoryError("no room")

    checkpoints = Checkpoints(tmp_path / "checkpoints")
    save_few(checkpoints, 1)
    monkeypatch.setattr(checkpoint_store, "array_sha256", fail)
    save_few(checkpoints, 2, first=2)
    with pytest.raises(MemoryError, match="no room"):
        checkpoints.close()
    checkpoints.close()
    assert written == [1, 2]


@pytest.mark.parametrize("fails", [False, True])
def test_waiting_that_is_interrupted_loses_nothing(tmp_path, clock, monkeypatch, fails):
    """Nor is it forgotten that what was waited for has failed."""
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    save_few(checkpoints, 1, clock)
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(
            shutil, "disk_usage", lambda folder: usage._replace(free=4000) if fails else usage
        )
        save_few(checkpoints, 2, clock, first=2)
        assert checkpoints._epochs._saving
        wait([checkpoints._epochs._saving])
        patched.setattr(checkpoint_store, "wait", interrupt)
        with pytest.raises(KeyboardInterrupt):
            checkpoints.wait()
    with pytest.raises(RunError, match="No space left") if fails else nullcontext():
        checkpoints.close()
    assert checkpoints.epochs() == ([1] if fails else [2, 3])


def interrupt(futures):
    raise KeyboardInterrupt


@pytest.mark.usefixtures("_held")
def test_closing_that_is_interrupted_is_done_once_more(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    save_few(checkpoints, 3)
    plain = checkpoint_store.wait

    def once(futures):
        monkeypatch.setattr(checkpoint_store, "wait", plain)
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint_store, "wait", once)
    closing = checkpoints.closed_at_end()
    closing.__enter__()
    with pytest.raises(KeyboardInterrupt):
        closing.__exit__(None, None, None)
    assert checkpoints.epochs() == [2, 3]


def test_a_slow_epoch_after_quick_ones_is_written_at_once(tmp_path, written, clock):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    save_few(checkpoints, 4)
    assert written == [1]
    clock[0] += 1.5
    checkpoints.save_epoch(after(*(metrics(n, 0.5) for n in range(1, 6))), state(5))
    assert written == [1, 4, 5]
    checkpoints.close()


def test_a_run_that_was_lost_keeps_the_checkpoints_of_others(tmp_path):
    """Of a process that took it over and has other epochs."""
    lost = []

    def check():
        if lost:
            raise RunError("taken over")

    checkpoints = Checkpoints(tmp_path / "checkpoints", check)
    save_few(checkpoints, 1)
    checkpoints.wait()
    lost.append(True)
    for number in (7, 8, 9):
        checkpoints._epochs.path(number).mkdir()
    checkpoints.close()
    assert checkpoints.epochs() == [1, 7, 8, 9]
    with pytest.raises(RunError, match="taken over"):
        checkpoints.drop_unfinished()


@pytest.mark.parametrize(
    ("best", "most_seconds", "expected"),
    [
        ("last", 1.0, [1, 4, 7]),
        ("second", 1.0, [1, 2, 5, 8]),  # what is there is soon old again
        ("last", 600.0, [1, 34, 67]),
        ("second", 600.0, [1, 2, 35, 68]),
    ],
)
def test_what_is_on_the_disk_is_no_older_than_ten_seconds_or_fewer(
    tmp_path, written, clock, best, most_seconds, expected
):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.most_seconds = most_seconds
    history: list[EpochMetrics] = []
    for epoch in range(1, expected[-1] + 3):  # 0.3 s each
        accuracy = 0.01 * epoch if best == "last" else 0.9 * (epoch == 2)
        history.append(metrics(epoch, accuracy))
        checkpoints.save_epoch(after(*history), state(epoch))
        checkpoints._epochs.wait()
        clock[0] += 0.3
    assert written == expected
    checkpoints.close()
