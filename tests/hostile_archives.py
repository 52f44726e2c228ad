"""Hostile zip archives, most of them `.keras`: each function writes one, given a sound one."""

from __future__ import annotations

import io
import struct
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import h5py
import numpy as np
from hostile_configs import CONFIG_MAKERS
from hostile_h5 import EDITS, zeros_deflated

Write = Callable[[Path, bytes, np.random.Generator], None]
_CONFIG, _METADATA, _WEIGHTS = "config.json", "metadata.json", "model.weights.h5"
_ENTRY, _LOCAL = b"PK\1\2", b"PK\3\4"


def _members(sound: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(sound)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _write_zip(
    path: Path, members: list[tuple[str | zipfile.ZipInfo, bytes]], compression: int = 0
) -> None:
    with zipfile.ZipFile(path, "w", compression) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that are there twice, on purpose
        for name, data in members:
            info = name if isinstance(name, zipfile.ZipInfo) else zipfile.ZipInfo(name)
            archive.writestr(info, data, compression)


def _keras(changed: Callable[[dict[str, bytes]], None], compression: int = 0) -> Write:
    def write(path: Path, sound: bytes, rng: np.random.Generator) -> None:
        members = _members(sound)
        changed(members)
        _write_zip(path, list(members.items()), compression)

    return write


def _config(make: Callable[[np.random.Generator, str], str]) -> Write:
    def write(path: Path, sound: bytes, rng: np.random.Generator) -> None:
        members = _members(sound)
        members[_CONFIG] = make(rng, members[_CONFIG].decode()).encode()
        _write_zip(path, list(members.items()))

    return write


def _inner(name: str) -> Write:
    """Spoil the weights within the archive as an HDF5 file is spoilt."""

    def write(path: Path, sound: bytes, rng: np.random.Generator) -> None:
        members = _members(sound)
        inner = path.with_suffix(".inner")
        inner.write_bytes(members[_WEIGHTS])
        with h5py.File(inner, "r+") as file:
            EDITS[name](file, rng)
        members[_WEIGHTS] = inner.read_bytes()
        inner.unlink()
        _write_zip(path, list(members.items()), int(rng.choice([0, zipfile.ZIP_DEFLATED])))

    return write


def add_members(*names: str) -> Write:
    """Add members of such names."""

    def write(path: Path, sound: bytes, rng: np.random.Generator) -> None:
        members = list(_members(sound).items())
        data = members[-1][1]
        _write_zip(path, [*members, *((zipfile.ZipInfo(name), data) for name in names)])

    return write


def _bomb(member: str, mebibytes: int, claimed: int | None = None) -> Write:
    """Pack zeros; the archive is padded so that a bound by its size alone would let them pass."""

    def write(path: Path, sound: bytes, rng: np.random.Generator) -> None:
        members = _members(sound)
        members[member] = b""
        members["padding"] = rng.bytes(1 << 20)
        packed = b"\x4b" + zeros_deflated(mebibytes << 20)  # the place of a header
        raw = packed[3:-4]  # deflate alone, without zlib's header and checksum
        _write_zip(path, list(members.items()))
        _swap_member(path, member, raw, mebibytes << 20 if claimed is None else claimed)

    return write


def _swap_member(path: Path, name: str, packed: bytes, claimed: int) -> None:
    """Put packed bytes at the end of an archive's members, and let `name` point there."""
    data = bytearray(path.read_bytes())
    directory = data.index(_ENTRY)
    info = zipfile.ZipInfo(name)
    info.compress_type, info.compress_size, info.file_size, info.CRC = 8, len(packed), claimed, 0
    local = info.FileHeader()[:30] + name.encode()
    entry = data.index(name.encode(), directory) - 46
    struct.pack_into("<H", data, entry + 10, 8)
    struct.pack_into("<II", data, entry + 20, len(packed), claimed)
    struct.pack_into("<I", data, entry + 42, directory)
    data[directory:directory] = local + packed
    end = data.rindex(b"PK\5\6")
    struct.pack_into("<I", data, end + 16, directory + len(local) + len(packed))
    path.write_bytes(data)


def _fields(offset: int, code: str, values: list[int]) -> Write:
    """Lie in the directory's entries: one value at one place of a few of them."""

    def write(path: Path, sound: bytes, rng: np.random.Generator) -> None:
        data = bytearray(sound)
        place = data.find(_ENTRY)
        while place >= 0:
            if rng.random() < 0.5:
                struct.pack_into(code, data, place + offset, int(rng.choice(values)))
            place = data.find(_ENTRY, place + 4)
        path.write_bytes(data)

    return write


def _symlink(target: str) -> Write:
    def write(path: Path, sound: bytes, rng: np.random.Generator) -> None:
        link = zipfile.ZipInfo(_WEIGHTS)
        link.create_system, link.external_attr = 3, 0o120777 << 16
        config = _members(sound)[_CONFIG]
        _write_zip(path, [(_CONFIG, config), (link, target.encode())])

    return write


def add_many_members(path: Path, sound: bytes, rng: np.random.Generator) -> None:
    members = list(_members(sound).items())
    _write_zip(path, [*members, *((f"\x1b[31m{i}", b"") for i in range(20_000))])


OUTSIDE = Path(tempfile.gettempdir()) / "escaped-from-zip"
ESCAPES = ("../../escaped", str(OUTSIDE), "..\\escaped", "a/../../escaped", "\0x")
KERAS: Mapping[str, Write] = {
    **{name: _config(make) for name, make in CONFIG_MAKERS.items()},
    **{f"inner {name}": _inner(name) for name in EDITS},
    "zip: deflated": _keras(lambda members: None, zipfile.ZIP_DEFLATED),
    "zip: bz2": _keras(lambda members: None, zipfile.ZIP_BZIP2),
    "zip: lzma": _keras(lambda members: None, zipfile.ZIP_LZMA),
    "zip: lzma bomb": _keras(lambda m: m.update({_CONFIG: bytes(40 << 20)}), zipfile.ZIP_LZMA),
    "zip: bz2 bomb": _keras(lambda m: m.update({_WEIGHTS: bytes(40 << 20)}), zipfile.ZIP_BZIP2),
    "zip: bomb of weights": _bomb(_WEIGHTS, 2000),
    "zip: bomb within bounds": _bomb(_WEIGHTS, 8),
    "zip: bomb of weights that lies": _bomb(_WEIGHTS, 2000, 1000),
    "zip: bomb of configuration": _bomb(_CONFIG, 1000),
    "zip: bomb of configuration that lies": _bomb(_CONFIG, 1000, 16 << 20),
    "zip: huge configuration": _keras(
        lambda m: m.update({_CONFIG: b"[" + b"{}," * (5 << 20) + b"{}]"}), zipfile.ZIP_DEFLATED
    ),
    "zip: escaping names": add_members(*ESCAPES),
    "zip: same names": add_members(_WEIGHTS),
    "zip: symbolic link": _symlink("canary.h5"),
    **{
        f"zip: metadata of {name}": _keras(lambda m, data=data: m.update({_METADATA: data}))
        for name, data in {
            "a list": b"[]",
            "no JSON": b"{",
            "a number": b'{"vgg_jax": 7}',
            "depth": b'{"vgg_jax":' * 100_000,
            "odd facts": b'{"vgg_jax": {"mean": {}, "scale": 1, "channels": [], "head": 3}}',
            "infinity": b'{"vgg_jax": {"image_size": Infinity}}',
        }.items()
    },
    "zip: no configuration": _keras(lambda m: m.update({_CONFIG: b""})),
    "zip: no weights": _keras(lambda m: m.update({_WEIGHTS: b""})),
    "zip: weights within weights": _keras(lambda m: m.update({_WEIGHTS: m[_WEIGHTS] * 2})),
    "zip: encrypted": _fields(8, "<H", [1, 0x41, 0x20, 0x2000]),
    "zip: other compression": _fields(10, "<H", [1, 8, 9, 12, 14, 93, 99]),
    "zip: lying sizes": _fields(20, "<I", [0, 1, 0x7FFFFFFF, 0xFFFFFFFF, 0xFFFFFFFE]),
    "zip: lying unpacked sizes": _fields(24, "<I", [0, 1, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 20]),
    "zip: overlapping members": _fields(42, "<I", [0, 30, 0x7FFFFFFF, 0xFFFFFFFF]),
    "zip: lying name lengths": _fields(28, "<H", [0, 1, 0xFFFF, 30]),
    "zip: many members": add_many_members,
}
