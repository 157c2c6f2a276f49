"""`python -m src.serve`: what it refuses, and a real process from its first line to its end."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx
import pytest

from src import serve
from src.config import ROOT
from src.retrieval import Index
from tests.service.running import file_of, picture, tiny_captioner, wait_for

TOKEN = "0123456789abcdef"


@pytest.fixture
def captioner(tmp_path, vocabulary):
    return tiny_captioner(tmp_path / "bundle", vocabulary)


@pytest.fixture
def bundle(captioner, tmp_path):
    return tmp_path / "bundle"


@contextlib.contextmanager
def started(*flags, **environment):
    """A process that serves, and its address."""
    process = subprocess.Popen(
        [sys.executable, "-m", "src.serve", "--port", "0", "--device", "cpu", *map(str, flags)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CAPTIONARY_TOKEN": TOKEN, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process, process.stdout.readline().split("answers at ")[1].split()[0]
    finally:
        process.kill()
        process.communicate()


def sent(address, data):
    """A connection that has sent this."""
    connection = socket.create_connection(("127.0.0.1", int(address.rstrip("/").rpartition(":")[2])), timeout=60)
    connection.sendall(data)
    return connection


def test_a_process_serves_within_its_limits_and_ends_in_order(bundle, captioner, tmp_path):
    """What was accepted when SIGTERM comes is answered, and so is what was being sent; what comes after is told so; the
    exit status is 0, though a thumbnail's file never comes to its end, and a client reads no answers."""
    (photos := tmp_path / "photos").mkdir()
    picture(0).save(photos / "a.png")
    Index.create(tmp_path / "index", captioner, []).add(captioner, [photos / "a.png"])
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > {tmp_path}/opened\n')
    browser.chmod(0o755)
    flags = ["--model", bundle, "--index", tmp_path / "index", "--batch", 2, "--open", "--name", "Captions.Example"]
    flags += ["--max-pixels", 2_000_000, "--max-bytes", 3_000_000, "--timeout", 60]
    with (
        contextlib.ExitStack() as stack,
        started(*flags, DISPLAY=":0", BROWSER=f"{browser} %s") as (process, address),
    ):
        headers = {"authorization": f"Bearer {TOKEN}"}
        with httpx.Client(base_url=address, headers=headers, timeout=60, trust_env=False) as client:
            assert client.get("/", headers={"authorization": ""}).status_code == 200
            assert client.get("/v1/captioner", headers={"authorization": ""}).status_code == 401
            assert client.post("/v1/caption", content=file_of(picture(0))).json()["words"]
            wait_for((tmp_path / "opened").exists)
            assert (tmp_path / "opened").read_text() == f"{address}\n"
            large = client.post("/v1/caption", content=file_of(picture(0, (1500, 1500))))
            assert large.status_code == 413 and "the limit is 2 million" in large.json()["error"]
            assert client.post("/v1/caption", content=bytes(3_000_001)).status_code == 413
            names = ("captions.example", "other.example")
            assert [client.get("/health", headers={"host": name}).status_code for name in names] == [200, 421]
            (found,) = client.get("/v1/search", params={"q": "a"}).json()["results"]
            (photos / "a.png").unlink()
            os.mkfifo(photos / "a.png")
            with pytest.raises(httpx.ReadTimeout):
                client.get(f"/v1/pictures/{found['id']}", timeout=0.5)
            request = "GET /page/app.js HTTP/1.1\r\nHost: localhost\r\n\r\n"
            stack.enter_context(sent(address, 400 * request.encode()))
            data = file_of(picture(0))
            head = f"POST /v1/caption HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n"
            head = f"{head}Authorization: Bearer {TOKEN}\r\n\r\n".encode()
            sending = stack.enter_context(sent(address, head + data[:9]))
            files = [("a", (f"{i}.png", file_of(picture(i, (1200, 1000))))) for i in range(30)]
            answers, late = [], []
            asking = threading.Thread(target=lambda: answers.append(client.post("/v1/captions", files=files)))
            asking.start()
            waiting = "captionary_pictures_waiting 30"
            wait_for(lambda: waiting in client.get("/metrics").text)
            process.send_signal(signal.SIGTERM)
            wait_for(lambda: httpx.get(f"{address}health", trust_env=False).status_code == 503)
            asking.join()
            time.sleep(0.5)
            late.append(httpx.get(f"{address}v1/captioner", headers=headers, trust_env=False).status_code)
            sending.sendall(data[9:])
            with contextlib.suppress(httpx.TransportError):  # once all is answered, nobody is there
                while True:
                    late.append(httpx.get(f"{address}v1/captioner", headers=headers, trust_env=False).status_code)
        assert answers[0].status_code == 200 and len(answers[0].json()["captions"]) == 30
        assert all(each["caption"]["words"] for each in answers[0].json()["captions"])
        assert set(late) <= {503} and b" 200 OK" in sending.recv(65536)
        assert process.wait(30) == 0 and process.stderr.read() == ""


