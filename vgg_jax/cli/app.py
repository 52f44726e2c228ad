"""The command line `vgg-jax`: parse, call, report. Importing it brings neither JAX nor plugins."""

from __future__ import annotations

from importlib import metadata
from typing import Annotated

import typer

from vgg_jax.cli.convert_weights import convert_weights
from vgg_jax.cli.evaluate import evaluate
from vgg_jax.cli.plugins import plugins
from vgg_jax.cli.predict import predict
from vgg_jax.cli.summary import summary
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
app.command()(train)
app.command()(evaluate)
app.command()(predict)
app.command()(summary)
app.add_typer(plugins, name="plugins")


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
) -> None:
    """Fine-tune VGG16 on your own images, on JAX and Flax.

    A first try, on pictures that the program draws itself: vgg-jax train
    """
    del version


def main() -> None:
    """Run the command line."""
    app()
