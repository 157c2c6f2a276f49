"""Caption pictures: `python -m src.caption photo.jpg`, `… --model runs/…/bundle folder/ "*.png" -o captions.tsv`."""

import argparse
import glob
import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from tqdm import tqdm

from src.bundle import SHIPPED, looks_saved
from src.captioner import Caption, Captioner
from src.config import device, keep_freed_memory
from src.data.features import state_digest
from src.data.images import ImageError, load_image
from src.data.quality import quality
from src.data.regions import ReadRegions, RegionsError
from src.distributed import Place, device_of, launch, together
from src.ensemble import EnsembleCaptioner
from src.parts import Parts
from src.search_flags import add_search_flags, chosen_search


def find_pictures(arguments: Sequence[str], names: bool = False) -> list[Path]:
    """Files as given, pictures below folders (sorted), and what globs match, each once; with `names` an argument that
    names nothing is a picture of which there are only regions.

    Raises:
        ValueError: an argument that names nothing, a captioner, or a folder without pictures.
    """
    Image.init()
    known = {extension for extension, kind in Image.EXTENSION.items() if kind in Image.OPEN}
    found: dict[Path, None] = {}
    for argument in arguments:
        path = Path(argument)
        if looks_saved(path):
            raise ValueError(f"{argument}: a captioner, no picture; write --model before it")
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in known and p.is_file())
            if not inside:
                raise ValueError(f"{argument}: no pictures in this folder")
        elif path.is_file():
            inside = [path]
        else:
            inside = sorted(Path(p) for p in glob.glob(argument, recursive=True) if Path(p).is_file())
            if not inside and names:
                inside = [path]
            if not inside:
                raise ValueError(f"{argument}: no such file or folder, and no file matches it as a pattern")
        found |= dict.fromkeys(inside)
    return list(found)


def add_model_flag(parser: argparse.ArgumentParser) -> None:
    """Add `--model`, by default the captioner that comes with the code."""
    parser.add_argument(
        "--model",
        nargs="+",
        default=[str(SHIPPED)],
        help="a bundle/ directory, a run's folder, or a .ckpt (`python -m src.train` leaves them); several of one "
        "vocabulary caption together, as an ensemble (default: the captioner that comes with the code, of photographs, "
        "in English; `--language zh`: in Chinese)",
    )


def models_and_pictures(models: Sequence[str], pictures: Sequence[str]) -> tuple[list[str], list[str]]:
    """What stands behind `--model` as captioners, and from the first that is none on as pictures, before the others."""
    count = 1
    while count < len(models) and looks_saved(Path(models[count])):
        count += 1
    return list(models[:count]), [*models[count:], *pictures]


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        prog="python -m src.caption",
        description="Caption pictures with a trained captioner.",
        usage="%(prog)s [--model MODEL ...] [FLAGS] FILE|FOLDER|GLOB ...",
    )
    result.add_argument("pictures", nargs="*", metavar="FILE|FOLDER|GLOB", help="what to caption")
    add_model_flag(result)
    result.add_argument(
        "--regions", metavar="PATH", help="the pictures' regions, for a captioner of regions computed beforehand"
    )
    result.add_argument(
        "-o",
        "--output",
        type=Path,
        help="write a TSV `img_path<TAB>caption` here instead of printing; "
        "the same call again takes up what a stopped one has captioned",
    )
    result.add_argument(
        "--length", metavar="WORDS", help="short, medium, long or a number of words, of a captioner of control=length"
    )
    result.add_argument("--language", metavar="TAG", help="such as zh, of a captioner of control=tags")
    result.add_argument("--tags", metavar="TAGS", help='such as "domain=news,style=funny", of one of control=tags')
    add_search_flags(result)
    result.add_argument(
        "--n-best", type=int, metavar="N", help="up to N captions a picture, best first, a line each, with their scores"
    )
    result.add_argument(
        "--confidence", action="store_true", help="a further column: the probability that the caption is good"
    )
    result.add_argument(
        "--min-confidence", type=float, metavar="P", help="leave captions out whose confidence is below, in [0, 1]"
    )
    result.add_argument(
        "--quality", action="store_true", help="a further column: how well the picture can be seen, in [0, 1]"
    )
    result.add_argument(
        "--min-quality", type=float, metavar="Q", help="do not caption pictures whose quality is below, in [0, 1]"
    )
    result.add_argument("--batch-size", type=int, default=16, help="pictures at a time (default: 16)")
    result.add_argument("--device", help="cpu, cuda, mps (default: the fastest here)")
    result.add_argument(
        "--devices", type=int, default=1, metavar="N", help="N processes share the pictures, on as many GPUs or the CPU"
    )
    result.add_argument(
        "--attention", type=Path, metavar="FOLDER", help="also draw, a picture a file, where each word looked"
    )
    return result


