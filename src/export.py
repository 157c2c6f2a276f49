"""Write a captioner for use without this project: `python -m src.export -o FOLDER` (ONNX), `… --format torch`."""

import argparse
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from tqdm import tqdm

from src.bundle import SHIPPED, bundle_folder, check_new
from src.captioner import Captioner
from src.captions import Caption
from src.config import ROOT, quiet
from src.data.images import load_image
from src.data.vocabulary import BOS, EOS, PAD, UNK
from src.decoders.base import Decoder, map_tensors
from src.encoders.precomputed import RegionEncoder
from src.files import room_for, whole_folder
from src.generation import BeamSearch, GreedySearch
from src.model import CaptioningModel
from src.picture_flags import ended
from src.pictures import find_pictures
from src.portable import CONFIG, ENDINGS, PortableCaptioner

MODULES = (
    *("__init__", "captions", "confidence", "corruptions", "portable", "portable_search", "ranges"),
    *("data/__init__", "data/control", "data/images", "data/tokenizer", "data/transforms", "data/vocabulary"),
)
"""What of this project an export carries along."""

SCRIPT = '''"""Caption pictures: `python caption.py photo.jpg`; `--help` says more."""

import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER))

from src.portable import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main(FOLDER))
'''

STATIC = ["Conv", "Clip", "Relu", "Add", "MaxPool", "AveragePool", "GlobalAveragePool", "MatMul", "Gemm"]
"""The encoder's operations that eight bits of known range carry; others, such as softmax, stay as they are."""

LEAST_TORCH = (2, 9)
"""The first that was seen to export all decoders; 2.6 saves no program with attention, and its ONNX is none of these
packages'."""

TIE = 1e-3
"""Two captions tie whose scores, by one captioner, differ by less."""


class ExportError(ValueError):
    """A captioner that cannot be exported, or not like this; the message says why."""


# ---------------------------------------------------------------- networks


def named_tensors(tree: Any, name: str) -> dict[str, Tensor]:
    """The tensors of a Memory or State, in order, by names such as `memory.attended.keys`."""
    if isinstance(tree, Tensor):
        return {name: tree}
    found: dict[str, Tensor] = {}
    for field, value in zip(getattr(tree, "_fields", range(len(tree or ()))), tree or (), strict=True):
        found |= named_tensors(value, f"{name}.{field}")
    return found


