"""Thousands of damaged and hostile weight files in every layout, each decided by its number."""

from __future__ import annotations

import functools
import itertools
import os
import shutil
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from hostile_archives import KERAS, Write
from hostile_configs import CONFIG_MAKERS
from hostile_h5 import EDITS, Edit, config_edit, uncounted_loop
from hostile_torch import LEGACY_PTH, PTH, SAFETENSORS
from torch_files import (
    torch_arrays,
    write_legacy_pth,
    write_members,
    write_pth,
    write_safetensors,
)
from weight_files import write_published_h5

from vgg_jax.weights.files import find_contents
from vgg_jax.weights.source import LAYOUTS

SOURCES = Path(__file__).parent / "golden" / "sources"
_WIDTH = 1 / 64
_SECTOR = 512
_LARGE_ARRAY = 256  # bytes; the bytes of larger ones are seldom spoilt
_LIMITS = [1 << bits for bits in (1, 7, 8, 15, 16, 31, 32, 40, 63, 64)]
_INTERESTING = (0, 1, *_LIMITS, *(limit - 1 for limit in _LIMITS))
Mutator = Callable[[bytearray, np.ndarray, np.random.Generator], None]


@dataclass(frozen=True)
class Case:
    """One file to be read.

    Attributes:
        layout: Of the sound file that it was made from.
        mutation: What was done to it.
        seed: Decides how.
        write: Writes it to a path.
        read_as: Layout to take it for, if not what it looks like.
    """

    layout: str
    mutation: str
    seed: int
    write: Callable[[Path], object]
    read_as: str = ""


@dataclass(frozen=True)
class Sound:
    """A sound file, or a member of one that is an archive.

    Attributes:
        data: Its bytes.
        places: Positions of those that are not an array's values.
        write: Writes a file with other bytes in its place.
        member: Its name within the archive, `""` for a whole file.
        parts: The members that a whole file's own checksums would protect.
    """

    data: bytes
    places: np.ndarray
    write: Callable[[Path, bytes], object]
    member: str = ""
    parts: tuple[Sound, ...] = ()


def write_canaries(folder: Path) -> None:
    """Write what hostile files point to; see `hostile_h5`."""
    write_published_h5(folder / "canary.h5", _WIDTH)
    (folder / "canary.bin").write_bytes(bytes(1 << 16))
    os.mkfifo(folder / "canary.fifo")


