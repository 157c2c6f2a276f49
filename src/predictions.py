"""Captions that any program wrote, and the references that they are scored against: TSV, or COCO's JSON forms.

A predictions file with anything wrong in it is refused as a whole, with a list of what is: scores of the captions that
happened to be readable would be another number under the same name.
"""

import posixpath
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from src.data.tsv import BadRow, read_rows
from src.files import read_json

LISTED = 20
"""Of each kind of problem, at most so many are named; the others are counted."""


class PredictionsError(ValueError):
    """Captions or references that cannot be used; the message lists what is wrong with them, a kind a line."""


class References(NamedTuple):
    """What captions are scored against."""

    captions: dict[str, list[str]]
    """Of each image, one or more, raw, in the file's order."""
    root: Path
    """The folder that the images' paths are relative to."""
    silent: frozenset[str]
    """Images that the file knows and has no caption of."""
    names: dict[str, str]
    """What an image may also be called: its file's name with and without the ending, COCO's number."""

    def find(self, name: str) -> str | None:
        """The image that goes by this name, or None."""
        for each in (name, posixpath.normpath(name.replace("\\", "/"))):
            if each in self.captions or each in self.silent:
                return each
            if each in self.names:
                return self.names[each]
        return next((self.names[each] for each in _short_names(name) if each in self.names), None)


def of_images(
    captions: Mapping[str, Sequence[str]],
    root: Path,
    silent: Iterable[str] = (),
    ids: Mapping[str, str] | None = None,
) -> References:
    """References by image path; `ids` are further names of theirs. A short name that two images share is nobody's."""
    silent = frozenset(silent)
    owners: dict[str, set[str]] = {}
    for image in (*captions, *silent):
        for name in _short_names(image):
            owners.setdefault(name, set()).add(image)
    names = {name: next(iter(images)) for name, images in owners.items() if len(images) == 1}
    return References({image: list(group) for image, group in captions.items()}, root, silent, names | dict(ids or {}))


def _short_names(image: str) -> list[str]:
    """val2014/COCO_val2014_000000000042.jpg is COCO_val2014_000000000042.jpg, …042 without .jpg, and 42."""
    base = posixpath.basename(image.replace("\\", "/"))
    stem = posixpath.splitext(base)[0]
    number = re.fullmatch(r"(?:COCO_\w+?_)?0*(\d+)", stem)
    return [base, stem, *([number[1]] if number else [])]


# ---------------------------------------------------------------- references


def read_references(path: Path, images: Path | None = None) -> References:
    """References of a TSV `img_path<TAB>caption`, or of a JSON of COCO's captions (`images`, `annotations`).

    Args:
        path: the file; what ends in .json is COCO's.
        images: the folder of the pictures; None: the file's own.

    Raises:
        PredictionsError: a file that is not there, of another form, or with bad rows, which it lists.
    """
    root = images or path.parent
    if path.suffix.lower() == ".json":
        return _coco_references(path, root)
    rows, bad = read_rows(path)
    if bad or not rows:
        raise _refusal(path, "cannot be used as references", _bad_rows(bad) or ["it has no rows"])
    captions: dict[str, list[str]] = {}
    for _, image, caption, _ in rows:
        captions.setdefault(image, []).append(caption)
    return of_images(captions, root)


def _coco_references(path: Path, root: Path) -> References:
    data = _json(path)
    form = "COCO's captions have images with id and file_name, and annotations with image_id and caption"
    if not isinstance(data, dict) or not all(isinstance(data.get(key), list) for key in ("images", "annotations")):
        raise PredictionsError(f"{path}: no lists `images` and `annotations` in it: {form}")
    try:
        ids = {str(image["id"]): str(image["file_name"]) for image in data["images"]}
        said = [(str(each["image_id"]), each["caption"]) for each in data["annotations"]]
    except (KeyError, TypeError) as error:
        raise PredictionsError(f"{path}: {error!r}: {form}") from None
    captions: dict[str, list[str]] = {name: [] for name in ids.values()}
    problems: dict[str, list[str]] = {"captions of images that `images` lacks": [], "empty captions": []}
    for number, (image, caption) in enumerate(said, 1):
        if image not in ids:
            problems["captions of images that `images` lacks"].append(f"{image} (annotation {number})")
        elif not isinstance(caption, str) or not caption.strip():
            problems["empty captions"].append(f"{image} (annotation {number})")
        else:
            captions[ids[image]].append(" ".join(caption.split()))
    if lines := _listed(problems):
        raise _refusal(path, "cannot be used as references", lines)
    silent = [image for image, group in captions.items() if not group]
    captions = {image: group for image, group in captions.items() if group}
    if not captions:
        raise PredictionsError(f"{path}: no caption of any image in it")
    return of_images(captions, root, silent, ids)


# ---------------------------------------------------------------- predictions


