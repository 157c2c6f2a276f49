"""What evaluations say in numbers, as the report shows it: tables of scores and mistakes, charts, settings."""

import contextlib
import json
import logging
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import numpy as np

from src.charts import DASHES, Bars, Line, Text, histogram, line_chart, ticks
from src.curves import Gap, Sampled, read_gap, read_sampled
from src.metrics import is_fraction
from src.metrics.captions import METRICS
from src.metrics.mistakes import Mistake
from src.results import Evaluation
from src.significance import holm, randomization
from src.translations import both, joined, known

log = logging.getLogger(__name__)

DRAWS = 2000
"""Of the tests of differences, which only mark them; `python -m src.compare` draws more."""
LEVEL = 0.05
"""Of p-values, below which a difference is marked."""
MOST_MISTAKES = 10
SIZE = (360, 230)
"""Pixels of a chart, about as large as a phone shows it."""
LONGEST = 60
"""Words of a caption, beyond which all are counted together."""
FEWEST = 5
"""Captions of a length, below which their mean is not drawn."""
ELSEWHERE = frozenset({"root", "not_computed", "alarms"})
"""Of meta.json, what is no setting."""
NO_DIFFERENCE = frozenset({"images", "reference_length"})
"""Scores that are the same for all."""


def score_text(name: str, value: float | int | str | None) -> str:
    """A score as it is printed: fractions × 100, counts and lengths as they are, None as "not computed"."""
    if value is None:
        return "not computed"
    if isinstance(value, str):
        return value
    if is_fraction(name):
        return f"{100 * value:.1f}"
    return f"{value:,}" if isinstance(value, int) else f"{value:.2f}"


def score_name(name: str) -> Text:
    """A score's name for readers: BLEU-4 for Bleu_4, "mean length" for mean_length."""
    words = re.sub(r"^Bleu_(\d)", r"BLEU-\1", name).replace("ROUGE_L", "ROUGE-L")
    if words.endswith("_word"):
        return both("{score} by word", score=words.removesuffix("_word"))
    return known(words.replace("_", " "))


def discreet(text: str) -> str:
    """The text with absolute paths cut to their last part: not where the reader's home is."""
    return re.sub(r"(?<![\w.:/\\-])(?:/(?:[^\s/:\"']+/)+|[A-Za-z]:\\(?:[^\s\\:\"']+\\)+)", "…/", text)


# ---------------------------------------------------------------- what was evaluated


def names_of(evaluations: Sequence[Evaluation]) -> list[str]:
    """Short names: those that were given, and of folders as much of the end as tells them apart."""
    splits = {each.folder.name if each.folder.resolve().parent.name == "eval" else None for each in evaluations}
    parts = []
    for each in evaluations:
        given = Path(each.name)
        *rest, run, inside, last = ["", "", *each.folder.resolve().parts]
        if each.folder not in (given, given / "eval" / each.folder.name):
            parts.append([each.name])
        elif inside == "eval":
            parts.append([*rest, run if len(splits) == 1 else f"{run}/{last}"])
        elif len(evaluations) == 1:
            parts.append([_source(each.meta) or last])
        else:
            parts.append([*rest, run, inside, last])
    count = 1
    while len(names := ["/".join(row[-count:]) for row in parts]) > len(set(names)) and count < max(map(len, parts)):
        count += 1
    if count == max(map(len, parts)):  # the same one, twice
        names = [row[-1] for row in parts]
    times = Counter[str]()
    for i, name in enumerate(names):
        times[name] += 1
        names[i] = name if times[name] == 1 else f"{name} ({times[name]})"
    return names


def _source(meta: Mapping[str, Any]) -> str:
    """The short name of what made the captions, where it is recorded."""
    model = meta.get("model")
    if isinstance(model, list | tuple):
        return " + ".join(_source({"model": each}) for each in model)
    if isinstance(model, str):
        path = PurePath(model)
        path = path.parent if path.name == "bundle" and path.parent.name else path
        return "/".join(path.parts[-2:]) if not path.is_absolute() else path.name
    if isinstance(meta.get("predictions"), str):
        return PurePath(meta["predictions"]).name
    baseline = meta.get("baseline")
    if isinstance(baseline, Mapping):
        return str(baseline.get("_target_", "")).rpartition(".")[2]
    return ""


