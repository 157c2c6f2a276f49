"""The page in a real browser, on a phone and on a desk: the captioner that comes with the code, and a tiny one with
pictures to search."""

import base64
import json
import re
import shutil
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from src.bundle import SHIPPED
from src.captioner import Captioner
from src.data.vocabulary import Vocabulary
from src.figures import FAINT, RAMP
from src.retrieval import Index
from src.service.app import PAGE, Service, Settings
from tests.browsing import marks, playwright
from tests.service.running import file_of, picture, running, tiny_captioner, wait_for

VIEWS = {
    "phone": {"viewport": {"width": 360, "height": 740}, "is_mobile": True, "has_touch": True},
    "desk": {"viewport": {"width": 1280, "height": 800}},
}
TOKEN = "0123456789abcdef"
pytestmark = marks


class Served(NamedTuple):
    captioner: Captioner
    address: str
    service: Service


@pytest.fixture(scope="module")
def shipped() -> Iterator[Served]:
    captioner = Captioner.load(SHIPPED, device_name="cpu")
    with running(captioner, Settings()) as (address, service):
        yield Served(captioner, address, service)


@pytest.fixture(scope="module")
def tiny(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One that knows lengths, of which pictures are indexed, behind a token."""
    folder = tmp_path_factory.mktemp("tiny")
    pictures = shutil.copytree(shapes / "images", folder / "pictures")
    words = ["a", "red", "green", "blue", "square", "circle", "on", "灰色"]
    vocabulary = Vocabulary.build([[w] * (len(words) - i) for i, w in enumerate(words)], min_count=1)
    captioner = tiny_captioner(folder / "bundle", vocabulary)
    index = Index.create(folder / "index", captioner, ["en", "zh"])
    index.add(captioner, sorted(pictures.glob("*.png")))
    with running(captioner, Settings(token=TOKEN), index) as (address, service):
        yield Served(captioner, address, service)


@pytest.fixture(scope="session")
def photo() -> tuple[str, bytes]:
    """A photograph that scikit-image brings (CC0)."""
    data = pytest.importorskip("skimage.data", reason="needs scikit-image").camera()
    return "camera.jpg", file_of(Image.fromarray(data), "JPEG", quality=90)


class Visit:
    """Pages of the service, what they fetched from elsewhere and what they complained of."""

    def __init__(self, browser: "playwright.Browser", view: str) -> None:
        self.browser, self.view = browser, view
        self.complaints: list[str] = []
        self.expected = "willReadFrequently"  # that is these tests' own reading of the overlay
        self.contexts: list[playwright.BrowserContext] = []

    def open(self, served: Served, **options: object) -> "playwright.Page":
        context = self.browser.new_context(**{"locale": "en-GB", **VIEWS[self.view], **options})
        self.contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: self.note(message.text))
        page.on("pageerror", lambda error: self.note(str(error)))
        page.on("request", lambda request: self.fetched(request.url, served.address))
        page.goto(served.address)
        until(page, "document.querySelector('#language').options.length || document.querySelector('dialog').open")
        return page

    def enter(self, served: Served) -> "playwright.Page":
        """Open a page of a service that asks for a token, and give it."""
        self.expected += "|status of 401"
        page = self.open(served)
        let_in(page)
        return page

    def note(self, text: str) -> None:
        if not re.search(self.expected, text):
            self.complaints.append(text)

    def fetched(self, url: str, address: str) -> None:
        if not url.startswith((f"{address}/", f"blob:{address}/")):
            self.complaints.append(f"fetched {url}")


@pytest.fixture(params=VIEWS)
def visit(request: pytest.FixtureRequest, browser: "playwright.Browser") -> Iterator[Visit]:
    """No test may end with an error in the console, or with anything fetched from elsewhere."""
    visit = Visit(browser, request.param)
    yield visit
    for context in visit.contexts:
        context.close()
    assert not visit.complaints


def bring(page: "playwright.Page", how: str, *files: tuple[str, bytes], kind: str = "image/jpeg") -> None:
    """Drop or paste files, as a person does."""
    given = [[name, base64.b64encode(data).decode()] for name, data in files]
    page.evaluate(
        """([how, kind, given]) => {
            const transfer = new DataTransfer();
            for (const [name, data] of given)
                transfer.items.add(new File([Uint8Array.from(atob(data), c => c.charCodeAt())], name, { type: kind }));
            const about = { bubbles: true, cancelable: true };
            const main = document.querySelector("main");
            if (how === "paste") main.dispatchEvent(new ClipboardEvent("paste", { ...about, clipboardData: transfer }));
            for (const name of how === "drop" ? ["dragover", "drop"] : [])
                main.dispatchEvent(new DragEvent(name, { ...about, dataTransfer: transfer }));
        }""",
        [how, kind, given],
    )


def until(page: "playwright.Page", what: str, given: object = None) -> None:
    """Wait until an expression is true. Playwright's own way would have the page evaluate text, which it forbids."""
    wait_for(lambda: page.evaluate(what, given), 30)


def until_says(page: "playwright.Page", place: str, text: str) -> None:
    until(page, "([place, text]) => document.querySelector(place).textContent.includes(text)", [place, text])


def caption_of(page: "playwright.Page") -> str:
    """What the page shows, once it does."""
    page.locator(".word").first.wait_for()
    return page.locator("#words").inner_text()


def overlay(page: "playwright.Page") -> str:
    """What is drawn over the picture, as a PNG; empty where nothing is seen."""
    return page.evaluate(
        """() => {
            const canvas = document.querySelector("#overlay");
            return canvas.classList.contains("on") ? canvas.toDataURL() : "";
        }"""
    )


def own(served: Served, data: bytes, language: str | None = None, alternatives: int = 0, length: str | None = None):
    """What the captioner itself says of a file."""
    served.captioner.ask(length, language=language)
    (caption,) = served.captioner([served.captioner.preprocess.decode(data)], alternatives=alternatives)
    served.captioner.ask()
    return caption


def let_in(page: "playwright.Page") -> None:
    page.get_by_label("Token", exact=True).fill(TOKEN)
    page.keyboard.press("Enter")
    until(page, "document.querySelector('#language').options.length")


def narrow(page: "playwright.Page") -> bool:
    """Whether the page is no wider than its window."""
    return page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_a_picture_unlike_the_training_photographs_has_a_note(visit, shipped, photo):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8))
    page, note = visit.open(shipped), "This picture is unlike the pictures it learned from."
    bring(page, "drop", ("noise.png", file_of(noise)))
    caption_of(page)
    assert page.locator("#unfamiliar").inner_text() == note
    page.get_by_role("button", name="中文").click()
    assert page.locator("#unfamiliar").inner_text() == "这张图片不像它学习过的图片。" and narrow(page)
    bring(page, "drop", photo)
    caption_of(page)
    assert (page.locator("#unfamiliar").inner_text() == "") == (own(shipped, photo[1]).unfamiliar < 0.99)


