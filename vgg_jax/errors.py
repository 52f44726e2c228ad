"""Errors that a user can act on: each says what was wrong, what was given and what would work.

The command line prints them without a traceback and exits with code 1. Anything else that is raised
is a bug and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class VggJaxError(Exception):
    """Base of every expected failure; its text is meant for the user, in one to three lines."""


class ConfigError(VggJaxError):
    """A configuration value has the wrong type, is out of range, or contradicts another one."""


class OtherOptionsError(ConfigError):
    """Options differ from those that a run was begun with, and what is done would not fit them."""

    def __init__(self, differences: str, advice: str) -> None:
        """Say what differs, and what can be done about it."""
        super().__init__(f"{differences}{advice}")
        self.differences = differences


class OptionError(ConfigError):
    """An option of a head or an augmentation is unknown, of the wrong type, or out of range."""


class UnknownLayerError(VggJaxError):
    """No layer of VGG16 has the given name."""

    def __init__(self, name: str, known: Iterable[str]) -> None:
        """Name the layer asked for and all `known` ones, in network order."""
        names = list(known)
        super().__init__(
            f"No layer named {name!r}.{did_you_mean(name, names)} Layers: {', '.join(names)}."
        )


class PluginError(VggJaxError):
    """An installed plugin cannot be loaded or breaks its contract."""


class UnknownPluginError(VggJaxError):
    """No installed package provides the requested plugin."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        """Name the plugin asked for and all `known` ones of its kind."""
        names = sorted(known)
        super().__init__(
            f"No {kind} named {name!r}.{did_you_mean(name, names)} Installed:"
            f" {', '.join(names) or 'none'}."
        )


class InstallationError(VggJaxError):
    """An installed package, whosesoever, is damaged so that Python or JAX stumbles over it."""


class WeightsError(VggJaxError):
    """A weight file or a folder of converted weights is missing, damaged or something else."""


class DataError(VggJaxError):
    """A data set or one of its pictures cannot be used."""


class CacheError(VggJaxError):
    """Something cannot be kept in the cache; whoever wanted it kept can go on without."""


class RunError(VggJaxError):
    """A run folder is missing, in the way, incomplete, damaged or of another version."""


class TrainingError(VggJaxError):
    """Training cannot go on, for instance because the loss is not finite."""


class TrainingDiverged(TrainingError):
    """A loss, a gradient or a parameter is not finite."""


class MemoryExhausted(TrainingError):
    """The memory of the devices or of the host does not suffice."""


class TrainingInterrupted(VggJaxError):
    """A signal asked the training to stop; where it stood is saved."""

    def __init__(self, message: str, signal_number: int) -> None:
        """Keep the number of the signal beside the message."""
        super().__init__(message)
        self.signal_number = signal_number


def cause_of(error: BaseException) -> str:
    """Say what foreign code raised, for a message that names the code."""
    if isinstance(error, SystemExit):
        return f"it ended the process (SystemExit: {error.code})"
    return f"{type(error).__name__}: {error}"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ` Did you mean 'x'?` for the known name nearest to `name`, or an empty string."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def require(condition: bool, owner: str, option: str, value: Any, expected: str) -> None:
    """Raise `OptionError` unless `condition`: option `option` of `owner` must be `expected`."""
    if not condition:
        raise OptionError(f"{owner}: option {option!r} is {value!r}, but must be {expected}.")