def check_flags(options: argparse.Namespace, captioner: Captioner) -> None:
    """Refuse what this captioner cannot do.

    Raises:
        ValueError: one sentence that names the flag.
    """
    if options.n_best is not None and not 1 <= options.n_best <= captioner.generation.captions:
        count, most = options.n_best, captioner.generation.captions
        raise ValueError(
            f"--n-best {count}: the search gives 1 to {most} captions a picture; add --beam {max(count, 1)}, or "
            f"--search sample --set captions={max(count, 1)}"
        )
    for flag in ("min_confidence", "min_quality"):
        value = getattr(options, flag)
        if value is not None and not 0 <= value <= 1:
            raise ValueError(f"--{flag.replace('_', '-')} {value:g}: a number from 0 to 1 is wanted")
    if (options.confidence or options.min_confidence is not None) and captioner.calibration is None:
        raise ValueError(
            "--confidence: this captioner is not calibrated; `python -m src.evaluate model=BUNDLE data=… split=val "
            "calibrate=true` calibrates a bundle"
            if len(captioner.members) == 1
            else "--confidence: an ensemble is not calibrated; caption with one of its members"
        )
    if (options.quality or options.min_quality is not None) and options.regions is not None:
        raise ValueError("--quality is of pictures, and with --regions they are not read: leave one of the two out")


class Picture(NamedTuple):
    """One that could be read."""

    path: Path
    opened: Image.Image | ReadRegions | None
    """What the captioner takes; None where the picture is too poor to be captioned."""
    quality: float | None = None
    """Where it was asked for."""


def open_picture(path: Path, captioner: Captioner, options: argparse.Namespace) -> Picture:
    """Read a picture, and look at its quality where that is asked for.

    Raises:
        ImageError, RegionsError: it cannot be read; the message names it.
    """
    seen = None
    if options.quality or options.min_quality is not None:
        seen = quality(load_image(path)).score  # in full size: the captioner's may be reduced
        if seen < (options.min_quality or 0):
            print(f"{path}: not captioned, its quality {seen:.3f} is below {options.min_quality:g}", file=sys.stderr)
            return Picture(path, None, seen)
    return Picture(path, captioner.open(path), seen)


def lines(picture: Picture, captions: Sequence[Caption], options: argparse.Namespace) -> Iterator[str]:
    """The output's lines on a picture: its path, a caption or nothing, and the columns that were asked for."""
    found: list[Caption | None] = [*captions] or [None]
    for caption in found:
        columns = [str(picture.path), caption.text if caption else ""]
        if options.n_best is not None:
            columns.append(f"{caption.score:.4f}" if caption else "")
        if options.confidence:
            columns.append(f"{caption.confidence:.3f}" if caption else "")
        if options.quality:
            columns.append(f"{picture.quality:.3f}")
        yield "\t".join(columns)


def sure_enough(picture: Picture, caption: Caption, options: argparse.Namespace) -> list[Caption]:
    """A caption and its alternatives, those whose confidence is too low left out; where none stays, stderr says so."""
    found = [caption, *caption.alternatives]
    least = options.min_confidence
    kept = [each for each in found if least is None or (each.confidence is not None and each.confidence >= least)]
    if not kept:
        print(
            f"{picture.path}: caption left out, its confidence {caption.confidence:.3f} is below {least:g}",
            file=sys.stderr,
        )
    return kept


def wrong_call(options: argparse.Namespace, here: Place) -> str | None:
    """What is wrong with flags that need no captioner, in a sentence."""
    if options.devices < 1:
        return f"--devices {options.devices}: 1 or more"
    if max(options.devices, here.world) > 1 and not options.output:
        return "--devices: several processes write a file together; give -o FILE"
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status: 0, 1 where some pictures could not be read, 2 for a wrong call."""
    command = parser()
    options = command.parse_args(arguments)
    models, named = models_and_pictures(options.model, options.pictures)
    if not named:
        command.error("which pictures? Name files, folders or patterns")
    keep_freed_memory()
    with together() as here:
        try:
            if wrong := wrong_call(options, here):
                raise ValueError(wrong)
            pictures = find_pictures(named, names=options.regions is not None)
            if options.devices > 1 and here.world == 1:
                launch(options.devices, "src.caption", arguments)
            device_name = device_of(options.device or device(), here)
            captioner = EnsembleCaptioner.load_all(models, device_name=device_name, regions=options.regions)
            captioner.check_source()
            if search := chosen_search(options, captioner.config["generation"]):
                captioner.search_by(search)
            check_flags(options, captioner)
            captioner.ask(options.length, options.tags, options.language)
        except (ValueError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        return caption_all(pictures, captioner, options, here)


def depends_on(pictures: Sequence[Path], captioner: Captioner, options: argparse.Namespace) -> str:
    """A digest of all that the output's lines depend on: weights, search, flags, pictures."""
    how = {name: str(value) for name, value in vars(options).items() if name not in ("output", "devices", "device")}
    stats = [path.stat() if path.exists() else None for path in pictures]
    files = [(str(path), stat and (stat.st_size, stat.st_mtime_ns)) for path, stat in zip(pictures, stats, strict=True)]
    every = [state_digest(captioner.model), captioner.calibration, captioner.config["generation"], how, files]
    return hashlib.sha256(json.dumps(every, sort_keys=True).encode()).hexdigest()[:12]


