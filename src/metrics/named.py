"""Whether captions name what is in the picture, where it is known what is in it (the built-in scenes)."""

import re
from collections.abc import Mapping, Sequence

_CJK = "\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f"
_HAS_CJK = re.compile(f"[{_CJK}]")
_GAP = "\0"  # stands where a name was found: no shorter name may be found there again, or across it


def named_shares(
    captions: Mapping[str, str], nouns: Mapping[str, Mapping[str, Sequence[Sequence[str]]]]
) -> dict[str, float]:
    """`{"<part>_named": share}`: distinct nouns of the scenes found in the captions over those in the scenes.

    `nouns[image][part]` lists the nouns of a part of the scene ("objects", "backgrounds"), each as the forms
    that count as naming it (`["hot dog", "hot dogs"]`). Sums run over all captioned images before dividing; a
    part without a noun has no share. `nouns` may know more images than are captioned.

    English forms match whole words in any case ("hot-dog" too), Chinese ones substrings. The longest form
    known anywhere in `nouns` is looked for first and takes its words away: "a hot dog" does not name a dog,
    whether or not that scene has a hot dog. Raises ValueError for captioned images that `nouns` doesn't have.
    """
    if unknown := [image for image in captions if image not in nouns]:
        raise ValueError(f"no nouns are known for {len(unknown)} captioned images, such as {unknown[:5]}")
    forms = {_plain(form) for parts in nouns.values() for group in parts.values() for noun in group for form in noun}
    patterns = [(form, _pattern(form)) for form in sorted(forms - {""}, key=lambda form: (-len(form), form))]
    found: dict[str, int] = {}
    total: dict[str, int] = {}
    for image, caption in captions.items():
        said = _forms_in(_plain(caption), patterns)
        for part, group in nouns[image].items():
            distinct = {frozenset(_plain(form) for form in noun) for noun in group}
            total[part] = total.get(part, 0) + len(distinct)
            found[part] = found.get(part, 0) + sum(not said.isdisjoint(noun) for noun in distinct)
    return {f"{part}_named": found[part] / total[part] for part in total if total[part]}


def _plain(text: str) -> str:
    return re.sub(r"[\s-]+", " ", text).strip().casefold()


def _pattern(form: str) -> re.Pattern[str]:
    if _HAS_CJK.search(form):
        return re.compile(re.escape(form))
    letter = rf"(?:(?![{_CJK}])\w)"  # a Chinese character beside an English word doesn't make it longer
    return re.compile(rf"(?<!{letter}){re.escape(form)}(?!{letter})")


def _forms_in(caption: str, patterns: Sequence[tuple[str, re.Pattern[str]]]) -> set[str]:
    said = set()
    for form, pattern in patterns:
        if form in caption:  # a quick look first: nearly all forms aren't there
            caption, times = pattern.subn(_GAP, caption)
            if times:
                said.add(form)
    return said
