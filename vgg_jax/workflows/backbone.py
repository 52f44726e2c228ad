"""Backbones: read by name or folder, and found again for a run by their checksum."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from vgg_jax.config import DEMO
from vgg_jax.errors import WeightsError
from vgg_jax.layers import kernel_shapes
from vgg_jax.model.vgg16 import VGG16
from vgg_jax.progress import Progress
from vgg_jax.training.run_files import RunRecord
from vgg_jax.training.run_folder import RunFolder
from vgg_jax.weights.checksums import array_sha256
from vgg_jax.weights.store import load_weights
from vgg_jax.workflows.convert import find_weights
from vgg_jax.workflows.locate import folders_with_digest

RANDOM_PREFIX = "random:"


@dataclasses.dataclass(frozen=True)
class OpenedBackbone:
    """A backbone and where it is from.

    Attributes:
        backbone: The network.
        weights: Absolute folder, `demo`, or `random:SEED[:WIDTH]`.
        digest: SHA-256 over its arrays.
        folder: Of converted weights, or None.
        has_top: Whether there are fc6, fc7 and fc8, too.
    """

    backbone: VGG16
    weights: str
    digest: str
    folder: Path | None = None
    has_top: bool = False


def open_backbone(weights: str, progress: Progress | None = None) -> OpenedBackbone:
    """Read a backbone.

    Args:
        weights: A folder that `convert-weights` wrote, the name of one under `./weights` or in the
            user's cache, a name in the manifest, which is downloaded on first use, `demo`, or
            `random:SEED[:WIDTH]` for untrained weights.
        progress: Told of a download; silent by default.

    Raises:
        WeightsError: If it is not there, or its arrays are not what was written.
    """
    if weights.startswith(RANDOM_PREFIX):
        backbone = _random_backbone(weights)
        return OpenedBackbone(backbone, weights, _digest(backbone))
    folder = find_weights(weights, progress)
    stored = load_weights(folder)
    backbone = VGG16.from_layers(stored.layers, mean=stored.mean, scale=stored.scale)
    # The demo's weights can be had again by name; the digest tells whether they are the same.
    where = weights if weights == DEMO else str(folder.resolve())
    has_top = bool(stored.metadata.get("top"))
    return OpenedBackbone(backbone, where, stored.digest, folder, has_top)


def open_run_backbone(
    run: RunFolder,
    record: RunRecord,
    weights: str | None = None,
    progress: Progress | None = None,
) -> OpenedBackbone:
    """Read the very backbone that a run was trained on, told by its checksum.

    It is looked for in the run itself (`vgg-jax runs pack`), where the training found it, under
    `./weights` and in the user's cache.

    Args:
        run: The run's folder.
        record: Its record.
        weights: The only place to look at, as for `open_backbone`.
        progress: Told if it was found elsewhere; silent by default.

    Raises:
        WeightsError: If it is nowhere, or `weights` are others.
    """
    digest = record.weights_digest
    if weights:
        opened = open_backbone(weights)
        if opened.digest != digest:
            raise WeightsError(
                f"The weights in {opened.weights} are not those that the run was trained on: their"
                f" digest is {opened.digest[:12]}…, not {digest[:12]}…. Name the right folder with"
                " --weights."
            )
        return opened
    failures: list[str] = []
    for place in _places(run, record):
        try:
            opened = open_backbone(place)
        except WeightsError as error:
            failures.append(str(error).splitlines()[0])
            continue
        if opened.digest == digest:
            if progress is not None and place not in (run.own_backbone, record.weights):
                progress.note(
                    f"The run's weights are no longer at {record.weights}; those in {place} are the"
                    " same, and are used."
                )
            return opened
        failures.append(f"The weights {place} are others (digest {opened.digest[:12]}…).")
    raise WeightsError(
        f"The backbone of {run.path}, weights with the digest {digest}, is not to be found:"
        f" {' '.join(failures)} Nor is it under ./weights or in the cache.\nName its folder with"
        f" --weights; or where it still is, put it into the run: vgg-jax runs pack {run.path}"
    )


def _places(run: RunFolder, record: RunRecord) -> Iterator[str]:
    if run.own_backbone:
        yield run.own_backbone
    yield record.weights
    for folder in folders_with_digest(record.weights_digest):
        yield str(folder)


def _random_backbone(weights: str) -> VGG16:
    seed, _, width = weights.removeprefix(RANDOM_PREFIX).partition(":")
    try:
        number, width_value = int(seed), float(width or 1)
        kernel_shapes(width_value)
        if number < 0:
            raise ValueError("negative seed")
    except (ValueError, WeightsError) as error:
        raise WeightsError(
            f"Weights {weights!r} are not random:SEED[:WIDTH] with a seed of 0 or more and a width"
            " such as 1 or 0.25."
        ) from error
    return VGG16.random(width_value, seed=number)


def _digest(backbone: VGG16) -> str:
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(nnx.state(backbone, nnx.Param)):
        digest.update(array_sha256(np.asarray(leaf)).encode())
    return digest.hexdigest()
