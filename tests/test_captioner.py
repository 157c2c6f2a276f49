"""What a user holds: one captioner for whatever a picture comes as."""

import http.server
import threading
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from src.bundle import SHIPPED, Bundle, BundleError, bundle_config, save_bundle
from src.captioner import Captioner
from src.data.control import ControlError
from src.data.images import ImageError
from src.data.vocabulary import Vocabulary
from src.model import build
from tests.conftest import tiny_config
from tests.test_pictures import Quiet


@pytest.fixture
def captioner(tmp_path, vocabulary):
    """Of random weights, which says other words of other pictures; it knows `<en>`, `<zh>` and lengths."""
    torch.manual_seed(3)
    controls = {"<en>": 5, "<zh>": 5, "<length=2>": 4, "<length=9>": 1}
    words = Vocabulary.build([[w] for w in vocabulary.words[4:]], min_count=1, controls=controls)
    config = bundle_config(tiny_config(generation__max_length=5), {"encoder_weights": "random"})
    model = build(config, words).eval()
    model.decoder.classifier.weight.data *= 30
    model.encoder.project.weight.data *= 100
    save_bundle(tmp_path / "runs" / "mine" / "bundle", Bundle(model, words, config))
    return Captioner.load(tmp_path / "runs" / "mine", device_name="cpu", precision_name="32-true")


@pytest.fixture
def pictures(shapes):
    return sorted((shapes / "images").iterdir())[:6]


def said(captions):
    return [(each.text, each.log_probs) for each in captions]


def test_a_picture_is_the_same_whatever_it_comes_as(captioner, pictures):
    expected = captioner(pictures)
    assert [each.picture for each in expected] == [str(path) for path in pictures]
    assert len({each.text for each in expected}) > 1, "the pictures differ"
    images = [Image.open(path).convert("RGB") for path in pictures]
    arrays = np.stack([np.asarray(image) for image in images])
    tensors = torch.from_numpy(arrays.copy()).permute(0, 3, 1, 2)
    for given in (
        map(str, pictures),
        images,
        list(arrays),
        arrays,
        tensors,
        tensors / 255,
        [path.read_bytes() for path in pictures],
        [path.open("rb") for path in pictures],
        [pictures[0], images[1], [arrays[2], tensors[3:5]], pictures[5]],
        str(pictures[0].parent / "0[0-5].png"),
    ):
        found = captioner(given, batch_size=4)
        assert [each.text for each in found] == [each.text for each in expected]
        for one, other in zip(found, expected, strict=True):
            assert one.log_probs == pytest.approx(other.log_probs, abs=1e-4)
    assert [each.text for each in captioner(pictures[2])] == [expected[2].text], "one picture is a list of one"
    assert len(captioner(pictures[0].parent)) == 24 and captioner([]) == []


def test_it_is_lazy_and_keeps_the_order(captioner, pictures):
    asked = []

    def endless():
        while True:
            asked.append(pictures[len(asked) % 6])
            yield asked[-1]

    found = captioner.stream(endless(), batch_size=2)
    first = [next(found) for _ in range(12)]
    found.close()
    assert len(asked) <= 12 + 2 + 4 and [each.picture for each in first[:6]] == [str(p) for p in pictures]
    assert said(first[6:]) == said(first[:6])


def test_words_scores_attention_and_alternatives(captioner, pictures):
    for caption in captioner(pictures, attention=True, alternatives=2):
        assert caption.attention.shape == (len(caption.words), len(caption.boxes)) and caption.score < 0
        assert 1 <= len(caption.alternatives) <= 2 and caption.text not in {c.text for c in caption.alternatives}
    assert all(each.attention is None and not each.alternatives for each in captioner(pictures))


def test_a_call_asks_for_itself_alone(captioner, pictures):
    before = said(captioner(pictures))
    for asks in ({"language": "zh"}, {"tags": ["en", "zh"]}, {"length": 9}, {"length": "short", "language": "en"}):
        within = captioner(pictures, **asks)
        assert said(captioner(pictures)) == before, "the next call is as ever"
        captioner.ask(**asks)
        assert said(captioner(pictures)) == said(within)
        captioner.ask()
    with captioner.asking(length=9):
        assert captioner.generation.max_length == 9 and captioner.control == ["<length=9>"]
    assert captioner.generation.max_length == 5 and captioner.control == []
    with pytest.raises(ControlError, match="fr: this captioner knows the tags en, zh"):
        captioner(pictures, language="fr")


def test_a_name_will_do(captioner, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Captioner.load("mine", device_name="cpu").vocabulary.words == captioner.vocabulary.words
    named, default = Captioner.load(SHIPPED.name, device_name="cpu"), Captioner.load(device_name="cpu")
    assert named.config == default.config and "<zh>" in default.vocabulary.control_index
    with pytest.raises(BundleError, match=f"nobody: no such file or directory.*{SHIPPED.name} comes with the code"):
        Captioner.load("nobody")


def test_addresses_are_fetched_where_that_is_asked_for(captioner, pictures):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(pictures[0].parent))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/{pictures[0].name}"
        with pytest.raises(ValueError, match="nothing is fetched unless asked for"):
            captioner(address)
        (found,) = captioner(address, urls=True)
        server.shutdown()
    assert said([found]) == said(captioner(pictures[0])) and found.picture == address
    with pytest.raises(ImageError, match="an address, and not to be fetched here"):
        captioner.open(address)


def test_what_is_no_picture_is_an_error_that_names_it(captioner, pictures, tmp_path):
    (tmp_path / "broken.png").write_bytes(pictures[0].read_bytes()[:60])
    with pytest.raises(ImageError, match=r"broken\.png: damaged or truncated"):
        captioner([pictures[0], tmp_path / "broken.png"])
    with pytest.raises(ValueError, match=r"nowhere\.png: no such file or folder"):
        captioner([pictures[0], "nowhere.png"])
    with pytest.raises(ValueError, match="batch_size=0: 1 or more"):
        captioner(pictures, batch_size=0)
    with pytest.raises(ValueError, match="device nonsense: not here"):
        Captioner.load(device_name="nonsense")
    with pytest.raises(TypeError, match="NoneType: no picture"):
        captioner([None])
    with pytest.raises(ImageError, match=r"shape \(2, 3, 40, 48, 1\)"):
        captioner(np.zeros((2, 3, 40, 48, 1)))
