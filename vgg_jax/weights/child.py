"""The process that reads a weight file: without JAX, and within limits of memory and time.

A damaged or hostile file can make libhdf5 hang, abort, or ask for any amount of memory. All that
comes of it here is the end of this process, which `vgg_jax.weights.reading` started and explains.
"""

from __future__ import annotations

import dataclasses
import json
import math
import mmap
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np

from vgg_jax.errors import WeightsError
from vgg_jax.weights.checks import check_contents
from vgg_jax.weights.files import find_contents
from vgg_jax.weights.source import ALIGNMENT, Contents, FoundLayer, SourceArray

_SPARE_BYTES = 256 << 20
_BYTES_PER_BYTE = 3  # of memory, for one of the file
_SPARE_SECONDS = 1.0
_MOST_CHARACTERS = 4000  # of an error; a damaged file can have names of megabytes
_BYTES_PER_SECOND = 25e6  # of processor time; packed files are read at four times that


def main() -> None:
    """Read the file that the arguments name; print what it is, and leave its arrays in a file.

    Arguments: the path, the layout or nothing, `1` to take the backbone alone, and the number of
    the open file that takes the arrays. Prints one JSON object: `error`, or what `describe` says.
    """
    path, layout, backbone_only, arrays = sys.argv[1:]
    limit_process(Path(path).stat().st_size)
    try:
        reply = read(Path(path), layout or None, backbone_only == "1", int(arrays))
    except WeightsError as error:
        reply = {"error": _printable(str(error))}
    except MemoryError:
        reply = {"error": f"{path} takes more memory to read than a file of its size may."}
    except Exception as error:  # whatever the libraries make of a damaged file
        reason = _printable(f"{type(error).__name__}: {error}")
        reply = {"error": f"{path} cannot be read, it may be damaged: {reason}."}
    print(json.dumps(reply))


def limit_process(file_size: int) -> None:
    """Limit what this process may yet use, for a file of so many bytes."""
    signal.setitimer(signal.ITIMER_PROF, _SPARE_SECONDS + file_size / _BYTES_PER_SECOND)
    in_use = Path("/proc/self/statm")
    if in_use.exists():  # elsewhere the system does not enforce such a limit
        pages = int(in_use.read_text().split()[0])
        most = pages * mmap.PAGESIZE + _SPARE_BYTES + _BYTES_PER_BYTE * file_size
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def read(path: Path, layout: str | None, backbone_only: bool, target: int) -> dict[str, Any]:
    """Find, check and read a network; the arrays go one after the other into the file `target`.

    Raises:
        WeightsError: If the file cannot be used.
    """
    contents = find_contents(path, layout)
    if backbone_only:
        contents = dataclasses.replace(contents, dense=(), head_problems=())
    width, head = check_contents(path, contents)
    placed, total = place(contents)
    if len({_name(array.path) for array, _ in placed}) < len({array.path for array, _ in placed}):
        raise WeightsError(f"{path} has arrays whose names look alike once they can be printed.")
    os.ftruncate(target, total)
    with mmap.mmap(target, total) as memory:
        for array, offset in placed:
            buffer = np.ndarray(array.shape, array.dtype, memory, offset)
            array.read_into(buffer)
            del buffer  # or the memory could not be closed
    return {
        "layout": contents.layout,
        "width": width,
        "head": head,
        "facts": dataclasses.asdict(contents.facts),
        "layers": {name: _spell(layer) for name, layer in contents.layers.items()},
        "dense": [_spell(layer) for layer in contents.dense],
        "arrays": [
            {"path": _name(a.path), "shape": a.shape, "dtype": a.dtype.str, "offset": offset}
            for a, offset in placed
        ],
    }


def place(contents: Contents) -> tuple[list[tuple[SourceArray, int]], int]:
    """Give each array its offset in the file that takes them; returns the file's size, too."""
    placed: list[tuple[SourceArray, int]] = []
    end = 0
    for layer in (*contents.layers.values(), *contents.dense):
        for array in (layer.kernel, layer.bias):
            placed.append((array, end))
            size = math.prod(array.shape) * array.dtype.itemsize
            end += -(-size // ALIGNMENT) * ALIGNMENT
    return placed, end


def _printable(text: str) -> str:
    """Cut a text to a bearable length; what would steer a terminal is spelled out."""
    if len(text) > _MOST_CHARACTERS:
        text = f"{text[:_MOST_CHARACTERS]}…"
    return "".join(
        c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text
    )


def _name(text: str) -> str:
    """Make a name from the file printable, on one line."""
    return _printable(text).replace("\n", "\\n")


def _spell(layer: FoundLayer) -> list[str]:
    return [_name(text) for text in (layer.label, layer.kernel.path, layer.bias.path)]


if __name__ == "__main__":
    main()
