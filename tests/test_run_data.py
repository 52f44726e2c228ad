"""The data of a run: changed ones are noticed, moved ones are taken."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from training_runs import Recorder, latest

from vgg_jax import train
from vgg_jax.data.examples import Split
from vgg_jax.errors import ConfigError, DataError
from vgg_jax.training.run_files import RunFiles
from vgg_jax.workflows.evaluate import evaluate


@pytest.fixture(scope="module")
def first_epoch(options, tmp_path_factory) -> Path:
    """A run of one epoch, not to be changed."""
    return train(**{**options, "epochs": 1}, run=str(tmp_path_factory.mktemp("first") / "run")).path


@pytest.fixture
def movable(first_epoch, photos, tmp_path) -> tuple[Path, Path]:
    """A copy of it, and photos at a place of their own, as if it had been trained on these."""
    path = shutil.copytree(first_epoch, tmp_path / "run")
    copy = shutil.copytree(photos, tmp_path / "photos")
    RunFiles(path).change_config(data=str(copy))
    return path, copy


def change_picture(photos: Path, split: str) -> None:
    """Replace a picture by another one of its class, and keep all numbers."""
    shutil.copy(photos / split / "rings" / "1.png", photos / split / "rings" / "2.png")


def without_digests(path: Path) -> None:
    """Make the record of a run what it was before there were digests."""
    record = json.loads((path / "run.json").read_text())
    del record["data_digests"]
    (path / "run.json").write_text(json.dumps(record))


@pytest.mark.parametrize("split", ["train", "validation"])
def test_other_pictures_of_equal_number_are_noticed(movable, split):
    path, photos = movable
    change_picture(photos, split)
    said = (
        rf"not those of the run: {split} has \d+ pictures as before, but others.*--override --data"
    )
    with pytest.raises(DataError, match=said):
        train(run=str(path), resume=True, epochs=2)
    with pytest.raises(DataError, match=said):
        train(run=str(path), resume=True, epochs=2, data=str(photos))
    before = json.loads((path / "run.json").read_text())
    train(run=str(path), resume=True, epochs=2, data=str(photos), override=True)
    after = json.loads((path / "run.json").read_text())
    changed = {
        name
        for name, digest in after["data_digests"].items()
        if digest != before["data_digests"][name]
    }
    assert changed == {split}
    (entry,) = after["overrides"]
    assert entry["data_digests"] == {
        "before": before["data_digests"],
        "after": after["data_digests"],
    }
    assert len(train(run=str(path), resume=True, epochs=3).history) == 3  # these are the run's now


def test_renamed_pictures_are_in_another_order(movable):
    path, photos = movable
    (photos / "train" / "rings" / "0.png").rename(photos / "train" / "rings" / "9.png")
    with pytest.raises(DataError, match="or in another order"):
        train(run=str(path), resume=True, epochs=2)


def test_other_test_pictures_change_no_training(movable):
    path, photos = movable
    change_picture(photos, "test")
    recorder = Recorder()
    train(run=str(path), resume=True, epochs=2, progress=recorder)
    assert any(note.startswith("Test has 9 pictures as before, but") for note in recorder.notes)
    assert json.loads((path / "run.json").read_text())["overrides"] == []


def test_pictures_that_moved_are_named_and_the_training_ends_with_the_same_bytes(
    movable, run, tmp_path
):
    path, photos = movable
    moved = photos.rename(tmp_path / "moved")
    with pytest.raises(DataError, match="No such folder") as gone:
        train(run=str(path), resume=True, epochs=2)
    assert gone.value.__notes__ == [
        f"If the pictures were moved to NEW: vgg-jax train --run {path} --resume --data NEW"
    ]
    recorder = Recorder()
    train(run=str(path), resume=True, epochs=2, data=str(moved), progress=recorder)
    assert any(f"data of the run; it reads them in {moved}" in note for note in recorder.notes)
    assert json.loads((path / "run.json").read_text())["overrides"] == []
    expected = latest(run.path)
    for name, value in latest(path).items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)
    assert evaluate(path).examples == 9  # the run knows the new place


def test_a_complete_run_is_told_that_its_pictures_moved(movable, tmp_path):
    path, photos = movable
    moved = photos.rename(tmp_path / "moved")
    with pytest.raises(DataError, match="No such folder") as gone:
        evaluate(path)
    assert "--resume --data NEW" in gone.value.__notes__[0]
    train(run=str(path), resume=True, data=str(moved))
    assert evaluate(path).examples == 9
    change_picture(moved, "train")
    shutil.copytree(moved, tmp_path / "others")
    with pytest.raises(DataError, match="not those of the run: train"):
        train(run=str(path), resume=True, data=str(tmp_path / "others"))


def test_a_run_without_digests_is_compared_by_its_numbers(movable, photos, tmp_path):
    path, copy = movable
    without_digests(path)
    change_picture(copy, "train")
    with pytest.raises(ConfigError, match=r"--data .*--override"):
        train(run=str(path), resume=True, epochs=2, data=str(photos))
    assert len(train(run=str(path), resume=True, epochs=2).history) == 2
    (copy / "test" / "rings" / "2.png").unlink()
    with pytest.raises(DataError, match="test had 9 pictures and has 8"):
        train(run=str(path), resume=True, epochs=3)


def test_an_override_of_options_leaves_the_record_of_the_data(movable, tmp_path):
    path, photos = movable
    before = json.loads((path / "run.json").read_text())
    moved = photos.rename(tmp_path / "moved")
    options = {"data": str(moved), "batch_size": 4}
    train(run=str(path), resume=True, epochs=2, override=True, **options)
    after = json.loads((path / "run.json").read_text())
    (entry,) = after["overrides"]
    assert entry["options"] == {"batch_size": {"before": 8, "after": 4}}
    assert "data_digests" not in entry
    assert after["data_digests"] == before["data_digests"]


def test_a_picture_that_is_replaced_while_trained_on_ends_the_training(options, photos, tmp_path):
    copy = Path(shutil.copytree(photos, tmp_path / "photos"))

    class Replacing(Recorder):
        def epoch_done(self, metrics, best):
            change_picture(copy, "train")

    path = tmp_path / "run"
    given = {**options, "data": str(copy), "epochs": 3, "features": "off", "on_device": "off"}
    with pytest.raises(DataError, match=r"rings/2\.png: was changed while it was in use"):
        train(**given, run=str(path), progress=Replacing())
    shutil.copy(photos / "train" / "rings" / "2.png", copy / "train" / "rings" / "2.png")
    assert len(train(run=str(path), resume=True).history) == 3


def test_other_pictures_than_the_runs_are_told_of(movable, photos):
    path, copy = movable
    change_picture(copy, "test")
    (copy / "validation" / "rings" / "0.png").unlink()
    splits: dict[Split, str] = {
        "test": "test has 9 pictures as before, but others",
        "validation": "validation had 9 pictures and has 8",
    }
    for split, said in splits.items():
        recorder = Recorder()
        evaluate(path, split=split, progress=recorder)
        (warning,) = recorder.warnings
        assert f"The data in {copy} are not those of the run: {said}" in warning
    recorder = Recorder()
    evaluate(path, split="train", progress=recorder)
    evaluate(path, data=str(photos / "test"), progress=recorder)  # others on purpose
    assert recorder.warnings == []
