"""`vgg-jax convert-weights`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vgg_jax.cli.console import interruptible, print_json, user_errors


def convert_weights(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE", help="A Keras VGG16 file (HDF5), or demo for the packaged weights."
        ),
    ] = "imagenet",
    out: Annotated[
        Path | None,
        typer.Option(help="Folder to write. [default: weights/NAME]", show_default=False),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Convert VGG16 weights from Keras' layout, for use as --weights."""
    with user_errors():
        from vgg_jax.workflows.convert import convert_weights as convert

        interruptible()
        result = convert(source, out)
        if as_json:
            print_json(result.as_dict())
            return
        done = "Wrote" if result.written else "Already there, identical:"
        print(f"{done} {result.folder}")
        print(
            f"VGG16 of width {result.width:g}{' with top' if result.top else ''}: {result.layers}"
            f" layers, {result.parameters:,} parameters, digest {result.digest[:12]}"
        )
        print(f"Source {result.source}, SHA-256 {result.sha256}")
