"""Finding, naming and building plugins."""

from __future__ import annotations

import datetime
import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
from flax import nnx
from typer.testing import CliRunner

from vgg_jax.cli.app import app
from vgg_jax.errors import OptionError, PluginError, UnknownPluginError
from vgg_jax.plugin_choices import PluginChoice, parse_choice
from vgg_jax.plugin_options import describe_options
from vgg_jax.plugin_packages import damaged_packages_named, plugin_packages
from vgg_jax.plugins import build, find_plugin, list_plugins
from vgg_jax.testing.probe import probe_plugins
from vgg_jax.workflows.summary import summarise_run
from vgg_jax.workflows.train import train


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A plugin with options of every type."""

    strength: float = 0.5
    count: int = 1
    mode: Literal["a", "b"] = "a"
    sizes: tuple[int, ...] = ()
    name: str | None = None
    on: bool = False


class Mlp(nnx.Module):
    """A head with options; NNX's metaclass hides its signature."""

    def __init__(
        self,
        feature_shape: tuple[int, int, int],
        num_classes: int,
        *,
        rngs: nnx.Rngs,
        hidden: tuple[int, ...] = (8,),
        dropout: float = 0.0,
    ) -> None:
        sizes = [feature_shape[-1], *hidden]
        self.layers = nnx.List([nnx.Linear(a, b, rngs=rngs) for a, b in itertools.pairwise(sizes)])
        self.dropout = nnx.Dropout(dropout, rngs=rngs)
        self.logits = nnx.Linear(sizes[-1], num_classes, rngs=rngs)

    def __call__(self, features):
        x = features.mean((1, 2))
        for layer in self.layers:
            x = self.dropout(nnx.relu(layer(x)))
        return self.logits(x)


class Raises(Mlp):
    def __call__(self, features):
        raise ZeroDivisionError("no luck")


def needs_size(*, weight: float = 0.5, size: int) -> int:
    """Return the size.

    Args:
        weight: Of nothing, in [0, 1].
        size: Side,
            a second line of it.

    Returns:
        The size.
    """
    return size


def fails(*, anything: int = 0) -> None:
    raise ZeroDivisionError("no luck")


def test_built_ins_are_entry_points_like_any_other():
    names = {(p.kind, p.name) for p in list_plugins() if p.package == "vgg-jax"}
    assert {("head", "dense256"), ("head", "linear"), ("augmentation", "keras")} <= names


def test_every_built_in_can_be_loaded():
    for plugin in list_plugins():
        assert callable(plugin.load()), plugin


