"""Finds VGG16 in files of `torch.save`, without PyTorch and without unpickling anything.

PyTorch has had two containers. Since 1.6 it is a zip archive, nothing in it compressed: a pickle
`data.pkl` and a member `data/KEY` for each storage. Before, torchvision's published weights among
them, it was a row of pickles (magic number, version, system, object, keys) and then, for each key,
the number of values and the values.
"""

from __future__ import annotations

import re
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from vgg_jax.errors import WeightsError
from vgg_jax.weights.source import Contents, SourceArray
from vgg_jax.weights.torch import (
    MOST_HEADER_BYTES,
    classify_arrays,
    dtype_problem,
    list_names,
    quote,
    values_at,
)
from vgg_jax.weights.torch_pickle import Storage, Tensor, read_pickle

_MAGIC, _VERSION = 0x1950A86A20F9469CFC6C, 1001
_MAGIC_BYTES = _MAGIC.to_bytes(10, "little")  # as it stands in its pickle, near the start
_START = 32
_LOCAL_HEADER = struct.Struct("<4s22x2H")  # of a zip member: signature, lengths of name and extra
_DTYPES = {"float16", "float32", "float64"}


@dataclass(frozen=True)
class _Place:
    """Where a storage's bytes are in the file, and their CRC-32 if it is known."""

    start: int
    size: int
    crc: int | None = None


def find_pth(path: Path) -> Contents:
    """Find VGG16 in a state dict that `torch.save` wrote, alone or in a checkpoint's dict.

    No array is read yet, and nothing in the file is executed.

    Args:
        path: The file, its arrays float16, float32 or float64.

    Raises:
        WeightsError: If the file is damaged, asks for code to be run, or holds another network.
    """
    try:
        with path.open("rb") as file:
            start = file.read(_START)
            file.seek(0)
            if start.startswith(b"PK"):
                saved, places = _read_zip(path, file)
            elif _MAGIC_BYTES in start:
                saved, places = _read_legacy(path, file)
            else:
                raise WeightsError(
                    f"{path} was not written by torch.save: it begins with {start[:8]!r}."
                )
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error}.") from error
    arrays: dict[str, SourceArray] = {}
    unreadable: dict[str, str] = {}
    for name, value in _state_dict(path, saved).items():
        if not isinstance(value, Tensor):
            unreadable[name] = "not an array"
        elif value.storage.dtype not in _DTYPES:
            unreadable[name] = dtype_problem(value.storage.dtype)
        elif not value.contiguous:
            unreadable[name] = "not in C order; save tensor.contiguous() instead"
        else:
            arrays[name] = _source_array(path, name, value, places[value.storage.key])
    return classify_arrays(path, "torch-pth", arrays, unreadable)


def _source_array(path: Path, name: str, tensor: Tensor, place: _Place) -> SourceArray:
    storage = tensor.storage
    start = place.start + tensor.offset * storage.item_size
    crc = place.crc if tensor.count == storage.count else None  # it is that of the whole
    dtype = np.dtype(storage.dtype).newbyteorder("<")
    return SourceArray(name, tensor.shape, dtype, values_at(path, name, start, crc))


def _state_dict(path: Path, saved: Any) -> Mapping[str, Any]:
    """Return the one state dict that was saved, bare or as an entry of a checkpoint's dict."""
    entries = saved if isinstance(saved, dict) else {}
    nested = [name for name, value in entries.items() if _is_state_dict(value)]
    if len(nested) == 1:
        return entries[nested[0]]
    if nested:
        raise WeightsError(
            f"{path} holds {len(nested)} state dicts: {list_names(map(str, nested))}.\n"
            "Save the one that is meant: torch.save(checkpoint[...], FILE)."
        )
    if _is_state_dict(saved):
        return saved
    held = f"a dict of {list_names(map(str, entries))}" if entries else "something else"
    raise WeightsError(
        f"{path} holds no state dict, but {held}.\n"
        "Save the model's: torch.save(model.state_dict(), FILE)."
    )


def _is_state_dict(value: object) -> bool:
    return (
        isinstance(value, dict)
        and all(isinstance(name, str) for name in value)
        and any(isinstance(entry, Tensor) for entry in value.values())
    )


