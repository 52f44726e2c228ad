"""Every source of weights: the converted network does what the program that wrote it does."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from golden_sources import NAMES, OUTPUTS, SIDE, SOURCES, convert_golden, golden_arrays, model_of
from torch_files import write_legacy_pth, write_pth, write_safetensors

from vgg_jax import load_backbone, load_classifier
from vgg_jax.errors import WeightsError
from vgg_jax.training.run_folder import RunFolder
from vgg_jax.weights.source import IMAGENET_MEAN_RGB, PREPROCESSINGS
from vgg_jax.weights.store import load_weights
from vgg_jax.workflows.convert import convert_weights

LAYOUTS = {".h5": "keras-model-h5", ".weights.h5": "keras-weights-h5", ".keras": "keras"}
HEADS = {"backbone": "", "classifier": "dense256", "binary": "linear"}
CONVOLUTIONS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)  # torchvision's numbers


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def features(folder: Path) -> np.ndarray:
    backbone = load_backbone(folder)
    return np.asarray(backbone.run(backbone.normalise(OUTPUTS["images"])))


def test_all_that_keras_writes_is_there():
    assert {model_of(name) for name in NAMES} == set(HEADS)
    assert len(NAMES) == 10


@pytest.mark.parametrize("name", NAMES)
def test_a_file_of_keras_converts_with_a_proof(name, tmp_path_factory):
    result = convert_golden(name, tmp_path_factory)
    suffix = name.removeprefix(name.partition(".")[0])
    assert result.layout == ("keras-h5" if "legacy" in name else LAYOUTS[suffix])
    assert (result.width, result.head) == (1 / 32, HEADS[model_of(name)])
    assert result.preprocessing == "caffe"
    assert result.proof.largest.error < 1e-5
    assert len(result.proof.controls) >= 5


@pytest.mark.parametrize("model", sorted(HEADS))
def test_all_files_of_one_model_become_the_same(model, tmp_path_factory):
    results = [convert_golden(name, tmp_path_factory) for name in NAMES if model_of(name) == model]
    assert len({result.digest for result in results}) == 1
    heads = [checkpoint(result.folder) for result in results if result.is_run]
    for head in heads:
        assert head.keys() == heads[0].keys()
        for path, array in head.items():
            np.testing.assert_array_equal(array, heads[0][path])


def checkpoint(run: Path) -> dict[str, np.ndarray]:
    checkpoints = RunFolder(run).checkpoints
    trained = checkpoints.restore(0).trained
    checkpoints.close()
    return trained


# Of the files of one model, which become the same, one that is harder than others to read right.
@pytest.mark.parametrize("name", ["backbone.weights.h5", "binary.h5", "classifier_legacy.h5"])
def test_a_network_does_here_what_it_does_in_keras(name, tmp_path_factory):
    result = convert_golden(name, tmp_path_factory)
    expected = OUTPUTS[model_of(name)]
    if result.is_run:
        classifier = load_classifier(result.folder)
        assert classifier.image_size == SIDE
        found = classifier.predict(OUTPUTS["images"])
        if expected.shape[1] == 1:
            expected = np.concatenate([1 - expected, expected], 1)
    else:
        found = features(result.folder)
    assert relative_error(found, expected) < 1e-5


def test_the_golden_legacy_file_lists_what_was_trained_first():
    with h5py.File(SOURCES / "classifier_legacy.h5") as file:
        names = [str(name) for name in np.asarray(file["vgg16"].attrs["weight_names"])]
    assert names.index("block5_conv1/kernel") < names.index("block1_conv1/kernel")


def torch_network(name: str, *, rgb: bool) -> dict[str, np.ndarray]:
    """Return a golden model's arrays as PyTorch would hold them."""
    arrays: dict[str, np.ndarray] = {}
    numbers = iter(CONVOLUTIONS)
    for layer, (kernel, bias) in golden_arrays(name).items():
        if layer.startswith("conv"):
            label = f"features.{next(numbers)}"
            if layer == "conv1_1" and rgb:
                kernel = kernel[:, :, ::-1]
            weight = np.moveaxis(kernel, (3, 2), (0, 1))
        else:
            label = {"hidden": "classifier.0", "logits": "classifier.3"}[layer]
            weight = kernel.T
            if layer == "hidden":  # [256, H * W * C] to [256, C * H * W]
                weight = weight.reshape(256, 2, 2, 16).transpose(0, 3, 1, 2).reshape(256, 64)
        arrays[f"{label}.weight"] = np.ascontiguousarray(weight)
        arrays[f"{label}.bias"] = np.array(bias)
    return arrays


def test_the_same_network_from_torch_differs_in_mean_and_scale_alone(tmp_path, tmp_path_factory):
    write_safetensors(tmp_path / "vgg16.safetensors", torch_network("backbone.h5", rgb=True))
    result = convert_weights(tmp_path / "vgg16.safetensors", tmp_path / "out")
    assert (result.layout, result.preprocessing) == ("torch-safetensors", "torch")
    there = load_weights(convert_golden("backbone.h5", tmp_path_factory).folder)
    here = load_weights(tmp_path / "out")
    for name, pair in there.layers.items():
        for array, expected in zip(here.layers[name], pair, strict=True):
            np.testing.assert_array_equal(array, expected, err_msg=name)
    assert (there.mean, there.scale) == (IMAGENET_MEAN_RGB, (1, 1, 1))
    assert (here.mean, here.scale) == (
        PREPROCESSINGS["torch"].mean,
        PREPROCESSINGS["torch"].scale,
    )


def test_a_backbone_of_caffe_in_the_form_of_torch_is_the_same(tmp_path, tmp_path_factory):
    write_legacy_pth(tmp_path / "vgg16.pth", torch_network("backbone.h5", rgb=False))
    result = convert_weights(tmp_path / "vgg16.pth", tmp_path / "out", preprocessing="caffe")
    assert result.layout == "torch-pth"
    assert result.digest == convert_golden("backbone.h5", tmp_path_factory).digest


def test_a_classifier_in_the_form_of_torch_gives_the_probabilities_of_keras(tmp_path):
    write_pth(tmp_path / "trees.pth", torch_network("classifier.h5", rgb=False))
    result = convert_weights(
        tmp_path / "trees.pth", tmp_path / "run", preprocessing="caffe", image_size=64
    )
    assert result.head == "dense256"
    found = load_classifier(result.folder).predict(OUTPUTS["images"])
    assert relative_error(found, OUTPUTS["classifier"]) < 1e-5


def test_the_layout_can_be_named_and_must_then_fit(tmp_path):
    folder = convert_weights(SOURCES / "backbone.keras", tmp_path / "out", layout="keras").folder
    assert relative_error(features(folder), OUTPUTS["backbone"]) < 1e-5
    for layout in ("torch-pth", "keras-h5", "keras-model-h5"):
        with pytest.raises(WeightsError, match=r"backbone\.weights\.h5"):
            convert_weights(SOURCES / "backbone.weights.h5", tmp_path / "no", layout=layout)
    with pytest.raises(WeightsError, match=r"Did you mean 'keras'\?"):
        convert_weights(SOURCES / "backbone.keras", tmp_path / "no", layout="kras")
    assert not (tmp_path / "no").exists()
