"""Which content words captions share with the references: objects, colours, attributes, counts, actions.

A caption that is fluent and general scores well by n-grams; what it leaves out is seen by the kind of word, as in the
categories that SPICE reports (Anderson et al., 2016, https://arxiv.org/abs/1607.08822). Here a list of words stands in
for SPICE's parser: `content_words.tsv`, English and Chinese."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from src.metrics.named import Form, Forms, split_words

PARTS = ("objects", "colours", "attributes", "counts", "actions")
NONE = "none"
"""The part of forms that say nothing, and only keep the forms inside them from being found ("year old")."""

_LIST = Path(__file__).with_name("content_words.tsv")
_COLUMNS = "part<TAB>concept<TAB>English forms<TAB>Chinese forms"


class ContentWords:
    """Concepts by part, and the forms that say them."""

    def __init__(self, forms: Mapping[Form, tuple[str, str]]) -> None:
        """`forms` gives each form (as `named.split_words` splits it) its part, or "none", and its concept."""
        self.forms = dict(forms)
        self.finder = Forms(forms)
        """What finds the forms in a caption."""
        self.concepts: dict[str, list[str]] = {part: [] for part in PARTS}
        """Of each part, in the list's order."""
        for part, concept in dict.fromkeys(self.forms.values()):
            if part != NONE:
                self.concepts[part].append(concept)

    @classmethod
    def load(cls, path: Path | None = None) -> "ContentWords":
        """Read a list, by default `content_words.tsv` beside this module, whose first lines describe the form.

        Raises ValueError, which names file and line, for a row that isn't in that form, a concept with two rows
        in a part, and a form listed twice.
        """
        return cls(_read(_LIST if path is None else Path(path)))

    def said(self, caption: str) -> dict[str, set[str]]:
        """The concepts of each of PARTS that a caption says. It may be raw or tokenized, in any case; forms are
        found as `named.Forms` finds them, among the list's both languages."""
        said: dict[str, set[str]] = {part: set() for part in PARTS}
        for form in self.finder.said(caption):
            part, concept = self.forms[form]
            if part != NONE:
                said[part].add(concept)
        return said


def content_recall(
    captions: Mapping[str, str], references: Mapping[str, Sequence[str]], words: ContentWords
) -> dict[str, np.ndarray]:
    """Of each of PARTS an integer array (N, 2), images in the captions' order: how many of the concepts that the
    references say the caption says too, and how many they say. A part's recall over images, in [0, 1], is the ratio
    of the columns' sums.

    A concept is the references' where two of the image's say it, or the only one does: what one person of five says
    is often taste or an error. `references` may know more images than are captioned. Raises ValueError for captioned
    images without a reference.
    """
    if unknown := [image for image in captions if not references.get(image)]:
        raise ValueError(f"no references are known for {len(unknown)} captioned images, such as {unknown[:5]}")
    counts = {part: np.zeros((len(captions), 2), dtype=np.int64) for part in PARTS}
    for row, (image, caption) in enumerate(captions.items()):
        said = words.said(caption)
        each = [words.said(reference) for reference in references[image]]
        for part in PARTS:
            times = Counter(concept for reference in each for concept in reference[part])
            agreed = {concept for concept, n in times.items() if n >= min(2, len(each))}
            counts[part][row] = len(agreed & said[part]), len(agreed)
    return counts


def _read(path: Path) -> dict[Form, tuple[str, str]]:
    forms: dict[Form, tuple[str, str]] = {}
    rows: dict[tuple[str, str], int] = {}  # the line of a part's concept
    lines: dict[Form, int] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        where = f"{path}, line {number}"
        try:
            row = line.decode("utf-8-sig").strip(" ")
        except UnicodeDecodeError as error:
            raise ValueError(f"{where} is not UTF-8: save the file as UTF-8") from error
        if not row.strip() or row.startswith("#"):
            continue
        columns = [column.strip() for column in row.split("\t")]
        if len(columns) != 4 or not all(columns):
            raise ValueError(
                f"{where} should be {_COLUMNS}, divided by tabs, with - for a language without a form; it has "
                f"{len(columns)} columns{'' if all(columns) else ', some empty'}: {row!r}"
            )
        part, concept, *languages = columns
        if part not in (*PARTS, NONE):
            raise ValueError(f"{where}: there is no part {part!r}; name one of {', '.join((*PARTS, NONE))}")
        if (first := rows.setdefault((part, concept), number)) != number:
            raise ValueError(f"{where}: {part} has {concept!r} in line {first} too; join the two rows")
        if languages == ["-", "-"]:
            raise ValueError(f"{where}: {concept!r} has no form in either language; list one or delete the row")
        for text in (form.strip() for column in languages if column != "-" for form in column.split(",")):
            form = split_words(text)
            if not any(word.isalnum() for word in form) or not {"，", "、", ";", "；"}.isdisjoint(form):
                raise ValueError(f"{where}: {text!r} is no form; divide forms by single commas (,)")
            if form in forms:
                raise ValueError(f"{where}: {text!r} is listed in line {lines[form]} too; keep one of them")
            forms[form], lines[form] = (part, concept), number
    return forms
