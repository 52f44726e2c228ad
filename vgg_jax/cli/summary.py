"""`vgg-jax summary`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vgg_jax.cli.console import (
    LocalCodeOption,
    importing,
    print_json,
    print_line,
    print_table,
    user_errors,
)
from vgg_jax.config import TrainConfig, built_in_head

if TYPE_CHECKING:
    from vgg_jax.workflows.summary import Summary


def summary(
    run: Annotated[Path | None, typer.Argument(metavar="[RUN]", help="Folder of a run.")] = None,
    head: Annotated[
        str | None, typer.Option(help="Without RUN: head plugin. [default: dense256]")
    ] = None,
    train_from: Annotated[str, typer.Option(help="Without RUN: first trained layer.")] = "conv5_1",
    image_size: Annotated[int, typer.Option(help="Without RUN: side in pixels.")] = 224,
    classes: Annotated[int, typer.Option(help="Without RUN: number of classes.", min=2)] = 5,
    width: Annotated[float, typer.Option(help="Without RUN: width of the backbone.")] = 1.0,
    weights: Annotated[
        str | None,
        typer.Option(help="Where the run's backbone is, if it was moved since the training."),
    ] = None,
    allow_local_code: LocalCodeOption = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Show the layers: output shape, parameters, trained or frozen, multiply-adds of one image."""
    with user_errors():
        config = TrainConfig(
            head=head or built_in_head(), train_from=train_from, image_size=image_size
        )
        with importing():
            from vgg_jax.workflows.summary import summarise, summarise_run

        result = (
            summarise_run(run, weights, allow_local_code=allow_local_code)
            if run
            else summarise(config, num_classes=classes, width=width)
        )
        if as_json:
            print_json(result.as_dict())
        else:
            _report(result)


def _report(result: Summary) -> None:
    state = {True: "trained", False: "frozen", None: ""}
    print_table(
        ["layer", "in Keras", "", "output", "parameters", "multiply-adds"],
        [
            [
                row.layer,
                row.keras_name,
                state[row.trained],
                " x ".join(map(str, row.output_shape)),
                f"{row.parameters:,}" if row.parameters else "",
                f"{row.multiply_adds:,}" if row.multiply_adds else "",
            ]
            for row in result.layers
        ],
        left=3,
    )
    print_line(
        f"\n{result.parameters:,} parameters, of which {result.trained_parameters:,} are trained "
        f"({result.trained_parameters / result.parameters:.1%})."
    )
    if any(row.multiply_adds is None for row in result.layers):
        print_line("The head's layers that are not dense are left out of the multiply-adds.")
    print_line(
        f"{result.multiply_adds:,} multiply-adds for an image of {result.image_size} x"
        f" {result.image_size}, of which {result.trained_multiply_adds:,} are in trained layers"
        f" ({result.trained_multiply_adds / result.multiply_adds:.1%})."
    )
