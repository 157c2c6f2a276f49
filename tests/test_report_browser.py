"""A report in a real browser, on a phone and on a desk: `CAPTIONER_RUNS=RUN:RUN` adds one of two real captioners."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from src.encoders.base import grid_boxes
from src.metrics.mistakes import Mistake
from src.report import write_report
from src.results import Evaluation, Looks, read_results, write_results
from src.scoring import Scored
from tests.browsing import marks, playwright

RUNS = [run for run in os.environ.get("CAPTIONER_RUNS", "").split(os.pathsep) if run]
VIEWS = {
    "phone": {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True},
    "desk": {"viewport": {"width": 1280, "height": 900}},
}
pytestmark = marks


def made(folder: Path, name: str, shift: float) -> Evaluation:
    """Captions and scores of 120 pictures, twelve of which are there; every second one has attention."""
    rng = np.random.default_rng(len(name))
    images = [f"images/{i:03d}.png" for i in range(120)]
    captions = {image: f"a {name} dog runs" if i % 3 else "two cats sit" for i, image in enumerate(images)}
    captions[images[5]] = "一只狗"
    columns = {
        "Bleu_4": rng.random(120),
        "CIDEr": (np.arange(120) / 120 + shift * rng.random(120)).clip(0),
        "length": rng.integers(3, 9, 120),
        "reference_length": rng.integers(4, 9, 120),
    }
    looks = {}
    for i, image in enumerate(images):
        words = [*captions[image]] if i == 5 else captions[image].split()
        regions = 49 if i % 4 else 5
        boxes = grid_boxes(7, 7).numpy() if i % 4 else np.sort(rng.random((5, 2, 2)), 1).reshape(5, 4)
        if i % 2 == 0 or i > 115 or i < 6:
            looks[image] = Looks(words, rng.dirichlet(np.full(regions, 0.2), len(words)), boxes)
    rows = zip(*columns.values(), strict=True)
    per_image = {image: dict(zip(columns, row, strict=True)) for image, row in zip(images, rows, strict=True)}
    mistakes = [Mistake("dog", 30, 40), Mistake("猫", 10, 20)]
    scored = Scored({}, per_image, "ptb", {}, {}, ["one caption for most pictures"], mistakes, mistakes)
    scores = {
        "Bleu_4": 0.2 + shift,
        "CIDEr": 0.5 + shift,
        "SPICE": None,
        "mean_length": 4.5,
        "a_longer_name_of_a_share": 0.1,
    }
    references = {image: ["A dog runs .", f"Picture {i} ."] for i, image in enumerate(images)}
    meta = {"root": str(folder), "data": "made", "split": "val", "date": "2026-01-02", "model_weights": "0" * 64}
    run = folder / name
    write_results(run / "eval" / "val", captions, references, scored, scores, meta, looks)
    (run / "metrics.csv").write_text(
        "epoch,train/cross_entropy,val/cross_entropy\n0,4,\n0,,3.5\n1,3,\n1,,3.2\n", encoding="utf-8"
    )
    return read_results(run, name=name)


@pytest.fixture(
    scope="session",
    params=[
        "made",
        pytest.param(
            "real",
            marks=[pytest.mark.flickr8k, pytest.mark.skipif(len(RUNS) < 2, reason="CAPTIONER_RUNS names no two")],
        ),
    ],
)
def opened(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A report of two captioners, and their names."""
    folder = tmp_path_factory.mktemp("report")
    if request.param == "real":
        evaluations = [read_results(Path(run)) for run in RUNS[:2]]
        names = [Path(run).name for run in RUNS[:2]]
    else:
        (folder / "images").mkdir()
        for i in [*range(6), *range(114, 120)]:
            picture = Image.new("RGB", (160, 120 if i % 2 else 200), (150, 170, 20 * (i % 10)))
            ImageDraw.Draw(picture).ellipse((20, 20, 100, 100), fill="white")
            picture.save(folder / f"images/{i:03d}.png")
        evaluations = [made(folder, "first", 0.0), made(folder, "a_second_longer", 0.4)]
        names = ["first", "a_second_longer"]
    write_report(folder / "report.html", evaluations, pictures=12)
    return folder / "report.html", names


