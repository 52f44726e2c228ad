"""What a proof says, and its forms: a few printed lines, JSON, Markdown."""

from __future__ import annotations

import dataclasses
import json
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from vgg_jax.errors import WeightsError

_SHA256_SHOWN = 16  # hexadecimal digits in Markdown; JSON has all 64


class Difference(NamedTuple):
    """A relative error, and the layer that it was found at."""

    layer: str
    error: float


@dataclass(frozen=True)
class Row:
    """An array of the file, the parameter that it became, and statistics of that parameter.

    Attributes:
        source: Path of the array in the file.
        source_shape: Its shape there.
        source_dtype: Its type there.
        parameter: Layer and role, such as `conv1_1/kernel`; float32.
        shape: The parameter's shape.
        done: What was done to the array, in words.
        sha256: SHA-256 of the parameter, as `vgg_jax.weights.checksums.array_sha256` takes it.
        min: Smallest value.
        max: Largest value.
        mean: Mean of the values.
        std: Standard deviation of the values.
    """

    source: str
    source_shape: tuple[int, ...]
    source_dtype: str
    parameter: str
    shape: tuple[int, ...]
    done: str
    sha256: str
    min: float
    max: float
    mean: float
    std: float


@dataclass(frozen=True)
class Proof:
    """That a conversion is right: there is one only where every check passed.

    Attributes:
        source: Name of the weight file.
        size: Its bytes.
        sha256: Its SHA-256, in hexadecimal.
        layout: Name of the arrangement of its arrays.
        layout_description: The same in words.
        preprocessing: What its weights expect of their input: `caffe`, `torch`, `tf`, `rescale`.
        mean: RGB means on the scale 0 to 255 that the converted network's input has subtracted.
        scale: RGB factors that it is then multiplied by.
        width: Channels relative to the published network.
        head: What follows the backbone: nothing (empty), `top`, `dense256`, `linear`.
        rows: Every array of the file and every parameter, each exactly once.
        errors: Relative error of each layer's output, in order.
        controls: Where and by how much the check failed, as it must, against a spoilt reference.
        tolerance: The largest error that is allowed.
        image_side: Side in pixels of the picture that the layers were compared on.
        image_seed: Decides that picture.
        versions: Of packages and of the platform.
        picture: Name of a picture that the user wanted tried; empty without one.
        top5: Its most probable classes, each with its probability.
    """

    source: str
    size: int
    sha256: str
    layout: str
    layout_description: str
    preprocessing: str
    mean: tuple[float, float, float]
    scale: tuple[float, float, float]
    width: float
    head: str
    rows: tuple[Row, ...]
    errors: Mapping[str, float]
    controls: Mapping[str, Difference]
    tolerance: float
    image_side: int
    image_seed: int
    versions: Mapping[str, str] = field(default_factory=dict)
    picture: str = ""
    top5: tuple[tuple[str, float], ...] = ()

    @property
    def largest(self) -> Difference:
        """The largest error, and its layer."""
        return max((Difference(*item) for item in self.errors.items()), key=lambda it: it.error)

    def as_dict(self) -> dict[str, Any]:
        """Return everything as JSON can hold it."""
        controls = {name: found._asdict() for name, found in self.controls.items()}
        return dataclasses.asdict(self) | {
            "controls": controls,
            "largest": self.largest._asdict(),
        }

    def summary_lines(self) -> list[str]:
        """Return the proof in three or four lines."""
        controls = ", ".join(f"{name} {it.error:.2g}" for name, it in self.controls.items())
        lines = [
            f"Proof: {len(self.errors)} layers agree with an independent float64 reference to "
            f"{self.largest.error:.1e} (at most {self.tolerance:.0e} is allowed)",
            f"  {len(self.rows)} arrays became {len(self.rows)} parameters: none missing, none "
            "left over, all finite",
            f"  {len(self.controls)} controls fail as they must: {controls}",
        ]
        if self.top5:
            classes = ", ".join(f"{name} {probability:.1%}" for name, probability in self.top5)
            lines.append(f"  {self.picture}: {classes}")
        return lines


def write_json(proof: Proof, path: Path) -> None:
    """Write the whole proof as JSON, the file whole or not at all.

    Raises:
        WeightsError: If it cannot be written.
    """
    _write(path, json.dumps(proof.as_dict(), indent=2, allow_nan=False) + "\n")


