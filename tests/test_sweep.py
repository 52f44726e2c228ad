"""Sweeps: the same runs as one by one, over features that are computed once, ranked."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys

import jax
import pytest
from training_runs import After, Recorder, flags, same_run
from typer.testing import CliRunner

from vgg_jax import sweep
from vgg_jax.cli.app import app
from vgg_jax.cli.console import LineProgress
from vgg_jax.errors import ConfigError, MemoryExhausted, TrainingError, TrainingInterrupted
from vgg_jax.progress import Progress
from vgg_jax.training import loop
from vgg_jax.training.run_files import RunFiles
from vgg_jax.training.steps import Steps
from vgg_jax.workflows.candidates import candidates_of
from vgg_jax.workflows.load import load_classifier
from vgg_jax.workflows.runs import describe_run
from vgg_jax.workflows.session import Session
from vgg_jax.workflows.sweep import run_sweep
from vgg_jax.workflows.train import train

pytestmark = pytest.mark.usefixtures("own_cache")
DIVERGES = 1e38
HEAD = """
from flax import nnx

class Mine(nnx.Module):
    def __init__(self, input_shape, num_classes, *, rngs):
        self.logits = nnx.Linear(input_shape[-1], num_classes, rngs=rngs)

    def __call__(self, features):
        return self.logits(features.mean((1, 2)))
