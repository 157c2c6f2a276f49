"""Real photographs: `make test-flickr8k FLICKR8K=<folder in the TSV form>`."""

import json
import os
from pathlib import Path

import pytest

from src.train import train
from tests.test_configs import composed

pytestmark = [
    pytest.mark.flickr8k,
    pytest.mark.skipif(
        not Path(os.environ.get("FLICKR8K", "none"), "train.tsv").exists(), reason="FLICKR8K is not set"
    ),
]


def test_half_an_epoch_learns_to_describe_photographs(tmp_path):
    """140 of the recipe's steps, two minutes after its features are cached; seed 0 gave CIDEr-D FLICKR_SHORT."""
    train(
        composed(
            [
                "experiments=flickr8k/first",
                f"run_dir={tmp_path}",
                "trainer.max_epochs=1",
                "trainer.limit_train_batches=140",
                "trainer.enable_progress_bar=false",
            ]
        )
    )
    scores = json.loads((tmp_path / "eval" / "val" / "scores.json").read_text())
    assert scores["images"] == 1000
    assert scores["CIDEr"] > 0.10
    assert scores["distinct_words"] > 30
