"""`vgg-jax predict`."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vgg_jax.cli.console import (
    EXIT_FAILED,
    CheckpointOption,
    WeightsOption,
    print_json,
    say,
    user_errors,
)
from vgg_jax.errors import ConfigError

if TYPE_CHECKING:
    from vgg_jax.workflows.predict import Prediction


def predict(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of the run.")],
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="PATH…", help="Pictures, folders of pictures, or - for paths on stdin."
        ),
    ],
    top: Annotated[int, typer.Option(help="How many classes to show.", min=1)] = 3,
    checkpoint: CheckpointOption = "best",
    weights: WeightsOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    as_csv: Annotated[
        bool, typer.Option("--csv", help="Print path, class and all probabilities as CSV.")
    ] = False,
) -> None:
    """Say what pictures show."""
    failed = False
    with user_errors():
        if as_json and as_csv:
            raise ConfigError("--json and --csv cannot both be given.")
        from vgg_jax.workflows.predict import predict as predict_paths

        predictions = predict_paths(run, _expand(paths), checkpoint=checkpoint, weights=weights)
        if as_json:
            results = list(predictions)
            print_json({"predictions": [result.as_dict(top) for result in results]})
            failed = any(result.error for result in results)
        else:
            writer = csv.writer(sys.stdout, lineterminator="\n") if as_csv else None
            columns: list[str] = []
            for result in predictions:
                if result.error:
                    say(f"Error: {result.error}")
                    failed = True
                    continue
                if writer is None:
                    _report(result, top)
                    continue
                if not columns:
                    columns = sorted(result.probabilities)
                    writer.writerow(["path", "class", *columns])
                shares = [f"{result.probabilities[name]:.6f}" for name in columns]
                writer.writerow([result.path, result.class_name, *shares])
    if failed:
        raise typer.Exit(EXIT_FAILED)


def _expand(paths: list[str]) -> list[str]:
    """Put the lines of standard input in the place of each `-`."""
    expanded: list[str] = []
    for path in paths:
        if path == "-":
            expanded.extend(line.rstrip("\n") for line in sys.stdin if line.strip())
        else:
            expanded.append(path)
    return expanded


def _report(result: Prediction, top: int) -> None:
    shares = [f"{name} {share:.3f}" for name, share in list(result.probabilities.items())[:top]]
    print(f"{result.path}: {', '.join(shares)}", flush=True)
