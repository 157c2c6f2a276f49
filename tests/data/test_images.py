import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from src.data.images import ImageError, load_image


def picture(width=48, height=32):
    """Red left half, blue right half, a green bar on top."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, : width // 2, 0] = pixels[:, width // 2 :, 2] = 200
    pixels[: height // 4] = (0, 160, 0)
    return Image.fromarray(pixels)


def encoded(image, format, **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def noise(width=64, height=64):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def assert_same(image, expected, tolerance=0):
    assert image.mode == "RGB" and image.size == expected.size
    difference = np.abs(np.asarray(image, int) - np.asarray(expected, int))
    assert difference.max() <= tolerance, difference.max()


def png_header(width, height):
    """A PNG that declares a size and holds hardly any data."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


# --- what can be read ---


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "WEBP", "PPM", "TGA"])
def test_plain_files_are_read_as_they_are(tmp_path, format):
    path = tmp_path / f"a.{format.lower()}"
    path.write_bytes(encoded(picture(), format, **({"lossless": True} if format == "WEBP" else {})))
    assert_same(load_image(path), picture())


def test_a_path_a_string_bytes_an_open_file_and_an_image_are_all_sources(tmp_path):
    path = tmp_path / "a.png"
    picture().save(path)
    with path.open("rb") as file:
        for source in (
            path,
            str(path),
            path.read_bytes(),
            io.BytesIO(path.read_bytes()),
            file,
            Image.open(path),
        ):
            assert_same(load_image(source), picture())
        assert not file.closed
    assert_same(load_image(picture()), picture())


def test_cmyk_is_converted():
    cmyk = picture().convert("CMYK")
    assert_same(load_image(cmyk), picture(), tolerance=2)
    data = encoded(cmyk, "JPEG", quality=95)
    assert Image.open(io.BytesIO(data)).mode == "CMYK"
    found = np.asarray(load_image(data), int)
    for x, y, colour in ((10, 20, (200, 0, 0)), (40, 20, (0, 0, 200)), (24, 2, (0, 160, 0))):
        assert np.abs(found[y, x] - colour).max() <= 12


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_and_not_clipped(format):
    values = np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64)
    data = encoded(Image.fromarray(values), format)
    assert Image.open(io.BytesIO(data)).mode.startswith("I;16")
    image = load_image(data)
    expected = np.rint(values / 257).astype(np.uint8)  # 65535 = 255 · 257
    assert image.mode == "RGB"
    for channel in range(3):
        assert np.array_equal(np.asarray(image)[..., channel], expected)


def test_16_bit_grey_of_the_other_byte_order_and_in_32_bits():
    values = np.array([[0, 257 * 7, 257 * 100, 65535]], np.uint16)
    pgm = b"P5 4 1 65535\n" + values.astype(">u2").tobytes()
    big = encoded(Image.fromarray(values.astype(">u2")), "TIFF")
    for source in (pgm, big, Image.fromarray(values.astype(np.int32))):
        assert np.asarray(load_image(source))[0, :, 0].tolist() == [0, 7, 100, 255]


def test_grey_without_a_stated_white_is_stretched():
    floats = np.array([[-1.0, 0.0, 3.0]], np.float32)
    assert np.asarray(load_image(Image.fromarray(floats)))[0, :, 1].tolist() == [0, 64, 255]
    integers = np.array([[0, 2**29, 2**30]], np.int32)
    assert np.asarray(load_image(encoded(Image.fromarray(integers), "TIFF")))[0, :, 1].tolist() == [
        0,
        128,
        255,
    ]
    strange = np.array([[np.nan, np.inf, 2.0]], np.float32)
    assert np.asarray(load_image(Image.fromarray(strange)))[0, :, 1].tolist() == [0, 0, 255]
    assert np.asarray(load_image(Image.fromarray(np.full((2, 2), 5.0, np.float32)))).max() == 0


def test_palette_grey_and_one_bit():
    assert_same(load_image(encoded(picture().quantize(8), "PNG")), picture())
    grey = picture().convert("L")
    assert_same(load_image(encoded(grey, "PNG")), grey.convert("RGB"))
    one = grey.point(lambda v: 255 * (v > 50), "1")
    assert_same(load_image(encoded(one, "PNG")), one.convert("RGB"))


