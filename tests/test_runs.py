"""`vgg-jax runs`: what became of runs, what nothing needs, and runs that are moved."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from training_runs import Recorder, spoil, stop_after
from typer.testing import CliRunner

from vgg_jax import load_classifier, train
from vgg_jax.cli.app import app
from vgg_jax.errors import RunError, TrainingError
from vgg_jax.training.run_lock import RunLock
from vgg_jax.workflows.runs import describe_run, list_runs, summarise_run
from vgg_jax.workflows.tidy import clean_runs, pack_run


@pytest.fixture(scope="module")
def many(options, run, tmp_path_factory) -> Path:
    """A folder with runs in all states, not to be changed."""
    folder = tmp_path_factory.mktemp("many")
    shutil.copytree(run.path, folder / "done")
    shutil.copytree(run.path, folder / "killed")
    (folder / "killed" / "state.json").write_text('{"state": "running", "reason": ""}')
    stop_after(6, options, folder / "stopped")
    with pytest.raises(TrainingError):
        train(**{**options, "learning_rate": 1e30}, run=str(folder / "failed"))
    shutil.copytree(run.path, folder / "damaged")
    (folder / "damaged" / "run.json").write_text("{")
    shutil.copytree(run.path, folder / "old")
    (folder / "old" / "state.json").unlink()
    (folder / "no run").mkdir()
    return folder


@pytest.fixture
def copy(many, tmp_path) -> Path:
    return Path(shutil.copytree(many, tmp_path / "runs"))


def test_every_state_is_told(many):
    found = {run.path.name: run for run in list_runs(many)}
    assert {name: run.state for name, run in found.items()} == {
        "done": "done",
        "killed": "interrupted",
        "stopped": "interrupted",
        "failed": "failed",
        "damaged": "damaged",
        "old": "done",
    }
    assert "killed" in found["killed"].detail
    assert "became" in found["failed"].detail
    assert "run.json" in found["damaged"].detail
    done = found["done"]
    assert (done.epochs, done.epochs_wanted) == (2, 2)
    assert done.best == max(describe_run(done.path).history, key=lambda metrics: metrics.rank)
    files = [path for path in done.path.rglob("*") if path.is_file()]
    assert done.bytes == sum(path.stat().st_size for path in files)
    assert 0 <= done.age_seconds < 3600
    ages = [run.age_seconds for run in list_runs(many)]
    assert ages == sorted(ages)


def test_candidates_of_sweeps_are_listed_and_cleaned(copy):
    (copy / "photos-sweep-1").mkdir()
    for name in ("failed", "damaged"):
        (copy / name).rename(copy / "photos-sweep-1" / name)
    found = {str(run.path.relative_to(copy)): run.state for run in list_runs(copy)}
    assert found["photos-sweep-1/failed"] == "failed"
    assert found["photos-sweep-1/damaged"] == "damaged"
    assert len(found) == 6
    assert copy / "photos-sweep-1" / "failed" in {one.path for one in clean_runs(copy)}


def test_a_run_whose_lock_is_held_is_running(copy):
    lock = RunLock(copy / "killed")
    lock.acquire(pytest.fail)
    summary = summarise_run(copy / "killed")
    lock.release()
    assert summary.state == "running"
    assert f"process {os.getpid()} on" in summary.detail
    assert summarise_run(copy / "killed").state == "interrupted"


def test_the_table_names_each_run(many):
    done = CliRunner().invoke(app, ["runs", str(many)])
    assert done.exit_code == 0, done.output
    header, *rows = done.stdout.splitlines()
    assert header.split() == ["run", "state", "epoch", "best", "accuracy", "loss", "size", "age"]
    assert len(rows) == 6
    row = next(row for row in rows if "/stopped" in row)
    assert re.search(
        r"/stopped +interrupted +1/2 +1 +0\.\d{3} +\d+\.\d{4} +[\d.]+ .B +\d* ?\w+$", row
    )
    listed = CliRunner().invoke(app, ["runs", "list", str(many), "--json"])
    assert {run["state"] for run in json.loads(listed.stdout)["runs"]} == {
        *("done", "interrupted", "failed", "damaged")
    }


def test_one_run_is_a_list_too_and_no_folder_is_an_error(many, tmp_path):
    assert [run.path for run in list_runs(many / "done")] == [many / "done"]
    done = CliRunner().invoke(app, ["runs", str(tmp_path / "none")])
    assert done.exit_code == 1
    assert "There is no folder" in done.stderr


def test_show_tells_how_to_go_on(many):
    done = CliRunner().invoke(app, ["runs", "show", str(many / "stopped")])
    assert done.exit_code == 0, done.output
    assert "interrupted" in done.stdout
    assert "batch_size = 8" in done.stdout
    assert re.search(
        r"examples = 21 train \(\w{12}\), 9 validation \(\w{12}\), 9 test", done.stdout
    )
    assert "unfinished/step_4" in done.stdout
    assert f"vgg-jax train --run {many / 'stopped'} --resume" in done.stdout
    assert "--resume" not in CliRunner().invoke(app, ["runs", "show", str(many / "done")]).stdout
    as_json = CliRunner().invoke(app, ["runs", "show", str(many / "done"), "--json"])
    assert [metrics["epoch"] for metrics in json.loads(as_json.stdout)["history"]] == [1, 2]


def test_damaged_metrics_are_no_traceback(copy):
    (copy / "done" / "metrics.jsonl").write_text("{\n")
    done = CliRunner().invoke(app, ["runs", "show", str(copy / "done")])
    assert done.exit_code == 1
    assert "metrics.jsonl cannot be read" in done.stderr
    assert summarise_run(copy / "done").state == "damaged"


def test_listing_imports_no_jax(many):
    code = f"""
