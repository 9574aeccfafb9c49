"Files of arrays and stores: what they declare is compared with what is there; nothing leads to another file; a cut store is a sentence."
import io
import json
import random
import subprocess
import sys
import time
import zipfile
import zlib
import numpy as np
import pytest
from xmodaler_nb.functional import read_np
from xmodaler_nb.own.store_import import decode_value, import_features, import_hdf5
from xmodaler_nb.utils.arrays import read_arrays
from xmodaler_nb.utils.store import FeatureStore, FeatureWriter, StoreError


def npy(shape, dtype='<f4', order='False', data=b'1234'):
    head = f"{{'descr': '{dtype}', 'fortran_order': {order}, 'shape': {shape}, }}".encode()
    head += b' '*(-(len(head) + 11) % 64) + b'\n'
    return b'\x93NUMPY\x01\x00' + len(head).to_bytes(2, 'little') + head + data

BAD = {'1e12 numbers': npy('(1000000000000,)'), '1e12 in two dimensions': npy('(1000000, 1000000)'), 'rows without numbers': npy('(1000000000000, 0)', data=b''), 'negative': npy('(-1,)'), 'overflow': npy('(4611686018427387904, 4)'),
       'objects': npy('(1,)', '|O'), 'no size': npy('(1000000000,)', '|S0'), 'cut off': npy('(3,)'), 'no shape': npy("'x'"), 'no numbers': npy('(True,)'), 'deep': npy('('*5000 + ')'*5000), 'odd type': npy('(1,)', 'x9'), 'empty': b'', 'magic alone': b'\x93NUMPY', 'PK alone': b'PK\x03\x04'}

@pytest.mark.parametrize('kind', list(BAD))
@pytest.mark.parametrize('wrapped', ['npy', 'npz'])
def test_what_is_declared_must_be_there(tmp_path, kind, wrapped):
    f = tmp_path/f'7.{wrapped}'
    if wrapped == 'npy': f.write_bytes(BAD[kind])
    else:
        with zipfile.ZipFile(f, 'w') as z: z.writestr('features.npy', BAD[kind])
    start = time.process_time()
    with pytest.raises(ValueError, match=f.name): read_np(f)
    with pytest.raises(ValueError, match='here: not a readable'): decode_value(f.read_bytes() if wrapped == 'npz' else b'\x93NUMPY' + f.read_bytes()[6:], 'here')
    assert time.process_time() - start < 2

def test_a_small_archive_does_not_unpack_to_a_gigabyte(tmp_path):
    np.savez_compressed(tmp_path/'7.npz', features=np.zeros(10**8))
    assert (tmp_path/'7.npz').stat().st_size < 10**6
    with pytest.raises(ValueError, match='7.npz.*unpack to more than'): read_np(tmp_path/'7.npz')

@pytest.mark.parametrize('a', [np.arange(6.).reshape(2, 3), np.asfortranarray(np.arange(6).reshape(2, 3)), np.array(3.), np.zeros((0, 4), np.float16), np.array(['a', 'bc']), np.arange(3, dtype='>i4'), np.array([True]), np.array([1 + 2j])], ids=lambda a: f'{a.dtype}{a.shape}')
def test_arrays_are_what_numpy_reads(tmp_path, a):
    np.save(tmp_path/'a.npy', a)
    np.savez(tmp_path/'b.npz', x=a, y=a)
    np.savez_compressed(tmp_path/'c.npz', x=a)
    for file, name in (('a.npy', ''), ('b.npz', 'y'), ('c.npz', 'x')):
        b = read_arrays(tmp_path/file)[name]
        assert b.dtype == a.dtype and b.shape == a.shape and np.array_equal(a, b) and b.flags.writeable
    assert list(read_np(tmp_path/'b.npz')) == ['x', 'y'] and list(read_np(tmp_path/'b.npz', lambda n: ['y'])) == ['y'] and list(read_np(tmp_path/'c.npz')) == ['features']


# HDF5

