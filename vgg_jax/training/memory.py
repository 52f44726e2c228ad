"""What to say when the memory does not suffice."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager

import jax

from vgg_jax.errors import TrainingError

_EXHAUSTED = ("RESOURCE_EXHAUSTED", "Out of memory")


@contextmanager
def naming_a_smaller_batch(batch_size: int, advice: Callable[[int], str]) -> Generator[None]:
    """Turn running out of memory, the device's or the host's, into an error that says what helps.

    Args:
        batch_size: In use.
        advice: Says how to go on with batches of another size.

    Raises:
        TrainingError: If the memory does not suffice.
    """
    try:
        yield
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        text = str(error)
        if not isinstance(error, MemoryError) and not any(sign in text for sign in _EXHAUSTED):
            raise
        what = f" ({text.splitlines()[0][:160]})" if text else ""
        smaller = (
            f"A batch of {batch_size // 2} needs about half: {advice(batch_size // 2)}"
            if batch_size > 1
            else "Batches cannot be smaller than one; train less of the network (--train-from), or"
            " use a smaller --image-size"
        )
        raise TrainingError(
            f"The memory of {jax.devices()[0].device_kind} does not suffice for batches of"
            f" {batch_size}{what}.\n{smaller}."
        ) from error
