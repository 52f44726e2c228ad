"""`vgg-jax plugins new`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from vgg_jax.cli.console import print_json, print_line, user_errors


def new(
    kind: Annotated[
        Literal["augmentation", "head"], typer.Argument(metavar="KIND", help="augmentation or head")
    ],
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of the plugin, such as my-cutout.")],
    out: Annotated[Path, typer.Option(help="Where to make the package's folder.")] = Path(),
    license_name: Annotated[
        Literal["apache-2.0", "mit", "bsd-3-clause"],
        typer.Option("--license", help="apache-2.0, mit or bsd-3-clause."),
    ] = "apache-2.0",
    author: Annotated[str, typer.Option(help="Whom the licence names.")] = "its authors",
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Write a package with a plugin of your own, whose tests pass, to begin with."""
    with user_errors():
        from vgg_jax.workflows.new_plugin import new_plugin

        made = new_plugin(kind, name, out=out, license_name=license_name, author=author)
        if as_json:
            print_json(made.as_dict())
            return
        flag = "--head" if kind == "head" else "--augment"
        print_line(f"{made.folder} is a package with the {kind} {made.name}. Next:\n")
        print_line(f'  pip install --editable "{made.folder}[test]"')
        print_line(f"  pytest {made.folder}")
        print_line(f"  vgg-jax plugins check {made.name}")
        print_line(f"  vgg-jax train {flag} {made.name}\n")
        print_line(f"What it does is in {made.folder / 'src' / made.module / '__init__.py'}.")
