import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from src.metrics.gather import GatheredCaptions


def test_widths_order_and_duplicates():
    gathered = GatheredCaptions(max_length=4, pad=0)
    gathered.update(torch.tensor([5, 2]), torch.tensor([[1, 2], [3, 0]]))
    gathered.update(torch.tensor([2, 9]), torch.tensor([[8, 8, 8, 8, 0], [4, 5, 6, 7, 0]]))
    index, ids = gathered.compute()
    assert index.tolist() == [2, 5, 9]
    assert ids.tolist() == [[3, 0, 0, 0], [1, 2, 0, 0], [4, 5, 6, 7]]


def test_one_image_keeps_its_axis():
    gathered = GatheredCaptions(max_length=1)
    gathered.update(torch.tensor([3]), torch.tensor([[4]]))
    for metric in (gathered, pickle.loads(pickle.dumps(gathered))):
        index, ids = metric.compute()
        assert index.tolist() == [3] and ids.tolist() == [[4]]


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_nothing_gathered_yet():
    index, ids = GatheredCaptions(max_length=4).compute()
    assert index.shape == (0,) and ids.shape == (0, 4) and ids.dtype == torch.long


def test_errors():
    gathered = GatheredCaptions(max_length=2, pad=7)
    with pytest.raises(ValueError, match="max_length=2"):
        gathered.update(torch.tensor([0]), torch.tensor([[1, 2, 3]]))
    with pytest.raises(ValueError, match=r"\(2,\) and \(1, 1\)"):
        gathered.update(torch.tensor([0, 1]), torch.tensor([[1]]))


PROGRAM = """
import os, sys, torch
from src.metrics.gather import GatheredCaptions
rank, folder = int(sys.argv[1]), sys.argv[2]
torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
uneven, one_sided, none = (GatheredCaptions(max_length=5, pad=9) for _ in range(3))
if rank == 0:
    uneven.update(torch.tensor([0, 2, 4]), torch.tensor([[10, 9], [12, 9], [14, 14]]))
    uneven.update(torch.tensor([6, 8]), torch.tensor([[16, 16, 16], [18, 9, 9]]))
    one_sided.update(torch.tensor([3]), torch.tensor([[1]]))
else:
    uneven.update(torch.tensor([3, 1]), torch.tensor([[13, 13, 13, 13, 13], [11, 9, 9, 9, 9]]))
    uneven.update(torch.tensor([0]), torch.tensor([[10]]))
for metric in (uneven, one_sided, none):
    index, ids = metric.compute()
    print(index.tolist(), ids.tolist())
torch.distributed.barrier()
sys.stdout.flush()
os._exit(0)  # torch before 2.8 hangs where it destroys a group whose threads still free a gather and want the GIL
"""


def test_two_processes(tmp_path):
    root = Path(__file__).parents[2]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(rank), str(tmp_path)],
            cwd=root,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    ids = [[10], [11], [12], [13] * 5, [14, 14], [16] * 3, [18]]
    padded = [row + [9] * (5 - len(row)) for row in ids]
    expected = [f"[0, 1, 2, 3, 4, 6, 8] {padded}", "[3] [[1, 9, 9, 9, 9]]", "[] []"]
    for output, _ in outputs:
        assert output.splitlines() == expected
