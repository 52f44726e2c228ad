"""What is foreseen of epochs and batches, from what their parts take."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from vgg_jax.config import TrainConfig
from vgg_jax.data.sources import open_data
from vgg_jax.errors import ConfigError
from vgg_jax.progress import Progress
from vgg_jax.training.room import Memory
from vgg_jax.training.rows import DeviceRows
from vgg_jax.workflows.backbone import open_backbone
from vgg_jax.workflows.expectation import (
    expected_epochs,
    expected_features,
    largest_batch,
    rows_of_line,
)
from vgg_jax.workflows.load import build_functional
from vgg_jax.workflows.programs import Program, Programs
from vgg_jax.workflows.session import Session, chain_of
from vgg_jax.workflows.timing import Timing


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


TIMING = Timing(
    decode=0.5,
    prefix=10.0,
    validation_prefix=9.0,
    prefix_starting=0.125,
    train=4.0,
    evaluate=1.0,
    starting=0.375,
    around=0.25,
    around_second=0.5,
)
PROGRAMS = Programs(
    *(Program(0, 0, 0),) * 3,
    features=jax.ShapeDtypeStruct((2, 2, 8), np.float32),
    pooled=jax.ShapeDtypeStruct((8,), np.float32),
)


def expected(options, found=None, **others):
    """Return features and epochs; of the features what `found` holds is otherwise."""
    config = TrainConfig.from_values({**options, "epochs": 4, **others}).resolved()
    data = open_data(config.data, demo_folder=Path, seed=0)
    opened = open_backbone(config.weights, Progress())
    functional, parameters = build_functional(opened, config, 3)
    session = Session.start(config, functional, parameters, chain_of(config), 3)
    features = expected_features(session, data, PROGRAMS, Memory(config, session.mesh))
    features = dataclasses.replace(features, **(found or {}))
    return features, expected_epochs(config, data, TIMING, features)


# 21 pictures are 3 steps, 9 of validation are 2 batches; decoding takes 0.5 s each.
TRAIN, VALIDATION, AROUND, STARTING, PREFIX = 3 * (10 + 4), 2 * (9 + 1), 0.25, 0.375, 0.125
FIRST = TRAIN + VALIDATION + AROUND + 30 * 0.5 + STARTING + PREFIX
KEPT = 3 * 4 + 2 * 1 + AROUND
SECOND = 0.25  # what is around the second epoch, beyond what is around others


def test_epochs_with_kept_features_cost_the_suffix(options):
    features, epochs = expected(options)
    assert epochs.kept == [FIRST, KEPT + SECOND, KEPT, KEPT]
    later = TRAIN + VALIDATION + AROUND  # decoded pictures stay
    assert epochs.computed == [FIRST, later + SECOND, later, later]
    assert features.why_not is None
    assert features.bytes == 30 * 128
    assert features.memory_bytes == 30 * 32


def test_views_are_computed_one_an_epoch(options):
    features, epochs = expected(options, augment=("horizontal-flip",), views=2)
    viewed = TRAIN + 21 * 0.5 + 2 + AROUND  # a new view of the training split
    assert epochs.kept == [FIRST, viewed + SECOND, KEPT, KEPT]
    assert features.bytes == (2 * 21 + 9) * 128
    features, epochs = expected(options, augment=("horizontal-flip",), views=9)
    assert epochs.kept == [FIRST, viewed + SECOND, viewed, viewed]
    assert features.bytes == (4 * 21 + 9) * 128  # four epochs use four of them


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
    later = FIRST - STARTING - PREFIX
    assert epochs.computed == [FIRST, later + SECOND, later, later]
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
    monkeypatch.setattr("test_expectation.TIMING", dataclasses.replace(TIMING, decode=10.0))
    assert expected(options)[1].computed[0] == 30 * 10 + AROUND + STARTING + PREFIX


def test_what_is_stored_is_read_into_memory_once(options):
    found = {"stored": [14], "stored_validation": 9, "reading_seconds": 0.25}
    _, epochs = expected(options, found)
    third = (TRAIN + 21 * 0.5) / 3 + 3 * 4 * 2 / 3  # 7 of 21 pictures are computed
    first = third + 2 + 23 * 0.25 + AROUND + STARTING + PREFIX
    assert epochs.kept == [pytest.approx(first), KEPT + SECOND, KEPT, KEPT]
    whole = {**found, "stored": [21]}
    kept = expected(options, whole)[1].kept or []
    assert kept[0] == KEPT + 30 * 0.25 + STARTING  # without the prefix


def test_views_that_are_stored_are_read_when_their_turn_comes(options):
    found = {"stored": [21, 21], "stored_validation": 9, "reading_seconds": 0.25}
    kept = expected(options, found, augment=("horizontal-flip",), views=2)[1].kept or []
    assert kept[0] == KEPT + 30 * 0.25 + STARTING
    assert kept[1:] == [KEPT + 21 * 0.25 + SECOND, KEPT, KEPT]


def test_what_is_on_disk_alone_is_read_in_every_epoch(options, monkeypatch):
    found = {
        "stored": [21],
        "stored_validation": 9,
        "reading_seconds": 0.25,
        "held_by": None,
    }
    first = KEPT + 30 * 0.25 + STARTING
    later = KEPT + 30 * 0.25
    assert expected(options, found)[1].kept == [first, later + SECOND, later, later]
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")  # reads beside the steps
    assert (expected(options, found)[1].kept or [])[1:] == [KEPT + SECOND, KEPT, KEPT]
    found = {**found, "reading_seconds": 2.0}
    assert (expected(options, found)[1].kept or [])[1:] == [
        AROUND + SECOND + 60,
        *[AROUND + 60] * 2,
    ]
