"""Save and load one self-contained captioner directory; read the same from a checkpoint. Neither runs pickled code."""

import copy
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from src.attention import Attention
from src.confidence import Calibration
from src.data.control import Control
from src.data.tokenizer import CharacterTokenizer, EnglishTokenizer, MixedTokenizer
from src.data.transforms import Augmentation, Preprocess
from src.data.vocabulary import Vocabulary
from src.decoders import Decoder
from src.defences import Defence
from src.detection import Detector
from src.embeddings import Embedding
from src.embeddings.pretrained import PretrainedEmbedding
from src.encoders import Encoder
from src.encoders.base import Backbone
from src.files import room_for, whole_folder
from src.generation import Search
from src.matcher import JointMatcher
from src.model import CaptioningModel, build, locate
from src.strangers import check_config, check_size, load_checkpoint, read_yaml
from src.weights import Storage, restored, stored

PARTS = (
    "transform",
    "tokenizer",
    "control",
    "defence",
    "encoder",
    "embedding",
    "attention",
    "decoder",
    "latent",
    "matcher",
    "generation",
)
"""The parts of a run's config that a caption, or what is found by a sentence, depends on."""
KINDS: dict[str, tuple[type, ...]] = {
    "transform": (Preprocess,),
    "transform.augment": (Augmentation,),
    "tokenizer": (EnglishTokenizer, CharacterTokenizer, MixedTokenizer),
    "control": (Control,),
    "encoder": (Encoder,),
    "encoder.backbone": (Backbone,),
    "embedding": (Embedding,),
    "attention": (Attention,),
    "decoder": (Decoder,),
    "latent": (Decoder,),
    "matcher": (JointMatcher,),
    "generation": (Search,),
    "defence": (Defence,),
}
"""What a bundle's config may build, and where: of the project's classes, none that reads or writes anything."""

NEEDED = ("transform", "tokenizer", "encoder", "embedding", "decoder", "generation")
"""Those of the parts that every captioner has."""

CALIBRATION, MATCHING = "calibration.json", "matching.json"
"""Of confidence, and of how well a sentence matches a picture."""
WEIGHTS, DETECTOR = "model.safetensors", "detector.safetensors"

MODELS = Path(__file__).resolve().parent.parent / "models"
"""Captioners that come with the code."""
SHIPPED = MODELS / "flickr8k-bilingual"
"""The one that is taken where none is named."""


class BundleError(ValueError):
    """A directory or file that holds no captioner; the message says what is missing or wrong."""


class Bundle(NamedTuple):
    model: CaptioningModel
    vocabulary: Vocabulary
    config: dict[str, Any]
    """PARTS, and `provenance`: what is known of the training."""
    calibration: Calibration | None = None
    """Of confidence, where validation captions were scored."""
    matching: Calibration | None = None
    """Of its matcher, likewise."""
    detector: Detector | None = None
    """Of pictures unlike those that it learned from, where one was fitted."""


class Saved(NamedTuple):
    """A bundle or checkpoint as it was read: nothing is built yet."""

    config: dict[str, Any]
    vocabulary: Vocabulary
    state: dict[str, Tensor]
    """The model's weights by name."""
    calibration: Calibration | None = None
    matching: Calibration | None = None
    detector: Detector | None = None


def bundle_config(config: Mapping[str, Any], provenance: Mapping[str, Any]) -> dict[str, Any]:
    """What of a run's config goes into a bundle or checkpoint."""
    return {**{part: config.get(part) for part in PARTS}, "provenance": dict(provenance)}