def test_transparency_is_composited_on_white():
    rgba = picture().convert("RGBA")
    alpha = np.full((32, 48), 255, np.uint8)
    alpha[16:], alpha[8:16] = 0, 128
    rgba.putalpha(Image.fromarray(alpha))
    weight = alpha[..., None] / 255
    expected = Image.fromarray(np.rint(np.asarray(picture()) * weight + 255 * (1 - weight)).astype(np.uint8))
    assert_same(load_image(encoded(rgba, "PNG")), expected, tolerance=1)
    assert_same(load_image(encoded(rgba, "WEBP", lossless=True, exact=True)), expected, tolerance=1)
    grey = load_image(encoded(rgba.convert("LA"), "PNG"))
    assert grey.getpixel((10, 30)) == (255, 255, 255) and grey.getpixel((10, 9))[0] in range(140, 170)


def test_palette_with_transparency_is_composited_on_white():
    palette = Image.new("P", (4, 2))
    palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    palette.putdata([0, 1, 2, 0, 0, 1, 2, 0])
    white, red, blue = (255, 255, 255), (255, 0, 0), (0, 0, 255)
    for data in (encoded(palette, "PNG", transparency=1), encoded(palette, "GIF", transparency=1)):
        image = load_image(data)
        assert [image.getpixel((x, 0)) for x in range(4)] == [red, white, blue, red]
    half = load_image(encoded(palette, "PNG", transparency=bytes([255, 0, 128])))  # an alpha for each colour
    assert [half.getpixel((x, 0)) for x in range(3)] == [red, white, (127, 127, 255)]
    keyed = encoded(Image.new("RGB", (2, 2), red), "PNG", transparency=red)
    assert load_image(keyed).getpixel((0, 0)) == white


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_an_animation_the_first_frame(format):
    first, second = Image.new("RGB", (8, 8), (255, 0, 0)), Image.new("RGB", (8, 8), (0, 0, 255))
    options = {"lossless": True} if format == "WEBP" else {}
    data = encoded(first, format, save_all=True, append_images=[second], **options)
    opened = Image.open(io.BytesIO(data))
    assert opened.n_frames == 2
    assert_same(load_image(data), first)
    opened.seek(1)
    opened.seek(0)
    assert_same(load_image(opened), first)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turned_pictures_are_turned_upright(format, orientation):
    # What a camera stores when it was held so, from the definition of the tag: https://exiftool.org/TagNames/EXIF.html
    upright = np.asarray(picture())
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}.get(format, {})
    data = encoded(Image.fromarray(np.ascontiguousarray(stored)), format, exif=exif, **options)
    assert_same(load_image(data), picture(), tolerance=4 if format == "JPEG" else 0)
    opened = Image.open(io.BytesIO(data))
    assert_same(load_image(opened), picture(), tolerance=4 if format == "JPEG" else 0)
    again = load_image(load_image(data))
    assert again.size == picture().size  # not turned twice


def test_turned_16_bit_grey():
    exif = Image.Exif()
    exif[0x0112] = 6
    values = np.array([[0, 65535]], np.uint16)
    image = load_image(encoded(Image.fromarray(values), "PNG", exif=exif))
    assert image.size == (1, 2) and [image.getpixel((0, y))[0] for y in range(2)] == [0, 255]


def test_damaged_exif_counts_as_none():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(picture(), "JPEG", exif=exif, quality=100, subsampling=0)
    start = data.index(b"Exif\0\0") + 6
    damaged = data[:start] + b"XXXXXXXX" + data[start + 8 :]
    assert_same(load_image(damaged), picture(), tolerance=4)


def test_one_pixel():
    for format in ("PNG", "JPEG", "GIF"):
        assert load_image(encoded(Image.new("RGB", (1, 1), "white"), format), draft=448).getpixel((0, 0)) == (255,) * 3


def test_a_given_image_is_left_as_it_was():
    exif = Image.Exif()
    exif[0x0112] = 6
    opened = Image.open(io.BytesIO(encoded(picture().convert("RGBA"), "PNG", exif=exif)))
    load_image(opened)
    assert opened.size == (48, 32) and opened.mode == "RGBA" and opened.getexif()[0x0112] == 6


# --- draft ---


