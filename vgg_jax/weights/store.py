"""Folders of converted weights: an Orbax checkpoint and `metadata.json`, with a checksum an array.

Orbax does not notice flipped bits, so checksums are compared whenever a folder is read. One digest
over all that decides a network's outputs tells whether two folders hold the same weights.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata as package_metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from vgg_jax.errors import WeightsError
from vgg_jax.layers import kernel_shapes
from vgg_jax.weights.source import SourceWeights

FORMAT_VERSION = 1
METADATA_FILE = "metadata.json"
ARRAYS_FOLDER = "arrays"
_ROLES = ("kernel", "bias")
_TOP = ("fc6", "fc7", "fc8")
_SPARE_BYTES = 1 << 20  # for metadata, beside the arrays

_CONVERT_AGAIN = "Convert the weight file again."

_Layer = tuple[str, np.ndarray, np.ndarray]  # name, kernel, bias
_Layers = Mapping[str, tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Weights:
    """Converted weights, as read from their folder and checked.

    Attributes:
        layers: `conv1_1` to `conv5_3`, in order: kernel `[3, 3, in, out]`, bias `[out]`; for RGB.
        top: `fc6`, `fc7`, `fc8`: kernel `[in, out]`, bias `[out]`; empty unless asked for.
        width: Channels relative to the published network.
        mean: RGB means on the scale 0 to 255 that the network's input has subtracted.
        scale: RGB factors on the scale 0 to 255 that it is then multiplied by.
        digest: Of everything above, the top included where the folder has one.
        folder: Where it was read from.
        metadata: The content of `metadata.json`.
    """

    layers: _Layers
    top: _Layers
    width: float
    mean: tuple[float, float, float]
    scale: tuple[float, float, float]
    digest: str
    folder: Path
    metadata: Mapping[str, Any]


def array_sha256(array: np.ndarray | jax.Array) -> str:
    """Return the SHA-256, in hexadecimal, of an array's dtype, shape and values (C order)."""
    array = np.asarray(array)
    digest = hashlib.sha256(f"{array.dtype.str} {array.shape}\n".encode())
    digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def save_weights(weights: SourceWeights, folder: Path) -> bool:
    """Write a folder of converted weights, whole or not at all.

    Args:
        weights: What a reader made of a weight file.
        folder: Folder to make; one that holds the same weights already is left as it is.

    Returns:
        Whether it was written; False if the same weights were there already.

    Raises:
        WeightsError: If the folder holds something else, or cannot be written.
    """
    folder = Path(folder).resolve()
    metadata = _describe(weights)
    if _is_taken(folder):
        _check_same(folder, metadata)
        return False
    partial = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        partial.mkdir(parents=True)
        _check_space(partial, weights.parameters * 4 + _SPARE_BYTES)
        _save_arrays(partial / ARRAYS_FOLDER, weights)
        text = json.dumps(metadata, indent=2) + "\n"
        (partial / METADATA_FILE).write_text(text, encoding="utf-8")
        try:
            partial.rename(folder)
        except OSError:
            if not _is_taken(folder):
                raise
            _check_same(folder, metadata)  # another process was faster
            return False
    except (OSError, ValueError) as error:  # ValueError: TensorStore's own
        raise WeightsError(f"Cannot write {folder}: {_reason(error)}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return True


def load_weights(folder: Path, with_top: bool = False) -> Weights:
    """Read a folder of converted weights and compare every array with its checksum.

    Args:
        folder: Folder that `save_weights` wrote.
        with_top: Whether to read fc6, fc7 and fc8 too, where the folder has them.

    Raises:
        WeightsError: If the folder is missing, incomplete, damaged, or of another format version.
    """
    folder = Path(folder)
    metadata = read_metadata(folder)
    top = _restore(folder, metadata, "top") if with_top else ()
    return Weights(
        layers={name: (k, b) for name, k, b in _restore(folder, metadata, "layers")},
        top={name: (k, b) for name, k, b in top},
        width=metadata["width"],
        mean=tuple(metadata["mean"]),
        scale=tuple(metadata["scale"]),
        digest=metadata["digest"],
        folder=folder,
        metadata=metadata,
    )


def read_metadata(folder: Path) -> dict[str, Any]:
    """Read `metadata.json` of a folder of converted weights and check that it is sound.

    Raises:
        WeightsError: If it is missing, damaged, or of another format version.
    """
    folder = Path(folder)
    path = folder / METADATA_FILE
    if not folder.exists():
        raise WeightsError(f"No such folder of converted weights: {folder}.")
    if not path.is_file():
        raise WeightsError(
            f"{folder} is not a folder of converted weights: it has no {METADATA_FILE}.\n"
            "`vgg-jax convert-weights FILE.h5 --out DIR` makes one."
        )
    try:
        metadata = json.loads(path.read_text(encoding="utf-8"))
        version = metadata["format_version"]
        sound = version != FORMAT_VERSION or metadata["digest"] == _digest(metadata)
        if sound and version == FORMAT_VERSION:
            _check_described_shapes(metadata)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{path} is damaged: {_reason(error)}. {_CONVERT_AGAIN}") from error
    if version != FORMAT_VERSION:
        raise WeightsError(
            f"{folder} has format version {version!r}, but this vgg-jax reads {FORMAT_VERSION}.\n"
            "Convert the weight file again with this version, into another folder."
        )
    if not sound:
        raise WeightsError(f"{path} was changed: its digest does not match. {_CONVERT_AGAIN}")
    return metadata


def _describe(weights: SourceWeights) -> dict[str, Any]:
    def arrays(layers: _Layers) -> dict[str, Any]:
        return {
            name: {
                role: {"shape": list(array.shape), "sha256": array_sha256(array)}
                for role, array in zip(_ROLES, pair, strict=True)
            }
            for name, pair in layers.items()
        }

    metadata: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "vgg_jax_version": package_metadata.version("vgg-jax"),
        "source": {
            "file": weights.source,
            "sha256": weights.sha256,
            "layout": weights.layout,
        },
        "width": float(weights.width),
        "mean": [float(value) for value in weights.mean],
        "scale": [float(value) for value in weights.scale],
        "layers": arrays(weights.layers),
        "top": arrays(weights.top),
    }
    return metadata | {"digest": _digest(metadata)}


