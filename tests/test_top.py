"""Weights with their own top: what they say of pictures, beside NumPy and beside Keras."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner
from weight_files import Arrays, keras_arrays, write_keras_arrays

from vgg_jax.cli.app import app
from vgg_jax.errors import ConfigError, WeightsError
from vgg_jax.layers import keras_name
from vgg_jax.model.heads import VGGTop
from vgg_jax.model.imagenet_classes import imagenet_classes
from vgg_jax.workflows.convert import convert_weights
from vgg_jax.workflows.load import load_backbone, load_top_classifier
from vgg_jax.workflows.predict import predict
from vgg_jax.workflows.trained_classifier import TrainedClassifier

ROOT = Path(__file__).parents[1]
KERAS_PYTHON = Path(os.environ.get("VGG_JAX_KERAS_PYTHON", ROOT / ".venv-keras" / "bin" / "python"))
KERAS_WRITER = ROOT.parent / "shared" / "peers" / "make_keras_weights.py"
KERAS_READER = """
import sys
from pathlib import Path
import keras, numpy
folder = Path(sys.argv[1])
model = keras.applications.VGG16(weights=str(folder / "top.h5"))
names = ["block5_pool", "fc1", "fc2", "predictions"]
probe = keras.Model(model.input, [model.get_layer(name).output for name in names])
images = numpy.random.default_rng(0).integers(0, 256, (2, 224, 224, 3)).astype("uint8")
outputs = probe(keras.applications.vgg16.preprocess_input(images.astype("float32")))
numpy.savez(folder / "reference.npz", images=images, **dict(zip(names, outputs)))
"""
KERAS_FILES = {  # of KERAS_WRITER, and their layouts
    "legacy.h5": "keras-h5",
    "v3.weights.h5": "keras-weights-h5",
    "model.h5": "keras-model-h5",
    "model.keras": "keras",
}
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> tuple[str, Arrays]:
    """Converted weights of width 1/16 with a top of ten classes, and Keras' arrays of them."""
    folder = tmp_path_factory.mktemp("top")
    arrays = keras_arrays(top=True)
    arrays["predictions"][0][:] /= 10  # or a class or two would have it all
    write_keras_arrays(folder / "narrow.h5", arrays)
    convert_weights(folder / "narrow.h5", folder / "narrow-top")
    return str(folder / "narrow-top"), arrays


@pytest.fixture(scope="module")
def top_weights(drawn) -> str:
    return drawn[0]


@pytest.fixture(scope="module")
def picture(photos) -> Path:
    return photos / "test" / "dots" / "0.png"


def invoke(*words: object, code: int = 0, stdin: str | None = None):
    result = CliRunner().invoke(app, [str(word) for word in words], input=stdin)
    assert result.exit_code == code, (result.stdout, result.stderr, result.exception)
    return result


def keras_probabilities(arrays: Arrays, images: np.ndarray) -> np.ndarray:
    """Compute what Keras' VGG16 with these arrays gives for RGB images, in float64."""
    x = images[..., ::-1] - np.array([103.939, 116.779, 123.68])
    for block, convolutions in enumerate((2, 2, 3, 3, 3), start=1):
        for i in range(1, convolutions + 1):
            kernel, bias = arrays[f"block{block}_conv{i}"]
            height, width = x.shape[1:3]
            padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
            x = bias.astype(np.float64)
            for row, column in np.ndindex(3, 3):
                shifted = padded[:, row : row + height, column : column + width]
                x = x + shifted @ kernel[row, column]
            x = np.maximum(x, 0)
        count, height, width, channels = x.shape
        x = x.reshape(count, height // 2, 2, width // 2, 2, channels).max((2, 4))
    x = x.reshape(len(x), -1)
    for name in ("fc1", "fc2", "predictions"):
        kernel, bias = arrays[name]
        x = x @ kernel + bias
        x = x if name == "predictions" else np.maximum(x, 0)
    shares = np.exp(x - x.max(-1, keepdims=True))
    return shares / shares.sum(-1, keepdims=True)


def test_probabilities_are_those_of_the_file(drawn):
    weights, arrays = drawn
    images = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), np.uint8)
    expected = keras_probabilities(arrays, images)
    assert 0.01 < expected.min() < expected.max() < 0.9
    shares = load_top_classifier(weights).predict(images)
    np.testing.assert_allclose(shares, expected, rtol=TOLERANCE)


