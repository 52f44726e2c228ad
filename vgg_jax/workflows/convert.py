"""Converts weight files, proves each conversion, and checks converted ones again."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from vgg_jax.config import Interpolation
from vgg_jax.errors import ConfigError
from vgg_jax.progress import Progress
from vgg_jax.weights.arrange import arrange_weights
from vgg_jax.weights.download import find_public
from vgg_jax.weights.metadata import read_metadata
from vgg_jax.weights.proof import prove
from vgg_jax.weights.reading import read_weight_file
from vgg_jax.weights.report import Proof, write_json, write_markdown
from vgg_jax.weights.source import HEAD_LAYERS, WeightFile
from vgg_jax.workflows.locate import (
    DEMO,
    WEIGHTS_FOLDER,
    cached_weights,
    converted_folder,
    locate_file,
    weight_names,
)

PROOF_JSON, PROOF_MARKDOWN = "proof.json", "proof.md"
_RUNS_FOLDER = Path("runs")


@dataclass(frozen=True)
class ConvertResult:
    """What a conversion came to.

    Attributes:
        folder: The folder of converted weights, or the run that a classifier became.
        written: False if the same weights were there already.
        source: Name of the weight file.
        sha256: SHA-256 of the weight file.
        published: Name of the public file that it is, or None.
        layout: Name of the file's layout.
        preprocessing: Name of what the weights expect of their input.
        layers: Number of layers with weights, all of them.
        parameters: Number of parameters, all of them.
        width: Channels relative to the published network.
        head: What follows the backbone: nothing, `top`, or a classifier's `dense256` or `linear`.
        class_names: Of a classifier, in the order of its logits.
        assumed: What a classifier's file does not say and was taken for granted, in words.
        digest: One digest over all that decides the network's outputs.
        proof: That the conversion is right.
    """

    folder: Path
    written: bool
    source: str
    sha256: str
    published: str | None
    layout: str
    preprocessing: str
    layers: int
    parameters: int
    width: float
    head: str
    class_names: tuple[str, ...]
    assumed: tuple[str, ...]
    digest: str
    proof: Proof

    @property
    def is_run(self) -> bool:
        """Whether the file was a classifier, and became a run."""
        return bool(self.class_names)

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as JSON can hold them."""
        return dataclasses.asdict(self) | {
            "folder": str(self.folder),
            "class_names": list(self.class_names),
            "assumed": list(self.assumed),
            "proof": self.proof.as_dict(),
        }


