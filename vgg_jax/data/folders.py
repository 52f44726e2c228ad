"""Folders of pictures, one sub-folder a class, with or without splits, as Keras reads them."""

from __future__ import annotations

import collections
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from vgg_jax.data.examples import SPLIT_NAMES, SPLITS, DataSet, Examples, Split, hold_back
from vgg_jax.errors import DataError, did_you_mean

TEST_FRACTION = 0.15  # of a folder without splits
IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jfif", ".png", ".gif", ".bmp", ".webp"}
    | {".tif", ".tiff", ".ppm", ".pgm", ".avif", ".mpo"}
)
# As classes, these would give a classifier that tells training from test pictures.
_MISNAMED_SPLITS = frozenset({"training", "testing", "dev", "eval", "evaluation"})
_LAYOUT = "Put the pictures of each class into a sub-folder of their own, named as the class."
_SHOWN = 5


def open_folder(
    folder: Path,
    *,
    seed: int,
    validation_fraction: float,
    name: str | None = None,
    unsplit_as: Split | None = None,
) -> DataSet:
    """Read the tree of `folder`, but no picture.

    A folder with `train/` and its kind gives the splits that it has; a folder of class folders is
    split by seed, or is the one split `unsplit_as`.

    Raises:
        DataError: If the folder is missing, or is not laid out as classes of pictures.
    """
    if not folder.exists():
        raise DataError(f"No such folder: {folder}.{_near_names(folder)}")
    if not folder.is_dir():
        raise DataError(
            f"{folder} is a file, not a folder. Give a folder with one sub-folder a class."
        )
    split_folders = _split_folders(folder)
    holders: dict[Split, Path] = split_folders or {unsplit_as or "train": folder}
    trees: dict[Split, _ClassFolders] = {
        split: _ClassFolders(path) for split, path in holders.items()
    }
    class_names = _common_classes(trees)
    notes = [note for tree in trees.values() for note in tree.notes]
    if split_folders:
        used = {path.name for path in split_folders.values()}
        others = [other for other in _entries(folder)[0] if other not in used]
        if others:
            notes.append(f"Not used, being no split: {_shortened(others)} in {folder}.")
    splits: dict[Split, Examples] = {split: tree.examples() for split, tree in trees.items()}
    data = DataSet(name or folder.resolve().name, class_names, splits, tuple(notes))
    if split_folders or unsplit_as:
        return data
    return hold_back(data, {"validation": validation_fraction, "test": TEST_FRACTION}, seed)