"""


@pytest.mark.parametrize(
    ("boundary", "features"), [("conv5_1", "disk"), ("head", "disk"), ("head", "memory")]
)
def test_candidates_equal_trainings_by_themselves_and_share_their_features(
    boundary, features, options, tmp_path, read
):
    """`linear` pools its features where the boundary is the head; `dense256` does not."""
    given = {**options, "features": features, "train_from": boundary}
    heads = ["linear", "dense256"]
    found = sweep(**{**given, "head": heads, "learning_rate": [1e-3], "run": str(tmp_path / "s")})
    assert [count for count in read if count] == [21, 9]
    for outcome in found.outcomes:
        name = outcome.candidate.name
        alone = train(**{**given, "head": name}, run=str(tmp_path / name))
        same_run(alone.path, outcome.run.path)
        assert outcome.run.path == tmp_path / "s" / name


def test_those_that_differ_in_numbers_alone_share_their_programs(options, tmp_path):
    given = {**options, "run": str(tmp_path / "sweep")}
    jax.clear_caches()
    found = sweep(
        **{**given, "learning_rate": [1e-3, 1e-4], "weight_decay": [0, 0.1]},
        optimizer=["adam", "sgd"],
    )
    assert len(found.outcomes) == 8
    for program in (Steps.train, Steps.evaluate):
        assert program._cache_size() == 2  # one for each optimizer  # pyright: ignore
    compared = []
    for outcome in found.outcomes:
        config, name = outcome.candidate.config, outcome.candidate.name
        if (config.learning_rate, config.weight_decay) == (1e-4, 0.1):  # not the first ones
            differs = dict(outcome.candidate.differs)
            same_run(
                train(**{**given, **differs, "run": str(tmp_path / name)}).path, outcome.run.path
            )
            compared.append(config.optimizer)
    assert sorted(compared) == ["adam", "sgd"]


def test_a_head_that_is_edited_meanwhile_gets_programs_of_its_own(options, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(HEAD)

    class Editing(Recorder):
        def note(self, text):
            if text.startswith("lr1e-3: best epoch"):
                file.write_text(HEAD.replace("features.mean", "2 * features.mean"))

    given = {**options, "epochs": 1, "head": f"{file}#Mine"}
    rates = {"learning_rate": [1e-3, 1e-4]}
    found = run_sweep(candidates_of({**given, **rates}), str(tmp_path / "sweep"), Editing())
    (second,) = [o for o in found.outcomes if o.candidate.config.learning_rate == 1e-4]
    alone = train(**{**given, "learning_rate": 1e-4}, run=str(tmp_path / "alone"))
    same_run(alone.path, second.run.path)


def test_a_run_of_a_sweep_is_a_run_like_any_other(options, tmp_path):
    folder = tmp_path / "sweep"
    found = sweep(**{**options, "optimizer": ["adam", "sgd"]}, run=str(folder))
    assert sorted(path.name for path in folder.iterdir()) == ["adam", "sgd"]
    assert found.best.evaluate().loss > 0
    assert load_classifier(folder / "sgd").class_names == ("dots", "rings", "stripes")
    described = describe_run(folder / "sgd")
    assert described.summary.state == "done"
    assert described.config["optimizer"] == "sgd"
    resumed = train(resume=True, run=str(folder / "sgd"), epochs=3)
    whole = train(**{**options, "optimizer": "sgd", "epochs": 3}, run=str(tmp_path / "whole"))
    same_run(resumed.path, whole.path)


def test_the_best_comes_first(options, tmp_path):
    found = sweep(**{**options, "learning_rate": [1e-6, 1e-3, 1e-4]}, run=str(tmp_path / "sweep"))
    ranks = [outcome.run.best.rank[:2] for outcome in found.outcomes]
    assert ranks == sorted(ranks, reverse=True)
    assert found.best == found.outcomes[0].run
    result = json.loads(json.dumps(found.as_dict()))
    assert result["best"] == result["candidates"][0]["run"] == str(found.best.path)
    assert {one["differs"]["learning_rate"] for one in result["candidates"]} == {1e-6, 1e-3, 1e-4}


def test_a_candidate_that_diverges_fails_alone(options, tmp_path):
    rates = [DIVERGES, 1e-3]
    progress = Recorder()
    found = sweep(
        **{**options, "learning_rate": rates}, run=str(tmp_path / "sweep"), progress=progress
    )
    done, failed = found.outcomes
    assert not done.failure
    assert "at step" in failed.failure
    assert failed.candidate.config.learning_rate == DIVERGES
    state = RunFiles(failed.run.path).read_state()
    assert state is not None
    assert (state.state, state.reason) == ("failed", failed.failure)
    assert progress.warnings == [f"lr1e38 failed: {failed.failure}"]
    with pytest.raises(TrainingError, match=r"No candidate .*; dense256: The .* at step"):
        sweep(**{**options, "learning_rate": [DIVERGES]}, run=str(tmp_path / "none"))


def too_large_to_train(monkeypatch) -> None:
    """Pretend that the memory does not suffice for a step of `dense256`."""
    original = Steps.train

    def train_step(self, state, totals, inputs):
        if "head/hidden/kernel" in state.trained:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
        return original(self, state, totals, inputs)

    monkeypatch.setattr(Steps, "train", train_step)


def too_large_to_start(monkeypatch) -> None:
    """Pretend that it does not suffice for the optimizer's numbers either."""
    original = Session.start

    def start(config, *others):
        if config.head == "dense256":
            raise ValueError("RESOURCE_EXHAUSTED: Out of memory")
        return original(config, *others)

    monkeypatch.setattr(Session, "start", start)


@pytest.mark.parametrize("too_large", [too_large_to_train, too_large_to_start])
def test_a_candidate_that_the_memory_does_not_suffice_for_fails_alone(
    too_large, options, tmp_path, monkeypatch
):
    too_large(monkeypatch)
    progress = Recorder()
    heads = ["dense256", "linear"]
    found = sweep(**{**options, "head": heads}, run=str(tmp_path / "sweep"), progress=progress)
    done, failed = found.outcomes
    assert [done.candidate.name, failed.candidate.name] == ["linear", "dense256"]
    assert not done.failure
    assert failed.failure.endswith(
        "does not suffice for batches of 8 (RESOURCE_EXHAUSTED: Out of memory)."
    )
    state = RunFiles(failed.run.path).read_state()
    assert state is not None
    assert (state.state, state.reason) == ("failed", failed.failure)
    assert progress.warnings == [f"dense256 failed: {failed.failure}"]
    assert progress.notes[-1].startswith("Less memory is needed by smaller heads, by fewer")
    alone = train(**{**options, "head": "linear"}, run=str(tmp_path / "linear"))
    same_run(alone.path, done.run.path)


