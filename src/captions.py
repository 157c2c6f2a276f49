"""What a captioner says of a picture, from what its search found. Needs neither torch nor the captioner."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from src.confidence import Calibration, mean_log_prob
from src.data.tokenizer import Tokenizer
from src.data.vocabulary import EOS, Vocabulary


class Caption(NamedTuple):
    """One generated caption."""

    text: str
    words: list[str]
    log_probs: list[float]
    """Of each word; the end token's comes last where the caption ended by itself."""
    score: float
    """What the search ranked by."""
    attention: np.ndarray | None = None
    """(words, R), where asked for and the captioner attends."""
    boxes: np.ndarray | None = None
    """(R, 4): the regions' x1, y1, x2, y2 in [0, 1] of the picture as the encoder saw it."""
    alternatives: "Sequence[Caption]" = ()
    """The search's other captions, best first, where asked for."""
    confidence: float | None = None
    """The probability in (0, 1) that it is a good one, where the captioner is calibrated (src/confidence.py)."""
    picture: str = ""
    """The path or address of the picture that it is of; empty of one in memory."""
    unfamiliar: float | None = None
    """The share of pictures like those that the captioner learned from that are nearer to these than this picture, in
    [0, 1], where the captioner has a detector (src/detection.py)."""
    stability: float | None = None
    """How much of the words' probability stays where the picture is changed a little, in (0, 1], where asked for."""


class Found(NamedTuple):
    """What a search found, as arrays; fields as in `src.generation.Hypotheses`."""

    tokens: np.ndarray
    log_probs: np.ndarray
    scores: np.ndarray
    lengths: np.ndarray
    finished: np.ndarray
    attention: np.ndarray | None


class Places(NamedTuple):
    """Where a batch's regions lie."""

    boxes: np.ndarray
    """(B, R, 4)."""
    mask: np.ndarray
    """(B, R): True where a region is real."""


def captions_of(
    found: Found,
    vocabulary: Vocabulary,
    tokenizer: Tokenizer,
    calibration: Calibration | None = None,
    places: Places | None = None,
    alternatives: int = 0,
    distinct: bool = True,
) -> list[Caption]:
    """The best of what was found of each image, with up to `alternatives` others, of those that read the same the best
    only, where they are to be `distinct`. Attention is given where there is one and the `places` are known."""
    tokens, log_probs, scores, lengths = (x.tolist() for x in found[:4])

    def caption(b: int, k: int) -> Caption:
        length = lengths[b][k]
        ended = length < len(tokens[b][k]) and tokens[b][k][length] == EOS
        words = [vocabulary.words[i] for i in tokens[b][k][:length]]
        attention = boxes = None
        if found.attention is not None and places is not None:
            there = places.mask[b]  # padding has no place
            attention, boxes = found.attention[b, k, :length][:, there], places.boxes[b][there]
        said = log_probs[b][k][: length + ended]
        confidence = None if calibration is None else calibration(mean_log_prob(said))
        return Caption(tokenizer.join(words), words, said, scores[b][k], attention, boxes, confidence=confidence)

    result = []
    for b in range(len(tokens)):
        real = [k for k in range(len(tokens[b])) if scores[b][k] > -np.inf] or [0]
        every = [caption(b, k) for k in real[: None if alternatives else 1]]
        if distinct:
            best = {each.text: each for each in reversed(every)}
            every = [each for each in every if best[each.text] is each]
        result.append(every[0]._replace(alternatives=every[1 : alternatives + 1]))
    return result
