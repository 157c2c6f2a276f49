import subprocess
import sys

import pytest

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
