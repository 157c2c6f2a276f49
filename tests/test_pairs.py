"""Every choice of encoder, attention, decoder, embedding, objective and generation with every choice of the others: a
step of training and a search, or a sentence that says why not. Rows of choices are put together so that each covers as
many pairs as it can; where a row is refused, its pairs are tried alone."""

import itertools
import random
from pathlib import Path

import pytest
import torch

from src.bundle import Bundle, bundle_config, save_bundle
from src.check import check
from src.config import CONF
from src.data.module import CaptionData
from src.model import ConfigError, build, instantiate
from src.objectives import Loss
from src.train import build_data
from tests.test_configs import composed, tiny

GROUPS = ("encoder", "attention", "decoder", "embedding", "objective", "generation")
SMALL = {
    "encoder": ["encoder.width=16"],
    "attention": ["attention.width=16"],
    "decoder": ["decoder.hidden=16"],
    "objective": [],
    "embedding": ["embedding.size=12"],
    "generation": ["generation.max_length=5"],
    "cnn": ["encoder.backbone.channels=[8,8,8,8]"],
    "a vector": ["encoder=cnn", "encoder.backbone.channels=[8,8]", "encoder.backbone.head=[8]"],
    "vit": ["encoder.backbone.name=vit_tiny_patch16_224"],
    "self_critical": ["objective.from_random=true", "objective.max_length=5"],
    "adversarial": ["objective.from_random=true", "objective.max_length=5"],
}
"""Sizes of each group and of some choices."""
CHOICES = {group: sorted(path.stem for path in Path(CONF).glob(f"{group}/*.yaml")) for group in GROUPS}
CHOICES["encoder"].append("a vector")  # of `cnn` with a head
FIRST = {
    "encoder": "cnn",
    "attention": "additive",
    "decoder": "lstm_attn",
    "embedding": "learned",
    "objective": "cross_entropy",
    "generation": "greedy",
}
"""What goes with a pair that is tried alone."""
TEACHERS: dict[str, Path] = {}
"""Bundles that read pictures, or regions."""

Row = dict[str, str]
Pair = tuple[tuple[str, str], tuple[str, str]]


def kind_of(row: Row) -> str:
    return "regions" if row["encoder"] == "precomputed" else "pictures"


def pairs_of(row: Row) -> set[Pair]:
    return set(itertools.combinations([(group, row[group]) for group in GROUPS], 2))


def row_for(pairs: set[Pair], draw: random.Random) -> Row:
    """A row that begins with one of the pairs, and takes of each other group what covers the most of them."""
    row = dict(draw.choice(sorted(pairs)))
    for group in GROUPS:
        if group not in row:
            options = CHOICES[group]
            counts = []
            for option in options:
                both = (sorted([(group, option), each], key=lambda c: GROUPS.index(c[0])) for each in row.items())
                counts.append(sum((a, b) in pairs for a, b in both))
            row[group] = draw.choice([o for o, n in zip(options, counts, strict=True) if n == max(counts)])
    return row


def overrides_of(row: Row) -> list[str]:
    found = []
    for group in GROUPS:
        choice = row[group]
        found += ([] if choice == "a vector" else [f"{group}={choice}"]) + SMALL[group] + SMALL.get(choice, [])
    if row["objective"] == "distillation":
        found.append(f"objective.teachers=[{TEACHERS[kind_of(row)]}]")
    if "backbone" in composed(found + ["data.root=x"])["encoder"]:
        found.append("encoder.backbone.weights=random")
    return found


def take_a_step(row: Row, data_overrides: list[str], batches: dict[str, CaptionData]) -> str | None:
    """A step of training and a search; the sentence, where the row is refused."""
    config = composed([*data_overrides, *overrides_of(row)])
    try:
        check(config)
    except ConfigError as refusal:
        return str(refusal)
    torch.manual_seed(0)
    kind = kind_of(row)
    if kind not in batches:
        batches[kind] = build_data(config)
    data = batches[kind]
    model = build(config, data.vocabulary).train()
    model.decoder.embedding.fit(data.training_tokens(), data.cache_dir / "embeddings")
    objective = instantiate(config["objective"]).train()
    objective.begin(model, data)
    generation = instantiate(config["generation"])
    generation.bind(data.vocabulary, data.tokenizer)
    batch = next(iter(data.train_dataloader()))
    loss = objective(model, batch)
    assert isinstance(loss, Loss) and int(loss.count) > 0 and torch.isfinite(loss.total)
    loss.total.backward()
    gradients = [p.grad for p in model.decoder.parameters() if p.grad is not None]
    assert gradients and all(torch.isfinite(g).all() for g in gradients)
    model.eval()
    with torch.no_grad():
        found = generation(model.decoder, model.memory(batch.images), attention=True)
    assert len(found.tokens) == len(batch.index) and (found.lengths[:, 0] >= 1).all()
    assert (found.attention is not None) == model.decoder.attends
    return None


@pytest.mark.slow
def test_every_pair_takes_a_step_or_is_refused_with_a_sentence(shapes, tmp_path, monkeypatch):
    data_overrides = [*tiny(shapes, tmp_path), "data.cache=false", "data.batch_size=3", "trainer.accelerator=cpu"]
    for encoder in ("cnn", "precomputed"):
        row = FIRST | {"encoder": encoder}
        config = composed([*data_overrides, *overrides_of(row)])
        vocabulary, bundle = build_data(config).vocabulary, tmp_path / encoder
        save_bundle(bundle, Bundle(build(config, vocabulary).eval(), vocabulary, bundle_config(config, {})))
        monkeypatch.setitem(TEACHERS, kind_of(row), bundle)
    draw, batches = random.Random(0), {}
    groups = [[(group, choice) for choice in CHOICES[group]] for group in GROUPS]
    wanted: set[Pair] = set(itertools.chain(*(itertools.product(a, b) for a, b in itertools.combinations(groups, 2))))
    total, rows, refused = len(wanted), 0, {}
    while wanted:
        row = row_for(wanted, draw)
        rows += 1
        if take_a_step(row, data_overrides, batches) is None:
            wanted -= pairs_of(row)
            continue
        for pair in sorted(pairs_of(row) & wanted):
            alone = {"decoder": "lstm"} if "a vector" in dict(pair).values() else {}
            sentence = take_a_step(FIRST | alone | dict(pair), data_overrides, batches)
            wanted.discard(pair)
            if sentence is not None:
                refused[pair] = sentence
    print(f"{total} pairs in {rows} rows; refused: {len(refused)}")
    attending = {"lstm_attn", "gru_attn", "updown", "transformer"}
    for ((_, choice), (_, second)), sentence in refused.items():
        if choice == "a vector":
            assert second in attending
            assert sentence.startswith("encoder gives one vector and decoder attends over regions: choose decoder=lstm")
        elif choice == "precomputed":
            assert second == "adversarial_training" and "regions computed beforehand: choose another" in sentence
        else:
            assert choice == "hard" and second in ("self_critical", "variational", "adversarial"), (
                choice,
                second,
            )
            assert "choose another attention than hard" in sentence
    assert total > 500
