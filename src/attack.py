"""Change pictures so that a captioner says something else: `python -m src.attack model=runs/… goal=keyword`."""

import csv
import io
import json
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
from src.attacks import Aim, Attack, Goal, Victim, distortion
from src.attacks.budget import LEVELS, Distortion
from src.captioner import Captioner
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
    """Of the budget, in the norm's units; 0: the pictures as they are."""
    success: float
    """Share of the pictures whose captions are what was wanted; untargeted: are others than before."""
    scores: dict[str, float | None]
    captions: list[str]
    met: list[bool]
    per_image: list[float]
    """Of the first metric that single pictures have."""


def run(config: dict[str, Any]) -> dict[str, Any]:
    """Attack what the config names; returns what attack.json holds."""
    check(config, "attack")
    keep_freed_memory()
    attack: Attack = instantiate(config["attack"])
    goal: Goal = instantiate(config["goal"])
    captioner = _loaded(config["model"], config)
    if config.get("defence"):
        captioner.defend_by(config["defence"])
    victim = Victim(captioner, config["samples"])
    data = _data(config, captioner)
    references = references_of(data, config["split"], config["limit"])
    images, pixels = list(references), _pixels(captioner, data, config["split"], len(references))
    victim.check(as_floats(pixels[:1], captioner))
    output = Path(config["output"] or _usual_output(config))
    make_folder(output / "pictures")
    sizes = attack_sizes(config)
    settings = {
        "model_weights": state_digest(captioner.model),
        **{part: config[part] for part in ("attack", "goal", "samples", "split", "batch_size")},
        "control": captioner.control,
        "defence": defence_of(captioner),
        "preprocess": captioner.preprocess.to_dict(),
        "references": references_digest(references),
    }
    _claim(output / "pictures" / SETTINGS, settings)

    clean = [words for batch in _batches(pixels, config) for words in victim.words(as_floats(batch, captioner))]
    aims = goal.aims(victim, clean, list(references.values()))
    made = [float("inf")] if attack.least else [size for size in sizes if size]
    with tqdm(total=len(made) * len(images), desc="attacking", unit="img") as bar:
        changed = {
            size: _changed(victim, attack, goal, pixels, aims, size, output / "pictures", config, bar) for size in made
        }
    if attack.least:
        changed = {size: _within(attack, pixels, changed[made[0]], size) for size in sizes}
    changed[0.0] = pixels
    far = {size: _distortion(pixels, those, config) for size, those in changed.items()}

    scorer = Scorer(references, scoring_of(data, Scoring(metrics=config["metrics"])), data.pictures(config["split"]))
    points: list[Point] = []
    for name in (config["model"], *config["transfer"]):
        other = captioner if name == config["model"] else _loaded(name, config)
        points += _points(name, other, changed, goal, aims, scorer, images, config)
    result = _result(config, attack, settings, points, far)
    write_atomically(output / "attack.json", json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    write_atomically(output / "per_image.csv", _table(images, aims, points, far))
    most = max(changed)
    shown = [
        Shown(images[i], _picture(pixels[i]), _picture(changed[most][i]), " ".join(aims[i].wanted), i)
        for i in _worst_first(points, config["model"], most)[: config["pictures"]]
    ]
    write_attack_report(output / "report.html", result, points, shown)
    print(text_table(result))
    print(f"{output / 'report.html'}")
    return result


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


def _pixels(captioner: Captioner, data: CaptionData, split: str, count: int) -> Tensor:
    """The first pictures of a split as the captioner's encoder takes them, uint8 (N, 3, S, S)."""
    find = (data.picture(split, row) for row in range(count))
    return torch.stack([captioner.preprocess.open(picture) for picture in find if picture is not None])


def as_floats(pixels: Tensor, captioner: Captioner) -> Tensor:
    """uint8 pixels → floats in [0, 1] on the captioner's device."""
    return pixels.to(captioner.device).float() / LEVELS


def _batches(pixels: Tensor, config: Mapping[str, Any]) -> Iterator[Tensor]:
    return iter(pixels.split(config["batch_size"]))


def _changed(
    victim: Victim,
    attack: Attack,
    goal: Goal,
    pixels: Tensor,
    aims: Sequence[Aim],
    size: float,
    folder: Path,
    config: Mapping[str, Any],
    bar: Any,
) -> Tensor:
    """All pictures, changed within a budget, uint8; each is kept as a PNG, and those that are there are taken up."""
    folder = folder / ("least" if size == float("inf") else f"{size:g}")
    folder.mkdir(exist_ok=True)
    found, start = [], 0
    for batch in _batches(pixels, config):
        paths = [folder / f"{start + i:05d}.png" for i in range(len(batch))]
        if all(path.exists() for path in paths):
            made = torch.stack([torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1) for path in paths])
        else:
            images = as_floats(batch, victim.captioner)
            made = attack(victim, goal, images, aims[start : start + len(batch)], size)
            made = (made * LEVELS).round().to(torch.uint8).cpu()
            for path, each in zip(paths, made, strict=True):
                with whole(path) as partial:
                    _picture(each).save(partial, "PNG")
        found.append(made)
        start += len(batch)
        bar.update(len(batch))
    return torch.cat(found)


