import math
from pathlib import Path

import pytest
import torch

from src.config import CONF
from src.data.vocabulary import BOS, PAD
from src.decoders.base import rectangles, select_beams, select_images
from src.model import build
from tests.conftest import random_features, tiny_config

ATTENTIONS = sorted(path.stem for path in Path(CONF).glob("attention/*.yaml"))
DECODERS = [
    ("lstm", "additive"),
    ("gru", "additive"),
    ("transformer", "additive"),
    *((decoder, attention) for decoder in ("lstm_attn", "gru_attn", "updown") for attention in ATTENTIONS),
]


def layered(name, layers):
    """Overrides of `tiny_config`; updown has two layers of its own."""
    return {} if name == "updown" else {"decoder__layers": layers}


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize(("name", "attention"), DECODERS)
def test_repeated_steps_equal_forward(name, attention, layers, vocabulary):
    torch.manual_seed(1)
    decoder = build(tiny_config(name, attention, **layered(name, layers)), vocabulary).decoder.eval()
    memory = decoder.prepare(random_features())
    words = torch.randint(4, len(vocabulary), (3, 2, 6))  # 3 images, 2 captions, 6 words
    whole = decoder(decoder.embed(words), memory)
    state = decoder.start(memory)
    for t in range(6):
        output, state = decoder.step(decoder.embed(words[:, :, t]), state, memory)
        torch.testing.assert_close(output.hidden, whole.hidden[:, :, t], atol=1e-6, rtol=1e-5)
        if decoder.attends:
            torch.testing.assert_close(output.attention, whole.attention[:, :, t], atol=1e-6, rtol=1e-5)
            torch.testing.assert_close(output.attention.sum(-1), torch.ones(3, 2))
        else:
            assert output.attention is None


@pytest.mark.parametrize(("name", "attention"), DECODERS)
def test_captions_of_one_image_share_its_memory(name, attention, vocabulary):
    """B·Q captions against B memories give what each caption gives alone with a copy of its image's memory."""
    decoder = build(tiny_config(name, attention), vocabulary).decoder.eval()
    features = random_features()
    words = torch.randint(4, len(vocabulary), (3, 4, 5))
    together = decoder(decoder.embed(words), decoder.prepare(features)).hidden
    copies = type(features)(*(x.repeat_interleave(4, 0) for x in features))
    apart = decoder(decoder.embed(words.flatten(0, 1).unsqueeze(1)), decoder.prepare(copies)).hidden
    torch.testing.assert_close(together.flatten(0, 1), apart.squeeze(1))


@pytest.mark.parametrize(("name", "attention"), DECODERS)
def test_padding_and_later_words_change_nothing_before_them(name, attention, vocabulary):
    decoder = build(tiny_config(name, attention), vocabulary).decoder.eval()
    memory = decoder.prepare(random_features(1))
    words = torch.randint(4, len(vocabulary), (1, 1, 6))
    other = words.clone()
    other[..., 4:] = PAD
    first, second = (decoder(decoder.embed(w), memory).hidden[:, :, :4] for w in (words, other))
    assert torch.equal(first, second)


@pytest.mark.parametrize(("name", "attention"), [each for each in DECODERS if each[0] not in ("lstm", "gru")])
def test_masked_regions_are_not_attended(name, attention, vocabulary):
    decoder = build(tiny_config(name, attention), vocabulary).decoder.eval()
    features = random_features(2)
    mask = features.mask.clone()
    mask[0, 1:] = False
    output = decoder(decoder.embed(torch.full((2, 1, 1), BOS)), decoder.prepare(features._replace(mask=mask)))
    assert output.attention[0, 0, 0].tolist() == pytest.approx([1, 0, 0, 0], abs=1e-6)
    assert (output.attention[1] > 0).all()
    other = features._replace(grid=features.grid.clone(), mask=mask)
    other.grid[0, 1:] = 100.0
    same = decoder(decoder.embed(torch.full((2, 1, 1), BOS)), decoder.prepare(other))
    torch.testing.assert_close(same.hidden, output.hidden)


NAMES = sorted({name for name, _ in DECODERS})


@pytest.mark.parametrize("name", NAMES)
def test_probabilities_embed_like_the_words_they_name(name, vocabulary):
    decoder = build(tiny_config(name), vocabulary).decoder.eval()
    words = torch.tensor([[4, 5], [6, 7]])
    relaxed = torch.nn.functional.one_hot(words, len(vocabulary)).float()
    torch.testing.assert_close(decoder.embed(relaxed), decoder.embed(words))


