"""Prediction of single pictures."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vgg_jax
from vgg_jax.errors import DataError
from vgg_jax.workflows.load import load_backbone, load_classifier
from vgg_jax.workflows.predict import predict

PACKAGE = Path(vgg_jax.__file__).parent


def test_pictures_and_folders_are_predicted_in_order(run, photos):
    rings = photos / "test" / "rings"
    results = list(predict(run.path, [rings / "2.png", photos / "test"]))
    assert [r.path for r in results[:2]] == [
        str(rings / "2.png"),
        str(photos / "test" / "dots" / "0.png"),
    ]
    assert len(results) == 10
    for result in results:
        shares = list(result.probabilities.values())
        assert shares == sorted(shares, reverse=True)
        assert sum(shares) == pytest.approx(1, abs=1e-5)
        assert result.error is None
    again = next(r for r in results[1:] if r.path == results[0].path)
    assert again.probabilities == pytest.approx(results[0].probabilities, abs=1e-6)


def test_more_pictures_than_a_batch(run, photos):
    pictures = sorted(photos.glob("train/*/*.png")) + sorted(photos.glob("validation/*/*.png"))
    paths = [*pictures, *reversed(pictures), *pictures[:10]]  # 70
    results = list(predict(run.path, paths))
    assert [result.path for result in results] == list(map(str, paths))
    alone = {path: next(predict(run.path, [path])).probabilities for path in pictures[::10]}
    for result in results:
        if (expected := alone.get(Path(result.path))) is not None:
            assert result.probabilities == pytest.approx(expected, rel=1e-4)
    assert len({tuple(result.probabilities.values()) for result in results[:30]}) == 30


def test_a_broken_picture_does_not_stop_the_others(run, photos, tmp_path):
    good = photos / "test" / "dots" / "0.png"
    text, missing = tmp_path / "text.jpg", tmp_path / "missing.jpg"
    text.write_text("no picture")
    results = list(predict(run.path, [text, good, missing, good]))
    assert [r.error is None for r in results] == [False, True, False, True]
    assert "text.jpg" in str(results[0].error)
    assert "missing.jpg" in str(results[2].error)
    assert results[0].as_dict(1).keys() == {"path", "error"}


def test_no_pictures_at_all_is_an_error(run, tmp_path):
    with pytest.raises(DataError, match="no pictures"):
        predict(run.path, [tmp_path])


def test_the_classifier_takes_both_image_types(run):
    classifier = load_classifier(run.path)
    assert classifier.class_names == ("dots", "rings", "stripes")
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    shares = classifier.predict(images)
    assert shares.shape == (2, 3)
    floats = (images / 255).astype(np.float32)
    np.testing.assert_allclose(classifier.predict(floats), shares, atol=1e-5)


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((32, 32, 3), np.uint8),
        np.zeros((1, 40, 32, 3), np.uint8),
        np.zeros((1, 32, 32, 3), np.int64),
    ],
)
def test_images_of_another_form_are_refused(run, images):
    with pytest.raises(DataError, match=r"shape \[B, 32, 32, 3\]"):
        load_classifier(run.path).predict(images)


def test_a_picture_is_resized_as_in_training(run, photos):
    path = photos / "test" / "dots" / "0.png"
    resized = Image.open(path).resize((32, 32), Image.Resampling.BILINEAR)
    shares = load_classifier(run.path).predict(np.asarray(resized)[None])[0]
    result = next(iter(predict(run.path, [path])))
    by_name = [result.probabilities[name] for name in ("dots", "rings", "stripes")]
    np.testing.assert_allclose(by_name, shares, atol=1e-6)


def test_load_backbone_reads_a_folder(weights):
    backbone = load_backbone(weights)
    assert backbone.width == 1 / 16
    images = np.zeros((1, 64, 64, 3), np.uint8)
    assert backbone.run(backbone.normalise(images), stop="conv5_1").shape == (1, 4, 4, 32)


def test_a_prediction_imports_neither_grain_nor_optax(run, photos):
    """But for what Flax imports itself, which of late is Optax."""
    code = """
import json, sys
import flax.nnx, orbax.checkpoint
before = set(sys.modules)
from vgg_jax.workflows.predict import predict
assert len(list(predict(*sys.argv[1:2], sys.argv[2:]))) == 1
print(json.dumps(sorted(set(sys.modules) - before)))
"""
    picture = photos / "test" / "dots" / "0.png"
    command = [sys.executable, "-c", code, str(run.path), str(picture)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    modules = set(json.loads(done.stdout))
    packages = {name.partition(".")[0] for name in modules}
    assert "vgg_jax" in packages
    assert not packages & {"grain", "optax", "tensorflow_datasets", "h5py", "rich", "requests"}
    ours = {file.relative_to(PACKAGE).with_suffix("") for file in PACKAGE.rglob("*.py")}
    with_optax = {
        ".".join(("vgg_jax", *path.parts))
        for path in ours
        if re.search(r"^(import|from) optax", (PACKAGE / path).with_suffix(".py").read_text(), re.M)
    }
    assert "vgg_jax.training.steps" in with_optax
    assert not modules & with_optax
