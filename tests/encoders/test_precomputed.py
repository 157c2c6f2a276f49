"""Captioners of regions computed beforehand: masks, whole trainings, evaluation and captioning without a picture."""

import copy
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from pytorch_lightning.utilities import move_data_to_device
from torch.nn import functional as F
from torch.utils.data._utils.pin_memory import pin_memory

from src import caption, evaluate
from src.bundle import load_bundle
from src.captioner import Captioner
from src.data.module import CaptionData, Item
from src.data.regions import RegionFiles, RegionsError
from src.data.tokenizer import EnglishTokenizer
from src.data.transforms import Preprocess
from src.encoders import RegionEncoder, Regions
from src.encoders.base import BoxPosition
from src.generation import BeamSearch, GreedySearch
from src.model import build
from src.objectives.cross_entropy import CrossEntropy
from src.results import read_results
from src.train import train
from tests.conftest import tiny_config
from tests.test_configs import composed, tiny


def some(counts=(4, 1, 3), width=6) -> Regions:
    generator = torch.Generator().manual_seed(0)
    mask = torch.arange(max(counts)) < torch.tensor(counts).unsqueeze(1)
    corners = torch.rand(len(counts), max(counts), 2, 2, generator=generator).sort(2).values.flatten(2)
    return Regions(torch.randn(*mask.shape, width, generator=generator), corners, mask)


def one(regions: Regions, b: int) -> Regions:
    """One picture of a batch, alone and unpadded."""
    return Regions(*(x[b : b + 1, regions.mask[b]] for x in regions))


def tiny_regions(decoder: str, attention: str, vocabulary):
    config = tiny_config(decoder, attention)
    config["encoder"] = {
        **{"_target_": "src.encoders.RegionEncoder", "path": "regions", "dimension": 6, "max_regions": 10, "width": 16}
    }
    torch.manual_seed(0)
    return build(config, vocabulary).eval()


def test_what_the_neck_does():
    torch.manual_seed(0)
    encoder, regions = RegionEncoder("regions", 6, 10, width=8).eval(), some()
    assert isinstance(encoder.position, BoxPosition) and encoder.frozen_stages == 0 and not encoder.vector
    features = encoder(regions)
    for b, count in enumerate((4, 1, 3)):
        x = regions.regions[b, :count] @ encoder.project.weight.T + encoder.project.bias
        x = F.layer_norm(x + encoder.position(regions.boxes[b, :count]), (8,))
        torch.testing.assert_close(features.grid[b, :count], x)
        torch.testing.assert_close(features.pooled[b], x.mean(0))
        assert not features.grid[b, count:].any()
    assert torch.equal(features.mask, regions.mask) and torch.equal(features.boxes, regions.boxes)
    assert RegionEncoder("regions", 6, 10, width=None).width == 6
    assert encoder.backbone.weights_used == "none (regions computed beforehand, regions)"


@pytest.mark.parametrize("search", [GreedySearch(max_length=6), BeamSearch(3, max_length=6)], ids=["greedy", "beam"])
@pytest.mark.parametrize("attention", ["additive", "dot"])
@pytest.mark.parametrize("decoder", ["lstm", "lstm_attn"])
def test_padding_changes_no_caption(decoder, attention, search, vocabulary):
    """Pictures with few regions beside one with many say what each says alone; padding gets no attention, whatever
    lies there."""
    model, regions = tiny_regions(decoder, attention, vocabulary), some()
    regions.regions[~regions.mask], regions.boxes[~regions.mask] = 1e4, 0.5
    with torch.no_grad():
        found = search(model.decoder, model.memory(regions), attention=True)
        for b in range(3):
            alone = search(model.decoder, model.memory(one(regions, b)), attention=True)
            length = int(alone.lengths[0, 0]) + 1
            assert torch.equal(found.tokens[b, 0, :length], alone.tokens[0, 0, :length])
            torch.testing.assert_close(found.scores[b], alone.scores[0])
            if found.attention is not None:
                looks = found.attention[b, 0, : length - 1]
                torch.testing.assert_close(looks[:, regions.mask[b]], alone.attention[0, 0, : length - 1])
                assert not looks[:, ~regions.mask[b]].any()
    assert (found.attention is None) == (decoder == "lstm")


