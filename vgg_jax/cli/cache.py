"""`vgg-jax cache`."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vgg_jax.cli.console import (
    format_age,
    print_json,
    print_line,
    print_table,
    say,
    user_errors,
)
from vgg_jax.progress import format_bytes

if TYPE_CHECKING:
    from vgg_jax.workflows.cache import CacheContents, CachedTable

_DIGEST = re.compile("[0-9a-f]{16,}")

cache = typer.Typer(no_args_is_help=True)
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@cache.callback()
def group() -> None:
    """What is kept on disk because it can be made or fetched again."""


@cache.command()
def info(as_json: JsonOption = False) -> None:
    """Show what is kept, how large it is, and when it was used last."""
    with user_errors():
        from vgg_jax.workflows.cache import describe_cache

        contents = describe_cache()
        if as_json:
            print_json(contents.as_dict())
        else:
            print_line(f"Cache folder: {contents.folder} (VGG_JAX_CACHE names another one)")
            _print_contents(contents)


@cache.command()
def clear(
    everything: Annotated[
        bool,
        typer.Option(
            "--all",
            help="Also remove downloaded and converted weights, which your runs may need,"
            " and the demo's pictures.",
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only list what would be removed.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Remove what comes again by itself: kept features and compiled programs.

    Features that a running training uses stay.
    """
    with user_errors():
        from vgg_jax.workflows.cache import clear_cache, describe_cache

        removed = clear_cache(everything=everything, dry_run=dry_run)
        in_use = [one for one in describe_cache().tables if one.in_use]
        if as_json:
            result = {"removed": removed.as_dict(), "in_use": [one.as_dict() for one in in_use]}
            print_json({"dry_run": dry_run, **result})
        elif removed.tables or removed.files:
            _print_contents(removed)
        else:
            say("There is nothing to remove.")
        for one in in_use:
            say(f"In use, and kept: {one.table.path}, {format_bytes(one.table.bytes)}.")
        if dry_run:
            say("Nothing was removed.")


def _print_contents(contents: CacheContents) -> None:
    rows = [_row(one) for one in contents.tables]
    rows += [[one.what, "", "", format_bytes(one.bytes), ""] for one in contents.files]
    rows.append(["total", "", "", format_bytes(contents.bytes), ""])
    print_table(["what", "of", "rows", "size", "last used"], rows, left=2)


def _row(cached: CachedTable) -> list[str]:
    table = cached.table
    return [
        table.kind,
        _brief_settings(table.settings),
        str(table.rows),
        format_bytes(table.bytes),
        "in use" if cached.in_use else format_age(time.time() - table.last_used),
    ]


def _brief_settings(settings: dict[str, Any]) -> str:
    """Return what tells tables apart most often; `--json` has all."""
    return " ".join(
        f"{name}={_DIGEST.sub(lambda digest: digest[0][:8], str(settings[name]))}"
        for name in (
            "boundary",
            "image_size",
            "precision",
            "features_dtype",
            "prefix",
            "seed",
            "view",
        )
        if name in settings
    )
