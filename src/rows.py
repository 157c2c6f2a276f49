"""How captions of pictures and videos are written: TSV, JSON, subtitles, in one file or a file beside each picture."""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from src.captioner import Caption
from src.distributed import Place, barrier
from src.files import encodable, write_atomically
from src.pictures import is_video

SIDECARS = ("txt", "json", "srt", "vtt")
"""Formats of files beside pictures."""


class Row(NamedTuple):
    """What is said of a picture, or of a part of a video."""

    name: str
    """The file's path or address."""
    captions: Sequence[Caption]
    """Best first; none of a picture that is left out."""
    quality: float | None = None
    """In [0, 1], where it was looked at."""
    span: tuple[float, float] | None = None
    """Seconds of a video: beginning and end."""


class Columns(NamedTuple):
    """What of a caption is written besides its text."""

    score: bool = False
    confidence: bool = False
    quality: bool = False
    flags: bool = False
    """How unfamiliar the picture is, and how firmly the caption stands."""


class Format(NamedTuple):
    """A kind of file: entries, and what stands around them."""

    name: str
    """tsv, jsonl, json, srt, vtt or txt."""
    begin: str = ""
    between: str = "\n"
    end: str = "\n"

    @property
    def subtitles(self) -> bool:
        return self.name in ("srt", "vtt")

    def pieces(self, entries: Iterable[str]) -> Iterator[str]:
        """A whole file, piece by piece."""
        yield self.begin
        number = -1
        for number, entry in enumerate(entries):
            yield (self.between if number else "") + entry
        if self.begin or number >= 0:
            yield self.end

    def entries(self, rows: Sequence[Row], columns: Columns) -> list[str]:
        """A picture's row, or those of a video, as entries of the file."""
        if self.name in ("jsonl", "json"):
            return [encodable(json.dumps(_fields(row, columns), ensure_ascii=False)) for row in rows]
        if self.subtitles:
            said = [row for row in rows if row.captions and row.span]
            return [self._cue(number, row) for number, row in enumerate(said, start=1)]
        if self.name == "txt":
            return [caption.text for row in rows for caption in row.captions]
        return [encodable(line) for row in rows for line in _lines(row, columns)]

    def _cue(self, number: int, row: Row) -> str:
        comma = "," if self.name == "srt" else "."
        start, end = (clock(seconds, comma) for seconds in row.span or ())
        text = "\n".join(caption.text for caption in row.captions)
        return f"{number}\n{start} --> {end}\n{text}\n"


FORMATS = {
    each.name: each
    for each in (
        Format("tsv"),
        Format("jsonl"),
        Format("json", "[\n", ",\n", "\n]\n"),
        Format("srt"),
        Format("vtt", "WEBVTT\n\n"),
        Format("txt"),
    )
}


def format_of(path: Path) -> Format:
    """By a file's ending: jsonl, json, srt, vtt; else TSV."""
    name = path.suffix.lower().removeprefix(".")
    return FORMATS[name] if name in ("jsonl", "json", "srt", "vtt") else FORMATS["tsv"]


def check_output(output: Path, items: Iterable[Path | str] = ()) -> None:
    """Refuse to write over a picture, a video, or something that is read.

    Raises:
        ValueError: one sentence that names the file.
    """
    Image.init()
    same = {item.resolve() for item in items if isinstance(item, Path)}
    if output.resolve() in same or is_video(output) or output.suffix.lower() in Image.EXTENSION:
        raise ValueError(f"{output}: a picture, a video or an input, which is never written over: name another file")


def clock(seconds: float, comma: str = ".") -> str:
    """`00:01:02.500`, as subtitles have it: https://www.w3.org/TR/webvtt1/#webvtt-timestamp; SRT has a comma."""
    total = round(1000 * seconds)
    return f"{total // 3_600_000:02}:{total // 60_000 % 60:02}:{total // 1000 % 60:02}{comma}{total % 1000:03}"


