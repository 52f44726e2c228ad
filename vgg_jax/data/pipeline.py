"""Batches of decoded pictures as NumPy arrays, read ahead by Grain in threads.

What a batch holds depends neither on the number of threads nor on where reading started. The last
batch is padded and masked, so that every batch has one shape and no example is dropped.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Generator, Sequence

import grain
import numpy as np

from vgg_jax.contract import HostAugmentation
from vgg_jax.data.decode import INTERPOLATIONS, Interpolation, decode_image, resize_image
from vgg_jax.data.examples import Examples, content_hash
from vgg_jax.errors import PluginError, cause_of
from vgg_jax.plugins import origin_of

_ORDER = 2  # keeps these draws apart from others of the same seed
_MOST_THREADS = 16


@dataclasses.dataclass(frozen=True)
class Batch:
    """P examples, padding included; rows of padding are zeros.

    Attributes:
        images: uint8 RGB `[P, S, S, 3]`.
        labels: int32 `[P]`.
        valid: bool `[P]`, false for padding.
        content: uint32 `[P, 3]`, who an example is: high and low word of its content's hash, and
            its occurrence.
        index: int32 `[P]`, the example's position in its split.
    """

    images: np.ndarray
    labels: np.ndarray
    valid: np.ndarray
    content: np.ndarray
    index: np.ndarray


def epoch_order(count: int, seed: int, epoch: int) -> np.ndarray:
    """Return the order of an epoch: a permutation of `count` positions, f(seed, epoch)."""
    return np.random.default_rng([seed, _ORDER, epoch]).permutation(count)


def batches(
    examples: Examples,
    *,
    batch_size: int,
    image_size: int,
    interpolation: Interpolation = "bilinear",
    order: np.ndarray | None = None,
    host: Sequence[HostAugmentation] = (),
    host_seed: tuple[int, ...] | None = None,
    threads: int | None = None,
    pad_to: int | None = None,
) -> Generator[Batch, None, None]:
    """Read `examples` in batches of `batch_size`, about one batch ahead of the consumer.

    Closing the generator ends its threads once they have finished the pictures at hand.

    Args:
        examples: The split to read from.
        batch_size: Examples in a batch; the last one may have fewer.
        image_size: Height and width in pixels to which pictures are stretched.
        interpolation: `bilinear` or `nearest`.
        order: Positions in `examples`, each read once; all of them from first to last if left out.
        host: Augmentations applied to each picture before the resize.
        host_seed: Seeds them, together with the picture's content and occurrence and with their
            place in `host`.
        threads: Readers; one for each processor if left out. The batches do not depend on it.
        pad_to: Number of rows of every batch, `batch_size` if left out.

    Yields:
        Batches of `pad_to` rows.

    Raises:
        DataError: When its turn comes, for a picture that cannot be read; names it.
        PluginError: If a host augmentation returns something that is not a picture.
    """
    rows = pad_to or batch_size
    if batch_size < 1 or rows < batch_size:
        raise ValueError(
            f"batch_size {batch_size} must be at least 1, and pad_to {rows} at least batch_size."
        )
    if interpolation not in INTERPOLATIONS:
        raise ValueError(f"interpolation {interpolation!r} must be one of {INTERPOLATIONS}.")
    if host and host_seed is None:
        raise ValueError("host augmentations need host_seed.")
    positions = np.arange(len(examples)) if order is None else np.asarray(order)
    threads = min(usable_processors(), _MOST_THREADS) if threads is None else threads
    load = _Loader(examples, image_size, interpolation, host, host_seed or ())
    return _stream(load, positions.tolist(), batch_size, rows, threads)


def _stream(
    load: _Loader, positions: list[int], batch_size: int, rows: int, threads: int
) -> Generator[Batch, None, None]:
    if not positions:
        return
    # Read ahead by pictures, not by batches: then the first batch is read by all threads.
    reading = grain.ReadOptions(
        num_threads=threads, prefetch_buffer_size=batch_size + 2 * max(threads, 1)
    )
    source = grain.MapDataset.source(positions).map(load)
    iterator = iter(
        source.to_iter_dataset(reading).batch(
            batch_size, drop_remainder=False, batch_fn=lambda loaded: _stack(loaded, rows)
        )
    )
    try:
        yield from iterator
    finally:
        iterator.close()


class _Loader:
    """Reads, decodes, augments and resizes one example; called from several threads."""

    def __init__(
        self,
        examples: Examples,
        image_size: int,
        interpolation: Interpolation,
        host: Sequence[HostAugmentation],
        host_seed: tuple[int, ...],
    ) -> None:
        self.examples = examples
        self.occurrences = examples.occurrences  # here once, not in every thread
        self.image_size = image_size
        self.interpolation: Interpolation = interpolation
        self.host = tuple(host)
        self.host_seed = host_seed

    def __call__(self, position: int) -> tuple[np.ndarray, ...]:
        """Return one example: the fields of a batch without their first axis."""
        data = self.examples.read(position)
        content = content_hash(data)
        identity = (content >> 32, content & 0xFFFFFFFF, int(self.occurrences[position]))
        image = decode_image(data, self.examples.names[position])
        for place, augmentation in enumerate(self.host):
            rng = np.random.default_rng([*self.host_seed, *identity, place])
            image = _augmented(augmentation, rng, image)
        return (
            resize_image(image, self.image_size, self.interpolation),
            np.array(self.examples.labels[position]),
            np.array(True),
            np.array(identity, np.uint32),
            np.array(position, np.int32),
        )


def _augmented(
    augmentation: HostAugmentation, rng: np.random.Generator, image: np.ndarray
) -> np.ndarray:
    """Apply a host augmentation; what it raises or returns amiss becomes a `PluginError`."""
    try:
        image = augmentation.apply(rng, image)
    except (Exception, SystemExit) as error:
        raise PluginError(
            f"The method apply of {origin_of(augmentation)} failed: {cause_of(error)}"
        ) from error
    if (
        isinstance(image, np.ndarray)
        and image.dtype == np.uint8
        and image.ndim == 3
        and image.shape[2] == 3
        and image.size
    ):
        return image
    given = (
        f"{image.dtype} {list(image.shape)}"
        if isinstance(image, np.ndarray)
        else type(image).__name__
    )
    raise PluginError(
        f"The method apply of {origin_of(augmentation)} returned {given}, but must return uint8"
        " [H, W, 3]. Update or remove the package that provides it."
    )


def _stack(loaded: Sequence[tuple[np.ndarray, ...]], rows: int) -> Batch:
    """Join examples, and pad with zeros to `rows`."""

    def join(column: Sequence[np.ndarray]) -> np.ndarray:
        joined = np.zeros((rows, *column[0].shape), column[0].dtype)
        np.stack(column, out=joined[: len(column)])
        return joined

    return Batch(*(join(column) for column in zip(*loaded, strict=True)))


def usable_processors() -> int:
    """Return how many processors this process may use."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return usable or 1