def save_bundle(
    directory: Path,
    bundle: Bundle,
    scores: Mapping[str, Any] | None = None,
    storage: Storage = "float32",
    card: str = "",
    kept: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a bundle: config.yaml, vocabulary.json, model.safetensors (tied tensors once), calibration.json,
    matching.json and detector.safetensors where there are any, and a model card. It appears whole or not at all.

    Args:
        directory: it; what is there is replaced.
        bundle: what is saved.
        scores: for the model card.
        storage: of the weights; `load_bundle` gives float32 whatever it was.
        card: what else the model card is to say.
        kept: of the weights, those that are stored as given here.

    Its provenance names the storage, where that is not float32.

    Raises:
        DiskFull: there is no room for it.
    """
    directory = Path(directory)
    about = {key: value for key, value in bundle.config["provenance"].items() if key != "stored_as"}
    if storage != "float32":
        about["stored_as"] = storage
    bundle = bundle._replace(config={**bundle.config, "provenance": about})
    with room_for(directory), whole_folder(directory) as partial:
        _write(partial, bundle, scores or {}, storage, card, kept or {})


def check_new(directory: Path, overwrite: bool, mark: str = "config.yaml", kind: str = "bundle") -> None:
    """Refuse a folder that a new bundle, or what else has such a `kind`, would replace.

    Raises:
        ValueError: it is there, and `overwrite` is not given, or it is none: it lacks the file `mark`.
    """
    if directory.exists() and not overwrite:
        raise ValueError(f"{directory} is there already: add --overwrite, or name another folder")
    if directory.exists() and not (directory / mark).exists():
        raise ValueError(f"{directory} is there and is no {kind}: name another folder")


def _write(
    directory: Path,
    bundle: Bundle,
    scores: Mapping[str, Any],
    storage: Storage,
    card: str,
    kept: Mapping[str, Tensor],
) -> None:
    (directory / "config.yaml").write_text(
        yaml.safe_dump(bundle.config, allow_unicode=True, sort_keys=False), encoding="utf-8"
    )
    bundle.vocabulary.save(directory / "vocabulary.json")
    save_file({**stored(_untied(bundle.model.state_dict()), storage), **kept}, directory / WEIGHTS)
    for name, calibration in ((CALIBRATION, bundle.calibration), (MATCHING, bundle.matching)):
        if calibration is not None:
            calibration.save(directory / name)
    if bundle.detector is not None:
        bundle.detector.save(directory / DETECTOR)
    (directory / "README.md").write_text(_card(bundle, scores, card), encoding="utf-8")


def _untied(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict in which tensors that share memory occur once, under their first name."""
    kept: dict[int, str] = {}
    result = {}
    for name, tensor in state.items():
        if kept.setdefault(tensor.data_ptr(), name) == name or tensor.numel() == 0:
            result[name] = tensor.contiguous()
    return result


def bundle_folder(path: Path) -> Path:
    """A bundle directory as it is; of a run's folder, its bundle. What is no path may be a captioner's name: of one
    that comes with the code, or of a run in runs/."""
    if not path.exists():
        named = [place / path for place in (MODELS, Path("runs"))]
        path = next((each for each in named if each.is_dir()), path)
    run = not (path / "vocabulary.json").exists() and (path / "bundle" / "config.yaml").exists()
    return path / "bundle" if run else path


def looks_saved(path: Path) -> bool:
    """Whether a path seems to be what `read_saved` reads, rather than pictures."""
    return path.suffix == ".ckpt" or (bundle_folder(path) / "vocabulary.json").exists()


def read_saved(path: Path) -> Saved:
    """Read a bundle directory, a run's folder (see `bundle_folder` for names) or a Lightning checkpoint (`.ckpt`).

    Raises:
        BundleError: something is missing or damaged.
    """
    path = bundle_folder(Path(path))
    calibration = matching = detector = None
    if path.is_dir():
        if (path / "caption.py").exists():
            raise BundleError(
                f"{path}: an export, which captions by itself: `python {path}/caption.py photo.jpg`; here, name the "
                "bundle that it was made of"
            )
        for name in ("config.yaml", "vocabulary.json", WEIGHTS):
            if not (path / name).exists():
                raise BundleError(
                    f"{path}: no captioner here ({name} is missing); give a bundle/ directory or a .ckpt file"
                )
        try:
            config = read_yaml(path / "config.yaml")
            state = restored(load_file(path / WEIGHTS))
        except (SafetensorError, ValueError) as error:
            raise BundleError(f"{path}: damaged ({error}); copy or train it again") from error
        vocabulary = Vocabulary.load(path / "vocabulary.json")
        if (path / CALIBRATION).exists():
            calibration = Calibration.load(path / CALIBRATION)
        if (path / MATCHING).exists():
            matching = Calibration.load(path / MATCHING)
        if (path / DETECTOR).exists():
            detector = Detector.load(path / DETECTOR)
    elif path.is_file():
        try:
            checkpoint = load_checkpoint(path)
            if not isinstance(checkpoint, Mapping):
                raise ValueError("it holds no mapping")
            config, vocabulary = checkpoint["config"], Vocabulary.from_dict(checkpoint["vocabulary"])
            state = {
                name.removeprefix("model."): tensor
                for name, tensor in checkpoint["state_dict"].items()
                if name.startswith("model.")
            }
            if not all(isinstance(tensor, Tensor) for tensor in state.values()):
                raise ValueError("its weights are no tensors")
        except Exception as error:  # what it holds may be of any type
            raise BundleError(f"{path}: not a checkpoint of this project ({error})") from error
    elif path == SHIPPED:
        raise BundleError(f"{path}: the captioner that comes with the code is not there; name another one with --model")
    else:
        names = ", ".join(sorted(each.parent.name for each in MODELS.glob("*/config.yaml")))
        raise BundleError(
            f"{path}: no such file or directory; give a bundle/ directory, a run's folder or name, or a .ckpt file"
            + (f"; {names} comes with the code" if names else "")
        )
    if not isinstance(config, dict):
        raise BundleError(f"{path}: not a checkpoint or bundle of this project (its config is no mapping)")
    for part in ("latent", "control", "matcher", "defence"):
        config.setdefault(part, None)  # bundles of versions without it
    if missing := [part for part in PARTS if part not in config]:
        raise BundleError(f"{path}: its config lacks {', '.join(missing)}")
    if not isinstance(config.setdefault("provenance", {}), dict):
        raise BundleError(f"{path}: its config's provenance is no mapping")
    with naming_damage(path):
        check_config({part: config[part] for part in PARTS}, KINDS)
        if missing := [part for part in NEEDED if config[part] is None]:
            raise ValueError(f"its config lacks {', '.join(missing)}")
        if isinstance(config["generation"].get("never"), str):  # a training and `export` write the words themselves
            raise ValueError("generation.never names a file, which is not read: list the words, or leave it out")
    return Saved(config, vocabulary, state, calibration, matching, detector)


@contextmanager
def naming_damage(path: Path) -> Iterator[None]:
    """What goes wrong, for a `with` block, with what a bundle's config says is a BundleError that names the bundle."""
    try:
        yield
    except (BundleError, ImportError):
        raise
    except Exception as error:  # a field of another type fails anywhere
        said = (
            str(error)
            if isinstance(error, ValueError)
            else f"its config cannot be built: {type(error).__name__}: {error}"
        )
        raise BundleError(said if str(path) in said else f"{path}: {said}") from error


def load_bundle(path: Path) -> Bundle:
    """Load a bundle directory, a run's folder or a Lightning checkpoint (`.ckpt`), ready for inference on the CPU.

    Raises:
        BundleError: something is missing or damaged.
    """
    saved = read_saved(Path(path))
    config, vocabulary, state = saved[:3]
    with naming_damage(path):
        check_size(lambda: build(without_weights(config), vocabulary), state)
        model = build(without_weights(config), vocabulary)
    try:
        result = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise BundleError(f"{path}: weights do not fit its config ({error})") from error
    own = model.state_dict()
    tied = {own[name].data_ptr() for name in state if name in own}
    missing = [name for name in result.missing_keys if own[name].data_ptr() not in tied]
    if missing or result.unexpected_keys:
        raise BundleError(
            f"{path}: weights do not fit its config ({len(missing)} missing, {len(result.unexpected_keys)} unknown: "
            f"{(missing + result.unexpected_keys)[:2]})"
        )
    if saved.detector is not None and len(saved.detector.mean) != model.encoder.width:
        raise BundleError(
            f"{path}: {DETECTOR} is of {len(saved.detector.mean)} features, and the encoder has {model.encoder.width}; "
            "delete it, or `python -m src.detect fit` again"
        )
    model.encoder.backbone.weights_used = config["provenance"].get("encoder_weights", "unknown")
    return Bundle(model.eval(), vocabulary, config, *saved[3:])


def without_weights(config: dict[str, Any]) -> dict[str, Any]:
    """The same config, in which the backbone, where there is one, and the embedding look for no weights: the bundle
    brings them."""
    config = copy.deepcopy(config)
    if "backbone" in config["encoder"]:
        config["encoder"]["backbone"]["weights"] = "random"
    config["embedding"] = without_vectors(config["embedding"])
    return config


def without_vectors(embedding: dict[str, Any]) -> dict[str, Any]:
    """The same embedding's config, which looks for no word vectors."""
    reads = issubclass(locate(embedding.get("_target_", "")), PretrainedEmbedding)
    return {**embedding, "weights": "random"} if reads else embedding


def _card(bundle: Bundle, scores: Mapping[str, Any], more: str) -> str:
    provenance = bundle.config["provenance"]
    regions = " --regions REGIONS" if "max_regions" in bundle.config["encoder"] else ""
    lines = [
        "# Image captioner",
        "",
        f"Trained with Captionary {provenance.get('version', '')}. Caption pictures with it from the project's root:",
        "",
        f"    python -m src.caption --model THIS_DIRECTORY{regions} photo.jpg",
        "",
        f"- Words: {len(bundle.vocabulary)}, tokenizer `{bundle.config['tokenizer']['_target_'].split('.')[-1]}`",
        f"- Parameters: {sum(p.numel() for p in bundle.model.parameters()):,}",
        *(f"- {key.replace('_', ' ').capitalize()}: {value}" for key, value in provenance.items()),
    ]
    if scores:
        lines += ["", "| score | value |", "| --- | --- |"]
        lines += [f"| {key} | {json.dumps(value)} |" for key, value in scores.items() if value is not None]
    return "\n".join([*lines, *(["", more.rstrip()] if more else []), ""])
