"""What captions say of people's gender and age beside what people say, and how good they are by group.

After Hendricks et al., 2018 (https://arxiv.org/abs/1803.09797: errors and ratios of gendered words) and Zhao, Wang and
Russakovsky, 2021 (https://arxiv.org/abs/2106.08503: scores by group). A picture's label is what its references say, not
what is so. The words are in `group_words.tsv`, English and Chinese."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from src.metrics.content import ContentWords
from src.metrics.named import Form, Forms, split_words
from src.significance import Measured, bootstrap, interval, wilson

NEUTRAL, MIXED, NOTHING = "neutral", "mixed", "nothing"
"""What a sentence says of an attribute, besides a value: that somebody is there; several values; nobody."""
NONE = "none"
"""The group of forms that name nobody."""
DRAWS = 2000
FEWEST = 10
"""Pictures with a label, below which scores are not set beside one another."""
MOST_CONTEXT = 5
"""Concepts that go with wrong words, an attribute; each at least LEAST_CONTEXT times."""
LEAST_CONTEXT = 3

_LIST = Path(__file__).with_name("group_words.tsv")


class GroupWords:
    """Groups of people's words, and what they say.

    Args:
        forms: each form's group.
        attributes: of each attribute what each group says of it: a value, "neutral" or "-".
    """

    def __init__(self, forms: Mapping[Form, str], attributes: Mapping[str, Mapping[str, str]]) -> None:
        self.forms, self.attributes = dict(forms), {name: dict(says) for name, says in attributes.items()}
        self.groups = [group for group in dict.fromkeys(forms.values()) if group != NONE]
        self.values = {
            name: [value for value in dict.fromkeys(says.values()) if value not in (NEUTRAL, "-")]
            for name, says in self.attributes.items()
        }
        self._finder = Forms(forms)

    @classmethod
    def load(cls, path: Path | None = None) -> "GroupWords":
        """Read a list, by default `group_words.tsv` beside this module, whose first lines describe the form.

        Raises:
            ValueError: no such file, or a row that is not in that form; names file and line.
        """
        return _read(_LIST if path is None else Path(path))

    def said(self, caption: str) -> set[str]:
        """The groups that a caption, raw or tokenized, names."""
        return {self.forms[form] for form in self._finder.said(caption)} - {NONE}

    def value(self, attribute: str, groups: Iterable[str]) -> str:
        """What a sentence that names these groups says of an attribute: a value, MIXED, NEUTRAL or NOTHING."""
        says = {self.attributes[attribute][group] for group in groups} - {"-"}
        values = says - {NEUTRAL}
        return next(iter(values)) if len(values) == 1 else MIXED if values else NEUTRAL if says else NOTHING


def label(statements: Sequence[str]) -> str:
    """What the references of a picture say of an attribute → what more than half of those say that say a value, else
    MIXED; where none does NEUTRAL if one names somebody, or NOTHING."""
    said = Counter(each for each in statements if each not in (NEUTRAL, NOTHING))
    if not said:
        return NEUTRAL if NEUTRAL in statements else NOTHING
    ((most, times),) = said.most_common(1)
    return most if 2 * times > said.total() else MIXED


def group_report(
    captions: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    words: GroupWords,
    content: ContentWords | None = None,
    measured: Mapping[str, Measured] | None = None,
) -> dict[str, Any] | None:
    """Counts and scores by group, as plain values; None where no reference names anybody.

    Args:
        captions: raw, one an image.
        references: raw, of the same images.
        words: the groups.
        content: concepts, to find those that go with a wrong word.
        measured: scores of these images, in the captions' order, to be set beside one another by label.
    """
    ours = [words.said(caption) for caption in captions.values()]
    theirs = [[words.said(reference) for reference in references[image]] for image in captions]
    if not any(groups for each in theirs for groups in each):
        return None
    concepts = [_elsewhere(caption, words, content) for caption in captions.values()] if content else []
    found: dict[str, Any] = {
        "images": len(ours),
        "words": {
            group: {
                "captions": sum(group in said for said in ours) / len(ours),
                "references": float(np.mean([np.mean([group in said for said in each]) for each in theirs])),
            }
            for group in words.groups
        },
        "attributes": {},
    }
    for name, values in words.values.items():
        labels = [label([words.value(name, said) for said in each]) for each in theirs]
        said = [words.value(name, groups) for groups in ours]
        found["attributes"][name] = {
            "values": values,
            **_counts(values, labels, said),
            "context": _context(values, labels, said, concepts),
            "scores": _scores(values, labels, measured or {}),
        }
    return found


def flat_scores(report: Mapping[str, Any]) -> dict[str, float]:
    """`gender_error`: of the pictures whose references agree on a gender, the share whose caption says another; nothing
    where there are none, or the list has no such attribute."""
    errors = report["attributes"].get("gender", {}).get("errors", {}).values()
    of = sum(each["of"] for each in errors)
    return {"gender_error": sum(each["wrong"] for each in errors) / of} if of else {}


def summary(report: Mapping[str, Any]) -> str:
    """A few lines of Markdown for a model card."""
    lines = ["## People in its captions", ""]
    lines.append(
        f"Of {report['images']:,} pictures, by what most of their references say (a label of the words, not of who is "
        "seen); docs/bias.md says how it is counted."
    )
    for name, found in report["attributes"].items():
        lines += ["", f"| {name} by the references | pictures | said so | said another | said none |"]
        lines += ["| --- | --- | --- | --- | --- |"]
        for value, each in found["errors"].items():
            said = found["table"][value]
            none = said[NEUTRAL] + said[NOTHING]
            lines.append(f"| {value} | {each['of']} | {said[value]} | {each['wrong']} | {none} |")
        guessed = found["guessed"]
        if guessed["of"]:
            lines += ["", f"Where no reference says it, the caption does in {guessed['wrong']} of {guessed['of']}."]
    return "\n".join(lines)


def _counts(values: Sequence[str], labels: Sequence[str], said: Sequence[str]) -> dict[str, Any]:
    """The table of labels and what captions say; errors by label; the numbers of pictures and captions by value."""
    kinds = [*values, MIXED, NEUTRAL, NOTHING]
    pairs = Counter(zip(labels, said, strict=True))
    table = {kind: {own: pairs[kind, own] for own in kinds} for kind in kinds}
    errors = {}
    for value in values:
        wrong = sum(table[value][other] for other in values if other != value)
        errors[value] = _rate(wrong, sum(table[value].values()))
    unsaid = [table[kind][own] for kind in (NEUTRAL, NOTHING) for own in (*values, MIXED)]
    return {
        "table": table,
        "errors": {value: each for value, each in errors.items() if each["of"]},
        "guessed": _rate(sum(unsaid), sum(sum(table[kind].values()) for kind in (NEUTRAL, NOTHING))),
        "references": {value: labels.count(value) for value in values},
        "captions": {value: said.count(value) for value in values},
    }


def _rate(wrong: int, of: int) -> dict[str, Any]:
    low, high = wilson(wrong, of)
    return {"wrong": wrong, "of": of, "low": low, "high": high}


def _elsewhere(caption: str, words: GroupWords, content: ContentWords) -> set[str]:
    """The concepts that a caption says, but for people."""
    forms = content.finder.said(caption) - words.forms.keys()
    return {content.forms[form][1] for form in forms if content.forms[form][0] != "none"}


def _context(
    values: Sequence[str], labels: Sequence[str], said: Sequence[str], concepts: Sequence[set[str]]
) -> list[dict[str, Any]]:
    """Concepts of captions that say another value than the label: with which the wrong word comes oftener than in the
    captions of that label as a whole."""
    rows: list[dict[str, Any]] = []
    for value in values:
        every: Counter[str] = Counter()
        wrong: Counter[tuple[str, str]] = Counter()
        times = of = 0
        for own, its, seen in zip(labels, said, concepts, strict=False):
            if own != value:
                continue
            of += 1
            every.update(seen)
            if its in values and its != value:
                times += 1
                wrong.update((concept, its) for concept in seen)
        for (concept, its), count in wrong.items():
            if count >= LEAST_CONTEXT and count / every[concept] > times / of:
                rows.append({"label": value, "said": its, "concept": concept, "wrong": count, "of": every[concept]})
    return sorted(rows, key=lambda row: (-row["wrong"], row["of"], row["concept"]))[:MOST_CONTEXT]


def _scores(values: Sequence[str], labels: Sequence[str], measured: Mapping[str, Measured]) -> list[dict[str, Any]]:
    """Of every pair of values with pictures enough, each score and the difference, with its bootstrap's 95 % interval:
    the pictures of either are drawn anew by themselves."""
    places = {value: np.array([i for i, each in enumerate(labels) if each == value], int) for value in values}
    values = [value for value in values if len(places[value]) >= FEWEST]
    rows = []
    for name, whole in measured.items():
        parts = {value: Measured(whole.statistics[places[value]], whole.of) for value in values}
        drawn = {v: bootstrap([part], DRAWS, seed)[0] for seed, (v, part) in enumerate(parts.items())}
        for i, first in enumerate(values):
            for second in values[i + 1 :]:
                low, high = interval(drawn[first] - drawn[second])
                each = {"first": first, "second": second, "low": low, "high": high}
                own = {value: parts[value].whole for value in (first, second)}
                if all(map(math.isfinite, own.values())):
                    rows.append({"score": name, **each, "scores": own})
    return rows


def _read(path: Path) -> GroupWords:
    forms: dict[Form, str] = {}
    lines: dict[Form, int] = {}
    attributes: dict[str, dict[str, str]] | None = None
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"groups={path}: cannot be read as UTF-8 ({error})") from error
    for number, row in enumerate(text.splitlines(), start=1):
        where = f"{path}, line {number}"
        if not row.strip() or row.startswith("#"):
            continue
        columns = [column.strip() for column in row.split("\t")]
        if attributes is None:
            if len(columns) < 4 or columns[0] != "group" or not all(columns):
                raise ValueError(
                    f"{where}: the first row should name the columns: group<TAB>an attribute, or several<TAB>English"
                    f"<TAB>Chinese; it is {row!r}"
                )
            attributes = {name: {} for name in columns[1:-2]}
            continue
        if len(columns) != len(attributes) + 3 or not all(columns):
            raise ValueError(
                f"{where}: {len(attributes) + 3} columns, divided by tabs, with - for one that says nothing; it has "
                f"{len(columns)}{'' if all(columns) else ', some empty'}: {row!r}"
            )
        group, *says, english, chinese = columns
        for name, value in zip(attributes, says, strict=True):
            if value in (MIXED, NOTHING):
                raise ValueError(f"{where}: {value!r} is no value of {name}: it means something else in the results")
            if group in attributes[name]:
                raise ValueError(f"{where}: {group!r} has a row already; join the two")
            attributes[name][group] = value
        for form in (part.strip() for column in (english, chinese) if column != "-" for part in column.split(",")):
            key = split_words(form)
            if not any(word.isalnum() for word in key) or not {"，", "、"}.isdisjoint(key):
                raise ValueError(f"{where}: {form!r} is no form; divide forms by single commas (,)")
            if key in forms:
                raise ValueError(f"{where}: {form!r} is listed in line {lines[key]} too; keep one of them")
            forms[key], lines[key] = group, number
    if not attributes or not forms:
        raise ValueError(f"{path}: no row names a group")
    return GroupWords(forms, attributes)
