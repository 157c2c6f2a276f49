"""A captioner on a split of data → scores.json and its companions."""

import csv
import hashlib
import json
import logging
import os
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import src
from src.captioner import Caption, Captioner
from src.config import ROOT
from src.data.control import REFERENCE, asked_length, length_token, nearest_length
from src.data.features import state_digest
from src.data.module import CaptionData
from src.decoders.base import map_tensors
from src.files import write_atomically
from src.metrics.captions import METRICS, CaptionScorer
from src.metrics.named import named_shares
from src.objectives.cross_entropy import CrossEntropy
from src.report import Example, evenly, nothing, score_text, write_report

log = logging.getLogger(__name__)


def code_version() -> str:
    """The project's version with its git revision, where there is one."""
    try:
        command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
        revision = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return src.__version__
    return f"{src.__version__}+{revision}"


def evaluate(
    captioner: Captioner,
    data: CaptionData,
    split: str,
    output: Path,
    *,
    metrics: Sequence[str] = METRICS,
    nouns: Path | None = None,
    pictures: int = 24,
    meta: Mapping[str, Any] | None = None,
    limit: int | None = None,
    length: int | str | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Caption every image of a split with the captioner's own search, score, and write to `output`: scores.json (flat,
    fractions), meta.json, captions.tsv, per_image.csv, report.html.

    Args:
        captioner: what is evaluated.
        data: with the captioner's own preprocessing, tokenizer and vocabulary.
        split: train, val or test.
        output: the folder to write to.
        metrics: which of pycocoevalcap's scores.
        nouns: a JSON file of the nouns each picture shows, by part; adds `<part>_named`.
        pictures: how many the report shows, evenly spread over the split.
        meta: what else to record.
        limit: only that many images, for a trial.
        length: what captions are asked for, as `Captioner.ask` was told, or `reference`: each image's caption is asked
            for the number of words of its own first reference, or the nearest that the captioner knows. Adds
            `length_within_1`, the share of captions that are at most a word longer or shorter than was asked for.
        progress: show a bar.

    Returns:
        What scores.json holds.
    """
    images = data.images(split)
    names = images.images[:limit]
    shown = evenly(len(names), pictures)
    references = {name: images.captions[i] for i, name in enumerate(names)}
    scorer = CaptionScorer(references, tokenizer=data.tokenizer.evaluation, metrics=metrics)  # METEOR begins to load
    wanted = wanted_lengths(captioner, list(references.values()), data, length)
    captions: list[Caption] = []
    likelihood = CrossEntropy(label_smoothing=0.0)
    tokens = correct = nats = 0.0
    captioner.model.eval()
    with tqdm(total=len(names), desc=f"captioning {split}", unit="img", disable=not progress) as bar:
        for batch in data.evaluation_dataloader(split):
            batch = map_tensors(lambda x: x.to(captioner.device), batch)
            with (
                torch.no_grad(),  # inference mode would cast the weights anew at every step
                torch.autocast(captioner.device.type, captioner.dtype, enabled=captioner.dtype is not None),
            ):
                seen = captioner.model.encoder(batch.images)
                batch = batch._replace(images=seen)
                loss = likelihood(captioner.model, batch)
            tokens += float(loss.count)
            correct += float(loss.logs["token_accuracy"])
            nats += float(loss.logs["cross_entropy"])
            first = len(captions)
            prefix = None
            if length == REFERENCE:
                asked_for = wanted[first : first + len(batch.index)]
                asked_for += [asked_for[-1]] * (len(batch.index) - len(asked_for))  # of images beyond the limit
                index = captioner.vocabulary.control_index
                prefix = torch.tensor(
                    [[index[name] for name in (*captioner.control, length_token(words))] for words in asked_for]
                )
            found = captioner.captions(captioner.search(seen, attention=True, prefix=prefix), seen=seen)
            captions += [c if first + i in shown else c._replace(attention=None) for i, c in enumerate(found)]
            bar.update(len(found))
            if len(captions) >= len(names):
                break
    captions = captions[: len(names)]

    candidates = {name: caption.text for name, caption in zip(names, captions, strict=True)}
    result = scorer.score(candidates)
    scores: dict[str, Any] = dict(result.corpus)
    scores["next_token_accuracy"] = correct / max(tokens, 1)
    scores["cross_entropy"] = nats / max(tokens, 1)
    if wanted:
        near = [abs(len(c.words) - words) <= 1 for c, words in zip(captions, wanted, strict=True)]
        scores["length_within_1"] = sum(near) / len(near)
    if nouns is not None:
        table = json.loads(Path(nouns).read_text(encoding="utf-8"))
        scores |= named_shares(candidates, {name: table[name] for name in names})
    scores["images"] = len(names)
    scores["encoder_weights"] = captioner.model.encoder.backbone.weights_used

    record = {
        "model_weights": state_digest(captioner.model),
        "data": data.root.resolve().name,
        "split": split,
        "limit": limit,
        "references": references_digest(data, split, limit),
        "metrics": list(metrics),
        "tokenization": result.tokenizer,
        "generation": captioner.config.get("generation"),
        "control": captioner.control,
        "length": length,
        "not_computed": result.not_computed,
        "code": code_version(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        **(meta or {}),
    }
    output.mkdir(parents=True, exist_ok=True)
    (output / "meta.json").unlink(missing_ok=True)
    write_atomically(output / "scores.json", json.dumps(scores, indent=2, ensure_ascii=False) + "\n")
    write_atomically(output / "captions.tsv", "".join(f"{name}\t{text}\n" for name, text in candidates.items()))
    _write_per_image(output / "per_image.csv", candidates, result.per_image)
    examples = [
        Example(
            data.root / names[i],
            captions[i].text,
            captions[i].words,
            captions[i].attention,
            captions[i].boxes,
            references[names[i]],
            result.per_image[names[i]],
            None if data.has_picture(names[i]) else nothing(),
        )
        for i in shown
    ]
    write_report(
        output / "report.html",
        title=f"Captions of {data.root.name}, {split}",
        scores=scores,
        not_computed=result.not_computed,
        meta=record,
        examples=examples,
        preprocess=captioner.preprocess,
    )
    # Last, so that it never stands beside older results.
    write_atomically(output / "meta.json", json.dumps(record, indent=2, ensure_ascii=False, default=str) + "\n")
    return scores


def wanted_lengths(
    captioner: Captioner, references: Sequence[Sequence[str]], data: CaptionData, length: int | str | None
) -> list[int]:
    """How many words each image's caption is asked for; empty where no length is. The search is let go on for as many.

    Raises:
        ControlError: the captioner does not know the length, or none.
    """
    if length is None:
        return []
    vocabulary = captioner.vocabulary
    if length == REFERENCE:
        first = (len(data.tokenizer.tokens(group[0])) for group in references)
        wanted = [nearest_length(vocabulary, words) for words in first]
    else:
        wanted = [asked_length(vocabulary, length)] * len(references)
    captioner.generation.max_length = max(captioner.generation.max_length, *wanted)
    return wanted


def references_digest(data: CaptionData, split: str, limit: int | None = None) -> str:
    """A digest of a split's images, in order, and their references."""
    table = data.tables[split]
    rows = list(zip(table.images, table.captions, strict=True))[:limit]
    return hashlib.sha256(json.dumps(rows, ensure_ascii=False).encode()).hexdigest()[:16]


def _write_per_image(path: Path, captions: Mapping[str, str], scores: Mapping[str, Mapping[str, float]]) -> None:
    partial = path.with_name(path.name + ".partial")
    columns = list(next(iter(scores.values())))
    with partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "caption", *columns])
        writer.writerows([name, text, *(scores[name][c] for c in columns)] for name, text in captions.items())
    os.replace(partial, path)


def score_table(scores: Mapping[str, Any], not_computed: Mapping[str, str]) -> str:
    """Scores as text, fractions × 100."""
    lines = []
    for name, value in scores.items():
        reason = f" ({not_computed.get(name, 'no reason given')})" if value is None else ""
        lines.append(f"  {name:<22}{score_text(name, value)}{reason}")
    return "\n".join(lines)


def report_scores(title: str, output: Path) -> dict[str, Any]:
    """Print what a folder of results holds, and where its report is; returns the scores."""
    scores = json.loads((output / "scores.json").read_text(encoding="utf-8"))
    meta = json.loads((output / "meta.json").read_text(encoding="utf-8"))
    print(f"\n{title}, {meta['split']}, × 100 where a score is a share:")
    print(score_table(scores, meta["not_computed"]))
    print(f"  report with pictures: {output / 'report.html'}")
    return scores
