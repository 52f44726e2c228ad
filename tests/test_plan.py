"""`vgg-jax plan`: what it foresees, and what then happens."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
import tempfile
from pathlib import Path

import jax
import numpy as np
import pytest
from training_runs import flags
from typer.testing import CliRunner

from vgg_jax.cli.app import app
from vgg_jax.config import TrainConfig
from vgg_jax.data.sources import open_data
from vgg_jax.errors import ConfigError, TrainingError
from vgg_jax.progress import Progress, format_bytes
from vgg_jax.training.room import Memory
from vgg_jax.training.rows import DeviceRows
from vgg_jax.workflows import plan as plan_module
from vgg_jax.workflows import timing
from vgg_jax.workflows.backbone import open_backbone
from vgg_jax.workflows.expectation import (
    expected_epochs,
    expected_features,
    largest_batch,
    rows_of_line,
)
from vgg_jax.workflows.load import build_functional
from vgg_jax.workflows.plan import plan
from vgg_jax.workflows.programs import Program, Programs
from vgg_jax.workflows.session import Session, chain_of
from vgg_jax.workflows.summary import summarise
from vgg_jax.workflows.timing import Timing
from vgg_jax.workflows.train import train

WIDTH = 1 / 16  # of the fixture's weights
MIXES = """
import dataclasses
from vgg_jax.api import BatchAugmentation

@dataclasses.dataclass(frozen=True, kw_only=True)
class Swap(BatchAugmentation):
    def apply(self, key, images, targets, valid):
        return images[::-1], targets[::-1]
