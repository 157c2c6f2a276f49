"""Tags and captions proposed for pictures, by a few that have some: `python -m src.annotate --tags few.tsv photos/`."""

import argparse
import sys
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from torch.nn import functional as F
from tqdm import tqdm

from src.captioner import Caption, Captioner
from src.confidence import BINS, Calibration, mean_log_prob
from src.config import keep_freed_memory
from src.data.images import ImageError
from src.data.tsv import read_rows
from src.distributed import Place
from src.encoders.base import Features
from src.files import check_names, encodable
from src.matching import log_likelihoods, picture_vectors, said
from src.metrics.content import ContentWords
from src.parts import Parts
from src.picture_flags import add_computing_flags, add_model_flag, check_computing, depends_on, ended, one_captioner
from src.pictures import find_pictures
from src.rows import check_output
from src.tags import tags_of

COLUMNS = ("img_path", "kind", "proposal", "confidence", "source", "like")
TEMPERATURE = 0.1
"""Of the neighbours' weights: a cosine that is higher by so much counts e times as much."""

EPILOG = """The proposals are a TSV to be reviewed, with a header: img_path, kind (tag or caption), proposal,
confidence, source (neighbours, captioner or both) and like (the example that is most like the picture and says it).
Take out what is wrong; what is left becomes tables again:

  awk -F'\\t' '$2 == "caption" {print $1 "\\t" $3}' review.tsv > captions.tsv
  awk -F'\\t' '$2 == "tag" {print $1 "\\t" $3}' review.tsv > tags.tsv"""


class Proposal(NamedTuple):
    """What might be said of a picture."""

    kind: str
    """tag or caption."""
    text: str
    confidence: float | None
    """Of a tag the neighbours' vote, calibrated where the examples are enough, or, where only the captioner says it,
    the share of its captions that do; of a caption the probability that it is good, None where the captioner is not
    calibrated."""
    source: str
    """neighbours, captioner or both."""
    like: str = ""
    """The example that is most like the picture and says it."""

    def line(self, picture: str) -> str:
        sure = "" if self.confidence is None else f"{self.confidence:.3f}"
        return encodable("\t".join([picture, self.kind, self.text, sure, self.source, self.like]))


class Example(NamedTuple):
    """A picture of which something is known."""

    path: str
    tags: list[str]
    captions: list[str]


def read_examples(tags: Path | None, captions: Path | None) -> list[Example]:
    """The pictures of a table `img_path<TAB>tag, tag …` and of one `img_path<TAB>caption`, whose paths are relative to
    the table's folder.

    Raises:
        ValueError: no table, or a row that is not of this form; names file and line.
    """
    found: dict[str, Example] = {}
    for table in filter(None, (tags, captions)):
        rows, bad = read_rows(table)
        if bad:
            root = "; the root is the table's folder" if "the root" in bad[0].reason else ""
            raise ValueError(f"{table}:{bad[0].line}: {bad[0].reason}{root}")
        for line, image, text, _ in rows:
            path = Path(table).parent / image
            if not path.is_file():
                raise ValueError(f"{table}:{line}: {path}: no such picture")
            example = found.setdefault(str(path), Example(str(path), [], []))
            if table is tags:
                new = [tag for tag in (part.strip() for part in text.replace("，", ",").split(",")) if tag]
                example.tags.extend(tag for tag in dict.fromkeys(new) if tag not in example.tags)
            else:
                example.captions.append(text)
    if not found:
        raise ValueError(f"{tags or captions}: no rows; a few pictures with tags or captions are wanted")
    return list(found.values())


def vectors_of(captioner: Captioner, seen: Features) -> np.ndarray:
    """Unit vectors (B, E) in which pictures that show the same kind of thing lie close together: of the captioner's
    matcher, if it has one, else its pooled features."""
    if captioner.model.matcher is not None:
        return picture_vectors(captioner, seen)
    return F.normalize(seen.pooled.float(), dim=-1).cpu().numpy()


