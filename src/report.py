"""What a reader looks at: an HTML report of one evaluation or of several, `python -m src.report RUN [RUN …]`."""

import argparse
import base64
import io
import json
import logging
import math
import os
import re
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup, escape
from PIL import Image

from src import overview
from src.charts import Text, swatch
from src.compare import check_same
from src.data.images import ImageError, Pictures, load_image
from src.data.shards import ShardError, pictures_below
from src.data.transforms import Preprocess
from src.figures import FAINT, LONGEST_SIDE, RAMP, SQUASHED, language, nothing, placed
from src.metrics import is_fraction
from src.overview import score_name, score_text
from src.ranges import at_least
from src.results import Evaluation, read_results
from src.translations import CHINESE, both

log = logging.getLogger(__name__)

UNIT = 10_000
"""Attention weights are written as whole numbers of 1 / UNIT."""
SHOWN = frozenset({"Bleu_4", "METEOR", "ROUGE_L", "CIDEr", "SPICE", "CLIPScore"})
"""Scores that stand beside a picture; its others are shown when pictures are sorted by them."""
MOST_ROWS = 5000
"""Of the table of all captions."""


def write_report(
    path: Path,
    evaluations: Sequence[Evaluation],
    *,
    pictures: int = 24,
    images: Pictures | None = None,
    title: str | None = None,
    seed: int = 0,
) -> None:
    """Write one HTML file that needs nothing else: pictures and weights are inside, and nothing is fetched.

    It comes after a long evaluation and so does not fail over one picture: an unreadable one leaves a placeholder that
    names it; attention that does not fit its words and boxes is left out with a warning.

    Args:
        path: the file; its folder is made.
        evaluations: one or more, of the same references; the others are held against the first.
        pictures: how many are shown: a third each the best, the worst and random ones; of several evaluations up to a
            third more, where they differ most.
        images: where they are found; None: in the folder that an evaluation recorded, if it is there.
        title: the heading; None: what was evaluated.
        seed: of the random pictures, and of the tests of differences.

    Raises:
        ValueError: no evaluations, some that cannot be compared, or fewer pictures than 0.
    """
    at_least(0, "report", pictures=pictures)
    at_least(1, "report", evaluations=len(evaluations))
    first, *others = evaluations
    for other in others:
        check_same(first, other)
    names, measure, images = overview.names_of(evaluations), main_score(evaluations), images or _recorded(evaluations)
    labelled = zip(names, evaluations, strict=True)
    html = template("report.html.j2").render(
        title=title or _title(names),
        facts=overview.facts(evaluations),
        names=names,
        origins=[overview.origin(each.meta) for each in evaluations],
        alarms=[(name, alarm) for name, each in labelled for alarm in each.meta.get("alarms") or ()],
        scores=overview.score_rows(evaluations, seed),
        not_computed=overview.not_computed(evaluations, names),
        measure=measure,
        distributions=overview.distributions(evaluations, names),
        charts=overview.length_charts(evaluations, names, measure),
        training=overview.training(evaluations, names),
        mistakes=[overview.mistakes(each) for each in evaluations],
        people=[overview.people(each) for each in evaluations],
        memory=[overview.memory(each) for each in evaluations],
        columns={column: score_name(column) for column in first.columns},
        groups=_group_names(names),
        how_chosen=_how_chosen(names, measure, seed),
        cards=[
            _card(evaluations, images, place, groups)
            for place, groups in chosen(evaluations, measure, pictures, seed).items()
        ],
        listing=_script_data(_listing(evaluations)),
        listed=_listed(first),
        settings=overview.settings(evaluations),
        ramp=RAMP,
        unit=UNIT,
        faint=FAINT,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    # a file name may hold bytes that are not UTF-8
    partial.write_text(html, encoding="utf-8", errors="replace")
    os.replace(partial, path)


def main_score(evaluations: Sequence[Evaluation]) -> str | None:
    """What pictures are ranked by: CIDEr, or else the first score of single pictures that all have."""
    first, *others = evaluations
    shared = [column for column in first.columns if all(column in other.columns for other in others)]
    return "CIDEr" if "CIDEr" in shared else next(iter(shared), None)


def chosen(evaluations: Sequence[Evaluation], measure: str | None, pictures: int, seed: int) -> dict[int, list[str]]:
    """Places of the pictures to be shown, each with its groups: a third of them `best` and a third `worst` by the first
    evaluation's `measure`, the others `random`; then those on which another one differs most, `ahead` and `behind`."""
    first, *others = evaluations
    count, third = len(first.captions), pictures // 3
    groups: dict[int, list[str]] = {}

    def put(places: Sequence[int], group: str) -> None:
        for place in places:
            groups.setdefault(int(place), []).append(group)

    if measure is not None:
        order = _ranked(-first.columns[measure])
        part = min(third, len(order) // 2)
        put(order[:part], "best")
        put(order[::-1][:part], "worst")
    rest = np.array([place for place in range(count) if place not in groups], dtype=int)
    drawn = np.random.default_rng(seed).permutation(rest)[: pictures - len(groups)]
    put(sorted(drawn.tolist()), "random")
    if others and measure is not None:
        apart = np.stack([other.columns[measure] - first.columns[measure] for other in others])
        for most, group, number in ((apart.max(0), "ahead", third - third // 2), (-apart.min(0), "behind", third // 2)):
            put([place for place in _ranked(-most) if most[place] > 0][:number], group)
    return groups


def _ranked(values: np.ndarray) -> list[int]:
    """Places from the lowest value to the highest, those that are no numbers left out."""
    return [place for place in np.argsort(values, kind="stable").tolist() if np.isfinite(values[place])]


def _title(names: Sequence[str]) -> Text:
    first, *others = names
    if not others:
        return both("Evaluation of {name}", name=first)
    rest = others[0] if len(others) == 1 else both("{n} others", n=str(len(others)))
    return both("{first} beside {others}", first=first, others=rest)


def _group_names(names: Sequence[str]) -> dict[str, Text]:
    groups = {group: both(group) for group in ("best", "worst", "random")}
    if len(names) > 1:
        groups["ahead"] = both("{name} ahead", name=names[1]) if len(names) == 2 else both("others ahead")
        groups["behind"] = both("{name} ahead", name=names[0])
    return groups


def _how_chosen(names: Sequence[str], measure: str | None, seed: int) -> Text:
    if measure is None:
        return both("Drawn at random (seed {seed}).", seed=str(seed))
    text = "Best and worst by {score} of {name}; the random ones are drawn from the rest (seed {seed})."
    return both(text, score=score_name(measure), name=names[0], seed=str(seed))


def _listed(first: Evaluation) -> Text | None:
    count = len(first.captions)
    if count <= MOST_ROWS:
        return None
    return both("Only the first {n} of {all}; captions.tsv has all.", n=f"{MOST_ROWS:,}", all=f"{count:,}")


def _listing(evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    """All captions and scores, for the script: scores as whole tenths of what is printed, null where there is none."""
    images = list(evaluations[0].captions)[:MOST_ROWS]
    columns: dict[str, list[list[int | None] | None]] = {}
    for column in evaluations[0].columns:
        scale = 1000 if is_fraction(column) else 10
        columns[column] = [
            [round(scale * value) if math.isfinite(value) else None for value in each.columns[column][: len(images)]]
            if column in each.columns
            else None
            for each in evaluations
        ]
    return {
        "images": [_shown(image) for image in images],
        "captions": [[each.captions[image] for image in images] for each in evaluations],
        "scores": columns,
    }


def _script_data(data: object) -> Markup:
    """JSON inside <script>, which nothing in it can end."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"))


def _shown(image: str) -> str:
    """An image's name, without where the reader's home is."""
    return image if not Path(image).is_absolute() else "/".join(Path(image).parts[-2:])


@cache
def template(name: str) -> jinja2.Template:
    """A page's template, with what its words in two languages need."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"lang": language, "text": _span, "end": _end, "score_name": score_name}
    environment.filters["breakable"] = lambda name: Markup(re.sub(r"([_/])", r"\1<wbr>", str(escape(name))))
    environment.globals |= {"t": lambda text, **values: _span(both(text, **values)), "attribute": _attribute}
    environment.globals["say"] = Markup('<span class="en">{}</span><span class="zh" lang="zh">{}</span>').format
    environment.globals |= {"both": both, "script": _script_data, "swatch": lambda series: Markup(swatch(series))}
    return environment.get_template(name)


def _span(text: Text) -> Markup:
    """A text, which the script can exchange for the Chinese one."""
    if isinstance(text, str):
        return escape(text)
    return Markup('<span data-zh="{}">{}</span>').format(text[1], text[0])


def _end(text: Text) -> Markup:
    """As `_span`, but the end of the tag that the text stands in alone: of <option>, which can hold no other."""
    if isinstance(text, str):
        return Markup(">{}").format(text)
    return Markup(' data-zh="{}">{}').format(text[1], text[0])


def _attribute(name: str, text: str) -> Markup:
    english, chinese = (text, CHINESE[text])
    return Markup('{0}="{1}" data-zh-{0}="{2}"').format(name, english, chinese)


def _recorded(evaluations: Sequence[Evaluation]) -> Pictures | None:
    """The pictures in the folder that an evaluation recorded, where it is known and there."""
    recorded = [each.meta["root"] for each in evaluations if each.meta.get("root")]
    found = next((Path(root) for root in recorded if Path(root).is_dir()), None)
    if recorded and found is None:
        log.warning("%s: no folder of pictures, or of shards and their manifest: the report shows none", recorded[0])
    return None if found is None else pictures_below(found)


def _card(
    evaluations: Sequence[Evaluation], images: Pictures | None, place: int, groups: Sequence[str]
) -> dict[str, Any]:
    """What the template shows of a picture."""
    first = evaluations[0]
    image = list(first.captions)[place]
    path = Path(images.place if images else "") / image
    name = "/".join(path.parts[-2:])
    references = first.references[image]
    card: dict[str, Any] = {
        "name": name,
        "groups": groups,
        "alt": references[0] if references else f"Picture {path.name}",
        "references": references,
        "picture": None,
        "problem": name,
    }
    picture: Image.Image | None = None
    try:
        source = path if images is None else images.find(image)
        regions = any(each.meta.get("regions") for each in evaluations)
        if source is None or (regions and isinstance(source, Path) and not source.is_file()):
            picture = nothing()  # there need be no file
        elif images is not None:
            picture = load_image(source, draft=2 * LONGEST_SIDE)
    except (ImageError, ShardError) as error:
        log.warning("not shown in the report: %s", error)
        card["problem"] = str(error).replace(str(path), name)
    if picture is not None:
        picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=75, optimize=True, progressive=True)
        card["picture"] = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
        card["aspect"] = picture.width / picture.height
    card["captions"] = [_caption(each, place, image, picture) for each in evaluations]
    keys = list(dict.fromkeys(key for caption in card["captions"] for key in caption["scores"]))
    card["scores"] = {key: [caption["scores"].get(key) for caption in card["captions"]] for key in keys}
    card["differing"] = len({caption["caption"] for caption in card["captions"]}) > 1
    return card


def _aligned(caption: str, words: Sequence[str]) -> list[tuple[str, str]]:
    """The caption cut into (what stands between, word), its end as (…, ""); the words alone where it does not
    hold them in order, as when a tokenizer joins them otherwise."""
    parts, at = [], 0
    for word in words:
        found = caption.find(word, at)
        if found < 0:
            space = "" if language(caption) == "zh" else " "
            return [(space if i else "", word) for i, word in enumerate(words)]
        parts.append((caption[at:found], word))
        at = found + len(word)
    return [*parts, (caption[at:], "")] if at < len(caption) else parts


def _quantised(weights: np.ndarray) -> np.ndarray:
    """(W, R) weights as whole numbers of 1 / UNIT whose rows keep their sums: what rounding down leaves over
    goes to those with the largest remainders."""
    scaled = weights * UNIT
    whole = np.floor(scaled).astype(np.int64)
    missing = np.rint(scaled.sum(1)).astype(np.int64) - whole.sum(1)
    rank = np.argsort(np.argsort(whole - scaled, axis=1, kind="stable"), axis=1)
    return whole + (rank < missing[:, None])


def _caption(evaluation: Evaluation, place: int, image: str, picture: Image.Image | None) -> dict[str, Any]:
    """One evaluation's caption of a picture, its scores, and where its words looked on the picture."""
    text, looks = evaluation.captions[image], evaluation.looks.get(image)
    scores = {
        name: round(float(values[place]), 4)
        for name, values in evaluation.columns.items()
        if np.isfinite(values[place])
    }
    some = SHOWN.intersection(scores)
    shown = {
        "caption": text,
        "words": _aligned(text, looks.words) if looks else [(text, "")] if text else [],
        "scores": scores,
        "attention": None,
        "measures": [
            (
                key,
                score_name(key),
                score_text(key, value) if is_fraction(key) else f"{value:g}",
                key in (some or scores),
            )
            for key, value in scores.items()
        ],
    }
    if looks is None or picture is None:
        return shown
    try:
        weights, regions = placed(looks.words, looks.weights, looks.boxes, picture.size, _preprocess(evaluation))
    except ValueError as error:
        log.warning("%s: its attention is left out of the report: %s", image, error)
        return shown
    where: dict[str, Any] = {"boxes": regions.boxes.round(4).tolist()}
    if regions.grid:
        where = {"grid": regions.grid, "extent": regions.extent.round(4).tolist()}
    shown["attention"] = json.dumps(_quantised(weights).tolist(), separators=(",", ":"))
    shown["regions"] = json.dumps(where, separators=(",", ":"))
    return shown


def _preprocess(evaluation: Evaluation) -> Preprocess:
    """How pictures became square."""
    given = evaluation.meta.get("preprocess")
    try:
        return Preprocess(**given) if isinstance(given, Mapping) else SQUASHED
    except TypeError as error:
        raise ValueError(f"preprocess in {evaluation.folder / 'meta.json'}: {error}") from error


# The command

EXAMPLES = """examples:
  python -m src.report runs/base                              runs/base/eval/val/report.html
  python -m src.report runs/base runs/other --split test      comparison.html, in this folder
  python -m src.report runs/base/eval/greedy runs/base/eval/val -o searches.html --pictures 60

RUN is a run's folder or an evaluation's. Several must be of the same references; the first is the one that the others
are held against. The file holds its pictures, and nothing of it is fetched.
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        prog="python -m src.report",
        description="Write an HTML report of an evaluation, or of several beside one another.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="a run's folder or an evaluation's")
    result.add_argument("-o", "--output", type=Path, metavar="FILE.html", help="what to write")
    result.add_argument("--split", default="val", help="of runs, which evaluation in eval/ (%(default)s)")
    result.add_argument("--pictures", type=int, default=24, metavar="N", help="how many are shown (%(default)s)")
    result.add_argument("--title", metavar="T", help="the heading")
    result.add_argument("--seed", type=int, default=0, metavar="N", help="of the random pictures (%(default)s)")
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status: 0, or 2 for a wrong call."""
    options = parser().parse_args(arguments)
    try:
        evaluations = [read_results(run, options.split) for run in options.runs]
        alone = evaluations[0].folder / "report.html"
        output = options.output or (alone if len(evaluations) == 1 else Path("comparison.html"))
        write_report(output, evaluations, pictures=options.pictures, title=options.title, seed=options.seed)
        print(f"{len(evaluations)} evaluation{'s' * (len(evaluations) > 1)}: {output}")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    logging.basicConfig(format="%(levelname)s: %(message)s")
    sys.exit(main())