@pytest.mark.parametrize("how", ["drop", "paste"])
def test_a_photograph_is_captioned_and_words_show_where_they_looked(visit, shipped, photo, how):
    page = visit.open(shipped)
    bring(page, how, photo)
    wanted = own(shipped, photo[1], "en", 4)
    assert caption_of(page) == wanted.text
    until_says(page, "#status", f"Caption: {wanted.text}")
    assert page.locator("#picture").get_attribute("alt") == wanted.text
    assert f"{100 * wanted.confidence:.0f} %" in page.locator("#confidence").inner_text()
    words = page.locator(".word")
    assert words.all_inner_texts() == wanted.words and not overlay(page)
    seen = []
    for i in (0, 1, len(wanted.words) - 1):
        (words.nth(i).tap if visit.view == "phone" else words.nth(i).hover)()
        assert page.locator(".word.on").all_inner_texts() == [wanted.words[i]]
        seen.append(overlay(page))
    assert all(seen) and len(set(seen)) == 3, "every word has its own"
    box, drawn = page.locator("#picture").bounding_box(), page.locator("#overlay").bounding_box()
    assert all(abs(box[side] - drawn[side]) < 1 for side in box) and box["width"] > 150
    if visit.view == "phone":
        page.locator("#hint").tap()
        page.evaluate("document.activeElement.blur()")
    else:
        page.mouse.move(1, 1)
    assert not overlay(page)
    choices = page.locator("#alternatives button")
    assert [text.split("\n")[0] for text in choices.all_inner_texts()] == [
        wanted.text,
        *(other.text for other in wanted.alternatives),
    ]
    choices.nth(2).click()
    assert page.locator("#words").inner_text() == wanted.alternatives[1].text
    assert choices.nth(2).get_attribute("aria-pressed") == "true"
    words.first.focus()
    assert overlay(page) and narrow(page)