class Neighbours:
    """What the examples nearest to a picture say of it, each weighted by exp(cosine / TEMPERATURE), after Makadia et
    al., 2008 (https://doi.org/10.1007/978-3-540-88690-7_24) and TagProp (Guillaumin et al., 2009,
    https://doi.org/10.1109/ICCV.2009.5459266). A tag's vote is its neighbours' share of the weight of all, to which one
    is added that says nothing and is as far as examples usually are from each other: of what is like no example, less
    is said.

    Args:
        examples: what is known.
        vectors: (N, E) of their pictures, of unit length.
        count: K, how many neighbours have a say.
    """

    def __init__(self, examples: Sequence[Example], vectors: np.ndarray, count: int) -> None:
        self.examples, self.vectors, self.count = examples, vectors, count
        similar = vectors @ vectors.T
        others = similar[~np.eye(len(vectors), dtype=bool)]
        self.usual = float(others.mean()) if len(others) else 0.0
        """The mean cosine of two examples."""
        votes, right = self._left_out(similar)
        enough = min(right.sum(), (~right).sum()) >= BINS
        self.calibration = Calibration.fit(votes, right) if enough else None
        """Vote → probability, where the examples are enough to tell."""
        self.votes_left_out, self.right_left_out = votes, right

    def nearest(self, similar: np.ndarray) -> np.ndarray:
        """Cosines (N,) → the K nearest examples, by number, the nearest first."""
        count = min(self.count, int(np.isfinite(similar).sum()))
        return np.argsort(-similar, kind="stable")[:count]

    def votes(self, similar: np.ndarray) -> dict[str, float]:
        """Cosines (N,) → the vote for each tag of the nearest examples, in (0, 1)."""
        nearest = self.nearest(similar)
        weights = np.exp((similar[nearest] - 1) / TEMPERATURE)
        total = weights.sum() + np.exp((self.usual - 1) / TEMPERATURE)
        votes: dict[str, float] = {}
        for number, weight in zip(nearest.tolist(), (weights / total).tolist(), strict=True):
            for tag in self.examples[number].tags:
                votes[tag] = votes.get(tag, 0.0) + weight
        return votes

    def confidence(self, vote: float) -> float:
        return vote if self.calibration is None else self.calibration(vote)

    def _left_out(self, similar: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What the examples say of each other, each left out in turn: votes, and whether each is right."""
        votes: list[float] = []
        right: list[bool] = []
        for number, example in enumerate(self.examples):
            own = similar[number].copy()
            own[number] = -np.inf
            for tag, vote in self.votes(own).items() if len(own) > 1 else ():
                votes.append(vote)
                right.append(tag in example.tags)
        return np.array(votes), np.array(right, bool)

    def summary(self, least: float) -> str | None:
        """How good the votes are, in a sentence, by what the examples say of each other, each left out in turn: half of
        them calibrated on the other half's votes, those with a confidence of `least` or more. None of too few."""
        if self.calibration is None:
            return None
        votes, right = self.votes_left_out, self.right_left_out
        halves = np.array_split(np.random.default_rng(0).permutation(len(votes)), 2)
        sure = np.zeros(len(votes))
        for mine, other in (halves, halves[::-1]):
            fitted = Calibration.fit(votes[other], right[other])
            sure[mine] = [fitted(vote) for vote in votes[mine]]
        there = sum(len(example.tags) for example in self.examples)
        kept = sure >= least
        return (
            f"of the examples, each left out in turn: {100 * right[kept].mean() if kept.any() else 0:.0f} % of "
            f"{kept.sum()} tags of confidence {least:g} or more are right, and are "
            f"{100 * right[kept].sum() / there:.0f} % of all their tags"
        )


class Annotator:
    """Proposals for pictures, from examples and from a captioner.

    Args:
        captioner: which captions, and whose features say what is alike.
        examples: what is known.
        neighbours: how many examples have a say on a picture.
        new_tags: whether the captioner may propose tags that no example has.
        batch_size: pictures at a time.
        progress: show a bar over the examples.
    """

    def __init__(
        self,
        captioner: Captioner,
        examples: Sequence[Example],
        neighbours: int = 10,
        new_tags: bool = False,
        batch_size: int = 16,
        progress: bool = False,
    ) -> None:
        self.captioner, self.new_tags = captioner, new_tags
        self.words = ContentWords.load()
        vectors = []
        with tqdm(total=len(examples), desc="examples", unit="img", disable=not progress) as bar:
            pending = iter(examples)
            while batch := list(islice(pending, batch_size)):
                opened = [captioner.open(example.path) for example in batch]
                vectors.append(vectors_of(captioner, captioner.features(captioner.stacked(opened))))
                bar.update(len(batch))
        self.neighbours = Neighbours(examples, np.concatenate(vectors), neighbours)
        self.known = {tag for example in examples for tag in example.tags}
        self.captioned = any(example.captions for example in examples)

    def __call__(self, opened: Sequence[Image.Image]) -> list[list[Proposal]]:
        """What might be said of pictures, as `Captioner.open` gave them: tags, then captions, the surest first."""
        captioner = self.captioner
        seen = captioner.features(captioner.stacked(opened))
        similar = vectors_of(captioner, seen) @ self.neighbours.vectors.T
        captions = captioner.captions(captioner.search(seen), captioner.generation.captions - 1)
        candidates = [self._candidates(row) for row in similar]
        likely = log_likelihoods(captioner, seen, [[said(captioner, text) for text in each] for each in candidates])
        return [
            self._tags(row, caption) + self._captions(row, caption, texts, means)
            for row, caption, texts, means in zip(similar, captions, candidates, likely, strict=True)
        ]

    def _like(self, row: np.ndarray, said_by: Iterable[bool]) -> str:
        """The most similar of those examples of which something is true."""
        true = np.fromiter(said_by, bool, len(row))
        return self.neighbours.examples[int(np.where(true, row, -np.inf).argmax())].path if true.any() else ""

    def _tags(self, row: np.ndarray, caption: Caption) -> list[Proposal]:
        if not self.known and not self.new_tags:
            return []
        sure = {tag: self.neighbours.confidence(vote) for tag, vote in self.neighbours.votes(row).items()}
        texts = [caption.text, *(other.text for other in caption.alternatives)]
        seen = {tag.name: tag.confidence for tag in tags_of(texts, self.words)}
        names = [*sure, *(name for name in seen if name not in sure and (self.new_tags or name in self.known))]
        proposals = []
        for name in names:
            source = "both" if name in sure and name in seen else "neighbours" if name in sure else "captioner"
            like = self._like(row, (name in example.tags for example in self.neighbours.examples))
            # The captioner's share is no probability: it does not raise what the votes say.
            proposals.append(Proposal("tag", name, sure[name] if name in sure else seen[name], source, like))
        return sorted(proposals, key=lambda each: -(each.confidence or 0))

    def _candidates(self, row: np.ndarray) -> list[str]:
        """The captions of the nearest examples, each once."""
        examples = (self.neighbours.examples[number] for number in self.neighbours.nearest(row).tolist())
        return list(dict.fromkeys(text for example in examples for text in example.captions))

    def _captions(self, row: np.ndarray, own: Caption, texts: Sequence[str], means: np.ndarray) -> list[Proposal]:
        """The captioner's own, and that of the neighbours' which it finds the likeliest."""
        proposals = [Proposal("caption", own.text, own.confidence, "captioner")]
        if len(texts):
            best = int(means.argmax())
            calibration = self.captioner.calibration
            sure = None if calibration is None else calibration(max(float(means[best]), mean_log_prob([])))
            like = self._like(row, (texts[best] in example.captions for example in self.neighbours.examples))
            proposals.append(Proposal("caption", texts[best], sure, "neighbours", like))
        return sorted(proposals, key=lambda each: -(each.confidence or 0))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        prog="python -m src.annotate",
        description="Propose tags and captions for pictures: those of the most similar pictures among a few that have "
        "some, and a captioner's own, each with a confidence.",
        usage="%(prog)s [--tags FILE.tsv] [--captions FILE.tsv] [FLAGS] FILE|FOLDER|GLOB ...",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument("pictures", nargs="*", metavar="FILE|FOLDER|GLOB", help="what to annotate")
    result.add_argument("--tags", type=Path, metavar="FILE.tsv", help="the examples' tags: img_path<TAB>tag, tag, …")
    result.add_argument("--captions", type=Path, metavar="FILE.tsv", help="their captions: img_path<TAB>caption")
    result.add_argument("-o", "--output", type=Path, help="write the TSV here; a stopped call is taken up by the same")
    result.add_argument("--neighbours", type=int, default=10, metavar="K", help="examples a picture (%(default)s)")
    result.add_argument(
        "--min-confidence", type=float, default=0.3, metavar="P", help="of tags, in [0, 1] (%(default)s)"
    )
    result.add_argument("--new-tags", action="store_true", help="the captioner's tags too that no example has")
    result.add_argument("--language", metavar="TAG", help="of the captioner's captions, such as zh")
    add_model_flag(result, several=False)
    add_computing_flags(result)
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status: 0, 1 where some pictures could not be read, 2 for a wrong call, 130
    where it was interrupted."""
    command = parser()
    options = command.parse_intermixed_args(arguments)
    if not options.pictures:
        command.error("which pictures? Name files, folders or patterns")
    keep_freed_memory()
    return ended(run, options, goes_on=options.output is not None)


def run(options: argparse.Namespace) -> int:
    """What `main` is asked for, but for its errors."""
    check_computing(options)
    if options.neighbours < 1:
        raise ValueError(f"--neighbours {options.neighbours}: 1 or more")
    if not 0 <= options.min_confidence <= 1:
        raise ValueError(f"--min-confidence {options.min_confidence:g}: a number from 0 to 1 is wanted")
    if not (options.tags or options.captions):
        raise ValueError("--tags FILE.tsv, --captions FILE.tsv: give the examples' tags, or captions, or both")
    examples = read_examples(options.tags, options.captions)
    known = dict.fromkeys(Path(example.path).resolve() for example in examples)
    pictures = [path for path in map(Path, find_pictures(options.pictures)) if path.resolve() not in known]
    if not pictures:
        raise ValueError("every picture named is an example: nothing is left to annotate")
    tables = [*filter(None, (options.tags, options.captions))]
    check_names([*pictures, *(example.path for example in examples)])
    if options.output:
        check_output(options.output, [*pictures, *known, *tables])
    captioner = one_captioner(options)
    captioner.ask(language=options.language)
    parts = None
    if options.output:
        key = depends_on([*pictures, *known, *tables], captioner, options)
        parts = Parts(options.output, key, len(pictures), Place())
        if parts.done:
            print(f"{options.output}: {parts.done} of {len(pictures)} are annotated already", file=sys.stderr)
    quiet = None if parts else True
    annotate = Annotator(
        captioner, examples, options.neighbours, options.new_tags, options.batch_size, progress=parts is not None
    )
    if told := annotate.neighbours.summary(options.min_confidence):
        print(told, file=sys.stderr)
    elif annotate.known:
        print("too few examples to calibrate: confidences are votes", file=sys.stderr)
    share: Sequence[int] = range(len(pictures)) if parts is None else parts.share
    unread = 0
    header = "\t".join(COLUMNS)
    if parts is None:
        print(header)
    with tqdm(total=len(share), unit="img", disable=quiet) as bar:
        for start in range(0, len(share), options.batch_size):
            opened: dict[int, Any] = {}
            for number in share[start : start + options.batch_size]:
                try:
                    opened[number] = captioner.open(pictures[number])
                except ImageError as error:
                    print(f"error: {error}", file=sys.stderr)
                    unread += 1
            for number, proposals in zip(opened, annotate(list(opened.values())) if opened else [], strict=True):
                kept = [p for p in proposals if p.kind == "caption" or (p.confidence or 0) >= options.min_confidence]
                lines = [proposal.line(str(pictures[number])) for proposal in kept]
                if parts is None:
                    print("\n".join(lines), flush=True)
                else:
                    parts.add(number, lines)
            if parts is not None:
                parts.flush()
            bar.update(len(share[start : start + options.batch_size]))
    if parts is not None:
        unread = len(pictures) - parts.join(lambda lines: (f"{line}\n" for line in [header, *lines]))
    if unread:
        print(f"{unread} of {len(pictures)} pictures could not be read", file=sys.stderr)
    return 1 if unread else 0


if __name__ == "__main__":
    sys.exit(main())