class _ClassFolders:
    """One split: the class folders in a folder, and the picture files below each, sorted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[str, list[str]] = {}
        ignored: collections.Counter[str] = collections.Counter()
        class_names, files = _entries(folder)
        self.stray = [file for file in files if is_picture(file)]
        for name in class_names:
            below = _files_below(folder / name)
            self.files[name] = [path for path in below if is_picture(path)]
            ignored.update(_kind(path) for path in below if not is_picture(path))
        self.notes: list[str] = []
        if ignored:
            kinds = _shortened([f"{kind} ({count})" for kind, count in sorted(ignored.items())])
            others = _count(ignored.total(), "file")
            self.notes.append(f"Ignored {others} in {folder} for not being pictures: {kinds}.")
        if self.stray:
            pictures = _count(len(self.stray), "picture")
            self.notes.append(f"Ignored {pictures} directly in {folder} for belonging to no class.")
        self._check()

    def _check(self) -> None:
        if not any(self.files.values()):
            if self.stray:
                raise DataError(
                    f"{self.folder} holds {_count(len(self.stray), 'picture')} directly, such as "
                    f"{self.stray[0]}, but no class folders with pictures. {_LAYOUT}"
                )
            raise DataError(
                f"No pictures in {self.folder} ({_count(len(self.files), 'class folder')}). "
                f"{_LAYOUT}\nFiles that count as pictures: {' '.join(sorted(IMAGE_SUFFIXES))}."
            )
        empty = [name for name, files in self.files.items() if not files]
        if empty:
            raise DataError(
                f"{_count(len(empty), 'class folder')} in {self.folder} without pictures: "
                f"{', '.join(empty)}. Add pictures or remove the folder."
            )

    def examples(self) -> Examples:
        paths = [path for files in self.files.values() for path in files]
        labels = [label for label, files in enumerate(self.files.values()) for _ in files]

        def read(i: int) -> bytes:
            try:
                return Path(paths[i]).read_bytes()
            except OSError as error:
                raise _unreadable(paths[i], error) from error

        def sizes() -> list[int]:
            return [_size(path) for path in paths]

        return Examples(paths, labels, read, sizes)


def is_picture(path: str) -> bool:
    """Tell whether a file counts as a picture: by its suffix, and hidden ones never."""
    name = os.path.basename(path)  # noqa: PTH119 - once a file, of which there may be a million
    return not name.startswith(".") and name[name.rfind(".") :].lower() in IMAGE_SUFFIXES


def _split_folders(folder: Path) -> dict[Split, Path]:
    """Return the folder of each split, in the order of `SPLITS`; none where there are classes."""
    children, _ = _entries(folder)
    found: dict[Split, list[str]] = {}
    for child in children:
        if split := SPLIT_NAMES.get(child.lower()):
            found.setdefault(split, []).append(child)
    number = sum(map(len, found.values()))
    misnamed = [child for child in children if child.lower() in _MISNAMED_SPLITS]
    if misnamed and len(misnamed) + number == len(children):
        raise DataError(
            f"{folder} holds {', '.join(misnamed)}: by the name a split, not a class. "
            "Name the splits train, validation and test."
        )
    # A class may be called train, as in train, bus, car: it has siblings and holds no folders.
    if number == 1 < len(children):
        ((only,),) = found.values()
        if not _entries(folder / only)[0]:
            return {}
    for split, names in found.items():
        if len(names) > 1:
            raise DataError(f"{folder} holds {' and '.join(names)}, all for {split}. Keep one.")
    return {split: folder / found[split][0] for split in SPLITS if split in found}


def _common_classes(trees: Mapping[Split, _ClassFolders]) -> tuple[str, ...]:
    """Return the class names, the same in all splits."""
    (first, reference), *others = trees.items()
    expected = tuple(reference.files)
    problems: list[str] = []
    for split, tree in others:
        missing = [name for name in expected if name not in tree.files]
        extra = [name for name in tree.files if name not in expected]
        if missing:
            problems.append(f"{split} lacks {', '.join(missing)}")
        if extra:
            problems.append(f"{split} has {', '.join(extra)}, which {first} has not")
    if problems:
        raise DataError(
            f"The classes in {reference.folder.parent} differ between splits: "
            f"{'; '.join(problems)}.\n"
            "Every split must have the same class folders, spelled alike."
        )
    if len(expected) == 1:
        raise DataError(
            f"{reference.folder} holds a single class, {expected[0]!r}, but a classifier needs at "
            f"least two. {_LAYOUT}"
        )
    return expected


def _files_below(folder: Path, above: tuple[tuple[int, int], ...] = ()) -> list[str]:
    """Return the visible files in `folder` and all its sub-folders, in the order of their names.

    Links are followed, except those that lead back to a folder that they lie in.
    """
    status = folder.stat()
    identity = status.st_dev, status.st_ino
    if identity in above:
        return []
    folders, files = _entries(folder)
    found = [os.path.join(folder, file) for file in files]  # noqa: PTH118 - as above
    for child in folders:
        found += _files_below(folder / child, (*above, identity))
    return found


def _entries(folder: Path) -> tuple[list[str], list[str]]:
    """Return the names of the sub-folders and of the other entries, sorted, without hidden ones."""
    folders: list[str] = []
    files: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if not entry.name.startswith("."):
                    (folders if entry.is_dir() else files).append(entry.name)
    except OSError as error:
        raise _unreadable(str(folder), error) from error
    return sorted(folders), sorted(files)


def _kind(path: str) -> str:
    return Path(path).suffix.lower() or Path(path).name


def _size(path: str) -> int:
    try:
        return Path(path).stat().st_size
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: str, error: OSError) -> DataError:
    return DataError(f"{path}: cannot be read ({error.strerror or error}). Mend or remove it.")


def _near_names(folder: Path) -> str:
    """Return a hint on what may have been meant, or on how far the path exists."""
    parent = folder.absolute().parent
    if not parent.is_dir():
        existing = next(above for above in parent.parents if above.is_dir())
        return f" The path exists up to {existing}."
    names, _ = _entries(parent)
    beside = f" Folders there: {_shortened(names)}." if names else ""
    return did_you_mean(folder.name, names) or beside


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _shortened(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
