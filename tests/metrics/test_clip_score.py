"""A tiny CLIP with random weights, saved as the hub has one, against the published code's steps done one by one."""

import hashlib
import json
import shutil
import socket
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize, ToTensor

from src.data.images import ImageError
from src.metrics.clip_score import ClipError, ClipScorer

transformers = pytest.importorskip("transformers")

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
SIDE, CONTEXT = 32, 40


def byte_characters() -> list[str]:
    """GPT-2's 256 printable characters, which byte-level BPE writes bytes as."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(byte) for byte in printable] + [chr(256 + number) for number in range(256 - len(printable))]


def save_clip(folder: Path) -> None:
    merges = ["p h", "ph o", "pho t", "phot o</w>", "d o", "do g</w>"]
    characters = byte_characters()
    tokens = [*characters, *(character + "</w>" for character in characters), *(m.replace(" ", "") for m in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    start, end = len(tokens) - 2, len(tokens) - 1
    layers = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    special = {"bos_token_id": start, "eos_token_id": end, "pad_token_id": end}
    config = transformers.CLIPConfig(
        text_config=layers | special | {"vocab_size": len(tokens), "max_position_embeddings": CONTEXT},
        vision_config=layers | {"image_size": SIDE, "patch_size": 8},
        projection_dim=12,
    )
    model = transformers.CLIPModel(config)
    generator = torch.Generator().manual_seed(2)  # cosines of both signs, image and reference
    with torch.no_grad():  # as initialised, all pictures and all texts come out nearly alike
        for name, weight in sorted(model.named_parameters()):
            if "norm" not in name:
                scale = 1.0 if "embedding" in name or "projection" in name else 0.1
                weight.copy_(scale * torch.randn(weight.shape, generator=generator))
    model.save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    transformers.CLIPImageProcessor(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
    ).save_pretrained(folder)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("a CLIP")
    save_clip(folder)
    return folder


@pytest.fixture(scope="module")
def captioned(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, dict, dict]:
    """(pictures, candidates, references) of seven images, two of which share their captions."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    sizes = [(48, 40), (40, 70), (32, 32), (20, 25), (200, 33), (64, 64), (90, 3)]
    pictures, candidates, references = {}, {}, {}
    for number, size in enumerate(sizes):
        coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        pictures[f"{number}.png"] = folder / f"{number}.png"
        coarse.resize(size, Image.Resampling.BICUBIC).save(pictures[f"{number}.png"])
        candidates[f"{number}.png"] = ["a dog", "Two dogs, running.", "", "no 7", "ein Hund — 狗", "a dog", "x" * 90][
            number
        ]
        references[f"{number}.png"] = ["a dog", f"a photo of {number}", "DOGS run on grass"][: 1 + number % 3]
    return pictures, candidates, references


def as_published(clip: Path, pictures: dict, candidates: dict, references: dict) -> tuple[np.ndarray, np.ndarray]:
    """Image and caption, and caption and reference (the best), cosines: one at a time, unpadded, by torchvision."""
    model = transformers.CLIPModel.from_pretrained(clip).eval()
    vocabulary = json.loads((clip / "vocab.json").read_text())
    pixels = Compose(
        [Resize(SIDE, InterpolationMode.BICUBIC), CenterCrop(SIDE), ToTensor(), Normalize(MEAN, STD)]  # the published
    )
    tokenizer = transformers.CLIPTokenizer.from_pretrained(clip)

    def unit(output: object) -> np.ndarray:
        vector = getattr(output, "pooler_output", output)[0].double().numpy()
        return vector / np.sqrt((vector**2).sum())

    @torch.no_grad()
    def of_text(text: str) -> np.ndarray:
        ids = tokenizer("A photo depicts " + text)["input_ids"]
        if len(ids) > CONTEXT:  # clip.tokenize(truncate=True)
            ids = [*ids[: CONTEXT - 1], vocabulary["<|endoftext|>"]]
        return unit(model.get_text_features(input_ids=torch.tensor([ids])))

    @torch.no_grad()
    def of_picture(path: Path) -> np.ndarray:
        return unit(model.get_image_features(pixel_values=pixels(Image.open(path).convert("RGB"))[None]))

    image = [of_picture(pictures[name]) @ of_text(caption) for name, caption in candidates.items()]
    best = [max(of_text(c) @ of_text(r) for r in references[name]) for name, c in candidates.items()]
    return np.array(image), np.array(best)


