"""Compiled programs are kept: nothing but the time changes, whatever becomes of the files."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from jax._src.compilation_cache import compress_executable, decompress_executable
from mounts import in_shell, needs_mounts

from vgg_jax.compilation import ProgramStore

# JAX, once imported, has set its own level of logging for its children, too.
OUTSIDE = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
MAIN = "from vgg_jax.cli.app import main; main()"
# Prints a digest of all that a training and a prediction give, and how programs were come by.
TRAIN = """
import collections, hashlib, json, sys
import jax, numpy as np
from vgg_jax import load_classifier, train
from vgg_jax.training.checkpoints import Checkpoints

events = collections.Counter()
jax.monitoring.register_event_listener(lambda name, **_: events.update([name.split("/")[-1]]))
run = train(**json.loads(sys.argv[1]))
restored = Checkpoints(run.path / "checkpoints").restore(1, with_optimizer=True)
images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
arrays = {**restored.trained, **restored.optimizer, "p": load_classifier(run.path).predict(images)}
digest = hashlib.sha256(b"".join(arrays[name].tobytes() for name in sorted(arrays)))
found = {name: events[f"cache_{name}"] for name in ("hits", "misses")}
folder = jax.config.jax_compilation_cache_dir
print(json.dumps({"digest": digest.hexdigest(), "folder": folder, **found}))
"""


def python(code: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**OUTSIDE, **environment},
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def trainings(options, tmp_path_factory):
    """A training with programs not to be kept, none kept yet, all kept; then of other numbers."""
    folder = tmp_path_factory.mktemp("trainings")

    def training(name: str, numbers: dict[str, float] | None = None, **environment: str):
        # Without features, which the second training would find kept: it needs fewer programs then.
        given = {**options, "epochs": 1, "features": "off", "run": str(folder / name)}
        done = python(TRAIN, json.dumps(given | (numbers or {})), **environment)
        return json.loads(done.stdout)

    found = {"plain": training("plain", JAX_ENABLE_COMPILATION_CACHE="false")}
    for name in ("cold", "warm"):
        found[name] = training(name, VGG_JAX_CACHE=str(folder / "cache"))
    numbers = {"learning_rate": 1e-4, "weight_decay": 0.1, "label_smoothing": 0.2}
    found["other"] = training("other", numbers, VGG_JAX_CACHE=str(folder / "cache"))
    return folder, found


@pytest.fixture(scope="module")
def prediction(trainings, photos):
    """A command that predicts a picture, and what it prints; its programs are kept, too."""
    folder, _ = trainings
    command = ["predict", str(folder / "cold"), str(photos / "test" / "dots" / "0.png")]
    done = python(MAIN, *command, VGG_JAX_CACHE=str(folder / "cache"))
    assert done.stderr == ""
    return command, done.stdout


@pytest.fixture
def cache(trainings, prediction, tmp_path) -> Path:
    """A copy of the cache folder with all these programs."""
    folder, _ = trainings
    return shutil.copytree(folder / "cache", tmp_path / "cache")


def compiled(cache: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (cache / "compiled").iterdir()}


def is_whole(content: bytes) -> bool:
    return content[:32] == hashlib.sha256(content[32:]).digest()


def new_store(folder: Path, most_bytes: int = 1 << 20) -> tuple[ProgramStore, list[str]]:
    notes: list[str] = []
    store = ProgramStore(folder, most_bytes=most_bytes, note=notes.append)
    assert store.open()
    return store, notes


def test_programs_from_the_disk_give_the_same_bits(trainings):
    folder, found = trainings
    assert found["plain"]["folder"] is None
    assert found["cold"]["folder"] == found["warm"]["folder"] == str(folder / "cache" / "compiled")
    assert found["plain"]["digest"] == found["cold"]["digest"] == found["warm"]["digest"]
    assert found["cold"]["misses"] > 10
    assert found["warm"]["misses"] == 0
    assert found["warm"]["hits"] >= found["cold"]["misses"]


def test_other_numbers_need_no_other_programs(trainings):
    _, found = trainings
    assert found["other"]["digest"] != found["cold"]["digest"]
    assert found["other"]["misses"] == 0


def test_damaged_programs_are_compiled_again_in_silence(cache, prediction):
    command, printed = prediction
    before = compiled(cache)
    damages = (
        lambda content: content[: len(content) // 2],
        lambda content: b"",
        lambda content: content[:-1] + bytes([content[-1] ^ 1]),
        lambda content: os.urandom(len(content)),
    )
    for i, (name, content) in enumerate(before.items()):
        (cache / "compiled" / name).write_bytes(damages[i % 4](content))
    again = python(MAIN, *command, VGG_JAX_CACHE=str(cache))
    assert (again.stdout, again.stderr) == (printed, "")
    after = compiled(cache)
    assert after.keys() == before.keys()
    assert 5 < sum(map(is_whole, after.values())) < len(after)  # the rest are the training's
    python(MAIN, *command, VGG_JAX_CACHE=str(cache))
    assert compiled(cache) == after  # nothing was left to be compiled


def test_what_xla_says_of_other_processors_is_not_shown(cache, prediction):
    """As on a processor whose own tuning flags XLA takes for instructions that it lacks."""
    command, printed = prediction
    changed = 0
    for name, content in compiled(cache).items():
        program = decompress_executable(content[32:])
        changed += b",-sm4," in program
        content = compress_executable(program.replace(b",-sm4,", b",+sm4,"))
        checksum = hashlib.sha256(content).digest()
        (cache / "compiled" / name).write_bytes(checksum + content)
    if not changed:
        pytest.skip("programs for this kind of processor name no such feature")
    shown = python(MAIN, *command, VGG_JAX_CACHE=str(cache), TF_CPP_MIN_LOG_LEVEL="2")
    assert "sm4" in shown.stderr
    hidden = python(MAIN, *command, VGG_JAX_CACHE=str(cache))
    assert (hidden.stdout, hidden.stderr) == (printed, "")


@pytest.mark.parametrize(
    ("given", "folder"),
    [
        ({"JAX_ENABLE_COMPILATION_CACHE": "false"}, None),
        ({"JAX_COMPILATION_CACHE_MAX_SIZE": "0"}, None),
        ({"JAX_COMPILATION_CACHE_DIR": "mine"}, "mine"),
    ],
)
def test_what_the_user_chose_for_jax_holds(given, folder, tmp_path):
    code = """
