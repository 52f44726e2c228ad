"""HDF5 files that mean harm: each function spoils a sound file of Keras that is open for writing.

What lies outside the file, and must never be read, is beside it: `canary.h5` holds the same
network, `canary.bin` its numbers, and opening `canary.fifo` waits for ever.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from h5py import h5d, h5o, h5p, h5s, h5t, h5z  # pyright: ignore[reportAttributeAccessIssue]

Edit = Callable[[h5py.File, np.random.Generator], None]
_HUGE_TEXT = 16 << 20  # bytes


def first_array(file: h5py.File) -> h5py.Dataset:
    """Return the kernel of the first convolution that a walk through the file finds."""
    found: list[h5py.Dataset] = []
    file.visititems(
        lambda _, member: (
            found.append(member) if isinstance(member, h5py.Dataset) and member.ndim == 4 else None
        )
    )
    return found[0]


def _replace(file: h5py.File, **settings: Any) -> h5py.Dataset:
    """Create the first array anew."""
    old = first_array(file)
    name, values = str(old.name), old[()]
    del file[name]
    return file.create_dataset(name, **({"data": values} | settings))


def _link(link: object, of_group: bool = True) -> Edit:
    def edit(file: h5py.File, rng: np.random.Generator) -> None:
        name = str(first_array(file).name)
        if of_group:
            name = name.rsplit("/", 1)[0]
        if isinstance(link, type):
            link_to: Any = link("canary.h5", name)
        else:
            link_to = link
        del file[name]
        file[name] = link_to

    return edit


def _array(**settings: Any) -> Edit:
    def edit(file: h5py.File, rng: np.random.Generator) -> None:
        _replace(file, **settings)

    return edit


def _names_root(file: h5py.File) -> h5py.Group:
    root = file.get("model_weights", file)
    assert isinstance(root, h5py.Group)
    return root


def _names(value: Any) -> Edit:
    """Set `layer_names`, or a layer's `weight_names`, or `name`."""

    def edit(file: h5py.File, rng: np.random.Generator) -> None:
        root = _names_root(file)
        layer = file[str(first_array(file).name).rsplit("/", 1)[0]]
        groups = {"layer_names": root, "weight_names": root.get("block1_conv1"), "name": layer}
        attribute = ["layer_names", "weight_names", "name"][int(rng.integers(3))]
        group = groups[attribute]
        group = root if group is None else group
        if attribute in group.attrs:
            del group.attrs[attribute]
        made = value() if callable(value) else value
        if isinstance(made, tuple):
            group.attrs.create(attribute, made[0], dtype=made[1])
        else:
            group.attrs[attribute] = made

    return edit


def _lists() -> np.ndarray:
    lists = np.empty(2, object)
    lists[:] = [np.arange(3, dtype="i4"), np.arange(5, dtype="i4")]
    return lists


def _split_names(file: h5py.File, rng: np.random.Generator) -> None:
    root = _names_root(file)
    if "layer_names" in root.attrs:
        del root.attrs["layer_names"]
    for i in range(300):
        root.attrs[f"layer_names{i}"] = [b"x" * 100] * 100


def _loop(file: h5py.File, rng: np.random.Generator) -> None:
    for name in ("block1_conv1", "layers", "model_weights"):
        if name in file:
            group = file[name]
            assert isinstance(group, h5py.Group)
            group["again"] = file["/"]
            group["and again"] = group


def _soft_loop(file: h5py.File, rng: np.random.Generator) -> None:
    name = str(first_array(file).name).rsplit("/", 1)[0]
    del file[name]
    file[name], file["other"] = h5py.SoftLink("/other"), h5py.SoftLink(name)


def _deep(levels: int) -> Edit:
    def edit(file: h5py.File, rng: np.random.Generator) -> None:
        group = file[str(first_array(file).name).rsplit("/", 1)[0]]
        for _ in range(levels):
            assert isinstance(group, h5py.Group)
            group = group.create_group("g")

    return edit


def _wide(file: h5py.File, rng: np.random.Generator) -> None:
    for i in range(5000):
        file.create_group(f"unexpected \x1b[31m {i}")


def _external_storage(name: str) -> Edit:
    def edit(file: h5py.File, rng: np.random.Generator) -> None:
        old = first_array(file)
        size = old.size * old.dtype.itemsize
        path, shape = str(old.name), old.shape
        del file[path]
        file.create_dataset(path, shape, "f4", external=[(name, 0, size)])

    return edit


def _virtual(target: str) -> Edit:
    def edit(file: h5py.File, rng: np.random.Generator) -> None:
        old = first_array(file)
        path, shape = str(old.name), old.shape
        layout = h5py.VirtualLayout(shape, "f4")
        layout[:] = h5py.VirtualSource(target, path, shape)
        del file[path]
        file.create_virtual_dataset(path, layout)

    return edit


