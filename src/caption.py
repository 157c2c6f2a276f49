"""Caption pictures and videos: `python -m src.caption photo.jpg`, `… --model runs/… folder/ "*.png" -o said.tsv`."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from tqdm import tqdm

from src.alerts import RATE, alerts, matches
from src.captioner import Caption, Captioner
from src.config import device, keep_freed_memory
from src.data.images import ImageError, load_image
from src.data.quality import quality
from src.data.regions import ReadRegions, RegionsError
from src.detection import check_alone, detector_of
from src.distributed import Place, device_of, launch, together
from src.ensemble import EnsembleCaptioner
from src.files import check_names
from src.matching import match_calibration, sentence_vectors, unknown_words
from src.parts import Parts
from src.picture_flags import (
    add_computing_flags,
    add_model_flag,
    check_computing,
    depends_on,
    ended,
    models_and_pictures,
)
from src.pictures import fetch, find_pictures, is_address, is_video, naming
from src.rows import FORMATS, SIDECARS, Columns, Row, Sidecars, check_output, clock, format_of
from src.search_flags import add_search_flags, chosen_search
from src.video import CHANGE, Frame, VideoError, duration, frames, scenes

ALERT = 0.8
"""The probability of a match from which there is an alert."""

EPILOG = """examples:
  python -m src.caption photo.jpg                            one caption, printed
  python -m src.caption photos/ -o captions.tsv              a folder; .jsonl and .json have words and scores, too
  python -m src.caption photos/ --sidecar txt                photos/a.jpg.txt beside each photos/a.jpg
  python -m src.caption photo.jpg --language zh --n-best 3   in Chinese, three a picture
  python -m src.caption clip.mp4 -o clip.srt                 a video's scenes as subtitles; .vtt and .json, too
  python -m src.caption clip.mp4 --alert "a dog in the snow" when its picture matches a sentence"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        prog="python -m src.caption",
        description="Caption pictures, and the scenes of videos, with a trained captioner.",
        usage="%(prog)s [--model MODEL ...] [FLAGS] FILE|FOLDER|GLOB|ADDRESS ...",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument("pictures", nargs="*", metavar="FILE|FOLDER|GLOB|ADDRESS", help="what to caption")
    add_model_flag(result)
    result.add_argument(
        "--regions", metavar="PATH", help="the pictures' regions, for a captioner of regions computed beforehand"
    )
    result.add_argument(
        "-o",
        "--output",
        type=Path,
        help="write a TSV `img_path<TAB>caption` here instead of printing, or by its ending JSON Lines (.jsonl), JSON "
        "(.json) or a video's subtitles (.srt, .vtt); the same call again takes up what a stopped one has captioned",
    )
    result.add_argument(
        "--sidecar",
        choices=SIDECARS,
        help="write a file beside each picture or video instead, such as photo.jpg.txt; those that are there stay",
    )
    result.add_argument("--overwrite", action="store_true", help="with --sidecar: write those anew that are there")
    result.add_argument("--urls", action="store_true", help="fetch pictures from addresses (http, https)")
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
    result.add_argument(
        "--flag",
        action="store_true",
        help="two further columns: how unfamiliar the picture is, of a captioner with a detector, and how firmly the "
        "caption stands, which takes several times as long; both in [0, 1]",
    )
    result.add_argument(
        "--refuse-unfamiliar",
        type=float,
        metavar="SHARE",
        help="do not caption pictures that are as unfamiliar as that or more, in [0, 1], such as 0.999",
    )
    result.add_argument(
        "--scene-change",
        type=float,
        default=CHANGE,
        metavar="D",
        help="how much a video's picture changes between scenes, in (0, 1]; less finds more scenes (%(default)s)",
    )
    result.add_argument("--every", type=float, metavar="SECONDS", help="caption long scenes of a video so often, too")
    result.add_argument(
        "--alert",
        action="append",
        default=[],
        metavar="SENTENCE",
        help="instead of a video's captions, the times at which its picture matches a sentence; repeatable",
    )
    result.add_argument(
        "--alert-confidence",
        type=float,
        default=ALERT,
        metavar="P",
        help="how probable a match is to be for that, in [0, 1] (%(default)s)",
    )
    add_computing_flags(result)
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
    if options.flag:
        check_alone(captioner)
    if options.refuse_unfamiliar is not None:
        detector_of(captioner)
    if options.alert:
        match_calibration(captioner)
        sentence_vectors(captioner, options.alert)
    for flag in ("min_confidence", "min_quality", "alert_confidence", "refuse_unfamiliar"):
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


class Opened(NamedTuple):
    """One that could be read."""

    name: str
    opened: Image.Image | ReadRegions | None
    """What the captioner takes; None where the picture is too poor to be captioned."""
    quality: float | None = None
    """Where it was asked for."""
    span: tuple[float, float] | None = None
    """Seconds of a video."""


