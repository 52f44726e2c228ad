"""The data of a training or an evaluation: splits opened, batches cut."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import jax
import numpy as np

from vgg_jax.augment.chain import Chain
from vgg_jax.config import DEMO, ResolvedConfig
from vgg_jax.data.examples import DataSet, Examples, Split, learn_contents
from vgg_jax.data.pipeline import Batch, batches, epoch_order
from vgg_jax.data.sources import open_data
from vgg_jax.data.tfds import PREFIX
from vgg_jax.demo.pictures import demo_folder
from vgg_jax.model.classifier import Parameters
from vgg_jax.progress import Progress
from vgg_jax.training.chunks import pooled_row
from vgg_jax.training.epoch import Feed
from vgg_jax.training.feature_places import why_not_kept
from vgg_jax.training.features import Features, ResidentPictures
from vgg_jax.training.inputs import Inputs
from vgg_jax.training.keeping import Keeper, Splits, tell_not_kept, views_of
from vgg_jax.training.pooled_rows import PooledKeep
from vgg_jax.training.room import Memory
from vgg_jax.training.rows import DeviceRows
from vgg_jax.training.steps import Steps, put_batch
from vgg_jax.training.validation import closing_at_end


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


@dataclasses.dataclass(frozen=True)
class Source:
    """What a training computes its features with.

    Attributes:
        config: Its options.
        chain: Its augmentations.
        steps: Its programs.
        frozen: The parameters of the prefix.
        mesh: Its devices.
    """

    config: ResolvedConfig
    chain: Chain
    steps: Steps
    frozen: Parameters
    mesh: jax.sharding.Mesh

    def features(self, examples: Examples, *, augmented: bool, batch_size: int) -> Features:
        """Return the features of a split, kept nowhere."""
        config, devices = self.config, self.mesh.size
        chain = self.chain if augmented else Chain()

        def read(order: np.ndarray, view: int) -> Iterator[Batch]:
            return read_batches(config, chain, examples, order, view, devices, batch_size)

        def compute(batch: Batch, view: int) -> jax.Array:
            images = put_batch(self.mesh, batch.images)
            if not chain.on_device:
                return self.steps.features(self.frozen, images)
            content = put_batch(self.mesh, batch.content)
            return self.steps.augmented_features(self.frozen, images, content, np.uint32(view))

        return Features(
            labels=examples.labels,
            batch_size=batch_size,
            rows=padded_rows(batch_size, devices),
            read=read,
            put=partial(put_batch, self.mesh),
            compute=compute,
            pool=self.steps.pool,
            chunk_size=self.steps.chunk_size(len(examples), batch_size),
        )


@contextmanager
def open_feed(source: Source, data: DataSet, progress: Progress) -> Generator[Feed]:
    """Give the batches of a training, their features kept if that is wanted and possible."""
    memory = Memory(source.config, source.mesh)
    with open_features(source, data, memory, progress) as features:
        yield make_feed(source, data, features)


@contextmanager
def open_features(
    source: Source, data: DataSet, memory: Memory, progress: Progress
) -> Generator[dict[Split, Features]]:
    """Give the features of both splits, kept if that is wanted and there is room."""
    config = source.config
    train, validation = data.splits["train"], data.splits["validation"]
    batch_size = batch_size_of(config, train)
    features: dict[Split, Features] = {
        # In batches of one size, or the prefix compiles twice.
        "train": source.features(train, augmented=True, batch_size=batch_size),
        "validation": source.features(validation, augmented=False, batch_size=batch_size),
    }
    if why_not := why_not_kept(config, source.chain):
        tell_not_kept(config, why_not, progress)
        yield _that_stay(features, source, data, memory)
        return
    splits: Splits = {"train": (train, views_of(config)), "validation": (validation, (None,))}
    rows = padded_rows(batch_size, source.mesh.size)
    keeper = Keeper(
        config, source.steps, source.frozen, splits, source.mesh, rows, memory, progress
    )
    try:
        if not keeper.keeps:
            yield _that_stay(features, source, data, memory)
            return
        for split, found in features.items():
            augmented = split == "train" and bool(config.augment)
            features[split] = dataclasses.replace(found, keep=keeper.of(split, augmented=augmented))
        yield features
    finally:
        keeper.close()


def make_feed(source: Source, data: DataSet, features: Mapping[Split, Features]) -> Feed:
    """Return what gives a training the batches of these features."""
    config, chain = source.config, source.chain
    train, validation = data.splits["train"], data.splits["validation"]

    def train_batches(epoch: int, start: int, step: int) -> Iterator[Inputs]:
        view = view_of(epoch, config.views)
        order = epoch_order(len(train), config.seed, epoch)[start:]
        if chain.mixes:
            return mixed_batches(source, features["train"], order, view, step)
        return features["train"].batches(order, view)

    return Feed(
        train=train_batches,
        validation=lambda: features["validation"].batches(np.arange(len(validation)), 1),
        labels=validation.labels,
        examples=len(train),
        batch_size=batch_size_of(config, train),
    )


def pooled(
    features: Mapping[Split, Features], source: Source, memory: Memory
) -> dict[Split, Features]:
    """Return features that several heads have in common as the programs of one of them take them.

    Args:
        features: Those, not pooled.
        source: What this head would compute its features with.
        memory: Where there is room for a pooled copy.
    """
    config, steps, copy = source.config, source.steps, None
    if steps.functional.pools:
        row, views = pooled_row(steps.functional, config), {"train": len(views_of(config))}
        count = sum(len(found.labels) * views.get(split, 1) for split, found in features.items())
        if place := memory.place_for(count * row.size * row.dtype.itemsize):
            copy = partial(place, source.mesh, shape=row.shape, dtype=np.dtype(row.dtype))

    def of_head(found: Features) -> Features:
        keep = found.keep
        if keep is not None and steps.functional.pools:
            keep = PooledKeep(found, keep, steps.pool, copy)
        chunk_size = steps.chunk_size(len(found.labels), found.batch_size)
        return dataclasses.replace(found, pool=steps.pool, chunk_size=chunk_size, keep=keep)

    return {split: of_head(found) for split, found in features.items()}


def splits_that_stay(
    config: ResolvedConfig, chain: Chain, counts: Mapping[str, int], memory: Memory
) -> dict[Split, int]:
    """Return of which splits the decoded pictures stay on the devices, and their bytes.

    Where there is room for them it is reserved.
    """
    found: dict[Split, int] = {}
    splits: tuple[Split, ...] = ("train", "validation")
    for split in splits:
        changes = split == "train" and chain.host  # anew in each epoch
        size = counts[split] * 3 * config.image_size**2
        if config.epochs > 1 and not changes and memory.place_for(size) is DeviceRows:
            memory.take(DeviceRows, size)
            found[split] = size
    return found


def _that_stay(
    features: dict[Split, Features], source: Source, data: DataSet, memory: Memory
) -> dict[Split, Features]:
    """Let pictures stay on the devices after they were read once, where there is room for them."""
    side = source.config.image_size
    for split in splits_that_stay(source.config, source.chain, data.counts, memory):
        found = features[split]
        count = len(found.labels)
        pictures = DeviceRows(source.mesh, count, (side, side, 3), np.dtype(np.uint8))
        read = ResidentPictures(found.read, pictures, found.labels, found.batch_size, found.rows)
        features[split] = dataclasses.replace(found, read=read)
    return features


def view_of(epoch: int, views: int) -> int:
    """Return which view of the pictures an epoch uses: its own, or one of a fixed number."""
    return (epoch - 1) % views + 1 if views else epoch


def mixed_batches(
    source: Source, features: Features, order: np.ndarray, view: int, step: int
) -> Iterator[Inputs]:
    """Yield batches whose pictures are mixed, which depends on the step; the first has `step`."""
    for number, batch in enumerate(closing_at_end(features.read(order, view)), start=step):
        names = ("images", "labels", "valid", "content")
        fields = {name: put_batch(source.mesh, getattr(batch, name)) for name in names}
        found, targets = source.steps.mixed_features(
            source.frozen, fields, np.uint32(view), np.uint32(number)
        )
        yield Inputs(features.pool(found), targets, fields["valid"])


def read_batches(
    config: ResolvedConfig,
    chain: Chain,
    examples: Examples,
    order: np.ndarray | None,
    view: int,
    devices: int,
    batch_size: int | None = None,
) -> Iterator[Batch]:
    """Return batches of pictures, padded to a multiple of the devices.

    Args:
        config: Of the training.
        chain: Its host augmentations are applied, as they are drawn for `view`.
        examples: The split.
        order: Positions to read; all, from first to last, if None.
        view: Number of the view, for a training without a fixed number of them the epoch.
        devices: Number of devices.
        batch_size: Pictures in a batch; if None, the configured number, or all there are.
    """
    batch_size = batch_size or batch_size_of(config, examples)
    return batches(
        examples,
        batch_size=batch_size,
        image_size=config.image_size,
        interpolation=config.interpolation,
        order=order,
        host=chain.host,
        host_seed=(config.seed, view),
        threads=config.reader_threads,
        pad_to=padded_rows(batch_size, devices),
    )


def batch_size_of(config: ResolvedConfig, examples: Examples) -> int:
    """Return how many examples a batch has: no more than there are."""
    return min(config.batch_size, len(examples))


def padded_rows(rows: int, devices: int) -> int:
    """Return the rows of a batch that is spread over devices: a multiple of their number."""
    return -(-rows // devices) * devices
