"""A matcher's recall on a split, as looking at each pair by itself finds it."""

import random

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from src.captioner import Captioner
from src.data.module import CaptionData
from src.data.tokenizer import EnglishTokenizer
from src.data.transforms import Preprocess
from src.data.vocabulary import BOS, EOS
from src.generation import GreedySearch
from src.metrics.retrieval import recall
from src.model import build
from src.recall import recall_of
from tests.conftest import tiny_config

WORDS = ["red", "green", "blue", "square", "circle", "on", "grey", "near", "two"]


@pytest.mark.parametrize("decoder", ["lstm_attn", "transformer"])
def test_recall_and_what_likelihood_makes_of_it(decoder, shapes, tmp_path):
    numbers = random.Random(0)
    rows = [(f"images/{b % 16:02d}.png", " ".join(numbers.sample(WORDS, numbers.randint(2, 6)))) for b in range(48)]
    assert len({text for _, text in rows}) == 48, "sentences that are the same would rank by rounding"
    (tmp_path / "train.tsv").write_text("".join(f"{image}\t{text}\n" for image, text in rows), encoding="utf-8")
    (tmp_path / "images").symlink_to(shapes / "images")
    data = CaptionData(tmp_path, Preprocess(16), EnglishTokenizer(), train="train.tsv", min_count=1, eval_batch_size=5)
    matcher = {
        "_target_": "src.matcher.JointMatcher",
        "size": 8,
        "words": 6,
        "hidden": 5,
        "heads": 2,
        "likelihood": 3.0,
    }
    torch.manual_seed(0)
    model = build({**tiny_config(decoder), "matcher": matcher}, data.vocabulary).eval()
    captioner = Captioner(
        model, data.vocabulary, data.tokenizer, data.preprocess, GreedySearch(max_length=5), "cpu", "32-true"
    )
    table = data.tables["train"]
    images, captions = table.images[:13], table.captions[:13]
    seen = [model.features(data.preprocess.open(shapes / name).unsqueeze(0)) for name in images]
    ids = [[data.vocabulary.index[word] for word in data.tokenizer.tokens(text)] for own in captions for text in own]
    image = np.repeat(np.arange(13), [len(own) for own in captions])
    cosine, likely = np.zeros((2, len(images), len(ids)))
    with torch.no_grad():
        for b, features in enumerate(seen):
            for n, own in enumerate(ids):
                vector = model.matcher.sentences(torch.tensor([own]), torch.tensor([len(own)]))
                cosine[b, n] = float((model.matcher.pictures(features) * vector).sum())
                words = torch.tensor([[[BOS, *own, EOS]]])
                hidden = model.decoder(model.decoder.embed(words[..., :-1]), model.memory(features)).hidden
                likely[b, n] = -F.cross_entropy(model.decoder.logits(hidden)[0, 0], words[0, 0, 1:])

    def ranked(first: list[list[int]], z: np.ndarray, own: np.ndarray) -> np.ndarray:
        """Of each row, where the first of its own stands: the first few by z, then the others in their order."""
        found = []
        for row, order in enumerate(first):
            again = sorted(order[:12], key=lambda column: -z[row, column]) + order[12:]
            found.append(min(place for place, column in enumerate(again) if own[row, column]))
        return np.array(found)

    own = image == np.arange(13)[:, None]
    orders = [np.argsort(-each, axis=1, kind="stable").tolist() for each in (cosine, cosine.T)]
    asked = np.zeros(cosine.shape, bool)
    for b, order in enumerate(orders[0]):
        asked[b, order[:12]] = True
    for n, order in enumerate(orders[1]):
        asked[order[:12], n] = True
    usual = np.array([likely[asked[:, n], n].mean() if asked[:, n].any() else 0 for n in range(len(ids))])
    ways = [(cosine, cosine.T), (cosine + 3 * (likely - usual), (cosine + 3 * likely).T)]
    plain, again = (recall(ranked(orders[0], i2t, own), ranked(orders[1], t2i, own.T)) for i2t, t2i in ways)
    found, matching = recall_of(captioner, data, "train", 13, 12, progress=False)
    assert found == pytest.approx(plain | {f"reranked_{name}": value for name, value in again.items()})
    assert plain != again
    assert recall_of(captioner, data, "train", 13, progress=False)[0] == pytest.approx(plain)