def cases(count: int, folder: Path) -> Iterator[Case]:
    """Make so many files: each hostile one, then damaged ones, and more of both with other seeds.

    Args:
        count: How many.
        folder: Where the sound files are made.
    """
    sound = {name: _sound(path) for name, path in _sound_files(folder).items()}
    rounds = [_hostile(sound, 0), _overrides(sound)]
    for seed in range(1 + count // (len(sound) * len(MUTATORS))):
        rounds.append(_damaged(sound, seed))
        if seed % 20 == 19:
            rounds.append(_hostile(sound, seed))
    return itertools.islice(itertools.chain.from_iterable(rounds), count)


def _sound_files(folder: Path) -> dict[str, Path]:
    """Return small sound files by what they are, which starts with their layout's name."""
    made = {
        "keras-h5": folder / "sound.h5",
        "keras-h5 of HDF5 1.10": folder / "latest.h5",
        "torch-safetensors": folder / "sound.safetensors",
        "torch-pth": folder / "sound.pth",
        "torch-pth of 2017": folder / "legacy.pth",
    }
    write_published_h5(made["keras-h5"], _WIDTH, top=True)
    with (
        h5py.File(made["keras-h5"]) as file,
        h5py.File(made["keras-h5 of HDF5 1.10"], "w", libver="latest") as latest,
    ):
        for name in file:
            file.copy(name, latest)
        for name, value in file.attrs.items():
            latest.attrs[name] = value
    arrays = torch_arrays(_WIDTH, classifier=((0, 8), (3, 8), (6, 3)))
    write_safetensors(made["torch-safetensors"], arrays)
    write_pth(made["torch-pth"], arrays)
    write_legacy_pth(made["torch-pth of 2017"], arrays, published=True)
    for layout, name in (
        ("keras-model-h5", "binary.h5"),
        ("keras-weights-h5", "binary.weights.h5"),
        ("keras", "binary.keras"),
    ):
        made[layout] = Path(shutil.copy(SOURCES / name, folder))
    made["keras, deflated"] = folder / "deflated.keras"
    with zipfile.ZipFile(made["keras"]) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    write_members(made["keras, deflated"], members, zipfile.ZIP_DEFLATED)
    return made


def _rng(*words: str | int) -> np.random.Generator:
    return np.random.default_rng(list("\0".join(map(str, words)).encode()))


def _hostile(sound: Mapping[str, Sound], seed: int) -> Iterator[Case]:
    tables: dict[str, dict[str, Write]] = {
        "keras-h5": {name: _edited(edit) for name, edit in EDITS.items()},
        "keras-model-h5": {
            name: _edited(edit)
            for name, edit in {
                **EDITS,
                **{name: config_edit(make) for name, make in CONFIG_MAKERS.items()},
            }.items()
        },
        "keras-weights-h5": {name: _edited(edit) for name, edit in EDITS.items()},
        "keras": dict(KERAS),
        "torch-safetensors": dict(SAFETENSORS),
        "torch-pth": dict(PTH),
        "torch-pth of 2017": dict(LEGACY_PTH),
    }
    loop = {"uncounted hard link loop": uncounted_loop}
    for layout, table in tables.items():
        for name, write in (table | loop if layout.endswith("h5") else table).items():
            yield Case(layout, name, seed, _writer(write, sound[layout].data, layout, name, seed))


def _writer(write: Write, data: bytes, *words: str | int) -> Callable[[Path], None]:
    return lambda path: write(path, data, _rng(*words))


def _edited(edit: Edit) -> Write:
    def write(path: Path, data: bytes, rng: np.random.Generator) -> None:
        path.write_bytes(data)
        with h5py.File(path, "r+") as file:
            edit(file, rng)

    return write


def _overrides(sound: Mapping[str, Sound]) -> Iterator[Case]:
    """Take each sound file for each layout."""
    for name, whole in sound.items():
        for layout in LAYOUTS:
            write = functools.partial(Path.write_bytes, data=whole.data)
            yield Case(name, "taken for another", 0, write, layout)


def _damaged(sound: Mapping[str, Sound], seed: int) -> Iterator[Case]:
    for layout, whole in sound.items():
        for part in (whole, *whole.parts):
            for name in MUTATORS:
                kind = f"{name}, in {part.member}" if part.member else name
                yield Case(layout, kind, seed, _spoil(part, MUTATORS[name], layout, kind, seed))


def _spoil(part: Sound, mutate: Mutator, *words: str | int) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        spoilt = bytearray(part.data)
        mutate(spoilt, part.places, _rng(*words))
        part.write(path, bytes(spoilt))

    return write


def _sound(path: Path) -> Sound:
    """Return a sound file, with those of its members apart that a checksum would protect."""
    data, parts = path.read_bytes(), []
    hdf5 = path
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        for name, member in members.items():
            if name.endswith(".h5"):
                hdf5 = path.with_name(f"{path.name}.inside")
                hdf5.write_bytes(member)
            if name.endswith((".h5", "data.pkl")):
                write = functools.partial(_write_with, members, name)
                parts.append(Sound(member, _metadata(hdf5, member), write, name))
    return Sound(data, _metadata(hdf5, data), Path.write_bytes, parts=tuple(parts))


def _write_with(members: Mapping[str, bytes], name: str, path: Path, data: bytes) -> None:
    write_members(path, {**members, name: data})


def _metadata(path: Path, data: bytes) -> np.ndarray:
    """Return the positions in `data` of all but the values of the arrays of a sound file."""
    is_metadata = np.ones(len(data), bool)
    contents = find_contents(path)
    for layer in (*contents.layers.values(), *contents.dense):
        array = np.empty(layer.kernel.shape, layer.kernel.dtype)
        layer.kernel.read_into(array)
        place = data.find(array.tobytes())
        if array.nbytes > _LARGE_ARRAY and place >= 0:
            is_metadata[place : place + array.nbytes] = False
    return np.flatnonzero(is_metadata)


def _place(places: np.ndarray, rng: np.random.Generator, space: int = 1) -> int:
    """Return the position of some metadata that is followed by `space` bytes or more."""
    usable = places[: np.searchsorted(places, places[-1] - space)]
    # Not uniform: what stands first decides most.
    return int(usable[int(len(usable) * rng.random() ** rng.choice([1, 3]))])


def _flip(flips: int) -> Mutator:
    def mutate(data: bytearray, places: np.ndarray, rng: np.random.Generator) -> None:
        for _ in range(flips):
            data[_place(places, rng)] ^= 1 << int(rng.integers(8))

    return mutate


def _flip_anywhere(data: bytearray, places: np.ndarray, rng: np.random.Generator) -> None:
    for place in rng.integers(len(data), size=int(rng.integers(1, 50))):
        data[int(place)] ^= 1 << int(rng.integers(8))


def _set_field(data: bytearray, places: np.ndarray, rng: np.random.Generator) -> None:
    for _ in range(int(rng.integers(1, 4))):
        size = int(rng.choice([1, 2, 4, 8]))
        place = _place(places, rng, 8) // size * size  # most fields are aligned
        value = _INTERESTING[int(rng.integers(len(_INTERESTING)))] % (1 << 8 * size)
        data[place : place + size] = value.to_bytes(size, "little")


def _copy_field(data: bytearray, places: np.ndarray, rng: np.random.Generator) -> None:
    """Let one pointer point where another does."""
    for _ in range(int(rng.integers(1, 4))):
        source, target = (_place(places, rng, 8) // 8 * 8 for _ in range(2))
        data[target : target + 8] = data[source : source + 8]


def _add_to_field(data: bytearray, places: np.ndarray, rng: np.random.Generator) -> None:
    place = _place(places, rng, 8) // 4 * 4
    (value,) = struct.unpack_from("<I", data, place)
    struct.pack_into("<I", data, place, (value + int(rng.integers(-16, 17))) % (1 << 32))


def _truncate(data: bytearray, places: np.ndarray, rng: np.random.Generator) -> None:
    del data[int(rng.integers(len(data))) :]


def _truncate_late(data: bytearray, places: np.ndarray, rng: np.random.Generator) -> None:
    del data[-int(rng.integers(1, 200)) :]


def _zero_sector(data: bytearray, places: np.ndarray, rng: np.random.Generator) -> None:
    start = _place(places, rng) // _SECTOR * _SECTOR
    size = min(_SECTOR, len(data) - start)
    data[start : start + size] = bytes([int(rng.choice([0, 255]))]) * size


def _copy_sector(data: bytearray, places: np.ndarray, rng: np.random.Generator) -> None:
    source, target = (_place(places, rng, _SECTOR) // _SECTOR * _SECTOR for _ in range(2))
    data[target : target + _SECTOR] = data[source : source + _SECTOR]


def _swap_blocks(data: bytearray, places: np.ndarray, rng: np.random.Generator) -> None:
    size = int(rng.choice([8, 40, 512, 4096]))
    first, second = (_place(places, rng, size) // 8 * 8 for _ in range(2))
    one, other = data[first : first + size], data[second : second + size]
    data[first : first + size], data[second : second + size] = other, one


def _insert(data: bytearray, places: np.ndarray, rng: np.random.Generator) -> None:
    place = _place(places, rng)
    data[place:place] = rng.bytes(int(rng.integers(1, 64)))


def _delete(data: bytearray, places: np.ndarray, rng: np.random.Generator) -> None:
    place = _place(places, rng)
    del data[place : place + int(rng.integers(1, 64))]


def _append(data: bytearray, places: np.ndarray, rng: np.random.Generator) -> None:
    data += rng.bytes(int(rng.integers(1, 5000)))


MUTATORS: Mapping[str, Mutator] = {
    "one bit flipped": _flip(1),
    "4 bits flipped": _flip(4),
    "40 bits flipped": _flip(40),
    "bits flipped anywhere": _flip_anywhere,
    "field set": _set_field,
    "field copied": _copy_field,
    "field changed a little": _add_to_field,
    "truncated": _truncate,
    "truncated at the end": _truncate_late,
    "sector zeroed": _zero_sector,
    "sector copied": _copy_sector,
    "blocks swapped": _swap_blocks,
    "bytes inserted": _insert,
    "bytes deleted": _delete,
    "bytes appended": _append,
}