def fragment(row: Row) -> str:
    """A row's name; of a part of a video with its seconds, `clip.mp4#t=1.5,4`, after
    https://www.w3.org/TR/media-frags/#naming-time."""
    return (
        row.name
        if row.span is None
        else row.name + "#t=" + ",".join(f"{x:.3f}".rstrip("0").rstrip(".") for x in row.span)
    )


def _lines(row: Row, columns: Columns) -> list[str]:
    lines = []
    found: list[Caption | None] = [*row.captions] or [None]
    for caption in found:
        cells = [fragment(row), caption.text if caption else ""]
        if columns.score:
            cells.append(f"{caption.score:.4f}" if caption else "")
        if columns.confidence:
            cells.append("" if caption is None or caption.confidence is None else f"{caption.confidence:.3f}")
        if columns.quality:
            cells.append("" if row.quality is None else f"{row.quality:.3f}")
        if columns.flags:
            cells += ["" if value is None else f"{value:.3f}" for value in _flags(row).values()]
        lines.append("\t".join(cells))
    return lines


def _fields(row: Row, columns: Columns) -> dict[str, Any]:
    """A row as plain values: with its words and scores whatever the columns are, but for confidence and quality."""
    best, others = (row.captions[0] if row.captions else None), row.captions[1:]
    fields: dict[str, Any] = {"img_path" if row.span is None else "video": row.name}
    if row.span is not None:
        fields |= {"start": round(row.span[0], 3), "end": round(row.span[1], 3)}
    fields["caption"] = "" if best is None else best.text
    if best is not None:
        fields |= _scores(best, columns)
        if best.words:
            fields |= {"words": best.words, "log_probs": [round(x, 4) for x in best.log_probs]}
        if others:
            fields["alternatives"] = [{"caption": each.text, **_scores(each, columns)} for each in others]
    if columns.quality and row.quality is not None:
        fields["quality"] = round(row.quality, 3)
    if columns.flags:
        fields |= {name: round(value, 3) for name, value in _flags(row).items() if value is not None}
    return fields


def _flags(row: Row) -> dict[str, float | None]:
    """Of a picture's best caption, on each of its lines."""
    best = row.captions[0] if row.captions else None
    return {"unfamiliar": best and best.unfamiliar, "stability": best and best.stability}


def _scores(caption: Caption, columns: Columns) -> dict[str, float]:
    scores = {"score": round(caption.score, 4)}
    if columns.confidence and caption.confidence is not None:
        scores["confidence"] = round(caption.confidence, 3)
    return scores


class Sidecars:
    """A file beside each picture or video: `photo.jpg.txt` of `photo.jpg`. What is there stays, so that a stopped call
    goes on; with `overwrite` it is written anew. The interface is that of `src.parts.Parts`.

    Args:
        items: paths.
        format: of the files.
        overwrite: files that are there, too.
        here: which of several processes this is.
    """

    def __init__(self, items: Sequence[Path], format: Format, overwrite: bool, here: Place) -> None:
        self.format = format
        self.paths = [item.with_name(f"{item.name}.{format.name}") for item in items]
        self.before = [path.stat().st_mtime_ns if path.exists() else None for path in self.paths]
        missing = [number for number, time in enumerate(self.before) if overwrite or time is None]
        self.kept = set(range(len(items))) - set(missing)
        self.done = len(self.kept)
        """Items that have a file already."""
        self.share = missing[here.rank :: here.world]
        """Items that are for this process to do."""
        barrier()  # none writes before all have looked

    def add(self, item: int, entries: Sequence[str]) -> None:
        """Write an item's file; a picture's JSON is its object alone, a video's a list."""
        alone = self.format.name == "json" and not is_video(self.paths[item].stem)
        write_atomically(self.paths[item], f"{entries[0]}\n" if alone else "".join(self.format.pieces(entries)))

    def flush(self) -> None:
        """Every file is written as it is added."""

    def join(self) -> int:
        """When all processes are done: how many items have a file that stayed or was written."""
        barrier()
        now = [path.stat().st_mtime_ns if path.exists() else None for path in self.paths]
        return sum(i in self.kept or now[i] != self.before[i] for i in range(len(now)))
