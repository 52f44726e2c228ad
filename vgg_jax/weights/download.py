"""Fetches the public weight files that `manifest.toml` names, checked and whole or not at all.

Proxies are taken from the usual variables (HTTP_PROXY, HTTPS_PROXY, NO_PROXY). `VGG_JAX_MIRROR`
names another place that has the files: an address of the kind http, https or file, to which a
file's name is appended.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.resources
import logging
import os
import re
import shutil
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit
from urllib.request import url2pathname

from vgg_jax.progress import Progress, format_bytes
from vgg_jax.weights.download_errors import (
    ANOTHER_PLACE,
    MIRROR_VARIABLE,
    BrokeOffError,
    DownloadError,
    explained,
    without_password,
)

_CHUNK_BYTES = 1 << 16
_SPARE_BYTES = 1 << 20
_ABANDONED_AFTER_S = 86400.0


@dataclass(frozen=True)
class PublicFile:
    """A weight file that anybody can download.

    Attributes:
        name: What users call it.
        address: Where its publisher has it.
        file: Its name on disk.
        size: Its bytes.
        checksum: `md5:` or `sha256:` and the digest in hexadecimal.
        layout: Name of its layout, a key of `LAYOUTS`.
        preprocessing: What its weights expect, a key of `PREPROCESSINGS`.
        top: Whether it holds fc6, fc7 and fc8.
        licence: Under which its weights may be used, in words.
        source: Who made the weights, and the work to cite.
    """

    name: str
    address: str
    file: str
    size: int
    checksum: str
    layout: str
    preprocessing: str
    top: bool
    licence: str
    source: str

    def new_digest(self) -> hashlib._Hash:
        """Return an empty digest of the checksum's kind."""
        return hashlib.new(self.checksum.partition(":")[0], usedforsecurity=False)

    def matches(self, path: Path) -> bool:
        """Tell by size and checksum whether `path` is this file; OSError if it is unreadable."""
        if path.stat().st_size != self.size:
            return False
        with path.open("rb") as file:
            return self.checksum == _checksum(hashlib.file_digest(file, self.new_digest))


@functools.cache
def public_files() -> Mapping[str, PublicFile]:
    """Return the files of the manifest by name."""
    text = importlib.resources.files("vgg_jax.weights").joinpath("manifest.toml").read_text("utf-8")
    return {name: PublicFile(name, **entry) for name, entry in tomllib.loads(text).items()}


def find_public(path: Path) -> PublicFile | None:
    """Return the public file that `path` is a copy of, whatever its name; None if of none.

    Only a file that has the size of a public one is read.

    Raises:
        OSError: If the file cannot be read.
    """
    return next((public for public in public_files().values() if public.matches(path)), None)


def fetch(
    public: PublicFile,
    folder: Path,
    progress: Progress,
    *,
    timeouts_s: tuple[float, float] = (10.0, 30.0),
    pauses_s: Sequence[float] = (1.0, 3.0),
) -> Path:
    """Return the path of a public file in `folder`, downloaded unless it is there and unchanged.

    Args:
        public: The file.
        folder: Where it is kept; made if need be.
        progress: Told what is downloaded from where, and each byte that came.
        timeouts_s: How long to wait for a connection, and for the next bytes.
        pauses_s: Before each further try at a download that broke off, in seconds.

    Raises:
        DownloadError: If it cannot be downloaded or kept. A file that was there is left as it was.
    """
    path = folder / public.file
    try:
        if path.is_file():
            if public.matches(path):
                return path
            progress.warn(f"{path} is not the published file; it is downloaded again.")
        address = _address(public)
        folder.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(folder, public)
        _check_space(folder, public)
        progress.note(
            f"Downloading {public.name}: {public.file}, {format_bytes(public.size)},"
            f" from {without_password(address)} to {folder}."
        )
        with tempfile.TemporaryDirectory(
            dir=folder, prefix=f".{public.file}.", suffix=".partial"
        ) as partial:
            attempt = functools.partial(
                _receive, public, address, Path(partial), progress, timeouts_s
            )
            _repeated(attempt, pauses_s, progress).replace(path)
    except OSError as error:
        raise DownloadError(
            f"Cannot keep {public.file} in {folder}: {error.strerror or error}.\n"
            f"The folder must be writable and have room for {format_bytes(public.size)}."
        ) from error
    finally:
        progress.close()
    return path


def _checksum(digest: hashlib._Hash) -> str:
    return f"{digest.name}:{digest.hexdigest()}"