class Visit:
    """Pages of the report, what they fetched and what they complained of."""

    def __init__(self, browser: "playwright.Browser", report: Path, view: str) -> None:
        self.browser, self.report, self.view = browser, report, view
        self.complaints: list[str] = []
        self.contexts: list[playwright.BrowserContext] = []

    def open(self, **options: object) -> "playwright.Page":
        context = self.browser.new_context(**{"locale": "en-GB", **VIEWS[self.view], **options})
        self.contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: self.note_message(message))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self.note(request.url))
        page.goto(self.report.as_uri())
        return page

    def note_message(self, message: "playwright.ConsoleMessage") -> None:
        if "willReadFrequently" not in message.text:  # that is these tests' own reading of the overlay
            self.complaints.append(message.text)

    def note(self, url: str) -> None:
        if url.split("#")[0] != self.report.as_uri() and not url.startswith("data:"):
            self.complaints.append(f"fetched {url}")


@pytest.fixture(params=VIEWS)
def visit(
    request: pytest.FixtureRequest, browser: "playwright.Browser", opened: tuple[Path, list[str]]
) -> Iterator[Visit]:
    """No test may end with an error in the console, or with anything fetched."""
    visit = Visit(browser, opened[0], request.param)
    yield visit
    for context in visit.contexts:
        context.close()
    assert not visit.complaints


def overlay(caption: "playwright.Locator") -> str:
    """What is drawn over a caption's picture, as a PNG; empty where nothing is."""
    return caption.evaluate(
        """caption => {
            const canvas = caption.closest(".card").querySelector("canvas");
            const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
            return pixels.some(value => value) ? canvas.toDataURL() : "";
        }"""
    )


def narrow(page: "playwright.Page") -> bool:
    """Whether the page is no wider than its window."""
    return page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_both_captioners_scores_are_there(visit, opened):
    page = visit.open()
    heads = page.locator(".scores thead th").all_inner_texts()
    assert [name for name in opened[1] if not any(name == head.replace("\u200b", "") for head in heads)] == []
    assert page.locator(".scores tbody tr").count() > 3
    assert page.locator(".scores").is_visible()


def test_text_narrows_pictures_and_table(visit):
    page = visit.open()
    cards, rows = page.locator(".card:visible"), page.locator(".listing tbody tr")
    every, listed = cards.count(), page.locator("#range").inner_text()
    said = page.locator(".card .caption").first.inner_text()
    page.locator("#pictures .filter").fill(said.upper())
    assert 0 < cards.count() < every
    assert all(said in text.lower() for text in cards.locator(".text").all_inner_texts())
    assert page.locator("#count").inner_text() == f"{cards.count()} of {every}"
    assert page.locator("#range").inner_text() != listed
    assert all(said in text.lower() for text in rows.all_inner_texts())
    page.locator("#all .filter").fill("no such caption")
    assert page.locator("#pictures .filter").input_value() == "no such caption", "one filter, in two places"
    assert cards.count() == rows.count() == 0 and page.locator("#range").inner_text() == "0–0 of 0"
    page.locator("#all .filter").fill("")
    assert cards.count() == every and page.locator("#range").inner_text() == listed


