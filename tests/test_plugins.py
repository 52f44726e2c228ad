"""Finding, naming and building plugins."""

from __future__ import annotations

import importlib
import itertools
import json
import subprocess
import sys
from dataclasses import dataclass
from typing import Literal

import pytest
from flax import nnx

from vgg_jax.errors import OptionError, PluginError, UnknownPluginError
from vgg_jax.plugins import PluginChoice, build, find_plugin, list_plugins, parse_choice
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


def fails(*, anything: int = 0) -> None:
    raise ZeroDivisionError("no luck")


@pytest.fixture
def installed(monkeypatch, tmp_path):
    """Pretend that packages are installed: writes their metadata where importlib finds it."""

    def install(package: str, version: str, entries: dict[str, str], group="vgg_jax.heads"):
        folder = tmp_path / f"{package.replace('-', '_')}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Name: {package}\nVersion: {version}\n")
        lines = [f"[{group}]", *(f"{name} = {target}" for name, target in entries.items())]
        (folder / "entry_points.txt").write_text("\n".join(lines) + "\n")
        importlib.invalidate_caches()

    monkeypatch.syspath_prepend(str(tmp_path))
    return install


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
    installed("other-heads", "1.2", {"mlp": f"{__name__}:Mlp"})
    chosen = {**options, "head": "mlp:hidden=[8,8],dropout=0.5", "epochs": 2}
    with pytest.raises(OptionError, match=r"named 'hiden'. Did you mean 'hidden'"):
        train(**{**chosen, "head": "mlp:hiden=[8]"}, run=str(tmp_path / "no"))
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
        PluginError, match=r"'raises' failed on features .*ZeroDivisionError: no luck"
    ):
        train(**{**options, "head": "raises"}, run=str(tmp_path / "run"))