def _filter(number: int) -> Edit:
    def edit(file: h5py.File, rng: np.random.Generator) -> None:
        old = first_array(file)
        path, values = str(old.name), old[()]
        del file[path]
        settings = h5p.create(h5p.DATASET_CREATE)
        settings.set_chunk(values.shape)
        settings.set_filter(number or int(rng.integers(256, 65536)), h5z.FLAG_OPTIONAL, (1, 2))
        space = h5s.create_simple(values.shape)
        dataset = h5d.create(file.id, path.encode(), h5t.IEEE_F32LE, space, settings)
        dataset.write(h5s.ALL, h5s.ALL, values)

    return edit


def zeros_deflated(count: int) -> bytes:
    """Return what zlib packs a multiple of 2**20 zeros into, at once."""
    packer = zlib.compressobj(9)
    start = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    again = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    end = packer.flush()[:-4] + struct.pack(">HH", count % 65521, 1)  # Adler-32 of zeros
    return start + again * ((count >> 20) - 1) + end


def _chunk_bomb(mebibytes: int, arrays: int) -> Edit:
    """Store arrays of a few numbers each in one packed chunk that is huge."""

    def edit(file: h5py.File, rng: np.random.Generator) -> None:
        paths: list[str] = []
        file.visititems(
            lambda path, member: paths.append(path) if isinstance(member, h5py.Dataset) else None
        )
        for path in paths[:arrays]:
            old = file[path]
            assert isinstance(old, h5py.Dataset)
            shape = old.shape
            chunk = (*(1,) * (len(shape) - 1), mebibytes << 18)
            del file[path]
            dataset = file.create_dataset(
                path, shape, "f4", chunks=chunk, maxshape=(None,) * len(shape), compression=9
            )
            packed = zeros_deflated(mebibytes << 20)
            dataset.id.write_direct_chunk((0,) * len(shape), packed)

    return edit


def _dense_bomb(file: h5py.File, rng: np.random.Generator) -> None:
    """Let the last dense layer be huge, of zeros that are packed or were never written."""
    root = _names_root(file)
    # Deleted at the end, it leaves a hole: the file is large enough for what it claims.
    root.create_dataset("padding", data=np.frombuffer(rng.bytes(2 << 20), "u1"))
    if "predictions" in root:
        del root["predictions"]
    group = root.create_group("predictions")
    group.attrs["weight_names"] = [b"kernel:0", b"bias:0"]
    shape = (64, 1 << 18)
    kernel = group.create_dataset("kernel:0", shape, "f4", chunks=shape, compression=9)
    kernel.id.write_direct_chunk((0, 0), zeros_deflated(4 * 64 << 18))
    group.create_dataset("bias:0", data=np.zeros(shape[1], "f4"))
    del root["padding"]


def _type_instead(file: h5py.File, rng: np.random.Generator) -> None:
    path = str(first_array(file).name)
    del file[path]
    file[path] = np.dtype("f4")


def _group_instead(file: h5py.File, rng: np.random.Generator) -> None:
    path = str(first_array(file).name)
    del file[path]
    file.create_group(path)


def _array_instead(file: h5py.File, rng: np.random.Generator) -> None:
    path = str(first_array(file).name).rsplit("/", 1)[0]
    del file[path]
    file[path] = np.zeros(3)


def _odd_float(file: h5py.File, rng: np.random.Generator) -> None:
    """Use floats of other bits than IEEE's."""
    old = first_array(file)
    path, values = str(old.name), old[()]
    del file[path]
    kind = h5t.IEEE_F32LE.copy()
    exponent = int(rng.integers(2, 20))
    kind.set_fields(31, 31 - exponent, exponent, 0, 31 - exponent)
    kind.set_ebias(int(rng.integers(1, 1 << exponent)))
    dataset = h5d.create(file.id, path.encode(), kind, h5s.create_simple(values.shape))
    dataset.write(h5s.ALL, h5s.ALL, values)


def _nested_type(levels: int, kind: str) -> Edit:
    """Give an attribute a type within a type within a type."""

    def edit(file: h5py.File, rng: np.random.Generator) -> None:
        made: Any = h5t.NATIVE_INT8
        for _ in range(levels):
            if kind == "vlen":
                made = h5t.vlen_create(made)
            elif kind == "array":
                made = h5t.array_create(made, (1,))
            else:
                outer = h5t.create(h5t.COMPOUND, made.get_size())
                outer.insert(b"x", 0, made)
                made = outer
        root = _names_root(file)
        if "layer_names" in root.attrs:
            del root.attrs["layer_names"]
        h5py.h5a.create(root.id, b"layer_names", made, h5s.create(h5s.SCALAR))

    return edit


