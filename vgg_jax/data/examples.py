"""Examples: the pictures of one split with their labels, and a data set of up to three splits."""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import numpy as np

from vgg_jax.errors import DataError
from vgg_jax.progress import Progress

Split = Literal["train", "validation", "test"]
_HOLD_BACK = 1  # keeps these draws apart from others of the same seed
_READERS = 8  # threads: reading and hashing do without the interpreter's lock, and a disk can queue
_AT_A_TIME = 32  # pictures: few enough for progress on a slow disk, and for a quick end at Ctrl-C
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
SPLIT_NAMES: Mapping[str, Split] = {
    "train": "train",
    "validation": "validation",
    "val": "validation",
    "valid": "validation",
    "test": "test",
}


def content_hash(data: bytes) -> int:
    """Return a 64-bit hash of a picture's bytes: who an example is, whatever its name and place."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")


def _content(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


class Examples:
    """The examples of one split: names and labels in memory, pictures read when asked for."""

    def __init__(
        self,
        names: Sequence[str],
        labels: Sequence[int] | np.ndarray,
        read: Callable[[int], bytes],
        sizes: Callable[[], Sequence[int] | np.ndarray],
    ) -> None:
        """Describe `len(names)` examples.

        Args:
            names: What the user knows each picture by, such as its path; unique.
            labels: Position of each picture's class in the class names.
            read: Returns the bytes of the picture at a position; called from several threads.
            sizes: Returns the number of bytes of every picture without reading them.
        """
        self.names = names
        self.labels = np.asarray(labels, np.int32)
        self._read = read
        self._sizes = sizes
        self._contents: np.ndarray | None = None

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.names)

    def read(self, i: int) -> bytes:
        """Return the bytes of the picture at position `i`, as they are stored.

        Raises:
            DataError: If they cannot be read, or are no longer those of `contents`, where these are
                known: what is kept under a content must be of that content.
        """
        data = self._read(i)
        if self._contents is not None and _content(data) != self._contents[i].tobytes():
            raise DataError(
                f"{self.names[i]}: was changed while it was in use. Put it back as it was, or start"
                " anew."
            )
        return data

    @property
    def contents(self) -> np.ndarray:
        """uint8 `[N, 16]`: a 128-bit BLAKE2b of each picture's bytes, all read when first used.

        Raises:
            DataError: If a picture cannot be read; names it.
        """
        return self.learn_contents(lambda count: None)

    def learn_contents(self, done: Callable[[int], None]) -> np.ndarray:
        """Return `contents`; `done` is told of pictures as they are read, if they have to be."""
        if self._contents is None:
            positions = range(len(self))
            parts = [positions[i : i + _AT_A_TIME] for i in positions[::_AT_A_TIME]]
            contents = np.empty((len(self), 16), np.uint8)
            with ThreadPoolExecutor(_READERS) as readers:
                for part, found in zip(parts, readers.map(self._contents_of, parts), strict=True):
                    contents[part] = np.frombuffer(found, np.uint8).reshape(-1, 16)
                    done(len(part))
            self._contents = contents
        return self._contents

    def _contents_of(self, positions: range) -> bytes:
        return b"".join(_content(self.read(i)) for i in positions)

    @functools.cached_property
    def occurrences(self) -> np.ndarray:
        """int32 `[N]`: 0 for the first example with some content, 1 for the second, and so on.

        With the content's hash it tells examples apart that are byte for byte the same.
        """
        occurrences = np.zeros(len(self), np.int32)
        seen: collections.Counter[Hashable] = collections.Counter()
        for i, content in self._contents_that_may_recur():
            occurrences[i] = seen[content]
            seen[content] += 1
        return occurrences

    def _contents_that_may_recur(self) -> Iterator[tuple[int, Hashable]]:
        """Yield positions with what tells their content; reads only pictures of equal size."""
        if self._contents is not None:
            yield from ((i, content.tobytes()) for i, content in enumerate(self._contents))
            return
        sizes = np.asarray(self._sizes())
        _, group, members = np.unique(sizes, return_inverse=True, return_counts=True)
        for i in np.flatnonzero(members[group] > 1).tolist():
            yield i, (int(sizes[i]), content_hash(self.read(i)))

    def select(self, indices: Sequence[int] | np.ndarray) -> Examples:
        """Return the examples at `indices`, in that order."""
        chosen = np.asarray(indices, np.int64)
        selected = Examples(
            [str(self.names[int(i)]) for i in chosen],
            self.labels[chosen],
            lambda i: self._read(int(chosen[i])),
            lambda: np.asarray(self._sizes())[chosen],
        )
        if self._contents is not None:
            selected._contents = self._contents[chosen]
        return selected


def learn_contents(splits: Collection[Examples], progress: Progress) -> None:
    """Read all pictures of some splits for their `contents`, and show how far that is.

    Raises:
        DataError: If a picture cannot be read; names it.
    """
    progress.work_started("Reading", sum(map(len, splits)))
    try:
        for examples in splits:
            examples.learn_contents(progress.work_done)
    finally:
        progress.close()


@dataclasses.dataclass(frozen=True)
class DataSet:
    """What DATA stands for.

    Attributes:
        name: Short name for run folders, such as the folder's.
        class_names: In the order of the labels.
        splits: The splits that exist: `train`, `validation`, `test`.
        notes: Sentences that the user should see, such as what was held back for validation.
    """

    name: str
    class_names: tuple[str, ...]
    splits: Mapping[Split, Examples]
    notes: tuple[str, ...] = ()

    @property
    def counts(self) -> dict[str, int]:
        """The number of examples by split."""
        return {name: len(examples) for name, examples in self.splits.items()}

    @property
    def digests(self) -> dict[str, str]:
        """The `digest` of each split."""
        return {name: self.digest(name) for name in self.splits}

    def digest(self, split: Split) -> str:
        """Return 32 hexadecimal digits for the contents and classes of a split, in their order.

        They tell whether two splits train alike. Names and places of pictures do not count, but
        for the order that they give: it decides in which order an epoch goes through them.

        Raises:
            DataError: If a picture cannot be read; names it.
        """
        examples = self.splits[split]
        digest = hashlib.blake2b(json.dumps(self.class_names).encode(), digest_size=16)
        digest.update(examples.contents.tobytes())
        digest.update(examples.labels.astype("<i4").tobytes())
        return digest.hexdigest()


def hold_back(data: DataSet, fractions: Mapping[Split, float], seed: int) -> DataSet:
    """Move a part of `train` into splits that do not exist, class by class, and note it.

    Each class gives at least one example to each new split, as long as one stays in `train`. The
    draw is a function of the seed and of the order of each class's examples.

    Raises:
        DataError: If no class has more than one example.
    """
    whole = data.splits["train"]
    parts: dict[Split, list[np.ndarray]] = {split: [] for split in ("train", *fractions)}
    for label in range(len(data.class_names)):
        members = np.flatnonzero(whole.labels == label)
        drawn = np.random.default_rng([seed, _HOLD_BACK, label]).permutation(members)
        start = 0
        for split, fraction in fractions.items():
            wanted = max(1, int(len(members) * fraction + 0.5))
            stop = start + max(0, min(wanted, len(members) - 1 - start))
            parts[split].append(drawn[start:stop])
            start = stop
        parts["train"].append(drawn[start:])
    chosen = {split: np.sort(np.concatenate(part)) for split, part in parts.items()}
    notes = []
    for split, fraction in fractions.items():
        if not len(chosen[split]):
            raise DataError(
                f"Nothing can be held back for {split}: {data.name} has too few pictures in every "
                f"class ({len(whole)} in {len(data.class_names)} classes). Add pictures."
            )
        notes.append(
            f"No {split} split: {len(chosen[split])} of {len(whole)} pictures ({fraction:.0%} of "
            f"each class, seed {seed}) are held back for it."
        )
    new = {split: whole.select(indices) for split, indices in chosen.items()}
    together = {**data.splits, **new}
    ordered = {split: together[split] for split in SPLITS if split in together}
    return dataclasses.replace(data, splits=ordered, notes=(*data.notes, *notes))