def test_equal_to_the_published_steps_done_one_by_one(clip, captioned):
    scorer = ClipScorer(clip, "cpu")
    image, best = as_published(clip, *captioned)
    assert image.min() < -0.05 and image.max() > 0.05 and (best[image > 0] < -0.05).any()  # both are cut at 0
    scores = scorer.score(captioned[0].get, *captioned[1:])
    assert list(scores) == ["CLIPScore", "RefCLIPScore"]
    assert scores["CLIPScore"].dtype == scores["RefCLIPScore"].dtype == np.float64
    clip_score, reference = 2.5 * np.maximum(image, 0), np.maximum(best, 0)
    np.testing.assert_allclose(scores["CLIPScore"], clip_score, atol=2e-5)
    expected = [2 / (1 / a + 1 / b) if a > 0 and b > 0 else 0.0 for a, b in zip(clip_score, reference, strict=True)]
    np.testing.assert_allclose(scores["RefCLIPScore"], expected, atol=2e-5)


def test_equal_to_torchmetrics_but_for_prompt_and_scale(clip, captioned):
    from torchmetrics.functional.multimodal import clip_score
    from torchvision.transforms.functional import pil_to_tensor

    model = transformers.CLIPModel.from_pretrained(clip).eval()
    processor = transformers.CLIPProcessor(
        transformers.CLIPImageProcessor.from_pretrained(clip), transformers.CLIPTokenizer.from_pretrained(clip)
    )

    class Tensors:
        """torchmetrics 1.9 takes tensors, which transformers 5 wraps."""

        config = model.config

        def to(self, device: torch.device) -> "Tensors":
            return self

        def get_image_features(self, *given: torch.Tensor) -> torch.Tensor:
            return getattr(features := model.get_image_features(*given), "pooler_output", features)

        def get_text_features(self, *given: torch.Tensor) -> torch.Tensor:
            return getattr(features := model.get_text_features(*given), "pooler_output", features)

    pictures, candidates, references = captioned
    ours = ClipScorer(clip, "cpu").score(captioned[0].get, *captioned[1:])["CLIPScore"]
    for number in (0, 1, 3, 4):
        name = f"{number}.png"
        pixels = pil_to_tensor(Image.open(pictures[name]))
        with torch.no_grad():
            theirs = clip_score(pixels, "A photo depicts " + candidates[name], lambda: (Tensors(), processor))
        assert ours[number] == pytest.approx(2.5 * theirs.item() / 100, abs=5e-3)  # its resize is torchvision's


def test_opposite_pictures_and_harmonic_means_by_hand(clip, captioned, tmp_path):
    """With the image projection negated every cosine is, so that of each pair of scores one is 0."""
    shutil.copytree(clip, tmp_path / "clip")
    model = transformers.CLIPModel.from_pretrained(clip)
    model.visual_projection.weight.data.neg_()
    model.save_pretrained(tmp_path / "clip")
    one, other = (
        ClipScorer(folder, "cpu").score(captioned[0].get, *captioned[1:]) for folder in (clip, tmp_path / "clip")
    )
    assert (np.minimum(one["CLIPScore"], other["CLIPScore"]) == 0).all()
    assert (np.maximum(one["CLIPScore"], other["CLIPScore"]) > 0).all()
    for scores in (one, other):
        assert ((scores["RefCLIPScore"] == 0) | (scores["CLIPScore"] > 0)).all()
    # Image 0's caption is one of its references, cos = 1: the mean of s and 1 is 2s / (s + 1).
    score = max(one["CLIPScore"][0], other["CLIPScore"][0])
    assert max(one["RefCLIPScore"][0], other["RefCLIPScore"][0]) == pytest.approx(2 * score / (score + 1), abs=1e-6)


