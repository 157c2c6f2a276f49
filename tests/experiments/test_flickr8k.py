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
