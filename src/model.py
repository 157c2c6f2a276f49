"""build(config, vocabulary): encoder + decoder, the thing that is saved."""

import importlib
import inspect
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from src.data.vocabulary import Vocabulary
from src.decoders.base import Decoder
from src.encoders.base import Encoder, Features
from src.encoders.precomputed import Regions
from src.matcher import JointMatcher


class ConfigError(ValueError):
    """A configuration that names something impossible; the message says which key and what to choose."""


class CaptioningModel(nn.Module):
    """What turns pictures into words, and with a matcher finds the ones for the others: all the weights there are."""

    def __init__(self, encoder: Encoder, decoder: Decoder, matcher: JointMatcher | None = None) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.matcher = matcher

    def compile_parts(self) -> None:
        """From now on PyTorch compiles the encoder, and of the decoder what it says, when they are first called: in
        place, so that all weights keep their names."""
        self.encoder.compile()
        for part in self.decoder.to_compile():
            part.compile(dynamic=True)  # captions and batches have their own lengths

    def features(self, images: Tensor | Regions | Features) -> Features:
        """Pixels (B, 3, H, W), the frozen stages' cached output (B, R, D), regions computed beforehand, or Features,
        which stay as they are."""
        return images if isinstance(images, Features) else self.encoder(images)

    def memory(self, images: Tensor | Regions | Features) -> Any:
        """What `features` takes → the decoder's Memory."""
        return self.decoder.prepare(self.features(images))


_TARGET = re.compile(r"\w+(\.\w+)+", re.ASCII)
OWN = ("src.",)
"""What a bundle may name: a bundle from a stranger runs nothing but this project's own classes."""
TRAINING = (*OWN, "torch.optim.", "pytorch_lightning.callbacks.", "pytorch_lightning.loggers.")
"""What a user's own training configuration may name besides."""


def locate(target: str, allowed: tuple[str, ...] = OWN) -> type:
    """The class that a `_target_` names.

    Raises:
        ConfigError: a name outside what is allowed, or one that is not there.
    """
    if not isinstance(target, str) or not _TARGET.fullmatch(target):
        raise ConfigError(f"_target_: {target!r} names no class")
    module, _, name = target.rpartition(".")
    if not f"{module}.".startswith(allowed):
        raise ConfigError(f"_target_: {target} is not allowed here; it must begin with one of {', '.join(allowed)}")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"_target_: {target} does not exist ({error})") from error
    if not isinstance(found, type) or not f"{found.__module__}.".startswith(tuple(a.rstrip(".") for a in allowed)):
        raise ConfigError(f"_target_: {target} is no class of its module")
    return found


def instantiate(config: Mapping[str, Any], allowed: tuple[str, ...] = OWN, **given: Any) -> Any:
    """Build what a config names by `_target_`, nested ones first; `given` are arguments that only the caller knows.

    Raises:
        ConfigError: no `_target_`, arguments that the class does not take, or that are given.
    """
    if "_target_" not in config:
        raise ConfigError(f"a config without _target_ names nothing to build: {dict(config)}")
    target = locate(config["_target_"], allowed)
    if twice := ", ".join(given.keys() & config.keys()):
        raise ConfigError(f"{config['_target_']}: {twice} follows from the other parts and cannot be set")
    arguments = {
        key: instantiate(value, allowed) if isinstance(value, Mapping) and "_target_" in value else value
        for key, value in config.items()
        if key != "_target_"
    } | given
    try:
        inspect.signature(target).bind(**arguments)
    except TypeError as error:
        raise ConfigError(f"{config['_target_']}: {error}") from error
    return target(**arguments)


def build(config: Mapping[str, Any], vocabulary: Vocabulary) -> CaptioningModel:
    """The one builder: training, bundles, export and tests all use it, so that widths are never written twice.

    Args:
        config: plain mappings `defence`, `encoder`, `embedding`, `attention`, `decoder`, `latent`, `matcher`, each with
            its `_target_`.
        vocabulary: sizes the word table and the output layer.

    Raises:
        ConfigError: parts that cannot work together.
    """
    encoder = instantiate(config["encoder"])
    if config.get("defence"):
        encoder.defend(instantiate(config["defence"]))
    embedding = instantiate(config["embedding"], vocabulary=vocabulary)
    arguments: dict[str, Any] = {"embedding": embedding, "memory_width": encoder.width}
    kind = locate(config["decoder"]["_target_"])
    if getattr(kind, "attends", False) and encoder.vector:
        raise ConfigError(
            "encoder gives one vector and decoder attends over regions: choose decoder=lstm or gru, or give the "
            "encoder a grid (encoder.pool=false, encoder.backbone.head=null)"
        )
    if getattr(kind, "takes_attention", False):
        if not config.get("attention"):
            raise ConfigError("decoder attends but attention is null: choose attention=additive or another")
        arguments["attention"] = instantiate(
            config["attention"],
            query_width=config["decoder"]["hidden"],
            memory_width=encoder.width,
            input_width=embedding.size,
        )
    decoder = instantiate(config["decoder"], **arguments)
    decoder.controls = list(vocabulary.control_index.values())
    if config.get("latent"):
        decoder = instantiate(config["latent"], decoder=decoder, memory_width=encoder.width)
    matcher = None
    if config.get("matcher"):
        matcher = instantiate(config["matcher"], vocabulary=vocabulary, memory_width=encoder.width)
    return CaptioningModel(encoder, decoder, matcher)