def test_the_classifier_knows_its_classes_and_its_size(top_weights):
    classifier = load_top_classifier(top_weights)
    assert classifier.image_size == 224
    assert classifier.class_names == tuple(f"class {i}" for i in range(10))
    assert classifier.epoch is None


def test_a_thousand_classes_are_those_of_imagenet(tmp_path, picture):
    write_keras_arrays(tmp_path / "top.h5", keras_arrays(1 / 16, top=True, classes=1000))
    convert_weights(tmp_path / "top.h5", tmp_path / "top")
    (result,) = predict(None, [picture], weights=str(tmp_path / "top"))
    assert set(result.probabilities) == {name for _, name in imagenet_classes()}
    with Image.open(picture) as opened:
        image = np.asarray(opened.resize((224, 224), Image.Resampling.BILINEAR))
    shares = load_top_classifier(tmp_path / "top").predict(image[None])[0]
    best = int(shares.argmax())
    assert result.class_name == imagenet_classes()[best].name
    assert result.probabilities[result.class_name] == pytest.approx(shares[best], rel=1e-5)


def test_weights_without_top_are_refused(weights):
    for name in (weights, "demo", "random:0"):
        with pytest.raises(WeightsError, match="no top") as refused:
            load_top_classifier(name)
        assert name in str(refused.value)
        assert "imagenet-top" in str(refused.value)
        assert "vgg-jax predict RUN" in str(refused.value)


def test_the_command_line_asks_the_top_when_no_run_is_named(top_weights, photos, picture):
    asked = ["predict", "--weights", top_weights]
    (line,) = invoke(*asked, picture).stdout.splitlines()
    assert line.startswith(f"{picture}: class ")
    assert invoke("predict", picture, "--weights", top_weights).stdout.strip() == line
    assert invoke(*asked, "-", stdin=f"{picture}\n").stdout.strip() == line
    result = json.loads(invoke(*asked, photos / "test", "--json", "--top", 2).stdout)
    assert len(result["predictions"]) == 9
    assert len(result["predictions"][0]["top"]) == 2
    rows = list(csv.DictReader(io.StringIO(invoke(*asked, picture, "--csv").stdout)))
    assert rows[0].keys() == {"path", "class", *(f"class {i}" for i in range(10))}


def test_a_broken_picture_does_not_stop_the_top(top_weights, picture, tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"")
    result = invoke("predict", "--weights", top_weights, broken, picture, code=1)
    assert len(result.stdout.splitlines()) == 1
    assert "broken.jpg" in result.stderr


def test_with_a_run_weights_are_its_backbone(run, weights, top_weights, picture):
    by_run = invoke("predict", run.path, picture).stdout
    assert invoke("predict", run.path, picture, "--weights", weights).stdout == by_run
    wrong = invoke("predict", run.path, picture, "--weights", top_weights, code=1)
    assert "not those that the run was trained on" in wrong.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{picture}"], "is not a run: it is a file"),
        (["no/such/run", "{picture}"], "is not a run: it does not exist"),
        (["{folder}"], "is not a run: it has no run.json"),
        (["{picture}", "--weights", "{notop}"], "no top"),
        (["{picture}", "--weights", "{top}", "--checkpoint", "best"], "--checkpoint best"),
        (["{run}"], "no pictures"),
        (["{run}", "--weights", "{notop}"], "no pictures"),
    ],
)
def test_what_cannot_be_meant_is_told(run, weights, top_weights, picture, words, message):
    named = {
        "run": run.path,
        "notop": weights,
        "top": top_weights,
        "picture": picture,
        "folder": picture.parent,
    }
    failed = invoke("predict", *(word.format(**named) for word in words), code=1)
    assert message in failed.stderr
    assert len(failed.stderr.splitlines()) <= 3
    if "not a run" in message:
        assert "--weights imagenet-top" in failed.stderr


def test_python_needs_a_run_or_weights(picture):
    with pytest.raises(ConfigError, match="imagenet-top"):
        predict(None, [picture])


