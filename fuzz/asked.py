"""Requests to the service: of damaged pictures and forms, and those that schemathesis draws from its description."""

import contextlib
import importlib.util
import io
import json
import random
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

BOUNDARY = "xyzzy"


@cache
def client() -> Any:
    """A tiny captioner's service with an index of three pictures, asked without a socket."""
    import torch
    from starlette.testclient import TestClient

    from fuzz.targets import place
    from src.retrieval import Index
    from src.service.app import Settings, build_app
    from src.service.pictures import Limits

    torch.set_num_threads(1)
    folder, captioner = place("service"), tiny_captioner()
    for number in range(3):
        picture(number).save(folder / f"{number}.png")
    index = Index.create(folder / "index", captioner, ["en"])
    index.add(captioner, sorted(folder.glob("*.png")))
    app = build_app(captioner, Settings(limits=Limits(bytes=60_000, pixels=100_000, pictures=4, seconds=20)), index)
    found = TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False)
    found.__enter__()  # the batches are computed from now on
    return found


def tiny_captioner() -> Any:
    """One in two languages and two lengths, with a matcher."""
    import torch
    import yaml

    from fuzz.targets import bundle_folder, place
    from src.bundle import Bundle, bundle_config, save_bundle
    from src.captioner import Captioner
    from src.confidence import Calibration
    from src.data.vocabulary import Vocabulary
    from src.model import build

    config = yaml.safe_load((bundle_folder() / "config.yaml").read_text())
    config["matcher"] = {"_target_": "src.matcher.JointMatcher", "size": 8, "words": 6, "hidden": 5, "heads": 2}
    config["control"] = {"_target_": "src.data.control.Control", "length": True, "tags": True, "default": "en"}
    controls = {"<en>": 9, "<zh>": 7, "<length=3>": 5, "<length=5>": 5}
    words = Vocabulary.build([["a", "dog"], ["a", "cat", "on"]], min_count=1, controls=controls)
    torch.manual_seed(0)
    folder = place("captioner") / "b"
    own = bundle_config(config, {"encoder_weights": "random"})
    save_bundle(folder, Bundle(build(own, words).eval(), words, own, Calibration(4.0, 3.0, 0.5, 100)))
    return Captioner.load(folder, device_name="cpu", precision_name="32-true")


def picture(seed: int) -> Image.Image:
    """Coloured rectangles."""
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (3, 4, 3), dtype=np.uint8)).resize((40, 30))


@cache
def description() -> dict[str, Any]:
    """The service's, in the form of OpenAPI."""
    return client().get("/openapi.json").json()


@cache
def schema() -> Any:
    """The same, as schemathesis reads it, where it is installed."""
    import schemathesis

    return schemathesis.openapi.from_dict(description())


def as_bytes(method: str, path: str, query: Any = None, headers: Any = None, body: bytes = b"") -> bytes:
    """A request in one line of JSON, and its body."""
    head = {"method": method, "path": path, "query": query or {}, "headers": headers or {}}
    return json.dumps(head).encode() + b"\n" + body


def send(data: bytes) -> bool:
    """Send such a request: whatever it is, the answer is one that the description has, and never a failure."""
    head, _, body = data.partition(b"\n")
    asked = json.loads(head)
    try:
        answer = client().request(
            asked["method"], asked["path"], params=asked["query"], headers=asked["headers"], content=body
        )
    except Exception as error:
        if type(error).__name__ in ("InvalidURL", "UnicodeEncodeError", "LocalProtocolError"):
            return False  # the client's own refusal
        raise
    status = answer.status_code
    if status >= 500:
        raise AssertionError(f"{asked['method']} {asked['path'][:60]}: {status}: {answer.text[:200]}")
    if answer.headers.get("x-content-type-options") != "nosniff":
        raise AssertionError("an answer without the strict headers")
    if status >= 400 and asked["method"] != "HEAD":
        reason = answer.json()["error"]
        if set(answer.json()) != {"error"} or "Traceback" in reason or "/dev/shm" in reason:
            raise AssertionError(f"not a refusal in a sentence: {answer.text[:200]}")
    route = answer.request.url.path
    if (described := description()["paths"].get(route, {}).get(asked["method"].lower())) is not None:
        if str(status) not in described["responses"] and status not in (404, 405, 421):
            raise AssertionError(f"{asked['method']} {route}: {status} is not described")
        if importlib.util.find_spec("schemathesis"):
            schema()[route][asked["method"]].validate_response(answer)
    return status < 400


def form(files: Sequence[tuple[str, bytes]], fields: dict[str, str]) -> tuple[dict[str, str], bytes]:
    """Headers and body of a multipart form."""
    parts = [
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in fields.items()
    ]
    for name, data in files:
        said = f'Content-Disposition: form-data; name="pictures"; filename="{name}"\r\nContent-Type: image/png'
        parts.append(f"--{BOUNDARY}\r\n{said}\r\n\r\n".encode() + data + b"\r\n")
    kind = {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}
    return kind, b"".join([*parts, f"--{BOUNDARY}--\r\n".encode()])


