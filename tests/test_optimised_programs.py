"""Kept features with programs as users have them: those of the other tests are not optimised."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from training_runs import SAME_BITS_SIZE, same_run

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.mark.parametrize(
    "backbone",
    [None, pytest.param("random:0", marks=[pytest.mark.slow, pytest.mark.timeout(900)])],
    ids=["narrow", "of full width"],
)
def test_kept_features_give_the_same_training_to_the_bit(options, tmp_path, backbone):
    given = {**options, "image_size": SAME_BITS_SIZE}
    given |= {"weights": backbone or options["weights"]}
    del given["batch_size"]
    code = f"""
from vgg_jax import train
def run(name, size, **others):
    train(**{given!r} | others, batch_size=size, run={str(tmp_path)!r} + "/" + name)
run("off", 11, features="off")
run("other", 4, features="disk")
run("disk", 11, features="disk")  # finds what batches of another size, of one piece, have kept
run("memory", 11, features="memory")
run("fresh", 11, augment=("keras",))
run("views", 11, augment=("keras",), views=2)  # as many as epochs
head = dict(train_from="head", head="linear")
run("chunks", 4, **head)
from vgg_jax.workflows import session
session.most_batches = lambda *others, mixes: 1
run("steps", 4, features="off", **head)
"""
    if backbone:
        code += """
from vgg_jax.model import pieces
pieces._MOST_BYTES = 0  # as if pictures were large
rounded = dict(precision="bfloat16", **head)
run("rounded off", 11, features="off", **rounded)
run("rounded other", 4, features="disk", **rounded)
run("rounded", 11, features="disk", **rounded)
"""
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    same_run(tmp_path / "off", tmp_path / "disk")
    same_run(tmp_path / "off", tmp_path / "memory")
    same_run(tmp_path / "fresh", tmp_path / "views")
    same_run(tmp_path / "steps", tmp_path / "chunks")
    if backbone:  # narrow layers are not rounded
        same_run(tmp_path / "rounded off", tmp_path / "rounded")
