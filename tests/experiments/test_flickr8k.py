"""Real photographs: `make test-flickr8k FLICKR8K=<folder in the TSV form>`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from src.bundle import load_bundle
from src.config import ROOT
from src.train import train
from tests.test_configs import composed

pytestmark = [
    pytest.mark.flickr8k,
    pytest.mark.skipif(
        not Path(os.environ.get("FLICKR8K", "none"), "train.tsv").exists(), reason="FLICKR8K is not set"
    ),
]


def test_two_minutes_learn_to_describe_photographs(tmp_path):
    """`flickr8k/quick` with a smaller encoder, two epochs of three quarters of the captions: some two minutes of
    training on two cores, after its features are cached; the average is over fewer steps, as the run has fewer.
    Seed 0 gave CIDEr-D 0.313 and 66 words."""
    train(
        composed(
            [
                "experiments=flickr8k/quick",
                "encoder=efficientnet_lite0",
                "encoder.dropout=0.0",
                "transform.size=224",
                f"run_dir={tmp_path}",
                "trainer.max_epochs=2",
                "trainer.limit_train_batches=0.75",
                "callbacks.averaging.decay=0.8",
                "trainer.enable_progress_bar=false",
            ]
        )
    )
    scores = json.loads((tmp_path / "eval" / "val" / "scores.json").read_text())
    assert scores["images"] == 1000
    assert scores["CIDEr"] > 0.28
    assert scores["distinct_words"] > 50


def test_the_captioner_that_comes_with_the_code_is_made_anew_by_one_command(tmp_path):
    """`make captioner` on 60 and 40 photographs, two steps of each training; called again it trains nothing."""
    given, data = Path(os.environ["FLICKR8K"]).absolute(), tmp_path / "data"
    data.mkdir()
    (data / "images").symlink_to(given / "images")
    for split, count in (("train", 300), ("val", 200)):
        for name in (f"{split}.tsv", f"{split}_zh.tsv"):
            rows = (given / name).read_text(encoding="utf-8").splitlines(keepends=True)
            (data / name).write_text("".join(rows[:count]), encoding="utf-8")
    small = "trainer.max_epochs=1 trainer.limit_train_batches=2 evaluate_splits=[]"
    folders = [f"FLICKR8K={data}", f"SHIPPED={tmp_path}/shipped", f"BILINGUAL={tmp_path}/runs"]
    venv = [f"VENV={Path(sys.prefix)}", f"TRAIN={small}"]
    for trained in (4, 0):
        done = subprocess.run(["make", "captioner", *venv, *folders], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        assert len(list((tmp_path / "runs").glob("*-0/bundle"))) == 4
        assert (done.stdout + done.stderr).count("Total FLOPs") == trained
    bundle = load_bundle(tmp_path / "shipped")
    assert bundle.calibration is not None and bundle.config["provenance"]["stored_as"] == "int8"
    assert bundle.model.matcher is not None and bundle.matching is not None
    assert "## Biases" in (tmp_path / "shipped" / "README.md").read_text(encoding="utf-8")
