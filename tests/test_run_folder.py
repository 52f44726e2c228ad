"""The folder of a run."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from vgg_jax import train
from vgg_jax.config import TrainConfig
from vgg_jax.errors import RunError
from vgg_jax.training.run_folder import RunFolder, claim_run_path


@pytest.fixture
def copy(run, tmp_path) -> Path:
    return Path(shutil.copytree(run.path, tmp_path / "copy"))


def test_a_run_holds_what_made_it(run, options):
    folder = RunFolder(run.path)
    config, record = folder.read_config(), folder.read_record()
    for name in ("data", "weights", "epochs", "batch_size", "image_size", "learning_rate"):
        assert getattr(config, name) == options[name], name
    assert config == config.resolved()
    assert record.class_names == ("dots", "rings", "stripes")
    assert record.examples == {"train": 21, "validation": 9, "test": 9}
    assert {"vgg-jax", "jax", "flax", "optax", "orbax-checkpoint"} <= record.packages.keys()
    assert record.plugins[0] == {
        "kind": "head",
        "name": "dense256",
        "package": "vgg-jax",
        "version": record.packages["vgg-jax"],
        "contract": "1",
        "options": {},
    }


def test_metrics_are_one_object_an_epoch(run):
    lines = (run.path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2]
    assert set(json.loads(lines[0])) == {
        *("epoch", "step", "seconds", "images_per_second", "loss", "accuracy"),
        *("validation_loss", "validation_accuracy", "learning_rate", "skipped_steps"),
    }


def test_metrics_are_made_to_be_what_the_checkpoint_holds(run, copy):
    with (copy / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 3, "lo')
    assert RunFolder(copy).read_metrics() == run.history  # while another process writes the line
    RunFolder(copy).write_metrics(run.history[:1])
    assert (copy / "metrics.jsonl").read_text().count("\n") == 1
    assert RunFolder(copy).read_metrics() == run.history[:1]


def test_a_run_of_another_version_is_refused(copy):
    values = json.loads((copy / "run.json").read_text())
    values["format_version"] = 99
    values["packages"]["vgg-jax"] = "9.9"
    (copy / "run.json").write_text(json.dumps(values))
    with pytest.raises(
        RunError, match=r"format version 99 \(made by vgg-jax 9.9\).*reads version 1"
    ):
        RunFolder(copy).read_record()


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"format_version": 1}'])
def test_a_spoilt_record_is_refused(copy, text):
    (copy / "run.json").write_text(text)
    with pytest.raises(RunError, match=r"run\.json|format version"):
        RunFolder(copy).read_record()


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(RunError, match="does not exist"):
        RunFolder(tmp_path / "none").read_record()
    with pytest.raises(RunError, match=r"has no run\.json"):
        RunFolder(tmp_path).read_record()


def test_an_existing_run_is_in_the_way(run, tmp_path):
    with pytest.raises(RunError, match=r"exists\. Go on with it .*--resume.*another --run"):
        RunFolder(run.path).refuse_existing()
    RunFolder(tmp_path).refuse_existing()  # an empty folder is not


def test_the_first_free_name_is_taken(tmp_path):
    config = TrainConfig(data="../my photos/", head="linear")
    names = [claim_run_path(config, tmp_path).name for _ in range(2)]
    assert names == ["my-photos-linear-1", "my-photos-linear-2"]
    assert claim_run_path(TrainConfig(data="tfds:mnist/a"), tmp_path).name == "a-dense256-1"
    here = dataclasses.replace(config, data=".")
    assert claim_run_path(here, tmp_path).name == f"{Path.cwd().name}-linear-1"


@pytest.mark.parametrize("file", ["config.toml", "plugins/mine.py", "state.json", "run.json"])
def test_a_folder_with_files_of_the_users_own_is_in_the_way_and_stays(file, options, tmp_path):
    path = tmp_path / "mine" / file
    path.parent.mkdir(parents=True)
    path.write_text("precious")
    with pytest.raises(RunError, match="exists"):
        train(**options, run=str(tmp_path / "mine"))
    assert path.read_text() == "precious"


@pytest.mark.parametrize("change", ["metrics", "link", "notes", "damaged"])
def test_a_run_that_may_hold_something_is_no_empty_one(change, run, copy, tmp_path):
    shutil.rmtree(copy / "checkpoints")
    if change == "link":  # to a disk that is not there now
        (copy / "checkpoints").symlink_to(tmp_path / "gone")
    if change != "metrics":
        (copy / "metrics.jsonl").write_text("")
    if change == "notes":
        (copy / "notes.txt").write_text("mine")
    if change == "damaged":
        (copy / "checkpoints" / "damaged" / "epoch_1.1").mkdir(parents=True)
    assert not RunFolder(copy).holds_nothing()


def test_a_run_that_ended_before_its_first_checkpoint_holds_nothing(copy):
    shutil.rmtree(copy / "checkpoints")
    (copy / "metrics.jsonl").write_text("")
    assert RunFolder(copy).holds_nothing()


def test_the_command_that_goes_on_can_be_pasted(tmp_path):
    assert RunFolder(tmp_path / "my run").resume_command("--override") == (
        f"vgg-jax train --run '{tmp_path}/my run' --resume --override"
    )