def test_by_keyboard_alone(visit, shipped, photo, tmp_path):
    (tmp_path / photo[0]).write_bytes(photo[1])
    page = visit.open(shipped)
    choosers: list[playwright.FileChooser] = []
    page.on(
        "filechooser", lambda chooser: choosers.append(chooser)
    )  # well before the key: what waits for one is told late
    active: Callable[[], str] = lambda: page.evaluate("document.activeElement.id || document.activeElement.className")  # noqa: E731
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    assert page.locator(".skip").bounding_box()["x"] >= 0, "it is seen when it is reached"
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert active() == "choose"
    outline = page.locator("label[for=choose]").evaluate("label => getComputedStyle(label).outlineStyle")
    assert outline == "solid", "where the keyboard is can be seen"
    page.keyboard.press("Space")
    wait_for(lambda: page.evaluate("0") or choosers)  # events come while the page is asked
    choosers[0].set_files(tmp_path / photo[0])
    said = caption_of(page)
    for _ in range(6):
        page.keyboard.press("Tab")
        if active().startswith("word"):
            break
    assert page.evaluate("document.activeElement.textContent") == said.split()[0]
    first = overlay(page)
    page.keyboard.press("ArrowRight")
    second = overlay(page)
    assert page.evaluate("document.activeElement.textContent") == said.split()[1]
    assert "looked at the" in page.evaluate("document.activeElement.getAttribute('aria-description')")
    assert first and second and first != second
    page.keyboard.press("End")
    assert page.evaluate("document.activeElement.textContent") == said.split()[-1]
    page.keyboard.press("Home")
    assert overlay(page) == first
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    assert not overlay(page)
    page.keyboard.press("Enter")
    assert page.locator("#alternatives [aria-pressed=true]").evaluate("b => b === document.activeElement"), (
        "it stays there"
    )
    page.locator("#tab-caption").focus()
    page.keyboard.press("ArrowRight")
    assert active() == "tab-search" and page.locator("#search").is_visible() and page.locator("#caption").is_hidden()
    assert page.locator("[role=tab][tabindex='0']").count() == 1
    assert "--index" in page.locator("#no-index").inner_text(), "of this service nothing can be searched"
    page.keyboard.press("ArrowRight")
    assert active() == "tab-caption" and page.locator("#caption").is_visible()


def test_chinese_captions_and_a_chinese_interface_that_is_remembered(visit, shipped, photo):
    page = visit.open(shipped)
    bring(page, "drop", photo)
    english = caption_of(page)
    page.get_by_label("Language").select_option("zh")
    wanted = own(shipped, photo[1], "zh")
    until(page, "text => document.querySelector('#words').textContent === text", wanted.text)
    assert (
        page.locator("#words").get_attribute("lang") == "zh" and page.locator(".word").all_inner_texts() == wanted.words
    )
    page.locator(".word").nth(1).focus()
    assert overlay(page)
    page.get_by_role("button", name="中文").click()
    assert page.locator("html").get_attribute("lang") == "zh"
    assert page.get_by_role("tab", name="描述").is_visible() and "概率" in page.locator("#confidence").inner_text()
    page.get_by_label("语言").select_option("en")
    until(page, "text => document.querySelector('#words').textContent === text", english)
    until_says(page, "#status", f"描述：{english}")  # it is known already
    page.reload()
    page.get_by_role("button", name="English").wait_for()
    assert page.locator("html").get_attribute("lang") == "zh"
    missing = page.evaluate(
        "() => [...document.querySelectorAll('[data-zh]')].filter(e => e.textContent !== e.dataset.zh).length"
    )
    assert missing == 0
    first = visit.open(shipped, locale="zh-CN")
    assert first.locator("html").get_attribute("lang") == "zh" and first.locator("#language").input_value() == "zh"


