"""The command line `vgg-jax`: parse, call, report. Importing it brings neither JAX nor plugins."""

from __future__ import annotations

import os
import sys
from importlib import metadata
from typing import Annotated, TextIO

import typer

from vgg_jax.cli.augment_preview import augment_preview
from vgg_jax.cli.cache import cache
from vgg_jax.cli.console import EXIT_FAILED, exit_at_once_on_ctrl_c, say, show_tracebacks
from vgg_jax.cli.convert_weights import convert_weights
from vgg_jax.cli.evaluate import evaluate
from vgg_jax.cli.export_weights import export_weights
from vgg_jax.cli.plan import plan
from vgg_jax.cli.plugins import plugins
from vgg_jax.cli.predict import predict
from vgg_jax.cli.runs import runs
from vgg_jax.cli.summary import summary
from vgg_jax.cli.sweep import sweep
from vgg_jax.cli.train import train

# Rich's help and tracebacks cost a quarter of a second at every start.
app = typer.Typer(
    name="vgg-jax",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("convert-weights")(convert_weights)
app.command()(plan)
app.command()(train)
app.command()(sweep)
app.command()(evaluate)
app.command()(predict)
app.command()(summary)
app.command("export-weights")(export_weights)
app.command("augment-preview")(augment_preview)
app.add_typer(runs, name="runs")
app.add_typer(plugins, name="plugins")
app.add_typer(cache, name="cache")


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"vgg-jax {metadata.version('vgg-jax')}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version."),
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show where a failure came from; goes anywhere.")
    ] = False,
) -> None:
    """Fine-tune VGG16 on your own images, on JAX and Flax.

    A first try, on pictures that the program draws itself: vgg-jax train
    """
    del version
    if debug:
        show_tracebacks()


def _debug_first(arguments: list[str]) -> list[str]:
    """Move --debug to where the parser wants it, wherever a user put it."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    if "--debug" not in arguments[:end]:
        return arguments
    rest = [argument for argument in arguments[:end] if argument != "--debug"]
    return ["--debug", *rest, *arguments[end:]]


def _own_stdout() -> TextIO:
    """Give `sys.stdout` a descriptor of its own.

    What plugins' libraries and child processes write to number 1 then goes to standard error.
    """
    encoding = sys.stdout.encoding
    # File names need not be UTF-8.
    stdout = sys.stdout = os.fdopen(os.dup(1), "w", encoding=encoding, errors="surrogateescape")
    os.dup2(2, 1)
    return stdout


def main() -> None:
    """Run the command line."""
    exit_at_once_on_ctrl_c()
    # XLA logs an error for each kept program that it takes from the disk on processors whose own
    # tuning it does not recognise (https://github.com/jax-ml/jax/issues/38445). What does fail is
    # raised, too.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    stdout = _own_stdout()
    try:
        try:
            app(_debug_first(sys.argv[1:]))
        finally:
            stdout.flush()  # here, where a failure can still be told
    except OSError as error:
        # What is left in the buffer must not fail once more when the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stdout.fileno())
        if not isinstance(error, BrokenPipeError):  # else the reader, such as `head`, had enough
            say(f"Error: The result could not be written: {error.strerror}.")
        sys.exit(EXIT_FAILED)
