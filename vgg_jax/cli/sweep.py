"""`vgg-jax sweep`."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vgg_jax.cli.console import (
    LocalCodeOption,
    console_progress,
    importing,
    interruptible,
    print_json,
    print_line,
    print_table,
    tell_failed_writes_once,
    user_errors,
)
from vgg_jax.cli.training_options import ConfigOption, TrainingOptions, takes_training_options
from vgg_jax.config import merge_options
from vgg_jax.errors import ConfigError
from vgg_jax.heap import keep_freed_memory

if TYPE_CHECKING:
    from vgg_jax.workflows.sweep import Outcome, Sweep


def _option(help_text: str) -> Any:
    return typer.Option(help=help_text, show_default=False)


@takes_training_options
def sweep(
    options: TrainingOptions,
    head: Annotated[
        list[str] | None, _option("As of `train`; repeat for several. [default: dense256]")
    ] = None,
    optimizer: Annotated[
        str | None, _option("As of `train`, or several: rmsprop,adam. [default: rmsprop]")
    ] = None,
    learning_rate: Annotated[
        str | None, _option("Or several: 1e-5,1e-4. [default: 1e-5; the demo's is 1e-3]")
    ] = None,
    weight_decay: Annotated[
        str | None, _option("Or several: 0,0.004. [default: 0; 0.004 for adamw]")
    ] = None,
    label_smoothing: Annotated[str | None, _option("Or several: 0,0.1. [default: 0]")] = None,
    run: Annotated[
        str | None,
        _option(
            "Folder that holds the candidates' runs; those it has are gone on with. [default:"
            " runs/DATA-sweep-N]"
        ),
    ] = None,
    config: ConfigOption = None,
    allow_local_code: LocalCodeOption = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Train every combination of heads, optimizers and numbers, and rank them.

    All use the same kept features, which are computed once. Each becomes a run.
    """
    with user_errors():
        swept = {
            "head": head or None,
            "optimizer": optimizer and [name.strip() for name in optimizer.split(",")],
            "learning_rate": _numbers("learning-rate", learning_rate),
            "weight_decay": _numbers("weight-decay", weight_decay),
            "label_smoothing": _numbers("label-smoothing", label_smoothing),
        }
        given = merge_options({**options, **swept, "run": run}, config)
        folder = given.pop("run", None)
        keep_freed_memory()
        from vgg_jax.workflows.candidates import candidates_of

        candidates = candidates_of(given)  # fails here, before JAX is imported
        with importing():
            from vgg_jax.training.interruption import Interruption
            from vgg_jax.workflows.sweep import run_sweep

        interruptible()
        tell_failed_writes_once()
        progress = console_progress()
        try:
            result = run_sweep(
                candidates,
                folder,
                progress,
                Interruption(),
                allow_local_code=allow_local_code,
            )
        finally:
            progress.close()
        if as_json:
            print_json(result.as_dict())
        else:
            _print(result)


def _numbers(name: str, text: str | None) -> list[float] | None:
    if text is None:
        return None
    try:
        return [float(number) for number in text.split(",")]
    except ValueError as error:
        raise ConfigError(
            f"--{name} is {text!r}, but must be a number, or several with commas between them:"
            " 1e-5,1e-4."
        ) from error


def _print(result: Sweep) -> None:
    differs = list(result.outcomes[0].candidate.differs)
    print_table(
        ["rank", "run", *(name.replace("_", " ") for name in differs), *_FIGURES],
        [_row(rank, outcome) for rank, outcome in enumerate(result.outcomes, 1)],
        left=2,
    )
    for outcome in result.outcomes:
        if outcome.failure:
            print_line(f"{outcome.candidate.name} failed: {outcome.failure}")
    best = result.best.path
    print_line(f"Best run: {best}. Evaluate it: vgg-jax evaluate {shlex.quote(str(best))}")


_FIGURES = ("best epoch", "accuracy", "loss", "seconds")


def _row(rank: int, outcome: Outcome) -> list[str]:
    best = outcome.run.best if outcome.run.history else None
    return [
        "failed" if outcome.failure else str(rank),
        outcome.candidate.name,
        *map(str, outcome.candidate.differs.values()),
        str(best.epoch) if best else "",
        f"{best.validation_accuracy:.3f}" if best else "",
        f"{best.validation_loss:.4f}" if best else "",
        f"{outcome.seconds:.1f}",
    ]