def test_a_sweep_for_none_of_which_the_memory_suffices_says_what_may_help(
    options, tmp_path, monkeypatch
):
    given = {**options, "optimizer": ["adam", "sgd"]}
    too_large_to_train(monkeypatch)
    problem = r"No candidate .*; adam: The memory .*\nLess memory .*\nWhat became of each: "
    with pytest.raises(TrainingError, match=problem):
        sweep(**given, run=str(tmp_path / "sweep"))
    too_large_to_start(monkeypatch)
    with pytest.raises(MemoryExhausted, match="sweep with --batch-size 4, or smaller heads"):
        sweep(**given, run=str(tmp_path / "sweep"))


def test_the_memory_may_not_suffice_for_what_is_gone_on_with(options, tmp_path, monkeypatch):
    folder = tmp_path / "sweep"
    given = {**options, "head": ["dense256", "linear"]}
    with pytest.raises(TrainingInterrupted):
        run_sweep(candidates_of(given), str(folder), Progress(), After(2))
    too_large_to_train(monkeypatch)
    found = sweep(**given, run=str(folder))
    assert [bool(outcome.failure) for outcome in found.outcomes] == [False, True]
    monkeypatch.undo()
    again = sweep(**given, run=str(folder))
    assert not any(outcome.failure for outcome in again.outcomes)
    alone = train(**{**options, "head": "dense256"}, run=str(tmp_path / "dense256"))
    same_run(alone.path, folder / "dense256")


def test_changed_frozen_parameters_end_the_sweep(options, tmp_path, monkeypatch):
    changes = itertools.count()
    monkeypatch.setattr(
        loop, "frozen_checksums", lambda frozen: {"backbone/conv1_1/kernel": str(next(changes))}
    )
    with pytest.raises(TrainingError, match="Frozen parameters changed during the training"):
        sweep(**{**options, "optimizer": ["adam", "sgd"]}, run=str(tmp_path / "sweep"))
    assert [path.name for path in (tmp_path / "sweep").iterdir()] == ["adam"]


def test_an_interrupted_sweep_goes_on_and_takes_what_is_complete(options, tmp_path, read):
    folder = tmp_path / "sweep"
    given = {**options, "optimizer": ["adam", "sgd", "rmsprop"]}
    with pytest.raises(TrainingInterrupted, match=r"the same command with --run .*/sweep$"):
        # An epoch has 3 steps and 2 batches of validation: in the second candidate's first epoch.
        run_sweep(candidates_of(given), str(folder), Progress(), After(2 * 5 + 1))
    states = {name: RunFiles(folder / name).read_state() for name in given["optimizer"]}
    assert [state and state.state for state in states.values()] == ["done", "interrupted", None]
    before = (folder / "adam" / "metrics.jsonl").read_text()  # with the times that it took
    found = sweep(**given, run=str(folder))
    assert (folder / "adam" / "metrics.jsonl").read_text() == before
    assert len(found.outcomes) == 3
    for name in ("sgd", "rmsprop"):
        alone = train(**{**options, "optimizer": name}, run=str(tmp_path / name))
        same_run(alone.path, folder / name)
    problem = (
        r"adam was begun otherwise: --batch-size 4 differs from the run's 8. .*folder by --run"
    )
    with pytest.raises(ConfigError, match=problem):
        sweep(**{**given, "batch_size": 4}, run=str(folder))


def test_values_that_are_added_are_trained_beside_those_that_are_there(options, tmp_path):
    given = {**options, "epochs": 1, "train_from": "head", "run": str(tmp_path / "sweep")}
    first = sweep(**{**given, "head": "linear", "learning_rate": [1e-2, 1e-3]})
    before = {path: path.read_text() for path in first.path.glob("*/metrics.jsonl")}
    heads = ["linear", "dense256"]
    found = sweep(**{**given, "head": heads, "learning_rate": [1e-2, 1e-3]})
    names = {outcome.candidate.name for outcome in found.outcomes}
    assert names == {"lr1e-2", "lr1e-3", "dense256-lr1e-2", "dense256-lr1e-3"}
    assert all(path.read_text() == text for path, text in before.items())
    other = sweep(**{**given, "head": "dense256", "learning_rate": [1e-3, 1e-4]})
    names = {outcome.candidate.name for outcome in other.outcomes}
    assert names == {"dense256-lr1e-3", "lr1e-4"}
    again = sweep(**{**given, "head": "linear", "learning_rate": [1e-3, 1e-4]})
    names = {outcome.candidate.name for outcome in again.outcomes}
    assert names == {"lr1e-3", "linear-rmsprop-lr1e-4-wd0-ls0"}
    (first.path / "set aside").mkdir()
    (first.path / "lr1e-3").rename(first.path / "set aside" / "no candidate")
    anew = sweep(**{**given, "head": "linear", "learning_rate": [1e-2, 1e-3]})
    assert {outcome.candidate.name for outcome in anew.outcomes} == {"lr1e-2", "lr1e-3"}