import jax, json
from vgg_jax.compilation import keep_compiled_programs
before = jax.config.values
keep_compiled_programs()
assert jax.config.values == before
print(json.dumps(jax.config.jax_compilation_cache_dir))
"""
    done = python(code, VGG_JAX_CACHE=str(tmp_path / "cache"), **given)
    assert json.loads(done.stdout) == folder
    assert not (tmp_path / "cache").exists()


def test_the_limit_of_jax_holds_here_too(tmp_path):
    code = """
import jax, jax.numpy as jnp
from vgg_jax.compilation import keep_compiled_programs
keep_compiled_programs()
for n in range(1, 30):
    jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((n, n)))
"""
    cache = tmp_path / "cache"
    python(code, VGG_JAX_CACHE=str(cache), JAX_COMPILATION_CACHE_MAX_SIZE="20000")
    assert 5000 < sum(map(len, compiled(cache).values())) <= 20000


def test_what_was_not_used_for_long_leaves_first(tmp_path):
    store, notes = new_store(tmp_path, most_bytes=10_000)
    for i in range(9):
        before = set(tmp_path.iterdir())
        store.put(str(i), bytes(1000))
        (written,) = set(tmp_path.iterdir()) - before
        os.utime(written, (i, i))
    assert store.get("0")  # which makes it the latest
    store.put("9", bytes(1000))
    assert [key for key in map(str, range(10)) if store.get(key)] == [
        "0",
        "4",
        "5",
        "6",
        "7",
        "8",
        "9",
    ]
    store.put("large", bytes(10_001))
    assert store.get("large") is None
    assert len(list(tmp_path.iterdir())) == 7
    assert not notes


def test_a_folder_that_is_removed_meanwhile_is_made_anew(tmp_path):
    store, notes = new_store(tmp_path / "compiled")
    store.put("first", b"program")
    shutil.rmtree(tmp_path / "compiled")
    assert store.get("first") is None
    store.put("second", b"program")
    assert store.get("second") == b"program"
    assert not notes


def test_killed_while_it_writes(tmp_path):
    code = """
