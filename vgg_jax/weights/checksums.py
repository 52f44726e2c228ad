"""Checksums of arrays and of files."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np


def array_sha256(array: np.ndarray) -> str:
    """Return the SHA-256, in hexadecimal, of an array's dtype, shape and values (C order)."""
    digest = hashlib.sha256(f"{array.dtype.str} {array.shape}\n".encode())
    digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal; OSError if it is unreadable."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
