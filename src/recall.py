"""How well a captioner's matcher finds the sentences of a split's pictures, and the pictures of its sentences."""

import sys
from collections.abc import Iterator

import numpy as np
from tqdm import tqdm

from src.captioner import Captioner
from src.confidence import Calibration
from src.data.module import Batch, CaptionData
from src.decoders.base import first_images, map_tensors
from src.encoders.base import Features
from src.matcher import spoken
from src.matching import Said, log_likelihoods, matcher_of
from src.metrics.retrieval import ranks, recall, scores_of


def recall_of(
    captioner: Captioner,
    data: CaptionData,
    split: str,
    limit: int | None = None,
    rerank: int = 0,
    progress: bool = True,
) -> tuple[dict[str, float], Calibration | None]:
    """Recall at 1, 5, 10 and median rank, both ways, of the first `limit` images of a split and their captions, each of
    which is a sentence (src/metrics/retrieval.py).

    With `rerank`, `reranked_` scores besides: the first so many of each search rank again by z = cosine + w · the mean
    log-probability that the captioner gives to the sentence's words, w the matcher's own `likelihood`. Where sentences
    are sought, what it gives them on average, of the pictures it was asked about, is taken off: likely sentences fit
    everything.

    Returns:
        The scores, and `calibrated` of these pictures and sentences.
    """
    matcher = matcher_of(captioner)
    images = min(len(data.images(split)), limit or sys.maxsize)
    found: list[list[np.ndarray]] = []
    sentences: list[Said] = []
    with tqdm(total=images * (2 if rerank else 1), desc=f"matching {split}", unit="img", disable=not progress) as bar:
        for batch, seen in _batches(captioner, data, split, images):
            words, lengths, place = spoken(batch)
            with captioner.computing():
                both = matcher.pictures(seen), matcher.sentences(words, lengths), batch.index[place]
            found.append([each.cpu().numpy() for each in both])
            sentences += _said(batch) if rerank else []
            bar.update(len(batch.index))
        pictures, vectors, image = (np.concatenate(each) for each in zip(*found, strict=True))
        scores = scores_of(pictures, vectors, image)
        calibration = calibrated(pictures, vectors, image)
        if not rerank:
            return scores, calibration
        similar = pictures @ vectors.T  # (B, N)
        first = [np.argsort(-each, axis=1, kind="stable")[:, :rerank] for each in (similar, similar.T)]
        asked = np.zeros(similar.shape, bool)
        np.put_along_axis(asked, first[0], True, 1)
        np.put_along_axis(asked.T, first[1], True, 1)
        likely = np.zeros(similar.shape, np.float32)
        for batch, seen in _batches(captioner, data, split, images):
            chosen = {row: np.flatnonzero(asked[row]) for row in batch.index.tolist()}
            means = log_likelihoods(captioner, seen, [[sentences[n] for n in each] for each in chosen.values()])
            for (row, names), own in zip(chosen.items(), means, strict=True):
                likely[row, names] = own
            bar.update(len(chosen))
    usual = likely.sum(0) / asked.sum(0).clip(1)
    i2t = _first_again(similar, similar + matcher.likelihood * (likely - usual), first[0])
    t2i = _first_again(similar.T, (similar + matcher.likelihood * likely).T, first[1])
    own = image == np.arange(images)[:, None]
    described = own.any(1)
    more = recall(ranks(i2t[described], own[described]), ranks(t2i, own.T))
    return scores | {f"reranked_{name}": value for name, value in more.items()}, calibration


def calibrated(pictures: np.ndarray, sentences: np.ndarray, image: np.ndarray) -> Calibration | None:
    """Unit vectors (B, E) and (N, E), and each sentence's picture (N,) → a curve from inner products to the probability
    that a sentence is said of a picture rather than of another one, fitted on each sentence's own picture and one that
    is drawn; None of a single picture."""
    if len(pictures) < 2:
        return None
    drawn = (image + np.random.default_rng(0).integers(1, len(pictures), len(image))) % len(pictures)
    products = np.concatenate([(pictures[rows] * sentences).sum(1) for rows in (image, drawn)])
    return Calibration.fit(products, np.arange(2 * len(image)) < len(image))


def _first_again(plain: np.ndarray, again: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Scores that rank each row's `first` columns by `again`, before all others, which rank by what is `plain`."""
    scores = plain.astype(np.float64) - 1e6  # float32 would round cosines away
    np.put_along_axis(scores, first, np.take_along_axis(again, first, 1), 1)
    return scores


def _batches(captioner: Captioner, data: CaptionData, split: str, images: int) -> Iterator[tuple[Batch, Features]]:
    """The first images of a split, in order, and their features."""
    done = 0
    for batch in data.evaluation_dataloader(split):
        batch = first_images(batch, images - done)
        if not len(batch.index):
            return
        done += len(batch.index)
        batch = map_tensors(lambda x: x.to(captioner.device), batch)
        yield batch, captioner.features(batch.images)


def _said(batch: Batch) -> list[Said]:
    """The sentences that `spoken` gives, in its order, with what a captioner is given before them."""
    lengths = batch.mask.sum(-1)
    image, caption = (lengths - batch.prefix > 1).nonzero(as_tuple=True)
    places = zip(image.tolist(), caption.tolist(), strict=True)
    return [Said(batch.tokens[b, q, : int(lengths[b, q])].tolist(), int(batch.prefix[b, q])) for b, q in places]
