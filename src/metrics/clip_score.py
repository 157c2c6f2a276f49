"""CLIPScore and RefCLIPScore (Hessel et al., EMNLP 2021, https://arxiv.org/abs/2104.08718), from a CLIP on disk."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from tqdm import tqdm

from src.config import device
from src.data.images import ImageError, load_image

PROMPT = "A photo depicts "
"""What every caption and reference is prefixed with."""
WEIGHT = 2.5
"""Stretches the cosines, which for real captions seldom exceed 0.4, over [0, 1]."""

# In transformers' own order of preference.
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")

T = TypeVar("T")


class ClipError(ValueError):
    """A directory that no CLIP can be loaded from; the message names it and says how to mend it."""


class ClipScorer:
    """Scores captions against their pictures, and against references, by a CLIP's embeddings in float32.

    Args:
        folder: a CLIP as transformers saves it and the Hugging Face hub has it: config.json, weights
            (safetensors or PyTorch; nothing pickled is executed), preprocessor_config.json and the tokenizer's
            files. Nothing is ever downloaded. Scores of different CLIPs aren't comparable; the paper's are those of
            openai/clip-vit-base-patch32.
        device_name: cpu, cuda, cuda:1, mps; by default the fastest here.

    Raises:
        ClipError: there is no CLIP in the folder, or a damaged or incomplete one, or transformers isn't installed.
    """

    def __init__(self, folder: Path, device_name: str | None = None) -> None:
        try:
            transformers = import_module("transformers")  # not at the top: it takes seconds, and may not be there
        except ImportError as error:
            raise ClipError(f"CLIPScore needs transformers: `pip install transformers` ({error})") from error
        if not folder.is_dir():
            raise ClipError(f"{folder}: no such directory: name one that a CLIP of Hugging Face's form was saved in")
        if missing := _missing(folder):
            raise ClipError(
                f"{folder}: not a CLIP directory, for it lacks {', '.join(missing)}: copy the whole of one, such as "
                "openai/clip-vit-base-patch32 of the Hugging Face hub"
            )
        # The class that preprocesses by Pillow, as the published code does; transformers 4 has it under the plain name.
        image_processor = getattr(transformers, "CLIPImageProcessorPil", transformers.CLIPImageProcessor)
        try:
            kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
            if kind != "clip":  # transformers would only warn, and leave the weights that don't fit random
                raise ValueError(f"its config.json is of a {kind!r} model")
            self.files = _weights(folder)
            # Of PyTorch's files it takes tensors only (weights_only=True, its default).
            self.model, loaded = transformers.CLIPModel.from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=self.files[0].suffix == ".safetensors",
                attn_implementation="eager",  # a config can ask for a kernel of the hub's
                output_loading_info=True,
            )
            if absent := sorted(loaded["missing_keys"]):
                raise ValueError(f"its weights lack {', '.join(absent[:3])}{' and more' if absent[3:] else ''}")
            self._processor = image_processor.from_pretrained(folder, local_files_only=True)
            self._tokenizer = transformers.CLIPTokenizerFast.from_pretrained(folder, local_files_only=True)
        except Exception as error:  # its loaders raise nearly every kind on damaged files
            said = str(error).strip().split("\n")[0] or type(error).__name__
            raise ClipError(
                f"{folder}: not a CLIP that can be loaded ({said}): copy it again, or name another"
            ) from error
        self.device = torch.device(device_name or device())
        self.model = self.model.float().to(self.device).eval()
        self.context: int = self.model.config.text_config.max_position_embeddings
        """Tokens that CLIP reads of a text (77), the prompt's and the first and last ones included."""

    @cached_property
    def digest(self) -> str:
        """The first 16 hexadecimal digits of the SHA-256 of the weights' file, or of all its shards in turn."""
        whole = hashlib.sha256()
        for file in self.files:
            with file.open("rb") as stream:
                while part := stream.read(1 << 20):
                    whole.update(part)
        return whole.hexdigest()[:16]

    def score(
        self,
        find: Callable[[str], Path | bytes | None],
        candidates: Mapping[str, str],
        references: Mapping[str, Sequence[str]],
        *,
        batch_size: int = 32,
        progress: bool = False,
    ) -> dict[str, np.ndarray]:
        """CLIPScore and RefCLIPScore of every candidate, as float64 arrays (images,) in the candidates' order.

        With v, c and r the embeddings of an image, its caption and one of its references,
        CLIPScore = 2.5 · max(cos(v, c), 0), in [0, 2.5] and in practice below 1; RefCLIPScore is its harmonic mean with
        max(max over r of cos(c, r), 0), and 0 where either is 0. Papers give the means over the images.

        Args:
            find: each candidate's picture by the image's name, its file or its bytes: asked once, as its batch is
                encoded.
            candidates: raw captions, not tokens. Longer ones than CLIP reads are cut off; an empty one is the bare
                prompt, whose score is not 0.
            references: one raw caption or more for each candidate. Every distinct text is encoded once.
            batch_size: images, or texts, encoded at a time.
            progress: show a bar.

        Raises:
            ImageError: a picture can't be read, or there is none; it is named.
        """
        texts = {caption for image in candidates for caption in (candidates[image], *references[image])}
        in_length = sorted(texts, key=lambda text: (len(text), text))  # so that a batch has little padding
        row = {text: number for number, text in enumerate(in_length)}
        of_images = _unit_vectors(
            partial(self._embed_pictures, find), list(candidates), batch_size, "CLIP: images", progress
        )
        of_texts = _unit_vectors(self._embed_texts, in_length, batch_size, "CLIP: texts", progress)
        of_captions = of_texts[[row[caption] for caption in candidates.values()]]
        clip_score = WEIGHT * np.maximum((of_images * of_captions).sum(1), 0.0)
        to_references = np.array(
            [
                max(0.0, (of_texts[[row[reference] for reference in references[image]]] @ vector).max())
                for image, vector in zip(candidates, of_captions, strict=True)
            ]
        )
        total = clip_score + to_references
        harmonic = 2 * clip_score * to_references / np.where(total > 0, total, 1.0)
        return {"CLIPScore": clip_score, "RefCLIPScore": harmonic}

    def _embed_pictures(self, find: Callable[[str], Path | bytes | None], images: Sequence[str]) -> Any:
        pictures = [_loaded(image, find(image)) for image in images]
        pixels = self._processor(images=pictures, input_data_format="channels_last", return_tensors="pt")
        return self.model.get_image_features(pixels["pixel_values"].to(self.device))

    def _embed_texts(self, texts: Sequence[str]) -> Any:
        tokens = self._tokenizer(
            [PROMPT + text for text in texts],
            padding=True,
            truncation=True,
            max_length=self.context,
            return_tensors="pt",
        ).to(self.device)
        return self.model.get_text_features(tokens["input_ids"], tokens["attention_mask"])


