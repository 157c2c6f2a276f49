"""Captions written for these tests: odd punctuation, repeated n-grams, captions of one word or none."""

import json
from pathlib import Path

import pytest

Captions = dict[str, list[str]]
DATA = Path(__file__).parents[1] / "data" / "captions_fixture.json"


@pytest.fixture(scope="session")
def raw() -> tuple[Captions, Captions]:
    """(references, candidates) as written."""
    sets = json.loads(DATA.read_text(encoding="utf-8"))
    references = {image: entry["references"] for image, entry in sets.items()}
    return references, {image: [entry["candidate"]] for image, entry in sets.items()}


@pytest.fixture(scope="session")
def tokenized(raw: tuple[Captions, Captions]) -> tuple[Captions, Captions]:
    """(references, candidates) in PTB tokens; by Java where there is one."""
    from src.metrics.java import find_java
    from src.metrics.tokenize import ptb_tokenize, ptb_tokenize_python

    tokenize = ptb_tokenize if find_java() else ptb_tokenize_python
    return tokenize(raw[0]), tokenize(raw[1])
