"""What people name as pictures."""

import http.server
import threading
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from src.data.images import ImageError, load_image
from src.data.regions import ReadRegions
from src.pictures import as_image, each_picture, fetch, find_pictures, is_address, is_video


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("b.png", "a.jpg", "sub/c.webp"):
        Image.new("RGB", (4, 3), "red").save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "clip.mp4").write_bytes(b"not looked into")
    return tmp_path


def names(found):
    return [each if isinstance(each, str) else each.name for each in found]


def test_files_folders_patterns_and_addresses(folder):
    assert names(find_pictures([str(folder)])) == ["a.jpg", "b.png", "c.webp"]
    found = find_pictures([str(folder / "b.png"), str(folder / "*.jpg"), str(folder / "**" / "*.webp"), str(folder)])
    assert names(found) == ["b.png", "a.jpg", "c.webp"], "in the order named, each once"
    assert find_pictures(["https://example.org/a.jpg"], urls=True) == ["https://example.org/a.jpg"]
    assert names(find_pictures([str(folder / "*.mp4")], videos=True)) == ["clip.mp4"]
    assert names(find_pictures([str(folder / "not_there.jpg")], names=True)) == ["not_there.jpg"]


@pytest.mark.parametrize(
    ("argument", "sentence"),
    [
        ("nowhere.jpg", "nowhere.jpg: no such file or folder, and no file matches it"),
        ("https://example.org/a.jpg", "an address, and nothing is fetched unless asked for: --urls"),
        ("flickr8k-bilingual", "a captioner, no picture; write --model before it"),
        ("{0}/clip.mp4", "clip.mp4: a video, not a picture; `python -m src.caption"),
        ("{0}/clips", "no pictures in this folder; videos are named one by one, or as a pattern: '{0}/clips/*.mp4'"),
        ("{0}/empty", "no pictures in this folder"),
        ("", "a name that is empty"),
    ],
)
def test_what_names_no_picture_is_a_sentence(folder, argument, sentence):
    for name in ("clips", "empty"):
        (folder / name).mkdir()
    (folder / "clips" / "clip.mp4").touch()
    with pytest.raises(ValueError) as raised:
        find_pictures([argument.format(folder)])
    assert sentence.format(folder) in str(raised.value)
    assert ("videos" in str(raised.value)) == ("clips" in argument)


def test_names_of_videos_and_addresses():
    assert is_video("a/B.MP4") and is_video("x.webm") and not is_video("mp4") and not is_video("a.mp4.png")
    assert is_address("HTTPS://a/b") and not is_address("a/http://b") and not is_address(b"http://a")


def test_any_nesting_of_pictures(folder):
    image, array, batch = Image.new("RGB", (2, 2)), np.zeros((2, 2, 3)), torch.zeros(3, 3, 2, 2)
    regions = ReadRegions(np.zeros((1, 2), np.float32), np.zeros((1, 4), np.float32))
    found = list(each_picture([str(folder), [image, (array,)], batch, b"bytes", regions]))
    assert names(found[:3]) == ["a.jpg", "b.png", "c.webp"] and found[3] is image and found[4] is array
    assert [tuple(each.shape) for each in found[5:8]] == [(3, 2, 2)] * 3
    assert found[8] == b"bytes" and found[9] is regions and len(found) == 10
    assert list(each_picture(image)) == [image] and len(list(each_picture(np.zeros((5, 2, 2, 3))))) == 5
    with pytest.raises(TypeError, match="int: no picture; a path, an address, a PIL image"):
        list(each_picture([image, 3]))


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_a_picture_in_memory_is_the_same_as_array_and_tensor(mode):
    rng = np.random.default_rng(0)
    shape = (4, 6, *({"L": (), "RGB": (3,), "RGBA": (4,)}[mode]))
    array = rng.integers(0, 256, shape, dtype=np.uint8)
    image = Image.fromarray(array)
    assert image.mode == mode
    tensor = torch.from_numpy(array)
    tensor = tensor.permute(2, 0, 1) if array.ndim == 3 else tensor
    given = [array, tensor, array / 255, (array / 255).astype(np.float16), tensor.float() / 255]
    given += [tensor.bfloat16() / 255] if mode == "L" else []
    given += [array[..., None], tensor[None]] if mode == "L" else []
    for number, each in enumerate(given):
        found = np.asarray(as_image(each)).astype(int)
        assert found.shape == array.shape
        close = 1 if number == 5 else 0  # bfloat16 has eight bits, and rounds 255ths
        assert np.abs(found - array).max() <= close, number


@pytest.mark.parametrize(
    ("pixels", "sentence"),
    [
        (np.zeros((3, 8, 8), np.uint8), "shape (3, 8, 8): an array (H, W, C) with 1, 3 or 4 channels"),
        (torch.zeros(8, 8, 3), "shape (8, 8, 3): a tensor (C, H, W) with 1, 3 or 4"),
        (np.zeros((0, 8, 3), np.uint8), "shape (0, 8, 3)"),
        (np.zeros(8), "shape (8,)"),
        (np.full((8, 8, 3), 255.0), "floats from 255 to 255: give them in [0, 1], or uint8"),
        (torch.full((3, 8, 8), -0.5), "floats from -0.5 to -0.5"),
        (np.full((8, 8, 3), np.nan), "floats from nan"),
        (np.zeros((8, 8, 3), np.int64), "a picture of int64: uint8, or floats in [0, 1], are wanted"),
    ],
)
def test_what_is_no_picture_in_memory_is_a_sentence(pixels, sentence):
    with pytest.raises(ImageError) as raised:
        as_image(pixels)
    assert sentence in str(raised.value)


class Quiet(http.server.SimpleHTTPRequestHandler):
    def do_GET(self):
        if self.path != "/cut":
            return super().do_GET()
        self.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n99\r\nnot so many\r\n")

    def log_message(self, *_):
        pass


@pytest.fixture
def address(folder):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_picture_behind_an_address(address, folder):
    assert load_image(fetch(f"{address}/a.jpg")).size == (4, 3)
    for name, sentence in (("nothing.jpg", "404"), ("a.jpg", "more than 0 MB: download it and scale it down")):
        with pytest.raises(ImageError) as raised:
            fetch(f"{address}/{name}", 10)
        assert str(raised.value).startswith(f"{address}/{name}: ") and sentence in str(raised.value)
    for bad in ("http://127.0.0.1:9/a.jpg", f"{address}/a b.jpg", "http://[bad/a.jpg", f"{address}/cut"):
        with pytest.raises(ImageError) as raised:
            fetch(bad)
        assert str(raised.value).startswith(f"{bad}: ") and "\n" not in str(raised.value)


def test_an_address_is_fetched_by_the_proxy_of_now(address, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ImageError, match="refused"):
        fetch(f"{address}/a.jpg")
    monkeypatch.undo()
    assert load_image(fetch(f"{address}/a.jpg")).size == (4, 3)
