"""Deliberately broken plugins: each is caught, says why, and harms nobody who does not name it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from broken_plugins import (
    AUGMENTATIONS,
    HEADS,
    IMPORTS,
    SOUND_AUGMENTATIONS,
    SOUND_HEADS,
    broken,
    other,
)

from vgg_jax import train
from vgg_jax.errors import OptionError, PluginError
from vgg_jax.plugins import find_plugin, list_plugins
from vgg_jax.testing import (
    PluginContractError,
    Report,
    check_augmentation,
    check_head,
    check_plugin,
)
from vgg_jax.testing.augmentations import examine_augmentation
from vgg_jax.testing.heads import examine_head
from vgg_jax.testing.probe import probe_plugins


@pytest.mark.parametrize("name", SOUND_HEADS)
def test_sound_heads_pass(name):
    assert examine_head(broken(SOUND_HEADS[name])).failures == ()


@pytest.mark.parametrize("name", SOUND_AUGMENTATIONS)
def test_sound_augmentations_pass(name):
    assert examine_augmentation(broken(SOUND_AUGMENTATIONS[name])).failures == ()


def test_a_batch_augmentation_may_do_the_same_for_every_key():
    halves = other(
        "BatchAugmentation",
        "def apply(self, key, images, targets, valid):\n"
        "    return (1 - self.strength / 2) * images, targets",
    )
    assert examine_augmentation(broken(halves)).failures
    assert examine_augmentation(broken(halves), fixed=True).failures == ()


def test_wrong_options_are_the_users_not_the_plugins():
    with pytest.raises(OptionError, match="degrees"):
        check_plugin("rotation:degrees=abc")
    with pytest.raises(OptionError, match="foo"):
        check_plugin("rotation:foo=1")


def seen_of(report: Report, rule: str) -> str:
    return next((finding.seen for finding in report.failures if finding.rule.name == rule), "")


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_broken_augmentations_are_caught(name):
    source, rule, seen = AUGMENTATIONS[name]
    report = examine_augmentation(broken(source))
    assert seen in seen_of(report, rule), report.failures


@pytest.mark.parametrize("name", HEADS)
def test_broken_heads_are_caught(name):
    source, rule, seen = HEADS[name]
    report = examine_head(broken(source))
    assert seen in seen_of(report, rule), report.failures


def test_the_failure_says_what_the_rule_is_and_why():
    source, _, _ = AUGMENTATIONS["ignores its key"]
    with pytest.raises(PluginContractError) as caught:
        check_augmentation(broken(source))
    text = str(caught.value)
    assert "Broken breaks 1 rule(s) of the contract:" in text
    assert "uses-its-key: Different random keys give different outputs." in text
    assert "seen: 8 keys give one output" in text
    assert "why: Every epoch would show the same" in text
    check_augmentation(broken(source), fixed=True)
    source, _, _ = HEADS["layer out of use"]
    with pytest.raises(PluginContractError, match="finite-gradient: The gradient of a loss is"):
        check_head(broken(source))


@pytest.fixture
def ward(installed, tmp_path, monkeypatch) -> Path:
    """Packages whose modules cannot be imported, are slow, or are for another contract."""
    for name, (source, _) in IMPORTS.items():
        module = f"broken_{name.replace('-', '_')}"
        (tmp_path / f"{module}.py").write_text(source)
        installed(f"ill-{name}", "0.1", {name: f"{module}:Head"})
    (tmp_path / "broken_slow.py").write_text(
        "import time\ntime.sleep(1.2)\nprint('done')\nHead=1\n"
    )
    installed("ill-slow", "0.1", {"slow": "broken_slow:Head"})
    installed("ill-future", "0.1", {"future": "broken:Head"}, group="vgg_jax.heads.v2")
    installed("ill-double", "0.1", {"linear": "broken:Head"})
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


@pytest.mark.usefixtures("ward")
def test_imports_that_fail_hang_or_end_the_process_are_told_apart():
    plugins = [p for p in list_plugins("head") if p.package.startswith("ill-") and not p.problem]
    found = {plugin.name: probe for plugin, probe in probe_plugins(plugins).items()}
    for name, (_, message) in IMPORTS.items():
        assert message in found[name].error, name
    assert [name for name in IMPORTS if found[name].ended] == ["exits", "dies"]
    slow = found["slow"]
    assert (slow.error, slow.printed) == ("", "done")
    assert slow.seconds > 1.2


@pytest.mark.usefixtures("ward")
def test_a_broken_plugin_that_is_named_says_whose_it_is():
    for name in ("import-error", "syntax-error", "exits", "no-such-class"):
        with pytest.raises(
            PluginError, match=f"The head '{name}' of ill-{name} 0.1 cannot be load"
        ):
            find_plugin("head", name).load()
    with pytest.raises(PluginError, match="version 2 of the plugin contract"):
        find_plugin("head", "future")
    with pytest.raises(PluginError, match=r"claimed by ill-double 0.1 and vgg-jax"):
        find_plugin("head", "linear")


@pytest.mark.usefixtures("ward")
def test_nobody_else_is_harmed(options, tmp_path):
    run = train(**{**options, "epochs": 1, "augment": ("zoom",)}, run=str(tmp_path / "run"))
    assert len(run.history) == 1


def test_commands_show_what_is_broken(ward):
    environment = {**os.environ, "PYTHONPATH": str(ward)}
    program = str(Path(sys.executable).with_name("vgg-jax"))

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [program, "plugins", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    listed = run("list", "--kind", "head", "--load", "--json")
    assert listed.returncode == 0, listed.stderr
    rows = {(row["package"], row["name"]): row for row in json.loads(listed.stdout)["plugins"]}
    for name, (_, message) in IMPORTS.items():
        assert message in rows[f"ill-{name}", name]["problem"]
    assert "version 2 of the plugin contract" in rows["ill-future", "future"]["problem"]
    assert rows["vgg-jax", "mlp"]["problem"] == ""
    assert rows["vgg-jax", "mlp"]["summary"].startswith("Flatten, hidden layers")
    checked = run("check", "dies")
    assert checked.returncode == 1
    assert "importing it ended the process, with code 5" in checked.stdout
    slow = run("check", "slow", "--json")
    report = json.loads(slow.stdout)
    failed = {rule["name"] for rule in report["rules"] if rule["status"] == "failed"}
    assert {"quick-import", "does-not-exit", "can-be-built"} <= failed
    assert not report["passed"]
