"""Heads with options: layers in NumPy, options that are refused, and starting from a top."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from weight_files import keras_arrays, write_keras_arrays

from vgg_jax.config import TrainConfig
from vgg_jax.errors import OptionError
from vgg_jax.model.classifier import Classifier, make_functional
from vgg_jax.model.heads import MLP, GapMLP, VGGTop
from vgg_jax.model.vgg16 import VGG16
from vgg_jax.plugin_choices import parse_choice
from vgg_jax.plugins import build
from vgg_jax.progress import Progress
from vgg_jax.weights.store import load_weights
from vgg_jax.workflows.backbone import open_backbone
from vgg_jax.workflows.convert import convert_weights
from vgg_jax.workflows.load import build_functional

SHAPE = (2, 3, 4)
FEATURES = jnp.asarray(np.random.default_rng(0).standard_normal((5, *SHAPE), np.float32))


class Notes(Progress):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)


def parameters_of(head: nnx.Module) -> dict[str, np.ndarray]:
    classifier = Classifier(VGG16.random(1 / 16, seed=0), head, "head")
    _, parameters = make_functional(classifier)
    return {
        path.removeprefix("head/"): np.asarray(value)
        for path, value in parameters.items()
        if path.startswith("head/")
    }


def gelu(x):  # as JAX and Flax approximate it
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


@pytest.mark.parametrize("norm", ["none", "layer"])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize(("kind", "flat"), [(MLP, True), (GapMLP, False)])
def test_hidden_layers_are_dense_then_norm_then_activation(kind, flat, activation, norm):
    head = kind(SHAPE, 3, hidden=(8, 6), activation=activation, norm=norm, rngs=nnx.Rngs(0))
    held = parameters_of(head)
    x = np.asarray(FEATURES, np.float64)
    x = x.reshape(5, -1) if flat else x.mean((1, 2))
    for i in range(2):
        x = x @ held[f"hidden/{i}/kernel"] + held[f"hidden/{i}/bias"]
        if norm == "layer":
            x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-6)
        x = np.maximum(x, 0) if activation == "relu" else gelu(x)
    expected = x @ held["logits/kernel"] + held["logits/bias"]
    np.testing.assert_allclose(head(FEATURES), expected, rtol=1e-4, atol=1e-5)


def test_names_of_parameters_stay_as_runs_have_them():
    layers = [
        f"{layer}/{i}/{role}" for layer in ("hidden",) for i in (0, 1) for role in KERNEL_BIAS
    ]
    norms = [f"norms/{i}/{role}" for i in (0, 1) for role in ("bias", "scale")]
    logits = [f"logits/{role}" for role in KERNEL_BIAS]
    for kind in (MLP, GapMLP):
        plain = kind(SHAPE, 3, hidden=(8, 6), rngs=nnx.Rngs(0))
        assert sorted(parameters_of(plain)) == sorted([*layers, *logits])
        normalised = kind(SHAPE, 3, hidden=(8, 6), norm="layer", rngs=nnx.Rngs(0))
        assert sorted(parameters_of(normalised)) == sorted([*layers, *norms, *logits])
    top = [f"{layer}/{role}" for layer in ("fc6", "fc7", "fc8") for role in KERNEL_BIAS]
    assert sorted(parameters_of(VGGTop(SHAPE, 3, units=5, rngs=nnx.Rngs(0)))) == sorted(top)


KERNEL_BIAS = ("bias", "kernel")


def test_without_hidden_layers_there_are_logits_alone():
    head = GapMLP(SHAPE, 3, hidden=(), rngs=nnx.Rngs(0))
    held = parameters_of(head)
    expected = FEATURES.mean((1, 2)) @ held["logits/kernel"] + held["logits/bias"]
    np.testing.assert_allclose(head(FEATURES), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("ref", ["mlp", "gap-mlp", "vgg"])
def test_dropout_is_drawn_anew_in_training_and_absent_otherwise(ref):
    head = build("head", parse_choice(f"{ref}:dropout=0.5"), SHAPE, 3, rngs=nnx.Rngs(0))
    functional, parameters = make_functional(Classifier(VGG16.random(1 / 16, seed=0), head, "head"))

    def logits(key):
        return np.asarray(functional.bind(parameters, key).classify(FEATURES))

    first, again, other = (logits(jax.random.key(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)
    np.testing.assert_array_equal(logits(None), logits(None))
    assert not np.allclose(first, logits(None))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mlp:hidden=[8,0]", r"mlp: option 'hidden' is \[8, 0\]"),
        (
            "gap-mlp:dropout=1.0",
            "gap-mlp: option 'dropout' is 1.0, but must be",
        ),
        ("mlp:activation=tanh", "'activation' is 'tanh', but must be one of relu, gelu"),
        ("mlp:norm=batch", "'norm' is 'batch', but must be one of none, layer"),
        ("vgg:units=0", "vgg: option 'units' is 0"),
        ("vgg:dropout=-0.1", "vgg: option 'dropout' is -0.1"),
    ],
)
def test_options_out_of_range_are_refused(text, message):
    with pytest.raises(OptionError, match=message):
        build("head", parse_choice(text), SHAPE, 3, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def with_top(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("top")
    write_keras_arrays(folder / "narrow.h5", keras_arrays(top=True))
    convert_weights(folder / "narrow.h5", folder / "narrow")
    return str(folder / "narrow")


def first_parameters(weights: str, head: str, progress: Progress | None, image_size: int = 224):
    config = TrainConfig(weights=weights, head=head, image_size=image_size).resolved()
    _, parameters = build_functional(open_backbone(weights), config, 3, progress)
    return parameters


def test_the_head_vgg_starts_from_the_top(with_top):
    top = load_weights(with_top, with_top=True).top
    units = top["fc7"][1].size
    found = first_parameters(with_top, f"vgg:units={units}", Progress())
    for name in ("fc6", "fc7"):
        for role, array in zip(("kernel", "bias"), top[name], strict=True):
            np.testing.assert_array_equal(found[f"head/{name}/{role}"], array)
    assert found["head/fc8/kernel"].shape == (units, 3)
    own = first_parameters(with_top, f"vgg:units={units},pretrained=false", Progress())
    assert not np.array_equal(own["head/fc6/kernel"], top["fc6"][0])
    loaded = first_parameters(with_top, f"vgg:units={units}", None)  # a checkpoint will fill it
    assert not np.array_equal(loaded["head/fc6/kernel"], top["fc6"][0])


def test_a_top_that_does_not_fit_says_what_would(with_top):
    units = load_weights(with_top, with_top=True).top["fc7"][1].size
    with pytest.raises(OptionError, match=r"fc6 of the weights takes 1568.*the head's 288.*pretra"):
        first_parameters(with_top, f"vgg:units={units}", Progress(), image_size=96)


def test_weights_without_a_top_are_told_of(weights):
    notes = Notes()
    first_parameters(weights, "vgg:units=4", notes, image_size=32)
    assert any("have no top for the head vgg:units=4" in line for line in notes.lines)
    notes = Notes()
    first_parameters(weights, "mlp:hidden=[4]", notes, image_size=32)
    assert not notes.lines