def test_several_pictures_one_after_the_other(visit, shipped, photo):
    page = visit.open(shipped)
    others = [(f"{i}.png", file_of(picture(i, (300, 200)), "JPEG")) for i in range(2)]
    bring(page, "drop", photo, *others)
    assert caption_of(page) == own(shipped, photo[1], "en").text
    strip = page.locator("#strip button")
    assert strip.count() == 3 and strip.nth(0).get_attribute("aria-current") == "true"
    for i, (_, data) in enumerate(others, 1):
        strip.nth(i).click()
        assert caption_of(page) == own(shipped, data, "en").text
        assert page.locator("#strip [aria-current]").count() == 1
    assert page.locator("#strip img").evaluate_all("all => all.map(i => i.alt)") == [
        own(shipped, data, "en").text for _, data in (photo, *others)
    ]
    page.get_by_label("Choose pictures").set_input_files(
        {"name": "new.jpg", "mimeType": "image/jpeg", "buffer": others[0][1]}
    )
    until(page, "document.querySelectorAll('#strip button').length === 4")
    assert narrow(page)
    camera = page.locator("label[for=camera]")
    assert camera.is_visible() == (visit.view == "phone")
    assert page.locator("#camera").get_attribute("capture") == "environment"


def test_what_cannot_be_captioned_is_said(visit, shipped, photo):
    visit.expected += "|status of 4"
    page = visit.open(shipped)
    bring(page, "drop", ("notes.txt", b"hello"), kind="text/plain")
    until_says(page, "#problem", "That is not a picture.")
    page.get_by_role("button", name="中文").click()
    assert page.get_by_role("alert").inner_text() == "这不是图片。"
    page.get_by_role("button", name="English").click()
    bring(page, "drop", ("broken.jpg", photo[1][:3000]))
    until_says(page, "#problem", "damaged or truncated")
    assert page.locator("#result").is_hidden()
    page.get_by_role("button", name="中文").click()
    assert "图片损坏" in page.get_by_role("alert").inner_text()
    bring(page, "drop", photo)
    caption_of(page)
    assert page.get_by_role("alert").inner_text() == ""


@pytest.mark.parametrize("visit", ["desk"], indirect=True)
def test_captions_are_said_aloud_each_time(visit, tiny, photo):
    page = visit.enter(tiny)
    regions = page.locator("#status, #problem")
    assert regions.evaluate_all("all => all.map(each => each.checkVisibility())") == [True, True], "before they speak"
    page.evaluate(
        """() => {
            const status = document.querySelector("#status");
            window.said = [];
            new MutationObserver(() => said.push(status.textContent)).observe(status, { childList: true });
        }"""
    )
    for count in (1, 2):
        bring(page, "drop", photo)
        caption = f"Caption: {caption_of(page)}"
        until(page, "([all, text]) => said.filter(each => each === text).length === all", [count, caption])
    page.locator("#strip button").nth(1).click()
    until(page, "text => said.filter(each => each === text).length === 3", caption)
    told = [text for text, _ in groupby(page.evaluate("said"))]
    assert told == [*2 * ("Captioning …", "", caption), "", caption]