@pytest.mark.parametrize("name", NAMES)
def test_tied_output_layer_is_the_word_table(name, vocabulary):
    decoder = build(tiny_config(name, decoder__tied=True), vocabulary).decoder
    assert decoder.classifier.weight is decoder.embedding.weight


def test_lstm_equals_torch_cells_by_hand(vocabulary):
    """Show and Tell: the image first, then the words, through one LSTM cell."""
    decoder = build(tiny_config("lstm"), vocabulary).decoder.eval()
    features, words = random_features(2), torch.randint(4, len(vocabulary), (2, 1, 3))
    cell = torch.nn.LSTMCell(12, 14)
    cell.load_state_dict({k.removesuffix("_l0"): v for k, v in decoder.recurrent.state_dict().items()})
    state = cell(decoder.image(features.pooled))
    for t in range(3):
        state = cell(decoder.embedding(words[:, 0, t]), state)
    expected = decoder.output(state[0])
    output = decoder(decoder.embed(words), decoder.prepare(features))
    torch.testing.assert_close(output.hidden[:, 0, -1], expected)


@pytest.mark.parametrize(("name", "lstms"), [("lstm", 1), ("lstm_attn", 1), ("updown", 2), ("gru", 0), ("gru_attn", 0)])
def test_forget_gates_start_at_one(name, lstms, vocabulary):
    biases = {n: p for n, p in build(tiny_config(name), vocabulary).decoder.named_parameters() if len(p) == 4 * 14}
    ones = [n for n, p in biases.items() if p.ndim == 1 and bool((p[14:28] == 1).all())]
    assert len(ones) == lstms


def test_select_beams_and_images():
    state = (torch.arange(6).view(2, 3, 1), None, (torch.arange(6).view(2, 3),))
    chosen = select_beams(state, torch.tensor([[2, 2], [0, 1]]))
    assert chosen[0].squeeze(-1).tolist() == [[2, 2], [3, 4]]
    assert chosen[1] is None
    assert select_images(state, torch.tensor([1]))[2][0].tolist() == [[3, 4, 5]]


def test_rectangles_hold_every_caption_that_goes_on_and_no_empty_edge():
    lengths = torch.tensor([[5, 2, 0], [1, 3, 0], [4, 1, 1]])
    found = rectangles(lengths, 6)
    for step, (images, captions) in enumerate(found):
        going = lengths > step
        assert not going[images:].any() and not going[:, captions:].any()
        if images:
            assert going[images - 1].any() and going[:, captions - 1].any()
    assert found[0] == (3, 3) and found[4] == (1, 1) and found[5] == (0, 0)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize(("name", "attention"), DECODERS)
def test_leaving_out_what_is_behind_a_captions_end_changes_nothing_before_it(name, attention, layers, vocabulary):
    decoder = build(tiny_config(name, attention, **layered(name, layers)), vocabulary).decoder.eval()
    words, lengths = torch.randint(4, len(vocabulary), (3, 3, 7)), torch.tensor([[6, 3, 2], [5, 5, 1], [2, 2, 0]])
    real = torch.arange(7) < lengths.unsqueeze(-1)
    weights = torch.randn(3, 3, 7, 12)

    def run(lengths):
        decoder.zero_grad()
        output = decoder(decoder.embed(words), decoder.prepare(random_features()), lengths=lengths)
        (output.hidden * weights)[real].sum().backward()
        return output, [p.grad.clone() for p in decoder.parameters() if p.grad is not None]

    (whole, expected), (part, gradients) = run(None), run(lengths)
    torch.testing.assert_close(part.hidden[real], whole.hidden[real])
    assert part.hidden.shape == whole.hidden.shape
    if decoder.attends:
        torch.testing.assert_close(part.attention[real], whole.attention[real])
    for mine, its in zip(gradients, expected, strict=True):
        torch.testing.assert_close(mine, its, atol=1e-5, rtol=1e-4)


def test_gru_cell_equals_torchs():
    """The context is part of the input; reset gate after the product."""
    from src.decoders.recurrent_attn import GRUCell

    torch.manual_seed(0)
    ours, theirs = GRUCell(5, 7), torch.nn.GRUCell(3 + 5, 7)
    given = torch.nn.Linear(3, 21)
    with torch.no_grad():
        theirs.weight_ih.copy_(torch.cat([given.weight, ours.context.weight], 1))
        theirs.bias_ih.copy_(given.bias)
        theirs.weight_hh.copy_(ours.recurrent.weight)
        theirs.bias_hh.copy_(ours.recurrent.bias)
    word, context, hidden = torch.randn(4, 3), torch.randn(4, 5), torch.randn(4, 7)
    expected = theirs(torch.cat([word, context], 1), hidden)
    torch.testing.assert_close(ours(given(word), context, hidden, None)[0], expected)