def caption_all(pictures: Sequence[Path], captioner: Captioner, options: argparse.Namespace, here: Place) -> int:
    """Caption this process's share of the pictures, and write or print their lines; returns the exit status."""
    figures = Figures(options.attention, pictures, captioner) if options.attention else None
    parts = None
    if options.output:
        parts = Parts(options.output, depends_on(pictures, captioner, options), len(pictures), here)
        if parts.done and not here.rank:
            print(f"{options.output}: {parts.done} of {len(pictures)} are captioned already", file=sys.stderr)
    share = range(len(pictures)) if parts is None else parts.share
    unread = 0
    with tqdm(total=len(share), unit="img", disable=None if options.output and not here.rank else True) as bar:
        for start in range(0, len(share), options.batch_size):
            batch: dict[int, Picture] = {}
            for number in share[start : start + options.batch_size]:
                try:
                    batch[number] = open_picture(pictures[number], captioner, options)
                except (ImageError, RegionsError) as error:
                    print(f"error: {error}", file=sys.stderr)
                    unread += 1
            found = captioner(
                [each.opened for each in batch.values() if each.opened is not None],
                options.batch_size,
                attention=figures is not None,
                alternatives=(options.n_best or 1) - 1,
            )
            for number, picture in batch.items():
                captions = [] if picture.opened is None else sure_enough(picture, next(found), options)
                if parts:
                    parts.add(number, list(lines(picture, captions, options)))
                for line in () if parts else lines(picture, captions, options):
                    print(line, flush=True)
                if figures and captions:
                    figures.draw(picture, captions[0])
            if parts:
                parts.flush()
            bar.update(len(share[start : start + options.batch_size]))
    failed = unread if parts is None else len(pictures) - parts.join()
    if here.rank:
        return 0
    if failed:
        print(f"{failed} of {len(pictures)} pictures could not be read", file=sys.stderr)
    return 1 if failed else 0


class Figures:
    """Drawings of where words looked, one a picture, in a folder.

    Args:
        folder: made, if need be.
        pictures: all that are captioned: those of one name, from several folders, are numbered.
        captioner: whose looks they are; stderr says where it has none to draw.
    """

    def __init__(self, folder: Path, pictures: Sequence[Path], captioner: Captioner) -> None:
        self.folder, self.captioner = folder, captioner
        folder.mkdir(parents=True, exist_ok=True)
        if not captioner.model.decoder.attends:
            print("--attention: this captioner does not attend, so there is nothing to draw", file=sys.stderr)
        counts: dict[str, int] = {}
        self.names: dict[Path, str] = {}
        for path in pictures:
            counts[path.stem] = counts.get(path.stem, 0) + 1
            self.names[path] = f"{path.stem}-{counts[path.stem]}" if counts[path.stem] > 1 else path.stem
        self.told = not captioner.model.decoder.attends

    def draw(self, picture: Picture, caption: Caption) -> None:
        """Where a caption's words looked, if that can be drawn."""
        from src.figures import attention_figure, nothing

        if caption.attention is None:
            if not self.told and caption.words:
                print("--attention: the captioners look at different places, so nothing is drawn", file=sys.stderr)
                self.told = True
            return
        image = picture.opened
        if not isinstance(image, Image.Image):  # its regions: of the picture itself there may be no file
            try:
                image = self.captioner.preprocess.decode(picture.path)
            except ImageError:
                image = nothing()
        drawn = attention_figure(
            image, caption.words, caption.attention, caption.boxes, preprocess=self.captioner.preprocess
        )
        drawn.save(self.folder / f"{self.names[picture.path]}.png")


if __name__ == "__main__":
    sys.exit(main())
