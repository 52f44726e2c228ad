"""Finds VGG16 in `.keras` files: zip archives of a configuration and an HDF5 weight file."""

from __future__ import annotations

import json
import shutil
import tempfile
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path
from typing import IO

import h5py

from vgg_jax.errors import WeightsError
from vgg_jax.weights.hdf5 import hdf5_errors
from vgg_jax.weights.keras import find_numbered
from vgg_jax.weights.keras_model import describe_model
from vgg_jax.weights.own_facts import OWN_KEY, read_own_facts
from vgg_jax.weights.source import Contents

METADATA, CONFIG, WEIGHTS = "metadata.json", "config.json", "model.weights.h5"
_MOST_CONFIG_BYTES = 16 << 20
_MOST_UNPACKED = 8  # times the archive's size: weights hardly compress at all
_BLOCK = 1 << 20
_DAMAGED = (zipfile.BadZipFile, zlib.error, ValueError, RuntimeError, EOFError, OSError)


def find_keras_zip(path: Path) -> Contents:
    """Find VGG16 in a `.keras` file.

    Nothing is unpacked under a name that the archive chooses: its weights go to a nameless
    temporary file, which takes as many bytes as they declare.

    Raises:
        WeightsError: If the archive is damaged, too large once unpacked, or of another network.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            config = _read(archive, CONFIG, _MOST_CONFIG_BYTES)
            metadata = _read(archive, METADATA, _MOST_CONFIG_BYTES)
            weights = tempfile.TemporaryFile()  # noqa: SIM115 (read until the process ends)
            _copy(archive, WEIGHTS, weights, _MOST_UNPACKED * path.stat().st_size)
        with hdf5_errors(f"{path}, {WEIGHTS}"):
            description = describe_model(config.decode())
            contents = find_numbered(path, h5py.File(weights, "r"), "keras", description)
            saved_by = json.loads(metadata)
            own = saved_by.get(OWN_KEY) if isinstance(saved_by, dict) else None
            return replace(contents, facts=read_own_facts(json.dumps(own))) if own else contents
    except _DAMAGED as error:
        raise WeightsError(f"{path} cannot be read, it may be damaged: {error}.") from error


def _read(archive: zipfile.ZipFile, name: str, most: int) -> bytes:
    with tempfile.TemporaryFile() as copy:
        _copy(archive, name, copy, most)
        copy.seek(0)
        return copy.read()


def _copy(archive: zipfile.ZipFile, name: str, target: IO[bytes], most: int) -> None:
    """Unpack a member, at most as many bytes as it declares and as are allowed."""
    where = f"{archive.filename}, {name}"
    if archive.namelist().count(name) != 1:
        raise WeightsError(f"{where}: is there {archive.namelist().count(name)} times, not once.")
    member = archive.getinfo(name)
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise WeightsError(
            f"{where}: is packed by method {member.compress_type} of zip, but must be stored or"
            " deflated."
        )
    if member.file_size > most:
        raise WeightsError(
            f"{where}: claims {member.file_size:,} bytes unpacked; at most {most:,} are read."
        )
    with archive.open(member) as packed:
        shutil.copyfileobj(packed, target, _BLOCK)