def keras_outputs(*command: object, folder: Path) -> dict[str, np.ndarray]:
    """Run the real Keras; returns the images and each layer's outputs that it wrote."""
    if not KERAS_PYTHON.exists():
        pytest.skip(f"no Keras at {KERAS_PYTHON}; set VGG_JAX_KERAS_PYTHON to a Python that has it")
    environment = {**os.environ, "KERAS_BACKEND": "jax"}
    subprocess.run([str(KERAS_PYTHON), *map(str, command)], check=True, env=environment)
    with np.load(folder / "reference.npz") as reference:
        return dict(reference)


def assert_outputs_agree(classifier: TrainedClassifier, theirs: dict[str, np.ndarray]) -> None:
    """Compare the blocks, fc6, fc7 and the probabilities, each relative to its largest value."""
    backbone, top = classifier.module.backbone, classifier.module.head
    images = theirs.pop("images")
    walked = backbone.walk(backbone.normalise(images))
    ours = {keras_name(name): output for name, output in walked if name.startswith("pool")}
    assert isinstance(top, VGGTop)
    fully_connected = dict(top.walk(ours["block5_pool"]))
    ours |= {"fc1": fully_connected["fc6"], "fc2": fully_connected["fc7"]}
    ours["predictions"] = jax.numpy.asarray(classifier.predict(images))
    errors = {
        name: float(np.abs(ours[name] - output).max() / np.abs(output).max())
        for name, output in theirs.items()
    }
    print(*(f"{name:12} {error:.1e}" for name, error in errors.items()), sep="\n")
    assert errors.keys() >= {"block5_pool", "fc1", "fc2", "predictions"}
    assert max(errors.values()) <= TOLERANCE, errors


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_full_size_files_that_keras_wrote_give_its_outputs(tmp_path):
    theirs = full_size_files(tmp_path, "--top")
    for name, layout in KERAS_FILES.items():
        result = convert_weights(tmp_path / name, tmp_path / "top")
        assert (result.layout, result.head) == (layout, "top")
        print(name, "proof", result.proof.largest)
        assert_outputs_agree(load_top_classifier(tmp_path / "top"), theirs.copy())
        shutil.rmtree(tmp_path / "top")
        (tmp_path / name).unlink()  # half a gigabyte each


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_full_size_files_without_top_that_keras_wrote_give_its_outputs(tmp_path):
    theirs = full_size_files(tmp_path)
    images = theirs.pop("images")
    for name, layout in KERAS_FILES.items():
        result = convert_weights(tmp_path / name, tmp_path / "notop")
        assert (result.layout, result.head) == (layout, "")
        backbone = load_backbone(tmp_path / "notop")
        walked = {keras_name(name): x for name, x in backbone.walk(backbone.normalise(images))}
        errors = {
            name: float(np.abs(walked[name] - output).max() / np.abs(output).max())
            for name, output in theirs.items()
        }
        print(name, "proof", result.proof.largest, errors)
        assert max(errors.values()) <= TOLERANCE, errors
        shutil.rmtree(tmp_path / "notop")


def full_size_files(folder: Path, *options: str) -> dict[str, np.ndarray]:
    """Have Keras write seeded weights in each of its layouts; returns its inputs and outputs."""
    if not KERAS_WRITER.exists():
        pytest.skip(f"no {KERAS_WRITER}")
    return keras_outputs(KERAS_WRITER, folder, *options, folder=folder)


@pytest.mark.slow
def test_a_full_size_file_that_keras_reads_gives_its_probabilities(tmp_path):
    """Logits are small here, so that no class takes all and each probability can be compared."""
    arrays = keras_arrays(1.0, top=True, classes=1000)
    arrays["predictions"][0][:] /= 10
    write_keras_arrays(tmp_path / "top.h5", arrays)
    del arrays
    theirs = keras_outputs("-c", KERAS_READER, tmp_path, folder=tmp_path)
    assert theirs["predictions"].max() < 0.1
    convert_weights(tmp_path / "top.h5", tmp_path / "top")
    classifier = load_top_classifier(tmp_path / "top")
    shares = classifier.predict(theirs["images"])
    print(f"one by one   {np.abs(shares / theirs['predictions'] - 1).max():.1e}")
    np.testing.assert_allclose(shares, theirs["predictions"], rtol=TOLERANCE)
    assert_outputs_agree(classifier, theirs)
