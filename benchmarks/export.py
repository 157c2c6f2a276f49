"""What an export gains and costs beside the captioner that it was made of: `python -m benchmarks.export --root DATA`.

Captions of the validation pictures and their scores, pictures a second one by one and sixteen at a time, and of the
whole command on one picture the seconds and the memory; for the captioner in torch, `torch.export`'s form, ONNX, and
ONNX with weights in eight bits. Without --root the pictures are made up, and there are no scores.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.measuring import alternate, machine, spread, use_cores, warn_unless_quiet
from src.bundle import SHIPPED
from src.captioner import Captioner
from src.captions import Caption
from src.config import ROOT
from src.export import ENDINGS, TIE, export, made_up, score
from src.files import write_atomically
from src.metrics.captions import score_captions
from src.portable import PortableCaptioner

EXPORTS: dict[str, dict[str, Any]] = {
    "torch.export": {"kind": "torch"},
    "ONNX": {},
    "ONNX, int8 decoder": {"int8": "decoder"},
    "ONNX, int8 all": {"int8": "all"},
}
SCORES = {"Bleu_4": "BLEU-4", "METEOR": "METEOR", "CIDEr": "CIDEr-D"}
BATCHES = (1, 16)
COLUMNS = ("captioner", "MB", "pictures/s by 1", "by 16", "command, s", "MB of memory", "same captions", "ties")
MEMORY = """
import pathlib, runpy, sys
try:
    runpy.run_path(sys.argv[0], run_name="__main__") if sys.argv[0].endswith(".py") else runpy.run_module(
        sys.argv[0], run_name="__main__", alter_sys=True)
except SystemExit as end:
    assert not end.code
