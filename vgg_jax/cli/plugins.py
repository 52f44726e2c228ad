"""`vgg-jax plugins`."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from vgg_jax.cli.console import importing, print_json, print_line, print_table, say, user_errors
from vgg_jax.cli.plugin_check import check
from vgg_jax.cli.plugin_new import new
from vgg_jax.errors import ConfigError
from vgg_jax.plugin_choices import parse_choice
from vgg_jax.plugin_packages import plugin_packages
from vgg_jax.plugins import OWN_PACKAGE, Plugin, list_plugins

if TYPE_CHECKING:
    from vgg_jax.testing.probe import Probe
    from vgg_jax.workflows.describe_plugin import PluginDescription

plugins = typer.Typer(no_args_is_help=True, help="Heads and augmentations, ours and others'.")
plugins.command("check")(check)
plugins.command("new")(new)

KindOption = Annotated[Literal["head", "augmentation"] | None, typer.Option(help="Only this kind.")]


@plugins.callback()
def group() -> None:
    """Heads and augmentations, ours and others'."""


@plugins.command("list")
def list_installed(
    kind: KindOption = None,
    load: Annotated[
        bool,
        typer.Option("--load", help="Import them: shows what each does, and which are broken."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """List the installed plugins; imports none of them without --load."""
    with user_errors():
        found = list_plugins(kind)
        probes: Mapping[Plugin, Probe] = {}
        if load:
            from vgg_jax.testing.probe import probe_plugins

            say(f"Importing {len(found)} plugins.")
            probes = probe_plugins([plugin for plugin in found if not plugin.problem])
        packages = plugin_packages()
        summaries = {package.name: package.summary for package in packages}
        damaged = {package.name: package.fault for package in packages if package.fault}
        rows = [_entry(plugin, summaries, probes.get(plugin)) for plugin in found]
        if as_json:
            print_json({"plugins": rows, "damaged_packages": damaged})
            return
        for name, fault in damaged.items():
            say(
                f"Warning: The plugins of {name} cannot be listed: {fault}. Install that package"
                " again, or remove it."
            )
        shown = ("name", "kind", "package", "version")
        print_table(
            [*shown, "summary"],
            [[*(row[key] for key in shown), _remark(row)] for row in rows],
            left=5,
        )


@plugins.command("show")
def show(
    ref: Annotated[str, typer.Argument(metavar="NAME", help="As for --head and --augment.")],
    kind: KindOption = None,
    preview: Annotated[
        Path | None, typer.Option(help="A picture to show the augmentation on; needs --out.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="PNG to write for --preview.")] = None,
    views: Annotated[int, typer.Option(help="How many versions --preview shows.", min=1)] = 8,
    seed: Annotated[int, typer.Option(help="Of --preview.", min=0)] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Show what a plugin does and its options; with --preview, a picture of it."""
    with user_errors():
        if (preview is None) != (out is None):
            raise ConfigError("--preview IMAGE and --out FILE.png belong together; give both.")
        with importing():
            from vgg_jax.workflows.describe_plugin import describe_plugin

        choice = parse_choice(ref)
        described = describe_plugin(choice.ref, kind)
        if preview is not None and out is not None:
            if described.plugin.kind == "head":
                raise ConfigError(f"{ref} is a head; --preview shows augmentations.")
            from vgg_jax.workflows.preview import preview_picture, write_grid

            write_grid(preview_picture(preview, [choice], views=views, seed=seed), out)
        if as_json:
            print_json(described.as_dict() | ({"preview": str(out)} if out else {}))
            return
        _report(described)
        if out is not None:
            print_line(f"\nThe original and {views} views: {out}")


def _entry(plugin: Plugin, summaries: Mapping[str, str], probe: Probe | None) -> dict[str, Any]:
    summary = "built in" if plugin.package == OWN_PACKAGE else summaries.get(plugin.package, "")
    problem = plugin.problem
    if probe is not None:
        problem = problem or probe.error
        summary = probe.summary or summary
    return dataclasses.asdict(plugin) | {"summary": summary, "problem": problem}


def _remark(row: Mapping[str, Any]) -> str:
    if row["problem"]:
        return f"BROKEN: {row['problem']}".replace("\n", " ")
    return row["summary"]


def _report(described: PluginDescription) -> None:
    plugin = described.plugin
    origin = plugin.package if plugin.is_local else f"{plugin.package} {plugin.version}"
    print_line(f"{plugin.name}: {described.kind}, of {origin}\n")
    print_line(described.purpose or "It has no docstring.")
    if described.stands_for:
        print_line("\nIt stands for:")
        for choice in described.stands_for:
            print_line(f"  --augment {choice}")
    print_line("\nOptions:" if described.options else "\nIt has no options.")
    for option in described.options:
        must = "must be given" if option.default is None else f"default {option.default}"
        print_line(f"  {option.name}: {option.type}, {must}")
        print_line(textwrap.indent(textwrap.fill(option.meaning or "Not documented.", 90), " " * 6))