import sys
from pathlib import Path
from vgg_jax.compilation import ProgramStore
store = ProgramStore(Path(sys.argv[1]), most_bytes=1 << 30, note=print)
store.open()
store.put("first", b"program")
print("ready", flush=True)
for i in range(10**6):
    store.put(str(i % 8), bytes([i % 256]) * (8 << 20))
"""
    folder = tmp_path / "compiled"
    for kill in range(6):
        with subprocess.Popen(
            [sys.executable, "-c", code, folder], stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout
            assert process.stdout.readline() == "ready\n"
            time.sleep(0.05 + 0.013 * kill)
            process.kill()
        whole = [path for path in folder.iterdir() if not path.suffix]
        assert whole
        for path in whole:
            assert is_whole(path.read_bytes())
    (folder / "left.part").touch()
    for part in folder.glob("*.part"):
        os.utime(part, (0, 0))
    store, _ = new_store(folder, most_bytes=1 << 30)
    store.put("new", b"program")
    assert not list(folder.glob("*.part"))
    assert store.get("new") == b"program"


def test_several_may_write_and_make_room_at_once(tmp_path):
    stores = [new_store(tmp_path, most_bytes=20_000) for _ in range(8)]

    def write(number: int) -> None:
        for i in range(150):
            stores[number][0].put(f"{i}", bytes([i]) * 1000)
            assert stores[number][0].get(f"{i // 2}") in (None, bytes([i // 2]) * 1000)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(write, range(8)))
    assert not any(notes for _, notes in stores)
    assert all(is_whole(path.read_bytes()) for path in tmp_path.iterdir())


def test_other_numbers_of_cores_have_other_programs(tmp_path, monkeypatch):
    store, _ = new_store(tmp_path)
    store.put("key", b"program")
    monkeypatch.setenv("NPROC", "77")
    assert store.get("key") is None


def test_a_folder_that_cannot_be_had_is_told_once(prediction, tmp_path):
    command, printed = prediction
    (tmp_path / "compiled").touch()
    done = python(MAIN, *command, VGG_JAX_CACHE=str(tmp_path))
    assert done.stdout == printed
    (note,) = done.stderr.splitlines()
    assert f"cannot be kept in {tmp_path / 'compiled'}: File exists." in note


def test_a_folder_that_others_may_write_is_not_trusted(tmp_path):
    (tmp_path / "compiled").mkdir()
    (tmp_path / "compiled").chmod(0o777)
    notes: list[str] = []
    store = ProgramStore(tmp_path / "compiled", most_bytes=1000, note=notes.append)
    assert not store.open()
    assert "other users may write there" in notes[0]


@needs_mounts
@pytest.mark.parametrize(
    ("mount", "reason"), [("size=16k", "No space left on device"), ("ro", "Read-only file system")]
)
def test_a_disk_that_takes_no_programs_is_told_once(mount, reason, prediction, tmp_path):
    command, printed = prediction
    script = """
        mount -t tmpfs -o size=1m tmpfs "$1" && mkdir -m 700 "$1/compiled" || exit 99
        mount -o "remount,$2" tmpfs "$1"; disk=$1; shift 2
        VGG_JAX_CACHE=$disk "$@"; echo "exit $?" >&2
        ls -A "$disk/compiled" | grep part
    """
    done = in_shell(script, tmp_path, mount, sys.executable, "-c", MAIN, *command)
    assert done.stdout == printed
    note, code = done.stderr.splitlines()
    assert f"cannot be kept in {tmp_path / 'compiled'}: {reason}." in note
    assert code == "exit 0"
