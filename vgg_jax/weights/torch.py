"""Finds VGG16 among the arrays of a PyTorch state dict, and reads safetensors.

The names are torchvision's: `features.0` to `features.28` are the convolutions, `classifier.0`,
`classifier.3` and `classifier.6` the dense layers; a fine-tuned network has others behind
`classifier`, or none. PyTorch itself is not needed.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from vgg_jax.errors import WeightsError
from vgg_jax.layers import CONVOLUTIONS, CONVOLUTIONS_PER_BLOCK
from vgg_jax.weights.own_facts import read_own_metadata
from vgg_jax.weights.source import Contents, FoundLayer, SourceArray

MOST_HEADER_BYTES = 16 << 20  # of what describes the arrays; VGG16's takes a few kilobytes
_FLOATS = {"F16": "float16", "F32": "float32", "F64": "float64"}
_FIRST, _RUNNING = "features.0.weight", ".running_mean"
_NAME = re.compile(
    r"(?P<layer>features\.[0-9]{1,4}|classifier(?:\.[0-9]{1,4})*)\.(?P<role>weight|bias)"
)
_NAMES_SHOWN = 6
_MOST_CHARACTERS = 80  # of a name in a message


def _positions(convolutions_per_block: Iterable[int], modules: int) -> Iterator[int]:
    """Number the convolutions as `features` does; each comes with ReLU and the like."""
    position = 0
    for count in convolutions_per_block:
        for _ in range(count):
            yield position
            position += modules
        position += 1  # the pool


_CONVOLUTIONS = {
    f"features.{position}": layer
    for position, layer in zip(_positions(CONVOLUTIONS_PER_BLOCK, 2), CONVOLUTIONS, strict=True)
}
_NETWORKS = {
    frozenset(f"features.{position}" for position in _positions(counts, modules)): name + suffix
    for name, counts in (
        ("VGG11", (1, 1, 2, 2, 2)),
        ("VGG13", (2, 2, 2, 2, 2)),
        ("VGG16", CONVOLUTIONS_PER_BLOCK),
        ("VGG19", (2, 2, 4, 4, 4)),
    )
    for suffix, modules in (("", 2), (" with batch normalisation", 3))
}


def find_safetensors(path: Path) -> Contents:
    """Find VGG16 in a safetensors file with torchvision's names; no array is read yet.

    Args:
        path: The file, its arrays float16, float32 or float64.

    Raises:
        WeightsError: If the file is damaged or holds another network.
    """
    arrays: dict[str, SourceArray] = {}
    unreadable: dict[str, str] = {}
    header, data_start = _read_header(path)
    metadata = header.pop("__metadata__", {})
    for name, entry in header.items():
        if entry["dtype"] in _FLOATS:
            arrays[name] = SourceArray(
                path=name,
                shape=tuple(entry["shape"]),
                dtype=np.dtype(_FLOATS[entry["dtype"]]).newbyteorder("<"),
                read_into=values_at(path, name, data_start + entry["data_offsets"][0]),
            )
        else:
            unreadable[name] = dtype_problem(entry["dtype"])
    contents = classify_arrays(path, "torch-safetensors", arrays, unreadable)
    try:
        own = read_own_metadata(metadata)
    except (ValueError, RecursionError) as error:
        raise WeightsError(
            f"{path} cannot be read, its metadata may be damaged: {error}."
        ) from error
    return replace(contents, facts=own) if own else contents


def classify_arrays(
    path: Path, layout: str, arrays: Mapping[str, SourceArray], unreadable: Mapping[str, str]
) -> Contents:
    """Tell by their names what the arrays of a state dict are.

    Args:
        path: The file, for messages.
        layout: Name of its layout.
        arrays: By their names in the state dict.
        unreadable: Why each of the others cannot be read, in words.

    Raises:
        WeightsError: If they are another network's.
    """
    names = [*arrays, *unreadable]
    wrapper = _wrapper(names)
    known: dict[str, dict[str, str]] = {}  # names by layer and role
    unexpected: list[str] = []
    convolutions: set[str] = set()
    for name in names:
        match = _NAME.fullmatch(name, len(wrapper)) if name.startswith(wrapper) else None
        layer = match["layer"] if match else ""
        if match and (layer in _CONVOLUTIONS or layer.startswith("classifier")):
            known.setdefault(layer, {})[match["role"]] = name
        else:
            unexpected.append(name)
        if match and match["role"] == "weight" and layer.startswith("features"):
            convolutions.add(layer)
    _check_network(path, names, convolutions - _normalisations(names, wrapper))
    dense = sorted(known.keys() - _CONVOLUTIONS.keys(), key=_numbers)
    backbone = f"{wrapper}features."
    problems, head_problems = (
        _list_problems(
            [name for name in unexpected if name.startswith(backbone) is belongs],
            {name: why for name, why in unreadable.items() if name.startswith(backbone) is belongs},
        )
        for belongs in (True, False)
    )
    found: dict[str, FoundLayer] = {}
    for label in (*_CONVOLUTIONS, *dense):
        pair = known.get(label, {})
        noted = problems if label in _CONVOLUTIONS else head_problems
        missing = [role for role in ("weight", "bias") if role not in pair]
        if len(missing) == 2:
            noted.append(f"{label}: missing")
        elif missing:
            noted.append(f"{label}: has no {missing[0]}")
        elif pair["weight"] in arrays and pair["bias"] in arrays:
            found[label] = FoundLayer(label, arrays[pair["weight"]], arrays[pair["bias"]])
    return Contents(
        layout=layout,
        layers={layer: found[label] for label, layer in _CONVOLUTIONS.items() if label in found},
        dense=tuple(found[label] for label in dense if label in found),
        problems=tuple(problems),
        head_problems=tuple(head_problems),
    )


def values_at(
    path: Path, name: str, start: int, crc: int | None = None
) -> Callable[[np.ndarray], None]:
    """Return what fills an array with the bytes of `path` from `start` on.

    Args:
        path: The file.
        name: The array's name, for messages.
        start: Position of its first byte.
        crc: CRC-32 that its bytes must have; None if it is not known.
    """

    def read_into(array: np.ndarray) -> None:
        target = array.reshape(-1).view(np.uint8).data
        try:
            with path.open("rb") as file:
                file.seek(start)
                count = file.readinto(target)
        except OSError as error:
            raise WeightsError(f"{path} cannot be read: {error}.") from error
        if count != target.nbytes:
            raise WeightsError(f"{path} ends within {quote(name)}. Fetch or copy it again.")
        if crc is not None and zlib.crc32(target) != crc:
            raise WeightsError(
                f"{path} is damaged: {quote(name)} does not have the checksum that the file"
                " records for it. Fetch or copy it again."
            )

    return read_into


def dtype_problem(dtype: str) -> str:
    """Say that numbers of this type are not read, and what helps."""
    return (
        f"stored as {dtype}; float16, float32 and float64 are read, so save tensor.float() instead"
    )


def quote(name: str) -> str:
    """Quote a name from a file, cut to a length that messages bear."""
    return repr(name if len(name) <= _MOST_CHARACTERS else f"{name[:_MOST_CHARACTERS]}…")


def list_names(names: Iterable[str]) -> str:
    """Quote the first few names, and count the rest."""
    names = list(names)
    shown = ", ".join(quote(name) for name in names[:_NAMES_SHOWN]) or "nothing"
    more = len(names) - _NAMES_SHOWN
    return f"{shown} and {more} more" if more > 0 else shown


def _read_header(path: Path) -> tuple[dict[str, Any], int]:
    """Return what a safetensors file says of its arrays, and where the first one starts."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > MOST_HEADER_BYTES:
                raise WeightsError(
                    f"{path} is no safetensors file of VGG16: it claims a header of {length:,}"
                    f" bytes; at most {MOST_HEADER_BYTES:,} are read."
                )
            # The library checks types, shapes and positions against each other and the file; its
            # own reading would hold large arrays twice.
            with safe_open(path, framework="numpy"):
                header = json.loads(file.read(length))
    except (OSError, ValueError, SafetensorError) as error:
        raise WeightsError(f"{path} cannot be read as safetensors: {error}.") from error
    return header, 8 + length


