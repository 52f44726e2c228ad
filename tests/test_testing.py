"""The checks for authors, on plugins that keep the contract."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import jax
import pytest
from typer.testing import CliRunner

from vgg_jax.api import BatchAugmentation, HostAugmentation, OptionError, PixelAugmentation, require
from vgg_jax.cli.app import app
from vgg_jax.plugins import list_plugins
from vgg_jax.testing import RULES, check_augmentation, check_head, check_plugin
from vgg_jax.testing.augmentations import examine_augmentation
from vgg_jax.testing.heads import examine_head

BUILT_IN = [plugin for plugin in list_plugins() if plugin.package == "vgg-jax"]


@pytest.mark.parametrize("plugin", BUILT_IN, ids=lambda plugin: plugin.name)
def test_what_is_built_in_keeps_the_contract(plugin):
    examine = examine_head if plugin.kind == "head" else examine_augmentation
    # A head as large as the published one takes its time.
    options: dict[str, Any] = {"units": 16} if plugin.name == "vgg" else {}
    report = examine(plugin.load(), **options)
    assert not report.failures, report.failures
    assert len(report.findings) >= 11


@dataclasses.dataclass(frozen=True, kw_only=True)
class Erase(HostAugmentation):
    """Blacken the upper rows.

    Attributes:
        fraction: Largest share of the rows, in [0, 1].
    """

    fraction: float = 0.5

    def __post_init__(self) -> None:
        require(0 <= self.fraction <= 1, "erase", "fraction", self.fraction, "in [0, 1]")

    def apply(self, rng, image):
        image = image.copy()
        image[: int(rng.random() * self.fraction * len(image))] = 0
        return image


@dataclasses.dataclass(frozen=True, kw_only=True)
class Blend(BatchAugmentation):
    """Blend pictures with a common one.

    Attributes:
        fraction: Largest share of it, in [0, 1).
    """

    fraction: float = 0.5

    def __post_init__(self) -> None:
        require(0 <= self.fraction < 1, "blend", "fraction", self.fraction, "in [0, 1)")

    def apply(self, key, images, targets, valid):
        share = jax.random.uniform(key) * self.fraction
        return images * (1 - share) + share * images[:1], targets * (1 - share) + share * targets[
            :1
        ]


@pytest.mark.parametrize("kind", [Erase, Blend])
def test_the_other_kinds_can_be_checked_too(kind):
    check_augmentation(kind)
    check_augmentation(kind, fraction=0.9)
    check_augmentation(kind(fraction=0.2))


def test_an_author_can_say_what_is_neutral():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Gamma(PixelAugmentation):
        """Raise values to a power.

        Attributes:
            most: Largest power, in [1, 10].
        """

        most: float = 2.0

        def __post_init__(self) -> None:
            require(1 <= self.most <= 10, "gamma", "most", self.most, "in [1, 10]")

        def apply(self, key, image):
            return image ** jax.random.uniform(key, minval=1, maxval=self.most)

    def finding(**options):
        found = examine_augmentation(Gamma, **options).findings
        return next(f for f in found if f.rule.name == "nothing-at-strength-zero")

    assert finding().status == "does not apply"
    assert finding(neutral={"most": 1.0}).status == "ok"
    assert finding(neutral={"most": 2.0}).status == "failed"


def test_options_of_the_check_reach_the_plugin():
    with pytest.raises(AssertionError, match=r"can-be-built.*\n.*OptionError"):
        check_augmentation(Erase, fraction=2.0)
    with pytest.raises(OptionError):
        Erase(fraction=2.0)


def test_heads_are_checked_with_options():
    (mlp,) = [plugin.load() for plugin in BUILT_IN if plugin.name == "mlp"]
    check_head(mlp, hidden=(6, 5), norm="layer", dropout=0.4, activation="gelu")


def test_the_command_prints_a_line_a_rule_and_knows_files(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "import dataclasses, jax\n"
        "from vgg_jax.api import PixelAugmentation\n"
        "@dataclasses.dataclass(frozen=True, kw_only=True)\n"
        "class Dim(PixelAugmentation):\n"
        "    '''Dim.'''\n"
        "    def apply(self, key, image):\n"
        "        return image * jax.random.uniform(key) + 1\n"
    )
    result = CliRunner().invoke(app, ["plugins", "check", f"{file}#Dim"])
    assert result.exit_code == 1
    assert "keeps-range               FAILED" in result.stdout
    assert "Seen: values from 1" in result.stdout
    assert "Dim breaks 1 rule of the contract." in result.stdout
    result = CliRunner().invoke(
        app, ["plugins", "check", "horizontal-flip:probability=0.3", "--json"]
    )
    report = json.loads(result.stdout)
    assert (result.exit_code, report["passed"]) == (0, True)
    assert {rule["name"] for rule in report["rules"]} <= RULES.keys()
    assert any(rule["name"] == "quick-import" for rule in report["rules"])


def test_a_plugin_is_checked_with_the_options_named():
    report = check_plugin("horizontal-flip:probability=0.0")
    assert [finding.rule.name for finding in report.failures] == ["uses-its-key"]