def test_same_scores_in_any_order_and_batch_and_without_the_network(clip, captioned, monkeypatch):
    def refuse(*_: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    scorer = ClipScorer(clip, "cpu")
    pictures, candidates, references = captioned
    whole = scorer.score(pictures.get, candidates, references)
    backwards = dict(reversed(candidates.items()))
    for batch_size in (1, 3):
        again = scorer.score(pictures.get, backwards, references, batch_size=batch_size)
        for name, scores in again.items():
            np.testing.assert_allclose(scores[::-1], whole[name], atol=1e-6)
    one = scorer.score(pictures.get, {"3.png": candidates["3.png"]}, references)
    assert one["CLIPScore"] == pytest.approx(whole["CLIPScore"][3:4], abs=1e-6)


def test_each_picture_and_each_distinct_text_is_encoded_once(clip, captioned, monkeypatch):
    scorer = ClipScorer(clip, "cpu")
    encoded: dict[str, int] = {"images": 0, "texts": 0}

    def counting(kind, embed):
        def counted(*given):
            encoded[kind] += len(given[0])
            return embed(*given)

        return counted

    monkeypatch.setattr(scorer.model, "get_image_features", counting("images", scorer.model.get_image_features))
    monkeypatch.setattr(scorer.model, "get_text_features", counting("texts", scorer.model.get_text_features))
    scorer.score(captioned[0].get, *captioned[1:], batch_size=2)
    _, candidates, references = captioned
    texts = {*candidates.values(), *(text for group in references.values() for text in group)}
    assert encoded == {"images": 7, "texts": len(texts)}
    assert len(texts) < 7 + sum(len(group) for group in references.values())


def test_pictures_are_read_as_their_batch_is_encoded(clip, captioned, monkeypatch):
    scorer, asked, at_once = ClipScorer(clip, "cpu"), [], []
    pictures, candidates, references = captioned

    def find(image: str) -> bytes:
        asked.append(image)
        return pictures[image].read_bytes()

    def embed(*given):
        at_once.append(len(asked) - sum(at_once))
        return real(*given)

    real = scorer.model.get_image_features
    monkeypatch.setattr(scorer.model, "get_image_features", embed)
    found = scorer.score(find, candidates, references, batch_size=3)
    assert asked == list(candidates) and at_once == [3, 3, 1]
    for name, scores in scorer.score(pictures.get, candidates, references, batch_size=3).items():
        np.testing.assert_array_equal(found[name], scores, "bytes are as good as files")


def test_what_is_past_the_context_does_not_count(clip, captioned):
    stem = "zebra " * 20
    written = [stem, stem + "and a cat", "zebra"]
    pictures = {f"{name} {number}": path for name, path in captioned[0].items() for number in range(3)}
    candidates = {image: written[int(image[-1])] for image in pictures}
    scores = ClipScorer(clip, "cpu").score(pictures.get, candidates, {image: ["zebra"] for image in pictures})
    for one in scores.values():
        long, longer, short = one.reshape(7, 3).T
        np.testing.assert_allclose(longer, long, atol=1e-6)
        assert np.abs(long - short).max() > 0.01


def test_sharded_and_pytorch_weights_and_their_digest(clip, captioned, tmp_path):
    expected = ClipScorer(clip, "cpu")
    assert expected.digest == hashlib.sha256((clip / "model.safetensors").read_bytes()).hexdigest()[:16]
    scores = expected.score(captioned[0].get, *captioned[1:])["CLIPScore"]

    model = transformers.CLIPModel.from_pretrained(clip)
    shutil.copytree(clip, tmp_path / "sharded")
    (tmp_path / "sharded" / "model.safetensors").unlink()
    model.save_pretrained(tmp_path / "sharded", max_shard_size="40KB")
    shards = sorted((tmp_path / "sharded").glob("model-*.safetensors"))
    assert len(shards) > 1
    sharded = ClipScorer(tmp_path / "sharded", "cpu")
    assert sharded.digest == hashlib.sha256(b"".join(shard.read_bytes() for shard in shards)).hexdigest()[:16]
    np.testing.assert_array_equal(sharded.score(captioned[0].get, *captioned[1:])["CLIPScore"], scores)

    shutil.copytree(clip, tmp_path / "pytorch")
    (tmp_path / "pytorch" / "model.safetensors").unlink()
    torch.save(model.half().state_dict(), tmp_path / "pytorch" / "pytorch_model.bin")
    half = ClipScorer(tmp_path / "pytorch", "cpu")
    assert half.model.dtype == torch.float32 and half.digest != expected.digest
    np.testing.assert_allclose(half.score(captioned[0].get, *captioned[1:])["CLIPScore"], scores, atol=0.02)


class Touch:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def test_no_pickle_is_executed(clip, tmp_path):
    shutil.copytree(clip, tmp_path / "clip")
    (tmp_path / "clip" / "model.safetensors").unlink()
    torch.save({"logit_scale": Touch(tmp_path / "executed")}, tmp_path / "clip" / "pytorch_model.bin")
    with pytest.raises(ClipError, match="not a CLIP that can be loaded"):
        ClipScorer(tmp_path / "clip", "cpu")
    assert not (tmp_path / "executed").exists()


@pytest.mark.skipif(int(transformers.__version__.split(".")[0]) < 5, reason="fetches no kernels")
def test_no_kernel_is_fetched_that_the_config_asks_for(clip, tmp_path):
    shutil.copytree(clip, tmp_path / "clip")
    config = json.loads((clip / "config.json").read_text())
    asking = config | {"_attn_implementation": "kernels-community/flash-attn"}
    (tmp_path / "clip" / "config.json").write_text(json.dumps(asking))
    assert ClipScorer(tmp_path / "clip", "cpu").digest == ClipScorer(clip, "cpu").digest


@pytest.mark.parametrize(
    ("removed", "named"),
    [
        (["config.json"], "config.json"),
        (["model.safetensors"], "weights"),
        (["preprocessor_config.json", "processor_config.json"], "preprocessor_config.json"),
        (["vocab.json"], "a tokenizer"),
        (["merges.txt"], "a tokenizer"),
    ],
)
def test_an_incomplete_directory_is_told_what_it_lacks(clip, tmp_path, removed, named):
    shutil.copytree(clip, tmp_path / "clip")
    for name in removed:
        (tmp_path / "clip" / name).unlink(missing_ok=True)
    with pytest.raises(ClipError, match=f"clip: not a CLIP directory, for it lacks {named}") as caught:
        ClipScorer(tmp_path / "clip")
    assert "\n" not in str(caught.value)


def test_what_else_cannot_be_loaded(clip, tmp_path, monkeypatch):
    with pytest.raises(ClipError, match="nowhere: no such directory"):
        ClipScorer(tmp_path / "nowhere")

    shutil.copytree(clip, tmp_path / "clip")
    config = json.loads((clip / "config.json").read_text())
    (tmp_path / "clip" / "config.json").write_text(json.dumps(config | {"model_type": "siglip"}))
    with pytest.raises(ClipError, match="its config.json is of a 'siglip' model"):
        ClipScorer(tmp_path / "clip")
    (tmp_path / "clip" / "config.json").write_text("{")
    with pytest.raises(ClipError, match="copy it again"):
        ClipScorer(tmp_path / "clip")
    shutil.copy(clip / "config.json", tmp_path / "clip")
    whole = (clip / "model.safetensors").read_bytes()
    (tmp_path / "clip" / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ClipError, match="copy it again"):
        ClipScorer(tmp_path / "clip")

    from safetensors.torch import load_file, save_file

    weights = load_file(clip / "model.safetensors")
    del weights["text_projection.weight"]
    save_file(weights, tmp_path / "clip" / "model.safetensors", {"format": "pt"})
    with pytest.raises(ClipError, match="its weights lack text_projection.weight"):  # and no random ones take its place
        ClipScorer(tmp_path / "clip")

    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ClipError, match="pip install transformers"):
        ClipScorer(clip)


def test_an_unreadable_picture_is_named(clip, captioned, tmp_path):
    pictures, candidates, references = captioned
    (tmp_path / "3.png").write_bytes(pictures["3.png"].read_bytes()[:60])
    scorer, cut = ClipScorer(clip, "cpu"), (tmp_path / "3.png").read_bytes()
    with pytest.raises(ImageError, match="3.png: <60 bytes>: damaged"):
        scorer.score((pictures | {"3.png": cut}).get, candidates, references)
    with pytest.raises(ImageError, match="3.png: CLIPScore needs its picture"):
        scorer.score((pictures | {"3.png": None}).get, candidates, references)
    with pytest.raises(ImageError, match="3.png"):
        scorer.score((pictures | {"3.png": tmp_path / "3.png"}).get, candidates, references)
