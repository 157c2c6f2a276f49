"""An exported captioner, with onnxruntime, NumPy and Pillow alone. `python -m src.export` puts this file, and what it
imports, beside the networks: `python FOLDER/caption.py photo.jpg`."""

import argparse
import io
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from src.captions import Caption, Places, captions_of
from src.confidence import Calibration
from src.data.control import asked, asked_length
from src.data.images import ImageError, load_image, picture_files
from src.data.tokenizer import CharacterTokenizer, EnglishTokenizer, MixedTokenizer, RJiebaTokenizer, Tokenizer
from src.data.transforms import Preprocess
from src.data.vocabulary import Vocabulary
from src.portable_search import Arrays, PortableBeam, PortableGreedy, PortableSearch, Said

CONFIG = "config.json"
ENDINGS = {"onnx": ".onnx", "torch": ".pt2"}
"""Of the networks' files, by the export's format."""
TOKENIZERS: dict[str, type[Tokenizer]] = {
    kind.name: kind for kind in (EnglishTokenizer, CharacterTokenizer, RJiebaTokenizer, MixedTokenizer)
}


Picture = str | os.PathLike[str] | Image.Image


class PortableError(ValueError):
    """A folder that holds no exported captioner, or one that cannot be used here; the message says what is missing."""


class Networks:
    """The two networks of an export: pixels → the decoder's Memory and first State, and its step. Their tensors come
    in one order: of the encoder the Memory, the State and, where the decoder attends, the boxes; of the step the
    log-probabilities, the attention where there is one, and the State.

    Args:
        folder: where their files are.
        config: of the export.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        self.memory, self.state, self.attends = config["memory"], config["state"], config["attends"]

    def run_encoder(self, pixels: np.ndarray) -> Arrays:
        """Pixels (B, 3, S, S), uint8 → its tensors."""
        raise NotImplementedError

    def run_step(self, words: np.ndarray, state: Arrays, memory: Arrays) -> Arrays:
        raise NotImplementedError

    def encode(self, pixels: np.ndarray) -> tuple[Arrays, Arrays, Places | None]:
        """Pixels (B, 3, S, S), uint8 → State, Memory, and where the regions lie."""
        found = self.run_encoder(pixels)
        first, last = len(self.memory), len(self.memory) + len(self.state)
        places = Places(found[last], np.ones(found[last].shape[:2], bool)) if self.attends else None
        return found[first:last], found[:first], places

    def __call__(self, words: np.ndarray, state: Arrays, memory: Arrays) -> Said:
        """One word (B, Q) further: a `Step`."""
        log_probs, *rest = self.run_step(words, state, memory)
        attention = rest.pop(0) if self.attends else None
        return Said(log_probs, attention, rest)


class OnnxNetworks(Networks):
    """By onnxruntime, on the CPU.

    Args:
        folder, config: see `Networks`.
        threads: that it computes with; None: as many as there are cores.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any], threads: int | None = None) -> None:
        super().__init__(folder, config)
        try:
            import onnxruntime
        except ImportError as error:
            raise PortableError(f"{folder}: needs onnxruntime: `pip install onnxruntime numpy pillow`") from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        self.encoder, self.decoder = (
            onnxruntime.InferenceSession(str(folder / f"{name}.onnx"), options, providers=["CPUExecutionProvider"])
            for name in ("encoder", "step")
        )

    def run_encoder(self, pixels: np.ndarray) -> Arrays:
        return self.encoder.run(None, {"pixels": pixels})

    def run_step(self, words: np.ndarray, state: Arrays, memory: Arrays) -> Arrays:
        given = dict(zip(["words", *self.state, *self.memory], [words, *state, *memory], strict=True))
        return self.decoder.run(None, given)