def test_updown_by_hand(vocabulary):
    """Two `nn.LSTMCell`s with the equations of Anderson et al., word by word, for one caption."""
    torch.manual_seed(2)
    decoder = build(tiny_config("updown"), vocabulary).decoder.eval()
    features, words = random_features(1), torch.randint(4, len(vocabulary), (1, 1, 3))
    first, second = torch.nn.LSTMCell(14 + 16 + 12, 14), torch.nn.LSTMCell(16 + 14, 14)
    with torch.no_grad():
        ours = decoder.top_down.recurrent.weight  # [language state, own state]
        first.weight_ih.copy_(torch.cat([ours[:, :14], decoder.image.weight, decoder.word.weight], 1))
        first.weight_hh.copy_(ours[:, 14:])
        ours = decoder.language.recurrent.weight  # [context, own state]
        second.weight_ih.copy_(torch.cat([ours[:, :16], decoder.seen.weight], 1))
        second.weight_hh.copy_(ours[:, 16:])
        for cell, bias in ((first, decoder.word.bias), (second, decoder.seen.bias)):
            cell.bias_ih.copy_(bias)
            cell.bias_hh.zero_()
    h1 = c1 = h2 = c2 = torch.zeros(1, 14)
    attention = decoder.attention
    for t in range(3):
        embedded = decoder.embedding(words[:, 0, t])
        h1, c1 = first(torch.cat([h2, features.pooled, embedded], 1), (h1, c1))
        scores = attention.score(torch.tanh(attention.key(features.grid[0]) + attention.query(h1)))
        context = (scores.softmax(0) * features.grid[0]).sum(0, keepdim=True)
        h2, c2 = second(torch.cat([context, h1], 1), (h2, c2))
    output = decoder(decoder.embed(words), decoder.prepare(features))
    torch.testing.assert_close(output.hidden[:, 0, -1], decoder.output(h2), atol=1e-5, rtol=1e-4)


def test_a_transformer_block_equals_torchs(vocabulary):
    """`nn.TransformerDecoderLayer` with the norms first, its weights, and a causal mask."""
    torch.manual_seed(3)
    decoder = build(tiny_config("transformer"), vocabulary).decoder.eval()
    block, features = decoder.blocks[0], random_features(2)
    theirs = torch.nn.TransformerDecoderLayer(14, 2, 20, activation="gelu", batch_first=True, norm_first=True).eval()
    memory = torch.randn(2, 4, 14)
    with torch.no_grad():
        for number, norm in enumerate(block.norms, start=1):
            norm.weight.normal_()
            getattr(theirs, f"norm{number}").load_state_dict(norm.state_dict())
        theirs.self_attn.in_proj_weight.copy_(block.words.weight)
        theirs.self_attn.in_proj_bias.copy_(block.words.bias)
        theirs.self_attn.out_proj.load_state_dict(block.words_output.state_dict())
        block.image = torch.nn.Linear(14, 28)
        theirs.multihead_attn.in_proj_weight.copy_(torch.cat([block.query.weight, block.image.weight]))
        theirs.multihead_attn.in_proj_bias.copy_(torch.cat([block.query.bias, block.image.bias]))
        theirs.multihead_attn.out_proj.load_state_dict(block.image_output.state_dict())
        theirs.linear1.load_state_dict(block.expand.state_dict())
        theirs.linear2.load_state_dict(block.contract.state_dict())
    words = torch.randn(2, 1, 5, 14)
    keys, values = (block.split(each) for each in block.image(memory).chunk(2, -1))
    for tell in (False, True):
        x, _, _ = block.read(words, None)
        x, weights = block.look(x, keys, values, features.mask[:, None, None], tell)
        expected = theirs(words[:, 0], memory, tgt_mask=torch.nn.Transformer.generate_square_subsequent_mask(5))
        torch.testing.assert_close(block.think(x)[:, 0], expected, atol=1e-5, rtol=1e-4)
    assert weights.shape == (2, 1, 5, 4)


def test_places_are_the_papers():
    from src.decoders.transformer import positions

    found = positions(3, 2, 6, torch.device("cpu"))
    for row, place in enumerate((3, 4)):
        for i in range(3):
            angle = place / 10_000 ** (2 * i / 6)
            assert found[row, 2 * i : 2 * i + 2].tolist() == pytest.approx([math.sin(angle), math.cos(angle)], abs=1e-5)
