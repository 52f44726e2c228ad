"""Decoding: whatever a picture file holds becomes upright 8-bit RGB, or an error with its name."""

from __future__ import annotations

import csv
import io
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from picture_files import encode, pixels, real_data
from PIL import ExifTags, Image

from vgg_jax.data.decode import decode_image, resize_image
from vgg_jax.errors import DataError

RGB = pixels(0)
GREY = RGB[..., 0]
GREY_AS_RGB = np.repeat(GREY[..., None], 3, axis=-1)
WIDE = (np.arange(12 * 16).reshape(12, 16) * 341).astype(np.uint16)  # 0 to 65,131
WIDE_AS_RGB = np.repeat((WIDE // 256).astype(np.uint8)[..., None], 3, axis=-1)
EVEN = np.full_like(RGB, 90)
ALPHA = pixels(1)[..., :1]


def palette(transparency: bytes | int | None = None) -> tuple[bytes, np.ndarray]:
    image = Image.fromarray(RGB).quantize(16)
    options = {} if transparency is None else {"transparency": transparency}
    return encode(image, "PNG", **options), np.asarray(image.convert("RGB"))


def animation(file_format: str, **options: object) -> bytes:
    frames = [Image.fromarray(pixels(seed)) for seed in (0, 1, 2)]
    return encode(frames[0], file_format, save_all=True, append_images=frames[1:], **options)


def damaged_exif(segment: bytes) -> bytes:
    data = encode(RGB, "BMP")
    jpeg = encode(Image.open(io.BytesIO(data)), "JPEG", quality=100)
    body = b"Exif\x00\x00" + segment
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + jpeg[2:]


CASES: dict[str, tuple[bytes, np.ndarray]] = {
    "RGB": (encode(RGB, "PNG"), RGB),
    "BMP": (encode(RGB, "BMP"), RGB),
    "TIFF": (encode(RGB, "TIFF"), RGB),
    "PPM": (encode(RGB, "PPM"), RGB),
    "WebP": (encode(RGB, "WEBP", lossless=True), RGB),
    "grey": (encode(GREY, "PNG"), GREY_AS_RGB),
    "grey with alpha": (encode(np.stack([GREY, ALPHA[..., 0]], -1), "PNG"), GREY_AS_RGB),
    "RGB with alpha": (encode(np.concatenate([RGB, ALPHA], -1), "PNG"), RGB),
    "RGB with a transparent colour": (
        encode(RGB, "PNG", transparency=tuple(RGB[0, 0].tolist())),
        RGB,
    ),
    "bilevel": (encode(Image.fromarray(GREY > 127), "PNG"), np.where(GREY_AS_RGB > 127, 255, 0)),
    "palette": palette(),
    "palette, a transparent colour": palette(3),
    "palette, alpha for each colour": palette(bytes(range(0, 256, 16))),
    "CMYK": (encode(Image.fromarray(255 - RGB).convert("CMYK"), "TIFF"), 255 - RGB),
    "16-bit grey PNG": (encode(WIDE, "PNG"), WIDE_AS_RGB),
    "16-bit grey TIFF": (encode(WIDE, "TIFF"), WIDE_AS_RGB),
    "16-bit grey PGM": (b"P5 16 12 65535\n" + WIDE.astype(">u2").tobytes(), WIDE_AS_RGB),
    "32-bit grey, small values": (encode(WIDE.astype(np.int32), "TIFF"), WIDE_AS_RGB),
    "float grey to 1": (encode(GREY.astype(np.float32) / 255, "TIFF"), GREY_AS_RGB),
    "float grey to 255": (encode(GREY.astype(np.float32), "TIFF"), GREY_AS_RGB),
    "animated PNG": (animation("PNG"), RGB),
    "animated WebP": (animation("WEBP", lossless=True), RGB),
}


@pytest.mark.parametrize("case", CASES)
def test_pictures_become_8_bit_rgb(case):
    data, expected = CASES[case]
    image = decode_image(data, case)
    assert image.dtype == np.uint8
    assert image.flags.writeable  # host augmentations may work in place
    np.testing.assert_array_equal(image, expected)


@pytest.mark.parametrize(
    ("data", "tolerance"),
    [
        (encode(EVEN, "JPEG"), 2),
        (encode(Image.fromarray(EVEN).convert("CMYK"), "JPEG"), 2),
        (encode(EVEN, "AVIF"), 3),
        (encode(Image.new("LAB", (16, 12), (97, 128, 128)), "TIFF"), 3),  # L* 38 of 100
        (encode(EVEN, "MPO", save_all=True, append_images=[Image.new("RGB", (16, 12))]), 2),
    ],
    ids=["JPEG", "CMYK JPEG", "AVIF", "LAB", "MPO"],
)
def test_lossy_pictures_keep_their_colours(data, tolerance):
    image = decode_image(data, "picture")
    assert (image.shape, image.dtype) == (RGB.shape, np.uint8)
    assert abs(image.astype(int) - 90).max() <= tolerance


def test_an_animated_gif_gives_its_first_frame():
    frames = [Image.new("RGB", (16, 12), colour) for colour in ("red", "blue")]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(decode_image(data, "x.gif")[0, 0], [255, 0, 0])


@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_stand_upright(orientation, file_format):
    # What is stored, for each way that a camera may have been held (Exif 2.32, tag 0x0112).
    stored = {
        1: RGB,
        2: RGB[:, ::-1],
        3: RGB[::-1, ::-1],
        4: RGB[::-1],
        5: RGB.transpose(1, 0, 2),
        6: np.rot90(RGB),
        7: np.rot90(RGB, 2).transpose(1, 0, 2),
        8: np.rot90(RGB, -1),
    }[orientation]
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    options = {"lossless": True} if file_format == "WEBP" else {}
    data = encode(np.ascontiguousarray(stored), file_format, exif=exif, **options)
    np.testing.assert_array_equal(decode_image(data, "x"), RGB)


@pytest.mark.parametrize(
    "segment",
    [b"", b"MM\x00*", b"II*\x00\xff\xff\xff\x7f", b"MM\x00*\x00\x00\x00\x08\x00\x05junk"],
)
def test_damaged_exif_does_not_cost_the_picture(segment):
    assert decode_image(damaged_exif(segment), "x.jpg").shape == RGB.shape


def png_of_size(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + checksum

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pieces = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + pieces


NOISE = encode(pixels(0, 64, 64), "PNG")
BAD = {
    "empty": (b"", ["empty", "0 bytes"]),
    "text": (b"<html>404</html>", ["cannot be read as a picture", "<html>", "JPEG, PNG"]),
    "truncated JPEG": (encode(pixels(0, 64, 64), "JPEG")[:-900], ["truncated"]),
    "truncated PNG": (NOISE[: len(NOISE) // 2], ["truncated"]),
    "only a signature": (NOISE[:20], ["bytes"]),
    "damaged PNG": (NOISE[:100] + bytes(400) + NOISE[500:], ["damaged"]),
    "large": (png_of_size(10_000, 10_000), ["10000 x 10000", "smaller"]),
    "bomb": (png_of_size(100_000, 100_000), ["too large", "10000000000"]),
    "no pixels": (b"GIF89a\x00\x00\x00\x00\x00\x00\x00;", ["cannot be read", "GIF89a"]),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", ["cannot be read"]),
    "grey beyond 16 bits": (
        encode(np.full((4, 4), 70_000, np.int32), "TIFF"),
        ["70000", "16 bits"],
    ),
    "not a number": (encode(np.full((4, 4), np.nan, np.float32), "TIFF"), ["nan", "[0, 1]"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_pictures_are_named_with_what_is_wrong(case):
    data, said = BAD[case]
    with pytest.raises(DataError) as failure:
        decode_image(data, "photos/cat/17.jpg")
    message = str(failure.value)
    assert message.startswith("photos/cat/17.jpg: ")
    assert all(part in message for part in said), message
    assert message.count("\n") < 3


def test_no_prefix_of_a_picture_passes_for_the_whole():
    data = encode(pixels(0, 40, 40), "JPEG")
    for stop in range(0, len(data) - 2, 37):
        with pytest.raises(DataError):
            decode_image(data[:stop], "x.jpg")


def test_pillow_does_not_warn_in_threads():
    data, _ = palette(bytes(range(0, 256, 16)))
    warned = [
        data,
        damaged_exif(b"MM\x00*\x00\x00\x00\x08\x00\x05junk"),
        png_of_size(10_000, 10_000),
    ]

    def attempt(i: int) -> None:
        try:
            decode_image(warned[i % 3], "x")
        except DataError:
            assert i % 3 == 2

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(attempt, range(60)))
    assert not caught, [str(warning.message) for warning in caught]


@pytest.mark.parametrize("interpolation", ["bilinear", "nearest"])
@pytest.mark.parametrize("shape", [(12, 16), (40, 7), (1, 1), (20, 20)])
def test_resized_pictures_are_square(shape, interpolation):
    image = resize_image(pixels(0, *shape), 20, interpolation)
    assert (image.shape, image.dtype, image.flags.writeable) == ((20, 20, 3), np.uint8, True)


def test_bilinear_averages_and_nearest_picks():
    board = np.indices((64, 64)).sum(0) % 2 * np.uint8(255)
    board = np.repeat(board.astype(np.uint8)[..., None], 3, axis=-1)
    assert abs(resize_image(board, 8)[1:-1, 1:-1].astype(int) - 127).max() <= 2
    assert set(np.unique(resize_image(board, 24, "nearest"))) <= {0, 255}


def test_an_unknown_interpolation_is_refused():
    with pytest.raises(ValueError, match=r"'cubic'.*bilinear"):
        resize_image(RGB, 8, "cubic")  # type: ignore[arg-type]


@pytest.mark.real_data
def test_odd_images_decode_or_are_refused_by_name():
    folder = real_data("odd_images")
    rows = list(csv.DictReader((folder / "index.csv").read_text().splitlines()))
    assert len(rows) == 68
    refused = set()
    for row in rows:
        path = str(folder / row["file"])
        try:
            image = decode_image(Path(path).read_bytes(), path)
        except DataError as error:
            refused.add(row["file"] if str(error).startswith(path) else str(error))
        else:
            assert image.dtype == np.uint8, path
            size = sorted(map(int, row["size"].split("x")))
            assert (sorted(image.shape[:2]), image.shape[2]) == (size, 3), path
    expected = {row["file"] for row in rows if not row["pillow_13_says"].startswith("decodes")}
    # Cut in its last chunk, after the pixels.
    assert refused == expected | {"pillow/truncated_end_chunk.png"}


@pytest.mark.real_data
def test_real_photographs_stand_upright():
    folder = real_data("odd_images") / "exif_orientation"
    for kind, shape in (("Landscape", (1200, 1800, 3)), ("Portrait", (1800, 1200, 3))):
        paths = sorted(folder.glob(f"{kind}_*.jpg"))
        images = [decode_image(path.read_bytes(), path.name) for path in paths]
        assert {image.shape for image in images} == {shape}
        small = [resize_image(image, 16).astype(int) for image in images]
        for path, image in zip(paths, small, strict=True):
            assert abs(image - small[0]).mean() < 12, path  # they carry their number as text
