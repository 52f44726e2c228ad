"""Training end to end on small pictures."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from training_runs import PROGRAM, Recorder, latest

from vgg_jax.config import TrainConfig
from vgg_jax.errors import (
    RunError,
    TrainingError,
    VggJaxError,
    WeightsError,
)
from vgg_jax.training.checkpoints import Checkpoints
from vgg_jax.training.run_folder import RunFolder
from vgg_jax.training.steps import Steps
from vgg_jax.weights.store import load_weights
from vgg_jax.workflows.load import load_classifier
from vgg_jax.workflows.train import run_training, train


def test_it_learns(options, tmp_path):
    run = train(**{**options, "epochs": 30, "run": str(tmp_path / "run"), "train_from": "conv4_1"})
    assert run.history[-1].loss < run.history[0].loss
    assert run.history[-1].accuracy > 0.6
    assert run.best.validation_accuracy == max(m.validation_accuracy for m in run.history)


def test_the_frozen_layers_are_in_no_checkpoint_and_the_weights_on_disk_do_not_change(run, options):
    trained = latest(run.path)
    layers = {path.split("/")[1] for path in trained if path.startswith("backbone/")}
    assert layers == {"conv5_1", "conv5_2", "conv5_3"}
    best = load_classifier(run.path)._parameters
    stored = load_weights(Path(str(options["weights"]))).layers
    for layer, pair in stored.items():
        for role, value in zip(("kernel", "bias"), pair, strict=True):
            same = np.array_equal(best[f"backbone/{layer}/{role}"], value)
            assert same == (layer < "conv5_1"), (layer, role)


def test_two_epochs_with_a_ragged_batch_compile_each_step_once(options, tmp_path):
    def compiled() -> list[int]:
        return [getattr(step, "_cache_size")() for step in (Steps.train, Steps.evaluate)]  # noqa: B009

    before = compiled()
    train(**options, run=str(tmp_path / "run"))  # 21 pictures in batches of 8
    assert compiled() == [count + 1 for count in before]


def test_the_history_counts_steps_and_images(run):
    assert [metrics.step for metrics in run.history] == [3, 6]  # 21 pictures in batches of 8
    for metrics in run.history:
        assert metrics.seconds > 0
        assert metrics.images_per_second >= 21 / metrics.seconds


def test_the_same_seed_gives_the_same_bytes_and_another_one_others(options, run, tmp_path):
    again = train(**options, run=str(tmp_path / "again"))
    other = train(**options, run=str(tmp_path / "other"), seed=1)
    before = latest(run.path)
    for path, value in latest(again.path).items():
        np.testing.assert_array_equal(value, before[path], err_msg=path)
    kernel = "head/hidden/kernel"
    assert not np.array_equal(latest(other.path)[kernel], before[kernel])


def test_a_run_folder_that_cannot_be_written_is_an_error(options, run, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run.path, copy)
    (copy / "metrics.jsonl").unlink()
    (copy / "metrics.jsonl").mkdir()  # a fault that root meets too
    with pytest.raises(RunError, match="cannot be written"):
        RunFolder(copy).write_metrics(run.history)
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot be written|exists"):
        train(**options, run=str(tmp_path / "file" / "run"))


def test_early_stopping_watches_the_validation_loss(options, tmp_path):
    recorder = Recorder()
    # so large a rate that the loss soon only grows
    slow = {**options, "epochs": 30, "learning_rate": 0.03, "early_stop": 2}
    run = train(**slow, run=str(tmp_path / "run"), progress=recorder)
    losses = [metrics.validation_loss for metrics in run.history]
    assert len(losses) < 30
    assert len(losses) - 1 - int(np.argmin(losses)) == 2
    assert "has not improved for 2 epochs" in recorder.notes[-1]


def test_a_loss_that_is_not_finite_stops_the_run(options, tmp_path):
    with pytest.raises(
        TrainingError, match=r"(?s)became (nan|inf) at step \d, in epoch 1.*learning rate"
    ):
        train(**{**options, "learning_rate": 1e30, "epochs": 3}, run=str(tmp_path / "run"))


@pytest.mark.parametrize("loss", ["binary", "keras-binary"])
def test_the_other_losses_train(options, tmp_path, loss):
    recorder = Recorder()
    options = {**options, "loss": loss, "epochs": 1, "optimizer": "sgd", "label_smoothing": 0.1}
    run = train(**options, run=str(tmp_path / "run"), progress=recorder)
    assert np.isfinite(run.history[0].loss)
    assert any("inflated" in text for text in recorder.warnings) == (loss == "keras-binary")


def test_the_user_is_told_what_the_data_are(options, tmp_path, photos):
    recorder = Recorder()
    unsplit = tmp_path / "flat"
    shutil.copytree(photos / "train", unsplit / "train")
    config = TrainConfig.from_values(
        {**options, "data": str(unsplit), "epochs": 1, "run": str(tmp_path / "run")}
    )
    run_training(config, recorder)
    assert any("3 classes; 18 train, 3 validation" in note for note in recorder.notes)
    assert any("held back" in note for note in recorder.notes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": "no/such/folder"}, "No such folder"),
        ({"weights": "no-such-weights"}, "no-such-weights"),
        ({"weights": "random:x"}, r"random:SEED"),
        ({"weights": "random:0:0.3"}, r"random:SEED"),
        ({"head": "dense256:units=3"}, "no option named 'units'"),
        ({"augment": ("rotation:degrees=x",)}, "'degrees' is 'x', but must be a number"),
        ({"augment": ("rotation:degrees=900",)}, "'degrees' is 900"),
    ],
)
def test_bad_input_is_refused_before_a_run_folder_is_made(options, tmp_path, change, message):
    with pytest.raises(VggJaxError, match=message):
        train(**{**options, **change}, run=str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_imagenet_weights_that_are_not_there_name_the_ways_out(photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsError) as caught:
        train(data=str(photos), run=str(tmp_path / "run"))
    for way in ("convert-weights", "--weights", "random:"):
        assert way in str(caught.value)


def test_an_existing_run_is_refused(options, run):
    with pytest.raises(RunError, match="exists"):
        train(**options, run=str(run.path))


def test_a_broken_picture_is_named(options, photos, tmp_path):
    copy = tmp_path / "photos"
    shutil.copytree(photos, copy)
    broken = copy / "train" / "rings" / "3.png"
    broken.write_bytes(broken.read_bytes()[:200])
    with pytest.raises(VggJaxError, match=r"rings/3\.png"):
        train(**{**options, "data": str(copy)}, run=str(tmp_path / "run"))


@pytest.mark.parametrize("seconds", [1.5, 3.0])
def test_ctrl_c_during_start_up_ends_the_process(options, tmp_path, seconds):
    flags = ["--data", str(options["data"]), "--weights", str(options["weights"])]
    command = [*PROGRAM, "train", *flags, "--epochs", "1000"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr, stderr


def test_ctrl_c_keeps_the_last_completed_epoch(options, tmp_path):
    path = tmp_path / "run"
    flags = [
        word
        for name, value in {**options, "epochs": 1000, "run": path}.items()
        for word in (f"--{name.replace('_', '-')}", str(value))
    ]
    command = [*PROGRAM, "train", *flags]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ)
    deadline = time.monotonic() + 120
    metrics = path / "metrics.jsonl"
    while time.monotonic() < deadline and process.poll() is None:
        if metrics.exists() and len(metrics.read_text().splitlines()) >= 3:
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr, stderr
    done = [json.loads(line)["epoch"] for line in metrics.read_text().splitlines()]
    checkpoints = Checkpoints(path / "checkpoints")
    assert (
        checkpoints.restore(checkpoints.find("latest"), with_optimizer=True).position.epoch - 1
        in done[-2:]
    )
    resumed = train(run=str(path), resume=True, epochs=done[-1] + 1)
    assert [m.epoch for m in resumed.history] == list(range(1, done[-1] + 2))
