"""Exported files hold the very arrays, named and arranged as their programs expect them."""

from __future__ import annotations

import ast
import dataclasses
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path

import h5py
import numpy as np
import pytest
from safetensors import safe_open
from typer.testing import CliRunner
from weight_files import Arrays, keras_arrays, write_published_h5

from vgg_jax.cli.app import app
from vgg_jax.errors import ConfigError, WeightsError
from vgg_jax.weights.arrange import arrange_weights
from vgg_jax.weights.export import SUFFIXES, Network, Target, describe_input
from vgg_jax.weights.export_code import loading_code
from vgg_jax.weights.export_keras import keras_layers
from vgg_jax.weights.reading import read_weight_file
from vgg_jax.weights.source import HEAD_LAYERS, PREPROCESSINGS
from vgg_jax.weights.store import load_weights
from vgg_jax.workflows import export
from vgg_jax.workflows.convert import convert_weights
from vgg_jax.workflows.export import export_weights
from vgg_jax.workflows.load import load_classifier
from vgg_jax.workflows.train import train

CONVOLUTIONS = list(keras_arrays())
TORCH_POSITIONS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
TARGETS = tuple(SUFFIXES)


@pytest.fixture(scope="module")
def runs(options, tmp_path_factory) -> Mapping[str, Path]:
    """Runs of each head that can be exported; their features have 2 x 2 places."""
    folder = tmp_path_factory.mktemp("exported")
    changed = {**options, "image_size": 64, "epochs": 1}
    train(**changed, run=str(folder / "dense256"))
    train(**changed, head="linear", loss="binary", run=str(folder / "linear"))
    return {name: folder / name for name in ("dense256", "linear")}


@pytest.fixture(scope="module", params=[False, True], ids=["no top", "top"])
def converted(request, tmp_path_factory) -> tuple[Path, Path, Arrays]:
    """A published file, the folder that it was converted into, and its arrays."""
    folder = tmp_path_factory.mktemp("converted")
    arrays = write_published_h5(folder / "source.h5", seed=5, top=request.param)
    convert_weights(str(folder / "source.h5"), folder / "weights")
    return folder / "source.h5", folder / "weights", arrays


def _members(path: Path) -> dict[str, object]:
    """Everything in a HDF5 file: attributes as lists, arrays, and None for groups."""
    found: dict[str, object] = {}

    def visit(name: str, member: h5py.Group | h5py.Dataset) -> None:
        found[name] = member[()] if isinstance(member, h5py.Dataset) else None
        for key, value in member.attrs.items():
            found[f"{name}@{key}"] = np.asarray(value).tolist()

    with h5py.File(path) as file:
        visit("", file)
        file.visititems(visit)
    return found


def test_a_published_file_comes_back_as_it_was(converted, tmp_path):
    source, weights, _ = converted
    result = export_weights(weights, "keras-h5", tmp_path / "back.h5")
    before, after = _members(source), _members(result.file)
    assert list(after) == list(before)
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value, err_msg=name)
    assert result.input == "keras.applications.vgg16.preprocess_input(RGB 0-255)"
    again = convert_weights(str(result.file), tmp_path / "again")
    assert again.digest == json.loads((weights / "metadata.json").read_text())["digest"]


def test_torch_has_the_same_numbers_elsewhere(converted, tmp_path):
    _, weights, arrays = converted
    result = export_weights(weights, "torch-safetensors", tmp_path / "vgg.safetensors")
    assert result.input == "(RGB 0-255 - [123.68, 116.779, 103.939])"
    with safe_open(result.file, "numpy") as file:
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    assert metadata["format"] == "pt"
    assert json.loads(metadata["mean"]) == [123.68, 116.779, 103.939]
    for position, name in zip(TORCH_POSITIONS, CONVOLUTIONS, strict=True):
        kernel, bias = arrays[name]
        if name == "block1_conv1":
            kernel = kernel[:, :, [2, 1, 0]]  # the published file takes BGR
        theirs = np.einsum("hwio->oihw", kernel)
        np.testing.assert_array_equal(found.pop(f"features.{position}.weight"), theirs)
        np.testing.assert_array_equal(found.pop(f"features.{position}.bias"), bias)
    if "fc1" in arrays:
        weight, (kernel, bias) = found.pop("classifier.0.weight"), arrays["fc1"]
        _assert_flattened_otherwise(weight, kernel, side=7)
        np.testing.assert_array_equal(found.pop("classifier.0.bias"), bias)
        for position, name in ((3, "fc2"), (6, "predictions")):
            np.testing.assert_array_equal(
                found.pop(f"classifier.{position}.weight"), arrays[name][0].T
            )
            np.testing.assert_array_equal(found.pop(f"classifier.{position}.bias"), arrays[name][1])
    assert not found