class TorchNetworks(Networks):
    """By torch, as `torch.export` saved them.

    Args:
        folder, config, threads: see `OnnxNetworks`.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any], threads: int | None = None) -> None:
        super().__init__(folder, config)
        try:
            import torch
        except ImportError as error:
            raise PortableError(f"{folder}: needs torch: `pip install torch numpy pillow`") from error
        if threads:
            torch.set_num_threads(threads)
        self.torch = torch
        self.encoder, self.decoder = (
            torch.export.load(folder / f"{name}.pt2").module() for name in ("encoder", "step")
        )

    def _run(self, network: Any, *given: Any) -> Arrays:
        with self.torch.no_grad():
            return [x.numpy() for x in network(*given)]

    def run_encoder(self, pixels: np.ndarray) -> Arrays:
        return self._run(self.encoder, self.torch.from_numpy(pixels))

    def run_step(self, words: np.ndarray, state: Arrays, memory: Arrays) -> Arrays:
        given = ([self.torch.from_numpy(x) for x in each] for each in (state, memory))
        return self._run(self.decoder, self.torch.from_numpy(words), *given)


class PortableCaptioner:
    """What `src.captioner.Captioner` is, of an export: of picture files and PIL images.

    Args:
        networks: encoder and decoder.
        vocabulary: ids ↔ words.
        config: of the export: the search, pixels, tokenizer and default tags.
    """

    def __init__(self, networks: Networks, vocabulary: Vocabulary, config: Mapping[str, Any]) -> None:
        self.networks, self.vocabulary, self.config = networks, vocabulary, config
        self.tokenizer = TOKENIZERS[config["tokenizer"]]()
        self.preprocess = Preprocess(**config["transform"])
        self.calibration = Calibration(**config["calibration"]) if config["calibration"] else None
        self.length: int | str | None = None
        self.control: list[str] = []
        self.search_by()
        self.ask()

    @classmethod
    def load(cls, folder: str | Path, threads: int | None = None) -> "PortableCaptioner":
        """Load what `python -m src.export` wrote.

        Args:
            folder: which.
            threads: that it computes with; None: as many as there are cores.

        Raises:
            PortableError: there is no export, a damaged one, or one that needs a package that is not installed.
        """
        folder = Path(folder)
        try:
            config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
            vocabulary = Vocabulary.load(folder / "vocabulary.json")
            kind = {"onnx": OnnxNetworks, "torch": TorchNetworks}[config["format"]]
            return cls(kind(folder, config, threads), vocabulary, config)
        except PortableError:
            raise
        except FileNotFoundError as error:
            missing = Path(error.filename or folder).name
            raise PortableError(f"{folder}: no exported captioner here ({missing} is missing)") from error
        except Exception as error:  # onnxruntime and torch raise many kinds
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise PortableError(f"{folder}: damaged ({first}); export it again") from error

    def search_by(self, beam: int | None = None, greedy: bool = False) -> None:
        """From now on search with so many beams, or greedily; by default as the captioner was validated.

        Raises:
            ValueError: less than one beam.
        """
        fields = dict(self.config["generation"])
        beams = {name: fields.pop(name) for name in ("beam_size", "length_penalty") if name in fields}
        if beam is not None and beam < 1:
            raise ValueError(f"--beam {beam}: at least 1 is wanted")
        fields["controls"] = list(self.vocabulary.control_index.values())
        if greedy or (not beams and beam is None):
            self.generation: PortableSearch = PortableGreedy(**fields)
        else:
            self.generation = PortableBeam(**{**beams, **({} if beam is None else {"beam_size": beam})}, **fields)
        self._go_on()

    def ask(
        self,
        length: int | str | None = None,
        tags: str | Sequence[str] | None = None,
        language: str | None = None,
    ) -> None:
        """From now on ask for captions of a length, with tags, in a language, as `Captioner.ask`.

        Raises:
            ControlError: the captioner does not know it; says what it knows.
        """
        if not tags and language is None:
            tags = self.config["default"]
        self.control = asked(self.vocabulary, length, tags, language)
        self.length = length
        self._go_on()

    def _go_on(self) -> None:
        """The search's own limit does not cut captions of the length that is asked for."""
        words = 0 if self.length is None else asked_length(self.vocabulary, self.length)
        self.generation.max_length = max(self.config["generation"]["max_length"], words)

    @contextmanager
    def asking(
        self,
        length: int | str | None = None,
        tags: str | Sequence[str] | None = None,
        language: str | None = None,
    ) -> Iterator[None]:
        """For a `with` block, ask for something else, if for anything; see `ask`."""
        control, own = self.control, self.length
        if length is not None or tags or language is not None:
            self.ask(length, tags, language)
        try:
            yield
        finally:
            self.control, self.length = control, own
            self._go_on()

    def __call__(self, pictures: Picture | Iterable[Picture], **how: Any) -> list[Caption]:
        """Caption pictures: `stream`, as a list."""
        return list(self.stream(pictures, **how))

    def stream(
        self,
        pictures: Picture | Iterable[Picture],
        batch_size: int = 16,
        attention: bool = False,
        alternatives: int = 0,
        length: int | str | None = None,
        tags: str | Sequence[str] | None = None,
        language: str | None = None,
    ) -> Iterator[Caption]:
        """Caption pictures, in order, lazily.

        Args:
            pictures: one or any number of them: files' paths or PIL images.
            batch_size: pictures at a time.
            attention: whether captions say where they looked.
            alternatives: how many further captions of the search each brings.
            length, tags, language: what is asked for here, instead of what `ask` asked for.

        Raises:
            ImageError: a picture that cannot be read; the message names it.
            ControlError: something that the captioner cannot be asked for.
        """
        one = isinstance(pictures, str | os.PathLike | Image.Image)
        pending: Iterator[Any] = iter([pictures] if one else pictures)  # type: ignore[arg-type, list-item]
        while batch := list(islice(pending, batch_size)):
            opened = [load_image(each) if isinstance(each, Image.Image) else self.open(each) for each in batch]
            pixels = np.stack([self.preprocess.pixels(picture) for picture in opened])
            state, memory, places = self.networks.encode(pixels)
            with self.asking(length, tags, language):
                prefix = [self.vocabulary.control_index[name] for name in self.control]
                found = self.generation(self.networks, state, memory, prefix, attention)
            captions = captions_of(found, self.vocabulary, self.tokenizer, self.calibration, places, alternatives)
            for each, caption in zip(batch, captions, strict=True):
                name = getattr(each, "filename", "") if isinstance(each, Image.Image) else each
                yield caption._replace(picture=str(name))

    def open(self, path: str | os.PathLike[str]) -> Image.Image:
        """A picture file.

        Raises:
            ImageError: it cannot be read; the message names it.
        """
        return self.preprocess.decode(path)


