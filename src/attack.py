"""Change pictures so that a captioner says something else: `python -m src.attack model=runs/… goal=keyword`."""

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import hydra
import numpy as np
import torch
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from src.attack_report import Shown, write_attack_report
from src.attacks import Aim, Attack, AttackError, Goal, Victim, distortion
from src.attacks.budget import LEVELS, Distortion
from src.bundle import SHIPPED
from src.captioner import Caption, Captioner
from src.check import attack_sizes, check
from src.command import command
from src.config import CONF, keep_freed_memory, one_sentence, plain
from src.data.control import tag_tokens
from src.data.features import state_digest
from src.data.module import CaptionData
from src.evaluation import code_version, defence_of, references_of, scoring_of
from src.files import whole, write_atomically
from src.model import instantiate
from src.overview import score_text
from src.results import make_folder, references_digest
from src.scoring import Scorer, Scoring
from src.train import build_data

SETTINGS = "settings.json"


class Point(NamedTuple):
    """What one captioner says of pictures changed within one budget."""

    captioner: str
    size: float
    """Of the budget, in the norm's units; 0: the pictures as they are; inf: as much as the goal took."""
    success: float
    """Share of the pictures whose captions are what was wanted; untargeted: are others than before."""
    scores: dict[str, float | None]
    captions: list[str]
    words: list[list[str]]
    met: list[bool]
    per_image: list[float]
    """CIDEr, or the first metric, of single pictures; 0 where it has none."""


def run(config: dict[str, Any]) -> dict[str, Any]:
    """Attack what the config names; returns what attack.json holds."""
    check(config, "attack")
    config = {**config, "model": config["model"] or str(SHIPPED)}
    keep_freed_memory()
    attack: Attack = instantiate(config["attack"])
    goal: Goal = instantiate(config["goal"])
    captioner = _loaded(config["model"], config)
    if config.get("defence"):
        captioner.defend_by(config["defence"])
    victim = Victim(captioner, config["samples"])
    data = _data(config, captioner)
    references = references_of(data, config["split"], config["limit"])
    images, output = list(references), Path(config["output"] or _usual_output(config))
    pictures = ChangedPictures(victim, attack, goal, data, config, len(images), output / "pictures")
    victim.check(as_floats(next(pictures.clean())[:1], captioner))
    make_folder(output / "pictures")
    settings = {
        "model_weights": state_digest(captioner.model),
        **{part: config[part] for part in ("attack", "goal", "samples", "split", "batch_size")},
        "control": captioner.control,
        "defence": defence_of(captioner),
        "preprocess": captioner.preprocess.to_dict(),
        "references": references_digest(references),
    }
    said = [words for batch in pictures.clean() for words in victim.words(as_floats(batch, captioner))]
    pictures.aims = goal.aims(victim, said, list(references.values()))
    _claim(output / "pictures" / SETTINGS, settings)
    others = {name: _loaded(name, config) for name in config["transfer"]}
    captioners = {config["model"]: captioner} | others
    scorer = Scorer(references, scoring_of(data, Scoring(metrics=config["metrics"])), data.pictures(config["split"]))
    points: list[Point] = []
    far: dict[float, Distortion] = {}
    sizes = [*attack_sizes(config), *([math.inf] if attack.least else [])]
    with tqdm(total=len(sizes) * len(images), desc="attacking", unit="img") as bar:
        for size in sizes:
            captions: dict[str, list[Caption]] = {name: [] for name in captioners}
            parts = []
            for before, after in pictures.within(size):
                parts.append(distortion(before.float() / LEVELS, after.float() / LEVELS))
                for name, each in captioners.items():
                    captions[name] += _captions(each, after)
                bar.update(len(before))
            far[size] = Distortion(*(torch.cat(each) for each in zip(*parts, strict=True)))
            for name, found in captions.items():
                clean = next((p for p in points if p.captioner == name), None)
                points.append(_point(name, size, found, clean, goal, pictures.aims, scorer))
    result = _result(config, attack, settings, points, far)
    write_atomically(output / "attack.json", json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    write_atomically(output / "per_image.csv", _table(images, pictures.aims, points, far))
    shown = _worst_first(points, config["model"], sizes[-1])[: config["pictures"]]
    pairs = pictures.pairs(shown, sizes[-1])
    write_attack_report(
        output / "report.html",
        result,
        points,
        [
            Shown(images[i], _picture(before), _picture(after), " ".join(pictures.aims[i].wanted), i)
            for i, (before, after) in zip(shown, pairs, strict=True)
        ],
    )
    print(text_table(result))
    print(f"{output / 'report.html'}")
    return result


class ChangedPictures:
    """The first `count` pictures of a split as the victim's encoder takes them, uint8 (B, 3, S, S), a batch at a time,
    and what the attack makes of them. That is kept in a folder, a PNG each; those that are there are taken up."""

    def __init__(
        self,
        victim: Victim,
        attack: Attack,
        goal: Goal,
        data: CaptionData,
        config: Mapping[str, Any],
        count: int,
        folder: Path,
    ) -> None:
        self.victim, self.attack, self.goal, self.folder = victim, attack, goal, folder
        self.data, self.split, self.count, self.batch = data, config["split"], count, config["batch_size"]
        self.aims: list[Aim] = []

    def _read(self, rows: Sequence[int]) -> Tensor:
        found = [self.data.picture(self.split, row) for row in rows]
        if None in found:
            raise AttackError(f"split={self.split}: it has features or regions, and no pictures that could be changed")
        open_ = self.victim.captioner.preprocess.open
        return torch.stack([open_(picture) for picture in found if picture is not None])

    def _batches(self) -> Iterator[range]:
        return (range(start, min(start + self.batch, self.count)) for start in range(0, self.count, self.batch))

    def clean(self) -> Iterator[Tensor]:
        """As they are."""
        return (self._read(rows) for rows in self._batches())

    def within(self, size: float) -> Iterator[tuple[Tensor, Tensor]]:
        """As they are, and changed within a budget, in the norm's units."""
        for rows in self._batches():
            images = self._read(rows)
            yield images, self._changed(rows, images, size)

    def pairs(self, rows: Sequence[int], size: float) -> Iterator[tuple[Tensor, Tensor]]:
        """Those of some rows, which have been made."""
        for row in rows:
            images = self._read([row])
            after = self._limited(images, _opened([self._path(row, size)]), size) if size else images
            yield images[0], after[0]

    def _path(self, row: int, size: float) -> Path:
        return self.folder / ("least" if self.attack.least else f"{size:g}") / f"{row:05d}.png"

    def _changed(self, rows: range, images: Tensor, size: float) -> Tensor:
        if not size:
            return images
        paths = [self._path(row, size) for row in rows]
        if not all(path.exists() for path in paths):
            paths[0].parent.mkdir(exist_ok=True)
            most = math.inf if self.attack.least else size
            pixels = as_floats(images, self.victim.captioner)
            made = self.attack(self.victim, self.goal, pixels, self.aims[rows.start : rows.stop], most)
            for path, each in zip(paths, (made * LEVELS).round().to(torch.uint8).cpu(), strict=True):
                with whole(path) as partial:
                    _picture(each).save(partial, "PNG")
        return self._limited(images, _opened(paths), size)

    def _limited(self, images: Tensor, changed: Tensor, size: float) -> Tensor:
        """What looks for the least change is within a budget, or the picture stays as it was."""
        if not self.attack.least:
            return changed
        change = (changed.int() - images.int()).flatten(1).float()
        far = change.abs().amax(1) if self.attack.norm == "linf" else change.norm(dim=1) / LEVELS
        return torch.where((far <= size + 1e-6).view(-1, 1, 1, 1), changed, images)


def _opened(paths: Sequence[Path]) -> Tensor:
    return torch.stack([torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1) for path in paths])


