import copy
import json
import logging
import multiprocessing
import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from src.data import features
from src.data.features import cached_features
from src.data.images import ImageError
from src.data.transforms import AS_IT_IS, Preprocess, Variation
from src.encoders import CNN, Encoder

IMAGES = [f"images/{i:02d}.png" for i in range(24)]
PREPROCESS = Preprocess(16)
CONFIG = {"_target_": "src.encoders.CNN", "channels": [8, 16], "weights": "auto"}


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return Encoder(CNN(channels=(8, 16)), width=12, frozen=True)


def build(encoder, root, directory, preprocess=PREPROCESS, images=IMAGES, config=CONFIG, **options):
    options = {"batch_size": 4, "workers": 1, "progress": False, **options}
    return cached_features(encoder, config, root, images, preprocess, directory, **options)


def test_holds_what_the_backbone_says(encoder, shapes, tmp_path):
    rows = build(encoder, shapes, tmp_path)
    assert isinstance(rows, np.memmap) and rows.shape == (24, 16, 16) and rows.dtype == np.float16
    pixels = torch.stack([Preprocess(16).open(shapes / image) for image in IMAGES])
    with torch.no_grad():
        expected = encoder.regions(pixels)
    torch.testing.assert_close(torch.from_numpy(np.array(rows)).float(), expected, atol=2e-3, rtol=2e-3)


def test_computed_once(encoder, shapes, tmp_path):
    assert encoder.dropout.training
    build(encoder, shapes, tmp_path)
    assert encoder.dropout.training, "a training that had to build its cache is the same as one that found it"
    calls = []
    encoder.backbone.register_forward_hook(lambda *_: calls.append(1))
    build(encoder, shapes, tmp_path)
    assert calls == []


def test_two_processes_at_once_compute_it_once(encoder, shapes, tmp_path):
    context = multiprocessing.get_context("fork")
    together, told = context.Barrier(2), context.Queue()

    def job() -> None:
        torch.set_num_threads(1)  # a fork's threads would wait for those of its parent
        said, batches = [], []
        logging.getLogger("src.files").setLevel(logging.INFO)
        logging.getLogger("src.files").handle = lambda record: said.append(record.getMessage())
        encoder.backbone.register_forward_hook(lambda *_: batches.append(time.sleep(0.1)))
        together.wait(30)
        rows = build(encoder, shapes, tmp_path)
        told.put((len(batches), said, float(rows.astype(np.float32).sum())))

    both = [context.Process(target=job) for _ in range(2)]
    for process in both:
        process.start()
    (helped, waited, a), (computed, alone, b) = sorted(told.get(timeout=60) for _ in both)
    for process in both:
        process.join()
    assert (helped, waited) == (0, ["waiting for another process: the features of 24 images"])
    assert (computed, alone) == (6, []) and a == b


def plain_loop(encoder, root, preprocess=PREPROCESS, batch_size=4):
    """One batch after the other, decoded and encoded by one thread."""
    encoder, rows, threads = copy.deepcopy(encoder).eval(), [], torch.get_num_threads()
    encoder.backbone.to(memory_format=torch.channels_last)
    torch.set_num_threads(1)
    for start in range(0, len(IMAGES), batch_size):
        pixels = torch.stack([preprocess.open(root / image) for image in IMAGES[start : start + batch_size]])
        with torch.inference_mode():
            rows.append(encoder.frozen_regions(pixels.contiguous(memory_format=torch.channels_last)).half())
    torch.set_num_threads(threads)
    return torch.cat(rows).numpy()


@pytest.mark.parametrize("workers", [0, 1, 2, 5, None])
@pytest.mark.parametrize("batch_size", [4, 7])
def test_any_number_of_threads_gives_the_rows_of_a_plain_loop(workers, batch_size, encoder, shapes, tmp_path):
    rows = build(encoder, shapes, tmp_path, workers=workers, batch_size=batch_size)
    assert np.array_equal(rows, plain_loop(encoder, shapes, batch_size=batch_size)), "to the last bit"


def test_each_thread_encodes_alone_and_in_the_asked_precision(encoder, shapes, tmp_path, monkeypatch):
    """What PyTorch keeps for each thread is set in each: inference mode, autocast, one core; the caller's stay."""
    seen, together, original = [], threading.Barrier(2, timeout=30), encoder.backbone.forward

    def forward(*arguments):
        together.wait()  # two batches are under way at once
        seen.append((threading.get_ident(), torch.get_num_threads(), torch.is_inference_mode_enabled()))
        output = original(*arguments)
        assert output.dtype == torch.bfloat16
        return output

    monkeypatch.setattr(encoder.backbone, "forward", forward)
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        build(encoder, shapes, tmp_path, workers=2, precision=torch.bfloat16)
        with ThreadPoolExecutor(1) as pool:
            assert torch.get_num_threads() == pool.submit(torch.get_num_threads).result() == 3
    finally:
        torch.set_num_threads(threads)
    assert len({thread for thread, *_ in seen}) == 2 and {(each[1], each[2]) for each in seen} == {(1, True)}
    assert not torch.is_inference_mode_enabled()


def test_decoding_goes_on_while_the_encoder_works(encoder, shapes, tmp_path, monkeypatch):
    """While batch 0 is encoded, the second thread decodes."""
    decoded, waiting, original = [], threading.Event(), encoder.backbone.forward
    open_picture = Preprocess.open

    def opened(self, path, *rest):
        decoded.append(path.name)
        if path.name == IMAGES[4].split("/")[1]:
            waiting.set()
        return open_picture(self, path, *rest)

    def forward(*arguments):
        assert waiting.wait(30), "no picture of the next batch was decoded meanwhile"
        return original(*arguments)

    monkeypatch.setattr(Preprocess, "open", opened)
    monkeypatch.setattr(encoder.backbone, "forward", forward)
    build(encoder, shapes, tmp_path, workers=2)
    assert sorted(decoded) == [image.split("/")[1] for image in IMAGES]


