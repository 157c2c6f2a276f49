"""What the service computes: captions and tags of pictures, those that can be searched together in one batch."""

import argparse
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch

from src.captioner import Caption, Captioner
from src.data.control import LENGTHS, asked, asked_length, lengths, tag_tokens
from src.data.regions import RegionsError
from src.decoders.base import select_images
from src.detection import check_alone, stabilities
from src.encoders.precomputed import RegionEncoder
from src.generation import ConsensusSearch, SampleSearch, Search
from src.metrics.content import ContentWords
from src.model import instantiate
from src.search_flags import chosen_search
from src.tags import SAMPLES, Tag, tags_of

MOST_BEAMS = 10
LEAST_CONFIDENCE = 0.3
"""Of tags, where none is asked for, as in `python -m src.tags`."""


class Wanted(NamedTuple):
    """How a picture is to be captioned."""

    search: Search
    """The same object for all that are searched alike."""
    control: tuple[str, ...] = ()
    alternatives: int = 0
    attention: bool = False
    distinct: bool = True
    flags: bool = False
    """Whether the caption says how firmly it stands."""


class Task(NamedTuple):
    """One picture, or another piece of work that the computing thread has to do."""

    pixels: Any
    """A batch of one, as `Captioner.stacked` makes it; of other work, None."""
    wanted: Wanted | None = None
    work: Callable[[], Any] | None = None


