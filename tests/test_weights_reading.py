"""The side of reading that starts the reader: its answers, its end, and what it leaves behind."""

from __future__ import annotations

import gc
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from hostile_archives import KERAS
from hostile_h5 import EDITS
from safetensors.numpy import save_file
from torch_files import torch_arrays, write_legacy_pth, write_pth, write_safetensors
from weight_files import write_published_h5

from vgg_jax.errors import WeightsError
from vgg_jax.layers import CONVOLUTIONS
from vgg_jax.weights import child, reading
from vgg_jax.weights.own_facts import read_own_facts
from vgg_jax.weights.reading import child_environment, read_weight_file
from vgg_jax.weights.source import LAYOUTS, Contents
from vgg_jax.weights.torch import find_safetensors

SOURCES = Path(__file__).parent / "golden" / "sources"
WIDTH = 1 / 64
LAYOUT_OF = {
    "published": "keras-h5",
    "model": "keras-model-h5",
    "numbered": "keras-weights-h5",
    "zip": "keras",
    "safetensors": "torch-safetensors",
    "pth": "torch-pth",
    "legacy pth": "torch-pth",
}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    """One small file of each kind, none with a suffix that tells."""
    folder = tmp_path_factory.mktemp("files")
    files = {kind: folder / f"{kind}.bin" for kind in LAYOUT_OF}
    write_published_h5(files["published"], WIDTH)
    shutil.copy(SOURCES / "classifier.h5", files["model"])
    shutil.copy(SOURCES / "classifier.weights.h5", files["numbered"])
    shutil.copy(SOURCES / "classifier.keras", files["zip"])
    write_safetensors(files["safetensors"], torch_arrays(WIDTH))
    write_pth(files["pth"], torch_arrays(WIDTH))
    write_legacy_pth(files["legacy pth"], torch_arrays(WIDTH))
    return files


@pytest.fixture
def narrow(tmp_path) -> Path:
    write_published_h5(tmp_path / "narrow.h5", WIDTH)
    return tmp_path / "narrow.h5"


def error_of(path: str | Path, **options: str) -> str:
    with pytest.raises(WeightsError) as caught:
        read_weight_file(path, **options)  # pyright: ignore[reportArgumentType]
    return str(caught.value)


@pytest.mark.parametrize("kind", LAYOUT_OF)
@pytest.mark.parametrize("suffix", [".h5", ".png"])
def test_the_content_tells_the_layout_whatever_the_suffix(files, tmp_path, kind, suffix):
    path = Path(shutil.copy(files[kind], tmp_path / f"weights{suffix}"))
    file = read_weight_file(path)
    assert file.layout is LAYOUTS[LAYOUT_OF[kind]]
    assert tuple(file.layers) == CONVOLUTIONS
    assert file.size == path.stat().st_size


@pytest.mark.parametrize(
    ("kind", "layout", "words"),
    [
        ("published", "keras-model-h5", "is no whole Keras model"),
        ("published", "keras-weights-h5", "it has 0 convolutions, not 13"),
        ("published", "keras", "is no keras: its content shows hdf5; leave --layout out"),
        ("zip", "keras-h5", "is no keras-h5: its content shows keras; leave --layout out"),
        ("zip", "torch-pth", "its content shows keras;"),
        ("legacy pth", "torch-safetensors", "its content shows torch-pth;"),
        ("safetensors", "torch-pth", "its content shows torch-safetensors;"),
        ("pth", "keras", "its content shows torch-pth;"),
    ],
)
def test_a_wrong_layout_is_told(files, kind, layout, words):
    assert words in error_of(files[kind], layout=layout)


def test_content_that_shows_no_layout_is_left_to_the_named_reader(tmp_path):
    (tmp_path / "nonsense").write_bytes(b"nonsense")
    assert "file signature not found" in error_of(tmp_path / "nonsense", layout="keras-h5")


def test_names_that_would_steer_a_terminal_are_spelled_out(tmp_path):
    arrays = torch_arrays(WIDTH)
    prefix = "\x1b[31m\n"
    odd = {f"{prefix}.{name}": array for name, array in arrays.items()}
    write_safetensors(tmp_path / "odd", odd)
    file = read_weight_file(tmp_path / "odd")
    assert file.layers["conv1_1"].kernel == r"\x1b[31m\n.features.0.weight"
    assert file.arrays.keys() == {rf"\x1b[31m\n.{name}" for name in arrays}
    np.testing.assert_array_equal(
        file.arrays[file.layers["conv5_3"].bias], arrays["features.28.bias"]
    )


