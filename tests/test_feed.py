"""The data of a training: batches padded for the devices, every example once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from picture_files import examples_of, image_bytes

from vgg_jax.augment.chain import Chain
from vgg_jax.config import TrainConfig
from vgg_jax.workflows.feed import (
    absolute_data,
    plain_batches,
    training_batches,
)

EXAMPLES = examples_of([image_bytes(i) for i in range(7)])
CONFIG = TrainConfig(batch_size=3, image_size=32).resolved()


@pytest.mark.parametrize(("devices", "rows"), [(1, 3), (2, 4), (4, 4)])
def test_batches_are_padded_to_a_multiple_of_the_devices(devices, rows):
    for batches in (
        list(plain_batches(CONFIG, EXAMPLES, devices)),
        list(training_batches(CONFIG, Chain(), EXAMPLES, 1, devices)),
    ):
        assert len(batches) == 3
        assert {batch.images.shape for batch in batches} == {(rows, 32, 32, 3)}
        seen = np.concatenate([batch.index[batch.valid] for batch in batches])
        assert sorted(seen) == list(range(7))


def test_evaluation_is_in_order_and_training_in_that_of_the_epoch():
    def order(batches):
        return [int(i) for batch in batches for i in batch.index[batch.valid]]

    assert order(plain_batches(CONFIG, EXAMPLES, 1)) == list(range(7))
    one, again, two = (
        order(training_batches(CONFIG, Chain(), EXAMPLES, epoch, 1)) for epoch in (1, 1, 2)
    )
    assert one == again != two


def test_data_are_named_so_that_any_folder_will_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert absolute_data("photos") == str(tmp_path / "photos")
    assert absolute_data("~/photos") == str(Path.home() / "photos")
    assert [absolute_data(name) for name in ("demo", "tfds:a/b")] == ["demo", "tfds:a/b"]
