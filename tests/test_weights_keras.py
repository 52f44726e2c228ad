"""Reading weight files in the layouts of Keras, and refusing what is not a usable one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from source_weights import read_source_weights
from weight_files import keras_arrays, write_keras_arrays, write_published_h5

from vgg_jax.errors import WeightsError
from vgg_jax.layers import CONVOLUTIONS, IMAGENET_MEAN_RGB, keras_name
from vgg_jax.weights.hdf5 import read_strings

GOLDEN = Path(__file__).parent / "golden"
TOP = {"fc6": "fc1", "fc7": "fc2", "fc8": "predictions"}


@pytest.mark.parametrize("names", ["published", "nested", "bare"])
@pytest.mark.parametrize("top", [False, True])
def test_each_layout_gives_every_array(tmp_path, names, top):
    path = tmp_path / "weights.h5"
    arrays = write_published_h5(path, names=names, top=top)
    weights = read_source_weights(path)
    assert tuple(weights.layers) == CONVOLUTIONS
    assert tuple(weights.top) == (tuple(TOP) if top else ())
    for name, (kernel, bias) in (*weights.layers.items(), *weights.top.items()):
        expected_kernel, expected_bias = arrays[TOP.get(name) or keras_name(name)]
        if name == "conv1_1":
            expected_kernel = expected_kernel[:, :, [2, 1, 0]]  # BGR in the file, RGB for us
        np.testing.assert_array_equal(kernel, expected_kernel, err_msg=name)
        np.testing.assert_array_equal(bias, expected_bias, err_msg=name)
        assert kernel.dtype == bias.dtype == np.float32
        assert kernel.flags.c_contiguous
    assert weights.width == 1 / 16
    assert weights.mean == IMAGENET_MEAN_RGB
    assert weights.scale == (1.0, 1.0, 1.0)
    assert weights.source == "weights.h5"
    assert weights.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert weights.parameters == sum(k.size + b.size for k, b in arrays.values())


def test_a_file_of_the_real_legacy_writer_is_read():
    weights = read_source_weights(GOLDEN / "narrow_legacy.h5")
    for name, (kernel, bias) in keras_arrays(1 / 16, seed=7).items():
        layer = next(layer for layer in CONVOLUTIONS if keras_name(layer) == name)
        ours = weights.layers[layer]
        expected = kernel[:, :, ::-1] if layer == "conv1_1" else kernel
        np.testing.assert_array_equal(ours[0], expected)
        np.testing.assert_array_equal(ours[1], bias)


@pytest.mark.parametrize("dtype", ["float16", "float64", ">f4"])
def test_other_floats_become_float32(tmp_path, dtype):
    arrays = write_published_h5(tmp_path / "weights.h5", dtype=dtype)
    kernel, bias = read_source_weights(tmp_path / "weights.h5").layers["conv3_2"]
    expected = arrays["block3_conv2"][0].astype(dtype).astype(np.float32)
    np.testing.assert_array_equal(kernel, expected)
    assert kernel.dtype == bias.dtype == np.float32


def test_attributes_as_text_and_in_pieces_are_read(tmp_path):
    def as_keras_cuts_long_lists(file: h5py.File) -> None:
        names = _layer_names(file)
        del file.attrs["layer_names"]
        text = h5py.string_dtype()
        file.attrs.create("layer_names0", names[:8], dtype=text)
        file.attrs.create("layer_names1", names[8:], dtype=text)

    write_published_h5(tmp_path / "weights.h5", edit=as_keras_cuts_long_lists)
    assert tuple(read_source_weights(tmp_path / "weights.h5").layers) == CONVOLUTIONS


def test_any_width_is_read(tmp_path):
    write_published_h5(tmp_path / "weights.h5", width=3 / 64)
    assert read_source_weights(tmp_path / "weights.h5").width == 3 / 64


# Files that are nothing like the published layout: how to make one, and what the message says.


def _text(path: Path) -> None:
    path.write_text("not weights at all")


def _web_page(path: Path) -> None:
    path.write_text("<!DOCTYPE html><html>Not found</html>")


def _truncated(path: Path) -> None:
    write_published_h5(path)
    path.write_bytes(path.read_bytes()[:100_000])


def _without_layer_names(path: Path, **members: str) -> None:
    with h5py.File(path, "w") as file:
        for name in members:
            file.create_group(name)


def _vgg19(path: Path) -> None:
    write_keras_arrays(path, keras_arrays(convolutions_per_block=(2, 2, 4, 4, 4)))


def _network(*layers: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        pair = np.zeros((1, 1, 1, 1), np.float32), np.zeros(1, np.float32)
        write_keras_arrays(path, dict.fromkeys(layers, pair))

    return write


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "No such weight file: .*weights.h5"),
        (lambda path: path.mkdir(), "is a folder, but a weight file"),
        (lambda path: path.touch(), "is no weight file that can be read: it is empty"),
        (_text, "is no weight file that can be read: it starts with b'not weig'.*\n.*keras-h5"),
        (_web_page, "it is a web page"),
        (lambda path: path.write_bytes(b"PK\x03\x04 and so on"), "it starts with b'PK"),
        (_truncated, "is truncated: it ends too early"),
        (lambda path: _without_layer_names(path, layers=""), "holds no VGG16: it has 0 conv"),
        (lambda path: _without_layer_names(path, model_weights=""), "holds no VGG16"),
        (lambda path: _without_layer_names(path, data=""), "no weights of Keras.*'data'"),
        (_vgg19, "holds a VGG19 .it has 'block3_conv4'., but a VGG16 is needed"),
        (_network("conv1_conv", "conv2_block1_1_conv"), "holds a ResNet"),
        (_network("block1_conv1", "block1_conv2", "block14_sepconv1"), "holds an Xception"),
        (_network("conv2d", "dense"), "holds no VGG16.*\n.*'conv2d'"),
    ],
)
def test_what_is_no_vgg16_file_is_refused_in_a_few_lines(tmp_path, make, message):
    path = tmp_path / "weights.h5"
    make(path)
    with pytest.raises(WeightsError, match=message) as caught:
        read_source_weights(path)
    assert str(path) in str(caught.value)
    assert str(caught.value).count("\n") < 3


# Files of the published layout that were spoilt: how, and what the message says.


def _replace(path: str, array: np.ndarray) -> Callable[[h5py.File], None]:
    def edit(file: h5py.File) -> None:
        del file[path]
        file[path] = array

    return edit


def _set_value(path: str, value: float) -> Callable[[h5py.File], None]:
    def edit(file: h5py.File) -> None:
        file[path][(0,) * file[path].ndim] = value  # pyright: ignore

    return edit


def _layer_names(file: h5py.File) -> list[str]:
    return read_strings(file, "layer_names") or []


def _weight_names(*names: bytes) -> Callable[[h5py.File], None]:
    def edit(file: h5py.File) -> None:
        file["block1_conv1"].attrs["weight_names"] = list(names)

    return edit


def _drop_layer(name: str) -> Callable[[h5py.File], None]:
    def edit(file: h5py.File) -> None:
        del file[name]
        file.attrs["layer_names"] = [n.encode() for n in _layer_names(file) if n != name]

    return edit


def _add_layer(file: h5py.File) -> None:
    file.attrs["layer_names"] = [n.encode() for n in (*_layer_names(file), "dense_1")]
    group = file.create_group("dense_1")
    group["kernel:0"] = np.zeros((2, 2), np.float32)
    group.attrs["weight_names"] = [b"kernel:0"]


def _add_array(file: h5py.File) -> None:
    file["block2_conv1/extra"] = np.zeros(3, np.float32)


def _add_group(file: h5py.File) -> None:
    file.create_group("optimizer_weights")


def _soft_link(file: h5py.File) -> None:
    file["block1_conv2/elsewhere"] = file["block1_conv2/block1_conv2_W_1:0"]
    del file["block1_conv2/block1_conv2_W_1:0"]
    file["block1_conv2/block1_conv2_W_1:0"] = h5py.SoftLink("/block1_conv2/elsewhere")


def _external_link(file: h5py.File) -> None:
    del file["block1_conv2"]
    file["block1_conv2"] = h5py.ExternalLink("/etc/other.h5", "/block1_conv2")


def _virtual(file: h5py.File) -> None:
    del file["block1_conv1/block1_conv1_b_1:0"]
    layout = h5py.VirtualLayout((4,), "f4")
    layout[:] = h5py.VirtualSource("other.h5", "bias", (4,))
    file["block1_conv1"].create_virtual_dataset("block1_conv1_b_1:0", layout)  # pyright: ignore


def _external_storage(file: h5py.File) -> None:
    del file["block1_conv1/block1_conv1_b_1:0"]
    file.create_dataset(
        "block1_conv1/block1_conv1_b_1:0", (4,), "f4", external=[("/etc/hostname", 0, 16)]
    )


def _huge(file: h5py.File) -> None:
    del file["block1_conv2/block1_conv2_W_1:0"]
    file.create_dataset("block1_conv2/block1_conv2_W_1:0", (1 << 20, 1 << 20, 64, 64), "f4")


def _huge_and_packed(file: h5py.File) -> None:
    for name, shape in {"fc1": (49 * 32, 1 << 22), "fc2": (1 << 22, 256)}.items():
        del file[f"{name}/{name}_W_1:0"], file[f"{name}/{name}_b_1:0"]
        options = {"chunks": True, "compression": "gzip"}
        for role, of_role in (("W", shape), ("b", shape[-1:])):
            array = file.create_dataset(f"{name}/{name}_{role}_1:0", of_role, "f4", **options)
            array[(0,) * array.ndim] = 1  # so that one chunk is there


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (_drop_layer("block4_conv2"), "block4_conv2: missing"),
        (_drop_layer("fc2"), "fc2: missing"),
        (_add_layer, "dense_1: unexpected layer, with 'kernel:0'"),
        (_add_array, "block2_conv1: unexpected array 'extra'"),
        (_add_group, "optimizer_weights: unexpected, not in 'layer_names'"),
        (
            _replace("block5_conv1/block5_conv1_W_1:0", np.ones((3, 3, 32, 40), np.float32)),
            r"block5_conv1: kernel is 3 x 3 x 32 x 40, but 3 x 3 x 32 x 32 fits the rest",
        ),
        (
            _replace("block5_conv1/block5_conv1_b_1:0", np.ones((32, 1), np.float32)),
            "block5_conv1: bias is 32 x 1, not 32",
        ),
        (
            _replace("fc2/fc2_W_1:0", np.ones((128, 256), np.float32)),
            "fc2: kernel is 128 x 256, but 256 x 256 fits the rest",
        ),
        (
            _replace("fc1/fc1_b_1:0", np.ones(256, np.int32)),
            "fc1: bias is int32, but must be float16, float32 or float64",
        ),
        (_set_value("block3_conv3/block3_conv3_W_1:0", np.nan), "block3_conv3: kernel has 1 value"),
        (_set_value("predictions/predictions_b_1:0", np.inf), "predictions: bias has 1 value"),
        (
            lambda file: file["block1_conv1"].attrs.pop("weight_names"),
            "no attribute 'weight_names'",
        ),
        (_weight_names(b"gamma:0"), "block1_conv1: unexpected array 'gamma:0'"),
        (_weight_names(), "block1_conv1: has no kernel"),
        (lambda file: file.pop("block1_conv1"), "block1_conv1: is named in the attributes, but"),
        (_soft_link, "'block1_conv2_W_1:0' is a link, which is not followed"),
        (_external_link, "block1_conv2: is a link, which is not followed"),
        (_virtual, "block1_conv1: bias has its values in another file, which is not read"),
        (_external_storage, "block1_conv1: bias has its values in another file"),
        (_huge, "block1_conv2: kernel is 1048576 x 1048576 x 64 x 64, but 3 x 3 x 4 x 4"),
        (_huge_and_packed, r"its arrays claim [\d,]+ bytes, though the whole file has [\d,]+"),
    ],
)
def test_each_mismatch_is_named(tmp_path, edit, message):
    path = tmp_path / "weights.h5"
    write_published_h5(path, top=True, edit=edit)
    with pytest.raises(WeightsError, match=message) as caught:
        read_source_weights(path)
    assert f"{path} is not a usable VGG16 weight file" in str(caught.value)


def test_values_too_large_for_float32_are_named(tmp_path):
    write_published_h5(
        tmp_path / "weights.h5",
        dtype="float64",
        edit=_set_value("block2_conv2/block2_conv2_b_1:0", 1e300),
    )
    with pytest.raises(WeightsError, match="block2_conv2: bias has 1 values that are not finite"):
        read_source_weights(tmp_path / "weights.h5")


def test_mismatches_are_reported_together(tmp_path):
    edits = (
        _drop_layer("block4_conv2"),
        _add_layer,
        _replace("block5_conv1/block5_conv1_b_1:0", np.ones(3, np.float32)),
    )
    path = tmp_path / "weights.h5"
    write_published_h5(path)
    with h5py.File(path, "r+") as file:
        for edit in edits:
            edit(file)
    with pytest.raises(WeightsError, match="3 mismatches") as caught:
        read_source_weights(path)
    for problem in ("block4_conv2: missing", "dense_1: unexpected", "block5_conv1: bias is 3"):
        assert problem in str(caught.value)


def test_widths_that_do_not_fit_together_are_named_with_both_shapes(tmp_path):
    arrays = keras_arrays(1 / 16)
    arrays |= {name: pair for name, pair in keras_arrays(1 / 8).items() if name == "block1_conv1"}
    write_keras_arrays(tmp_path / "weights.h5", arrays)
    with pytest.raises(WeightsError) as caught:
        read_source_weights(tmp_path / "weights.h5")
    assert "block1_conv1: kernel is 3 x 3 x 3 x 8, but 3 x 3 x 3 x 4 fits" in str(caught.value)
    assert "block1_conv2" not in str(caught.value)
