"The store under rough treatment: killed writers, loader processes, data sets, speed."
import ctypes
import mmap
import os
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path
import numpy as np
import pytest
import torch
from conftest import ROOT
from xmodaler_nb.modeling import load_cfg_file
from xmodaler_nb.datasets import build_xmodaler_train_loader
from xmodaler_nb.datasets.check import check_datasets
from xmodaler_nb.datasets.layout import write_tiny
from xmodaler_nb.own.store_import import import_npz
from xmodaler_nb.utils.store import FeatureStore, FeatureWriter, StoreError, write_index

sys.path.insert(0, str(ROOT/'benchmarks'))
import store as store_benchmark


def item(i): return np.random.default_rng(i).normal(size=(3 + i % 4, 6)).astype('f4')


def test_a_killed_writer_leaves_whole_shards_only(tmp_path):
    "kill -9 at an arbitrary moment; what was sealed is there and right, and the next writer goes on."
    code = f'''
import numpy as np
from xmodaler_nb.utils.store import FeatureWriter
with FeatureWriter({str(tmp_path/"s")!r}, shard_mb=0.001) as w:
    for i in range(10**6): w.add(i, features=np.random.default_rng(i).normal(size=(3 + i % 4, 6)).astype('f4')); print(i, flush=True)
'''
    p = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, text=True)
    for line in p.stdout:
        if int(line) > 40: break
    p.send_signal(signal.SIGKILL); p.wait()
    store = FeatureStore(tmp_path/'s')
    assert len(store) > 20 and store.verify() == []
    for i in store: assert np.array_equal(store[i]['features'], item(int(i)))
    n = len(store)
    with FeatureWriter(tmp_path/'s') as w:
        assert not list((tmp_path/'s').glob('.tmp-all-*')), 'what was left unfinished is removed'
        w.add('later', features=item(0))
    assert len(FeatureStore(tmp_path/'s')) == n + 1


def test_writers_in_several_processes(tmp_path):
    code = '''
import sys
import numpy as np
from xmodaler_nb.utils.store import FeatureWriter
k = int(sys.argv[2])
with FeatureWriter(sys.argv[1], part=f'w{k}', shard_mb=0.002) as w:
    for i in range(k, 60, 3): w.add(i, features=np.random.default_rng(i).normal(size=(3 + i % 4, 6)).astype('f4'))
'''
    ps = [subprocess.Popen([sys.executable, '-c', code, str(tmp_path/'s'), str(k)]) for k in range(3)]
    assert [p.wait() for p in ps] == [0, 0, 0]
    store = FeatureStore(tmp_path/'s')
    assert len(store) == 60 and all(np.array_equal(store[i]['features'], item(i)) for i in range(60))


def test_a_writer_that_has_just_begun_is_no_foreign_folder(tmp_path):
    "Between the other writer's lock and its store.json; a folder with other things in it is refused."
    (tmp_path/'s').mkdir(); (tmp_path/'s'/'.lock-r0of2').touch(); (tmp_path/'s'/'.tmp-r0of2-store.json').touch()
    with FeatureWriter(tmp_path/'s', part='r1of2') as w: w.add(1, features=item(1))
    assert list(FeatureStore(tmp_path/'s')) == ['1']
    seen = Path.iterdir
    def while_another_begins(p):
        (tmp_path/'u'/'store.json').write_text((tmp_path/'s'/'store.json').read_text())
        return seen(p)
    (tmp_path/'u').mkdir()
    with pytest.MonkeyPatch.context() as m:
        m.setattr(Path, 'iterdir', while_another_begins)
        FeatureWriter(tmp_path/'u', part='r1of2').close()
    (tmp_path/'t').mkdir(); (tmp_path/'t'/'letter.txt').touch()
    with pytest.raises(StoreError, match='holds files and is not a store'): FeatureWriter(tmp_path/'t')


@pytest.mark.parametrize('cut', [0, 1, 64, -1])
def test_a_truncated_shard_is_named(tmp_path, cut):
    with FeatureWriter(tmp_path/'s', shard_mb=0.001) as w:
        for i in range(20): w.add(i, features=item(i))
    shard = sorted((tmp_path/'s').glob('*.bin'))[1]
    data = shard.read_bytes(); shard.write_bytes(data[:cut])
    with pytest.raises(StoreError, match=f'{shard.name}.*its index says {len(data)} bytes'): FeatureStore(tmp_path/'s')
    shard.unlink()
    with pytest.raises(StoreError, match=f'{shard.name}: no such file'): FeatureStore(tmp_path/'s')
    rest = FeatureStore(tmp_path/'s', strict=False)
    assert len(rest.broken) == 1 and 0 < len(rest) < 20 and rest.verify() == rest.broken


