"""Trainings in a process of their own, what two runs hold compared, and damage done to them."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from vgg_jax.config import TrainConfig
from vgg_jax.errors import TrainingInterrupted
from vgg_jax.progress import EpochMetrics, Progress
from vgg_jax.training.checkpoints import Checkpoints, Which
from vgg_jax.training.interruption import Interruption
from vgg_jax.training.position import Position
from vgg_jax.training.run_files import RunFiles
from vgg_jax.workflows.train import run_training

# A shell that starts this in the background lets Ctrl-C be ignored; then it must be heard again.
HEARS_CTRL_C = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from vgg_jax.cli.app import main
main()
"""


PROGRAM = [sys.executable, "-c", HEARS_CTRL_C]

# Of pictures to which convolutions give the same bits in every place of a batch. With layers as
# narrow as those of tests it depends on their size: at 32 x 32 they do with AVX-512, but not with
# AVX2. Those of VGG16's own width do at every size that was tried.
SAME_BITS_SIZE = 48


class Recorder(Progress):
    def __init__(self):
        self.notes, self.warnings, self.epochs = [], [], []

    def note(self, text):
        self.notes.append(text)

    def warn(self, text):
        self.warnings.append(text)

    def epoch_done(self, metrics, best):
        self.epochs.append((metrics.epoch, best))


def latest(path) -> dict[str, np.ndarray]:
    checkpoints = Checkpoints(Path(path) / "checkpoints")
    restored = checkpoints.restore(checkpoints.find("latest"), with_optimizer=True)
    return {**restored.trained, **restored.optimizer}


def same_arrays(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert one.keys() == other.keys()
    for path, value in one.items():
        same = (value.dtype, value.shape, value.tobytes())
        assert same == (other[path].dtype, other[path].shape, other[path].tobytes()), path


def same_run(
    one: Path,
    other: Path,
    kinds: tuple[Which, ...] = ("latest", "best"),
    *,
    optimizer_of: tuple[Which, ...] = ("latest", "best"),
) -> None:
    """Compare all that two runs hold, to the byte, but for times.

    Args:
        one: A run.
        other: Another one.
        kinds: Which checkpoints to compare.
        optimizer_of: Of which of them the optimizer's state, too.
    """
    for which in kinds:
        held = [Checkpoints(run / "checkpoints") for run in (one, other)]
        epochs = [checkpoints.find(which) for checkpoints in held]
        assert epochs[0] == epochs[1]
        a, b = (c.restore(epochs[0], with_optimizer=which in optimizer_of) for c in held)
        same_arrays(a.trained, b.trained)
        same_arrays(a.optimizer, b.optimizer)
        assert timeless(a.position) == timeless(b.position)
    texts = [(run / "metrics.jsonl").read_text() for run in (one, other)]
    assert texts[0].count("\n") == texts[1].count("\n")
    assert all(text.endswith("\n") for text in texts)  # no torn line
    lines = [list(map(timed, RunFiles(run).read_metrics())) for run in (one, other)]
    assert lines[0] == lines[1]


def timed(metrics: EpochMetrics) -> EpochMetrics:
    return dataclasses.replace(metrics, seconds=0.0, images_per_second=0.0)


def timeless(position: Position) -> Position:
    return dataclasses.replace(position, history=tuple(map(timed, position.history)))


def flags(options) -> list[str]:
    """Return options as they are typed."""
    return [
        text
        for name, value in options.items()
        for one in (value if isinstance(value, tuple) else (value,))
        for text in (f"--{name.replace('_', '-')}", str(one))
    ]


def start_training(options, path, **others) -> subprocess.Popen[str]:
    """Start one of very many epochs; returns when it has completed one and begun the next."""
    flagged = flags({**options, **others, "epochs": 100_000, "run": path})
    process = subprocess.Popen(
        [*PROGRAM, "train", *flagged],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ,
    )
    deadline = time.monotonic() + 120
    metrics = path / "metrics.jsonl"
    while time.monotonic() < deadline and process.poll() is None:
        if metrics.exists() and metrics.read_text().endswith("\n"):
            return process
        time.sleep(0.01)
    process.kill()
    pytest.fail(f"no epoch was completed: {process.communicate()[1]}")


def spoil(folder: Path) -> None:
    """Flip a bit of the largest file."""
    largest = max(
        (path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size
    )
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)


class After(Interruption):
    """Interrupts when it was looked at so many times."""

    def __init__(self, looks: int) -> None:
        super().__init__()
        self.looks = looks

    @property
    def signal_number(self) -> int | None:
        self.looks -= 1
        return signal.SIGTERM if self.looks < 0 else None


def stop_after(looks: int, options, path: Path) -> str:
    """Train until a signal comes, which is looked for after each step; returns what is said."""
    config = TrainConfig.from_values({**options, "run": str(path)})
    with pytest.raises(TrainingInterrupted) as stop:
        run_training(config, Progress(), After(looks - 1))
    return str(stop.value)
