"""The forms of a proof: complete in JSON, readable in Markdown, short on the terminal."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest

from vgg_jax.errors import WeightsError
from vgg_jax.weights.report import (
    Difference,
    Proof,
    Row,
    as_markdown,
    write_json,
    write_markdown,
)

ROW = Row(
    source="block1_conv1/block1_conv1_W_1:0",
    source_shape=(3, 3, 3, 64),
    source_dtype="float16",
    parameter="conv1_1/kernel",
    shape=(3, 3, 3, 32),
    done="input channels from BGR to RGB",
    sha256="0123456789abcdef" * 4,
    min=-0.25,
    max=0.5,
    mean=0.0625,
    std=0.125,
)
PROOF = Proof(
    source="vgg16.h5",
    size=58_889_256,
    sha256="f" * 64,
    layout="keras-h5",
    layout_description="Keras weights (.h5)",
    preprocessing="caffe",
    mean=(123.68, 116.779, 103.939),
    scale=(1.0, 1.0, 1.0),
    width=1.0,
    head="top",
    rows=(ROW, replace(ROW, source="b", parameter="conv1_1/bias")),
    errors={"conv1_1": 1.5e-7, "pool1": 7.61e-7, "fc6": 2e-7},
    controls={
        "swapped channels": Difference("conv1_1", 0.3125),
        "missing ReLU": Difference("conv3_1", 1.25),
    },
    tolerance=1e-5,
    image_side=224,
    image_seed=16,
    versions={"vgg-jax": "0.1.0", "jax": "0.10.1 (cpu)"},
    picture="photo.jpg",
    top5=(("tiger cat", 0.8125), ("tabby", 0.125)),
)


def test_summary_is_short():
    assert PROOF.summary_lines() == [
        "Proof: 3 layers agree with an independent float64 reference to 7.6e-07 "
        "(at most 1e-05 is allowed)",
        "  2 arrays became 2 parameters: none missing, none left over, all finite",
        "  2 controls fail as they must: swapped channels 0.31, missing ReLU 1.2",
        "  photo.jpg: tiger cat 81.2%, tabby 12.5%",
    ]
    assert len(replace(PROOF, top5=()).summary_lines()) == 3


def test_json_holds_everything(tmp_path):
    write_json(PROOF, tmp_path / "proof.json")
    read = json.loads((tmp_path / "proof.json").read_text())
    assert read.pop("largest") == {"layer": "pool1", "error": 7.61e-7}
    assert read.pop("controls") == {
        "swapped channels": {"layer": "conv1_1", "error": 0.3125},
        "missing ReLU": {"layer": "conv3_1", "error": 1.25},
    }
    assert [set(row) for row in read["rows"]] == [{it.name for it in fields(Row)}] * 2
    assert read.pop("rows")[0]["sha256"] == ROW.sha256
    assert read.pop("top5") == [["tiger cat", 0.8125], ["tabby", 0.125]]
    assert set(read) == {it.name for it in fields(Proof)} - {"controls", "rows", "top5"}
    for name, value in read.items():
        expected = getattr(PROOF, name)
        assert value == (list(expected) if isinstance(expected, tuple) else expected), name


def test_markdown_tells_everything_to_people():
    text = as_markdown(PROOF)
    for part in (
        "**Passed.**", "`vgg16.h5`, 58,889,256 bytes", "f" * 64, "Keras weights (.h5) (`keras-h5`)",
        "width 1;", "fc6, fc7, fc8", "caffe", "123.68, 116.779, 103.939", "times 1, 1, 1",
        "vgg-jax 0.1.0, jax 0.10.1 (cpu)",
        "| `block1_conv1/block1_conv1_W_1:0` | 3 x 3 x 3 x 64 float16 | `conv1_1/kernel` "
        "| 3 x 3 x 3 x 32 | input channels from BGR to RGB | `0123456789abcdef` |",
        "| `conv1_1/kernel` | -0.25 | 0.5 | 0.0625 | 0.125 |", "| pool1 | 7.61e-07 |",
        "224 x 224 picture drawn from seed 16", "| swapped channels | conv1_1 | 0.31 |",
        "| missing ReLU | conv3_1 | 1.2 |", "`photo.jpg`", "| tiger cat | 0.8125 |",
        "`vgg-jax convert-weights --verify DIR`",
    ):  # fmt: skip
        assert part in text, part
    assert "tiger cat" not in as_markdown(replace(PROOF, top5=()))


def test_names_from_a_file_cannot_break_the_markdown():
    hostile = "a|b`c\n# heading\r\n<script>"
    text = as_markdown(replace(PROOF, source=hostile, rows=(replace(ROW, source=hostile),)))
    assert "\n# heading" not in text
    assert "| `a\\|b'c # heading <script>` |" in text
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.replace("\\|", "").count("|") for line in tables} == {3, 4, 6, 7}


@pytest.mark.parametrize("write", [write_json, write_markdown])
def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch, write):
    path = tmp_path / "proof"
    write(PROOF, path)
    before = path.read_bytes()

    def run_full(self: Path, text: str, **options: object) -> None:
        self.write_bytes(text[:10].encode())
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", run_full)
    with pytest.raises(WeightsError, match=r"Cannot write the proof to .*proof: No space left"):
        write(PROOF, path)
    assert [file.name for file in tmp_path.iterdir()] == ["proof"]
    assert path.read_bytes() == before


def test_a_missing_folder_is_told(tmp_path):
    with pytest.raises(WeightsError, match=r"Cannot write the proof to .*No such file"):
        write_json(PROOF, tmp_path / "none" / "proof.json")
