"""Checks for authors of plugins, each a line in a test.

from vgg_jax.testing import check_augmentation

def test_contract():
check_augmentation(MyCutout)
"""

from __future__ import annotations

from vgg_jax.testing.augmentations import check_augmentation
from vgg_jax.testing.heads import check_head
from vgg_jax.testing.installed import check_plugin
from vgg_jax.testing.report import RULES, Finding, PluginContractError, Report, Rule

__all__ = [
    "RULES",
    "Finding",
    "PluginContractError",
    "Report",
    "Rule",
    "check_augmentation",
    "check_head",
    "check_plugin",
]
