"""The candidates of a sweep: every combination of its heads and numbers. Imports no JAX."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable, Mapping, Sequence, Set
from decimal import Decimal
from typing import Any

from vgg_jax.config import ResolvedConfig, TrainConfig
from vgg_jax.errors import ConfigError
from vgg_jax.plugin_choices import parse_choice


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One of the trainings of a sweep.

    Attributes:
        name: Of its run, in the sweep's folder; says in what it differs from the others.
        config: Its options.
        differs: The options in which the candidates differ, with its values.
    """

    name: str
    config: ResolvedConfig
    differs: Mapping[str, Any]


def candidates_of(options: Mapping[str, Any]) -> list[Candidate]:
    """Return the candidates of a sweep; the options that `SWEPT` names first change slowest.

    Args:
        options: Fields of `TrainConfig` but for `run`; those in `SWEPT` may have several values.

    Raises:
        ConfigError: If two candidates are the same, or an option has no value.
        VggJaxError: If an option is wrong, as for `TrainConfig.from_values`.
    """
    axes = {name: _values(name, options[name]) for name in SWEPT if name in options}
    fixed = {name: value for name, value in options.items() if name not in axes}
    several = [name for name, values in axes.items() if len(values) > 1]
    found: dict[ResolvedConfig, Candidate] = {}
    names: set[str] = set()
    for values in itertools.product(*axes.values()):
        chosen = dict(zip(axes, values, strict=True))
        config = TrainConfig.from_values({**fixed, **chosen}).resolved()
        if config in found:
            raise ConfigError(
                f"Two candidates are the same: {_spelt(chosen)}. Name each head and each number"
                " once."
            )
        differs = {name: getattr(config, name) for name in several}
        name = _unlike(names, _name(config, several or ["head"]))
        names.add(name)
        found[config] = Candidate(name, config, differs)
    return list(found.values())


def named_as_there(
    candidates: Sequence[Candidate], there: Mapping[str, ResolvedConfig]
) -> list[Candidate]:
    """Give candidates that a folder has already the names of their runs, and the others new ones.

    Args:
        candidates: Of a sweep, named without regard to the folder.
        there: The options of the runs in the folder, by name.
    """
    wholes = {name: _name(config, [*SWEPT]) for name, config in there.items()}
    names = [_name(candidate.config, [*SWEPT]) for candidate in candidates]
    found: list[Candidate] = []
    taken = set(there)
    for candidate, whole in zip(candidates, names, strict=True):
        name = candidate.name
        # Not by their values, where heads of different packages are called the same.
        if wholes.get(name) != whole and names.count(whole) == 1:
            alike = [run for run in there if wholes[run] == whole]
            if alike:
                name = alike[0]
            elif name in there:  # with other values of options that were not swept before
                name = _unlike(taken, whole)
        taken.add(name)
        found.append(dataclasses.replace(candidate, name=name))
    return found


def _values(name: str, given: Any) -> list[Any]:
    values = list(given) if isinstance(given, (list, tuple)) else [given]
    if not values:
        flag = "--" + name.replace("_", "-")
        raise ConfigError(f"{flag} (in a file: {name}) is empty, but must name a value or several.")
    return values


def _spelt(chosen: Mapping[str, Any]) -> str:
    return ", ".join(f"--{name.replace('_', '-')} {value}" for name, value in chosen.items())


def _name(config: ResolvedConfig, fields: list[str]) -> str:
    return "-".join(SWEPT[field](getattr(config, field)) for field in fields)


def _unlike(names: Set[str], name: str) -> str:
    """Return `name`, or with a number behind it where that is taken."""
    numbered = (f"{name}-{n}" for n in itertools.count(2))
    return next(text for text in itertools.chain([name], numbered) if text not in names)


def _head(head: str) -> str:
    """Name a head for a folder: `mlp:hidden=[64]` by `mlp-hidden-64`, a file's by its class."""
    choice = parse_choice(head)
    short = dataclasses.replace(choice, ref=re.split("[/#]", choice.ref)[-1])
    return re.sub(r"[^\w.]+", "-", str(short)).strip("-.")


def _number(value: float) -> str:
    return f"{value!r}".removesuffix(".0")


# How a folder's name tells the value of each option that may have several.
SWEPT: Mapping[str, Callable[[Any], str]] = {
    "head": _head,
    "optimizer": str,
    "learning_rate": lambda value: f"lr{Decimal(repr(value)).normalize():e}".replace("+", ""),
    "weight_decay": lambda value: f"wd{_number(value)}",
    "label_smoothing": lambda value: f"ls{_number(value)}",
}
