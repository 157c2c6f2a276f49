"""The service over HTTP: a real server and real connections, a tiny captioner behind them."""

import contextlib
import functools
import io
import itertools
import json
import os
import re
import shutil
import socket
import struct
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from src.retrieval import Index
from src.service.app import Settings
from src.service.pictures import Limits, Refused, Shown, scans
from src.tags import tags_of
from tests.service.running import file_of, held, picture, running, tiny_captioner, wait_for

LIMITS = Limits(bytes=300_000, pixels=40_000, pictures=6, seconds=20)


@pytest.fixture(scope="module")
def captioner(tmp_path_factory):
    from src.data.vocabulary import Vocabulary

    words = ["a", "red", "green", "blue", "square", "circle", "on", "grey"]
    words = Vocabulary.build([[w] * (len(words) - i) for i, w in enumerate(words)], min_count=1)
    return tiny_captioner(tmp_path_factory.mktemp("captioner"), words)


@pytest.fixture(scope="module")
def index(captioner, shapes, tmp_path_factory):
    index = Index.create(tmp_path_factory.mktemp("index"), captioner, ["en", "zh"])
    index.add(captioner, sorted((shapes / "images").glob("*.png")))
    return index


@pytest.fixture(scope="module")
def served(captioner, index):
    with running(captioner, Settings(queue=12, limits=LIMITS), index) as (address, service):
        yield address, service


@pytest.fixture
def client(served):
    with httpx.Client(base_url=served[0], timeout=30, trust_env=False) as client:
        yield client


def own(captioner, image, alternatives=0, attention=False, beam=None, **asked):
    """What the captioner itself says of a picture, alone."""
    if beam:
        captioner.search_by({**captioner.config["generation"], "beam_size": beam})
    captioner.ask(**asked)
    (caption,) = captioner([image], attention=attention, alternatives=alternatives)
    captioner.search_by({**captioner.config["generation"], "beam_size": 3})
    captioner.ask()
    return caption


