"""Look at a captioner's word vectors: `python -m src.words --model runs/…/bundle dog running`."""

import argparse
import difflib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from src.bundle import load_bundle
from src.data.vocabulary import Vocabulary
from src.files import read_in_part, write_atomically
from src.ranges import at_least
from src.word_map import FORMATS, places, plane, write_map

EXAMPLES = """examples:
  python -m src.words --model runs/demo dog running            the words that are most like each of these
  python -m src.words --model runs/demo dog --output map.svg   besides, a map of the most frequent words, dog in red
  python -m src.words --model runs/demo --tsv projector        for https://projector.tensorflow.org

A line is: cosine similarity (1: the same direction, 0: nothing in common), count in the training captions, word.
"""


class Neighbour(NamedTuple):
    word: str
    similarity: float
    """Cosine, in [-1, 1]."""
    count: int  # type: ignore[assignment]
    """In the training captions."""


def word_vectors(model: Path) -> tuple[Vocabulary, np.ndarray]:
    """A captioner's vocabulary, and the vectors (V, E) that its decoder reads.

    Raises:
        BundleError: there is no captioner, or a damaged one.
    """
    bundle = load_bundle(model)
    with torch.no_grad():
        return bundle.vocabulary, bundle.model.decoder.embedding.weight.float().numpy()


def find(word: str, vocabulary: Vocabulary) -> int:
    """A word's id, in lower case where it is not there as it is.

    Raises:
        ValueError: the vocabulary has it not; names words that look like it.
    """
    for form in (word, word.lower()):
        if form in vocabulary.index:
            return vocabulary.index[form]
    close = difflib.get_close_matches(word.lower(), vocabulary.index, n=5)
    guess = f"did you mean {', '.join(close)}?" if close else "and none looks like it"
    raise ValueError(f"{word!r} is not among the captioner's {len(vocabulary.index):,} words; {guess}")


def neighbours(word: int, vocabulary: Vocabulary, vectors: np.ndarray, count: int) -> list[Neighbour]:
    """The `count` words whose vectors point most nearly where the word's does, the nearest first; no specials and
    no control tokens."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-12)
    similarity = unit @ unit[word]
    others = set(vocabulary.index.values()) - {word}
    order = [i for i in np.argsort(-similarity, kind="stable").tolist() if i in others]
    return [Neighbour(vocabulary.words[i], float(similarity[i]), vocabulary.counts[i]) for i in order[:count]]


def write_projector(folder: Path, vocabulary: Vocabulary, vectors: np.ndarray) -> None:
    """`vectors.tsv` and `metadata.tsv` (word, count) of all words, as TensorFlow's Embedding Projector takes them."""
    rows = list(vocabulary.index.values())
    lines = ["\t".join(f"{x:.6g}" for x in vectors[i]) for i in rows]
    write_atomically(folder / "vectors.tsv", "\n".join([*lines, ""]))
    named = [f"{vocabulary.words[i]}\t{vocabulary.counts[i]}" for i in rows]
    write_atomically(folder / "metadata.tsv", "\n".join(["word\tcount", *named, ""]))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        prog="python -m src.words",
        description="Print the words whose vectors are nearest to some, and draw a captioner's words.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument("words", nargs="*", metavar="WORD", help="of the captioner's vocabulary")
    result.add_argument("--model", required=True, type=Path, help="a bundle/ directory, a run's folder, or a .ckpt")
    result.add_argument("--count", type=int, default=10, metavar="N", help="neighbours of each word (%(default)s)")
    result.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="draw the most frequent words on a plane, by the two principal components: .svg, .html or .png",
    )
    result.add_argument("--top", type=int, default=300, metavar="N", help="how many --output draws (%(default)s)")
    result.add_argument("--tsv", type=Path, metavar="FOLDER", help="write vectors.tsv and metadata.tsv of all words")
    return result


def run(options: argparse.Namespace) -> None:
    """Do what the command line says.

    Raises:
        ValueError: it cannot be done.
    """
    at_least(1, "", count=options.count, top=options.top)
    if not (options.words or options.output or options.tsv):
        raise ValueError("nothing to do: name words, or add --output FILE or --tsv FOLDER")
    if options.output and options.output.suffix not in FORMATS:
        raise ValueError(f"--output {options.output}: choose an ending of {', '.join(FORMATS)}")
    vocabulary, vectors = word_vectors(options.model)
    asked = [find(word, vocabulary) for word in options.words]
    for word in asked:
        print(f"{vocabulary.words[word]} ({vocabulary.counts[word]:,} in the training captions)")
        for near in neighbours(word, vocabulary, vectors, options.count):
            print(f"{near.similarity:8.3f} {near.count:8,}  {near.word}")
    if options.output:
        frequent = sorted(vocabulary.index.values(), key=lambda i: (i not in asked, -vocabulary.counts[i]))
        drawn = frequent[: max(options.top, len(set(asked)))]
        names, marked = [vocabulary.words[i] for i in drawn], {vocabulary.words[i] for i in asked}
        write_map(options.output, places(names, plane(vectors[drawn]), marked))
        print(f"{len(drawn):,} words: {options.output}")
    if options.tsv:
        write_projector(options.tsv, vocabulary, vectors)
        print(f"{len(vocabulary.index):,} words: {options.tsv}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status: 0, or 2 for a wrong call."""
    options = parser().parse_args(arguments)
    try:
        with read_in_part():
            run(options)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