@pytest.mark.parametrize("attention", ["additive", "dot"])
@pytest.mark.parametrize("decoder", ["lstm", "lstm_attn"])
def test_padding_changes_no_loss_and_no_gradient(decoder, attention, vocabulary, pictureless):
    model = tiny_regions(decoder, attention, vocabulary)
    files = RegionFiles(pictureless / "regions", 6, 100)
    split = CaptionData(
        pictureless, Preprocess(8), EnglishTokenizer(), train="t.tsv", vocabulary=vocabulary, regions=files
    ).images("train")

    def gradients(*batches):
        model.zero_grad()
        objective = CrossEntropy(0.1, attention_penalty=1.0)
        totals = [objective(model, split[[Item(i, [0]) for i in batch]]).total for batch in batches]
        sum(totals).backward()
        return sum(totals).item(), {k: p.grad.clone() for k, p in model.named_parameters() if p.grad is not None}

    (loss, whole), (sum_of_losses, each) = gradients([0, 1, 2, 3]), gradients([0], [1], [2], [3])
    assert loss == pytest.approx(sum_of_losses, rel=1e-5)
    assert "encoder.project.weight" in whole
    torch.testing.assert_close(whole, each, atol=1e-5, rtol=1e-4)


@pytest.fixture
def pictureless(tmp_path):
    (tmp_path / "regions").mkdir()
    for number, count in enumerate((2, 5, 3, 1)):
        rng = np.random.default_rng(number)
        np.save(tmp_path / "regions" / f"{number}.npy", rng.standard_normal((count, 6)).astype(np.float32))
    (tmp_path / "t.tsv").write_text("".join(f"{i}.jpg\ta red square on a grey circle\n" for i in range(4)))
    return tmp_path


def test_a_batch_moves_and_is_pinned_with_its_regions(pictureless, vocabulary):
    files = RegionFiles(pictureless / "regions", 6, 100)
    data = CaptionData(pictureless, Preprocess(8), EnglishTokenizer(), train="t.tsv", min_count=1, regions=files)
    batch = next(iter(data.evaluation_dataloader("train")))
    moved = move_data_to_device(batch, torch.device("meta"))
    assert isinstance(moved.images, Regions) and {x.device.type for x in moved.images} == {"meta"}
    assert moved.references == batch.references
    if torch.cuda.is_available():
        assert all(x.is_pinned() for x in pin_memory(batch).images)


@pytest.fixture(scope="module")
def run(shapes, tmp_path_factory):
    """A training of two epochs on regions alone, in a copy of the data without its pictures."""
    root = tmp_path_factory.mktemp("pictureless")
    for name in ("train.tsv", "val.tsv", "test.tsv", "nouns.json", "regions"):
        (root / name).symlink_to(shapes / name)
    folder = tmp_path_factory.mktemp("run")
    small = ["encoder=precomputed", "encoder.width=16", "decoder.hidden=16", "embedding.size=8", "attention.width=8"]
    options = ["trainer.fast_dev_run=false", "trainer.max_epochs=2", "data.batch_size=8", "optimizer.lr=0.01"]
    train(composed([*small, "generation=greedy", *tiny(root, folder), *options, "data.workers=1"]))
    return root, folder


def test_training_and_its_report_without_pictures(run):
    root, folder = run
    results = folder / "run" / "eval" / "val"
    scores = json.loads((results / "scores.json").read_text())
    assert scores["images"] == 4 and scores["encoder_weights"] == "none (regions computed beforehand, regions)"
    html = (results / "report.html").read_text()
    assert html.count("data:image/jpeg") == 4 and "no such file" not in html
    boxes = [json.loads(each.replace("&#34;", '"')) for each in re.findall(r'data-regions="([^"]*)"', html)]
    counts = [len({tuple(box) for box in each["boxes"]}) for each in boxes]
    looks = read_results(results).looks.values()
    assert [len(each.boxes) for each in looks] == [2, 3, 4, 5] == sorted(counts), "each picture's own, without padding"
    assert list((folder / "run" / "tensorboard").glob("events*"))
    assert not (folder / "cache" / "features").exists()


