"""What kept features go by: all that they depend on, and nothing else."""

from __future__ import annotations

import shutil
import sys
import threading
from importlib.metadata import version
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from training_runs import SAME_BITS_SIZE, Recorder, same_run

from vgg_jax.training import feature_names
from vgg_jax.workflows import session
from vgg_jax.workflows import train as training
from vgg_jax.workflows.feed import open_feed
from vgg_jax.workflows.train import train

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture(scope="module")
def options(options) -> dict[str, object]:
    """Options of a training whose kept features have the bits of those computed anew."""
    return {**options, "image_size": SAME_BITS_SIZE}


def there(options, path: Path) -> int:
    """Return how many features a training would find."""
    progress = Recorder()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "fit", lambda *args, **others: None)
        train(**options, features="disk", run=str(path), progress=progress)
    (note,) = (note for note in progress.notes if "Features are kept" in note)
    return int(note.rsplit("; ", 1)[1].split()[0])


CHANGES = {
    "image_size": 50,  # of whose features the shape is the same
    "interpolation": "nearest",
    "weights": "random:1:0.0625",
    "train_from": "conv5_2",
    "precision": "bfloat16",
    "features_dtype": "bfloat16",
}
NO_CHANGES = {
    "head": "linear",
    "learning_rate": 1e-4,
    "optimizer": "adam",
    "batch_size": 5,
    "seed": 5,
    "label_smoothing": 0.1,
    "reader_threads": 1,
    "cache_size": "1GB",
}


def test_features_go_by_all_that_they_depend_on_and_by_nothing_else(options, tmp_path):
    given = {**options, "epochs": 1}
    assert there(given, tmp_path / "none") == 0
    train(**given, run=str(tmp_path / "first"))
    for name, value in CHANGES.items():
        assert there({**given, name: value}, tmp_path / name) == 0, name
    for name, value in NO_CHANGES.items():
        assert there({**given, name: value}, tmp_path / name) == 30, name
    for name in ("XLA_FLAGS", "NPROC"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(name, "3")
            assert there(given, tmp_path / name) == 0, name
    for package in ("flax", "numpy", "vgg-jax"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                "vgg_jax.training.feature_names.metadata.version",
                lambda name, package=package: "another" if name == package else version(name),
            )
            assert there(given, tmp_path / package) == 0, package
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "on_one_cpu", lambda: False)
        assert there(given, tmp_path / "several") == 0
    jax.config.update("jax_random_seed_offset", 1)
    try:
        assert there(given, tmp_path / "offset") == 0
    finally:
        jax.config.update("jax_random_seed_offset", 0)


def test_batches_too_small_for_the_same_bits_have_features_of_their_own(options, tmp_path):
    given = {**options, "epochs": 1}
    train(**given, run=str(tmp_path / "first"))
    for batch_size in (1, 2):
        small = {**given, "batch_size": batch_size}
        assert there(small, tmp_path / f"none{batch_size}") == 0
        train(**small, verify_features=9, run=str(tmp_path / f"kept{batch_size}"))
        train(**small, features="off", run=str(tmp_path / f"off{batch_size}"))
        same_run(tmp_path / f"off{batch_size}", tmp_path / f"kept{batch_size}")


def test_an_augmentation_that_is_edited_is_computed_anew(options, tmp_path, monkeypatch, installed):
    package = tmp_path / "my_views"
    (package / "light").mkdir(parents=True)
    for folder in (package, package / "light"):
        (folder / "__init__.py").touch()
    code = "from vgg_jax.augment.pixel import Brightness\n"
    base = package / "base.py"
    base.write_text(code)
    fade = "from my_views.base import Brightness\n\nclass Fade(Brightness): pass\n"
    (package / "light" / "fade.py").write_text(fade)
    entries = {"fade": "my_views.light.fade:Fade"}
    installed("my-views", "0.1", entries, group="vgg_jax.augmentations")
    given = {**options, "epochs": 1, "augment": ("fade",), "views": 1}
    assert there(given, tmp_path / "none") == 0
    train(**given, run=str(tmp_path / "first"))
    assert there(given, tmp_path / "same") == 30
    base.write_text(f"{code}# edited\n")
    assert there(given, tmp_path / "edited") == 9


def test_our_own_code_that_is_edited_is_computed_anew(options, tmp_path, monkeypatch):
    given = {**options, "epochs": 1, "augment": ("brightness",), "views": 1}
    train(**given, run=str(tmp_path / "first"))
    ours = tmp_path / "elsewhere" / "vgg_jax"
    shutil.copytree(feature_names._OURS, ours)
    monkeypatch.setattr(feature_names, "_OURS", ours)
    monkeypatch.setattr(feature_names, "_checksum", feature_names._checksum.__wrapped__)
    edits = {"training/loop.py": 30, "augment/pixel.py": 9, "data/decode.py": 0}
    for name, left in edits.items():
        with (ours / name).open("a") as file:
            file.write("# edited\n")
        assert there(given, tmp_path / Path(name).stem) == left, name


