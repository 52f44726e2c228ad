"""`vgg-jax plan`: what it foresees, and what then happens."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import re
import subprocess
import sys
import tempfile

import jax
import pytest
from training_runs import Recorder, flags
from typer.testing import CliRunner

from vgg_jax.cli.app import app
from vgg_jax.config import TrainConfig
from vgg_jax.errors import CacheError, TrainingError
from vgg_jax.progress import Progress, format_bytes
from vgg_jax.training.kept_rows import InMemory
from vgg_jax.training.room import Memory
from vgg_jax.training.rows import DeviceRows, HostRows
from vgg_jax.workflows import plan as plan_module
from vgg_jax.workflows import session, timing
from vgg_jax.workflows.expectation import Epochs
from vgg_jax.workflows.plan import plan
from vgg_jax.workflows.summary import summarise
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


HURRIED = """
from vgg_jax.cli.app import main
from vgg_jax.workflows import timing
timing._SECONDS = 0.05
main()
"""


@pytest.fixture(autouse=True)
def _hurried(monkeypatch):
    """Measure for a short while, and leave the other tests what is compiled."""
    monkeypatch.setattr(timing, "_SECONDS", 0.05)
    monkeypatch.setattr(jax, "clear_caches", lambda: None)


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
    assert kept[1] < computed[1] / 3


@pytest.mark.parametrize("others", [{}, {"train_from": "head", "head": "linear"}], ids=str)
def test_what_was_compiled_is_what_runs(options, caplog, others):
    with jax.log_compiles(True), caplog.at_level(logging.WARNING):
        planned(options, batch_size=5, **others)
    names = [
        record.getMessage().split()[4]
        for record in caplog.records
        if record.getMessage().startswith("Finished XLA compilation of ")
    ]
    # For batches of 5, and for two sizes to tell the largest batch; for chunks of them; the prefix
    # once more to count what it moves. The validation split has more than 5 pictures.
    counts = {name: names.count(name) for name in names if "train" in name}
    in_chunks = 1 if others else 0
    assert counts == {"jit(train)": 3 + in_chunks}
    assert names.count("jit(evaluate)") == 3 + in_chunks
    assert names.count("jit(features)") == 4


LINEAR = {"train_from": "head", "head": "linear"}


@pytest.mark.parametrize(
    ("others", "but_for"),
    [({}, set()), (LINEAR, set()), ({**LINEAR, "features": "off"}, {"in_chunk"})],
    ids=str,
)
def test_a_training_finds_what_was_compiled(options, tmp_path, others, but_for):
    """In batches, and in chunks of them, down to the smallest of programs."""
    given = flags({**options, **others, "epochs": 1})
    environment = {
        **os.environ,
        "VGG_JAX_CACHE": str(tmp_path / "cache"),
        "JAX_ENABLE_COMPILATION_CACHE": "true",
        "JAX_DEBUG_LOG_MODULES": "jax._src.compiler",
    }
    for command in (["plan", "--json", *given], ["train", *given, "--run", str(tmp_path / "run")]):
        done = subprocess.run(
            [sys.executable, "-c", HURRIED, *command],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        found = set(re.findall(r"compilation cache hit for 'jit_(\w+)'", done.stderr))
        assert found >= {"features", "train", "evaluate"}  # by `plan` too, which tries a start
        if command[0] == "plan":
            plan = json.loads(done.stdout)
            assert 0.01 < plan["starting_seconds"] < plan["epoch_seconds"][0]
    missed = re.findall(r"COMPILATION CACHE MISS for 'jit_(\w+)'", done.stderr)
    assert set(missed) == but_for


@pytest.mark.parametrize(
    ("others", "place", "counts"),
    [
        ({"batch_size": 2}, DeviceRows, [21, 9]),  # of which fewer are tried
        ({"on_device": "off"}, HostRows, [21, 9]),
        ({"features": "off"}, DeviceRows, [21, 21]),  # the same few for both
    ],
    ids=str,
)
def test_memory_is_made_ready_as_the_training_will(options, monkeypatch, others, place, counts):
    monkeypatch.setattr(plan_module, "time_reading", lambda *arguments, held: 0.0)
    made: list[tuple[type, int]] = []
    for kind in (DeviceRows, HostRows):

        def making(self, mesh, count, *others, kind=kind, plain=kind.__init__):
            made.append((kind, count))
            plain(self, mesh, count, *others)

        monkeypatch.setattr(kind, "__init__", making)
    planned(options, **others)
    assert made == 2 * [(place, count) for count in counts]


def test_much_memory_is_not_made_ready(options, monkeypatch):
    counts = []
    plain = DeviceRows.__init__

    def making(self, mesh, count, *others):
        counts.append(count)
        plain(self, mesh, count, *others)

    monkeypatch.setattr(plan_module, "time_reading", lambda *arguments, held: 0.0)
    monkeypatch.setattr(timing, "_MOST_ROOM_BYTES", 1000)
    monkeypatch.setattr(DeviceRows, "__init__", making)
    planned(options, batch_size=2)
    assert counts == 4 * [8]  # the few that are tried


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
    original = timing._Few.computed

    def counting(few, **others):
        measured.append(len(few.features.labels))
        return original(few, **others)

    monkeypatch.setattr(timing._Few, "computed", counting)
    planned(options, augment=augment)
    assert measured == 2 * [21, 9][:passes]  # in the middle of a training, and at its start


def test_augmentations_that_mix_a_batch_leave_nothing_to_keep(options, tmp_path):
    (tmp_path / "swap.py").write_text(MIXES)
    found = planned(options, augment=(f"{tmp_path / 'swap.py'}#Swap",))
    assert found.epochs.kept is None
    assert found.features.why_not is not None
    assert found.epoch_seconds == found.epochs.computed


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


def test_chunks_change_nothing_but_memory_and_time(options, monkeypatch):
    given = {**options, "train_from": "head", "head": "linear"}
    lines = []

    def line(needed, room):
        lines.append(needed)
        return 8

    monkeypatch.setattr(plan_module, "largest_batch", line)
    in_chunks = planned(given)
    monkeypatch.setattr(session, "most_batches", lambda *others, mixes: 1)
    one_by_one = planned(given)
    assert lines[0] == lines[1]  # of batches of two sizes, none of them in chunks
    assert in_chunks.memory_bytes > one_by_one.memory_bytes
    for name in ("train", "evaluate"):
        found, plain = (getattr(each, name).program for each in (in_chunks, one_by_one))
        assert found.multiply_adds == plain.multiply_adds
        assert found.bytes_accessed == plain.bytes_accessed
        assert found.memory_bytes > plain.memory_bytes


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="devices have no process of Python")
def test_batches_that_may_not_fit_are_warned_of(options, monkeypatch):
    monkeypatch.setattr(plan_module, "available_bytes", lambda mesh: 710_000_000)
    done = CliRunner().invoke(app, ["plan", *flags(options)])
    assert done.exit_code == 0, done.output
    assert "Largest safe batch: none." in done.stdout
    assert "Batches of 8 may not fit" in done.stderr
    assert "--batch-size 4" in done.stderr


def fail(*arguments, held):
    raise CacheError("gone")


@pytest.mark.usefixtures("own_cache")
def test_features_of_earlier_trainings_count(options, tmp_path, monkeypatch):
    given = {**options, "epochs": 3}
    first = planned(given)
    assert first.features.stored == [0]
    train(**given, run=str(tmp_path / "run"))
    second = planned(given)
    assert second.features.stored == [21]
    assert second.features.stored_validation == 9
    kept = second.epochs.kept or []
    for epoch in (1, 2):
        assert kept[epoch] < second.epochs.computed[epoch]
    assert second.features.reading_seconds > 0
    assert kept[0] - kept[2] > 30 * second.features.reading_seconds
    with monkeypatch.context() as patched:
        patched.setattr(Memory, "place_for", lambda self, size: None)
        load, orders = InMemory.load, []
        patched.setattr(InMemory, "load", lambda *given: orders.append(given[3]) or load(*given))
        alone = planned(given)  # on disk: read in every epoch, in drawn order
    assert [order.tolist() for order in orders] != [sorted(order) for order in orders]
    assert alone.features.held_by is None
    assert alone.features.reading_seconds > 0
    with monkeypatch.context() as patched:
        patched.setattr(plan_module, "time_reading", fail)
        unread = plan(TrainConfig.from_values(given), recorder := Recorder())
    assert unread.features.reading_seconds == 0
    assert recorder.warnings == ["How long reading features takes is left out: gone"]
    viewed = {**given, "augment": ("horizontal-flip",), "views": 2}
    train(**{**viewed, "epochs": 1}, run=str(tmp_path / "viewed"))
    assert planned(viewed).features.stored == [21, 0]
    assert planned({**given, "features": "off"}).features.stored == [0]


def test_the_command(options):
    runner = CliRunner()
    done = runner.invoke(app, ["plan", *flags({**options, "epochs": 4})])
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0] == "photos: 3 classes; 21 train, 9 validation, 9 test. Batches of 8 on 1 x cpu."
    for start in (
        "frozen ",
        "trained ",
        "Parameters: ",
        "Memory: ",
        "Features: 2 x 2 x 32 ",
        "1 ",
        "all ",
    ):
        assert any(line.startswith(start) for line in lines), (start, done.stdout)
    done = runner.invoke(app, ["plan", *flags(options), "--json"])
    result = json.loads(done.stdout)
    assert len(result["epochs"]["kept"]) == len(result["epoch_seconds"]) == 2
    assert result["largest_batch_size"] == 21  # as many as there are


def test_epochs_that_are_too_quick_to_be_foreseen_have_a_row_in_common(options, monkeypatch):
    epochs = Epochs(computed=[30.0, 25.0, 25.0, 25.0], kept=[30.0, 0.019, 0.001, 0.02])
    found = dataclasses.replace(planned(options), epochs=epochs)
    monkeypatch.setattr(plan_module, "plan", lambda checked, progress: found)
    done = CliRunner().invoke(app, ["plan", *flags(options)])
    assert [re.split(" {2,}", line.strip()) for line in done.stdout.splitlines()[-4:]] == [
        ["1", "30 s", "30 s"],
        ["2 to 3", "under 20 ms", "25 s"],
        ["4", "20 ms", "25 s"],
        ["all", "30 s", "1 min 45 s"],
    ]


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