def refused(answer, status):
    """The one sentence of a refusal."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json" and set(answer.json()) == {"error"}
    reason = answer.json()["error"]
    assert reason and "\n" not in reason and "Traceback" not in reason and "/work" not in reason
    return reason


# ---------------------------------------------------------------- answers


def test_a_picture_is_captioned_as_a_body_and_in_a_form(client, captioner):
    data = file_of(picture(0))
    wanted = own(captioner, picture(0))
    for answer in (
        client.post("/v1/caption", content=data, headers={"content-type": "image/png"}),
        client.post("/v1/caption", content=data),
        client.post("/v1/caption", files={"picture": ("a.png", data)}),
        client.post("/v1/caption", files={"whatever": data}, data={"language": "en"}),
        client.post("/v1/caption", files={"a": data}, data={"language": "", "length": "", "tags": ""}),
    ):
        found = answer.json()
        assert answer.status_code == 200 and found["text"] == wanted.text and found["words"] == wanted.words
        assert found["score"] == pytest.approx(wanted.score) and found["confidence"] == pytest.approx(wanted.confidence)
        assert (found["width"], found["height"]) == (48, 40)
        assert found["alternatives"] == [] and found["attention"] is None


def test_options_are_those_of_the_captioner(client, captioner):
    data = file_of(picture(1))
    asked = {"language": "zh", "length": "12", "beam": 5, "alternatives": 4, "attention": True}
    wanted = own(captioner, picture(1), 4, True, beam=5, language="zh", length="12")
    for answer in (
        client.post("/v1/caption", params=asked, content=data),
        client.post("/v1/caption", params={"length": "3"}, data=asked, files={"picture": data}),
    ):
        found = answer.json()
        assert answer.status_code == 200, found
        for one, other in zip([found, *found["alternatives"]], [wanted, *wanted.alternatives], strict=True):
            assert one["text"] == other.text and one["score"] == pytest.approx(other.score)
            assert np.allclose(one["attention"]["weights"], other.attention, atol=1e-4)
            assert np.allclose(one["attention"]["boxes"], other.boxes, atol=1e-3) and one["attention"]["grid"]
    assert own(captioner, picture(1)).words != wanted.words, "the options changed something"


def test_several_pictures_are_answered_in_order_and_bad_ones_named(client, captioner):
    files = [("pictures", (f"{i}.png", file_of(picture(i)))) for i in range(5)]
    files.insert(2, ("pictures", ("notes.txt", b"no picture")))
    answer = client.post("/v1/captions", files=files, data={"language": "zh"})
    found = answer.json()["captions"]
    assert answer.status_code == 200 and [each["name"] for each in found] == [name for _, (name, _) in files]
    assert "notes.txt: not a picture" in found[2]["error"] and found[2]["caption"] is None
    said = [each["caption"]["text"] for each in found if each["caption"]]
    assert said == [own(captioner, picture(i), language="zh").text for i in range(5)]


def test_what_is_asked_at_once_is_answered_as_if_alone(served, captioner):
    """Mixed languages, lengths and searches, in batches of whatever is there."""
    ways = [
        {"language": "en"},
        {"language": "zh"},
        {"length": "5"},
        {"language": "zh", "length": "3", "alternatives": 2},
        {"beam": 2, "attention": True},
        {},
    ]
    asked = [(seed, ways[(seed + turn) % len(ways)]) for turn, seed in itertools.product(range(4), range(16))]
    wanted = [own(captioner, picture(seed), **way) for seed, way in asked]
    assert len({(each.text, each.score) for each in wanted}) > 30, "pictures and ways differ"
    before = served[1].counters.batches.counts[:]

    def one(number):
        seed, way = asked[number]
        for _ in range(1000):
            answer = httpx.post(f"{served[0]}/v1/caption", params=way, content=file_of(picture(seed)), trust_env=False)
            if answer.status_code != 429:
                return answer.json()
            threading.Event().wait(0.02)
        raise AssertionError("always full")

    with ThreadPoolExecutor(10) as threads:
        found = list(threads.map(one, range(len(asked))))
    for answer, caption in zip(found, wanted, strict=True):
        assert answer["text"] == caption.text and answer["score"] == pytest.approx(caption.score, abs=1e-4)
        assert [each["text"] for each in answer["alternatives"]] == [each.text for each in caption.alternatives]
    batches = [after - old for after, old in zip(served[1].counters.batches.counts, before, strict=True)]
    assert sum(batches) < len(asked) and batches[0] < sum(batches), "some were computed together"


def test_tags_are_what_drawn_captions_agree_on_whatever_the_batch(client, served, captioner):
    captioner.search_by({"_target_": "src.generation.SampleSearch", "captions": 12, "max_length": 8})
    (best,) = captioner([picture(2)], alternatives=11)
    found = captioner.search(captioner.stacked([picture(2)]))
    said = [each.text for each in [best, *captioner.captions(found, 11, distinct=False)[0].alternatives]]
    captioner.search_by({"_target_": "src.generation.BeamSearch", "beam_size": 3, "max_length": 8})
    asked = {"samples": 12, "min_confidence": 0.2}
    alone = client.post("/v1/tags", params=asked, content=file_of(picture(2))).json()
    assert alone["captions"] == said and len(said) == 12
    wanted = tags_of(said, served[1].engine.words, min_confidence=0.2, vocabulary=captioner.vocabulary.words)
    assert [(tag["part"], tag["name"], tag["confidence"]) for tag in alone["tags"]] == [tuple(tag) for tag in wanted]
    assert alone["tags"]
    with ThreadPoolExecutor(6) as threads:
        together = list(
            threads.map(
                lambda seed: httpx.post(
                    f"{served[0]}/v1/tags", params=asked, content=file_of(picture(seed)), trust_env=False
                ).json(),
                [1, 2, 3, 2, 4, 2],
            )
        )
    assert [together[i] for i in (1, 3, 5)] == [alone] * 3


def test_it_says_what_can_be_asked_for(client):
    about = client.get("/v1/captioner").json()
    assert about["languages"] == ["en", "zh"] and about["default"] == ["en"] and about["tags"] == []
    assert about["lengths"] == {"short": 3, "medium": 5, "long": 12}
    assert about["alternatives"] == 2 and about["attends"] and about["calibrated"]
    assert about["index"] == {"pictures": 24, "languages": ["en", "zh"]}
    assert about["limits"] == {"bytes": 300_000, "pixels": 40_000, "pictures": 6, "seconds": 20}
    assert "JPEG" in about["formats"]


def test_every_route_is_described_and_nothing_comes_from_elsewhere(client):
    described = client.get("/openapi.json").json()
    assert set(described["paths"]["/v1/caption"]["post"]["requestBody"]["content"]) == {
        "multipart/form-data",
        "image/*",
        "application/octet-stream",
    }
    for path in described["paths"].values():
        for route in path.values():
            assert {"200", "401", "503"} <= set(route["responses"])
    assert "http" not in json.dumps(described).replace("http://127.0.0.1", "")
    assert client.get("/docs").status_code == client.get("/redoc").status_code == 404
    assert not re.search(r"https?://", client.get("/").text)


def test_counters_count(client, served):
    def value(name):
        return float(re.search(rf"^{re.escape(name)} (\S+)$", client.get("/metrics").text, re.MULTILINE)[1])

    client.post("/v1/caption", content=file_of(picture(0)))
    client.get("/nowhere")
    name = 'captionary_requests_total{method="POST",route="/v1/caption",status="200"}'
    before = value(name)
    client.post("/v1/caption", content=file_of(picture(0)))
    assert value(name) == before + 1
    assert value('captionary_requests_total{method="GET",route="other",status="404"}') >= 1
    assert value('captionary_batch_size_bucket{le="+Inf"}') == value("captionary_batch_size_count") > 0
    assert value('captionary_request_seconds_bucket{route="/v1/caption",le="30"}') >= before + 1
    assert value("captionary_pictures_waiting") == 0
    assert value("process_resident_memory_bytes") > 50e6


# ---------------------------------------------------------------- search


def same(answer, found):
    """Whether an answer holds these Found, in order."""
    assert answer.status_code == 200, answer.text
    results = answer.json()["results"]
    return [(each["name"], each["caption"], pytest.approx(each["score"], abs=1e-5)) for each in results] == [
        (Path(each.path).name, each.caption, each.score) for each in found
    ]


def test_search_finds_what_the_index_finds(client, captioner, index, shapes):
    asked = {"q": "a red square", "count": 5}
    found = index.by_sentence(captioner, "a red square", 5)
    assert len(found) == 5 and same(client.get("/v1/search", params={**asked, "rerank": 0}), found)
    again = index.by_sentence(captioner, "a red square", 5, rerank=20)
    assert again != found and same(client.get("/v1/search", params=asked), again)
    assert same(client.get("/v1/search", params={**asked, "by": "words"}), index.by_words("a red square", 5))
    data = (shapes / "images" / "03.png").read_bytes()
    with Image.open(io.BytesIO(data)) as opened:
        found = index.by_picture(captioner, opened.convert("RGB"), 3)
    assert Path(found[0].path).name == "03.png" and found[0].score > 0.99
    assert same(client.post("/v1/search", params={"count": 3}, content=data), found)
    assert same(client.post("/v1/search", data={"count": 3}, files={"picture": data}), found)
    assert len(client.get("/v1/search", params={"q": "a circle"}).json()["results"]) == 24


def test_pictures_that_were_found_are_made_anew_and_no_others_are_given(client, shapes, served):
    (first,) = client.get("/v1/search", params={"q": "a red square", "count": 1}).json()["results"]
    own = (shapes / "images" / first["name"]).read_bytes()
    answer = client.get(f"/v1/pictures/{first['id']}", params={"side": 24})
    assert answer.headers["content-type"] == "image/jpeg" and own not in answer.content
    with Image.open(io.BytesIO(answer.content)) as small, Image.open(io.BytesIO(own)) as large:
        assert max(small.size) == 24 and not small.getexif()
        expected = np.asarray(large.convert("RGB").resize(small.size, Image.Resampling.LANCZOS), np.float32)
        assert np.abs(np.asarray(small, np.float32) - expected).mean() < 12
    for name in ("0" * 32, first["name"], str(shapes / "images" / first["name"]).replace("/", "%2f"), "..%2f03.png"):
        answer = client.get(f"/v1/pictures/{name}")
        refused(answer, 404)
    refused(client.get(f"/v1/pictures/{first['id']}", params={"side": 99999}), 422)
    assert str(shapes) not in client.get("/v1/search", params={"q": "a red square"}).text
    path = served[1].shown.paths[first["id"]]
    try:
        served[1].shown.paths[first["id"]] = str(shapes / "gone.png")
        assert "cannot be read any more" in refused(client.get(f"/v1/pictures/{first['id']}"), 404)
    finally:
        served[1].shown.paths[first["id"]] = path


def test_captions_do_not_wait_for_thumbnails_and_few_thumbnails_wait(captioner, index, shapes, tmp_path):
    """A file that never comes to its end, as on a network's drive that is gone, holds their thread up."""
    os.mkfifo(endless := tmp_path / "endless.png")
    settings = Settings(queue=3, limits=LIMITS._replace(seconds=1))
    with running(captioner, settings, index) as (address, service), contextlib.ExitStack() as stack:

        def release():
            with endless.open("wb"):
                endless.unlink()

        def ask(path):
            return httpx.get(f"{address}/v1/pictures/{service.shown.name(str(path))}", trust_env=False, timeout=30)

        first, other = (shapes / "images" / f"0{i}.png" for i in range(2))
        stack.callback(release)
        threads = stack.enter_context(ThreadPoolExecutor(3))
        asked = [threads.submit(ask, endless)]
        wait_for(lambda: service.shrinking == 1)
        asked += [threads.submit(ask, first) for _ in range(2)]
        wait_for(lambda: service.shrinking == 3)
        answer = ask(other)
        assert "3 thumbnails are waited for" in refused(answer, 429) and answer.headers["retry-after"]
        assert httpx.post(f"{address}/v1/caption", content=file_of(picture(0)), trust_env=False).status_code == 200
        assert all("no answer within 1 s" in refused(each.result(), 504) for each in asked)
        assert service.shrinking == 0
        stack.close()
        assert ask(other).status_code == 200
        assert [path for path, _, _ in service.shown.made] == [str(other)], "what nobody waits for is not made"


