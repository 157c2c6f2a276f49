"""Score captions of damaged pictures: `python -m src.robustness model=runs/… data=scenes split=test output=DIR`."""

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import torch
from omegaconf import DictConfig
from PIL import Image
from tqdm import tqdm

from src import corruptions
from src.bundle import SHIPPED
from src.captioner import READERS, Captioner
from src.captions import Caption
from src.check import check, named_models
from src.command import command
from src.config import CONF, device, keep_freed_memory, one_sentence, plain
from src.corruptions import CORRUPTIONS, FAMILIES, KINDS, SEVERITIES, Corner, corrupt, generator, most_attended
from src.data.control import labels_of, tag_tokens
from src.data.features import in_order, state_digest
from src.data.images import ImageError
from src.data.module import CaptionData
from src.data.transforms import Preprocess
from src.encoders.precomputed import RegionEncoder
from src.evaluation import code_version, defence_of, references_of, scoring_of
from src.files import write_atomically
from src.metrics.captions import tokenization_of
from src.model import ConfigError
from src.results import make_folder, references_digest
from src.robustness_report import csv_of, text_of, write_page
from src.scoring import Scorer, Scoring
from src.significance import bootstrap, interval, mean_of
from src.train import build_data

log = logging.getLogger(__name__)

CLEAN = ("clean", 0)
"""The kind and severity of pictures as they are."""
ERROR = "ROUGE_L"
"""1 minus it is a caption's error, of mCE: a score in [0, 1], which CIDEr is not."""
DRAWS = 2000
"""Of the bootstrap."""
HELD = 2000
"""Pictures that are kept decoded, each some 300 kB; others are decoded again for each state."""
WORST = 4
"""Kinds that the report shows pictures of."""

Cell = tuple[str, int]
"""A kind and a severity."""


@dataclass
class Result:
    """What a captioner said of all pictures in one state, and what that scored; as it is kept on disk."""

    identity: dict[str, Any]
    """All that the captions depend on."""
    captions: dict[str, str]
    """By image."""
    corners: dict[str, list[Corner]] = field(default_factory=dict)
    """Of clean pictures, by image: where an occlusion of each severity is; empty for a captioner that does not say
    where it looked."""
    scored: dict[str, Any] = field(default_factory=dict)
    """`how`; `corpus`: score by metric; `images`: by metric, the images' own scores in order."""


@dataclass
class Subject:
    """A captioner that is looked at."""

    name: str
    captioner: Captioner
    data: CaptionData
    about: dict[str, Any]
    """All that its captions depend on besides the pictures."""
    results: dict[Cell, Result] = field(default_factory=dict)

    @property
    def preprocess(self) -> Preprocess:
        return self.captioner.preprocess

    @property
    def side(self) -> tuple[int, int]:
        """What decides how its pictures are decoded and how small they are as they are damaged: draft, pixels."""
        return self.preprocess.draft, self.preprocess.resize or self.preprocess.size


