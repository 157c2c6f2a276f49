"""Charts as SVG: lines and histograms, inside a page or standing alone. Nothing here imports NumPy, so that the list of
runs, which can draw them, is there at once.

Colours are attributes, so that a file needs no style sheet, and a page's may override them by class: `s0` … `s5` are
series, `ink` is of words, `grid` of the lines behind, `ground` of the background.
"""

import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import NamedTuple

Text = str | tuple[str, str]
"""English, or English and Chinese, which a page's script exchanges."""
COLOURS = ("#0072b2", "#c04a00", "#00795a", "#a3457f", "#806600", "#5a5f66")
"""Okabe and Ito's, told apart by the colour-blind, darkened to stand out from white."""
DASHES = ("", "7 3", "2 2.5", "9 3 2 3", "5 5", "1 3")
MARKERS = (
    (-3, 0, "a3 3 0 1 0 6 0a3 3 0 1 0-6 0z"),
    (-2.8, -2.8, "h5.6v5.6h-5.6z"),
    (0, -3.8, "l3.6 6.4h-7.2z"),
    (0, -4.2, "l3.8 4.2-3.8 4.2-3.8-4.2z"),
    (0, 3.8, "l3.6-6.4h-7.2z"),
    (-3.4, -1, "h2.4v-2.4h2v2.4h2.4v2h-2.4v2.4h-2v-2.4h-2.4z"),
)
"""Where their outlines begin, from the point, and how they go on."""
INK = 'class="ink" color="#374151" fill="currentColor"'
PAST = 'class="past" color="#c3c8cf" fill="currentColor"'
FONT = 12
ROW = 17
"""Pixels of a line of the legend."""


class Line(NamedTuple):
    """A line through its points, each with a marker."""

    name: Text
    """In the legend; empty: not there."""
    points: Sequence[tuple[float, float]]
    series: int = 0
    """Which colour and marker."""
    dash: str = ""
    hollow: bool = False
    notes: Sequence[str] = ()
    """What is said of each point where the pointer rests on it."""


class Bars(NamedTuple):
    """Counts of a histogram."""

    name: Text
    counts: Sequence[float]
    series: int | None = 0
    """Which colour and dash; None: grey and filled, what the others are seen against."""


