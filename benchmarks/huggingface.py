"""Another baseline: Hugging Face `generate`, with a decoder about as heavy as captioners there have."""

from collections.abc import Callable
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from src.data.vocabulary import BOS, EOS, PAD, UNK

MISSING = "not installed: pip install -e '.[bench]'"


def installed() -> bool:
    return find_spec("transformers") is not None


def generator(
    regions_width: int, vocabulary: int, hidden: int, beams: int, words: int, dtype: torch.dtype | None
) -> Callable[[Tensor], Tensor]:
    """A beam search from regions (B, R, D) to ids (B, T), exactly `words` + 1 steps: regions projected,
    then a `VisionEncoderDecoderModel` with a GPT-2 of three layers that attends to them. Random weights."""
    import transformers
    from transformers.modeling_outputs import BaseModelOutput

    heads = 8
    picture = transformers.ViTConfig(  # never run: the regions are given
        hidden_size=hidden, num_hidden_layers=1, num_attention_heads=heads, intermediate_size=hidden, image_size=32
    )
    text = transformers.GPT2Config(
        vocab_size=vocabulary,
        n_embd=hidden,
        n_layer=3,
        n_head=heads,
        n_positions=words + 2,
        add_cross_attention=True,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )
    both = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(picture, text)
    model = transformers.VisionEncoderDecoderModel(both).eval()
    project = nn.Linear(regions_width, hidden)
    settings = transformers.GenerationConfig(
        num_beams=beams,
        do_sample=False,
        min_new_tokens=words + 1,
        max_new_tokens=words + 1,
        length_penalty=0.0,
        suppress_tokens=[BOS, UNK, PAD],
        decoder_start_token_id=BOS,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )

    @torch.inference_mode()
    def captions(regions: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            seen = BaseModelOutput(last_hidden_state=project(regions.float()))
            return model.generate(encoder_outputs=seen, generation_config=settings)

    return captions