class EncoderNetwork(nn.Module):
    """Pixels (B, 3, S, S), uint8 → the tensors of the decoder's Memory, those of its first State, and, of decoders that
    attend, the regions' boxes."""

    def __init__(self, model: CaptioningModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> list[Tensor]:
        decoder, features = self.model.decoder, self.model.encoder(pixels)
        memory = decoder.prepare(features)
        found = [*named_tensors(memory, "").values(), *named_tensors(decoder.start(memory), "").values()]
        # Some are one tensor, which an output cannot be twice.
        return [x.clone() for x in (*found, *((features.boxes,) if decoder.attends else ()))]


class StepNetwork(nn.Module):
    """Words (B, Q), the tensors of a State of as many captions (B, Q, ·) and of a Memory (B, ·) → log-probabilities
    (B, Q, V), of decoders that attend the attention (B, Q, R), and the tensors of the next State.

    Args:
        decoder: whose step it is.
        state, memory: any, for their structure.
    """

    def __init__(self, decoder: Decoder, state: Any, memory: Any) -> None:
        super().__init__()
        self.decoder, self.trees = decoder, (state, memory)

    def forward(self, words: Tensor, state: list[Tensor], memory: list[Tensor]) -> list[Tensor]:
        given = iter([*state, *memory])
        before, seen = map_tensors(lambda _: next(given), self.trees)
        output, after = self.decoder.step(self.decoder.embed(words), before, seen)
        log_probs = self.decoder.logits(output.hidden).float().log_softmax(-1)
        looks = () if output.attention is None else (output.attention,)
        return [log_probs, *looks, *named_tensors(after, "").values()]


class Traced(NamedTuple):
    """A network in torch's graph form."""

    program: ExportedProgram
    inputs: list[str]
    outputs: list[str]
    shapes: dict[str, Any]
    """Which of the inputs' sizes are free, as `torch.export` takes it."""


def traced(model: CaptioningModel, size: int) -> dict[str, Traced]:
    """The two networks of a captioner of pictures with `size` pixels a side, free in the number of pictures, of beams
    and of words so far."""
    decoder = model.decoder
    batch, beams, past = (Dim(name) for name in ("batch", "beams", "past"))
    with quiet(), torch.no_grad():
        # Sizes of 2 and more: those of 0 and 1 would count as constants.
        pixels = torch.zeros(2, 3, size, size, dtype=torch.uint8)
        memory = decoder.prepare(model.encoder(pixels))
        words = torch.full((2, 3), BOS)
        state = map_tensors(lambda x: x.expand(-1, 3, *x.shape[2:]), decoder.start(memory))
        states = []
        for _ in range(3):
            _, state = decoder.step(decoder.embed(words), state, memory)
            states.append(named_tensors(state, "state"))
        seen = named_tensors(memory, "memory")
        first, later = (list(each.values()) for each in states[1:])
        grows = [
            {place: past for place, pair in enumerate(zip(x.shape, y.shape, strict=True)) if pair[0] != pair[1]}
            for x, y in zip(first, later, strict=True)
        ]
        shapes: dict[str, Any] = {
            "words": {0: batch, 1: beams},
            "state": [{0: batch, 1: beams, **grown} for grown in grows],
            "memory": [{0: batch} for _ in seen],
        }
        alone: dict[str, Any] = {"pixels": {0: batch}}
        encoder = torch.export.export(EncoderNetwork(model), (pixels,), dynamic_shapes=alone, strict=False)
        step = torch.export.export(
            StepNetwork(decoder, state, memory),
            (words, first, list(seen.values())),
            dynamic_shapes=shapes,
            strict=False,
        )
    looks = (["boxes"], ["attention"]) if decoder.attends else ([], [])
    names = list(states[0])
    return {
        "encoder": Traced(encoder, ["pixels"], [*seen, *names, *looks[0]], alone),
        "step": Traced(
            step, ["words", *names, *seen], ["log_probs", *looks[1], *(f"next.{name}" for name in names)], shapes
        ),
    }


def write_onnx(network: Traced, path: Path) -> None:
    """Write a network as one ONNX file."""
    with quiet():
        program = torch.onnx.export(
            network.program,
            dynamo=True,
            verbose=False,
            input_names=network.inputs,
            output_names=network.outputs,
            dynamic_shapes=network.shapes,
        )
        assert program is not None
        program.save(path, external_data=False)


def write_torch(network: Traced, path: Path) -> None:
    """Write a network as `torch.export.load` reads it, without the weights that only the other one uses."""
    given = network.program.example_inputs
    assert given is not None
    with quiet(), torch.no_grad():
        module: Any = network.program.module()
        for node in list(module.graph.nodes):
            if node.op == "get_attr" and not node.users:
                module.graph.erase_node(node)
                owner, _, name = node.target.rpartition(".")
                delattr(module.get_submodule(owner), name)
        module.recompile()
        shapes = tuple(network.shapes.values())
        torch.export.save(torch.export.export(module, given[0], dynamic_shapes=shapes, strict=False), path)


# ---------------------------------------------------------------- eight bits

INT8 = ("decoder", "all")
"""Whose weights: the decoder's matrices, or the encoder's convolutions too."""


def quantize(folder: Path, what: str, pixels: Iterator[np.ndarray]) -> None:
    """Put the weights of an ONNX export into eight bits, with a scale each output channel. The decoder's activations
    are scaled as they come, the encoder's by ranges that are measured beforehand, since onnxruntime has no other fast
    convolution of eight bits.

    Args:
        folder: where `encoder.onnx` and `step.onnx` are.
        what: one of INT8.
        pixels: (1, 3, S, S) each, of pictures such as will be captioned; read for `all`.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_dynamic, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Pixels(CalibrationDataReader):
        def get_next(self) -> dict[str, np.ndarray] | None:  # type: ignore[override]
            return next(({"pixels": each} for each in pixels), None)

    plain = folder / "plain.onnx"
    for name in ("step", "encoder")[: 1 + (what == "all")]:
        with quiet():
            quant_pre_process(folder / f"{name}.onnx", plain, skip_symbolic_shape=True)
            how: dict[str, Any] = {"per_channel": True, "weight_type": QuantType.QInt8}
            if name == "step":
                quantize_dynamic(plain, folder / f"{name}.onnx", **how)
            else:
                # Of the pictures' ranges the mean, not the widest: fewer captions change.
                how |= {"op_types_to_quantize": STATIC, "extra_options": {"CalibMovingAverage": True}}
                quantize_static(plain, folder / f"{name}.onnx", Pixels(), **how)
    plain.unlink()


# ---------------------------------------------------------------- the folder


def export(
    captioner: Captioner,
    folder: Path,
    source: Path,
    kind: str = "onnx",
    int8: str | None = None,
    calibrate: Sequence[Path] = (),
) -> None:
    """Write a captioner's export. It appears whole or not at all.

    Args:
        captioner: on the CPU; `search_plainly` changes its search where that is in no export.
        folder: where; what is there is replaced.
        source: what the captioner was loaded from.
        kind: `onnx` or `torch`.
        int8: of `onnx`: one of INT8, what has weights of eight bits.
        calibrate: pictures that tell the ranges of activations, for int8=all.

    Raises:
        ExportError: a captioner that cannot be exported.
        DiskFull: there is no room for it.
    """
    if isinstance(captioner.model.encoder, RegionEncoder):
        raise ExportError(f"{source}: reads regions computed beforehand, not pictures: it cannot be exported")
    if captioner.model.encoder.defence is not None:
        raise ExportError(f"{source}: transforms pictures by a defence, which no export carries: it cannot be exported")
    if torch.__version__ < LEAST_TORCH:  # type: ignore[operator]
        least = ".".join(map(str, LEAST_TORCH))
        raise ExportError(f"export needs torch {least} or newer, and this is {torch.__version__}: install a newer one")
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if kind == "onnx" and not find_spec(name)]
    if missing:
        raise ExportError(f"ONNX needs {', '.join(missing)}: `pip install -e '.[export]'`, or give --format torch")
    search_plainly(captioner)
    networks = traced(captioner.model, captioner.preprocess.size)
    with room_for(folder), whole_folder(folder) as partial:
        for name, network in networks.items():
            (write_onnx if kind == "onnx" else write_torch)(network, partial / f"{name}{ENDINGS[kind]}")
        if int8:
            shown = tqdm(calibrate, desc="calibration", unit="img", disable=None if int8 == "all" else True)
            quantize(partial, int8, (captioner.preprocess.open(path).numpy()[None] for path in shown))
        config = export_config(captioner, networks, kind)
        (partial / CONFIG).write_text(json.dumps(config, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        captioner.vocabulary.save(partial / "vocabulary.json")
        (partial / "caption.py").write_text(SCRIPT, encoding="utf-8")
        for module in MODULES:
            target = partial / "src" / f"{module}.py"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / "src" / f"{module}.py", target)
        shutil.copyfile(ROOT / "LICENSE", partial / "LICENSE")
        card = bundle_folder(source) / "README.md"
        (partial / "README.md").write_text(read_me(config, card), encoding="utf-8")


def export_config(captioner: Captioner, networks: dict[str, Traced], kind: str) -> dict[str, Any]:
    """All that an export's captions depend on besides its networks and words."""
    search = captioner.generation
    generation: dict[str, Any] = {
        "max_length": captioner.own_limit,
        "min_length": search.min_length,
        "no_repeat_ngram": search.no_repeat_ngram,
        "allow_unknown": UNK not in search.banned,
        "never": [[word] for word in search.banned if word not in (PAD, BOS, UNK)]
        + [list(ids) for ids in search.phrases],
    }
    if isinstance(search, BeamSearch):
        generation |= {"beam_size": search.beam_size, "length_penalty": search.length_penalty}
    states = [name for name in networks["step"].inputs if name.startswith("state")]
    return {
        "format": kind,
        "memory": [name for name in networks["step"].inputs if name.startswith("memory")],
        "state": states,
        "attends": captioner.model.decoder.attends,
        "transform": captioner.preprocess.to_dict(),
        "tokenizer": captioner.tokenizer.name,
        "generation": generation,
        "default": captioner.default,
        "calibration": captioner.calibration and captioner.calibration._asdict(),
        "provenance": captioner.config.get("provenance"),
    }


def read_me(config: dict[str, Any], card: Path) -> str:
    """How to use an export, and the model card of the captioner that it is made of, where that has one."""
    package, ending = {"onnx": ("onnxruntime", ".onnx"), "torch": ("torch", ".pt2")}[config["format"]]
    lines = [
        "# Image captioner, exported",
        "",
        f"It needs Python 3.11 or newer and `pip install {package} numpy pillow`, nothing else:",
        "",
        "    python caption.py photo.jpg",
        "    python caption.py --help",
        "",
        "or, from a program that has this folder on its path:",
        "",
        "    from src.portable import PortableCaptioner",
        "",
        '    captioner = PortableCaptioner.load("THIS_FOLDER")',
        '    for caption in captioner(["photo.jpg"]):',
        "        print(caption.picture, caption.text)",
        "",
        f"- `encoder{ending}`: pixels, uint8 (B, 3, S, S) → what the decoder remembers of a picture, its first state",
        f"- `step{ending}`: words (B, Q), state, memory → log-probabilities of the next word (B, Q, V), the next state",
        f"- `{CONFIG}`: the tensors' names, how pictures become pixels, the search; `vocabulary.json`: the words",
        "- `src/`: preprocessing, the searches and the words' joining, from Captionary (Apache-2.0, `LICENSE`)",
    ]
    if card.is_file():
        lines += ["", "The captioner that it was made of:", "", card.read_text(encoding="utf-8").rstrip()]
    return "\n".join([*lines, ""])


# ---------------------------------------------------------------- the check


def search_plainly(captioner: Captioner) -> str | None:
    """Give a captioner whose search no export has a beam search of the same limits; returns the name of what it had."""
    own = captioner.generation
    if type(own) in (BeamSearch, GreedySearch):
        return None
    limits: dict[str, Any] = {"min_length": own.min_length, "no_repeat_ngram": own.no_repeat_ngram, "never": own.never}
    captioner.generation = BeamSearch(max_length=own.max_length, allow_unknown=UNK not in own.banned, **limits)
    captioner.generation.bind(captioner.vocabulary, captioner.tokenizer)
    return type(own).__name__


class Difference(NamedTuple):
    """A picture that an export captions otherwise than its original."""

    picture: str
    original: str
    exported: str
    gap: float
    """How much the original scores its own caption above the export's."""

    @property
    def tie(self) -> bool:
        return abs(self.gap) < TIE

    @property
    def verdict(self) -> str:
        """In words."""
        return f"the original scores its own higher by {self.gap:.5f}" + (", a tie" if self.tie else "")


def made_up(count: int = 8, seed: int = 0) -> list[Image.Image]:
    """Pictures of coloured shapes."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        image = Image.new("RGB", (320, 240), tuple(rng.integers(0, 256, 3).tolist()))
        draw = ImageDraw.Draw(image)
        for _ in range(6):
            x, y, width, height = rng.integers(0, 200, 4).tolist()
            shape = draw.ellipse if rng.random() < 0.5 else draw.rectangle
            shape((x, y, x + width, y + height), fill=tuple(rng.integers(0, 256, 3).tolist()))
        found.append(image)
    return found


@torch.no_grad()
def score(captioner: Captioner, picture: Image.Image, words: Sequence[str]) -> float:
    """What a captioner's search ranks a caption of a picture by."""
    vocabulary, decoder = captioner.vocabulary, captioner.model.decoder
    control = [vocabulary.control_index[name] for name in captioner.control]
    said = [*(vocabulary.index.get(word, UNK) for word in words), EOS]
    ids = torch.tensor([[[BOS, *control, *said]]])
    memory = captioner.model.memory(captioner.stacked([picture]))
    hidden = decoder(decoder.embed(ids[..., :-1]), memory).hidden[:, :, len(control) :]
    log_probs = decoder.logits(hidden).float().log_softmax(-1)
    total = float(log_probs.gather(-1, torch.tensor(said).view(1, 1, -1, 1)).sum())
    search = captioner.generation
    return total / len(said) ** search.length_penalty if isinstance(search, BeamSearch) else total


def differences(
    original: Captioner, exported: PortableCaptioner, pictures: Sequence[str | Path | Image.Image]
) -> list[Difference]:
    """The pictures that are captioned otherwise."""
    found = []
    said: zip[tuple[Caption, Caption]] = zip(original.stream(pictures), exported.stream(pictures), strict=True)
    shown = tqdm(zip(pictures, said, strict=True), desc="check", total=len(pictures), unit="img", disable=None)
    for number, (picture, (one, other)) in enumerate(shown):
        if one.text != other.text:
            opened = original.open(picture) if isinstance(picture, str | Path) else load_image(picture)
            assert isinstance(opened, Image.Image)
            gap = score(original, opened, one.words) - score(original, opened, other.words)
            name = f"made-up picture {number}" if isinstance(picture, Image.Image) else str(picture)
            found.append(Difference(name, one.text, other.text, gap))
    return found


# ---------------------------------------------------------------- the command


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        prog="python -m src.export",
        description="Write a captioner's encoder and decoder step as ONNX, or as torch.export saves them, into a "
        "folder that captions without this project: `python FOLDER/caption.py photo.jpg`. Then some pictures are "
        "captioned by both, and it says how many captions are the same.",
    )
    result.add_argument(
        "model",
        nargs="?",
        type=Path,
        default=SHIPPED,
        help="a bundle/ directory, a run's folder, or a .ckpt (default: the captioner that comes with the code)",
    )
    result.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER", help="where the export goes")
    result.add_argument(
        "--format",
        choices=ENDINGS,
        default="onnx",
        help="onnx: captions with onnxruntime, NumPy and Pillow alone; torch: with torch (%(default)s)",
    )
    result.add_argument(
        "--int8",
        choices=INT8,
        help="of ONNX: weights in eight bits, the decoder's, or the encoder's too, which changes more captions and "
        "wants --calibrate (docs/export.md says what it costs and gains)",
    )
    for flag, text in (
        ("calibrate", "some hundred pictures such as will be captioned, for --int8 all"),
        ("check", "pictures to caption by both (default: made-up ones)"),
    ):
        result.add_argument(f"--{flag}", nargs="+", default=[], metavar="FILE|FOLDER|GLOB", help=text)
    result.add_argument("--overwrite", action="store_true", help="replace an export that is there already")
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status: 0, 1 where the export captions otherwise than it should, 2 for a wrong
    call, 130 where it was interrupted."""
    return ended(run, parser().parse_args(arguments))


def run(options: argparse.Namespace) -> int:
    """What `main` is asked for, but for its errors."""
    marks = [f"step{ending}" for ending in ENDINGS.values()]  # which no other folder has
    mark = next((name for name in marks if (options.output / name).exists()), marks[0])
    check_new(options.output, options.overwrite, mark=mark, kind="export")
    if options.int8 and options.format != "onnx":
        raise ValueError(f"--int8 {options.int8}: of --format onnx")
    if bool(options.calibrate) != (options.int8 == "all"):
        raise ValueError("--int8 all and --calibrate FOLDER go together: give both or neither")
    calibrate = list(map(Path, find_pictures(options.calibrate)))
    pictures: list[Any] = [*find_pictures(options.check)] or made_up()
    captioner = Captioner.load(options.model, device_name="cpu", precision_name="32-true")
    if own := search_plainly(captioner):
        print(f"its own search, {own}, is in no export: a beam search takes its place", file=sys.stderr)
    export(captioner, options.output, options.model, options.format, options.int8, calibrate)
    found = differences(captioner, PortableCaptioner.load(options.output), pictures)
    sizes = {name: (options.output / f"{name}{ENDINGS[options.format]}").stat().st_size for name in ("encoder", "step")}
    print(f"{options.output}: " + ", ".join(f"{name} {size / 1e6:.1f} MB" for name, size in sizes.items()))
    for each in found:
        print(f"{each.picture}: the original says “{each.original}”, the export “{each.exported}”: {each.verdict}")
    print(f"{len(pictures) - len(found)} of {len(pictures)} captions are those of the original in float32")
    return int(not options.int8 and not all(each.tie for each in found))


if __name__ == "__main__":
    sys.exit(main())