def test_listing_imports_nothing():
    code = (
        "import sys; from vgg_jax.plugins import list_plugins; list_plugins(); "
        "sys.exit(any(m in sys.modules for m in ('jax', 'flax', 'vgg_jax.model.heads')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


PATHS = {"path": r"C:\new", "text": "\x7fé"}


@pytest.mark.parametrize(
    ("text", "ref", "options"),
    [
        ("dense256", "dense256", {}),
        ("package/name", "package/name", {}),
        ("zoom:fraction=0.3", "zoom", {"fraction": 0.3}),
        ("m:sizes=[512, 256],on=true", "m", {"sizes": [512, 256], "on": True}),
        ("m:mode=a, name = 'b c'", "m", {"mode": "a", "name": "b c"}),
        ("m:names=[a,b-c],x=-1.5e-3", "m", {"names": ["a", "b-c"], "x": -1.5e-3}),
        ('m:name="x=y,z"', "m", {"name": "x=y,z"}),
        (r'm:name="say \"hi\", b=c",b=d', "m", {"name": 'say "hi", b=c', "b": "d"}),
        (r"m:path='C:\new',text=" + '"\x7fé"'.replace("\x7f", r"\u007f"), "m", PATHS),
        ("m:held={a=1,b=[x,y]}", "m", {"held": {"a": 1, "b": ["x", "y"]}}),
        ("m:day=2026-11-24", "m", {"day": datetime.date(2026, 11, 24)}),
    ],
)
def test_a_choice_is_read_and_written_back(text, ref, options):
    choice = parse_choice(text)
    assert choice == PluginChoice(ref, options)
    assert parse_choice(str(choice)) == choice


@pytest.mark.parametrize("text", ["m:x", "m:x=1,,y=2", "m:=1", "m:x=[1", "m:x=1\ny=2"])
def test_options_that_are_no_table_are_refused(text):
    with pytest.raises(OptionError, match="name=value"):
        parse_choice(text)


def test_an_unknown_name_comes_with_the_nearest():
    with pytest.raises(
        UnknownPluginError, match=r"No head named 'dense265'. Did you mean 'dense256'"
    ):
        find_plugin("head", "dense265")


def test_a_name_that_two_packages_claim_is_refused_unless_the_package_is_named(installed):
    installed("one-heads", "1.0", {"twice": "one:Head"})
    installed("two-heads", "2.0", {"twice": "two:Head"})
    with pytest.raises(PluginError, match=r"one-heads 1.0 and two-heads 2.0.*one-heads/twice or"):
        find_plugin("head", "twice")
    assert find_plugin("head", "two-heads/twice").version == "2.0"


def test_a_broken_plugin_harms_nobody_until_it_is_named(installed):
    installed("broken-heads", "0.3", {"broken": "no_such_module_anywhere:Head"})
    assert "broken" in [p.name for p in list_plugins("head")]
    assert callable(find_plugin("head", "linear").load())
    with pytest.raises(PluginError, match=r"'broken' of broken-heads 0.3.*no_such_module_anywhere"):
        find_plugin("head", "broken").load()


def test_a_plugin_that_ends_the_process_is_an_error_like_any_other(installed, tmp_path):
    (tmp_path / "quits_when_imported.py").write_text("import sys\nsys.exit(3)\n")
    installed("quitter", "1.0", {"quits": "quits_when_imported:Head"})
    with pytest.raises(PluginError, match=r"'quits' of quitter 1.0.*ended the process.*3"):
        find_plugin("head", "quits").load()


@pytest.mark.parametrize(
    ("suffix", "contract"),
    [("v2", "2"), ("v2.1", "2.1"), ("vX", "X"), ("v01", "01"), ("v", ".v"), ("1", ".1")],
)
def test_a_plugin_of_another_contract_is_listed_and_refused(installed, suffix, contract):
    installed("future-heads", "3.1", {"next": "future:Head"}, group=f"vgg_jax.heads.{suffix}")
    (found,) = [plugin for plugin in list_plugins("head") if plugin.name == "next"]
    assert (found.contract, found.version) == (contract, "3.1")
    assert f"version {contract} of the plugin contract" in found.problem
    with pytest.raises(
        PluginError, match=rf"future-heads 3.1.*version {contract}.*has version 1. Update vgg"
    ):
        find_plugin("head", "next")


def test_the_version_of_the_contract_may_be_spelt_out(installed):
    installed("first-heads", "1.0", {"first": "first:Head"}, group="vgg_jax.heads.v1")
    assert find_plugin("head", "first").problem == ""


def test_a_package_may_serve_two_contracts_under_one_name(installed):
    installed("both-heads", "1.0", {"both": "both:Old"})
    assert find_plugin("head", "both").target == "both:Old"
    (listed,) = Path(sys.path[0]).glob("both_heads*/entry_points.txt")
    listed.write_text(listed.read_text() + "[vgg_jax.heads.v2]\nboth = both:New\n")
    assert find_plugin("head", "both").target == "both:Old"
    assert {p.target for p in list_plugins() if p.name == "both"} == {"both:Old", "both:New"}


def test_a_name_that_one_package_declares_twice_is_refused(installed):
    installed("double", "1.0", {"echo": "one:Head"})
    installed("double", "1.1", {"echo": "two:Head"})
    assert find_plugin("head", "echo").version in ("1.0", "1.1")  # Python takes the first it finds


@pytest.mark.parametrize(
    ("allowed", "usable"),
    [("", False), ("other", False), ("Third_Party", True), ("other, third-party", True)],
)
def test_the_environment_may_allow_some_packages_only(installed, monkeypatch, allowed, usable):
    installed("third-party", "1.0", {"third": f"{__name__}:Mlp"})
    monkeypatch.setenv("VGG_JAX_PLUGINS", allowed)
    assert find_plugin("head", "linear").package == "vgg-jax"
    if usable:
        assert find_plugin("head", "third").package == "third-party"
    else:
        with pytest.raises(PluginError, match=r"third-party 1.0 cannot be used: VGG_JAX_PLUGINS"):
            find_plugin("head", "third")


def test_a_package_that_is_not_allowed_cannot_take_a_name_away(installed, monkeypatch):
    installed("shadow", "1.0", {"linear": "shadow:Head"})
    with pytest.raises(PluginError, match=r"claimed by shadow 1.0 and vgg-jax"):
        find_plugin("head", "linear")
    monkeypatch.setenv("VGG_JAX_PLUGINS", "")
    assert find_plugin("head", "linear").package == "vgg-jax"


def test_packages_are_named_as_indexes_compare_them(installed):
    installed("Dotted.Heads", "1.0", {"dotted": "one:Head"})
    assert find_plugin("head", "dotted-heads/dotted").package == "Dotted.Heads"


def test_an_option_that_must_be_given_is_asked_for(installed):
    installed("needy", "1.0", {"needy": f"{__name__}:needs_size"})
    with pytest.raises(OptionError, match=r"'size', a whole number, is missing; write needy:size="):
        build("head", parse_choice("needy"))


def test_options_are_described_from_signature_and_docstring():
    weight, size = describe_options(needs_size)
    assert (weight.name, weight.type, weight.default, weight.range) == (
        "weight",
        "a number",
        "0.5",
        "in [0, 1]",
    )
    assert (size.default, size.meaning) == (None, "Side, a second line of it.")


def test_options_reach_the_plugin(installed):
    installed("sample", "1.0", {"sample": f"{__name__}:Sample"})
    choice = parse_choice("sample:strength=1,sizes=[1,2],mode=b,name=x,on=true")
    assert build("head", choice) == Sample(strength=1.0, sizes=(1, 2), mode="b", name="x", on=True)
    assert type(build("head", choice).strength) is float  # also where a whole number was typed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("strenght=1", r"no option named 'strenght'. Did you mean 'strength'"),
        ("strength=x", r"'strength' is 'x', but must be a number"),
        ("strength=true", r"must be a number"),
        ("count=1.5", r"must be a whole number"),
        ("mode=c", r"must be one of a, b"),
        ("sizes=3", r"must be a list of a whole number"),
        ("sizes=[1,x]", r"must be a list"),
        ("name=3", r"must be a word"),
        ("on=1", r"must be true or false"),
    ],
)
def test_a_wrong_option_says_what_would_be_right(installed, options, message):
    installed("sample", "1.0", {"sample": f"{__name__}:Sample"})
    with pytest.raises(OptionError, match=message):
        build("head", parse_choice(f"sample:{options}"))