def uncounted_loop(path: Path, data: bytes, rng: np.random.Generator) -> None:
    """Let groups hold each other while each claims that one link alone points to it."""
    path.write_bytes(data)
    with h5py.File(path, "r+") as file:
        _loop(file, rng)
        groups: list[h5py.Group] = []
        file.visititems(lambda _, m: groups.append(m) if isinstance(m, h5py.Group) else None)
        places = [h5o.get_info(group.id).addr for group in (file, *groups)]
    spoilt = bytearray(path.read_bytes())
    for place in places:
        if spoilt[place] == 1:  # the version of the headers that begin with their links' number
            spoilt[place + 4 : place + 8] = (1).to_bytes(4, "little")
    path.write_bytes(spoilt)


def config_edit(make: Callable[[np.random.Generator, str], str]) -> Edit:
    """Change the configuration of a whole model."""

    def edit(file: h5py.File, rng: np.random.Generator) -> None:
        file.attrs["model_config"] = make(rng, str(file.attrs["model_config"]))

    return edit


_STRING = h5py.string_dtype()
EDITS: Mapping[str, Edit] = {
    "soft link": _link(h5py.SoftLink("/block1_conv2")),
    "dangling soft link": _link(h5py.SoftLink("/nowhere")),
    "soft link loop": _soft_loop,
    "external link to group": _link(h5py.ExternalLink),
    "external link to array": _link(h5py.ExternalLink, of_group=False),
    "external link that waits": _link(h5py.ExternalLink("canary.fifo", "/")),
    "external link beyond": _link(h5py.ExternalLink("../../../../etc/passwd", "/")),
    "hard link loop": _loop,
    "deep groups": _deep(3000),
    "many groups": _wide,
    "external storage": _external_storage("canary.bin"),
    "external storage that waits": _external_storage("canary.fifo"),
    "external storage beyond": _external_storage("/etc/passwd"),
    "virtual dataset": _virtual("canary.h5"),
    "virtual dataset that waits": _virtual("canary.fifo"),
    "virtual dataset of itself": _virtual("."),
    "filter 32015": _filter(32015),
    "some filter": _filter(0),
    "chunk of 2 GiB": _chunk_bomb(2047, 1),
    "chunk of 200 MiB": _chunk_bomb(200, 1),
    "chunks of 100 MiB": _chunk_bomb(100, 26),
    "packed dense layer": _dense_bomb,
    "huge, never written": _array(data=None, shape=(1 << 40,), dtype="f4"),
    "huge, in chunks": _array(data=None, shape=(1 << 30, 1 << 30), dtype="f4", chunks=(64, 64)),
    "huge rank": _array(data=np.zeros((1,) * 32, "f4")),
    "empty array": _array(data=np.zeros((3, 3, 0, 0), "f4")),
    "single number": _array(data=np.float32(1)),
    "null space": _array(data=h5py.Empty("f4")),
    "integers": _array(data=np.zeros((3, 3, 3, 1), "i8")),
    "complex numbers": _array(data=np.zeros((3, 3, 3, 1), "c8")),
    "long floats": _array(data=np.zeros((3, 3, 3, 1), "g")),
    "strings": _array(data=np.full((3, 3, 3, 1), b"x" * 100)),
    "records": _array(data=np.zeros((3, 3, 3, 1), "f4,f8,S3")),
    "floats in lists": _array(data=None, shape=(3,), dtype=h5py.vlen_dtype(np.float32)),
    "odd floats": _odd_float,
    "type in place of array": _type_instead,
    "group in place of array": _group_instead,
    "array in place of group": _array_instead,
    "names: number": _names(7),
    "names: floats": _names(lambda: np.full(1000, np.nan)),
    "names: nothing": _names(lambda: h5py.Empty("S1")),
    "names: no entries": _names(lambda: np.zeros(0, "S1")),
    "names: not UTF-8": _names([b"\xff\xfe\xfd", b"\x80"]),
    "names: invalid text": _names(lambda: ([b"\xff\xfe\xfd"], _STRING)),
    "names: escapes": _names([b"\x1b]0;title\x07", b"a\nb", b"../../x"]),
    "names: paths": _names([b"/", b".", b"..", b"//", b"", b"block1_conv1/../block1_conv2"]),
    "names: same": _names([b"block1_conv1"] * 1000),
    "names: long": _names([b"x" * 60_000]),
    "names: huge": _names(lambda: (["x" * _HUGE_TEXT], _STRING)),
    "names: huge rank": _names(lambda: np.full((1,) * 32, b"block1_conv1")),
    "names: lists": _names(lambda: (_lists(), h5py.vlen_dtype(np.int32))),
    "names: references": _names(lambda: ([h5py.Reference()], h5py.ref_dtype)),
    "names: records": _names(lambda: np.zeros(2, "S4,i4,f8")),
    "names: opaque": _names(lambda: np.void(b"\0\1\2")),
    "names: split": _split_names,
    "type in type: vlen": _nested_type(1000, "vlen"),
    "type in type: array": _nested_type(1000, "array"),
    "type in type: record": _nested_type(500, "record"),
}
