"""Captions and references to scores: BLEU, METEOR, ROUGE-L and CIDEr-D as pycocoevalcap computes them."""

import re


def is_fraction(name: str) -> bool:
    """Whether a score of this name is a fraction, which tables print × 100 (CIDEr counts as one)."""
    kinds = r"(bleu|self_bleu|div_|meteor|rouge|cider|spice|(ref)?clip).*|.*(accuracy|match|named|share|recall|error)"
    return re.fullmatch(kinds + r"|(reranked_)?([it]2[it]_R@\d+|rsum)", name, re.IGNORECASE) is not None