def origin(meta: Mapping[str, Any]) -> Text:
    """What made the captions; empty where it is not recorded."""
    for key, text in (
        ("model", "captioner {name}"),
        ("predictions", "captions of {name}"),
        ("baseline", "baseline {name}"),
    ):
        if meta.get(key) and (name := _source({key: meta[key]})):
            return both(text, name=name)
    return ""


def facts(evaluations: Sequence[Evaluation]) -> list[Text]:
    """Data, split, number of pictures, date: in a line under the title."""
    meta = evaluations[0].meta
    dates = sorted({str(each.meta["date"])[:10] for each in evaluations if each.meta.get("date")})
    return [
        *([origin(meta)] if len(evaluations) == 1 and origin(meta) else []),
        *[discreet(str(meta[key])) for key in ("data", "split") if meta.get(key)],
        both("{n} pictures", n=f"{len(evaluations[0].captions):,}"),
        *([both("each reference left out in turn")] if meta.get("leave_one_out") else []),
        *([" – ".join(dict.fromkeys((dates[0], dates[-1])))] if dates else []),
    ]


def settings(evaluations: Sequence[Evaluation]) -> list[tuple[str, list[str]]]:
    """Name and values, one where all agree: what meta.json records, if it is anything, and scores that are words."""
    rows: dict[str, list[str]] = {}
    sources = [
        {name: value for name, value in {**each.meta, **_worded(each.scores)}.items() if name not in ELSEWHERE}
        for each in evaluations
    ]
    for name in dict.fromkeys(name for source in sources for name in source):
        values = [discreet(_setting(source[name])) if name in source else "" for source in sources]
        if set(values) - {"", "null"}:
            rows[name] = values[:1] if len(set(values)) == 1 else values
    return list(rows.items())


def _worded(scores: Mapping[str, Any]) -> dict[str, str]:
    return {name: value for name, value in scores.items() if isinstance(value, str)}


def _setting(value: object) -> str:
    if isinstance(value, Mapping):
        return "\n".join(f"{name}: {_setting(each)}" for name, each in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_setting, value))
    return value if isinstance(value, str) else json.dumps(value)


# ---------------------------------------------------------------- scores


class Row(NamedTuple):
    """A score of every evaluation."""

    name: Text
    main: bool
    """One of METRICS."""
    cells: list[tuple[str, bool]]
    """(text, whether it is a difference to the first): first, then of each other its score and its difference."""


def score_rows(evaluations: Sequence[Evaluation], seed: int) -> list[Row]:
    """The scores that some evaluation has: METRICS first, then the others in their order. A star marks differences
    that are more than the chance of the pictures."""
    every = dict.fromkeys(name for each in evaluations for name in each.scores)
    order = [*(name for name in METRICS if name in every), *(name for name in every if name not in METRICS)]
    rows = []
    for name in order:
        values = [each.scores.get(name) for each in evaluations]
        if not any(isinstance(value, int | float) for value in values):
            continue
        stars = _differ(evaluations, name, seed)
        cells = []
        for i, value in enumerate(values):
            cells.append(("–" if value is None else score_text(name, value), False))
            if i:
                cells.append((_difference(name, values[0], value) + stars[i], True))
        rows.append(Row(score_name(name), name in METRICS, cells))
    return rows


def _difference(name: str, base: Any, value: Any) -> str:
    if not isinstance(base, int | float) or not isinstance(value, int | float) or name in NO_DIFFERENCE:
        return ""
    text = score_text(name, abs(value - base))
    return ("" if not text.strip("0.,") else "+" if value > base else "−") + text


def _differ(evaluations: Sequence[Evaluation], name: str, seed: int) -> list[str]:
    """Of each evaluation a star or nothing."""
    stars = [""] * len(evaluations)
    measured = {}
    for i, each in enumerate(evaluations if name not in NO_DIFFERENCE else ()):
        with contextlib.suppress(ValueError):  # no such score of single pictures
            measured[i] = each.measured(name)
    if 0 in measured and len(measured) > 1:
        first, *others = measured.values()
        p_values = holm(randomization(first, others, DRAWS, seed))
        for i, p in zip(list(measured)[1:], p_values, strict=True):
            stars[i] = "*" if p < LEVEL else ""
    return stars


