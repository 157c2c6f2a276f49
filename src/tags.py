"""What pictures show, as tags: `python -m src.tags photos/ -o tags.tsv --html tags.html`."""

import argparse
import base64
import hashlib
import importlib
import io
import itertools
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import jinja2
from PIL import Image, ImageOps
from tqdm import tqdm

from src.captioner import Captioner
from src.config import keep_freed_memory
from src.data.features import state_digest
from src.data.images import ImageError, load_image
from src.data.regions import ReadRegions, RegionsError
from src.ensemble import EnsembleCaptioner
from src.figures import language
from src.files import encodable, read_in_part, write_atomically
from src.metrics.content import ContentWords
from src.metrics.mistakes import FUNCTION_WORDS
from src.metrics.named import Form, split_words
from src.metrics.tokenize import share_of_chinese
from src.picture_flags import add_computing_flags, add_model_flag, check_computing, models_and_pictures
from src.pictures import find_pictures
from src.predictions import read_references
from src.runs import csv_table, text_table
from src.search_flags import add_search_flags, chosen_search
from src.terminal import Guarded, guarded

PARTS = ("objects", "attributes", "actions", "counts")
EXAMPLES = 3
"""Pictures that a summary names for a tag."""
SAMPLES = 10
MOST_ROWS = 10
"""Tags of a part in the printed summary."""
MOST_THUMBNAILS = 150
SIDE = 144
"""Pixels of a thumbnail: about 6 kB, so that a page of MOST_THUMBNAILS stays near 1 MB."""

_PART = {part: part for part in PARTS} | {"colours": "attributes"}
_PART_OF_SPEECH = {"n": "objects", "v": "actions", "a": "attributes"}  # by the first letter of jieba's tags
_ING = re.compile(r".*[aeiouy].*ing")  # Porter (1980) takes -ing for an ending behind a vowel: "string" has none
_SILENT_WORDS = """
unk isn aren doesn don wasn weren something someone somebody others number piece area object side top bottom middle
back background together away past after during whilst towards toward among nearby doing does making makes going
goes getting gets taking takes using uses
asian asians african africans american americans caucasian hispanic latino oriental indian arab chinese japanese
东西 地方 样子 背景 画面 并排 这是 起来 出来 没有 进行 好像
亚洲 亚洲人 非洲 非洲人 美国 美国人 中国 中国人 日本 日本人 黑人 白人
"""
_SILENT = FUNCTION_WORDS.union(_SILENT_WORDS.split())
"""Words that are no tags by themselves; among them, as in content_words.tsv, peoples: captions guess them."""

# ---------------------------------------------------------------- tags


class Tag(NamedTuple):
    """Something that a picture's captions say of it."""

    part: str
    """One of PARTS."""
    name: str
    confidence: float
    """The share of the captions that say it, in (0, 1]."""


def tags_of(
    captions: Sequence[str],
    words: ContentWords,
    *,
    min_confidence: float = 0.0,
    unlisted: bool = True,
    vocabulary: Collection[str] = (),
) -> list[Tag]:
    """What several captions of one picture say, by part, the surest first.

    Args:
        captions: of one picture, English or Chinese; repeated ones count as often as they are there.
        words: the concepts that are looked for; colours count as attributes. Where half of the captions or more are
            Chinese, a concept is named by its first Chinese form, unless its own name is Chinese.
        min_confidence: tags below are left out.
        unlisted: whether content words that `words` does not have are tags too. English ones that end in -ing are
            actions, others objects; plurals (-s, -es, -ies) count as their singular where that is known, too. Chinese
            ones are what jieba's part-of-speech tags make them (n: objects, v: actions, a: attributes), where rjieba is
            installed; of one character only nouns.
        vocabulary: words that are known besides those of the captions, such as all that the captioner has.
    """
    chinese = _chinese_names(words) if share_of_chinese({"": captions}) >= 0.5 else {}
    listed = [
        {(_PART[part], chinese.get((part, name), name)) for part, names in words.said(each).items() for name in names}
        for each in captions
    ]
    others = [set(_unlisted(each, words)) if unlisted else set() for each in captions]
    known = {name for said in others for _, name in said}
    times = Counter(
        tag
        for said, more in zip(listed, others, strict=True)
        for tag in said | {(part, _singular(name, known, vocabulary)) for part, name in more}
    )
    tags = [Tag(part, name, n / len(captions)) for (part, name), n in times.items()]
    tags.sort(key=lambda tag: (PARTS.index(tag.part), -tag.confidence, tag.name))
    return [tag for tag in tags if tag.confidence >= min_confidence]


