"""`vgg-jax augment-preview`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from vgg_jax.cli.console import console_progress, importing, print_json, print_line, user_errors
from vgg_jax.plugin_choices import parse_choice


def augment_preview(
    out: Annotated[Path, typer.Option(help="PNG to write.")],
    augment: Annotated[
        list[str] | None,
        typer.Option(help="Augmentation plugin, as for train; repeat for a chain."),
    ] = None,
    data: Annotated[str, typer.Option(help="As for train.")] = "demo",
    views: Annotated[int, typer.Option(help="Versions of each picture.", min=1)] = 8,
    pictures: Annotated[int, typer.Option(help="Pictures, of different classes.", min=1)] = 4,
    seed: Annotated[int, typer.Option(help="Of the training.", min=0)] = 0,
    image_size: Annotated[int, typer.Option(help="Side in pixels.", min=32)] = 224,
    interpolation: Annotated[
        Literal["bilinear", "nearest"], typer.Option(help="How pictures are resized.")
    ] = "bilinear",
    fill: Annotated[
        Literal["nearest", "constant", "reflect", "wrap"],
        typer.Option(help="What lies beyond the edges."),
    ] = "nearest",
    fill_value: Annotated[float, typer.Option(help="Grey of fill constant, in [0, 1].")] = 0.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Show training pictures as a training would augment them, epoch by epoch."""
    with user_errors():
        choices = [parse_choice(text) for text in augment or ()]
        with importing():
            from vgg_jax.workflows.preview import preview_data, write_grid

        images = preview_data(
            data,
            choices,
            views=views,
            pictures=pictures,
            seed=seed,
            image_size=image_size,
            interpolation=interpolation,
            fill=fill,
            fill_value=fill_value,
            progress=console_progress(),
        )
        write_grid(images, out)
        if as_json:
            print_json({"out": str(out), "pictures": len(images), "views": views})
        else:
            print_line(f"{len(images)} pictures, each as it is and in {views} versions: {out}")