def _read_zip(path: Path, file: BinaryIO) -> tuple[Any, dict[str, _Place]]:
    """Read a zip container: what was saved, and where its storages are."""
    try:
        archive = zipfile.ZipFile(file)
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError) as error:
        raise WeightsError(
            f"{path} is damaged or truncated: {error}. Fetch or copy it again."
        ) from error
    members = {member.filename: member for member in archive.infolist()}
    if len(members) != len(archive.infolist()):
        raise WeightsError(f"{path} is no file of torch.save: it has several members of one name.")
    pickles = [name for name in members if re.fullmatch(r"[^/]+/data\.pkl", name)]
    if len(pickles) != 1:
        raise WeightsError(
            f"{path} is no file of torch.save: it has {len(pickles)} members 'data.pkl', not one.\n"
            f"Its members: {list_names(members)}."
        )
    folder = pickles[0].removesuffix("data.pkl")
    if f"{folder}constants.pkl" in members:
        raise WeightsError(
            f"{path} holds a TorchScript program.\nSave its weights alone:"
            " torch.save(torch.jit.load(FILE).state_dict(), OTHER_FILE)."
        )
    order = members.get(f"{folder}byteorder")
    if order is not None and _read_member(path, file, order) != b"little":
        raise _wrong_byte_order(path)
    saved, storages = read_pickle(BytesIO(_read_member(path, file, members[pickles[0]])), path)
    places: dict[str, _Place] = {}
    for storage in storages.values():
        name = f"{folder}data/{storage.key}"
        if name not in members:
            raise WeightsError(f"{path} is damaged: its member {quote(name)} is missing.")
        places[storage.key] = _place_of(path, file, members[name])
        _check_size(path, storage, places[storage.key].size)
    return saved, places


def _read_member(path: Path, file: BinaryIO, member: zipfile.ZipInfo) -> bytes:
    place = _place_of(path, file, member)
    if place.size > MOST_HEADER_BYTES:
        raise WeightsError(
            f"{path}, {quote(member.filename)}: has {place.size:,} bytes; at most"
            f" {MOST_HEADER_BYTES:,} are read."
        )
    file.seek(place.start)
    data = file.read(place.size)
    if zlib.crc32(data) != place.crc:
        raise WeightsError(f"{path}, {quote(member.filename)}: is damaged, its checksum is wrong.")
    return data


def _place_of(path: Path, file: BinaryIO, member: zipfile.ZipInfo) -> _Place:
    """Return where a member's bytes are, which must stand in the file as they are."""
    where = f"{path}, {quote(member.filename)}"
    if member.flag_bits & 1:
        raise WeightsError(f"{where}: is encrypted.")
    if member.compress_type != zipfile.ZIP_STORED:
        raise WeightsError(f"{where}: is compressed, which torch.save never does. Save it again.")
    end = file.seek(0, 2)
    header = b""
    if 0 <= member.header_offset < end:
        file.seek(member.header_offset)
        header = file.read(_LOCAL_HEADER.size)
    if len(header) != _LOCAL_HEADER.size or not header.startswith(b"PK\3\4"):
        raise WeightsError(f"{where}: is not where the archive says. Fetch or copy the file again.")
    _, name_length, extra_length = _LOCAL_HEADER.unpack(header)
    start = member.header_offset + _LOCAL_HEADER.size + name_length + extra_length
    if member.compress_size != member.file_size or start + member.file_size > end:
        raise WeightsError(
            f"{where}: claims {member.file_size:,} bytes, which the file does not hold."
        )
    return _Place(start, member.file_size, member.CRC)


def _read_legacy(path: Path, file: BinaryIO) -> tuple[Any, dict[str, _Place]]:
    """Read a container of before PyTorch 1.6: what was saved, and where its storages are."""
    pickles = BytesIO(file.read(MOST_HEADER_BYTES))
    read_pickle(pickles, path)  # the magic number
    version, _ = read_pickle(pickles, path)
    if version != _VERSION:
        raise WeightsError(f"{path} is of an unknown version of torch.save, not {_VERSION}.")
    system, _ = read_pickle(pickles, path)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise _wrong_byte_order(path)
    saved, storages = read_pickle(pickles, path)
    keys, _ = read_pickle(pickles, path)
    if (
        not isinstance(keys, list)
        or not all(isinstance(key, str) for key in keys)
        or sorted(keys) != sorted(storages)
    ):
        raise WeightsError(f"{path} is damaged: its list of storages is not that of its tensors.")
    places: dict[str, _Place] = {}
    position, end = pickles.tell(), file.seek(0, 2)
    for key in keys:
        storage = storages[key]
        file.seek(position)
        count = int.from_bytes(file.read(8), "little", signed=True)
        places[key] = _Place(position + 8, count * storage.item_size)
        _check_size(path, storage, places[key].size)
        position += 8 + places[key].size
        if position > end:
            raise WeightsError(f"{path} is truncated: it ends too early. Fetch or copy it again.")
    if position != end:
        raise WeightsError(f"{path} is damaged: {end - position:,} bytes follow its last array.")
    return saved, places


def _check_size(path: Path, storage: Storage, size: int) -> None:
    if size != storage.count * storage.item_size:
        raise WeightsError(
            f"{path} is damaged: its storage {quote(storage.key)} has {size:,} bytes, not"
            f" {storage.count * storage.item_size:,}."
        )


def _wrong_byte_order(path: Path) -> WeightsError:
    return WeightsError(
        f"{path} was saved on a big-endian machine, whose byte order is not read; save it again on"
        " another."
    )