def test_groups_and_differing_captions_are_chosen(visit):
    page = visit.open()
    every = page.locator(".card:visible").count()
    for group in ("best", "worst", "random"):
        button = page.get_by_role("button", name=group, exact=True)
        button.press("Enter")
        assert button.get_attribute("aria-pressed") == "true"
        assert page.locator("[data-group][aria-pressed=true]").count() == 1
        tags = page.locator(".card:visible .tags").all_inner_texts()
        assert 0 < len(tags) < every and all(group in tag for tag in tags)
    page.get_by_role("button", name="all", exact=True).click()
    assert page.locator(".card:visible").count() == every
    page.locator("#pictures .differing").check()
    assert page.locator("#all .differing").is_checked()
    assert page.locator(".card:visible").count() == page.locator(".card[data-differing]").count()
    pairs = page.locator(".listing tbody tr").evaluate_all(
        "rows => rows.map(row => [1, 2].map(i => row.cells[i].textContent))"
    )
    assert pairs and all(one != other for one, other in pairs)


def test_pictures_are_sorted_by_any_score(visit):
    page = visit.open()

    def files() -> list[str]:
        return page.locator(".card .file").all_inner_texts()

    def values(side: int) -> list[float]:
        return page.locator(".card").evaluate_all(
            f"cards => cards.map(card => JSON.parse(card.dataset.scores).Bleu_4[{side}])"
        )

    given = files()
    assert page.locator("#direction").is_disabled()
    page.locator("#sort").select_option("Bleu_4")
    assert values(0) == sorted(values(0))
    assert "BLEU-4" in page.locator(".card .measures").first.inner_text()
    page.locator("#direction").press("Space")
    assert page.locator("#direction").inner_text() == "highest first"
    assert values(0) == sorted(values(0), reverse=True)
    page.locator("#side").focus()
    page.keyboard.press("ArrowDown")
    assert values(1) == sorted(values(1), reverse=True)
    page.locator("#side").select_option("-1")
    differences = [b - a for a, b in zip(values(0), values(1), strict=True)]
    assert differences == sorted(differences, reverse=True)
    page.locator("#sort").select_option("")
    assert files() == given
    assert page.locator("#side").is_disabled()


def test_the_table_is_sorted_by_its_heads(visit):
    page = visit.open()

    def column(number: int) -> list[str]:
        return page.locator(".listing tbody tr").evaluate_all(
            f"rows => rows.map(row => row.cells[{number}].textContent)"
        )

    def numbers(number: int) -> list[float]:
        return [float(text.replace("−", "-")) for text in column(number)]

    head = page.locator(".listing th")
    assert page.locator(".listing [aria-sort]").count() == 0
    head.nth(3).get_by_role("button").click()
    assert head.nth(3).get_attribute("aria-sort") == "descending"
    assert len(numbers(3)) == 50 and numbers(3) == sorted(numbers(3), reverse=True)
    head.nth(5).get_by_role("button").press("Enter")
    assert head.nth(5).get_attribute("aria-sort") == "descending" and head.nth(3).get_attribute("aria-sort") is None
    assert numbers(5) == sorted(numbers(5), reverse=True)
    head.nth(5).get_by_role("button").press("Space")
    assert head.nth(5).get_attribute("aria-sort") == "ascending" and numbers(5) == sorted(numbers(5))
    head.nth(0).get_by_role("button").click()
    assert head.nth(0).get_attribute("aria-sort") == "ascending"
    page.locator("#column").select_option("Bleu_4")
    assert "BLEU-4" in head.nth(3).inner_text()


def test_the_table_is_leafed_through(visit):
    page = visit.open()
    first, last = (page.get_by_role("button", name=name) for name in ("Earlier", "Later"))
    assert first.is_disabled()
    before = page.locator(".listing tbody tr").first.inner_text()
    last.click()
    assert page.locator("#range").inner_text().startswith("51–100 of ")
    assert page.locator(".listing tbody tr").first.inner_text() != before
    first.press("Enter")
    assert page.locator("#range").inner_text().startswith("1–50 of ")
    assert page.locator(".listing tbody tr").first.inner_text() == before


def test_pictures_are_loaded(visit):
    page = visit.open()
    widths = page.locator(".photo img").evaluate_all("images => images.map(image => image.naturalWidth)")
    assert widths and all(width > 50 for width in widths)
    assert page.locator(".photo").first.bounding_box()["height"] > 100


