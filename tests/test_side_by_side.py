"""Candidates side by side: each as if it were trained by itself, in all that may become of it."""

from __future__ import annotations

import dataclasses
import itertools
import types
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from training_runs import After, Recorder, latest, timed

from vgg_jax import sweep
from vgg_jax.errors import RunError, TrainingInterrupted
from vgg_jax.progress import Progress
from vgg_jax.training import checkpoints as checkpoints_module
from vgg_jax.training import side_by_side
from vgg_jax.training.checkpoint_store import CheckpointStore
from vgg_jax.training.checkpoints import Checkpoints
from vgg_jax.training.run_files import RunFiles
from vgg_jax.training.side_by_side import StackedSteps, wins_side_by_side
from vgg_jax.training.steps import Steps, data_mesh
from vgg_jax.workflows import candidate_trainings
from vgg_jax.workflows.candidates import candidates_of
from vgg_jax.workflows.sweep import run_sweep
from vgg_jax.workflows.train import train


@pytest.fixture
def given(options) -> dict[str, Any]:
    """Options of candidates that can be trained side by side."""
    return {**options, "train_from": "head", "head": "linear"}


@pytest.fixture(autouse=True)
def stacked(monkeypatch) -> list[int]:
    """How many candidates were trained side by side, a number for each group."""
    counts: list[int] = []
    original = candidate_trainings.fit_side_by_side

    def counting(*arguments, **options):
        counts.append(len(arguments[5]))
        return original(*arguments, **options)

    monkeypatch.setattr(candidate_trainings, "fit_side_by_side", counting)
    return counts


def nearly_the_same_run(one: Path, other: Path) -> None:
    """Compare what two runs hold, to 1e-5, but for times."""
    a, b = latest(one), latest(other)
    assert a.keys() == b.keys()
    for path, value in a.items():
        assert value.dtype == b[path].dtype
        scale = np.abs(value).max()
        np.testing.assert_allclose(b[path], value, rtol=0, atol=1e-5 * scale, err_msg=path)
    histories = [RunFiles(path).read_metrics() for path in (one, other)]
    for ours, theirs in zip(*histories, strict=True):
        assert dataclasses.asdict(timed(theirs)) == pytest.approx(
            dataclasses.asdict(timed(ours)), rel=1e-5
        )