def open_picture(path: Path | str, captioner: Captioner, options: argparse.Namespace) -> Opened:
    """Read a picture, and look at its quality where that is asked for.

    Raises:
        ImageError, RegionsError: it cannot be read; the message names it.
    """
    opened = None
    seen, poor = None, False
    source = fetch(str(path)) if is_address(path) else path
    with naming(path):
        if options.quality or options.min_quality is not None:  # in full size: the captioner's may be reduced
            seen, poor = looked_at(str(path), load_image(source), options)
        if not poor:
            opened = captioner.open(source)
    return Opened(str(path), opened, seen)


def looked_at(name: str, image: Image.Image, options: argparse.Namespace) -> tuple[float, bool]:
    """A picture's quality, and whether it is too poor; stderr says so."""
    seen = quality(image).score
    poor = seen < (options.min_quality or 0)
    if poor:
        print(f"{name}: not captioned, its quality {seen:.3f} is below {options.min_quality:g}", file=sys.stderr)
    return seen, poor


def video_pictures(path: Path | str, options: argparse.Namespace, bar: tqdm) -> Iterator[Opened]:
    """The middle frames of a video's scenes; the bar moves on by their seconds.

    Raises:
        VideoError: it cannot be read; the message names it.
    """
    for scene in scenes(path, options.scene_change, options.every):
        seen, poor = None, False
        if options.quality or options.min_quality is not None:
            seen, poor = looked_at(f"{path}, {scene.frame.time:.1f} s", scene.frame.image, options)
        yield Opened(str(path), None if poor else scene.frame.image, seen, (scene.start, scene.end))
        bar.update(round(scene.end - scene.start, 1))


def sure_enough(picture: Opened, caption: Caption, options: argparse.Namespace) -> list[Caption]:
    """A caption and its alternatives, those whose confidence is too low left out, and all of a picture that is too
    unfamiliar; where none stays, stderr says so."""
    found, most = [caption, *caption.alternatives], options.refuse_unfamiliar
    if most is not None and caption.unfamiliar is not None and caption.unfamiliar >= most:
        print(
            f"{picture.name}: not captioned, it is unlike the pictures that the captioner learned from (unfamiliar "
            f"{caption.unfamiliar:.3f})",
            file=sys.stderr,
        )
        return []
    least = options.min_confidence
    kept = [each for each in found if least is None or (each.confidence is not None and each.confidence >= least)]
    if not kept:
        print(
            f"{picture.name}: caption left out, its confidence {caption.confidence:.3f} is below {least:g}",
            file=sys.stderr,
        )
    return kept


def wrong_call(options: argparse.Namespace, here: Place) -> str | None:
    """What is wrong with flags that need no captioner, in a sentence."""
    if options.devices < 1:
        return f"--devices {options.devices}: 1 or more"
    if not 0 < options.scene_change <= 1:
        return f"--scene-change {options.scene_change:g}: a number above 0, up to 1, is wanted"
    if options.every is not None and not options.every > 0:
        return f"--every {options.every:g}: seconds, more than 0, are wanted"
    if options.output and options.sidecar:
        return "-o writes one file, --sidecar one beside each picture: leave one of the two out"
    if options.output and options.output.is_dir():
        return f"{options.output}: a folder; name a file to write, or write files beside the pictures with --sidecar"
    ignored = ("n_best", "quality", "min_quality", "min_confidence", "attention", "every", "flag", "refuse_unfamiliar")
    if options.alert and (flag := next((flag for flag in ignored if getattr(options, flag)), None)):
        return f"--{flag.replace('_', '-')}: of captions, and --alert writes none: leave one of the two out"
    if options.overwrite and not options.sidecar:
        return "--overwrite: of --sidecar; a file of -o is always written anew"
    if max(options.devices, here.world) > 1 and not (options.output or options.sidecar):
        return "--devices: several processes write files together; give -o FILE or --sidecar"
    return None


