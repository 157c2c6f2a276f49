"""The load test loads two real servers, and says what came of every request."""

import re

import pytest

from benchmarks import serve
from tests.service.running import tiny_captioner


@pytest.mark.slow
def test_every_request_is_accounted_for(tmp_path, vocabulary, capsys, monkeypatch):
    monkeypatch.delenv("FLICKR8K", raising=False)
    tiny_captioner(tmp_path / "bundle", vocabulary)
    flags = ["--requests", "12", "--rounds", "1", "--clients", "3", "--endure", "40", "--cores", "64"]
    assert serve.main([*flags, "--model", str(tmp_path / "bundle")]) == 0
    said = capsys.readouterr().out
    assert re.search(r"answered, of those whose client stayed +36 +36 +1\.00 +≥ 1 +met", said), said
    same, others = map(
        int, re.search(r"4 clients left early; (\d+) answers .* alone, (\d+) others; 0 pictures", said).groups()
    )
    assert same + others == 36 and same >= 30
    assert all(f"3 clients: {what}" in said for what in ("requests/s", "p50", "p95", "p99"))
