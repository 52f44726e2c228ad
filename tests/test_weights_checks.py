"""Which heads are recognised by their shapes, and what is said of others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vgg_jax.errors import WeightsError
from vgg_jax.layers import kernel_shapes
from vgg_jax.weights.checks import check_contents
from vgg_jax.weights.source import Contents, FoundLayer, ModelFacts, SourceArray

WIDTH, CHANNELS = 1 / 16, 32
ONE, SEVEN = CHANNELS, 49 * CHANNELS  # inputs of features that are averaged, or of 7 x 7 places
FLAT, AVERAGED = ModelFacts(flattened=True), ModelFacts(flattened=False)
SIGMOIDS = ModelFacts(flattened=True, output="sigmoid")


@pytest.fixture
def path(tmp_path) -> Path:
    (tmp_path / "weights").write_bytes(bytes(1 << 20))
    return tmp_path / "weights"


def found(label: str, shape: tuple[int, ...]) -> FoundLayer:
    def array(role: str, shape: tuple[int, ...]) -> SourceArray:
        return SourceArray(f"{label}/{role}", shape, np.dtype("<f4"), lambda _: None)

    return FoundLayer(label, array("kernel", shape), array("bias", shape[-1:]))


def contents(*units: int, facts: ModelFacts = ModelFacts()) -> Contents:  # noqa: B008 (frozen)
    """Return a narrow VGG16 with dense layers of so many inputs, units, units, …."""
    layers = {name: found(name, shape) for name, shape in kernel_shapes(WIDTH).items()}
    dense = [found(f"dense_{i}", units[i : i + 2]) for i in range(len(units) - 1)]
    return Contents("keras-h5", layers, tuple(dense), facts=facts)


@pytest.mark.parametrize(
    ("units", "facts", "head"),
    [
        ((), ModelFacts(), ""),
        ((SEVEN, 256, 5), ModelFacts(), "dense256"),
        ((SEVEN, 256, 5), FLAT, "dense256"),
        ((ONE, 256, 5), FLAT, "dense256"),  # pictures of one place
        ((ONE, 5), ModelFacts(), "linear"),
        ((ONE, 1), AVERAGED, "linear"),
        ((SEVEN, 64, 64, 9), ModelFacts(), "top"),
    ],
)
def test_heads_are_told_by_their_shapes(path, units, facts, head):
    assert check_contents(path, contents(*units, facts=facts)) == (WIDTH, head)


@pytest.mark.parametrize(
    ("units", "facts", "message"),
    [
        ((SEVEN, 5), ModelFacts(), "its head is flattened features, dense 5;"),
        ((SEVEN, 128, 5), ModelFacts(), "its head is flattened features, dense 128, dense 5;"),
        ((ONE, 256, 5), AVERAGED, "its head is averaged features, dense 256, dense 5;"),
        ((ONE, 256, 5), ModelFacts(), "convert the whole model (model.save) instead"),
        ((SEVEN, 64, 32, 9), ModelFacts(), "dense 64, dense 32, dense 9"),
        ((SEVEN, 64, 64, 9), SIGMOIDS, "dense 64, dense 64, dense 9"),  # a top ends in a softmax
        ((SEVEN, 8, 8, 8, 8), ModelFacts(), "dense 8, dense 8, dense 8, dense 8"),
    ],
)
def test_other_heads_are_refused_with_what_they_are(path, units, facts, message):
    with pytest.raises(WeightsError) as caught:
        check_contents(path, contents(*units, facts=facts))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("inputs", [0, 31, 33, 3 * CHANNELS, 48 * CHANNELS])
def test_inputs_that_no_square_picture_leads_to_are_a_mismatch(path, inputs):
    with pytest.raises(WeightsError, match=rf"kernel is {inputs} x 256, but 1568 x 256 fits"):
        check_contents(path, contents(inputs, 256, 5))


def test_a_small_file_that_claims_much_is_refused(tmp_path):
    (tmp_path / "small").write_bytes(bytes(1000))
    with pytest.raises(WeightsError, match=r"its arrays claim [\d,]+ bytes, though .* has 1,000"):
        check_contents(tmp_path / "small", contents())