def not_computed(evaluations: Sequence[Evaluation], names: Sequence[str]) -> list[tuple[list[Text], Text, Text]]:
    """(scores, why, of which evaluations where not of all), each reason once."""
    found: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name, each in zip(names, evaluations, strict=True):
        reasons = each.meta.get("not_computed") or {}
        for score in dict.fromkeys([*each.scores, *reasons]):
            if each.scores.get(score) is None:
                found[str(reasons.get(score, ""))][score].append(name)
    rows: list[tuple[list[Text], Text, Text]] = []
    for reason, scores in found.items():
        some = list(dict.fromkeys(name for group in scores.values() for name in group))
        whose = "" if len(some) == len(evaluations) else both("({names} only)", names=", ".join(some))
        rows.append(([score_name(name) for name in scores], discreet(reason) or both("no reason given"), whose))
    return rows


# ---------------------------------------------------------------- charts


class Chart(NamedTuple):
    """A chart and what it says in words."""

    svg: str
    words: Text


def _scaled(name: str, values: np.ndarray) -> np.ndarray:
    """Values as they are printed, those that are numbers."""
    return (100 if is_fraction(name) else 1) * values[np.isfinite(values)]


def distributions(evaluations: Sequence[Evaluation], names: Sequence[str]) -> dict[str, Chart]:
    """Histograms by score of single pictures, of every score with more than two values; of BLEU only BLEU-4."""
    charts = {}
    every = dict.fromkeys(column for each in evaluations for column in each.columns)
    for column in every:
        longest = re.sub(r"^Bleu_[123]", "Bleu_4", column)
        if column in ("length", "reference_length") or (longest != column and longest in every):
            continue
        own = {
            i: _scaled(column, each.columns[column])
            for i, each in enumerate(evaluations)
            if np.isfinite(each.columns.get(column, np.empty(0))).any()
        }
        if not own or len(np.unique(np.concatenate(list(own.values())))) < 3:
            continue
        edges, beyond = _edges(np.concatenate(list(own.values())))
        bars, words = [], []
        for i, values in own.items():
            counts = np.histogram(values.clip(edges[0], edges[-1]), edges)[0]
            bars.append(Bars(names[i] if len(own) > 1 else "", counts.tolist(), i))
            low, middle, high = (f"{value:.1f}" for value in np.quantile(values, [0.25, 0.5, 0.75]))
            words.append(
                both(
                    "{name}: median {middle}, middle half {low} to {high}",
                    name=names[i],
                    middle=middle,
                    low=low,
                    high=high,
                )
            )
        score = score_name(column)
        title = both("{score} of single pictures", score=score)
        across = _times_100(score) if is_fraction(column) else score
        charts[column] = Chart(
            histogram(bars, edges, title=title, across=across, up=both("pictures"), beyond=beyond, size=SIZE),
            joined(words),
        )
    return charts


def _times_100(score: Text) -> Text:
    return f"{score} × 100" if isinstance(score, str) else (f"{score[0]} × 100", f"{score[1]} × 100")


def _edges(values: np.ndarray) -> tuple[list[float], bool]:
    """Twenty to thirty bins of round width; the few highest values are all counted in the last."""
    low, high = min(0.0, float(values.min())), float(np.quantile(values, 0.995))
    edges = ticks(low, high if high > low else low + 1, 30)
    return edges, bool(values.max() > edges[-1])


def length_charts(
    evaluations: Sequence[Evaluation], names: Sequence[str], column: str | None
) -> list[tuple[Text, Chart | None]]:
    """Headings and charts: how long captions are, and what captions of each length score."""
    charts = [(both("Lengths of captions"), _lengths(evaluations, names))]
    if column is not None:
        heading = both("{score} by length of caption", score=score_name(column))
        charts.append((heading, _score_by_length(evaluations, names, column, heading)))
    return charts


def _lengths(evaluations: Sequence[Evaluation], names: Sequence[str]) -> Chart | None:
    """How long captions are, before the mean lengths of their pictures' references."""
    own = {i: each.columns["length"] for i, each in enumerate(evaluations) if "length" in each.columns}
    if not own:
        return None
    theirs = evaluations[0].columns.get("reference_length", np.empty(0))
    every = np.concatenate([*own.values(), theirs]).clip(0, LONGEST)
    edges = np.arange(np.rint(every.min()), np.rint(every.max()) + 2) - 0.5
    bars = [Bars(both("references, mean"), _counts(theirs, edges), None)] if len(theirs) else []
    bars += [Bars(names[i], _counts(lengths, edges), i) for i, lengths in own.items()]
    means = [both("{name}: {own} on average", name=names[i], own=f"{x.mean():.1f}") for i, x in own.items()]
    if len(theirs):
        means.append(both("{name}: {own} on average", name=both("references, mean"), own=f"{theirs.mean():.1f}"))
    return Chart(
        histogram(
            bars,
            edges.tolist(),
            title=both("Lengths of captions"),
            across=_unit(evaluations[0]),
            up=both("pictures"),
            beyond=bool(max(x.max() for x in own.values()) > LONGEST),
            size=SIZE,
        ),
        joined(means),
    )


