"""Caption pictures: `python -m src.caption --model runs/…/bundle photo.jpg folder/ "*.png" -o captions.tsv`."""

import argparse
import glob
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from src.captioner import Captioner
from src.config import keep_freed_memory
from src.data.images import ImageError
from src.data.regions import RegionsError
from src.generation import BeamSearch


def find_pictures(arguments: Sequence[str], names: bool = False) -> list[Path]:
    """Files as given, pictures below folders (sorted), and what globs match, each once; with `names` an argument that
    names nothing is a picture of which there are only regions.

    Raises:
        ValueError: an argument that names nothing, or a folder without pictures.
    """
    Image.init()
    known = {extension for extension, kind in Image.EXTENSION.items() if kind in Image.OPEN}
    found: dict[Path, None] = {}
    for argument in arguments:
        path = Path(argument)
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


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        prog="python -m src.caption", description="Caption pictures with a trained captioner."
    )
    result.add_argument("pictures", nargs="+", metavar="FILE|FOLDER|GLOB", help="what to caption")
    result.add_argument(
        "--model",
        required=True,
        help="a bundle/ directory, a run's folder, or a .ckpt (`python -m src.train` leaves them)",
    )
    result.add_argument(
        "--regions", metavar="PATH", help="the pictures' regions, for a captioner of regions computed beforehand"
    )
    result.add_argument("-o", "--output", type=Path, help="write a TSV `img_path<TAB>caption` here instead of printing")
    result.add_argument("--beam", type=int, help="beam size, instead of the bundle's own search")
    result.add_argument(
        "--length", metavar="WORDS", help="short, medium, long or a number of words, of a captioner of control=length"
    )
    result.add_argument("--language", metavar="TAG", help="such as zh, of a captioner of control=tags")
    result.add_argument("--tags", metavar="TAGS", help='such as "domain=news,style=funny", of one of control=tags')
    result.add_argument("--batch-size", type=int, default=16, help="pictures at a time (default: 16)")
    result.add_argument("--device", help="cpu, cuda, mps (default: the fastest here)")
    result.add_argument(
        "--attention", type=Path, metavar="FOLDER", help="also draw, a picture a file, where each word looked"
    )
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status: 0, 1 where some pictures could not be read, 2 for a wrong call."""
    options = parser().parse_args(arguments)
    keep_freed_memory()
    try:
        pictures = find_pictures(options.pictures, names=options.regions is not None)
        captioner = Captioner.load(options.model, device_name=options.device, regions=options.regions)
        captioner.check_source()
        if options.beam is not None:
            own = {k: v for k, v in captioner.config["generation"].items() if k not in ("_target_", "beam_size")}
            captioner.generation = BeamSearch(options.beam, **own)
        captioner.ask(options.length, options.tags, options.language)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.attention:
        from src.report import attention_figure, nothing

        options.attention.mkdir(parents=True, exist_ok=True)
        if not captioner.model.decoder.attends:
            print("--attention: this captioner does not attend, so there is nothing to draw", file=sys.stderr)
    failed = 0
    drawn: dict[str, int] = {}  # pictures of one name in several folders
    partial = options.output.with_name(options.output.name + ".partial") if options.output else None
    if partial:
        partial.parent.mkdir(parents=True, exist_ok=True)
    out = partial.open("w", encoding="utf-8") if partial else sys.stdout
    bar = tqdm(total=len(pictures), unit="img", disable=None if options.output else True)
    for start in range(0, len(pictures), options.batch_size):
        readable, opened = [], []
        for path in pictures[start : start + options.batch_size]:
            try:
                opened.append(captioner.open(path))
                readable.append(path)
            except (ImageError, RegionsError) as error:
                print(f"error: {error}", file=sys.stderr)
                failed += 1
        found = captioner(opened, options.batch_size, attention=options.attention is not None)
        for path, image, caption in zip(readable, opened, found, strict=True):
            print(f"{path}\t{caption.text}", file=out, flush=True)
            if options.attention and caption.attention is not None:
                if not isinstance(image, Image.Image):  # its regions: of the picture itself there may be no file
                    try:
                        image = captioner.preprocess.decode(path)
                    except ImageError:
                        image = nothing()
                figure = attention_figure(
                    image, caption.words, caption.attention, caption.boxes, preprocess=captioner.preprocess
                )
                drawn[path.stem] = drawn.get(path.stem, 0) + 1
                number = f"-{drawn[path.stem]}" if drawn[path.stem] > 1 else ""
                figure.save(options.attention / f"{path.stem}{number}.png")
        bar.update(len(readable))
    bar.close()
    if partial:
        out.close()
        os.replace(partial, options.output)
    if failed:
        print(f"{failed} of {len(pictures)} pictures could not be read", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