@cache
def seeds() -> list[bytes]:
    """Requests that are right: each route, pictures of each kind, alone and in forms."""
    from fuzz.targets import pictures_of_all_kinds

    buffer = io.BytesIO()
    picture(0).save(buffer, "PNG")
    small = buffer.getvalue()
    image = {"content-type": "image/png"}
    found = [as_bytes("GET", path) for path in ("/", "/health", "/metrics", "/openapi.json", "/page/page.js")]
    found += [as_bytes("GET", path) for path in description()["paths"]]
    found += [
        as_bytes("POST", f"/v1/{route}", query, image, small)
        for route, query in (
            ("caption", {"language": "en", "alternatives": "2", "beam": "4", "attention": "true", "length": "3"}),
            ("caption", {"tags": "zh"}),
            ("tags", {"samples": "5", "min_confidence": "0.1"}),
            ("search", {"count": "2"}),
        )
    ]
    found.append(as_bytes("GET", "/v1/search", {"q": "a dog", "by": "words", "count": "3"}))
    for route in ("caption", "captions", "tags", "search"):
        found.append(as_bytes("POST", f"/v1/{route}", {}, *form([("a.png", small)], {"language": "en"})))
    two = form([("a.png", small), ("../../b.png", b"broken")], {"alternatives": "1"})
    found.append(as_bytes("POST", "/v1/captions", {}, *two))
    found += [as_bytes("POST", "/v1/caption", {}, image, data) for data in pictures_of_all_kinds()]
    return found


def damaged(rng: random.Random, seeds: Sequence[bytes]) -> bytes:
    """A request with another body, query, path, method or headers."""
    from fuzz.engine import mutated

    head, _, body = rng.choice(seeds).partition(b"\n")
    asked = json.loads(head)
    if body and rng.random() < 0.7:
        body = mutated(rng, [body])

    def strange(text: str) -> str:
        changed = mutated(
            rng, [text.encode()], (b"'", b"%00", b"../", b"\xff", b"1e9", b"-1", b"NaN", b"9" * 30, b"\xe7\x8b\x97")
        )
        return changed.decode("utf-8", "replace")[:300].replace("\r", "").replace("\n", "")

    if not body or rng.random() < 0.4:
        which = rng.randrange(5)
        if which == 0:
            asked["path"] = "/" + strange(asked["path"][1:])
        elif which == 1:
            asked["method"] = rng.choice(("GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"))
        elif which == 2 or not asked["query"]:
            name = rng.choice(
                ("q", "by", "count", "language", "tags", "length", "beam", "attention", "side", "samples", "x")
            )
            asked["query"][name] = strange("en")
        elif which == 3:
            name = rng.choice(list(asked["query"]))
            asked["query"][name] = strange(asked["query"][name])
        else:
            name = rng.choice(("content-type", "accept", "range", "content-encoding", "authorization", "cookie", "x-y"))
            asked["headers"][name] = strange(asked["headers"].get(name, "x")).encode("ascii", "replace").decode()
    return as_bytes(asked["method"], asked["path"], asked["query"], asked["headers"], body)


def drawn(feed: Callable[[bytes], None], wanted: int, seed: int) -> None:
    """Feed requests that schemathesis draws, as many of each route, right ones and wrong ones; where a route has fewer,
    more of the others."""
    import hypothesis
    import requests  # schemathesis brings it
    from schemathesis import GenerationMode

    operations = [found.ok() for found in schema().get_all_operations()]
    buffer, fed, turn = io.BytesIO(), 0, 0
    picture(1).save(buffer, "PNG")
    kinds = [(each, mode) for each in operations for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)]
    while fed < wanted and turn < 10:
        each = -(-(wanted - fed) // len(kinds))
        for operation, mode in kinds:

            @hypothesis.seed(seed + turn)
            @hypothesis.settings(
                max_examples=each, deadline=None, database=None, suppress_health_check=list(hypothesis.HealthCheck)
            )
            @hypothesis.given(operation.as_strategy(generation_mode=mode), hypothesis.strategies.booleans())
            def one(case: Any, real: bool) -> None:
                values = case.as_transport_kwargs(base_url="http://127.0.0.1")
                request = requests.Request(  # what schemathesis would send
                    method=case.method,
                    url=values["url"],
                    params=values.get("params"),
                    headers=values.get("headers"),
                    data=values.get("data"),
                    files=values.get("files"),
                    json=values.get("json"),
                ).prepare()
                body = request.body or b""
                body = body.encode() if isinstance(body, str) else body
                headers = {
                    name: str(value) for name, value in request.headers.items() if name.lower() != "content-length"
                }
                if real and body and case.method.upper() == "POST":
                    headers, body = {"content-type": "image/png"}, buffer.getvalue()
                path, _, query = request.path_url.partition("?")
                nonlocal fed
                fed += 1
                feed(as_bytes(case.method, f"{path}?{query}" if query else path, {}, headers, body))

            with contextlib.suppress(hypothesis.errors.Unsatisfiable):  # a route that has no wrong requests
                one()
        turn += 1
