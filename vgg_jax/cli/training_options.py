"""The options of a training, for every command that takes them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, TypedDict, get_type_hints

import typer


def _option(help_text: str) -> Any:
    return typer.Option(help=help_text, show_default=False)


class TrainingOptions(TypedDict, total=False):
    """The options, in the order of `--help`; those that were not given are left out.

    Each is a field of `vgg_jax.config.TrainConfig`, which checks it and knows its default.
    """

    data: Annotated[
        str,
        _option(
            "Folder with train/, validation/ and test/, folder of class folders, tfds:NAME, or"
            " demo. [default: demo]"
        ),
    ]
    weights: Annotated[
        str,
        _option(
            "Folder or name of converted weights, demo, or random:SEED. [default: imagenet; demo"
            " for the demo]"
        ),
    ]
    head: Annotated[
        str,
        _option(
            "Head plugin, NAME[:OPTIONS] or FILE.py#CLASS[:OPTIONS]; see `vgg-jax plugins list`."
            " [default: dense256]"
        ),
    ]
    augment: Annotated[
        list[str],
        _option(
            "Augmentation plugin, NAME[:OPTIONS] or FILE.py#CLASS[:OPTIONS]; repeat for a chain."
            " `keras` is the recipe's."
        ),
    ]
    fill: Annotated[
        str, _option("Beyond the edge: nearest, constant, reflect or wrap. [default: nearest]")
    ]
    fill_value: Annotated[float, _option("Grey level in [0, 1] for fill constant. [default: 0]")]
    train_from: Annotated[
        str, _option("First trained layer (conv5_1, block5_conv1, head …). [default: conv5_1]")
    ]
    loss: Annotated[str, _option("categorical, binary or keras-binary. [default: categorical]")]
    label_smoothing: Annotated[float, _option("In [0, 1). [default: 0]")]
    optimizer: Annotated[str, _option("rmsprop, adam, adamw or sgd. [default: rmsprop]")]
    learning_rate: Annotated[float, _option("[default: 1e-5; the demo's is 1e-3]")]
    weight_decay: Annotated[float, _option("Decoupled. [default: 0; 0.004 for adamw]")]
    epochs: Annotated[int, _option("[default: 10; the demo's are 6]")]
    batch_size: Annotated[int, _option("[default: 32]")]
    image_size: Annotated[int, _option("Side in pixels. [default: 224; the demo's is 96]")]
    interpolation: Annotated[str, _option("bilinear or nearest. [default: bilinear]")]
    precision: Annotated[
        str,
        _option(
            "Convolve in float32 or, faster where hardware has it, bfloat16. [default: float32]"
        ),
    ]
    early_stop: Annotated[int, _option("Stop after N epochs without a better validation loss.")]
    checkpoint_minutes: Annotated[
        float,
        _option(
            "Save within an epoch, too, after so many minutes. Epochs of less than a second are"
            " saved every ten seconds, or as often as this if that is less. [default: 10]"
        ),
    ]
    on_nan: Annotated[
        str, _option("stop, or skip steps whose loss or gradient is not finite. [default: stop]")
    ]
    features: Annotated[
        str,
        _option(
            "Keep what the frozen layers make of each picture: auto, off, memory or disk."
            " [default: auto]"
        ),
    ]
    views: Annotated[
        int,
        _option(
            "Augment each picture in N ways and keep their features; 0 augments anew in each"
            " epoch. [default: 0]"
        ),
    ]
    features_dtype: Annotated[
        str, _option("Round features to float32 or bfloat16. [default: float32]")
    ]
    cache_size: Annotated[str, _option("Most that kept features may take on disk. [default: 20GB]")]
    on_device: Annotated[
        str,
        _option("Have features or pictures in the devices' memory: auto or off. [default: auto]"),
    ]
    verify_features: Annotated[
        int, _option("Compute features of N pictures of each split anew, and compare. [default: 0]")
    ]
    reader_threads: Annotated[
        int, _option("Threads that read pictures. [default: one for each processor]")
    ]
    seed: Annotated[int, _option("[default: 0]")]


ConfigOption = Annotated[Path | None, _option("TOML file of these options; flags win.")]


def takes_training_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of a training, before its own.

    Its first parameter receives those that were given, as `TrainingOptions`. An option that the
    command declares itself replaces the one of that name.
    """
    own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]
    declared = {parameter.name for parameter in own}
    shared = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=hint)
        for name, hint in get_type_hints(TrainingOptions, include_extras=True).items()
        if name not in declared
    ]
    names = [parameter.name for parameter in shared]

    @wraps(command)
    def with_options(**arguments: Any) -> None:
        found = {name: arguments.pop(name) for name in names}
        # Typer gives a list where an option may be repeated, empty if it was not given.
        command(
            {name: value for name, value in found.items() if value not in (None, [])}, **arguments
        )

    own = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own]
    parameters = [*shared, *own]
    with_options.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportAttributeAccessIssue]
    with_options.__annotations__ = {each.name: each.annotation for each in parameters}
    return with_options
