"""Trainings of one process that compute the same share the programs of the first of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable
from weakref import WeakValueDictionary

import jax

from vgg_jax.augment.chain import Chain
from vgg_jax.config import ResolvedConfig
from vgg_jax.model.classifier import Functional
from vgg_jax.training.steps import Steps

# By what they compute. JAX holds those whose programs it keeps.
_known: WeakValueDictionary[Hashable, Steps] = WeakValueDictionary()


def shared(steps: Steps, chain: Chain, config: ResolvedConfig) -> Steps:
    """Return steps that compute the same and may be compiled already, or else `steps`.

    So candidates of a sweep that differ in their learning rates, and trainings one after the other
    in a notebook, trace and load their programs once, and hold them in memory once.

    Args:
        steps: Of a training.
        chain: Its augmentations.
        config: Its configuration. What was asked for by name counts as it is written, so that
            options are told apart that Python calls equal, such as 1 and true.
    """
    fields = {field.name: getattr(steps, field.name) for field in dataclasses.fields(steps)}
    fields["functional"] = _contents(steps.functional)
    try:
        fields["augment"] = (chain.fill, chain.fill_value, *map(_everything, chain.augmentations))
        return _known.setdefault((config.head, *config.augment, *fields.values()), steps)
    except TypeError:  # a plugin holds what cannot be compared: an array, say
        return steps


def _contents(functional: Functional) -> Hashable:
    leaves, structure = jax.tree.flatten((functional.variables, functional.randomness))
    return functional.training, functional.inference, functional.pools, structure, *leaves


def _everything(augmentation: object) -> Hashable:
    # Not the augmentation itself: it may hold more than the options by which it compares.
    return type(augmentation), *vars(augmentation).items()
