"""Hostile and damaged files of PyTorch end in an error; nothing a pickle asks for is done."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from torch_files import (
    EMPTY_ORDERED,
    NARROW_TOP,
    WRITERS,
    as_pickle,
    dictionary,
    find,
    global_name,
    number,
    read,
    sequence,
    state_dict,
    storage,
    tensor,
    text,
    torch_arrays,
    write,
    write_body,
    write_legacy_pth,
    write_members,
    write_pth,
)

from vgg_jax.errors import WeightsError

SIDE_EFFECT = "side effect"
SHELL = text(f"touch '{SIDE_EFFECT}'")
EVAL = text(f"open({SIDE_EFFECT!r}, 'w')")


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    ("body", "message"),
    [
        (global_name("os", "system") + sequence(SHELL) + b"R", "wants to call 'os.system'"),
        (global_name("posix", "system") + sequence(SHELL) + b"R", "'posix.system'"),
        (global_name("builtins", "eval") + sequence(EVAL) + b"R", "'builtins.eval'"),
        (text("builtins") + text("exec") + b"\x93" + sequence(EVAL) + b"R", "'builtins.exec'"),
        (dictionary({"w": dictionary({"x": global_name("os", "system")})}), "'os.system'"),
        (b"(" + SHELL + b"ios\nsystem\n", "'os.system'"),
        (b"(" + global_name("os", "system") + SHELL + b"o", "'os.system'"),
        (b"(" + EMPTY_ORDERED + SHELL + b"o", "uses OBJ"),
        (global_name("torch", "load") + sequence(SHELL) + b"R", "'torch.load'"),
        (global_name("__main__", "Net") + b")\x81", r"'__main__.Net'.*\n.*model.state_dict\(\)"),
        (global_name("torch.nn.modules.container", "Sequential") + b")\x81",
         r"whole model \('torch.nn.modules.container.Sequential'\).*\n.*model.state_dict\(\)"),
        (global_name("collections", "OrderedDict") + b")\x81", "uses NEWOBJ"),
        (b"\x82\x01", "uses EXT1"),
        (b"Pstorage\n", "uses PERSID"),
        (b"\x96" + (1 << 60).to_bytes(8, "little"), "cannot be read"),
        (global_name("os", "a" * 9999), "'os.a{77}…'"),
    ],
)  # fmt: skip
def test_what_a_pickle_asks_for_is_never_done(tmp_path, monkeypatch, legacy, body, message):
    monkeypatch.chdir(tmp_path)
    (write_legacy_pth if legacy else write_pth)(tmp_path / "weights.pth", {}, body)
    with pytest.raises(WeightsError, match=message) as error:
        find(tmp_path / "weights.pth")
    assert len(str(error.value)) < 500 + len(str(tmp_path))
    assert not Path(SIDE_EFFECT).exists()


def test_the_evil_pickles_do_work_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pickle.loads(as_pickle(global_name("os", "system") + sequence(SHELL) + b"R"))
    assert Path(SIDE_EFFECT).exists()


def reduced(name: str, *arguments: bytes) -> bytes:
    module, _, function = name.rpartition(".")
    return global_name(module, function) + sequence(*arguments) + b"R"


ONE = storage(0, 1)


@pytest.mark.parametrize(
    "body",
    [
        tensor((2,), ONE),
        tensor((1,), ONE, offset=1),
        tensor((), ONE, offset=-1),
        tensor((-1,), ONE),
        tensor((-1, -1), ONE),
        tensor((1 << 200,), ONE),
        tensor((1 << 39, 1 << 39), ONE),
        tensor((0, 1 << 60), ONE),
        tensor((1, 1), ONE, strides=(1,)),
        tensor((1,) * 64, ONE),
        tensor((1,), storage(0, 2)),
        tensor((1,), storage(0, -1)),
        tensor((1,), storage(0, 1 << 70)),
        tensor((1,), storage(0, 1, kind="ComplexFloatStorage")),
        tensor((1,), storage(7, 1)),
        tensor((1,), storage("../../etc/passwd", 1)),
        tensor((1,), text("0")),
        tensor((1,), ONE[:-1]),
        reduced("torch._utils._rebuild_tensor_v2", ONE),
        reduced("torch._utils._rebuild_parameter", number(1)),
        reduced("torch.FloatStorage", number(1 << 30)),
        reduced("collections.OrderedDict", number(1)),
        reduced("collections.OrderedDict", b"](" + number(1) + b"e"),
        sequence(text("module"), text("a"), text("b"), text("c"), text("d")) + b"Q",
        sequence(text("storage"), text("a"), text("b"), text("c"), number(1)) + b"Q",
        number(1 << 200),
        b"}" + sequence(number(1)) + b"Ns",
        b"}(Nu",
        b"(((",
        b"h\x07",
        b"",
        b"e",
        b"t",
        b"\x85",
        b"Nb",
        b"NR",
        b"S'\\8'\n",
        b"\xff",
    ],
)
def test_a_damaged_or_lying_pickle_is_refused(tmp_path, body):
    entry = dictionary({"w": body}) if body not in (b"(((", b"", b"t", b"e") else body
    with pytest.raises(WeightsError, match=str(tmp_path)):
        find(write_body(tmp_path, entry, {"w": np.zeros(1, "f4")}))


def remembered(body: bytes, place: int) -> bytes:
    return body + b"q" + bytes([place])


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "body",
    [
        b"(" * 300_000,
        b"N" * 300_000,
        b"]q\x00" + b"h\x00" * 300_000,
        # 2 ** 99 tuples in 100, hashed, walked by whoever walks them
        remembered(b")", 0) + b"h\x00\x86q\x00" * 99 + b"0}h\x00Ns",
        b"}" + remembered(b")", 0) + b"h\x00\x86q\x00" * 99 + b"Ns",
        # the same 30,000 pairs for each of 10,000 dicts
        b"](" + b"".join([number(i) + b"N\x86" for i in range(30_000)]) + b"e\x85q\x00"
        + (global_name("collections", "OrderedDict") + b"h\x00R") * 10_000,
        # the same 60,000 arguments for each of 10,000 calls
        b"(" + b"N" * 60_000 + b"tq\x00" + (global_name("torch", "Size") + b"h\x00R") * 10_000,
        b"\x8b" + (8 << 20).to_bytes(4, "little") + bytes([127]) * (8 << 20),
        b"\x8b" + (1 << 30).to_bytes(4, "little"),
        b"X" + b"\xff" * 4,
        b"I" + b"9" * 100_000 + b"\n",
        b")" + b"\x85" * 90_000,
    ],
    ids=["marks", "values", "memo", "tuples", "keys", "pairs", "arguments", "integer", "long",
         "string", "decimal", "depth"],
)  # fmt: skip
def test_a_short_pickle_cannot_ask_for_much_work(tmp_path, body):
    with pytest.raises(WeightsError):
        find(write_body(tmp_path, body))


def test_a_pickle_too_long_is_refused_unread(tmp_path):
    with pytest.raises(WeightsError, match="at most 16,777,216"):
        find(write_body(tmp_path, b"N0" * (9 << 20)))


def members_of(arrays: Mapping[str, np.ndarray]) -> dict[str, bytes]:
    members = {"a/data.pkl": as_pickle(state_dict(arrays))}
    return members | {f"a/data/{key}": a.tobytes() for key, a in enumerate(arrays.values())}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"a/data/0": None}, "'a/data/0' is missing"),
        ({"a/data.pkl": None}, "0 members 'data.pkl'"),
        ({"b/data.pkl": b""}, "2 members 'data.pkl'"),
        ({"a/data/1": bytes(5)}, "storage '1' has 5 bytes, not 4"),
        ({"a/byteorder": b"big"}, "big-endian"),
        ({"a/constants.pkl": b""}, "TorchScript"),
        ({"a/data.pkl": as_pickle(b"}") + bytes(17 << 20)}, "at most 16,777,216"),
    ],
)
def test_an_archive_of_other_members_is_refused(tmp_path, change, message):
    members = members_of(torch_arrays(1 / 64)) | change
    kept = {name: data for name, data in members.items() if data is not None}
    write_members(tmp_path / "weights.pth", kept)
    with pytest.raises(WeightsError, match=message):
        find(tmp_path / "weights.pth")


def test_a_compressed_archive_is_refused(tmp_path):
    members = members_of(torch_arrays(1 / 64)) | {"a/data/0": bytes(1 << 20)}
    write_members(tmp_path / "weights.pth", members, zipfile.ZIP_DEFLATED)
    with pytest.raises(WeightsError, match="is compressed"):
        find(tmp_path / "weights.pth")


def test_two_members_of_one_name_are_refused(tmp_path):
    write_members(tmp_path / "weights.pth", members_of(torch_arrays(1 / 64)))
    with (
        zipfile.ZipFile(tmp_path / "weights.pth", "a") as archive,
        pytest.warns(UserWarning, match="Duplicate name"),
    ):
        archive.writestr("a/data/3", b"")
    with pytest.raises(WeightsError, match="several members of one name"):
        find(tmp_path / "weights.pth")


@pytest.mark.parametrize(
    ("offset", "value", "message"),  # in the central directory's entry of a storage
    [
        (8, (1).to_bytes(2, "little"), "encrypted"),
        (20, b"\xff\xff\xff\x7f" * 2, "claims 2,147,483,647 bytes"),
        (24, b"\xff\xff\xff\x7f", "claims 2,147,483,647 bytes"),
        (42, b"\xff\xff\xff\x7f", "not where the archive says"),
        (42, b"\x01\0\0\0", "not where the archive says"),
    ],
)
def test_an_archive_that_lies_is_refused(tmp_path, offset, value, message):
    path = tmp_path / "weights.pth"
    write_pth(path, torch_arrays(1 / 64))
    data = bytearray(path.read_bytes())
    entry = data.rindex(b"weights/data/7") - 46
    data[entry + offset : entry + offset + len(value)] = value
    path.write_bytes(data)
    with pytest.raises(WeightsError, match=message):
        find(path)


def test_a_flipped_bit_in_an_archive_is_noticed_when_the_array_is_read(tmp_path):
    arrays = torch_arrays(1 / 64)
    path = write(tmp_path, "pth", arrays)
    data = bytearray(path.read_bytes())
    data[data.index(arrays["features.5.weight"].tobytes()) + 9] ^= 4
    path.write_bytes(data)
    with pytest.raises(WeightsError, match=r"'features\.5\.weight' does not have the checksum"):
        read(find(path))


@pytest.mark.parametrize("kind", ["safetensors", "pth", "legacy"])
def test_a_file_that_shrinks_or_goes_while_it_is_read_is_an_error(tmp_path, kind):
    path = write(tmp_path, kind, torch_arrays(1 / 64))
    contents = find(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 8])
    with pytest.raises(WeightsError, match="ends within"):
        read(contents)
    path.unlink()
    with pytest.raises(WeightsError, match="cannot be read"):
        read(contents)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"M\xe9\x03", b"M\xea\x03", "unknown version"),
        (b"\x88", b"\x89", "big-endian"),
        (b"X\x02\0\0\x0025", b"X\x02\0\0\x0099", "list of storages"),
    ],
)
def test_a_legacy_file_that_contradicts_itself_is_refused(tmp_path, old, new, message):
    path = write(tmp_path, "legacy", torch_arrays(1 / 64))
    data = path.read_bytes()
    place = data.rindex(old) if old.startswith(b"X") else data.index(old)
    path.write_bytes(data[:place] + new + data[place + len(old) :])
    with pytest.raises(WeightsError, match=message):
        find(path)


def test_a_legacy_file_ends_with_its_last_array(tmp_path):
    path = write(tmp_path, "legacy", torch_arrays(1 / 64))
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    with pytest.raises(WeightsError, match="truncated"):
        find(path)
    path.write_bytes(data + b"more")
    with pytest.raises(WeightsError, match="4 bytes follow"):
        find(path)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("content", [b"", b"PK", b"\x89HDF\r\n\x1a\n", b"\xff" * 40])
def test_a_file_of_another_kind_is_refused(tmp_path, suffix, content):
    path = tmp_path / f"weights.{suffix}"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=str(path)):
        find(path)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_missing_file_and_a_folder_are_refused(tmp_path, suffix):
    path = tmp_path / f"weights.{suffix}"
    with pytest.raises(WeightsError, match="cannot be read"):
        find(path)
    path.mkdir()
    with pytest.raises(WeightsError, match="cannot be read"):
        find(path)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [1 << 40, 1 << 40], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [0, 1 << 40]},
        {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]},
        {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]},
        {"dtype": "F31", "shape": [1], "data_offsets": [0, 4]},
        {"shape": [1], "data_offsets": [0, 4]},
        [],
    ],
)
def test_a_lying_safetensors_header_is_refused(tmp_path, entry):
    header = json.dumps({"features.0.weight": entry}).encode()
    path = tmp_path / "weights.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(WeightsError, match="cannot be read as safetensors"):
        find(path)


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    """Flip bits, cut bytes out, write extremes or truncate; near the ends most often."""
    damaged = bytearray(data)
    low, high = [(0, len(data)), (0, 5000), (len(data) - 5000, len(data))][rng.integers(3)]
    place = int(rng.integers(low, high))
    match int(rng.integers(4)):
        case 0:
            damaged[place] ^= 1 << int(rng.integers(8))
        case 1:
            del damaged[place : place + int(rng.integers(1, 40))]
        case 2:
            damaged[place : place + 8] = rng.choice([0, 127, 128, 255], 8).astype("u1").tobytes()
        case _:
            del damaged[place:]
    return bytes(damaged)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", WRITERS)
def test_damage_ends_in_an_error_or_in_arrays(tmp_path, kind):
    arrays = torch_arrays(1 / 64, classifier=NARROW_TOP)
    path = write(tmp_path, kind, arrays)
    data = path.read_bytes()
    most = sum(array.nbytes for array in arrays.values())
    rng = np.random.default_rng(0)
    refused: list[str] = []
    for _ in range(150):
        path.write_bytes(mutate(data, rng))
        try:
            found = read(find(path))
        except WeightsError as error:
            refused.append(str(error))
        else:
            assert sum(array.nbytes for array in found.values()) <= most
    assert len(refused) > 50
    assert all(str(path) in message and len(message) < 1000 for message in refused)