def _counts(lengths: np.ndarray, edges: np.ndarray) -> list[int]:
    counts: list[int] = np.histogram(np.rint(lengths).clip(edges[0], edges[-1]), edges)[0].tolist()
    return counts


def _unit(evaluation: Evaluation) -> Text:
    return both("characters" if evaluation.meta.get("tokenization") == "character" else "words")


def _score_by_length(evaluations: Sequence[Evaluation], names: Sequence[str], column: str, title: Text) -> Chart | None:
    """The mean score of the captions of each length; None where no length has enough."""
    lines = []
    for i, each in enumerate(evaluations):
        if column not in each.columns or "length" not in each.columns:
            continue
        lengths = np.rint(each.columns["length"])
        points, notes = [], []
        for length in np.unique(lengths).tolist():
            values = _scaled(column, each.columns[column][lengths == length])
            if len(values) >= FEWEST:
                points.append((length, float(values.mean())))
                notes.append(f"{length:g}: {values.mean():.1f} ({len(values)})")
        if points:
            name = names[i] if len(evaluations) > 1 else ""
            lines.append(Line(name, points, i, DASHES[i % len(DASHES)], notes=notes))
    if not any(len(line.points) > 1 for line in lines):
        return None
    score = score_name(column)
    return Chart(
        line_chart(
            lines,
            title=title,
            across=_unit(evaluations[0]),
            up=_times_100(score) if is_fraction(column) else score,
            size=SIZE,
        ),
        both("Mean of the captions of a length; lengths with fewer than {n} are left out", n=FEWEST),
    )


# ---------------------------------------------------------------- training


MEASURED = {
    "cross_entropy": "train/{measure} and val/{measure} of metrics.csv. Training is the mean of an epoch’s logged "
    "steps, with dropout and while the weights still move: the gap is an underestimate.",
    "loss": "train/{measure} and val/{measure} of metrics.csv. Training is the mean of an epoch’s logged steps, with "
    "dropout, label smoothing if there is any, and while the weights still move: the gap is an underestimate.",
}
"""What a gap's numbers are."""
SAMPLED = (
    "train_sample/CIDEr and val/CIDEr of metrics.csv: captions of a few training pictures, generated and scored as "
    "those of validation."
)
WARNING = 3
"""The colour and marker of a warning."""


class Training(NamedTuple):
    """How far the evaluated runs were from their training captions."""

    charts: list[Chart]
    notes: list[Text]
    """Which columns these are, and of which runs there are none."""
    tables: list[tuple[str, list[tuple[str, str, str, str]]]]
    """Of each run: epoch, training, validation, gap."""


def training(evaluations: Sequence[Evaluation], names: Sequence[str]) -> Training | None:
    """Training and validation by epoch of the runs that the evaluations belong to: the loss, and the scores of
    generated captions; None where there are none."""
    gaps: dict[Path, tuple[int, Gap | None]] = {}
    sampled: dict[int, Sampled] = {}
    for i, each in enumerate(evaluations):
        run = _run_of(each)
        if run is None or run in gaps:
            continue
        try:
            gaps[run], generated = (i, read_gap(run)), read_sampled(run)
        except ValueError as error:
            log.warning("%s: no over-fitting gap in the report: %s", run, error)
            continue
        if generated is not None:
            sampled[i] = generated
    found = [(i, gap) for i, gap in gaps.values() if gap is not None]
    notes = [both(MEASURED[measure], measure=measure) for measure in dict.fromkeys(gap.measure for _, gap in found)]
    without = "{name}: metrics.csv has no one measure of both training and validation, so no gap is shown."
    notes += [both(without, name=names[i]) for i, gap in gaps.values() if gap is None]
    charts = [_losses(found, names)] if found else []
    if sampled:
        charts.append(_generated(sampled, names))
        notes.append(both(SAMPLED))
    if not (charts or notes):
        return None
    return Training(charts, notes, [(names[i], _by_epoch(gap)) for i, gap in found])