def test_names_that_differ_only_unprinted_are_refused(tmp_path, monkeypatch):
    def found(path: Path, layout: str | None) -> Contents:
        contents = find_safetensors(path)
        kernels = ("\x1b", r"\x1b")
        layers = {
            name: replace(layer, kernel=replace(layer.kernel, path=kernel))
            for (name, layer), kernel in zip(contents.layers.items(), kernels, strict=False)
        }
        return replace(contents, layers={**contents.layers, **layers})

    write_safetensors(tmp_path / "alike", torch_arrays(WIDTH))
    monkeypatch.setattr(child, "find_contents", found)
    with pytest.raises(WeightsError, match="look alike"):
        child.read(tmp_path / "alike", None, False, -1)


@pytest.mark.parametrize("name", ["", "\x1b[2Jcat", "cat\ndog", "\x9b31m", "\u202egod"])
def test_class_names_that_would_steer_a_terminal_are_refused(tmp_path, name):
    facts = {"mean": [0, 0, 0], "scale": [1, 1, 1], "class_names": ["ok", name]}
    metadata = {"channels": "RGB"} | {key: json.dumps(value) for key, value in facts.items()}
    save_file(torch_arrays(WIDTH), tmp_path / "named", metadata)
    message = error_of(tmp_path / "named")
    assert f"class name {name!r} is empty or cannot be printed" in message
    with pytest.raises(ValueError, match="cannot be printed"):
        read_own_facts(json.dumps({"channels": "RGB"} | facts))


def test_a_layout_and_a_preprocessing_can_be_given(narrow):
    file = read_weight_file(narrow, layout="keras-h5", preprocessing="tf")
    assert (file.layout.name, file.preprocessing.name) == ("keras-h5", "tf")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"layout": "keras-h6"}, "No layout named 'keras-h6'. Did you mean 'keras-h5'?"),
        ({"preprocessing": "cafe"}, "No preprocessing named 'cafe'. Did you mean 'caffe'?"),
    ],
)
def test_unknown_names_are_told_with_the_known_ones(narrow, options, words):
    assert words in error_of(narrow, **options)


def test_what_is_no_file_is_told(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty").touch()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path, words in (
        (tmp_path, "is a folder"),
        (tmp_path / "missing", "No such weight file"),
        (tmp_path / "loop", "No such weight file"),
        (tmp_path / "pipe", "neither a file nor a folder"),
        ("/dev/null", "neither a file nor a folder"),
        (tmp_path / "empty", "it is empty"),
    ):
        assert words in error_of(path), path


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_is_told(narrow):
    narrow.chmod(0)
    assert "cannot be read: Permission denied" in error_of(narrow)


def test_a_file_larger_than_any_network_is_refused_at_once(narrow):
    os.truncate(narrow, 1 << 40)
    assert "1,099,511,627,776 bytes" in error_of(narrow)


@pytest.mark.parametrize("name", ["Gewichte äöü 重み.h5", "two\nlines.h5", b"not UTF-8 \xff.h5"])
@pytest.mark.parametrize("kind", ["published", "zip", "safetensors", "pth"])
def test_any_path_will_do(files, tmp_path, kind, name):
    path = tmp_path / os.fsdecode(name)
    shutil.copy(files[kind], path)
    assert tuple(read_weight_file(path).layers) == CONVOLUTIONS


@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8", ">f2", ">f4", ">f8"])
def test_arrays_are_read_only_aligned_and_as_in_the_file(tmp_path, dtype):
    drawn = write_published_h5(tmp_path / "typed.h5", WIDTH, dtype=dtype)
    file = read_weight_file(tmp_path / "typed.h5")
    for layer, (kernel, bias) in zip(file.layers.values(), drawn.values(), strict=True):
        for path, expected in ((layer.kernel, kernel), (layer.bias, bias)):
            array = file.arrays[path]
            assert array.dtype == np.dtype(dtype).newbyteorder("<")
            assert array.ctypes.data % 64 == 0
            assert not array.flags.writeable
            np.testing.assert_array_equal(array, expected.astype(dtype), err_msg=path)


def test_a_file_that_takes_long_is_ended(narrow):
    with h5py.File(narrow, "r+") as file:
        EDITS["chunks of 100 MiB"](file, np.random.default_rng(0))
    assert "takes more time to read" in error_of(narrow)


