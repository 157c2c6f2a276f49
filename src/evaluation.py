"""A captioner on a split of data → scores.json and its companions."""

import csv
import hashlib
import json
import logging
import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import src
from src.bundle import CALIBRATION
from src.captioner import Caption, Captioner
from src.confidence import Assessed, assess, mean_log_prob
from src.config import ROOT
from src.data.control import REFERENCE, asked_length, length_token, nearest_length
from src.data.features import state_digest
from src.data.module import CaptionData
from src.decoders.base import map_tensors
from src.files import write_atomically
from src.metrics import diversity as differences
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
    data: CaptionData | Sequence[CaptionData],
    split: str,
    output: Path,
    *,
    metrics: Sequence[str] = METRICS,
    nouns: Path | None = None,
    pictures: int = 24,
    meta: Mapping[str, Any] | None = None,
    limit: int | None = None,
    length: int | str | None = None,
    diversity: int | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Caption every image of a split with the captioner's own search, score, and write to `output`: scores.json (flat,
    fractions), meta.json, captions.tsv, per_image.csv, report.html, and where confidence can be calibrated on the
    split, calibration.json.

    Args:
        captioner: what is evaluated.
        data: with the captioner's own preprocessing, tokenizer and vocabulary; of an ensemble one a member.
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
        diversity: score so many captions a picture besides: how they differ, and their best.
        progress: show a bar.

    Returns:
        What scores.json holds.
    """
    views = [data] if isinstance(data, CaptionData) else list(data)
    data, together = views[0], len(captioner.members) > 1
    images = data.images(split)
    names = images.images[:limit]
    shown = evenly(len(names), pictures)
    references = {name: images.captions[i] for i, name in enumerate(names)}
    scorer = CaptionScorer(references, tokenizer=data.tokenizer.evaluation, metrics=metrics)  # METEOR begins to load
    wanted = wanted_lengths(captioner, list(references.values()), data, length)
    captions: list[Caption] = []
    likelihood = CrossEntropy(label_smoothing=0.0)
    tokens = correct = nats = searching = 0.0
    searched = 0
    captioner.model.eval()
    with tqdm(total=len(names), desc=f"captioning {split}", unit="img", disable=not progress) as bar:
        for batches in zip(*(view.evaluation_dataloader(split) for view in views), strict=True):
            batch = map_tensors(lambda x: x.to(captioner.device), batches[0])
            taken: Any = tuple(each.images for each in batches) if together else batch.images
            seen = captioner.features(taken)
            if not together:
                with captioner.computing():
                    loss = likelihood(captioner.model, batch._replace(images=seen))
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
            start = time.perf_counter()
            found = captioner.captions(
                captioner.search(seen, attention=True, prefix=prefix), (diversity or 1) - 1, seen=seen, distinct=False
            )
            searching += time.perf_counter() - start
            searched += len(found)
            found = [c._replace(alternatives=[a._replace(attention=None) for a in c.alternatives]) for c in found]
            captions += [c if first + i in shown else c._replace(attention=None) for i, c in enumerate(found)]
            bar.update(len(found))
            if len(captions) >= len(names):
                break
    captions = captions[: len(names)]

    candidates = {name: caption.text for name, caption in zip(names, captions, strict=True)}
    result = scorer.score(candidates)
    scores: dict[str, Any] = dict(result.corpus)
    not_computed = dict(result.not_computed)
    scores["next_token_accuracy"] = None if together else correct / max(tokens, 1)
    scores["cross_entropy"] = None if together else nats / max(tokens, 1)
    if together:
        not_computed |= dict.fromkeys(("next_token_accuracy", "cross_entropy"), "an ensemble is searched, not taught")
    if wanted:
        near = [abs(len(c.words) - words) <= 1 for c, words in zip(captions, wanted, strict=True)]
        scores["length_within_1"] = sum(near) / len(near)
    if diversity:
        scores |= _diversity(captioner, data, captions, names, scorer)
    sure = _confidence(captions, names, result.per_image)
    scores |= sure.scores
    not_computed |= {name: sure.reason for name, value in sure.scores.items() if value is None}
    if nouns is not None:
        table = json.loads(Path(nouns).read_text(encoding="utf-8"))
        scores |= named_shares(candidates, {name: table[name] for name in names})
    scores["images"] = len(names)
    weights = [member.model.encoder.backbone.weights_used for member in captioner.members]
    scores["encoder_weights"] = ", ".join(dict.fromkeys(weights))

    record = {
        "model_weights": state_digest(captioner.model),
        "parameters": sum(weight.numel() for weight in captioner.model.parameters()),
        "images_per_second": searched / searching,
        "data": data.root.resolve().name,
        "split": split,
        "limit": limit,
        "references": references_digest(data, split, limit),
        "metrics": list(metrics),
        "tokenization": result.tokenizer,
        "generation": captioner.config.get("generation"),
        "control": captioner.control,
        "length": length,
        "diversity": diversity,
        "not_computed": not_computed,
        "code": code_version(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        **(meta or {}),
    }
    output.mkdir(parents=True, exist_ok=True)
    for name in ("meta.json", CALIBRATION):
        (output / name).unlink(missing_ok=True)
    if sure.calibration is not None:
        sure.calibration.save(output / CALIBRATION)
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
        not_computed=not_computed,
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
    captioner.go_on_for(max(wanted))
    return wanted


def _diversity(
    captioner: Captioner, data: CaptionData, captions: Sequence[Caption], names: Sequence[str], scorer: CaptionScorer
) -> dict[str, float | None]:
    """How several captions a picture differ, what the best scores, how many are no training caption."""
    every = {name: [caption, *caption.alternatives] for name, caption in zip(names, captions, strict=True)}
    scores = differences.diversity({name: [each.text for each in group] for name, group in every.items()}, scorer)
    words = {name: [" ".join(each.words) for each in group] for name, group in every.items()}
    scores["vocabulary_share"] = differences.words_used(words, captioner.vocabulary.index)
    if "train" in data.tables:
        scores["novel_share"] = differences.novel(words, {" ".join(tokens) for tokens in data.training_tokens()})
    return scores


def _confidence(
    captions: Sequence[Caption], names: Sequence[str], per_image: Mapping[str, Mapping[str, float]]
) -> Assessed:
    means = [mean_log_prob(caption.log_probs) for caption in captions]
    known = all("CIDEr" in per_image[name] for name in names)
    return assess(means, [per_image[name]["CIDEr"] for name in names] if known else None)


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