def test_early_stopping_is_not_left_out_unnoticed(options, tmp_path):
    given = {**options, "epochs": 1, "run": str(tmp_path / "sweep")}
    sweep(**{**given, "early_stop": 2})
    with pytest.raises(ConfigError, match=r"--early-stop is not given, but the run's is 2. Leave"):
        sweep(**given)


@pytest.mark.parametrize(
    ("others", "why"),
    [
        ({"features": "off"}, "--features off"),
        ({"augment": ("keras",)}, "keras changes the pictures anew"),
        ({"augment": ("mixup",)}, "mixup mixes the pictures"),
    ],
)
def test_what_cannot_be_kept_is_trained_all_the_same(others, why, options, tmp_path):
    given = {**options, **others, "epochs": 1, "train_from": "head"}
    progress = Recorder()
    found = sweep(
        **{**given, "head": ["linear", "dense256"]}, run=str(tmp_path / "s"), progress=progress
    )
    (note,) = (note for note in progress.notes if note.startswith("Features are not kept"))
    assert why in note
    assert any("computes its own features" in note for note in progress.notes)
    for outcome in found.outcomes:
        name = outcome.candidate.name
        alone = train(**{**given, "head": name}, run=str(tmp_path / name))
        same_run(alone.path, outcome.run.path)


def test_each_candidate_is_shown_as_one_piece_of_work(options, tmp_path, capsys):
    """Where epochs are short: two lines for each, what starts and what it gave."""
    rates = [1e-3, 1e-4]
    sweep(
        **{**options, "learning_rate": rates}, run=str(tmp_path / "sweep"), progress=LineProgress()
    )
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("lr")]
    assert [line.split(":")[0] for line in lines] == [
        *("lr1e-3 (1 of 2)", "lr1e-3", "lr1e-4 (2 of 2)", "lr1e-4")
    ]
    assert lines[0].endswith(": 6 steps")
    assert lines[1].startswith("lr1e-3: best epoch")


def test_the_command_ranks_candidates_and_names_the_best(options, tmp_path):
    words = flags({**options, "head": ("linear", "dense256"), "run": tmp_path / "sweep"})
    words[words.index("--learning-rate") + 1] = "1e-3,1e38"
    words += ["--train-from", "head"]
    done = CliRunner().invoke(app, ["sweep", *words])
    assert done.exit_code == 0, done.stderr
    header, *rows = done.stdout.splitlines()
    for column in ("rank", "run", "head", "learning rate", "best epoch", "accuracy", "loss"):
        assert column in header
    assert [row.split()[0] for row in rows[:4]] == ["1", "2", "failed", "failed"]
    assert rows[-1].startswith(f"Best run: {tmp_path / 'sweep'}/")
    assert f"vgg-jax evaluate {tmp_path / 'sweep'}/" in rows[-1]
    again = CliRunner().invoke(app, ["sweep", *words, "--json"])
    assert len(json.loads(again.stdout)["candidates"]) == 4


def test_wrong_options_are_told_before_jax_is_imported():
    code = (
        "import sys\nfrom vgg_jax.cli.app import app\n"
        "try: app(['sweep', '--learning-rate', '1e-3,much'])\n"
        "except SystemExit as end: code = end.code\n"
        "sys.exit('jax' in sys.modules and 'JAX was imported' or code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("Error: --learning-rate is '1e-3,much', but must be a number")
