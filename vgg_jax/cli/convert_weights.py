"""`vgg-jax convert-weights`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from vgg_jax.cli.console import (
    console_progress,
    importing,
    interruptible,
    print_json,
    print_line,
    user_errors,
)
from vgg_jax.errors import ConfigError

if TYPE_CHECKING:
    from vgg_jax.weights.report import Proof
    from vgg_jax.workflows.convert import ConvertResult
    from vgg_jax.workflows.verify import VerifyResult


def convert_weights(
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="SOURCE",
            help="A weight file of Keras or PyTorch; or imagenet, imagenet-top, torchvision"
            " (downloaded), or demo.",
            show_default="imagenet",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder to write. [default: weights/NAME; runs/NAME for a classifier]",
            show_default=False,
        ),
    ] = None,
    layout: Annotated[
        str | None,
        typer.Option(
            help="The file's layout: keras-h5, keras-model-h5, keras-weights-h5, keras,"
            " torch-safetensors or torch-pth. [default: as its content shows]",
            show_default=False,
        ),
    ] = None,
    preprocessing: Annotated[
        str | None,
        typer.Option(
            help="What the weights expect: caffe (preprocess_input of Keras' VGG16), caffe-rgb,"
            " torch, tf, or rescale (1/255). [default: as the file says or its layout implies]",
            show_default=False,
        ),
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(
            help="Names of a classifier's classes, a,b,c in the order of its outputs, or a file"
            " with one a line."
        ),
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(help="Side in pixels of a classifier's pictures, if the file does not say."),
    ] = None,
    interpolation: Annotated[
        Literal["bilinear", "nearest"] | None,
        typer.Option(
            help="How pictures are resized for a classifier. [default: as the file says, else"
            " nearest for Keras', bilinear for PyTorch's]",
            show_default=False,
        ),
    ] = None,
    no_head: Annotated[
        bool, typer.Option("--no-head", help="Take a classifier's backbone alone.")
    ] = False,
    proof: Annotated[
        Path | None,
        typer.Option(help="Write the proof here, too: .json whole, .md to read."),
    ] = None,
    try_picture: Annotated[
        Path | None, typer.Option("--try", help="Show the five likeliest classes of a picture.")
    ] = None,
    verify: Annotated[
        Path | None,
        typer.Option(help="Check a folder of converted weights again; writes nothing."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Convert VGG16 weights, or a whole classifier, from Keras or PyTorch, and prove it right."""
    with user_errors():
        if proof is not None and proof.suffix not in (".json", ".md"):
            raise ConfigError(f"--proof {proof} must end in .json or .md.")
        if proof is not None and not proof.parent.is_dir():
            raise ConfigError(f"--proof {proof}: there is no folder {proof.parent}.")
        if verify is not None:
            _refuse_beside_verify(
                {
                    "--out": out,
                    "--layout": layout,
                    "--preprocessing": preprocessing,
                    "--classes": classes,
                    "--image-size": image_size,
                    "--interpolation": interpolation,
                    "--no-head": no_head or None,
                    "--try": try_picture,
                }
            )
            with importing():
                from vgg_jax.workflows.verify import verify_weights

            interruptible()
            verified = verify_weights(verify, source, console_progress())
            report, found = (lambda: _report_verified(verified)), verified
        else:
            with importing():
                from vgg_jax.workflows.convert import convert_weights as convert

            interruptible()
            converted = convert(
                source or "imagenet",
                out,
                layout=layout,
                preprocessing=preprocessing,
                no_head=no_head,
                class_names=_class_names(classes),
                image_size=image_size,
                interpolation=interpolation,
                try_picture=try_picture,
                progress=console_progress(),
            )
            report, found = (lambda: _report(converted)), converted
        if proof is not None:
            _write_proof(found.proof, proof)
        if as_json:
            print_json(found.as_dict())
        else:
            report()


def _report(result: ConvertResult) -> None:
    done = "Wrote" if result.written else "Already there, identical:"
    print_line(f"{done} {result.folder}")
    what = {"": "", "top": " with top"}.get(result.head, f" with the head {result.head}")
    print_line(
        f"VGG16 of width {result.width:g}{what}: {result.layers} layers, {result.parameters:,}"
        f" parameters, digest {result.digest[:12]}"
    )
    published = f", the published file {result.published}" if result.published else ""
    print_line(
        f"from {result.source} ({result.layout}{published}), SHA-256 {result.sha256[:12]},"
        f" preprocessing {result.preprocessing}"
    )
    print_line("\n".join(result.proof.summary_lines()))
    if result.class_names:
        print_line(f"Classes: {', '.join(result.class_names)}")
        for text in result.assumed:
            print_line(f"Assumed, since the file does not say: {text}")
        print_line(f"Try it: vgg-jax predict {result.folder} PICTURE…")


def _report_verified(result: VerifyResult) -> None:
    print_line(
        f"{result.folder}: {result.arrays} arrays match their checksums, digest"
        f" {result.digest[:12]}"
    )
    if result.proof is None:
        print_line(
            "Not proven again: the file that they were converted from is not where it was. Name it:"
            f" vgg-jax convert-weights FILE --verify {result.folder}"
        )
    else:
        print_line(f"Proven again from {result.source}")
        print_line("\n".join(result.proof.summary_lines()))


def _refuse_beside_verify(options: Mapping[str, object]) -> None:
    given = [flag for flag, value in options.items() if value is not None]
    if given:
        raise ConfigError(
            f"{', '.join(given)} cannot go with --verify: a check takes everything from the folder."
        )


def _class_names(text: str | None) -> tuple[str, ...] | None:
    """Return the names in `a,b,c`, or the lines of the file of that name."""
    if text is None:
        return None
    try:
        lines = Path(text).expanduser().read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ConfigError(f"--classes {text} is a file, but not of text in UTF-8.") from error
    except (OSError, RuntimeError, ValueError):  # no file, nor perhaps a possible name of one
        return tuple(name.strip() for name in text.split(","))
    return tuple(line.strip() for line in lines if line.strip())


def _write_proof(proof: Proof | None, path: Path) -> None:
    from vgg_jax.weights.report import write_json, write_markdown

    if proof is None:
        raise ConfigError(f"There is no proof to write to {path}: the weight file is not at hand.")
    (write_json if path.suffix == ".json" else write_markdown)(proof, path)
