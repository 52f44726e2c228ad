"""Fixtures that several test files share: narrow weights, a few small pictures, one trained run."""

from __future__ import annotations

import gc
import importlib
import os
import signal
import tempfile
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from weight_files import write_published_h5

from vgg_jax.compilation import keep_compiled_programs
from vgg_jax.demo.pictures import PATTERNS, draw
from vgg_jax.workflows import feed
from vgg_jax.workflows.convert import convert_weights
from vgg_jax.workflows.train import Run, train

CLASSES = ("dots", "rings", "stripes")
SPLIT_SIZES = {"train": 7, "validation": 3, "test": 3}  # of each class


def pytest_configure(config: pytest.Config) -> None:
    """Keep tests out of the user's cache, and off the network.

    Compiled programs alone are kept, beside what pytest keeps itself: compiling takes most of the
    time of the tests, and this session's workers and child processes and the next session share it.

    They are compiled without LLVM's optimisations and without the newer emitters of fused kernels,
    which leaves a third of that time; what they compute is small.

    A shell's background ignores Ctrl-C, and children would inherit that.

    What imports have left is kept out of collections of garbage, which sweeps ask for.
    """
    os.environ.setdefault(
        "XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
    )
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    own = tempfile.TemporaryDirectory(prefix="vgg-jax-cache-")
    config.add_cleanup(own.cleanup)
    os.environ["VGG_JAX_CACHE"] = own.name
    os.environ["VGG_JAX_MIRROR"] = "http://127.0.0.1:9"  # nothing listens there
    if (cache := getattr(config, "cache", None)) is not None:
        compiled = cache.mkdir("compiled")
        compiled.chmod(0o700)
        (Path(own.name) / "compiled").symlink_to(compiled)
    keep_compiled_programs()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def _forget_programs():
    """Let go of the programs that a file's trainings compiled: each has its own, for good."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="session")
def weights(tmp_path_factory) -> str:
    """Converted weights of a VGG16 of width 1/16."""
    folder = tmp_path_factory.mktemp("weights")
    write_published_h5(folder / "narrow.h5")
    convert_weights(str(folder / "narrow.h5"), folder / "narrow")
    return str(folder / "narrow")


@pytest.fixture(scope="session")
def photos(tmp_path_factory) -> Path:
    """Class folders of drawn pictures: three classes, 21 train, 9 validation, 9 test."""
    folder = tmp_path_factory.mktemp("data") / "photos"
    for split_number, (split, count) in enumerate(SPLIT_SIZES.items()):
        for class_number, name in enumerate(CLASSES):
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                rng = np.random.default_rng([split_number, class_number, i])
                picture = Image.fromarray(draw(PATTERNS[name], rng)).resize((40, 36))
                picture.save(folder / split / name / f"{i}.png")
    return folder


@pytest.fixture(scope="session")
def options(photos, weights) -> dict[str, object]:
    """Options of a training that takes seconds."""
    return {
        "data": str(photos),
        "weights": weights,
        "epochs": 2,
        "batch_size": 8,
        "image_size": 32,
        "learning_rate": 1e-3,
    }


@pytest.fixture(scope="session")
def run(options, tmp_path_factory) -> Run:
    """A trained run, not to be changed."""
    return train(**options, run=str(tmp_path_factory.mktemp("runs") / "photos"))


@pytest.fixture
def own_cache(tmp_path, monkeypatch) -> Path:
    """Give a test a cache folder of its own, but for the compiled programs."""
    folder = tmp_path / "cache"
    folder.mkdir()
    (folder / "compiled").symlink_to((Path(os.environ["VGG_JAX_CACHE"]) / "compiled").resolve())
    monkeypatch.setenv("VGG_JAX_CACHE", str(folder))
    return folder


@pytest.fixture
def read(monkeypatch) -> list[int]:
    """The numbers of pictures that were read to be sent through the network, one for each pass."""
    counts: list[int] = []
    original = feed.read_batches

    def counting(config, chain, examples, order, *others):
        counts.append(len(examples) if order is None else len(order))
        return original(config, chain, examples, order, *others)

    monkeypatch.setattr(feed, "read_batches", counting)
    return counts


@pytest.fixture
def installed(monkeypatch, tmp_path):
    """Pretend that packages are installed: writes their metadata where importlib finds it."""

    def install(package: str, version: str, entries: dict[str, str], group="vgg_jax.heads"):
        folder = tmp_path / f"{package.replace('-', '_')}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Name: {package}\nVersion: {version}\n")
        lines = [f"[{group}]", *(f"{name} = {target}" for name, target in entries.items())]
        (folder / "entry_points.txt").write_text("\n".join(lines) + "\n")
        importlib.invalidate_caches()

    monkeypatch.syspath_prepend(str(tmp_path))
    return install
