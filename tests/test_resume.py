"""A training goes on where it was saved, with the options that it had unless told otherwise."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from training_runs import Recorder, latest, stop_after

from vgg_jax import load_classifier, train
from vgg_jax.errors import ConfigError, DataError, RunError, TrainingError, WeightsError
from vgg_jax.workflows.convert import convert_weights
from vgg_jax.workflows.runs import summarise_run

DIM = """
import dataclasses
import jax
from vgg_jax.api import PixelAugmentation

@dataclasses.dataclass(frozen=True, kw_only=True)
class Dim(PixelAugmentation):
    strength: float = 0.5

    def apply(self, key, image):
        return image * (1 - self.strength * jax.random.uniform(key))
"""


def test_epochs_that_were_not_saved_are_told(options, run, tmp_path):
    """As after a process was killed."""
    path = shutil.copytree(run.path, tmp_path / "run")
    shutil.rmtree(path / "checkpoints" / "epoch_2")
    progress = Recorder()
    resumed = train(run=str(path), resume=True, progress=progress)
    text = f"Going on with {path} after epoch 1. Epochs that were not saved, and are repeated: 1."
    assert text in progress.notes
    assert [metrics.epoch for metrics in resumed.history] == [1, 2]


@pytest.mark.parametrize("augment", [(), ("keras", "brightness:low=0.5")])
def test_a_resumed_run_ends_with_the_bytes_of_an_uninterrupted_one(options, tmp_path, augment):
    options = {**options, "augment": augment, "optimizer": "adam", "weight_decay": 0.01}
    whole = train(**{**options, "epochs": 3}, run=str(tmp_path / "whole"))
    part = train(**{**options, "epochs": 1}, run=str(tmp_path / "part"))
    resumed = train(run=str(part.path), resume=True, epochs=3)
    expected, given = latest(whole.path), latest(resumed.path)
    assert expected.keys() == given.keys()
    for path, value in expected.items():
        np.testing.assert_array_equal(given[path], value, err_msg=path)
    timeless = [
        [
            (m.epoch, m.step, m.loss, m.accuracy, m.validation_loss, m.validation_accuracy)
            for m in run.history
        ]
        for run in (whole, resumed)
    ]
    assert timeless[0] == timeless[1]


def test_resuming_refuses_what_would_change_the_result(run):
    with pytest.raises(ConfigError, match=r"--seed 5 differs from the run's 0"):
        train(run=str(run.path), resume=True, seed=5)
    with pytest.raises(ConfigError, match=r"--resume needs --run"):
        train(resume=True)


def test_resuming_a_complete_run_says_so_and_changes_nothing(run):
    recorder = Recorder()
    again = train(run=str(run.path), resume=True, progress=recorder, head="dense256")
    assert again.history == run.history
    assert "complete: 2 epochs" in recorder.notes[-1]


def test_a_complete_run_that_was_killed_before_it_said_so_is_done_after_resuming(run, tmp_path):
    copy = Path(shutil.copytree(run.path, tmp_path / "copy"))
    (copy / "state.json").write_text('{"state": "running", "reason": ""}')
    assert summarise_run(copy).state == "interrupted"
    train(run=str(copy), resume=True)
    assert summarise_run(copy).state == "done"


@pytest.mark.parametrize("left", ["", '{"epoch": 1, "lo', "whole"])
def test_a_run_without_a_completed_epoch_starts_with_the_first(run, tmp_path, left):
    copy = tmp_path / "copy"
    shutil.copytree(run.path, copy, ignore=shutil.ignore_patterns("epoch_*"))
    if left != "whole":
        (copy / "metrics.jsonl").write_text(left)
    resumed = train(run=str(copy), resume=True)
    assert [m.loss for m in resumed.history] == [m.loss for m in run.history]


def test_resuming_notices_changed_data(options, photos, tmp_path):
    copy = tmp_path / "photos"
    shutil.copytree(photos, copy)
    path = tmp_path / "run"
    train(**{**options, "data": str(copy), "epochs": 1}, run=str(path))
    (copy / "train" / "rings" / "3.png").unlink()
    with pytest.raises(DataError, match="not those of the run: train had 21 pictures and has 20"):
        train(run=str(path), resume=True, epochs=2)


def test_resuming_finds_moved_weights(options, weights, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(weights, moved)
    path = tmp_path / "run"
    train(**{**options, "weights": str(moved), "epochs": 1}, run=str(path))
    moved.rename(tmp_path / "elsewhere")
    with pytest.raises(WeightsError, match="--weights"):
        train(run=str(path), resume=True, epochs=2)
    resumed = train(run=str(path), resume=True, epochs=2, weights=str(tmp_path / "elsewhere"))
    assert len(resumed.history) == 2
    assert resumed.evaluate().examples == 9  # the run knows the new place
    with pytest.raises(WeightsError, match="not those"):
        train(run=str(path), resume=True, epochs=3, weights="random:0:0.0625")


def test_what_would_change_the_result_is_named_and_goes_on_with_override_only(
    options, run, tmp_path
):
    copy = tmp_path / "copy"
    shutil.copytree(run.path, copy)
    changes = {"learning_rate": 1e-4, "batch_size": 5, "epochs": 3}
    with pytest.raises(ConfigError) as refusal:
        train(run=str(copy), resume=True, **changes)
    for text in ("--batch-size 5 differs from the run's 8", "--learning-rate", "--override"):
        assert text in str(refusal.value)
    assert "--epochs" not in str(refusal.value)
    resumed = train(run=str(copy), resume=True, override=True, **changes)
    last = resumed.history[-1]
    assert last.learning_rate == 1e-4
    assert last.step == 6 + 5  # 21 pictures in batches of 5 instead of 8
    (entry,) = json.loads((copy / "run.json").read_text())["overrides"]
    assert (entry["epoch"], entry["step"]) == (3, 6)
    assert entry["options"]["batch_size"] == {"before": 8, "after": 5}
    # and from here on these are the run's
    assert len(train(run=str(copy), resume=True, epochs=4, batch_size=5).history) == 4


@pytest.mark.parametrize(
    "change", [{"head": "linear"}, {"train_from": "conv4_1"}, {"optimizer": "adam"}, {"seed": 1}]
)
def test_what_the_checkpoints_do_not_fit_is_refused_in_any_case(change, run):
    with pytest.raises(ConfigError, match="does not fit another"):
        train(run=str(run.path), resume=True, override=True, **change)


def test_another_image_size_does_not_fit_a_head_of_flattened_features(run, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run.path, copy)
    with pytest.raises(RunError, match=r"head/hidden/kernel.*--image-size"):
        train(run=str(copy), resume=True, override=True, image_size=64, epochs=3)
    assert len(train(run=str(copy), resume=True, epochs=3).history) == 3  # nothing was spoilt


def test_changed_data_are_taken_with_override(options, photos, tmp_path):
    copy = tmp_path / "photos"
    shutil.copytree(photos, copy)
    path = tmp_path / "run"
    train(**{**options, "data": str(copy), "epochs": 1}, run=str(path))
    (copy / "train" / "rings" / "3.png").unlink()
    with pytest.raises(DataError, match="--override --data"):
        train(run=str(path), resume=True, epochs=2)
    train(run=str(path), resume=True, epochs=2, override=True, data=str(copy))
    assert json.loads((path / "run.json").read_text())["examples"]["train"] == 20
    assert len(train(run=str(path), resume=True, epochs=3).history) == 3


def test_the_rest_of_an_epoch_goes_on_in_batches_of_another_size(options, tmp_path):
    """Of 21 pictures 8 are trained on when it stops; 13 are left, in batches of 5."""
    path = tmp_path / "run"
    stopped = stop_after(1, {**options, "epochs": 1}, path)
    assert "after step 1" in stopped
    resumed = train(run=str(path), resume=True, override=True, batch_size=5)
    assert resumed.history[0].step == 1 + 3


def test_a_run_without_any_checkpoint_may_be_started_over(options, tmp_path):
    path = tmp_path / "run"
    bad = {**options, "learning_rate": 1e30}
    with pytest.raises(TrainingError):
        train(**bad, run=str(path))
    assert json.loads((path / "state.json").read_text())["state"] == "failed"
    run = train(**options, run=str(path))
    assert len(run.history) == 2
    with pytest.raises(RunError, match="exists"):
        train(**options, run=str(path))


def test_moved_weights_are_found_by_their_checksum(options, weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(weights, tmp_path / "first")
    path = tmp_path / "run"
    train(**{**options, "weights": str(tmp_path / "first"), "epochs": 1}, run=str(path))
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "notes.txt").write_text("not weights")
    (tmp_path / "first").rename(tmp_path / "weights" / "renamed")
    recorder = Recorder()
    resumed = train(run=str(path), resume=True, epochs=2, progress=recorder)
    assert len(resumed.history) == 2
    assert any("weights/renamed are the same" in note for note in recorder.notes)
    assert load_classifier(path).class_names == ("dots", "rings", "stripes")
    cache = Path(os.environ["VGG_JAX_CACHE"]) / "weights" / "cached"
    cache.parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "weights" / "renamed").rename(cache)
    try:
        assert resumed.evaluate().examples == 9
    finally:
        cache.rename(tmp_path / "gone")
    digest = json.loads((path / "run.json").read_text())["weights_digest"]
    with pytest.raises(WeightsError, match=rf"(?s){digest}.*runs pack"):
        load_classifier(path)


def test_weights_that_were_replaced_by_others_are_not_used(options, weights, tmp_path):
    shutil.copytree(weights, tmp_path / "mine")
    path = tmp_path / "run"
    train(**{**options, "weights": str(tmp_path / "mine"), "epochs": 1}, run=str(path))
    shutil.rmtree(tmp_path / "mine")
    convert_weights("demo", tmp_path / "mine")
    with pytest.raises(WeightsError, match=r"are others \(digest"):
        load_classifier(path)


def test_reader_threads_change_nothing(options, run, tmp_path):
    other = train(**options, run=str(tmp_path / "one"), reader_threads=1)
    expected = latest(run.path)
    for path, value in latest(other.path).items():
        np.testing.assert_array_equal(value, expected[path], err_msg=path)


def test_other_augmentations_are_taken_with_override_and_kept(options, tmp_path):
    path = tmp_path / "run"
    train(**{**options, "epochs": 1, "augment": ("keras",)}, run=str(path))
    (tmp_path / "dim.py").write_text(DIM)
    other = ("horizontal-flip", f"{tmp_path / 'dim.py'}#Dim:strength=0.25")
    with pytest.raises(ConfigError, match=r"--augment .*--override"):
        train(run=str(path), resume=True, augment=other, epochs=2)
    recorder = Recorder()
    train(run=str(path), resume=True, override=True, augment=other, epochs=2, progress=recorder)
    assert any("Running the code of the augmentation Dim" in note for note in recorder.notes)
    (tmp_path / "dim.py").unlink()  # the run has its own copy
    resumed = train(run=str(path), resume=True, epochs=3, allow_local_code=True)
    assert len(resumed.history) == 3
    recorded = json.loads((path / "run.json").read_text())["plugins"]
    assert [plugin["name"] for plugin in recorded] == ["dense256", "horizontal-flip", "Dim"]


def test_options_that_come_too_late_are_refused(run, options, tmp_path):
    copy = str(shutil.copytree(run.path, tmp_path / "copy"))
    with pytest.raises(
        ConfigError, match="completed 2 of 2 epochs; the options given change nothing"
    ):
        train(run=copy, resume=True, override=True, batch_size=4)
    with pytest.raises(ConfigError, match="completed 2 of 2 epochs"):
        train(run=copy, resume=True, epochs=1)
    with pytest.raises(ConfigError, match="on resume"):
        train(**options, run=str(tmp_path / "new"), override=True)


def test_a_complete_run_that_failed_is_not_made_good_by_resuming(run, tmp_path):
    copy = Path(shutil.copytree(run.path, tmp_path / "copy"))
    (copy / "state.json").write_text('{"state": "failed", "reason": "Frozen parameters changed."}')
    with pytest.raises(TrainingError, match=r"complete, but failed: Frozen"):
        train(run=str(copy), resume=True)
    assert summarise_run(copy).state == "failed"


def test_the_best_is_one_that_can_be_evaluated(options, run, tmp_path):
    copy = Path(shutil.copytree(run.path, tmp_path / "copy"))
    best = run.best.epoch
    shutil.rmtree(copy / "checkpoints" / f"epoch_{best}")
    other = dataclasses.replace(run, path=copy)
    assert other.best.epoch == 3 - best
    summary = summarise_run(copy).best
    assert summary is not None
    assert summary.epoch == 3 - best
