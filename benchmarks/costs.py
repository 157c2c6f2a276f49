"""What large data sets would cost on GPUs: a model, of operations that were counted (`benchmarks/scaling.py`) and rates
that were published. No GPU was measured.

A step takes as long as the slowest of what goes on at once: loading (the disk, or cores that decode pictures), and
computing, after which gradients are exchanged. Computing takes as long as its operations at the assumed share of the
GPU's peak, or as launching its kernels, whichever is longer.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.decoder import SETTINGS, WORDS, Ours, conf, regions_and_tokens
from benchmarks.products import record
from src.model import instantiate

# ---------------------------------------------------------------- counting

STEP = 320
"""Captions a GPU and step."""
ENCODERS = {"efficientnet_lite0": 1280, "resnet50": 2048}
"""Backbones, which at 224 pixels give 7 × 7 regions, and how wide these are."""
REGIONS = 49


class Launches(TorchDispatchMode):
    """Counts the operations that would be kernels of a GPU: all but views."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


def counted_step(width: int, captions: int) -> dict[str, float]:
    """A training step of the decoder with the encoder's neck, on regions so wide, with so many captions an image:
    operations a caption, kernels a step, and parameters."""
    setting = SETTINGS["49x1280"]._replace(width=width)
    ours = Ours(setting)
    data = regions_and_tokens(setting, STEP // captions, captions)
    ours.step(*data)  # the optimizer's state is made
    with Launches() as launches:
        ours.step(*data)
    return {
        "gflop_a_caption": record(lambda: ours.step(*data)).flops / STEP / 1e9,
        "kernels_a_step": launches.count,
        "parameters": sum(p.numel() for p in ours.model.parameters()),
    }


def counted_encoder(name: str) -> dict[str, float]:
    """A backbone's forward pass of a picture: operations, kernels, and parameters."""
    config = conf(f"encoder/{name}")
    backbone = instantiate({**config["backbone"], "weights": "random"}).eval()
    pixels = torch.rand(1, 3, 224, 224)
    with torch.no_grad(), FlopCounterMode(display=False) as flops, Launches() as launches:
        for stage in backbone.stages:
            for module in stage.modules:
                pixels = module(pixels)
    return {
        "gflop_a_picture": flops.get_total_flops() / 1e9,
        "kernels_a_step": launches.count,
        "parameters": sum(p.numel() for p in backbone.parameters()),
    }


# ---------------------------------------------------------------- assumptions

PEAK = 989e12
"""Operations a second of an H100 SXM in bf16, without sparsity; NVIDIA's data sheet."""
SHARE = {"encoder": 0.3, "decoder": 0.15}
"""Of the peak, reached by convolutions and by the decoder's many small products: assumed."""
LAUNCH = 10e-6
"""Seconds from one kernel to the next in eager PyTorch: assumed."""
NVLINK, NETWORK = 450e9, 50e9
"""Bytes a second and GPU, one way, within a node (NVLink 4) and between nodes (a port of 400 Gb/s each)."""
CORES = 14
"""A GPU: the 112 of a DGX H100 over its eight GPUs; each decodes as fast as one core here: assumed."""
DISK = 3e9
"""Bytes a second that a node reads: a local NVMe drive; a shared file system may give less: assumed."""
EPOCHS = 10


class Library(NamedTuple):
    """A data set's size."""

    images: int
    captions: int
    """An image."""
    words: float
    """A caption."""
    kilobytes: float
    """A picture's file."""


LIBRARIES = {
    "COCO": Library(118_287, 5, 10.5, 152),
    "CC3M": Library(3_318_333, 1, 10.3, 95),
    "CC12M": Library(12_423_374, 1, 20.2, 95),
}
GPUS = (1, 8, 64)

# ---------------------------------------------------------------- the model


class Cost(NamedTuple):
    """Seconds of each thing for one step of every GPU, those that go on at once."""

    disk: float
    decoding: float
    arithmetic: float
    launches: float
    exchange: float

    @property
    def computing(self) -> float:
        return max(self.arithmetic, self.launches) + self.exchange

    @property
    def seconds(self) -> float:
        return max(self.disk, self.decoding, self.computing)

    @property
    def bottleneck(self) -> str:
        """The largest part of what takes longest."""
        if self.seconds == self.computing:
            names = ("arithmetic", "launches", "exchange")
            return {"launches": "launching kernels", "exchange": "exchanging gradients"}.get(
                name := max(names, key=lambda each: getattr(self, each)), name
            )
        return "the disk" if self.seconds == self.disk else "decoding pictures"


def cost(
    library: Library,
    gpus: int,
    *,
    step: Mapping[str, float],
    encoder: Mapping[str, float],
    decoded: float,
    regions: tuple[int, int] | None,
) -> Cost:
    """One step of `STEP` captions a GPU.

    Args:
        library: the data.
        gpus: eight a node, or fewer.
        step, encoder: what was counted.
        decoded: pictures a second of one core.
        regions: R × D that are read, as the feature cache has them; None: pictures are, and the encoder learns too.
    """
    images = STEP / library.captions
    arithmetic = STEP * step["gflop_a_caption"] * 1e9 * (library.words + 1) / (WORDS + 1) / (PEAK * SHARE["decoder"])
    kernels = step["kernels_a_step"] * (library.words + 1) / (WORDS + 1)
    parameters = step["parameters"]
    size = library.kilobytes * 1e3 if regions is None else 2.0 * regions[0] * regions[1]
    if regions is None:  # backward twice the operations of forward, and about as many kernels again
        arithmetic += 3 * images * encoder["gflop_a_picture"] * 1e9 / (PEAK * SHARE["encoder"])
        kernels += 3 * encoder["kernels_a_step"]
        parameters += encoder["parameters"]
    wire = NVLINK if gpus <= 8 else NETWORK
    return Cost(
        disk=images * min(gpus, 8) * size / DISK,
        decoding=0.0 if regions is not None else images / (CORES * decoded),
        arithmetic=arithmetic,
        launches=kernels * LAUNCH,
        exchange=2 * (gpus - 1) / gpus * 4 * parameters / wire,  # a ring's, of float32
    )


def encoding(library: Library, gpus: int, encoder: Mapping[str, float], decoded: float) -> float:
    """Seconds to compute the feature cache, once: by one process on its GPU, with the cores of its node, while the
    others wait."""
    seconds = (
        encoder["gflop_a_picture"] * 1e9 / (PEAK * SHARE["encoder"]),
        1 / (CORES * min(gpus, 8) * decoded),
        library.kilobytes * 1e3 / DISK,
    )
    return library.images * max(seconds)


def duration(seconds: float) -> str:
    """4 s, 12 min, 3.4 h."""
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 9.5 else f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def decoder_row(width: int, captions: int) -> str:
    """What a counted step is called."""
    return f"decoder, {REGIONS} × {width}, captions an image: {captions}"


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The model's tables, of what `scaling.operations` counted."""
    counted = {row["what"]: row for row in rows}
    decoded = counted["JPEG 640 × 480"]["decoded_per_second"]
    ways = {
        "EfficientNet-Lite0 frozen, features cached": ("efficientnet_lite0", (REGIONS, 1280)),
        "ResNet-50 learning too": ("resnet50", None),
    }
    lines = []
    for title, (backbone, regions) in ways.items():
        encoder = counted[f"encoder {backbone}"]
        lines += [
            f"{title}:",
            "",
            "| data | on disk | GPUs | features, once | an epoch | ten, all in all | captions/s | the bottleneck |",
            "| --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
        ]
        for name, library in LIBRARIES.items():
            step = counted[decoder_row(ENCODERS[backbone], library.captions)]
            size = library.kilobytes * 1e3 if regions is None else 2.0 * regions[0] * regions[1]
            for gpus in GPUS:
                one = cost(library, gpus, step=step, encoder=encoder, decoded=decoded, regions=regions)
                captions = library.images * library.captions
                epoch = captions / (STEP * gpus) * one.seconds
                once = 0.0 if regions is None else encoding(library, gpus, encoder, decoded)
                cells = [
                    name,
                    f"{library.images * size / 1e9:,.0f} GB",
                    "8 × 8" if gpus == 64 else str(gpus),
                    duration(once) if once else "–",
                    duration(epoch),
                    duration(once + EPOCHS * epoch),
                    f"{captions / epoch:,.0f}",
                    one.bottleneck,
                ]
                lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines).rstrip()
