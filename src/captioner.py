"""Captioner: what a user holds. From a bundle to captions of pictures."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from src.bundle import load_bundle
from src.config import autocast_dtype, device, precision
from src.data.images import load_image
from src.data.tokenizer import Tokenizer
from src.data.transforms import Preprocess
from src.data.vocabulary import EOS, Vocabulary
from src.encoders.base import Features
from src.generation.base import Hypotheses, Search
from src.model import CaptioningModel, instantiate


class Caption(NamedTuple):
    """One generated caption."""

    text: str
    words: list[str]
    log_probs: list[float]
    """Of each word; the end token's comes last where the caption ended by itself."""
    score: float
    """What the search ranked by."""
    attention: np.ndarray | None = None
    """(words, R), where asked for and the captioner attends."""
    boxes: np.ndarray | None = None
    """(R, 4): the regions' x1, y1, x2, y2 in [0, 1] of the picture as the encoder saw it."""
    alternatives: "Sequence[Caption]" = ()
    """The search's other captions, best first, where asked for."""


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
    ) -> None:
        self.device = torch.device(device_name or device())
        self.model = model.to(self.device).eval()
        self.vocabulary, self.tokenizer = vocabulary, tokenizer
        self.preprocess, self.generation = preprocess, generation
        generation.bind(vocabulary, tokenizer)
        self.dtype = autocast_dtype(precision(precision_name, self.device.type))
        self.config: dict[str, Any] = {}

    @classmethod
    def load(
        cls,
        path: str | Path,
        generation: Search | None = None,
        device_name: str | None = None,
        precision_name: str = "auto",
    ) -> "Captioner":
        """Load a bundle directory, a run's folder, or a checkpoint.

        Args:
            path: which one.
            generation: another search than the one it was validated with.
            device_name: cpu, cuda, cuda:1, mps; by default the fastest here.
            precision_name: Lightning's names, or auto.

        Raises:
            BundleError: there is no captioner, or a damaged one.
        """
        bundle = load_bundle(Path(path))
        captioner = cls(
            bundle.model,
            bundle.vocabulary,
            instantiate(bundle.config["tokenizer"]),
            instantiate(bundle.config["transform"]),
            generation or instantiate(bundle.config["generation"]),
            device_name,
            precision_name,
        )
        captioner.config = bundle.config
        return captioner

    def search(self, images: torch.Tensor | Features, attention: bool = False) -> Hypotheses:
        """Pixels (B, 3, H, W), the frozen stages' cached output (B, R, D), or Features → hypotheses; no gradients."""
        with (
            torch.no_grad(),  # inference mode would cast the weights anew at every step
            torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None),
        ):
            images = images if isinstance(images, Features) else images.to(self.device)
            return self.generation(self.model.decoder, self.model.memory(images), attention=attention)

    def captions(self, found: Hypotheses, alternatives: int = 0) -> list[Caption]:
        """The best hypothesis of each image as a Caption, with up to `alternatives` others."""
        tokens, log_probs, scores = found.tokens.tolist(), found.log_probs.tolist(), found.scores.tolist()
        lengths = found.lengths.tolist()
        looks = None if found.attention is None else found.attention.float().cpu().numpy()
        boxes = None if looks is None else self.model.encoder.boxes(looks.shape[-1]).numpy()

        def caption(b: int, k: int) -> Caption:
            length = lengths[b][k]
            ended = length < len(tokens[b][k]) and tokens[b][k][length] == EOS
            words = [self.vocabulary.words[i] for i in tokens[b][k][:length]]
            attention = None if looks is None else looks[b, k, :length]
            return Caption(
                self.tokenizer.join(words), words, log_probs[b][k][: length + ended], scores[b][k], attention, boxes
            )

        result = []
        for b in range(len(tokens)):
            real = [k for k in range(len(tokens[b])) if scores[b][k] > -np.inf] or [0]
            others = [caption(b, k) for k in real[1 : alternatives + 1]]
            result.append(caption(b, real[0])._replace(alternatives=others))
        return result

    def __call__(
        self,
        images: Iterable[str | Path | Image.Image],
        batch_size: int = 16,
        attention: bool = False,
        alternatives: int = 0,
    ) -> Iterator[Caption]:
        """Caption pictures (files or PIL images), in order, lazily.

        Raises:
            ImageError: a picture that cannot be read; the message names it.
        """
        batch: list[torch.Tensor] = []
        for image in images:
            if isinstance(image, Image.Image):
                batch.append(self.preprocess(load_image(image)))
            else:
                batch.append(self.preprocess.open(Path(image)))
            if len(batch) == batch_size:
                yield from self.captions(self.search(torch.stack(batch), attention), alternatives)
                batch = []
        if batch:
            yield from self.captions(self.search(torch.stack(batch), attention), alternatives)
