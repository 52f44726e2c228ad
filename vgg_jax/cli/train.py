"""`vgg-jax train`."""

from __future__ import annotations

from typing import Annotated

import typer

from vgg_jax.cli.console import (
    LocalCodeOption,
    console_progress,
    importing,
    interruptible,
    print_json,
    print_line,
    tell_failed_writes_once,
    user_errors,
)
from vgg_jax.cli.training_options import (
    ConfigOption,
    TrainingOptions,
    takes_training_options,
)
from vgg_jax.config import TrainConfig, merge_options
from vgg_jax.errors import ConfigError
from vgg_jax.heap import keep_freed_memory


@takes_training_options
def train(
    options: TrainingOptions,
    run: Annotated[
        str | None,
        typer.Option(help="Folder of the run. [default: runs/DATA-HEAD-N]", show_default=False),
    ] = None,
    config: ConfigOption = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with --run where it was saved last.")
    ] = False,
    override: Annotated[
        bool,
        typer.Option("--override", help="Resume with other options, though the result changes."),
    ] = False,
    allow_local_code: LocalCodeOption = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Train a classifier on your images."""
    with user_errors():
        given = merge_options({**options, "run": run}, config)
        if override and not resume:
            raise ConfigError(
                "--override changes options of a run on --resume; without it, leave it out."
            )
        checked = TrainConfig.from_values(given)  # fails here, before JAX is imported
        keep_freed_memory()
        with importing():
            from vgg_jax.training.interruption import Interruption
            from vgg_jax.workflows.resume import resume_training
            from vgg_jax.workflows.train import run_training

        interruptible()
        tell_failed_writes_once()
        interruption = Interruption()
        progress = console_progress()
        try:
            result = (
                resume_training(
                    given,
                    progress,
                    interruption,
                    override=override,
                    allow_local_code=allow_local_code,
                )
                if resume
                else run_training(checked, progress, interruption)
            )
        finally:
            progress.close()
        if as_json:
            print_json(result.as_dict())
            return
        best = result.best
        print_line(
            f"Best epoch {best.epoch} of {result.history[-1].epoch}: validation accuracy"
            f" {best.validation_accuracy:.3f}, loss {best.validation_loss:.4f}"
        )
        print_line(f"Run: {result.path}")