def test_an_error_ends_the_build_and_leaves_the_encoder_as_it_was(encoder, shapes, tmp_path):
    (tmp_path / "root" / "images").mkdir(parents=True)
    for image in IMAGES:
        (tmp_path / "root" / image).write_bytes((shapes / image).read_bytes())
    (tmp_path / "root" / IMAGES[9]).write_bytes(b"")
    with pytest.raises(ImageError, match="09.png: empty"):
        build(encoder, tmp_path / "root", tmp_path / "cache", workers=2)
    assert encoder.dropout.training and encoder.backbone.layers[0].weight.is_contiguous()
    encoder.backbone.register_forward_hook(lambda m, i, output: output * 1e9)
    with pytest.raises(ValueError, match="set data.cache=false"):
        build(encoder, shapes, tmp_path / "cache", workers=2)
    assert encoder.dropout.training


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_processes_share_one_copy_in_memory(encoder, shapes, tmp_path):
    """Each process maps the file shared and read-only: all of them read the same pages."""
    file = str(build(encoder, shapes, tmp_path).filename)
    context = multiprocessing.get_context("fork")
    told = context.Queue()

    def job() -> None:
        rows = build(encoder, shapes, tmp_path)
        maps = Path("/proc/self/maps").read_text().splitlines()
        told.put((float(rows[3].astype(np.float32).sum()), [line.split()[1] for line in maps if file in line]))

    both = [context.Process(target=job) for _ in range(2)]
    for process in both:
        process.start()
    first, second = (told.get(timeout=60) for _ in both)
    for process in both:
        process.join()
    assert first == second and first[1] == ["r--s"]


def test_a_view_is_a_cache_of_its_own_and_one_that_varies_nothing_is_the_plain_one(encoder, shapes, tmp_path):
    mirrored = [Variation(flip=True)] * 23 + [AS_IT_IS]
    plain = np.array(build(encoder, shapes, tmp_path))
    calls = []
    encoder.backbone.register_forward_hook(lambda *_: calls.append(1))
    assert np.array_equal(build(encoder, shapes, tmp_path, variations=[AS_IT_IS] * 24), plain) and not calls
    flipped = build(encoder, shapes, tmp_path, variations=mirrored, workers=2)
    pixels = torch.stack([PREPROCESS.open(shapes / image).flip(2) for image in IMAGES[:4]])
    with torch.inference_mode():
        expected = encoder.frozen_regions(pixels).numpy()
    np.testing.assert_allclose(flipped[:4].astype(np.float32), expected, atol=2e-3, rtol=2e-3)
    assert np.array_equal(flipped[23], plain[23]) and not np.array_equal(flipped[:23], plain[:23])
    build(encoder, shapes, tmp_path, variations=mirrored)
    assert len(calls) == 7, "6 batches and the one above"


@pytest.mark.parametrize("change", ["weights", "preprocess", "backbone", "images", "content", "precision", "views"])
def test_key(change, encoder, shapes, tmp_path):
    """Whatever a feature depends on makes another cache; how the weights were named does not."""
    root = tmp_path / "root"
    root.mkdir()
    (root / "images").mkdir()
    for image in IMAGES:
        (root / image).write_bytes((shapes / image).read_bytes())
    directory = tmp_path / "cache"
    build(encoder, root, directory)
    build(encoder, root, directory, config={**CONFIG, "weights": "random"})
    assert len([p for p in directory.iterdir() if p.is_dir()]) == 1
    options = {}
    if change == "weights":
        encoder.backbone.layers[0].weight.data[0, 0, 0, 0] += 1e-3
    elif change == "preprocess":
        options["preprocess"] = Preprocess(16, fit="letterbox")
    elif change == "backbone":
        options["config"] = {**CONFIG, "pooling": "max"}
    elif change == "images":
        options["images"] = IMAGES[1:]
    elif change == "content":
        os.utime(root / IMAGES[3], (1, 1))
    elif change == "views":
        options["variations"] = [AS_IT_IS] * 23 + [Variation(angle=1)]
    else:
        options["precision"] = torch.bfloat16
    build(encoder, root, directory, **options)
    assert len([p for p in directory.iterdir() if p.is_dir()]) == 2


def test_an_interrupted_build_goes_on_where_it_stopped(encoder, shapes, tmp_path, monkeypatch):
    monkeypatch.setattr(features, "FLUSH_EVERY", 4)
    whole = build(encoder, shapes, tmp_path / "whole")
    seen = []

    def stop(module, inputs, output):
        seen.append(len(output))
        if len(seen) == 4:
            raise KeyboardInterrupt

    hook = encoder.backbone.register_forward_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        build(encoder, shapes, tmp_path / "parts")
    assert [p.suffix for p in (tmp_path / "parts").iterdir() if p.is_dir()] == [".partial"]
    hook.remove()
    seen.clear()
    encoder.backbone.register_forward_hook(lambda m, i, output: seen.append(len(output)))
    resumed = build(encoder, shapes, tmp_path / "parts")
    assert sum(seen) == 12, "the first 12 images were kept"
    assert np.array_equal(whole, resumed)
    assert [p.suffix for p in (tmp_path / "parts").iterdir() if p.is_dir()] == [""]
    key = json.loads(next((tmp_path / "parts").glob("*/key.json")).read_text())
    assert key["preprocess"]["size"] == 16


def test_too_little_disk_is_said_before_work(encoder, shapes, tmp_path, monkeypatch):
    monkeypatch.setattr(features.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 100}))
    with pytest.raises(OSError, match="data.cache_dir"):
        build(encoder, shapes, tmp_path)
