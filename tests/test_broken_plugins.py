"""Deliberately broken plugins: each is caught, says why, and harms nobody who does not name it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

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

PIXEL = """
import dataclasses, random
import jax, jax.numpy as jnp, numpy as np
from vgg_jax.api import (
    BatchAugmentation, GeometricAugmentation, HostAugmentation, PixelAugmentation, require
)

@dataclasses.dataclass(frozen=True, kw_only=True)
class Broken({base}):
    '''Break a rule.

    Attributes:
        strength: How much, in [0, 1].
    '''

    strength: float = 0.5

    def __post_init__(self):
        require(0 <= self.strength <= 1, "broken", "strength", self.strength, "in [0, 1]")

{body}
"""
HEAD = """
import random
import jax, jax.numpy as jnp
from flax import nnx

class Broken(nnx.Module):
    '''Break a rule.'''

    def __init__(self, feature_shape, num_classes, *, rngs: nnx.Rngs):
        self.logits = nnx.Linear(feature_shape[-1], num_classes, rngs=rngs)
{more}

    def __call__(self, features):
        x = features.mean((1, 2))
{body}
"""


def lines(text: str, spaces: int) -> str:
    return "\n".join(" " * spaces + line for line in text.strip().splitlines())


def pixel(expression: str) -> str:
    body = f"def apply(self, key, image):\n    return {expression}"
    return PIXEL.format(base="PixelAugmentation", body=lines(body, 4))


def other(base: str, body: str) -> str:
    return PIXEL.format(base=base, body=lines(body, 4))


def head(body: str, more: str = "pass") -> str:
    return HEAD.format(body=lines(body, 8), more=lines(more, 8))


UNIFORM = "jax.random.uniform(key)"
DIM = pixel(f"image * (1 - self.strength * {UNIFORM})")
DOCUMENTED = "strength: How much, in [0, 1]."
FROZEN = "frozen=True, kw_only=True"
# name: source, the rule that catches it, what is seen
AUGMENTATIONS: dict[str, tuple[str, str, str]] = {
    "wrong signature": (
        other("PixelAugmentation", "def apply(self, image):\n    return image"),
        "keeps-shape",
        "takes 2 positional arguments but 3 were given",
    ),
    "changes shape": (pixel("image[1:] * self.strength"), "keeps-shape", "not (32, 32, 3)"),
    "changes type": (pixel("(image * 2).astype(jnp.bfloat16)"), "keeps-dtype", "bfloat16"),
    "ignores its key": (
        pixel("image * (1 - self.strength * jax.random.uniform(jax.random.key(0)))"),
        "uses-its-key",
        "8 keys give one output",
    ),
    "draws elsewhere": (
        pixel("image * (1 - self.strength * np.random.default_rng().random())"),
        "same-key-same-output",
        "they differ by",
    ),
    "leaves the range": (
        pixel(f"image + self.strength * {UNIFORM}"),
        "keeps-range",
        "values from",
    ),
    "is not off at zero": (
        pixel(f"image * (0.5 - 0.2 * self.strength * {UNIFORM})"),
        "nothing-at-strength-zero",
        "they differ by",
    ),
    "compiles anew": (
        DIM.replace(FROZEN, f"{FROZEN}, eq=False"),
        "hashable",
        "two with the same options are not equal",
    ),
    "cannot be compiled": (
        pixel(f"image if {UNIFORM} < self.strength else image * 0.5"),
        "jit-equals-eager",
        "TracerBoolConversionError",
    ),
    "takes options by position": (
        DIM.replace(FROZEN, "frozen=True"),
        "keyword-only-options",
        "strength can be given by position",
    ),
    "says nothing of its option": (
        DIM.replace(DOCUMENTED, ""),
        "documented-options",
        "nothing is said of strength",
    ),
    "takes any value": (
        DIM.replace("0 <= self.strength <= 1", "True"),
        "validated-options",
        "strength=-0.01 is accepted",
    ),
    "no matrix": (
        other(
            "GeometricAugmentation", "def matrix(self, key, height, width):\n    return jnp.eye(2)"
        ),
        "keeps-shape",
        "(2, 2), not (3, 3)",
    ),
    "writes into its input": (
        other(
            "HostAugmentation",
            "def apply(self, rng, image):\n    image[: rng.integers(1, 9)] = 0\n"
            "    return image.copy()",
        ),
        "leaves-its-input",
        "pixels differ",
    ),
    "mixes padding in": (
        other(
            "BatchAugmentation",
            "def apply(self, key, images, targets, valid):\n"
            "    share = 1 - self.strength * jax.random.uniform(key)\n"
            "    mixed = lambda x: share * x + (1 - share) * jnp.roll(x, 1, 0)\n"
            "    return mixed(images), mixed(targets)",
        ),
        "padding-stays-out",
        "values of padding",
    ),
    "mixes clean padding in": (
        other(
            "BatchAugmentation",
            "def apply(self, key, images, targets, valid):\n"
            "    share = self.strength * jax.random.uniform(key)\n"
            "    return (1 - share) * images + share * images.mean(0), targets",
        ),
        "padding-stays-out",
        "values of padding",
    ),
    "draws when it is built": (
        other(
            "PixelAugmentation",
            "def apply(self, key, image):\n"
            "    return jnp.clip(image * jax.random.uniform(key) * self.drawn, 0, 1)",
        ).replace(
            "    def __post_init__(self):\n",
            "    def __post_init__(self):\n"
            "        object.__setattr__(self, 'drawn', np.random.default_rng().uniform(0.1, 1))\n",
        ),
        "same-key-same-output",
        "they differ by",
    ),
    "draws for large pictures": (
        other(
            "HostAugmentation",
            "def apply(self, rng, image):\n"
            "    rng = np.random.default_rng() if image.shape[0] > 100 else rng\n"
            "    return image ^ rng.integers(0, 2, image.shape, np.uint8)",
        ),
        "same-key-same-output",
        "pixels differ",
    ),
    "loses targets": (
        other(
            "BatchAugmentation",
            "def apply(self, key, images, targets, valid):\n"
            "    share = 1 - self.strength * jax.random.uniform(key)\n"
            "    return share * images, share * targets",
        ),
        "targets-stay-shares",
        "targets that added up to 1 add up to",
    ),
}
HEADS: dict[str, tuple[str, str, str]] = {
    "wrong signature": (
        head("return self.logits(x)").replace("feature_shape, num_classes, *", "num_classes, *"),
        "can-be-built",
        "positional argument",
    ),
    "no module": (
        head("return self.logits(x)") + "\nBroken = lambda shape, classes, *, rngs: print\n",
        "can-be-built",
        "not a flax.nnx.Module",
    ),
    "state of a batch": (
        head(
            "return self.logits(self.norm(x))",
            "self.norm = nnx.BatchNorm(feature_shape[-1], rngs=rngs)",
        ),
        "can-be-built",
        "a head may hold nnx.Param and dropout's generator only",
    ),
    "looks at the batch": (
        head("return self.logits(x - x.mean(0))"),
        "logits-of-each-picture",
        "picture 0 of the batch changes the logits of others",
    ),
    "adds pictures up": (
        head("return self.logits(jnp.cumsum(x, 0))"),
        "logits-of-each-picture",
        "picture 0 of the batch changes the logits of others",
    ),
    "knows its place": (
        head("return self.logits(x) + jnp.arange(x.shape[0])[:, None]"),
        "logits-of-each-picture",
        "the place in the batch",
    ),
    "draws when it is built": (
        head("return self.logits(x) * self.drawn", "self.drawn = random.random()"),
        "checkpoint-round-trip",
        "they differ by",
    ),
    "probabilities of another shape": (
        head("return self.logits(x)[:, :1]"),
        "logits-of-each-picture",
        "float32 (4, 1)",
    ),
    "gradient not finite": (
        head(
            "return self.logits(x) + jnp.sqrt(self.scale[...])",
            "self.scale = nnx.Param(jnp.zeros(()))",
        ),
        "finite-gradient",
        "not finite",
    ),
    "layer out of use": (
        head("return self.logits(x)", "self.idle = nnx.Linear(2, 2, rngs=rngs)"),
        "finite-gradient",
        "zero everywhere for head/idle",
    ),
    "random in evaluation": (
        head("return self.logits(x * random.random())"),
        "randomness-only-in-training",
        "they differ by",
    ),
    "unseeded": (
        head(
            "return self.logits(x) + self.offset[...]",
            "self.offset = nnx.Param(jnp.array(random.random()))",
        ),
        "seeded-parameters",
        "other values of head/offset",
    ),
}
SOUND_HEADS: dict[str, str] = {
    "zeros to begin with": head(
        "return self.logits(x)",
        "zeros = nnx.initializers.zeros_init()\n"
        "self.logits = nnx.Linear(feature_shape[-1], num_classes, kernel_init=zeros, rngs=rngs)",
    ),
    "groups of channels": head(
        "return self.logits(nnx.relu(self.norm(features)).mean((1, 2)))",
        "self.norm = nnx.GroupNorm(feature_shape[-1], num_groups=32, rngs=rngs)",
    ),
    "a convolution without padding": head(
        "return self.logits(nnx.relu(self.conv(features)).mean((1, 2)))",
        "c = feature_shape[-1]\nself.conv = nnx.Conv(c, c, (3, 3), padding='VALID', rngs=rngs)",
    ),
}
SOUND_AUGMENTATIONS: dict[str, str] = {
    "mixup": other(
        "BatchAugmentation",
        "def apply(self, key, images, targets, valid):\n"
        "    share = self.strength * jax.random.uniform(key) * (valid & jnp.roll(valid, 1))\n"
        "    mixed = lambda x, s: (1 - s) * x + s * jnp.roll(x, 1, 0)\n"
        "    return mixed(images, share[:, None, None, None]), mixed(targets, share[:, None])",
    ),
    "a square of 24 pixels": other(
        "PixelAugmentation",
        "def apply(self, key, image):\n"
        "    y, x = jax.random.randint(key, (2,), 0, jnp.array(image.shape[:2]) - 23)\n"
        "    cover = (1 - self.strength) * jax.lax.dynamic_slice(image, (y, x, 0), (24, 24, 3))\n"
        "    return jax.lax.dynamic_update_slice(image, cover, (y, x, 0))",
    ),
}
IMPORTS: dict[str, tuple[str, str]] = {  # source, what the listing says
    "import-error": ("import no_such_module_anywhere\n", "No module named 'no_such_module"),
    "syntax-error": ("def broken(:\n", "SyntaxError"),
    "exits": ("import sys\nsys.exit(4)\n", "it ended the process (SystemExit: 4)"),
    "dies": ("import os\nos._exit(5)\n", "importing it ended the process, with code 5"),
    "no-such-class": ("Other = 1\n", "AttributeError"),
}


def broken(source: str) -> Any:
    module = types.ModuleType("broken_module")
    sys.modules["broken_module"] = module  # dataclasses look it up
    exec(source, module.__dict__)
    return module.Broken  # pyright: ignore[reportAttributeAccessIssue]


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


HEAD_THAT_FAILS = """
from flax import nnx