"""


@pytest.fixture(autouse=True)
def _hurried(monkeypatch):
    """Measure for a short while."""
    monkeypatch.setattr(timing, "_SECONDS", 0.05)


def planned(options, **others):
    return plan(TrainConfig.from_values({**options, **others}), Progress())


def test_the_programs_do_what_the_summary_counts(options):
    found = planned(options, image_size=64)
    config = TrainConfig.from_values({**options, "image_size": 64})
    summary = summarise(config, num_classes=3, width=WIDTH)
    assert found.prefix.parameters + found.train.parameters == summary.parameters
    assert found.train.parameters == summary.trained_parameters
    counted = {True: 0.0, False: 0.0}
    for row in summary.layers:
        if row.trained is not None:
            # Of three taps on the edge of a picture XLA leaves out the one that meets padding.
            side = row.output_shape[0] if len(row.output_shape) == 3 else None
            within = (1 - 2 / (3 * side)) ** 2 if side else 1
            counted[row.trained] += (row.multiply_adds or 0) * within * found.batch_size
    assert found.prefix.program.multiply_adds == pytest.approx(counted[False], rel=0.1)
    assert found.evaluate.program.multiply_adds == pytest.approx(counted[True], rel=0.1)
    ratio = found.train.program.multiply_adds / found.evaluate.program.multiply_adds
    assert 2 < ratio < 3.5  # gradients of the kernels, and of all but the first layer's inputs
    assert found.features.shape == (4, 4, 32)
    assert found.features.bytes == (21 + 9) * 4 * 4 * 32 * 4


@pytest.mark.parametrize("features", ["off", "memory"])
def test_epochs_take_about_as_long_as_foreseen(options, tmp_path, monkeypatch, features):
    monkeypatch.setattr(timing, "_SECONDS", 0.2)
    given = {**options, "image_size": 224, "epochs": 4, "features": features}
    found = planned(given)
    run = train(**given, run=str(tmp_path / "run"))
    took = min(epoch.seconds for epoch in run.history[1:])
    # Loose, since others may use this machine; benchmarks/ has the strict comparison.
    assert found.epoch_seconds[-1] / 4 < took < found.epoch_seconds[-1] * 4
    kept, computed = found.epochs.kept, found.epochs.computed
    assert kept is not None
    assert kept[0] == pytest.approx(computed[0])  # sums in another order
    assert kept[1] < computed[1] / 3


def test_what_was_compiled_is_what_runs(options, caplog):
    with jax.log_compiles(True), caplog.at_level(logging.WARNING):
        planned(options, batch_size=5)
    names = [
        record.getMessage().split()[4]
        for record in caplog.records
        if record.getMessage().startswith("Finished XLA compilation of ")
    ]
    # For batches of 5, and for two sizes to tell the largest batch; the prefix once more to count
    # what it moves. The validation split has more than 5 pictures.
    counts = {name: names.count(name) for name in names if "train" in name}
    assert counts == {"jit(train)": 3}
    assert names.count("jit(evaluate)") == 3
    assert names.count("jit(features)") == 4


def test_nothing_is_left_on_disk(options, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("VGG_JAX_CACHE", str(tmp_path / "cache"))
    planned(options, run=str(tmp_path / "run"))
    left = [path for path in tmp_path.rglob("*") if "compiled" not in path.parts]
    assert left in ([], [tmp_path / "cache"])


@pytest.mark.parametrize(("augment", "passes"), [((), 1), (("horizontal-flip",), 2)])
def test_the_prefix_of_validation_is_measured_where_it_is_another(
    options, monkeypatch, augment, passes
):
    measured = []
    original = timing._time_prefix

    def counting(source, features, *others):
        measured.append(len(features.labels))
        return original(source, features, *others)

    monkeypatch.setattr(timing, "_time_prefix", counting)
    planned(options, augment=augment)
    assert measured == [21, 9][:passes]


def test_augmentations_that_mix_a_batch_leave_nothing_to_keep(options, tmp_path):
    (tmp_path / "swap.py").write_text(MIXES)
    found = planned(options, augment=(f"{tmp_path / 'swap.py'}#Swap",))
    assert found.epochs.kept is None
    assert found.features.why_not is not None
    assert found.epoch_seconds == found.epochs.computed


@pytest.mark.parametrize(
    ("needed", "room", "largest"),
    [
        ({10: 1000, 20: 1500}, 1700, 24),
        ({10: 1000, 20: 1500}, 1699, 16),
        ({10: 1000, 20: 1500}, 820, 4),
        ({10: 1000, 20: 1500}, 680, 3),
        ({10: 1000, 20: 1500}, 549, 0),
        ({10: 1000, 20: 1500}, -500, 0),
        ({10: 1000, 20: 1000}, 1699, 7000),
        ({10: 1000, 20: 1000}, 999, 0),
        ({10: 1000, 20: 900}, 800, 0),
    ],
)
def test_the_largest_batch_lies_on_the_line(needed, room, largest):
    assert largest_batch(needed, room) == largest


@pytest.mark.parametrize(
    ("rows", "devices", "in_pieces", "line"),
    [
        (1, 1, False, (1, 2)),
        (5, 1, False, (5, 2)),
        (32, 1, False, (32, 16)),
        (8, 8, False, (8, 16)),
        (14, 7, False, (14, 7)),
        (32, 8, False, (32, 16)),
        (5, 1, True, (8, 16)),
        (8, 1, True, (8, 16)),
        (20, 1, True, (20, 28)),
        (33, 1, True, (33, 41)),
    ],
)
def test_the_line_goes_through_batches_of_pieces_that_are_alike(rows, devices, in_pieces, line):
    assert rows_of_line(rows, devices, in_pieces=in_pieces) == line


def test_too_little_memory_is_an_error_that_says_what_fits(options, monkeypatch):
    options = {**options, "batch_size": 20, "image_size": 224}
    whole = planned(options)
    monkeypatch.setattr(plan_module, "_PROCESS_BYTES", 0)  # those of the test are few
    monkeypatch.setattr(plan_module, "_HELD", 1)
    monkeypatch.setattr(plan_module, "available_bytes", lambda mesh: whole.memory_bytes - 1)
    with pytest.raises(TrainingError, match=r"--batch-size [48]$") as error:
        planned(options)
    assert format_bytes(whole.memory_bytes) in str(error.value)
    monkeypatch.setattr(plan_module, "available_bytes", lambda mesh: 1000)
    with pytest.raises(TrainingError, match="--train-from"):
        planned(options)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="devices have no process of Python")
def test_the_largest_batch_leaves_room_for_the_process_and_what_it_holds(options, monkeypatch):
    sizes = []
    for available in (10**9, 2 * 10**9):
        monkeypatch.setattr(plan_module, "available_bytes", lambda mesh, found=available: found)
        monkeypatch.setattr(
            plan_module, "largest_batch", lambda needed, room: sizes.append(room) or 8
        )
        features = planned(options).features.memory_bytes
        assert sizes.pop() == int((0.85 * available - features - 700_000_000) / 2)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="devices have no process of Python")
def test_batches_that_may_not_fit_are_warned_of(options, monkeypatch):
    monkeypatch.setattr(plan_module, "available_bytes", lambda mesh: 710_000_000)
    done = CliRunner().invoke(app, ["plan", *flags(options)])
    assert done.exit_code == 0, done.output
    assert "Largest safe batch: none." in done.stdout
    assert "Batches of 8 may not fit" in done.stderr
    assert "--batch-size 4" in done.stderr


TIMING = Timing(
    decode=0.5, prefix=10.0, train=4.0, validation_prefix=9.0, evaluate=1.0, around=0.25
)
PROGRAMS = Programs(
    *(Program(0, 0, 0, 0.125),) * 3,
    features=jax.ShapeDtypeStruct((2, 2, 8), np.float32),
    pooled=jax.ShapeDtypeStruct((8,), np.float32),
)


def expected(options, **others):
    config = TrainConfig.from_values({**options, "epochs": 4, **others}).resolved()
    data = open_data(config.data, demo_folder=Path, seed=0)
    opened = open_backbone(config.weights, Progress())
    functional, parameters = build_functional(opened, config, 3)
    session = Session.start(config, functional, parameters, chain_of(config), 3)
    features = expected_features(session, data, PROGRAMS, Memory(config, session.mesh))
    return features, expected_epochs(config, data, PROGRAMS, TIMING, features)


# 21 pictures are 3 steps, 9 of validation are 2 batches; decoding takes 0.5 s each.
# Tracing a program takes 0.125 s.
TRAIN, VALIDATION, AROUND, TRACING = 3 * (10 + 4), 2 * (9 + 1), 0.25, 3 * 0.125
FIRST = TRAIN + VALIDATION + AROUND + 30 * 0.5 + TRACING
KEPT = 3 * 4 + 2 * 1 + AROUND


def test_epochs_with_kept_features_cost_the_suffix(options):
    features, epochs = expected(options)
    assert epochs.kept == [FIRST, KEPT, KEPT, KEPT]
    assert epochs.computed == [FIRST] + [TRAIN + VALIDATION + AROUND] * 3  # decoded pictures stay
    assert features.why_not is None
    assert features.bytes == 30 * 128
    assert features.memory_bytes == 30 * 32


def test_views_are_computed_one_an_epoch(options):
    features, epochs = expected(options, augment=("horizontal-flip",), views=2)
    viewed = TRAIN + 21 * 0.5 + 2 + AROUND  # a new view of the training split
    assert epochs.kept == [FIRST, viewed, KEPT, KEPT]
    assert features.bytes == (2 * 21 + 9) * 128
    features, epochs = expected(options, augment=("horizontal-flip",), views=9)
    assert epochs.kept == [FIRST, *[viewed] * 3]
    assert features.bytes == (4 * 21 + 9) * 128  # four epochs use four of them


def test_features_of_earlier_trainings_count(options, tmp_path, monkeypatch):
    monkeypatch.setenv("VGG_JAX_CACHE", str(tmp_path / "cache"))
    given = {**options, "epochs": 2}
    first = planned(given)
    assert first.features.stored == [0]
    train(**given, run=str(tmp_path / "run"))
    second = planned(given)
    assert second.features.stored == [21]
    assert second.features.stored_validation == 9
    kept = second.epochs.kept or []
    assert kept[1] < second.epochs.computed[1]
    tracing = second.train.program.tracing_seconds + second.evaluate.program.tracing_seconds
    assert second.features.reading_seconds > 0
    reading = 30 * second.features.reading_seconds
    assert kept[0] - kept[1] == pytest.approx(reading + tracing)
    with monkeypatch.context() as patched:
        patched.setattr(Memory, "place_for", lambda self, size: None)
        alone = planned(given)  # on disk: read in every epoch
    kept = alone.epochs.kept or []
    assert kept[1] > 30 * alone.features.reading_seconds > 0
    viewed = {**given, "augment": ("horizontal-flip",), "views": 2}
    train(**{**viewed, "epochs": 1}, run=str(tmp_path / "viewed"))
    assert planned(viewed).features.stored == [21, 0]
    assert planned({**given, "features": "off"}).features.stored == [0]


def test_fresh_views_are_computed_in_every_epoch(options):
    features, epochs = expected(options, augment=("horizontal-flip",))
    assert epochs.kept is None
    assert features.memory_bytes == 30 * 32 * 32 * 3  # pictures
    assert "--views" in (features.why_not or "")


def test_features_that_find_no_room_are_not_kept(options, monkeypatch):
    monkeypatch.setattr(Memory, "place_for", lambda self, count: None)
    features, epochs = expected(options, cache_size="1kB")
    assert "3.8 kB" in (features.why_not or "")
    assert features.memory_bytes == 0
    assert epochs.kept is not None  # what it would be worth
    assert epochs.computed == [FIRST, *[FIRST - TRACING] * 3]
    assert expected(options)[0].why_not is None  # on disk there is room


def test_what_a_training_refuses_is_refused(options, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=4000))
    with pytest.raises(ConfigError, match=r"--features disk: 3\.8 kB are more than 90% of what"):
        expected({**options, "features": "disk"})
    found = expected(options)[0]
    assert found.why_not is None  # there is room in memory
    assert found.stored == [0]
    monkeypatch.setattr(Memory, "place_for", lambda self, count: None)
    assert "90% of what is free" in (expected(options)[0].why_not or "")
    with pytest.raises(ConfigError, match="--features memory: 960 bytes"):
        expected({**options, "features": "memory"})


def test_features_on_the_host_take_none_of_a_devices_memory(options, monkeypatch):
    assert expected(options, on_device="off")[0].memory_bytes == 30 * 32  # a CPU has no other
    monkeypatch.setattr(Memory, "on_devices", lambda self, place: place is DeviceRows)
    assert expected(options, on_device="off")[0].memory_bytes == 0


def test_decoding_is_hidden_behind_a_device(options, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert expected(options)[1].computed[0] == FIRST - 30 * 0.5
    monkeypatch.setattr("test_plan.TIMING", dataclasses.replace(TIMING, decode=10.0))
    assert expected(options)[1].computed[0] == 30 * 10 + AROUND + TRACING


def test_the_command(options):
    runner = CliRunner()
    done = runner.invoke(app, ["plan", *flags({**options, "epochs": 3})])
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0] == "photos: 3 classes; 21 train, 9 validation, 9 test. Batches of 8 on 1 x cpu."
    for start in (
        "frozen ",
        "trained ",
        "Parameters: ",
        "Memory: ",
        "Features: 2 x 2 x 32 ",
        "2 to 3",
        "all ",
    ):
        assert any(line.startswith(start) for line in lines), (start, done.stdout)
    done = runner.invoke(app, ["plan", *flags(options), "--json"])
    result = json.loads(done.stdout)
    assert len(result["epochs"]["kept"]) == len(result["epoch_seconds"]) == 2
    assert result["largest_batch_size"] == 21  # as many as there are


def test_it_takes_the_options_of_train_but_for_those_of_a_run(tmp_path):
    runner = CliRunner()
    words = {
        command: {
            word
            for word in runner.invoke(app, [command, "--help"]).stdout.split()
            if word.startswith("--")
        }
        for command in ("plan", "train")
    }
    assert words["train"] - words["plan"] >= {
        "--run",
        "--resume",
        "--override",
        "--allow-local-code",
    }
    assert words["plan"] <= words["train"]
    file = tmp_path / "config.toml"
    file.write_text("epochs = 0\n")
    refused = runner.invoke(app, ["plan", "--config", str(file)])
    assert refused.exit_code == 1
    assert "--epochs" in refused.stderr
