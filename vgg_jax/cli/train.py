"""`vgg-jax train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from vgg_jax.cli.console import (
    LocalCodeOption,
    console_progress,
    interruptible,
    print_json,
    print_line,
    tell_failed_writes_once,
    user_errors,
)
from vgg_jax.config import TrainConfig, merge_options
from vgg_jax.errors import ConfigError

_DATA = (
    "Folder with train/, validation/ and test/, folder of class folders, tfds:NAME, or demo."
    " [default: demo]"
)
_WEIGHTS = (
    "Folder or name of converted weights, demo, or random:SEED. [default: imagenet; demo for the"
    " demo]"
)
_HEAD = (
    "Head plugin, NAME[:OPTIONS] or FILE.py#CLASS[:OPTIONS]; see `vgg-jax plugins list`."
    " [default: dense256]"
)
_AUGMENT = (
    "Augmentation plugin, NAME[:OPTIONS] or FILE.py#CLASS[:OPTIONS]; repeat for a chain. `keras` is"
    " the recipe's."
)
_RUN = "Folder of the run. [default: runs/DATA-HEAD-N]"


def _option(help_text: str, *names: str) -> Any:
    return typer.Option(*names, help=help_text, show_default=False)


def train(
    data: Annotated[str | None, _option(_DATA)] = None,
    weights: Annotated[str | None, _option(_WEIGHTS)] = None,
    head: Annotated[str | None, _option(_HEAD)] = None,
    augment: Annotated[list[str] | None, _option(_AUGMENT)] = None,
    fill: Annotated[
        str | None,
        _option("Beyond the edge: nearest, constant, reflect or wrap. [default: nearest]"),
    ] = None,
    fill_value: Annotated[
        float | None, _option("Grey level in [0, 1] for fill constant. [default: 0]")
    ] = None,
    train_from: Annotated[
        str | None,
        _option("First trained layer (conv5_1, block5_conv1, head …). [default: conv5_1]"),
    ] = None,
    loss: Annotated[
        str | None, _option("categorical, binary or keras-binary. [default: categorical]")
    ] = None,
    label_smoothing: Annotated[float | None, _option("In [0, 1). [default: 0]")] = None,
    optimizer: Annotated[
        str | None, _option("rmsprop, adam, adamw or sgd. [default: rmsprop]")
    ] = None,
    learning_rate: Annotated[float | None, _option("[default: 1e-5; the demo's is 1e-3]")] = None,
    weight_decay: Annotated[
        float | None, _option("Decoupled. [default: 0; 0.004 for adamw]")
    ] = None,
    epochs: Annotated[int | None, _option("[default: 10; the demo's are 6]")] = None,
    batch_size: Annotated[int | None, _option("[default: 32]")] = None,
    image_size: Annotated[
        int | None, _option("Side in pixels. [default: 224; the demo's is 96]")
    ] = None,
    interpolation: Annotated[
        str | None, _option("bilinear or nearest. [default: bilinear]")
    ] = None,
    early_stop: Annotated[
        int | None, _option("Stop after N epochs without a better validation loss.")
    ] = None,
    checkpoint_minutes: Annotated[
        float | None, _option("Save within an epoch, too, after so many minutes. [default: 10]")
    ] = None,
    on_nan: Annotated[
        str | None,
        _option("stop, or skip steps whose loss or gradient is not finite. [default: stop]"),
    ] = None,
    reader_threads: Annotated[
        int | None, _option("Threads that read pictures. [default: one for each processor]")
    ] = None,
    seed: Annotated[int | None, _option("[default: 0]")] = None,
    run: Annotated[str | None, _option(_RUN)] = None,
    config: Annotated[Path | None, _option("TOML file of these options; flags win.")] = None,
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
    options: dict[str, Any] = {
        "data": data,
        "weights": weights,
        "head": head,
        "augment": tuple(augment) if augment else None,
        "fill": fill,
        "fill_value": fill_value,
        "train_from": train_from,
        "loss": loss,
        "label_smoothing": label_smoothing,
        "optimizer": optimizer,
        "learning_rate": learning_rate,
        "weight_decay": weight_decay,
        "epochs": epochs,
        "batch_size": batch_size,
        "image_size": image_size,
        "interpolation": interpolation,
        "early_stop": early_stop,
        "checkpoint_minutes": checkpoint_minutes,
        "on_nan": on_nan,
        "reader_threads": reader_threads,
        "seed": seed,
        "run": run,
    }
    with user_errors():
        given = merge_options(options, config)
        if override and not resume:
            raise ConfigError(
                "--override changes options of a run on --resume; without it, leave it out."
            )
        checked = TrainConfig.from_values(given)  # fails here, before JAX is imported
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