def test_words_show_where_they_looked(visit):
    page = visit.open()
    caption = page.locator(".caption[data-attention]").first
    caption.scroll_into_view_if_needed()
    words = caption.locator(".word")
    assert words.count() > 1
    point = "tap" if visit.view == "phone" else "hover"
    seen = []
    for i in (0, 1):
        getattr(words.nth(i), point)()
        assert caption.locator(".word.on").all_inner_texts() == [words.nth(i).inner_text()]
        seen.append(overlay(caption))
    assert seen[0] and seen[1] and seen[0] != seen[1]
    caption.locator("xpath=ancestor::article").locator(".file").click()
    if visit.view == "desk":
        page.mouse.move(1, 1)
    assert not overlay(caption), "and nothing, once it is left"


def test_words_are_reached_by_keyboard(visit):
    page = visit.open()
    caption = page.locator(".caption[data-attention]").first
    words = caption.locator(".word")
    assert caption.locator(".word[tabindex='0']").count() == 1, "one stop of the Tab key a caption"
    words.first.focus()
    first = overlay(caption)
    page.keyboard.press("ArrowRight")
    second = overlay(caption)
    assert page.evaluate("document.activeElement.textContent") == words.nth(1).inner_text()
    assert first and second and first != second
    page.keyboard.press("End")
    assert page.evaluate("document.activeElement.textContent") == words.last.inner_text()
    page.keyboard.press("Home")
    assert overlay(caption) == first
    page.keyboard.press("Escape")
    assert not overlay(caption)


def test_every_captioner_has_its_own_attention(visit):
    page = visit.open()
    attended = [f":has(.said:nth-of-type({i}) [data-attention])" for i in (1, 2)]
    card = page.locator(f".card{''.join(attended)}").first
    if not card.count():
        pytest.skip("one of them does not attend")
    captions = card.locator(".caption")
    seen = []
    for i in (0, 1):
        captions.nth(i).locator(".word").first.focus()
        seen.append(overlay(captions.nth(i)))
        assert card.locator(".word.on").count() == 1
    assert seen[0] and seen[1] and seen[0] != seen[1]


def test_what_has_the_focus_is_seen(visit):
    page = visit.open()
    page.keyboard.press("Tab")
    stops = set()
    for _ in range(60):
        stop, outline = page.evaluate(
            """[document.activeElement.tagName + (document.activeElement.id || document.activeElement.className),
                getComputedStyle(document.activeElement).outlineStyle]"""
        )
        stops.add(stop)
        assert outline != "none" or stop.startswith("BODY"), stop
        page.keyboard.press("Tab")
    assert {"BUTTONlanguage", "DIVscroll box", "SELECTdistribution", "INPUTfilter", "SELECTsort"} <= stops


def test_nothing_is_wider_than_the_window(visit):
    page = visit.open()
    assert narrow(page)
    page.locator("details").evaluate_all("every => every.forEach(each => { each.open = true; })")
    assert narrow(page)
    page.locator("#language").click()
    assert narrow(page)
    if visit.view == "phone":
        smallest = page.locator("svg.chart, .chart:visible svg, figure > svg").evaluate_all(
            "every => Math.min(...every.map(svg => 12 * svg.getBoundingClientRect().width / svg.viewBox.baseVal.width))"
        )
        assert smallest > 9, "the words of the charts can be read"


def test_one_chart_of_single_pictures_is_shown(visit):
    page = visit.open()
    assert page.locator(".chart:visible").get_attribute("data-column") == "CIDEr"
    page.locator("#distribution").select_option("Bleu_4")
    assert page.locator(".chart:visible").get_attribute("data-column") == "Bleu_4"


