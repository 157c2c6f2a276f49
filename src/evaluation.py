"""Captions of a split of data, a captioner's or anybody's → a folder of results: scores.json and its companions."""

import json
import logging
import math
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import src
from src.bundle import CALIBRATION, MATCHING
from src.captioner import Caption, Captioner
from src.confidence import Assessed, assess, mean_log_prob
from src.config import ROOT
from src.data.control import REFERENCE, asked_length, length_token, nearest_length
from src.data.features import state_digest
from src.data.images import Pictures
from src.data.module import CaptionData
from src.decoders.base import map_tensors
from src.distributed import Place, exchange, place
from src.metrics import diversity as differences
from src.metrics.groups import flat_scores
from src.objectives.cross_entropy import CrossEntropy
from src.overview import score_text
from src.recall import recall_of
from src.report import write_report
from src.results import GROUPS, MEMORY, Looks, PerImage, make_folder, read_results, references_digest, write_results
from src.scoring import Scored, Scorer, Scoring, read_nouns

log = logging.getLogger(__name__)

MOST_LOOKS = 5000
"""Pictures whose attention is kept: beyond, it would fill memory and disk, and a report shows a few."""


def code_version() -> str:
    """The project's version with its git revision, where there is one."""
    try:
        command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
        revision = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return src.__version__
    return f"{src.__version__}+{revision}"


def references_of(data: CaptionData, split: str, limit: int | None = None) -> dict[str, list[str]]:
    """The first `limit` images of a split, in order, and their captions."""
    table = data.tables[split]
    return dict(zip(table.images[:limit], table.captions[:limit], strict=True))


def scoring_of(data: CaptionData, how: Scoring | None = None) -> Scoring:
    """How captions of this data are scored: by its own tokenization, which its cache keeps."""
    return replace(how or Scoring(), tokenizer=data.tokenizer.evaluation, cache=data.cache_dir / "tokenized")


def training_captions(data: CaptionData) -> list[str] | None:
    """All of them, or None where the data has none."""
    table = data.tables.get("train")
    return None if table is None else [text for group in table.captions for text in group]


