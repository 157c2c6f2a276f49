import numpy as np
import pytest
import torch

from src.metrics import is_fraction, retrieval
from src.metrics.retrieval import RETRIEVAL, GatheredVectors, ranks, recall, scores_of


def test_ranks_by_hand():
    scores = np.array([[0.9, 0.1, 0.5], [0.2, 0.2, 0.3], [0.3, 0.2, 0.1]])
    assert ranks(scores, np.eye(3, dtype=bool)).tolist() == [0, 2, 2]  # what scores as much comes before
    own = np.array([[False, True, True], [True, False, False], [True, True, True]])
    assert ranks(scores, own).tolist() == [1, 2, 0]  # the best of one's own counts


def test_recall_by_hand():
    found = recall(np.array([0, 4, 5, 20]), np.array([0, 0, 9, 10, 3]))
    assert [found[f"i2t_R@{k}"] for k in (1, 5, 10)] == [0.25, 0.5, 0.75] and found["i2t_median_rank"] == 5.5
    assert [found[f"t2i_R@{k}"] for k in (1, 5, 10)] == [0.4, 0.6, 0.8] and found["t2i_median_rank"] == 4
    assert found["rsum"] == pytest.approx(3.3) and tuple(found) == RETRIEVAL
    assert [name for name in RETRIEVAL if not is_fraction(name)] == ["i2t_median_rank", "t2i_median_rank"]


def drawn(images=23, captions=5, size=7):
    rng = np.random.default_rng(0)
    pictures = rng.standard_normal((images, size)).astype(np.float32)
    image = np.repeat(np.arange(images), captions)[rng.permutation(images * captions)]
    sentences = (pictures[image] + 0.8 * rng.standard_normal((len(image), size))).astype(np.float32)
    return pictures, sentences, image


def test_in_blocks_it_is_what_sorting_says(monkeypatch):
    pictures, sentences, image = drawn()
    i2t = [min(np.flatnonzero(image[np.argsort(-(sentences @ p))] == b)) for b, p in enumerate(pictures)]
    t2i = [int(np.flatnonzero(np.argsort(-(pictures @ s)) == b)[0]) for b, s in zip(image, sentences, strict=True)]
    expected = recall(np.array(i2t), np.array(t2i))
    assert 0.1 < expected["t2i_R@1"] < 0.9
    assert scores_of(pictures, sentences, image) == expected
    monkeypatch.setattr(retrieval, "BLOCK", 4)
    assert scores_of(pictures, sentences, image) == expected
    undescribed = np.concatenate([pictures, -pictures[:1]])
    assert scores_of(undescribed, sentences, image)["i2t_R@1"] == expected["i2t_R@1"]


def test_gathered_in_batches_of_any_order():
    pictures, sentences, image = drawn()
    gathered = GatheredVectors(7)
    for batch in ([9, 3, 20], [i for i in range(23) if i not in (9, 3, 20)]):
        mine = [n for n, b in enumerate(image) if b in batch]
        place = torch.tensor([batch.index(image[n]) for n in mine])
        gathered.update(
            torch.tensor(batch) + 100, torch.from_numpy(pictures[batch]), torch.from_numpy(sentences[mine]), place
        )
    assert gathered.compute() == pytest.approx(scores_of(pictures, sentences, image))
