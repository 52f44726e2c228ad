"""The table of layers."""

from __future__ import annotations

import json

from typer.testing import CliRunner

from vgg_jax.cli.app import app
from vgg_jax.config import TrainConfig
from vgg_jax.workflows.summary import summarise, summarise_run


def test_the_recipe_has_the_counts_that_keras_prints():
    summary = summarise(TrainConfig(head="dense256"), num_classes=5)
    # 14,714,688 of VGG16, then 25088 * 256 + 256 and 256 * 5 + 5
    assert summary.parameters == 14_714_688 + 6_422_784 + 1_285
    assert summary.trained_parameters == 3 * (9 * 512 * 512 + 512) + 6_422_784 + 1_285
    rows = {row.layer: row for row in summary.layers}
    assert rows["conv5_1"].output_shape == (14, 14, 512)
    assert rows["pool5"].output_shape == (7, 7, 512)
    assert rows["conv4_3"].trained is False
    assert rows["conv5_1"].trained is True
    assert rows["pool5"].trained is None
    assert rows["conv5_1"].keras_name == "block5_conv1"
    assert rows["conv1_1"].multiply_adds == 224 * 224 * 3 * 3 * 3 * 64


def test_the_boundary_moves_what_is_trained():
    frozen = summarise(TrainConfig(head="linear", train_from="head"), num_classes=5)
    assert frozen.trained_parameters == 512 * 5 + 5


def test_a_run_is_summarised_with_its_own_width(run):
    summary = summarise_run(run.path)
    assert summary.image_size == 32
    assert summary.layers[0].output_shape == (32, 32, 4)


def test_another_packages_dense256_does_not_take_the_default_away(installed):
    installed("latecomer", "1.0", {"dense256": "late:Head"})
    result = CliRunner().invoke(app, ["summary", "--width", "0.0625", "--json"])
    assert result.exit_code == 0, result.output
    layers = [row["layer"] for row in json.loads(result.stdout)["layers"]]
    assert layers[-2:] == ["head/hidden", "head/logits"]
