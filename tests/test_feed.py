"""The data of a training: batches padded for the devices, every example once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from picture_files import examples_of, image_bytes

from vgg_jax.augment.chain import Chain
from vgg_jax.config import TrainConfig
from vgg_jax.workflows.feed import absolute_data, read_batches

EXAMPLES = examples_of([image_bytes(i) for i in range(7)])
CONFIG = TrainConfig(batch_size=3, image_size=32).resolved()


@pytest.mark.parametrize(("devices", "rows"), [(1, 3), (2, 4), (4, 4)])
def test_batches_are_padded_to_a_multiple_of_the_devices(devices, rows):
    batches = list(read_batches(CONFIG, Chain(), EXAMPLES, None, 1, devices))
    assert len(batches) == 3
    assert {batch.images.shape for batch in batches} == {(rows, 32, 32, 3)}
    seen = np.concatenate([batch.index[batch.valid] for batch in batches])
    assert seen.tolist() == list(range(7))


def test_data_are_named_so_that_any_folder_will_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert absolute_data("photos") == str(tmp_path / "photos")
    assert absolute_data("~/photos") == str(Path.home() / "photos")
    assert [absolute_data(name) for name in ("demo", "tfds:a/b")] == ["demo", "tfds:a/b"]
