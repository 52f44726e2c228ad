"""What the configuration of a whole Keras model says, in the forms of Keras 1, 2 and 3."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from vgg_jax.layers import CONVOLUTIONS, keras_name
from vgg_jax.weights.keras_model import ModelDescription, describe_model
from vgg_jax.weights.source import ModelFacts

Layers = list[dict[str, Any]]


def layer(kind: str, name: str = "", /, **config: object) -> dict[str, Any]:
    return {"class_name": kind, "config": {"name": name or kind.lower(), **config}}


def vgg16(version: int = 3, size: int = 64) -> Layers:
    """Return the layers of VGG16 up to pool5 as a version of Keras writes them."""
    layers = [layer("InputLayer", **{_SHAPE[version]: [None, size, size, 3]})]
    for block, count in enumerate((2, 2, 3, 3, 3), start=1):
        for i in range(1, count + 1):
            layers.append(convolution(version, f"block{block}_conv{i}"))
        padding = {"border_mode": "valid"} if version == 1 else {"padding": "valid"}
        layers.append(
            layer("MaxPooling2D", f"block{block}_pool", pool_size=[2, 2], strides=[2, 2], **padding)
        )
    return layers


_SHAPE = {1: "batch_input_shape", 2: "batch_input_shape", 3: "batch_shape"}


def convolution(version: int, name: str, activation: str = "relu") -> dict[str, Any]:
    if version == 1:
        return layer(
            "Convolution2D",
            name,
            nb_filter=2,
            nb_row=3,
            nb_col=3,
            border_mode="same",
            subsample=[1, 1],
            dim_ordering="tf",
            activation=activation,
        )
    settings = {"padding": "same", "strides": [1, 1], "dilation_rate": [1, 1]}
    return layer("Conv2D", name, activation=activation, data_format="channels_last", **settings)


def dense(units: int, activation: str = "relu", name: str = "") -> dict[str, Any]:
    return layer("Dense", name or f"dense_{units}", units=units, activation=activation)


FLATTEN, AVERAGE = layer("Flatten"), layer("GlobalAveragePooling2D")
RECIPE = [FLATTEN, dense(256), layer("Dropout", rate=0.5), dense(3, "softmax")]


def describe(layers: Layers, kind: str = "Sequential", *, bare: bool = False) -> ModelDescription:
    config = layers if bare else {"layers": layers}
    return describe_model(json.dumps({"class_name": kind, "config": config}))


def assert_sound(described: ModelDescription, facts: ModelFacts) -> None:
    assert (described.facts, described.problems, described.head_problems) == (facts, (), ())


@pytest.mark.parametrize("version", [1, 2, 3])
@pytest.mark.parametrize("nested", [False, True])
def test_the_recipe_is_understood_as_each_keras_writes_it(version, nested):
    base = vgg16(version, size=150)
    inner = {"class_name": "Model" if version < 3 else "Functional", "config": {"layers": base}}
    layers = [inner, *RECIPE] if nested else [*base, *RECIPE]
    described = describe(layers, bare=version == 1)
    assert_sound(described, ModelFacts(image_size=150, output="softmax", flattened=True))
    assert described.convolutions == tuple(keras_name(name) for name in CONVOLUTIONS)
    assert described.dense == 2


@pytest.mark.parametrize(
    ("head", "facts"),
    [
        ([], ModelFacts(64)),
        ([AVERAGE, dense(1, "sigmoid")], ModelFacts(64, "sigmoid", flattened=False)),
        ([AVERAGE, dense(3, "linear")], ModelFacts(64, "softmax", flattened=False)),
        ([FLATTEN, dense(8), dense(8), dense(9, "softmax")], ModelFacts(64, "softmax", True)),
        ([AVERAGE, FLATTEN, dense(3, "softmax")], ModelFacts(64, "softmax", flattened=False)),
    ],
)
def test_heads(head, facts):
    assert_sound(describe([*vgg16(), *head]), facts)


def test_pictures_must_be_square():
    layers = vgg16()
    layers[0]["config"]["batch_shape"] = [None, 96, 160, 3]
    (problem,) = describe([*layers, *RECIPE]).head_problems
    assert problem == "takes pictures of 96 x 160, but only square ones convert"


def test_activations_may_be_layers_of_their_own():
    layers: Layers = []
    for original in [*vgg16(), *RECIPE]:
        activation = original["config"].get("activation")
        plain = copy.deepcopy(original)
        layers.append(plain)
        if activation:
            plain["config"]["activation"] = "linear"
            own = {"relu": layer("ReLU", max_value=None, negative_slope=0.0, threshold=0.0)}
            layers.append(own.get(activation, layer("Activation", activation=activation)))
    assert describe(layers) == describe([*vgg16(), *RECIPE])
    softmax = [*vgg16(), AVERAGE, dense(3, "linear"), layer("Softmax", axis=-1)]
    assert describe(softmax) == describe([*vgg16(), AVERAGE, dense(3, "softmax")])


@pytest.mark.parametrize(
    ("scale", "offset", "name"), [(1 / 255, 0.0, "rescale"), (1 / 127.5, -1, "tf")]
)
def test_a_rescaling_layer_is_the_preprocessing(scale, offset, name):
    layers = [layer("Rescaling", scale=scale, offset=offset), *vgg16(), *RECIPE]
    assert_sound(describe(layers), ModelFacts(64, "softmax", True, name))


def test_settings_that_are_left_out_are_those_of_keras():
    layers = vgg16()
    for plain in layers:
        if plain["class_name"] == "MaxPooling2D":
            del plain["config"]["strides"], plain["config"]["padding"]
    assert describe(layers) == describe(vgg16())


def test_what_only_training_sees_is_left_out():
    augmentation = {"class_name": "Sequential", "config": {"layers": [layer("RandomFlip")]}}
    layers = [augmentation, *vgg16(), FLATTEN, layer("GaussianNoise"), *RECIPE[1:]]
    assert describe(layers) == describe([*vgg16(), *RECIPE])


def changed(name: str, **config: object) -> Layers:
    """Return VGG16 and the recipe's head with another setting of one layer."""
    layers = copy.deepcopy([*vgg16(), *RECIPE])
    next(it for it in layers if it["config"]["name"] == name)["config"].update(config)
    return layers


