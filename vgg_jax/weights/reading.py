"""Reads weight files from strangers, each in a process of its own."""

from __future__ import annotations

import json
import mmap
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO, Any

import numpy as np

from vgg_jax.errors import WeightsError, did_you_mean
from vgg_jax.weights.checksums import file_sha256
from vgg_jax.weights.source import (
    HEAD_LAYERS,
    LAYOUTS,
    PREPROCESSINGS,
    FileLayer,
    ModelFacts,
    WeightFile,
)

_CHILD = "vgg_jax.weights.child"
_SPARE_SECONDS = 60.0  # of waiting, for a disk or network that is slow to answer
_BYTES_PER_SECOND = 2e6
_MOST_BYTES = 16 << 30  # of a file; VGG16 with its top takes 1.1 GB in float64
_DAMAGED = "it may be damaged. Fetch or copy it again."


def read_weight_file(
    path: str | Path,
    *,
    layout: str | None = None,
    preprocessing: str | None = None,
    backbone_only: bool = False,
) -> WeightFile:
    """Read a weight file, whatever its layout; its arrays are mapped, not copied.

    The work is done by another process, without JAX, with limits on its memory and time: a file
    that crashes, stalls or bloats the reader ends in a `WeightsError`.

    Args:
        path: The file.
        layout: A key of `LAYOUTS`; by default recognised from the content.
        preprocessing: A key of `PREPROCESSINGS`; by default what the file says or its layout
            implies.
        backbone_only: Leave out what follows pool5.

    Raises:
        WeightsError: If the file cannot be read or holds no VGG16; every mismatch is named.
    """
    path = Path(path)
    _check_name("layout", layout, LAYOUTS)
    _check_name("preprocessing", preprocessing, PREPROCESSINGS)
    _check_is_file(path)
    size = path.stat().st_size
    seconds = _SPARE_SECONDS + size / _BYTES_PER_SECOND
    with _nameless_file() as target:
        with _start_child(path, layout, backbone_only, target.fileno()) as child:
            try:
                sha256 = file_sha256(path)  # while the child is at work
                output, errors = child.communicate(timeout=seconds)
            except subprocess.TimeoutExpired as error:
                raise WeightsError(f"{path} could not be read within {seconds:.0f} s.") from error
            finally:
                child.kill()
        reply = _reply(path, child.returncode, output, errors)
        memory = mmap.mmap(target.fileno(), 0, prot=mmap.PROT_READ)
    named = LAYOUTS[reply["layout"]]
    facts = ModelFacts(**reply["facts"])
    return WeightFile(
        path=path,
        size=size,
        sha256=sha256,
        layout=named,
        preprocessing=PREPROCESSINGS[preprocessing or facts.preprocessing or named.preprocessing],
        arrays={
            a["path"]: np.ndarray(a["shape"], a["dtype"], memory, a["offset"])
            for a in reply["arrays"]
        },
        layers={name: FileLayer(*layer) for name, layer in reply["layers"].items()},
        dense={
            name: FileLayer(*layer)
            for name, layer in zip(HEAD_LAYERS[reply["head"]], reply["dense"], strict=True)
        },
        head=reply["head"],
        width=reply["width"],
        facts=facts,
    )


def child_environment() -> dict[str, str]:
    """Return the environment variables of the process that reads."""
    return os.environ | {
        "HDF5_PLUGIN_PRELOAD": "::",  # libhdf5 loads no code,
        "HDF5_PLUGIN_PATH": "::",  # and would find none
        "OPENBLAS_NUM_THREADS": "1",  # each thread would take memory for itself
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),  # the same package, wherever it is
    }


def _check_name(what: str, name: str | None, known: Any) -> None:
    if name is not None and name not in known:
        raise WeightsError(
            f"No {what} named {name!r}.{did_you_mean(name, known)} Known: {', '.join(known)}."
        )


def _check_is_file(path: Path) -> None:
    if path.is_dir():
        raise WeightsError(f"{path} is a folder, but a weight file is needed.")
    if not path.exists():
        raise WeightsError(f"No such weight file: {path}.")
    if not path.is_file():
        raise WeightsError(f"{path} is neither a file nor a folder.")
    try:
        path.open("rb").close()
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}.") from error
    size = path.stat().st_size
    if size > _MOST_BYTES:
        raise WeightsError(f"{path} has {size:,} bytes; at most {_MOST_BYTES:,} are read.")


def _nameless_file() -> IO[bytes]:
    """Open the file that takes the arrays: in memory where the system has such files."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("vgg-jax-weights"), "r+b")
    return tempfile.TemporaryFile()


def _start_child(
    path: Path, layout: str | None, backbone_only: bool, target: int
) -> subprocess.Popen[str]:
    arguments = [str(path.absolute()), layout or "", "1" if backbone_only else "", str(target)]
    return subprocess.Popen(
        # -P: modules of the working directory are not imported in place of the real ones.
        [sys.executable, "-P", "-m", _CHILD, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env=child_environment(),
        pass_fds=(target,),
    )


def _reply(path: Path, returncode: int, output: str, errors: str) -> dict[str, Any]:
    """Return what the child said, or raise what it came to."""
    if returncode == -signal.SIGPROF:
        raise WeightsError(
            f"{path} takes more time to read than a file of its size may; {_DAMAGED}"
        )
    if returncode < 0:
        name = signal.Signals(-returncode).name
        raise WeightsError(f"{path} cannot be read: the reader was ended by {name}; {_DAMAGED}")
    try:
        reply = json.loads(output)
    except ValueError as error:  # not the file's fault: whatever that causes is told in JSON
        raise RuntimeError(f"The reader of weight files failed:\n{output}{errors}") from error
    if "error" in reply:
        raise WeightsError(reply["error"])
    return reply
