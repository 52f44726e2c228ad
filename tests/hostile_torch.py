"""Hostile safetensors and `.pth` files: each function writes one, given a sound one."""

from __future__ import annotations

import itertools
import json
import pickletools
import struct
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from hostile_archives import ESCAPES, KERAS, Write, add_many_members, add_members
from torch_files import (
    EMPTY_ORDERED,
    dictionary,
    global_name,
    number,
    sequence,
    state_dict,
    storage,
    tensor,
    text,
    torch_arrays,
    write_legacy_pth,
    write_pth,
)


def _header(make: Callable[[dict[str, dict[str, object]]], object]) -> Write:
    """Write safetensors with another header over the sound file's values."""

    def write(path: Path, sound: bytes, rng: np.random.Generator) -> None:
        length = int.from_bytes(sound[:8], "little")
        made = make(json.loads(sound[8 : 8 + length]))
        header = made if isinstance(made, bytes) else json.dumps(made).encode()
        path.write_bytes(struct.pack("<Q", len(header)) + header + sound[8 + length :])

    return write


def _each(**fields: object) -> Write:
    return _header(lambda header: {name: entry | fields for name, entry in header.items()})


def _length(value: int) -> Write:
    def write(path: Path, sound: bytes, rng: np.random.Generator) -> None:
        path.write_bytes(struct.pack("<Q", value) + sound[8:])

    return write


