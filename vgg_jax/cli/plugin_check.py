"""`vgg-jax plugins check`."""

from __future__ import annotations

import textwrap
from typing import Annotated, Literal

import typer

from vgg_jax.cli.console import (
    EXIT_FAILED,
    console_progress,
    importing,
    print_json,
    print_line,
    user_errors,
)


def check(
    ref: Annotated[
        str, typer.Argument(metavar="NAME", help="As for --head and --augment, options included.")
    ],
    kind: Annotated[
        Literal["head", "augmentation"] | None,
        typer.Option(help="Where a head and an augmentation have the same name."),
    ] = None,
    fixed: Annotated[
        bool, typer.Option("--fixed", help="It is meant to do the same for every random key.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Check a plugin against the contract; exit code 1 if it breaks a rule."""
    failed = False
    with user_errors():
        with importing():
            from vgg_jax.compilation import keep_compiled_programs
            from vgg_jax.testing import check_plugin

        keep_compiled_programs(console_progress())
        report = check_plugin(ref, kind, fixed=fixed)
        failed = bool(report.failures)
        if as_json:
            print_json(report.as_dict())
        else:
            width = max(len(finding.rule.name) for finding in report.findings)
            for finding in report.findings:
                status = "FAILED" if finding.status == "failed" else finding.status
                reason = f": {finding.seen}" if finding.status == "does not apply" else ""
                print_line(f"{finding.rule.name:{width}}  {status}{reason}")
                if finding.status == "failed":
                    for text in (finding.rule.what, f"Seen: {finding.seen}", finding.rule.why):
                        print_line(textwrap.indent(textwrap.fill(text, 90), " " * (width + 4)))
            count = len(report.failures)
            print_line(
                f"\n{report.subject} breaks {count} rule{'s' if count > 1 else ''} of the contract."
                if failed
                else f"\n{report.subject} keeps the contract."
            )
    if failed:
        raise typer.Exit(EXIT_FAILED)