def check_files(items: Sequence[Path | str], options: argparse.Namespace) -> None:
    """Refuse files that cannot be written as the flags say.

    Raises:
        ValueError: one sentence that names the flag.
    """
    clips = [item for item in items if is_video(item)]
    if clips and options.regions is not None:
        raise ValueError(f"{clips[0]}: a video has no regions computed beforehand: leave --regions or the video out")
    if options.alert and len(clips) < len(items):
        still = next(item for item in items if item not in clips)
        raise ValueError(
            f"--alert: of videos, and {still} is none; `python -m src.search` finds pictures by a sentence"
        )
    if options.output:
        check_output(options.output, items)
    if options.output and format_of(options.output).subtitles and (len(clips), len(items)) != (1, 1):
        raise ValueError(f"{options.output}: subtitles are of one video; name one, or write --sidecar srt")
    if options.sidecar in ("srt", "vtt") and len(clips) < len(items):
        still = next(item for item in items if item not in clips)
        raise ValueError(f"--sidecar {options.sidecar}: subtitles are of videos, and {still} is none")
    if not options.sidecar and format_of(options.output or Path()).name == "tsv":
        check_names(items, "rename it, or -o X.jsonl")
    if options.sidecar and (far := next((item for item in items if is_address(item)), None)):
        raise ValueError(f"--sidecar: there is no place beside {far}; give -o FILE")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status: 0, 1 where some pictures could not be read, 2 for a wrong call, 130
    where it was interrupted."""
    command = parser()
    options = command.parse_intermixed_args(arguments)
    models, named = models_and_pictures(options.model, options.pictures)
    if not named:
        command.error("which pictures? Name files, folders or patterns")
    options.model, options.pictures = models, named
    keep_freed_memory()
    with together() as here:
        run = partial(caption_named, here=here, arguments=arguments)
        return ended(run, options, goes_on=bool(options.output or options.sidecar))


def caption_named(options: argparse.Namespace, here: Place, arguments: Sequence[str] | None) -> int:
    """What `main` is asked for, but for its errors."""
    check_computing(options)
    if wrong := wrong_call(options, here):
        raise ValueError(wrong)
    items = find_pictures(options.pictures, options.regions is not None, options.urls, videos=True)
    check_files(items, options)
    if options.devices > 1 and here.world == 1:
        launch(options.devices, "src.caption", arguments)
    device_name = device_of(options.device or device(), here)
    captioner = EnsembleCaptioner.load_all(options.model, device_name=device_name, regions=options.regions)
    captioner.check_source()
    if search := chosen_search(options, captioner.config["generation"]):
        captioner.search_by(search)
    check_flags(options, captioner)
    captioner.ask(options.length, options.tags, options.language)
    for sentence in options.alert:
        if unknown := unknown_words(captioner, sentence):
            said = ", ".join(unknown)
            print(f"“{sentence}”: the captioner does not know {said}, and watches for the rest", file=sys.stderr)
    return caption_all(items, captioner, options, here)


def caption_all(items: Sequence[Path | str], captioner: Captioner, options: argparse.Namespace, here: Place) -> int:
    """Caption this process's share of the pictures and videos, and write or print what is said of them; returns the
    exit status."""
    figures = Figures(options.attention, items, captioner) if options.attention else None
    kind = FORMATS[options.sidecar] if options.sidecar else format_of(options.output or Path())
    columns = Columns(
        options.n_best is not None, options.confidence or bool(options.alert), options.quality, options.flag
    )
    files: Parts | Sidecars | None = None
    if options.sidecar:
        files = Sidecars([Path(item) for item in items], kind, options.overwrite, here)
    elif options.output:
        files = Parts(options.output, depends_on(items, captioner, options), len(items), here)
    if files and files.done and not here.rank:
        also = "; --overwrite writes them anew, as other flags would want" if options.sidecar else ""
        place = options.output or "--sidecar"
        print(f"{place}: {files.done} of {len(items)} are captioned already{also}", file=sys.stderr)
    share = range(len(items)) if files is None else files.share
    quiet = None if files and not here.rank else True
    unread = 0
    with tqdm(total=len(share), unit="img", disable=quiet) as bar:
        for batch in batches(items, share, options.batch_size):
            said: dict[int, list[Row]] = {}
            try:
                if is_video(items[batch[0]]):
                    said[batch[0]] = []  # of a video without an alert, nothing is said, and that is no failure
                    with clip_bar(items[batch[0]], quiet) as seconds:
                        for row in clip_rows(items[batch[0]], captioner, options, figures, seconds):
                            said[batch[0]].append(row)
                            for line in () if files else kind.entries([row], columns):
                                print(line, flush=True)
                else:
                    opened: dict[int, Opened] = {}
                    for number in batch:
                        try:
                            opened[number] = open_picture(items[number], captioner, options)
                        except (ImageError, RegionsError) as error:
                            print(f"error: {error}", file=sys.stderr)
                            unread += 1
                    rows = captioned(iter(opened.values()), captioner, options, figures)
                    for number, row in zip(opened, rows, strict=True):
                        said[number] = [row]
                        for line in () if files else kind.entries([row], columns):
                            print(line, flush=True)
            except VideoError as error:
                print(f"error: {error}", file=sys.stderr)
                unread += 1
                said.clear()
            if files:
                for number, of_item in said.items():
                    files.add(number, kind.entries(of_item, columns))
                files.flush()
            bar.update(len(batch))
    if isinstance(files, Parts):
        unread = len(items) - files.join(kind.pieces)
    elif files:
        unread = len(items) - files.join()
    if here.rank:
        return 0
    if unread:
        print(f"{unread} of {len(items)} pictures could not be read", file=sys.stderr)
    return 1 if unread else 0


def batches(items: Sequence[Path | str], share: Sequence[int], size: int) -> Iterator[list[int]]:
    """Numbers of items that are captioned together: a video, or up to `size` pictures."""
    batch: list[int] = []
    for number in share:
        if batch and (is_video(items[number]) or is_video(items[batch[0]]) or len(batch) == size):
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch


def clip_bar(path: Path | str, quiet: bool | None) -> tqdm:
    """A bar over a video's seconds."""
    length = duration(path)
    return tqdm(total=length and round(length, 1), desc=Path(path).name, unit="s", leave=False, disable=quiet)


