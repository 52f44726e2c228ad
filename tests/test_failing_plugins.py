"""Plugins that load, and fail in use: named with their package, version and cause."""

from __future__ import annotations

import pytest
from broken_plugins import other

from vgg_jax import train
from vgg_jax.errors import PluginError

HEAD_THAT_FAILS = """
from flax import nnx


class Statistic(nnx.Variable):
    pass


class Head(nnx.Module):
    def __init__(self, feature_shape, num_classes, *, rngs):
        self.logits = nnx.Linear(feature_shape[-1], num_classes, rngs=rngs)
        if FAULT == "batch statistics":
            self.mean = Statistic(self.logits.bias.get_value())

    def __call__(self, features):
        if features.shape[0] > 2:  # more than are tried when it is built
            if FAULT == "many rows":
                raise ValueError("too many rows")
            raise SystemExit(7)
        return self.logits(features.mean((1, 2)))
"""


@pytest.mark.parametrize(
    ("base", "method"),
    [
        ("PixelAugmentation", "apply(self, key, image)"),
        ("GeometricAugmentation", "matrix(self, key, height, width)"),
        ("HostAugmentation", "apply(self, rng, image)"),
        ("BatchAugmentation", "apply(self, key, images, targets, valid)"),
    ],
)
@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        ("raise ZeroDivisionError('no luck')", "ZeroDivisionError: no luck"),
        ("raise SystemExit(7)", r"it ended the process \(SystemExit: 7\)"),
    ],
    ids=["raises", "exits"],
)
def test_an_augmentation_that_fails_in_training_is_named_with_its_package(
    base, method, fault, cause, installed, options, tmp_path
):
    module = f"fails_{base.lower()}_{len(cause)}"
    source = other(base, f"def {method}:\n    {fault}")
    (tmp_path / f"{module}.py").write_text(source)
    installed("ill-luck", "0.3", {"unlucky": f"{module}:Broken"}, group="vgg_jax.augmentations")
    chosen = {**options, "augment": ("unlucky",)}
    with pytest.raises(PluginError, match=f"'unlucky' of ill-luck 0.3 .*{cause}"):
        train(**chosen, run=str(tmp_path / "run"))


@pytest.mark.parametrize("fault", ["many rows", "exit", "batch statistics"])
def test_a_head_that_fails_in_training_is_named_with_its_package(
    fault, installed, options, tmp_path
):
    module = f"head_fails_{fault.replace(' ', '_')}"
    (tmp_path / f"{module}.py").write_text(HEAD_THAT_FAILS.replace("FAULT", repr(fault)))
    installed("ill-head", "0.4", {"unlucky": f"{module}:Head"})
    with pytest.raises(PluginError, match=r"The head 'unlucky' of ill-head 0.4 .*(many|7|Statist)"):
        train(**{**options, "head": "unlucky"}, run=str(tmp_path / "run"))
