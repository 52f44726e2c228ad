"""Public weight files: the manifest, and downloads that end well or say why they did not."""

from __future__ import annotations

import hashlib
import os
import re
import resource
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from broken_server import BrokenServer, closed_port

from vgg_jax.errors import WeightsError
from vgg_jax.progress import Progress
from vgg_jax.weights import download
from vgg_jax.weights.download import (
    DownloadError,
    PublicFile,
    fetch,
    find_public,
    public_files,
)
from vgg_jax.weights.source import LAYOUTS, PREPROCESSINGS

CONTENT = np.random.default_rng(0).bytes(200_000)
PROXY_VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


class Told(Progress):
    """Keeps what it was told."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.warnings: list[str] = []
        self.work: list[tuple[str, int, str]] = []
        self.done = 0
        self.closed = False

    def note(self, text: str) -> None:
        self.notes.append(text)

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def work_started(self, what: str, total: int, unit: str = "images") -> None:
        self.work.append((what, total, unit))
        self.done = 0

    def work_done(self, count: int) -> None:
        self.done += count

    def close(self) -> None:
        self.closed = True


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch):
    for name in (*PROXY_VARIABLES, download.MIRROR_VARIABLE):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
def server() -> Iterator[BrokenServer]:
    with BrokenServer(CONTENT) as server:
        yield server


@pytest.fixture
def told() -> Told:
    return Told()


def small_file(address: str) -> PublicFile:
    return PublicFile(
        name="small",
        address=f"{address}/small.h5",
        file="small.h5",
        size=len(CONTENT),
        checksum=f"sha256:{hashlib.sha256(CONTENT).hexdigest()}",
        layout="keras-h5",
        preprocessing="caffe",
        top=False,
        licence="none",
        source="this test",
    )


def quick_fetch(address: str, folder: Path, progress: Progress) -> Path:
    """Fetch without pauses, and with no patience for the two behaviours that would cost it."""
    timeout = 0.3 if address.endswith(("/stalls", "/silent")) else 10.0
    public = small_file(address)
    return fetch(public, folder, progress, timeouts_s=(10.0, timeout), pauses_s=(0.0, 0.0))


def failure(address: str, folder: Path, progress: Progress) -> str:
    """Return what a download that fails says, and see that it leaves nothing behind."""
    with pytest.raises(DownloadError) as caught:
        quick_fetch(address, folder, progress)
    assert isinstance(caught.value, WeightsError)
    assert not folder.exists() or not list(folder.iterdir())
    text = str(caught.value)
    assert 2 <= len(text.splitlines()) <= 3
    return text


def test_the_manifest_is_well_formed():
    assert list(public_files()) == ["imagenet", "imagenet-top", "torchvision"]
    for name, public in public_files().items():
        assert public.name == name
        assert public.address == f"https://{public.address[8:]}"
        assert public.address.endswith(f"/{public.file}")
        assert public.layout in LAYOUTS
        assert public.preprocessing == LAYOUTS[public.layout].preprocessing
        assert public.preprocessing in PREPROCESSINGS
        assert re.fullmatch(r"md5:[0-9a-f]{32}|sha256:[0-9a-f]{64}", public.checksum)
        parameters = 138_357_544 if public.top else 14_714_688
        assert 0 <= public.size - 4 * parameters < 50_000  # float32, and the file's own structure
        assert public.licence
        assert public.source


def test_a_file_is_downloaded_whole_and_everything_is_told(server, tmp_path, told, capfd):
    folder = tmp_path / "made" / "cache"
    path = quick_fetch(f"{server.address}/good", folder, told)
    assert path == folder / "small.h5"
    assert path.read_bytes() == CONTENT
    assert list(folder.iterdir()) == [path]
    assert stat.S_IMODE(path.stat().st_mode) & 0o044 == 0o044  # others may read it
    assert told.notes == [
        f"Downloading small: small.h5, 200.0 kB, from {server.address}/good/small.h5 to {folder}."
    ]
    assert told.work == [("Downloading small.h5", 200_000, "bytes")]
    assert told.done == 200_000
    assert told.closed
    assert capfd.readouterr() == ("", "")  # the libraries say nothing of their own


def test_a_file_that_is_there_is_not_downloaded_again(server, tmp_path, told):
    (tmp_path / "small.h5").write_bytes(CONTENT)
    assert quick_fetch(f"{server.address}/good", tmp_path, told).read_bytes() == CONTENT
    assert server.paths == []
    assert told.notes == []


@pytest.mark.parametrize("there", [CONTENT[:-1], CONTENT[:-1] + b"?"], ids=["shorter", "changed"])
def test_a_damaged_file_is_downloaded_again(server, tmp_path, told, there):
    path = tmp_path / "small.h5"
    path.write_bytes(there)
    quick_fetch(f"{server.address}/good", tmp_path, told)
    assert path.read_bytes() == CONTENT
    assert told.warnings == [f"{path} is not the published file; it is downloaded again."]


def test_a_file_that_was_there_survives_a_failure(server, tmp_path, told):
    (tmp_path / "small.h5").write_bytes(b"older")
    with pytest.raises(DownloadError):
        quick_fetch(f"{server.address}/wrong", tmp_path, told)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"older"]


def test_md5_is_understood(server, tmp_path, told):
    public = small_file(f"{server.address}/good")
    public = replace(public, checksum=f"md5:{hashlib.md5(CONTENT).hexdigest()}")
    assert fetch(public, tmp_path, told).read_bytes() == CONTENT


@pytest.mark.parametrize("behaviour", ["breaks-once", "500-once", "redirects"])
def test_passing_troubles_are_overcome(server, tmp_path, told, behaviour):
    path = quick_fetch(f"{server.address}/{behaviour}", tmp_path, told)
    assert path.read_bytes() == CONTENT
    assert len(server.paths) == 2
    assert told.done == 200_000
    retried = [note for note in told.notes if note.endswith("Trying again.")]
    assert len(retried) == (behaviour != "redirects")


@pytest.mark.parametrize(
    ("behaviour", "tries", "words"),
    [
        ("404", 1, r"answered 404 Not Found for http://127\.0\.0\.1:\d+/404/small\.h5\."),
        ("500", 3, r"answered 500 Internal Server Error for http"),
        ("breaks", 3, r"The connection to 127\.0\.0\.1:\d+ broke off after \d+\.\d kB\."),
        ("resets", 3, r"The connection to 127\.0\.0\.1:\d+ broke off after"),
        ("stalls", 3, r"127\.0\.0\.1:\d+ stalled after .*: nothing more for 0\.3 s\."),
        ("silent", 3, r"127\.0\.0\.1:\d+ stalled after 0 bytes: nothing more for 0\.3 s\."),
        (
            "wrong",
            1,
            r"other bytes than those published; the file was not kept\.\nExpected 200,000",
        ),
        ("short", 1, r"Expected 200,000 bytes, sha256:\w{64}; got 100 bytes, sha256:\w{64}\."),
        ("long", 1, r"More came than the 200,000 bytes of small\.h5: .*the file was not kept\."),
    ],
)
def test_failures_say_what_happened_and_what_may_help(
    server, tmp_path, told, behaviour, tries, words
):
    text = failure(f"{server.address}/{behaviour}", tmp_path, told)
    assert re.search(words, text), text
    assert "VGG_JAX_MIRROR" in text
    assert len(server.paths) == tries
    assert told.done <= 200_000
    assert told.closed


def test_wrong_bytes_are_shown_with_both_checksums(server, tmp_path, told):
    text = failure(f"{server.address}/wrong", tmp_path, told)
    for content in (CONTENT, bytes(reversed(CONTENT))):
        assert hashlib.sha256(content).hexdigest() in text


def test_a_refused_connection_names_the_ways_around(tmp_path, told):
    port = closed_port()
    text = failure(f"http://127.0.0.1:{port}", tmp_path, told)
    assert text == (
        f"Cannot reach 127.0.0.1:{port}: Connection refused.\nBehind a proxy, set HTTPS_PROXY."
        " VGG_JAX_MIRROR names another place to download from."
    )


def test_an_unknown_host_hints_at_being_offline(tmp_path, told):
    try:
        raise ConnectionRefusedError("of the caller's own")
    except ConnectionRefusedError:  # what a caller is handling is not the cause
        text = failure("https://weights.invalid", tmp_path, told)
    assert text.startswith("The name weights.invalid was not found; is this machine offline?\n")


def test_a_server_that_speaks_no_tls_is_told(server, tmp_path, told):
    text = failure(server.address.replace("http", "https") + "/good", tmp_path, told)
    assert "No secure connection to 127.0.0.1" in text


def test_a_mirror_takes_the_place_of_the_address(server, tmp_path, told, monkeypatch):
    user = server.address.replace("//", "//anna:secret@")
    monkeypatch.setenv("VGG_JAX_MIRROR", f"{user}/good/")
    path = quick_fetch("https://weights.invalid", tmp_path, told)
    assert path.read_bytes() == CONTENT
    assert f"from {server.address}/good/small.h5 to" in told.notes[0]  # and no password


def test_a_folder_can_be_the_mirror(tmp_path, told, monkeypatch):
    mirror = tmp_path / "a mirror"
    mirror.mkdir()
    monkeypatch.setenv("VGG_JAX_MIRROR", mirror.as_uri())
    text = failure("https://weights.invalid", tmp_path / "cache", told)
    assert f"Cannot read {mirror}/small.h5: No such file or directory." in text
    (mirror / "small.h5").write_bytes(CONTENT + b"?")
    assert "More came" in failure("https://weights.invalid", tmp_path / "cache", told)
    (mirror / "small.h5").write_bytes(CONTENT)
    path = quick_fetch("https://weights.invalid", tmp_path / "cache", told)
    assert path.read_bytes() == CONTENT
    assert told.done == 200_000


@pytest.mark.parametrize("mirror", ["/data", "ftp://host", "file://data", "http://"])
def test_a_mirror_must_be_an_address(tmp_path, told, monkeypatch, mirror):
    monkeypatch.setenv("VGG_JAX_MIRROR", mirror)
    with pytest.raises(DownloadError, match=rf"VGG_JAX_MIRROR is '{mirror}', but must be"):
        quick_fetch("https://weights.invalid", tmp_path, told)


def test_an_address_that_cannot_be_parsed_is_an_error_of_the_user(tmp_path, told, monkeypatch):
    monkeypatch.setenv("VGG_JAX_MIRROR", "http://anna:secret@[host")
    text = failure("https://weights.invalid", tmp_path, told)
    assert text.startswith("Cannot download http://[host/small.h5: ")
    assert "secret" not in text


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy"])
def test_downloads_go_through_the_proxy(server, tmp_path, told, monkeypatch, variable):
    monkeypatch.setenv(variable, server.address)
    quick_fetch("http://weights.invalid/good", tmp_path, told)
    assert server.paths == ["http://weights.invalid/good/small.h5"]


def test_no_proxy_is_respected(server, tmp_path, told, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{closed_port()}")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    quick_fetch(f"{server.address}/good", tmp_path, told)
    assert server.paths == ["/good/small.h5"]


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_that_is_not_there_is_told(tmp_path, told, monkeypatch, scheme):
    monkeypatch.setenv(f"{scheme.upper()}_PROXY", f"http://anna:secret@127.0.0.1:{closed_port()}")
    assert failure(f"{scheme}://weights.invalid", tmp_path, told) == (
        "The proxy on the way to weights.invalid cannot be used: Connection refused.\n"
        "Check HTTP_PROXY, HTTPS_PROXY and NO_PROXY."
    )


def test_a_lack_of_space_is_told_before_anything_is_downloaded(server, tmp_path, told, monkeypatch):
    usage = download.shutil.disk_usage(tmp_path)._replace(free=100_000)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    text = failure(f"{server.address}/good", tmp_path, told)
    assert text.startswith(
        f"Not enough space for small.h5 in {tmp_path}: 200.0 kB are needed, 100.0 kB are free."
    )
    assert server.paths == []


def test_a_write_that_fails_leaves_nothing(server, tmp_path, told):
    """With a limit on the size of files, since a full disk cannot be had."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        text = failure(f"{server.address}/good", tmp_path, told)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert text == (
        f"Cannot keep small.h5 in {tmp_path}: File too large.\n"
        "The folder must be writable and have room for 200.0 kB."
    )