def test_thumbnails_are_kept_as_long_as_their_files_are_the_same(tmp_path, monkeypatch):
    shown, file = Shown(), tmp_path / "a.png"
    file.write_bytes(file_of(picture(0)))
    name = shown.name(str(file))
    first = shown.thumbnail(name, 24, LIMITS)
    assert shown.thumbnail(name, 24, LIMITS) is first
    smaller = shown.thumbnail(name, 16, LIMITS)
    assert len({first, smaller}) == len(shown.made) == 2
    file.write_bytes(file_of(picture(1)))
    os.utime(file, ns=(0, 0))
    other = shown.thumbnail(name, 24, LIMITS)
    assert other != first and shown.thumbnail(name, 24, LIMITS) is other
    monkeypatch.setattr(Shown, "KEPT", 2)
    shown.thumbnail(name, 20, LIMITS)
    assert [side for _, side, _ in shown.made] == [24, 20]
    monkeypatch.setattr(Shown, "KEPT_BYTES", len(other))
    assert shown.thumbnail(name, 24, LIMITS) is other and list(shown.made.values()) == [other]
    file.unlink()
    with pytest.raises(Refused, match="cannot be read any more"):
        shown.thumbnail(name, 24, LIMITS)


def test_names_of_pictures_are_secret_and_the_oldest_are_forgotten(monkeypatch):
    monkeypatch.setattr(Shown, "MOST", 2)
    one, other = Shown(), Shown()
    assert one.name("a.png") == one.name("a.png") != other.name("a.png")
    names = [one.name(f"{letter}.png") for letter in "abc"]
    assert list(one.paths) == names[1:]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({}, "q: "),
        ({"q": ""}, "q: "),
        ({"q": "x" * 501}, "q: "),
        ({"q": "?!"}, "knows none of these words"),
        ({"q": "a", "count": 0}, "count: "),
        ({"q": "a", "by": "smell"}, "by: "),
        ({"q": "a", "folder": "/etc"}, "folder: no such option"),
        ({"q": "?!", "by": "words"}, "no words"),
    ],
)
def test_wrong_searches(client, asked, said):
    assert said in refused(client.get("/v1/search", params=asked), 422)


