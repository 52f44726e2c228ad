"""Examples: who they are, what tells them apart, and digests of them."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from picture_files import CLASSES, examples_of, image_bytes, open_folder, write_splits

from vgg_jax.data.examples import learn_contents
from vgg_jax.data.sources import DataSet, Examples, content_hash
from vgg_jax.errors import DataError
from vgg_jax.progress import Progress


def counting_examples(pictures: list[bytes]) -> tuple[Examples, list[int]]:
    """Return examples in memory and the list of the positions that were read."""
    reads: list[int] = []
    plain = examples_of(pictures)
    counting = Examples(
        plain.names,
        plain.labels,
        lambda i: (reads.append(i), pictures[i])[1],
        lambda: [len(picture) for picture in pictures],
    )
    return counting, reads


def test_equal_contents_are_counted_and_only_equal_sizes_are_read():
    counting, reads = counting_examples([b"aa", b"ab", b"b", b"aa", b"ccc", b"aa", b"ab"])
    np.testing.assert_array_equal(counting.occurrences, [0, 0, 0, 1, 0, 2, 1])
    assert counting.occurrences.dtype == np.int32
    assert reads == [0, 1, 3, 5, 6]


def test_selected_examples_keep_what_belongs_together():
    pictures = [b"aa", b"ab", b"b", b"aa", b"aa"]
    chosen = examples_of(pictures).select([4, 2, 1, 3]).select(np.array([0, 3, 1]))
    assert list(chosen.names) == ["picture-4", "picture-3", "picture-2"]
    np.testing.assert_array_equal(chosen.labels, [1, 0, 2])
    assert [chosen.read(i) for i in range(3)] == [b"aa", b"aa", b"b"]
    np.testing.assert_array_equal(chosen.occurrences, [0, 1, 0])


def test_contents_are_those_of_the_bytes_in_order_and_read_once():
    pictures = [b"%d" % (i % 90) for i in range(101)]
    examples, reads = counting_examples(pictures)
    expected = [hashlib.blake2b(picture, digest_size=16).digest() for picture in pictures]
    assert (examples.contents.shape, examples.contents.dtype) == ((101, 16), np.uint8)
    assert [row.tobytes() for row in examples.contents] == expected
    chosen = examples.select([95, 5, 7])
    assert [row.tobytes() for row in chosen.contents] == [expected[i] for i in (95, 5, 7)]
    # Known contents tell which are equal, too: 5 and 95 are.
    np.testing.assert_array_equal(chosen.occurrences, [0, 1, 0])
    np.testing.assert_array_equal(examples.occurrences, [0] * 90 + [1] * 11)
    assert sorted(reads) == list(range(101))


def test_no_examples_have_no_contents():
    assert examples_of([]).contents.shape == (0, 16)


def test_reading_contents_is_shown_and_unreadable_pictures_are_named(tmp_path):
    data = open_folder(write_splits(tmp_path, train=CLASSES, val={"cat": 40, "dog": 30}))
    shown: list[object] = []

    class Shown(Progress):
        def work_started(self, what, total, unit="images"):
            shown.append((what, total, unit))

        def work_done(self, count):
            shown.append(count)

        def close(self):
            shown.append("closed")

    learn_contents(data.splits.values(), Shown())
    assert shown == [("Reading", 77, "images"), 7, 32, 32, 6, "closed"]
    again = open_folder(tmp_path).splits
    Path(again["validation"].names[50]).unlink()
    with pytest.raises(DataError, match=r"dog/010\.png: cannot be read \(No such file"):
        learn_contents(again.values(), Shown())
    assert shown[-1] == "closed"


def test_a_picture_that_changes_while_in_use_is_not_read(tmp_path):
    examples = open_folder(write_splits(tmp_path, train=CLASSES, val=CLASSES)).splits["train"]
    path = Path(examples.names[2])
    before = path.read_bytes()
    path.write_bytes(image_bytes(77))
    assert examples.read(2) == image_bytes(77)  # nothing was known of it
    _ = examples.contents
    path.write_bytes(before)
    for one, i in ((examples, 2), (examples.select([1, 2]), 1)):
        with pytest.raises(DataError, match=r"cat/002\.png: was changed while it was in use"):
            one.read(i)
    path.write_bytes(image_bytes(77))
    assert examples.read(2) == image_bytes(77)


def test_digests_tell_contents_classes_and_order(tmp_path):
    original = write_splits(tmp_path / "one", train=CLASSES, val=CLASSES)

    def digests(change: Callable[[Path], object]) -> list[str]:
        folder = Path(shutil.copytree(original, tmp_path / "other"))
        change(folder / "train")
        found = open_folder(folder).digests
        shutil.rmtree(folder)
        assert list(found) == ["train", "validation"]
        return list(found.values())

    def moved(old: str, new: str) -> Callable[[Path], object]:
        return lambda train: (train / old).rename(train / new)

    same = list(open_folder(original).digests.values())
    assert [len(digest) for digest in same] == [32, 32]
    assert digests(lambda train: None) == same  # the place of the folder
    assert digests(moved("cat/001.jpg", "cat/001b.png")) == same  # a name in the same order
    for change in (
        lambda train: (train / "cat" / "001.jpg").write_bytes(image_bytes(9)),
        lambda train: (train / "cat" / "001.jpg").unlink(),
        moved("cat/001.jpg", "cat/009.jpg"),  # the same pictures in another order
        moved("cat/003.jpg", "dog/000.jpg"),  # the same order, but another class
    ):
        train, validation = digests(change)
        assert train != same[0]
        assert validation == same[1]
    # The bytes are the same on each machine.
    fixed = DataSet("", ("a", "b"), {"train": examples_of([b"x", b"y", b"z"], [0, 1, 1])})
    assert fixed.digest("train") == "f0ea860d548075b6b6f9c74b27876181"


def test_content_hashes_are_64_bits_and_stable():
    # By coreutils: printf picture | b2sum -l 64
    assert content_hash(b"picture") == 0x6D06958E9A6F29A2
    assert content_hash(b"picture") != content_hash(b"pictura")
