"""Candidate captions against references: all scores in one call, or one scorer for many calls."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from src.metrics.bleu import bleu_counts, bleu_of
from src.metrics.cider import CiderD
from src.metrics.java import INSTALL_JAVA, JavaNotFound, find_java
from src.metrics.meteor import Meteor, MeteorError, shared_meteor
from src.metrics.rouge import rouge_l
from src.metrics.tokenize import (
    cached,
    character_tokenize,
    ptb_tokenize,
    ptb_tokenize_python,
    share_of_chinese,
    word_tokenize,
)

log = logging.getLogger(__name__)

Tokenization = Literal["ptb", "character", "word", "script"]
METRICS = ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "METEOR", "ROUGE_L", "CIDEr")
TOKENIZERS = {
    "ptb": ptb_tokenize,
    "ptb-python": ptb_tokenize_python,
    "character": character_tokenize,
    "word": word_tokenize,
}


@dataclass(frozen=True)
class Scores:
    """What a set of captions scored, by pycocoevalcap's names, as fractions (CIDEr 0.46: 46 in a table).

    `corpus` has the metrics asked for (None: not computed, and `not_computed` says why), `exact_match` (share
    of images whose tokens equal one of their references'), `distinct_words` (an int: different tokens in all
    candidates) and `mean_length` (tokens a candidate). `per_image` has the same metrics and `exact_match` for
    each image. `tokenizer` is the one that was used: "ptb", "ptb-python" (there was no Java), "character" or
    "word". `statistics` has what the corpus scores that are no means of images' scores are computed from, an image a
    row: "Bleu" (images, 10), see `bleu_counts`, and "METEOR" (images, 23), see `meteor_of`. `tokenized` are the
    captions that were scored.
    """

    corpus: dict[str, float | None]
    per_image: dict[str, dict[str, float]]
    tokenizer: str
    not_computed: dict[str, str] = field(default_factory=dict)
    statistics: dict[str, np.ndarray] = field(default_factory=dict, compare=False)
    tokenized: dict[str, str] = field(default_factory=dict, compare=False, repr=False)


class CaptionScorer:
    """Scores against fixed references, which are tokenized once and whose CIDEr-D vectors are computed once.

    `references` are raw captions, one or more an image. With `tokenizer="ptb"` (English) and no Java, a
    Python likeness of the tokenizer takes its place, with a warning. `"character"` and `"word"` (which needs
    rjieba) are for Chinese. `"script"` is `"character"` where most of the references have Chinese in them, else
    `"ptb"`; it warns of references of both kinds. METEOR, where it is asked for and there is Java, starts loading
    here. In the folder `cache`, if given, tokenized references are kept for the next process. Raises ValueError for
    no references, an image without any, and an unknown metric or tokenizer.
    """

    def __init__(
        self,
        references: Mapping[str, Sequence[str]],
        *,
        tokenizer: Tokenization = "ptb",
        metrics: Sequence[str] = METRICS,
        cache: Path | None = None,
    ) -> None:
        if unknown := [name for name in metrics if name not in METRICS]:
            raise ValueError(f"unknown metrics {unknown}: choose from {', '.join(METRICS)}")
        if tokenizer not in get_args(Tokenization):
            raise ValueError(
                f"unknown tokenizer {tokenizer!r}: choose 'ptb' (English), 'character' or 'word' (Chinese), or "
                "'script' (as the references are)"
            )
        if not references:
            raise ValueError("there are no references to score against")
        if bare := [image for image, group in references.items() if not group]:
            raise ValueError(f"images without a reference: {_some(bare)}")
        if tokenizer == "script":
            tokenizer, chinese = tokenization_of(references), share_of_chinese(references)
            if 0.05 < chinese < 0.95:
                log.warning("%.0f %% of the references are Chinese: all are tokenized as %s", 100 * chinese, tokenizer)
        self.metrics = tuple(metrics)
        self.tokenizer: str = tokenizer
        self.not_computed: dict[str, str] = {}
        java = find_java()
        if tokenizer == "ptb" and java is None:
            self.tokenizer = "ptb-python"
            log.warning("No Java: a Python likeness of the PTB tokenizer takes its place. %s", INSTALL_JAVA)
        self._meteor: Meteor | None = None
        if "METEOR" in metrics:
            if tokenizer in ("character", "word"):
                self.not_computed["METEOR"] = "METEOR has no Chinese stems, synonyms or paraphrases"
            elif java is None:
                self.not_computed["METEOR"] = f"METEOR needs Java. {INSTALL_JAVA}"
            else:
                self._meteor = shared_meteor()
                self._meteor.start()
        self.tokenize = TOKENIZERS[self.tokenizer]
        self.references = cached(self.tokenize, references, cache) if cache else self.tokenize(references)
        self.cider = CiderD(self.references) if "CIDEr" in metrics else None

    def score(self, candidates: Mapping[str, str]) -> Scores:
        """Scores one raw caption for every image of the references, no more and no fewer (else ValueError).

        An empty caption is a caption: an untrained model writes them, and they score 0.
        """
        if missing := [image for image in self.references if image not in candidates]:
            raise ValueError(f"images with references but no candidate caption: {_some(missing)}")
        if extra := [image for image in candidates if image not in self.references]:
            raise ValueError(f"candidate captions for images without references: {_some(extra)}")
        references = self.references
        tokenized = self.tokenize({image: [candidates[image]] for image in references})
        corpus: dict[str, float | None] = {}
        columns: dict[str, Sequence[float] | np.ndarray] = {}
        not_computed = dict(self.not_computed)
        statistics: dict[str, np.ndarray] = {}
        if any(name.startswith("Bleu") for name in self.metrics):
            statistics["Bleu"] = counts = bleu_counts(references, tokenized)
            for order, (score, column) in enumerate(zip(bleu_of(counts.sum(0)), bleu_of(counts).T, strict=True), 1):
                corpus[f"Bleu_{order}"], columns[f"Bleu_{order}"] = float(score), column
        if "ROUGE_L" in self.metrics:
            corpus["ROUGE_L"], columns["ROUGE_L"] = rouge_l(references, tokenized)
        if self.cider is not None:
            corpus["CIDEr"], columns["CIDEr"] = self.cider.score(tokenized)
        if self._meteor is not None:  # last: it may still be loading
            try:
                corpus["METEOR"], columns["METEOR"], statistics["METEOR"] = self._meteor.score(references, tokenized)
            except (MeteorError, JavaNotFound) as error:  # not worth losing hours of training
                log.warning("METEOR was not computed: %s", error)
                not_computed["METEOR"] = str(error)
        columns = {name: columns[name] for name in METRICS if name in self.metrics and name in columns}
        corpus = {name: corpus.get(name) for name in METRICS if name in self.metrics}

        captions = [caption for (caption,) in tokenized.values()]
        columns["exact_match"] = [float(c in references[image]) for image, (c,) in tokenized.items()]
        lengths = [len(caption.split()) for caption in captions]
        corpus["exact_match"] = float(np.mean(columns["exact_match"]))
        corpus["distinct_words"] = len({word for caption in captions for word in caption.split()})
        corpus["mean_length"] = float(np.mean(lengths))
        rows = zip(*columns.values(), strict=True)
        per_image = {
            image: {name: float(value) for name, value in zip(columns, row, strict=True)}
            for image, row in zip(tokenized, rows, strict=True)
        }
        said = dict(zip(tokenized, captions, strict=True))
        return Scores(corpus, per_image, self.tokenizer, not_computed, statistics, said)


def tokenization_of(references: Mapping[str, Sequence[str]]) -> Literal["ptb", "character"]:
    """What `script` is of these references."""
    return "character" if share_of_chinese(references) > 0.5 else "ptb"


def score_captions(
    candidates: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    *,
    tokenizer: Tokenization = "ptb",
    metrics: Sequence[str] = METRICS,
) -> Scores:
    """Scores raw captions once; see CaptionScorer for what it raises, and for scoring many times."""
    return CaptionScorer(references, tokenizer=tokenizer, metrics=metrics).score(candidates)


def _some(images: Sequence[str]) -> str:
    more = f" and {len(images) - 5} more" if len(images) > 5 else ""
    return ", ".join(repr(image) for image in images[:5]) + more
