"""Data prepared by TFDS: read as ArrayRecord without TensorFlow, and refused with what to do."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vgg_jax.data.sources import DataSet, open_data
from vgg_jax.errors import DataError
from vgg_jax.workflows.train import train

NO_TENSORFLOW = "assert 'tensorflow' not in sys.modules, 'TensorFlow was imported'"


def run(code: str, data_dir: Path) -> None:
    """Run Python `code` in a process of its own, where TFDS keeps its data in `data_dir`."""
    paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        check=True,
        env={**os.environ, "TFDS_DATA_DIR": str(data_dir), "PYTHONPATH": paths},
    )


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepare the tiny data set with the command that error messages give."""
    data_dir = tmp_path_factory.mktemp("tfds")
    command = "import tensorflow_datasets as tfds; tfds.data_source('tiny_pictures')"
    run(f"import sys, tiny_tfds.builder; {command}; {NO_TENSORFLOW}", data_dir)
    return data_dir


@pytest.fixture
def data_dir(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared))
    return prepared


def open_tiny(name: str = "tiny_pictures") -> DataSet:
    return open_data(f"tfds:{name}", demo_folder=Path, seed=0)


@pytest.mark.parametrize("name", ["tiny_pictures", "tiny_pictures:1.0.0"])
def test_prepared_data_are_read(data_dir, name):
    from tiny_tfds.builder import CLASSES, picture

    data = open_tiny(name)
    assert data.class_names == CLASSES  # the label's order, not the alphabet's
    assert data.name == name.replace(":", "-")
    assert {split: len(examples) for split, examples in data.splits.items()} == {
        "train": 9,
        "validation": 3,
        "test": 6,
    }
    assert any("validation" in note for note in data.notes)
    test = data.splits["test"]
    # TFDS shuffles what it writes: compare by content.
    expected = {picture("test", i): i % 3 for i in range(6)}
    assert {test.read(i): label for i, label in enumerate(test.labels.tolist())} == expected
    assert test.names[4] == f"tfds:{name}/test#4"
    np.testing.assert_array_equal(test.occurrences, np.zeros(6))


def test_reading_imports_no_tensorflow(data_dir):
    run(
        "import sys\n"
        "from vgg_jax.data.sources import open_data\n"
        "from vgg_jax.data.pipeline import batches\n"
        "data = open_data('tfds:tiny_pictures', demo_folder=None, seed=0)\n"
        "found = list(batches(data.splits['train'], batch_size=4, image_size=8, threads=2))\n"
        "assert sum(batch.valid.sum() for batch in found) == 9\n" + NO_TENSORFLOW,
        data_dir,
    )


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("tiny_picture", ["no data named 'tiny_picture'", "Did you mean 'tiny_pictures'?"]),
        ("mnsit", ["no data named 'mnsit'", "Did you mean 'mnist'?"]),
        (
            "mnist",
            [
                "'mnist' are not prepared",
                "TFDS_DATA_DIR",
                "import tensorflow_datasets as tfds; tfds.data_source('mnist')",
            ],
        ),
        ("tiny_pictures:3.0.0", ["there are: tiny_pictures:1.0.0", "data_source"]),
        ("tiny_pictures/large", ["there are: tiny_pictures:1.0.0", "data_source"]),
    ],
)
def test_data_that_are_not_there_say_how_to_prepare_them(data_dir, name, said):
    with pytest.raises(DataError) as failure:
        open_tiny(name)
    message = str(failure.value)
    assert str(data_dir) in message
    assert all(part in message for part in said), message
    assert message.count("\n") < 3


@pytest.fixture
def copied(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder of the tiny data set that a test may change."""
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    return tmp_path / "tiny_pictures"


def test_tfrecord_is_refused(copied):
    path = copied / "1.0.0" / "dataset_info.json"
    info = json.loads(path.read_text())
    path.write_text(json.dumps({**info, "fileFormat": "tfrecord"}))
    with pytest.raises(DataError, match="prepared as tfrecord") as failure:
        open_tiny()
    assert "tfds.data_source('tiny_pictures')" in str(failure.value)


def test_data_without_labels_are_refused(copied):
    path = copied / "1.0.0" / "features.json"
    path.write_text(path.read_text().replace('"label"', '"number"'))
    with pytest.raises(DataError, match="features are: image, number"):
        open_tiny()


def test_a_configuration_is_found(copied):
    (copied / "small").mkdir()
    (copied / "1.0.0").rename(copied / "small" / "1.0.0")
    assert open_tiny().class_names == open_tiny("tiny_pictures/small").class_names
    shutil.copytree(copied / "small", copied / "large")
    with pytest.raises(DataError, match="there are: tiny_pictures/large, tiny_pictures/small"):
        open_tiny()
    (copied / ".config").mkdir()
    (copied / ".config" / "metadata.json").write_text('{"default_config_name": "large"}')
    assert len(open_tiny().splits["test"]) == 6


def test_the_newest_whole_version_is_read(copied):
    for version in ("0.9.0", "0.10.0"):
        shutil.copytree(copied / "1.0.0", copied / version)
        (copied / version / "label.labels.txt").write_text(f"cat\ndog\n{version}\n")
    (copied / "1.0.0" / "features.json").unlink()
    assert open_tiny().class_names == ("cat", "dog", "0.10.0")
    assert open_tiny("tiny_pictures:0.9.0").class_names == ("cat", "dog", "0.9.0")


def test_they_are_trained_on_and_their_classes_are_matched_by_name(data_dir, weights, tmp_path):
    options = {"weights": weights, "image_size": 32, "epochs": 1, "batch_size": 4}
    trained = train(data="tfds:tiny_pictures", run=str(tmp_path / "run"), **options)
    result = trained.evaluate()
    assert result.examples == 6
    test = open_tiny().splits["test"]
    for i, label in enumerate(test.labels):  # the same pictures, in folders in another order
        folder = tmp_path / "folders" / open_tiny().class_names[label]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{i}.png").write_bytes(test.read(i))
    again = trained.evaluate(data=str(tmp_path / "folders"))
    assert again.classes == result.classes
    assert again.confusion_matrix == result.confusion_matrix
    assert again.loss == pytest.approx(result.loss, rel=1e-5)