@cache
def _chinese_names(words: ContentWords) -> dict[tuple[str, str], str]:
    """The first Chinese form of each part's concept, where its name is not Chinese."""
    chinese: dict[tuple[str, str], str] = {}
    for form, (part, concept) in words.forms.items():
        if language("".join(form)) == "zh" and language(concept) != "zh":
            chinese.setdefault((part, concept), "".join(form))
    return chinese


def _unlisted(caption: str, words: ContentWords) -> Iterator[tuple[str, str]]:
    """Part and name of the content words that are in none of the list's forms."""
    text = split_words(caption)
    free = _free(text, words.finder.said(caption))
    for chinese, group in itertools.groupby(zip(text, free, strict=True), lambda pair: language(pair[0]) == "zh"):
        run = list(group)
        if chinese:
            yield from _chinese("".join(word for word, _ in run), [is_free for _, is_free in run])
            continue
        for word, is_free in run:
            if is_free and word.isalpha() and len(word) > 1 and word not in _SILENT:
                yield "actions" if _ING.fullmatch(word) else "objects", word


def _chinese(text: str, free: Sequence[bool]) -> Iterator[tuple[str, str]]:
    tagger = _tagger()
    start = 0
    for word, kind in tagger(text) if tagger else ():
        end = start + len(word)
        # A word that a form is part of mostly says the same: 玩耍, of which 玩 is listed.
        part = _PART_OF_SPEECH.get(kind[0])
        if part and (len(word) > 1 or kind == "n") and all(free[start:end]) and word not in _SILENT:
            yield part, word
        start = end


@cache
def _tagger() -> Callable[[str], list[tuple[str, str]]] | None:
    """Chinese text → its words and their parts of speech; None where rjieba is not installed."""
    try:
        return importlib.import_module("rjieba").tag
    except ImportError:
        return None


def _free(text: Form, forms: set[Form]) -> list[bool]:
    """Which words of a text are in none of the forms found in it, the longest form first."""
    free = [True] * len(text)
    for form in sorted(forms, key=lambda form: -len(" ".join(form))):
        for start in range(len(text) - len(form) + 1):
            end = start + len(form)
            if text[start:end] == form and all(free[start:end]):
                free[start:end] = [False] * len(form)
    return free


def _singular(name: str, *known: Collection[str]) -> str:
    endings = (("ies", "y"), ("es", ""), ("s", ""))
    singulars = [name.removesuffix(plural) + one for plural, one in endings if name.endswith(plural)]
    return next((each for each in singulars if any(each in words for words in known)), name)


# ---------------------------------------------------------------- the summary


class TagSummary(NamedTuple):
    """How often a tag is in a collection of pictures."""

    part: str
    name: str
    pictures: int
    """That have it."""
    share: float
    """Of all pictures, in (0, 1]."""
    confidence: float
    """The mean over the pictures that have it, in (0, 1]."""
    examples: list[str]
    """Up to EXAMPLES of them, those of the highest confidence first."""


def summarise(tags: Mapping[str, Sequence[Tag]]) -> list[TagSummary]:
    """What is in a collection: `tags` of each picture, no tag twice → a row a tag, by part, the most frequent first.

    Of pictures as sure the first are the examples.
    """
    having: dict[tuple[str, str], dict[str, float]] = {}
    for picture, said in tags.items():
        for part, name, confidence in said:
            having.setdefault((part, name), {})[picture] = confidence
    rows = []
    for (part, name), sure in having.items():
        examples = sorted(sure, key=lambda picture: -sure[picture])[:EXAMPLES]
        rows.append(TagSummary(part, name, len(sure), len(sure) / len(tags), sum(sure.values()) / len(sure), examples))
    return sorted(rows, key=lambda row: (PARTS.index(row.part), -row.pictures, -row.confidence, row.name))