@pytest.mark.parametrize("visit", ["desk"], indirect=True)
def test_a_picture_that_failed_is_tried_again_when_it_is_chosen_again(visit, tiny, photo):
    visit.expected += "|status of 503"
    page = visit.enter(tiny)
    tiny.service.stopping = True
    try:
        bring(page, "drop", photo, ("2.jpg", file_of(picture(1), "JPEG")))
        until_says(page, "#problem", "about to stop")
    finally:
        tiny.service.stopping = False
    page.locator("#strip button").first.click()
    assert caption_of(page) == own(tiny, photo[1], "en").text
    assert page.get_by_role("alert").inner_text() == ""


@pytest.mark.parametrize("visit", ["desk"], indirect=True)
def test_a_page_that_opens_as_the_service_is_away_goes_on_by_itself(visit, tiny, photo):
    visit.expected += "|ERR_FAILED"
    page = visit.enter(tiny)
    answers = iter(("abort",))
    page.route("**/v1/captioner", lambda route: getattr(route, next(answers, "continue_"))())
    page.reload()
    until_says(page, "#problem", "cannot be reached")
    bring(page, "drop", photo)
    assert caption_of(page) == own(tiny, photo[1], "en").text
    assert page.get_by_role("alert").inner_text() == ""


def test_a_format_that_only_the_browser_reads_is_converted(visit, shipped):
    visit.expected += "|status of 415"
    page = visit.open(shipped)
    data = page.evaluate(  # Chromium shows icons, the service reads none
        """async () => {
            const canvas = Object.assign(document.createElement("canvas"), { width: 64, height: 64 });
            canvas.getContext("2d").fillRect(8, 8, 40, 40);
            const png = new Uint8Array(await (await new Promise(done => canvas.toBlob(done))).arrayBuffer());
            const head = new DataView(new ArrayBuffer(22));
            [[2, 1], [4, 1], [10, 1], [12, 32]].forEach(([at, value]) => head.setUint16(at, value, true));
            [[14, png.length], [18, 22]].forEach(([at, value]) => head.setUint32(at, value, true));
            [6, 7].forEach(at => head.setUint8(at, 64));
            return btoa(String.fromCharCode(...new Uint8Array(head.buffer), ...png));
        }"""
    )
    bring(page, "drop", ("drawing.ico", base64.b64decode(data)), kind="image/x-icon")
    assert caption_of(page)


def test_search_by_sentence_by_words_and_by_picture(visit, tiny, shapes):
    visit.expected += "|status of 4"
    page = visit.enter(tiny)
    page.get_by_role("tab", name="Search").click()
    box = page.get_by_label("Describe the pictures to find")
    box.fill("a red square")
    box.press("Enter")
    grid = page.locator("#grid li")
    until(page, "document.querySelectorAll('#grid li').length === 24")
    assert page.locator("#found").inner_text() == "24 pictures"
    until(page, "[...document.querySelectorAll('#grid img')].every(image => image.naturalWidth > 0)")
    index_says = page.locator("#grid small").all_inner_texts()
    box.fill("circle")
    page.get_by_label("Search by").select_option("words")
    page.get_by_role("button", name="Search", exact=True).click()
    until(page, "before => document.querySelector('#grid')?.innerText !== before", "\n".join(index_says))
    box.fill("?!")
    page.get_by_role("button", name="Search", exact=True).click()
    until_says(page, "#search-problem", "no words")
    bring(page, "paste", ("03.png", (shapes / "images" / "03.png").read_bytes()), kind="image/png")
    until(page, "document.querySelector('#grid small')?.textContent.startsWith('03.png · 1.00')")
    assert page.get_by_role("alert").inner_text() == "" and narrow(page)
    similar = page.get_by_role("button", name=re.compile("^Pictures similar to 0[0-9].png")).first
    similar.focus()
    page.keyboard.press("Enter")
    until(page, "document.activeElement === document.querySelector('#grid .look')")  # what had the focus is gone
    assert grid.count() == 24 and "like yours" in page.locator("#found").inner_text()
    page.keyboard.press("Enter")
    assert caption_of(page) and page.locator("#caption").is_visible()
    assert page.evaluate("document.activeElement.id") == "tab-caption"


