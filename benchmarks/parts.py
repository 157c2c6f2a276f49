"""What each part of the fast path gives beside the plain way to write it: `python -m benchmarks.parts`.

At 64 pictures of 49 regions, five captions each, 512 wide, 3,000 words: additive attention by exponentials beside tanh,
dropout from 16 bits beside PyTorch's, the vocabulary in chunks beside all at once, a whole training step with freed
memory kept beside given back. With --tsv, how many steps are computed for a real token in each order of the captions;
with --compile, the step inside the loop compiled by `torch.compile`. Wants a quiet machine.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.decoder import QUICK, SETTINGS, Ours, Setting, our_training, regions_and_tokens
from benchmarks.measuring import Row, alternate, machine, spread, table, use_cores, warn_unless_quiet
from src.attention import AdditiveAttention
from src.config import ROOT, keep_freed_memory
from src.data.module import TrainingOrder
from src.data.tokenizer import EnglishTokenizer
from src.data.tsv import read_tsv
from src.decoders.base import rectangles
from src.dropout import Dropout
from src.objectives.cross_entropy import linear_cross_entropy

IMAGES, CAPTIONS, STEPS = 64, 5, 13
STEPS_IN = ("kept", "given")
"""A training step with freed memory kept, or given back to the system."""

Ways = tuple[Callable[[], object], Callable[[], object]]


def parts(setting: Setting) -> dict[str, Ways]:
    """Of each part the fast way and the plain one, forward and backward in bf16."""
    torch.manual_seed(0)
    hidden = setting.hidden
    attention = AdditiveAttention(hidden, hidden, hidden)
    query, grid = (torch.randn(IMAGES, n, hidden, requires_grad=True) for n in (CAPTIONS, setting.regions))
    classifier = nn.Linear(hidden, setting.vocabulary)
    rows = torch.randn(IMAGES * CAPTIONS * STEPS, hidden, requires_grad=True)
    targets = torch.randint(setting.vocabulary, (len(rows),))

    def both(forward: Callable[[], torch.Tensor], *wanted: torch.Tensor) -> Callable[[], object]:
        def run() -> None:
            with torch.autocast("cpu", torch.bfloat16):
                result = forward()
            torch.autograd.grad(result, wanted, torch.ones_like(result))

        return run

    def tanh() -> torch.Tensor:
        return attention.score(torch.tanh(projected.unsqueeze(1) + attention.query(query).unsqueeze(2)))

    def plain_cross_entropy() -> torch.Tensor:
        """With the plain likelihood and the accuracy, which ours gives besides."""
        logits = classifier(rows).float()
        with torch.no_grad():
            F.cross_entropy(logits, targets, reduction="sum")
            (logits.argmax(-1) == targets).sum()
        return F.cross_entropy(logits, targets, reduction="sum", label_smoothing=0.1)

    layer = (rows, classifier.weight, classifier.bias)
    with torch.autocast("cpu", torch.bfloat16):  # keys are made once an image, before the loop over words
        keys = attention.keys(grid).detach().requires_grad_()
        projected = attention.key(grid).detach().requires_grad_()
    own = (query, attention.query.weight, attention.score.weight)
    return {
        "additive attention, a word": (
            both(lambda: attention.scores(query, keys), *own, keys),
            both(tanh, *own, projected),
        ),
        "dropout of a caption's words": (lambda: Dropout()(rows), lambda: nn.Dropout()(rows)),
        "cross-entropy over the vocabulary": (
            both(lambda: linear_cross_entropy(rows, classifier, targets, 0.1)[0], *layer),
            both(plain_cross_entropy, *layer),
        ),
    }


def step_seconds(name: str, way: str, repeats: int) -> list[float]:
    """Of training steps in a fresh process, with freed memory kept or given back."""
    here = [sys.executable, "-m", "benchmarks.parts", "--setting", name, "--repeats", str(repeats)]
    done = subprocess.run(
        [*here, "--step", way, "--cores", str(torch.get_num_threads())], cwd=ROOT, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"timing the step failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def steps_a_token(lengths: Sequence[Sequence[int]], batch: int, together: int) -> dict[str, float]:
    """Steps computed for each real token, in batches of `batch` pictures: all captions padded to the longest of the
    batch, and only the corner that is still to be done."""
    found = {}
    for name, bucket in (("shuffled", 1), ("of like length", TrainingOrder.BUCKET)):
        first = np.cumsum([0, *map(len, lengths)])
        order = TrainingOrder(np.concatenate(lengths), first, batch, together, seed=0)
        order.BUCKET = bucket  # type: ignore[misc]
        real = padded = corner = 0
        for items in order:
            rows = torch.zeros(len(items), together, dtype=torch.long)
            for b, item in enumerate(items):
                own = sorted((lengths[item.image][c] for c in item.captions), reverse=True)
                rows[b, : len(own)] = torch.tensor(own)
            real += int(rows.sum())
            padded += rows.numel() * int(rows.max())
            corner += sum(images * captions for images, captions in rectangles(rows, int(rows.max())))
        found |= {f"{name}, padded": padded / real, f"{name}, corner": corner / real}
    return found


def compiled(setting: Setting, repeats: int) -> dict[str, float]:
    """Seconds to compile the step inside the loop over words, and of a training step without and with it."""
    plain, fast = Ours(setting), Ours(setting)
    fast.model.decoder.recur = torch.compile(fast.model.decoder.recur, dynamic=True)
    data = regions_and_tokens(setting, IMAGES, CAPTIONS)
    start = time.perf_counter()
    fast.step(*data)
    first = time.perf_counter() - start
    seconds = alternate({"as it is": lambda: plain.step(*data), "compiled": lambda: fast.step(*data)}, repeats)
    return {"first step": first, **{way: statistics.median(each) for way, each in seconds.items()}}


def measure(name: str, repeats: int = 9) -> dict[str, dict[str, Any]]:
    """Seconds of each part, ours and plain: medians with what they were taken from."""
    step = "a training step, freed memory kept"
    seconds = {step: {way: step_seconds(name, way, repeats) for way in STEPS_IN}}
    for part, (ours, plain) in parts((SETTINGS | QUICK)[name]).items():
        seconds[part] = alternate({"ours": ours, "plain": plain}, repeats, warm=3)
    return {part: {way: spread(readings) for way, readings in each.items()} for part, each in seconds.items()}


def rows(name: str, measured: dict[str, dict[str, Any]]) -> list[Row]:
    """A setting's lines of the table."""
    found = [Row(f"parts, {name}", "", "plain way")]
    for part, each in measured.items():
        ours, plain = (way["median"] for way in each.values())
        found.append(Row(f"  {part}", f"{1000 * ours:.1f} ms", f"{1000 * plain:.1f} ms", plain / ours))
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.parts", description=__doc__.split("\n\n")[0])
    parser.add_argument("--setting", choices=[*SETTINGS, *QUICK], default="49x1280", help="sizes (%(default)s)")
    parser.add_argument("--repeats", type=int, default=9, help="readings of each (%(default)s)")
    parser.add_argument("--tsv", type=Path, metavar="FILE", help="captions whose lengths are looked at")
    parser.add_argument("--compile", action="store_true", help="also time torch.compile, which takes a minute")
    parser.add_argument("--step", choices=STEPS_IN, help="only print the seconds of training steps")
    parser.add_argument("--cores", type=int, default=2, help="that all may use (%(default)s)")
    options = parser.parse_args(arguments)
    setting = (SETTINGS | QUICK)[options.setting]
    if options.step:
        if options.step == "kept":
            keep_freed_memory()
        torch.set_num_threads(options.cores)
        run = our_training(setting, "auto", IMAGES).run
        print(json.dumps(alternate({"": run}, options.repeats, warm=3)[""]))
        return 0
    warn_unless_quiet(machine())
    use_cores(options.cores)
    print(table(rows(options.setting, measure(options.setting, options.repeats))))
    if options.tsv:
        tokens = EnglishTokenizer().tokens
        captions = read_tsv(options.tsv, options.tsv.parent, verify="none").captions
        lengths = [[len(tokens(text)) + 1 for text in texts] for texts in captions]
        print("\nsteps computed for a real token, 64 pictures with all their captions")
        for name, ratio in steps_a_token(lengths, IMAGES, max(map(len, lengths))).items():
            print(f"  {name:<24} {ratio:6.2f}")
    if options.compile:
        print("\nseconds of a training step, torch.compile inside the loop")
        for name, seconds in compiled(setting, options.repeats).items():
            print(f"  {name:<24} {seconds:6.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
