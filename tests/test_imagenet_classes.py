"""The classes that the published top tells apart: their order, their names."""

from __future__ import annotations

import csv
import importlib.util
import re
from pathlib import Path

import pytest
from picture_files import real_data

from vgg_jax.model.imagenet_classes import imagenet_classes


def test_a_thousand_classes_each_with_its_own_name():
    classes = imagenet_classes()
    assert len(classes) == 1000
    assert len({imagenet_class.name for imagenet_class in classes}) == 1000
    for wnid, name in classes:
        assert re.fullmatch(r"n\d{8}", wnid), wnid
        assert name == name.strip() != "", wnid


def test_the_order_is_that_of_tensorflow_datasets():
    spec = importlib.util.find_spec("tensorflow_datasets")  # which finds it and imports nothing
    assert spec is not None
    assert spec.origin is not None
    labels = Path(spec.origin).parent / "datasets" / "imagenet2012" / "labels.txt"
    assert [wnid for wnid, _ in imagenet_classes()] == labels.read_text().split()


@pytest.mark.parametrize(
    ("number", "wnid", "name"),
    [
        (0, "n01440764", "tench"),
        (134, "n02012849", "crane (bird)"),
        (283, "n02123394", "Persian cat"),
        (517, "n03126707", "crane (machine)"),
        (638, "n03710637", "maillot"),
        (639, "n03710721", "maillot (tank suit)"),
        (999, "n15075141", "toilet tissue"),
    ],
)
def test_well_known_classes(number, wnid, name):
    assert imagenet_classes()[number] == (wnid, name)


@pytest.mark.real_data
def test_names_fit_what_people_said_of_photographs():
    def words(text: str) -> set[str]:
        return set(re.findall(r"[a-z]{3,}", text.lower()))

    with (real_data("labelled_photos") / "labels.csv").open(newline="") as lines:
        rows = [row for row in csv.DictReader(lines) if row["label_certain"] == "yes"]
    assert rows
    for row in rows:
        numbers = map(int, row["accepted_class_indices"].split("|"))
        names = [imagenet_classes()[number].name for number in numbers]
        assert words(" ".join(names)) & words(row["what"]), (row["file"], names)
