import ctypes
import os
import subprocess
import sys

import pytest

from src.config import forget_rare_shapes, keep_freed_memory

FAULTS = """
import resource, sys, torch
from src.config import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
for number in range(8):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(24 << 20).add_(1)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_memory_that_a_tensor_freed_is_the_next_ones():
    """A tensor of 96 MB is 24,576 pages; where the system takes them back, each is cleared again."""
    kept, given_back = (
        int(subprocess.run([sys.executable, "-c", FAULTS, way], capture_output=True, text=True, check=True).stdout)
        for way in ("kept", "given back")
    )
    assert kept < 100
    assert kept < given_back


@pytest.mark.parametrize(
    ("most", "settings"),
    [(2**31 - 1, {-3: 2**31 - 1, -1: 2**31 - 1}), (32 << 20, {-3: 32 << 20, -1: 2**31 - 1}), (0, {})],
)
@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_an_older_malloc_is_asked_for_what_it_takes(most, settings, monkeypatch):
    """Where the larger blocks stay with the system, its own threshold must go on growing: nothing is set."""
    made = {}

    class Old:
        @staticmethod
        def mallopt(name, value):
            if name == -3 and value > most:
                return 0
            made[name] = value
            return 1

    monkeypatch.setattr(ctypes, "CDLL", lambda name: Old)
    keep_freed_memory()
    assert made == settings


def test_few_kernels_are_kept_unless_the_user_says_how_many(monkeypatch):
    name = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
    monkeypatch.setenv(name, "9")
    forget_rare_shapes()
    assert os.environ[name] == "9"
    monkeypatch.delenv(name)
    forget_rare_shapes()
    assert os.environ[name] == "256"
