"""The workflow of `convert-weights`, and finding converted weights by name."""

from __future__ import annotations

import importlib.resources
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from weight_files import write_published_h5

from vgg_jax.cache import cache_folder
from vgg_jax.errors import WeightsError
from vgg_jax.weights.store import load_weights
from vgg_jax.workflows import convert
from vgg_jax.workflows.convert import convert_weights, find_weights

NOTOP = "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5"
WITH_TOP = "vgg16_weights_tf_dim_ordering_tf_kernels.h5"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch) -> Path:
    """Work in an empty folder, with a cache of its own and a small file as the demo's."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("VGG_JAX_CACHE", str(tmp_path / "cache"))
    demo = tmp_path / "demo.h5"
    write_published_h5(demo, seed=5)
    monkeypatch.setattr(convert, "_demo_file", lambda: demo)
    return here


@pytest.mark.parametrize(
    ("name", "top", "folder"),
    [
        ("mine.h5", False, "weights/mine"),
        (NOTOP, False, "weights/imagenet"),
        (WITH_TOP, True, "weights/imagenet-top"),
    ],
)
def test_a_file_is_converted_to_where_its_name_says(name, top, folder):
    arrays = write_published_h5(Path(name), top=top)
    result = convert_weights(name)
    assert result.folder == Path(folder)
    assert result.written
    assert result.source == name
    assert result.layers == (16 if top else 13)
    assert result.parameters == sum(k.size + b.size for k, b in arrays.values())
    assert (result.width, result.top) == (1 / 16, top)
    loaded = load_weights(result.folder)
    assert loaded.digest == result.digest
    np.testing.assert_array_equal(loaded.layers["conv3_1"][0], arrays["block3_conv1"][0])
    assert not convert_weights(name).written
    assert json.loads(json.dumps(result.as_dict()))["folder"] == folder


def test_out_says_where(tmp_path):
    write_published_h5(Path("mine.h5"))
    assert convert_weights("mine.h5", tmp_path / "out").folder == tmp_path / "out"
    assert load_weights(tmp_path / "out").width == 1 / 16


def test_nothing_is_written_for_a_bad_file(elsewhere):
    write_published_h5(Path("bad.h5"), edit=lambda file: file.clear())
    with pytest.raises(WeightsError):
        convert_weights("bad.h5")
    assert [path.name for path in elsewhere.iterdir()] == ["bad.h5"]


def test_the_demo_goes_to_weights_demo():
    assert convert_weights("demo").folder == Path("weights/demo")
    assert find_weights("demo") == Path("weights/demo")


def test_the_package_carries_the_demo(monkeypatch):
    monkeypatch.undo()
    path = Path(str(importlib.resources.files("vgg_jax"))) / "demo" / "vgg16_quarter.h5"
    assert convert._demo_file() == path


@pytest.mark.parametrize("name", ["imagenet", "imagenet-top"])
def test_what_would_need_a_download_names_the_ways_out(name):
    for attempt in (convert_weights, find_weights):
        with pytest.raises(WeightsError) as caught:
            attempt(name)
        message = str(caught.value)
        for way in (f"FILE.h5 --out weights/{name}", "--weights DIR", "--weights random:"):
            assert way in message
        assert "Downloading comes with a later version" in message
        assert message.count("\n") < 3


def test_weights_are_found_by_path_then_here_then_in_the_cache():
    write_published_h5(Path("mine.h5"))
    cached = cache_folder() / "weights" / "mine"
    convert_weights("mine.h5", cached)
    assert find_weights("mine") == cached
    convert_weights("mine.h5")
    assert find_weights("mine") == Path("weights/mine")
    shutil.copytree("weights/mine", "mine")
    assert find_weights("mine") == Path("mine")
    assert find_weights(str(cached)) == cached


def test_the_demo_is_converted_into_the_cache_when_first_asked_for(elsewhere):
    folder = find_weights("demo")
    assert folder.parent == cache_folder() / "weights"
    written = (folder / "metadata.json").stat().st_mtime_ns
    assert find_weights("demo") == folder
    assert (folder / "metadata.json").stat().st_mtime_ns == written
    assert not list(elsewhere.iterdir())


def test_later_demo_weights_are_not_mistaken_for_cached_ones(tmp_path):
    before = find_weights("demo")
    write_published_h5(tmp_path / "demo.h5", seed=6)
    after = find_weights("demo")
    assert load_weights(after).digest != load_weights(before).digest


def test_a_folder_called_demo_is_not_taken_for_weights(elsewhere):
    (elsewhere / "demo").mkdir()
    assert find_weights("demo").parent == cache_folder() / "weights"


def test_what_cannot_be_weights_is_told():
    write_published_h5(Path("mine.h5"))
    with pytest.raises(WeightsError, match=r"Run `vgg-jax convert-weights mine.h5` first"):
        find_weights("mine.h5")
    Path("photos").mkdir()
    with pytest.raises(WeightsError, match=r"photos holds no converted weights"):
        find_weights("photos")
    with pytest.raises(WeightsError, match=r"Did you mean 'imagenet'\?"):
        find_weights("imagenett")
    convert_weights("mine.h5")
    with pytest.raises(WeightsError, match=r"Did you mean 'mine'\?"):
        find_weights("mime")
