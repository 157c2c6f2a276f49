import pytest
import torch

from src.data.vocabulary import BOS, PAD
from src.decoders.base import rectangles, select_beams, select_images
from src.model import build
from tests.conftest import random_features, tiny_config

DECODERS = [("lstm", "additive"), ("lstm_attn", "additive"), ("lstm_attn", "dot")]


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize(("name", "attention"), DECODERS)
def test_repeated_steps_equal_forward(name, attention, layers, vocabulary):
    torch.manual_seed(1)
    decoder = build(tiny_config(name, attention, decoder__layers=layers), vocabulary).decoder.eval()
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


def test_masked_regions_are_not_attended(vocabulary):
    decoder = build(tiny_config("lstm_attn"), vocabulary).decoder.eval()
    features = random_features(2)
    mask = features.mask.clone()
    mask[0, 1:] = False
    output = decoder(decoder.embed(torch.full((2, 1, 1), BOS)), decoder.prepare(features._replace(mask=mask)))
    assert output.attention[0, 0, 0].tolist() == pytest.approx([1, 0, 0, 0], abs=1e-6)
    assert (output.attention[1] > 0).all()


@pytest.mark.parametrize("name", ["lstm", "lstm_attn"])
def test_probabilities_embed_like_the_words_they_name(name, vocabulary):
    decoder = build(tiny_config(name), vocabulary).decoder.eval()
    words = torch.tensor([[4, 5], [6, 7]])
    relaxed = torch.nn.functional.one_hot(words, len(vocabulary)).float()
    torch.testing.assert_close(decoder.embed(relaxed), decoder.embed(words))


@pytest.mark.parametrize("name", ["lstm", "lstm_attn"])
def test_tied_output_layer_is_the_word_table(name, vocabulary):
    decoder = build(tiny_config(name, decoder__tied=True), vocabulary).decoder
    assert decoder.classifier.weight is decoder.embedding.weight


def test_lstm_equals_torch_cells_by_hand(vocabulary):
    """Show and Tell: the image first, then the words, through one LSTM cell."""
    decoder = build(tiny_config("lstm"), vocabulary).decoder.eval()
    features, words = random_features(2), torch.randint(4, len(vocabulary), (2, 1, 3))
    cell = torch.nn.LSTMCell(12, 14)
    cell.load_state_dict({k.removesuffix("_l0"): v for k, v in decoder.lstm.state_dict().items()})
    state = cell(decoder.image(features.pooled))
    for t in range(3):
        state = cell(decoder.embedding(words[:, 0, t]), state)
    expected = decoder.output(state[0])
    output = decoder(decoder.embed(words), decoder.prepare(features))
    torch.testing.assert_close(output.hidden[:, 0, -1], expected)


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
    decoder = build(tiny_config(name, attention, decoder__layers=layers), vocabulary).decoder.eval()
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
