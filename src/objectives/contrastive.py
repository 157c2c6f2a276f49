"""Pictures beside their own sentences, and away from those of others."""

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from src.matcher import spoken
from src.objectives.base import Loss, Objective
from src.objectives.cross_entropy import CrossEntropy
from src.ranges import at_least

if TYPE_CHECKING:
    from src.data.module import Batch, CaptionData
    from src.model import CaptioningModel


class Contrastive(Objective):
    """Trains the model's matcher: of a batch, each sentence is to lie closer to its own picture than to the others, and
    each picture closer to its own sentences; sentences of one picture are not set against each other. Of a sentence s
    and its picture p, with similarity scaled by a temperature that is learned,

        loss = −½ log softmax of p among all pictures − ½ log softmax of s among s and the others' sentences
               + hard_weight · ([margin + hardest picture − own]₊ + [margin + hardest sentence − own]₊)

    The first line is InfoNCE (van den Oord et al., 2018, https://arxiv.org/abs/1807.03748; both ways: Radford et al.,
    2021, https://arxiv.org/abs/2103.00020), the second the hardest negatives of VSE++ (Faghri et al., 2018,
    https://arxiv.org/abs/1707.05612). Negatives are those of a process's own batch.

    Args:
        likelihood_weight: of InfoNCE.
        hard_weight: of the hardest negatives.
        margin: in cosine, by which the hardest is to be left behind.
        temperature: of InfoNCE at the start.
        caption_weight: of the captions' cross-entropy, a word, besides: encoder, decoder and matcher learn together (as
            in CoCa: Yu et al., 2022, https://arxiv.org/abs/2205.01917). At 0 the captioner stays as it is, and the
            matcher alone learns.
        label_smoothing: of that cross-entropy.
        from_random: at a caption_weight of 0, allow a captioner of random weights.
    """

    def __init__(
        self,
        likelihood_weight: float = 1.0,
        hard_weight: float = 0.0,
        margin: float = 0.2,
        temperature: float = 0.07,
        caption_weight: float = 1.0,
        label_smoothing: float = 0.1,
        from_random: bool = False,
    ) -> None:
        super().__init__()
        weights = {"likelihood_weight": likelihood_weight, "hard_weight": hard_weight, "caption_weight": caption_weight}
        at_least(0, "objective", margin=margin, **weights)
        if not likelihood_weight and not hard_weight:
            raise ValueError(
                "objective.likelihood_weight=0 and objective.hard_weight=0: the matcher learns from one of them"
            )
        if not temperature > 0:
            raise ValueError(f"objective.temperature={temperature}: above 0")
        self.likelihood_weight, self.hard_weight, self.margin = likelihood_weight, hard_weight, margin
        self.caption_weight = caption_weight
        self.needs_start = not caption_weight and not from_random
        self.captions = CrossEntropy(label_smoothing)
        # Of one dimension: what has none is not shared out among processes.
        self.log_scale = nn.Parameter(torch.tensor([-math.log(temperature)]), requires_grad=likelihood_weight > 0)

    def check(self, model: "CaptioningModel") -> None:
        if model.matcher is None:
            raise ValueError("objective=contrastive trains a matcher, and there is none: add matcher=joint")

    def begin(self, model: "CaptioningModel", data: "CaptionData | None" = None) -> None:
        self.check(model)
        if not self.caption_weight:
            model.encoder.requires_grad_(False)
            model.decoder.requires_grad_(False)

    def forward(self, model: "CaptioningModel", batch: "Batch") -> Loss:
        assert model.matcher is not None
        if not self.caption_weight:
            model.encoder.eval()  # neither dropout nor statistics of what does not learn
        features = model.features(batch.images)
        words, lengths, place = spoken(batch)
        pictures, sentences = model.matcher.pictures(features), model.matcher.sentences(words, lengths)
        total, nats, hardest = self.match(pictures, sentences, place, batch.index)
        count = lengths.new_tensor(len(lengths))
        logs = {"matching": nats, "hardest": hardest}
        if self.caption_weight:
            plain = self.captions(model, batch._replace(images=features))
            a_word = count / plain.count.clamp(min=1)
            total = total + self.caption_weight * a_word * plain.total
            logs |= {name: value * a_word for name, value in plain.logs.items()}
        return Loss(total, count, logs)

    def match(
        self, pictures: Tensor, sentences: Tensor, place: Tensor, index: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Unit vectors of pictures (B, E) and sentences (N, E), and each sentence's picture as its place (N,) → the
        loss summed over the sentences; detached, InfoNCE's part in nats and the hardest negatives'. Where a picture can
        occur several times, `index` (B,) says which are the same."""
        if not len(place):  # captions of no words
            nothing = 0 * pictures.sum()
            return nothing, nothing.detach(), nothing.detach()
        index = torch.arange(len(pictures), device=place.device) if index is None else index
        with torch.autocast(pictures.device.type, enabled=False):
            similar = sentences @ pictures.t()  # (N, B)
            own = similar.gather(1, place.unsqueeze(1)).squeeze(1)
            mine = index[place].unsqueeze(1) == index
            others = similar.masked_fill(mine, -1e4)  # which leaves gradients where there are no others
            scale = self.log_scale.exp().clamp(max=100)
            ways = [(scale * others).logsumexp(1), (scale * others).logsumexp(0)[place]]
            nats = torch.stack([F.softplus(rest - scale * own).sum() for rest in ways]).mean()
            hardest = others.amax(1), others.amax(0)[place]
            hard = torch.stack([(self.margin + each - own).clamp(min=0).sum() for each in hardest]).sum()
        return self.likelihood_weight * nats + self.hard_weight * hard, nats.detach(), hard.detach()
