"""Reading PyTorch's weight files without PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from torch_files import (
    NARROW_TOP,
    TOP,
    WRITERS,
    as_pickle,
    dictionary,
    find,
    number,
    read,
    set_items,
    state_dict,
    storage,
    tensor,
    torch_arrays,
    write,
    write_body,
    write_members,
)

from vgg_jax.errors import WeightsError
from vgg_jax.layers import CONVOLUTIONS, resolve_layer
from vgg_jax.weights.reading import read_weight_file

GOLDEN = Path(__file__).parent / "golden"


def assert_equal(found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array, err_msg=name)


@pytest.mark.parametrize("classifier", [(), ((1, 5),), ((0, 256), (2, 5)), TOP])
@pytest.mark.parametrize("kind", WRITERS)
def test_each_container_gives_every_array(tmp_path, kind, classifier):
    arrays = torch_arrays(classifier=classifier)
    contents = find(write(tmp_path, kind, arrays))
    assert contents.problems == ()
    assert contents.layout == ("torch-safetensors" if kind == "safetensors" else "torch-pth")
    assert tuple(contents.layers) == CONVOLUTIONS
    for layer, found in contents.layers.items():
        assert resolve_layer(found.label) == layer
        assert found.kernel.path == f"{found.label}.weight"
    assert [layer.label for layer in contents.dense] == [f"classifier.{i}" for i, _ in classifier]
    assert_equal(read(contents), arrays)


@pytest.mark.parametrize("dtype", ["float16", "float64"])
@pytest.mark.parametrize("kind", ["safetensors", "pth", "legacy"])
def test_other_floats_stay_what_they_are(tmp_path, kind, dtype):
    arrays = torch_arrays(1 / 64, dtype=dtype)
    assert_equal(read(find(write(tmp_path, kind, arrays))), arrays)


@pytest.mark.parametrize("name", ["narrow_torch.pth", "narrow_torch_legacy.pth"])
def test_files_of_the_real_torch_are_read(name):
    arrays = torch_arrays(1 / 64, seed=7, classifier=NARROW_TOP)
    assert_equal(read(find(GOLDEN / name)), arrays)


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("prefix", ["module.", "model._orig_mod."])
def test_what_wrappers_put_before_names_is_ignored(tmp_path, kind, prefix):
    arrays = torch_arrays(1 / 64, classifier=NARROW_TOP)
    arrays = {prefix + name: array for name, array in arrays.items()}
    contents = find(write(tmp_path, kind, arrays))
    assert contents.problems == ()
    assert contents.layers["conv1_1"].label == "features.0"
    assert_equal(read(contents), arrays)


def test_dense_layers_come_in_the_order_of_their_numbers(tmp_path):
    arrays = torch_arrays(1 / 64, classifier=((2, 4), (10, 5)))
    renamed = {name.replace("classifier.10", "classifier.10.0"): a for name, a in arrays.items()}
    contents = find(write(tmp_path, "pth", dict(reversed(renamed.items()))))
    assert [layer.label for layer in contents.dense] == ["classifier.2", "classifier.10.0"]
    alone = torch_arrays(1 / 64, classifier=((1, 4),))
    alone = {name.replace("classifier.1", "classifier"): array for name, array in alone.items()}
    contents = find(write(tmp_path, "pth", alone))
    assert [layer.label for layer in contents.dense] == ["classifier"]


def test_the_state_dict_of_a_checkpoint_is_found(tmp_path):
    arrays = torch_arrays(1 / 64)
    momentum = dictionary({"momentum_buffer": tensor((1,), storage(1, 1))})
    checkpoint = dictionary(
        {
            "epoch": number(3),
            "accuracy": tensor((), storage(1, 1)),
            "state_dict": state_dict(arrays),
            "optimizer": dictionary({"state": b"}K\x00" + momentum + b"s", "lr": b"G" + bytes(8)}),
        }
    )
    assert_equal(read(find(write_body(tmp_path, checkpoint, arrays))), arrays)


STATE_DICT = dictionary({"w": tensor((), storage(0, 1))})


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (number(3), "no state dict, but something else"),
        (dictionary({"a": state_dict({}), "epoch": number(3)}), "no state dict, .*'a', 'epoch'"),
        (dictionary(dict.fromkeys(["ema", "net"], STATE_DICT)), "2 state dicts: 'ema', 'net'"),
    ],
)
def test_a_file_without_one_state_dict_is_refused(tmp_path, body, message):
    with pytest.raises(WeightsError, match=message):
        find(write_body(tmp_path, body, {"w": np.zeros(1, "f4")}))


@pytest.mark.parametrize("kind", ["safetensors", "pth"])
@pytest.mark.parametrize(
    ("gone", "more", "problems", "head_problems"),
    [
        (["features.5.bias"], [], ["features.5: has no bias"], []),
        (["features.5.bias", "features.5.weight"], [], ["features.5: missing"], []),
        (["classifier.3.weight"], [], [], ["classifier.3: has no weight"]),
        ([], ["fc.bias", "features.3.weight"],
         ["unexpected: 'features.3.weight'"], ["unexpected: 'fc.bias'"]),
        ([], ["classifier.1.running_mean"], [], ["unexpected: 'classifier.1.running_mean'"]),
    ],
)  # fmt: skip
def test_missing_and_unexpected_arrays_are_named(
    tmp_path, kind, gone, more, problems, head_problems
):
    arrays = torch_arrays(1 / 64, classifier=NARROW_TOP)
    arrays = {name: array for name, array in arrays.items() if name not in gone}
    arrays |= {name: np.zeros(2, "f4") for name in more}
    contents = find(write(tmp_path, kind, arrays))
    assert (list(contents.problems), list(contents.head_problems)) == (problems, head_problems)


@pytest.mark.parametrize("kind", ["safetensors", "pth"])
def test_without_its_head_a_model_may_have_any(tmp_path, kind):
    backbone = torch_arrays(1 / 64)
    head = {"classifier.0.running_var": "f4", "head.norm.weight": "f4"}
    if kind == "safetensors":
        head |= {"classifier.0.num_batches_tracked": "i8", "classifier.0.bias": "i8"}
    path = write(tmp_path, kind, backbone | {name: np.ones(2, t) for name, t in head.items()})
    with pytest.raises(WeightsError, match=r"head\.norm\.weight"):
        read_weight_file(path)
    file = read_weight_file(path, backbone_only=True)
    assert_equal(file.arrays, backbone)
    assert (file.head, file.dense) == ("", {})


@pytest.mark.parametrize("kind", ["safetensors", "pth"])
def test_the_only_network_is_found_among_other_arrays(tmp_path, kind):
    arrays = {f"net.{name}": a for name, a in torch_arrays(1 / 64, classifier=TOP[:1]).items()}
    others = ["classifier.0.bias", "fc.weight", "features.1.running_mean"]
    contents = find(write(tmp_path, kind, arrays | {n: np.zeros(2, "f4") for n in others}))
    assert contents.problems == ()
    assert contents.head_problems == ("unexpected: " + ", ".join(map(repr, others)),)
    assert_equal(read(contents), arrays)


@pytest.mark.parametrize("kind", ["safetensors", "pth"])
def test_of_two_networks_none_is_chosen(tmp_path, kind):
    arrays = torch_arrays(1 / 64)
    both = {f"{net}.{name}": a for net in ("student", "teacher") for name, a in arrays.items()}
    with pytest.raises(WeightsError, match="holds no VGG16"):
        find(write(tmp_path, kind, both))


def with_normalisation() -> dict[str, np.ndarray]:
    arrays = torch_arrays(1 / 64, modules=3)
    for name in [name for name in arrays if name.endswith("bias")]:
        position = int(name.split(".")[1]) + 1
        roles = ("weight", "bias", "running_mean", "running_var")
        arrays |= {f"features.{position}.{role}": arrays[name] for role in roles}
    return arrays


@pytest.mark.parametrize("kind", ["safetensors", "pth"])
@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (torch_arrays(1 / 64, convolutions_per_block=(1, 1, 2, 2, 2)), "VGG11"),
        (torch_arrays(1 / 64, convolutions_per_block=(2, 2, 2, 2, 2)), "VGG13"),
        (torch_arrays(1 / 64, convolutions_per_block=(2, 2, 4, 4, 4)), "VGG19"),
        (with_normalisation(), "VGG16 with batch normalisation"),
        ({"conv1.weight": np.zeros((4, 3, 7, 7), "f4"), "fc.bias": np.zeros(5, "f4")},
         r"no VGG16: .*\n.*'conv1.weight', 'fc.bias'"),
    ],
    ids=["vgg11", "vgg13", "vgg19", "vgg16_bn", "resnet"],
)  # fmt: skip
def test_another_network_is_named(tmp_path, kind, arrays, message):
    with pytest.raises(WeightsError, match=message):
        find(write(tmp_path, kind, arrays))


def test_storages_may_be_shared_and_begun_anywhere(tmp_path):
    arrays = torch_arrays(1 / 64)
    flat = np.concatenate([array.ravel() for array in arrays.values()])
    views, offset = {}, 0
    for name, array in arrays.items():
        views[name] = tensor(array.shape, storage(0, flat.size), offset=offset)
        offset += array.size
    views["features.28.bias"] = views["features.26.bias"]
    expected = arrays | {"features.28.bias": arrays["features.26.bias"]}
    assert_equal(read(find(write_body(tmp_path, dictionary(views), {"flat": flat}))), expected)


@pytest.mark.parametrize(
    ("odd", "problem"),
    [
        (tensor((1, 3, 3, 3), storage("odd", 27), strides=(27, 1, 9, 3)), "not in C order; save"),
        (tensor((27,), storage("odd", 27, kind="BFloat16Storage")), "stored as bfloat16; float16"),
        (tensor((), storage("odd", 27, kind="LongStorage")), "stored as int64; float16"),
        (number(3), "not an array"),
    ],
)
def test_what_is_not_read_is_a_problem_with_a_way_out(tmp_path, odd, problem):
    arrays = torch_arrays(1 / 64)
    body = state_dict(arrays) + set_items({"features.0.weight": odd})
    members = {f"a/data/{key}": array.tobytes() for key, array in enumerate(arrays.values())}
    size = {"bfloat16": 2, "int64": 8}.get(problem.split()[2].strip(";"), 4)
    members |= {"a/data.pkl": as_pickle(body), "a/data/odd": bytes(27 * size)}
    write_members(tmp_path / "weights.pth", members)
    (found,) = find(tmp_path / "weights.pth").problems
    assert found.startswith(f"'features.0.weight': {problem}")


def test_safetensors_of_other_types_are_a_problem_with_a_way_out(tmp_path):
    arrays = torch_arrays(1 / 64) | {"features.0.weight": np.zeros((1, 3, 3, 3), "i8")}
    (found,) = find(write(tmp_path, "safetensors", arrays)).problems
    assert found.startswith("'features.0.weight': stored as I64; float16")
    assert "tensor.float()" in found
