"""Captioner: what a user holds. From a bundle to captions of pictures."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from src.bundle import SHIPPED, load_bundle, naming_damage
from src.captions import Caption, Found, Places, captions_of
from src.confidence import Calibration
from src.config import autocast_dtype, device, precision
from src.data.control import asked, asked_length
from src.data.features import in_order
from src.data.images import ImageError, load_image
from src.data.regions import ReadRegions, RegionFiles, RegionsError, padded, region_files
from src.data.tokenizer import Tokenizer
from src.data.transforms import Preprocess
from src.data.vocabulary import Vocabulary
from src.decoders.base import first_tensor, map_tensors
from src.detection import Detector, check_alone, stabilities
from src.encoders.base import Features
from src.encoders.precomputed import RegionEncoder, Regions
from src.generation.base import Hypotheses, Search, self_contained
from src.model import CaptioningModel, instantiate
from src.pictures import Picture, as_image, each_picture, fetch, is_address, naming

READERS = min(8, os.cpu_count() or 1)
"""Threads that open pictures while others are captioned."""


class Captioner:
    """A model with all that its captions depend on.

    Args:
        model: encoder and decoder.
        vocabulary: ids ↔ words.
        tokenizer: words → sentence.
        preprocess: picture → pixels.
        generation: the search.
        device: where to compute; by default the fastest here.
        precision: Lightning's names, or auto.
        control: the control tokens that every caption begins with, such as `<zh>`; see `ask`.
    """

    def __init__(
        self,
        model: CaptioningModel,
        vocabulary: Vocabulary,
        tokenizer: Tokenizer,
        preprocess: Preprocess,
        generation: Search,
        device_name: str | None = None,
        precision_name: str = "auto",
        control: Sequence[str] = (),
    ) -> None:
        self.control = list(control)
        self.device = _device(device_name or device())
        self.model = model.to(self.device).eval()
        self.vocabulary, self.tokenizer = vocabulary, tokenizer
        self.preprocess, self.generation = preprocess, generation
        self.own_limit = generation.max_length
        """The search's, in words, whatever lengths are asked for."""
        generation.bind(vocabulary, tokenizer)
        self.dtype = autocast_dtype(precision(precision_name, self.device.type))
        self.config: dict[str, Any] = {}
        self.regions: RegionFiles | None = None
        """Where pictures' regions are, for a captioner of regions computed beforehand."""
        self.calibration: Calibration | None = None
        """Of confidence."""
        self.matching: Calibration | None = None
        """Of how well a sentence matches a picture (src/matching.py)."""
        self.detector: Detector | None = None
        """Of pictures unlike those that it learned from."""
        self.default: str | Sequence[str] | None = None
        """Tags to ask for where none are asked for."""
        self.members: list[Captioner] = [self]
        """Of an ensemble; else itself."""

    @classmethod
    def load(
        cls,
        path: str | Path = SHIPPED,
        generation: Search | None = None,
        device_name: str | None = None,
        precision_name: str = "auto",
        regions: str | Path | None = None,
    ) -> "Captioner":
        """Load a bundle directory, a run's folder, or a checkpoint.

        Args:
            path: which one, or its name: of one that comes with the code, or of a run in runs/.
            generation: another search than the one it was validated with.
            device_name: cpu, cuda, cuda:1, mps; by default the fastest here.
            precision_name: Lightning's names, or auto.
            regions: where pictures' regions are, for a captioner of regions computed beforehand.

        Raises:
            BundleError: there is no captioner, or a damaged one.
            RegionsError: no such regions, or a captioner that takes none.
        """
        bundle = load_bundle(Path(path))
        with naming_damage(Path(path)):
            tokenizer, preprocess = instantiate(bundle.config["tokenizer"]), instantiate(bundle.config["transform"])
            generation = generation or instantiate(bundle.config["generation"])
        captioner = cls(bundle.model, bundle.vocabulary, tokenizer, preprocess, generation, device_name, precision_name)
        captioner.config, captioner.calibration = bundle.config, bundle.calibration
        captioner.matching, captioner.detector = bundle.matching, bundle.detector
        captioner.default = (bundle.config["control"] or {}).get("default")
        captioner.ask()
        if regions is not None:
            captioner.regions = region_files(bundle.config["encoder"], Path(), regions)
        return captioner

    def ask(
        self,
        length: int | str | None = None,
        tags: str | Sequence[str] | None = None,
        language: str | None = None,
    ) -> None:
        """From now on ask for captions of a length, with tags, in a language: see `src.data.control.asked`. Without
        tags and language those of the captioner's default, where it has one, else any.

        Raises:
            ControlError: the captioner does not know it; says what it knows.
        """
        if not tags and language is None:
            tags = self.default
        self.control = asked(self.vocabulary, length, tags, language)
        self.go_on_for(0 if length is None else asked_length(self.vocabulary, length))

    @contextmanager
    def asking(
        self,
        length: int | str | None = None,
        tags: str | Sequence[str] | None = None,
        language: str | None = None,
    ) -> Iterator[None]:
        """For a `with` block, ask for something else, if for anything; see `ask`."""
        control, limit = self.control, self.generation.max_length
        if length is not None or tags or language is not None:
            self.ask(length, tags, language)
        try:
            yield
        finally:
            self.control, self.generation.max_length = control, limit

    def go_on_for(self, words: int) -> None:
        """From now on the search's own limit does not cut captions of so many words; of 0, it holds again."""
        self.generation.max_length = max(self.own_limit, words)

    def search_by(self, config: Mapping[str, Any]) -> None:
        """From now on search as a config, such as a choice of conf/generation/, says.

        Raises:
            ValueError: what no search can do, or a word that the captioner does not know.
        """
        config = self_contained(config)
        generation = instantiate(config)
        generation.bind(self.vocabulary, self.tokenizer)
        self.generation, self.config = generation, {**self.config, "generation": config}
        self.own_limit = generation.max_length

    def defend_by(self, config: Mapping[str, Any] | None) -> None:
        """From now on transform pictures as a config, such as a choice of conf/defence/, says; None: not at all. Under
        another defence than its own it has no detector, whose features would be others.

        Raises:
            ValueError: what cannot be, or a captioner that takes no pictures.
        """
        for each in self.members:
            before = repr(each.model.encoder.defence)
            each.model.encoder.defend(instantiate(config) if config else None)
            if repr(each.model.encoder.defence) != before:
                each.detector = None
            each.config = {**each.config, "defence": dict(config) if config else None}

    def check_source(self) -> None:
        """Raises RegionsError where the captioner reads regions and none were given."""
        if self.regions is None and any(isinstance(each.model.encoder, RegionEncoder) for each in self.members):
            raise RegionsError(
                "this captioner reads regions computed beforehand, not pictures: give --regions, a folder of .npz or "
                ".npy files or an HDF5 file, as encoder.path was in training"
            )

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Without gradients, in its precision."""
        with (
            torch.no_grad(),  # inference mode would cast the weights anew at every step
            torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None),
        ):
            yield

    def features(self, images: torch.Tensor | Regions | Features) -> Features:
        """Pixels (B, 3, H, W), the frozen stages' cached output (B, R, D), or regions computed beforehand → Features;
        no gradients."""
        with self.computing():
            return self.model.features(map_tensors(lambda x: x.to(self.device), images))

    def search(
        self,
        images: torch.Tensor | Regions | Features,
        attention: bool = False,
        prefix: torch.Tensor | None = None,
    ) -> Hypotheses:
        """What `features` takes, or Features → hypotheses; no gradients. Each image's own control tokens `prefix`
        (B, P) take the place of those that were asked for."""
        with self.computing():
            images = map_tensors(lambda x: x.to(self.device), images)
            memory = self.model.memory(images)
            if prefix is None and self.control:
                ids = [self.vocabulary.control_index[name] for name in self.control]
                prefix = torch.tensor(ids).expand(len(first_tensor(memory)), -1)
            return self.generation(self.model.decoder, memory, prefix=prefix, attention=attention)

    def captions(
        self, found: Hypotheses, alternatives: int = 0, seen: Features | None = None, distinct: bool = True
    ) -> list[Caption]:
        """The best hypothesis of each image as a Caption, with up to `alternatives` others, of those that read the same
        the best only, where they are to be `distinct`. Attention is drawn where the regions `seen` lie; without them
        there is none; nor do they say how unfamiliar their pictures are."""
        looks = None if found.attention is None else found.attention.float().cpu().numpy()
        tokens, log_probs, scores, lengths, finished = (x.cpu().numpy() for x in found[:5])
        plain = Found(tokens, log_probs, scores, lengths, finished, looks)
        places = None
        if found.attention is not None and seen is not None:
            places = Places(seen.boxes.float().cpu().numpy(), seen.mask.cpu().numpy())
        said = captions_of(plain, self.vocabulary, self.tokenizer, self.calibration, places, alternatives, distinct)
        if self.detector is None or seen is None:
            return said
        unfamiliar = self.detector(seen.pooled.float().cpu().numpy())
        return [caption._replace(unfamiliar=share) for caption, share in zip(said, unfamiliar, strict=True)]

    def __call__(self, pictures: Picture | Iterable[Any], **how: Any) -> list[Caption]:
        """Caption pictures: `stream`, as a list."""
        return list(self.stream(pictures, **how))

    def stream(
        self,
        pictures: Picture | Iterable[Any],
        batch_size: int = 16,
        attention: bool = False,
        alternatives: int = 0,
        length: int | str | None = None,
        tags: str | Sequence[str] | None = None,
        language: str | None = None,
        urls: bool = False,
        stability: bool = False,
    ) -> Iterator[Caption]:
        """Caption pictures, in order, as they are read: the next ones are opened while some are captioned.

        Args:
            pictures: one or any number of them: paths of files, folders and patterns (such as `photos/*.jpg`), PIL
                images, arrays, tensors and batches of them (see `as_image`), files' bytes, addresses, or what `open`
                gave.
            batch_size: pictures at a time.
            attention: whether captions say where they looked.
            alternatives: how many further captions of the search each brings.
            length, tags, language: what is asked for here, instead of what `ask` asked for.
            urls: whether addresses (http, https) are fetched.
            stability: whether captions say how firmly they stand, which takes several times as long.

        Raises:
            ImageError: a picture that cannot be read; the message names it.
            RegionsError: regions that cannot be read, or that the captioner needs and does not have.
            ControlError: something that the captioner cannot be asked for.
            TypeError, ValueError: something that is no picture, or names none.
        """
        self.check_source()
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: 1 or more")
        if stability:
            check_alone(self)

        def opened(picture: Picture) -> tuple[str, Image.Image | ReadRegions]:
            return _name(picture), self.fetched(str(picture)) if is_address(picture) else self.open(picture)

        with ThreadPoolExecutor(READERS) as pool:
            found = each_picture(pictures, self.regions is not None, urls)
            every = in_order(pool, opened, found, 2 * batch_size)
            while batch := list(islice(every, batch_size)):
                with self.asking(length, tags, language):
                    pixels = self.stacked([picture for _, picture in batch])
                    seen = self.features(pixels)
                    captions = self.captions(self.search(seen, attention), alternatives, seen)
                    if stability:
                        firm = stabilities(self, pixels, captions)
                        captions = [c._replace(stability=each) for c, each in zip(captions, firm, strict=True)]
                for (name, _), caption in zip(batch, captions, strict=True):
                    yield caption._replace(picture=name)

    def open(self, picture: Picture) -> Image.Image | ReadRegions:
        """A picture, or its regions by its path, as the encoder's transform takes them.

        Raises:
            ImageError, RegionsError: they cannot be read; the message names them.
        """
        if isinstance(picture, ReadRegions):
            return picture
        if isinstance(picture, Image.Image):
            return load_image(picture)
        if isinstance(picture, np.ndarray | torch.Tensor):
            return as_image(picture)
        if is_address(picture):
            raise ImageError(f"{picture!s}: an address, and not to be fetched here: download the picture first")
        if self.regions is not None and not isinstance(picture, bytes):
            return self.regions.read(os.fspath(picture))
        return self.decode(picture)

    def fetched(self, address: str) -> Image.Image:
        """The picture behind an address, as `open`.

        Raises:
            ImageError: it cannot be had, or is none.
        """
        data = fetch(address)
        with naming(address):
            return self.decode(data)

    def decode(self, picture: str | os.PathLike[str] | bytes) -> Image.Image:
        """A picture file, or its bytes, as large as the transform wants it."""
        return self.preprocess.decode(picture)

    def stacked(self, opened: Sequence[Image.Image | ReadRegions]) -> torch.Tensor | Regions:
        """Pictures or their regions as a batch of what the encoder takes."""
        regions = [each for each in opened if isinstance(each, ReadRegions)]
        pictures = [each for each in opened if isinstance(each, Image.Image)]
        if pictures and (regions or isinstance(self.model.encoder, RegionEncoder)):
            raise RegionsError("this captioner reads regions computed beforehand, not pixels: give pictures' paths")
        if regions:
            return padded(regions)
        return torch.stack([self.preprocess(load_image(picture)) for picture in pictures])


def _device(name: str) -> torch.device:
    try:
        found = torch.device(name)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"device {name}: not here ({str(error).splitlines()[0]}); cpu always is") from error
    return found


def _name(picture: Picture) -> str:
    """Where a picture is, if it says so."""
    name = getattr(picture, "filename", "") if isinstance(picture, Image.Image) else picture
    return str(name) if isinstance(name, str | os.PathLike) else ""