def _within(attack: Attack, pixels: Tensor, changed: Tensor, size: float) -> Tensor:
    """Pictures whose change is within a budget; the others as they were."""
    far = distortion_of_norm(attack.norm, pixels, changed) <= size + 1e-6
    return torch.where(far.view(-1, 1, 1, 1), changed, pixels)


def distortion_of_norm(norm: str, pixels: Tensor, changed: Tensor) -> Tensor:
    """How far uint8 pictures were changed (N,), in the norm's units."""
    change = (changed.int() - pixels.int()).flatten(1).float()
    return change.abs().amax(1) if norm == "linf" else change.norm(dim=1) / LEVELS


def _distortion(pixels: Tensor, changed: Tensor, config: Mapping[str, Any]) -> Distortion:
    pairs = zip(_batches(pixels, config), _batches(changed, config), strict=True)
    parts = [distortion(one.float() / LEVELS, other.float() / LEVELS) for one, other in pairs]
    return Distortion(*(torch.cat(each) for each in zip(*parts, strict=True)))


def _picture(pixels: Tensor) -> Image.Image:
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


def _points(
    name: str,
    captioner: Captioner,
    changed: Mapping[float, Tensor],
    goal: Goal,
    aims: Sequence[Aim],
    scorer: Scorer,
    images: Sequence[str],
    config: Mapping[str, Any],
) -> list[Point]:
    """What a captioner says of the pictures, by the budgets. It sees them as anybody would who was given the files."""
    points: list[Point] = []
    before: list[list[str]] = []
    for size in sorted(changed):
        captions = []
        for batch in tqdm(list(_batches(changed[size], config)), desc=f"{Path(name).name} at {size:g}", leave=False):
            same = batch.shape[-1] == captioner.preprocess.size
            seen = batch if same else torch.stack([captioner.preprocess(_picture(each)) for each in batch])
            captions += captioner.captions(captioner.search(seen))
        words = [caption.words for caption in captions]
        before = before or words
        own = [aim._replace(clean=were) for aim, were in zip(aims, before, strict=True)]
        met = [goal.met(aim, said) for aim, said in zip(own, words, strict=True)]
        texts = [caption.text for caption in captions]
        scored = scorer.score(dict(zip(images, texts, strict=True)))
        columns = [name for name in scorer.how.metrics if name in scored.per_image[images[0]]]
        measure = "CIDEr" if "CIDEr" in columns else columns[0]
        points.append(
            Point(
                name,
                size,
                sum(met) / len(met),
                {metric: scored.corpus[metric] for metric in scorer.how.metrics},
                texts,
                met,
                [scored.per_image[image][measure] for image in images],
            )
        )
    return points


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
                "budget": point.size,
                "success": point.success,
                **{name: float(value.mean()) for name, value in far[point.size]._asdict().items()},
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
    scores = [
        name for name in result["points"][0] if name not in ("captioner", "budget", "success", *Distortion._fields)
    ]
    head = ["captioner", "budget", "success" if result["targeted"] else "changed", *Distortion._fields, *scores]
    rows = [head]
    for point in result["points"]:
        values = [
            f"{100 * point['success']:.0f} %",
            f"{point['linf']:.1f}",
            f"{point['l2']:.2f}",
            f"{point['ssim']:.3f}",
        ]
        rows.append(
            [Path(point["captioner"]).name, f"{point['budget']:g}", *values, *(score_text(s, point[s]) for s in scores)]
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