def stand_in_for_python(monkeypatch, folder: Path, script: str) -> None:
    """Let the reader be started by a shell script that is given Python's arguments."""
    stand_in = folder / "python"
    stand_in.write_text(f"#!/bin/sh\n{script}\n")
    stand_in.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(stand_in))


def test_a_file_that_takes_much_memory_is_ended(tmp_path, monkeypatch):
    path = tmp_path / "huge.keras"
    sound = (SOURCES / "backbone.keras").read_bytes()
    KERAS["zip: huge configuration"](path, sound, np.random.default_rng(0))
    # A slow processor's time would be up before the memory is.
    patient = "from vgg_jax.weights import child; child._SPARE_SECONDS = 60.0; child.main()"
    script = f"shift 3; exec '{sys.executable}' -P -c '{patient}' \"$@\""
    stand_in_for_python(monkeypatch, tmp_path, script)
    assert "takes more memory to read" in error_of(path)


@pytest.mark.parametrize(
    ("script", "kind", "words"),
    [
        ("kill -SEGV $$", WeightsError, "the reader was ended by SIGSEGV"),
        ("kill -ABRT $$", WeightsError, "the reader was ended by SIGABRT"),
        ("kill -KILL $$", WeightsError, "the reader was ended by SIGKILL"),
        ("kill -PROF $$", WeightsError, "takes more time to read"),
        ("exec sleep 60", WeightsError, "could not be read within 0 s"),
        ("exec sleep 60 >&- 2>&-", WeightsError, "could not be read within 0 s"),
        ("echo No module named numpy >&2; exit 3", RuntimeError, "No module named numpy"),
        ("echo rubbish", RuntimeError, "rubbish"),
        ("exit 0", RuntimeError, "reader of weight files"),
        ('echo \'{"error": "all is lost"}\'', WeightsError, "all is lost"),
    ],
)
def test_every_end_of_the_reader_is_told(narrow, tmp_path, monkeypatch, script, kind, words):
    stand_in_for_python(monkeypatch, tmp_path, script)
    monkeypatch.setattr(reading, "_SPARE_SECONDS", 0.4)
    with pytest.raises(kind, match=words):
        read_weight_file(narrow)


def test_no_module_of_the_working_directory_is_imported(narrow, tmp_path, monkeypatch):
    for name in ("numpy", "json", "h5py", "vgg_jax", "sitecustomize", "zipfile"):
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('{name} of the folder was run')")
    monkeypatch.chdir(tmp_path)
    assert tuple(read_weight_file("narrow.h5").layers) == CONVOLUTIONS


def test_the_reader_needs_no_jax(files):
    probe = """
import json, os, pathlib, sys
from vgg_jax.weights import child
for path in sys.argv[1:]:
    child.read(pathlib.Path(path), None, False, os.memfd_create("arrays"))
print(json.dumps([name for name in ("jax", "jaxlib", "flax", "orbax") if name in sys.modules]))
"""
    output = subprocess.run(
        [sys.executable, "-P", "-c", probe, *map(str, files.values())],
        env=child_environment(),
        stdout=subprocess.PIPE,
        check=True,
    ).stdout
    assert json.loads(output) == []


def test_libhdf5_looks_nowhere_for_filters_to_load(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "libfilter.so")  # to open it would be to wait
    monkeypatch.setenv("HDF5_PLUGIN_PATH", str(tmp_path))
    probe = [sys.executable, "-P", "-c", "from h5py import h5z; print(h5z.filter_avail(32015))"]
    output = subprocess.run(
        probe, env=child_environment(), stdout=subprocess.PIPE, check=True, timeout=30
    ).stdout
    assert output == b"False\n"


def test_readings_leave_nothing_open_and_nobody_behind(files, tmp_path):
    (tmp_path / "bad").write_bytes(b"nonsense")

    def read_several() -> None:
        for path in (files["published"], files["zip"], files["pth"], tmp_path / "bad"):
            try:
                read_weight_file(path)
            except WeightsError:
                assert path.name == "bad"
        gc.collect()

    read_several()
    before = sorted(os.listdir("/proc/self/fd"))  # noqa: PTH208
    read_several()
    assert sorted(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    assert not [
        pid for pid in children if "weights.child" in Path(f"/proc/{pid}/cmdline").read_text()
    ]
