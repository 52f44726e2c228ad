"""Opens HDF5 files from strangers: plain arrays within the file only, and damage told plainly."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
from h5py import h5l  # pyright: ignore[reportAttributeAccessIssue]

from vgg_jax.errors import WeightsError
from vgg_jax.weights.source import SourceArray

# Numbers of the filters that libhdf5 and h5py carry; any other would be loaded as code.
_KNOWN_FILTERS = {
    1: "gzip",
    2: "shuffle",
    3: "fletcher32",
    4: "szip",
    6: "scaleoffset",
    32000: "lzf",
}


@contextmanager
def hdf5_errors(what: str | Path) -> Iterator[None]:
    """Turn what h5py raises for a damaged file into a `WeightsError`."""
    try:
        yield
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        reason = str(error).strip("'\"")
        if "truncated file" in reason:
            raise WeightsError(
                f"{what} is truncated: it ends too early. Fetch or copy it again."
            ) from error
        raise WeightsError(f"{what} cannot be read, it may be damaged: {reason}.") from error


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
    if dataset.shape is None:
        return "has no values"
    if dataset.is_virtual or dataset.external:
        return "has its values in another file, which is not read"
    if dataset.dtype.kind != "f" or dataset.dtype.itemsize not in (2, 4, 8):
        return f"is {dataset.dtype}, but must be float16, float32 or float64"
    settings = dataset.id.get_create_plist()
    filters = [settings.get_filter(i)[0] for i in range(settings.get_nfilters())]
    unknown = [number for number in filters if number not in _KNOWN_FILTERS]
    if unknown:
        return f"is packed by HDF5 filter {unknown[0]}, which would have to be loaded as code"
    stored = dataset.id.get_storage_size()
    if stored == 0 or (not filters and stored < dataset.nbytes):
        return "has values that were never written"
    return None


def source_array(path: str, dataset: h5py.Dataset) -> SourceArray:
    """Stand for an array of floats, which is read later, while the file is open."""

    def read_into(buffer: np.ndarray) -> None:
        with hdf5_errors(f"The array {path}"):
            dataset.read_direct(buffer)

    return SourceArray(path, dataset.shape or (), dataset.dtype.newbyteorder("<"), read_into)
