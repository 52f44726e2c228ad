"""Real faults during a training: what the user sees, and that nothing saved is lost."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from mounts import in_shell, needs_mounts
from training_runs import (
    PROGRAM,
    Recorder,
    flags,
    latest,
    same_run,
    start_training,
    stop_after,
)

from vgg_jax import train
from vgg_jax.errors import RunError, TrainingError
from vgg_jax.training.checkpoints import Checkpoints

# In some steps the targets become what no loss can bear.
POISON = """
import dataclasses
import jax, jax.numpy as jnp
from vgg_jax.api import BatchAugmentation

@dataclasses.dataclass(frozen=True, kw_only=True)
class Poison(BatchAugmentation):
    share: float = 0.2

    def apply(self, key, images, targets, valid):
        return images, jnp.where(jax.random.uniform(key) < self.share, jnp.nan, targets)
"""


def program(options, **others) -> list[str]:
    return [*PROGRAM, "train", *flags({**options, **others})]


@needs_mounts
def test_a_full_disk_ends_the_training_and_loses_no_checkpoint(options, tmp_path):
    """On a disk of 1.4 MB, with checkpoints of about 250 kB, and then on a larger one."""
    disk, saved = tmp_path / "disk", tmp_path / "saved"
    disk.mkdir()
    script = """
        disk=$1 saved=$2; shift 2
        mount -t tmpfs -o size=1400k tmpfs "$disk" || exit 99
        "$@" --run "$disk/run"; echo "exit $?" >&2
        cp -r "$disk/run" "$saved-full"
        mount -o remount,size=50m tmpfs "$disk"
        "$@" --run "$disk/run" --resume; echo "exit $?" >&2
        cp -r "$disk/run" "$saved"
    """
    done = in_shell(script, disk, saved, *program({**options, "epochs": 6, "optimizer": "adam"}))
    first, second = done.stderr.split("exit 1\n")
    assert "No space left on device" in first
    assert "--resume" in first
    assert "Traceback" not in done.stderr
    kept = Checkpoints(Path(f"{saved}-full") / "checkpoints").epochs()
    assert kept
    assert f"after epoch {kept[-1]}." in second
    assert second.endswith("exit 0\n")
    whole = train(**{**options, "epochs": 6, "optimizer": "adam"}, run=str(tmp_path / "whole"))
    same_run(saved, whole.path)


@needs_mounts
def test_a_read_only_disk_is_named(options, run, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    script = """
        disk=$1 run=$2; shift 2
        mount -t tmpfs tmpfs "$disk" && cp -r "$run" "$disk/run" || exit 99
        mount -o remount,ro tmpfs "$disk"
        "$@" --run "$disk/run" --resume --epochs 3; echo "exit $?" >&2
        "$@" --run "$disk/new"; echo "exit $?" >&2
    """
    done = in_shell(script, disk, run.path, *program(options))
    assert done.stderr.count("exit 1\n") == 2
    assert done.stderr.count("Read-only file system") == 2
    assert "Traceback" not in done.stderr


def test_a_folder_that_is_deleted_under_the_run_ends_it(options, tmp_path):
    process = start_training(options, tmp_path / "run")
    (tmp_path / "run").rename(tmp_path / "deleted")
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "deleted or moved while it was being trained" in stderr
    assert "Traceback" not in stderr
    # Orbax may have been in the middle of a save, which makes its folders anew.
    assert not (tmp_path / "run" / "run.json").exists()
    assert not Checkpoints(tmp_path / "run" / "checkpoints").epochs()


def test_the_second_process_on_a_run_is_refused(options, tmp_path):
    process = start_training(options, tmp_path / "run")
    before = process.poll()
    with pytest.raises(RunError, match=f"being trained by process {process.pid} on"):
        train(run=str(tmp_path / "run"), resume=True)
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints")
    deadline = time.monotonic() + 60
    while not checkpoints.epochs() and time.monotonic() < deadline:
        time.sleep(0.01)  # its line in metrics.jsonl comes first
    process.kill()
    process.communicate()
    assert before is None
    recorder = Recorder()
    epochs = max(checkpoints.epochs()) + 1
    train(run=str(tmp_path / "run"), resume=True, epochs=epochs, progress=recorder)
    assert any(f"left by process {process.pid}" in note for note in recorder.notes)


def test_a_clock_that_is_set_back_changes_nothing(options, run, tmp_path, monkeypatch):
    """It goes backwards all the time."""
    started = time.time()
    times = iter(range(10**9))
    monkeypatch.setattr(time, "time", lambda: started - 3600.0 * next(times))
    monkeypatch.setattr(time, "time_ns", lambda: int(1e9 * (started - 3600.0 * next(times))))
    stop_after(2, options, tmp_path / "run")
    resumed = train(run=str(tmp_path / "run"), resume=True)
    same_run(resumed.path, run.path)


@pytest.fixture
def poisoned(options, tmp_path) -> dict[str, object]:
    (tmp_path / "poison.py").write_text(POISON)
    chosen = (f"{tmp_path}/poison.py#Poison",)
    return {**options, "epochs": 4, "batch_size": 4, "augment": chosen}


def test_a_loss_that_is_not_finite_stops_with_the_step_and_names_what_is_good(poisoned, tmp_path):
    path = tmp_path / "run"
    clean = {**poisoned, "augment": (), "epochs": 2}
    train(**clean, run=str(path))
    changes = {"augment": poisoned["augment"], "epochs": 4, "override": True}
    with pytest.raises(TrainingError) as stop:
        train(run=str(path), resume=True, checkpoint_minutes=1e-6, **changes)
    assert re.search(r"The loss became nan at step \d+, in epoch 3\.", str(stop.value))
    assert "learning rate" in str(stop.value)
    assert "The last good checkpoint is that of epoch 2" in str(stop.value)
    command = f"train --run {path} --resume --allow-local-code --override --learning-rate"
    assert command in str(stop.value)
    restored = Checkpoints(path / "checkpoints").restore_to_go_on(pytest.fail)
    assert restored is not None
    assert restored.position.step == 12  # what was saved within epoch 3 is given up
    for name, value in {**restored.trained, **restored.optimizer}.items():
        assert np.isfinite(value).all(), name
    assert json.loads((path / "state.json").read_text())["state"] == "failed"


def test_a_training_that_diverged_goes_on_from_before_it_did(options, tmp_path):
    """What is saved on the way is finite, and ruined."""
    path = str(tmp_path / "run")
    train(**options, run=path)
    steep = {"learning_rate": 1e30, "checkpoint_minutes": 1e-6, "epochs": 4, "override": True}
    with pytest.raises(TrainingError, match="The last good checkpoint is that of epoch 2"):
        train(run=path, resume=True, **steep)
    resumed = train(run=path, resume=True, override=True, learning_rate=1e-4)
    assert len(resumed.history) == 4


def test_steps_that_are_not_finite_are_skipped_on_request_and_counted(poisoned, tmp_path):
    poisoned = {**poisoned, "on_nan": "skip"}
    whole = train(**poisoned, run=str(tmp_path / "whole"))
    skipped = [metrics.skipped_steps for metrics in whole.history]
    assert sum(skipped) > 0
    assert all(np.isfinite(metrics.loss) for metrics in whole.history)
    assert [metrics.step for metrics in whole.history] == [6, 12, 18, 24]
    for path, value in latest(whole.path).items():
        assert np.isfinite(value).all(), path
    # and a training that is stopped on the way counts the same
    stop_after(10, poisoned, tmp_path / "part")
    resumed = train(run=str(tmp_path / "part"), resume=True, allow_local_code=True)
    assert [metrics.skipped_steps for metrics in resumed.history] == skipped
    same_run(resumed.path, whole.path)


def test_an_epoch_without_any_finite_step_ends_the_training(poisoned, tmp_path):
    chosen = (f"{tmp_path}/poison.py#Poison:share=1.0",)
    with pytest.raises(TrainingError, match="All 6 steps of epoch 1 were skipped"):
        train(**{**poisoned, "augment": chosen, "on_nan": "skip"}, run=str(tmp_path / "run"))


def test_too_little_memory_names_a_smaller_batch(options, tmp_path):
    """The process may take 1.5 GB more than JAX has at first; one layer's output takes 1.4."""
    code = f"""
import resource
import jax
from vgg_jax.workflows.train import train
jax.numpy.zeros(3).block_until_ready()
lines = open("/proc/self/status").read().splitlines()
size = next(int(line.split()[1]) for line in lines if line.startswith("VmSize")) * 1024
resource.setrlimit(resource.RLIMIT_AS, (size + 1_500_000_000,) * 2)
train(**{options!r} | {{"image_size": 2048, "batch_size": 21, "run": {str(tmp_path / "run")!r}}})
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120
    )
    assert "MemoryExhausted: The memory of cpu does not suffice for batches of 21" in done.stderr
    assert "train again with --batch-size 10" in done.stderr
