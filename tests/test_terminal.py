import io
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
    assert screen.getvalue() == "a\\x1b[2Jb\n\n\x1b[A\x1b[A" and pipe.getvalue() == "a\x1b[2Jb\n"
    assert sys.stdout is screen and not isinstance(sys.stderr, Guarded)


def test_a_command_writes_no_commands_of_a_name_to_a_terminal(monkeypatch):
    from src.search import main

    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    assert main(["a dog", "--index", "no\x1b[2Jsuch"]) == 2
    assert "\\x1b[2J" in screen.getvalue() and "\x1b[2J" not in screen.getvalue()
