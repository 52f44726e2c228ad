"""`vgg-jax predict`."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from vgg_jax.cli.console import (
    EXIT_FAILED,
    LocalCodeOption,
    console_progress,
    importing,
    print_json,
    print_line,
    say,
    standard_output,
    user_errors,
)
from vgg_jax.errors import ConfigError, RunError
from vgg_jax.heap import keep_freed_memory

if TYPE_CHECKING:
    from vgg_jax.workflows.predict import Prediction


def predict(
    run_or_path: Annotated[
        str,
        typer.Argument(
            metavar="RUN|PATH",
            help="Folder of a run. May be left out: then the weights' own top answers.",
        ),
    ],
    paths: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PATH…", help="Pictures, folders of pictures, or - for paths on stdin."
        ),
    ] = None,
    top: Annotated[int, typer.Option(help="How many classes to show.", min=1)] = 3,
    checkpoint: Annotated[
        Literal["best", "latest"] | None,
        typer.Option(
            help="Of RUN: best by validation accuracy, or the latest epoch.", show_default="best"
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            help="With RUN: where its backbone is, if it was moved since the training. Without:"
            " weights with top, such as imagenet-top."
        ),
    ] = None,
    allow_local_code: LocalCodeOption = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    as_csv: Annotated[
        bool, typer.Option("--csv", help="Print path, class and all probabilities as CSV.")
    ] = False,
) -> None:
    """Say what pictures show: one of a run's classes or, with --weights alone, of ImageNet's."""
    failed = False
    with user_errors():
        if as_json and as_csv:
            raise ConfigError("--json and --csv cannot both be given.")
        run, pictures = _divide([run_or_path, *(paths or [])], weights)
        keep_freed_memory()
        with importing():
            from vgg_jax.workflows.predict import predict as predict_paths

        predictions = predict_paths(
            run,
            _expand(pictures),
            checkpoint=checkpoint,
            weights=weights,
            allow_local_code=allow_local_code,
            progress=console_progress(),
        )
        if as_json:
            results = list(predictions)
            print_json({"predictions": [result.as_dict(top) for result in results]})
            failed = any(result.error for result in results)
        else:
            writer = csv.writer(standard_output(), lineterminator="\n") if as_csv else None
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


def _divide(words: list[str], weights: str | None) -> tuple[Path | None, list[str]]:
    """Tell the run, if there is one, from the pictures."""
    first = Path(words[0])
    if (first / "run.json").is_file():
        return first, words[1:]
    if weights is not None:
        return None, words
    reason = (
        "has no run.json" if first.is_dir() else "is a file" if first.exists() else "does not exist"
    )
    raise RunError(
        f"{first} is not a run: it {reason}. Runs are made by `vgg-jax train`.\n"
        "For ImageNet's classes, without a run: vgg-jax predict --weights imagenet-top PATH…"
    )


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
    print_line(f"{result.path}: {', '.join(shares)}")
