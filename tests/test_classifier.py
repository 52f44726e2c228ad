"""The classifier as pure functions, and what a head may be."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest
from flax import nnx

from vgg_jax.errors import PluginError
from vgg_jax.model.classifier import Classifier, build_classifier, make_functional
from vgg_jax.model.heads import VGGTop
from vgg_jax.model.vgg16 import VGG16
from vgg_jax.plugin_choices import PluginChoice


class DropoutHead(nnx.Module):
    """A head with randomness in training."""

    def __init__(self, feature_shape, num_classes, *, rngs):
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.dense = nnx.Linear(feature_shape[-1], num_classes, rngs=rngs)

    def __call__(self, features):
        return self.dense(self.dropout(features.mean((1, 2))))


class StatefulHead(DropoutHead):
    def __init__(self, feature_shape, num_classes, *, rngs):
        super().__init__(feature_shape, num_classes, rngs=rngs)
        self.norm = nnx.BatchNorm(num_classes, rngs=rngs)


class WrongShapeHead(DropoutHead):
    def __call__(self, features):
        return super().__call__(features)[:, None]


def not_a_module(feature_shape, num_classes, *, rngs):
    return lambda features: features


@pytest.fixture(scope="module")
def backbone() -> VGG16:
    return VGG16.random(1 / 16, seed=0)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)


@pytest.mark.parametrize("boundary", ["conv1_1", "pool3", "conv5_1", "head"])
@pytest.mark.parametrize("head", ["dense256", "linear"])
def test_bound_functions_equal_the_module(backbone, images, boundary, head):
    classifier = build_classifier(
        backbone, PluginChoice(head), num_classes=3, image_size=32, boundary=boundary, seed=0
    )
    functional, parameters = make_functional(classifier)
    expected = classifier(images)
    assert expected.shape == (2, 3)
    np.testing.assert_array_equal(functional.bind(parameters)(images), expected)
    bound = functional.bind(parameters)
    features = bound.pool(bound.prefix(images))
    assert features.ndim == (2 if functional.pools else 4)
    assert functional.pools == (head == "linear" and boundary == "head")
    np.testing.assert_array_equal(functional.bind(parameters).suffix(features), expected)
    np.testing.assert_array_equal(bound(images), expected)  # which has kept its own pool


@pytest.mark.parametrize("make_head", [DropoutHead, functools.partial(VGGTop, units=16)])
def test_dropout_is_on_in_training_only_and_follows_the_key(backbone, images, make_head):
    head = make_head((1, 1, 32), 3, rngs=nnx.Rngs(0))
    functional, parameters = make_functional(Classifier(backbone, head, "head"))

    def logits(key=None):
        return np.asarray(functional.bind(parameters, key)(images))

    np.testing.assert_array_equal(logits(), logits())
    one, two = jax.random.key(1), jax.random.key(2)
    np.testing.assert_array_equal(logits(one), logits(one))
    assert not np.array_equal(logits(one), logits(two))
    assert not np.array_equal(logits(one), logits())


def test_the_seed_decides_the_head(backbone):
    def kernel(seed):
        classifier = build_classifier(
            backbone,
            PluginChoice("linear"),
            num_classes=3,
            image_size=32,
            boundary="head",
            seed=seed,
        )
        return np.asarray(make_functional(classifier)[1]["head/logits/kernel"])

    np.testing.assert_array_equal(kernel(0), kernel(0))
    assert not np.array_equal(kernel(0), kernel(1))


def test_a_head_with_other_variables_is_refused_by_name(backbone):
    head = StatefulHead((1, 1, 32), 3, rngs=nnx.Rngs(0))
    with pytest.raises(PluginError, match=r"The head holds a BatchStat at 'head/norm/"):
        make_functional(Classifier(backbone, head, "head"))


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        (WrongShapeHead, r"to \(2, 1, 3\), but must give logits \(2, 3\)"),
        (not_a_module, "not a flax"),
    ],
)
def test_a_head_that_breaks_the_contract_is_refused(backbone, installed, factory, message):
    installed("odd-heads", "1.2", {"odd": f"{__name__}:{factory.__name__}"})
    with pytest.raises(PluginError, match=rf"'odd' of odd-heads 1.2 .*{message}"):
        build_classifier(
            backbone, PluginChoice("odd"), num_classes=3, image_size=32, boundary="head", seed=0
        )


def test_a_pool_with_parameters_is_a_part_of_the_head_like_others(backbone, images):
    class Pooling(nnx.Module):
        def __init__(self, rngs):
            self.pool = nnx.Linear(32, 3, rngs=rngs)

        def __call__(self, features):
            return self.pool(features.mean((1, 2)))

    classifier = Classifier(backbone, Pooling(nnx.Rngs(0)), "head")
    functional, parameters = make_functional(classifier)
    assert not functional.pools
    bound = functional.bind(parameters)
    features = bound.pool(bound.prefix(images))
    np.testing.assert_array_equal(bound.suffix(features), classifier(images))
