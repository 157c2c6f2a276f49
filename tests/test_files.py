"""Files that several processes use at once."""

import errno
import logging
import os
import re
import subprocess
import sys
import threading

import pytest

from src.files import DiskFull, check_names, locked, read_in_part, room_among, whole_folder, write_atomically


def test_who_waits_says_for_what_and_then_goes_on(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    order = []

    def second() -> None:
        with locked(tmp_path / "lock", "the features"):
            order.append("second")

    with locked(tmp_path / "lock", "the features"):
        assert not caplog.messages
        waiting = threading.Thread(target=second)
        waiting.start()
        while not caplog.messages:
            waiting.join(0.01)
        order.append("first")
    waiting.join(10)
    assert order == ["first", "second"] and caplog.messages == ["waiting for another process: the features"]


def test_a_file_is_whole_or_not_there(tmp_path):
    folder = tmp_path / "new" / "folder"
    write_atomically(folder / "a.json", "{}")
    assert [(path.name, path.read_text()) for path in folder.iterdir()] == [("a.json", "{}")]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("unable to write to file </torch_1>: No space left on device (28)"),
        OSError("Caught OSError in DataLoader worker.\nTraceback:\n  …\nOSError: [Errno 28] No space left on device\n"),
    ],
)
def test_where_nobody_knows_which_disk_is_full_all_are_listed(error, tmp_path):
    folders = [tmp_path / "run", tmp_path / "none", tmp_path]
    folders[0].mkdir()
    with pytest.raises(DiskFull) as raised, room_among(folders, "go on"):
        raise error
    free = rf"[\d,.]+ MB in {tmp_path}/run, [\d,.]+ MB in {tmp_path}"
    said = rf"a disk is full \({re.escape(str(error).splitlines()[-1])}\); free are {free}: make room, and go on"
    assert re.fullmatch(said, str(raised.value))
    with pytest.raises(ValueError, match="else"), room_among(folders, "go on"):
        raise ValueError("else")


def test_a_folder_is_replaced_whole_and_its_neighbours_are_left_alone(tmp_path):
    for name in ("it", "it.old", "it.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "kept").write_text(name)
    with pytest.raises(ValueError, match="fails"), whole_folder(tmp_path / "it") as partial:
        (partial / "half").write_text("")
        raise ValueError("fails")
    assert [path.name for path in (tmp_path / "it").iterdir()] == ["kept"]
    with whole_folder(tmp_path / "it") as partial:
        (partial / "new").write_text("")
    assert [path.name for path in (tmp_path / "it").iterdir()] == ["new"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["it", "it.old", "it.partial"]
    assert [(tmp_path / name / "kept").read_text() for name in ("it.old", "it.partial")] == ["it.old", "it.partial"]


@pytest.mark.parametrize("name", ["a\tb.png", "a\nb.png", "a\rb.png"])
def test_names_that_no_line_holds_are_refused(name):
    check_names(["caf\udce9.png", "a b.png"])
    with pytest.raises(ValueError, match=r"a tab or line break in its name.*rename it"):
        check_names(["plain.png", name])


def test_what_is_printed_need_not_be_read_to_the_end():
    """As `… | head -1` does not."""
    script = "from src.files import read_in_part\nwith read_in_part():\n    for i in range(100_000):\n        print(i)"
    printing = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert printing.stdout.readline() == b"0\n"
    printing.stdout.close()
    assert printing.wait(60) == 0 and printing.stderr.read() == b""
    printing.stderr.close()


def test_another_pipe_that_breaks_is_an_error():
    reading, writing = os.pipe()
    os.close(reading)
    with pytest.raises(BrokenPipeError), read_in_part():
        os.write(writing, b"to nobody")
    os.close(writing)