def test_a_folder_that_cannot_be_made_is_told(server, tmp_path, told):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DownloadError, match=r"Cannot keep small\.h5 in .*/cache: Not a directory"):
        quick_fetch(f"{server.address}/good", tmp_path / "file" / "cache", told)


def test_ctrl_c_leaves_nothing_behind(server, tmp_path):
    code = f"""
from pathlib import Path
from test_weights_download import Told, small_file
from vgg_jax.weights.download import fetch
fetch(small_file("{server.address}/stalls"), Path("{tmp_path}"), Told(), timeouts_s=(900, 900))
"""
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": "tests"},
    ) as process:
        try:
            # However busy the machine is: only a process that has ended will not get there.
            while not list(tmp_path.glob(".small.h5.*.partial/*")):
                assert process.poll() is None, process.communicate()[1]
                time.sleep(0.01)
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate()
        finally:
            process.kill()
    assert "KeyboardInterrupt" in errors
    assert process.returncode == -signal.SIGINT
    assert list(tmp_path.iterdir()) == []


def test_what_killed_downloads_left_is_removed_later(server, tmp_path, told):
    old, young = (tmp_path / f".small.h5.{name}.partial" for name in ("old", "young"))
    for folder in (old, young):
        folder.mkdir()
        (folder / "tmp1").write_bytes(b"half")
    os.utime(old, (0, 0))
    quick_fetch(f"{server.address}/good", tmp_path, told)
    assert sorted(path.name for path in tmp_path.iterdir()) == [young.name, "small.h5"]


def test_a_public_file_is_recognised_by_its_content_alone(tmp_path, monkeypatch):
    public = small_file("https://weights.invalid")
    monkeypatch.setattr(download, "public_files", lambda: {"small": public})
    path = tmp_path / "renamed.bin"
    path.write_bytes(CONTENT)
    assert find_public(path) == public
    path.write_bytes(bytes(reversed(CONTENT)))
    assert find_public(path) is None


def test_only_files_of_a_known_size_are_read(tmp_path, monkeypatch):
    path = tmp_path / "huge.h5"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    assert find_public(path) is None  # reading it would take hours


def test_the_module_is_light():
    """What it needs from the network's libraries is imported when something is downloaded."""
    code = (
        "import sys, vgg_jax.weights.download as d; d.public_files();"
        "print(*{'pooch', 'requests', 'urllib3', 'jax', 'h5py', 'rich'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"