def summary_text(rows: Sequence[TagSummary]) -> str:
    """A table for a terminal, MOST_ROWS tags of each part; shares × 100."""
    columns = ("part", "tag", "pictures", "share", "confidence", "examples")
    shown = []
    for _, group in itertools.groupby(rows, lambda row: row.part):
        for row in itertools.islice(group, MOST_ROWS):
            names = ", ".join(Path(example).name for example in row.examples)
            shown.append(dict(zip(columns, [*row[:4], round(row.confidence, 2), names], strict=True)))
    left = len(rows) - len(shown)
    return text_table(columns, shown) + (f"\nand {left} rarer tags" if left else "")


def summary_csv(rows: Sequence[TagSummary]) -> str:
    """All tags, shares as fractions, a column an example."""
    columns = ("part", "tag", "pictures", "share", "confidence", *(f"example_{n + 1}" for n in range(EXAMPLES)))
    return csv_table(
        columns, [dict(zip(columns, [*row[:3], *map(_rounded, row[3:5]), *row.examples], strict=False)) for row in rows]
    )


def write_page(
    path: Path,
    rows: Sequence[TagSummary],
    captions: Mapping[str, Sequence[str]],
    *,
    model: str,
    samples: int,
    min_confidence: float,
) -> None:
    """Write the summary as one HTML file that fetches nothing, with up to MOST_THUMBNAILS of the examples as pictures.

    Args:
        path: the file; its folder is made.
        rows: from `summarise`.
        captions: of every picture, its best caption first: the thumbnails' alternative text.
        model, samples, min_confidence: the captioner's name, captions a picture and what was left out below; shown at
            the end.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["lang"] = language
    html = environment.get_template("tags.html.j2").render(
        parts=[(part, [row for row in rows if row.part == part]) for part in PARTS],
        thumbnails=_thumbnails(rows),
        captions=captions,
        model=model,
        samples=samples,
        min_confidence=f"{min_confidence:g}",
    )
    write_atomically(path, encodable(html))


def _thumbnails(rows: Sequence[TagSummary]) -> dict[str, tuple[str, str, str]]:
    """Pictures that can be read → number, short name and data URI: one of each tag before a second of any."""
    often = sorted(rows, key=lambda row: -row.pictures)
    wanted = dict.fromkeys(row.examples[n] for n in range(EXAMPLES) for row in often if n < len(row.examples))
    found: dict[str, tuple[str, str, str]] = {}
    for picture in wanted:
        if len(found) == MOST_THUMBNAILS:
            break
        try:
            image = ImageOps.fit(load_image(picture, draft=2 * SIDE), (SIDE, SIDE), Image.Resampling.LANCZOS)
        except ImageError:  # of regions computed beforehand there may be no file
            continue
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=75, optimize=True)
        data = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
        found[picture] = str(len(found)), "/".join(Path(picture).parts[-2:]), data  # not where the reader's home is
    return found


class Agreement(NamedTuple):
    """How often people say what tags of a confidence say."""

    confidence: float
    tags: int
    said: float
    """The share of the tags that at least one person says, in [0, 1]."""


def agreement(
    tags: Mapping[str, Sequence[Tag]], references: Mapping[str, Sequence[str]], words: ContentWords, **options: Any
) -> tuple[list[Agreement], float]:
    """Tags beside what people say of the same pictures: by confidence, rounded to tenths; and the share of the objects
    that two people or more name (one, where there is one) that are among the tags.

    Args:
        tags: of each picture.
        references: people's captions of each.
        words: the concepts that are looked for in them.
        options: further ones of `tags_of`.
    """
    right: Counter[float] = Counter()
    every: Counter[float] = Counter()
    found = wanted = 0
    for picture, own in tags.items():
        group = references[picture]
        theirs = {tag[:2]: round(tag.confidence * len(group)) for tag in tags_of(group, words, **options)}
        for tag in own:
            every[round(tag.confidence, 1)] += 1
            right[round(tag.confidence, 1)] += tag[:2] in theirs
        agreed = {tag for tag, times in theirs.items() if tag[0] == "objects" and times >= min(2, len(group))}
        wanted += len(agreed)
        found += len(agreed & {tag[:2] for tag in own})
    return [Agreement(least, every[least], right[least] / every[least]) for least in sorted(every)], found / max(
        wanted, 1
    )


def agreement_text(rows: Sequence[Agreement], recall: float) -> str:
    """The same for a terminal, × 100."""
    shown = [
        {"confidence": row.confidence, "tags": row.tags, "said by people": f"{100 * row.said:.0f}"} for row in rows
    ]
    total = sum(row.tags for row in rows)
    said = sum(row.said * row.tags for row in rows) / max(total, 1)
    table = text_table(["confidence", "tags", "said by people"], shown)
    found = f"{100 * recall:.0f} % of the objects that two people name are tags"
    return f"{table}\n{100 * said:.0f} % of {total} tags are said by people; {found}"


# ---------------------------------------------------------------- rows and files


def tags_text(tags: Sequence[Tag]) -> str:
    """`objects: dog 0.90, grass 0.70; actions: run 0.50`; empty of none."""
    groups = itertools.groupby(tags, lambda tag: tag.part)
    return "; ".join(
        f"{part}: " + ", ".join(f"{tag.name} {tag.confidence:.2f}" for tag in group) for part, group in groups
    )


def row_text(picture: str, tags: Sequence[Tag], captions: Sequence[str], as_json: bool) -> str:
    """A picture's line of the output."""
    if not as_json:
        return f"{picture}\t{tags_text(tags)}"
    parts = {part: {tag.name: _rounded(tag.confidence) for tag in tags if tag.part == part} for part in PARTS}
    return json.dumps({"img_path": picture, "tags": parts, "captions": list(captions)}, ensure_ascii=False)


