"""Plugins that break a rule each, and sound ones that come close; written as source."""

from __future__ import annotations

import sys
import types
from typing import Any

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
    "draws elsewhere for large pictures": (
        pixel(
            f"image * {UNIFORM} * (np.random.default_rng().random() if image.shape[0] > 99 else 1)"
        ),
        "same-key-same-output",
        "they differ by",
    ),
    "halves large pictures": (
        pixel(f"image[:: 1 + image.shape[0] // 128] * {UNIFORM}"),
        "keeps-shape",
        "(64, 128, 3), not (128, 128, 3)",
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
    "does not use its pool": (
        head(
            "return self.logits(x)", "type(self).pool = lambda self, features: features.max((1, 2))"
        ),
        "pools-first",
        "failed on features (4, 64)",
    ),
    "uses features beside its pool": (
        head(
            "return self.logits(self.pool(features)[:, 0, 0]) + x[:, :1]",
            "type(self).pool = lambda self, features: features.max((1, 2), keepdims=True)",
        ),
        "pools-first",
        "its logits are others",
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
    "a pool of its own": head(
        "return self.logits(self.pool(features)[:, 0, 0])",
        "type(self).pool = lambda self, features: features.max((1, 2), keepdims=True)",
    ),
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