def with_layer(place: int, *new: dict[str, Any], instead_of: int = 0) -> Layers:
    layers = [*vgg16(), *RECIPE]
    layers[place : place + instead_of] = new
    return layers


IN_THE_BACKBONE = [
    (changed("block1_conv1", activation="elu"), "block1_conv1: has activation elu"),
    (changed("block2_conv1", strides=[2, 2]), "strides [2, 2]"),
    (changed("block2_conv1", padding="valid"), "padding valid"),
    (changed("block2_conv1", dilation_rate=[2, 2]), "dilation [2, 2]"),
    (changed("block1_conv1", data_format="channels_first"), "channels first (channels_first)"),
    (changed("block1_pool", pool_size=[3, 3]), "block1_pool: pools [3, 3]"),
    (changed("block1_pool", strides=[1, 1]), "strides [1, 1]"),
    (changed("block1_pool", padding="same"), "padding same"),
    (with_layer(3, layer("AveragePooling2D", "pool"), instead_of=1), "pool: is a AveragePooling2D"),
    (with_layer(3, instead_of=1), "block2_conv1: is a Conv2D where VGG16 has a MaxPooling2D"),
    (with_layer(2, layer("BatchNormalization", "bn")), "bn: is a BatchNormalization"),
    (with_layer(2, layer("ReLU", "relu6", max_value=6.0)), "relu6: is a ReLU"),
    (with_layer(1, layer("ZeroPadding2D", "pad")), "pad: is a ZeroPadding2D"),
    (with_layer(1, layer("Lambda", "prep")), "prep: is a Lambda where VGG16 has a Conv2D; if that"),
    (with_layer(1, layer("Rescaling", scale=2, offset=0)), "rescales by 2 with offset 0"),
    (with_layer(1, layer("Rescaling", scale=[1, 1, 2], offset=0)), "rescales by [1, 1, 2]"),
    (
        with_layer(1, *2 * [layer("Rescaling", "again", scale=1 / 255, offset=0)]),
        "again: is a Rescaling where VGG16 has a Conv2D",
    ),
    (with_layer(1, layer("RandomCrop", "crop", height=32)), "crop: is a RandomCrop"),
]
BEHIND_IT = [
    (with_layer(18, instead_of=1), "flatten: is a Flatten where VGG16 has a MaxPooling2D"),
    (with_layer(19, layer("MaxPooling2D", "six", pool_size=[2, 2], padding="valid")), "six: is a"),
    (with_layer(19, layer("BatchNormalization", "bn")), "bn: is a BatchNormalization"),
    (with_layer(19, layer("GlobalMaxPooling2D", "max")), "max: is a GlobalMaxPooling2D"),
    (changed("dense_256", activation="tanh"), "dense_256: has activation tanh"),
    (changed("dense_3", activation="relu"), "softmax or sigmoid or linear"),
    (changed("dense_3", units=1), "dense_3: is the softmax of one unit"),
    (changed("flatten", data_format="channels_first"), "flatten: takes the channels first"),
    (changed("block5_pool", padding="same"), "block5_pool: pools [2, 2]"),
]


@pytest.mark.parametrize(("layers", "message"), IN_THE_BACKBONE)
def test_what_is_not_as_in_vgg16_is_named(layers, message):
    assert describe(vgg16()).problems == ()
    found = describe(layers)
    assert len(found.problems) == 1
    assert message in found.problems[0]
    assert not found.head_problems


@pytest.mark.parametrize(("layers", "message"), BEHIND_IT)
def test_what_is_not_as_in_a_known_head_is_named_apart(layers, message):
    found = describe(layers)
    assert len(found.head_problems) == 1
    assert message in found.head_problems[0]
    assert not found.problems


def test_keras_1_with_the_channels_first_is_refused():
    layers = vgg16(version=1)
    layers[1]["config"]["dim_ordering"] = "th"
    assert "channels first (th)" in describe(layers, bare=True).problems[0]


@pytest.mark.parametrize(
    "config",
    [
        "no JSON",
        "3",
        "[]",
        "{}",
        '{"class_name": "Sequential", "config": 3}',
        '{"class_name": "Sequential", "config": {"layers": [3]}}',
        json.dumps({"class_name": "Sequential", "config": [layer("Dropout")] * 1001}),
        json.dumps({"class_name": "Sequential", "config": [layer("Conv2D", strides=3)]}),
        "[" * 100_000,
    ],
)
def test_what_is_no_configuration_is_a_value_error(config):
    with pytest.raises(ValueError, match=r"\w"):
        describe_model(config)
