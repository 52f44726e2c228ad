"""The options that the plugins of a run had: recorded whole, and kept where defaults change."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vgg_jax.augment.chain import as_choice, build_augmentations
from vgg_jax.errors import OptionError, PluginError, RunError, VggJaxError
from vgg_jax.plugin_choices import PluginChoice, parse_choice
from vgg_jax.plugin_options import check_options, json_values, resolved_options, toml_value
from vgg_jax.plugins import KEYWORDS, Plugin, find_plugin
from vgg_jax.progress import Progress


def record_options(plugin: Plugin, choice: PluginChoice) -> dict[str, Any]:
    """Describe what was chosen of a plugin, as `run.json` holds it.

    Returns:
        `options`, with their defaults; of a preset also `stands_for`, the augmentations that it
        makes, with theirs.
    """
    factory = plugin.load()
    options = _options_of(plugin, factory, choice)
    if plugin.kind == "head" or inspect.isclass(factory):
        return {"options": options}
    return {"options": options, "stands_for": _made_by(choice)}


def _options_of(plugin: Plugin, factory: Any, choice: PluginChoice) -> dict[str, Any]:
    """Return the options that a choice comes to: an augmentation may fill in some of its own."""
    if plugin.kind == "augmentation" and inspect.isclass(factory):
        (made,) = _made_by(choice)
        return made["options"]
    return resolved_options(factory, choice.options, KEYWORDS[plugin.kind])


def kept_choices(
    text: str, record: Mapping[str, Any] | None, run: Path, progress: Progress | None = None
) -> tuple[str, ...]:
    """Return how to ask for what a run had: as its user did, unless a default has changed since.

    Such an option is given what it was. A preset that stands for something else by now is replaced
    by what it stood for.

    Args:
        text: `REF[:OPTIONS]`, as a user typed it.
        record: The plugin as `run.json` describes it. Where it is None, or not what `text` asks
            for, there is nothing to keep.
        run: The run's folder, for messages.
        progress: Told of changes; silent by default.

    Raises:
        RunError: If what the run had cannot be asked for any more.
    """
    choice = parse_choice(text)
    # A file's code is the run's own copy, so that its defaults are.
    if record is None or record["name"] != choice.ref.rpartition("/")[2]:
        return (text,)
    plugin = find_plugin(record["kind"], choice.ref)
    factory, keywords = plugin.load(), KEYWORDS[plugin.kind]
    try:
        now = _options_of(plugin, factory, choice)
    except OptionError:  # which is told when it is used
        return (text,)
    then = record["options"]
    if any(then.get(name) != now.get(name) for name in choice.options):
        return (text,)
    given = {name: then[name] for name in then if name not in now or now[name] != then[name]}
    changes = [
        f"{name} was {toml_value(then[name])},"
        f" {'is ' + toml_value(now[name]) if name in now else 'has no default'} now"
        for name in given
    ]
    kept = dataclasses.replace(choice, options={**choice.options, **given})
    found = [kept]
    try:
        check_options(plugin.name, factory, kept.options, keywords)
        made = _made_by(kept) if "stands_for" in record else None
        if made is not None and made != record["stands_for"]:
            found = _made_again(record["stands_for"])
            changes.append(f"it was {_listed(record['stands_for'])}, is {_listed(made)} now")
        if not changes:
            return (text,)
        for each in found:
            if parse_choice(str(each)) != each:
                raise OptionError(f"{each} cannot be typed.")
    except VggJaxError as error:
        package, version = record["package"], record["version"]
        raise RunError(
            f"{run} was trained with the {plugin.kind} {plugin.name!r} of {package} {version}. What"
            f" it did cannot be asked of {plugin.version}, which is installed: {error}\nInstall the"
            f" one it had: pip install {package}=={version}"
        ) from error
    if progress is not None:
        progress.warn(
            f"{plugin.described} has other defaults than {record['version']}, with which {run} was"
            f" trained: {'; '.join(changes)}. What the run had is used."
        )
    return tuple(map(str, found))


def _made_by(choice: PluginChoice) -> list[dict[str, Any]]:
    """Describe the augmentations that a choice stands for, as JSON holds them."""
    choices = map(as_choice, build_augmentations(choice))
    return [{"ref": each.ref, "options": json_values(each.options)} for each in choices]


def _made_again(described: Sequence[Mapping[str, Any]]) -> list[PluginChoice]:
    """Return how to ask for the augmentations that `_made_by` described.

    Raises:
        PluginError: If asking so does not give them.
    """
    choices = [PluginChoice(each["ref"], each["options"]) for each in described]
    for choice in choices:
        if "#" in choice.ref:  # a run.json must not bring code of its own
            raise PluginError(f"{choice.ref} is no installed augmentation.")
    if [each for choice in choices for each in _made_by(choice)] != described:
        raise PluginError(f"{_listed(described)} cannot be made again.")
    return choices


def _listed(described: Sequence[Mapping[str, Any]]) -> str:
    return " ".join(str(PluginChoice(each["ref"], each["options"])) for each in described)
