"""Folders of converted weights: written whole or not at all, and never read when damaged."""

from __future__ import annotations

import dataclasses
import gc
import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from source_weights import read_source_weights
from weight_files import write_published_h5

from vgg_jax.errors import WeightsError
from vgg_jax.weights import store
from vgg_jax.weights.checksums import array_sha256
from vgg_jax.weights.metadata import METADATA_FILE, read_metadata, seal_metadata
from vgg_jax.weights.source import SourceWeights
from vgg_jax.weights.store import load_weights, save_weights


def _weights(folder: Path, seed: int = 0, *, top: bool = False, width: float = 1 / 16):
    path = folder / f"source-{seed}-{top}-{width}.h5"
    write_published_h5(path, width, seed, top)
    return read_source_weights(path)


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> SourceWeights:
    return _weights(tmp_path_factory.mktemp("source"), top=True)


@pytest.fixture(scope="module")
def saved(tmp_path_factory, weights) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "weights"
    assert save_weights(weights, folder)
    return folder


@pytest.fixture
def copy(tmp_path, saved) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def _edit_metadata(folder: Path, **changes: object) -> None:
    path = folder / METADATA_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _write(path: Path, text: str) -> None:
    path.write_text(text)


@pytest.mark.parametrize("with_top", [False, True])
def test_what_is_loaded_is_what_was_saved(saved, weights, with_top):
    loaded = load_weights(saved, with_top)
    assert list(loaded.layers) == list(weights.layers)
    assert list(loaded.top) == (["fc6", "fc7", "fc8"] if with_top else [])
    for name, pair in (*loaded.layers.items(), *loaded.top.items()):
        expected = weights.layers.get(name) or weights.top[name]
        for array, expected_array in zip(pair, expected, strict=True):
            assert type(array) is np.ndarray
            np.testing.assert_array_equal(array, expected_array, err_msg=name)
    assert (loaded.width, loaded.mean, loaded.scale) == (1 / 16, weights.mean, weights.scale)
    assert loaded.folder == saved


def test_metadata_tells_where_the_weights_come_from(saved, weights):
    metadata = read_metadata(saved)
    assert metadata["format_version"] == 1
    assert metadata["source"] == {
        "file": weights.source,
        "sha256": weights.sha256,
        "path": weights.path,
        "layout": weights.layout,
        "preprocessing": weights.preprocessing,
    }
    kernel = weights.layers["conv2_1"][0]
    assert metadata["layers"]["conv2_1"]["kernel"] == {
        "shape": [3, 3, 4, 8],
        "sha256": array_sha256(kernel),
    }


def test_metadata_have_checksums_of_what_was_added_and_of_themselves(tmp_path, weights):
    save_weights(weights, tmp_path / "out", lambda folder: None)
    assert read_metadata(tmp_path / "out")["files"] == {}
    shutil.rmtree(tmp_path / "out")
    save_weights(weights, tmp_path / "out", lambda folder: _write(folder / "note.txt", "a"))
    metadata = read_metadata(tmp_path / "out")
    assert metadata["files"] == {"note.txt": hashlib.sha256(b"a").hexdigest()}
    assert seal_metadata(metadata) == metadata
    assert seal_metadata(metadata | {"vgg_jax_version": ""})["seal"] != metadata["seal"]


def test_a_checksum_tells_values_shapes_and_types_apart():
    array = np.arange(6, dtype=np.float32)
    others = [array.reshape(2, 3), array.reshape(3, 2), array.view(np.int32), -array, array[:5]]
    assert len({array_sha256(other) for other in (array, *others)}) == 6
    transposed = array.reshape(2, 3).T
    assert array_sha256(transposed) == array_sha256(transposed.copy())
    assert array_sha256(np.float32(3)) != array_sha256(np.ones((), np.float32))  # pyright: ignore


def test_saving_the_same_again_is_a_success_that_writes_nothing(saved, weights):
    before = {path: path.stat().st_mtime_ns for path in saved.rglob("*")}
    renamed = dataclasses.replace(weights, source="another-name.h5")
    assert not save_weights(renamed, saved)
    assert {path: path.stat().st_mtime_ns for path in saved.rglob("*")} == before


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        ({"seed": 1, "top": True}, "16 layers differ, the first is conv1_1; from 'source-0-True"),
        ({"top": False}, "with top"),
        ({"width": 1 / 32, "top": True}, "width 0.0625, not 0.03125"),
    ],
)
def test_other_weights_are_not_overwritten(tmp_path, saved, other, difference):
    with pytest.raises(WeightsError, match=f"already holds other weights .{difference}") as caught:
        save_weights(_weights(tmp_path, **other), saved)
    assert "--out" in str(caught.value)
    load_weights(saved, with_top=True)


def test_another_mean_makes_other_weights(saved, weights):
    other = dataclasses.replace(weights, mean=(0.0, 0.0, 0.0))
    with pytest.raises(WeightsError, match=r"mean \[123.68, 116.779, 103.939\], not \[0.0"):
        save_weights(other, saved)


def test_a_damaged_folder_does_not_pass_for_the_same(copy, weights):
    shutil.rmtree(copy / store.ARRAYS_FOLDER)
    with pytest.raises(WeightsError, match="is damaged"):
        save_weights(weights, copy)


