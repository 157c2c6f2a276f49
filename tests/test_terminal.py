import io
import logging
import sys

import pytest

from src.terminal import Guarded, escaped, guarded


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    "text, shown",
    [
        ("a\x1b[2J\x1b]0;title\x07.jpg", "a\\x1b[2J\\x1b]0;title\\x07.jpg"),
        ("gpj.\u202eexe", "gpj.\\u202eexe"),
        ("\x9b31m", "\\x9b31m"),
        ("caf\udce9.jpg", "caf\\udce9.jpg"),
        ("ok.jpg\rno.jpg", "ok.jpg\\rno.jpg"),
        ("一只狗\tdogs\r\n", "一只狗\tdogs\r\n"),
    ],
)
def test_what_a_terminal_would_obey_is_written_out(text, shown):
    assert escaped(text) == shown


def test_terminals_are_guarded_and_pipes_are_not(monkeypatch):
    screen, pipe = Screen(), io.StringIO()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setattr(sys, "stderr", pipe)
    with guarded():
        print("a\x1b[2Jb")
        print("a\x1b[2Jb", file=sys.stderr)
        sys.stdout.write("\n\x1b[A\x1b[A")  # tqdm's way up
        sys.stdout.write("\rbar a\rb")  # and back
    assert screen.getvalue() == "a\\x1b[2Jb\n\n\x1b[A\x1b[A\rbar a\\rb" and pipe.getvalue() == "a\x1b[2Jb\n"
    assert sys.stdout is screen and not isinstance(sys.stderr, Guarded)


def test_a_command_writes_no_commands_of_a_name_to_a_terminal(monkeypatch):
    from src.search import main

    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    assert main(["a dog", "--index", "no\x1b[2Jsuch"]) == 2
    assert "\\x1b[2J" in screen.getvalue() and "\x1b[2J" not in screen.getvalue()


def test_tags_and_training_write_no_commands_to_a_terminal_either(monkeypatch, tmp_path):
    from src.command import command
    from src.tags import main

    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(sys, "stdout", screen)
    picture = tmp_path / "a\x1b[2J.jpg"
    picture.write_bytes(b"no picture")
    assert main([str(picture), "--model", str(tmp_path / "none\x1b[2J")]) == 2
    assert "none\\x1b[2J" in screen.getvalue()

    def training():
        handler = logging.StreamHandler(sys.stdout)  # as Hydra makes when it begins
        handler.emit(logging.makeLogRecord({"msg": "“a\x1b[2J dog” \x9b31m"}))

    monkeypatch.setattr(sys, "argv", ["src.train", "--hydra-help"])  # nothing is composed
    command("train")(training)()
    assert "a\\x1b[2J dog” \\x9b31m" in screen.getvalue()

    monkeypatch.setattr(sys, "argv", ["src.train", "decoder=no\x1b[2Jsuch"])
    with pytest.raises(SystemExit) as end:
        command("train")(training)()
    assert "no\\x1b[2Jsuch" in str(end.value) and "\x1b" not in str(end.value) + screen.getvalue()
