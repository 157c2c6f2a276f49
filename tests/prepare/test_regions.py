"""Regions written for encoder=precomputed are what the captioner's backbone says, and lie where it looked."""

import numpy as np
import pytest
import torch
from PIL import Image

from src.bundle import Bundle, bundle_config, save_bundle
from src.data.regions import RegionFiles
from src.data.transforms import Preprocess
from src.encoders.base import grid_boxes
from src.prepare import __main__ as prepare
from tests.conftest import tiny_config


@pytest.mark.parametrize("fit", ["squash", "crop", "letterbox"])
def test_what_is_written_is_what_is_read(fit, tmp_path, tiny_model, vocabulary, capsys):
    config = tiny_config(transform__fit=fit)
    save_bundle(tmp_path / "model", Bundle(tiny_model, vocabulary, bundle_config(config, {})))
    (tmp_path / "data" / "photos").mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 80, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "data" / "photos" / "wide.png")
    output = tmp_path / "regions"
    command = ["regions", str(output), str(tmp_path / "data"), "--model", str(tmp_path / "model"), "--device", "cpu"]
    assert prepare.main(command) == 0
    assert [path.relative_to(output).as_posix() for path in output.rglob("*.*")] == ["photos/wide.npz"]
    assert "encoder.dimension=16 encoder.max_regions=16" in capsys.readouterr().out
    found = RegionFiles(output, 16, 16).read("photos/wide.png")
    with torch.no_grad():
        picture = Preprocess(32, fit).open(tmp_path / "data" / "photos" / "wide.png")
        expected = tiny_model.encoder.regions(picture.unsqueeze(0))[0]
    np.testing.assert_allclose(found.features, expected, atol=2e-3, rtol=2e-3)
    cells = grid_boxes(4, 4).numpy()
    if fit == "crop":  # the middle half of the width
        cells = cells * [0.5, 1, 0.5, 1] + [0.25, 0, 0.25, 0]
    elif fit == "letterbox":  # bars above and below, as high as half the picture each
        cells = (cells * [1, 2, 1, 2] - [0, 0.5, 0, 0.5]).clip(0, 1)
    np.testing.assert_allclose(found.boxes, cells, atol=1e-6)


def test_a_captioner_that_reads_regions_cannot_write_them(tmp_path, vocabulary, capsys):
    from src.model import build

    config = bundle_config(tiny_config(), {})
    config["encoder"] = {"_target_": "src.encoders.RegionEncoder", "path": "r", "dimension": 4, "max_regions": 9}
    save_bundle(tmp_path / "model", Bundle(build(config, vocabulary), vocabulary, config))
    command = ["regions", str(tmp_path / "out"), str(tmp_path), "--model", str(tmp_path / "model")]
    assert prepare.main(command) == 1
    assert "reads regions computed beforehand, not pictures" in capsys.readouterr().err