CONTRAST = """() => {
    const channels = colour => colour.match(/[\\d.]+/g).map(Number);
    const light = ([r, g, b]) => [r, g, b]
        .map(c => c / 255).map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
        .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
    const behind = element => {
        for (let each = element; each; each = each.parentElement) {
            const colour = channels(getComputedStyle(each).backgroundColor);
            if (colour.length < 4 || colour[3] === 1) return colour;
        }
        return [255, 255, 255];
    };
    const ratio = (a, b) => {
        const [x, y] = [light(a), light(b)].sort((p, q) => q - p);
        return (x + 0.05) / (y + 0.05);
    };
    const poor = [];
    for (const element of document.querySelectorAll("body *")) {
        const own = [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim());
        const rectangle = element.getBoundingClientRect();
        if (!own || !rectangle.width || element.closest(":disabled, script, title")) continue;
        const style = getComputedStyle(element), text = channels(element.closest("svg") ? style.fill : style.color);
        const found = ratio(text, behind(element));
        if (found < 4.5) poor.push([element.className?.baseVal ?? element.className, element.textContent, found]);
    }
    const body = getComputedStyle(document.body), page = channels(body.backgroundColor);
    return { poor, body: ratio(channels(body.color), page), page: light(page) };
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_stand_out_from_what_is_behind_them(visit, scheme):
    page = visit.open(color_scheme=scheme)
    page.locator("details").evaluate_all("every => every.forEach(each => { each.open = true; })")
    found = page.evaluate(CONTRAST)
    assert found["body"] >= 4.5 and not found["poor"]
    assert found["page"] > 0.5 if scheme == "light" else found["page"] < 0.1
    bar = page.locator(".bar").first.evaluate("cell => getComputedStyle(cell, '::after').backgroundColor")
    text = page.locator(".bar").first.evaluate("cell => getComputedStyle(cell).color")
    page.evaluate("([bar, text]) => { document.body.style = `background: ${bar}; color: ${text}`; }", [bar, text])
    assert page.evaluate(CONTRAST)["body"] >= 4.5, "numbers on bars"


def test_the_interface_is_in_the_readers_language(visit):
    page = visit.open()
    captions = page.locator(".caption").evaluate_all("every => every.map(each => each.lang)")
    assert page.locator("html").get_attribute("lang") == "en"
    assert page.locator("#scores-heading").inner_text() == "Scores"
    page.locator("#language").press("Enter")
    assert page.locator("html").get_attribute("lang") == "zh"
    assert page.locator("#scores-heading").inner_text() == "得分"
    assert page.locator("#pictures .filter").get_attribute("placeholder") == "筛选描述和文件名"
    assert page.locator("#range").inner_text().startswith("第 1–50 张")
    assert page.locator("[data-group=best]").inner_text() == "最好"
    assert page.locator(".caption").evaluate_all("every => every.map(each => each.lang)") == captions
    assert page.locator("#language").inner_text() == "English"
    page.locator("#language").click()
    assert page.locator("#scores-heading").inner_text() == "Scores"
    assert visit.open(locale="zh-CN").locator("#scores-heading").inner_text() == "得分", "as the browser's is"


def test_motion_is_left_out_for_who_wants_none(visit):
    for wish, behaviour in (("reduce", "auto"), ("no-preference", "smooth")):
        page = visit.open(reduced_motion=wish)
        assert page.evaluate("getComputedStyle(document.documentElement).scrollBehavior") == behaviour
        moving = (
            "[...document.querySelectorAll('*')].filter(each => getComputedStyle(each).transitionDuration !== '0s')"
        )
        assert page.evaluate(f"{moving}.length + document.getAnimations().length") == 0


def test_without_a_script_scores_charts_and_pictures_are_there(visit, opened):
    page = visit.open(java_script_enabled=False)
    assert page.locator(".scores").is_visible() and page.locator(".chart svg").first.is_visible()
    assert page.locator(".photo img").first.is_visible() and page.locator(".caption").first.is_visible()
    assert page.locator(".controls:visible, #language:visible").count() == 0
    assert page.get_by_text("This table needs a script").is_visible()