h5py = pytest.importorskip('h5py')

def test_hdf5_that_points_elsewhere(tmp_path):
    secret = tmp_path/'secret'
    secret.write_bytes(np.arange(8, dtype='f4').tobytes())
    with h5py.File(tmp_path/'other.h5', 'w') as f: f['x'] = np.ones(3)
    def bad(name, make):
        with h5py.File(tmp_path/name, 'w') as f: make(f)
        with pytest.raises(ValueError, match=name): import_features(tmp_path/name, tmp_path/f'out-{name}')
    bad('external.h5', lambda f: f.create_dataset('7', (2, 4), 'f4', external=[(str(secret), 0, 32)]))
    bad('link.h5', lambda f: f.__setitem__('7', h5py.ExternalLink(str(tmp_path/'other.h5'), '/x')))
    bad('soft.h5', lambda f: f.__setitem__('7', h5py.SoftLink('/7')))
    bad('inner.h5', lambda f: f.create_group('7').__setitem__('features', h5py.ExternalLink(str(tmp_path/'other.h5'), '/x')))
    bad('huge.h5', lambda f: f.create_dataset('7', (10**6, 10**6), 'f4', chunks=(10, 10)))
    bad('text.h5', lambda f: f.__setitem__('7', 'text'))
    def virtual(f):
        layout = h5py.VirtualLayout((3,), 'f8')
        layout[:] = h5py.VirtualSource(str(tmp_path/'other.h5'), 'x', (3,))
        f.create_virtual_dataset('7', layout)
    bad('virtual.h5', virtual)

def packed(f, raw, methods=(1,), shape=(100, 10)):
    "A packed data set whose only chunk is what is given."
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_chunk(shape)
    for m in methods: plan.set_filter(m, h5py.h5z.FLAG_MANDATORY, (9,))
    h5py.h5d.create(f.id, b'7', h5py.h5t.IEEE_F32LE, h5py.h5s.create_simple(shape), plan).write_direct_chunk((0, 0), raw)

def zeros(mb, times=1):
    "Megabytes of zeros, packed."
    c = zlib.compressobj(9)
    out = b''.join(c.compress(bytes(2**20)) for _ in range(mb)) + c.flush()
    for _ in range(times - 1): out = zlib.compress(out, 9)
    return out

BOMBS = {'a bomb': (lambda f: packed(f, zeros(200)), 'unpacks to more than'), 'packed twice': (lambda f: packed(f, zeros(200, 2), (1, 1)), r"packed by the methods \['gzip', 'gzip'\]"),
         'another method': (lambda f: f.create_dataset('7', data=np.arange(100).reshape(10, 10), scaleoffset=0), r'packed by the methods \[6\]'),
         'a huge chunk': (lambda f: f.create_dataset('7', (10, 10), 'f4', maxshape=(None, None), chunks=(30_000, 30_000), compression='gzip'), 'far more than the file holds'),
         'nothing': (lambda f: f.create_dataset('7', data=h5py.Empty('f4')), 'holds no numbers'), 'a type': (lambda f: f.__setitem__('7', np.dtype('f4')), 'holds no numbers'),
         'itself': (lambda f: f.create_group('7').__setitem__('features', f['7']), 'holds no numbers'), 'everything': (lambda f: f.__setitem__('7', f['/']), 'holds no numbers')}

@pytest.mark.parametrize('kind', BOMBS)
def test_hdf5_that_is_more_than_it_seems(tmp_path, kind):
    make, why = BOMBS[kind]
    with h5py.File(tmp_path/'bad.h5', 'w') as f: make(f)
    assert (tmp_path/'bad.h5').stat().st_size < 300_000
    with pytest.raises(ValueError, match=f'bad.h5.*{why}'): import_features(tmp_path/'bad.h5', tmp_path/'out')

