"""Each block gives what Keras gives for the same weights and images, to 1e-5 relative.

The golden files are written by tests/golden/make_golden.py, in an environment with Keras.
"""

from __future__ import annotations

import gzip
import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
import pytest
from source_weights import read_source_weights
from weight_files import keras_arrays, write_keras_arrays

from vgg_jax.layers import IMAGENET_MEAN_RGB, keras_name
from vgg_jax.model.vgg16 import VGG16

TESTS = Path(__file__).parent
GOLDEN = TESTS / "golden"
REAL_DATA = Path(os.environ.get("VGG_JAX_REAL_DATA", TESTS.parent.parent / "shared" / "data"))
KERAS_PYTHON = Path(
    os.environ.get("VGG_JAX_KERAS_PYTHON", TESTS.parent / ".venv-keras" / "bin" / "python")
)
TOLERANCE = 1e-5


def _read_backbone(path: Path) -> VGG16:
    weights = read_source_weights(path)
    return VGG16.from_layers(weights.layers, mean=weights.mean, scale=weights.scale)


def _difference(ours: jax.Array, theirs: np.ndarray) -> float:
    """Return the largest difference over the largest value."""
    assert ours.shape == theirs.shape
    return float(np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max())


def _assert_blocks_agree(backbone: VGG16, golden: Mapping[str, np.ndarray]) -> None:
    images = jax.numpy.asarray(golden["images"])
    differences = {
        name: _difference(x, golden[keras_name(name)])
        for name, x in backbone.walk(backbone.normalise(images))
        if name.startswith("pool")
    }
    assert len(differences) == 5
    assert max(differences.values()) <= TOLERANCE, differences


def test_blocks_of_a_narrow_network_agree_with_keras():
    golden = np.load(GOLDEN / "narrow_blocks.npz")
    _assert_blocks_agree(_read_backbone(GOLDEN / "narrow_legacy.h5"), golden)


def test_blocks_of_the_full_width_agree_with_keras(tmp_path):
    write_keras_arrays(tmp_path / "full.h5", keras_arrays(1.0, seed=2014))
    golden = np.load(GOLDEN / "full_width_blocks.npz")
    _assert_blocks_agree(_read_backbone(tmp_path / "full.h5"), golden)


def test_the_comparison_would_notice_swapped_colours():
    golden = dict(np.load(GOLDEN / "narrow_blocks.npz"))
    golden["images"] = golden["images"][..., ::-1]
    with pytest.raises(AssertionError, match="pool1"):
        _assert_blocks_agree(_read_backbone(GOLDEN / "narrow_legacy.h5"), golden)


@pytest.mark.real_data
def test_real_imagenet_kernels_reproduce_the_recorded_activations(tmp_path):
    folder = REAL_DATA / "vgg16_real"
    if not folder.is_dir():
        pytest.skip(f"no real weights at {folder}; set VGG_JAX_REAL_DATA to where they are")
    arrays = np.load(folder / "vgg16_blocks1-2.npz")
    pairs = keras_arrays(1.0)  # of which blocks 3 to 5 are not looked at
    for name in ("block1_conv1", "block1_conv2", "block2_conv1", "block2_conv2"):
        pairs[name] = arrays[f"{name}_kernel"], arrays[f"{name}_bias_q"]
    write_keras_arrays(tmp_path / "real.h5", pairs)
    with gzip.open(folder / "persian_cat_input_bgr_minus_mean_224x224x3.txt.gz") as file:
        bgr = np.loadtxt(file, dtype=np.float32).reshape(1, 224, 224, 3)
    image = bgr[..., ::-1] + np.asarray(IMAGENET_MEAN_RGB, np.float32)  # RGB, 0 to 255
    assert np.abs(image - image.round()).max() < 1e-3
    image = image.round().astype(np.uint8)

    backbone = _read_backbone(tmp_path / "real.h5")
    outputs = dict(backbone.walk(backbone.normalise(jax.numpy.asarray(image)), stop="conv3_1"))
    corners = json.loads((folder / "persian_cat_activation_corners.json").read_text())
    # The tolerances of that folder's README: what is recorded has biases of full precision.
    for layer, tolerance in {"conv1_1": 2e-4, "pool2": 5e-3}.items():
        recorded = corners[keras_name(layer)]
        picked = np.ix_([0], recorded["h"], recorded["w"], recorded["c"])
        values = np.asarray(recorded["values"])
        difference = np.abs(np.asarray(outputs[layer])[picked][0] - values).max()
        # In float64 conv1_1 differs by 0.00019; float32 adds its own rounding of values up to 369.
        rounding = np.spacing(np.float32(values.max()))
        assert difference <= tolerance + rounding, (layer, difference)


@pytest.mark.slow
def test_full_size_blocks_agree_with_the_installed_keras(tmp_path):
    if not KERAS_PYTHON.exists():
        pytest.skip(f"no Keras at {KERAS_PYTHON}; set VGG_JAX_KERAS_PYTHON to a Python that has it")
    generator = [str(KERAS_PYTHON), str(GOLDEN / "make_golden.py"), "--full", str(tmp_path)]
    subprocess.run(generator, check=True, env={**os.environ, "KERAS_BACKEND": "jax"})
    golden = np.load(tmp_path / "full_blocks.npz")
    _assert_blocks_agree(_read_backbone(tmp_path / "full_legacy.h5"), golden)
