"""Recognises the layout of a weight file from its content and finds the network in it."""

from __future__ import annotations

import zipfile
from pathlib import Path

import h5py

from vgg_jax.errors import WeightsError
from vgg_jax.weights.hdf5 import hdf5_errors
from vgg_jax.weights.keras import find_keras_h5, listed
from vgg_jax.weights.keras_zip import CONFIG, WEIGHTS, find_keras_zip
from vgg_jax.weights.source import LAYOUTS, Contents

HDF5 = "hdf5"  # what three layouts have in common
_HDF5_LAYOUTS = ("keras-h5", "keras-model-h5", "keras-weights-h5")
_LEGACY_PTH = b"\x80\x02\x8a\x0al\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"  # its magic number, pickled
_LOOKS_LIKE = (
    (b"", "it is empty"),
    (b"<!doctype", "it is a web page, perhaps saved in place of the download"),
    (b"<html", "it is a web page, perhaps saved in place of the download"),
    (b"\x93numpy", "it is a NumPy array (.npy)"),
    (b"\x80", "it is a Python pickle, which is never run"),
    (b"\x1f\x8b", "it is compressed by gzip; unpack it first"),
    (b"\x89png", "it is a picture"),
    (b"\xff\xd8\xff", "it is a picture"),
)


def find_contents(path: Path, layout: str | None = None) -> Contents:
    """Find VGG16 in a weight file.

    Args:
        path: A file; see `LAYOUTS` for what it may be.
        layout: Name of the layout to take it for; recognised from the content by default.

    Raises:
        WeightsError: If the file is of no known layout, or of another than the one named, or
            damaged, or holds another network.
    """
    if layout is not None:
        _check_named(path, layout)
    kind = layout or recognise(path)
    if kind == HDF5 or kind in _HDF5_LAYOUTS:
        with hdf5_errors(path):
            file = h5py.File(path, "r")
        return find_keras_h5(path, file, layout)
    if kind == "keras":
        return find_keras_zip(path)
    if kind == "torch-pth":
        from vgg_jax.weights.torch_pth import find_pth

        return find_pth(path)
    from vgg_jax.weights.torch import find_safetensors

    return find_safetensors(path)


def _check_named(path: Path, layout: str) -> None:
    """Raise if the content shows another layout than the one named; it may well show none."""
    try:
        shown = recognise(path)
    except WeightsError:
        return
    if shown != (HDF5 if layout in _HDF5_LAYOUTS else layout):
        raise WeightsError(f"{path} is no {layout}: its content shows {shown}; leave --layout out.")


def recognise(path: Path) -> str:
    """Return the name of the layout that a file's content shows, or `hdf5`.

    Raises:
        WeightsError: If it shows none; the text says what the file looks like.
    """
    with path.open("rb") as stream:
        start = stream.read(64)
    if h5py.is_hdf5(path):
        return HDF5
    if zipfile.is_zipfile(path):
        return _recognise_zip(path)
    if start.startswith(_LEGACY_PTH):
        return "torch-pth"
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size:
        return "torch-safetensors"
    text = start.lstrip().lower()
    kinds = [
        kind for prefix, kind in _LOOKS_LIKE if (text.startswith(prefix) if prefix else not start)
    ]
    raise _unknown(path, kinds[0] if kinds else f"it starts with {start[:8]!r}")


def _recognise_zip(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise WeightsError(f"{path} is a damaged zip archive: {error}.") from error
    if {CONFIG, WEIGHTS} <= set(names):
        return "keras"
    if any(name.endswith("/data.pkl") for name in names):
        return "torch-pth"
    raise _unknown(path, f"it is a zip archive of {listed(names)}")


def _unknown(path: Path, kind: str) -> WeightsError:
    known = "; ".join(f"{layout.description} ({layout.name})" for layout in LAYOUTS.values())
    return WeightsError(f"{path} is no weight file that can be read: {kind}.\nThose are: {known}.")
