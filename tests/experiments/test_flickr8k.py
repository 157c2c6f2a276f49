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


def test_an_epoch_learns_to_describe_photographs(tmp_path):
    """The recipe for one epoch, three minutes after its features are cached; seed 0 gave CIDEr-D 0.319, 66 words."""
    train(
        composed(
            [
                "experiments=flickr8k/first",
                f"run_dir={tmp_path}",
                "trainer.max_epochs=1",
                "trainer.enable_progress_bar=false",
            ]
        )
    )
    scores = json.loads((tmp_path / "eval" / "val" / "scores.json").read_text())
    assert scores["images"] == 1000
    assert scores["CIDEr"] > 0.25
    assert scores["distinct_words"] > 30
