"""How long scoring a captioner takes, from start to end of the command: `python -m benchmarks.evaluation`.

`python -m src.evaluate` on 1,000 images from cached features, by beams of five, with all scores, METEOR too. Without
--model it makes what it needs in a temporary folder: built-in pictures, and a captioner of the default sizes, trained
on them for two epochs, whose vocabulary is then filled up to 3,000 words, as Flickr8k's has (they cost time, and are
never said). Its captions are forced to twelve words. The first call, which fills the cache, is not counted.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.measuring import Row, machine, spread, table, use_cores, warn_unless_quiet
from src.bundle import Bundle, read_saved, save_bundle, without_weights
from src.config import ROOT
from src.data.vocabulary import Vocabulary
from src.initial import initialise
from src.model import build

IMAGES, WORDS, VOCABULARY = 1_000, 12, 3_000
LIMIT = 40.0
"""Seconds it may take on two cores."""


def call(module: str, *arguments: str) -> float:
    """Wall seconds of a command of the project's.

    Raises:
        RuntimeError: it failed; the message ends in what it said.
    """
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", module, *arguments], cwd=ROOT, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise RuntimeError(f"{module} {' '.join(arguments)} failed:\n{(done.stdout + done.stderr)[-3000:]}")
    return seconds


def make_captioner(folder: Path, images: int, epochs: int, vocabulary: int, *overrides: str) -> list[str]:
    """Pictures and a captioner in a folder; returns the arguments that evaluate it on all the pictures."""
    data = folder / "scenes"
    call("src.prepare", "scenes", str(data), "--images", str(images))
    texts = [(data / f"{split}.tsv").read_text(encoding="utf-8") for split in ("train", "val", "test")]
    (data / "all.tsv").write_text("".join(texts), encoding="utf-8")
    given = ["data=tsv", f"data.root={data}"]
    learned = ["data.train=train.tsv", "data.val=val.tsv", "data.min_count=1", f"trainer.max_epochs={epochs}"]
    kept = [f"run_dir={folder / 'run'}", f"data.cache_dir={folder / 'cache'}", "logger=csv", "evaluate_splits=[]"]
    call("src.train", *given, *learned, *kept, "trainer.enable_progress_bar=false", *overrides)
    save_bundle(folder / "bundle", with_vocabulary(folder / "run", vocabulary))
    long = ["generation=beam", f"generation.min_length={WORDS}"]
    return [f"model={folder / 'bundle'}", *given, "data.test=all.tsv", *long]


def with_vocabulary(path: Path, size: int) -> Bundle:
    """A saved captioner, its vocabulary filled up with words that it never says."""
    saved = read_saved(path)
    known = len(saved.vocabulary)
    fillers = [f"filler{number}" for number in range(size - known)]
    vocabulary = Vocabulary(saved.vocabulary.words + fillers, saved.vocabulary.counts + [0] * len(fillers))
    model = build(without_weights(saved.config), vocabulary)
    initialise(model, vocabulary, saved, path.name)
    model.decoder.classifier.bias.data[known:] = -100
    return Bundle(model.eval(), vocabulary, saved.config)


def measure(
    arguments: Sequence[str] | None = None,
    split: str = "test",
    repeats: int = 3,
    images: int = IMAGES,
    epochs: int = 2,
    vocabulary: int = VOCABULARY,
    overrides: Sequence[str] = (),
) -> dict[str, Any]:
    """Seconds of the whole command.

    Args:
        arguments: of `src.evaluate`: a captioner and data; None makes both.
        split: of the data.
        repeats: readings.
        images: how many are captioned, and made.
        epochs: that the captioner is trained.
        vocabulary: its size in the end.
        overrides: of its training.

    Returns:
        seconds: readings; parts: one reading each of the command for an image alone (starting and ending, METEOR's Java
        too), and without METEOR; scores.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made = arguments is None
        if arguments is None:
            arguments = make_captioner(folder, images, epochs, vocabulary, *overrides)
        output = folder / "scores"
        asked = [*arguments, f"split={split}", f"output={output}", f"data.cache_dir={folder / 'cache'}"]
        first = call("src.evaluate", *asked, f"limit={images}")  # fills the cache
        seconds = [call("src.evaluate", *asked, f"limit={images}") for _ in range(repeats)]
        scores = json.loads((output / "scores.json").read_text(encoding="utf-8"))
        meta = json.loads((output / "meta.json").read_text(encoding="utf-8"))
        if meta["not_computed"] or scores["images"] != images:
            raise RuntimeError(f"not all was scored: {scores['images']} images, not computed: {meta['not_computed']}")
        others = "metrics=[Bleu_1,Bleu_2,Bleu_3,Bleu_4,ROUGE_L,CIDEr]"
        parts = {
            "one image alone": call("src.evaluate", *asked, "limit=1"),
            "all scores but METEOR": call("src.evaluate", *asked, f"limit={images}", others),
        }
    return {
        "settings": {"images": images, "made": made, "generation": meta["generation"], "metrics": meta["metrics"]},
        "seconds": spread(seconds),
        "first_call": first,
        "parts": parts,
        "scores": scores,
    }


def rows(measured: dict[str, Any]) -> list[Row]:
    """Lines of the table."""
    seconds, parts = measured["seconds"]["median"], measured["parts"]
    what = f"evaluation of {measured['settings']['images']:,} images, in seconds"
    whole = Row(what, f"{seconds:.1f}", "", seconds, LIMIT, at_most=True)
    return [whole, *(Row(f"  with {part}", f"{each:.1f}", "") for part, each in parts.items())]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evaluation", description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", type=Path, help="a real captioner: its bundle or run folder (with --data-root)")
    parser.add_argument("--data-root", type=Path, metavar="DIR", help="real data: TSVs and pictures")
    parser.add_argument("--split", default="test", help="which of its TSVs: train, val or test (%(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="readings (%(default)s)")
    parser.add_argument("--images", type=int, default=IMAGES, help="how many (%(default)s)")
    parser.add_argument("--cores", type=int, default=2, help="that it may use (%(default)s)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the figures as JSON")
    options = parser.parse_args(arguments)
    if (options.model is None) != (options.data_root is None):
        parser.error("--model and --data-root go together")
    use_cores(options.cores)
    described = machine()
    warn_unless_quiet(described)
    real = None
    if options.model:
        real = [f"model={options.model.resolve()}", "data=tsv", f"data.root={options.data_root.resolve()}"]
        real += [f"data.{options.split}={options.split}.tsv", "generation=beam", f"generation.min_length={WORDS}"]
    measured = measure(real, options.split, options.repeats, options.images)
    print(table(rows(measured)))
    if options.output:
        options.output.write_text(json.dumps({"machine": described, "evaluation": measured}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
