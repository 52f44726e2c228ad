"""Folders of converted weights: an Orbax checkpoint and `metadata.json`, with a checksum an array.

Orbax does not notice flipped bits, so checksums are compared whenever a folder is read.
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from vgg_jax.errors import WeightsError
from vgg_jax.weights.arrays import READ_ERRORS, UnreadableArray, array_handler
from vgg_jax.weights.checksums import array_sha256, file_sha256
from vgg_jax.weights.metadata import (
    CONVERT_AGAIN,
    METADATA_FILE,
    PARTS,
    ROLES,
    describe_weights,
    differences,
    first_line,
    read_metadata,
    seal_metadata,
)
from vgg_jax.weights.source import Pair, SourceWeights

ARRAYS_FOLDER = "arrays"
_SPARE_BYTES = 1 << 20  # for metadata, beside the arrays

# By part, layer and role (`kernel`, `bias`): what `metadata.json` says of an array.
_Described = Mapping[str, Mapping[str, Mapping[str, Mapping[str, Any]]]]


@dataclass(frozen=True)
class Weights:
    """Converted weights, as read from their folder and checked.

    Attributes:
        layers: `conv1_1` to `conv5_3`, in order: kernel `[3, 3, in, out]`, bias `[out]`; for RGB.
        top: `fc6`, `fc7`, `fc8`: kernel `[in, out]`, bias `[out]`; empty unless asked for.
        head: A converted classifier's own layers, like `top`; empty unless asked for.
        width: Channels relative to the published network.
        mean: RGB means on the scale 0 to 255 that the network's input has subtracted.
        scale: RGB factors on the scale 0 to 255 that it is then multiplied by.
        digest: Of everything above, the top included where the folder has one.
        folder: Where it was read from.
        metadata: The content of `metadata.json`.
    """

    layers: Mapping[str, Pair]
    top: Mapping[str, Pair]
    head: Mapping[str, Pair]
    width: float
    mean: tuple[float, float, float]
    scale: tuple[float, float, float]
    digest: str
    folder: Path
    metadata: Mapping[str, Any]


def save_weights(
    weights: SourceWeights, folder: Path, add_files: Callable[[Path], None] | None = None
) -> bool:
    """Write a folder of converted weights, whole or not at all.

    Args:
        weights: What became of a weight file.
        folder: Folder to make; one that holds the same weights already is left as it is.
        add_files: Given the folder, adds what else belongs there before it gets its name.

    Returns:
        Whether it was written; False if the same weights were there already.

    Raises:
        WeightsError: If the folder holds something else, or cannot be written.
    """
    folder = Path(folder).resolve()
    metadata = describe_weights(weights)
    if _is_taken(folder):
        _check_same(folder, metadata)
        return False
    partial = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        partial.mkdir(parents=True)
        _check_space(partial, weights.parameters * 4 + _SPARE_BYTES)
        _save_arrays(partial / ARRAYS_FOLDER, weights)
        if add_files is not None:
            add_files(partial)
        added = sorted(path for path in partial.iterdir() if path.is_file())
        files = {path.name: file_sha256(path) for path in added}
        text = json.dumps(seal_metadata(metadata | {"files": files}), indent=2) + "\n"
        (partial / METADATA_FILE).write_text(text, encoding="utf-8")
        try:
            partial.rename(folder)
        except OSError:
            if not _is_taken(folder):
                raise
            _check_same(folder, metadata)  # another process was faster
            return False
    except (OSError, ValueError) as error:  # ValueError: TensorStore's own
        raise WeightsError(f"Cannot write {folder}: {first_line(error)}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return True


def load_weights(folder: Path, with_top: bool = False) -> Weights:
    """Read a folder of converted weights and compare every array with its checksum.

    Args:
        folder: Folder that `save_weights` wrote.
        with_top: Whether to read fc6, fc7 and fc8, or a classifier's own layers, too.

    Raises:
        WeightsError: If the folder is missing, incomplete, damaged, or of another format version.
    """
    folder = Path(folder)
    metadata = read_metadata(folder)
    wanted = PARTS if with_top else PARTS[:1]
    parts = _restore(folder, {part: metadata[part] for part in wanted if metadata.get(part)})
    return Weights(
        layers=parts["layers"],
        top=parts.get("top", {}),
        head=parts.get("head", {}),
        width=metadata["width"],
        mean=tuple(metadata["mean"]),
        scale=tuple(metadata["scale"]),
        digest=metadata["digest"],
        folder=folder,
        metadata=metadata,
    )


def _is_taken(folder: Path) -> bool:
    return folder.exists() and not (folder.is_dir() and not any(folder.iterdir()))


def _check_same(folder: Path, metadata: Mapping[str, Any]) -> None:
    """Raise unless `folder` holds, undamaged, what `metadata` describes."""
    try:
        there = read_metadata(folder)
    except WeightsError as error:
        raise WeightsError(f"{folder} is in the way: choose another --out.\n{error}") from error
    if there["digest"] != metadata["digest"]:
        raise WeightsError(
            f"{folder} already holds other weights ({differences(there, metadata)}).\n"
            "Choose another --out, or delete that folder first."
        )
    for part in PARTS:
        for name, layer in metadata.get(part, {}).items():
            _restore(folder, {part: {name: layer}})  # to check it; one layer at a time in memory


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise WeightsError(
            f"Not enough space for {folder.parent}: {needed:,} bytes are needed, {free:,} are free."
        )


def _save_arrays(folder: Path, weights: SourceWeights) -> None:
    tree = {
        part: {name: dict(zip(ROLES, pair, strict=True)) for name, pair in layers.items()}
        for part, layers in zip(PARTS, (weights.layers, weights.top, weights.head), strict=True)
        if layers
    }
    with ocp.Checkpointer(array_handler()) as checkpointer:
        checkpointer.save(folder, args=ocp.args.PyTreeSave(tree))


def _restore(folder: Path, described: _Described) -> dict[str, dict[str, Pair]]:
    """Return kernel and bias of each layer of each part that is `described`, once checked."""
    asked = {
        part: {name: dict.fromkeys(ROLES, 0) for name in layers}
        for part, layers in described.items()
    }
    arguments = ocp.args.PyTreeRestore(
        item=asked,
        restore_args=jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), asked),
        partial_restore=True,
    )
    try:
        with ocp.Checkpointer(array_handler()) as checkpointer:
            arrays = checkpointer.restore((folder / ARRAYS_FOLDER).resolve(), args=arguments)
    except UnreadableArray as error:
        _, name, role = error.name.split(".")  # no name of a layer has dots
        raise _damaged(folder, f"the {role} of {name} cannot be read", error) from error
    except READ_ERRORS as error:
        raise _damaged(folder, "its arrays cannot be read", error) from error
    pairs: dict[str, dict[str, Pair]] = {part: {} for part in described}
    for part, layers in described.items():
        for name, layer in layers.items():
            for role in ROLES:
                if array_sha256(arrays[part][name][role]) != layer[role]["sha256"]:
                    raise _damaged(folder, f"the {role} of {name} does not match its checksum")
            kernel, bias = (arrays[part][name][role] for role in ROLES)
            pairs[part][name] = (kernel, bias)
    return pairs


def _damaged(folder: Path, what: str, error: Exception | None = None) -> WeightsError:
    text = f"{folder} is damaged: {what}. {CONVERT_AGAIN}"
    return WeightsError(text if error is None else f"{text}\n{first_line(error)}")