def test_a_folder_of_something_else_is_left_alone(tmp_path, weights):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    with pytest.raises(WeightsError, match=r"is in the way: choose another --out"):
        save_weights(weights, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.txt"]


def test_an_empty_folder_is_filled(tmp_path, weights):
    (tmp_path / "out").mkdir()
    assert save_weights(weights, tmp_path / "out")
    load_weights(tmp_path / "out")


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_nothing_remains_of_a_write_that_failed(tmp_path, weights, monkeypatch, error):
    def fail(folder: Path, weights: SourceWeights) -> None:
        folder.mkdir()
        (folder / "half").write_text("half")
        raise error

    monkeypatch.setattr(store, "_save_arrays", fail)
    with pytest.raises((WeightsError, KeyboardInterrupt)):
        save_weights(weights, tmp_path / "deep" / "out")
    assert list((tmp_path / "deep").iterdir()) == []


def test_too_little_space_is_told_before_writing(tmp_path, weights, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(store.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(WeightsError, match=r"Not enough space for .*needed, 1,000 are free"):
        save_weights(weights, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_named(tmp_path, weights):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(WeightsError, match=r"Cannot write .*out"):
        save_weights(weights, tmp_path / "file" / "out")


def test_another_process_may_be_faster(tmp_path, weights, monkeypatch):
    save_arrays = store._save_arrays

    def save_while_another_does(folder: Path, weights: SourceWeights) -> None:
        save_arrays(folder, weights)
        monkeypatch.setattr(store, "_save_arrays", save_arrays)
        assert save_weights(weights, tmp_path / "out")

    monkeypatch.setattr(store, "_save_arrays", save_while_another_does)
    assert not save_weights(weights, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: shutil.rmtree(folder), "No such folder of converted weights"),
        (lambda folder: (folder / "metadata.json").unlink(), "it has no metadata.json"),
        (lambda folder: (folder / "metadata.json").write_text("{"), "metadata.json is damaged"),
        (lambda folder: (folder / "metadata.json").write_text("[]"), "metadata.json is damaged"),
        (lambda folder: _edit_metadata(folder, format_version=2), "has format version 2, but this"),
        (lambda folder: _edit_metadata(folder, mean=[0, 0, 0]), "its digest does not match"),
        (lambda folder: _edit_metadata(folder, layers={}), "its digest does not match"),
        (lambda folder: shutil.rmtree(folder / "arrays"), "its arrays cannot be read"),
        (lambda folder: (folder / "arrays" / "_METADATA").write_text("{}"), "cannot be read"),
    ],
)
def test_a_changed_or_incomplete_folder_is_refused(copy, spoil, message):
    spoil(copy)
    with pytest.raises(WeightsError, match=message):
        load_weights(copy)


@pytest.mark.parametrize("with_top", [False, True])
def test_of_many_arrays_that_cannot_be_read_the_first_is_told_alone(copy, with_top, caplog, capfd):
    for path in copy.glob("arrays/ocdbt.process_*/d/*"):
        path.write_bytes(b"")
    # Those before it are so small that they are in the index.
    with pytest.raises(WeightsError, match=r"the kernel of conv2_1 cannot be read"):
        load_weights(copy, with_top)
    gc.collect()  # so that whatever was left behind would be heard
    assert not caplog.records
    assert capfd.readouterr() == ("", "")


def test_arrays_of_other_weights_are_noticed(copy, tmp_path):
    save_weights(_weights(tmp_path, seed=1), tmp_path / "other")
    shutil.rmtree(copy / "arrays")
    shutil.copytree(tmp_path / "other" / "arrays", copy / "arrays")
    with pytest.raises(WeightsError, match="the kernel of conv1_1 does not match its checksum"):
        load_weights(copy)


def test_flipped_bits_are_noticed(copy, weights):
    contents = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    noticed = 0
    for name, (kernel, _) in weights.layers.items():
        holding = [path for path, content in contents.items() if kernel.tobytes() in content]
        if not holding:
            continue  # Orbax packs the smallest arrays into its index
        flipped = bytearray(kernel.tobytes())
        flipped[kernel.nbytes // 2] ^= 1
        for path in holding:
            path.write_bytes(contents[path].replace(kernel.tobytes(), bytes(flipped)))
        try:
            # Orbax leaves bytes behind that it no longer reads: then nothing may be different.
            np.testing.assert_array_equal(load_weights(copy).layers[name][0], kernel)
        except WeightsError as error:
            noticed += f"the kernel of {name} does not match its checksum" in str(error)
        for path in holding:
            path.write_bytes(contents[path])
    assert noticed >= 5
    load_weights(copy)


def test_truncation_of_any_file_is_noticed_or_harmless(copy, weights):
    for path in sorted(path for path in copy.rglob("*") if path.is_file()):
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        try:
            loaded = load_weights(copy)  # some files of Orbax are not needed
            np.testing.assert_array_equal(loaded.layers["conv5_3"][0], weights.layers["conv5_3"][0])
        except WeightsError:
            pass
        path.write_bytes(content)
