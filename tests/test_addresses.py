import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from src import addresses
from src.data.images import ImageError
from src.pictures import fetch


class Answers(BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/picture":
            self.send_response(200)
            self.send_header("content-length", "5")
            self.end_headers()
            self.wfile.write(b"bytes")
            return
        self.send_response(302)
        self.send_header("location", self.path.partition("?")[2])
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def server():
    found = HTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=found.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{found.server_port}"
    found.shutdown()


def test_redirects_are_followed_within_http(server):
    assert fetch(f"{server}/x?{server}/picture") == b"bytes"


@pytest.mark.parametrize("to", ["file:///etc/passwd", "ftp://127.0.0.1/x", "data:text/plain,x", "gopher://127.0.0.1/"])
def test_redirects_lead_to_nothing_but_http(server, to):
    with pytest.raises(ImageError):
        fetch(f"{server}/x?{to}")


def test_from_what_is_public_none_leads_behind_the_router(server, monkeypatch):
    monkeypatch.setattr(addresses, "is_public", lambda host: host == "127.0.0.1")  # the server plays one
    inside = server.replace("127.0.0.1", "localhost")
    with pytest.raises(ImageError, match="leads to localhost, which is not public"):
        fetch(f"{server}/x?{inside}/picture")
    assert fetch(f"{inside}/picture") == b"bytes"  # what the user names is fetched


@pytest.mark.parametrize("host", ["127.0.0.1", "10.0.0.1", "169.254.169.254", "::1", "fd00::1", "0.0.0.0", "no such"])
def test_what_is_not_public(host):
    assert not addresses.is_public(host)


def test_what_is_public():
    assert addresses.is_public("1.1.1.1") and addresses.is_public("2606:4700:4700::1111")


def test_files_have_no_address():
    with pytest.raises(ValueError):
        addresses.opened("file:///etc/passwd", 1)