def test_a_plugin_that_fails_is_named_with_its_package(installed):
    installed("sample", "1.0", {"fails": f"{__name__}:fails"})
    with pytest.raises(
        PluginError, match=r"'fails' of sample 1.0 failed: ZeroDivisionError: no luck"
    ):
        build("head", parse_choice("fails"))


def test_a_head_of_another_package_trains_with_its_options(installed, options, tmp_path):
    installed("other-heads", "1.2", {"small-mlp": f"{__name__}:Mlp"})
    chosen = {**options, "head": "small-mlp:hidden=[8,8],dropout=0.5", "epochs": 2}
    with pytest.raises(OptionError, match=r"named 'hiden'. Did you mean 'hidden'"):
        train(**{**chosen, "head": "small-mlp:hiden=[8]"}, run=str(tmp_path / "no"))
    whole = train(**chosen, run=str(tmp_path / "whole"))
    part = train(**{**chosen, "epochs": 1}, run=str(tmp_path / "part"))
    resumed = train(run=str(part.path), resume=True, epochs=2)
    assert [m.loss for m in resumed.history] == [m.loss for m in whole.history]
    assert whole.evaluate().loss == resumed.evaluate().loss  # without dropout, so it repeats
    record = json.loads((whole.path / "run.json").read_text())
    assert record["plugins"][0]["package"] == "other-heads"
    table = summarise_run(whole.path)
    assert [r.layer for r in table.layers[18:]] == ["head/layers/0", "head/layers/1", "head/logits"]


def test_a_head_that_raises_is_named(installed, options, tmp_path):
    installed("other-heads", "1.2", {"raises": f"{__name__}:Raises"})
    with pytest.raises(
        PluginError,
        match=r"'raises' of other-heads 1.2 failed on features .*ZeroDivisionError: no luck",
    ):
        train(**{**options, "head": "raises"}, run=str(tmp_path / "run"))


