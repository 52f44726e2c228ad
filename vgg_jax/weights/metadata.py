"""What `metadata.json` says of a folder of converted weights: their source, and their checksums.

One digest over all that decides a network's outputs tells whether two folders hold the same; a
seal over the whole tells whether anything in it was changed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import metadata as package_metadata
from pathlib import Path
from typing import Any

from vgg_jax.errors import WeightsError
from vgg_jax.layers import kernel_shapes
from vgg_jax.weights.checksums import array_sha256, json_sha256
from vgg_jax.weights.source import TOP_LAYERS, Pair, SourceWeights

FORMAT_VERSION = 1
METADATA_FILE = "metadata.json"
ROLES = ("kernel", "bias")
PARTS = ("layers", "top", "head")
CONVERT_AGAIN = "Convert the weight file again."


def read_metadata(folder: Path) -> dict[str, Any]:
    """Read `metadata.json` of a folder of converted weights and check that it is sound.

    Raises:
        WeightsError: If it is missing, damaged, changed, or of another format version.
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
        sound = version != FORMAT_VERSION or _is_sound(metadata)
        if sound and version == FORMAT_VERSION:
            _check_described(metadata)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{path} is damaged: {first_line(error)}. {CONVERT_AGAIN}") from error
    if version != FORMAT_VERSION:
        raise WeightsError(
            f"{folder} has format version {version!r}, but this vgg-jax reads {FORMAT_VERSION}.\n"
            "Convert the weight file again with this version, into another folder."
        )
    if not sound:
        raise WeightsError(f"{path} was changed: its digest does not match. {CONVERT_AGAIN}")
    return metadata


def seal_metadata(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return metadata with a checksum over all that they say, in place of any that was there."""
    content = {key: value for key, value in metadata.items() if key != "seal"}
    return content | {"seal": json_sha256(content)}


def describe_weights(weights: SourceWeights) -> dict[str, Any]:
    """Return what `metadata.json` says of weights."""

    def arrays(layers: Mapping[str, Pair]) -> dict[str, Any]:
        return {
            name: {
                role: {"shape": list(array.shape), "sha256": array_sha256(array)}
                for role, array in zip(ROLES, pair, strict=True)
            }
            for name, pair in layers.items()
        }

    metadata: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "vgg_jax_version": package_metadata.version("vgg-jax"),
        "source": {
            "file": weights.source,
            "sha256": weights.sha256,
            "path": weights.path,
            "layout": weights.layout,
            "preprocessing": weights.preprocessing,
        },
        "width": float(weights.width),
        "mean": [float(value) for value in weights.mean],
        "scale": [float(value) for value in weights.scale],
        "layers": arrays(weights.layers),
        "top": arrays(weights.top),
        "head": arrays(weights.head),
    }
    return metadata | {"digest": _digest(metadata)}


def _digest(metadata: Mapping[str, Any]) -> str:
    keys = ("width", "mean", "scale", "layers", "top", *(("head",) if metadata.get("head") else ()))
    return json_sha256({key: metadata[key] for key in keys})


def _is_sound(metadata: Mapping[str, Any]) -> bool:
    """Tell whether the checksums in metadata are right; those written before have no seal."""
    sealed = bool({"files", "seal"} & metadata.keys())
    return metadata["digest"] == _digest(metadata) and (
        not sealed or metadata["seal"] == seal_metadata(metadata)["seal"]
    )


def _check_described(metadata: Mapping[str, Any]) -> None:
    if not all(isinstance(metadata["source"][key], str) for key in ("file", "sha256")):
        raise TypeError("its source has no name and checksum")
    if not all(Path(name).name == name for name, _ in metadata.get("files", {}).items()):
        raise ValueError("its files are not all beside it")
    expected = {name: list(shape) for name, shape in kernel_shapes(metadata["width"]).items()}
    described = {name: arrays["kernel"]["shape"] for name, arrays in metadata["layers"].items()}
    if described != expected or tuple(metadata["top"]) not in ((), TOP_LAYERS):
        raise ValueError("its layers are not those of a VGG16")


def differences(there: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Return in words how the weights that are there differ from new ones."""
    for key in ("width", "mean", "scale"):
        if there[key] != new[key]:
            return f"{key} {there[key]}, not {new[key]}"
    for part in ("top", "head"):
        if bool(there.get(part)) != bool(new[part]):
            return f"{'with' if there.get(part) else 'without'} {part}"
    names = [
        name
        for part in PARTS
        for name in new[part]
        if there.get(part, {}).get(name) != new[part][name]
    ]
    return f"{len(names)} layers differ, the first is {names[0]}; from {there['source']['file']!r}"


def first_line(error: Exception) -> str:
    """Return the first line of an error's text, or its type where it has none."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:200]
