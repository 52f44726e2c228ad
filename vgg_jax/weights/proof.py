"""Proves that a conversion is right, and that the check would notice if it were not."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np

from vgg_jax.errors import WeightsError
from vgg_jax.weights.reference import BLOCKS, Reference, read_reference, spoil, spoil_head
from vgg_jax.weights.report import Difference, Proof
from vgg_jax.weights.source import HEAD_LAYERS, SourceWeights, WeightFile
from vgg_jax.weights.table import check_table

TOLERANCE = 1e-5  # of a layer's largest value
SEED = 16
Layers = Iterable[tuple[str, np.ndarray]]
# RGB uint8 [1, S, S, 3] -> each layer's float32 output, [1, h, w, c] or [1, n], in order: conv1_1
# (after ReLU) to pool5, then the file's own dense layers, all but the last after ReLU.
Forward = Callable[[np.ndarray], Iterator[tuple[str, np.ndarray]]]

_LAYERS = sum(BLOCKS) + len(BLOCKS)
_SMALLEST_SIDE = 48  # pool5 is 1 x 1 then
_SMALLEST_AVERAGED_SIDE = 64  # 2 x 2: an average of one place would hide how it is taken
_PUBLISHED_SIDE = 224
_LARGEST_SIDE = 1024


def prove(
    file: WeightFile,
    converted: SourceWeights,
    forward: Forward,
    versions: Mapping[str, str] | None = None,
) -> Proof:
    """Check a conversion, and that the check itself can fail.

    Args:
        file: The file, its arrays as they stand in it.
        converted: What was made of it.
        forward: The network with the converted weights, at the highest matrix precision. It is
            called several times, and its layers are taken one by one, as far as needed: a context
            that it enters may never be left.
        versions: Of packages and of the platform, for the record.

    Raises:
        WeightsError: If anything is missing, left over, not finite or in the wrong place, if a
            layer's error is above `TOLERANCE`, or if the check cannot tell: a layer is zero
            everywhere, or a control passes.
    """
    rows = check_table(file, converted)
    reference = read_reference(
        file.arrays,
        kernels=file.layout.kernels,
        preprocessing=file.preprocessing.name,
        dense_names=HEAD_LAYERS[file.head],
        pooled=file.head == "linear",
    )
    image = draw_picture(_image_side(file, reference))
    errors: dict[str, float] = {}
    features = image  # in the end, what pool5 gives
    outputs = forward(image[None])
    for name, expected, error in _differences(reference.backbone(image), outputs):
        _check_agreement(file, name, error)
        errors[name] = error
        features = expected
    tail = list(outputs)  # of the dense layers: small, and wanted again for the controls
    for name, _, error in _differences(reference.head(features), tail):
        _check_agreement(file, name, error)
        errors[name] = error
    needed = _LAYERS + len(reference.dense)
    if (len(errors), len(tail)) != (needed, len(reference.dense)):
        found = len(errors) + len(tail) - (needed - _LAYERS)
        raise WeightsError(f"{file.path} became a network of {found} layers, not {needed}.")

    _check_parameters(file, converted, reference)

    noticed = {
        name: _first_difference(spoilt.backbone(image), forward(image[None]))
        for name, spoilt in spoil(reference).items()
    } | {
        name: _first_difference(spoilt.head(features), tail)
        for name, spoilt in spoil_head(reference).items()
    }
    controls = {name: found for name, found in noticed.items() if found is not None}
    if len(controls) < len(noticed):
        silent = ", ".join(name for name, found in noticed.items() if found is None)
        raise WeightsError(
            f"{file.path} cannot be proven: the check cannot tell a right conversion from a wrong "
            f"one, since these controls did not fail: {silent}.\n"
            "Such a network hardly looks at its input; was it trained?"
        )
    return Proof(
        source=file.path.name,
        size=file.size,
        sha256=file.sha256,
        layout=file.layout.name,
        layout_description=file.layout.description,
        preprocessing=file.preprocessing.name,
        mean=converted.mean,
        scale=converted.scale,
        width=file.width,
        head=file.head,
        rows=rows,
        errors=errors,
        controls=controls,
        tolerance=TOLERANCE,
        image_side=len(image),
        image_seed=SEED,
        versions=dict(versions or {}),
    )


def _check_parameters(file: WeightFile, converted: SourceWeights, reference: Reference) -> None:
    """Compare every value: a picture does not exercise channels that stay zero on it."""
    layers = {**converted.layers, **converted.top, **converted.head}
    for name, expected in reference.parameters():
        for role, wanted, array in zip(("kernel", "bias"), expected, layers[name], strict=True):
            # Row by row, which takes less memory.
            rows = zip(wanted, array.reshape(wanted.shape), strict=True)
            if not all(
                np.array_equal(row.astype(ours.dtype, copy=False), ours) for row, ours in rows
            ):
                raise WeightsError(
                    f"{file.path} was not converted rightly: {name}/{role} does not hold the values"
                    " that the file has for it.\nThis is a fault of vgg-jax: please report it."
                )


def draw_picture(side: int, seed: int = SEED) -> np.ndarray:
    """Return RGB uint8 `[side, side, 3]`: gradients and noise, different in each channel."""
    y, x = np.mgrid[:side, :side] / side
    shades = np.stack((50 + 150 * x, 220 - 140 * y, 90 + 80 * np.sin(5 * x + 3 * y)), axis=-1)
    noise = np.random.default_rng(seed).normal(0, 25, shades.shape)
    return np.clip(shades + noise, 0, 255).astype(np.uint8)


def _image_side(file: WeightFile, reference: Reference) -> int:
    """Return the side of an image that the dense layers can follow."""
    if not reference.dense:
        return _SMALLEST_SIDE
    if not reference.places:
        declared = file.facts.image_size or _SMALLEST_AVERAGED_SIDE
        return min(max(declared, _SMALLEST_AVERAGED_SIDE), _PUBLISHED_SIDE)
    side = 32 * math.isqrt(reference.places)
    if side > _LARGEST_SIDE:
        raise WeightsError(
            f"{file.path} cannot be proven: its dense layers follow images of {side} x {side} "
            f"pixels, but at most {_LARGEST_SIDE} are supported."
        )
    return side


def _differences(expected: Layers, outputs: Layers) -> Iterator[tuple[str, np.ndarray, float]]:
    """Yield each layer's name, expected output, and error: infinite if all of it is zero."""
    for (name, wanted), (layer, output) in zip(expected, outputs, strict=False):
        if (layer, output.shape) != (name, (1, *wanted.shape)):
            raise WeightsError(
                f"The network gave {layer} {output.shape} where the independent reference gave "
                f"{name} {(1, *wanted.shape)}."
            )
        largest = max(wanted.max(), -wanted.min())
        # Row by row, which takes less memory; unlike Python's maximum, NumPy's keeps NaN.
        difference = np.max([np.abs(a - b).max() for a, b in zip(wanted, output[0], strict=True)])
        yield name, wanted, float(difference / largest) if largest else math.inf


def _first_difference(expected: Layers, outputs: Layers) -> Difference | None:
    found = (Difference(name, error) for name, _, error in _differences(expected, outputs))
    return next((it for it in found if TOLERANCE < it.error < math.inf), None)


def _check_agreement(file: WeightFile, layer: str, error: float) -> None:
    if error == math.inf:
        raise WeightsError(
            f"{file.path} cannot be proven: {layer} gives nothing but zeros for the picture that "
            "it is tried on.\nSuch a network hardly looks at its input; was it trained?"
        )
    if not error <= TOLERANCE:
        raise WeightsError(
            f"{file.path} was not converted rightly: {layer} differs from the independent "
            f"reference by {error:.2g} of its largest value (at most {TOLERANCE:.0e} is allowed).\n"
            "Either the names of its layers do not sort in the network's order (then save it as "
            ".keras), or this is a fault of vgg-jax: please report it."
        )
