"""A training that is stopped or killed goes on where it was saved, and ends with the same bytes."""

from __future__ import annotations

import ctypes
import dataclasses
import signal
import subprocess
import sys
import time

import jax
import pytest
from training_runs import After, Recorder, same_run, spoil, start_training

from vgg_jax.config import TrainConfig
from vgg_jax.errors import TrainingError, TrainingInterrupted
from vgg_jax.progress import Progress
from vgg_jax.training.checkpoints import Checkpoints
from vgg_jax.training.interruption import Interruption
from vgg_jax.workflows.train import run_training, train


@pytest.fixture(scope="module")
def slow_options(options):
    """Of many small steps, with everything random that there is."""
    return {
        **options,
        "batch_size": 1,
        "head": "mlp:hidden=[16],dropout=0.5",
        "augment": ("keras",),
        "optimizer": "adam",
        "early_stop": 1000,
    }


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_training_ends_with_the_bytes_of_an_undisturbed_one(
    number, code, slow_options, tmp_path
):
    path = tmp_path / "stopped"
    process = start_training(slow_options, path, checkpoint_minutes=0.0005)
    time.sleep(0.03 * code % 0.2)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == code, stderr
    assert "Traceback" not in stderr
    assert stderr.splitlines()[-1].endswith(f"vgg-jax train --run {path} --resume")
    epochs = max(Checkpoints(path / "checkpoints").epochs(), default=0) + 2
    resumed = train(run=str(path), resume=True, epochs=epochs)
    whole = train(**{**slow_options, "epochs": epochs}, run=str(tmp_path / "whole"))
    same_run(resumed.path, whole.path)
    left = sorted(entry.name for entry in (path / "checkpoints").rglob("step_*"))
    assert left == []  # of a complete training


@pytest.mark.parametrize(
    ("looks", "place"),
    [(0, "epoch 1, after step 1"), (3, "epoch 1, after step 3"), (5, "epoch 2, after step 4")],
    ids=["first step", "validation", "second epoch"],
)
def test_steps_and_validation_can_be_interrupted(looks, place, options, run, tmp_path):
    """An epoch has 3 steps and 2 batches of validation."""
    config = dataclasses.replace(_config(options), run=str(tmp_path / "part"))
    with pytest.raises(TrainingInterrupted, match=place) as stop:
        run_training(config, Progress(), After(looks))
    assert stop.value.signal_number == signal.SIGTERM
    same_run(train(run=config.run, resume=True).path, run.path)


def _config(options):
    return TrainConfig.from_values(options)


@pytest.mark.parametrize("damaged", [("epoch_3",), ("epoch_3", "epoch_2"), ("all",)])
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_used(damaged, options, tmp_path):
    whole = train(**{**options, "epochs": 4}, run=str(tmp_path / "whole"))
    part = train(**{**options, "epochs": 3}, run=str(tmp_path / "part"))
    folder = part.path / "checkpoints"
    names = [path.name for path in folder.glob("epoch_*")] if damaged == ("all",) else damaged
    for name in names:
        spoil(folder / name)
    progress = Recorder()
    resumed = train(run=str(part.path), resume=True, epochs=4, progress=progress)
    assert len(progress.warnings) == len(names)
    for name, text in zip(sorted(names, reverse=True), progress.warnings, strict=True):
        assert name in text
        assert "moved to" in text
        assert (folder / "damaged" / f"{name}.1").is_dir()
    same_run(resumed.path, whole.path)


def test_an_epoch_under_way_whose_checkpoint_is_damaged_starts_anew(options, run, tmp_path):
    path = tmp_path / "part"
    config = dataclasses.replace(_config(options), run=str(path))
    with pytest.raises(TrainingInterrupted):
        run_training(config, Progress(), After(1))
    (unfinished,) = (path / "checkpoints" / "unfinished").glob("step_*")
    spoil(unfinished)
    progress = Recorder()
    resumed = train(run=str(path), resume=True, progress=progress)
    assert len(progress.warnings) == 1
    same_run(resumed.path, run.path)


def test_a_second_signal_ends_the_process_at_once():
    code = """
import os, signal, time
from vgg_jax.training.interruption import Interruption
interruption = Interruption()
with interruption.listening():
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.2)
    print(interruption.signal_number, flush=True)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(60)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=30
    )
    assert done.returncode == 130, done.stderr
    assert done.stdout.strip() == "15"


def test_signals_mean_what_they_meant_afterwards():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with Interruption().listening():
        pass
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    assert signal.set_wakeup_fd(-1) == -1


class FlipsBits(Progress):
    """Changes frozen parameters in the memory, as a fault of it would."""

    def epoch_started(self, epoch, epochs, steps):
        for array in jax.live_arrays():
            if array.shape == (3, 3, 3, 4):  # the kernel of conv1_1
                ctypes.memset(array.unsafe_buffer_pointer(), 1, 1)


@pytest.mark.parametrize("interrupted", [False, True])
def test_frozen_parameters_that_changed_in_memory_are_an_error(interrupted, options, tmp_path):
    config = dataclasses.replace(_config(options), run=str(tmp_path / "run"))
    interruption = After(2) if interrupted else None
    with pytest.raises(TrainingError, match=r"Frozen parameters changed.*conv1_1/kernel"):
        run_training(config, FlipsBits(), interruption)