def _loaded(name: str, config: Mapping[str, Any]) -> Captioner:
    captioner = Captioner.load(name, device_name=config["device"], precision_name=config["precision"])
    if config.get("generation"):
        captioner.search_by(config["generation"])
    captioner.ask(None, config["tags"] if captioner.vocabulary.controls else None)
    return captioner


def _data(config: Mapping[str, Any], captioner: Captioner) -> CaptionData:
    own = {part: captioner.config[part] for part in ("transform", "tokenizer", "encoder", "control")}
    data = build_data({"data": config["data"], **own}, vocabulary=captioner.vocabulary)
    if config["tags"]:
        data.restrict(config["split"], tag_tokens(config["tags"]))
    return data


def _usual_output(config: Mapping[str, Any]) -> Path:
    kinds = [config[part]["_target_"].rpartition(".")[2].lower() for part in ("attack", "goal")]
    return Path("runs") / "attack" / "-".join([Path(config["model"]).name, *kinds, config["attack"]["norm"]])


def _claim(path: Path, settings: Mapping[str, Any]) -> None:
    """Take up the pictures of an earlier call, if they are of this attack.

    Raises:
        ValueError: they are of another one.
    """
    text = json.dumps(settings, indent=2, ensure_ascii=False, sort_keys=True) + "\n"
    if path.exists() and path.read_text(encoding="utf-8") != text:
        raise ValueError(
            f"output={path.parent.parent}: it holds pictures of another attack ({path} says which): name another "
            "folder, or remove it"
        )
    write_atomically(path, text)


def as_floats(pixels: Tensor, captioner: Captioner) -> Tensor:
    """uint8 pixels → floats in [0, 1] on the captioner's device."""
    return pixels.to(captioner.device).float() / LEVELS