def _rounded(share: float) -> float:
    return round(share, 4)


def go_on(partial: Path, settings: Mapping[str, Any]) -> dict[str, list[str]]:
    """The captions of pictures that an interrupted call with the same settings left; begins the file where there is
    none. It is JSON Lines, the settings first.

    Raises:
        ValueError: the file was begun with other settings, or by another command; nothing is changed.
    """
    header, found = json.dumps(settings), {}
    if partial.exists():
        lines = partial.read_text(encoding="utf-8").split("\n")[:-1]  # a line without its end was cut off
        try:
            first, *rows = map(json.loads, lines or [header])
            differing = [name for name in settings if first[name] != settings[name]]
            found = {row["img_path"]: row["captions"] for row in rows}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{partial}: not what this command writes there: delete it to begin anew") from error
        if differing:
            raise ValueError(
                f"{partial}: begun with another {' and '.join(differing)}: call again as then to go on, or delete it "
                "to begin anew"
            )
    write_atomically(partial, "".join(f"{line}\n" for line in (header, *map(_begun, found, found.values()))))
    return found


def _begun(picture: str, captions: Sequence[str]) -> str:
    """A picture's line of the partial file."""
    return json.dumps({"img_path": picture, "captions": captions})


# ---------------------------------------------------------------- the command

