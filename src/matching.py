"""What a captioner's matcher says of pictures and sentences, and what the captioner itself says besides."""

import hashlib
import json
from collections.abc import Sequence
from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch

from src.captioner import Captioner
from src.confidence import Calibration
from src.data.control import ControlError, asked
from src.data.features import state_digest
from src.data.tokenizer import is_chinese
from src.data.vocabulary import BOS, EOS, PAD, UNK
from src.decoders.base import select_images
from src.encoders.base import Features
from src.matcher import JointMatcher
from src.objectives.cross_entropy import linear_cross_entropy

HOW = (
    "`python -m src.train init=RUN objective=contrastive objective.caption_weight=0` trains one, and the captioner "
    "that comes with the code has one"
)
TOGETHER = 16
"""Sentences of a picture whose likelihoods are computed at once: some pictures are asked about hundreds."""
DIGESTS: "WeakKeyDictionary[Captioner, dict[str, str]]" = WeakKeyDictionary()
"""Of captioners that were asked for theirs, by their defence: a search is not to read all weights each time."""


def matcher_of(captioner: Captioner) -> JointMatcher:
    """A captioner's matcher.

    Raises:
        ValueError: it has none, or is an ensemble.
    """
    if len(captioner.members) > 1:
        raise ValueError("an ensemble has no one space of pictures and sentences: name one captioner")
    if captioner.model.matcher is None:
        raise ValueError(f"this captioner has no matcher, which finds pictures: {HOW}")
    return captioner.model.matcher


def match_calibration(captioner: Captioner) -> Calibration:
    """Inner product of a picture's and a sentence's vector → the probability that it is said of it rather than of
    another picture.

    Raises:
        ValueError: the captioner has no matcher, or it was not calibrated.
    """
    matcher_of(captioner)
    if captioner.matching is None:
        raise ValueError(
            "this captioner's matcher is not calibrated; `python -m src.evaluate model=BUNDLE data=… split=val "
            "calibrate=true` calibrates a bundle"
        )
    return captioner.matching


def digest_of(captioner: Captioner) -> str:
    """Of all that the vectors of pictures and sentences depend on, as it was when this was first asked."""
    matcher, known = matcher_of(captioner), DIGESTS.setdefault(captioner, {})
    defence = captioner.model.encoder.defence
    if repr(defence) in known:
        return known[repr(defence)]
    how = {"preprocess": captioner.preprocess.to_dict(), "tokenizer": captioner.tokenizer.name}
    how |= {"words": captioner.vocabulary.words, **({} if defence is None else {"defence": repr(defence)})}
    weights = state_digest(captioner.model.encoder, matcher)
    digest = hashlib.sha256((json.dumps(how, sort_keys=True) + weights).encode()).hexdigest()[:16]
    return known.setdefault(repr(defence), digest)


def picture_vectors(captioner: Captioner, seen: Features) -> np.ndarray:
    """Features of B pictures → unit vectors (B, E), float32."""
    with captioner.computing():
        return matcher_of(captioner).pictures(seen).float().cpu().numpy()


def sentence_vectors(captioner: Captioner, sentences: Sequence[str]) -> np.ndarray:
    """Sentences → unit vectors (N, E), float32.

    Raises:
        ValueError: one of which the captioner knows no word.
    """
    ids = [[captioner.vocabulary.index.get(word, UNK) for word in captioner.tokenizer.tokens(s)] for s in sentences]
    for sentence, own in zip(sentences, ids, strict=True):
        if not any(each != UNK for each in own):
            raise ValueError(f"“{sentence}”: the captioner knows none of these words; say it in others")
    lengths = torch.tensor([len(own) for own in ids])
    words = torch.full((len(ids), max(map(len, ids), default=1)), PAD)
    for row, own in zip(words, ids, strict=True):
        row[: len(own)] = torch.tensor(own)
    with captioner.computing():
        return matcher_of(captioner).sentences(words.to(captioner.device), lengths).float().cpu().numpy()


def unknown_words(captioner: Captioner, sentence: str) -> list[str]:
    """The words of a sentence that the captioner does not know, and a search or an alert does without."""
    words = dict.fromkeys(captioner.tokenizer.tokens(sentence))
    return [word for word in words if word not in captioner.vocabulary.index]


class Said(NamedTuple):
    """A sentence as a captioner would say it."""

    tokens: list[int]
    """BOS, control tokens, words, EOS."""
    prefix: int
    """How many of the first are given."""


def said(captioner: Captioner, sentence: str) -> Said:
    """A sentence in a captioner's words: of one of several languages under the tag of the sentence's own script, else
    under those that are asked for."""
    known, words = captioner.vocabulary.control_index, captioner.tokenizer.tokens(sentence)
    try:
        control = asked(captioner.vocabulary, language="zh" if any(map(is_chinese, words)) else "en")
    except ControlError:
        control = captioner.control
    given = [BOS, *(known[name] for name in control)]
    ids = [captioner.vocabulary.index.get(word, UNK) for word in words]
    return Said([*given, *ids, EOS], len(given))


def log_likelihoods(captioner: Captioner, seen: Features, sentences: Sequence[Sequence[Said]]) -> list[np.ndarray]:
    """How likely a captioner is to say some sentences of each of B pictures: of each the mean log-probability of its
    words and its end, in nats (n,)."""
    means = [np.zeros(len(own), np.float32) for own in sentences]
    for start in range(0, max(map(len, sentences), default=0), TOGETHER):
        some = {b: own[start : start + TOGETHER] for b, own in enumerate(sentences) if len(own) > start}
        features = select_images(seen, torch.tensor(list(some), device=captioner.device))
        for (b, own), found in zip(some.items(), _means(captioner, features, list(some.values())), strict=True):
            means[b][start : start + len(own)] = found[: len(own)]
    return means


def _means(captioner: Captioner, seen: Features, sentences: Sequence[Sequence[Said]]) -> np.ndarray:
    """As `log_likelihoods`, of one sentence or more of each picture, padded: (B, Q)."""
    longest = max(len(each.tokens) for own in sentences for each in own)
    tokens = torch.full((len(sentences), max(map(len, sentences)), longest), PAD)
    real = torch.zeros(tokens.shape, dtype=torch.bool)
    for b, own in enumerate(sentences):
        for q, each in enumerate(own):
            tokens[b, q, : len(each.tokens)] = torch.tensor(each.tokens)
            real[b, q, each.prefix : len(each.tokens)] = True
    tokens, real = tokens.to(captioner.device), real[..., 1:].to(captioner.device)
    decoder = captioner.model.decoder
    with captioner.computing():
        lengths = (tokens != PAD).sum(-1) - 1
        hidden = decoder(decoder.embed(tokens[..., :-1]), decoder.prepare(seen), lengths=lengths).hidden
        _, nats, _ = linear_cross_entropy(hidden[real], decoder.classifier, tokens[..., 1:][real])
        sums = torch.zeros(real.shape, device=real.device).masked_scatter_(real, nats.float()).sum(-1)
        return (-sums / real.sum(-1).clamp(min=1)).cpu().numpy()
