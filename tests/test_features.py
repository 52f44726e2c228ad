"""Kept features: the same training to the bit, found by what they depend on, and never trusted."""

from __future__ import annotations

import itertools
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mounts import in_shell, needs_mounts
from PIL import Image
from training_runs import SAME_BITS_SIZE, Recorder, same_run, spoil, stop_after

from vgg_jax.config import TrainConfig
from vgg_jax.errors import ConfigError, TrainingError
from vgg_jax.table_folders import tables
from vgg_jax.training import room
from vgg_jax.training.kept_rows import InMemory
from vgg_jax.training.rows import DiskRows
from vgg_jax.training.steps import Steps
from vgg_jax.workflows import session
from vgg_jax.workflows.resume import resume_training
from vgg_jax.workflows.train import train

pytestmark = pytest.mark.usefixtures("own_cache")
LITTLE_MEMORY = 5000  # bytes, of which 0.4 may be used: no features fit


@pytest.fixture(scope="module")
def options(options) -> dict[str, object]:
    """Options of a training whose kept features have the bits of those computed anew."""
    return {**options, "image_size": SAME_BITS_SIZE}


def no_memory(monkeypatch) -> None:
    monkeypatch.setattr(room, "available_bytes", lambda mesh=None: LITTLE_MEMORY)


@pytest.mark.parametrize(
    ("boundary", "head"), [("conv5_1", "dense256"), ("head", "dense256"), ("head", "linear")]
)
def test_kept_features_give_the_same_training_to_the_bit(
    options, tmp_path, monkeypatch, boundary, head, read
):
    given = {**options, "train_from": boundary, "head": head}
    train(**given, features="off", on_device="off", run=str(tmp_path / "off"))
    assert read == 2 * [21, 9]
    ways: dict[str, dict[str, Any]] = {
        "pictures": {"features": "off"},
        "memory": {"features": "memory"},
        "host": {"features": "memory", "on_device": "off"},
        "disk": {"features": "disk"},
        "again": {"features": "disk"},
        "disk alone": {"features": "disk"},
    }
    expected = {"again": [], "disk alone": []}
    for name, way in ways.items():
        read.clear()
        if name == "disk alone":
            no_memory(monkeypatch)
        train(**given, **way, run=str(tmp_path / name))
        assert [count for count in read if count] == expected.get(name, [21, 9]), name
        same_run(tmp_path / "off", tmp_path / name)


def test_features_on_disk_alone_are_written_and_read_back(options, tmp_path, monkeypatch, read):
    train(**options, features="off", run=str(tmp_path / "off"))
    no_memory(monkeypatch)
    got: list[int] = []
    original = DiskRows.get

    def counting(self, positions, rows):
        got.append(len(positions))
        return original(self, positions, rows)

    monkeypatch.setattr(DiskRows, "get", counting)
    read.clear()
    progress = Recorder()
    train(**options, run=str(tmp_path / "disk"), progress=progress)
    assert [count for count in read if count] == [21, 9]
    assert sum(got) == 2 * 30
    assert any("kept on disk (" in note for note in progress.notes)
    same_run(tmp_path / "off", tmp_path / "disk")


def test_views_are_used_in_turn_and_are_the_first_epochs_own(options, tmp_path, read):
    given = {**options, "augment": ("keras",), "epochs": 5, "views": 2}
    two = train(**given, features="off", run=str(tmp_path / "off"))
    read.clear()
    kept = train(**given, run=str(tmp_path / "kept"))
    assert [count for count in read if count] == [21, 9, 21]  # a view, validation, another view
    same_run(tmp_path / "off", tmp_path / "kept")
    losses = [metrics.loss for metrics in kept.history]
    assert losses == [metrics.loss for metrics in two.history]
    fresh = train(**{**given, "epochs": 2, "views": 0}, run=str(tmp_path / "fresh"))
    assert losses[:2] == [metrics.loss for metrics in fresh.history]