def _digest(metadata: Mapping[str, Any]) -> str:
    decisive = {key: metadata[key] for key in ("width", "mean", "scale", "layers", "top")}
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def _check_described_shapes(metadata: Mapping[str, Any]) -> None:
    expected = {name: list(shape) for name, shape in kernel_shapes(metadata["width"]).items()}
    described = {name: arrays["kernel"]["shape"] for name, arrays in metadata["layers"].items()}
    if described != expected or tuple(metadata["top"]) not in ((), _TOP):
        raise ValueError("its layers are not those of a VGG16")


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
            f"{folder} already holds other weights ({_difference(there, metadata)}).\n"
            "Choose another --out, or delete that folder first."
        )
    for part in ("layers", "top"):
        for _ in _restore(folder, metadata, part):
            pass  # restored to be checked, one layer at a time in memory


def _difference(there: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    for key in ("width", "mean", "scale"):
        if there[key] != new[key]:
            return f"{key} {there[key]}, not {new[key]}"
    if bool(there["top"]) != bool(new["top"]):
        return "with top" if there["top"] else "without top"
    names = [
        name
        for part in ("layers", "top")
        for name in new[part]
        if there[part][name] != new[part][name]
    ]
    return f"{len(names)} layers differ, the first is {names[0]}; from {there['source']['file']!r}"


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise WeightsError(
            f"Not enough space for {folder.parent}: {needed:,} bytes are needed, {free:,} are free."
        )


def numpy_handler() -> ocp.PyTreeCheckpointHandler:
    """Return Orbax's handler, without what costs time and memory for float weights.

    Compression saves 7% of such files and takes most of the time. Arrays are not copied: in an
    asynchronous save they must not change before it is over.
    """
    types = ocp.type_handlers
    registry = types.create_type_handler_registry(
        (np.ndarray, types.NumpyHandler(deepcopy_host_arrays=False)),
        (jax.Array, types.ArrayHandler()),  # unused, but Orbax warns where it is missing
    )
    return ocp.PyTreeCheckpointHandler(use_compression=False, type_handler_registry=registry)


def _save_arrays(folder: Path, weights: SourceWeights) -> None:
    tree = {
        part: {name: dict(zip(_ROLES, pair, strict=True)) for name, pair in layers.items()}
        for part, layers in (("layers", weights.layers), ("top", weights.top))
        if layers
    }
    with ocp.Checkpointer(numpy_handler()) as checkpointer:
        checkpointer.save(folder, args=ocp.args.PyTreeSave(tree))


def _restore(folder: Path, metadata: Mapping[str, Any], part: str) -> Iterator[_Layer]:
    """Yield name, kernel and bias of each layer of a part, `layers` or `top`, once checked."""
    path = (folder / ARRAYS_FOLDER).resolve()
    with ocp.Checkpointer(numpy_handler()) as checkpointer:
        for name, described in metadata[part].items():
            pair: list[np.ndarray] = []
            # One by one: where several reads fail at once, Orbax prints tracebacks of the others.
            for role in _ROLES:
                arguments = ocp.args.PyTreeRestore(
                    item={part: {name: {role: 0}}},
                    restore_args={part: {name: {role: ocp.RestoreArgs(restore_type=np.ndarray)}}},
                    partial_restore=True,
                )
                try:
                    array = checkpointer.restore(path, args=arguments)[part][name][role]
                except (OSError, ValueError, KeyError, TypeError) as error:
                    raise WeightsError(
                        f"{folder} is damaged: the {role} of {name} cannot be read. "
                        f"{_CONVERT_AGAIN}\n{_reason(error)}"
                    ) from error
                if array_sha256(array) != described[role]["sha256"]:
                    raise WeightsError(
                        f"{folder} is damaged: the {role} of {name} does not match its checksum. "
                        f"{_CONVERT_AGAIN}"
                    )
                pair.append(array)
            yield name, pair[0], pair[1]


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:200]
