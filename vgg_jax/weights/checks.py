"""Checks what a reader found in a weight file, by names and declared shapes, before it is read."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

from vgg_jax.errors import WeightsError
from vgg_jax.layers import BASE_CHANNELS, CONVOLUTIONS, block_of, kernel_shapes
from vgg_jax.weights.source import LAYOUTS, Contents, FoundLayer, HeadName

_MOST_UNPACKED = 64  # times the file: real weights hardly compress at all
_HIDDEN_UNITS = 256  # of the head dense256
_LARGEST_WIDTH = 16.0
_MOST_LINES = 100  # of mismatches in a message; VGG16 has 32 arrays


def check_contents(path: Path, contents: Contents) -> tuple[float, HeadName]:
    """Compare all shapes with those of a VGG16, and tell what follows it.

    Args:
        path: The file.
        contents: What was found in it.

    Returns:
        The width, and the head that the dense layers are.

    Raises:
        WeightsError: If anything does not fit; every mismatch is named.
    """
    problems = [*contents.problems, *contents.head_problems]
    width = _width(contents)
    order = LAYOUTS[contents.layout].kernels
    for layer, shape in _expected_shapes(contents, width):
        problems += _shape_problems(layer, shape, order, width)
    found = [*contents.layers.values(), *contents.dense]
    arrays = [array for layer in found for array in (layer.kernel, layer.bias)]
    declared = sum(math.prod(array.shape) * array.dtype.itemsize for array in arrays)
    size = path.stat().st_size
    if declared > _MOST_UNPACKED * size:
        problems.append(f"its arrays claim {declared:,} bytes, though the whole file has {size:,}")
    raise_together(path, problems)
    try:
        return width, _head(contents, kernel_shapes(width)[CONVOLUTIONS[-1]][-1])
    except ValueError as error:
        raise_together(path, [str(error)])
        raise


def raise_together(path: Path, problems: list[str]) -> None:
    """Raise one `WeightsError` that names all problems, if there are any."""
    if len(problems) == 1:
        raise WeightsError(f"{path} is not a usable VGG16 weight file: {problems[0]}.")
    if problems:
        shown = problems[:_MOST_LINES]
        if len(problems) > _MOST_LINES:
            shown.append(f"and {len(problems) - _MOST_LINES} more")
        lines = "\n".join(f"  {problem}" for problem in shown)
        raise WeightsError(
            f"{path} is not a usable VGG16 weight file; {len(problems)} mismatches:\n{lines}"
        )


def _width(contents: Contents) -> float:
    """Return the width that most convolutions have, so that the odd one out is the one blamed."""
    out = -1 if LAYOUTS[contents.layout].kernels == "HWIO" else 0
    widths = Counter(
        layer.kernel.shape[out] / BASE_CHANNELS[block_of(name) - 1]
        for name, layer in contents.layers.items()
        if len(layer.kernel.shape) == 4 and layer.kernel.shape[out] > 0
    )
    width = widths.most_common(1)[0][0] if widths else 1.0
    return width if (width * 64).is_integer() and width <= _LARGEST_WIDTH else 1.0


def _expected_shapes(contents: Contents, width: float) -> list[tuple[FoundLayer, tuple[int, ...]]]:
    """Return each found layer with the shape that its kernel must have, HWIO or `[in, out]`."""
    shapes = kernel_shapes(width)
    expected: list[tuple[FoundLayer, tuple[int, ...]]] = [
        (layer, shapes[name]) for name, layer in contents.layers.items()
    ]
    channels = shapes[CONVOLUTIONS[-1]][-1]
    units = None
    for layer in contents.dense:
        units_in, units_out = _units(contents, layer)
        if units is None:  # the first sees the features of a square picture
            units = units_in if _side(units_in, channels) else 49 * channels
        expected.append((layer, (units, units_out)))
        units = units_out
    return expected


def _units(contents: Contents, layer: FoundLayer) -> tuple[int, int]:
    """Return a dense kernel's inputs and outputs."""
    shape = layer.kernel.shape
    if len(shape) != 2:
        return 0, math.prod(layer.bias.shape)
    return shape if LAYOUTS[contents.layout].kernels == "HWIO" else (shape[1], shape[0])


def _side(units: int, channels: int) -> int:
    """Return the side of the square features that flatten to so many units, 0 if none do."""
    side = math.isqrt(units // channels)
    return side if side * side * channels == units else 0


def _shape_problems(
    layer: FoundLayer, shape: tuple[int, ...], order: str, width: float
) -> list[str]:
    outputs = shape[-1]
    if order == "OIHW":
        shape = (shape[3], shape[2], shape[0], shape[1]) if len(shape) == 4 else shape[::-1]
    problems: list[str] = []
    if layer.kernel.shape != shape or 0 in shape:
        problems.append(
            f"{layer.label}: kernel is {_spell(layer.kernel.shape)}, "
            f"but {_spell(shape)} fits the rest (width {width:g})"
        )
    if layer.bias.shape != (outputs,):
        problems.append(
            f"{layer.label}: bias is {_spell(layer.bias.shape)}, not {_spell((outputs,))}"
        )
    return problems


def _spell(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "a single number"


def _head(contents: Contents, channels: int) -> HeadName:
    """Return what the dense layers are.

    Raises:
        ValueError: If they are none of the heads that convert; its text says what they are.
    """
    units = [_units(contents, layer) for layer in contents.dense]
    if not units:
        return ""
    flattened = contents.facts.flattened
    averaged = units[0][0] == channels and flattened is not True
    if len(units) == 1 and units[0][0] == channels:
        return "linear"
    if averaged and len(units) == 2 and flattened is None:
        raise ValueError(
            "weights alone do not tell whether its features were flattened or averaged before the"
            " dense layers; convert the whole model (model.save) instead"
        )
    if not averaged and len(units) == 2 and units[0][1] == _HIDDEN_UNITS:
        return "dense256"
    is_top = len(units) == 3 and units[0] == (49 * channels, units[1][1])
    if is_top and not averaged and contents.facts.output != "sigmoid":
        return "top"
    sizes = ", ".join(f"dense {outputs}" for _, outputs in units)
    raise ValueError(
        f"its head is {'averaged' if averaged else 'flattened'} features, {sizes}; those that"
        " convert are flatten, dense 256, dense N, and average, dense N. --no-head takes the"
        " backbone alone"
    )