def captioned(
    pictures: Iterator[Opened], captioner: Captioner, options: argparse.Namespace, figures: "Figures | None"
) -> Iterator[Row]:
    """What is said of each picture, in order; those that are not to be captioned have nothing."""
    while batch := list(islice(pictures, options.batch_size)):
        found = captioner.stream(
            (each.opened for each in batch if each.opened is not None),
            options.batch_size,
            attention=figures is not None,
            alternatives=(options.n_best or 1) - 1,
            stability=options.flag,
        )
        for picture in batch:
            captions = [] if picture.opened is None else sure_enough(picture, next(found), options)
            if figures and captions:
                figures.draw(picture, captions[0])
            yield Row(picture.name, captions[: options.n_best or 1], picture.quality, picture.span)


def clip_rows(
    path: Path | str, captioner: Captioner, options: argparse.Namespace, figures: "Figures | None", bar: tqdm
) -> Iterator[Row]:
    """What is said of a video's scenes, or the times of its alerts, of whose beginning stderr tells at once.

    Raises:
        VideoError: it cannot be read; the message names it.
    """
    if not options.alert:
        rows = captioned(video_pictures(path, options, bar), captioner, options, figures)
        yield from merged(rows, options.every is not None)
        return

    def watched() -> Iterator[Frame]:
        for frame in frames(path, RATE, side=512):
            bar.update(round(frame.time - bar.n, 1))
            yield frame

    found = matches(captioner, watched(), options.alert, options.batch_size)
    for alert in alerts(found, options.alert, options.alert_confidence):
        if alert.ended:
            said = Caption(alert.sentence, [], [], alert.confidence, confidence=alert.confidence)
            yield Row(str(path), [said], span=(alert.start, alert.end))
        else:
            with bar.external_write_mode(file=sys.stderr):
                print(f"{path}, {clock(alert.start)}: {alert.sentence} ({alert.confidence:.2f})", file=sys.stderr)


def merged(rows: Iterator[Row], wanted: bool) -> Iterator[Row]:
    """Where it is wanted, parts of a video that say the same one after the other as one."""
    last: Row | None = None
    for row in rows:
        if wanted and last and last.span and row.span and _texts(last) == _texts(row):
            last = last._replace(span=(last.span[0], row.span[1]))
            continue
        if last:
            yield last
        last = row
    if last:
        yield last


def _texts(row: Row) -> list[str]:
    return [caption.text for caption in row.captions]


class Figures:
    """Drawings of where words looked, one a picture, in a folder.

    Args:
        folder: made, if need be.
        items: all that are captioned: those of one name, from several folders, are numbered.
        captioner: whose looks they are; stderr says where it has none to draw.
    """

    def __init__(self, folder: Path, items: Sequence[Path | str], captioner: Captioner) -> None:
        self.folder, self.captioner = folder, captioner
        folder.mkdir(parents=True, exist_ok=True)
        if not captioner.model.decoder.attends:
            print("--attention: this captioner does not attend, so there is nothing to draw", file=sys.stderr)
        counts: dict[str, int] = {}
        self.names: dict[str, str] = {}
        for item in items:
            stem = Path(item).stem
            counts[stem] = counts.get(stem, 0) + 1
            self.names[str(item)] = f"{stem}-{counts[stem]}" if counts[stem] > 1 else stem
        self.told = not captioner.model.decoder.attends

    def draw(self, picture: Opened, caption: Caption) -> None:
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
                image = self.captioner.preprocess.decode(picture.name)
            except ImageError:
                image = nothing()
        drawn = attention_figure(
            image, caption.words, caption.attention, caption.boxes, preprocess=self.captioner.preprocess
        )
        when = f"-{picture.span[0]:.1f}s" if picture.span else ""
        drawn.save(self.folder / f"{self.names[picture.name]}{when}.png")


if __name__ == "__main__":
    sys.exit(main())
