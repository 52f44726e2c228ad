"""What a user asks for: a plugin and its options, as `REF[:OPTIONS]`.

REF is a name, `package/name` where two packages claim a name, or `path/to/file.py#Class` for code
that no package holds. OPTIONS is the inside of a TOML inline table in which bare words are strings:
`mlp:hidden=[512,256],activation=relu`.
"""

from __future__ import annotations

import dataclasses
import re
import tomllib
from collections.abc import Mapping
from typing import Any

from vgg_jax.errors import OptionError
from vgg_jax.plugin_options import toml_value

LOCAL_REF = re.compile(r"(?P<file>.+\.py)#(?P<name>[^:/]*)(?::(?P<options>.*))?", re.DOTALL)
_BARE_WORD = re.compile(
    r"""
    ("(?:\\.|[^"\\])*"|'[^']*')                         # what is quoted already stays as it is
    | (?<=[=\[,\s]) (?!(?:true|false|inf|nan)\b)
      ([A-Za-z_][\w.-]*)                        # a word
      (?![\w.-]) (?!\s*=)                       # that is no option's name
    """,
    re.VERBOSE,
)


@dataclasses.dataclass(frozen=True)
class PluginChoice:
    """What a user asked for: a plugin and its options.

    Attributes:
        ref: `name`, `package/name` or `file.py#Class`.
        options: Option values by name, as TOML gives them.
    """

    ref: str
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict[str, Any])

    def __str__(self) -> str:
        """Return it in the form a user types: `REF[:OPTIONS]`."""
        options = ",".join(f"{name}={toml_value(value)}" for name, value in self.options.items())
        return f"{self.ref}:{options}" if options else self.ref


def parse_choice(text: str) -> PluginChoice:
    """Parse `REF[:OPTIONS]`.

    Raises:
        OptionError: If OPTIONS is not the inside of a TOML inline table.
    """
    local = LOCAL_REF.fullmatch(text)
    if local:
        ref, options = f"{local['file']}#{local['name']}", local["options"] or ""
    else:
        ref, _, options = text.partition(":")
    quoted = _BARE_WORD.sub(lambda match: match[1] or f'"{match[2]}"', options)
    try:
        return PluginChoice(ref.strip(), tomllib.loads(f"options = {{{quoted}}}")["options"])
    except tomllib.TOMLDecodeError as error:
        raise OptionError(
            f"{ref}: the options {options!r} cannot be read ({error}). Write them as"
            " name=value,name=value."
        ) from error