import sys
from vgg_jax.cli.app import app
app(["runs", {str(many)!r}], standalone_mode=False)
assert not {{"jax", "flax", "orbax"}} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)


def test_cleaning_is_dry_until_told_otherwise(copy):
    spoil(copy / "stopped" / "checkpoints" / "epoch_1")
    train(run=str(copy / "stopped"), resume=True)
    (copy / "killed" / "checkpoints" / "epoch_3.partial").mkdir()
    before = sorted(copy.rglob("*"))
    found = {one.path.relative_to(copy): one.why for one in clean_runs(copy)}
    assert found == {
        Path("failed"): "run without any checkpoint",
        Path("stopped/checkpoints/damaged/epoch_1.1"): "damaged checkpoint",
        Path("killed/checkpoints/epoch_3.partial"): "half written checkpoint",
    }
    assert sorted(copy.rglob("*")) == before
    done = CliRunner().invoke(app, ["runs", "clean", str(copy), "--delete"])
    assert done.exit_code == 0, done.output
    assert len(done.stdout.splitlines()) == 3
    for path in found:
        assert not (copy / path).exists()
    for name in ("done", "killed", "stopped", "damaged", "old"):
        assert (copy / name / "checkpoints" / "epoch_2").is_dir(), name
    assert clean_runs(copy) == []


def test_cleaning_leaves_what_is_at_work_and_what_is_no_run_s(copy):
    (copy / "failed" / "notes.txt").write_text("mine")
    lock = RunLock(copy / "killed")
    lock.acquire(pytest.fail)
    (copy / "killed" / "checkpoints" / "epoch_3.partial").mkdir()
    found = clean_runs(copy, delete=True)
    lock.release()
    assert found == []
    assert (copy / "killed" / "checkpoints" / "epoch_3.partial").is_dir()


def test_a_packed_run_can_be_moved_anywhere(options, weights, tmp_path, monkeypatch):
    monkeypatch.setenv("VGG_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    mine = shutil.copytree(weights, tmp_path / "mine")
    train(**{**options, "weights": str(mine), "epochs": 1}, run="run")
    done = CliRunner().invoke(app, ["runs", "pack", "run"])
    assert done.exit_code == 0, done.output
    assert done.stdout == "run/backbone\n"
    shutil.rmtree(mine)
    shutil.move(tmp_path / "run", tmp_path / "elsewhere")
    assert load_classifier("elsewhere").class_names == ("dots", "rings", "stripes")
    assert len(train(run="elsewhere", resume=True, epochs=2).history) == 2
    recorder = Recorder()
    pack_run("elsewhere", progress=recorder)
    assert "already holds" in recorder.notes[-1]


def test_a_damaged_backbone_in_a_run_is_replaced(options, weights, tmp_path):
    train(**{**options, "epochs": 1}, run=str(tmp_path / "run"))
    backbone = pack_run(tmp_path / "run")
    spoil(backbone)
    assert load_classifier(tmp_path / "run").class_names  # from where the training found it
    pack_run(tmp_path / "run")
    assert load_classifier(tmp_path / "run", weights=str(backbone)).class_names


def test_weights_made_from_a_seed_need_no_packing(options, tmp_path):
    random = {**options, "weights": "random:0:0.0625", "epochs": 1}
    train(**random, run=str(tmp_path / "run"))
    with pytest.raises(RunError, match="made from their seed"):
        pack_run(tmp_path / "run")


def test_one_odd_run_spoils_no_list(copy):
    (copy / "done" / "lock").mkdir()
    (copy / "old" / "config.toml").unlink()
    (copy / "old" / "config.toml").mkdir()
    (copy / "loop").symlink_to(copy / "loop")
    states = {run.path.name: run.state for run in list_runs(copy)}
    assert states["done"] == "done"
    assert states["old"] == "damaged"
    assert states["killed"] == "interrupted"


def test_a_folder_that_is_closed_to_us_hides_no_run(copy, monkeypatch):
    (copy / "closed").mkdir()
    original = Path.iterdir

    def closed(folder):
        if folder.name == "closed":
            raise PermissionError(13, "Permission denied", str(folder))
        return original(folder)

    monkeypatch.setattr(Path, "iterdir", closed)  # which root would not meet
    assert len(list_runs(copy)) == 6


def test_cleaning_passes_over_a_run_that_is_taken_meanwhile(copy, monkeypatch):
    other = shutil.copytree(copy / "failed", copy / "failed too")
    listed = list_runs(copy)
    monkeypatch.setattr("vgg_jax.workflows.tidy.list_runs", lambda folder: listed)
    lock = RunLock(other)
    lock.acquire(pytest.fail)
    recorder = Recorder()
    found = clean_runs(copy, delete=True, progress=recorder)
    lock.release()
    assert [one.path.name for one in found] == ["failed"]
    assert any("failed too is left as it is" in note for note in recorder.notes)
    assert other.is_dir()
