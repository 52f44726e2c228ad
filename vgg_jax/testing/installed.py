"""Checks of plugins by the name that a user gives them."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

from vgg_jax.contract import Augmentation
from vgg_jax.plugin_choices import parse_choice
from vgg_jax.plugin_options import as_python, check_options, option_types
from vgg_jax.plugins import KEYWORDS, Kind, Plugin, find_of_any_kind
from vgg_jax.testing.augmentations import examine_augmentation
from vgg_jax.testing.heads import examine_head
from vgg_jax.testing.probe import Probe, probe_plugins
from vgg_jax.testing.report import Examination, Report

_SECONDS = 1.0  # that an import may take


def check_plugin(ref: str, kind: Kind | None = None, *, fixed: bool = False) -> Report:
    """Check an installed plugin, or one in a file, against the contract.

    It is imported in a process of its own first, so that an import that hangs or ends the process
    is found, too.

    Args:
        ref: `REF[:OPTIONS]`, as a user types it.
        kind: Where a head and an augmentation have the same name, or for a preset in a file.
        fixed: Whether an augmentation is meant to do the same for every random key.

    Returns:
        What was found of each rule.

    Raises:
        UnknownPluginError: If there is no such plugin.
        PluginError: If two packages claim the name, or it is written for another contract.
    """
    choice = parse_choice(ref)
    plugin = find_of_any_kind(choice.ref, kind)
    probe = probe_plugins([plugin])[plugin]
    examination = Examination()
    examination.look("can-be-built", lambda: probe.error or None)
    examination.look("does-not-exit", lambda: _exit_fault(probe))
    if not probe.error:
        examination.look("quick-import", lambda: _import_fault(probe))
    report = examination.report(plugin.name)
    if report.failures and probe.error:
        return report
    factory = plugin.load()
    if not callable(factory):
        kind_found = type(factory).__name__
        examination.look("can-be-built", lambda: f"it is a {kind_found}, not a class or function")
        return examination.report(plugin.name)
    kind = "augmentation" if _is_augmentation(plugin, factory) else "head"
    check_options(plugin.name, factory, choice.options, KEYWORDS[kind])
    types = option_types(factory)
    options: dict[str, Any] = {
        name: as_python(value, types[name]) for name, value in choice.options.items()
    }
    if kind == "augmentation":
        found = examine_augmentation(factory, fixed=fixed, **options)
    else:
        found = examine_head(factory, **options)
    seen = {finding.rule.name for finding in found.findings}
    own = [finding for finding in report.findings if finding.rule.name not in seen]
    return dataclasses.replace(found, subject=plugin.name, findings=(*found.findings, *own))


def _is_augmentation(plugin: Plugin, factory: Any) -> bool:
    in_file = plugin.is_local and inspect.isclass(factory) and issubclass(factory, Augmentation)
    return plugin.kind == "augmentation" or in_file


def _exit_fault(probe: Probe) -> str | None:
    if probe.ended:
        return probe.error
    return f"it prints {probe.printed!r}" if probe.printed else None


def _import_fault(probe: Probe) -> str | None:
    return f"{probe.seconds:.1f} s" if probe.seconds > _SECONDS else None
