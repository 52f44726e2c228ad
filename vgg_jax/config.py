"""Every option of a training, checked before anything heavy starts."""

from __future__ import annotations

import dataclasses
import tomllib
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from vgg_jax.errors import ConfigError, did_you_mean
from vgg_jax.layers import resolve_layer
from vgg_jax.options import fits, parse_size, spell
from vgg_jax.plugin_choices import parse_choice
from vgg_jax.plugins import OWN_PACKAGE, find_plugin, list_plugins

DEMO = "demo"

FeaturesDtype = Literal["float32", "bfloat16"]
FeaturesMode = Literal["auto", "off", "memory", "disk"]
Fill = Literal["nearest", "constant", "reflect", "wrap"]
Interpolation = Literal["bilinear", "nearest"]
OnDevice = Literal["auto", "off"]
LossName = Literal["categorical", "binary", "keras-binary"]
OnNan = Literal["stop", "skip"]
Precision = Literal["float32", "bfloat16"]
OptimizerName = Literal["rmsprop", "adam", "adamw", "sgd"]

# What the recipe uses, and what the demo brings instead: its pictures are small, its backbone is
# narrow.
_DEFAULTS: Mapping[str, Any] = {
    "weights": "imagenet",
    "learning_rate": 1e-5,
    "epochs": 10,
    "image_size": 224,
}
_DEMO_DEFAULTS: Mapping[str, Any] = {
    "weights": "demo",
    "learning_rate": 1e-3,
    "epochs": 6,
    "image_size": 96,
}