@pytest.mark.parametrize("visit", ["phone"], indirect=True)
def test_results_whose_files_are_gone_in_both_languages(visit, tiny):
    visit.expected += "|status of 404"
    page = visit.enter(tiny)
    found = page.request.get(
        f"{tiny.address}/v1/search?q=a+red+square", headers={"authorization": f"Bearer {TOKEN}"}
    ).json()["results"]
    missed: list[str] = []
    page.on("response", lambda response: missed.append(response.url) if response.status == 404 else None)
    gone, back = (Path(tiny.service.shown.paths[each["id"]]) for each in found[-2:])  # far below the search
    moved = [file.rename(file.with_suffix(".gone")) for file in (gone, back)]
    try:
        page.get_by_role("tab", name="Search").click()
        page.get_by_label("Describe the pictures to find").fill("a red square")
        page.keyboard.press("Enter")
        wait_for(lambda: page.evaluate("0") or len(missed) == 2)
        moved.pop().rename(back)
        lost, seen = (page.locator("#grid li", has_text=file.name) for file in (gone, back))
        look, similar = lost.locator(".look"), lost.locator("div button")
        problem = page.locator("#search-problem")
        look.press("Enter")
        until_says(page, "#search-problem", "cannot be read any more")
        assert page.locator("#search").is_visible() and look.evaluate("look => look === document.activeElement")
        assert 0 <= problem.bounding_box()["y"] < 700, "it is where the user is"
        assert page.locator("#found").inner_text() == "24 pictures"

        page.get_by_role("button", name="中文").click()
        assert "文件已经读不了" in problem.inner_text() and page.locator("#found").inner_text() == "24 张图片"
        assert similar.inner_text() == "相似" and similar.get_attribute("aria-label") == f"与 {gone.name} 相似的图片"
        assert look.get_attribute("aria-description") == "描述它"
        problem.evaluate("problem => problem.replaceChildren()")
        similar.press("Enter")
        until_says(page, "#search-problem", "文件已经读不了")

        wait_for(lambda: seen.locator("img").evaluate("image => image.naturalWidth"))  # it was tried again
        said = f"{gone.name}：无法显示"
        wait_for(lambda: look.locator("img").evaluate("image => [image.alt, image.lang]") == [said, "zh"])
        languages = set()
        for each in found:
            item, lines = page.locator("#grid li", has_text=each["name"]), each["caption"].split("\n")
            spoken = item.locator("p span").evaluate_all("all => all.map(each => [each.textContent, each.lang])")
            assert spoken == [[line, "zh" if "灰" in line else "en"] for line in lines]
            languages |= {language for _, language in spoken}
            if each["name"] != gone.name:
                assert item.locator("img").evaluate("image => [image.alt, image.lang]") == spoken[0]
        assert languages == {"en", "zh"}
    finally:
        for file in moved:
            file.rename(file.with_suffix(".png"))


def test_lengths_are_chosen_where_the_captioner_knows_some(visit, tiny, photo):
    page = visit.enter(tiny)
    bring(page, "drop", photo)
    any_length = caption_of(page)
    page.get_by_label("Length").select_option("long")
    wanted = own(tiny, photo[1], "en", length="long")
    until(page, "text => document.querySelector('#words').textContent === text", wanted.text)
    page.get_by_label("Length").select_option("")
    until(page, "text => document.querySelector('#words').textContent === text", any_length)


def test_a_token_is_asked_for_until_it_is_right(visit, tiny):
    visit.expected += "|status of 401"
    page = visit.open(tiny)
    dialog = page.get_by_role("dialog", name="A token is needed")
    assert dialog.is_visible()
    page.keyboard.press("Escape")
    assert dialog.get_by_role("alert").inner_text() == ""
    for wrong in ("密码", "wrong"):  # the first cannot even be sent
        page.get_by_label("Token", exact=True).fill(wrong)
        page.keyboard.press("Enter")
        until_says(page, "#token-problem", "Wrong token")
        assert dialog.is_visible() and page.evaluate("sessionStorage.getItem('token')") is None
        page.reload()
        dialog.wait_for()
    let_in(page)
    assert dialog.is_hidden()
    page.reload()
    until(page, "document.querySelector('#language').options.length")
    assert page.get_by_role("dialog").count() == 0, "this tab remembers it"
    chinese = visit.open(tiny, locale="zh-CN")
    chinese.get_by_label("口令", exact=True).fill("wrong")
    chinese.keyboard.press("Enter")
    until_says(chinese, "#token-problem", "口令不对")


