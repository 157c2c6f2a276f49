import pytest
import torch

from src.bundle import Bundle, bundle_config, load_bundle, save_bundle
from src.captioner import Captioner
from src.model import build
from src.soup import main, soup
from tests.conftest import tiny_config
from tests.test_bundle import make


@pytest.fixture
def three(vocabulary, tmp_path):
    """Bundles of one build, the second and third with all weights shifted by known amounts."""
    for number, shift in enumerate((0.0, 1.0, 4.0)):
        bundle = make(vocabulary, decoder__tied=True)
        for tensor in (*bundle.model.parameters(), *bundle.model.buffers()):
            if tensor.is_floating_point():
                tensor.data += shift
            else:
                tensor += number
        save_bundle(tmp_path / str(number), bundle)
    return [tmp_path / str(number) for number in range(3)]


@pytest.mark.parametrize(
    ("weights", "shift"), [(None, 5 / 3), ([1, 1, 2], 9 / 4), ([0.3, 0.7, 0], 0.7), ([0, 0, 5], 4.0)]
)
def test_the_mean_by_hand(weights, shift, three):
    first, mean = load_bundle(three[0]), soup(three, weights)
    own = mean.model.state_dict()
    for name, tensor in first.model.state_dict().items():
        expected = tensor + shift if tensor.is_floating_point() else tensor
        torch.testing.assert_close(own[name], expected, msg=name)
    assert mean.model.decoder.classifier.weight.data_ptr() == mean.model.decoder.embedding.weight.data_ptr()


def test_the_command_writes_a_captioner_that_says_what_it_is(three, shapes, tmp_path, capsys):
    call = [*map(str, three[:2]), "-o", str(tmp_path / "soup"), "--weights", "3", "1"]
    assert main(call) == 0
    said = f"0.75 of {three[0]}, 0.25 of {three[1]}"
    assert capsys.readouterr().out == f"{tmp_path / 'soup'}: {said}\n"
    assert f"- Averaged: {said}" in (tmp_path / "soup" / "README.md").read_text()
    captioner = Captioner.load(tmp_path / "soup", device_name="cpu")
    assert captioner.calibration is None and len(list(captioner([shapes / "images" / "00.png"]))) == 1
    assert main(call) == 2 and "is there already: add --overwrite" in capsys.readouterr().err
    assert main([*call, "--overwrite"]) == 0


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_matcher_that_one_has_is_left_out(order, vocabulary, shapes, tmp_path):
    """A captioner that finds pictures, and what it was fine-tuned to, which does not."""
    matcher = {"_target_": "src.matcher.JointMatcher", "size": 8, "words": 8, "hidden": 8, "heads": 2}
    for seed, own in enumerate((matcher, None)):
        torch.manual_seed(seed)
        config = bundle_config({**tiny_config(), "matcher": own}, {"encoder_weights": "random"})
        save_bundle(tmp_path / str(seed), Bundle(build(config, vocabulary).eval(), vocabulary, config))
    mean = soup([tmp_path / str(i) for i in order])
    assert mean.model.matcher is None and mean.config["matcher"] is None
    save_bundle(tmp_path / "soup", mean)
    assert len(list(Captioner.load(tmp_path / "soup", device_name="cpu")([shapes / "images" / "00.png"]))) == 1
    both = [load_bundle(tmp_path / name).model.state_dict() for name in "01"]
    for name, tensor in mean.model.state_dict().items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor, (both[0][name] + both[1][name]) / 2, msg=name)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (["1"], "3 are wanted, one a captioner"),
        (["1", "-1", "1"], "0 or more"),
        (["0", "0", "0"], "not all 0"),
        (["1", "nan", "1"], "nan"),
        (["1", "inf", "1"], "inf"),
    ],
)
def test_weights_that_cannot_be(weights, message, three, tmp_path, capsys):
    assert main([*map(str, three), "-o", str(tmp_path / "soup"), "--weights", *weights]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "soup").exists()


def test_one_captioner_is_no_average(three, tmp_path, capsys):
    assert main([str(three[0]), "-o", str(tmp_path / "soup")]) == 2
    assert "two captioners or more" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"decoder": "lstm"}, "its decoder._target_ is src.decoders.LSTMDecoder, not "),
        ({"decoder__hidden": 24}, "its decoder.hidden is 24, not "),
        ({"encoder__dropout": 0.4}, None),
    ],
)
def test_only_what_is_built_alike_is_averaged(fields, message, vocabulary, tmp_path, capsys):
    """How it was trained, such as its dropout, may differ."""
    save_bundle(tmp_path / "one", make(vocabulary))
    save_bundle(tmp_path / "two", make(vocabulary, **fields))
    status = main([str(tmp_path / "one"), str(tmp_path / "two"), "-o", str(tmp_path / "soup")])
    assert (status, message is None or message in capsys.readouterr().err) == (0 if message is None else 2, True)


def test_another_vocabulary_is_refused(vocabulary, tmp_path, capsys):
    save_bundle(tmp_path / "one", make(vocabulary))
    save_bundle(tmp_path / "two", make(vocabulary.extended([["unicorn"] * 9], 1)))
    assert main([str(tmp_path / "one"), str(tmp_path / "two"), "-o", str(tmp_path / "soup")]) == 2
    said = f"its vocabulary is another, of {len(vocabulary) + 1} words, not {len(vocabulary)}"
    assert said in capsys.readouterr().err
