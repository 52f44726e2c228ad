"""Builds small seeded weight files as PyTorch writes them, without PyTorch, and reads any."""

from __future__ import annotations

import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from weight_files import keras_arrays

from vgg_jax.weights.source import Contents
from vgg_jax.weights.torch import find_safetensors
from vgg_jax.weights.torch_pth import find_pth

Arrays = Mapping[str, np.ndarray]
TOP = ((0, 256), (3, 256), (6, 10))  # fc6, fc7 and fc8 at width 1/16: number and outputs
NARROW_TOP = ((0, 8), (3, 8), (6, 3))
MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001
STORAGES = {"float16": "HalfStorage", "float32": "FloatStorage", "float64": "DoubleStorage"}


def torch_arrays(
    width: float = 1 / 16,
    seed: int = 0,
    *,
    classifier: Sequence[tuple[int, int]] = (),
    convolutions_per_block: tuple[int, ...] = (2, 2, 3, 3, 3),
    modules: int = 2,
    dtype: str = "float32",
) -> dict[str, np.ndarray]:
    """Return a state dict under torchvision's names: the convolutions of `keras_arrays`, in OIHW.

    Args:
        width: Channels relative to the published network.
        seed: Decides every value.
        classifier: Number and outputs of each dense layer, whose inputs are 7 x 7 positions.
        convolutions_per_block: Those of VGG16.
        modules: Of each convolution: with its ReLU 2, with batch normalisation, not written, 3.
        dtype: Of the arrays.
    """
    arrays: dict[str, np.ndarray] = {}
    position, block = 0, "block1"
    drawn = keras_arrays(width, seed, convolutions_per_block=convolutions_per_block)
    units = 0
    for name, (kernel, bias) in drawn.items():
        position += name[:6] != block
        block = name[:6]
        arrays[f"features.{position}.weight"] = kernel.transpose(3, 2, 0, 1)
        arrays[f"features.{position}.bias"] = bias
        position += modules
        units = 49 * bias.size
    rng = np.random.default_rng([seed, 1])
    for number, outputs in classifier:
        kernel = rng.standard_normal((outputs, units), np.float32) * np.sqrt(2 / units)
        arrays[f"classifier.{number}.weight"] = kernel
        arrays[f"classifier.{number}.bias"] = 0.05 * rng.standard_normal(outputs, np.float32)
        units = outputs
    return {name: np.ascontiguousarray(array, dtype) for name, array in arrays.items()}


def write_safetensors(path: Path, arrays: Arrays) -> None:
    """Write a safetensors file."""
    save_file(dict(arrays), path)


def write_pth(path: Path, arrays: Arrays, body: bytes | None = None) -> None:
    """Write what `torch.save` writes since PyTorch 1.6.

    Args:
        path: File to write.
        arrays: One storage each, with their places as keys.
        body: The pickle's opcodes, if not those of the state dict.
    """
    members = {"data.pkl": as_pickle(state_dict(arrays) if body is None else body)}
    members |= {"byteorder": b"little", "version": b"3\n"}
    members |= {f"data/{key}": array.tobytes() for key, array in enumerate(arrays.values())}
    write_members(path, {f"weights/{name}": data for name, data in members.items()})


