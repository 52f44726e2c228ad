"""The data of a training or an evaluation: splits opened, batches cut."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import jax
import numpy as np

from vgg_jax.augment.chain import Chain
from vgg_jax.config import DEMO, ResolvedConfig
from vgg_jax.data.examples import DataSet, Examples, learn_contents
from vgg_jax.data.pipeline import Batch, batches, epoch_order
from vgg_jax.data.sources import open_data
from vgg_jax.data.tfds import PREFIX
from vgg_jax.demo.pictures import demo_folder
from vgg_jax.model.classifier import Parameters
from vgg_jax.progress import Progress
from vgg_jax.training.epoch import Feed
from vgg_jax.training.features import Features
from vgg_jax.training.steps import Inputs, Steps, put_batch


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


def make_feed(
    config: ResolvedConfig,
    chain: Chain,
    steps: Steps,
    frozen: Parameters,
    data: DataSet,
    mesh: jax.sharding.Mesh,
) -> Feed:
    """Return what gives a training its batches."""
    train, validation = data.splits["train"], data.splits["validation"]
    train_features = features_of(config, chain, steps, frozen, train, mesh)
    plain_features = features_of(config, Chain(), steps, frozen, validation, mesh)

    def train_batches(epoch: int, start: int, step: int) -> Iterator[Inputs]:
        order = epoch_order(len(train), config.seed, epoch)[start:]
        if chain.mixes:
            return mixed_batches(train_features, steps, frozen, mesh, order, epoch, step)
        return train_features.batches(order, epoch)

    return Feed(
        train=train_batches,
        validation=lambda: plain_features.batches(np.arange(len(validation)), 0),
        labels=validation.labels,
        examples=len(train),
        batch_size=train_features.batch_size,
    )


def features_of(
    config: ResolvedConfig,
    chain: Chain,
    steps: Steps,
    frozen: Parameters,
    examples: Examples,
    mesh: jax.sharding.Mesh,
) -> Features:
    """Return the features of a split, in views that a chain makes."""

    def read(order: np.ndarray, view: int) -> Iterator[Batch]:
        return read_batches(config, chain, examples, order, view, mesh.size)

    def compute(batch: Batch, view: int) -> jax.Array:
        images = put_batch(mesh, batch.images)
        if not chain.on_device:
            return steps.features(frozen, images)
        content = put_batch(mesh, batch.content)
        return steps.augmented_features(frozen, images, content, np.uint32(view))

    batch_size = batch_size_of(config, examples)
    return Features(
        labels=examples.labels,
        batch_size=batch_size,
        rows=_padded(batch_size, mesh.size),
        read=read,
        put=partial(put_batch, mesh),
        compute=compute,
        pool=steps.pool if steps.functional.pools else lambda features: features,
    )


def mixed_batches(
    features: Features,
    steps: Steps,
    frozen: Parameters,
    mesh: jax.sharding.Mesh,
    order: np.ndarray,
    view: int,
    step: int,
) -> Iterator[Inputs]:
    """Yield batches whose pictures are mixed, which depends on the step; the first has `step`."""
    for number, batch in enumerate(features.read(order, view), start=step):
        fields = {
            name: put_batch(mesh, getattr(batch, name))
            for name in ("images", "labels", "valid", "content")
        }
        found, targets = steps.mixed_features(frozen, fields, np.uint32(view), np.uint32(number))
        yield Inputs(features.pool(found), targets, fields["valid"])


def read_batches(
    config: ResolvedConfig,
    chain: Chain,
    examples: Examples,
    order: np.ndarray | None,
    view: int,
    devices: int,
) -> Iterator[Batch]:
    """Return batches of pictures, padded to a multiple of the devices.

    Args:
        config: Of the training.
        chain: Its host augmentations are applied, as they are drawn for `view`.
        examples: The split.
        order: Positions to read; all, from first to last, if None.
        view: Number of the view, for a training without a fixed number of them the epoch.
        devices: Number of devices.
    """
    return batches(
        examples,
        batch_size=batch_size_of(config, examples),
        image_size=config.image_size,
        interpolation=config.interpolation,
        order=order,
        host=chain.host,
        host_seed=(config.seed, view),
        threads=config.reader_threads,
        pad_to=_padded(batch_size_of(config, examples), devices),
    )


def batch_size_of(config: ResolvedConfig, examples: Examples) -> int:
    """Return how many examples a batch has: no more than there are."""
    return min(config.batch_size, len(examples))


def _padded(rows: int, devices: int) -> int:
    return -(-rows // devices) * devices