def built_in_head(name: str = "dense256") -> str:
    """Return how to refer to a built-in head, whatever else is installed.

    That is its name, for as long as nobody else claims that.
    """
    claims = [plugin for plugin in list_plugins("head") if plugin.name == name]
    return name if len(claims) == 1 else f"{OWN_PACKAGE}/{name}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Options of one training; None stands for a default that depends on the data.

    Attributes:
        data: Folder, `tfds:NAME` or `demo`.
        weights: Folder or name of converted weights, or `random:SEED`. Default imagenet; demo for
            the demo.
        head: Head plugin, `REF[:OPTIONS]`. Default dense256, the built-in one.
        augment: Augmentation plugins, `REF[:OPTIONS]` each, in the order in which they apply.
        fill: What geometric augmentations show beyond the picture's edge.
        fill_value: Grey level in [0, 1] that `fill="constant"` shows.
        train_from: First trained layer, in the paper's, Keras' or torchvision's name; `head`
            freezes the backbone.
        loss: categorical, binary (one sigmoid a class), or keras-binary (binary cross-entropy on
            the softmax).
        label_smoothing: Share of the target spread over all classes, in [0, 1).
        optimizer: rmsprop with Keras' semantics, adam, adamw or sgd (momentum 0.9).
        learning_rate: Above 0. Default 1e-5; the demo's is larger.
        weight_decay: Decoupled, as in AdamW and Keras, at least 0. Default 0; 0.004 for adamw.
        epochs: At least 1. Default 10; the demo has its own.
        batch_size: At least 1.
        image_size: Side of the square, in pixels, that pictures are stretched to; at least 32.
            Default 224; demo 96.
        interpolation: bilinear (antialiased), or nearest as in Keras' generator.
        precision: Of what the backbone's convolutions multiply: float32, or bfloat16, which is
            faster on hardware that is made for it. Parameters, the head, the loss and the optimizer
            are float32.
        early_stop: Stop after this many epochs without a better validation loss; at least 1.
        checkpoint_minutes: Save within an epoch, too, after so many minutes; above 0. Epochs of
            less than a second are saved every ten seconds, or as often as this if that is less.
        on_nan: stop at a step whose loss or gradient is not finite, or skip such steps and count
            them.
        features: What the frozen layers make of a picture is computed once and kept on `disk`, for
            later trainings too, or in `memory`; or `off`: computed anew in each epoch. `auto` keeps
            it, on disk if there is room, where nothing random comes before.
        features_dtype: To which features are rounded, float32 or bfloat16 (half the size).
        cache_size: Most that the features of all trainings may take on disk, such as `20GB`.
        views: Augment each picture in so many ways, of which the epochs use one after the other,
            and keep their features; 0 augments anew in each epoch.
        on_device: Have pictures or features in the devices' memory, if there is room; or `off`.
        verify_features: Compute the features of so many pictures of each split once more when all
            are kept, and compare.
        reader_threads: Threads that read pictures, at least 1. Default: one for each processor.
        seed: Decides the split, the order, the augmentation and the head's first parameters; at
            least 0.
        run: Folder of the run. Default: the first free `runs/<data>-<head>-<n>`.
    """

    data: str = DEMO
    weights: str | None = None
    head: str = dataclasses.field(default_factory=built_in_head)
    augment: tuple[str, ...] = ()
    fill: Fill = "nearest"
    fill_value: float = 0.0
    train_from: str = "conv5_1"
    loss: LossName = "categorical"
    label_smoothing: float = 0.0
    optimizer: OptimizerName = "rmsprop"
    learning_rate: float | None = None
    weight_decay: float | None = None
    epochs: int | None = None
    batch_size: int = 32
    image_size: int | None = None
    interpolation: Interpolation = "bilinear"
    precision: Precision = "float32"
    early_stop: int | None = None
    checkpoint_minutes: float = 10.0
    on_nan: OnNan = "stop"
    features: FeaturesMode = "auto"
    features_dtype: FeaturesDtype = "float32"
    cache_size: str = "20GB"
    views: int = 0
    on_device: OnDevice = "auto"
    verify_features: int = 0
    reader_threads: int | None = None
    seed: int = 0
    run: str | None = None

    def __post_init__(self) -> None:
        """Check types, ranges, the layer's name and that the plugins are installed.

        Raises:
            ConfigError: If a value is of the wrong type or out of range.
            UnknownLayerError: If `train_from` names no layer.
            UnknownPluginError: If a head or an augmentation is not installed.
        """
        hints = typing.get_type_hints(type(self))
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not fits(value, hints[field.name]):
                raise _wrong(field.name, value, spell(hints[field.name]))
        object.__setattr__(self, "augment", tuple(self.augment))
        self._check(
            self.learning_rate is None or 0 < self.learning_rate < float("inf"),
            "learning_rate",
            "above 0",
        )
        self._check(
            self.weight_decay is None or 0 <= self.weight_decay < 1, "weight_decay", "in [0, 1)"
        )
        self._check(0 <= self.label_smoothing < 1, "label_smoothing", "in [0, 1)")
        self._check(0 <= self.fill_value <= 1, "fill_value", "in [0, 1]")
        self._check(self.epochs is None or self.epochs >= 1, "epochs", "1 or more")
        self._check(bool(self.data), "data", "a folder, tfds:NAME or demo")
        self._check(self.batch_size >= 1, "batch_size", "1 or more")
        self._check(
            self.image_size is None or self.image_size >= 32, "image_size", "32 or more, in pixels"
        )
        self._check(self.early_stop is None or self.early_stop >= 1, "early_stop", "1 or more")
        self._check(
            self.reader_threads is None or self.reader_threads >= 1, "reader_threads", "1 or more"
        )
        minutes = self.checkpoint_minutes
        self._check(0 < minutes < float("inf"), "checkpoint_minutes", "above 0, in minutes")
        self._check(self.views >= 0, "views", "0 or more")
        self._check(self.verify_features >= 0, "verify_features", "0 or more")
        self._check(
            parse_size(self.cache_size) is not None, "cache_size", "a size such as 500MB or 20GB"
        )
        self._check_views()
        self._check(0 <= self.seed < 2**32, "seed", "in [0, 2^32)")
        object.__setattr__(self, "train_from", resolve_layer(self.train_from))
        self._check_plugins()

    def _check_views(self) -> None:
        if self.views and not self.augment:
            raise ConfigError(
                f"--views {self.views} needs --augment: without it every view would be the same."
            )
        if self.augment and not self.views and self.features in ("memory", "disk"):
            raise ConfigError(
                f"--features {self.features} does not go with --augment, which changes the pictures"
                " anew in each epoch. Leave it out, or keep a number of views of each, if none of"
                " the augmentations mixes pictures: --views 4."
            )

    def _check_plugins(self) -> None:
        find_plugin("head", parse_choice(self.head).ref)
        for augmentation in self.augment:
            find_plugin("augmentation", parse_choice(augmentation).ref)

    def _check(self, condition: bool, name: str, expected: str) -> None:
        if not condition:
            raise _wrong(name, getattr(self, name), expected)

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> Self:
        """Build a configuration from values by name, as `config.toml` of a run holds them.

        Raises:
            ConfigError: If a name or a value is wrong.
        """
        fields = dataclasses.fields(cls)
        known = [field.name for field in fields]
        for name in values:
            if name not in known:
                raise ConfigError(
                    f"No option named {name!r}.{did_you_mean(name, known)} Options:"
                    f" {', '.join(known)}."
                )
        for field in fields:
            required = field.default is field.default_factory is dataclasses.MISSING
            if required and field.name not in values:
                raise ConfigError(f"The option {field.name!r} is missing from the configuration.")
        return cls(**values)

    def resolved(self) -> ResolvedConfig:
        """Fill in the defaults that depend on the data."""
        defaults = _DEMO_DEFAULTS if self.data == DEMO else _DEFAULTS
        missing = {name: value for name, value in defaults.items() if getattr(self, name) is None}
        if self.weight_decay is None:
            missing["weight_decay"] = 0.004 if self.optimizer == "adamw" else 0.0
        return ResolvedConfig(**(dataclasses.asdict(self) | missing))

    def as_toml_values(self) -> dict[str, Any]:
        """Return the options that are set, in order, as TOML can hold them."""
        values = dataclasses.asdict(self) | {"augment": list(self.augment)}
        return {name: value for name, value in values.items() if value is not None}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResolvedConfig(TrainConfig):
    """Options of one training, complete but for `early_stop`, `reader_threads` and `run`."""

    weights: str = dataclasses.field()
    learning_rate: float = dataclasses.field()
    weight_decay: float = dataclasses.field()
    epochs: int = dataclasses.field()
    image_size: int = dataclasses.field()

    def _check_plugins(self) -> None:
        """Do nothing: a run is of use without the plugins that only its training needed."""


def merge_options(options: Mapping[str, Any], file: Path | None) -> dict[str, Any]:
    """Return a TOML file's values under the options, of which None was not given.

    Raises:
        ConfigError: If the file cannot be read.
    """
    given = {name: value for name, value in options.items() if value is not None}
    return (read_toml(file) if file else {}) | given


def read_toml(file: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        ConfigError: If it does not exist or is not TOML.
    """
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"The configuration {file} cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"The configuration {file} is not TOML: {error}.") from error


def _wrong(name: str, value: Any, expected: str) -> ConfigError:
    flag = "--" + name.replace("_", "-")
    return ConfigError(f"{flag} (in a file: {name}) is {value!r}, but must be {expected}.")