status = pathlib.Path("/proc/self/status").read_text().splitlines()
print(next(line.split()[1] for line in status if line.startswith("VmHWM")))
"""
"""Runs a command in its own process, and says the kilobytes that it held at most."""


def whole_command(program: str, *arguments: str) -> tuple[float, float]:
    """Wall seconds and MB of a command, from its start to its end.

    Raises:
        RuntimeError: it failed.
    """
    start = time.perf_counter()
    code = f"import sys; sys.argv = {[program, *arguments]!r}\n{MEMORY}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise RuntimeError(f"{program} {' '.join(arguments)} failed:\n{done.stderr[-3000:]}")
    return seconds, int(done.stdout.split()[-1]) / 1024


def measure(
    model: Path, root: Path | None, images: int, calibrate: int, repeats: int, metrics: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Of each way to caption: `mb` of its networks or weights, `per_second` by batch, the whole command's `seconds` and
    `memory_mb`, how many captions are the `same` as torch's in float32 and how many of the others `tie`, and `scores`.

    Args:
        model: a captioner.
        root: a folder with val.tsv and train.tsv; None: made-up pictures.
        images: of the validation pictures, how many.
        calibrate: of the training pictures, how many tell the ranges of eight bits.
        repeats: readings of each speed; 0: none are taken.
        metrics: that are computed.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if root is None:
            files = [folder / f"{number}.jpg" for number in range(images + calibrate)]
            for file, picture in zip(files, made_up(len(files)), strict=True):
                picture.save(file)
            references: dict[str, list[str]] = {}
            pictures, ranges = files[:images], files[images:]
        else:
            references = dict(list(captions_by_picture(root / "val.tsv").items())[:images])
            pictures = [root / image for image in references]
            training = list(captions_by_picture(root / "train.tsv"))
            ranges = [root / image for image in training[:: max(1, len(training) // calibrate)]][:calibrate]
        original = Captioner.load(model, device_name="cpu", precision_name="32-true")
        ways: dict[str, Any] = {"torch, float32": original}
        ways[f"torch, {machine()['precision']}"] = Captioner.load(model, device_name="cpu")
        sizes = dict.fromkeys(ways, sum(file.stat().st_size for file in model.rglob("*.safetensors")))
        commands: dict[str, list[str]] = {way: ["src.caption", "--model", str(model)] for way in list(ways)[1:]}
        for number, (way, how) in enumerate(EXPORTS.items()):
            out = folder / str(number)
            export(original, out, model, **how, calibrate=ranges)
            ways[way] = PortableCaptioner.load(out)
            sizes[way] = sum(
                (out / f"{part}{ENDINGS[how.get('kind', 'onnx')]}").stat().st_size for part in ("encoder", "step")
            )
            commands[way] = [str(out / "caption.py")]
            print(f"{way} exported", file=sys.stderr, flush=True)
        found: dict[str, dict[str, Any]] = {way: {"mb": size / 1e6} for way, size in sizes.items()}
        for way, command in commands.items() if repeats else ():
            readings = [whole_command(*command, str(pictures[0])) for _ in range(repeats)]
            found[way]["seconds"], found[way]["memory_mb"] = (statistics.median(x) for x in zip(*readings, strict=True))
        for batch in BATCHES if repeats else ():
            sample = [str(file) for file in pictures[: max(batch, 16)]]
            seconds = alternate({way: captioning(each, sample, batch) for way, each in ways.items()}, repeats)
            for way, each in seconds.items():
                found[way].setdefault("per_second", {})[batch] = spread([len(sample) / reading for reading in each])
        said: dict[str, list[Caption]] = {}
        for way, each in ways.items():
            said[way] = list(each([str(file) for file in pictures]))
            compared = zip(pictures, said["torch, float32"], said[way], strict=True)
            differing = [(file, a, b) for file, a, b in compared if a.text != b.text]
            gaps = [apart(original, file, a, b) for file, a, b in differing]
            found[way]["same"] = len(pictures) - len(differing)
            found[way]["ties"] = sum(abs(gap) < TIE for gap in gaps)
            if references:
                captions = {image: caption.text for image, caption in zip(references, said[way], strict=True)}
                found[way]["scores"] = score_captions(captions, references, metrics=metrics).corpus
            print(f"{way} captioned", file=sys.stderr, flush=True)
        return found


def captions_by_picture(table: Path) -> dict[str, list[str]]:
    """Of a TSV."""
    found: dict[str, list[str]] = {}
    for line in table.read_text(encoding="utf-8").splitlines():
        image, caption, *_ = line.split("\t")
        found.setdefault(image, []).append(caption)
    return found


def captioning(captioner: Any, files: Sequence[str], batch: int) -> Callable[[], Any]:
    return lambda: list(captioner.stream(files, batch))


def apart(original: Captioner, file: Path, one: Caption, other: Caption) -> float:
    """How much higher the original scores one caption than the other."""
    picture = original.open(file)
    return score(original, picture, one.words) - score(original, picture, other.words)  # type: ignore[arg-type]


def lines(measured: dict[str, dict[str, Any]], images: int) -> list[str]:
    """The table, in Markdown."""
    named = [name for name in SCORES if any(name in each.get("scores", {}) for each in measured.values())]
    rows = [[*COLUMNS, *(SCORES[name] for name in named)]]
    for way, each in measured.items():
        speeds = [f"{each['per_second'][batch]['median']:.1f}" if "per_second" in each else "" for batch in BATCHES]
        command = [f"{each['seconds']:.1f}", f"{each['memory_mb']:.0f}"] if "seconds" in each else ["", ""]
        same = [f"{each['same']} of {images}", str(each["ties"])]
        scores = [f"{100 * each['scores'][name]:.1f}" for name in named]
        rows.append([way, f"{each['mb']:.1f}", *speeds, *command, *same, *scores])
    return ["| " + " | ".join(row) + " |" for row in (rows[0], ["---"] * len(rows[0]), *rows[1:])]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.export", description=__doc__.split("\n\n")[0])
    parser.add_argument("model", nargs="?", type=Path, default=SHIPPED, help="a bundle (default: the shipped one)")
    parser.add_argument("--root", type=Path, metavar="FOLDER", help="Flickr8k in the TSV form: val.tsv and train.tsv")
    parser.add_argument("--images", type=int, default=1000, help="validation pictures (%(default)s)")
    parser.add_argument("--calibrate", type=int, default=200, help="training pictures for eight bits (%(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="readings of each speed; 0: only scores (%(default)s)")
    parser.add_argument("--metrics", nargs="+", choices=SCORES, default=[*SCORES], help="(all)")
    parser.add_argument("--cores", type=int, default=2, help="that all may use (%(default)s)")
    parser.add_argument(
        "--output", type=Path, default=Path("runs/bench_export.json"), metavar="FILE", help="(%(default)s)"
    )
    options = parser.parse_args(arguments)
    use_cores(options.cores)
    described = machine()
    warn_unless_quiet(described)
    measured = measure(options.model, options.root, options.images, options.calibrate, options.repeats, options.metrics)
    write_atomically(options.output, json.dumps({"machine": described, "captioners": measured}, indent=2) + "\n")
    print("\n".join(lines(measured, options.images)))
    print(
        f"\n{described['cpu']}, {described['cores']} cores, torch {described['torch']}, {described['date'][:10]}; "
        f"medians of {options.repeats}; MB of weights, or of both networks; the command's of one picture"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