def parser(folder: Path) -> argparse.ArgumentParser:
    """The command line of an export."""
    result = argparse.ArgumentParser(
        prog=f"python {folder.name}/caption.py", description="Caption pictures with the captioner in this folder."
    )
    result.add_argument("pictures", nargs="+", type=Path, metavar="FILE|FOLDER", help="what to caption")
    how = result.add_mutually_exclusive_group()
    how.add_argument("--beam", type=int, metavar="N", help="beam size, instead of the captioner's own")
    how.add_argument("--greedy", action="store_true", help="the likeliest next word, without beams")
    result.add_argument("--language", metavar="TAG", help="such as zh, of a captioner of control=tags")
    result.add_argument("--tags", metavar="TAGS", help='such as "domain=news,style=funny", of one of control=tags')
    result.add_argument(
        "--length", metavar="WORDS", help="short, medium, long or a number of words, of one of control=length"
    )
    result.add_argument(
        "--n-best", type=int, metavar="N", help="up to N captions a picture, best first, a line each, with their scores"
    )
    result.add_argument(
        "--confidence", action="store_true", help="a further column: the probability that the caption is good"
    )
    result.add_argument("--batch-size", type=int, default=16, help="pictures at a time (default: 16)")
    result.add_argument("--threads", type=int, metavar="N", help="that compute (default: as many as there are cores)")
    return result


def prepared(folder: Path, options: argparse.Namespace) -> tuple[PortableCaptioner, list[Path]]:
    """The captioner and the pictures that the flags ask for.

    Raises:
        ValueError: what cannot be; one sentence that names the flag or the file.
    """
    for flag in ("n_best", "batch_size", "threads"):
        value = getattr(options, flag)
        if value is not None and value < 1:
            raise ValueError(f"--{flag.replace('_', '-')} {value}: at least 1 is wanted")
    pictures: list[Path] = []
    for path in options.pictures:
        if not path.exists():
            raise ValueError(f"{path}: no such file or folder")
        inside = picture_files(path) if path.is_dir() else [path]
        if not inside:
            raise ValueError(f"{path}: no pictures in this folder")
        pictures += inside
    if split := next((path for path in pictures if any(c in str(path) for c in "\t\n\r")), None):
        raise ValueError(f"{str(split)!r}: a tab or line break in its name, which no line of text has: rename it")
    captioner = PortableCaptioner.load(folder, options.threads)
    captioner.search_by(options.beam, options.greedy)
    captioner.ask(options.length, options.tags, options.language)
    if options.n_best is not None and options.n_best > captioner.generation.captions:
        raise ValueError(
            f"--n-best {options.n_best}: the search gives {captioner.generation.captions} at most; add --beam "
            f"{options.n_best}"
        )
    if options.confidence and captioner.calibration is None:
        raise ValueError("--confidence: this captioner is not calibrated; calibrate its bundle, and export it again")
    return captioner, pictures


def main(folder: Path, arguments: Sequence[str] | None = None) -> int:
    """Run an export's command; returns the exit status: 0, 1 where some pictures could not be read, 2 for a wrong
    call, 130 where it was interrupted."""
    options = parser(folder).parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files that are not UTF-8
    try:
        return run(folder, options)
    except BrokenPipeError:  # `… | head`: what is buffered would be an error again as the interpreter ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def run(folder: Path, options: argparse.Namespace) -> int:
    """What `main` is asked for, but for being interrupted."""
    try:
        captioner, pictures = prepared(folder, options)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    unread = 0
    for start in range(0, len(pictures), options.batch_size):
        opened: dict[Path, Image.Image] = {}
        for path in pictures[start : start + options.batch_size]:
            try:
                opened[path] = captioner.open(path)
            except ImageError as error:
                print(f"error: {error}", file=sys.stderr)
                unread += 1
        found = captioner.stream(opened.values(), options.batch_size, alternatives=(options.n_best or 1) - 1)
        for path, best in zip(opened, found, strict=True):
            for caption in (best, *best.alternatives):
                columns = [str(path), caption.text]
                if options.n_best is not None:
                    columns.append(f"{caption.score:.4f}")
                if options.confidence:
                    columns.append(f"{caption.confidence:.3f}")
                print("\t".join(columns), flush=True)
    if unread:
        print(f"{unread} of {len(pictures)} pictures could not be read", file=sys.stderr)
    return 1 if unread else 0