def _losses(found: Sequence[tuple[int, Gap]], names: Sequence[str]) -> Chart:
    lines = [line for i, gap in found for line in _pair(i, gap, names, len(found) == 1)]
    nats = all(gap.measure == "cross_entropy" for _, gap in found)
    svg = line_chart(
        lines,
        title=both("Cross-entropy by epoch" if nats else "Loss by epoch"),
        across=both("epoch"),
        up=both("nats a token" if nats else "loss"),
        size=SIZE,
    )
    words = [both("dotted: training, solid: validation")] if len(found) > 1 else []
    words += [
        both(
            "{name}: gap {gap} after epoch {epoch}",
            name=names[i],
            epoch=str(gap.gap[-1][0]),
            gap=_signed(gap.gap[-1][1]),
        )
        for i, gap in found
        if gap.gap
    ]
    return Chart(svg, joined(words))


def _pair(i: int, curves: Gap | Sampled, names: Sequence[str], alone: bool, scale: float = 1) -> list[Line]:
    """Training dotted and hollow, validation solid, in the colour of the evaluation."""
    lines = []
    for of, curve, dash in (("training", curves.training, "2 2.5"), ("validation", curves.validation, "")):
        name: Text = both(of) if alone else names[i] if of == "validation" else ""
        points = [(epoch, scale * value) for epoch, value in curve]
        lines.append(Line(name, points, i, dash, hollow=of == "training"))
    return lines


def _generated(sampled: Mapping[int, Sampled], names: Sequence[str]) -> Chart:
    """CIDEr-D of generated captions; the epoch of a warning is marked on the validation's line."""
    lines = [line for i, each in sampled.items() for line in _pair(i, each, names, len(sampled) == 1, scale=100)]
    words = [both("dotted: training, solid: validation")] if len(sampled) > 1 else []
    marks: list[tuple[float, float]] = []
    for i, each in sampled.items():
        if each.warned is None:
            words.append(both("{name}: no warning of over-fitting", name=names[i]))
        else:
            words.append(
                both("{name}: warned of over-fitting after epoch {epoch}", name=names[i], epoch=str(each.warned))
            )
            marks += [(epoch, 100 * value) for epoch, value in each.validation if epoch == each.warned]
    if marks:
        lines.append(Line(both("warning"), marks, series=WARNING, dash="0 9"))
    score = score_name("CIDEr")
    svg = line_chart(
        lines,
        title=both("CIDEr of generated captions by epoch"),
        across=both("epoch"),
        up=_times_100(score),
        size=SIZE,
    )
    return Chart(svg, joined(words))


def _by_epoch(gap: Gap) -> list[tuple[str, str, str, str]]:
    validation, apart = dict(gap.validation), dict(gap.gap)
    return [
        (
            str(epoch),
            f"{value:.3f}",
            f"{validation[epoch]:.3f}" if epoch in validation else "–",
            _signed(apart[epoch]) if epoch in apart else "–",
        )
        for epoch, value in gap.training
    ]


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")


def _run_of(evaluation: Evaluation) -> Path | None:
    """The folder of the run that an evaluation belongs to, where that has metrics.csv."""
    folder = evaluation.folder.resolve()
    model = evaluation.meta.get("model")
    places = [folder.parent.parent] if folder.parent.name == "eval" else []
    places += [Path(model), Path(model).parent] if isinstance(model, str) and model else []
    return next((place.resolve() for place in places if (place / "metrics.csv").is_file()), None)


# ---------------------------------------------------------------- mistakes


def mistakes(evaluation: Evaluation) -> dict[str, tuple[int, list[Mistake]]]:
    """The most frequent ones, and the largest number among them, by kind."""
    return {
        kind: (max((row.of for row in rows[:MOST_MISTAKES]), default=1), rows[:MOST_MISTAKES])
        for kind, rows in evaluation.mistakes.items()
    }


# ---------------------------------------------------------------- people, and training's own words


class Table(NamedTuple):
    """Rows of numbers under a title."""

    title: Text
    note: Text
    heads: list[Text]
    rows: list[list[Text]]


