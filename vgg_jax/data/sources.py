"""Where examples come from: what a user gives as DATA, opened as splits with class names."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

from vgg_jax.data.examples import SPLITS, DataSet, Examples, Split, content_hash, hold_back
from vgg_jax.data.folders import open_folder
from vgg_jax.data.tfds import PREFIX, open_tfds
from vgg_jax.errors import DataError

__all__ = ["SPLITS", "DataSet", "Examples", "Split", "content_hash", "open_data"]

DEMO = "demo"


def open_data(
    data: str,
    *,
    demo_folder: Callable[[], Path],
    seed: int,
    validation_fraction: float = 0.15,
    needed: Collection[Split] = ("train",),
    unsplit_as: Split | None = None,
) -> DataSet:
    """Open what DATA stands for; reads names and labels, not pictures.

    Args:
        data: `demo`, `tfds:NAME[/CONFIG][:VERSION]`, a folder with `train/` and optionally
            `validation/` (`val/`, `valid/`) and `test/`, or a folder of class folders, which is
            split by seed.
        demo_folder: Returns the folder of the demo's pictures, after drawing them if need be.
        seed: Decides which examples are held back.
        validation_fraction: How much of `train` to hold back where there is no validation split.
        needed: The splits that the caller cannot do without.
        unsplit_as: What all pictures of a folder of class folders are taken for, instead of
            splitting it.

    Raises:
        DataError: If there is no such data, or they cannot be used.
    """
    if data == DEMO:
        opened = open_folder(
            demo_folder(), seed=seed, validation_fraction=validation_fraction, name=DEMO
        )
    elif data.startswith(PREFIX):
        opened = open_tfds(data.removeprefix(PREFIX))
    else:
        opened = open_folder(
            Path(data).expanduser(),
            seed=seed,
            validation_fraction=validation_fraction,
            unsplit_as=unsplit_as,
        )
    if "train" in opened.splits and "validation" not in opened.splits:
        opened = hold_back(opened, {"validation": validation_fraction}, seed)
    missing = [split for split in needed if split not in opened.splits]
    if missing:
        raise DataError(
            f"{data} has no {' and no '.join(missing)} split, only {', '.join(opened.splits)}. "
            "Add it, or use other data."
        )
    return opened