def _wrapper(names: Iterable[str]) -> str:
    """Return what stands before the names of the only VGG16: `module.` of DataParallel, `net.`."""
    prefixes = {n.removesuffix(_FIRST) for n in names if f".{n}".endswith(f".{_FIRST}")}
    return prefixes.pop() if len(prefixes) == 1 else ""


def _normalisations(names: Iterable[str], wrapper: str) -> set[str]:
    """Return the layers that are batch normalisations, whose weights are called like kernels."""
    return {
        name.removeprefix(wrapper).removesuffix(_RUNNING)
        for name in names
        if name.startswith(wrapper) and name.endswith(_RUNNING)
    }


def _check_network(path: Path, names: list[str], convolutions: set[str]) -> None:
    """Refuse another network in one sentence, not with a list of mismatches."""
    network = _NETWORKS.get(frozenset(convolutions), "VGG16")
    if network != "VGG16":
        raise WeightsError(
            f"{path} holds a {network} (by the places of its convolutions), but a plain VGG16 is"
            " needed."
        )
    if len(convolutions & _CONVOLUTIONS.keys()) < len(_CONVOLUTIONS) / 2:
        raise WeightsError(
            f"{path} holds no VGG16: most of features.0.weight to features.28.weight are missing.\n"
            f"Its arrays: {list_names(names)}."
        )


def _list_problems(unexpected: list[str], unreadable: Mapping[str, str]) -> list[str]:
    problems = [f"unexpected: {list_names(unexpected)}"] if unexpected else []
    others = set(unexpected)
    known = [name for name in unreadable if name not in others]
    for reason in dict.fromkeys(unreadable[name] for name in known):
        alike = [name for name in known if unreadable[name] == reason]
        problems.append(f"{list_names(alike)}: {reason}")
    return problems


def _numbers(label: str) -> list[int]:
    return [int(part) for part in label.split(".")[1:]]
