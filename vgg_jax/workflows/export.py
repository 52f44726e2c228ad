"""Writes runs and converted weights as files that Keras and PyTorch load."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vgg_jax.errors import ConfigError, WeightsError
from vgg_jax.plugins import OWN_PACKAGE
from vgg_jax.progress import Progress
from vgg_jax.weights.checksums import file_sha256
from vgg_jax.weights.export import Network, Target, check_file, describe_input, whole_file
from vgg_jax.weights.export_code import loading_code
from vgg_jax.weights.export_keras import write_keras, write_model_h5, write_published_h5
from vgg_jax.weights.export_torch import write_torch_safetensors
from vgg_jax.weights.metadata import METADATA_FILE
from vgg_jax.weights.source import HeadName, Pair
from vgg_jax.workflows.convert import find_weights

if TYPE_CHECKING:
    from flax import nnx

    from vgg_jax.training.checkpoints import Which

RUN_FILE = "run.json"
_TOP_IMAGE_SIZE = 224  # the published top sees 7 x 7 places
_EXPORTED_HEADS = {"dense256": ("hidden", "logits"), "linear": ("logits",)}  # and their layers


@dataclass(frozen=True)
class ExportResult:
    """What an export came to.

    Attributes:
        file: The file written.
        target: What it was written for.
        size: Its bytes.
        sha256: Its SHA-256, in hexadecimal.
        head: What follows the backbone: nothing (empty), `top`, `dense256` or `linear`.
        parameters: Number of parameters.
        width: Channels relative to the published network.
        image_size: Side in pixels of the square images it takes; None for any size.
        class_names: In the order of the probabilities; empty where they are not known.
        epoch: Of the run, whose parameters these are; None for weights.
        input: How its input is made, as an expression of RGB 0-255.
        code: Python that loads the file and computes `outputs` from `images`.
    """

    file: Path
    target: Target
    size: int
    sha256: str
    head: HeadName
    parameters: int
    width: float
    image_size: int | None
    class_names: tuple[str, ...]
    epoch: int | None
    input: str
    code: str

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as JSON can hold them."""
        return dataclasses.asdict(self) | {"file": str(self.file)}


def export_weights(
    source: str | Path,
    target: Target,
    out: Path,
    *,
    checkpoint: Which = "best",
    weights: str | None = None,
    progress: Progress | None = None,
) -> ExportResult:
    """Write a run's classifier or converted weights as a file for another program.

    Args:
        source: Folder of a run, or folder or name of converted weights.
        target: `keras-h5`: weights in the layout that Keras published, or a run's whole model in
            HDF5; `keras`: a whole model as a .keras archive; `torch-safetensors`: weights by
            torchvision's names.
        out: File to write, whole or not at all; it must not exist.
        checkpoint: Which epoch of a run: `best`, by validation accuracy, or `latest`.
        weights: Where a run's backbone is, if it is no longer where the run found it.
        progress: Told of a download; silent by default.

    Raises:
        WeightsError: If there is nothing to export, the run's head has no counterpart elsewhere,
            or `out` exists, has the wrong suffix or cannot be written.
        RunError: If the run is damaged.
        ConfigError: If `checkpoint` or `weights` is given for what is no run.
    """
    out = Path(out)
    check_file(out, target)
    epoch: int | None = None
    if (Path(source) / RUN_FILE).is_file():
        network, epoch = _read_run(Path(source), checkpoint, weights)
    elif weights is not None or checkpoint != "best":
        raise ConfigError(
            f"--checkpoint and --weights belong to a run, but {source} is none (no {RUN_FILE})."
        )
    else:
        network = _read_weights(source, progress)
    with whole_file(out) as scratch:
        _WRITERS[target](network, scratch)
    return ExportResult(
        file=out,
        target=target,
        size=out.stat().st_size,
        sha256=file_sha256(out),
        head=network.head,
        parameters=network.parameters,
        width=network.width,
        image_size=network.image_size,
        class_names=network.class_names,
        epoch=epoch,
        input=describe_input(network, target),
        code=loading_code(network, target, out),
    )


def _read_weights(source: str | Path, progress: Progress | None) -> Network:
    from vgg_jax.weights.store import load_weights  # imports JAX and Orbax

    try:
        folder = find_weights(source, progress)
    except WeightsError as error:
        if not Path(source).is_dir():
            raise
        raise WeightsError(
            f"{source} is neither a run (no {RUN_FILE}) nor a folder of converted weights"
            f" (no {METADATA_FILE})."
        ) from error
    stored = load_weights(folder, with_top=True)
    return Network(
        layers=stored.layers,
        head="top" if stored.top else "",
        dense=stored.top,
        mean=stored.mean,
        scale=stored.scale,
        image_size=_TOP_IMAGE_SIZE if stored.top else None,
    )


def _read_run(run: Path, checkpoint: Which, weights: str | None) -> tuple[Network, int | None]:
    """Return the classifier of a run, and the epoch that its parameters are from."""
    from vgg_jax.layers import CONVOLUTIONS
    from vgg_jax.training.run_folder import RunFolder
    from vgg_jax.workflows.load import load_classifier

    plugin = next(p for p in RunFolder(run).read_record().plugins if p["kind"] == "head")
    name = plugin["name"]
    if plugin["package"] != OWN_PACKAGE or name not in _EXPORTED_HEADS:
        raise WeightsError(
            f"The head {name} of {run} is not known to other programs. Runs with"
            f" these heads can be exported: {', '.join(_EXPORTED_HEADS)}."
        )
    classifier = load_classifier(run, checkpoint=checkpoint, weights=weights)
    backbone, head = classifier.module.backbone, classifier.module.head
    network = Network(
        layers={layer: _pair(getattr(backbone, layer)) for layer in CONVOLUTIONS},
        head=name,
        dense={layer: _pair(getattr(head, layer)) for layer in _EXPORTED_HEADS[name]},
        mean=backbone.mean,
        scale=backbone.scale,
        image_size=classifier.image_size,
        output="sigmoid" if classifier.loss == "binary" else "softmax",
        class_names=classifier.class_names,
        interpolation=classifier.interpolation,
    )
    return network, classifier.epoch


def _pair(module: nnx.Conv | nnx.Linear) -> Pair:
    bias = module.bias
    if bias is None:
        raise WeightsError("A layer without bias has no counterpart in the files written here.")
    return np.asarray(module.kernel.get_value()), np.asarray(bias.get_value())


def _write_keras_h5(network: Network, path: Path) -> None:
    (write_model_h5 if network.is_classifier else write_published_h5)(network, path)


_WRITERS: Mapping[Target, Callable[[Network, Path], None]] = {
    "keras-h5": _write_keras_h5,
    "keras": write_keras,
    "torch-safetensors": write_torch_safetensors,
}
