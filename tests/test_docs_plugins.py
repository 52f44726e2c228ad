"""The page for plugin authors: its code keeps the contract, its commands exist."""

from __future__ import annotations

import inspect
import re
import shlex
import sys
import types
from pathlib import Path

import pytest
from flax import nnx
from typer.testing import CliRunner

from vgg_jax.cli.app import app
from vgg_jax.contract import Augmentation
from vgg_jax.testing import RULES, check_augmentation, check_head

PAGE = (Path(__file__).parents[1] / "docs" / "plugins.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
COMMANDS = re.findall(r"^    (vgg-jax .*)$", PAGE, re.MULTILINE)


def classes() -> list[type]:
    found: list[type] = []
    for i, block in enumerate(BLOCKS):
        module = types.ModuleType(f"docs_plugins_{i}")
        sys.modules[module.__name__] = module  # dataclasses look it up
        exec(block, module.__dict__)
        own = [v for v in vars(module).values() if inspect.isclass(v)]
        found += [kind for kind in own if kind.__module__ == module.__name__]
    return found


@pytest.mark.parametrize("kind", classes(), ids=lambda kind: kind.__name__)
def test_the_code_keeps_the_contract(kind):
    if issubclass(kind, Augmentation):
        check_augmentation(kind)
    else:
        assert issubclass(kind, nnx.Module)
        check_head(kind)


def test_each_kind_has_its_example():
    bases = {base.__name__ for kind in classes() for base in kind.__mro__}
    kinds = {"HostAugmentation", "GeometricAugmentation", "PixelAugmentation", "BatchAugmentation"}
    assert kinds | {"Module"} <= bases


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_and_their_options_exist(command):
    words = shlex.split(command)[1:]
    path = words[:2] if words[0] == "plugins" else words[:1]
    text = CliRunner().invoke(app, [*path, "--help"]).stdout
    for word in words:
        if word.startswith("--"):
            assert word in text, word


def test_packages_can_be_as_the_page_says():
    assert "`vgg_jax.heads.v2`" in PAGE
    assert len(RULES) > 20