CONTRASTS = """() => {
    const parse = text => (text.match(/[\\d.]+/g) ?? []).map(Number);
    const linear = v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
    const light = ([r, g, b]) => .2126 * linear(r / 255) + .7152 * linear(g / 255) + .0722 * linear(b / 255);
    const ground = element => {
        for (let e = element; e; e = e.parentElement) {
            const [r, g, b, a = 1] = parse(getComputedStyle(e).backgroundColor);
            if (a === 1) return [r, g, b];
        }
        return [255, 255, 255];
    };
    const found = [];
    for (const element of document.querySelectorAll("body *")) {
        const text = [...element.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
        const seen = element.checkVisibility({ visibilityProperty: true });
        if (!seen || !(text || element.matches("input:not([type=file]), select"))) continue;
        const pair = [light(parse(getComputedStyle(element).color)), light(ground(element))].sort((a, b) => b - a);
        found.push([(pair[0] + .05) / (pair[1] + .05), element.outerHTML.slice(0, 80)]);
    }
    return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_names_and_motion(visit, tiny, photo, scheme):
    """WCAG 2.2 AA: text against its ground 4.5 : 1 (1.4.3), a name for every control (4.1.2)."""
    visit.expected += "|status of 4"
    page = visit.open(tiny, color_scheme=scheme, reduced_motion="reduce")
    grounds = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", grounds))) > 384) == (scheme == "light")

    def check() -> None:
        low = [each for each in page.evaluate(CONTRASTS) if each[0] < 4.5]
        assert not low
        tree = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
        controls = [
            node
            for node in tree
            if not node["ignored"]
            and node["role"]["value"]
            in ("button", "tab", "textbox", "searchbox", "combobox", "link", "image", "dialog")
        ]
        assert len(controls) > 1
        assert not [node for node in controls if not node.get("name", {}).get("value", "").strip()]
        assert narrow(page)

    check()
    let_in(page)
    bring(page, "drop", photo, ("2.jpg", file_of(picture(1), "JPEG")))
    caption_of(page)
    page.locator(".word").first.focus()
    check()
    bring(page, "drop", ("broken.jpg", photo[1][:3000]))
    until_says(page, "#problem", "damaged")
    check()
    page.get_by_role("tab", name="Search").click()
    page.get_by_label("Describe the pictures to find").fill("a red square")
    page.keyboard.press("Enter")
    until(page, "document.querySelectorAll('#grid li').length === 24")
    check()
    assert page.locator(".spinner").evaluate("s => getComputedStyle(s).animationName") == "none"


def test_attention_is_drawn_as_figures_draw_it():
    script = (PAGE / "app.js").read_text(encoding="utf-8")
    assert json.loads(re.search(r"const ramp = (\[\[.*?\]\]);", script)[1]) == [list(colour) for colour in RAMP]
    assert int(re.search(r"const faint = (\d+);", script)[1]) == FAINT


def test_every_refusal_has_a_chinese_sentence():
    script = (PAGE / "app.js").read_text(encoding="utf-8")
    said = set(re.findall(r"(\d{3}): \"", re.search(r"const inChinese = {(.*?)};", script, re.DOTALL)[1]))
    service = "".join(file.read_text(encoding="utf-8") for file in PAGE.parent.glob("*.py"))
    refused = set(re.findall(r"Refused\(\s*(\d{3}),", service))
    assert len(refused) > 8 and refused - {"401"} <= said, "that one has a dialog"
