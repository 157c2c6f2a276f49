"""Draw the page of `python -m src.serve` as the README shows it, docs/page.png and docs/page_phone.png, in a real
Chromium: `python -m scripts.screenshots`, from the repository's root. The photograph is scikit-image's `camera` (CC0,
Lav Varshney), cut. Needs playwright, Chromium, and a font with Chinese characters (Debian: fonts-wqy-microhei)."""

import io
import shutil
import subprocess
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright
from skimage import data

SHOTS = {
    "docs/page.png": (
        (110, 1, 423, 235),
        10,
        {"viewport": {"width": 1180, "height": 700}, "locale": "en-GB", "color_scheme": "light"},
    ),
    "docs/page_phone.png": (
        (0, 5, 500, 380),
        2,
        {
            "viewport": {"width": 360, "height": 740},
            "locale": "zh-CN",
            "color_scheme": "dark",
            "is_mobile": True,
            "has_touch": True,
            "device_scale_factor": 1.5,
        },
    ),
}
"""File → what is cut of the photograph, the word that is pointed at, and the browser's window."""
COLOURS = 256
"""Of a file's palette: half the bytes."""


def main() -> None:
    """Draw both."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))))
    command = [sys.executable, "-m", "src.serve", "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    address = server.stdout.readline().split("answers at ")[1].split()[0]
    try:
        with sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
            for file, (box, word, window) in SHOTS.items():
                buffer = io.BytesIO()
                cut = Image.fromarray(data.camera()).crop(box)
                cut.resize((720, round(720 * cut.height / cut.width)), Image.Resampling.LANCZOS).save(buffer, "PNG")
                page = browser.new_page(**window)
                page.goto(address)
                photo = {"name": "photo.png", "mimeType": "image/png", "buffer": buffer.getvalue()}
                page.locator("#choose").set_input_files(photo)
                page.locator(".word").nth(word).hover()
                page.wait_for_timeout(500)  # until the overlay is there
                shot = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
                shot.quantize(COLOURS, dither=Image.Dither.NONE).save(file, optimize=True)
                print(f"{file}: {page.locator('#words').inner_text()} ({Path(file).stat().st_size / 1000:.0f} kB)")
            browser.close()
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
