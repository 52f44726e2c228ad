"""Each array of a file became one parameter, each parameter was one array; all else is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from proof_files import FEATURES, PLACES, convert, make_file, with_kernel

from vgg_jax.errors import WeightsError
from vgg_jax.weights.checksums import array_sha256
from vgg_jax.weights.source import SourceWeights, WeightFile
from vgg_jax.weights.table import check_table


def test_rows_tell_what_each_array_became():
    file = make_file("torch-pth", "torch", "top", "torch")
    weights = convert(file)
    rows = check_table(file, weights)
    assert [(row.source, row.parameter, row.done) for row in rows] == [
        (row.source, row.parameter, row.done) for row in weights.table
    ]
    row = next(row for row in rows if row.parameter == "fc6/kernel")
    kernel = weights.top["fc6"][0]
    assert (row.source, row.source_shape, row.shape) == (
        "classifier.0.weight",
        (40, PLACES * FEATURES),
        (PLACES * FEATURES, 40),
    )
    assert row.sha256 == array_sha256(kernel)
    assert (row.min, row.max) == (kernel.min(), kernel.max())
    exact = kernel.astype(np.float64)
    assert (row.mean, row.std) == pytest.approx((exact.mean(), exact.std()), rel=1e-9)


def drop(file: WeightFile, weights: SourceWeights) -> SourceWeights:
    return replace(weights, table=weights.table[1:])


def repeat(file: WeightFile, weights: SourceWeights) -> SourceWeights:
    return replace(weights, table=(*weights.table, weights.table[0]))


def exchange(file: WeightFile, weights: SourceWeights) -> SourceWeights:
    a, b, *rest = weights.table
    a, b = replace(a, source=b.source), replace(b, source=a.source)
    return replace(weights, table=(a, b, *rest))


def lose(file: WeightFile, weights: SourceWeights) -> SourceWeights:
    layers = {name: pair for name, pair in weights.layers.items() if name != "conv5_3"}
    return replace(weights, layers=layers)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (drop, r"no row for array block1_conv1/\S+; no row for parameter conv1_1/kernel"),
        (repeat, "row for array .* occurs 2 times; row for parameter conv1_1/kernel occurs 2 t"),
        (exchange, "conv1_1/kernel does not hold the values of block1_conv1/block1_conv1_b"),
        (lose, "no parameter conv5_3/kernel; no parameter conv5_3/bias"),
        (
            lambda f, w: replace(w, head={"logits": w.layers["conv1_1"]}),
            "parameter logits/kernel is left over; parameter logits/bias is left over",
        ),
        (
            lambda f, w: with_kernel(w, "conv2_1", lambda k: k * np.float32(np.inf)),
            "conv2_1/kernel has values that are not finite",
        ),
        (
            lambda f, w: with_kernel(w, "conv2_1", lambda k: k.astype(np.float64)),
            "conv2_1/kernel is float64, not float32",
        ),
        (
            lambda f, w: with_kernel(w, "conv2_1", lambda k: k * 2),
            "conv2_1/kernel does not hold the values of block2_conv1/",
        ),
    ],
)
def test_books_that_do_not_balance_are_refused(spoil, message):
    file = make_file()
    with pytest.raises(WeightsError, match=message), np.errstate(invalid="ignore"):
        check_table(file, spoil(file, convert(file)))


def test_an_array_of_the_file_that_became_nothing_is_refused():
    file = make_file()
    extra = replace(file, arrays={**file.arrays, "optimizer/step": np.zeros(3, np.float32)})
    with pytest.raises(WeightsError, match="no row for array optimizer/step"):
        check_table(extra, convert(file))
