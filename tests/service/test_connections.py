"""Clients that leave requests unfinished or answers unread, on real connections."""

import contextlib
import socket
import time

import httpx
import pytest

from src.service import connections
from src.service.app import Settings
from src.service.pictures import Limits
from tests.service.running import file_of, held, picture, running, tiny_captioner, wait_for

HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture
def captioner(tmp_path, vocabulary):
    return tiny_captioner(tmp_path / "bundle", vocabulary)


def caption(data):
    return f"POST /v1/caption HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data


def connected(address):
    host, port = address.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=20)


def answered(connection):
    """Whether it answers one more request."""
    data = b""
    with contextlib.suppress(ConnectionError):
        connection.sendall(HEALTH)
        while not data.endswith(b"}") and (part := connection.recv(65536)):
            data += part
    return b" 200 OK" in data


def test_a_header_comes_in_time_or_not_at_all(captioner):
    settings = Settings(limits=Limits(seconds=1))
    with running(captioner, settings) as (address, service), contextlib.ExitStack() as stack:
        silent, slow, again, later = (stack.enter_context(connected(address)) for _ in range(4))
        assert answered(again) and answered(later)
        begun = time.monotonic()
        for i in range(40):  # each byte would prolong a timer that data stops
            with contextlib.suppress(ConnectionError):
                slow.sendall(HEALTH[i : i + 1])
                again.sendall(HEALTH[i : i + 1])
            if i < 10:
                assert answered(later), "who goes on asking may stay"
            time.sleep(0.05)
        for connection in (silent, slow, again, later):
            with contextlib.suppress(ConnectionResetError):
                assert connection.recv(65536) == b""
        assert time.monotonic() - begun < 10
        with held(service):
            data = file_of(picture(0))
            waits = stack.enter_context(connected(address))
            waits.sendall(caption(data))
            assert b" 504 " in waits.recv(65536), "an answer may take as long as its own limit says"


def test_who_takes_no_answer_is_cut_off(captioner):
    with running(captioner, Settings(limits=Limits(seconds=1))) as (address, _):
        with connected(address) as connection:
            connection.sendall(400 * b"GET /page/app.js HTTP/1.1\r\nHost: localhost\r\n\r\n")
            time.sleep(2)
            data = b""
            with contextlib.suppress(ConnectionResetError):
                data = b"".join(iter(lambda: connection.recv(2**20), b""))
        assert data.count(b" 200 OK") < 400


def test_many_silent_connections_keep_nobody_out(captioner, monkeypatch):
    monkeypatch.setattr(connections, "MOST", 10)
    with running(captioner, Settings()) as (address, service), contextlib.ExitStack() as stack:
        with held(service):
            busy, kept = connected(address), stack.enter_context(connected(address))
            busy.sendall(caption(file_of(picture(0))))
            wait_for(lambda: service.batcher.taken == 1)
            silent = [stack.enter_context(connected(address)) for _ in range(30)]
            assert httpx.get(f"{address}/health", trust_env=False).status_code == 200
            assert answered(silent[-1]) and not answered(silent[0]) and not answered(kept), "the longest silent first"
        with busy:
            assert b" 200 OK" in busy.recv(65536), "no request is dropped for them"


def test_above_all_bounds_it_says_so(captioner, monkeypatch):
    monkeypatch.setattr(connections, "MOST", 3)
    with running(captioner, Settings()) as (address, service), contextlib.ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(connected(address)).sendall(caption(bytes(99))[:-1])
        wait_for(lambda: service.arriving == 2)
        assert httpx.get(f"{address}/health", trust_env=False).status_code == 503
        stack.close()
        wait_for(lambda: not service.arriving)
        assert httpx.get(f"{address}/health", trust_env=False).status_code == 200