@pytest.mark.parametrize(
    ("draft", "size"),
    [
        (None, (640, 480)),
        (500, (640, 480)),
        (481, (640, 480)),
        (240, (320, 240)),
        (60, (80, 60)),
        (1, (80, 60)),
    ],
)
def test_draft_keeps_at_least_that_shorter_side(draft, size):
    data = encoded(picture(640, 480), "JPEG", quality=95)
    image = load_image(data, draft=draft)
    assert image.size == size
    assert_same(image.resize((64, 48)), picture(640, 480).resize((64, 48)), tolerance=30)


def test_draft_of_a_turned_cmyk_jpeg_and_of_a_png():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(picture(640, 480).convert("CMYK"), "JPEG", exif=exif)
    assert load_image(data, draft=100).size == (120, 160)
    assert load_image(encoded(picture(640, 480), "PNG"), draft=100).size == (640, 480)


# --- what cannot ---


@pytest.mark.parametrize("draft", [None, 1, 64])
@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF"])
@pytest.mark.parametrize("part", [0.9, 0.5, 0.02])
def test_truncated(tmp_path, format, part, draft):
    path = tmp_path / "a.jpg"
    data = encoded(noise(240, 160), format)
    path.write_bytes(data[: max(20, int(len(data) * part))])
    with pytest.raises(ImageError, match=r"a\.jpg: .*(download or copy it again|convert it).*") as error:
        load_image(path, draft)
    if part > 0.1:
        assert "truncated" in str(error.value) and "on_bad_row=skip" in str(error.value)


def test_a_progressive_jpeg_that_is_truncated():
    data = encoded(noise(640, 480), "JPEG", progressive=True)
    for draft in (None, 1):
        with pytest.raises(ImageError, match="truncated"):
            load_image(data[: len(data) * 9 // 10], draft)


def test_a_lazy_image_whose_file_is_truncated(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(encoded(noise(), "PNG")[:5000])
    with pytest.raises(ImageError, match=r"a\.png: damaged or truncated"):
        load_image(Image.open(path))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", r"empty \(0 bytes\): download"),
        (b"This is a text, not a picture.", "no picture in a format that Pillow .* reads: convert"),
        (b"\xff\xd8\xff", "damaged or truncated"),
        (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG.*render it to PNG"),
        (b"<!DOCTYPE html><html>404</html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n%%EOF\n",
            "EPS.*render it to PNG",
        ),
        (b"%PDF-1.7\n", "no picture"),
    ],
)
def test_not_a_picture(tmp_path, data, reason):
    path = tmp_path / "a.jpg"
    path.write_bytes(data)
    with pytest.raises(ImageError, match=rf"a\.jpg: .*{reason}"):
        load_image(path)
    with pytest.raises(ImageError, match=rf"<{len(data)} bytes>: .*{reason}"):
        load_image(data)
    with pytest.raises(ImageError, match=rf"<file>: .*{reason}"):
        load_image(io.BytesIO(data))


def test_no_file_and_a_folder(tmp_path):
    with pytest.raises(ImageError, match=r"none\.jpg: no such file"):
        load_image(tmp_path / "none.jpg")
    with pytest.raises(ImageError, match="Is a directory"):
        load_image(tmp_path)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_decompression_bombs_are_refused_from_the_header(tmp_path):
    path = tmp_path / "bomb.png"
    for side in (10_001, 60_000):  # above our limit; above Pillow's as well
        path.write_bytes(png_header(side, 10_000))
        with pytest.raises(ImageError, match=r"bomb\.png: .*limit is 100 million: scale it down"):
            load_image(path)
    path.write_bytes(png_header(10_000, 10))
    with pytest.raises(ImageError, match="truncated"):  # the size is within the limit: decoding was tried
        load_image(path)


def test_the_limit_can_be_set():
    data = encoded(picture(), "PNG")
    assert load_image(data, max_pixels=48 * 32).size == (48, 32)
    with pytest.raises(ImageError, match="48 × 32 pixels"):
        load_image(data, max_pixels=48 * 32 - 1)
    large = encoded(picture(640, 480), "JPEG")
    with pytest.raises(ImageError, match="640 × 480"):  # the file's size counts, not the draft's
        load_image(large, draft=1, max_pixels=10_000)
