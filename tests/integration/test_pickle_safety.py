"A pickle is a program: none of its instructions may run anything, ask for memory that the file does not pay for, or take time without end."
import collections
import os
import pickle
import subprocess
import sys
from pathlib import Path
import numpy as np
import pytest
sys.path.insert(0, str(Path(__file__).parent))
from small_pickles import ARRAY, DTYPE, FORGED, POINTER, SMALL
from hypothesis import given, settings, strategies as st
from xmodaler_nb.utils.safe_pickle import UnsafePickleError, safe_loads

@pytest.fixture(scope='module')
def outcomes(tmp_path_factory):
    "kind → (exit status, what was said, seconds, MB): each file is read by a process of its own with a limit on memory, forked from one."
    code = f'''
import os, pickle, resource, sys, time; sys.path.insert(0, {str(Path(__file__).parent)!r})
from small_pickles import SMALL
from xmodaler_nb.utils.safe_pickle import safe_loads
for kind in SMALL:
    pid = os.fork()
    if pid == 0:
        before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
        resource.setrlimit(resource.RLIMIT_AS, (6*2**30, 6*2**30))
        try: said = 'read ' + type(safe_loads(SMALL[kind], 'small.pkl')).__name__
        except pickle.UnpicklingError as e: said = str(e)
        mb = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)/1024
        print(kind, said[:300], time.process_time() - start, mb, sep='|', flush=True)
        os._exit(0)
    status = os.waitpid(pid, 0)[1]
    if status: print(kind, f'status {{status}}', 0, 0, sep='|', flush=True)
'''
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=300)
    return {line.split('|')[0]: line.split('|')[1:] for line in done.stdout.splitlines()}

@pytest.mark.parametrize('kind', list(SMALL))
def test_small_files_end_with_a_sentence(outcomes, kind):
    "An error that names the file, or plain data; at most 2 s and 500 MB."
    said, seconds, mb = outcomes[kind]
    assert said.startswith('small.pkl: ') or said.startswith('read ') and kind.startswith(('many', 'memo')), said
    assert float(seconds) < (2 if os.getloadavg()[0] < os.cpu_count() else 8) and float(mb) < 500, (seconds, mb)

def test_the_pointer_is_refused(): pytest.raises(pickle.UnpicklingError, safe_loads, POINTER).match('a numpy scalar of type object')

def test_no_type_takes_its_flags_from_the_file():
    "The flags in the state of a numpy type decide what its memory means; they are numpy's own."
    a = safe_loads(ARRAY % (b'K\x01\x85' + FORGED, b'C\x08AAAAAAAA'))
    assert a.dtype.flags == np.dtype('f8').flags and a[0] == np.frombuffer(b'AAAAAAAA', 'f8')[0]

@pytest.mark.parametrize('a', [np.arange(6).astype(t).reshape(2, 3) for t in '?bBhHiIqQefdgFDG'] + [np.array(['Zoë', 'a\U0001F600']), np.array([b'ab', b'c']), np.float32(1.5), np.int64(7), np.bool_(True), np.str_('dog'),
                               np.asfortranarray(np.arange(6.).reshape(2, 3)), np.arange(24.).reshape(2, 3, 4).transpose(1, 2, 0), np.zeros((3, 0, 2)), np.arange(4, dtype='>i4'), np.array(7.), np.arange(20)[::3]], ids=lambda a: f'{a.dtype}{a.shape}')
@pytest.mark.parametrize('protocol', range(6))
def test_arrays_return_as_they_were(a, protocol):
    b = safe_loads(pickle.dumps(a, protocol=protocol))
    assert type(b) is type(a) and b.dtype == a.dtype and b.shape == a.shape and np.array_equal(a, b)
    if isinstance(b, np.ndarray): assert b.flags.writeable

@pytest.mark.parametrize('x', [np.array('2020-01-01', dtype='M8[D]'), np.zeros(2, dtype=[('a', 'i4')]), np.zeros(2, dtype='V3'), np.ma.masked_array([1.]), np.matrix([[1]]), np.random.default_rng(1)], ids=lambda x: type(x).__name__)
def test_other_numpy_objects_are_refused(x): pytest.raises(pickle.UnpicklingError, safe_loads, pickle.dumps(x), 'x.pkl').match('x.pkl: ')

