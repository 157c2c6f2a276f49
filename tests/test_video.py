"""Videos → scenes, on videos made here, of which it is known when the picture changes."""

import av
import numpy as np
import pytest
from PIL import Image

from src.video import VideoError, difference, duration, frames, scenes

RATE = 25


def write_video(path, parts, rate=RATE, codec="mpeg4", fade=0, size=(96, 64)):
    """Pictures (a function of the frame's number within its part, or one), each for some seconds."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.bit_rate = 8_000_000
        last = None
        for picture, seconds in parts:
            for number in range(round(seconds * rate)):
                image = picture(number) if callable(picture) else picture
                if last is not None and number < fade:
                    image = Image.blend(last, image, number / fade)
                for packet in stream.encode(av.VideoFrame.from_image(image)):
                    container.mux(packet)
            last = image
        for packet in stream.encode():
            container.mux(packet)
    return path


def texture(seed, hue):
    """A coarse pattern in one range of colours."""
    rng = np.random.default_rng(seed)
    noise = rng.integers(0, 90, (8, 12, 3)) + np.array(hue)
    return Image.fromarray(noise.astype(np.uint8)).resize((96, 64), Image.Resampling.BICUBIC)


RED, GREEN, BLUE = texture(0, (150, 0, 0)), texture(1, (0, 150, 0)), texture(2, (0, 0, 150))


def test_a_cut_is_where_the_picture_changes(tmp_path):
    path = write_video(tmp_path / "cuts.mp4", [(RED, 2), (GREEN, 1.2), (BLUE, 3.4)])
    found = list(scenes(path))
    assert [scene.start for scene in found] == pytest.approx([0, 2, 3.2], abs=0.13), "within a sample"
    assert [scene.end for scene in found][:-1] == [scene.start for scene in found][1:]
    assert found[-1].end == pytest.approx(6.6, abs=0.13) and duration(path) == pytest.approx(6.6, abs=0.05)
    for scene, colour in zip(found, (RED, GREEN, BLUE), strict=True):
        assert scene.frame.time == pytest.approx((scene.start + scene.end) / 2, abs=0.2)
        assert np.abs(np.asarray(scene.frame.image).mean((0, 1)) - np.asarray(colour).mean((0, 1))).max() < 12


def test_fades_movement_and_flashes(tmp_path):
    fading = write_video(tmp_path / "fade.mp4", [(RED, 2), (GREEN, 3)], fade=20)
    found = list(scenes(fading))
    assert len(found) == 2 and 2 < found[1].start < 2.8, "a cross-fade is one change"
    wide = texture(5, (80, 80, 0)).resize((200, 64))
    moving = write_video(tmp_path / "pan.mp4", [(lambda n: wide.crop((n, 0, n + 96, 64)), 4)])
    assert len(list(scenes(moving))) == 1, "what moves through the picture is no change"
    flash = write_video(tmp_path / "flash.mp4", [(RED, 0.2), (GREEN, 3)])
    (only,) = scenes(flash)
    assert np.asarray(only.frame.image)[..., 1].mean() > 100, "the first moments are no scene of their own"


def test_long_scenes_are_looked_at_again(tmp_path):
    path = write_video(tmp_path / "long.mp4", [(RED, 7)])
    assert len(list(scenes(path))) == 1
    found = list(scenes(path, every=2))
    assert [scene.start for scene in found] == pytest.approx([0, 2, 4, 6], abs=0.3)
    steps = [(Image.blend(RED, GREEN, n / 8), 1) for n in range(6)]
    gentle = write_video(tmp_path / "gentle.mp4", steps)
    assert len(list(scenes(gentle, change=0.05))) > len(list(scenes(gentle))), "a lower threshold finds more"


def test_the_middle_of_a_scene_longer_than_what_is_remembered(tmp_path):
    """Its frames tell their number by their brightness."""
    slow = write_video(tmp_path / "slow.mp4", [(lambda n: Image.new("RGB", (96, 64), (n // 3,) * 3), 30)], rate=10)
    (scene,) = scenes(slow, change=0.9)
    assert scene.frame.time == pytest.approx(15, abs=1.5)
    assert np.asarray(scene.frame.image).mean() == pytest.approx(scene.frame.time * 10 / 3, abs=4)


@pytest.mark.parametrize(("rate", "wanted"), [(25, 8), (30, 8), (5, 8), (24, 10)])
def test_frames_are_sampled(tmp_path, rate, wanted):
    path = write_video(tmp_path / "v.mp4", [(RED, 4)], rate=rate)
    times = [frame.time for frame in frames(path, wanted)]
    assert len(times) == pytest.approx(min(rate, wanted) * 4, abs=1) and times[0] == 0
    assert np.allclose(np.asarray(times) * rate, np.round(np.asarray(times) * rate), atol=1e-3), "real frames' times"
    (small,) = {frame.image.size for frame in frames(path, 1, side=32)}
    assert small == (48, 32) and next(frames(path)).image.size == (96, 64)


def test_a_phone_held_upright(tmp_path):
    """Its matrix (ISO 14496-12, 8.3.2) turns the frames by 90 degrees, clockwise: what was left is on top."""
    halves = Image.new("RGB", (96, 64), (200, 0, 0))
    halves.paste((0, 0, 200), (48, 0, 96, 64))
    path = write_video(tmp_path / "phone.mp4", [(halves, 1)])
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 4 + 40
    assert data[matrix : matrix + 4] == (1 << 16).to_bytes(4, "big"), "what is written is not turned"
    quarter = [0, 1 << 16, 0, -1 << 16, 0, 0, 64 << 16, 0, 1 << 30]
    data[matrix : matrix + 36] = b"".join(number.to_bytes(4, "big", signed=True) for number in quarter)
    path.write_bytes(data)
    image = next(frames(path)).image
    assert image.size == (64, 96)
    top, bottom = (np.asarray(image.crop((0, y, 64, y + 30))).mean((0, 1)) for y in (0, 66))
    assert top[0] > 150 > 50 > top[2] and bottom[2] > 150 > 50 > bottom[0]


def test_difference():
    zeros, ones = np.zeros((2, 2, 3)), np.ones((2, 2, 3))
    assert difference(zeros, zeros) == 0 and difference(zeros, ones) == 1
    half = zeros.copy()
    half[0] = 1  # half of the colours are others, and half of the places: a mean of 1/2 over a half
    assert difference(zeros, half) == pytest.approx(0.5**0.5)
    assert difference(half, half[::-1]) == 0, "the same colours elsewhere"


def test_odd_names_and_titles(tmp_path, monkeypatch):
    write_video(tmp_path / "12:30.mp4", [(RED, 1)])
    monkeypatch.chdir(tmp_path)
    assert len(list(scenes("12:30.mp4"))) == 1 and duration("12:30.mp4") == pytest.approx(1, abs=0.1)
    with av.open("titled.avi", "w") as container:
        container.metadata["title"] = "cafe!"
        stream = container.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for packet in [*stream.encode(av.VideoFrame.from_image(RED)), *stream.encode()]:
            container.mux(packet)
    data = (tmp_path / "titled.avi").read_bytes()
    assert data.count(b"cafe!") == 1
    (tmp_path / "titled.avi").write_bytes(data.replace(b"cafe!", b"caf\xe9!"))
    assert len(list(frames("titled.avi"))) == 1 and duration("titled.avi")


def test_what_is_no_video_is_a_sentence(tmp_path):
    def error(path):
        with pytest.raises(VideoError) as raised:
            list(scenes(path))
        assert str(raised.value).startswith(f"{path}: ")
        return str(raised.value)

    (tmp_path / "no.mp4").write_bytes(b"nothing of the kind" * 99)
    (tmp_path / "empty.mp4").touch()
    whole = write_video(tmp_path / "whole.mp4", [(RED, 2)])
    (tmp_path / "cut.mp4").write_bytes(whole.read_bytes()[:900])
    for name in ("no", "empty", "cut"):
        assert "no video, or a damaged one (" in error(tmp_path / f"{name}.mp4")
    assert "No such file" in error(tmp_path / "nowhere.mp4")
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 8000
        for packet in [*stream.encode(sound), *stream.encode()]:
            container.mux(packet)
    assert "no pictures in it, only sound or text" in error(tmp_path / "sound.mp4")
    with pytest.raises(VideoError, match=r"nowhere\.mp4: No such file"):
        duration(tmp_path / "nowhere.mp4")
