"""What has an address: fetched by HTTP, and by nothing else, wherever a server leads."""

import ipaddress
import socket
import urllib.request
from typing import Any
from urllib.error import URLError
from urllib.parse import urlsplit

AGENT = {"User-Agent": "captionary"}


def is_public(host: str) -> bool:
    """Whether all addresses of a host are such as anybody reaches; of one that cannot be looked up, no."""
    try:
        found = {each[4][0] for each in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
        return bool(found) and all(ipaddress.ip_address(str(each).partition("%")[0]).is_global for each in found)
    except (OSError, ValueError):
        return False


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Only to http and https, and from what anybody reaches to nothing behind a router: a stranger's address is not to
    ask this machine's network."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        before, after = urlsplit(req.full_url), urlsplit(newurl)
        if after.scheme.lower() not in ("http", "https"):
            raise URLError(f"it leads to {after.scheme}:, which is not fetched")
        if (
            after.hostname != before.hostname
            and is_public(before.hostname or "")
            and not is_public(after.hostname or "")
        ):
            raise URLError(f"it leads to {after.hostname}, which is not public")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def opened(address: str, timeout: float) -> Any:
    """The answer to a request for an address, to be read and closed.

    Args:
        address: http or https.
        timeout: seconds that it may say nothing.

    Raises:
        OSError, ValueError, http.client.HTTPException: it cannot be had.
    """
    if urlsplit(address).scheme.lower() not in ("http", "https"):
        raise ValueError("no http or https")
    director = urllib.request.OpenerDirector()
    director.addheaders = []
    for handler in (
        urllib.request.ProxyHandler(),  # of now: urlopen's is that of its first call
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        _Redirects(),
    ):
        director.add_handler(handler)
    answer = director.open(urllib.request.Request(address, headers=AGENT), timeout=timeout)
    if answer is None:
        raise URLError("no http or https")
    return answer
