import json
import logging
import multiprocessing
import os
import time

import numpy as np
import pytest
import torch

from src.data import features
from src.data.features import cached_features
from src.data.transforms import Preprocess
from src.encoders import CNN, Encoder

IMAGES = [f"images/{i:02d}.png" for i in range(24)]
CONFIG = {"_target_": "src.encoders.CNN", "channels": [8, 16], "weights": "auto"}


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return Encoder(CNN(channels=(8, 16)), width=12, frozen=True)


def build(encoder, root, directory, preprocess=None, images=IMAGES, config=CONFIG, **options):
    return cached_features(
        encoder,
        config,
        root,
        images,
        preprocess or Preprocess(16),
        directory,
        batch_size=4,
        workers=0,
        progress=False,
        **options,
    )


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


def test_decoding_in_other_processes_gives_the_same(encoder, shapes, tmp_path):
    alone = build(encoder, shapes, tmp_path / "a")
    helped = cached_features(
        encoder, CONFIG, shapes, IMAGES, Preprocess(16), tmp_path / "b", batch_size=4, workers=2, progress=False
    )
    assert np.array_equal(alone, helped)


@pytest.mark.parametrize("change", ["weights", "preprocess", "backbone", "images", "content", "precision"])
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