def convert_weights(
    source: str | Path,
    out: Path | None = None,
    *,
    layout: str | None = None,
    preprocessing: str | None = None,
    no_head: bool = False,
    class_names: Sequence[str] | None = None,
    image_size: int | None = None,
    interpolation: Interpolation | None = None,
    try_picture: Path | None = None,
    progress: Progress | None = None,
) -> ConvertResult:
    """Convert a weight file into an Orbax folder, or a classifier into a run, and prove it right.

    Args:
        source: `demo` for the backbone that the package carries, a name in the manifest, which is
            downloaded, or a weight file of one of `vgg_jax.weights.source.LAYOUTS`.
        out: Folder to write. Default: `weights/NAME`, for a classifier `runs/NAME`.
        layout: The file's layout, where its content does not show it.
        preprocessing: What the weights expect of their input, a key of
            `vgg_jax.weights.source.PREPROCESSINGS`; by default what the file says or implies.
        no_head: Take a classifier's backbone alone.
        class_names: A classifier's, in the order of its outputs; numbered by default.
        image_size: Side in pixels of the pictures a classifier takes, where the file does not say.
        interpolation: How pictures are resized for a classifier; by default as the file says, else
            as is usual where it comes from: nearest for Keras', bilinear for PyTorch's.
        try_picture: A picture to show the five most probable classes of.
        progress: Told of a download; silent by default.

    Raises:
        WeightsError: If the file is not a usable VGG16 weight file, the conversion cannot be
            proven, or `out` holds something else.
    """
    from vgg_jax.weights.store import save_weights  # these import JAX and Orbax
    from vgg_jax.workflows.adopt import (
        adopt_classifier,
        describe_classifier,
        describe_top,
        refuse_existing,
    )
    from vgg_jax.workflows.forward import forward_pass, most_probable

    if no_head and (class_names, image_size, interpolation) != (None, None, None):
        raise ConfigError(
            "--no-head takes the backbone alone; --classes, --image-size and --interpolation are"
            " for the head."
        )
    path = locate_file(source, progress or Progress())
    file = read_weight_file(path, layout=layout, preprocessing=preprocessing, backbone_only=no_head)
    classifier = describe_classifier(file, class_names, image_size, interpolation)
    tried = (classifier or describe_top(file)) if try_picture else None
    published = find_public(path)
    name = published.name if published else _name(source, path)
    folder = (WEIGHTS_FOLDER if classifier is None else _RUNS_FOLDER) / name
    if out is not None:
        folder = Path(out)
    if classifier is not None:
        refuse_existing(folder)

    weights = arrange_weights(file)
    forward = forward_pass(weights)
    proof = prove(file, weights, forward, versions())
    if try_picture is not None and tried is not None:
        top5 = most_probable(forward, tried, try_picture)
        proof = dataclasses.replace(proof, picture=try_picture.name, top5=top5)

    def add_proof(folder: Path) -> None:
        write_json(proof, folder / PROOF_JSON)
        write_markdown(proof, folder / PROOF_MARKDOWN)

    if classifier is None:
        backbone, written = folder, save_weights(weights, folder, add_proof)
    else:
        backbone, written = adopt_classifier(weights, classifier, folder, add_proof), True
    return ConvertResult(
        folder=folder,
        written=written,
        source=weights.source,
        sha256=weights.sha256,
        published=published.name if published else None,
        layout=weights.layout,
        preprocessing=weights.preprocessing,
        layers=len(weights.layers) + len(HEAD_LAYERS[file.head]),
        parameters=weights.parameters,
        width=weights.width,
        head=file.head,
        class_names=classifier.class_names if classifier else (),
        assumed=tuple(_assumptions(file, preprocessing, interpolation)),
        digest=read_metadata(backbone)["digest"],
        proof=proof,
    )


def find_weights(name_or_folder: str | Path, progress: Progress | None = None) -> Path:
    """Return the folder of converted weights that is meant, converted on first use.

    In this order: a folder by its path, `./weights/NAME`, `NAME` in the user's cache. `demo` and
    the names in the manifest are converted, and before that downloaded, into the cache.

    Raises:
        WeightsError: If there is none and none can be made; it names the ways out.
    """
    folder = converted_folder(name_or_folder)
    if folder is not None:
        return folder
    name = str(name_or_folder)
    progress = progress or Progress()
    folder = cached_weights(name)
    result = convert_weights(name, folder, progress=progress)
    if name != DEMO:
        progress.note(f"Converted {result.source} into {folder}.")
        progress.note("\n".join(result.proof.summary_lines()))
    return folder


def versions() -> dict[str, str]:
    """Return the versions of what a proof rests on, and the device it was made on."""
    import jax

    packages = {name: metadata.version(name) for name in ("vgg-jax", "jax", "flax", "numpy")}
    return packages | {
        "python": platform.python_version(),
        "device": jax.devices()[0].device_kind,
    }


def _assumptions(
    file: WeightFile, preprocessing: str | None, interpolation: str | None
) -> Iterator[str]:
    """Say what no proof can tell of a classifier, where its file does not say it either."""
    if file.head in ("", "top"):
        return
    if file.facts.output is None:
        hidden = "a ReLU in the hidden layer, and " if file.head == "dense256" else ""
        outputs = file.arrays[file.dense["logits"].bias].size
        last = "a sigmoid" if outputs == 1 else "a softmax"
        averaged = "averaged features, " if file.head == "linear" else ""
        yield f"{averaged}{hidden}{last} at the end (a whole model, by model.save, would say)"
    if preprocessing is None and file.facts.preprocessing is None:
        yield f"preprocessing {file.preprocessing.name} (else name --preprocessing)"
    if interpolation is None and file.facts.interpolation is None:
        yield "how pictures are resized (else name --interpolation)"


def _name(source: str | Path, path: Path) -> str:
    """Return the name of what a file is converted into: its own without the suffixes."""
    if str(source) in weight_names():
        return str(source)
    return path.name.removesuffix(".weights.h5").removesuffix(path.suffix) or path.name