def evaluate(
    captioner: Captioner,
    data: CaptionData | Sequence[CaptionData],
    split: str,
    output: Path,
    *,
    how: Scoring | None = None,
    nouns: Path | None = None,
    pictures: int = 24,
    meta: Mapping[str, Any] | None = None,
    limit: int | None = None,
    length: int | str | None = None,
    diversity: int | None = None,
    rerank: int | None = None,
    per_image: PerImage = "csv",
    progress: bool = True,
) -> dict[str, Any]:
    """Caption every image of a split with the captioner's own search, score, and write results to `output`: what
    `write_results` says, report.html, and where confidence can be calibrated on the split, calibration.json.

    Args:
        captioner: what is evaluated.
        data: with the captioner's own preprocessing, tokenizer and vocabulary; of an ensemble one a member.
        split: train, val or test.
        output: the folder to write to.
        how: what is scored; its tokenizer and cache are the data's.
        nouns: a JSON file of the nouns each picture shows, by part; adds `<part>_named`.
        pictures: how many the report shows.
        meta: what else to record.
        limit: only that many images, for a trial.
        length: what captions are asked for, as `Captioner.ask` was told, or `reference`: each image's caption is asked
            for the number of words of its own first reference, or the nearest that the captioner knows. Adds
            `length_within_1`, the share of captions that are at most a word longer or shorter than was asked for.
        diversity: score so many captions a picture besides: how they differ, and their best.
        rerank: of a captioner with a matcher, score besides what ranks the first so many again by its likelihoods too.
        per_image: what scores of single images are written as.
        progress: show a bar.

    Of several processes (src/distributed.py) each captions its share, and the first one scores them all.

    Returns:
        What scores.json holds; in all processes but the first, nothing.

    Raises:
        RuntimeError: another of the processes has died.
    """
    make_folder(output)
    views = [data] if isinstance(data, CaptionData) else list(data)
    data, together = views[0], len(captioner.members) > 1
    how = scoring_of(data, how)
    references = references_of(data, split, limit)
    names = list(references)
    here = place()
    scorer = None
    if not here.rank:
        known = None if nouns is None else read_nouns(nouns, names)
        # METEOR begins to load.
        scorer = Scorer(references, how, data.pictures(split), training_captions(data), known)
    wanted = wanted_lengths(captioner, list(references.values()), data, length)
    share = _caption_share(captioner, views, split, len(names), here, wanted, length, diversity, progress)
    parts = exchange(share, output, here)
    if scorer is None:
        return {}
    captions = [_unpacked(parts[image % here.world]["captions"][image // here.world]) for image in range(len(names))]
    tokens, correct, nats = (sum(part[name] for part in parts) for name in ("tokens", "correct", "nats"))

    said = {name: caption.text for name, caption in zip(names, captions, strict=True)}
    scored = scorer.score(said)
    more: dict[str, Any] = {
        "next_token_accuracy": None if together else correct / max(tokens, 1),
        "cross_entropy": None if together else nats / max(tokens, 1),
        "perplexity": None if together else math.exp(min(nats / max(tokens, 1), 700)),
    }
    not_computed = dict.fromkeys(more, "an ensemble is searched, not taught") if together else {}
    if wanted:
        near = [abs(len(c.words) - words) <= 1 for c, words in zip(captions, wanted, strict=True)]
        more["length_within_1"] = sum(near) / len(near)
    matching = None
    if not together and captioner.model.matcher is not None:
        found, matching = recall_of(captioner, data, split, limit, rerank or 0, progress)
        more |= found
    every = {name: [caption, *caption.alternatives] for name, caption in zip(names, captions, strict=True)}
    words = {name: [" ".join(each.words) for each in group] for name, group in every.items()}
    more["vocabulary_share"] = differences.words_used(words, captioner.vocabulary.index)
    if diversity:
        more |= diversity_of({name: [each.text for each in group] for name, group in every.items()}, scorer)
    sure = _confidence(captions, names, scored)
    more |= sure.scores
    not_computed |= {name: sure.reason for name, value in sure.scores.items() if value is None}
    weights = [member.model.encoder.backbone.weights_used for member in captioner.members]
    record = {
        "model_weights": state_digest(captioner.model),
        "parameters": sum(weight.numel() for weight in captioner.model.parameters()),
        "images_per_second": len(names) / max(part["seconds"] for part in parts),
        "data": data.root.resolve().name,
        "split": split,
        "limit": limit,
        "generation": captioner.config.get("generation"),
        "defence": defence_of(captioner),
        "control": captioner.control,
        "length": length,
        "diversity": diversity,
        "rerank": rerank,
        "preprocess": captioner.preprocess.to_dict(),
        "regions": data.regions is not None,
        **(meta or {}),
    }
    for name, calibration in ((CALIBRATION, sure.calibration), (MATCHING, matching)):
        (output / name).unlink(missing_ok=True)
        if calibration is not None:
            calibration.save(output / name)
    return keep(
        output,
        said,
        scorer,
        scored,
        {**more, "images": len(names), "encoder_weights": ", ".join(dict.fromkeys(weights))},
        record,
        not_computed,
        {
            name: Looks(caption.words, caption.attention, caption.boxes)
            for name, caption in zip(names, captions, strict=True)
            if caption.attention is not None and caption.boxes is not None and caption.words
        },
        per_image,
        pictures,
    )


def _caption_share(
    captioner: Captioner,
    views: Sequence[CaptionData],
    split: str,
    images: int,
    here: Place,
    wanted: Sequence[int],
    length: int | str | None,
    diversity: int | None,
    progress: bool,
) -> dict[str, Any]:
    """Caption this process's share of the first `images` of a split, every world-th one from its rank on: its
    `captions` in order, the `seconds` that their search took, and teacher-forced, the `tokens` of their references, how
    many are `correct`, and their `nats`."""
    together, mine = len(captioner.members) > 1, range(here.rank, images, here.world)
    captions: list[Caption] = []
    likelihood = CrossEntropy(label_smoothing=0.0)
    tokens = correct = nats = seconds = 0.0
    captioner.model.eval()
    batches = zip(*(view.evaluation_dataloader(split, here.rank, here.world) for view in views), strict=True)
    bar = tqdm(total=images, desc=f"captioning {split}", unit="img", disable=not progress or here.rank > 0)
    while len(captions) < len(mine):
        batch, *others = (
            map_tensors(lambda x: x[: len(mine) - len(captions)].to(captioner.device), each) for each in next(batches)
        )
        taken: Any = (batch.images, *(each.images for each in others)) if together else batch.images
        seen = captioner.features(taken)
        if not together:
            with captioner.computing():
                loss = likelihood(captioner.model, batch._replace(images=seen))
            tokens += float(loss.count)
            correct += float(loss.logs["token_accuracy"])
            nats += float(loss.logs["cross_entropy"])
        prefix = None
        if length == REFERENCE:
            index = captioner.vocabulary.control_index
            asked_for = [wanted[image] for image in batch.index.tolist()]
            prefix = torch.tensor(
                [[index[name] for name in (*captioner.control, length_token(words))] for words in asked_for]
            )
        start = time.perf_counter()
        found = captioner.captions(
            captioner.search(seen, attention=True, prefix=prefix), (diversity or 1) - 1, seen=seen, distinct=False
        )
        seconds += time.perf_counter() - start
        for image, caption in zip(batch.index.tolist(), found, strict=True):
            others_too = [other._replace(attention=None) for other in caption.alternatives]
            caption = caption._replace(alternatives=others_too)
            captions.append(caption if image < MOST_LOOKS else caption._replace(attention=None))
        bar.update(len(found) * here.world if len(captions) < len(mine) else images - bar.n)
    bar.close()
    packed = [_packed(caption) for caption in captions]
    return {"captions": packed, "tokens": tokens, "correct": correct, "nats": nats, "seconds": seconds}


def _packed(caption: Caption) -> dict[str, Any]:
    """A caption as tensors and plain values."""
    fields = caption._asdict()
    for name in ("attention", "boxes"):
        fields[name] = None if fields[name] is None else torch.from_numpy(fields[name])
    return {**fields, "alternatives": [_packed(other) for other in caption.alternatives]}


def _unpacked(fields: Mapping[str, Any]) -> Caption:
    arrays = {name: None if fields[name] is None else fields[name].numpy() for name in ("attention", "boxes")}
    return Caption(**{**fields, **arrays, "alternatives": [_unpacked(other) for other in fields["alternatives"]]})


def evaluate_captions(
    captions: Mapping[str, Sequence[str]] | None,
    references: Mapping[str, Sequence[str]],
    output: Path,
    *,
    images: Pictures,
    how: Scoring,
    meta: Mapping[str, Any],
    training: Sequence[str] | None = None,
    nouns: Path | None = None,
    pictures: int = 24,
    diversity: int | None = None,
    per_image: PerImage = "csv",
) -> dict[str, Any]:
    """Score captions that are there, and write results to `output`, as `evaluate` does.

    Args:
        captions: of each image, the first of which is scored; None, with `how.leave_one_out`: the references
            themselves.
        references: of the same images.
        output: the folder to write to.
        images: their pictures.
        how: what is scored.
        meta: what else to record, such as where they come from.
        training: the training captions; adds `novel_share`.
        nouns, pictures, diversity, per_image: as in `evaluate`.

    Returns:
        What scores.json holds.
    """
    make_folder(output)
    known = None if nouns is None else read_nouns(nouns, list(references))
    scorer = Scorer(references, how, images, training, known)
    said = None if captions is None else {image: group[0] for image, group in captions.items()}
    scored = scorer.score(said)
    more: dict[str, Any] = {"images": len(references)}
    if diversity and captions is not None:
        more = diversity_of(captions, scorer) | more
    record = {"diversity": diversity, **meta}
    return keep(output, said or scorer.foldings[0][0], scorer, scored, more, record, {}, {}, per_image, pictures)


def keep(
    output: Path,
    captions: Mapping[str, str],
    scorer: Scorer,
    scored: Scored,
    more: Mapping[str, Any],
    record: Mapping[str, Any],
    not_computed: Mapping[str, str],
    looks: Mapping[str, Looks],
    per_image: PerImage,
    pictures: int,
) -> dict[str, Any]:
    """Write results and their report; returns what scores.json holds.

    Args:
        output: the folder.
        captions: one an image, in the references' order.
        scorer: what scored them.
        scored: what they scored.
        more: further scores.
        record: of meta.json, what is the captions' own.
        not_computed: why some of `more` are None.
        looks: where words looked.
        per_image, pictures: as in `evaluate`.
    """
    people = scorer.people(captions, scored)
    memory = scorer.memory(captions, own=record.get("split") == "train")
    scores = {**scored.corpus, **(flat_scores(people) if people else {}), **more}
    meta = {
        "references": references_digest(scorer.references),
        "tokenization": scored.tokenizer,
        **recorded(scorer.how),
        "not_computed": {**scored.not_computed, **not_computed},
        "root": None if scorer.images is None else scorer.images.place,
        "code": code_version(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        **record,
    }
    for alarm in scored.alarms:
        log.warning("%s: %s", output, alarm)
    beside = {GROUPS: people, MEMORY: memory}
    write_results(output, captions, scorer.references, scored, scores, meta, looks, per_image, beside)
    write_report(output / "report.html", [read_results(output)], pictures=pictures, images=scorer.images)
    return scores


def recorded(how: Scoring) -> dict[str, Any]:
    """What meta.json says of how captions were scored."""
    files = (("spice", how.spice), ("clip", how.clip), ("groups", how.groups))
    folders = {name: None if path is None else str(path) for name, path in files}
    return {"metrics": list(how.metrics), "leave_one_out": how.leave_one_out, **folders}


def defence_of(captioner: Captioner) -> Any:
    """The config of what is done to a captioner's pictures; a list of an ensemble's, where there is any."""
    every = [member.config.get("defence") for member in captioner.members]
    return every if len(every) > 1 and any(every) else every[0]


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


def diversity_of(samples: Mapping[str, Sequence[str]], scorer: Scorer) -> dict[str, float | None]:
    """How several raw captions a picture differ, what the best scores, how many are no training caption."""
    scores = differences.diversity(samples, scorer.scorers[0])
    novel = scorer.novel_share(caption for group in samples.values() for caption in group)
    return scores if novel is None else {**scores, "novel_share": novel}


def _confidence(captions: Sequence[Caption], names: Sequence[str], scored: Scored) -> Assessed:
    means = [mean_log_prob(caption.log_probs) for caption in captions]
    known = all("CIDEr" in scored.per_image[name] for name in names)
    return assess(means, [scored.per_image[name]["CIDEr"] for name in names] if known else None)


def score_table(scores: Mapping[str, Any], not_computed: Mapping[str, str]) -> str:
    """Scores as text, fractions × 100."""
    lines = []
    for name, value in scores.items():
        reason = f" ({not_computed.get(name, 'no reason given')})" if value is None else ""
        lines.append(f"  {name + ' ':<22}{score_text(name, value)}{reason}")
    return "\n".join(lines)


def report_scores(title: str, output: Path) -> dict[str, Any]:
    """Print what a folder of results holds, and where its report is; returns the scores."""
    scores = json.loads((output / "scores.json").read_text(encoding="utf-8"))
    meta = json.loads((output / "meta.json").read_text(encoding="utf-8"))
    of = f", {meta['split']}" if meta.get("split") else ""
    print(f"\n{title}{of}, × 100 where a score is a share:")
    print(score_table(scores, meta["not_computed"]))
    for alarm in meta.get("alarms", ()):
        print(f"  warning: {alarm}")
    print(f"  report with pictures: {output / 'report.html'}")
    return scores
