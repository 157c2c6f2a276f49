"""The article's own convolutional network, every part of it a setting."""

from collections.abc import Sequence

from torch import Tensor, nn

from src.encoders.base import Backbone, Stage
from src.ranges import at_least

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh}
POOLINGS: dict[str, type[nn.Module]] = {"max": nn.MaxPool2d, "average": nn.AvgPool2d}


class CNN(Backbone):
    """Convolution, batch norm, activation and 2 × 2 pooling, once per entry of `channels`; then a fully connected head
    to a fixed-length vector, or the grid itself.

    Args:
        channels: output channels of each convolution layer; their number is the depth. Each halves the picture.
        kernel: side of the convolutions' kernels, odd.
        activation: relu, gelu, silu or tanh.
        pooling: max or average.
        head: widths of the fully connected layers that end in a fixed-length vector (its last entry), after averaging
            the map to 4 × 4; None or empty gives the grid.
        weights: "random" or "auto" (this network has no published weights), or a file with a state dict of it.

    Raises:
        ValueError: an unknown activation or pooling, no channels, an even kernel, or weights="imagenet".
    """

    def __init__(
        self,
        channels: Sequence[int] = (32, 64, 128, 256, 256),
        kernel: int = 3,
        activation: str = "relu",
        pooling: str = "max",
        head: Sequence[int] | None = None,
        weights: str = "auto",
    ) -> None:
        super().__init__(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
        for key, value, choices in (("activation", activation, ACTIVATIONS), ("pooling", pooling, POOLINGS)):
            if value not in choices:
                raise ValueError(f"encoder.backbone.{key}={value}: choose one of {', '.join(choices)}")
        if not channels:
            raise ValueError("encoder.backbone.channels is empty: give at least one convolution layer, e.g. [32,64]")
        at_least(1, "encoder.backbone", channels=channels, kernel=kernel, head=head)
        if kernel % 2 == 0:
            raise ValueError(
                f"encoder.backbone.kernel={kernel}: an odd number keeps the grid centred; take {kernel + 1}"
            )
        layers: list[nn.Module] = []
        last = 3
        for width in channels:
            layers += [
                nn.Conv2d(last, width, kernel, padding=kernel // 2, bias=False),
                nn.BatchNorm2d(width),
                ACTIVATIONS[activation](),
                POOLINGS[pooling](2),
            ]
            last = width
        self.layers = nn.Sequential(*layers)
        self.vector = bool(head)
        self.head: nn.Sequential | None = None
        if head:
            widths = [last * 16, *head]
            fully: list[nn.Module] = [nn.AdaptiveAvgPool2d(4), nn.Flatten()]
            for before, after in zip(widths[:-1], widths[1:], strict=True):
                fully += [nn.Linear(before, after), ACTIVATIONS[activation]()]
            self.head = nn.Sequential(*fully, nn.Unflatten(1, (head[-1], 1, 1)))
            last = head[-1]
        self.width = last
        if weights == "imagenet":
            raise ValueError("encoder.backbone.weights=imagenet: `cnn` has no published weights; use random or a file")
        if weights not in ("auto", "random"):
            from src.encoders.pretrained import file_description, load_into, load_state_file

            load_into(self, load_state_file(weights), f"weights={weights}")
            self.weights_used = file_description(weights)

    @property
    def stages(self) -> list[Stage]:
        """One a convolution layer, and the head."""
        layers = list(self.layers)
        stages = [Stage(f"convolution {i // 4 + 1}", layers[i : i + 4]) for i in range(0, len(layers), 4)]
        return stages if self.head is None else [*stages, Stage("head", [self.head])]

    def forward(self, images: Tensor, first: int = 0, last: int | None = None) -> Tensor:
        if not first and min(images.shape[-2:]) < 2 ** (len(self.layers) // 4):
            raise ValueError(
                f"pictures of {min(images.shape[-2:])} pixels vanish in {len(self.layers) // 4} halvings: "
                "raise transform.size or shorten encoder.backbone.channels"
            )
        return super().forward(images, first, last)
