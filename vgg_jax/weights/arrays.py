"""How arrays are written and read by Orbax: plain, all at once, and each failure told of once."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

_types = ocp.type_handlers


def _is_no_echo(record: logging.LogRecord) -> bool:
    """Tell whether a log entry says something that is not raised, too."""
    return not (record.exc_info and "orbax" in record.pathname)


# Orbax logs a traceback of each failure that it then raises.
logging.getLogger("absl").addFilter(_is_no_echo)


# What Orbax, TensorStore and JSON raise where files are damaged.
READ_ERRORS = (OSError, ValueError, KeyError, TypeError)


class UnreadableArray(ValueError):
    """An array of a checkpoint cannot be read; says why.

    Attributes:
        name: Names of the array and of what holds it, with dots: `layers.conv1_1.kernel`.
    """

    def __init__(self, name: str, error: Exception) -> None:
        """Say what TensorStore says."""
        super().__init__(str(error) or type(error).__name__)
        self.name = name


class _NumpyHandler(_types.NumpyHandler):
    """Waits for every array, where Orbax' own leaves at the first that cannot be read.

    TensorStore would then report the others to an event loop that is closed, on standard error.
    """

    async def deserialize(self, infos: Sequence[Any], args: Any = None) -> Sequence[np.ndarray]:
        """Read arrays at the same time.

        Raises:
            UnreadableArray: For the first, in their order, that cannot be read. Errors others than
                `READ_ERRORS` are raised as they are.
        """
        one = super().deserialize
        wanted = args or [ocp.RestoreArgs()] * len(infos)
        reads = [one([info], [arg]) for info, arg in zip(infos, wanted, strict=True)]
        results = await asyncio.gather(*reads, return_exceptions=True)
        arrays: list[np.ndarray] = []
        for info, result in zip(infos, results, strict=True):
            if isinstance(result, READ_ERRORS):
                raise UnreadableArray(info.name, result) from result
            if isinstance(result, BaseException):
                raise result
            arrays.extend(result)
        return arrays


def array_handler() -> ocp.PyTreeCheckpointHandler:
    """Return Orbax's handler, without what costs time and memory for float arrays.

    Compression saves 7% of such files and takes most of the time. Arrays are not copied: in an
    asynchronous save they must not change before it is over.
    """
    registry = _types.create_type_handler_registry(
        (np.ndarray, _NumpyHandler(deepcopy_host_arrays=False)),
        (jax.Array, _types.ArrayHandler()),  # unused, but Orbax warns where it is missing
    )
    return ocp.PyTreeCheckpointHandler(use_compression=False, type_handler_registry=registry)