def test_evaluation_and_regions_in_another_place(run, shapes, tmp_path):
    root, folder = run
    options = [f"model={folder / 'run'}", f"data.root={root}", "data=tsv", "data.test=test.tsv", "data.workers=0"]
    first = evaluate.run(composed([*options, f"output={tmp_path / 'a'}", f"data.cache_dir={tmp_path}"], "evaluate"))
    (tmp_path / "moved").symlink_to(shapes / "regions")
    moved = [f"regions={tmp_path / 'moved'}", f"output={tmp_path / 'b'}", f"data.cache_dir={tmp_path}"]
    second = evaluate.run(composed([*options, *moved], "evaluate"))
    assert {**first} == {**second} and first["images"] == 4
    with pytest.raises(RegionsError, match="none: no such folder"):
        evaluate.run(composed([*options, f"regions={tmp_path / 'none'}"], "evaluate"))


def test_captioning_pictures_by_their_regions(run, shapes, tmp_path, capsys):
    """The command, with and without the pictures' files; the same as in evaluation; a mistake is one sentence."""
    root, folder = run
    model = ["--model", str(folder / "run")]
    names = ["images/20.png", "images/21.png"]
    assert caption.main([*model, "--regions", str(shapes / "regions"), *names, "--attention", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert caption.main([*model, "--regions", str(shapes / "regions"), *(str(shapes / n) for n in names)]) == 0
    assert [line.split("\t")[1] for line in capsys.readouterr().out.splitlines()] == [
        line.split("\t")[1] for line in said.splitlines()
    ]
    assert {path.name for path in tmp_path.glob("*.png")} == {"20.png", "21.png"}
    assert caption.main([*model, str(shapes / names[0])]) == 2
    assert "reads regions computed beforehand, not pictures: give --regions" in capsys.readouterr().err
    assert caption.main([*model, "--regions", str(tmp_path / "none"), *names]) == 2
    assert "none: no such folder" in capsys.readouterr().err
    assert caption.main([*model, "--regions", str(shapes / "regions"), "nowhere.png", names[0]]) == 1
    assert "no regions of nowhere.png" in capsys.readouterr().err


def test_a_captioner_in_python(run, shapes):
    captioner = Captioner.load(run[1] / "run", regions=shapes / "regions")
    both = list(captioner(["images/00.png", "images/03.png"], attention=True))
    assert [len(each.boxes) for each in both] == [2, 5] == [each.attention.shape[1] for each in both]
    np.testing.assert_allclose(both[1].boxes, captioner.regions.read("images/03.png").boxes)
    assert both[0].attention.sum(1) == pytest.approx(1, abs=0.02)
    with pytest.raises(RegionsError, match="not pixels: give pictures' paths"):
        list(captioner([Image.new("RGB", (8, 8))]))
    captioner.regions = None
    with pytest.raises(RegionsError, match="give --regions"):
        list(captioner(["images/00.png"]))


def test_pixels_take_no_regions(tmp_path, tiny_model, vocabulary, shapes, capsys):
    from src.bundle import Bundle, bundle_config, save_bundle

    save_bundle(tmp_path / "b", Bundle(tiny_model, vocabulary, bundle_config(tiny_config(), {})))
    command = ["--model", str(tmp_path / "b"), "--regions", str(shapes / "regions"), str(shapes / "images")]
    assert caption.main(command) == 2
    assert "looks at the pictures themselves: give it no regions" in capsys.readouterr().err


def test_a_bundle_comes_back_and_a_run_can_start_from_it(run, shapes, tmp_path):
    bundle = load_bundle(run[1] / "run")
    assert bundle.model.encoder.backbone.weights_used == "none (regions computed beforehand, regions)"
    assert bundle.config["encoder"]["path"] == "regions"
    card = (run[1] / "run" / "bundle" / "README.md").read_text()
    assert "src.caption --model THIS_DIRECTORY --regions REGIONS photo.jpg" in card
    started = composed([f"init={run[1] / 'run'}", *tiny(shapes, tmp_path)])
    train(copy.deepcopy(started))
    assert (tmp_path / "run.fast_dev_run" / "bundle" / "model.safetensors").exists()


@pytest.mark.parametrize("options", [{"dimension": 0}, {"max_regions": 0}, {"width": 0}, {"dropout": 1.0}], ids=str)
def test_impossible_settings_are_refused(options):
    (name, value), *_ = options.items()
    with pytest.raises(ValueError, match=f"encoder.{name}={value}"):
        RegionEncoder(**{"path": "regions", "dimension": 4, "max_regions": 4, **options})
