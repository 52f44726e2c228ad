"""`vgg-jax plugins`."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

import typer

from vgg_jax.cli.console import print_json, print_table, user_errors
from vgg_jax.plugins import list_plugins

plugins = typer.Typer(no_args_is_help=True, help="Heads and augmentations, ours and others'.")


@plugins.callback()
def group() -> None:
    """Heads and augmentations, ours and others'."""


@plugins.command("list")
def list_installed(
    kind: Annotated[
        Literal["head", "augmentation"] | None, typer.Option(help="Only this kind.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """List the installed plugins; imports none of them."""
    with user_errors():
        found = list_plugins(kind)
        if as_json:
            print_json({"plugins": [dataclasses.asdict(plugin) for plugin in found]})
            return
        rows = [[plugin.name, plugin.kind, plugin.package, plugin.version] for plugin in found]
        print_table(["name", "kind", "package", "version"], rows, left=4)
