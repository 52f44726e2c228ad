"""The workflow of `convert-weights`, and finding converted weights by name."""

from __future__ import annotations

import hashlib
import importlib.resources
import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import h5py
import numpy as np
import pytest
from broken_server import BrokenServer
from golden_sources import OUTPUTS, SIDE, SOURCES
from PIL import Image
from weight_files import keras_arrays, write_keras_arrays, write_published_h5

from vgg_jax import load_classifier
from vgg_jax.cache import cache_folder
from vgg_jax.errors import ConfigError, DataError, WeightsError
from vgg_jax.progress import Progress
from vgg_jax.training.run_folder import RunFolder
from vgg_jax.weights.arrange import arrange_weights
from vgg_jax.weights.download import public_files
from vgg_jax.weights.reading import read_weight_file
from vgg_jax.weights.source import PREPROCESSINGS
from vgg_jax.weights.store import load_weights
from vgg_jax.workflows import locate
from vgg_jax.workflows.convert import convert_weights, find_weights
from vgg_jax.workflows.predict import predict
from vgg_jax.workflows.train import train
from vgg_jax.workflows.verify import verify_weights


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch) -> Path:
    """Work in an empty folder, with a cache of its own and a small file as the demo's."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("VGG_JAX_CACHE", str(tmp_path / "cache"))
    demo = tmp_path / "demo.h5"
    write_published_h5(demo, seed=5)
    monkeypatch.setattr(locate, "demo_file", lambda: demo)
    return here


@pytest.mark.parametrize(
    ("name", "top", "folder"),
    [
        ("mine.h5", False, "weights/mine"),
        ("mine.weights.h5", True, "weights/mine"),
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
    assert (result.width, result.head) == (1 / 16, "top" if top else "")
    assert result.published is None
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
    assert locate.demo_file() == path


@pytest.mark.parametrize("name", ["imagenet", "imagenet-top"])
def test_what_would_need_a_download_names_the_ways_out(name):
    for attempt in (convert_weights, find_weights):
        with pytest.raises(WeightsError) as caught:
            attempt(name)
        message = str(caught.value)
        for way in (f"FILE --out weights/{name}", "--weights DIR", "--weights random:"):
            assert way in message
        assert "Cannot reach 127.0.0.1:9" in message
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
    with pytest.raises(WeightsError, match=r"^No converted weights at /no/such\.\n"):
        find_weights("/no/such")
    convert_weights("mine.h5")
    with pytest.raises(WeightsError, match=r"Did you mean 'mine'\?"):
        find_weights("mime")


def test_the_proof_lies_beside_the_weights_and_says_all():
    write_published_h5(Path("mine.h5"), 1 / 32)
    result = convert_weights("mine.h5")
    written = json.loads((result.folder / "proof.json").read_text())
    assert written == json.loads(json.dumps(result.proof.as_dict()))
    assert written["sha256"] == hashlib.sha256(Path("mine.h5").read_bytes()).hexdigest()
    assert len(written["errors"]) == 18
    assert all(0 <= error <= 1e-5 for error in written["errors"].values())
    assert all(control["error"] > 1e-5 for control in written["controls"].values())
    assert len(written["controls"]) >= 5
    stored = json.loads((result.folder / "metadata.json").read_text())["layers"]
    assert {row["parameter"]: row["sha256"] for row in written["rows"]} == {
        f"{layer}/{role}": described["sha256"]
        for layer, pair in stored.items()
        for role, described in pair.items()
    }
    assert {"vgg-jax", "jax", "numpy", "device"} <= written["versions"].keys()
    text = (result.folder / "proof.md").read_text()
    assert text.startswith("# Proof of a weight conversion\n\n**Passed.**")
    for word in (written["sha256"], *written["errors"], *written["controls"], "block4_conv2_W_1"):
        assert word in text


def write_with_top(path: Path) -> None:
    """Write weights of width 1/32 with a top of ten classes that takes pictures of side 224."""
    arrays = keras_arrays(1 / 32)
    rng = np.random.default_rng(0)
    for name, shape in (("fc1", (49 * 16, 24)), ("fc2", (24, 24)), ("predictions", (24, 10))):
        kernel = rng.normal(0, math.sqrt(2 / shape[0]), shape).astype(np.float32)
        arrays[name] = kernel, np.zeros(shape[1], np.float32)
    write_keras_arrays(path, arrays)


@pytest.fixture
def picture(tmp_path) -> Path:
    Image.fromarray(OUTPUTS["images"][0]).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_try_shows_the_classes_that_predict_shows(picture):
    write_with_top(Path("top.h5"))
    proof = convert_weights("top.h5", try_picture=picture).proof
    [expected] = predict(None, [picture], weights="top")
    assert [name for name, _ in proof.top5] == list(expected.probabilities)[:5]
    for name, share in proof.top5:
        assert share == pytest.approx(expected.probabilities[name], abs=1e-5)
    assert "photo.png: class" in proof.summary_lines()[-1]


def test_try_shows_the_classes_of_a_classifier(picture):
    file = SOURCES / "binary.weights.h5"  # one sigmoid, of which two classes become
    result = convert_weights(file, image_size=SIDE, try_picture=picture)
    expected = load_classifier(result.folder).predict(OUTPUTS["images"][:1])[0]
    found = dict(result.proof.top5)
    assert [found[name] for name in result.class_names] == pytest.approx(expected, abs=1e-6)
    assert result.proof.top5[0][1] == max(found.values())


def test_try_needs_classes_and_a_picture(elsewhere, picture):
    with pytest.raises(ConfigError, match=r"--try needs weights with top"):
        convert_weights(SOURCES / "backbone.keras", try_picture=picture)
    for wrong, reason in ((picture.parent / "none.jpg", "No such file"), (SOURCES, "directory")):
        with pytest.raises(DataError, match=reason):
            convert_weights(SOURCES / "binary.keras", try_picture=wrong)
    assert not list(elsewhere.iterdir())


CAFFE = ((123.68, 116.779, 103.939), (1, 1, 1))
DOCUMENTED = {  # mean and scale, RGB
    "caffe": CAFFE,
    "caffe-rgb": CAFFE,
    "torch": ((123.675, 116.28, 103.53), (1 / 58.395, 1 / 57.12, 1 / 57.375)),
    "tf": ((127.5,) * 3, (1 / 127.5,) * 3),
    "rescale": ((0,) * 3, (1 / 255,) * 3),
}


@pytest.mark.parametrize("name", PREPROCESSINGS)
def test_preprocessing_decides_mean_scale_and_order_of_channels(name):
    arrays = write_published_h5(Path("mine.h5"), 1 / 32)
    weights = arrange_weights(read_weight_file("mine.h5", preprocessing=name))
    kernel = arrays["block1_conv1"][0]
    expected = kernel[:, :, ::-1] if name == "caffe" else kernel
    np.testing.assert_array_equal(weights.layers["conv1_1"][0], expected)
    mean, scale = DOCUMENTED[name]
    assert (weights.mean, weights.scale) == (pytest.approx(mean), pytest.approx(scale))


def test_another_preprocessing_is_proven_and_proven_again():
    def enlarge(file: h5py.File) -> None:
        kernel = cast(Any, file["block1_conv1/block1_conv1_W_1:0"])
        kernel[:] = 64 * kernel[:]  # for inputs from 0 to 1

    write_published_h5(Path("mine.h5"), 1 / 32, edit=enlarge)
    result = convert_weights("mine.h5", preprocessing="rescale")
    assert result.preprocessing == result.proof.preprocessing == "rescale"
    assert verify_weights(result.folder).proof is not None
    with pytest.raises(WeightsError, match=r"already holds other weights \(mean "):
        convert_weights("mine.h5", preprocessing="tf")
    with pytest.raises(WeightsError, match=r"No preprocessing named 'imagenet'\. Known: caffe"):
        convert_weights("mine.h5", preprocessing="imagenet")


def test_a_dead_network_is_refused(elsewhere):
    def kill(file: h5py.File) -> None:
        cast(Any, file["block3_conv2/block3_conv2_b_1:0"])[:] = -1e6

    write_published_h5(Path("dead.h5"), 1 / 32, edit=kill)
    with pytest.raises(WeightsError, match=r"conv3_2 gives nothing but zeros") as caught:
        convert_weights("dead.h5")
    assert str(caught.value).count("\n") < 3
    assert [path.name for path in elsewhere.iterdir()] == ["dead.h5"]


class Told(Progress):
    """Keeps the notes that it was told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def server(tmp_path, monkeypatch) -> Iterator[BrokenServer]:
    """A server of a small file that the manifest calls imagenet."""
    write_published_h5(tmp_path / "published.h5", 1 / 32)
    content = (tmp_path / "published.h5").read_bytes()
    entry = replace(
        public_files()["imagenet"],
        size=len(content),
        checksum=f"sha256:{hashlib.sha256(content).hexdigest()}",
    )
    monkeypatch.setitem(cast(dict, public_files()), "imagenet", entry)
    for variable in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(variable, raising=False)
    with BrokenServer(content) as server:
        monkeypatch.setenv("VGG_JAX_MIRROR", f"{server.address}/good")
        yield server