@pytest.mark.parametrize(
    "others",
    [
        {"optimizer": "rmsprop"},
        {"optimizer": "sgd", "weight_decay": [0.0, 0.01]},
        {"optimizer": "adamw", "label_smoothing": [0.0, 0.1], "features": "off"},
        {"optimizer": "adam", "head": "mlp:hidden=[16],dropout=0.5", "loss": "binary"},
        {"augment": ("mixup",), "label_smoothing": 0.1},
        {"head": ["linear", "gap-mlp:hidden=[16]"]},
    ],
    ids=lambda others: "-".join(map(str, others)),
)
def test_each_is_trained_as_if_by_itself(others, given, tmp_path, stacked):
    given = {**given, **others, "epochs": 3, "learning_rate": [1e-2, 1e-3]}
    found = sweep(**given, run=str(tmp_path / "sweep"))
    groups = 2 if isinstance(given["head"], list) else 1
    assert stacked == groups * [len(found.outcomes) // groups]
    for outcome in found.outcomes:
        alone = train(**{**given, **outcome.candidate.differs}, run=str(tmp_path / "alone"))
        nearly_the_same_run(alone.path, outcome.run.path)
        alone.path.rename(tmp_path / outcome.candidate.name)
    assert len(stacked) == groups


def test_their_runs_can_be_gone_on_with(given, tmp_path):
    given["weight_decay"] = 0.01
    found = sweep(**{**given, "learning_rate": [1e-2, 1e-3]}, run=str(tmp_path / "sweep"))
    resumed = train(resume=True, run=str(tmp_path / "sweep" / "lr1e-2"), epochs=4)
    whole = train(**{**given, "learning_rate": 1e-2, "epochs": 4}, run=str(tmp_path / "whole"))
    nearly_the_same_run(whole.path, resumed.path)
    assert found.best.evaluate().loss > 0


def test_one_that_diverges_fails_alone(given, tmp_path, stacked):
    """The middle one of three, whose first step makes its parameters too large for the second."""
    given["learning_rate"] = [1e-2, 1e38, 1e-3]
    progress = Recorder()
    found = sweep(**given, run=str(tmp_path / "sweep"), progress=progress)
    assert stacked == [3]
    *done, failed = found.outcomes
    assert [outcome.failure for outcome in done] == ["", ""]
    state = RunFiles(failed.run.path).read_state()
    assert state is not None
    assert (state.state, state.reason) == ("failed", failed.failure)
    assert failed.candidate.name == "lr1e38"
    assert "at step 2, in epoch 1" in failed.failure
    for outcome in done:
        alone = train(**{**given, **outcome.candidate.differs}, run=str(tmp_path / "alone"))
        nearly_the_same_run(alone.path, outcome.run.path)
        alone.path.rename(tmp_path / outcome.candidate.name)


def test_a_group_that_the_memory_does_not_suffice_for_fails_alone(
    given, tmp_path, stacked, monkeypatch
):
    """In its second epoch, before which one has diverged."""
    original = StackedSteps.train

    def train_step(self, states, totals, inputs):
        if "head/hidden/0/kernel" in states.trained and states.step.max() >= 3:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
        return original(self, states, totals, inputs)

    monkeypatch.setattr(StackedSteps, "train", train_step)
    given |= {"head": ["mlp:hidden=[16]", "linear"], "learning_rate": [1e-2, 1e38]}
    progress = Recorder()
    found = sweep(**given, run=str(tmp_path / "sweep"), progress=progress)
    assert stacked == [2, 2]
    reasons = {outcome.candidate.name: outcome.failure for outcome in found.outcomes}
    assert reasons.pop("linear-lr1e-2") == ""
    assert "does not suffice for batches of 8 (" in reasons["mlp-hidden-16-lr1e-2"]
    for name in ("mlp-hidden-16-lr1e38", "linear-lr1e38"):
        assert "at step 2, in epoch 1" in reasons[name]
    for name, reason in reasons.items():
        state = RunFiles(tmp_path / "sweep" / name).read_state()
        assert state is not None
        assert (state.state, state.reason) == ("failed", reason)
    assert progress.notes[-1].startswith("Less memory is needed by smaller heads, by fewer")


def test_one_that_is_complete_stays_so_whatever_becomes_of_the_others(given, tmp_path, monkeypatch):
    original = StackedSteps.train
    folder, saved = tmp_path / "sweep" / "lr1e1" / "checkpoints", []

    def train_step(self, states, totals, inputs):
        if states.step.max() >= 7 * 3:
            saved.extend(Checkpoints(folder).epochs())
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
        return original(self, states, totals, inputs)

    monkeypatch.setattr(StackedSteps, "train", train_step)
    given |= {"epochs": 8, "early_stop": 1, "learning_rate": [10.0, 1e-3]}
    done, failed = sweep(**given, run=str(tmp_path / "sweep")).outcomes
    assert (done.candidate.name, done.failure) == ("lr1e1", "")
    assert "does not suffice" in failed.failure
    assert saved[-1] == len(done.run.history)  # not held while the others go on
    states = [RunFiles(outcome.run.path).read_state() for outcome in (done, failed)]
    assert [state and state.state for state in states] == ["done", "failed"]


@pytest.mark.parametrize("early_stop", [None, 1])
def test_one_that_cannot_be_saved_fails_alone(given, tmp_path, monkeypatch, early_stop):
    """One that ended early is not called done, nor are others that are complete called failed."""
    monkeypatch.setattr(checkpoints_module, "_SLOW_SECONDS", 3600.0)
    monkeypatch.setattr(checkpoints_module, "_SECONDS_BETWEEN", 3600.0)
    write = CheckpointStore._write

    def failing(store, number, *others):
        if number > 1 and "lr1e1" in str(store.folder):
            raise OSError("Input/output error")
        write(store, number, *others)

    monkeypatch.setattr(CheckpointStore, "_write", failing)
    given |= {"epochs": 8, "early_stop": early_stop, "learning_rate": [1e-2, 10.0, 1e-3]}
    with pytest.raises(RunError, match="Input/output error"):
        sweep(**given, run=str(tmp_path / "sweep"))
    names = ("lr1e-2", "lr1e1", "lr1e-3")
    states = [RunFiles(tmp_path / "sweep" / name).read_state() for name in names]
    assert states[1]
    assert states[1].state == "failed"
    if not early_stop:
        assert [state and state.state for state in states] == ["done", "failed", "done"]


def test_each_stops_early_by_itself(given, tmp_path, stacked):
    given |= {"epochs": 8, "early_stop": 1, "learning_rate": [10.0, 1e-3]}
    found = sweep(**given, run=str(tmp_path / "sweep"))
    assert stacked == [2]
    lengths = {o.candidate.name: len(o.run.history) for o in found.outcomes}
    assert lengths["lr1e1"] < lengths["lr1e-3"] == 8
    for outcome in found.outcomes:
        alone = train(**{**given, **outcome.candidate.differs}, run=str(tmp_path / "alone"))
        assert len(alone.history) == len(outcome.run.history)
        nearly_the_same_run(alone.path, outcome.run.path)
        alone.path.rename(tmp_path / outcome.candidate.name)


@pytest.mark.parametrize(("looks", "epochs"), [(1, 0), (4, 0), (6, 1)])
def test_an_interrupted_group_keeps_its_epochs_and_goes_on(looks, epochs, given, tmp_path, stacked):
    """An epoch has 3 steps and 2 batches of validation, one by one as features are not kept."""
    folder = tmp_path / "sweep"
    given |= {"learning_rate": [1e-2, 1e-3], "features": "off"}
    with pytest.raises(TrainingInterrupted, match=r"the epochs before it are saved.\nGo on with"):
        run_sweep(candidates_of(given), str(folder), Progress(), After(looks))
    for name in ("lr1e-2", "lr1e-3"):
        files = RunFiles(folder / name)
        assert len(files.read_metrics()) == epochs
        state = files.read_state()
        assert state is not None
        assert state.state == "interrupted"
    found = sweep(**given, run=str(folder))
    assert stacked == ([2] if epochs else [2, 2])  # what was begun goes on in turn
    for outcome in found.outcomes:
        alone = train(**{**given, **outcome.candidate.differs}, run=str(tmp_path / "alone"))
        nearly_the_same_run(alone.path, outcome.run.path)
        alone.path.rename(tmp_path / outcome.candidate.name)


def test_each_program_is_compiled_once(given, tmp_path):
    programs = [StackedSteps.train, StackedSteps.evaluate, Steps.train, Steps.evaluate]
    before = [program._cache_size() for program in programs]  # pyright: ignore
    sweep(**{**given, "learning_rate": [1e-2, 1e-3]}, run=str(tmp_path / "sweep"))
    after = [program._cache_size() for program in programs]  # pyright: ignore
    assert [b - a for a, b in zip(before, after, strict=True)] == [1, 1, 0, 0]


def test_times_are_shared_out(given, tmp_path, monkeypatch):
    """So that the times of all candidates add up to that of the sweep."""
    clock = itertools.count()
    watch = types.SimpleNamespace(perf_counter=lambda: float(next(clock)))
    monkeypatch.setattr(side_by_side, "time", watch)
    found = sweep(**{**given, "learning_rate": [1e-2, 1e-3]}, run=str(tmp_path / "sweep"))
    for outcome in found.outcomes:
        assert [metrics.seconds for metrics in outcome.run.history] == [1.0, 1.0]


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="measured on CPU only")
@pytest.mark.parametrize(
    ("shape", "wins"),
    [((512, 5), True), ((512, 1000), False), ((3, 3, 8, 8), False)],
    ids=["few parameters", "many", "a convolution"],
)
def test_side_by_side_is_chosen_where_it_wins(shape, wins):
    trained = {"head/kernel": jax.ShapeDtypeStruct(shape, np.float32)}
    assert wins_side_by_side(trained, 3, data_mesh()) == wins
    assert not wins_side_by_side(trained, 1, data_mesh())


@pytest.mark.parametrize("count", [1, 2])
def test_quick_epochs_are_saved_as_often_as_the_user_asks(options, tmp_path, monkeypatch, count):
    """Alone, and as candidates side by side, which share the memory, too."""
    seen: list[tuple[float, int]] = []
    save = Checkpoints.save_epoch

    def saving(checkpoints, *arguments):
        seen.append((checkpoints.most_seconds, checkpoints.holders))
        save(checkpoints, *arguments)

    monkeypatch.setattr(Checkpoints, "save_epoch", saving)
    given = {
        **options,
        "train_from": "head",
        "checkpoint_minutes": 0.05,
        "run": str(tmp_path / "run"),
    }
    if count == 1:
        train(**given)
    else:
        sweep(**{**given, "head": ["linear"], "learning_rate": [1e-4, 1e-3]})
    assert seen == [(3.0, count)] * 2 * count