def test_all_code_that_makes_features_counts(options, tmp_path, monkeypatch):
    opened = []

    def open_and_note(source, data, progress):
        opened.append((source, data))
        return open_feed(source, data, progress)

    monkeypatch.setattr(training, "open_feed", open_and_note)
    monkeypatch.setattr(session, "fit", lambda *args, **others: None)
    train(**options, augment=("keras",), views=1, run=str(tmp_path / "run"))
    ((source, data),) = opened
    features = source.features(data.splits["train"], augmented=True, batch_size=8)
    ran: set[str] = set()

    def note(frame, event, argument):
        ran.add(frame.f_code.co_filename)

    threading.setprofile(note)  # for the readers
    sys.setprofile(note)
    try:
        next(features.batches(np.arange(8), 1))
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    ours = feature_names._OURS
    ran_of_ours = {path for path in map(Path, ran) if path.is_relative_to(ours)}
    patterns = feature_names._CODE + feature_names._CODE_OF_VIEWS
    counted = {path for pattern in patterns for path in ours.glob(pattern)}
    # These give the bytes that features are named by, tell whose they are, and keep programs.
    places = ("data/folders", "training/features", "training/rows", "training/validation")
    others = {ours / f"{name}.py" for name in (*places, "compilation")}
    assert ran_of_ours - others <= counted
    assert {ours / "data/decode.py", ours / "augment/geometric.py"} <= ran_of_ours


def require(folder: Path, package: str, version: str, *requirements: str) -> None:
    """Pretend that a package is installed."""
    described = folder / f"{package.replace('-', '_')}.dist-info"
    described.mkdir(exist_ok=True)
    lines = [f"Name: {package}", f"Version: {version}"]
    lines += [f"Requires-Dist: {requirement}" for requirement in requirements]
    (described / "METADATA").write_text("\n".join(lines) + "\n")


def test_an_augmentation_goes_by_all_that_its_package_needs(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    require(tmp_path, "my-views", "1", "My_Pixels[fast] >=2", "numpy>=2", "jax[extra]", "absent")
    require(
        *(tmp_path, "my-pixels", "2"),
        *("my-codec (<9)", "my-views; python_version > '3'", "my-tests; extra == 'test'"),
        *('My.Kernels; sys_platform == "linux" and extra == "fast"', "my-pixels[more]"),
        "my-rest ; extra=='more'",
    )
    for name, number in [("my-kernels", "3"), ("my-codec", "4"), ("my-tests", "5")]:
        require(tmp_path, name, number, "my-pixels")
    require(tmp_path, "my-rest", "6")
    needed = {"my-views": "1", "my-pixels": "2", "my-kernels": "3", "my-codec": "4", "my-rest": "6"}
    assert feature_names._versions_needed("my-views") == needed
    require(tmp_path, "my-codec", "4.1")
    assert feature_names._versions_needed("my-views") == {**needed, "my-codec": "4.1"}


def test_where_there_is_no_room_what_other_data_left_goes_first(options, photos, tmp_path):
    given = {**options, "epochs": 1, "cache_size": "56kB"}
    train(**given, run=str(tmp_path / "first"))
    other = tmp_path / "other"
    shutil.copytree(photos, other)
    for i, picture in enumerate(sorted(other.rglob("*.png"))):
        Image.new("RGB", (40, 36), (i, 0, 0)).save(picture)
    progress = Recorder()
    train(**{**given, "data": str(other)}, run=str(tmp_path / "second"), progress=progress)
    assert progress.warnings == []
    assert there({**given, "data": str(other)}, tmp_path / "all") == 30
    assert there(given, tmp_path / "gone") < 30


def test_features_of_views_go_by_the_augmentation_too(options, tmp_path):
    given = {**options, "epochs": 1, "augment": ("brightness", "rotation"), "views": 2}
    train(**given, run=str(tmp_path / "first"))
    # The first view of the training pictures, and the validation pictures, were computed.
    assert there(given, tmp_path / "again") == 30
    others = {
        "augment": ("brightness", "rotation:degrees=39"),
        "fill": "wrap",
        "fill_value": 0.5,
        "seed": 1,
    }
    for name, value in others.items():
        assert there({**given, name: value}, tmp_path / name) == 9, name
    assert there({**given, "views": 3}, tmp_path / "views") == 30
    assert there({**given, "head": "linear"}, tmp_path / "head") == 30
