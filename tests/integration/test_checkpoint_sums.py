"The check sum of a file is the same however it is read: in one part or several, from memory or from the disk; and as it was in older checkpoints."
import io
import os
import numpy as np
import pytest
import torch
from xmodaler_nb.utils.checkpoint_files import checksum, load_pth
from xmodaler_nb.utils.torch_files import BLOCK, BlockSum, read_file, sum_file

OLD = {0: '6522df69', 1: '2aa31430', 4096: 'ad442813', 5_000_001: '12097e1b', 40_000_003: '27d7dfcd'}    # bytes → what the first version of `checksum` said


def numbers(n): return (np.arange(n)*2654435761 >> 7).astype(np.uint8)

@pytest.fixture(params=[1, 2, 3, 7])
def cores(request, monkeypatch):
    monkeypatch.setattr(os, 'sched_getaffinity', lambda pid: set(range(request.param)), raising=False)
    return request.param

@pytest.mark.parametrize('n', OLD)
def test_older_sums_still_hold(cores, tmp_path, n):
    (tmp_path/'f').write_bytes(numbers(n).tobytes())
    total, memory = BlockSum(), BlockSum()
    with open(tmp_path/'f', 'rb') as f: assert np.array_equal(read_file(f, n, total), numbers(n))
    assert np.array_equal(read_file(io.BytesIO(numbers(n).tobytes()), n, memory), numbers(n))
    assert checksum(tmp_path/'f') == str(total) == str(memory) == OLD[n]

def test_a_flipped_bit_in_each_part(cores, tmp_path):
    data, seen = numbers(33*BLOCK + 77), set()
    for at in (0, 9*BLOCK, 17*BLOCK - 1, 17*BLOCK, 30*BLOCK + 5, len(data) - 1):
        data[at] ^= 4
        (tmp_path/'f').write_bytes(data.tobytes())
        seen.add(checksum(tmp_path/'f'))
        data[at] ^= 4
    (tmp_path/'f').write_bytes(data.tobytes())
    assert len(seen | {checksum(tmp_path/'f')}) == 7

def test_a_file_that_became_shorter(cores, tmp_path):
    (tmp_path/'f').write_bytes(bytes(20*BLOCK))
    with open(tmp_path/'f', 'rb') as f, pytest.raises(EOFError, match='became shorter while it was read'): read_file(f, 40*BLOCK, BlockSum())

def test_a_large_torch_file_is_read_in_threads(cores, tmp_path):
    torch.save({'w': torch.arange(5_000_000.), 'b': torch.arange(7)}, tmp_path/'a.pth')
    back = load_pth(tmp_path/'a.pth', checksum(tmp_path/'a.pth'))
    assert torch.equal(back['w'], torch.arange(5_000_000.)) and torch.equal(back['b'], torch.arange(7))

def test_the_file_is_read_once(tmp_path, monkeypatch):
    "Each byte of the state is read and added up in one go; nothing is read for the sum of the weights, which is taken where the system keeps the file."
    (tmp_path/'f').write_bytes(bytes(20*BLOCK))
    seen, real = [], os.preadv
    monkeypatch.setattr(os, 'preadv', lambda fd, blocks, at: seen.append(at) or real(fd, blocks, at))
    with open(tmp_path/'f', 'rb') as f: read_file(f, 20*BLOCK, BlockSum())
    assert sorted(seen) == [k*BLOCK for k in range(20)]
    with open(tmp_path/'f', 'rb') as f: sum_file(f)
    assert len(seen) == 20
