"""The configuration of a training."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest

from vgg_jax.cli.training_options import TrainingOptions
from vgg_jax.config import ResolvedConfig, TrainConfig, merge_options, read_toml
from vgg_jax.errors import ConfigError, PluginError, VggJaxError
from vgg_jax.plugins import find_plugin
from vgg_jax.training.run_folder import claim_run_path


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, r"--epochs .* is 0, but must be 1 or more"),
        ({"epochs": "five"}, r"--epochs .* is 'five', but must be a whole number"),
        ({"learning_rate": -1.0}, r"--learning-rate .* above 0"),
        ({"learning_rate": float("nan")}, "above 0"),
        ({"learning_rate": float("inf")}, "above 0"),
        ({"weight_decay": 1.5}, r"--weight-decay .* in \[0, 1\)"),
        ({"label_smoothing": 1.0}, r"in \[0, 1\)"),
        ({"fill": "mirror"}, "one of nearest, constant, reflect, wrap"),
        ({"fill_value": 255.0}, r"in \[0, 1\]"),
        ({"loss": "hinge"}, "one of categorical, binary, keras-binary"),
        ({"optimizer": "lion"}, "one of rmsprop, adam, adamw, sgd"),
        ({"batch_size": 0}, "1 or more"),
        ({"image_size": 16}, "32 or more"),
        ({"early_stop": 0}, "1 or more"),
        ({"seed": -1}, r"in \[0, 2\^32\)"),
        ({"head": "dens256"}, "Did you mean 'dense256'"),
        ({"augment": ("rotatoin",)}, "Did you mean 'rotation'"),
        ({"augment": "rotation"}, "a list of a word"),
        ({"train_from": "conv6_1"}, "No layer named 'conv6_1'"),
        ({"epoch": 3}, "No option named 'epoch'. Did you mean 'epochs'"),
    ],
)
def test_a_wrong_value_says_what_would_be_right(options, message):
    with pytest.raises(VggJaxError, match=message):
        TrainConfig.from_values(options)


def test_wrong_options_are_found_before_jax_is_imported():
    code = (
        "import sys\nfrom vgg_jax.config import TrainConfig\n"
        "try: TrainConfig(head='dens256')\nexcept Exception as e: print(e)\n"
        "sys.exit('jax' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0
    assert "dense256" in done.stdout


def test_the_recipe_is_the_default():
    config = TrainConfig(data="photos").resolved()
    assert (config.head, config.train_from, config.optimizer) == ("dense256", "conv5_1", "rmsprop")
    assert (config.learning_rate, config.image_size, config.weights) == (1e-5, 224, "imagenet")
    assert (config.epochs, config.batch_size, config.loss) == (10, 32, "categorical")


def test_the_demo_brings_its_own_defaults_and_leaves_what_was_given():
    config = TrainConfig(epochs=3).resolved()
    assert (config.data, config.weights, config.image_size, config.epochs) == (
        "demo",
        "demo",
        96,
        3,
    )


def test_adamw_decays_by_default_and_the_others_do_not():
    decay = {
        name: TrainConfig(optimizer=name).resolved().weight_decay for name in ("adamw", "adam")
    }
    assert decay == {"adamw": 0.004, "adam": 0.0}


def test_layer_names_of_keras_are_accepted():
    assert TrainConfig(train_from="block4_conv2").train_from == "conv4_2"


def test_options_win_over_the_file(tmp_path):
    file = tmp_path / "config.toml"
    file.write_text('epochs = 3\nhead = "linear"\naugment = ["zoom:fraction=0.1"]\n')
    config = TrainConfig.from_values(merge_options({"epochs": 7, "head": None}, file))
    assert (config.epochs, config.head, config.augment) == (7, "linear", ("zoom:fraction=0.1",))


@pytest.mark.parametrize(
    ("text", "message"), [("epochs = ", "not TOML"), ('epochs = "x"', "--epochs"), ("[a]\n", "'a'")]
)
def test_a_wrong_file_is_refused(tmp_path, text, message):
    file = tmp_path / "config.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        TrainConfig.from_values(merge_options({}, file))


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        read_toml(tmp_path / "none.toml")


def test_every_option_is_documented():
    for field in dataclasses.fields(TrainConfig):
        assert f"{field.name}: " in (TrainConfig.__doc__ or ""), field.name


def test_a_resolved_configuration_must_be_whole():
    values = TrainConfig().resolved().as_toml_values()
    assert ResolvedConfig.from_values(values) == TrainConfig().resolved()
    del values["epochs"]
    with pytest.raises(ConfigError, match="'epochs' is missing"):
        ResolvedConfig.from_values(values)


def test_the_default_head_is_the_built_in_one_whoever_claims_its_name(installed, tmp_path):
    installed("other-heads", "1.0", {"dense256": "other:Head"})
    config = TrainConfig.from_values({})
    assert config.head == "vgg-jax/dense256"
    assert find_plugin("head", config.head).package == "vgg-jax"
    assert claim_run_path(config, tmp_path).name == "demo-dense256-1"
    with pytest.raises(PluginError, match=r"claimed by other-heads 1.0 and vgg-jax"):
        TrainConfig(head="dense256")  # who names it is asked which


def test_the_command_line_offers_every_option_of_a_training():
    fields = {field.name for field in dataclasses.fields(TrainConfig)}
    assert {*TrainingOptions.__annotations__, "run"} == fields  # --run is the command's own