def _loaded(image: str, source: Path | bytes | None) -> Any:
    if source is None:
        raise ImageError(f"{image}: CLIPScore needs its picture, and there is none")
    try:
        return load_image(source)
    except ImageError as error:
        if isinstance(source, Path):  # which it names
            raise
        raise ImageError(f"{image}: {error}") from error


def _unit_vectors(
    embed: Callable[[Sequence[T]], Any], items: Sequence[T], batch_size: int, doing: str, progress: bool
) -> np.ndarray:
    """(items, D), float64."""
    rows = []
    with torch.inference_mode(), tqdm(total=len(items), desc=doing, disable=not progress) as bar:
        for start in range(0, len(items), batch_size):
            batch = items[start : start + batch_size]
            embedded = embed(batch)
            # A tensor in transformers 4, an output object in 5.
            vectors = embedded if isinstance(embedded, torch.Tensor) else embedded.pooler_output
            rows.append(vectors.cpu().double().numpy())
            bar.update(len(batch))
    stacked = np.concatenate(rows)
    return stacked / np.linalg.norm(stacked, axis=1, keepdims=True)


def _missing(folder: Path) -> list[str]:
    """What a CLIP directory has and this one hasn't, by the names of the hub's files."""

    def has(*names: str) -> bool:
        return all((folder / name).is_file() for name in names)

    wanted = {
        "config.json": has("config.json"),
        "weights (model.safetensors)": any(has(name) for name in _WEIGHTS),
        "preprocessor_config.json": has("preprocessor_config.json") or has("processor_config.json"),  # transformers 5
        # Without them transformers makes a tokenizer of three tokens.
        "a tokenizer (tokenizer.json, or vocab.json and merges.txt)": has("tokenizer.json")
        or has("vocab.json", "merges.txt"),
    }
    return [what for what, there in wanted.items() if not there]


def _weights(folder: Path) -> list[Path]:
    """The file that transformers reads weights from, or the shards that its index names."""
    file = next(folder / name for name in _WEIGHTS if (folder / name).is_file())
    if file.suffix != ".json":
        return [file]
    shards = json.loads(file.read_text(encoding="utf-8"))["weight_map"].values()
    return [folder / name for name in sorted(set(shards))]
