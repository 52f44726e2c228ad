"""What a user is told before code of a file is run."""

from __future__ import annotations

from collections.abc import Iterable

from vgg_jax.plugin_choices import PluginChoice
from vgg_jax.plugins import Kind, find_plugin
from vgg_jax.progress import Progress


def announce_code(progress: Progress, kind: Kind, choices: Iterable[PluginChoice]) -> None:
    """Say which of the plugins that a user named are code in a file, about to be run.

    Raises:
        VggJaxError: If there is no such plugin.
    """
    for choice in choices:
        plugin = find_plugin(kind, choice.ref)
        if plugin.is_local:
            progress.note(f"Running the code of the {kind} {plugin.name} in {plugin.package}.")
