"""The figure of where words looked, read back from its pixels."""

import numpy as np
import pytest
from PIL import Image

from src import figures
from src.data.transforms import Preprocess
from src.encoders.base import grid_boxes
from src.figures import attention_figure
from tests.test_report import attend, photograph


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
    monkeypatch.setattr("src.figures.CJK_FONTS", ())
    image, attention = Image.new("RGB", (60, 60)), attend(3, 9)
    for cached in (figures._cjk_font, figures._font):
        cached.cache_clear()
    figure = attention_figure(image, ["一", "dog", "狗"], attention, tile=60)
    assert figure.tobytes() == attention_figure(image, ["1", "dog", "3"], attention, tile=60).tobytes()
    assert caplog.text.count("no font with Chinese characters") == 1
    for cached in (figures._cjk_font, figures._font):
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