class Statistic(nnx.Variable):
    pass


class Head(nnx.Module):
    def __init__(self, feature_shape, num_classes, *, rngs):
        self.logits = nnx.Linear(feature_shape[-1], num_classes, rngs=rngs)
        if FAULT == "batch statistics":
            self.mean = Statistic(self.logits.bias.get_value())

    def __call__(self, features):
        if features.shape[0] > 2:  # more than are tried when it is built
            if FAULT == "many rows":
                raise ValueError("too many rows")
            raise SystemExit(7)
        return self.logits(features.mean((1, 2)))
"""


@pytest.mark.parametrize(
    ("base", "method"),
    [
        ("PixelAugmentation", "apply(self, key, image)"),
        ("GeometricAugmentation", "matrix(self, key, height, width)"),
        ("HostAugmentation", "apply(self, rng, image)"),
        ("BatchAugmentation", "apply(self, key, images, targets, valid)"),
    ],
)
@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        ("raise ZeroDivisionError('no luck')", "ZeroDivisionError: no luck"),
        ("raise SystemExit(7)", r"it ended the process \(SystemExit: 7\)"),
    ],
    ids=["raises", "exits"],
)
def test_an_augmentation_that_fails_in_training_is_named_with_its_package(
    base, method, fault, cause, installed, options, tmp_path
):
    module = f"fails_{base.lower()}_{len(cause)}"
    source = other(base, f"def {method}:\n    {fault}")
    (tmp_path / f"{module}.py").write_text(source)
    installed("ill-luck", "0.3", {"unlucky": f"{module}:Broken"}, group="vgg_jax.augmentations")
    chosen = {**options, "augment": ("unlucky",)}
    with pytest.raises(PluginError, match=f"'unlucky' of ill-luck 0.3 .*{cause}"):
        train(**chosen, run=str(tmp_path / "run"))


@pytest.mark.parametrize("fault", ["many rows", "exit", "batch statistics"])
def test_a_head_that_fails_in_training_is_named_with_its_package(
    fault, installed, options, tmp_path
):
    module = f"head_fails_{fault.replace(' ', '_')}"
    (tmp_path / f"{module}.py").write_text(HEAD_THAT_FAILS.replace("FAULT", repr(fault)))
    installed("ill-head", "0.4", {"unlucky": f"{module}:Head"})
    with pytest.raises(PluginError, match=r"The head 'unlucky' of ill-head 0.4 .*(many|7|Statist)"):
        train(**{**options, "head": "unlucky"}, run=str(tmp_path / "run"))