def _picture(pixels: Tensor) -> Image.Image:
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


def _captions(captioner: Captioner, pictures: Tensor) -> list[Caption]:
    """What a captioner says of pictures, which it sees as anybody would who was given the files."""
    if pictures.shape[-1] != captioner.preprocess.size:
        pictures = torch.stack([captioner.preprocess(_picture(each)) for each in pictures])
    return captioner.captions(captioner.search(pictures))


def _point(
    name: str,
    size: float,
    captions: Sequence[Caption],
    clean: Point | None,
    goal: Goal,
    aims: Sequence[Aim],
    scorer: Scorer,
) -> Point:
    """What a captioner has said, scored; `clean` is what it said of the pictures as they are, None of these."""
    words = [caption.words for caption in captions]
    before = clean.words if clean else words
    met = [goal.met(aim._replace(clean=were), now) for aim, were, now in zip(aims, before, words, strict=True)]
    texts = dict(zip(scorer.references, (caption.text for caption in captions), strict=True))
    scored = scorer.score(texts)
    measure = "CIDEr" if "CIDEr" in scorer.how.metrics else scorer.how.metrics[0]
    return Point(
        name,
        size,
        sum(met) / len(met),
        {metric: scored.corpus[metric] for metric in scorer.how.metrics},
        list(texts.values()),
        words,
        met,
        [scored.per_image[image].get(measure, 0.0) for image in texts],
    )


def _worst_first(points: Sequence[Point], name: str, size: float) -> list[int]:
    """Places of pictures: those that met the goal first, of those the ones whose scores fell most."""
    clean, after = (next(p for p in points if p.captioner == name and p.size == s) for s in (0.0, size))
    fall = np.array(clean.per_image) - np.array(after.per_image)
    return np.lexsort((-fall, ~np.array(after.met))).tolist()


def _result(
    config: Mapping[str, Any],
    attack: Attack,
    settings: Mapping[str, Any],
    points: Sequence[Point],
    far: Mapping[float, Distortion],
) -> dict[str, Any]:
    """What attack.json holds. Distances are means over all pictures; without a budget, over those that met the goal."""
    met = torch.tensor(next((p.met for p in points if math.isinf(p.size)), [True] * len(points[0].captions)))

    def distances(point: Point) -> dict[str, float | None]:
        counted = met if math.isinf(point.size) else torch.ones_like(met)
        each = {name: value.cpu()[counted] for name, value in far[point.size]._asdict().items()}
        return {name: float(values.mean()) if len(values) else None for name, values in each.items()}

    return {
        "model": config["model"],
        "transfer": config["transfer"],
        "norm": attack.norm,
        "least": attack.least,
        "targeted": instantiate(config["goal"]).targeted,
        "images": len(points[0].captions),
        "data": Path(config["data"]["root"]).resolve().name,
        "generation": config.get("generation"),
        **settings,
        "version": code_version(),
        "points": [
            {
                "captioner": point.captioner,
                "budget": None if math.isinf(point.size) else point.size,
                "success": point.success,
                **distances(point),
                **point.scores,
            }
            for point in points
        ],
    }


def _table(images: Sequence[str], aims: Sequence[Aim], points: Sequence[Point], far: Mapping[float, Distortion]) -> str:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["image", "captioner", "budget", "met", "linf", "l2", "ssim", "wanted", "caption"])
    for point in points:
        for i, image in enumerate(images):
            changed = [f"{float(each[i]):.6g}" for each in far[point.size]]
            wanted = " ".join(aims[i].wanted)
            writer.writerow([image, point.captioner, point.size, point.met[i], *changed, wanted, point.captions[i]])
    return text.getvalue()


def text_table(result: Mapping[str, Any]) -> str:
    """What attack.json holds as lines to print."""

    def shown(value: float | None, form: str, otherwise: str = "–") -> str:
        return otherwise if value is None else format(value, form)

    scores = [
        name for name in result["points"][0] if name not in ("captioner", "budget", "success", *Distortion._fields)
    ]
    head = ["captioner", "budget", "success" if result["targeted"] else "changed", *Distortion._fields, *scores]
    rows = [head]
    for point in result["points"]:
        values = [
            f"{100 * point['success']:.0f} %",
            shown(point["linf"], ".1f"),
            shown(point["l2"], ".2f"),
            shown(point["ssim"], ".3f"),
        ]
        rows.append(
            [
                Path(point["captioner"]).name,
                shown(point["budget"], "g", "any"),
                *values,
                *(score_text(s, point[s]) for s in scores),
            ]
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    return "\n".join("  ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True)) for row in rows)


@command("attack")
@hydra.main(version_base="1.3", config_path=CONF, config_name="attack")
@one_sentence
def main(config: DictConfig) -> None:
    """Hydra's entry point."""
    run(plain(config))


if __name__ == "__main__":
    main()