class Engine:
    """A captioner, asked by many at once, each in another language, length or search.

    Args:
        captioner: of pictures; its own search and tags are the default.

    Raises:
        RegionsError: it is one of regions computed beforehand.
    """

    def __init__(self, captioner: Captioner) -> None:
        if any(isinstance(each.model.encoder, RegionEncoder) for each in captioner.members):
            raise RegionsError(
                "this captioner reads regions computed beforehand, not pictures: serve one that reads pictures"
            )
        self.captioner = captioner
        self.words = ContentWords.load(None)
        self.known = frozenset(captioner.vocabulary.words)
        self.chosen = lru_cache(32)(self._chosen)
        tags = [name[1:-1] for name in captioner.vocabulary.controls if not name.startswith("<length=")]
        languages = [tag.removeprefix("language=") for tag in tags]
        self.languages = [tag for tag in languages if tag.isalpha() and len(tag) in (2, 3)]
        self.tags = [tag for tag, language in zip(tags, languages, strict=True) if language not in self.languages]
        counts = lengths(captioner.vocabulary)
        self.lengths = {name: asked_length(captioner.vocabulary, name) for name in LENGTHS} if counts else {}
        self.alternatives = self.chosen(None, None, 0).captions - 1
        self.default = [name[1:-1] for name in tag_tokens(captioner.default or "")]
        drafts = [
            each.preprocess.draft * (each.preprocess.resize or each.preprocess.size) for each in captioner.members
        ]
        self.draft = max(drafts) if all(drafts) else None
        """What `load_image` takes, as `Captioner.open` gives it."""

    def _chosen(self, beam: int | None, samples: int | None, longest: int) -> Search:
        """A search with so many beams, or of so many drawn captions, by default the captioner's own, that does not cut
        captions of `longest` words."""
        flags = argparse.Namespace(search=None, set=[], include=[], exclude=[], never=[], never_from=None, beam=beam)
        if samples is not None:
            flags.search, flags.set = "sample", [f"captions={samples}"]
        own = self.captioner.config["generation"]
        search: Search = instantiate(chosen_search(flags, own) or own)
        search.bind(self.captioner.vocabulary, self.captioner.tokenizer)
        search.max_length = max(search.max_length, longest)
        return search

    def wanted(
        self,
        language: str | None = None,
        tags: str | None = None,
        length: str | None = None,
        beam: int | None = None,
        alternatives: int = 0,
        attention: bool = False,
        flags: bool = False,
    ) -> Wanted:
        """What the options of a request mean.

        Raises:
            ValueError: the captioner cannot do it; says what it can.
        """
        control = self.control(language, tags, length)
        longest = 0 if length is None else asked_length(self.captioner.vocabulary, length)
        search = self.chosen(beam, None, longest)
        if alternatives >= search.captions:
            raise ValueError(
                f"alternatives={alternatives}: the search gives {search.captions} captions a picture, so "
                f"{search.captions - 1} others at most; a larger beam gives more"
            )
        if flags:
            check_alone(self.captioner)
        return Wanted(search, control, alternatives, attention, flags=flags)

    def wanted_for_tags(self, language: str | None = None, samples: int = SAMPLES) -> Wanted:
        """Drawn captions, of which tags are made.

        Raises:
            ValueError: the captioner does not know the language.
        """
        return Wanted(self.chosen(None, samples, 0), self.control(language), samples - 1, distinct=False)

    def control(self, language: str | None, tags: str | None = None, length: str | None = None) -> tuple[str, ...]:
        """The control tokens of a request, as `Captioner.ask` sets them."""
        given = self.captioner.default if not tags and language is None else tags
        return tuple(asked(self.captioner.vocabulary, length, given, language))

    def tags_of(self, best: Caption, least: float) -> list[Tag]:
        """The tags that a picture's drawn captions agree on."""
        said = [best.text, *(other.text for other in best.alternatives)]
        return tags_of(said, self.words, min_confidence=least, vocabulary=self.known)

    def __call__(self, tasks: Sequence[Task]) -> list[Any]:
        """A Caption of each picture, and of other work what it gives. Features are computed of all pictures at once;
        those of one search and as many control tokens are searched at once. What is drawn depends on its neighbours in
        a batch, so pictures whose captions are drawn are searched one by one: an answer depends on its request alone.
        """
        results: list[Any] = [None if task.work is None else _done(task.work) for task in tasks]
        pictures = [i for i, task in enumerate(tasks) if task.wanted is not None]
        if not pictures:
            return results
        groups: dict[tuple[Any, ...], list[int]] = {}
        for row, i in enumerate(pictures):
            wanted = tasks[i].wanted
            assert wanted is not None
            alone = row if isinstance(wanted.search, SampleSearch | ConsensusSearch) else None
            key = (id(wanted.search), len(wanted.control), wanted.attention, wanted.distinct, alone)
            groups.setdefault(key, []).append(row)
        pixels = _joined([tasks[i].pixels for i in pictures])
        seen = self.captioner.features(pixels)
        for rows in groups.values():
            those = [tasks[pictures[row]].wanted for row in rows]
            for row, caption in zip(rows, self._captions(seen, rows, those), strict=True):  # type: ignore[arg-type]
                results[pictures[row]] = caption
        flagged = [row for row, i in enumerate(pictures) if tasks[i].wanted.flags]  # type: ignore[union-attr]
        if flagged:
            those = [tasks[pictures[row]].wanted for row in flagged]
            captions, controls = [results[pictures[row]] for row in flagged], [each.control for each in those]  # type: ignore[union-attr]
            firm = stabilities(self.captioner, pixels[flagged], captions, controls)
            for row, caption, each in zip(flagged, captions, firm, strict=True):
                results[pictures[row]] = caption._replace(stability=each)
        return results

    def _captions(self, seen: Any, rows: Sequence[int], wanted: Sequence[Wanted]) -> list[Caption]:
        captioner, first = self.captioner, wanted[0]
        names = captioner.vocabulary.control_index
        part = select_images(seen, torch.tensor(rows, device=captioner.device))
        ids = [[names[name] for name in each.control] for each in wanted]
        prefix = torch.tensor(ids, device=captioner.device) if first.control else None
        with captioner.computing():
            memory = captioner.model.memory(part)
            found = first.search(captioner.model.decoder, memory, prefix=prefix, attention=first.attention)
        most = max(each.alternatives for each in wanted)
        captions = captioner.captions(found, most, part, first.distinct)
        return [
            caption._replace(alternatives=caption.alternatives[: each.alternatives])
            for caption, each in zip(captions, wanted, strict=True)
        ]


def _done(work: Callable[[], Any]) -> Any:
    """What it gives, or what went wrong with it: that is not to disturb the pictures beside it."""
    try:
        return work()
    except Exception as error:
        return error


def _joined(batches: Sequence[Any]) -> Any:
    """Batches of one as a batch: tensors, or for an ensemble tuples of them."""
    if isinstance(batches[0], tuple):
        return tuple(_joined(part) for part in zip(*batches, strict=True))
    return torch.cat(list(batches))