_MANY = {f"x{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(100_000)}
_FACTS = {"mean": "{}", "scale": "1", "channels": "[]"}
SAFETENSORS: Mapping[str, Write] = {
    **{f"header of {n:,} bytes": _length(n) for n in (0, 1, 2**24, 2**25, 2**31, 2**63, 2**64 - 1)},
    "header: deep": _header(lambda h: b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
    "header: deep metadata": _header(lambda h: b'{"__metadata__":' * 2000 + b"{}" + b"}" * 2000),
    "header: list": _header(lambda h: list(h)),
    "header: not UTF-8": _header(lambda h: b'{"\xff\xfe": {}}'),
    "header: other types": _each(dtype="BF16"),
    "header: unknown types": _each(dtype="Q99"),
    "header: types that are lists": _each(dtype=["F32"]),
    "header: negative shapes": _each(shape=[-1, 3]),
    "header: huge shapes": _each(shape=[2**62, 2**62]),
    "header: float shapes": _each(shape=[1.5]),
    "header: same places": _each(data_offsets=[0, 4]),
    "header: places outside": _each(data_offsets=[0, 2**50]),
    "header: backward places": _each(data_offsets=[100, 0]),
    "header: odd metadata": _header(lambda h: h | {"__metadata__": {"a": 1}}),
    "header: deep facts": _header(lambda h: h | {"__metadata__": _FACTS | {"mean": "[" * 100_000}}),
    "header: facts of nothing": _header(lambda h: h | {"__metadata__": _FACTS}),
    "header: facts of text": _header(lambda h: h | {"__metadata__": _FACTS | {"scale": '"xyz"'}}),
    "header: metadata that is a list": _header(lambda h: h | {"__metadata__": []}),
    "header: many arrays": _header(lambda h: h | _MANY),
    "header: escapes": _header(lambda h: {f"\x1b]0;{name}\x07": h[name] for name in h}),
    "header: long names": _header(lambda h: {name + "x" * 100_000: h[name] for name in h}),
    "header: numbers of many digits": _header(lambda h: b'{"a": ' + b"9" * 10_000 + b"}"),
    "header: given twice": _header(
        lambda h: json.dumps(h)[:-1].encode() + b"," + json.dumps(h)[1:].encode()
    ),
}


_CALL_SYSTEM = global_name("posix", "system") + sequence(text("touch escaped-by-pickle")) + b"R"
_DOUBLED = b"(K\1K\2t" + b"q\0h\0h\0\x86" * 40  # each step makes a pair of the one before
_BODIES: Mapping[str, bytes] = {
    "calls os.system": _CALL_SYSTEM,
    "calls os.system, protocol 4": text("os") + text("system") + b"\x93" + text("true") + b"\x85R",
    "calls eval": global_name("builtins", "eval") + sequence(text("1/0")) + b"R",
    "calls as INST": b"(" + text("touch escaped-by-pickle") + b"iposix\nsystem\n",
    "calls as OBJ": b"(" + global_name("posix", "system") + text("true") + b"o",
    "calls as NEWOBJ": global_name("posix", "system") + b")\x81",
    "calls by dotted name": text("torch._utils") + text("_rebuild_tensor_v2.__globals__") + b"\x93",
    "calls in the state": EMPTY_ORDERED + dictionary({"__setstate__": _CALL_SYSTEM}) + b"b",
    "names a whole model": global_name("torch.nn.modules.container", "Sequential") + b")\x81",
    "extension codes": b"\x82\1\x85R",
    "doubled tuples": _DOUBLED,
    "doubled tuples as key": b"}" + _DOUBLED + b"K\1s",
    "doubled tuples as shape": global_name("torch", "Size") + _DOUBLED + b"\x85R",
    "list of itself": b"]q\0h\0a",
    "dict of itself": b"}q\0" + text("features.0.weight") + b"h\0s",
    "long integer": b"\x8b" + struct.pack("<i", 1 << 20) + b"\x7f" * (1 << 20),
    "many marks": b"(" * 90_000,
    "many steps": b"N0" * 200_000,
    "many lists": b"]" * 90_000,
    "nested lists": b"]" * 40_000 + b"a" * 39_999,
    "long text": text("x" * (8 << 20)),
    "text longer than the file": b"X\xff\xff\xff\x7fabc",
    "bytes longer than the file": b"\x8e" + b"\xff" * 7 + b"\x7f",
    "memo far away": b"Nr\xff\xff\xff\xff",
    "nothing": b"",
    "surrogates": b"X\3\0\0\0\xed\xa0\x80",
    "odd escapes": b"S'\\x'\n",
    "decimal of many digits": b"I" + b"9" * 10_000 + b"\n",
    **{
        f"tensor {name}": dictionary({"features.0.weight": body})
        for name, body in {
            "outside": tensor((4, 3, 3, 3), storage(0, 27), offset=1000),
            "of huge shape": tensor((1 << 40, 1 << 40), storage(0, 27)),
            "of negative shape": tensor((-1, 3), storage(0, 27)),
            "of strides 0": tensor((64, 3, 3, 3), storage(0, 27), strides=(0, 0, 0, 0)),
            "of many axes": tensor((1,) * 1000, storage(0, 27)),
            "of huge storage": tensor((1, 3, 3, 3), storage(0, 1 << 60)),
            "of a storage elsewhere": tensor((1, 3, 3, 3), storage("../../canary.bin", 27)),
            "of a storage of no name": tensor((1, 3, 3, 3), storage("", 27)),
            "of an unknown type": tensor((1, 3, 3, 3), storage(0, 27, kind="UntypedStorage")),
            "of text": text("values"),
            "of a long number": number(1 << 30),
        }.items()
    },
}


def _body(body: bytes, legacy: bool) -> Write:
    def write(path: Path, sound: bytes, rng: np.random.Generator) -> None:
        (write_legacy_pth if legacy else write_pth)(path, torch_arrays(1 / 64), body)

    return write


def _opcodes(legacy: bool) -> Write:
    """Leave out, repeat or exchange a few opcodes of a sound pickle."""

    def write(path: Path, sound: bytes, rng: np.random.Generator) -> None:
        arrays = torch_arrays(1 / 64)
        body = state_dict(arrays, legacy=legacy)
        places = [place or 0 for _, _, place in pickletools.genops(body + b".")]
        parts = [body[a:b] for a, b in itertools.pairwise(places)]
        for _ in range(int(rng.integers(1, 4))):
            i, j = (int(k) for k in rng.integers(len(parts), size=2))
            parts[i] = [b"", parts[i] * 2, parts[j]][int(rng.integers(3))]
        _body(b"".join(parts), legacy)(path, sound, rng)

    return write


PTH: Mapping[str, Write] = {
    **{f"pickle: {name}": _body(body, False) for name, body in _BODIES.items()},
    "pickle: other opcodes": _opcodes(False),
    **{name: write for name, write in KERAS.items() if name.startswith("zip: lying")},
    "zip: encrypted": KERAS["zip: encrypted"],
    "zip: other compression": KERAS["zip: other compression"],
    "zip: overlapping members": KERAS["zip: overlapping members"],
    "zip: deflated": KERAS["zip: deflated"],
    "zip: escaping names": add_members(*ESCAPES),
    "zip: same names": add_members("weights/data.pkl"),
    "zip: many members": add_many_members,
}
LEGACY_PTH: Mapping[str, Write] = {
    **{f"pickle: {name}": _body(body, True) for name, body in _BODIES.items()},
    "pickle: other opcodes": _opcodes(True),
}
