"""Keeps the features of a training, where there is room for them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from vgg_jax.array_store import ArrayTable
from vgg_jax.cache import cache_folder
from vgg_jax.config import ResolvedConfig
from vgg_jax.data.examples import Examples
from vgg_jax.errors import CacheError, ConfigError, TrainingError
from vgg_jax.model.classifier import Parameters
from vgg_jax.options import parse_size
from vgg_jax.progress import Progress, format_bytes
from vgg_jax.table_folders import FEATURES
from vgg_jax.training.feature_names import row_names, settings_of
from vgg_jax.training.feature_places import choose_places
from vgg_jax.training.features import Features
from vgg_jax.training.kept_rows import InMemory, KeptRows, OnDisk
from vgg_jax.training.room import Memory
from vgg_jax.training.rows import DeviceRows, DiskRows, HostRows
from vgg_jax.training.steps import Steps

View = int | None  # None: pictures as they are
Splits = Mapping[str, tuple[Examples, Sequence[View]]]


def views_of(config: ResolvedConfig) -> Sequence[View]:
    """Return the views of training pictures whose features a training can keep."""
    return range(1, min(config.views, config.epochs) + 1) if config.views else (None,)


def tell_not_kept(config: ResolvedConfig, why_not: str, progress: Progress) -> None:
    """Tell the user that features are not kept, and what comes of that."""
    progress.note(f"Features are not kept: {why_not}.")
    if config.verify_features:
        progress.warn(f"--verify-features {config.verify_features} finds nothing to verify.")


class Keeper:
    """Keeps the features of the splits of one training."""

    def __init__(
        self,
        config: ResolvedConfig,
        steps: Steps,
        frozen: Parameters,
        splits: Splits,
        mesh: jax.sharding.Mesh,
        rows: int,
        memory: Memory,
        progress: Progress,
    ) -> None:
        """Decide where to keep the features of splits, each in some views, and tell the user.

        Args:
            config: Options of the training.
            steps: Its programs.
            frozen: The parameters of its prefix.
            splits: What to keep.
            mesh: Its devices.
            rows: Of the batches in which features are computed.
            memory: Where there is room.
            progress: Told of what was decided, and of what goes wrong.

        Raises:
            ConfigError: If there is no room for what was asked for.
        """
        self._config, self._steps, self._frozen = config, steps, frozen
        self._splits, self._mesh, self._progress = splits, mesh, progress
        self._rows_per_device = rows // mesh.size
        side = config.image_size
        pictures = jax.ShapeDtypeStruct((1, side, side, 3), jnp.uint8)
        self._features = jax.eval_shape(steps.features, frozen, pictures)
        self._pooled = jax.eval_shape(steps.pool, self._features)
        self._tables: dict[View, ArrayTable] = {}
        self._rows: dict[tuple[str, View], KeptRows] = {}
        self._stored = self._damaged = 0
        self._verified: set[tuple[str, View]] = set()
        self._place: type[DeviceRows | HostRows] | None = None
        self._writes = True
        self._decide(memory)

    @property
    def keeps(self) -> bool:
        """Whether there is room for any."""
        return self._place is not None or bool(self._tables)

    def of(self, split: str, *, augmented: bool) -> KeptSplit:
        """Return what keeps the features of one split, in views if it is augmented."""
        return KeptSplit(self, split, augmented)

    def rows(self, split: str, view: View, features: Features) -> KeptRows:
        """Return where the features of a split in a view are kept."""
        if (split, view) not in self._rows:
            self._rows[split, view] = self._make_rows(split, view, features)
        return self._rows[split, view]

    def passed(self, split: str, view: View, features: Features) -> None:
        """Finish the writing of a split in a view, whose features were all used; verify some.

        Raises:
            TrainingError: If some that are kept are not what they should be.
        """
        if (rows := self._rows.get((split, view))) is None:
            return
        rows.flush()
        try:
            if self._config.verify_features and (split, view) not in self._verified:
                self._verified.add((split, view))
                self._verify(split, view, rows, features)
        finally:
            self._tell_damage()

    def close(self) -> None:
        """End what goes on in the background."""
        for rows in self._rows.values():
            rows.close()
        self._close_tables()

    def _stop_writing(self, error: CacheError) -> None:
        """Keep no more on disk, and tell the user why."""
        if self._writes:
            self._writes = False
            self._progress.warn(f"No further features are kept on disk. {error}")
            for rows in self._rows.values():
                rows.stop_writing()

    def _tell_damage(self) -> None:
        damaged = sum(table.damaged for table in self._tables.values())
        if damaged > self._damaged:
            self._progress.warn(
                f"Kept features were damaged on disk, in {damaged - self._damaged} places: what was"
                " lost is computed anew."
            )
            self._damaged = damaged

    def _verify(self, split: str, view: View, rows: KeptRows, features: Features) -> None:
        kept = np.flatnonzero(rows.has(np.arange(len(features.labels))))
        rng = np.random.default_rng([self._config.seed, view or 0])
        drawn = rng.choice(kept, min(self._config.verify_features, len(kept)), replace=False)
        difference, count = features.compare(rows, drawn, view or 1)
        of_view = f" in view {view}" if view is not None else ""
        if difference > self._tolerance:
            remedy = (
                "Remove what is kept: vgg-jax cache clear"
                if self._tables
                else "None are on disk: the memory, the processor or a program is at fault. Train"
                " on another machine, or with --features off."
            )
            raise TrainingError(
                f"The kept features of {count} pictures of {split}{of_view} differ by up to"
                f" {difference:.2g} of the largest from what is computed anew"
                f" (allowed: {self._tolerance:.2g}).\n{remedy}"
            )
        if not count:
            self._progress.warn(f"Of {split}{of_view} no features are kept that could be verified.")
            return
        self._progress.note(
            f"Kept features of {count} pictures of {split}{of_view}, computed anew:"
            f" {'equal to the bit' if not difference else f'differ by {difference:.2g}'}."
        )

    @property
    def _tolerance(self) -> float:
        """How far features may differ from those computed anew, relative to the largest.

        On a CPU they do not, but where layers are narrower than VGG16's: there some processors'
        convolutions give a picture other last bits in another place of the batch.
        """
        width = self._steps.functional.bind({}).backbone.width
        if jax.default_backend() == "cpu" and width >= 1:
            return 0.0
        types = {self._config.features_dtype, self._config.precision}
        return 1e-5 if types == {"float32"} else 2**-7

    def _decide(self, memory: Memory) -> None:
        """Choose between disk and memory, as far as that is left open, and say what was chosen."""
        count = sum(len(examples) * len(views) for examples, views in self._splits.values())
        in_memory = count * _bytes_of(self._pooled)
        try:
            places = choose_places(
                self._config,
                memory,
                count=count,
                disk_bytes=_bytes_of(self._features),
                memory_bytes=_bytes_of(self._pooled),
                stored=self._open_tables,
            )
        except ConfigError:
            self._close_tables()
            raise
        if not places.on_disk:
            self._close_tables()
        if places.why_not is not None:
            tell_not_kept(self._config, places.why_not, self._progress)
            return
        self._place = places.memory
        if self._place:
            memory.take(self._place, in_memory)
        self._progress.note(self._described(count, in_memory, places.no_disk))

    def _described(self, count: int, in_memory: int, no_disk: str) -> str:
        config = self._config
        why = f"nothing random comes before {config.train_from}"
        if config.views:
            why = f"{len(views_of(config))} views of each picture"
        if not self._tables:
            but = f"; not on disk: {no_disk}" if no_disk else ""
            return f"Features are kept in memory ({format_bytes(in_memory)}): {why}{but}."
        where = "on disk and in memory" if self._place else "on disk"
        size = format_bytes(count * _bytes_of(self._features))
        there = f"{self._stored:,} of {count:,} are there"
        return f"Features are kept {where} ({size}): {why}; {there}."

    def _open_tables(self) -> int:
        """Open the tables of all views; returns how many features are there."""
        for split, (_, views) in self._splits.items():
            for view in views:
                table = self._open_table(view)
                self._stored += sum(name.tobytes() in table for name in self._names(split, view))
        return self._stored

    def _open_table(self, view: View) -> ArrayTable:
        if view not in self._tables:
            root, limit = cache_folder() / FEATURES, parse_size(self._config.cache_size) or 0
            settings = settings_of(
                self._config, self._steps, self._frozen, view, self._rows_per_device
            )
            shape, dtype = self._features.shape[1:], self._features.dtype
            self._tables[view] = ArrayTable(
                root, settings, shape, dtype, limit_bytes=limit, beside=self._tables.values()
            )
        return self._tables[view]

    def _make_rows(self, split: str, view: View, features: Features) -> KeptRows:
        count = len(features.labels)
        disk = None
        if view in self._tables:
            disk = DiskRows(self._mesh, self._tables[view], self._names(split, view))
        if self._place is None:
            if disk is None:
                raise RuntimeError("neither on disk nor in memory")
            rows = OnDisk(disk, self._steps.pool, self._stop_writing)
        else:
            shape, dtype = self._pooled.shape[1:], self._pooled.dtype
            memory = self._place(self._mesh, count, shape, dtype)
            rows = InMemory(memory, self._steps.pool, disk, self._stop_writing)
            rows.load(features.batch_size, features.rows)
        if not self._writes:
            rows.stop_writing()
        return rows

    def _names(self, split: str, view: View) -> np.ndarray:
        return row_names(self._splits[split][0], augmented=view is not None)

    def _close_tables(self) -> None:
        for table in self._tables.values():
            try:
                table.close()
            except CacheError as error:
                self._stop_writing(error)
        self._tables.clear()


@dataclasses.dataclass(frozen=True)
class KeptSplit:
    """Keeps the features of one split of a training."""

    keeper: Keeper
    split: str
    augmented: bool

    def rows(self, features: Features, view: int) -> KeptRows:
        """As in `vgg_jax.training.features.Keep`."""
        return self.keeper.rows(self.split, view if self.augmented else None, features)

    def passed(self, features: Features, view: int) -> None:
        """As in `vgg_jax.training.features.Keep`."""
        self.keeper.passed(self.split, view if self.augmented else None, features)


def _bytes_of(rows: jax.ShapeDtypeStruct) -> int:
    """Return the size of one row."""
    return int(np.prod(rows.shape[1:])) * rows.dtype.itemsize