def people(evaluation: Evaluation) -> list[Table]:
    """What captions say of people's gender and age beside what references say (groups.json); empty where these name
    nobody."""
    found = evaluation.people
    if found is None:
        return []
    rows: list[list[Text]] = [
        [known(group), _percent(each["references"]), _percent(each["captions"])]
        for group, each in found["words"].items()
        if each["references"] or each["captions"]
    ]
    tables = [
        Table(both("Words of people"), both("% of sentences that say one"), _heads("", "references", "captions"), rows)
    ]
    for name, each in found["attributes"].items():
        tables += _by_value(known(name), each)
    return tables


def _heads(*names: str) -> list[Text]:
    return [known(name) for name in names]


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _by_value(name: Text, found: Mapping[str, Any]) -> list[Table]:
    """Of an attribute: labels and what captions say, errors, scores, and what goes with wrong words."""
    table = found["table"]
    kinds = [kind for kind in table if any(table[kind].values()) or any(row[kind] for row in table.values())]
    rows: list[list[Text]] = [[known(kind), *(str(table[kind][own]) for own in kinds)] for kind in kinds]
    note = both("rows: the picture’s label; columns: what the caption says")
    tables = [Table(both("{name}: pictures", name=name), note, _heads("", *kinds), rows)]
    errors: list[list[Text]] = [
        [known(value), f"{each['wrong']} / {each['of']}", *_rates(each)] for value, each in found["errors"].items()
    ]
    if found["guessed"]["of"]:
        each = found["guessed"]
        errors.append([both("said of none"), f"{each['wrong']} / {each['of']}", *_rates(each)])
    ratios = [" : ".join(str(found[of][value]) for value in found["values"]) for of in ("references", "captions")]
    note = both(
        "captions that say another value; {values} are {references} by labels, {captions} in captions",
        values=" : ".join(found["values"]),
        references=ratios[0],
        captions=ratios[1],
    )
    heads = _heads("", "wrong", "%", "95 % interval")
    tables.append(Table(both("{name}: errors", name=name), note, heads, errors))
    scores: list[list[Text]] = []
    for each in found["scores"]:
        scale = 100 if is_fraction(each["score"]) else 1
        values = [scale * each["scores"][each[which]] for which in ("first", "second")]
        low, high = (scale * each[end] for end in ("low", "high"))
        star = "*" if low > 0 or high < 0 else ""
        apart = f"{values[0] - values[1]:+.1f}{star} ({low:+.1f} … {high:+.1f})".replace("-", "−")
        scores.append(
            [score_name(each["score"]), f"{each['first']} − {each['second']}", *(f"{v:.1f}" for v in values), apart]
        )
    if scores:
        note = both("* the 95 % interval of the difference leaves out 0 (bootstrap over pictures, no correction)")
        heads = _heads("Score", "groups", "first", "second", "difference")
        tables.append(Table(both("{name}: scores", name=name), note, heads, scores))
    context: list[list[Text]] = [
        [each["concept"], f"{each['label']} → {each['said']}", f"{each['wrong']} / {each['of']}"]
        for each in found["context"]
    ]
    if context:
        note = both("of captions that say the concept, those with the wrong word")
        tables.append(
            Table(both("{name}: what goes with errors", name=name), note, _heads("", "label → said", "wrong"), context)
        )
    return tables


def _rates(each: Mapping[str, Any]) -> list[str]:
    share = each["wrong"] / each["of"] if each["of"] else 0.0
    return [_percent(share), f"{_percent(each['low'])} – {_percent(each['high'])}"]


def memory(evaluation: Evaluation) -> list[Table]:
    """How much of the captions stands word for word in training (memory.json), and which most often."""
    found = evaluation.memory
    if found is None:
        return []
    rows: list[list[Text]] = []
    for who in ("captions", "references"):
        each = found if who == "captions" else found.get("people")
        if each:
            rows.append([both(who), _percent(each["share"]), f"{each['run']:.1f}", f"{each['length']:.1f}"])
    if "own" in found:
        rows.append([both("captions of the same picture"), _percent(found["own"]), "", ""])
    heads = _heads("", "word for word, %", "longest run, words", "length, words")
    note = both("the longest run: words on end that stand so in one training caption, the mean")
    tables = [Table(both("In training"), note, heads, rows)]
    often: list[list[Text]] = [
        [each["caption"], str(each["images"]), str(each["training"])] for each in found["captions"]
    ]
    if often:
        heads = _heads("caption", "pictures", "in training")
        tables.append(
            Table(
                both("Most often"), both("how many pictures get it, and how often it stands in training"), heads, often
            )
        )
    return tables