def test_bfloat16_takes_half_the_room_and_gives_nearly_the_same(options, tmp_path, own_cache):
    exact = train(**options, features="disk", run=str(tmp_path / "float32"))
    rounded = train(
        **options, features="disk", features_dtype="bfloat16", run=str(tmp_path / "bfloat16")
    )
    train(**options, features="off", features_dtype="bfloat16", run=str(tmp_path / "off"))
    same_run(tmp_path / "off", tmp_path / "bfloat16")
    for one, other in zip(exact.history, rounded.history, strict=True):
        assert other.loss == pytest.approx(one.loss, rel=2e-2)
        assert other.loss != one.loss
    rows = {
        table.settings["features_dtype"]: table.bytes for table in tables(own_cache / "features")
    }
    assert rows["bfloat16"] < rows["float32"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("option", ["features_dtype", "precision"])
def test_bfloat16_costs_no_accuracy_on_the_demo(tmp_path, option):
    accuracy = {}
    for dtype in ("float32", "bfloat16"):
        given: dict[str, Any] = {option: dtype}
        runs = [
            train(seed=seed, run=str(tmp_path / f"{dtype}-{seed}"), **given) for seed in range(5)
        ]
        accuracy[dtype] = np.mean([run.evaluate().accuracy for run in runs])
    assert accuracy["float32"] > 0.9
    assert accuracy["bfloat16"] == pytest.approx(accuracy["float32"], abs=0.02)


def test_only_pictures_that_changed_are_computed_anew(options, photos, tmp_path, read):
    data = tmp_path / "data"
    shutil.copytree(photos, data)
    given = {**options, "data": str(data), "epochs": 1}
    train(**given, run=str(tmp_path / "first"))
    changed = data / "train" / "dots" / "3.png"
    Image.new("RGB", (40, 36), "red").save(changed)
    (data / "train" / "dots" / "0.png").rename(data / "train" / "dots" / "renamed.png")
    read.clear()
    train(**given, run=str(tmp_path / "second"))
    assert [count for count in read if count] == [1]
    train(**given, features="off", run=str(tmp_path / "off"))
    same_run(tmp_path / "off", tmp_path / "second")


@pytest.mark.parametrize("alone", [False, True])
def test_damaged_features_are_computed_anew_and_told(
    options, tmp_path, own_cache, monkeypatch, read, alone
):
    train(**options, features="off", run=str(tmp_path / "off"))
    train(**options, run=str(tmp_path / "first"))
    spoil(own_cache / "features")
    if alone:
        no_memory(monkeypatch)
    read.clear()
    progress = Recorder()
    train(**options, run=str(tmp_path / "second"), progress=progress)
    assert [count for count in read if count] == [1]
    assert [w for w in progress.warnings if "damaged" in w] == [
        "Kept features were damaged on disk, in 1 places: what was lost is computed anew."
    ]
    same_run(tmp_path / "off", tmp_path / "second")
    read.clear()
    train(**options, run=str(tmp_path / "third"))  # mended
    assert not any(read)
    same_run(tmp_path / "off", tmp_path / "third")


@needs_mounts
@pytest.mark.parametrize("memory", ["much", "little"])
def test_a_full_disk_ends_the_keeping_and_nothing_else(options, tmp_path, memory, own_cache):
    """The disk looks large enough, but is not."""
    script = """
        mount -t tmpfs -o size=12k tmpfs "$1" || exit 99
        exec "$2" -c "$3"
    """
    (own_cache / "features").mkdir()
    code = f"""
import os, shutil, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from training_runs import Recorder
from vgg_jax.training import room
from vgg_jax.workflows.train import train
shutil.disk_usage = lambda path: shutil._ntuple_diskusage(10**12, 0, 10**12)
if {memory!r} == "little":
    room.available_bytes = lambda mesh=None: {LITTLE_MEMORY}
progress = Recorder()
train(**{options!r}, run={str(tmp_path / "full")!r}, progress=progress)
print(*progress.warnings, sep="\\n")
"""
    done = in_shell(script, own_cache / "features", sys.executable, code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("No further features are kept on disk.") == 1, done.stdout
    assert "No space left on device" in done.stdout
    train(**options, features="off", run=str(tmp_path / "off"))
    same_run(tmp_path / "off", tmp_path / "full")


def test_features_that_are_wrong_are_found_by_verification(options, tmp_path, monkeypatch):
    progress = Recorder()
    train(**options, verify_features=4, run=str(tmp_path / "right"), progress=progress)
    assert [note for note in progress.notes if "computed anew" in note] == [
        f"Kept features of 4 pictures of {split}, computed anew: equal to the bit."
        for split in ("train", "validation")
    ]
    original = Steps.features

    def wrong(self, frozen, images):
        return original(self, frozen, images) + np.float32(1e-3)

    monkeypatch.setattr(Steps, "features", wrong)
    with pytest.raises(TrainingError, match=r"4 pictures of train differ by .*\n.* cache clear"):
        train(**options, verify_features=4, run=str(tmp_path / "wrong"))


def test_nothing_to_verify_is_told(options, tmp_path, monkeypatch):
    given = {**options, "epochs": 1, "verify_features": 4}
    progress = Recorder()
    train(**given, features="off", run=str(tmp_path / "off"), progress=progress)
    assert progress.warnings == ["--verify-features 4 finds nothing to verify."]
    monkeypatch.setattr(InMemory, "put", lambda self, positions, features: None)
    progress = Recorder()
    train(**given, features="memory", run=str(tmp_path / "lost"), progress=progress)
    assert progress.warnings == [
        f"Of {split} no features are kept that could be verified."
        for split in ("train", "validation")
    ]


def test_wrong_features_in_memory_alone_are_not_sought_on_disk(options, tmp_path, monkeypatch):
    original, calls = Steps.features, itertools.count()

    def forgetful(self, frozen, images):
        return original(self, frozen, images) + np.float32(1e-3 * next(calls))

    monkeypatch.setattr(Steps, "features", forgetful)
    with pytest.raises(TrainingError, match=r"differ by up to .*\n.* --features off") as caught:
        train(**options, features="memory", verify_features=4, run=str(tmp_path / "run"))
    assert "cache clear" not in str(caught.value)


def test_last_bits_of_narrow_layers_are_told_and_allowed(options, tmp_path, monkeypatch):
    train(**options, run=str(tmp_path / "first"))
    original = Steps.features

    def rounded_otherwise(self, frozen, images):
        return original(self, frozen, images) * np.float32(1 + 2**-22)

    monkeypatch.setattr(Steps, "features", rounded_otherwise)
    progress = Recorder()
    train(**options, verify_features=4, run=str(tmp_path / "second"), progress=progress)
    told = [note for note in progress.notes if "computed anew" in note]
    assert len(told) == 2
    assert all(re.search(r"differ by 2\.\de-07\.$", note) for note in told), told


def test_pictures_stay_where_their_features_find_no_room(options, tmp_path, monkeypatch, read):
    """The features of conv2_1 are larger: 276 kB, of 207 kB of pictures."""
    monkeypatch.setattr(room, "available_bytes", lambda mesh=None: 600_000)
    given = {**options, "train_from": "conv2_1", "cache_size": "1kB", "epochs": 3}
    progress = Recorder()
    train(**given, run=str(tmp_path / "stay"), progress=progress)
    assert any("Features are not kept: 276.5 kB are" in note for note in progress.notes)
    assert [count for count in read if count] == [21, 9]


def test_an_interrupted_training_goes_on_with_the_features_it_has(options, tmp_path, read):
    train(**options, features="off", run=str(tmp_path / "whole"))
    read.clear()
    stop_after(2, options, tmp_path / "run")
    assert read == [21]
    read.clear()
    resume_training({"run": str(tmp_path / "run")}, Recorder())
    same_run(tmp_path / "whole", tmp_path / "run")
    # Two batches of eight were kept, and perhaps the third, which was under way.
    assert sum(read) in (21 - 16 + 9, 9)


@pytest.mark.parametrize(
    ("others", "prefixes"),
    [
        ({"features": "off"}, {"features": 1}),
        ({"features": "memory"}, {"features": 1}),
        ({"features": "disk"}, {"features": 1}),
        ({"augment": ("keras",)}, {"features": 1, "augmented_features": 1}),
        ({"augment": ("keras",), "views": 2}, {"features": 1, "augmented_features": 1}),
        ({"augment": ("mixup",)}, {"features": 1, "mixed_features": 1}),
        ({"train_from": "head", "head": "linear"}, {"features": 1, "_pool": 1}),
    ],
    ids=str,
)
def test_each_program_is_compiled_once(options, tmp_path, others, prefixes):
    """Over three epochs with a ragged last batch, validation included."""
    names = ("features", "augmented_features", "mixed_features", "_pool", "train", "evaluate")
    programs = {name: getattr(Steps, name) for name in names}
    before = {name: program._cache_size() for name, program in programs.items()}
    train(**{**options, **others, "epochs": 3}, run=str(tmp_path / "run"))
    grown = {name: program._cache_size() - before[name] for name, program in programs.items()}
    assert grown == dict.fromkeys(names, 0) | prefixes | {"train": 1, "evaluate": 1}


def notes_of(options, path: Path, **others) -> str:
    """Return what a training would say of features."""
    progress = Recorder()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "fit", lambda *args, **others: None)
        train(**{**options, **others}, run=str(path), progress=progress)
    return "\n".join(note for note in progress.notes if "eatures" in note)


def test_auto_keeps_them_where_nothing_is_random_and_says_why_not(options, tmp_path, monkeypatch):
    plain = notes_of(options, tmp_path / "plain")
    assert plain == (
        "Features are kept on disk and in memory (34.6 kB): nothing random comes before conv5_1;"
        " 0 of 30 are there."
    )
    views = notes_of(options, tmp_path / "views", augment=("keras",), views=4)
    assert "(58.8 kB): 2 views of each picture; 0 of 51" in views  # all that two epochs use
    augmented = notes_of(options, tmp_path / "augmented", augment=("keras",))
    assert augmented.startswith("Features are not kept: keras changes the pictures anew")
    assert "--views 4" in augmented
    mixed = notes_of(options, tmp_path / "mixed", augment=("mixup",))
    assert mixed == "Features are not kept: mixup mixes the pictures of each batch anew."
    early = notes_of(options, tmp_path / "early", train_from="conv1_2")
    assert early.startswith("Features are not kept: what comes before conv1_2 is computed faster")
    small = notes_of(options, tmp_path / "small", cache_size="1kB")
    assert small.startswith("Features are kept in memory (34.6 kB): nothing random comes before ")
    assert small.endswith("; not on disk: 34.6 kB are more than --cache-size 1kB.")
    no_memory(monkeypatch)
    none = notes_of(options, tmp_path / "none", cache_size="1kB")
    assert none.startswith("Features are not kept: 34.6 kB are more than --cache-size 1kB, and")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"features": "disk", "augment": ("keras",)}, "--features disk does not go with --augment"),
        ({"views": 2}, "--views 2 needs --augment"),
        ({"views": -1, "augment": ("keras",)}, r"--views .* is -1"),
        ({"cache_size": "much"}, r"--cache-size .* is 'much', but must be a size such as"),
        ({"verify_features": -1}, "--verify-features"),
        ({"features": "ram"}, r"--features .* is 'ram'.*one of auto, off, memory, disk"),
    ],
)
def test_wrong_options_are_told_before_anything_starts(given, message):
    with pytest.raises(ConfigError, match=message):
        TrainConfig(**given)


def test_what_there_is_no_room_for_is_refused(options, tmp_path, monkeypatch):
    with pytest.raises(
        ConfigError, match=r"--features disk: 34.6 kB are more than --cache-size 1kB"
    ):
        train(**options, features="disk", cache_size="1kB", run=str(tmp_path / "disk"))
    no_memory(monkeypatch)
    with pytest.raises(ConfigError, match=r"--features memory: 34.6 kB are more than 40% of the"):
        train(**options, features="memory", run=str(tmp_path / "memory"))
    with pytest.raises(ConfigError, match=r"--views 2 does not go with .* \(mixup\)"):
        train(**options, views=2, augment=("mixup",), run=str(tmp_path / "mixed"))


def test_how_features_are_kept_may_change_on_resume(options, tmp_path):
    train(**options, run=str(tmp_path / "run"))
    progress = Recorder()
    given = {"run": str(tmp_path / "run"), "epochs": 3, "features": "memory", "on_device": "off"}
    resume_training(given, progress)
    assert any("Features are kept in memory" in note for note in progress.notes)
    with pytest.raises(ConfigError, match="--features-dtype 'bfloat16' differs"):
        resume_training({**given, "epochs": 4, "features_dtype": "bfloat16"}, progress)
