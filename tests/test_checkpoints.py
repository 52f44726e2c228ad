"""Checkpoints: the latest and the best are kept, damage is noticed, a full disk loses nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from training_runs import spoil

from vgg_jax.cache import size_of
from vgg_jax.config import TrainConfig
from vgg_jax.errors import RunError, TrainingError
from vgg_jax.model.classifier import build_classifier, make_functional
from vgg_jax.model.freezing import label_parameters
from vgg_jax.model.vgg16 import VGG16
from vgg_jax.plugin_choices import PluginChoice
from vgg_jax.progress import EpochMetrics
from vgg_jax.training import checkpoint_store
from vgg_jax.training import checkpoints as checkpoints_module
from vgg_jax.training.checkpoints import Checkpoints
from vgg_jax.training.optim import make_optimizer
from vgg_jax.training.position import EarlyStopping, Position
from vgg_jax.training.state_arrays import fill_leaves, leaves_by_path
from vgg_jax.training.steps import Hyperparameters, TrainState
from vgg_jax.weights.checksums import array_sha256


def metrics(epoch, accuracy, loss=1.0) -> EpochMetrics:
    return EpochMetrics(epoch, epoch * 10, 1.0, 1.0, 1.0, 0.5, loss, accuracy, 1e-3)


def state(value) -> TrainState:
    return TrainState(
        {"head/kernel": jnp.full((64, 64), value, jnp.float32), "head/bias": jnp.zeros(3)},
        ({"nu": jnp.full(3, value, jnp.float32)}, jnp.asarray(7)),
        jnp.asarray(int(value) * 10, jnp.uint32),
        Hyperparameters.of(TrainConfig().resolved()),
    )


def after(*epochs: EpochMetrics, stopping: EarlyStopping | None = None) -> Position:
    return Position(
        epoch=epochs[-1].epoch + 1,
        step=epochs[-1].step,
        early_stopping=stopping or EarlyStopping(),
        history=epochs,
    )


def save_epochs(folder, accuracies, losses=None) -> Checkpoints:
    checkpoints = Checkpoints(folder / "checkpoints")
    history = []
    for i, accuracy in enumerate(accuracies, start=1):
        loss = losses[i - 1] if losses else 1.0
        history.append(metrics(i, accuracy, loss))
        checkpoints.save_epoch(after(*history, stopping=EarlyStopping(loss, i)), state(i))
    checkpoints.close()
    return Checkpoints(folder / "checkpoints")


@pytest.mark.parametrize(
    ("accuracies", "losses", "best"),
    [
        ([0.5, 0.9, 0.4], None, 2),
        ([0.5, 0.5, 0.5], [3.0, 1.0, 2.0], 2),
        ([0.5, 0.5, 0.5], [1.0, 1.0, 1.0], 3),
        ([0.9], None, 1),
    ],
)
def test_the_latest_two_and_the_best_are_kept(tmp_path, accuracies, losses, best):
    checkpoints = save_epochs(tmp_path, accuracies, losses)
    latest = len(accuracies)
    assert checkpoints.find("latest") == latest
    assert checkpoints.find("best") == best
    assert checkpoints.epochs() == sorted({best, max(latest - 1, 1), latest})


def test_the_best_of_an_earlier_session_is_kept(tmp_path):
    save_epochs(tmp_path, [0.5, 0.9, 0.4])
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    restored = checkpoints.restore_to_go_on(pytest.fail)
    assert restored is not None
    checkpoints.save_epoch(restored.position.after(metrics(4, 0.6)), state(4))
    checkpoints.close()
    assert Checkpoints(tmp_path / "checkpoints").epochs() == [2, 3, 4]


def test_what_is_saved_comes_back_to_the_bit(tmp_path):
    checkpoints = save_epochs(tmp_path, [0.5, 0.9, 0.4])
    restored = checkpoints.restore(2, with_optimizer=True)
    assert (restored.position.epoch, restored.position.step) == (3, 20)
    assert restored.position.early_stopping == EarlyStopping(1.0, 2)
    assert restored.position.history == (metrics(1, 0.5), metrics(2, 0.9))
    np.testing.assert_array_equal(restored.trained["head/kernel"], np.full((64, 64), 2.0))
    back = fill_leaves(state(0).optimizer, restored.optimizer)
    np.testing.assert_array_equal(back[0]["nu"], np.full(3, 2.0))
    assert checkpoints.restore(3).optimizer == {}


def test_a_flipped_bit_is_noticed(tmp_path):
    checkpoints = save_epochs(tmp_path, [0.5])
    largest = max((tmp_path / "checkpoints").rglob("d/*"), key=lambda path: path.stat().st_size)
    data = bytearray(largest.read_bytes())
    flipped = 0
    for position in range(len(data) // 4, len(data) // 4 + 16):
        data[position] ^= 1
        flipped += 1
    largest.write_bytes(data)
    assert flipped
    with pytest.raises(RunError, match=r"epoch_1 (is damaged|cannot be read)"):
        checkpoints.restore(1)


@pytest.mark.parametrize("item", ["record.json", "trained"])
@pytest.mark.parametrize("torn", [True, False])
def test_a_missing_or_torn_part_is_an_error_or_not_needed(tmp_path, item, torn):
    save_epochs(tmp_path, [0.5, 0.9])
    folder = tmp_path / "checkpoints" / "epoch_2" / item
    files = [folder] if folder.is_file() else [*folder.rglob("*")]
    if torn:
        for path in files:
            if path.is_file():
                path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif folder.is_file():
        folder.unlink()
    else:
        shutil.rmtree(folder)
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    with pytest.raises(RunError, match=r"cannot be read|damaged"):
        checkpoints.restore(2)


def test_a_damaged_best_checkpoint_is_named_and_the_best_of_the_others_counts(tmp_path):
    save_epochs(tmp_path, [0.5, 0.9, 0.4, 0.6])
    spoil(tmp_path / "checkpoints" / "epoch_2")
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    warnings: list[str] = []
    restored = checkpoints.restore_to_go_on(warnings.append)
    assert restored is not None
    assert restored.position.epoch == 5
    moved, lost = warnings
    assert "epoch_2" in moved
    assert "epoch 2, the best so far, is lost" in lost
    assert checkpoints.epochs() == [3, 4]
    assert checkpoints.find("best") == 4
    assert [path.name for path in checkpoints.damaged()] == ["epoch_2.1"]


def test_a_changed_record_is_noticed(tmp_path):
    save_epochs(tmp_path, [0.5])
    record = tmp_path / "checkpoints" / "epoch_1" / "record.json"
    text = record.read_text()
    record.write_text(text.replace('"best_loss": 1.0', '"best_loss": 2.0'))
    assert record.read_text() != text
    with pytest.raises(RunError, match="record does not match its checksum"):
        Checkpoints(tmp_path / "checkpoints").restore(1)


def test_a_reader_deletes_nothing(tmp_path, monkeypatch):
    """While a training saves, its folder holds one checkpoint more than stays."""
    monkeypatch.setattr(checkpoints_module, "_SLOW_SECONDS", -1.0)
    writer = save_epochs(tmp_path, [0.5, 0.4, 0.3])
    position = after(*(metrics(i, 0.5) for i in range(1, 5)))
    writer.save_epoch(position, state(4))
    writer._epochs.wait()
    before = writer.epochs()
    assert before == [2, 3, 4]
    reader = Checkpoints(tmp_path / "checkpoints")
    reader.restore(reader.find("best"))
    reader.close()
    assert reader.epochs() == before
    writer.close()


@pytest.mark.parametrize("where", ["trained", "optimizer"])
def test_what_is_not_finite_is_not_saved(tmp_path, where):
    checkpoints = save_epochs(tmp_path, [0.5])
    bad = state(2)
    if where == "trained":
        bad = bad._replace(trained={"head/bias": jnp.array([0.0, jnp.nan, 0.0])})
    else:
        bad = bad._replace(optimizer=({"nu": jnp.array([jnp.inf])}, jnp.asarray(7)))
    with pytest.raises(TrainingError, match=f"The {where} array .* no longer finite"):
        checkpoints.save_epoch(after(metrics(1, 0.5), metrics(2, 0.9)), bad)
    assert checkpoints.epochs() == [1]


def test_no_checkpoint_is_an_error_that_says_so(tmp_path):
    with pytest.raises(RunError, match="no complete checkpoint"):
        Checkpoints(tmp_path / "checkpoints").find("best")


def test_leaves_of_another_structure_are_refused():
    leaves = {path: np.asarray(leaf) for path, leaf in leaves_by_path(state(1).optimizer).items()}
    with pytest.raises(RunError, match="does not fit"):
        fill_leaves({"other": jnp.zeros(3)}, leaves)


def test_a_full_disk_is_an_error_and_the_checkpoint_before_survives(tmp_path):
    """Written by a process that may not write files above a size: the fault is a real one."""
    code = f"""