def test_packed_hdf5_is_read(tmp_path):
    "By gzip, by lzf; and chunks that gzip could not make smaller, which lie there as they are."
    numbers = np.random.default_rng(0).integers(0, 2**32, (300, 100), dtype=np.uint32)
    with h5py.File(tmp_path/'a.h5', 'w') as f:
        f.create_dataset('1', data=np.ones((300, 100), 'u4'), compression='gzip', shuffle=True, fletcher32=True)
        f.create_dataset('2', data=np.ones((300, 100), 'u4'), compression='lzf')
        d = f.create_dataset('3', (300, 100), 'u4', compression='gzip', chunks=(300, 100))
        d.id.write_direct_chunk((0, 0), numbers.tobytes(), 1)
    with h5py.File(tmp_path/'a.h5') as f: assert (f['3'][()] == numbers).all()
    assert import_hdf5(tmp_path/'a.h5', tmp_path/'out') == 3

@pytest.mark.parametrize('seed', range(40))
def test_damaged_hdf5_ends_with_a_sentence(tmp_path, seed):
    rng = random.Random(seed)
    with h5py.File(tmp_path/'a.h5', 'w') as f:
        for i in range(3): f.create_dataset(f'{i}_features', data=np.random.default_rng(i).random((20, 30)), compression='gzip', shuffle=True)
    content = bytearray((tmp_path/'a.h5').read_bytes())
    if seed % 3: content[:] = content[:rng.randrange(len(content))] if seed % 3 == 1 else content
    for _ in range(3): content[rng.randrange(min(len(content), 4000))] = rng.randrange(256)
    (tmp_path/'b.h5').write_bytes(content)
    try: import_features(tmp_path/'b.h5', tmp_path/'out')
    except ValueError as e: assert 'b.h5' in str(e) or 'id ' in str(e), e

def test_a_database_that_is_cut_off(tmp_path):
    "LMDB maps its file: reading behind the end would end the process."
    lmdb = pytest.importorskip('lmdb')
    with lmdb.open(str(tmp_path/'a.lmdb'), map_size=10**7) as env, env.begin(write=True) as t:
        for i in range(200): t.put(b'%d' % i, b'\x93NUMPY'*3000)
    data = tmp_path/'a.lmdb'/'data.mdb'
    data.write_bytes(data.read_bytes()[:30_000])
    code = f'from xmodaler_nb.own.store_import import import_lmdb; import_lmdb({str(tmp_path/"a.lmdb")!r}, {str(tmp_path/"out")!r})'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 1 and 'data.mdb: has 30000 bytes' in done.stderr and 'the file is cut off' in done.stderr, (done.returncode, done.stderr[-300:])

def test_a_plain_hdf5_file_is_read(tmp_path):
    with h5py.File(tmp_path/'a.h5', 'w') as f:
        f['7'] = np.ones((2, 3), 'f4')
        f['8/features'] = np.zeros((1, 3), 'f4')
    assert import_hdf5(tmp_path/'a.h5', tmp_path/'out') == 2 and FeatureStore(tmp_path/'out')['7']['features'].shape == (2, 3)


# stores

@pytest.fixture
def store(tmp_path):
    with FeatureWriter(tmp_path/'s') as w:
        for i in range(200): w.add(i, features=np.full((100, 64), i, np.float32))
    return tmp_path/'s'

def forge(store, **changes):
    index = store/'all-00000.npz'
    z = read_arrays(index)
    head = json.loads(z['head'].tobytes())
    for k, v in changes.items():
        if k in z: z[k] = v(z[k])
        else: head[k] = v(head[k])
    z['head'] = np.frombuffer(json.dumps(head).encode(), np.uint8)
    np.savez(index, **z)

def changed(a, k, v):
    a = a.copy()
    a[k] = v
    return a