flat = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary() | st.complex_numbers(allow_nan=False)
keys = st.text() | st.integers() | st.tuples(st.text(), st.integers()) | st.floats(allow_nan=False)
def wrap(x):
    d = st.dictionaries(keys, x)
    return (st.lists(x) | st.tuples(x, x) | d | st.sets(keys) | st.frozensets(keys) | d.map(collections.OrderedDict)
            | d.map(lambda d: collections.defaultdict(list, d)) | st.binary().map(bytearray))

plain = st.recursive(flat, wrap, max_leaves=20)

def same(a, b):
    "Equal in value and in all types."
    if type(a) is not type(b) or a != b: return False
    if isinstance(a, dict): return all(same(v, b[k]) for k, v in a.items())
    return not isinstance(a, (list, tuple)) or all(map(same, a, b))

@settings(max_examples=200, deadline=None)
@given(x=plain, protocol=st.integers(0, 5))
def test_plain_data_return_as_they_were(x, protocol):
    y = safe_loads(pickle.dumps(x, protocol=protocol))
    assert same(x, y)

def test_the_default_of_a_dictionary_is_a_builtin_type():
    with pytest.raises(pickle.UnpicklingError, match='factory of a defaultdict'): safe_loads(b'\x80\x02ccollections\ndefaultdict\ncnumpy\ndtype\n\x85R.')
    with pytest.raises(UnsafePickleError, match='asks for posix.system|asks for nt.system'): safe_loads(pickle.dumps(collections.defaultdict(os.system)))


def fuzz(count, seed, *more):
    done = subprocess.run([sys.executable, str(Path(__file__).with_name('pickle_programs.py')), str(count), str(seed), *more], capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, (done.returncode, done.stdout, done.stderr[-2000:])
    n, read, refused = map(int, done.stdout.split()[:3])
    assert n == count == read + refused and read > 0
    print(done.stdout)

@pytest.mark.parametrize('more', [(), ('pth',)], ids=['pickle', 'torch file'])
def test_two_thousand_random_programs(more): fuzz(2000 if not more else 500, 3, *more)

@pytest.mark.slow
@pytest.mark.parametrize('seed', range(8))
def test_a_hundred_thousand_random_programs(seed): fuzz(12_500, 100 + seed)

@pytest.mark.slow
@pytest.mark.parametrize('seed', range(8))
def test_random_torch_files(seed): fuzz(2500, 200 + seed, 'pth')

@pytest.mark.parametrize('place', ['kind', 'class', 'key', 'device', 'numbers'])
def test_shared_tuples_in_the_name_of_a_storage(place):
    "A tuple of two references to a tuple of two references …: its hash takes 2^60 steps, and nothing may ask for it."
    deep = b')' + b'q\x000h\x00h\x00\x86'*60
    parts = {'kind': b'X\x07\x00\x00\x00storage', 'class': b'ctorch\nFloatStorage\n', 'key': b'X\x01\x00\x00\x000', 'device': b'X\x03\x00\x00\x00cpu', 'numbers': b'K\x04'}
    parts[place] = deep
    code = f'''
import io, sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
from pickle_programs import as_pth, read_torch_file
try: print('read', type(read_torch_file(io.BytesIO(as_pth({b"(" + b"".join(parts.values()) + b"tQ."!r})))))
except Exception as e: print(type(e).__name__, str(e)[:200])
'''
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=60)
    assert done.stdout.split()[0] in ('UnpicklingError', 'UnsafePickleError') or place == 'device' and done.stdout.startswith('read'), (done.stdout, done.stderr)

def test_shared_tuples_among_the_keys_of_an_old_file():
    "The last of the five pickles lists the storages."
    code = '''
import io, pickle
from xmodaler_nb.utils.torch_files import _MAGIC, read_torch_file
data = b''.join(pickle.dumps(x, protocol=2) for x in (_MAGIC, 1001, {}, {})) + b'\\x80\\x02](' + b')' + b'q\\x00h\\x00h\\x00\\x86'*60 + b'e.'
try: print('read', read_torch_file(io.BytesIO(data)))
except pickle.UnpicklingError as e: print('refused', e)
'''
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith('refused'), (done.stdout, done.stderr)
