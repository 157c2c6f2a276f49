"""Files that several processes use at once."""

import logging
import threading

from src.files import locked, write_atomically


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
