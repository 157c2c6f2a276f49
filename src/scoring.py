"""Every score of a set of captions, whoever wrote them."""

import importlib.util
import json
import logging
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from src.data.images import Pictures
from src.data.tokenizer import MixedTokenizer
from src.metrics.bleu import bleu_of
from src.metrics.captions import METRICS, CaptionScorer, Scores, Tokenization
from src.metrics.content import PARTS, ContentWords, content_recall
from src.metrics.degenerate import degenerate
from src.metrics.groups import GroupWords, group_report
from src.metrics.memory import memory_report
from src.metrics.meteor import meteor_of
from src.metrics.mistakes import Mistake, left_out, wrongly_said
from src.metrics.named import named_shares
from src.metrics.spice import SpiceError, obstacle, spice
from src.significance import Measured, mean_of, ratio

log = logging.getLogger(__name__)

BY_WORD = "_word"
"""What the names of scores end in that are of Chinese words rather than of characters."""
BY_GROUP = (*METRICS, "CLIPScore")
"""Scores that are set beside one another by groups of people."""
ASK_FOR = {
    "SPICE": "name the folder of its parser: spice=DIR (docs/scores.md)",
    "CLIPScore": "name the folder of a CLIP: clip=DIR (docs/scores.md)",
}


@dataclass(frozen=True)
class Scoring:
    """What is scored, and how."""

    tokenizer: Tokenization = "ptb"
    metrics: Sequence[str] = METRICS
    leave_one_out: bool = False
    """Score against each image's references but one, each left out in turn, and average: what a person's caption can be
    scored by, and so what a captioner has to be scored by that is set beside people."""
    spice: Path | None = None
    """The folder of CoreNLP's jars."""
    clip: Path | None = None
    """The folder of a CLIP."""
    groups: Path | None = None
    """A list of people's words by group (src/metrics/groups.py); None: ours."""
    cache: Path | None = None
    """The folder where tokenized references are kept."""


class Scored(NamedTuple):
    """What a set of captions scored."""

    corpus: dict[str, Any]
    """Flat, fractions; None: not computed."""
    per_image: dict[str, dict[str, float]]
    tokenizer: str
    not_computed: dict[str, str]
    statistics: dict[str, np.ndarray]
    """(images, foldings, S): what the corpus scores that are no means of images' scores are computed from."""
    alarms: list[str]
    """What is wrong with the captions as a whole (src/metrics/degenerate.py)."""
    wrong: list[Mistake]
    missed: list[Mistake]


