"""`vgg-jax export-weights`."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from vgg_jax.cli.console import (
    CheckpointOption,
    WeightsOption,
    console_progress,
    importing,
    interruptible,
    print_json,
    print_line,
    user_errors,
)

if TYPE_CHECKING:
    from vgg_jax.workflows.export import ExportResult

_CLASSES_SHOWN = 8


def export_weights(
    source: Annotated[
        str,
        typer.Argument(metavar="RUN_OR_WEIGHTS", help="Folder of a run, or converted weights."),
    ],
    to: Annotated[
        Literal["keras-h5", "keras", "torch-safetensors"],
        typer.Option(help="Keras' HDF5 layout, a .keras archive, or torchvision's names."),
    ],
    out: Annotated[Path, typer.Option(help="File to write: .h5, .keras or .safetensors.")],
    checkpoint: CheckpointOption = "best",
    weights: WeightsOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Write a run or converted weights as a file that Keras or PyTorch loads."""
    with user_errors():
        with importing():
            from vgg_jax.workflows.export import export_weights as export

        interruptible()
        progress = console_progress()
        try:
            result = export(
                source, to, out, checkpoint=checkpoint, weights=weights, progress=progress
            )
        finally:
            progress.close()
        if as_json:
            print_json(result.as_dict())
        else:
            _report(result)


def _report(result: ExportResult) -> None:
    what = {"": "Backbone", "top": "Backbone with top"}.get(
        result.head, f"Classifier with head {result.head}"
    )
    print_line(f"Wrote {result.file}, {result.size / 1e6:,.1f} MB, SHA-256 {result.sha256}")
    epoch = "" if result.epoch is None else f", of epoch {result.epoch}"
    print_line(f"{what} of width {result.width:g}{epoch}: {result.parameters:,} parameters")
    if result.class_names:
        more = len(result.class_names) - _CLASSES_SHOWN
        shown = ", ".join(result.class_names[:_CLASSES_SHOWN])
        print_line(f"Classes: {shown}{f' and {more} more' if more > 0 else ''}")
    size = f", {result.image_size} x {result.image_size}" if result.image_size else ""
    print_line(f"Input: {result.input}{size}")
    print_line("\nTo use it:\n")
    print_line(textwrap.indent(result.code, "    "))