def test_wrong_pictures_to_search_by(client):
    refused(client.post("/v1/search", content=b"no picture"), 415)
    refused(client.post("/v1/search", content=b""), 400)
    refused(client.post("/v1/search", params={"count": 1000}, content=file_of(picture(0))), 422)


def test_an_index_that_is_gone_or_has_no_captions_is_said_so_without_its_place(captioner, shapes, tmp_path):
    index = Index.create(tmp_path / "index", captioner, [])
    index.add(captioner, [shapes / "images" / "00.png"])
    with running(captioner, Settings(), index) as (address, _):
        ask = functools.partial(httpx.get, f"{address}/v1/search", trust_env=False)
        assert "without captions" in refused(ask(params={"q": "a", "by": "words"}), 422)
        assert len(ask(params={"q": "a"}).json()["results"]) == 1
        index.add(captioner, [shapes / "images" / "01.png"])
        assert len(ask(params={"q": "a"}).json()["results"]) == 2, "what others add is found"
        shutil.rmtree(tmp_path / "index")
        assert str(tmp_path) not in refused(ask(params={"q": "a"}), 503)


def test_without_an_index_it_says_how_to_make_one(captioner):
    with running(captioner, Settings()) as (address, _):
        for answer in (
            httpx.get(f"{address}/v1/search?q=dog", trust_env=False),
            httpx.post(f"{address}/v1/search", content=file_of(picture(0)), trust_env=False),
        ):
            assert "`python -m src.index PICTURES --index FOLDER`" in refused(answer, 404)
        assert httpx.get(f"{address}/v1/captioner", trust_env=False).json()["index"] is None


