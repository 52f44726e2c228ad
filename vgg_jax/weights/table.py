"""The books of a conversion: which array of a file became which parameter, checked."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable

import numpy as np

from vgg_jax.errors import WeightsError
from vgg_jax.layers import CONVOLUTIONS
from vgg_jax.weights.checksums import array_sha256
from vgg_jax.weights.report import Row
from vgg_jax.weights.source import HEAD_LAYERS, Converted, SourceWeights, WeightFile

_SHOWN = 3


def check_table(file: WeightFile, converted: SourceWeights) -> tuple[Row, ...]:
    """Check that each array became one parameter and each parameter was one array.

    Returns:
        The rows of `converted.table`, with shapes, checksums and statistics.

    Raises:
        WeightsError: If anything is missing, left over or named twice, is not finite float32, or
            does not hold the values of its array.
    """
    parameters = {
        f"{layer}/{role}": array
        for part in (converted.layers, converted.top, converted.head)
        for layer, pair in part.items()
        for role, array in zip(("kernel", "bias"), pair, strict=True)
    }
    needed = [
        f"{layer}/{role}"
        for layer in (*CONVOLUTIONS, *HEAD_LAYERS[file.head])
        for role in ("kernel", "bias")
    ]
    problems = [
        *_mismatches("parameter", parameters, needed),
        *_mismatches("row for array", (row.source for row in converted.table), file.arrays),
        *_mismatches("row for parameter", (row.parameter for row in converted.table), needed),
    ]
    if not problems:
        for row in converted.table:
            problems += _problems(row, file.arrays[row.source], parameters[row.parameter])
    if problems:
        shown = "; ".join(problems[:_SHOWN])
        more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise WeightsError(f"{file.path} was not converted rightly: {shown}{more}.")
    return tuple(
        _row(row, file.arrays[row.source], parameters[row.parameter]) for row in converted.table
    )


def _mismatches(what: str, found: Iterable[str], needed: Collection[str]) -> list[str]:
    counts = Counter(iter(found))  # a mapping's values are no counts
    return (
        [f"no {what} {name}" for name in needed if name not in counts]
        + [f"{what} {name} is left over" for name in counts if name not in needed]
        + [f"{what} {name} occurs {n} times" for name, n in counts.items() if n > 1]
    )


def _problems(row: Converted, source: np.ndarray, parameter: np.ndarray) -> list[str]:
    if parameter.dtype != np.float32:
        return [f"{row.parameter} is {parameter.dtype}, not float32"]
    extremes = parameter.min(), parameter.max()
    if not np.isfinite(extremes).all():
        return [f"{row.parameter} has values that are not finite"]
    # Whatever the order of the axes, the values are the same ones.
    origin = np.float32(source.min()), np.float32(source.max())
    if source.size != parameter.size or origin != extremes:
        return [f"{row.parameter} does not hold the values of {row.source}"]
    return []


def _row(row: Converted, source: np.ndarray, parameter: np.ndarray) -> Row:
    flat = parameter.reshape(-1)
    mean = float(flat.mean(dtype=np.float64))
    # Not std: it makes a copy of the array.
    squares = float(np.einsum("i,i->", flat, flat, dtype=np.float64)) / flat.size
    return Row(
        source=row.source,
        source_shape=source.shape,
        source_dtype=source.dtype.name,
        parameter=row.parameter,
        shape=parameter.shape,
        done=row.done,
        sha256=array_sha256(parameter),
        min=float(flat.min()),
        max=float(flat.max()),
        mean=mean,
        std=math.sqrt(max(0.0, squares - mean * mean)),
    )
