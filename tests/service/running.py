"""A real server in a thread of the tests' own process, and a captioner that is there at once."""

import asyncio
import contextlib
import io
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
import uvicorn
from PIL import Image

from src.bundle import Bundle, bundle_config, save_bundle
from src.captioner import Captioner
from src.confidence import Calibration
from src.data.vocabulary import Vocabulary
from src.model import build
from src.retrieval import Index
from src.serve import listening
from src.service.app import Service, Settings, build_app
from src.service.captioning import Task
from src.service.connections import configured
from tests.conftest import tiny_config

CONTROLS = {"<en>": 9, "<zh>": 7, "<length=3>": 5, "<length=5>": 5, "<length=12>": 6}


def tiny_captioner(folder, vocabulary: Vocabulary, **overrides: object) -> Captioner:
    """One that answers in milliseconds, in two languages and three lengths, in full precision: in half of it, a batch's
    size decides on the last digits."""
    torch.manual_seed(3)
    config = bundle_config(tiny_config(**overrides), {"encoder_weights": "random"})
    config["matcher"] = {"_target_": "src.matcher.JointMatcher", "size": 8, "words": 6, "hidden": 5, "heads": 2}
    config["control"] = {"_target_": "src.data.control.Control", "length": True, "tags": True, "default": "en"}
    model = build(config, vocabulary.extended([], controls=CONTROLS)).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # a fresh model says the same of every picture
            parameter.mul_(2)
    words = vocabulary.extended([], controls=CONTROLS)
    save_bundle(folder, Bundle(model, words, config, Calibration(4.0, 3.0, 0.5, 100)))
    return Captioner.load(folder, device_name="cpu", precision_name="32-true")


def picture(seed: int, size: tuple[int, int] = (48, 40)) -> Image.Image:
    """Coloured rectangles, other ones for every seed."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (3, 4, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize(size, Image.Resampling.NEAREST)


def file_of(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@contextlib.contextmanager
def running(captioner: Captioner, settings: Settings, index: Index | None = None) -> Iterator[tuple[str, Service]]:
    """The service at a free port: its address, and what its routes share."""
    app = build_app(captioner, settings, index)
    server = uvicorn.Server(configured(app))
    at = listening("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [at]})
    thread.start()
    wait_for(lambda: server.started)
    try:
        yield f"http://127.0.0.1:{at.getsockname()[1]}", app.service
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


def wait_for(what: Callable[[], object], seconds: float = 20) -> None:
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until, "it did not come"
        time.sleep(0.005)


@contextlib.contextmanager
def held(service: Service) -> Iterator[list[Sequence[Task]]]:
    """While this context is entered, the computing thread is busy; of what it computes afterwards, the batches."""
    begun, release = threading.Event(), threading.Event()
    batches: list[Sequence[Task]] = []
    compute = service.batcher.compute

    def noting(tasks: list[Task]) -> Sequence[object]:
        batches.append(tasks)
        return compute(tasks)

    async def occupy() -> None:
        with service.batcher.places(0) as places:
            await places.add(Task(None, work=lambda: (begun.set(), release.wait(30))))

    loop = service.batcher.task.get_loop()
    done = asyncio.run_coroutine_threadsafe(occupy(), loop)
    assert begun.wait(20)
    service.batcher.compute = noting
    try:
        yield batches
    finally:
        release.set()
        done.result(20)