EPILOG = """examples:
  python -m src.tags photo.jpg                   a line of tags
  python -m src.tags photos -o tags.tsv --html tags.html
                                                 a folder, and a page to look at; the same call again goes on where it
                                                 was interrupted
  python -m src.tags --model runs/demo/bundle photos -o tags.jsonl --json --samples 20 --min-confidence 0.5
  python -m src.tags --model runs/demo/bundle photos -o tags.tsv --words my_words.tsv --listed-only
  python -m src.tags --model runs/demo/bundle photos -o tags.tsv --references captions.tsv
                                                 how often people say what the tags say, by confidence

Captions are drawn (--search sample) unless another search is asked for; --set temperature=0.7 draws likelier ones.
A tag's confidence is the share of the picture's captions that say it.
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        prog="python -m src.tags",
        description="Say what is in pictures, as tags, and how often in all of them, by a trained captioner.",
        usage="%(prog)s [--model MODEL ...] [FLAGS] FILE|FOLDER|GLOB ...",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument("pictures", nargs="*", metavar="FILE|FOLDER|GLOB", help="what to tag")
    add_model_flag(result)
    result.add_argument(
        "--regions", metavar="PATH", help="the pictures' regions, for a captioner of regions computed beforehand"
    )
    result.add_argument("-o", "--output", type=Path, help="write a TSV `img_path<TAB>tags` here instead of printing")
    result.add_argument("--json", action="store_true", help="JSON Lines instead, with the captions behind the tags")
    result.add_argument(
        "--min-confidence", type=float, default=0.3, metavar="P", help="leave tags out below, in [0, 1] (%(default)s)"
    )
    result.add_argument(
        "--samples", type=int, metavar="K", help=f"captions drawn a picture, of --search sample ({SAMPLES})"
    )
    result.add_argument(
        "--words", type=Path, metavar="FILE", help="your own list, instead of metrics/content_words.tsv"
    )
    result.add_argument("--listed-only", action="store_true", help="no tags but the list's")
    result.add_argument("--summary", type=Path, metavar="FILE.csv", help="write how often every tag is there")
    result.add_argument(
        "--references", type=Path, metavar="FILE", help="people's captions of the pictures, to hold the tags against"
    )
    result.add_argument("--html", type=Path, metavar="FILE.html", help="write the summary as a page with examples")
    result.add_argument(
        "--length", metavar="WORDS", help="short, medium, long or a number of words, of a captioner of control=length"
    )
    result.add_argument("--language", metavar="TAG", help="such as zh, of a captioner of control=tags")
    add_search_flags(result)
    add_computing_flags(result)
    return result


def search_for_tags(options: argparse.Namespace, own: Mapping[str, Any]) -> dict[str, Any]:
    """The search's config that the flags ask for: samples, unless they name another one.

    Raises:
        ValueError: as `chosen_search`, and --samples of a search that draws none.
    """
    other = options.beam is not None or options.include or options.exclude or options.search not in (None, "sample")
    if other and options.samples is not None:
        raise ValueError(f"--samples {options.samples}: of --search sample; of others, --beam N gives N captions")
    if not other:
        count = SAMPLES if options.samples is None else options.samples
        drawn = {"search": "sample", "set": [f"captions={count}", *options.set]}
        options = argparse.Namespace(**{**vars(options), **drawn})
    return chosen_search(options, own) or dict(own)


def said_by_people(path: Path, pictures: Sequence[Path]) -> dict[str, list[str]]:
    """The references of each picture, in a TSV or COCO's JSON, by the pictures' own paths.

    Raises:
        ValueError: the file cannot be used, or has no caption of some picture.
    """
    references = read_references(path)
    found: dict[str, list[str]] = {}
    for picture in pictures:
        try:
            name = picture.resolve().relative_to(path.parent.resolve()).as_posix()
        except ValueError:
            name = picture.name
        image = references.find(name)
        if image is None or image not in references.captions:
            raise ValueError(f"--references {path}: no caption of {picture}")
        found[str(picture)] = references.captions[image]
    return found


def captions_of(captioner: Captioner, opened: Sequence[Image.Image | ReadRegions]) -> list[list[str]]:
    """All captions of the captioner's search for each of what its `open` gave, best first, repeated ones too."""
    found = captioner.search(captioner.features(captioner.stacked(opened)))
    best = captioner.captions(found, captioner.generation.captions - 1, distinct=False)
    return [[each.text, *(other.text for other in each.alternatives)] for each in best]


def caption_pictures(
    captioner: Captioner, pictures: Sequence[Path], batch_size: int, found: dict[str, list[str]], out: TextIO | None
) -> Iterator[str]:
    """Caption the pictures that `found` does not have, into it and as lines into `out`. Yields all that have captions,
    in order, lazily; stderr names those that cannot be read."""
    with tqdm(total=len(pictures), unit="img", disable=None if out else True) as bar:
        for start in range(0, len(pictures), batch_size):
            batch = pictures[start : start + batch_size]
            opened = {}
            for path in batch:
                try:
                    if str(path) not in found:
                        opened[str(path)] = captioner.open(path)
                except (ImageError, RegionsError) as error:
                    print(f"error: {error}", file=sys.stderr)
            if opened:
                new = dict(zip(opened, captions_of(captioner, list(opened.values())), strict=True))
                found |= new
                if out:  # a batch at once: what is drawn depends on a picture's neighbours in it
                    out.write("".join(f"{line}\n" for line in map(_begun, new, new.values())))
                    out.flush()
            yield from (str(path) for path in batch if str(path) in found)
            bar.update(len(batch))