def write_markdown(proof: Proof, path: Path) -> None:
    """Write the proof for people, the file whole or not at all.

    Raises:
        WeightsError: If it cannot be written.
    """
    _write(path, as_markdown(proof))


def as_markdown(proof: Proof) -> str:
    """Return the proof for people: every row, error and control; checksums are shortened."""
    head = {"": "none", "top": "fc6, fc7, fc8"}.get(proof.head, proof.head)
    largest = proof.largest
    sections = [
        "# Proof of a weight conversion",
        f"**Passed.** The {len(proof.errors)} layers of the converted network agree with an "
        f"independent reference to {largest.error:.1e} (at {largest.layer}; at most "
        f"{proof.tolerance:.0e} is allowed), and the same check fails on each of "
        f"{len(proof.controls)} reference networks that were spoilt on purpose.",
        "## What was converted",
        _bullets(
            {
                "File": f"{_code(proof.source)}, {proof.size:,} bytes",
                "SHA-256": _code(proof.sha256),
                "Layout": f"{proof.layout_description} ({_code(proof.layout)})",
                "Network": f"VGG16 of width {proof.width:g}; layers behind the backbone: {head}",
                "Preprocessing": f"{proof.preprocessing}: the converted network takes RGB from 0 "
                f"to 255, minus {_numbers(proof.mean)}, times {_numbers(proof.scale)}",
                "Made with": ", ".join(f"{k} {v}" for k, v in proof.versions.items()) or "unknown",
            }
        ),
        "## From the file's arrays to parameters",
        f"Each of the {len(proof.rows)} arrays became one parameter, float32; nothing is missing, "
        "nothing is left over, all values are finite.",
        _table(
            ("array in the file", "shape", "parameter", "shape", "what was done", "SHA-256"),
            (
                (
                    _code(row.source),
                    f"{_shape(row.source_shape)} {row.source_dtype}",
                    _code(row.parameter),
                    _shape(row.shape),
                    row.done,
                    _code(row.sha256[:_SHA256_SHOWN]),
                )
                for row in proof.rows
            ),
        ),
        "## Statistics",
        _table(
            ("parameter", "min", "max", "mean", "std"),
            (
                (_code(row.parameter), *(f"{x:.6g}" for x in (row.min, row.max, row.mean, row.std)))
                for row in proof.rows
            ),
        ),
        "## Agreement with the reference",
        "The reference is a forward pass in float64 NumPy that reads the file's arrays as they "
        "stand there, in their own order of axes and channels and with their own preprocessing; it "
        "shares no code with the network or the converter. Both were given a "
        f"{proof.image_side} x {proof.image_side} picture drawn from seed {proof.image_seed}. "
        "The error is the largest difference over the reference's largest absolute value.",
        _table(("layer", "relative error"), ((k, f"{v:.2e}") for k, v in proof.errors.items())),
        "## Controls",
        "Against a reference spoilt in one way the same check must fail: otherwise it could not "
        "tell a right conversion from a wrong one.",
        _table(
            ("spoilt by", "noticed at", "relative error"),
            ((name, it.layer, f"{it.error:.2g}") for name, it in proof.controls.items()),
        ),
    ]
    if proof.top5:
        sections += [
            "## A picture",
            f"{_code(proof.picture)}, the most probable classes:",
            _table(("class", "probability"), ((name, f"{p:.4f}") for name, p in proof.top5)),
        ]
    sections += [
        "## To check again",
        "`vgg-jax convert-weights --verify DIR`, with the folder of converted weights for DIR, "
        "compares every array with its checksum, and repeats this proof where the weight file is "
        "at hand.",
    ]
    return "\n\n".join(sections) + "\n"


def _write(path: Path, text: str) -> None:
    path = Path(path)
    scratch = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        scratch.write_text(text, encoding="utf-8")
        scratch.replace(path)
    except OSError as error:
        raise WeightsError(f"Cannot write the proof to {path}: {error.strerror}.") from error
    finally:
        scratch.unlink(missing_ok=True)


def _bullets(facts: Mapping[str, str]) -> str:
    return "\n".join(f"- {name}: {value}" for name, value in facts.items())


def _table(titles: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = (titles, ("---",) * len(titles), *rows)
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _code(text: str) -> str:
    """Return text from the file as code: nothing in it is Markdown or breaks a line."""
    return f"`{' '.join(text.replace('`', chr(39)).split())}`"


def _numbers(values: Iterable[float]) -> str:
    return ", ".join(f"{value:.6g}" for value in values)


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
