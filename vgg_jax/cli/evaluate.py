"""`vgg-jax evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from vgg_jax.cli.console import (
    CheckpointOption,
    LocalCodeOption,
    WeightsOption,
    console_progress,
    importing,
    print_json,
    print_line,
    print_table,
    user_errors,
)
from vgg_jax.heap import keep_freed_memory

if TYPE_CHECKING:
    from vgg_jax.training.metrics import Evaluation


def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of the run.")],
    data: Annotated[str | None, typer.Option(help="Other data than the run's own.")] = None,
    split: Annotated[
        Literal["train", "validation", "test"], typer.Option(help="Which examples.")
    ] = "test",
    checkpoint: CheckpointOption = "best",
    weights: WeightsOption = None,
    augment: Annotated[
        list[str] | None,
        typer.Option(help="Augmentation plugin, as for train: averages over --views versions."),
    ] = None,
    views: Annotated[
        int | None, typer.Option(help="Versions of each picture, with --augment. [default: 8]")
    ] = None,
    allow_local_code: LocalCodeOption = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Evaluate a run: loss, accuracy, and how each class fares."""
    with user_errors():
        keep_freed_memory()
        with importing():
            from vgg_jax.workflows.evaluate import evaluate as evaluate_run

        progress = console_progress()
        try:
            result = evaluate_run(
                run,
                data=data,
                split=split,
                checkpoint=checkpoint,
                weights=weights,
                augment=augment or (),
                views=views,
                allow_local_code=allow_local_code,
                progress=progress,
            )
        finally:
            progress.close()
        if as_json:
            print_json(result.as_dict())
        else:
            _report(result)


def _report(result: Evaluation) -> None:
    ranks = "".join(f", top {k} {share:.3f}" for k, share in result.top_k.items() if k > 1)
    print_line(
        f"loss {result.loss:.4f}, accuracy {result.accuracy:.3f}{ranks}, {result.examples} images\n"
    )
    print_table(
        ["class", "precision", "recall", "F1", "support"],
        [
            [name, f"{c.precision:.3f}", f"{c.recall:.3f}", f"{c.f1:.3f}", str(c.support)]
            for name, c in result.classes.items()
        ],
    )
    print_line("\nconfusion matrix (rows: true, columns: predicted)")
    numbers = [str(i) for i in range(1, len(result.classes) + 1)]
    print_table(
        ["", *numbers],
        [
            [f"{number} {name}", *map(str, row)]
            for number, name, row in zip(
                numbers, result.classes, result.confusion_matrix, strict=True
            )
        ],
    )