def read_predictions(path: Path, references: References, count: int = 1) -> dict[str, list[str]]:
    """Captions of a TSV `img_path<TAB>caption`, or of a JSON of COCO's results (`[{"image_id": 42, "caption": …}, …]`).

    An image goes by its path in the references, by its file's name if no other has it, or by COCO's number.

    Args:
        path: the file; what ends in .json is COCO's.
        references: of the same images.
        count: captions of each image.

    Returns:
        `count` captions of every image of the references, in their order.

    Raises:
        PredictionsError: missing, surplus, duplicate or empty captions, unknown images, bytes that are not UTF-8: it
            lists all of them.
    """
    rows, problems = _coco_results(path) if path.suffix.lower() == ".json" else _tsv_results(path)
    found: dict[str, list[str]] = {image: [] for image in references.captions}
    places: dict[str, list[str]] = {}
    unknown, surplus, empty = [], [], []
    for place, name, caption in rows:
        image = references.find(name)
        if image is None:
            unknown.append(f"{name} ({place})")
        elif image in references.silent:
            surplus.append(f"{name} ({place})")
        else:
            places.setdefault(image, []).append(place)
            if caption is None:
                empty.append(f"{name} ({place})")
            else:
                found[image].append(caption)
    many = [f"{image} ({', '.join(where)})" for image, where in places.items() if len(where) > count]
    each = "a caption" if count == 1 else f"{count} captions"
    few = [image for image in found if len(places.get(image, ())) < count]
    lines = _listed(
        {
            f"images without {each}": few,
            f"images with more than {each}": many,
            "captions of unknown images": unknown,
            "captions of images that have no references": surplus,
            "empty captions": empty,
            **problems,
        }
    )
    if lines:
        raise _refusal(path, f"cannot be scored ({len(references.captions)} images have references)", lines)
    return found


Rows = list[tuple[str, str, str | None]]
"""(where it stands, image, caption; None: empty)."""


def _tsv_results(path: Path) -> tuple[Rows, dict[str, list[str]]]:
    rows, bad = read_rows(path)
    found: Rows = [(f"line {line}", image, caption) for line, image, caption, _ in rows]
    problems: dict[str, list[str]] = {}
    for each in bad:
        if each.kind == "empty caption":  # its image is one that has a row
            found.append((f"line {each.line}", each.row.split("\t")[0].strip().lstrip("\ufeff"), None))
        else:
            problems.setdefault(each.kind, []).append(f"line {each.line}: {each.reason}")
    return found, problems


def _coco_results(path: Path) -> tuple[Rows, dict[str, list[str]]]:
    data = _json(path)
    form = '[{"image_id": 42, "caption": "a dog"}, …]'
    if isinstance(data, dict) and {"images", "annotations"} <= data.keys():
        raise PredictionsError(f"{path}: these are COCO's references, give them as references=; results are {form}")
    if not isinstance(data, list):
        raise PredictionsError(f"{path}: no list in it: COCO's results are {form}")
    found: Rows = []
    wrong = []
    for number, each in enumerate(data, 1):
        caption = each.get("caption") if isinstance(each, dict) else None
        if not isinstance(each, dict) or "image_id" not in each or not isinstance(caption, str | None):
            wrong.append(f"entry {number}")
        else:
            found.append((f"entry {number}", str(each["image_id"]), " ".join((caption or "").split()) or None))
    return found, {f"entries of another form than {form}": wrong} if wrong else {}


# ---------------------------------------------------------------- what is wrong


def _json(path: Path) -> Any:
    try:
        return read_json(path.read_bytes().decode("utf-8-sig"))
    except FileNotFoundError:
        raise PredictionsError(f"{path}: no such file") from None
    except OSError as error:
        raise PredictionsError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise PredictionsError(
            f"{path}: byte {error.start} (0x{error.object[error.start]:02x}) is not UTF-8: convert it with "
            "iconv -f ENCODING -t UTF-8"
        ) from None
    except ValueError as error:
        raise PredictionsError(f"{path}: not JSON ({error}): it may be cut short") from None


def _bad_rows(bad: Sequence[BadRow]) -> list[str]:
    kinds: dict[str, list[str]] = {}
    for each in bad:
        kinds.setdefault(each.kind, []).append(f"line {each.line}: {each.reason}")
    return _listed(kinds)


def _listed(problems: Mapping[str, Sequence[str]]) -> list[str]:
    """A line a kind of problem, with its number and the first of them."""
    lines = []
    for kind, cases in problems.items():
        if cases:
            more = f" and {len(cases) - LISTED} more" if len(cases) > LISTED else ""
            between = "; " if ": " in cases[0] else ", "
            lines.append(f"{kind} ({len(cases)}): {between.join(cases[:LISTED])}{more}")
    return lines


def _refusal(path: Path, what: str, lines: Sequence[str]) -> PredictionsError:
    return PredictionsError("\n  ".join([f"{path} {what}:", *lines]))
