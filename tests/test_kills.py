"""A training that is killed at random instants, again and again, ends with the same bytes."""

from __future__ import annotations

import collections
import random
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest
from training_runs import PROGRAM, flags, same_run

from vgg_jax import train
from vgg_jax.training.run_files import RunFiles
from vgg_jax.training.run_lock import Holder

# Of many small steps and saves, with everything random that there is.
EPOCHS = 30


@pytest.fixture(scope="module")
def killed_options(options) -> dict[str, object]:
    return {
        **options,
        "epochs": EPOCHS,
        "batch_size": 2,
        "head": "mlp:hidden=[16],dropout=0.5",
        "augment": ("keras",),
        "optimizer": "adam",
        "early_stop": 1000,
    }


@pytest.fixture(scope="module")
def whole(killed_options, tmp_path_factory) -> Path:
    """An undisturbed run."""
    return train(**killed_options, run=str(tmp_path_factory.mktemp("whole") / "run")).path


def launch(
    options, path: Path, rng: random.Random
) -> tuple[subprocess.Popen[str], threading.Thread, list[str]]:
    """Start the training, or go on with it, with another number of threads; returns its lines."""
    resume = ["--resume"] if (path / "run.json").exists() else flags(options)
    others = {"checkpoint_minutes": 0.002, "reader_threads": rng.randint(1, 4)}
    process = subprocess.Popen(
        [*PROGRAM, "train", "--run", str(path), *resume, *flags(others)],
        stderr=subprocess.PIPE,
        text=True,
    )
    lines: list[str] = []
    assert process.stderr is not None

    def read(stream=process.stderr) -> None:
        with stream:
            lines.extend(stream)

    reader = threading.Thread(target=read)
    reader.start()
    return process, reader, lines


def changed(path: Path) -> float:
    """Return when checkpoints came or went last."""
    places = (path / "checkpoints", path / "checkpoints" / "unfinished")
    return max((place.stat().st_mtime for place in places if place.exists()), default=0.0)


def kill(options, path: Path, rng: random.Random) -> str:
    """Let a training live for a while, kill it, and say what it was doing; '' if it was done."""
    process, reader, lines = launch(options, path, rng)
    if rng.random() < 0.25:
        time.sleep(rng.uniform(0, 4))
    else:  # once it is at work
        before = changed(path)
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if changed(path) > before:
                break
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.8))
    process.send_signal(signal.SIGKILL)
    code = process.wait()
    reader.join()
    if code == 0:
        return ""
    assert code == -signal.SIGKILL, "".join(lines)
    holder = Holder.from_bytes((path / "lock").read_bytes()) if (path / "lock").exists() else None
    at_work = holder is not None and holder.pid == process.pid
    if not at_work:
        return "start-up"
    saving = any(path.glob("checkpoints/**/*.partial"))
    return "saving" if saving else "steps and validation"


def kill_often(count: int, seed: int, options, whole: Path, folder: Path) -> collections.Counter:
    """Kill trainings until there were so many kills; complete each and compare it."""
    rng = random.Random(seed)
    phases: collections.Counter[str] = collections.Counter()
    number = 0
    while phases.total() < count:
        number += 1
        path = folder / f"run-{number}"
        for _ in range(rng.randint(5, 15)):
            if phases.total() == count:
                break
            phase = kill(options, path, rng)
            if not phase:
                break
            phases[phase] += 1
        if (path / "run.json").exists():
            train(run=str(path), resume=True)
        else:
            train(**options, run=str(path))
        same_run(path, whole)
        assert [metrics.epoch for metrics in RunFiles(path).read_metrics()] == [
            *range(1, EPOCHS + 1)
        ]
    return phases


def test_five_kills(killed_options, whole, tmp_path):
    assert kill_often(5, 0, killed_options, whole, tmp_path).total() == 5


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_two_hundred_kills(killed_options, whole, tmp_path):
    phases = kill_often(200, 1, killed_options, whole, tmp_path)
    print(dict(phases))
    assert set(phases) == {"start-up", "saving", "steps and validation"}