@pytest.mark.parametrize('workers', [0, 2])
def test_a_store_feeds_a_loader_as_single_files_do(tmp_path, workers):
    "FEATS_FOLDER may name either; the same batches come out, also through worker processes."
    write_tiny(tmp_path)
    import_npz(tmp_path/'features', tmp_path/'store')
    batches = []
    for name in ('features', 'store'):
        cfg = load_cfg_file('image_caption/updown/updown.yaml', ['DATALOADER.ANNO_FOLDER', str(tmp_path), 'DATALOADER.FEATS_FOLDER', str(tmp_path/name), 'DATALOADER.TRAIN_BATCH_SIZE', 3, 'DATALOADER.NUM_WORKERS', workers,
                             'MODEL.VOCAB_SIZE', 9, 'MODEL.VISUAL_EMBED.IN_DIM', 4, 'INFERENCE.VOCAB', str(tmp_path/'vocabulary.txt'), 'SEED', 3,
                             'INFERENCE.VAL_ANNFILE', str(tmp_path/'captions_val.json'), 'INFERENCE.TEST_ANNFILE', str(tmp_path/'captions_test.json')])
        assert len(check_datasets(cfg)) == 3
        torch.manual_seed(0)
        batches.append({i: f for b in build_xmodaler_train_loader(cfg) for i, f in zip(b['IDS'], b['ATT_FEATS'])})
    assert set(batches[0]) == set(batches[1])
    for i in batches[0]: assert torch.equal(batches[0][i], batches[1][i])


def test_missing_ids_are_found_before_training(tmp_path):
    write_tiny(tmp_path)
    with FeatureWriter(tmp_path/'store') as w: w.add('100', features=np.ones((2, 4)))
    cfg = load_cfg_file('image_caption/updown/updown.yaml', ['DATALOADER.ANNO_FOLDER', str(tmp_path), 'DATALOADER.FEATS_FOLDER', str(tmp_path/'store'), 'DATALOADER.TRAIN_BATCH_SIZE', 3, 'MODEL.VOCAB_SIZE', 9, 'MODEL.VISUAL_EMBED.IN_DIM', 4,
                         'INFERENCE.VOCAB', ''])
    with pytest.raises(ValueError, match='101.npz: no such feature file'): check_datasets(cfg)


def kept_in_memory(path):
    "Bytes of a file that the system holds in memory."
    libc, bytes_ = ctypes.CDLL(None, use_errno=True), path.stat().st_size
    with open(path, 'rb') as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as m:
        pages = np.zeros(-(-bytes_//mmap.PAGESIZE), np.uint8)
        a = np.frombuffer(m, np.uint8)
        failed = libc.mincore(ctypes.c_void_p(a.ctypes.data), ctypes.c_size_t(bytes_), ctypes.c_void_p(pages.ctypes.data))
        del a
    assert not failed
    return int((pages & 1).sum())*mmap.PAGESIZE


def sparse_store(folder, n, regions, width):
    "A store of zeros that take no disk and no memory."
    size = regions*width*4
    with FeatureWriter(folder): pass
    with open(folder/'all-00000.bin', 'wb') as f: f.truncate(n*size)
    write_index(folder/'all-00000.npz', [('features', np.float32, (width,))], [str(i) for i in range(n)], [i*size for i in range(n)], [[regions]]*n, [zlib.crc32(bytes(size))]*n, n*size)
    return FeatureStore(folder)


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='counts pages as Linux does')
def test_reading_a_picture_brings_in_that_picture_only(tmp_path):
    "Not what lies around it: the system reads ahead by 128 kB, on some disks by 8 MB."
    s = sparse_store(tmp_path/'s', 1000, 4, 4096)                           # 64 kB each
    before = kept_in_memory(s.shards[0].path)
    for i in (500, 100, 900): assert not s.read(i)['features'].any()
    assert before == 0 and 3*65536 <= kept_in_memory(s.shards[0].path) <= 3*65536 + 6*mmap.PAGESIZE
    assert s.verify() == [] and len(list(s.items())) == 1000


def test_the_benchmark_runs():
    names = [r['name'] for r in store_benchmark.compare(small=True)]
    assert names == [f'{n}, {t}' for t in ('float32', 'float16') for n in ('random, owned arrays', 'random, views', 'sequential, memory', 'sequential, disk')]


def test_faster_than_single_files(tmp_path):
    "Half of what the benchmark asks for, on a machine that may be busy: five times."
    found = store_benchmark.compare(n=300, width=512, reads=300, dtypes=('float32',), folder=tmp_path)
    assert found[0]['ratio'] > 5, found[0]
