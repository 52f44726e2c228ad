"""The candidates of a sweep: which they are, and what their runs are called."""

from __future__ import annotations

import re

import pytest

from vgg_jax.errors import ConfigError, UnknownPluginError
from vgg_jax.workflows.candidates import candidates_of, named_as_there


def test_every_combination_is_a_candidate_in_the_order_given():
    found = candidates_of(
        {"data": "photos", "learning_rate": [1e-4, 1e-5], "head": ["linear", "dense256"]}
    )
    assert [candidate.name for candidate in found] == [
        "linear-lr1e-4",
        "linear-lr1e-5",
        "dense256-lr1e-4",
        "dense256-lr1e-5",
    ]
    assert [(c.config.head, c.config.learning_rate) for c in found] == [
        ("linear", 1e-4),
        ("linear", 1e-5),
        ("dense256", 1e-4),
        ("dense256", 1e-5),
    ]
    assert found[0].differs == {"head": "linear", "learning_rate": 1e-4}
    assert {candidate.config.data for candidate in found} == {"photos"}


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"head": "linear"}, ["linear"]),
        ({"head": ["mlp:hidden=[64]", "mlp:hidden=[64,32],dropout=0.5"]}, None),
        ({"optimizer": ["adam", "adamw"]}, ["adam", "adamw"]),
        ({"weight_decay": [0.0, 0.004]}, ["wd0", "wd0.004"]),
        ({"label_smoothing": (0, 0.1)}, ["ls0", "ls0.1"]),
        ({"learning_rate": [3.5e-4, 0.1, 1]}, ["lr3.5e-4", "lr1e-1", "lr1e0"]),
        ({"head": ["dense256", "vgg-jax/dense256"]}, ["dense256", "dense256-2"]),
    ],
)
def test_names_tell_what_differs_and_are_safe(options, names):
    found = [candidate.name for candidate in candidates_of(options)]
    expected = names or ["mlp-hidden-64", "mlp-hidden-64-32-dropout-0.5"]
    assert found == expected
    assert all(re.fullmatch(r"[\w.-]+", name) for name in found)


def test_runs_that_are_there_are_known_by_their_values():
    def named(there, **options):
        runs = {name: candidates_of(values)[0].config for name, values in there.items()}
        return [candidate.name for candidate in named_as_there(candidates_of(options), runs)]

    sgd = {"optimizer": "sgd", "learning_rate": 0.1}
    assert named({}, learning_rate=[0.1, 0.2]) == ["lr1e-1", "lr2e-1"]
    assert named({"mine": sgd}, optimizer=["sgd", "adam"], learning_rate=0.1) == ["mine", "adam"]
    assert named({"sgd": sgd}, optimizer=["sgd"], learning_rate=[0.1, 0.2]) == ["sgd", "lr2e-1"]
    assert named({"a": sgd, "lr1e-1": sgd}, optimizer="sgd", learning_rate=[0.1, 1]) == [
        "lr1e-1",
        "lr1e0",
    ]
    other = {"lr1e-1": {"optimizer": "adam", "learning_rate": 0.1}}
    assert named(other, optimizer="sgd", learning_rate=[0.1, 1]) == [
        "dense256-sgd-lr1e-1-wd0-ls0",
        "lr1e0",
    ]
    heads = {"head": ["dense256", "vgg-jax/dense256"]}
    assert named({"dense256": {}, "dense256-2": {"head": "vgg-jax/dense256"}}, **heads) == [
        "dense256",
        "dense256-2",
    ]
    assert named({"dense256": {}, "dense256-2": {"head": "vgg-jax/dense256"}}) == ["dense256"]


def test_defaults_are_those_of_the_candidate():
    plain, decayed = candidates_of({"optimizer": ["adam", "adamw"], "data": "photos"})
    assert (plain.config.weight_decay, decayed.config.weight_decay) == (0, 0.004)
    assert plain.config.learning_rate == 1e-5


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"learning_rate": [1e-5, 0.00001]}, ConfigError, "are the same: --learning-rate 1e-05"),
        ({"learning_rate": [1e-5, None]}, ConfigError, "are the same"),
        ({"learning_rate": []}, ConfigError, r"--learning-rate .* is empty"),
        ({"learning_rate": [1e-5, -1.0]}, ConfigError, r"--learning-rate .* is -1.0"),
        ({"label_smoothing": [0.0, 1.0]}, ConfigError, r"--label-smoothing .* is 1.0"),
        ({"optimizer": ["adam", "adm"]}, ConfigError, r"--optimizer .* is 'adm'"),
        ({"head": ["linear", "liner"]}, UnknownPluginError, "Did you mean 'linear'"),
        ({"epochs": [1, 2]}, ConfigError, r"--epochs .* is \[1, 2\]"),
    ],
)
def test_what_is_wrong_is_told_before_anything_starts(options, error, message):
    with pytest.raises(error, match=message):
        candidates_of({"data": "photos", **options})