def run(config: dict[str, Any]) -> dict[str, Any]:
    """Measure what the config names; returns what robustness.json holds."""
    check(config, "robustness")
    keep_freed_memory()
    output = Path(config["output"] or Path("runs") / "robustness" / config["split"])
    make_folder(output)
    subjects = [_subject(name, config) for name in named_models(config["model"] or SHIPPED.name)]
    references = references_of(subjects[0].data, config["split"], config["limit"])
    digest = references_digest(references)

    def tokenization(subject: Subject) -> str:
        own = subject.data.tokenizer.evaluation
        return tokenization_of(references) if own == "script" else own

    for other in subjects[1:]:
        if references_digest(references_of(other.data, config["split"], config["limit"])) != digest or tokenization(
            other
        ) != tokenization(subjects[0]):
            raise ConfigError(
                f"model: {subjects[0].name} and {other.name} are not scored by the same references: set tags, such as "
                "tags=en, or call once for each"
            )
    for subject in subjects:
        subject.about["references"] = digest
    metrics = list(dict.fromkeys([*config["metrics"], ERROR]))
    kinds = [kind for kind in KINDS if kind in (config["kinds"] or KINDS)]
    severities = sorted(set(config["severities"]))
    cells = [CLEAN, *((kind, severity) for kind in kinds for severity in severities)]
    how = scoring_of(subjects[0].data, Scoring(metrics=metrics))
    measure(subjects, references, cells, output / "cells", how, config)
    report = {
        "data": subjects[0].data.root.resolve().name,
        "split": config["split"],
        "limit": config["limit"],
        "images": len(references),
        "references": digest,
        "tokenization": how.tokenizer,
        "measure": config["measure"],
        "metrics": metrics,
        "kinds": {kind: CORRUPTIONS[kind].family for kind in kinds},
        "severities": severities,
        "seed": config["seed"],
        "relative_to": config["relative_to"] or subjects[0].name,
        "captioners": _summaries(subjects, kinds, severities, metrics, config),
        "code": code_version(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    write_atomically(output / "robustness.json", json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    write_atomically(output / "robustness.csv", csv_of(report))
    worst = report["captioners"][0]["worst"][:WORST]
    examples = _examples(subjects, references, worst, severities[len(severities) // 2], config)
    write_page(output / "report.html", report, examples)
    print(text_of(report))
    print(f"  report with pictures: {output / 'report.html'}")
    return report


def _subject(name: str, config: Mapping[str, Any]) -> Subject:
    captioner = Captioner.load(name, device_name=config["device"] or device(), precision_name=config["precision"])
    if isinstance(captioner.model.encoder, RegionEncoder):
        raise ConfigError(f"model={name}: it reads regions computed beforehand, not pictures, which can be damaged")
    if config.get("generation"):
        captioner.search_by(config["generation"])
    if config.get("defence"):
        captioner.defend_by(config["defence"])
    tags, split = config["tags"] or captioner.default or (), config["split"]
    captioner.ask(None, tags)
    parts = {part: captioner.config[part] for part in ("transform", "tokenizer", "encoder", "control")}
    data = build_data({"data": config["data"], **parts}, vocabulary=captioner.vocabulary)
    # As in evaluation: what is asked for by default need not be in the table.
    if tags and (config["tags"] or (split in data.tables and any(labels_of(data.tables[split])))):
        data.restrict(split, tag_tokens(tags))
    data.images(split)  # an unknown split is refused before any work
    about = {
        "model_weights": state_digest(captioner.model),
        "generation": captioner.config["generation"],
        "control": captioner.control,
        "defence": defence_of(captioner),
        "preprocess": captioner.preprocess.to_dict(),
        "precision": str(captioner.dtype),
    }
    return Subject(name, captioner, data, about)


# ---------------------------------------------------------------- captions of damaged pictures


def measure(
    subjects: Sequence[Subject],
    references: Mapping[str, Sequence[str]],
    cells: Sequence[Cell],
    folder: Path,
    how: Scoring,
    config: Mapping[str, Any],
) -> None:
    """Caption all pictures in every state by every captioner, and score that, into `Subject.results`. What is
    finished is kept in `folder`, a file each, and taken from there."""
    for subject in subjects:
        for cell in cells:
            if (found := _kept(folder, _identity(subject, cell, config["seed"]))) is not None:
                subject.results[cell] = found
    missing = sum(len(cells) - len(subject.results) for subject in subjects)
    taken = len(cells) * len(subjects) - missing
    if taken:
        log.info("%d of %d are finished in %s", taken, taken + missing, folder)
    scorer = cache(lambda: Scorer(references, how))

    def finished(subject: Subject, cell: Cell, result: Result) -> None:
        _score(result, scorer, how)
        _keep(folder, result)
        subject.results[cell] = result

    with ThreadPoolExecutor(READERS) as pool, tqdm(total=missing * len(references), unit="img") as bar:
        for side in dict.fromkeys(subject.side for subject in subjects):
            group = [subject for subject in subjects if subject.side == side]
            if all(cell in subject.results for subject in group for cell in cells):
                continue
            _measure_group(group, list(references), cells, pool, bar, finished, config)
    for subject in subjects:
        for cell in cells:  # of other metrics
            if subject.results[cell].scored.get("how") != _how(how):
                finished(subject, cell, subject.results[cell])


def _measure_group(
    group: Sequence[Subject],
    names: Sequence[str],
    cells: Sequence[Cell],
    pool: ThreadPoolExecutor,
    bar: Any,
    finished: Any,
    config: Mapping[str, Any],
) -> None:
    """Captioners of one input size: a picture is decoded once, and damaged once in each way, for all of them."""
    batch, seed = config["data"]["eval_batch_size"], config["seed"]
    find = group[0].data.pictures(config["split"]).find
    small: dict[str, np.ndarray] = {}
    sizes: dict[str, tuple[int, int]] = {}

    def shown(name: str) -> np.ndarray:
        return small[name] if name in small else shrunk(decoded(group[0], name, find(name)), group[0].side[1])

    def ready(wanted: Iterable[Preprocess], image: Image.Image) -> dict[Preprocess, np.ndarray]:
        return {preprocess: preprocess.pixels(image) for preprocess in wanted}

    todo = [subject for subject in group if CLEAN not in subject.results]
    plain = {subject.preprocess for subject in todo}

    def opened(item: tuple[str, Path | bytes | None]) -> dict[Preprocess, np.ndarray]:
        name, image = item[0], decoded(group[0], *item)
        if len(small) < HELD:
            small[name] = shrunk(image, group[0].side[1])
        sizes[name] = image.size
        return ready(plain, image)

    bar.set_description("clean")
    found = in_order(pool, opened, ((name, find(name)) for name in names), 2 * batch)
    said = _captioned(todo, found, batch, bar, len(names))
    for subject, captions in zip(todo, said, strict=True):
        every = zip(names, captions, strict=True)
        looked = {name: _corners(caption, subject.preprocess, sizes[name]) for name, caption in every}
        corners = {name: each for name, each in looked.items() if each}
        texts = {name: caption.text for name, caption in zip(names, captions, strict=True)}
        finished(subject, CLEAN, Result(_identity(subject, CLEAN, seed), texts, corners))

    for cell in cells:
        kind, severity = cell
        todo = [subject for subject in group if cell not in subject.results]
        if cell == CLEAN or not todo:
            continue
        bar.set_description(f"{kind} {severity}")
        # What was looked at is each captioner's own.
        for part in [[subject] for subject in todo] if CORRUPTIONS[kind].attended else [todo]:
            corners, wanted = part[0].results[CLEAN].corners, {subject.preprocess for subject in part}

            def damaged(
                name: str, corners: Mapping[str, Any] = corners, wanted: Any = wanted, cell: Cell = cell
            ) -> dict[Preprocess, np.ndarray]:
                return ready(wanted, Image.fromarray(damage(shown(name), name, cell, seed, corners)))

            said = _captioned(part, in_order(pool, damaged, names, 2 * batch), batch, bar, len(names))
            for subject, captions in zip(part, said, strict=True):
                texts = {name: caption.text for name, caption in zip(names, captions, strict=True)}
                finished(subject, cell, Result(_identity(subject, cell, seed), texts))


def decoded(subject: Subject, name: str, source: Path | bytes | None) -> Image.Image:
    """A picture of the data as a captioner opens it.

    Raises:
        ImageError: there is none, or it cannot be read; the message names it.
    """
    if source is None:
        raise ImageError(f"{name}: there is no picture, and features cannot be damaged: give data with pictures")
    return subject.preprocess.decode(source)


def shrunk(image: Image.Image, side: int) -> np.ndarray:
    """(H, W, 3): the shorter side is `side` pixels at most, so that a severity is as severe in large pictures."""
    shorter = min(image.size)
    if shorter > side:
        size = (round(image.width * side / shorter), round(image.height * side / shorter))
        image = image.resize(size, Image.Resampling.BICUBIC)
    return np.asarray(image)


def damage(pixels: np.ndarray, name: str, cell: Cell, seed: int, corners: Mapping[str, Sequence[Corner]]) -> np.ndarray:
    """The picture `name` of the data in a state."""
    kind, severity = cell
    left, top = corners[name][severity - 1] if name in corners else (None, None)
    corner = None if left is None or top is None else (left, top)
    return corrupt(pixels, kind, severity, generator(seed, name, kind, severity), corner)


def _captioned(
    subjects: Sequence[Subject],
    opened: Iterable[Mapping[Preprocess, np.ndarray]],
    batch: int,
    bar: Any,
    images: int,
) -> list[list[Caption]]:
    """Every subject's captions of the pictures, in order."""
    said: list[list[Caption]] = [[] for _ in subjects]
    rows = iter(opened)
    while part := list(islice(rows, batch)):
        for subject, captions in zip(subjects, said, strict=True):
            captioner = subject.captioner
            pixels = torch.stack([torch.from_numpy(row[subject.preprocess]) for row in part])
            seen = captioner.features(pixels)
            captions += captioner.captions(captioner.search(seen, attention=True), seen=seen)
            bar.update(len(part))
    return said


def _corners(caption: Caption, preprocess: Preprocess, size: tuple[int, int]) -> list[Corner]:
    """Where each severity's occlusion hides most of what a caption looked at; empty where it does not say."""
    if caption.attention is None or caption.boxes is None or not caption.words:
        return []
    # of the picture as the encoder saw it → of the picture
    boxes = (caption.boxes - 0.5) * np.tile(np.divide(preprocess.seen(*size), size), 2) + 0.5
    weights = caption.attention.astype(np.float64).mean(0)
    return [most_attended(weights, boxes, severity) for severity in SEVERITIES]


# ---------------------------------------------------------------- what is finished


def _identity(subject: Subject, cell: Cell, seed: int) -> dict[str, Any]:
    kind, severity = cell
    damage = {"seed": None, "code": None} if cell == CLEAN else {"seed": seed, "code": _code()}
    return {**subject.about, "kind": kind, "severity": severity, **damage}


@cache
def _code() -> str:
    """What damages pictures: what another version of it damaged is not taken up."""
    return hashlib.sha256(Path(corruptions.__file__).read_bytes()).hexdigest()[:16]


def _path(folder: Path, identity: Mapping[str, Any]) -> Path:
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:20]
    return folder / f"{identity['kind']}-{identity['severity']}-{digest}.json"


def _kept(folder: Path, identity: Mapping[str, Any]) -> Result | None:
    """What an earlier call finished."""
    try:
        found = Result(**json.loads(_path(folder, identity).read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        return None
    return found if found.identity == json.loads(json.dumps(identity)) else None


def _keep(folder: Path, result: Result) -> None:
    # What file names hold that is no UTF-8 is escaped.
    write_atomically(_path(folder, result.identity), json.dumps(asdict(result)) + "\n")


def _how(how: Scoring) -> dict[str, Any]:
    return {"metrics": list(how.metrics), "tokenization": how.tokenizer}


def _score(result: Result, scorer: Any, how: Scoring) -> None:
    scored = scorer().score(result.captions)
    there = [name for name in how.metrics if all(name in row for row in scored.per_image.values())]
    result.scored = {
        "how": _how(how),
        "corpus": {name: scored.corpus.get(name) for name in how.metrics},
        "images": {name: [row[name] for row in scored.per_image.values()] for name in there},
    }


# ---------------------------------------------------------------- numbers


def relative_errors(own: Mapping[str, Sequence[float]], base: Mapping[str, Sequence[float]]) -> dict[str, float | None]:
    """Of each kind, a captioner's errors (by severity), summed, over those of another; None where the other has none.
    Their mean is Hendrycks and Dietterich's mean corruption error."""
    return {kind: sum(own[kind]) / sum(base[kind]) if sum(base[kind]) > 0 else None for kind in own}


def mean(values: Iterable[float | None]) -> float | None:
    """Of those that are there."""
    there = [value for value in values if value is not None]
    return float(np.mean(there)) if there else None


def _summaries(
    subjects: Sequence[Subject],
    kinds: Sequence[str],
    severities: Sequence[int],
    metrics: Sequence[str],
    config: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """Every captioner's numbers."""
    measure = config["measure"]

    def of(subject: Subject, cell: Cell, metric: str) -> float:
        if (value := subject.results[cell].scored["corpus"][metric]) is None:
            raise ConfigError(f"{metric} is not computed here: choose another measure, and leave it out of metrics")
        return value

    def errors(subject: Subject) -> dict[str, list[float]]:
        return {kind: [1 - of(subject, (kind, severity), ERROR) for severity in severities] for kind in kinds}

    def falls(subject: Subject) -> dict[str, list[float]]:
        clean = of(subject, CLEAN, measure)
        return {kind: [clean - of(subject, (kind, severity), measure) for severity in severities] for kind in kinds}

    base = next(s for s in subjects if s.name == (config["relative_to"] or subjects[0].name))
    found = []
    for subject in subjects:
        scores = {kind: [of(subject, (kind, severity), measure) for severity in severities] for kind in kinds}
        means = {kind: float(np.mean(values)) for kind, values in scores.items()}
        error = relative_errors(errors(subject), errors(base))
        fall = relative_errors(falls(subject), falls(base))
        found.append({
            "model": subject.name,
            **subject.about,
            "attends": bool(subject.results[CLEAN].corners),
            "clean": subject.results[CLEAN].scored["corpus"],
            "scores": {
                kind: {str(s): subject.results[kind, s].scored["corpus"] for s in severities} for kind in kinds
            },
            "mean": float(np.mean(list(means.values()))),
            "interval": _interval(subject, [(kind, s) for kind in kinds for s in severities], measure),
            "clean_interval": _interval(subject, [CLEAN], measure),
            "by_kind": means,
            "by_family": {
                family: float(np.mean([means[kind] for kind in kinds if CORRUPTIONS[kind].family == family]))
                for family in FAMILIES
                if any(CORRUPTIONS[kind].family == family for kind in kinds)
            },
            "mCE": mean(error.values()),
            "relative_mCE": mean(fall.values()),
            "CE": error,
            "relative_CE": fall,
            "worst": sorted(kinds, key=lambda kind: means[kind]),
        })  # fmt: skip
    return found


def _interval(subject: Subject, cells: Sequence[Cell], measure: str) -> list[float] | None:
    """95 %, over pictures, of the mean score of some states; None where the score is no mean of pictures' scores."""
    columns = [subject.results[cell].scored["images"].get(measure) for cell in cells]
    if measure == "METEOR" or measure.startswith("Bleu") or any(column is None for column in columns):
        return None
    drawn = bootstrap([mean_of(np.mean(np.array(columns, np.float64), 0))], DRAWS)[0]
    return list(interval(drawn))


# ---------------------------------------------------------------- examples


def _examples(
    subjects: Sequence[Subject],
    references: Mapping[str, Sequence[str]],
    kinds: Sequence[str],
    severity: int,
    config: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """Of each kind the pictures whose caption, the first captioner's, fell most in score, each picture once."""
    first, measure = subjects[0], config["measure"]
    names, clean = list(references), first.results[CLEAN].scored["images"].get(measure)
    find = first.data.pictures(config["split"]).find
    each = -(-config["pictures"] // max(len(kinds), 1))
    found: list[dict[str, Any]] = []
    seen: set[str] = set()
    for kind in kinds:
        now = first.results[kind, severity].scored["images"].get(measure)
        if clean is None or now is None:  # a measure of all captions together
            continue
        order = np.argsort(np.subtract(now, clean), kind="stable").tolist()
        order = [place for place in order if names[place] not in seen] or order
        for place in order[: min(each, config["pictures"] - len(found))]:
            name = names[place]
            seen.add(name)
            before = shrunk(decoded(first, name, find(name)), first.side[1])
            after = damage(before, name, (kind, severity), config["seed"], first.results[CLEAN].corners)
            said = []
            for subject in subjects:
                states = [subject.results[CLEAN], subject.results[kind, severity]]
                scores = [state.scored["images"][measure][place] for state in states]
                said.append((subject.name, [state.captions[name] for state in states], scores))
            found.append({
                "name": "/".join(Path(name).parts[-2:]), "kind": kind, "severity": severity, "before": before,
                "after": after, "said": said, "references": list(references[name]),
            })  # fmt: skip
    return found


@command("robustness")
@hydra.main(version_base="1.3", config_path=CONF, config_name="robustness")
@one_sentence
def main(config: DictConfig) -> None:
    """Hydra's entry point."""
    run(plain(config))


if __name__ == "__main__":
    main()