def _assert_flattened_otherwise(weight: np.ndarray, kernel: np.ndarray, side: int) -> None:
    """Compare `[out, (c, h, w)]` with `[(h, w, c), out]`, place by place."""
    channels = kernel.shape[0] // side**2
    assert weight.shape == kernel.shape[::-1]
    for h in range(side):
        for w in range(side):
            for c in range(channels):
                ours = kernel[(h * side + w) * channels + c]
                theirs = weight[:, (c * side + h) * side + w]
                np.testing.assert_array_equal(theirs, ours)


def _arrays(part: object, *names: str) -> list[np.ndarray]:
    """Kernel and bias of each named layer of a backbone or a head."""
    modules = [getattr(part, name) for name in names]
    return [np.asarray(array) for m in modules for array in (m.kernel[...], m.bias[...])]


@pytest.mark.parametrize("target", ["keras", "keras-h5"])
def test_a_run_becomes_a_sequential_model_of_keras(runs, target: Target, tmp_path):
    result = export_weights(runs["dense256"], target, tmp_path / f"x{SUFFIXES[target]}")
    if target == "keras":
        with zipfile.ZipFile(result.file) as archive:
            config = json.loads(archive.read("config.json"))
            facts = json.loads(archive.read("metadata.json"))["vgg_jax"]
            members = _members(Path(archive.extract("model.weights.h5", tmp_path)))
        conv, dense = "layers/conv2d_12/vars/{}", "layers/dense_1/vars/{}"
        first = "layers/conv2d/vars/0"
        roles = ("0", "1")
    else:
        members = _members(result.file)
        config = json.loads(str(members["@model_config"]))
        facts = json.loads(str(members["@vgg_jax"]))
        conv = "model_weights/block5_conv3/block5_conv3/{}:0"
        dense = "model_weights/probabilities/probabilities/{}:0"
        first = "model_weights/block1_conv1/block1_conv1/kernel:0"
        roles = ("kernel", "bias")
    assert facts["class_names"] == ["dots", "rings", "stripes"]
    layers = config["config"]["layers"]
    assert config["class_name"] == "Sequential"
    names = [layer["config"]["name"] for layer in layers if layer["class_name"] == "Conv2D"]
    assert names == CONVOLUTIONS
    assert {layer["config"].get("padding") for layer in layers} == {None, "same"}
    assert [layer["class_name"] for layer in layers[-4:]] == [
        *("MaxPooling2D", "Flatten", "Dense", "Dense")
    ]
    assert [layer["config"]["activation"] for layer in layers[-2:]] == ["relu", "softmax"]

    module = load_classifier(runs["dense256"]).module
    for path, ours in (
        (conv, _arrays(module.backbone, "conv5_3")),
        (dense, _arrays(module.head, "logits")),
    ):
        for role, array in zip(roles, ours, strict=True):
            np.testing.assert_array_equal(members[path.format(role)], array)
    kernel, _ = _arrays(module.backbone, "conv1_1")
    np.testing.assert_array_equal(members[first], kernel[:, :, ::-1])


def test_a_run_becomes_a_state_dictionary_of_torch(runs, tmp_path):
    for name, positions in {"dense256": (0, 2), "linear": (0,)}.items():
        out = tmp_path / f"{name}.safetensors"
        result = export_weights(runs[name], "torch-safetensors", out)
        module = load_classifier(runs[name]).module
        head = _arrays(module.head, *HEAD_LAYERS[name])
        with safe_open(out, "numpy") as file:
            found = [
                file.get_tensor(f"classifier.{position}.{role}")
                for position in positions
                for role in ("weight", "bias")
            ]
            last = file.get_tensor("features.28.weight")
            metadata = file.metadata()
        _assert_flattened_otherwise(found[0], head[0], side=2 if name == "dense256" else 1)
        np.testing.assert_array_equal(found[-2], head[-2].T)
        np.testing.assert_array_equal(found[-1], head[-1])
        kernel, _ = _arrays(module.backbone, "conv5_3")
        np.testing.assert_array_equal(last, np.einsum("hwio->oihw", kernel))
        assert metadata["head"] == result.head == name
        assert metadata["output"] == ("sigmoid" if name == "linear" else "softmax")
        assert metadata["image_size"] == "64"
        assert json.loads(metadata["class_names"]) == ["dots", "rings", "stripes"]


