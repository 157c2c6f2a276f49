"""What the benchmark of growth counts, models and writes; how fast anything is, is not tested."""

import json

import pytest
import torch

from benchmarks import costs, scaling
from benchmarks.costs import Cost, Launches, Library, cost, duration
from benchmarks.scaling import PARTS, make_data, make_table, markdown, write_docs
from src.data.tsv import read_tsv


def test_kernels_are_counted_without_views():
    x = torch.randn(3, 4)
    with Launches() as launches:
        (x.view(4, 3).t() + 1).expand(2, 3, 4).tanh()
    assert launches.count == 2


def test_operations_of_a_backbone_are_those_of_the_paper():
    """He et al., 2016, table 1: ResNet-50 has 3.8 billion multiply-adds, torchvision's variant 4.09; 25.6 million
    parameters with its classifier of 2048 × 1000."""
    found = costs.counted_encoder("resnet50")
    assert found["gflop_a_picture"] == pytest.approx(2 * 4.09, rel=0.01)
    assert found["parameters"] == pytest.approx(25.557e6 - 2049 * 1000, rel=1e-3)


STEP = {"gflop_a_caption": 1.0, "kernels_a_step": 1000, "parameters": 10_000_000}
ENCODER = {"gflop_a_picture": 8.0, "kernels_a_step": 100, "parameters": 20_000_000}
FIVE = Library(1000, 5, costs.WORDS, 100)


def test_the_model_by_hand():
    one = cost(FIVE, 1, step=STEP, encoder=ENCODER, decoded=100, regions=(10, 100))
    assert one.arithmetic == pytest.approx(320 * 1e9 / (989e12 * 0.15)) and one.launches == pytest.approx(0.01)
    assert one.disk == pytest.approx(64 * 2000 / 3e9) and one.decoding == one.exchange == 0
    assert one.seconds == one.launches and one.bottleneck == "launching kernels"
    eight = cost(FIVE, 8, step=STEP, encoder=ENCODER, decoded=100, regions=(10, 100))
    assert eight.exchange == pytest.approx(2 * 7 / 8 * 40e6 / 450e9) and eight.disk == pytest.approx(8 * one.disk)
    many = cost(FIVE, 64, step=STEP, encoder=ENCODER, decoded=100, regions=None)
    assert many.exchange == pytest.approx(2 * 63 / 64 * 120e6 / 50e9) and many.disk == pytest.approx(8 * 64e5 / 3e9)
    assert many.decoding == pytest.approx(64 / (14 * 100)) == many.seconds and many.bottleneck == "decoding pictures"
    assert many.launches == pytest.approx(0.013)
    longer = cost(FIVE._replace(words=2 * costs.WORDS + 1), 1, step=STEP, encoder=ENCODER, decoded=1, regions=(1, 1))
    assert (longer.arithmetic, longer.launches) == pytest.approx((2 * one.arithmetic, 2 * one.launches))


def test_the_bottleneck_is_what_takes_longest():
    assert Cost(3, 1, 1, 1, 1).bottleneck == "the disk" and Cost(1, 1, 1, 1, 4).bottleneck == "exchanging gradients"
    assert Cost(1, 1, 2, 1, 1).bottleneck == "arithmetic" and Cost(1, 1, 2, 1, 1).seconds == 3
    assert [duration(s) for s in (2, 30, 600, 7200)] == ["2.0 s", "30 s", "10 min", "2.0 h"]


def test_data_of_few_files_has_many_images(tmp_path):
    make_table(tmp_path / "t", 23)
    table = read_tsv(tmp_path / "t" / "t.tsv", tmp_path / "t", verify="decode")
    assert len(table) == 5 and len(table.texts) == 23 and table.images[4] == "0/0/0/0/0/0/4/picture.png"
    make_data(tmp_path / "d", 7, (8, 8), files=3)
    found = read_tsv(tmp_path / "d" / "train.tsv", tmp_path / "d", verify="decode")
    assert len(found) == 7 and len(found.texts) == 35 and len(list((tmp_path / "d" / "files").iterdir())) == 3


def test_tables_and_charts_come_between_their_marks(tmp_path):
    about = {"cpu": "a CPU", "cores": 2, "torch": "2", "code": "c", "date": "2026-01-02T03:04", "quiet": False}
    rows = [{"batch": n, "captions_per_second": 12.345 * n, "other": 1} for n in (4, 8)]
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- batch -->\nold\n<!-- end of batch -->\nafter\n")
    write_docs({"batch": {"machine": about, "rows": rows}}, page)
    write_docs({"batch": {"machine": about, "rows": rows}}, page)
    text = page.read_text()
    assert text.startswith(
        "before\n<!-- batch -->\n| batch | captions/s | other |\n| --- | ---: | ---: |\n| 4 | 49.4 | 1 |"
    )
    assert text.endswith("(scaling_batch.svg)\n<!-- end of batch -->\nafter\n") and "old" not in text
    assert (
        "2026-01-02; the machine was not quiet." in text and ">8</text>" in (tmp_path / "scaling_batch.svg").read_text()
    )
    with pytest.raises(ValueError, match="no <!-- length -->"):
        write_docs(
            {"length": {"machine": about, "rows": [{"words": 5, "captions_per_second": 1, "words_per_second": 2}]}},
            page,
        )


def test_the_page_has_a_place_for_every_part():
    text = scaling.DOCS.read_text(encoding="utf-8")
    for name in [*PARTS, "costs"]:
        assert f"<!-- {name} -->" in text and f"<!-- end of {name} -->" in text


def test_what_is_measured_is_kept_and_modelled(tmp_path, capsys, monkeypatch):
    """The parts that take seconds, through the command; a second call measures what is missing alone."""
    output = tmp_path / "found.json"
    monkeypatch.setattr(scaling, "PARTS", {name: PARTS[name] for name in ("operations",)})
    monkeypatch.setattr(scaling, "use_cores", lambda count: None)
    for _ in range(2):
        assert scaling.main(["--output", str(output)]) == 0
    assert capsys.readouterr().out.count("gflop a caption") == 1
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(SystemExit):
        scaling.main(["--output", str(tmp_path / "bad.json")])
    assert "bad.json: no figures of this benchmark" in capsys.readouterr().err
    table = costs.markdown(json.loads(output.read_text())["operations"]["rows"])
    assert table.count("| COCO |") == table.count("| CC12M |") == 6 and "8 × 8" in table
    assert markdown([{"a": 1}, {"b": 1234.5}]).splitlines()[2:] == ["| 1 |  |", "|  | 1,234 |"]


@pytest.mark.slow
def test_a_training_is_measured(tmp_path):
    make_data(tmp_path / "d", 40, (32, 32))
    found = scaling.trained(tmp_path / "d", tmp_path / "run", *scaling.SMALL, "data.batch_size=4")
    assert found["captions_per_second"] > 0 and found["peak"] > 100 and found["seconds"] > 1
    with pytest.raises(RuntimeError, match="nothing=1 failed"):
        scaling.trained(tmp_path / "d", tmp_path / "other", "nothing=1")
