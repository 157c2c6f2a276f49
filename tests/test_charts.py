import re
import xml.etree.ElementTree as ElementTree

import pytest

from src.charts import COLOURS, DASHES, MARKERS, Bars, Line, histogram, line_chart, swatch, ticks


def read(svg: str) -> tuple[ElementTree.Element, float, float, list[str]]:
    """The picture, its width and height, and the words in it."""
    picture = ElementTree.fromstring(svg)
    _, _, width, height = map(float, picture.get("viewBox").split())
    return picture, width, height, [each.text for each in picture.findall(".//{*}text")]


def points(picture: ElementTree.Element) -> list[list[tuple[float, float]]]:
    return [
        [tuple(map(float, place.split(","))) for place in line.get("points").split()]
        for line in picture.findall(".//{*}polyline")
    ]


@pytest.mark.parametrize("curve", [[(1, 0.5)], [(1, 0.2), (2, 0.2)], [(n, 0.02 * n) for n in range(1, 41)]])
@pytest.mark.parametrize("size", [(640, 360), (360, 230)])
def test_every_point_lies_in_the_picture(curve, size):
    lines = [Line("a <run>", [(x, 100 * y) for x, y in curve]), Line("b", [(1, 10)], 1)]
    svg = line_chart(lines, title="CIDEr & more", across="epoch", up="CIDEr × 100", size=size)
    picture, width, height, words = read(svg)
    own, other = points(picture)
    assert len(own) == len(curve) and len(other) == 1
    assert all(0 < x < width and 0 < y < height for x, y in own + other)
    heights = [y for _, y in own]
    assert heights == sorted(heights, reverse=True), "higher is further up"
    assert {"a <run>", "b", "epoch", "CIDEr × 100"} <= set(words)
    assert picture.findtext("{*}title") == "CIDEr & more" and picture.get("role") == "img"


def test_whole_numbers_stand_under_epochs():
    _, _, _, words = read(line_chart([Line("a", [(1, 0), (2, 1)])], title="t", across="epoch", up="up"))
    assert "1" in words and "2" in words and "1.2" not in words


def test_lines_differ_by_colour_and_marker_and_say_what_their_points_are():
    lines = [Line(str(i), [(1, i), (2, i)], i, DASHES[i], notes=[f"{i} at 1", f"{i} at 2"]) for i in range(6)]
    picture, *_ = read(line_chart(lines, title="t", across="x", up="y"))
    groups = [g for g in picture.findall(".//{*}g") if g.find("{*}polyline") is not None]
    assert [g.get("class") for g in groups] == [f"s{i}" for i in range(6)]
    assert [g.get("color") for g in groups] == list(COLOURS) and len(set(COLOURS)) == len(set(MARKERS)) == 6
    assert [g.find("{*}polyline").get("stroke-dasharray") or "" for g in groups] == list(DASHES)
    assert [e.text for e in groups[5].findall(".//{*}title")] == ["5 at 1", "5 at 2"]
    assert "s1" in read_swatch(7) and COLOURS[1] in read_swatch(7), "after the last come the first again"


def read_swatch(series: int) -> str:
    return ElementTree.tostring(ElementTree.fromstring(swatch(series)), encoding="unicode")


def test_colours_stand_out_from_white():
    for colour in COLOURS:
        rgb = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb]
        luminance = sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
        assert 1.05 / (luminance + 0.05) > 4.5, colour


def test_bars_are_as_high_as_their_counts():
    bars = [Bars(("all", "全部"), [4, 4, 4], None), Bars("a", [1, 0, 4]), Bars("b", [0, 2, 2], 1)]
    svg = histogram(bars, [0, 10, 20, 30], title="t", across="score", up="pictures", beyond=True, size=(360, 230))
    picture, width, height, words = read(svg)
    steps = picture.find("{*}path[@class='s0']").get("d")
    base, *tops, end = [float(y) for y in re.findall(r"(?:V|M46 )([\d.]+)", steps)]
    assert base == end == tops[1] and base - tops[2] == pytest.approx(4 * (base - tops[0]), abs=0.3)
    across = [float(x) for x in re.findall(r"H([\d.]+)", steps)]
    assert across[1] - across[0] == pytest.approx(across[2] - across[1], abs=0.1) and across[-1] < width
    assert "20+" in words and "30" not in words, "the last bin has no end"
    assert 'data-zh="全部"' in svg and "all" in words
    assert picture.find("{*}path[@class='s1']").get("stroke-dasharray")


def test_one_histogram_without_a_name_has_no_legend():
    picture, *_ = read(histogram([Bars("", [1, 2])], [0, 1, 2], title="t", across="x", up="y"))
    assert len(picture.findall("{*}path[@class='s0']")) == 1


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 0.0), (2.31, 2.34), (-3, 47), (0, 1e6)])
def test_ticks_are_round_and_reach_around(low, high):
    found = ticks(low, high, 6)
    assert found[0] <= low + 1e-9 and found[-1] >= high - 1e-9 and len(found) <= 9
    assert all(f"{tick:g}" == f"{tick:.6g}" for tick in found)