def test_a_second_signal_ends_it_at_once(bundle):
    with started("--model", bundle) as (process, address):
        head = f"POST /v1/caption HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\nAuthorization: Bearer {TOKEN}\r\n"
        with sent(address, f"{head}Expect: 100-continue\r\n\r\n".encode()) as connection:
            assert b" 100 " in connection.recv(65536)
            process.send_signal(signal.SIGINT)
            wait_for(lambda: httpx.get(f"{address}health", trust_env=False).status_code == 503)
            process.send_signal(signal.SIGINT)
            assert process.wait(5) == 130 and process.stderr.read() == ""


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--host", "0.0.0.0"], "--host 0.0.0.0: other machines reach this address, so a token is needed"),
        (["--host", "::"], "--host ::: other machines reach"),
        (["--host", "example.org"], "a token is needed"),
        (["--host", "0.0.0.0", "--token-file", "long", "--name", "a.example"], "--name a.example: with --host 0.0.0.0"),
        (["--token-file", "none"], "No such file"),
        (["--token-file", "short"], "--token-file short: a token has 16 letters and digits or more"),
        (["--token-file", "empty"], "--token-file empty: empty"),
        (["--batch", "0"], "--batch 0: 1 or more"),
        (["--queue", "0"], "--queue 0: 1 or more"),
        (["--wait-ms", "-1"], "--wait-ms -1: 0 or more"),
        (["--timeout", "0"], "--timeout 0: above 0"),
        (["--timeout", "inf"], "--timeout inf: above 0, and not endless"),
        (["--port", "70000"], "--port 70000: 65535 at most"),
        (["--model", "nowhere"], "nowhere: no such file"),
    ],
)
def test_wrong_calls_are_one_sentence(flags, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CAPTIONARY_TOKEN", raising=False)
    (tmp_path / "short").write_text("secret\n")
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "long").write_text(TOKEN)
    assert serve.main([*flags, *([] if "--port" in flags else ["--port", "0"])]) == 2
    error = capsys.readouterr().err
    assert said in error and error.startswith("error: ") and error.count("\n") == 1


def test_a_port_that_is_taken_is_named(bundle, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert serve.main(["--model", str(bundle), "--port", str(port)]) == 2
    assert f"--port {port}: Address already in use; --port 0 takes a free port" in capsys.readouterr().err


def test_a_captioner_of_regions_is_refused(tmp_path, vocabulary, capsys):
    from src.bundle import Bundle, bundle_config, save_bundle
    from src.model import build
    from tests.conftest import tiny_config

    config = bundle_config(tiny_config(), {"encoder_weights": "none"})
    config["encoder"] = {"_target_": "src.encoders.RegionEncoder", "path": "regions", "dimension": 8}
    config["encoder"] |= {"max_regions": 5, "width": 16}
    save_bundle(tmp_path / "regions", Bundle(build(config, vocabulary).eval(), vocabulary, config))
    assert serve.main(["--model", str(tmp_path / "regions"), "--port", "0"]) == 2
    assert "reads regions computed beforehand, not pictures: serve one that reads pictures" in capsys.readouterr().err


def test_tokens(tmp_path, monkeypatch):
    def token(*flags):
        return serve.token_of(serve.parser().parse_args(flags))

    monkeypatch.setenv("CAPTIONARY_TOKEN", f" {TOKEN}\n")
    (tmp_path / "token").write_text("f" * 32 + "\n")
    assert token() == token("--host", "0.0.0.0") == TOKEN
    assert token("--token-file", str(tmp_path / "token")) == "f" * 32
    monkeypatch.delenv("CAPTIONARY_TOKEN")
    assert token() is token("--host", "localhost") is token("--host", "::1") is token("--host", "127.0.0.2") is None