def test_the_linear_head_averages_and_one_sigmoid_a_class_stays_one(runs, tmp_path):
    result = export_weights(runs["linear"], "keras", tmp_path / "x.keras")
    with zipfile.ZipFile(result.file) as archive:
        layers = json.loads(archive.read("config.json"))["config"]["layers"]
    assert layers[-2]["class_name"] == "GlobalAveragePooling2D"
    assert layers[-1]["config"] | {"units": 3, "activation": "sigmoid"} == layers[-1]["config"]


def _network(preprocessing: str) -> Network:
    layers = {f"conv{name[5]}_{name[-1]}": pair for name, pair in keras_arrays().items()}
    expected = PREPROCESSINGS[preprocessing]
    return Network(layers, "", {}, mean=expected.mean, scale=expected.scale)


@pytest.mark.parametrize("target", TARGETS)
def test_what_is_exported_reads_back_the_same(runs, converted, target: Target, tmp_path):
    for number, source in enumerate((*runs.values(), converted[1])):
        out = tmp_path / f"{number}{SUFFIXES[target]}"
        head = export_weights(source, target, out).head
        there = arrange_weights(read_weight_file(out))
        if source == converted[1]:
            here = load_weights(source, with_top=True)
            layers = {**here.layers, **here.top}
        else:
            module = load_classifier(source).module
            layers = {name: _arrays(module.backbone, name) for name in there.layers}
            layers |= {name: _arrays(module.head, name) for name in HEAD_LAYERS[head]}
        read = {**there.layers, **there.top, **there.head}
        assert list(read) == list(layers)
        for name, pair in layers.items():
            for ours, theirs in zip(pair, read[name], strict=True):
                np.testing.assert_array_equal(theirs, ours, err_msg=name)


@pytest.mark.parametrize("target", ["keras", "keras-h5"])
@pytest.mark.parametrize("head", ["dense256", "linear"])
def test_a_run_comes_back_from_keras_as_a_run(runs, head, target: Target, tmp_path):
    out = export_weights(runs[head], target, tmp_path / f"x{SUFFIXES[target]}").file
    back = convert_weights(str(out), tmp_path / "back")
    before, after = load_classifier(runs[head]), load_classifier(back.folder)
    assert after.image_size == before.image_size
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3)).astype(np.uint8)
    # The boundary is another one, so that sums may be taken in another order.
    np.testing.assert_allclose(after.predict(images), before.predict(images), rtol=1e-5)


def test_only_what_goes_with_preprocess_input_of_keras_takes_bgr():
    for name, swapped in {"caffe": True, "torch": False, "tf": False, "rescale": False}.items():
        network = _network(name)
        ours, theirs = network.layers["conv1_1"][0], keras_layers(network)[0].arrays[0]
        np.testing.assert_array_equal(theirs, ours[:, :, ::-1] if swapped else ours)
        assert ("preprocess_input" in describe_input(network, "keras")) == swapped
        assert "RGB 0-255 - [" in describe_input(network, "torch-safetensors")
    assert describe_input(_network("tf"), "keras") == (
        "(RGB 0-255 - [127.5, 127.5, 127.5]) * [0.00784313725, 0.00784313725, 0.00784313725]"
    )


@pytest.mark.parametrize("target", TARGETS)
def test_equal_networks_give_equal_bytes(runs, converted, target: Target, tmp_path, monkeypatch):
    for number, source in enumerate((runs["dense256"], converted[1])):
        results = []
        for i in range(2):
            monkeypatch.setattr("time.time", lambda i=i: 1e9 + i * 1e6)
            out = tmp_path / f"{number}-{i}{SUFFIXES[target]}"
            results.append(export_weights(source, target, out))
        assert results[0].sha256 == results[1].sha256
    assert len(list(tmp_path.iterdir())) == 4  # nothing beside the files


