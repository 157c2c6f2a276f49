"""How good tags are that neighbours propose, by the number of examples: `python -m benchmarks.annotating TABLE`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from src.annotate import Example, Neighbours, vectors_of
from src.bundle import SHIPPED
from src.captioner import Captioner
from src.metrics.content import ContentWords
from src.predictions import read_references
from src.tags import tags_of

AGREED = 0.4
"""The share of a picture's captions that name a concept, from which it is one of its tags: two of five."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a line a number of examples and of neighbours; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.annotating", description=__doc__)
    parser.add_argument("table", type=Path, help="a TSV img_path<TAB>caption, of several captions a picture")
    parser.add_argument("--model", default=str(SHIPPED), help="(%(default)s)")
    parser.add_argument("--examples", type=int, nargs="+", default=[50, 200, 1000], help="(%(default)s)")
    parser.add_argument("--neighbours", type=int, nargs="+", default=[5, 10, 20], help="(%(default)s)")
    options = parser.parse_args(arguments)
    captions = read_references(options.table).captions
    names = list(captions)[: max(options.examples)]
    words, captioner = ContentWords.load(), Captioner.load(options.model)
    examples, vectors = [], []
    for start in tqdm(range(0, len(names), 16), unit="batch", disable=None):
        batch = names[start : start + 16]
        opened = [captioner.open(options.table.parent / name) for name in batch]
        vectors.append(vectors_of(captioner, captioner.features(captioner.stacked(opened))))
        for name in batch:
            tags = tags_of(captions[name], words, min_confidence=AGREED, unlisted=False)
            examples.append(Example(name, [tag.name for tag in tags], []))
    every = np.concatenate(vectors)
    for count in options.examples:
        for neighbours in options.neighbours:
            found = Neighbours(examples[:count], every[:count], neighbours)
            print(f"{count} examples, {neighbours} neighbours: {found.summary(0.5)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