def test_the_first_use_of_a_name_downloads_and_converts_it(server, elsewhere):
    told = Told()
    folder = find_weights("imagenet", told)
    assert folder == cache_folder() / "weights" / "imagenet"
    downloading, converted, proof = told.notes
    size = f"{len(server.content) / 1000:.1f} kB"
    for part in ("imagenet", "notop.h5", size, server.address, str(cache_folder() / "downloads")):
        assert part in downloading
    assert str(folder) in converted
    assert proof.startswith("Proof: 18 layers agree")
    assert (folder / "proof.json").is_file()

    assert find_weights("imagenet", told) == folder
    result = convert_weights("imagenet")  # another folder, the same download
    assert (result.folder, result.published) == (Path("weights/imagenet"), "imagenet")
    assert find_weights("imagenet") == Path("weights/imagenet")
    assert len(told.notes) == 3
    assert len(server.paths) == 1


def test_a_copy_of_a_public_file_is_known_whatever_its_name(server):
    Path("my.h5").write_bytes(server.content)
    result = convert_weights("my.h5")
    assert (result.folder, result.published) == (Path("weights/imagenet"), "imagenet")
    assert not server.paths


def test_training_downloads_its_default_weights_on_first_use(server, photos):
    told = Told()
    options = {"data": str(photos), "image_size": 32, "epochs": 1, "batch_size": 8}
    run = train(**options, run="first", progress=told)
    assert sum("Downloading imagenet" in note for note in told.notes) == 1
    assert RunFolder(run.path).read_record().weights == str(cache_folder() / "weights" / "imagenet")
    train(**options, run="second")
    assert len(server.paths) == 1


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [("wrong", "other bytes"), ("short", "other bytes"), ("long", "More came"), ("404", "404")],
)
def test_a_broken_download_leaves_nothing(server, elsewhere, monkeypatch, behaviour, reason):
    monkeypatch.setenv("VGG_JAX_MIRROR", f"{server.address}/{behaviour}")
    with pytest.raises(WeightsError, match=reason) as caught:
        find_weights("imagenet")
    assert "--weights random:0" in str(caught.value)
    assert str(caught.value).count("\n") < 4
    assert not list((cache_folder() / "downloads").iterdir())
    assert not (cache_folder() / "weights").exists()
    assert not list(elsewhere.iterdir())
    monkeypatch.setenv("VGG_JAX_MIRROR", f"{server.address}/good")
    assert find_weights("imagenet").is_dir()
