"""The plugins of a run: what `run.json` says of them, and whether they are here when it is used."""

from __future__ import annotations

import dataclasses
import itertools
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from vgg_jax.config import TrainConfig
from vgg_jax.errors import PluginError, RunError
from vgg_jax.plugin_choices import PluginChoice, parse_choice
from vgg_jax.plugin_packages import canonical_package
from vgg_jax.plugins import OWN_PACKAGE, Kind, Plugin, find_plugin, list_plugins
from vgg_jax.progress import Progress
from vgg_jax.training.run_options import kept_choices, record_options

FOLDER = "plugins"  # of copied files, in the run

_Config = TypeVar("_Config", bound=TrainConfig)
Records = Iterable[Mapping[str, Any]]


def record_plugins(config: TrainConfig) -> list[dict[str, Any]]:
    """Describe the head and the augmentations of a configuration, as `run.json` holds them."""
    return [
        {
            "kind": plugin.kind,
            "name": plugin.name,
            "package": plugin.package,
            "version": plugin.version,
            "contract": plugin.contract,
        }
        | record_options(plugin, choice)
        | ({"file": _copied(plugin), "sha256": plugin.sha256} if plugin.is_local else {})
        for plugin, choice in _plugins(config)
    ]


def copy_local_plugins(config: TrainConfig, run: Path) -> None:
    """Copy the files of plugins that no package holds into the run; OSError if that fails."""
    for plugin, _ in _plugins(config):
        target = run / _copied(plugin)
        if plugin.is_local and not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(plugin.package, target)


def as_written(config: _Config) -> _Config:
    """Return a configuration that names copied files by their place in the run."""

    def change(kind: Kind, choice: PluginChoice) -> str:
        plugin = find_plugin(kind, choice.ref) if "#" in choice.ref else None
        return f"{_copied(plugin)}#{plugin.name}" if plugin else choice.ref

    return _with_refs(config, change)


def as_used(
    config: _Config,
    run: Path,
    records: Records,
    *,
    training: bool,
    progress: Progress | None = None,
) -> _Config:
    """Return a run's configuration, changed to stand for the very plugins that the run had.

    Files are the run's own copies; a name that other packages claim by now has its package before
    it; options whose defaults are others by now are given, see `kept_choices`.

    Args:
        config: As written.
        run: The run's folder.
        records: Its plugins, as `record_plugins` described them.
        training: Whether the augmentations are needed too.
        progress: Told of options whose defaults are others by now; silent by default.

    Raises:
        RunError: If the options that the run had cannot be given any more.
    """

    def change(kind: Kind, choice: PluginChoice) -> str:
        if "#" in choice.ref:
            return str(run.absolute() / choice.ref)
        claims = [plugin for plugin in list_plugins(kind) if plugin.name == choice.ref]
        packages = [r["package"] for r in records if (r["kind"], r["name"]) == (kind, choice.ref)]
        return f"{packages[0]}/{choice.ref}" if len(claims) > 1 and packages else choice.ref

    def kept(kind: Kind, texts: Sequence[str]) -> tuple[str, ...]:
        recorded = [record for record in records if record["kind"] == kind]
        pairs = itertools.zip_longest(texts, recorded[: len(texts)])
        found = [kept_choices(text, record, run, progress) for text, record in pairs]
        return tuple(itertools.chain.from_iterable(found))

    config = _with_refs(config, change)
    (head,) = kept("head", [config.head])
    augment = kept("augmentation", config.augment) if training else config.augment
    return dataclasses.replace(config, head=head, augment=augment)


def check_plugins(
    config: TrainConfig,
    run: Path,
    records: Records,
    *,
    training: bool,
    allow_local_code: bool = False,
) -> None:
    """Check that the plugins of a run are here, and that its own code may be run.

    Args:
        config: The run's, as written: what it names is what would be run.
        run: The run's folder.
        records: Its plugins, as `record_plugins` described them.
        training: Whether the augmentations are needed too.
        allow_local_code: Whether to run code of files that the run carries.

    Raises:
        RunError: If a plugin is missing, is of another major version, was changed, is code that
            was not allowed, or is none that the run recorded; it says what to do.
    """
    for record in records:
        if "file" not in record and (training or record["kind"] == "head"):
            _check_installed(run, record)
    named: list[tuple[Kind, str]] = [("head", config.head)]
    if training:
        named.extend(("augmentation", text) for text in config.augment)
    for kind, text in named:
        ref = parse_choice(text).ref
        if "#" in ref:
            _check_file(run, kind, ref, records, allow_local_code)


def _check_file(run: Path, kind: Kind, ref: str, records: Records, allow_local_code: bool) -> None:
    record = next(
        (r for r in records if r["kind"] == kind and f"{r.get('file')}#{r['name']}" == ref), None
    )
    file, name = ref.rsplit("#", 1)
    inside = (run / file).resolve().is_relative_to((run / FOLDER).resolve())
    if record is None or not inside:
        raise RunError(
            f"The config.toml of {run} names code, {ref}, that its run.json does not record as the"
            f" run's own. One of them was changed; the code is not run. Put the original back."
        )
    if not allow_local_code:
        raise RunError(
            f"The {kind} {name!r} of {run} is code in {run / file}, which would be run. If you"
            " trust whoever made this run, allow it: --allow-local-code (in Python:"
            " allow_local_code=True)."
        )
    try:
        plugin = find_plugin(kind, f"{run / file}#{name}")
    except PluginError as error:
        raise RunError(f"{run} is damaged: {error}") from error
    if plugin.sha256 != record["sha256"]:
        raise RunError(
            f"{run / file} was changed since the training: its SHA-256 begins with"
            f" {plugin.version}, not {record['sha256'][:12]}. Put the original back."
        )


def _check_installed(run: Path, record: Mapping[str, Any]) -> None:
    kind, name, package, version = (record[key] for key in ("kind", "name", "package", "version"))
    here = [
        plugin
        for plugin in list_plugins(kind)
        if plugin.name == name and canonical_package(plugin.package) == canonical_package(package)
    ]
    if not here:
        raise RunError(
            f"{run} was trained with the {kind} {name!r} of {package} {version}, which is not"
            f" installed.\nInstall it: pip install {package}=={version}"
        )
    # Of the project's own plugins the format version of the run tells.
    if _major(here[0].version) != _major(version) and package != OWN_PACKAGE:
        raise RunError(
            f"{run} was trained with the {kind} {name!r} of {package} {version}; {here[0].version},"
            f" another major version, is installed.\nInstall the one it had: pip install"
            f" {package}=={version}"
        )


def _major(version: str) -> str:
    return version.partition(".")[0]


def _plugins(config: TrainConfig) -> list[tuple[Plugin, PluginChoice]]:
    choices = [parse_choice(text) for text in config.augment]
    found = [(find_plugin("augmentation", choice.ref), choice) for choice in choices]
    head = parse_choice(config.head)
    return [(find_plugin("head", head.ref), head), *found]


def _copied(plugin: Plugin) -> str:
    """Return where in a run the copy of a plugin's file is."""
    return f"{FOLDER}/{plugin.sha256[:12]}/{Path(plugin.package).name}"


def _with_refs(config: _Config, change: Any) -> _Config:
    def changed(kind: Kind, text: str) -> str:
        choice = parse_choice(text)
        ref = change(kind, choice)
        # What stays the same stays as it was typed.
        return text if ref == choice.ref else str(dataclasses.replace(choice, ref=ref))

    return dataclasses.replace(
        config,
        head=changed("head", config.head),
        augment=tuple(changed("augmentation", text) for text in config.augment),
    )