def line_chart(
    lines: Sequence[Line],
    *,
    title: Text,
    across: Text,
    up: Text,
    whole: bool = True,
    logarithmic: bool = False,
    size: tuple[int, int] = (640, 360),
) -> str:
    """Draw lines.

    Args:
        lines: one or more, with one point or more together.
        title: what is to be seen, for those who listen and for the pointer.
        across, up: the axes' names.
        whole: name only whole numbers on the axis across.
        logarithmic: the axis across is of powers, and names the points' own places.
        size: width and height in pixels.
    """
    named = sorted({x for line in lines for x, _ in line.points})
    if logarithmic:
        lines = [line._replace(points=[(math.log10(x), y) for x, y in line.points]) for line in lines]
    (left, right), (low, high) = (
        (min(v), max(v)) for v in zip(*(p for line in lines for p in line.points), strict=True)
    )
    plane = _Plane(size, (left, right if right > left else left + 1), _span(low, high), _rows(lines, size[0]))
    places = [tick for tick in ticks(left, right, size[0] // 50) if left <= tick <= right]
    numbers = [(tick, f"{tick:g}") for tick in places if not whole or tick == int(tick)]
    if logarithmic:
        numbers = [(math.log10(x), f"{x:,}") for x in named]
    parts = [plane.frame(title, across, up, numbers)]
    for line in lines:
        dots = [(plane.x(x), plane.y(y)) for x, y in line.points]
        path = " ".join(f"{_n(x)},{_n(y)}" for x, y in dots)
        parts.append(
            f'<g {_series(line.series)} fill="none" stroke-width="2"><polyline points="{path}"{_dashed(line.dash)}/>'
        )
        parts.append(f"{_markers(line, dots)}</g>")
    parts.append(_legend(lines, size[0]))
    return "".join([*parts, "</svg>\n"])


def histogram(
    bars: Sequence[Bars],
    edges: Sequence[float],
    *,
    title: Text,
    across: Text,
    up: Text,
    beyond: bool = False,
    size: tuple[int, int] = (640, 360),
) -> str:
    """Draw histograms upon one another, as outlines.

    Args:
        bars: one or more, of counts (bins,).
        edges: (bins + 1,) where bins begin and end.
        title, across, up: as in `line_chart`.
        beyond: the last bin also counts what lies beyond it, which is written under it.
        size: width and height in pixels.
    """
    most = max(max(each.counts) for each in bars)
    plane = _Plane(size, (edges[0], edges[-1]), (0, ticks(0, most, 4)[-1]), _rows(bars, size[0]))
    end = edges[-2] if beyond else edges[-1]
    apart = (edges[-1] - edges[0]) / 12
    places = [tick for tick in ticks(edges[0], end, 7) if edges[0] <= tick <= (end - apart if beyond else end)]
    numbers = [(tick, f"{tick:g}") for tick in places]
    if beyond:  # in the middle of the last bin: its lower bound
        bound = math.ceil(end) if edges[-1] - end == 1 else end
        numbers.append(((end + edges[-1]) / 2, f"{bound:g}+"))
    parts = [plane.frame(title, across, up, numbers)]
    for each in bars:
        steps = "".join(f"V{_n(plane.y(n))}H{_n(plane.x(x))}" for n, x in zip(each.counts, edges[1:], strict=True))
        parts.append(_outline(each, f'd="M{plane.left} {plane.bottom}{steps}V{plane.bottom}"'))
    parts.append(_legend(bars, size[0]))
    return "".join([*parts, "</svg>\n"])


def _outline(bars: Bars, path: str) -> str:
    if bars.series is None:
        return f"<path {PAST} {path}/>"
    fill = 'fill="currentColor" fill-opacity=".18"' if bars.series == 0 else 'fill="none"'
    dash = _dashed(DASHES[bars.series % len(DASHES)])
    return f'<path {_series(bars.series)} {fill} stroke-width="2"{dash} {path}/>'


def _dashed(dash: str) -> str:
    return f' stroke-dasharray="{dash}"' if dash else ""


def swatch(series: int) -> str:
    """A small sample of a series' colour, dash and marker."""
    line = Line("", [], series, DASHES[series % len(DASHES)])
    sample = f'<path d="M1 7h26"{_dashed(line.dash)}/>{_markers(line, [(14, 7)])}'
    return (
        f'<svg class="swatch" width="28" height="14" aria-hidden="true"><g {_series(series)} fill="none" '
        f'stroke-width="2">{sample}</g></svg>'
    )


def ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers from below `low` to above `high`, at most about so many steps apart."""
    rough = (high - low) / most or 1.0
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))
    return [step * number for number in range(math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9) + 1)]


def _span(low: float, high: float) -> tuple[float, float]:
    round_numbers = ticks(low, high, 6)
    return round_numbers[0], round_numbers[-1]


class _Plane:
    """Where values lie on the picture."""

    def __init__(
        self, size: tuple[int, int], across: tuple[float, float], up: tuple[float, float], legend_rows: int
    ) -> None:
        self.width, self.height = size
        self.across, self.up = across, up if up[1] > up[0] else (up[0], up[0] + 1)
        self.left, self.right = 46, self.width - 14
        self.top, self.bottom = 16 + ROW * legend_rows + 14, self.height - 42

    def x(self, value: float) -> float:
        low, high = self.across
        return self.left + (value - low) / (high - low) * (self.right - self.left)

    def y(self, value: float) -> float:
        low, high = self.up
        return self.bottom - (value - low) / (high - low) * (self.bottom - self.top)

    def frame(self, title: Text, across: Text, up: Text, places: Iterable[tuple[float, str]]) -> str:
        """All that is not data: the file's beginning, the title, axes and their numbers; those across at `places`."""
        numbers = [tick for tick in ticks(*self.up, 6) if tick <= self.up[1] * (1 + 1e-9)]
        lines = "".join(f"M{self.left} {_n(self.y(tick))}H{self.right}" for tick in numbers)
        rows = "".join(f'<text x="{self.left - 6}" y="{_n(self.y(tick) + 4)}">{tick:g}</text>' for tick in numbers)
        columns = "".join(f'<text x="{_n(self.x(at))}" y="{self.bottom + 17}">{name}</text>' for at, name in places)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" role="img" '
            f'font-family="system-ui, sans-serif" font-size="{FONT}"><title{_both(title)}</title>'
            '<rect class="ground" color="#fff" fill="currentColor" width="100%" height="100%"/>'
            f'<path class="grid" color="#e5e7eb" stroke="currentColor" d="{lines}"/><g {INK}>'
            f'<g text-anchor="end">{rows}</g><g text-anchor="middle">{columns}'
            f'<text x="{(self.left + self.right) // 2}" y="{self.height - 7}"{_both(across)}</text></g>'
            f'<text x="8" y="{self.top - 12}"{_both(up)}</text></g>'
        )


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _both(text: Text) -> str:
    """The end of a tag, and the text in it."""
    if isinstance(text, str):
        return f">{escape(text)}"
    return f' data-zh="{escape(text[1])}">{escape(text[0])}'


def _series(number: int) -> str:
    number %= len(COLOURS)
    return f'class="s{number}" color="{COLOURS[number]}" stroke="currentColor"'


def _marker(series: int, x: float, y: float) -> str:
    """The outline of a marker."""
    across, down, rest = MARKERS[series % len(MARKERS)]
    return f"M{_n(x + across)} {_n(y + down)}{rest}"


def _markers(line: Line, dots: Sequence[tuple[float, float]]) -> str:
    fill = "" if line.hollow else ' fill="currentColor"'
    outlines = [_marker(line.series, x, y) for x, y in dots]
    if not line.notes:
        return f'<path d="{"".join(outlines)}"{fill}/>'
    pairs = zip(outlines, line.notes, strict=True)
    return "".join(f'<path d="{path}"{fill}><title>{escape(note)}</title></path>' for path, note in pairs)


# ---------------------------------------------------------------- the legend


def _english(text: Text) -> str:
    return text if isinstance(text, str) else text[0]


def _entry_width(name: Text) -> float:
    """Pixels, about: a sample of the line, the name, a gap."""
    return 30 + sum(1.0 if ord(letter) > 0x2E80 else 0.58 for letter in _english(name)) * FONT + 16


def _entries(names: Iterable[Text], width: int) -> list[tuple[float, int]]:
    """Where each entry begins, and in which row."""
    places: list[tuple[float, int]] = []
    x, row = 8.0, 0
    for name in names:
        if places and x + _entry_width(name) > width:
            x, row = 8.0, row + 1
        places.append((x, row))
        x += _entry_width(name)
    return places


def _rows(drawn: Sequence[Line | Bars], width: int) -> int:
    places = _entries((each.name for each in drawn if each.name), width)
    return places[-1][1] + 1 if places else 0


def _legend(drawn: Sequence[Line | Bars], width: int) -> str:
    """A sample and a name of everything that has one, at the top."""
    samples, names = [], []
    named = [each for each in drawn if each.name]
    for each, (x, row) in zip(named, _entries((each.name for each in named), width), strict=True):
        y = 13 + ROW * row
        if isinstance(each, Line):
            line = f'<path d="M{x:.0f} {y}h24"{_dashed(each.dash)}/>{_markers(each._replace(notes=()), [(x + 12, y)])}'
            samples.append(f'<g {_series(each.series)} fill="none" stroke-width="2">{line}</g>')
        else:
            samples.append(_outline(each, f'd="M{x:.0f} {y + 5}v-10h24v10"'))
        names.append(f'<text x="{x + 30:.0f}" y="{y + 4}"{_both(each.name)}</text>')
    return "".join([*samples, f"<g {INK}>", *names, "</g>"])
