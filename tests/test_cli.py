"""The command line: what it prints, where, and with which exit code."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from golden_sources import SOURCES
from typer.testing import CliRunner
from weight_files import write_published_h5

from vgg_jax.cli.app import app

runner = CliRunner()


def invoke(*words: object, code: int = 0, stdin: str | None = None):
    result = runner.invoke(app, [str(word) for word in words], input=stdin)
    assert result.exit_code == code, (result.stdout, result.stderr, result.exception)
    return result


def flags(options) -> list[str]:
    return [
        word
        for name, value in options.items()
        for word in (f"--{name.replace('_', '-')}", str(value))
    ]


def test_help_names_every_command_and_imports_nothing_heavy():
    code = (
        "import sys\nfrom vgg_jax.cli.app import app\n"
        "try: app(['--help'])\nexcept SystemExit: pass\n"
        "heavy = {'jax', 'flax', 'rich', 'h5py', 'numpy'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for command in (
        *(
            "convert-weights",
            "train",
            "plan",
            "sweep",
            "evaluate",
            "predict",
            "summary",
            "export-weights",
        ),
        "plugins",
    ):
        assert command in done.stdout


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["train"],
        ["plan"],
        ["sweep"],
        ["evaluate"],
        ["predict"],
        ["summary"],
        ["export-weights"],
        ["plugins", "list"],
    ],
)
def test_every_command_has_help(words):
    assert "Usage" in invoke(*words, "--help").stdout


def test_version():
    assert invoke("--version").stdout.startswith("vgg-jax 0.")


def test_what_the_parser_refuses_is_exit_code_2():
    invoke("train", "--epochs", "many", code=2)
    invoke("train", "--no-such-option", code=2)
    invoke("no-such-command", code=2)
    invoke("evaluate", "run", "--split", "all", code=2)


def test_convert_weights(tmp_path):
    write_published_h5(tmp_path / "narrow.h5")
    words = ["convert-weights", tmp_path / "narrow.h5", "--out", tmp_path / "out"]
    assert "Wrote" in invoke(*words).stdout
    assert "Already there" in invoke(*words).stdout
    result = json.loads(invoke(*words, "--json").stdout)
    assert result["width"] == 1 / 16
    assert result["written"] is False
    (tmp_path / "text.h5").write_text("no weights")
    failed = invoke("convert-weights", tmp_path / "text.h5", code=1)
    assert failed.stdout == ""
    assert failed.stderr.startswith("Error: ")
    assert "Traceback" not in failed.stderr


def strict_json(text: str) -> dict:
    def refuse(name: str) -> None:
        raise ValueError(name)

    return json.loads(text, parse_constant=refuse)


def test_converting_a_classifier(tmp_path):
    run, file = tmp_path / "run", SOURCES / "classifier.keras"
    (tmp_path / "names.txt").write_text("\ufeffash\n\n birch \ncedar\n", encoding="utf-8")
    words = ["convert-weights", file, "--classes", tmp_path / "names.txt", "--json"]
    done = invoke(*words, "--out", run, "--proof", tmp_path / "proof.md")
    assert done.stderr == ""
    result = strict_json(done.stdout)
    assert result["folder"] == str(run)
    assert result["class_names"] == ["ash", "birch", "cedar"]
    assert result["proof"]["largest"]["error"] < 1e-5
    assert (tmp_path / "proof.md").read_text().startswith("# Proof")

    verify = ["convert-weights", "--verify", run]
    done = invoke(*verify)
    assert done.stdout.startswith(f"{run / 'backbone'}: 30 arrays match their checksums")
    assert f"Proven again from {file}" in done.stdout
    assert done.stderr == ""
    verified = strict_json(invoke(*verify, "--json", "--proof", tmp_path / "again.json").stdout)
    assert verified["source"] == str(file)
    assert verified["digest"] == result["digest"]
    assert strict_json((tmp_path / "again.json").read_text()) == verified["proof"]

    again = invoke(*words, "--out", run, code=1)
    assert again.stdout == ""
    assert "exists already; choose another --out" in again.stderr


def test_what_cannot_be_proven_again_is_said(tmp_path):
    write_published_h5(tmp_path / "narrow.h5", 1 / 32)
    out = tmp_path / "out"
    invoke("convert-weights", tmp_path / "narrow.h5", "--out", out)
    (tmp_path / "narrow.h5").rename(tmp_path / "moved.h5")
    done = invoke("convert-weights", "--verify", out)
    assert "Not proven again" in done.stdout
    assert f"vgg-jax convert-weights FILE --verify {out}" in done.stdout
    refused = invoke("convert-weights", "--verify", out, "--proof", tmp_path / "p.md", code=1)
    assert "no proof to write" in refused.stderr
    assert refused.stdout == ""
    named = invoke("convert-weights", tmp_path / "moved.h5", "--verify", out, "--json")
    assert strict_json(named.stdout)["proof"]["errors"]["pool5"] < 1e-5


@pytest.mark.parametrize(
    "classes", [",".join(f"a rather long name {i}" for i in range(300)), "~none/a,b", "\0"]
)
def test_names_that_no_file_could_have_are_names(classes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    failed = invoke("convert-weights", SOURCES / "classifier.h5", "--classes", classes, code=1)
    assert "tells 3 classes apart" in failed.stderr


def test_train_evaluate_predict(options, photos, tmp_path):
    run = tmp_path / "run"
    trained = invoke("train", *flags({**options, "epochs": 1, "run": run}))
    assert f"Run: {run}" in trained.stdout
    assert "epoch 1/1" in trained.stderr
    assert "epoch 1/1" not in trained.stdout
    assert "accuracy" in invoke("evaluate", run).stdout
    picture = photos / "test" / "rings" / "0.png"
    assert invoke("predict", run, picture).stdout.startswith(f"{picture}: ")
    again = json.loads(invoke("train", "--run", run, "--resume", "--epochs", 2, "--json").stdout)
    assert [epoch["epoch"] for epoch in again["epochs"]] == [1, 2]
    file = tmp_path / "config.toml"
    file.write_text("seed = 9\n")
    refused = invoke("train", "--run", run, "--resume", "--config", file, code=1)
    assert "--seed 9 differs" in refused.stderr
    exists = invoke("train", *flags({**options, "run": run}), code=1)
    assert "--resume" in exists.stderr


def test_evaluate_as_json(run):
    result = json.loads(invoke("evaluate", run.path, "--json").stdout)
    assert set(result) == {"loss", "accuracy", "top_k", "classes", "confusion_matrix", "examples"}
    assert set(result["classes"]["rings"]) == {"precision", "recall", "f1", "support"}
    assert result["examples"] == 9


def test_predict_as_json_and_csv(run, photos):
    folder = photos / "test" / "dots"
    result = json.loads(invoke("predict", run.path, folder, "--json", "--top", 2).stdout)
    assert [Path(p["path"]).name for p in result["predictions"]] == ["0.png", "1.png", "2.png"]
    assert len(result["predictions"][0]["top"]) == 2
    rows = list(csv.DictReader(io.StringIO(invoke("predict", run.path, folder, "--csv").stdout)))
    assert rows[0].keys() == {"path", "class", "dots", "rings", "stripes"}
    assert sum(float(rows[0][name]) for name in ("dots", "rings", "stripes")) == pytest.approx(
        1, abs=1e-5
    )
    invoke("predict", run.path, folder, "--csv", "--json", code=1)


def test_predict_reads_paths_from_standard_input(run, photos):
    picture = photos / "test" / "dots" / "0.png"
    lines = invoke("predict", run.path, "-", stdin=f"{picture}\n{picture}\n").stdout.splitlines()
    assert len(lines) == 2


def test_a_broken_picture_gets_its_line_and_exit_code_1(run, photos, tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"")
    result = invoke("predict", run.path, broken, photos / "test" / "dots" / "0.png", code=1)
    assert len(result.stdout.splitlines()) == 1
    assert "broken.jpg" in result.stderr


def test_summary_and_plugins(run):
    assert "15,353,054,464 multiply-adds" in invoke("summary").stdout
    assert json.loads(invoke("summary", run.path, "--json").stdout)["image_size"] == 32
    listed = json.loads(invoke("plugins", "list", "--kind", "head", "--json").stdout)["plugins"]
    own = [plugin["name"] for plugin in listed if plugin["package"] == "vgg-jax"]
    assert own == ["dense256", "gap-mlp", "linear", "mlp", "vgg"]
    assert "rotation" in invoke("plugins", "list").stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "--data", "no/such"], "No such folder"),
        (["train", "--head", "dens256"], "Did you mean 'dense256'"),
        (["train", "--augment", "rotate"], "Installed"),
        (["train", "--augment", "rotation:degree=3"], "Did you mean 'degrees'"),
        (["train", "--train-from", "conv5-1"], "Did you mean 'conv5_1'"),
        (["train", "--learning-rate", "0"], "above 0"),
        (["train", "--config", "none.toml"], "No such file"),
        (["train", "--resume"], "--run"),
        (["evaluate", "no/such/run"], "does not exist"),
        (["predict", "no/such/run", "x.jpg"], "does not exist"),
        (["summary", "no/such/run"], "does not exist"),
        (["convert-weights"], "convert-weights FILE"),
        (["convert-weights", "demo", "--proof", "p.txt"], "must end in .json or .md"),
        (["convert-weights", "demo", "--classes", "a,b"], "holds no classifier"),
        (["convert-weights", "--verify", "d", "--try", "p.jpg"], "--try cannot go with --verify"),
        (["convert-weights", "--verify", "none"], "No such folder"),
    ],
)
def test_a_failure_is_one_to_three_lines_on_standard_error(words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = invoke(*words, code=1)
    assert message in result.stderr
    assert result.stdout == ""
    error = result.stderr[result.stderr.index("Error: ") :]
    assert len(error.splitlines()) <= 3


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda data: shutil.rmtree(data / "train" / "dots"), "dots"),
        (lambda data: [p.unlink() for p in (data / "train" / "dots").iterdir()], "dots"),
        (lambda data: [shutil.rmtree(p) for p in data.glob("*/[dr]*")], "a single class"),
        (lambda data: (data / "validation" / "rings" / "1.png").write_bytes(b""), "1.png"),
        (lambda data: (data / "train" / "rings" / "1.png").write_text("text"), "1.png"),
    ],
)
def test_spoilt_data_are_named(options, photos, tmp_path, spoil, message):
    data = tmp_path / "photos"
    shutil.copytree(photos, data)
    spoil(data)
    changed = {**options, "data": data, "run": tmp_path / "run", "epochs": 1}
    assert message in invoke("train", *flags(changed), code=1).stderr


@pytest.mark.parametrize(
    ("target", "message"), [("| true", ""), ("> /dev/full", "No space left on device")]
)
def test_output_that_nobody_takes_ends_quietly(target, message):
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    command = f"set -o pipefail; {sys.executable} -m vgg_jax plugins list {target}"
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, check=False, env=environment
    )
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert message in done.stderr
    assert done.returncode in ((1,) if message else (0, 1))


def test_python_m_is_the_command_line_and_importing_is_light():
    code = (
        "import sys, vgg_jax\nassert vgg_jax.__version__\n"
        "sys.exit(str({'jax', 'typer', 'numpy'} & set(sys.modules) or ''))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == "", done.stderr
    done = subprocess.run(
        [sys.executable, "-m", "vgg_jax", "--version"],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ,
    )
    assert done.stdout.startswith("vgg-jax")
