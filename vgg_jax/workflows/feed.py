"""The data of a training or an evaluation: splits opened, batches cut."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from vgg_jax.augment.chain import Chain
from vgg_jax.config import DEMO, ResolvedConfig
from vgg_jax.contract import HostAugmentation
from vgg_jax.data.examples import DataSet, Examples, learn_contents
from vgg_jax.data.pipeline import Batch, batches, epoch_order
from vgg_jax.data.sources import open_data
from vgg_jax.data.tfds import PREFIX
from vgg_jax.demo.pictures import demo_folder
from vgg_jax.progress import Progress


def absolute_data(data: str) -> str:
    """Return DATA as it can be used from any working directory."""
    if data == DEMO or data.startswith(PREFIX):
        return data
    return str(Path(data).expanduser().resolve())


def open_training_data(config: ResolvedConfig, progress: Progress) -> DataSet:
    """Open the data of a training, read their contents, and tell the user what was found.

    Raises:
        DataError: If the data cannot be used, or a picture cannot be read.
    """
    data = open_data(
        config.data, demo_folder=demo_folder, seed=config.seed, needed=("train", "validation")
    )
    counts = ", ".join(f"{count} {name}" for name, count in data.counts.items())
    progress.note(f"Data: {data.name}, {len(data.class_names)} classes; {counts}.")
    for note in data.notes:
        progress.note(note)
    learn_contents(data.splits.values(), progress)
    return data


def training_batches(
    config: ResolvedConfig,
    chain: Chain,
    examples: Examples,
    epoch: int,
    devices: int,
    start: int = 0,
) -> Iterator[Batch]:
    """Return the batches of a training epoch, in its order, padded to a multiple of the devices.

    The first `start` examples are left out.
    """
    return batches(
        examples,
        batch_size=batch_size_of(config, examples),
        image_size=config.image_size,
        interpolation=config.interpolation,
        order=epoch_order(len(examples), config.seed, epoch),
        host=chain.host,
        host_seed=(config.seed, epoch),
        start=start,
        threads=config.reader_threads,
        pad_to=_padded(batch_size_of(config, examples), devices),
    )


def plain_batches(
    config: ResolvedConfig,
    examples: Examples,
    devices: int,
    *,
    host: Sequence[HostAugmentation] = (),
    host_seed: tuple[int, ...] | None = None,
) -> Iterator[Batch]:
    """Return the batches of an evaluation: every example once, in order.

    Nothing is random in them but for `host`, augmentations seeded by `host_seed`.
    """
    return batches(
        examples,
        batch_size=batch_size_of(config, examples),
        image_size=config.image_size,
        interpolation=config.interpolation,
        host=host,
        host_seed=host_seed,
        threads=config.reader_threads,
        pad_to=_padded(batch_size_of(config, examples), devices),
    )


def batch_size_of(config: ResolvedConfig, examples: Examples) -> int:
    """Return how many examples a batch has: no more than there are."""
    return min(config.batch_size, len(examples))


def _padded(rows: int, devices: int) -> int:
    return -(-rows // devices) * devices
