"A plain pickle is read by Python's own machine: it gives what ours gives, and never reads what ours refuses."
import os
import pickle
import random
import subprocess
import sys
from pathlib import Path
import numpy as np
import pytest
sys.path.insert(0, str(Path(__file__).parent))
from small_pickles import SMALL
from xmodaler_nb.datasets.common import DatasetFromList
from xmodaler_nb.utils.safe_pickle import SafeUnpickler, _NOT_PLAIN, _load_plain

def entries(n=3):
    return [{'image_id': str(i), 'tokens_ids': np.arange(6, dtype=np.uint32).reshape(2, 3) + i, 'target_ids': np.full((2, 3), -1), 'words': ['a', 'dog', ('x', i)], 'p': .5, 'none': None, 'b': b'\x00'} for i in range(n)]

def by_our_machine(data):
    try: return SafeUnpickler(data, 'f').load()
    except pickle.UnpicklingError: return _NOT_PLAIN

def same(a, b):
    if type(a) is not type(b): return False
    if isinstance(a, np.ndarray): return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes() and a.flags.writeable == b.flags.writeable
    if isinstance(a, dict): return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)): return len(a) == len(b) and all(map(same, a, b))
    return a == b or a != a

@pytest.mark.parametrize('protocol', range(6))
def test_annotations_are_read_alike(protocol):
    data = pickle.dumps(entries(), protocol=protocol)
    fast = _load_plain(data)
    assert (fast is not _NOT_PLAIN) == (protocol >= 3)                    # arrays of older protocols are texts that are encoded
    assert fast is _NOT_PLAIN or same(fast, by_our_machine(data))

@pytest.fixture(scope='module')
def outcomes():
    "kind → what became of it: a new process forks one for each file, for some of them could end it. (This process has threads, whose locks a fork of it would inherit.)"
    code = f'''
import os, sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
from small_pickles import SMALL
from xmodaler_nb.utils.safe_pickle import _NOT_PLAIN, _load_plain
for kind in SMALL:
    pid = os.fork()
    if pid == 0: os._exit(0 if _load_plain(SMALL[kind]) is _NOT_PLAIN else 1)
    print(kind, os.waitpid(pid, 0)[1], sep='|', flush=True)
'''
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=120)
    return dict(line.split('|') for line in done.stdout.splitlines())

@pytest.mark.parametrize('kind', list(SMALL))
def test_what_is_refused_is_never_plain(outcomes, kind):
    "Not plain; files that only look odd may be read."
    read = os.waitstatus_to_exitcode(int(outcomes[kind]))
    assert read == 0 or read == 1 and kind.startswith(('many', 'memo')), read

def test_damaged_files_are_read_alike_or_not_at_all():
    "Bytes changed, cut and doubled: whatever is read fast is what our machine reads."
    rng, fast_ones = random.Random(0), 0
    for i in range(1500):
        data = bytearray(pickle.dumps(entries(1), protocol=3 + i % 3))
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(2, len(data))
            what = rng.randrange(3)
            if what == 0: data[at] = rng.choice(b'\x00\x01()]}tauesRb.NhqrjKM\x94\x93\x85\x86\x8c0122CBc' + bytes([rng.randrange(256)]))
            elif what == 1: del data[at:at + rng.randint(1, 4)]
            else: data[at:at] = data[at:at + rng.randint(1, 9)]
        fast = _load_plain(bytes(data))
        fast_ones += fast is not _NOT_PLAIN
        assert fast is _NOT_PLAIN or same(fast, by_our_machine(bytes(data))), bytes(data)
    assert fast_ones > 30

def test_functions_keep_their_state():
    "A pickle that sets the state of what it calls is not plain."
    for name in ('_reconstruct', 'dtype', 'ndarray'):
        module = 'numpy.core.multiarray' if name == '_reconstruct' else 'numpy'
        data = b'\x80\x03c' + f'{module}\n{name}\n'.encode() + b'}X\x01\x00\x00\x00fK\x01sb.'
        assert _load_plain(data) is _NOT_PLAIN and by_our_machine(data) is _NOT_PLAIN

def test_entries_of_a_list_return_as_they_were():
    lst = entries(4)
    lst[2]['tokens_ids'] = np.zeros((0, 3), np.uint32)
    for serialized in (DatasetFromList(lst), DatasetFromList(lst[:1]), DatasetFromList([{**e, 'tokens_ids': None} for e in lst])):
        assert all(list(serialized[i]) == list(lst[i]) for i in range(len(serialized)))
    data = DatasetFromList(lst)
    assert set(data._arrays) == {'tokens_ids', 'target_ids'} and all(same(data[i], lst[i]) for i in range(4)) and same(data[-1], lst[3])
    data[0]['tokens_ids'][:] = 9
    assert same(data[0], lst[0])
