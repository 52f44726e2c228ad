"""Why a download failed, in words that help."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from typing import TYPE_CHECKING

from vgg_jax.errors import WeightsError
from vgg_jax.progress import format_bytes

if TYPE_CHECKING:
    from requests import RequestException

MIRROR_VARIABLE = "VGG_JAX_MIRROR"
ANOTHER_PLACE = f"{MIRROR_VARIABLE} names another place to download from."
_REACH = f"Behind a proxy, set HTTPS_PROXY. {ANOTHER_PLACE}"
_LATER = f"Try again later. {ANOTHER_PLACE}"
_WORTH_ANOTHER_TRY = frozenset({408, 429, 500, 502, 503, 504})  # statuses that may pass


class DownloadError(WeightsError):
    """A public file could not be fetched; nothing of it was kept."""


class BrokeOffError(DownloadError):
    """A download ended in a way that another try may mend."""


def without_password(text: str) -> str:
    """Return a text without the names and passwords that addresses in it may hold."""
    return re.sub(r"//[^/\s]*@", "//", text)


def explained(
    error: RequestException, address: str, count: int, timeouts_s: tuple[float, float]
) -> DownloadError:
    """Put what requests raised into plain words.

    Args:
        error: What was raised, its causes attached.
        address: What was asked for.
        count: Bytes that had come.
        timeouts_s: How long was waited for a connection, and for the next bytes.
    """
    from requests import exceptions
    from requests.exceptions import RequestException as OfRequests  # an OSError as well
    from urllib3.exceptions import NewConnectionError

    if error.request is not None and error.request.url:
        address = str(error.request.url)  # the last one, after redirects
    address = without_password(address)
    host = address.split("/")[2]
    causes = list(_causes(error))
    system = (e for e in causes if isinstance(e, OSError) and not isinstance(e, OfRequests))
    root = next(system, error)  # what the operating system said
    reason = without_password(getattr(root, "strerror", None) or str(root))

    if isinstance(error, exceptions.HTTPError) and error.response is not None:
        status = error.response.status_code
        kind = BrokeOffError if status in _WORTH_ANOTHER_TRY else DownloadError
        words = f"{status} {error.response.reason}".strip()
        return kind(f"The server answered {words} for {address}.\n{ANOTHER_PLACE}")
    if isinstance(error, exceptions.ProxyError):
        return DownloadError(
            f"The proxy on the way to {host} cannot be used: {reason}.\n"
            "Check HTTP_PROXY, HTTPS_PROXY and NO_PROXY."
        )
    if isinstance(error, exceptions.SSLError):
        return DownloadError(
            f"No secure connection to {host}: {reason}.\n"
            "If a proxy has a certificate of its own, REQUESTS_CA_BUNDLE names its file."
        )
    if isinstance(error, exceptions.ConnectTimeout):
        return DownloadError(f"{host} did not answer within {timeouts_s[0]:g} s.\n{_REACH}")
    if isinstance(root, socket.gaierror):
        return DownloadError(f"The name {host} was not found; is this machine offline?\n{_REACH}")
    if any(isinstance(cause, NewConnectionError) for cause in causes):
        return DownloadError(f"Cannot reach {host}: {reason}.\n{_REACH}")
    came = f"after {format_bytes(count)}"
    if isinstance(root, TimeoutError):
        return BrokeOffError(
            f"{host} stalled {came}: nothing more for {timeouts_s[1]:g} s.\n{_LATER}"
        )
    if isinstance(error, exceptions.ConnectionError | exceptions.ChunkedEncodingError):
        return BrokeOffError(f"The connection to {host} broke off {came}.\n{_LATER}")
    return DownloadError(f"Cannot download {address}: {reason}.\n{ANOTHER_PLACE}")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