def write_members(
    path: Path, members: Mapping[str, bytes], compression: int = zipfile.ZIP_STORED
) -> None:
    """Write a zip archive of which each byte is decided by the arguments."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name), data, compression)


def write_legacy_pth(
    path: Path, arrays: Arrays, body: bytes | None = None, *, published: bool = False
) -> None:
    """Write what `torch.save` wrote before PyTorch 1.6.

    Args:
        path: File to write.
        arrays: One storage each, with their places as keys.
        body: The pickle's opcodes, if not those of the state dict.
        published: Spell the state dict as in 2017.
    """
    system = {
        "protocol_version": VERSION,
        "little_endian": True,
        "type_sizes": {"short": 2, "int": 4, "long": 4},
    }
    if body is None:
        body = published_state_dict(arrays) if published else state_dict(arrays, legacy=True)
    with path.open("wb") as file:
        for value in (MAGIC, VERSION, system):
            pickle.dump(value, file, protocol=2)
        file.write(as_pickle(body))
        pickle.dump([str(key) for key in range(len(arrays))], file, protocol=2)
        for array in arrays.values():
            file.write(struct.pack("<q", array.size) + array.tobytes())


def state_dict(arrays: Arrays, *, legacy: bool = False) -> bytes:
    """Return the opcodes of an OrderedDict with `_metadata`, as modules give it."""
    values = [
        tensor(array.shape, storage(key, array.size, array.dtype.name, legacy=legacy))
        for key, array in enumerate(arrays.values())
    ]
    metadata = dictionary({"_metadata": EMPTY_ORDERED + set_items({"": dictionary({})})})
    return EMPTY_ORDERED + set_items(dict(zip(arrays, values, strict=True))) + metadata + b"b"


def published_state_dict(arrays: Arrays) -> bytes:
    """Return opcodes as Python 2 wrote them in 2017: a list of pairs, tensors of four parts."""
    pairs = b"".join(
        b"]("
        + short_text(name)
        + old_tensor(array.shape, storage(key, array.size, legacy=True))
        + b"e"
        for key, (name, array) in enumerate(arrays.items())
    )
    return global_name("collections", "OrderedDict") + b"](" + pairs + b"e\x85R"


def as_pickle(body: bytes) -> bytes:
    """Return a whole pickle of protocol 2."""
    return b"\x80\x02" + body + b"."


def text(value: str) -> bytes:
    """Push a string."""
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def short_text(value: str) -> bytes:
    """Push a string as Python 2 did."""
    return b"U" + bytes([len(value)]) + value.encode()


def number(value: int) -> bytes:
    """Push an integer."""
    if -(2**31) <= value < 2**31:
        return b"J" + struct.pack("<i", value)
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8b" + struct.pack("<i", len(data)) + data


def sequence(*items: bytes) -> bytes:
    """Push a tuple."""
    return b"(" + b"".join(items) + b"t"


def dictionary(items: Mapping[str, bytes]) -> bytes:
    """Push a dict."""
    return b"}" + set_items(items)


def set_items(items: Mapping[str, bytes]) -> bytes:
    """Set items of the dict on top."""
    return b"(" + b"".join(text(key) + value for key, value in items.items()) + b"u"


def global_name(module: str, name: str) -> bytes:
    """Push what `from module import name` gives."""
    return f"c{module}\n{name}\n".encode()


def storage(
    key: object, count: int, dtype: str = "float32", *, kind: str = "", legacy: bool = False
) -> bytes:
    """Push a storage; `kind` is its type's name if not that of `dtype`."""
    name = global_name("torch", kind or STORAGES[dtype])
    view = (b"N",) if legacy else ()
    return sequence(text("storage"), name, text(str(key)), text("cpu"), number(count), *view) + b"Q"


def tensor(
    shape: Sequence[int],
    storage: bytes,
    *,
    offset: int = 0,
    strides: Sequence[int] | None = None,
) -> bytes:
    """Push a tensor in C order, unless `strides` are given."""
    arguments = (*_view(shape, storage, offset, strides), b"\x89", EMPTY_ORDERED)
    return global_name("torch._utils", "_rebuild_tensor_v2") + sequence(*arguments) + b"R"


def old_tensor(shape: Sequence[int], storage: bytes) -> bytes:
    """Push a tensor as before PyTorch 0.4."""
    arguments = sequence(*_view(shape, storage, 0, None))
    return global_name("torch._utils", "_rebuild_tensor") + arguments + b"R"


def _view(
    shape: Sequence[int], storage: bytes, offset: int, strides: Sequence[int] | None
) -> tuple[bytes, ...]:
    if strides is None:
        strides = [int(np.prod(shape[axis + 1 :])) for axis in range(len(shape))]
    return (
        storage,
        number(offset),
        sequence(*map(number, shape)),
        sequence(*map(number, strides)),
    )


EMPTY_ORDERED = global_name("collections", "OrderedDict") + b")R"


WRITERS: Mapping[str, Callable[[Path, Mapping[str, np.ndarray]], None]] = {
    "safetensors": write_safetensors,
    "pth": write_pth,
    "legacy": write_legacy_pth,
    "published": lambda path, arrays: write_legacy_pth(path, arrays, published=True),
}


def find(path: Path) -> Contents:
    return (find_safetensors if path.suffix == ".safetensors" else find_pth)(path)


def write(folder: Path, kind: str, arrays: Mapping[str, np.ndarray]) -> Path:
    path = folder / f"weights.{'safetensors' if kind == 'safetensors' else 'pth'}"
    WRITERS[kind](path, arrays)
    return path


def write_body(folder: Path, body: bytes, arrays: Mapping[str, np.ndarray] | None = None) -> Path:
    """Write a `.pth` whose pickle is `body`; storages 0, 1, … are those of `arrays`."""
    write_pth(folder / "weights.pth", arrays or {}, body)
    return folder / "weights.pth"


def read(contents: Contents) -> dict[str, np.ndarray]:
    """Read all arrays, by their names in the file."""
    arrays: dict[str, np.ndarray] = {}
    for layer in (*contents.layers.values(), *contents.dense):
        for array in (layer.kernel, layer.bias):
            arrays[array.path] = np.full(array.shape, np.nan, array.dtype)
            array.read_into(arrays[array.path])
    return arrays