class Scorer:
    """Scores against fixed references, which are tokenized once.

    Args:
        references: raw captions by image.
        how: what is computed.
        images: the pictures; only CLIPScore looks at them.
        training: the training captions, raw: adds `novel_share`.
        nouns: `{image: {part: nouns}}` of what each picture shows, as the built-in scenes have it; adds `<part>_named`.

    Raises:
        ValueError: no references, or, with `leave_one_out`, an image with a single one; what a CLIP's folder lacks.
    """

    def __init__(
        self,
        references: Mapping[str, Sequence[str]],
        how: Scoring,
        images: Pictures | None = None,
        training: Collection[str] | None = None,
        nouns: Mapping[str, Any] | None = None,
    ) -> None:
        self.how, self.images, self.nouns = how, images, nouns
        self.references = {image: list(group) for image, group in references.items()}
        self.foldings = foldings(self.references) if how.leave_one_out else [({}, self.references)]
        options: dict[str, Any] = {"metrics": how.metrics, "cache": how.cache}
        self.scorers = [CaptionScorer(rest, tokenizer=how.tokenizer, **options) for _, rest in self.foldings]
        self.tokenizer = self.scorers[0].tokenizer
        self.by_word: list[CaptionScorer] = []
        self.not_computed: dict[str, str] = {}
        if self.tokenizer == "character" and (also := [name for name in how.metrics if name != "METEOR"]):
            if importlib.util.find_spec("rjieba"):
                options["metrics"] = also
                self.by_word = [CaptionScorer(rest, tokenizer="word", **options) for _, rest in self.foldings]
            else:
                reason = "Chinese words need rjieba: pip install rjieba"
                self.not_computed |= {name + BY_WORD: reason for name in also}
        if not self.tokenizer.startswith("ptb"):
            self.not_computed["SPICE"] = "SPICE parses English only"
        elif problem := ASK_FOR["SPICE"] if how.spice is None else obstacle(how.spice):
            self.not_computed["SPICE"] = problem
        self.clip: Any = None
        if how.clip is None:
            self.not_computed |= dict.fromkeys(("CLIPScore", "RefCLIPScore"), ASK_FOR["CLIPScore"])
        elif images is None or images.find(next(iter(references))) is None:
            self.not_computed |= dict.fromkeys(("CLIPScore", "RefCLIPScore"), "there are no pictures to look at")
        else:
            from src.metrics.clip_score import ClipScorer  # torch and transformers: seconds

            self.clip = ClipScorer(how.clip)
        self.words = ContentWords.load()
        self._plain = MixedTokenizer()
        self.groups = GroupWords.load(how.groups)
        self.training = None if training is None else Counter(self._known(caption) for caption in training)

    def _known(self, caption: str) -> str:
        return " ".join(self._plain.tokens(caption))

    def novel_share(self, captions: Iterable[str]) -> float | None:
        """The share of raw captions that are no training caption, in [0, 1]; None where those are not known."""
        if self.training is None:
            return None
        return float(np.mean([self._known(caption) not in self.training for caption in captions]))

    def people(self, captions: Mapping[str, str], scored: Scored) -> dict[str, Any] | None:
        """Captions and their scores by groups of people (`group_report`); None where no reference names anybody."""
        columns = {name: np.array([row.get(name, np.nan) for row in scored.per_image.values()]) for name in BY_GROUP}
        each = {name: measured(name, scored.statistics, columns[name]) for name in BY_GROUP if name in scored.corpus}
        known = {name: its for name, its in each.items() if its is not None and np.isfinite(its.statistics).all()}
        return group_report(captions, self.foldings[0][1], self.groups, self.words, known)

    def memory(self, captions: Mapping[str, str], own: bool = False) -> dict[str, Any] | None:
        """How much of the captions stands in training (`memory_report`), whose images these are, or not; None where
        that is not known."""
        if self.training is None:
            return None
        references = {image: [self._known(text) for text in group] for image, group in self.foldings[0][1].items()}
        said = {image: self._known(caption) for image, caption in captions.items()}
        found = memory_report(said, references, self.training, own)
        for row in found["captions"]:
            row["caption"] = self._plain.join(row["caption"].split())
        return found

    def score(self, captions: Mapping[str, str] | None) -> Scored:
        """Score one raw caption for every image; None, with `leave_one_out`: the references themselves, each against
        the others. Raises ValueError for images without a caption, or captions without an image."""
        found = [self._score(held if captions is None else captions, i) for i, (held, _) in enumerate(self.foldings)]
        return found[0] if len(found) == 1 else _averaged(found)

    def _score(self, captions: Mapping[str, str], i: int) -> Scored:
        scorer, references = self.scorers[i], self.foldings[i][1]
        plain = scorer.score(captions)
        captions = {image: captions[image] for image in references}
        corpus: dict[str, Any] = {name: plain.corpus[name] for name in scorer.metrics}
        own = {name: value for name, value in plain.corpus.items() if name not in corpus}
        columns = {name: _column(plain, name) for name in next(iter(plain.per_image.values()))}
        not_computed = {**plain.not_computed, **self.not_computed}
        statistics = dict(plain.statistics)
        words: Scores | None = None
        if self.by_word:
            words = self.by_word[i].score(captions)
            corpus |= {name + BY_WORD: words.corpus[name] for name in self.by_word[i].metrics}
            columns |= {name + BY_WORD: _column(words, name) for name in self.by_word[i].metrics}
            statistics |= {name + BY_WORD: rows for name, rows in words.statistics.items()}
        corpus |= dict.fromkeys(("SPICE", "CLIPScore", "RefCLIPScore"))
        if "SPICE" not in not_computed and self.how.spice is not None:
            try:
                tokenized = {image: [caption] for image, caption in plain.tokenized.items()}
                corpus["SPICE"], columns["SPICE"] = spice(scorer.references, tokenized, self.how.spice)
            except SpiceError as error:  # not worth losing hours of captioning
                log.warning("SPICE was not computed: %s", error)
                not_computed["SPICE"] = str(error)
        if self.clip is not None and self.images is not None:
            by_clip = self.clip.score(self.images.find, captions, references, progress=True)
            corpus |= {name: float(column.mean()) for name, column in by_clip.items()}
            columns |= by_clip
        corpus |= {name: None for name in not_computed if name not in corpus}
        corpus["exact_match"] = own.pop("exact_match")
        recalled = content_recall(captions, references, self.words)
        statistics |= {f"{part}_recall": recalled[part] for part in PARTS}
        corpus |= {f"{p}_recall": _share(recalled[p].sum(0)) for p in PARTS if recalled[p].sum(0)[1]}
        if self.nouns is not None:
            corpus |= named_shares(captions, {image: self.nouns[image] for image in captions})
        corpus |= own
        lengths = np.array([len(caption.split()) for caption in plain.tokenized.values()], dtype=np.float64)
        theirs = np.array([np.mean([len(r.split()) for r in group]) for group in scorer.references.values()])
        columns |= {"length": lengths, "reference_length": theirs}
        corpus["reference_length"] = float(theirs.mean())
        corpus["distinct_share"] = len(set(plain.tokenized.values())) / len(captions)
        if (novel := self.novel_share(captions.values())) is not None:
            corpus["novel_share"] = novel
        rows = zip(*columns.values(), strict=True)
        per_image = {
            image: {name: float(value) for name, value in zip(columns, row, strict=True)}
            for image, row in zip(captions, rows, strict=True)
        }
        # Chinese mistakes are of words, where these are known: a character says little.
        said, known = (words, self.by_word[i]) if words is not None else (plain, scorer)
        return Scored(
            corpus,
            per_image,
            plain.tokenizer,
            not_computed,
            {name: rows[:, None] for name, rows in statistics.items()},
            degenerate(list(plain.tokenized.values()), scorer.references),
            wrongly_said(said.tokenized, known.references),
            left_out(said.tokenized, known.references),
        )


