"""Several captioners that caption together: the mean of their probabilities, word by word."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from src.captioner import Caption, Captioner
from src.data.images import load_image
from src.data.regions import ReadRegions, RegionsError
from src.decoders import EnsembleDecoder
from src.encoders.base import Features
from src.encoders.precomputed import RegionEncoder
from src.generation.base import Hypotheses, Search
from src.model import CaptioningModel


class EnsembleError(ValueError):
    """Captioners that cannot speak together; the message says which differ, and in what."""


class EnsembleModel(nn.Module):
    """Members' encoders beside each other under one decoder. What a member takes and gives, this takes and gives as a
    tuple, one entry a member."""

    def __init__(self, members: Sequence[CaptioningModel]) -> None:
        super().__init__()
        self.encoders = nn.ModuleList([member.encoder for member in members])
        self.decoder = EnsembleDecoder([member.decoder for member in members])

    def features(self, images: tuple[Any, ...]) -> tuple[Features, ...]:
        """Each member's pixels, or its Features, which stay as they are."""
        pairs = zip(self.encoders, images, strict=True)
        return tuple(each if isinstance(each, Features) else encoder(each) for encoder, each in pairs)

    def memory(self, images: tuple[Any, ...]) -> tuple[Any, ...]:
        """What `features` takes → the decoder's Memory."""
        pairs = zip(self.decoder.members, self.features(images), strict=True)
        return tuple(decoder.prepare(seen) for decoder, seen in pairs)


class EnsembleCaptioner(Captioner):
    """Captioners that may differ in transform, encoder, attention and decoder, but not in what they can say. Each makes
    its own pixels and features of a picture; one search runs over the mean of their probabilities.

    Args:
        members: on one device and in one precision; their weights are shared with this, not copied.
        generation: the search; by default the first member's.

    Raises:
        EnsembleError: captioners of different words or tokenizers, of regions computed beforehand, or none.
    """

    def __init__(self, members: Sequence[Captioner], generation: Search | None = None) -> None:
        if not members:
            raise EnsembleError("an ensemble of no captioners: name one or more")
        first = members[0]
        for number, each in enumerate(members, start=1):
            if each.vocabulary.words != first.vocabulary.words:
                raise EnsembleError(
                    f"captioner {number} has another vocabulary than the first "
                    f"({len(each.vocabulary)} and {len(first.vocabulary)} words, {_difference(first, each)}): an "
                    "ensemble's members are trained on the same captions with the same data.min_count"
                )
            if each.tokenizer.name != first.tokenizer.name:
                raise EnsembleError(
                    f"captioner {number} has tokenizer={each.tokenizer.name} and the first {first.tokenizer.name}: an "
                    "ensemble's members share one"
                )
            if isinstance(each.model.encoder, RegionEncoder):
                raise EnsembleError(
                    f"captioner {number} reads regions computed beforehand, which an ensemble does not: leave it out"
                )
        model = EnsembleModel([each.model for each in members])
        super().__init__(
            model,  # type: ignore[arg-type]
            first.vocabulary,
            first.tokenizer,
            first.preprocess,
            generation or first.generation,
            str(first.device),
        )
        self.dtype = first.dtype
        self.members = list(members)
        self.config = {"generation": first.config.get("generation")}
        self.default, self.control = first.default, first.control
        frames = {(each.preprocess.fit, each.preprocess.seen(1, 1)) for each in members}
        self.same_view = len(frames) == 1
        """Whether all members see the same part of a picture."""

    @classmethod
    def load_all(
        cls,
        paths: Sequence[str | Path],
        generation: Search | None = None,
        device_name: str | None = None,
        precision_name: str = "auto",
        regions: str | Path | None = None,
    ) -> Captioner:
        """Load bundles (see `Captioner.load`): one as a Captioner, several as an ensemble.

        Raises:
            BundleError, RegionsError: as `Captioner.load`.
            EnsembleError: see the class.
        """
        if len(paths) > 1 and regions is not None:
            raise EnsembleError("regions computed beforehand are read by one captioner alone, not by an ensemble")
        members = [Captioner.load(path, generation, device_name, precision_name, regions) for path in paths]
        return members[0] if len(members) == 1 else cls(members, generation)

    def captions(
        self,
        found: Hypotheses,
        alternatives: int = 0,
        seen: Any = None,
        distinct: bool = True,
    ) -> list[Caption]:
        """As a captioner's. Attention, the members' mean, is drawn where all look at the same places."""
        seen = seen or (None,)
        boxes = [each.boxes for each in seen if each is not None]
        alike = self.same_view and all(b.shape == boxes[0].shape and torch.allclose(b, boxes[0]) for b in boxes)
        return super().captions(found if alike else found._replace(attention=None), alternatives, seen[0], distinct)

    def decode(self, picture: str | os.PathLike[str] | bytes) -> Image.Image:
        """A picture file, or its bytes, large enough for every member."""
        drafts = [each.preprocess.draft * (each.preprocess.resize or each.preprocess.size) for each in self.members]
        return load_image(picture, draft=max(drafts) if all(drafts) else None)

    def stacked(self, opened: Sequence[Image.Image | ReadRegions]) -> Any:
        """Pictures as a batch of pixels for each member; those of one transform share theirs."""
        pictures = [load_image(each) for each in opened if isinstance(each, Image.Image)]
        if len(pictures) < len(opened):
            raise RegionsError("an ensemble reads pictures, not regions computed beforehand")
        pixels = {
            each.preprocess: torch.stack([each.preprocess(picture) for picture in pictures]).to(self.device)
            for each in {each.preprocess: each for each in self.members}.values()
        }
        return tuple(pixels[each.preprocess] for each in self.members)


def _difference(first: Captioner, other: Captioner) -> str:
    """A word that only one of two captioners has, or that their order differs."""
    for one, two, name in ((first, other, "only the first"), (other, first, "the first does not")):
        if alone := [word for word in one.vocabulary.words if word not in set(two.vocabulary.words)]:
            return f"{name} {'know' if 'not' in name else 'knows'} {alone[0]!r}"
    return "in another order"
