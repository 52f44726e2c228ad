"""Short epochs, which `vgg-jax plan` rehearses."""

from __future__ import annotations

import shutil
import statistics

import pytest
from training_runs import Recorder

from vgg_jax.config import TrainConfig
from vgg_jax.workflows import timing
from vgg_jax.workflows.plan import plan
from vgg_jax.workflows.train import train


@pytest.fixture(autouse=True)
def _hurried(monkeypatch):
    """Measure for a short while."""
    monkeypatch.setattr(timing, "_SECONDS", 0.05)


def planned(options, recorder=None):
    return plan(TrainConfig.from_values(options), recorder or Recorder())


def test_short_epochs_are_rehearsed(options, tmp_path, monkeypatch):
    given = {**options, "head": "linear", "train_from": "head", "epochs": 6, "learning_rate": 1e30}
    recorder = Recorder()
    found = planned(given, recorder)
    assert not recorder.warnings  # its steps change nothing, or the loss would not be finite
    run = train(**{**given, "learning_rate": 1e-3}, run=str(tmp_path / "run"))
    took = statistics.median(epoch.seconds for epoch in run.history[1:])
    # Loose, since others may use this machine; benchmarks/ has the strict comparison.
    assert took / 4 < found.epoch_seconds[-1] < took * 4
    monkeypatch.setattr(timing, "rehearse", lambda *others, epochs: 7.0)
    assert planned(given).epoch_seconds[-1] == pytest.approx(7.0)


@pytest.mark.parametrize(("name", "value"), [("_SHORT", 0.0), ("_MOST_BYTES", 100)])
def test_long_epochs_and_large_checkpoints_are_not_rehearsed(options, monkeypatch, name, value):
    monkeypatch.setattr(timing, name, value)
    monkeypatch.setattr(timing, "rehearse", lambda *others, epochs: 7.0)
    assert planned(options).epoch_seconds[-1] < 7.0


def test_a_full_disk_is_told_and_does_not_end_it(options, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=4000))
    recorder = Recorder()
    found = planned({**options, "features": "memory"}, recorder)
    assert found.epoch_seconds[-1] > 0
    assert any("could not be rehearsed" in text for text in recorder.warnings)