import resource, sys
sys.path.insert(0, 'tests')
from pathlib import Path
import jax.numpy as jnp
from test_checkpoints import after, metrics, save_epochs, state
checkpoints = save_epochs(Path({str(tmp_path)!r}), [0.5])
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
try:
    checkpoints.save_epoch(after(metrics(1, 0.5), metrics(2, 0.9)), state(2)._replace(
        trained={{'head/kernel': jnp.arange(65536.0)}}))
    checkpoints.wait()
except Exception as error:
    print(type(error).__name__, error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.stdout.startswith("RunError"), done.stdout + done.stderr
    assert "the checkpoint of epoch 1 is intact" in done.stdout
    survivor = Checkpoints(tmp_path / "checkpoints")
    assert survivor.epochs() == [1]
    assert survivor.restore(survivor.find("best")).position.step == 10
    survivor.save_epoch(after(metrics(1, 0.5), metrics(2, 0.9)), state(2))  # there is room again
    survivor.close()
    assert Checkpoints(tmp_path / "checkpoints").restore(2).position.step == 20


def test_early_stopping_counts_epochs_without_a_lower_loss():
    stopping = EarlyStopping()
    for loss in (3.0, 2.0, 2.0, 2.5):
        stopping = stopping.after(loss)
    assert stopping == EarlyStopping(2.0, 2)


@pytest.mark.skipif(sys.platform != "linux", reason="threads have no priority of their own")
@pytest.mark.parametrize("refused", [False, True])
def test_writing_gives_way_to_the_training(tmp_path, monkeypatch, refused):
    seen: list[int] = []

    def refuse(*arguments):
        raise PermissionError("refused")

    if refused:
        monkeypatch.setattr(os, "setpriority", refuse)

    def watching(array):
        seen.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        return array_sha256(array)

    monkeypatch.setattr(checkpoint_store, "array_sha256", watching)
    before = os.getpriority(os.PRIO_PROCESS, 0)
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save_epoch(after(metrics(1, 0.5)), state(1))
    checkpoints.close()
    assert {*seen} == {before if refused else max(before, 10)}
    assert checkpoints.epochs() == [1]
    assert os.getpriority(os.PRIO_PROCESS, 0) == before


def test_the_folder_is_made_with_the_first_checkpoint(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    assert checkpoints.epochs() == []
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize(
    ("head", "boundary", "most_mb"), [("dense256", "conv5_1", 110), ("linear", "head", 1)]
)
def test_a_checkpoint_of_the_full_width_is_as_small_as_what_is_trained(
    tmp_path, head, boundary, most_mb
):
    def build():
        backbone = VGG16(1, rngs=nnx.Rngs(0))
        choice = PluginChoice(head)
        return build_classifier(
            backbone, choice, num_classes=5, image_size=224, boundary=boundary, seed=0
        )

    _, parameters = make_functional(nnx.eval_shape(build))
    labels = label_parameters(parameters, boundary)
    trained = {
        path: jnp.zeros(value.shape)
        for path, value in parameters.items()
        if labels[path] == "trained"
    }
    optimizer = make_optimizer("rmsprop", learning_rate=1e-5, weight_decay=0.0).init(trained)
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    first = state(1)._replace(trained=trained, optimizer=optimizer)
    checkpoints.save_epoch(after(metrics(1, 0.5)), first)
    checkpoints.close()
    assert size_of(tmp_path) < most_mb * 1e6
