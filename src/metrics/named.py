"""Whether captions name what is in the picture, where it is known what is in it (the built-in scenes)."""

import re
from collections.abc import Iterable, Mapping, Sequence

_CJK = "\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f"
# A Chinese character is a word by itself, and ends an English word beside it; hyphens and spaces only divide.
_WORD = re.compile(rf"[{_CJK}]|(?:(?![{_CJK}])\w)+|[^\w\s-]")

Form = tuple[str, ...]


def named_shares(
    captions: Mapping[str, str], nouns: Mapping[str, Mapping[str, Sequence[Sequence[str]]]]
) -> dict[str, float]:
    """`{"<part>_named": share}`: distinct nouns of the scenes found in the captions over those in the scenes.

    `nouns[image][part]` lists the nouns of a part of the scene ("objects", "backgrounds"), each as the forms
    that count as naming it (`["hot dog", "hot dogs"]`). Sums run over all captioned images before dividing; a
    part without a noun has no share. `nouns` may know more images than are captioned.

    Forms are found as `Forms` finds them, among all that are known anywhere in `nouns`: "a hot dog" does not
    name a dog, whether or not that scene has a hot dog. Raises ValueError for captioned images that `nouns`
    doesn't have.
    """
    if unknown := [image for image in captions if image not in nouns]:
        raise ValueError(f"no nouns are known for {len(unknown)} captioned images, such as {unknown[:5]}")
    forms = Forms(
        split_words(form) for parts in nouns.values() for group in parts.values() for noun in group for form in noun
    )
    found: dict[str, int] = {}
    total: dict[str, int] = {}
    for image, caption in captions.items():
        said = forms.said(caption)
        for part, group in nouns[image].items():
            distinct = {frozenset(map(split_words, noun)) for noun in group}
            total[part] = total.get(part, 0) + len(distinct)
            found[part] = found.get(part, 0) + sum(not said.isdisjoint(noun) for noun in distinct)
    return {f"{part}_named": found[part] / total[part] for part in total if total[part]}


def split_words(text: str) -> Form:
    """The words of a caption or of a form, as they are compared: in no case, each Chinese character and each mark
    by itself. Hyphens and spaces are left out, so that Chinese reads alike whether or not it is split into words."""
    return tuple(_WORD.findall(text.casefold()))


class Forms:
    """Finds forms in captions: English ones as whole words ("hot-dog" too), Chinese ones as substrings. The longest
    is looked for first, wherever it stands, and takes its words away; of two as long that overlap, the first."""

    def __init__(self, forms: Iterable[Form]) -> None:
        self._forms = set(forms) - {()}
        self._most: dict[str, int] = {}  # a form's first word → words in the longest form that it begins
        for form in self._forms:
            self._most[form[0]] = max(len(form), self._most.get(form[0], 0))

    def said(self, caption: str) -> set[Form]:
        text = split_words(caption)
        found = []
        for start, word in enumerate(text):
            for end in range(start + 1, min(start + self._most.get(word, 0), len(text)) + 1):
                if (form := text[start:end]) in self._forms:
                    found.append((-len(" ".join(form)), start, end, form))
        said, taken = set(), [False] * len(text)
        for _, start, end, form in sorted(found):
            if not any(taken[start:end]):
                said.add(form)
                taken[start:end] = [True] * (end - start)
        return said