def _address(public: PublicFile) -> str:
    """Return where to download from."""
    mirror = os.environ.get(MIRROR_VARIABLE)
    if not mirror:
        return public.address
    if not re.match(r"https?://[^/]|file:///", mirror):
        raise DownloadError(
            f"{MIRROR_VARIABLE} is {without_password(mirror)!r}, but must be an address such as"
            " https://host/folder or file:///folder."
        )
    return f"{mirror.rstrip('/')}/{public.file}"


def _remove_abandoned(folder: Path, public: PublicFile) -> None:
    """Remove what downloads left that were killed; a younger one may still be at work."""
    for partial in folder.glob(f".{public.file}.*.partial"):
        with contextlib.suppress(OSError):  # another process may have removed it
            if time.time() - partial.stat().st_mtime > _ABANDONED_AFTER_S:
                shutil.rmtree(partial)


def _check_space(folder: Path, public: PublicFile) -> None:
    free = shutil.disk_usage(folder).free
    if free < public.size + _SPARE_BYTES:
        raise DownloadError(
            f"Not enough space for {public.file} in {folder}: {format_bytes(public.size)} are"
            f" needed, {format_bytes(free)} are free.\nMake room there, and try again."
        )


def _repeated(attempt: Callable[[], Path], pauses_s: Sequence[float], progress: Progress) -> Path:
    """Return what `attempt` returns, tried again after a pause where that may help."""
    for pause in pauses_s:
        try:
            return attempt()
        except BrokeOffError as error:
            progress.note(f"{str(error).splitlines()[0]} Trying again.")
        time.sleep(pause)
    return attempt()


def _receive(
    public: PublicFile,
    address: str,
    folder: Path,
    progress: Progress,
    timeouts_s: tuple[float, float],
) -> Path:
    """Download into `folder` once and compare with the checksum."""
    import pooch
    import requests

    intake = _Intake(public, progress)
    responses: list[requests.Response] = []
    http = pooch.HTTPDownloader(
        chunk_size=_CHUNK_BYTES,
        timeout=timeouts_s,
        headers={"Accept-Encoding": "identity"},
        hooks={"response": lambda response, **_: responses.append(response)},
    )

    def download(address: str, target: str, _: object) -> None:
        Path(target).unlink()  # pooch's, for its owner alone; a new one is like any other file
        with Path(target).open("xb") as intake.file:
            if address.startswith("file:"):
                _copy(Path(url2pathname(urlsplit(address).path)), intake)
            else:
                http(address, intake, None)

    downloader: Any = download  # the names of pooch's protocol are not those that it passes
    progress.work_started(f"Downloading {public.file}", public.size, unit="bytes")
    try:
        with _quiet(pooch.get_logger()):
            path = pooch.retrieve(
                address, public.checksum, public.file, folder, downloader=downloader
            )
    except requests.RequestException as error:
        raise explained(error, address, intake.count, timeouts_s) from error
    except ValueError as error:  # pooch's word for a wrong checksum
        raise DownloadError(
            f"{without_password(address)} gave other bytes than those published;"
            " the file was not kept.\n"
            f"Expected {public.size:,} bytes, {public.checksum}; got {intake.count:,} bytes,"
            f" {_checksum(intake.digest)}.\n"
            f"A proxy or a login page may have answered instead. {ANOTHER_PLACE}"
        ) from error
    finally:
        for response in responses:
            response.close()  # pooch leaves that to the garbage collector
    return Path(path)


class _Intake:
    """The open file that a download goes to, which stops one that is too long."""

    def __init__(self, public: PublicFile, progress: Progress) -> None:
        self._public, self._progress = public, progress
        self.file: BinaryIO
        self.digest = public.new_digest()
        self.count = 0

    def write(self, chunk: bytes) -> None:
        self.count += len(chunk)
        if self.count > self._public.size:
            raise DownloadError(
                f"More came than the {self._public.size:,} bytes of {self._public.file}:"
                " the download was stopped, and the file was not kept.\n"
                f"The server has another file at that address. {ANOTHER_PLACE}"
            )
        self.file.write(chunk)
        self.digest.update(chunk)
        self._progress.work_done(len(chunk))

    def flush(self) -> None:
        """Leave it to the end, though pooch asks for it after every chunk."""


def _copy(source: Path, intake: _Intake) -> None:
    try:
        file = source.open("rb")
    except OSError as error:
        raise DownloadError(
            f"Cannot read {source}: {error.strerror}.\n"
            f"{MIRROR_VARIABLE} must name a folder that has that file."
        ) from error
    with file:
        shutil.copyfileobj(file, intake, _CHUNK_BYTES)


@contextlib.contextmanager
def _quiet(logger: logging.Logger) -> Iterator[None]:
    """Keep back what a logger says below a warning: the progress tells it."""
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)
