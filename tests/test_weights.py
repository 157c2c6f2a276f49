import pytest
import torch
from safetensors.torch import load_file, save_file

from src.bundle import BundleError, load_bundle, save_bundle
from src.captioner import Captioner
from src.confidence import Calibration
from src.model import build
from src.quantize import main
from src.weights import SCALE, STORAGES, restored, stored
from tests.test_bundle import captions_of, make


def test_eight_bits_by_hand():
    matrix = torch.tensor([[1.27, -0.50, 0.004], [0.0, 0.0, 0.0], [-25.4, 0.1, 12.75]])
    state = {"layer.weight": matrix, "layer.bias": torch.tensor([1.0, 2.0, 3.0]), "count": torch.tensor(7)}
    kept = stored(state, "int8")
    assert kept["layer.weight"].dtype == torch.int8
    assert kept["layer.weight"].tolist() == [[127, -50, 0], [0, 0, 0], [-127, 0, 64]]
    assert kept["layer.weight" + SCALE][[0, 2]].tolist() == pytest.approx([0.01, 0.2], rel=2**-9)
    back = restored(kept)
    expected = torch.tensor([[1.27, -0.50, 0.0], [0.0, 0.0, 0.0], [-25.4, 0.0, 12.8]])
    torch.testing.assert_close(back["layer.weight"], expected, rtol=2**-8, atol=0)
    assert back["layer.bias"] is state["layer.bias"] and back["count"] is state["count"]
    assert list(back) == list(state)


@pytest.mark.parametrize("storage", STORAGES)
def test_what_is_restored_is_near_what_was_stored(storage):
    """Kernels by output channel: a row is at most half a step of its own scale away."""
    torch.manual_seed(0)
    kernel = torch.randn(5, 3, 3, 3) * torch.tensor([1e-3, 1, 10, 0.1, 100]).view(5, 1, 1, 1)
    back = restored(stored({"w": kernel}, storage))["w"]
    assert back.dtype == torch.float32 and back.shape == kernel.shape
    apart = (back - kernel).abs().flatten(1).amax(1) / kernel.flatten(1).abs().amax(1)
    assert float(apart.max()) <= {"float32": 0, "float16": 2**-11, "int8": 0.502 / 127}[storage]
    assert (float(apart.max()) > 0) == (storage != "float32")


@pytest.fixture
def pictures(shapes):
    return sorted((shapes / "images").iterdir())[:6]


@pytest.mark.parametrize("storage", ["int8", "float16"])
@pytest.mark.parametrize("tied", [False, True])
def test_a_small_bundle_captions_as_the_large_one(storage, tied, vocabulary, pictures, tmp_path, capsys):
    bundle = make(vocabulary, decoder__tied=tied)
    save_bundle(tmp_path / "large", bundle)
    (tmp_path / "card.md").write_text("## Limits\n\nIt sees 方块 only.\n", encoding="utf-8")
    call = [str(tmp_path / "large"), "-o", str(tmp_path / "small"), "--storage", storage]
    assert main([*call, "--card", str(tmp_path / "card.md")]) == 0
    assert "MB, " in capsys.readouterr().out
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("large", "small")]
    assert sizes[1] < {"int8": 0.65, "float16": 0.75}[storage] * sizes[0], "this model's vectors are many"
    small = Captioner.load(tmp_path / "small", device_name="cpu", precision_name="32-true")
    assert all(p.dtype == torch.float32 for p in small.model.parameters())
    assert small.config["provenance"]["stored_as"] == storage
    before, after = captions_of(bundle, pictures), list(small(pictures))
    assert [c.text for c in before] == [c.text for c in after]
    for one, two in zip(before, after, strict=True):
        assert one.log_probs == pytest.approx(two.log_probs, abs=0.2)
    card = (tmp_path / "small" / "README.md").read_text(encoding="utf-8")
    assert card.endswith("## Limits\n\nIt sees 方块 only.\n") and f"- Stored as: {storage}" in card
    save_bundle(tmp_path / "again", load_bundle(tmp_path / "small"))
    assert "Stored as" not in (tmp_path / "again" / "README.md").read_text(encoding="utf-8"), "float32 again"
    assert "stored_as" not in load_bundle(tmp_path / "again").config["provenance"]


