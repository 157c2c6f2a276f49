"""Captions without a captioner: what anything that looks at pictures should beat.

Each baseline is called with the data, the split, and how features are computed, and gives a caption for every image of
the split, made of the training captions alone; `HumanCaptions` gives None, for "the references themselves".
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from src import help
from src.data.module import CaptionData
from src.decoders.base import map_tensors
from src.encoders.base import Encoder
from src.metrics.cider import ORDERS
from src.model import ConfigError, instantiate
from src.ranges import at_least

log = logging.getLogger(__name__)

Computing = Callable[[Encoder, dict[str, Any], list[str]], None]
"""(encoder, its config, splits) → the data's features are cached, where that is asked for."""


class TypicalCaption:
    """The most typical training caption, for every image: the one with the highest mean similarity to all others
    (`CaptionVectors`)."""

    def __call__(self, data: CaptionData, split: str, computing: Computing) -> dict[str, str]:
        texts = [text for group in data.tables["train"].captions for text in group]
        vectors = CaptionVectors(data.training_tokens())
        best = texts[int(vectors.typicality().argmax())]
        log.info("the most typical of %d training captions: “%s”", len(texts), best)
        return dict.fromkeys(data.tables[split].images, best)


class RandomCaptions:
    """A caption of a training image drawn at random: what the words' frequencies alone are worth.

    Args:
        seed: of the drawing.
    """

    def __init__(self, seed: int = 0) -> None:
        at_least(0, "baseline", seed=seed)
        self.seed = seed

    def __call__(self, data: CaptionData, split: str, computing: Computing) -> dict[str, str]:
        random, groups = np.random.default_rng(self.seed), data.tables["train"].captions
        found = {}
        for image in data.tables[split].images:
            group = groups[int(random.integers(len(groups)))]
            found[image] = group[random.integers(len(group))]
        return found


class NearestNeighbours:
    """Of the captions of the most similar training images, the one on which they agree most (Devlin et al., 2015,
    https://arxiv.org/abs/1505.04467): images by the cosine of a backbone's mean features, captions by `CaptionVectors`.

    Args:
        encoder: a choice of conf/encoder, whose backbone says what is similar.
        transform: a choice of conf/transform.
        neighbours: training images looked at.
        consensus: how many of the most similar other captions a caption's mean similarity is taken over, so that it
            need not agree with all of a mixed crowd.
    """

    def __init__(
        self,
        encoder: str = "efficientnet_lite0",
        transform: str = "squash",
        neighbours: int = 60,
        consensus: int = 125,
    ) -> None:
        at_least(1, "baseline", neighbours=neighbours, consensus=consensus)
        for group, choice in (("encoder", encoder), ("transform", transform)):
            if choice not in help.choices(group):
                raise ConfigError(help.no_choice(f"baseline.{group}", choice, help.choices(group)))
        self.config = {
            part: help.choice_fields(part, name) for part, name in (("encoder", encoder), ("transform", transform))
        }
        if "backbone" not in self.config["encoder"]:
            raise ConfigError(f"baseline.encoder={encoder}: it has no backbone to look with; choose another")
        self.neighbours, self.consensus = neighbours, consensus

    def __call__(self, data: CaptionData, split: str, computing: Computing) -> dict[str, str]:
        encoder = instantiate(self.config["encoder"] | {"frozen": True})
        computing(encoder, self.config["encoder"], ["train", split])
        known, asked = (_pooled(data, name, encoder) for name in ("train", split))
        groups = data.tables["train"].captions
        texts = [text for group in groups for text in group]
        first = np.concatenate([[0], np.cumsum([len(group) for group in groups])])
        vectors = CaptionVectors(data.training_tokens())
        itself = split == "train"
        found = {}
        for place, image in enumerate(tqdm(data.tables[split].images, desc="nearest neighbours", unit="img")):
            likeness = known @ asked[place]
            if itself:
                likeness[place] = -np.inf  # its own captions are no neighbour's
            count = min(self.neighbours, len(likeness) - itself)
            nearest = np.argpartition(-likeness, count - 1)[:count]
            rows = np.concatenate([np.arange(first[i], first[i + 1]) for i in np.sort(nearest)])
            found[image] = texts[rows[self._agreed(vectors.similarities(rows))]]
        return found

    def _agreed(self, similar: np.ndarray) -> int:
        """(K, K) similarities → the caption with the highest mean over its `consensus` most similar others."""
        np.fill_diagonal(similar, -np.inf)
        count = min(self.consensus, len(similar) - 1)
        if count < 1:
            return 0
        most = np.partition(similar, -count, axis=1)[:, -count:]
        return int(most.mean(1).argmax())


