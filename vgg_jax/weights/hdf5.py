"""Opens HDF5 files from strangers: plain arrays within the file only, and damage told plainly."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
from h5py import h5l  # pyright: ignore[reportAttributeAccessIssue]

from vgg_jax.errors import WeightsError


@contextmanager
def open_hdf5(path: Path) -> Iterator[h5py.File]:
    """Open a file for reading; what h5py raises for a damaged one becomes a `WeightsError`."""
    _check_is_hdf5(path)
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        reason = str(error).strip("'\"")
        if "truncated file" in reason:
            size = path.stat().st_size
            raise WeightsError(
                f"{path} is truncated: it ends after {size:,} bytes. Fetch or copy it again."
            ) from error
        raise WeightsError(f"{path} cannot be read, it may be damaged: {reason}.") from error


def _check_is_hdf5(path: Path) -> None:
    if path.is_dir():
        raise WeightsError(f"{path} is a folder, but a weight file (HDF5) is needed.")
    if not path.exists():
        raise WeightsError(f"No such weight file: {path}.")
    try:
        with path.open("rb") as stream:
            start = stream.read(64)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}.") from error
    if h5py.is_hdf5(path):
        return
    kind = ""
    if not start:
        kind = ": it is empty"
    elif start.startswith(b"PK"):
        kind = ": it is a zip archive, such as Keras' .keras or PyTorch's .pth files"
    elif start.lstrip().lower().startswith((b"<!doctype", b"<html")):
        kind = ": it is a web page, perhaps saved in place of the download"
    raise WeightsError(
        f"{path} is not an HDF5 file{kind}.\n"
        "Only Keras' published VGG16 weights (.h5) can be read for now."
    )


def read_strings(group: h5py.Group, name: str) -> list[str] | None:
    """Return a list attribute, or None; Keras cuts long ones into `name0`, `name1`, …."""
    parts: list[object] = []
    try:
        if name in group.attrs:
            parts = [group.attrs[name]]
        while name not in group.attrs and f"{name}{len(parts)}" in group.attrs:
            parts.append(group.attrs[f"{name}{len(parts)}"])
    except TypeError as error:  # h5py's, for a damaged type
        raise ValueError(f"attribute {name!r}: {error}") from error
    if not parts:
        return None
    values = [value for part in parts for value in np.atleast_1d(np.asarray(part)).tolist()]
    return [value.decode() if isinstance(value, bytes) else str(value) for value in values]


def find_member(group: h5py.Group, path: str) -> h5py.Group | h5py.Dataset | str:
    """Return the member of `group` at `path`, or what is wrong with it, in words.

    Links other than hard ones are not followed, so that nothing outside the file is opened.
    """
    member: object = group
    for part in filter(None, path.split("/")):
        if not isinstance(member, h5py.Group) or not member.id.links.exists(part.encode()):
            return "is named in the attributes, but missing"
        if member.id.links.get_info(part.encode()).type != h5l.TYPE_HARD:
            return "is a link, which is not followed"
        member = member[part]
    if isinstance(member, h5py.Group | h5py.Dataset):
        return member
    return "is neither a group nor an array"


def array_paths(group: h5py.Group) -> set[str]:
    """Return the paths of all arrays below `group`; links are not followed."""
    paths: set[str] = set()

    def visit(path: str, member: object) -> None:
        if isinstance(member, h5py.Dataset):
            paths.add(path)

    group.visititems(visit)
    return paths


def storage_problem(dataset: h5py.Dataset) -> str | None:
    """Return what keeps the values from being read as plain numbers within the file, in words."""
    if dataset.is_virtual or dataset.external:
        return "has its values in another file, which is not read"
    if dataset.dtype.kind != "f" or dataset.dtype.itemsize not in (2, 4, 8):
        return f"is {dataset.dtype}, but must be float16, float32 or float64"
    stored = dataset.id.get_storage_size()
    packed = dataset.id.get_create_plist().get_nfilters() > 0
    if stored == 0 or (not packed and stored < dataset.nbytes):
        return "has values that were never written"
    return None


def read_float32(dataset: h5py.Dataset) -> np.ndarray:
    """Read an array of floats as float32; values too large for it become infinite."""
    if dataset.dtype != np.dtype(np.float32):
        with np.errstate(over="ignore"):
            return dataset[()].astype(np.float32)
    array = np.empty(dataset.shape, np.float32)
    dataset.read_direct(array)
    return array
