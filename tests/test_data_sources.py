"""What DATA stands for: layouts of folders, what is held back, what is refused and how."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from picture_files import (
    CLASSES,
    image_bytes,
    no_demo,
    open_folder,
    real_data,
    write_classes,
    write_splits,
)

from vgg_jax.data.sources import Examples, open_data
from vgg_jax.errors import DataError


def files(examples: Examples) -> list[str]:
    """Return the last three parts of each path."""
    return ["/".join(Path(name).parts[-3:]) for name in examples.names]


@pytest.mark.parametrize("validation", ["validation", "val", "valid", "Validation"])
def test_folders_of_splits_give_their_splits(tmp_path, validation):
    folder = tmp_path / "pets"
    data = open_folder(
        write_splits(folder, train=CLASSES, test={"cat": 1, "dog": 1}, **{validation: CLASSES})
    )
    assert (data.name, data.class_names, data.notes) == ("pets", ("cat", "dog"), ())
    assert list(data.splits) == ["train", "validation", "test"]
    assert files(data.splits["test"]) == ["test/cat/000.png", "test/dog/000.png"]
    np.testing.assert_array_equal(data.splits["train"].labels, [0, 0, 0, 0, 1, 1, 1])
    assert data.splits["train"].labels.dtype == np.int32
    path = folder / "train" / "dog" / "001.jpg"
    assert data.splits["train"].read(5) == path.read_bytes()
    assert data.splits["train"].names[5] == str(path)


def test_without_validation_a_part_of_train_is_held_back(tmp_path):
    write_splits(tmp_path, train={"a": 20, "b": 40, "c": 2, "d": 1}, test=dict.fromkeys("abcd", 1))
    data = open_folder(tmp_path)
    train, validation = data.splits["train"], data.splits["validation"]
    assert np.bincount(train.labels).tolist() == [17, 34, 1, 1]
    assert np.bincount(validation.labels).tolist() == [3, 6, 1]
    assert len({*train.names, *validation.names}) == 63
    assert list(train.names) == sorted(train.names)
    assert len(data.splits["test"]) == 4
    (note,) = data.notes
    assert all(part in note for part in ("validation", "10 of 63", "15%", "seed 0")), note


def test_class_folders_without_splits_are_split_by_seed(tmp_path):
    data = open_folder(write_classes(tmp_path / "pets", {"cat": 20, "dog": 40, "eel": 3}))
    counts = {
        split: np.bincount(examples.labels).tolist() for split, examples in data.splits.items()
    }
    assert counts == {"train": [14, 28, 1], "validation": [3, 6, 1], "test": [3, 6, 1]}
    assert len({name for examples in data.splits.values() for name in examples.names}) == 63
    assert [note.split(":")[0] for note in data.notes] == ["No validation split", "No test split"]


def test_what_is_held_back_is_a_function_of_the_seed(tmp_path):
    write_classes(tmp_path, {"cat": 20, "dog": 20})
    first, again, other = (open_folder(tmp_path, seed) for seed in (0, 0, 1))
    for split in first.splits:
        assert first.splits[split].names == again.splits[split].names
        assert first.splits[split].names != other.splits[split].names


def test_the_order_does_not_depend_on_the_file_system(tmp_path, monkeypatch):
    write_splits(tmp_path, train={"b": 3, "a b": 2, "a": 3}, val={"a": 1, "a b": 1, "b": 1})
    nested = tmp_path / "train" / "a" / "000"
    nested.mkdir()
    (nested / "x.png").write_bytes(image_bytes(9))
    expected = open_folder(tmp_path).splits["train"].names
    scandir = os.scandir

    class Backwards:
        def __init__(self, path: str) -> None:
            with scandir(path) as entries:
                self.entries = sorted(entries, key=lambda entry: entry.name, reverse=True)

        def __enter__(self):
            return self.entries

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(os, "scandir", Backwards)
    data = open_folder(tmp_path)
    assert data.splits["train"].names == expected
    assert data.class_names == ("a", "a b", "b")


def test_sub_folders_are_searched_and_other_files_are_counted(tmp_path):
    write_splits(tmp_path, train=CLASSES, val=CLASSES)
    cat = tmp_path / "train" / "cat"
    for name in ("deep/er/B.JPG", "deep/A.png", ".hidden.png", ".thumbs/x.png"):
        path = cat / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image_bytes(1))
    for name in ("Thumbs.db", "notes.txt", "deep/more.txt", "README", "picture.png.part"):
        (cat / name).write_text("no picture")
    (tmp_path / "train" / ".DS_Store").mkdir()
    (tmp_path / "train" / "stray.png").write_bytes(image_bytes(2))
    (tmp_path / "extra").mkdir()
    data = open_folder(tmp_path)
    assert data.class_names == ("cat", "dog")
    found = [Path(name).relative_to(cat).as_posix() for name in data.splits["train"].names[:6]]
    assert found == ["000.png", "001.jpg", "002.png", "003.jpg", "deep/A.png", "deep/er/B.JPG"]
    ignored, stray, extra = data.notes
    assert "5 files" in ignored
    assert ".txt (2)" in ignored
    assert "1 picture directly" in stray
    assert "extra" in extra


def test_links_are_followed_but_not_in_circles(tmp_path):
    write_splits(tmp_path, train=CLASSES, val=CLASSES)
    outside = write_classes(tmp_path / "outside", {"more": 2}) / "more"
    (tmp_path / "train" / "cat" / "linked").symlink_to(outside)
    (tmp_path / "train" / "cat" / "round").symlink_to(tmp_path / "train" / "cat")
    (tmp_path / "train" / "dog" / "up").symlink_to(tmp_path / "train" / "dog")
    (outside / "back").symlink_to(outside)
    data = open_folder(tmp_path)
    np.testing.assert_array_equal(np.bincount(data.splits["train"].labels), [6, 3])


def test_train_may_be_a_class(tmp_path):
    data = open_folder(write_classes(tmp_path, {"bus": 5, "car": 5, "train": 5}))
    assert data.class_names == ("bus", "car", "train")


def test_the_demo_is_asked_for_its_folder(tmp_path):
    folder = write_classes(tmp_path / "cache" / "demo-v3", {"cat": 5, "dog": 5})
    assert open_data("demo", demo_folder=lambda: folder, seed=0).name == "demo"


def test_home_is_expanded(tmp_path, monkeypatch):
    write_classes(tmp_path / "pets", {"cat": 5, "dog": 5})
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_data("~/pets", demo_folder=no_demo, seed=0).class_names == ("cat", "dog")


def test_a_split_alone_will_do_where_no_other_is_needed(tmp_path):
    write_splits(tmp_path, test=CLASSES)
    assert list(open_folder(tmp_path, needed=("test",)).splits) == ["test"]
    with pytest.raises(DataError, match="has no train split, only test"):
        open_folder(tmp_path)


def bad_single_class(folder: Path) -> None:
    write_splits(folder, train={"cat": 3}, val={"cat": 3})


def bad_empty_classes(folder: Path) -> None:
    write_splits(folder, train={"cat": 3, "dog": 0, "eel": 0}, val={"cat": 3, "dog": 1, "eel": 1})
    (folder / "train" / "dog" / "notes.txt").touch()


def bad_different_classes(folder: Path) -> None:
    write_splits(folder, train={"cat": 3, "dog": 3}, val={"cat": 3, "Dog": 3}, test={"cat": 3})


def bad_pictures_without_classes(folder: Path) -> None:
    write_classes(folder, {"train": 3, "test": 3})


def bad_pictures_in_the_folder(folder: Path) -> None:
    folder.mkdir()
    (folder / "a.png").write_bytes(image_bytes(0))


def bad_two_validations(folder: Path) -> None:
    write_splits(folder, train=CLASSES, val=CLASSES, validation=CLASSES)


def bad_names_of_splits(folder: Path) -> None:
    write_splits(folder, Training=CLASSES, test=CLASSES)


def bad_one_picture_each(folder: Path) -> None:
    write_splits(folder, train={"cat": 1, "dog": 1})


def bad_no_pictures(folder: Path) -> None:
    (folder / "train" / "cat").mkdir(parents=True)


def bad_file(folder: Path) -> None:
    folder.write_text("path,label\n")


def bad_typing_error(folder: Path) -> None:
    write_classes(folder.with_name("photoz"), CLASSES)


def bad_path(folder: Path) -> None:
    pass


BAD: list[tuple[Callable[[Path], None], str, list[str]]] = [
    (bad_single_class, "photos", ["single class", "'cat'", "at least two"]),
    (bad_empty_classes, "photos", ["2 class folders", "dog, eel", "Add pictures or remove"]),
    (
        bad_different_classes,
        "photos",
        ["validation lacks dog", "validation has Dog, which train has not", "test lacks dog"],
    ),
    (bad_pictures_without_classes, "photos", ["3 pictures directly", "000.png", "sub-folder"]),
    (bad_pictures_in_the_folder, "photos", ["1 picture directly", "a.png", "sub-folder"]),
    (bad_two_validations, "photos", ["val and validation", "Keep one"]),
    (bad_names_of_splits, "photos", ["Training", "train, validation and test"]),
    (bad_one_picture_each, "photos", ["held back for validation", "2 in 2 classes"]),
    (bad_no_pictures, "photos", ["No pictures", "1 class folder", ".jpeg", "sub-folder"]),
    (bad_file, "photos", ["is a file"]),
    (bad_typing_error, "photos", ["No such folder", "Did you mean 'photoz'?"]),
    (bad_path, "no/such/photos", ["No such folder", "exists up to"]),
]


@pytest.mark.parametrize(("prepare", "name", "said"), BAD, ids=[case[0].__name__ for case in BAD])
def test_unusable_folders_are_refused(tmp_path, prepare, name, said):
    prepare(tmp_path / name)
    with pytest.raises(DataError) as failure:
        open_folder(tmp_path / name)
    message = str(failure.value)
    assert str(tmp_path) in message or "held back" in message
    assert all(part in message for part in said), message
    assert message.count("\n") < 3


def test_a_missing_picture_is_named_when_it_is_read(tmp_path):
    examples = open_folder(write_splits(tmp_path, train=CLASSES, val=CLASSES)).splits["train"]
    Path(examples.names[2]).unlink()
    with pytest.raises(DataError, match=r"cat/002\.png: cannot be read \(No such file"):
        examples.read(2)
    with pytest.raises(DataError, match=r"cat/002\.png"):
        _ = examples.occurrences


def test_importing_sources_is_light():
    code = (
        "import sys, vgg_jax.data.sources\n"
        "heavy = {'jax', 'grain', 'tensorflow_datasets', 'PIL', 'flax'} & set(sys.modules)\n"
        "sys.exit(', '.join(heavy) or 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.real_data
def test_the_flowers_open():
    data = open_folder(real_data("flowers5"))
    assert data.class_names == ("daisy", "dandelion", "roses", "sunflowers", "tulips")
    counts = {split: np.bincount(examples.labels) for split, examples in data.splits.items()}
    assert {split: set(count) for split, count in counts.items()} == {
        "train": {100},
        "validation": {30},
        "test": {30},
    }
    assert data.notes == ()