def _column(scores: Scores, name: str) -> np.ndarray:
    return np.array([row[name] for row in scores.per_image.values()])


def _share(sums: np.ndarray) -> float:
    return float(sums[0] / sums[1])


def foldings(references: Mapping[str, Sequence[str]]) -> list[tuple[dict[str, str], dict[str, list[str]]]]:
    """(a reference of each image, its others), as often as the image with most references has some; of an image with
    fewer, they come round again.

    Raises:
        ValueError: an image has a single reference.
    """
    if single := [image for image, group in references.items() if len(group) < 2]:
        raise ValueError(
            f"leave_one_out: {len(single)} images have a single reference, such as {single[0]}; two or more are needed"
        )
    result = []
    for fold in range(max(map(len, references.values()))):
        held = {image: group[fold % len(group)] for image, group in references.items()}
        rest = {
            image: [text for k, text in enumerate(group) if k != fold % len(group)]
            for image, group in references.items()
        }
        result.append((held, rest))
    return result


def _averaged(found: Sequence[Scored]) -> Scored:
    """The mean of the foldings; mistakes and alarms are the first one's."""
    first = found[0]
    corpus: dict[str, Any] = {}
    for name, value in first.corpus.items():
        values = [each.corpus.get(name) for each in found]
        mean = None if None in values else float(np.mean(values))  # type: ignore[arg-type]
        corpus[name] = round(mean) if isinstance(value, int) and mean is not None else mean
    per_image = {
        image: {name: float(np.mean([each.per_image[image][name] for each in found])) for name in row}
        for image, row in first.per_image.items()
    }
    statistics = {name: np.concatenate([each.statistics[name] for each in found], 1) for name in first.statistics}
    return first._replace(corpus=corpus, per_image=per_image, statistics=statistics)


def measured(name: str, statistics: Mapping[str, np.ndarray], column: np.ndarray | None) -> Measured | None:
    """What a corpus score of this name is computed from: `statistics` as `Scored` has them, or else the images' own
    scores (images,); None where neither is there."""
    plain = name.removesuffix(BY_WORD)
    kept = plain.split("_")[0] if plain.startswith("Bleu_") else plain
    kept += name[len(plain) :]
    if plain.startswith("Bleu_") and kept in statistics:
        order = int(plain.removeprefix("Bleu_"))
        return Measured(statistics[kept], lambda sums: bleu_of(sums)[..., order - 1])
    if plain == "METEOR" and kept in statistics:
        return Measured(statistics[kept], meteor_of)
    if kept in statistics:
        return Measured(statistics[kept], ratio)
    if plain.startswith("Bleu_") or plain == "METEOR" or column is None:
        return None
    return mean_of(column)


def read_nouns(path: Path, images: Sequence[str]) -> dict[str, Any]:
    """The nouns of these images, of a JSON file's.

    Raises:
        ValueError: the file has none of some image's.
    """
    table = json.loads(path.read_text(encoding="utf-8"))
    if unknown := [image for image in images if image not in table]:
        raise ValueError(f"{path}: no nouns of {len(unknown)} images, such as {unknown[0]}")
    return {image: table[image] for image in images}