# ---------------------------------------------------------------- pictures of all kinds


def test_formats_shapes_and_turned_pictures(client, captioner):
    image = picture(3, (60, 30))
    turned = Image.Exif()
    turned[0x0112] = 6
    kinds = {
        "PNG": file_of(image),
        "BMP": file_of(image, "BMP"),
        "GIF": file_of(image.quantize(), "GIF", save_all=True, append_images=[picture(4, (60, 30)).quantize()]),
        "WEBP": file_of(image, "WEBP", lossless=True),
        "grey": file_of(image.convert("L")),
        "transparent": file_of(image.convert("RGBA")),
        "JPEG": file_of(image, "JPEG", quality=95),
    }
    for kind, data in kinds.items():
        found = client.post("/v1/caption", content=data).json()
        with Image.open(io.BytesIO(data)) as decoded:
            assert found["text"] == own(captioner, decoded).text, kind
        assert (found["width"], found["height"]) == (60, 30)
    found = client.post("/v1/caption", content=file_of(image, "JPEG", exif=turned)).json()
    assert (found["width"], found["height"]) == (30, 60)


def bomb(width: int, height: int) -> bytes:
    """A PNG whose header promises more than it has."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def progressive(more: int = 0) -> bytes:
    """A JPEG whose last scan comes so often more."""
    data = file_of(picture(0), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:-2] + more * data[last:-2] + data[-2:]


def test_scans_of_a_jpeg_are_its_own_alone(client):
    assert scans(file_of(picture(0), "JPEG")) == 1 and scans(file_of(picture(0), "JPEG", restart_marker_rows=1)) == 1
    assert scans(progressive()) == 10, "libjpeg's script for colours"
    assert scans(progressive(90)) == 100 and scans(b"\xff\xd8" + 1_000_000 * b"\xff" + b"\x00") == scans(b"") == 0
    many, info = 200 * b"\xff\xda\x00\x02", Image.Exif()
    info[0x9286] = many  # a comment
    holding = file_of(picture(0), "JPEG", exif=info, comment=many) + many
    two = file_of(picture(0), "MPO", save_all=True, append_images=[picture(1)])
    assert holding.count(many) == 3 and scans(holding) == scans(two) == 1
    for data in (progressive(90), holding, two):
        assert client.post("/v1/caption", content=data).status_code == 200


@pytest.mark.parametrize(
    ("data", "status", "said"),
    [
        (b"", 400, "empty (0 bytes)"),
        (file_of(picture(0))[:60], 400, "damaged or truncated"),
        (file_of(picture(0), "JPEG")[:300], 400, "damaged or truncated"),
        (progressive(91), 400, "a JPEG of more than 100 scans"),
        (b"hello there", 415, "not a picture"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', 415, "not a picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", 415, "not a picture"),
        (file_of(picture(0), "TIFF"), 415, "JPEG, PNG"),
        (file_of(picture(0), "PPM"), 415, "JPEG, PNG"),
        (file_of(picture(0, (201, 200))), 413, "201 × 200 pixels, and the limit is 0.04 million"),
        (bomb(60_000, 60_000), 413, "pixels, and the limit is 0.04 million"),
        (bytes(300_001), 413, "more than 0.3 MB"),
    ],
    ids=["empty", "cut PNG", "cut JPEG", "scans", "text", "SVG", "EPS", "TIFF", "PPM", "pixels", "bomb", "bytes"],
)
def test_bad_pictures(client, data, status, said):
    assert said in refused(client.post("/v1/caption", content=data), status)
    assert said in refused(client.post("/v1/tags", files={"picture": ("x", data)}), status)
    if len(data) <= 300_000:
        assert client.post("/v1/captions", files={"a": ("x", data)}).json()["captions"][0]["error"].startswith("x: ")


# ---------------------------------------------------------------- requests of all kinds


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"language": "fr"}, "fr: this captioner knows the tags en, zh"),
        ({"tags": "style=funny"}, "style=funny: this captioner knows the tags en, zh"),
        ({"length": "7"}, "length 7: this captioner knows the lengths 3, 5, 12"),
        ({"length": "long-ish"}, "length long-ish"),
        ({"beam": "99"}, "beam: input should be less than or equal to 10"),
        ({"beam": "x"}, "beam: input should be a valid integer"),
        ({"alternatives": "3"}, "alternatives=3: the search gives 3 captions"),
        ({"alternatives": "-1"}, "alternatives: "),
        ({"attention": "perhaps"}, "attention: "),
        ({"atention": "true"}, "atention: no such option"),
        ({"language": "x" * 100}, "language: "),
        ({"language": "en,zh"}, "language: "),
        ({"tags": "<en>"}, "<en>"),
    ],
)
def test_wrong_options(client, options, said):
    data = file_of(picture(0))
    assert said in refused(client.post("/v1/caption", params=options, content=data), 422)
    assert said in refused(client.post("/v1/captions", data=options, files={"picture": data}), 422)


def test_wrong_requests(client):
    form = {"content-type": "multipart/form-data; boundary=x"}
    assert "a body of application/x-www-form-urlencoded" in refused(client.post("/v1/caption", data={"a": "b"}), 415)
    assert "application/json" in refused(client.post("/v1/caption", json={"picture": 1}), 415)
    field = b'--x\r\nContent-Disposition: form-data; name="language"\r\n\r\nen\r\n--x--\r\n'
    assert "no picture in the form" in refused(client.post("/v1/caption", content=field, headers=form), 400)
    assert "not a form" in refused(client.post("/v1/caption", content=b"no form", headers=form), 400)
    no_boundary = {"content-type": "multipart/form-data"}
    assert "not a form" in refused(client.post("/v1/caption", content=b"--x--", headers=no_boundary), 400)
    two = [("a", file_of(picture(i))) for i in range(2)]
    assert "more than 1 pictures" in refused(client.post("/v1/caption", files=two), 413)
    seven = [("a", file_of(picture(i))) for i in range(7)]
    assert "more than 6 pictures" in refused(client.post("/v1/captions", files=seven), 413)
    assert "no such address" in refused(client.get("/v1/nothing"), 404)
    assert "PUT" in refused(client.put("/v1/caption"), 405)
    assert client.get("/v1/caption").headers["allow"] == "POST"

    def endless():
        for _ in range(100):
            yield bytes(10_000)

    assert "more than 0.3 MB" in refused(client.post("/v1/caption", content=endless()), 413)


@pytest.mark.parametrize(
    "path",
    [
        "/page/../app.py",
        "/page/..%2fapp.py",
        "/page/%2e%2e/app.py",
        "/page//etc/passwd",
        "/page/....//app.py",
        "/../../etc/passwd",
        "/page/..\\app.py",
        "/page/%00",
        "/page/",
    ],
)
def test_no_file_is_read_through_it(served, path):
    host, port = served[0].removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:  # clients would tidy the path up
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answer.split()[1] in (b"404", b"400", b"405"), answer[:300]
    assert b"import" not in answer and b"root:" not in answer


def test_answers_carry_strict_headers(client):
    for answer in (client.get("/"), client.get("/page/app.js"), client.get("/health"), client.get("/nowhere")):
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'self';") and "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:8000", "[::1", "@"])
def test_other_names_are_no_names_of_this_machine(client, host):
    assert host in refused(client.get("/health", headers={"host": host}), 421)
    refused(client.post("/v1/caption", content=file_of(picture(0)), headers={"host": host}), 421)


@pytest.mark.parametrize("host", ["localhost", "localhost:1", "127.0.0.1:8000", "[::1]:8000", "LOCALHOST"])
def test_names_of_this_machine(client, host):
    assert client.get("/health", headers={"host": host}).json() == {"status": "ok"}


def test_pages_of_other_sites_may_not_ask(client, served):
    data = file_of(picture(0))
    for origin in ("http://evil.example", "null", "http://127.0.0.1:1", "http://["):
        reason = refused(client.post("/v1/caption", content=data, headers={"origin": origin}), 403)
        assert "other sites" in reason
    assert client.post("/v1/caption", content=data, headers={"origin": served[0]}).status_code == 200
    asked = {"origin": "http://evil.example", "access-control-request-method": "POST"}
    assert client.options("/v1/caption", headers=asked).status_code == 403


def test_pages_of_other_sites_may_link_to_the_page_alone(client):
    """Their pictures, scripts and frames bring no Origin."""
    for site in ("cross-site", "same-site"):
        for path in ("/v1/search?q=a&rerank=100", "/page/app.js", "/"):
            reason = refused(client.get(path, headers={"sec-fetch-site": site, "sec-fetch-mode": "no-cors"}), 403)
            assert "other sites" in reason
        link = {"sec-fetch-site": site, "sec-fetch-mode": "navigate"}
        assert client.get("/", headers=link).status_code == 200
        refused(client.get("/v1/search?q=a", headers=link), 403)
    for site in ("same-origin", "none"):
        assert client.get("/v1/search?q=a", headers={"sec-fetch-site": site}).status_code == 200


def test_a_token_is_asked_for(captioner):
    token = "0123456789abcdef"
    with (
        running(captioner, Settings(token=token, hosts=None, limits=LIMITS)) as (address, _),
        httpx.Client(base_url=address, trust_env=False) as client,
    ):
        data = file_of(picture(0))
        assert client.get("/").status_code == client.get("/page/app.js").status_code == 200
        assert client.get("/health", headers={"host": "captions.example"}).status_code == 200
        for path in ("/v1/captioner", "/metrics", "/openapi.json", "/v1/search", "/nowhere"):
            answer = client.get(path)
            assert "a token is needed" in refused(answer, 401) and answer.headers["www-authenticate"] == "Bearer"
        for wrong in ("Bearer 0123456789abcdeF", "Bearer", "Basic 0123456789abcdef", token, "Bearer é".encode()):
            refused(client.post("/v1/caption", content=data, headers={"authorization": wrong}), 401)
        right = {"authorization": f"Bearer {token}"}
        assert client.post("/v1/caption", content=data, headers=right).status_code == 200
        assert client.get("/metrics", headers=right).status_code == 200


# ---------------------------------------------------------------- much at once, too late, gone


def background(address, **options):
    """A request in a thread: its answer, later."""
    threads = ThreadPoolExecutor(1)
    asked = threads.submit(httpx.post, f"{address}/v1/caption", trust_env=False, timeout=30, **options)
    threads.shutdown(wait=False)
    return asked


def test_a_full_queue_says_when_to_come_again(served, client, captioner):
    address, service = served
    with held(service) as batches:
        asked = [background(address, content=file_of(picture(i))) for i in range(12)]
        wait_for(lambda: len(service.batcher.waiting) == 12)
        answer = client.post("/v1/caption", content=file_of(picture(0)))
        assert "12 pictures are waiting, and 12 may wait" in refused(answer, 429)
        assert 1 <= int(answer.headers["retry-after"]) <= 60
        assert client.get("/health").status_code == 200, "what needs no captioner is answered all the same"
    found = [each.result().json()["text"] for each in asked]
    assert found == [own(captioner, picture(i)).text for i in range(12)]
    assert [len(batch) for batch in batches] == [12]
    assert service.batcher.taken == 0 and client.post("/v1/caption", content=file_of(picture(0))).status_code == 200
    with held(service):
        asked = background(address, content=file_of(picture(0)))
        wait_for(lambda: service.batcher.taken == 1)
        seven = [background(address, content=file_of(picture(i))) for i in range(7)]
        wait_for(lambda: service.batcher.taken == 8)
        many = [("a", file_of(picture(i))) for i in range(6)]
        refused(client.post("/v1/captions", files=many), 429)
        wait_for(lambda: service.batcher.taken == 8)
    assert {each.result().status_code for each in [asked, *seven]} == {200}


def test_who_leaves_is_dropped_before_the_work_and_nobody_else_is(served, captioner):
    address, service = served
    host, port = address.removeprefix("http://").split(":")
    data = file_of(picture(0))
    head = f"POST /v1/caption HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n".encode()
    with held(service) as batches:
        leaving = []
        for _ in range(4):
            leaving.append(socket.create_connection((host, int(port))))
            leaving[-1].sendall(head + data)
        wait_for(lambda: len(service.batcher.waiting) == 4)
        staying = [background(address, content=file_of(picture(i))) for i in range(1, 6)]
        wait_for(lambda: len(service.batcher.waiting) == 9)
        for connection in leaving:
            connection.close()
        wait_for(lambda: service.batcher.taken == 5)
    assert [each.result().json()["text"] for each in staying] == [own(captioner, picture(i)).text for i in range(1, 6)]
    assert sum(map(len, batches)) == 5
    wait_for(lambda: service.counters.requests["POST", "/v1/caption", 499] >= 4)


def begun(address, length=1000, sent=b"begin"):
    """A connection that has sent so much of a picture."""
    host, port = address.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=30)
    head = f"POST /v1/caption HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n"
    connection.sendall(head.encode() + sent)
    return connection


def test_who_sends_slowly_takes_no_place_of_who_sent(served, client):
    address, service = served
    with contextlib.ExitStack() as stack:
        for _ in range(48):
            stack.enter_context(begun(address))
        wait_for(lambda: service.arriving == 48)
        refused(answer := client.post("/v1/caption", content=file_of(picture(0))), 429)
        assert "48 requests are arriving" in answer.text and answer.headers["retry-after"]
        stack.enter_context(begun(address)).close()
        assert service.batcher.taken == 0
        stack.pop_all().close()
        wait_for(lambda: not service.busy and service.held == 0)
    with contextlib.ExitStack() as stack:
        for _ in range(47):
            stack.enter_context(begun(address))
        wait_for(lambda: service.arriving == 47)
        assert client.post("/v1/caption", content=file_of(picture(0))).status_code == 200
    wait_for(lambda: not service.busy)


def test_what_waits_is_bounded_in_bytes(served, client):
    address, service = served
    with contextlib.ExitStack() as stack:
        for _ in range(16):
            stack.enter_context(begun(address, 300_000, bytes(299_999)))
        wait_for(lambda: service.held == 16 * 299_999)
        answer = client.post("/v1/caption", content=file_of(picture(0, (190, 190)), "BMP"))
        assert "requests of 4.8 MB are waiting, and 4.8 MB may" in refused(answer, 429)
        assert answer.headers["retry-after"] and service.held == 16 * 299_999
    wait_for(lambda: service.held == 0 and not service.busy)
    with held(service):
        asked = background(address, content=(data := file_of(picture(0))))
        wait_for(lambda: len(service.batcher.waiting) == 1)
        assert service.held == len(data), "until it is answered"
    assert asked.result().status_code == 200
    wait_for(lambda: service.held == 0)


def test_what_takes_too_long_is_given_up(captioner):
    limits = LIMITS._replace(seconds=0.3)
    with running(captioner, Settings(limits=limits)) as (address, service):
        with held(service) as batches:
            answer = httpx.post(f"{address}/v1/caption", content=file_of(picture(0)), trust_env=False)
            assert "no answer within 0.3 s" in refused(answer, 504)
            assert service.batcher.taken == 0
        with begun(address) as connection:
            wait_for(lambda: service.arriving == 1)
            wait_for(lambda: service.arriving == 0)
            connection.sendall(bytes(995))
            assert b" 408 " in connection.recv(65536).split(b"\r\n")[0]
        assert httpx.post(f"{address}/v1/caption", content=file_of(picture(0)), trust_env=False).status_code == 200
        assert sum(map(len, batches)) == 1, "what was given up is not computed"


def test_while_it_stops_what_was_accepted_is_answered(captioner):
    with running(captioner, Settings(limits=LIMITS)) as (address, service):
        data = file_of(picture(0))
        with held(service), begun(address, len(data), data[:9]) as arriving:
            wait_for(lambda: service.arriving == 1)
            asked = background(address, content=data)
            wait_for(lambda: len(service.batcher.waiting) == 1)
            service.stopping = True
            answer = httpx.post(f"{address}/v1/caption", content=file_of(picture(0)), trust_env=False)
            assert "about to stop" in refused(answer, 503) and answer.headers["retry-after"]
            refused(httpx.get(f"{address}/health", trust_env=False), 503)
            arriving.sendall(data[9:])
            wait_for(lambda: len(service.batcher.waiting) == 2)
            assert service.busy
        assert asked.result().json()["text"] == own(captioner, picture(0)).text
        wait_for(lambda: not service.busy)


def test_it_ends_though_a_picture_is_being_decoded(captioner):
    decoded = threading.Event()
    try:
        with running(captioner, Settings(limits=LIMITS)) as (_, service):
            waiting = []
            for threads in (service.decoders, service.thumbnails, service.batcher.thread):
                waiting += [threads.submit(decoded.wait, 60) for _ in range(3)][2:]
        assert len(waiting) == 3 and all(each.cancelled() for each in waiting)
    finally:
        decoded.set()