GOOD = "Metadata-Version: 2.1\nName: odd-package\nVersion: 1.0\n"
OURS = b"[vgg_jax.heads]\nodd = odd:Odd\n"


@pytest.mark.parametrize(
    ("entry_points", "about", "fault"),
    [
        (OURS + b"no equals sign\n", GOOD, "entry_points.txt"),
        (OURS + b"caf\xe9 = odd:Odd\n", GOOD, "not UTF-8"),
        (OURS, None, "METADATA"),
        (OURS, "Metadata-Version: 2.1\nName: odd-package\n", "no Version"),
        (OURS, "Metadata-Version: 2.1\nVersion: 1.0\n", "no Name"),
    ],
)
def test_damaged_metadata_of_one_package_harm_no_other(
    entry_points, about, fault, tmp_path, monkeypatch
):
    folder = tmp_path / "odd_package-1.0.dist-info"
    folder.mkdir()
    (folder / "entry_points.txt").write_bytes(entry_points)
    if about is not None:
        (folder / "METADATA").write_text(about)
    shutil.copytree(folder, tmp_path / "~dd_package-1.0.dist-info")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert find_plugin("head", "linear").package == "vgg-jax"
    (damaged,) = [package for package in plugin_packages() if package.fault]
    assert fault in damaged.fault
    assert damaged.name.replace("_", "-").startswith("odd-package")
    listed = CliRunner().invoke(app, ["plugins", "list"])
    assert listed.exit_code == 0, listed.output
    assert "cannot be listed" in listed.output
    assert "linear" in listed.output


@pytest.mark.parametrize(
    ("lines", "fault"),
    [
        (b"[console_scripts]\nno equals sign\n", "has a line that is no `name = value`"),
        (b"[console_scripts]\ncaf\xe9 = odd:main\n", "is not UTF-8"),
    ],
)
def test_a_package_over_which_jax_stumbles_is_named(lines, fault, tmp_path):
    folder = tmp_path / "stranger-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Name: stranger\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_bytes(lines)
    done = subprocess.run(
        [sys.executable, "-m", "vgg_jax", "train", "--run", str(tmp_path / "run")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert f"Error: {folder} is damaged: its entry_points.txt {fault}" in done.stderr
    assert "Install that package again, or delete the folder." in done.stderr
    assert "Traceback" not in done.stderr


def test_errors_of_ones_own_are_not_blamed_on_a_damaged_package(tmp_path, monkeypatch):
    (tmp_path / "stranger-1.0.dist-info").mkdir()
    (tmp_path / "stranger-1.0.dist-info" / "entry_points.txt").write_text("[x]\nno equals sign\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(TypeError, match="mine"), damaged_packages_named():
        raise TypeError("mine")


def test_what_an_interrupted_uninstallation_left_is_ignored(tmp_path, monkeypatch):
    folder = tmp_path / "~a-1.dist-info"
    folder.mkdir()
    (folder / "entry_points.txt").write_bytes(OURS)
    (folder / "METADATA").write_text(GOOD)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert not [plugin for plugin in list_plugins() if plugin.name == "odd"]


def test_a_hanging_import_costs_the_others_nothing(installed, tmp_path, monkeypatch):
    (tmp_path / "hangs_when_imported.py").write_text("import time\ntime.sleep(600)\n")
    (tmp_path / "fine_when_imported.py").write_text("Head = dict\n")
    names = ("a-fine", "b-hangs", "c-fine", "d-hangs", "e-fine")
    entries = {name: f"{name[2:]}_when_imported:Head" for name in names}
    installed("some-hang", "1.0", entries)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    plugins = [find_plugin("head", name) for name in names]
    start = time.monotonic()
    found = probe_plugins(plugins, seconds=2)
    assert time.monotonic() - start < 120  # three processes that import JAX
    errors = {plugin.name: probe.error for plugin, probe in found.items()}
    late = "its import took more than 2 s"
    assert errors == {name: late if "hangs" in name else "" for name in names}
    assert [plugin.name for plugin in plugins if found[plugin].ended] == ["b-hangs", "d-hangs"]
