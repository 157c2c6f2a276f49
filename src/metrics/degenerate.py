"""Signs that a captioner has stopped to look: what no score names, and a glance at its captions shows at once."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

SAME = 1 / 3
"""Of the pictures, above which share one caption is an alarm."""
COLLAPSED = 0.02
"""Of the references' different words, below which the captions use too few: good ones use about a tenth."""
FEWEST = 3
"""Pictures below which nothing is said: of two, two may well be alike."""
_PHRASES = re.compile(r"(?:^|(?<= ))(\S+(?: \S+){1,3})(?: \1){2,}(?= |$)|(?:^|(?<= ))(\S+)(?: \2){3,}(?= |$)")


def repeated(caption: str) -> str | None:
    """The phrase that a caption (space-joined tokens) repeats endlessly, or None: a word four times on end, or two to
    four words three times."""
    found = _PHRASES.search(caption)
    return (found[1] or found[2]) if found else None


def degenerate(captions: Sequence[str], references: Mapping[str, Iterable[str]]) -> list[str]:
    """What is wrong with the captions of many pictures as a whole, a sentence each; nothing where they are sound.

    Args:
        captions: space-joined tokens, one a picture.
        references: the pictures' references, tokenized alike.
    """
    count, alarms = len(captions), []
    if count < FEWEST:
        return []
    empty = sum(not caption for caption in captions)
    if empty:
        alarms.append(f"{empty} of {count} captions are empty")
    commonest, times = (
        Counter(caption for caption in captions if caption).most_common(1)[0] if empty < count else ("", 0)
    )
    if times > SAME * count:
        alarms.append(f"one caption for {times} of {count} pictures: “{commonest}”")
    endless = [caption for caption in captions if repeated(caption)]
    if endless:
        shown = endless[0] if len(endless[0]) <= 80 else endless[0][:79] + "…"
        alarms.append(f"{len(endless)} of {count} captions repeat a phrase endlessly, such as “{shown}”")
    words = {word for caption in captions for word in caption.split()}
    known = {word for group in references.values() for reference in group for word in reference.split()}
    if words and len(words) < COLLAPSED * len(known):
        alarms.append(
            f"the vocabulary has collapsed: all captions together use {len(words)} words, the references {len(known)}"
        )
    return alarms