@pytest.mark.parametrize('changes', [dict(starts=lambda a: changed(a, -1, 2**40)), dict(starts=lambda a: changed(a, 0, -64)), dict(starts=lambda a: changed(a, 1, 3)), dict(rows=lambda a: changed(a, -1, 101)), dict(rows=lambda a: changed(a, 0, 2**31 - 1)),
                                     dict(rows=lambda a: changed(a, 0, -2)), dict(starts=lambda a: a[:-1]), dict(crc=lambda a: a[:1]), dict(fields=lambda f: [['features', '|O', [64]]]), dict(fields=lambda f: [['features', '<f4', [-64]]]),
                                     dict(fields=lambda f: 5), dict(fields=lambda f: [['features', '<f4', [10**12]]]), dict(bytes=lambda n: 'x')], ids=str)
def test_an_index_that_leads_out_of_its_shard(store, changes):
    forge(store, **changes)
    with pytest.raises(StoreError, match='all-00000'): FeatureStore(store)

def test_a_forged_size_is_found(store):
    forge(store, bytes=lambda n: n - 64*400)
    with pytest.raises(StoreError): FeatureStore(store)

@pytest.mark.parametrize('how', ['getitem', 'items', 'verify'])
def test_a_shard_cut_off_while_it_is_read_is_a_sentence(store, how):
    code = f'''
import os, sys
from xmodaler_nb.utils.store import FeatureStore, StoreError
s = FeatureStore({str(store)!r})
s['0']['features'].sum()
it = s.items(); next(it)
with open({str(store/'all-00000.bin')!r}, 'r+b') as f: f.truncate(5000)
try:
    if {how!r} == 'getitem': s['150']['features'].sum()
    elif {how!r} == 'items': [a['features'].sum() for _, a in s.items()]
    else: s.verify()
except StoreError as e: print(e)
'''
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 0 and 'it was cut off while it was in use' in done.stdout, (done.returncode, done.stderr[-300:])

def test_a_shard_that_is_replaced_by_renaming_is_read_to_its_end(store, tmp_path):
    s = FeatureStore(store)
    s['0']['features'].sum()
    (tmp_path/'new').write_bytes(b'short')
    (tmp_path/'new').replace(store/'all-00000.bin')
    assert s['150']['features'][0, 0] == 150
    with pytest.raises(StoreError, match='cut off or was replaced'): FeatureStore(store)

def test_verify_still_finds_a_flipped_bit(store):
    data = bytearray((store/'all-00000.bin').read_bytes())
    data[30_000] ^= 1
    (store/'all-00000.bin').write_bytes(data)
    assert len(FeatureStore(store).verify()) == 1


# other files that stay mapped

def test_meteors_table_cut_off_while_it_is_used(tmp_path):
    code = rf"""
import gzip, numpy as np
from pathlib import Path
from xmodaler_nb.evaluation import meteor_tables
top = Path({str(tmp_path)!r})
with gzip.open(top/'p.gz', 'wb') as f: f.write(b''.join(b'0.5\nphrase %d\nother %d\n' % (i, i) for i in range(60_000)))
meteor_tables.load_index(top/'p.gz', top/'cache')
index = meteor_tables.load_index(top/'p.gz', top/'cache')
assert isinstance(index.rhs, np.memmap)
some = np.sort(index.lhs[::7])
with open(index.lhs.filename, 'r+b') as f: f.truncate(5000)
try: index.find_pairs(some, some)
except OSError as e: print(e)
"""
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 0 and 'was cut off while it was in use' in done.stdout, (done.returncode, done.stderr[-500:])

def test_rows_of_pictures_are_copies(tmp_path):
    "A store that another program cuts off does not end the process that has read it."
    code = f"""
import torch
from xmodaler_nb.captioner.picture_index import read_rows, write_rows
store = {str(tmp_path/'rows.safetensors')!r}
write_rows(store, {{f'h{{i}}': dict(x=torch.full((4, 500), float(i))) for i in range(50)}})
rows = read_rows(store)
with open(store, 'r+b') as f: f.truncate(100)
print(sum(float(r['x'].sum()) for r in rows.values()))
"""
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 0 and float(done.stdout) == 2000.*sum(range(50)), (done.returncode, done.stderr[-300:])