class HumanCaptions:
    """The references themselves, each against the others of its image: comes with `leave_one_out`."""

    def __call__(self, data: CaptionData, split: str, computing: Computing) -> None:
        return None


def _pooled(data: CaptionData, split: str, encoder: Encoder) -> np.ndarray:
    """(images, D): each image's mean features, of length 1."""
    rows = []
    device = next(encoder.backbone.parameters()).device
    with torch.inference_mode():
        for batch in tqdm(data.evaluation_dataloader(split), desc=f"features of {split}", unit="batch"):
            images = map_tensors(lambda x: x.to(device), batch.images)
            regions = encoder.frozen_regions(images) if images.dtype == torch.uint8 else images
            rows.append(regions.float().mean(1).cpu().numpy())
    found = np.concatenate(rows)
    return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)


class CaptionVectors:
    """Captions as tf-idf vectors of their n-grams of one to four words, each order of length 1: the mean of the orders'
    cosines is CIDEr (Vedantam et al., 2015, https://arxiv.org/abs/1411.5726, equation 2) of one against another.

    Args:
        captions: the words of each; all of them are the collection of the document frequencies.
    """

    def __init__(self, captions: Iterable[Sequence[str]]) -> None:
        index: dict[tuple[str, ...], int] = {}
        ids: list[int] = []
        ends: list[int] = []
        for words in captions:
            for order in range(1, ORDERS + 1):
                ids += [index.setdefault(n, len(index)) for n in zip(*(words[k:] for k in range(order)), strict=False)]
                ends.append(len(ids))
        flat = np.array(ids, dtype=np.int64)
        bounds = np.array([0, *ends], dtype=np.int64)
        # Count each n-gram of a caption once, with its frequency.
        row_of = np.repeat(np.arange(len(ends)), np.diff(bounds))
        keys, counts = np.unique(row_of * max(len(index), 1) + flat, return_counts=True)
        row_of, self.ids = keys // max(len(index), 1), keys % max(len(index), 1)
        frequency = np.bincount(self.ids, minlength=len(index))
        captions_in_all = max(len(ends) // ORDERS, 1)
        weights = counts * np.log(captions_in_all / np.maximum(frequency, 1))[self.ids]
        norms = np.sqrt(np.bincount(row_of, weights**2, minlength=len(ends)))
        self.weights = (weights / np.where(norms > 0, norms, 1)[row_of] / np.sqrt(ORDERS)).astype(np.float32)
        caption_of = row_of // ORDERS
        self.starts = np.searchsorted(caption_of, np.arange(len(ends) // ORDERS + 1))
        self.size = len(index)

    def typicality(self) -> np.ndarray:
        """(captions,): each one's mean similarity to all, itself included."""
        total = np.bincount(self.ids, self.weights, minlength=self.size)
        count = len(self.starts) - 1
        caption_of = np.repeat(np.arange(count), np.diff(self.starts))
        return np.bincount(caption_of, self.weights * total[self.ids], minlength=count) / count

    def similarities(self, rows: np.ndarray) -> np.ndarray:
        """(K, K) similarities in [0, 1] of some captions."""
        spans = [np.arange(self.starts[row], self.starts[row + 1]) for row in rows]
        places = np.concatenate(spans)
        _, columns = np.unique(self.ids[places], return_inverse=True)
        dense = np.zeros((len(rows), columns.max(initial=-1) + 1), dtype=np.float32)
        dense[np.repeat(np.arange(len(rows)), [len(span) for span in spans]), columns] = self.weights[places]
        return dense @ dense.T
