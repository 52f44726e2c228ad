"""The data of a run, looked at again: whether they are still those that it was trained on."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from vgg_jax.config import ResolvedConfig
from vgg_jax.data.examples import SPLITS, DataSet, Split
from vgg_jax.errors import DataError
from vgg_jax.progress import Progress
from vgg_jax.training.run_files import RunFiles, RunRecord
from vgg_jax.workflows.feed import open_training_data

_USED_BY_TRAINING: tuple[Split, ...] = ("train", "validation")  # the latter chooses the best epoch


def reopen_data(
    run: RunFiles,
    record: RunRecord,
    config: ResolvedConfig,
    progress: Progress,
    *,
    moved: bool,
    take_others: bool = False,
) -> tuple[DataSet, bool]:
    """Open the data to go on with, and tell whether they are others than the run's.

    Args:
        run: The run.
        record: What it knows of its data.
        config: Says where they are now.
        progress: Told of what the user should know.
        moved: Whether that is another place than before.
        take_others: Whether other pictures of the same classes may take their place.

    Raises:
        DataError: If they cannot be used, or are others and may not be.
    """
    with nullcontext() if moved else told_how_to_move(run, record, config):
        data = open_training_data(config, progress)
    if data.class_names != record.class_names:
        raise DataError(
            f"The data in {config.data} now have the classes {', '.join(data.class_names)}; the run"
            f" has {', '.join(record.class_names)}."
        )
    # Without digests every count is a sign: pictures of one folder may have changed their splits.
    splits = _USED_BY_TRAINING if record.data_digests else SPLITS
    changes = [change for split in splits if (change := change_of(record, data, split))]
    if changes and not take_others:
        raise DataError(
            f"The data in {config.data} are not those of the run: {'; '.join(changes)}. Put them"
            f" back, train a new run, or go on with them: --override --data {config.data}"
        )
    if moved and not changes:
        progress.note(f"These are the data of the run; it reads them in {config.data} from now on.")
    if not changes and (change := change_of(record, data, "test")):
        progress.note(f"{change[0].upper()}{change[1:]}: the training does not use them.")
    return data, bool(changes)


def change_of(record: RunRecord, data: DataSet, split: Split) -> str:
    """Say how a split differs from the run's, or return an empty string if it does not.

    Raises:
        DataError: If a picture cannot be read; names it.
    """
    before, now = record.examples.get(split, 0), data.counts.get(split, 0)
    if before != now:
        return f"{split} had {before} pictures and has {now}"
    digest = record.data_digests.get(split)
    if digest is None or digest == data.digest(split):
        return ""
    return f"{split} has {now} pictures as before, but others, or in another order"


@contextmanager
def told_how_to_move(run: RunFiles, record: RunRecord, config: ResolvedConfig) -> Generator[None]:
    """Add to an error of the run's data, where they are gone, how to say where they are now."""
    try:
        yield
    except DataError as error:
        place = Path(config.data)
        if place.is_absolute() and not place.exists():  # else it is no folder
            # Counts alone cannot tell that the pictures are the same.
            options = "--data NEW" if record.data_digests else "--override --data NEW"
            error.add_note(f"If the pictures were moved to NEW: {run.resume_command(options)}")
        raise