def test_what_is_there_is_not_overwritten_unasked(vocabulary, tmp_path, capsys):
    save_bundle(tmp_path / "large", make(vocabulary))
    call = [str(tmp_path / "large"), "-o", str(tmp_path / "small")]
    assert main(call) == 0 and main([*call, "--overwrite"]) == 0
    assert main(call) == 2
    assert "is there already: add --overwrite" in capsys.readouterr().err
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    assert main([call[0], "-o", str(tmp_path / "mine"), "--overwrite"]) == 2
    assert "is no bundle: name another folder" in capsys.readouterr().err
    assert (tmp_path / "mine" / "thesis.txt").exists()
    assert main([call[0], "-o", str(tmp_path / "new"), "--card", "no.md"]) == 2
    assert "--card no.md: no such file" in capsys.readouterr().err
    assert main([str(tmp_path / "nowhere"), "-o", str(tmp_path / "new")]) == 2
    assert "no such file or directory" in capsys.readouterr().err and not (tmp_path / "new").exists()


def test_scales_that_are_missing_are_damage(vocabulary, tmp_path):
    save_bundle(tmp_path / "b", make(vocabulary), storage="int8")
    file = tmp_path / "b" / "model.safetensors"
    state = load_file(file)
    name = "decoder.classifier.weight"
    for lost in (name, name + SCALE):
        save_file({key: tensor for key, tensor in state.items() if key != lost}, file)
        with pytest.raises(BundleError, match=f"damaged.*{name}"):
            load_bundle(tmp_path / "b")


def test_another_matcher_leaves_the_captioners_bytes_as_they_are(vocabulary, tmp_path, capsys):
    """Of a bundle in eight bits each tensor and scale but the matcher's, the calibration and the rest of the config."""
    matcher = {"_target_": "src.matcher.JointMatcher", "size": 8, "words": 6, "hidden": 5, "heads": 2}
    sure = Calibration(1.0, 2.0, 0.5, 100)

    def with_matcher(bundle, seed):
        torch.manual_seed(seed)
        config = {**bundle.config, "matcher": matcher}
        model = build(config, vocabulary).eval()
        model.load_state_dict(bundle.model.state_dict(), strict=False)
        return bundle._replace(model=model, config=config)

    save_bundle(tmp_path / "large", make(vocabulary)._replace(calibration=sure))
    small = [str(tmp_path / "large"), "-o", str(tmp_path / "small")]
    assert main(small) == 0
    before = load_file(tmp_path / "small" / "model.safetensors")
    trained = with_matcher(load_bundle(tmp_path / "small"), 3)
    save_bundle(tmp_path / "matched", trained)
    again = [str(tmp_path / "small"), "-o", str(tmp_path / "small"), "--overwrite"]
    assert main([*again, "--matcher", str(tmp_path / "matched")]) == 0
    after, bundle = load_file(tmp_path / "small" / "model.safetensors"), load_bundle(tmp_path / "small")
    assert {name for name in after if name not in before} == {n for n in after if n.startswith("matcher.")} != set()
    assert all(
        torch.equal(tensor, after[name]) and tensor.dtype == after[name].dtype for name, tensor in before.items()
    )
    assert bundle.config["matcher"] == matcher and bundle.calibration == sure
    kept = trained.model.matcher.picture.weight
    torch.testing.assert_close(bundle.model.matcher.picture.weight, kept, atol=float(kept.abs().max()) / 250, rtol=0)

    capsys.readouterr()
    for other, sentence in (
        (make(vocabulary), "it has none; objective=contrastive"),
        (with_matcher(make(vocabulary, encoder__width=20), 3), "it fits another captioner (its encoder is another)"),
    ):
        save_bundle(tmp_path / "other", other)
        assert main([*again, "--matcher", str(tmp_path / "other")]) == 2
        assert sentence in capsys.readouterr().err
