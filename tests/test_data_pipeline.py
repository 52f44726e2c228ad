"""Batches: each example once, in order, whatever the threads; padding, errors and early ends."""

from __future__ import annotations

import dataclasses
import threading
import time

import numpy as np
import pytest
from picture_files import encode, examples_of, image_bytes, pixels

from vgg_jax.api import HostAugmentation
from vgg_jax.data.decode import decode_image, resize_image
from vgg_jax.data.examples import content_hash
from vgg_jax.data.pipeline import Batch, batches, epoch_order
from vgg_jax.errors import DataError, PluginError

PICTURES = [image_bytes(seed, (".png", ".jpg")[seed % 2]) for seed in range(11)]
PICTURES[7] = PICTURES[3]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Noise(HostAugmentation):
    def apply(self, rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
        return rng.integers(0, 256, (9, 9, 3)).astype(np.uint8) ^ image[:9, :9]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Floats(HostAugmentation):
    def apply(self, rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
        return image / 255


def read(**options: object) -> list[Batch]:
    arguments = {"batch_size": 4, "image_size": 8, "threads": 2, **options}
    return list(batches(examples_of(PICTURES), **arguments))  # type: ignore[arg-type]


def assert_same(first: list[Batch], second: list[Batch]) -> None:
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        for field in dataclasses.fields(Batch):
            np.testing.assert_array_equal(getattr(one, field.name), getattr(other, field.name))


def test_batches_hold_each_example_once_and_pad_the_last():
    found = read()
    assert [batch.valid.tolist() for batch in found] == [
        [True] * 4,
        [True] * 4,
        [True] * 3 + [False],
    ]
    assert np.concatenate([batch.index for batch in found]).tolist() == [*range(11), 0]
    for batch in found:
        assert {name: (value.shape, value.dtype) for name, value in vars(batch).items()} == {
            "images": ((4, 8, 8, 3), np.uint8),
            "labels": ((4,), np.int32),
            "valid": ((4,), np.bool_),
            "content": ((4, 3), np.uint32),
            "index": ((4,), np.int32),
        }
    last = found[-1]
    assert not any(value[3].any() for value in vars(last).values())
    for row, position in enumerate((8, 9, 10)):
        expected = resize_image(decode_image(PICTURES[position], ""), 8)
        np.testing.assert_array_equal(last.images[row], expected)
        assert last.labels[row] == position % 3


def test_rows_can_be_more_than_the_batch():
    found = read(batch_size=5, pad_to=8)
    assert [(len(batch.images), int(batch.valid.sum())) for batch in found] == [
        (8, 5),
        (8, 5),
        (8, 1),
    ]


@pytest.mark.parametrize("threads", [0, 1, 4, None])
def test_batches_do_not_depend_on_the_threads(threads):
    order = epoch_order(len(PICTURES), seed=1, epoch=2)
    options = {"order": order, "host": [Noise()], "host_seed": (1, 2)}
    assert_same(read(**options, threads=threads), read(**options, threads=3))


def test_the_order_is_kept():
    order = np.array([10, 3, 3, 0, 7])
    found = read(order=order, batch_size=3)
    assert [batch.index.tolist() for batch in found] == [[10, 3, 3], [0, 7, 0]]
    assert len(read(order=np.array([], np.int64))) == 0


@pytest.mark.parametrize("start", [0, 1, 2, 3, 9])
def test_reading_can_start_at_any_batch(start):
    order = epoch_order(len(PICTURES), seed=0, epoch=0)
    options = {"host": [Noise()], "host_seed": (0,)}
    assert_same(read(order=order[4 * start :], **options), read(order=order, **options)[start:])


def test_content_tells_examples_apart_wherever_they_stand():
    order = epoch_order(len(PICTURES), seed=3, epoch=0)
    ordered, shuffled = read(), read(order=order, batch_size=3)

    def identities(found: list[Batch]) -> dict[int, tuple[int, ...]]:
        rows = [
            (int(position), tuple(content.tolist()))
            for batch in found
            for position, content in zip(
                batch.index[batch.valid], batch.content[batch.valid], strict=True
            )
        ]
        return dict(rows)

    by_position = identities(ordered)
    assert by_position == identities(shuffled)
    assert len(set(by_position.values())) == len(PICTURES)
    assert by_position[3][:2] == by_position[7][:2]
    assert (by_position[3][2], by_position[7][2]) == (0, 1)
    high, low, _ = by_position[5]
    assert (high << 32) + low == content_hash(PICTURES[5])


def test_orders_are_permutations_by_seed_and_epoch():
    orders = {
        (seed, epoch): tuple(epoch_order(50, seed, epoch)) for seed in (0, 1) for epoch in (0, 1)
    }
    assert len(set(orders.values())) == 4
    assert all(sorted(order) == list(range(50)) for order in orders.values())
    assert orders[1, 1] == tuple(epoch_order(50, 1, 1))


def test_host_augmentations_are_drawn_by_seed_content_occurrence_and_place():
    plain = read(host=[Noise()], host_seed=(0, 0))
    order = epoch_order(len(PICTURES), seed=3, epoch=0)
    shuffled = read(host=[Noise()], host_seed=(0, 0), order=order, batch_size=len(PICTURES))[0]
    by_position = dict(zip(shuffled.index.tolist(), shuffled.images, strict=True))
    for batch in plain:
        for position, image in zip(batch.index[batch.valid], batch.images, strict=False):
            np.testing.assert_array_equal(image, by_position[int(position)])
    assert not np.array_equal(by_position[3], by_position[7])  # the same file twice
    assert not np.array_equal(plain[0].images, read(host=[Noise()], host_seed=(0, 1))[0].images)
    # Drawn alike in both places, the noise would cancel.
    twice = read(host=[Noise(), Noise()], host_seed=(0, 0), image_size=9)[0].images[0]
    assert not np.array_equal(twice, decode_image(PICTURES[0], "")[:9, :9])


@pytest.mark.parametrize("threads", [0, 1, 4])
def test_a_broken_picture_is_named_when_its_batch_comes(threads):
    pictures = list(PICTURES)
    pictures[6] = PICTURES[6][:40]
    found = batches(examples_of(pictures), batch_size=4, image_size=8, threads=threads)
    assert next(found).valid.all()
    with pytest.raises(DataError, match=r"^picture-6: "):
        next(found)
    with pytest.raises(StopIteration):
        next(found)
    assert_no_readers()


def test_an_augmentation_must_return_a_picture():
    with pytest.raises(PluginError, match=r"Floats returned float64 \[12, 16, 3\].*uint8"):
        read(host=[Floats()], host_seed=(0,))


def test_threads_end_when_the_consumer_stops():
    data = encode(pixels(0, 300, 300), "PNG")
    found = batches(examples_of([data] * 200), batch_size=4, image_size=8, threads=3)
    next(found)
    assert any(is_reader(thread) for thread in threading.enumerate())
    found.close()
    assert_no_readers()


def test_reading_ahead_is_bounded():
    lock, reads = threading.Lock(), []
    examples = examples_of(PICTURES * 30)
    original = examples.read

    def counting(i: int) -> bytes:
        with lock:
            reads.append(i)
        return original(i)

    _ = examples.occurrences
    examples.read = counting  # type: ignore[method-assign]
    found = batches(examples, batch_size=4, image_size=8, threads=2)
    next(found)
    time.sleep(0.3)
    assert len(reads) <= 3 * 4 + 4, "more than two batches ahead"
    found.close()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"batch_size": 0}, "batch_size 0"),
        ({"pad_to": 3}, "pad_to 3"),
        ({"interpolation": "cubic"}, "'cubic'"),
        ({"host": [Noise()]}, "host_seed"),
    ],
)
def test_wrong_arguments_are_refused_before_reading(options, said):
    arguments = {"batch_size": 4, "image_size": 8, **options}
    with pytest.raises(ValueError, match=said):
        batches(examples_of(PICTURES), **arguments)


def is_reader(thread: threading.Thread) -> bool:
    return thread.name.startswith("grain")


def assert_no_readers() -> None:
    deadline = time.monotonic() + 60
    while any(is_reader(thread) for thread in threading.enumerate()):
        assert time.monotonic() < deadline, threading.enumerate()
        time.sleep(0.01)
