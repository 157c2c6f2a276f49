"""Word vectors learned from the training captions before the captioner is: CBOW and skip-gram."""

import hashlib
import importlib.metadata
import json
import logging
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from src.data.vocabulary import SPECIALS, UNK, Vocabulary
from src.embeddings.base import GivenEmbedding
from src.files import locked, write_atomically
from src.ranges import at_least

log = logging.getLogger(__name__)


class CBOWEmbedding(GivenEmbedding):
    """Vectors that predict a word from those around it, or with `skip_gram` those around it from a word, by negative
    sampling: Mikolov et al., 2013 (https://arxiv.org/abs/1301.3781, https://arxiv.org/abs/1310.4546), by gensim.

    They are learned from the training captions alone. A word that the vocabulary lacks is there as `<unk>`, which thus
    keeps the other words at their distances and has a vector of its own; the other specials start at random.

    Args:
        vocabulary: V words.
        size: E.
        window: words on each side, at most; for each place a number up to it is drawn.
        epochs: passes over the captions.
        negative: words drawn as not being there, for each that is.
        skip_gram: the other way round.
        seed: of all that is drawn; not the run's, so that runs share the vectors.
        frozen: the vectors do not learn with the captioner.
    """

    package = "gensim"

    def __init__(
        self,
        vocabulary: Vocabulary,
        size: int = 300,
        window: int = 5,
        epochs: int = 20,
        negative: int = 5,
        skip_gram: bool = False,
        seed: int = 0,
        frozen: bool = False,
    ) -> None:
        at_least(1, "embedding", size=size, window=window, epochs=epochs, negative=negative)
        at_least(0, "embedding", seed=seed)
        super().__init__(vocabulary, size, None, frozen)
        self.settings = {
            **{"vector_size": size, "window": window, "epochs": epochs, "negative": negative},
            **{"sg": int(skip_gram), "seed": seed, "min_count": 1},
        }

    def fit(self, captions: Iterable[Sequence[str]], cache: Path) -> None:
        index, unknown = self.vocabulary.index, SPECIALS[UNK]
        known = [[word if word in index else unknown for word in caption] for caption in captions]
        self.fill(cached_vectors(known, self.settings, cache), "skip-gram" if self.settings["sg"] else "cbow")


def cached_vectors(
    captions: Sequence[Sequence[str]], settings: Mapping[str, Any], directory: Path
) -> dict[str, np.ndarray]:
    """Each word's vector, from the cache where it holds those of these very captions and settings, else trained.

    Args:
        captions: the tokens of each.
        settings: of gensim's Word2Vec.
        directory: of the cache: a table `.npy` and its words `.json` for each, named by a digest of what made it.

    Raises:
        ImportError: gensim is not installed.
    """
    try:
        version = importlib.metadata.version("gensim")
    except importlib.metadata.PackageNotFoundError as error:
        raise ImportError("embedding=cbow needs gensim: `pip install gensim` first") from error
    content = hashlib.sha256(json.dumps(captions, ensure_ascii=False).encode()).hexdigest()
    key = {"gensim": version, "captions": content, **settings}
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:20]
    table, about = directory / f"{name}.npy", directory / f"{name}.json"
    directory.mkdir(parents=True, exist_ok=True)
    if not about.exists():
        with locked(directory / f"{name}.lock", f"the word vectors of {len(captions):,} captions"):
            if not about.exists():
                words, vectors = trained_vectors(captions, settings)
                partial = table.with_suffix(f".{os.getpid()}.partial.npy")
                np.save(partial, vectors)
                os.replace(partial, table)
                write_atomically(about, json.dumps({**key, "words": words}, ensure_ascii=False))
    words = json.loads(about.read_text(encoding="utf-8"))["words"]
    return dict(zip(words, np.load(table), strict=True))


def _hash(text: str) -> int:
    """Of a word, the same in every process, as Python's own is not."""
    return zlib.crc32(text.encode())


def trained_vectors(captions: Sequence[Sequence[str]], settings: Mapping[str, Any]) -> tuple[list[str], np.ndarray]:
    """The words of the captions and their vectors (words, size) float32. One thread trains: with several, no two
    trainings are alike."""
    from gensim.models import Word2Vec

    log.info("training word vectors on %s captions", f"{len(captions):,}")
    own = logging.getLogger("gensim")
    level = own.level
    own.setLevel(logging.ERROR)  # it warns of few captions, and of much else it informs
    try:
        vectors = Word2Vec(sentences=captions, workers=1, hashfxn=_hash, **settings).wv
    finally:
        own.setLevel(level)
    return list(vectors.index_to_key), np.asarray(vectors.vectors, np.float32)