@pytest.mark.parametrize("target", TARGETS)
def test_code_that_loads_a_file_is_python_and_names_it(runs, converted, target: Target, tmp_path):
    for source in (*runs.values(), converted[1]):
        out = tmp_path / source.name / f"it's{SUFFIXES[target]}"
        words = _words(export_weights(source, target, out).code)
        assert {"images", "outputs", str(out)} <= words
    for name in PREPROCESSINGS:
        assert {"images", "outputs", "x"} <= _words(loading_code(_network(name), target, Path("x")))


def _words(code: str) -> set[object]:
    """Names and constants."""
    words: set[object] = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Name):
            words.add(node.id)
        elif isinstance(node, ast.Constant):
            words.add(node.value)
    return words


def test_what_cannot_be_exported_is_said(run, weights, tmp_path):
    (tmp_path / "taken.h5").write_bytes(b"mine")
    refused: tuple[tuple[object, Target, str, str], ...] = (
        (weights, "keras-h5", "taken.h5", "exists; name another --out or delete it"),
        (weights, "keras", "x.h5", r"writes a \.keras file, not 'x.h5'; name it '.*/x.keras'"),
        (weights, "keras-h5", "x.weights.h5", "name it '.*/x.h5'"),
        (tmp_path, "keras", "x.keras", "neither a run .no run.json. nor a folder of"),
        (tmp_path / "no", "keras", "x.keras", "No converted weights at"),
        (run.path, "keras", "taken.h5/x.keras", "Cannot write .*x.keras: "),
    )
    for source, target, name, message in refused:
        with pytest.raises(WeightsError, match=message):
            export_weights(str(source), target, tmp_path / name)
    with pytest.raises(ConfigError, match=r"belong to a run, but .* is none"):
        export_weights(weights, "keras", tmp_path / "x.keras", checkpoint="latest")
    with pytest.raises(ConfigError, match=r"belong to a run, but .* is none"):
        export_weights(weights, "keras", tmp_path / "x.keras", weights=weights)
    assert (tmp_path / "taken.h5").read_bytes() == b"mine"


def test_a_head_without_counterpart_is_refused(options, tmp_path):
    chosen = {**options, "epochs": 1, "head": "gap-mlp:hidden=[4]"}
    run = train(**chosen, run=str(tmp_path / "run"))
    with pytest.raises(WeightsError, match=r"The head gap-mlp .*: dense256, linear"):
        export_weights(run.path, "keras", tmp_path / "x.keras")


@pytest.mark.parametrize("target", TARGETS)
def test_a_file_is_whole_or_not_there(weights, target: Target, tmp_path, monkeypatch):
    write = export._WRITERS[target]

    def fail_late(network: Network, path: Path) -> None:
        write(network, path)
        raise OSError("No space left on device")

    monkeypatch.setitem(export._WRITERS, target, fail_late)
    with pytest.raises(WeightsError, match=r"Cannot write .*: No space left"):
        export_weights(weights, target, tmp_path / f"x{SUFFIXES[target]}")
    assert not list(tmp_path.iterdir())


def test_a_network_needs_the_layers_of_its_head():
    with pytest.raises(WeightsError, match="'dense256': hidden, logits"):
        dataclasses.replace(_network("caffe"), head="dense256")


def test_the_command(run, weights, tmp_path):
    def invoke(*words: object) -> str:
        done = CliRunner().invoke(app, ["export-weights", *map(str, words)])
        assert done.exit_code == 0, done.stderr
        return done.stdout

    shown = invoke(run.path, "--to", "keras", "--out", tmp_path / "x.keras")
    assert f"Wrote {tmp_path / 'x.keras'}" in shown
    assert "Classifier with head dense256" in shown
    assert "Classes: dots, rings, stripes" in shown
    assert "Input: keras.applications.vgg16.preprocess_input(RGB 0-255), 32 x 32" in shown
    assert "    model = keras.models.load_model(" in shown
    result = json.loads(
        invoke(weights, "--to", "torch-safetensors", "--out", tmp_path / "x.safetensors", "--json")
    )
    assert result["size"] == (tmp_path / "x.safetensors").stat().st_size
    assert result["width"] == 1 / 16
    assert result["head"] == ""
    assert result["class_names"] == []
    latest = invoke(
        *(run.path, "--to", "keras-h5", "--out", tmp_path / "x.h5"), "--checkpoint", "latest"
    )
    assert "of epoch 2" in latest