@read_in_part()
@guarded()
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status: 0, 1 where some pictures could not be read, 2 for a wrong call, 130
    where it was interrupted and can go on."""
    command = parser()
    options = command.parse_args(arguments)
    models, named = models_and_pictures(options.model, options.pictures)
    if not named:
        command.error("which pictures? Name files, folders or patterns")
    keep_freed_memory()
    partial = options.output.with_name(options.output.name + ".partial") if options.output else None
    found: dict[str, list[str]] = {}
    try:
        if not 0 <= options.min_confidence <= 1:
            raise ValueError(f"--min-confidence {options.min_confidence:g}: a number from 0 to 1 is wanted")
        check_computing(options)
        for path in (options.output, options.summary, options.html):
            if path and path.is_dir():
                raise ValueError(f"{path}: a folder; name a file to write")
        words = ContentWords.load(options.words)
        pictures = list(map(Path, find_pictures(named, names=options.regions is not None)))
        people = said_by_people(options.references, pictures) if options.references else {}
        captioner = EnsembleCaptioner.load_all(models, device_name=options.device, regions=options.regions)
        captioner.check_source()
        captioner.search_by(search := search_for_tags(options, captioner.config["generation"]))
        captioner.ask(options.length, None, options.language)
        if partial:
            found = go_on(partial, _settings(captioner, search, options))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if found:
        print(f"{partial}: going on, {len(found)} pictures are there", file=sys.stderr)
    if isinstance(sys.stdout, io.TextIOWrapper | Guarded):
        sys.stdout.reconfigure(errors="backslashreplace")  # see encodable
    rule: dict[str, Any] = {"unlisted": not options.listed_only, "vocabulary": frozenset(captioner.vocabulary.words)}
    tags: dict[str, list[Tag]] = {}
    with partial.open("a", encoding="utf-8") if partial else nullcontext() as out:
        try:
            for picture in caption_pictures(captioner, pictures, options.batch_size, found, out):
                captions = found[picture]
                tags[picture] = tags_of(captions, words, min_confidence=options.min_confidence, **rule)
                if not out:
                    print(row_text(picture, tags[picture], captions, options.json), flush=True)
        except KeyboardInterrupt:
            if not out:
                raise
            print(f"interrupted: the same call goes on, {len(found)} pictures are there", file=sys.stderr)
            return 130
    if partial:
        rows = [row_text(picture, tags[picture], found[picture], options.json) for picture in tags]
        write_atomically(options.output, encodable("".join(f"{row}\n" for row in rows)))
    summary = summarise(tags)
    if options.summary:
        write_atomically(options.summary, encodable(summary_csv(summary)))
    if options.html:
        write_page(
            options.html,
            summary,
            {picture: found[picture] for picture in tags},
            model=", ".join("/".join(Path(model).parts[-2:]) for model in models),
            samples=captioner.generation.captions,
            min_confidence=options.min_confidence,
        )
    if partial:
        partial.unlink()  # last: what fails above is mended by the same call at no cost
    if len(tags) > 1 and summary:
        print(summary_text(summary), file=sys.stdout if options.output else sys.stderr)
    if people:
        print(
            agreement_text(*agreement(tags, people, words, **rule)), file=sys.stdout if options.output else sys.stderr
        )
    if not options.listed_only and _tagger() is None and share_of_chinese(found):
        print("of Chinese words only listed ones are tags: `pip install rjieba` for others", file=sys.stderr)
    if failed := len(pictures) - len(tags):
        print(f"{failed} of {len(pictures)} pictures could not be read", file=sys.stderr)
    return 1 if failed else 0


def _settings(captioner: Captioner, search: Mapping[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """All that a picture's captions depend on, by names for a sentence, as JSON gives it back."""
    members = captioner.members
    configs = [{name: value for name, value in each.config.items() if name != "generation"} for each in members]
    known = json.dumps([configs, members[0].vocabulary.words], default=str)
    settings = {
        "captioner": [state_digest(*(each.model for each in members)), hashlib.sha256(known.encode()).hexdigest()],
        "search": search,
        "length or language": captioner.control,
        "folder of regions": options.regions and os.path.abspath(options.regions),
        "batch size": options.batch_size,
    }
    return json.loads(json.dumps(settings, default=str))


if __name__ == "__main__":
    sys.exit(main())
