"A damaged checkpoint is named and left out; a flipped bit does not load; a training is never silently started over; a tag cannot lead elsewhere."
import json
import logging
import shutil
import struct
import zipfile
import numpy as np
import pytest
import torch
from torch import nn
from xmodaler_nb.checkpoint import CheckpointError, XmodalerCheckpointer, load_pth, read_checkpoint, write_checkpoint
from xmodaler_nb.utils.checkpoint_files import checksum, read_meta


class Clock:
    n = -1
    def state_dict(self): return {'n': self.n}
    def load_state_dict(self, s): self.n = s['n']


@pytest.fixture
def run(tmp_path):
    "A folder with three checkpoints; the weight is the number of each."
    net, clock = nn.Linear(40, 3), Clock()
    cp = XmodalerCheckpointer(net, tmp_path/'run', clock=clock)
    for clock.n in range(3):
        nn.init.constant_(net.weight, clock.n)
        cp.save(f'model_Epoch_{clock.n+1:05d}_Iter_{clock.n:07d}', iteration=clock.n)
    return tmp_path/'run'

def newest(run, k=-1): return sorted(p for p in run.iterdir() if p.is_dir())[k]

def resume(run):
    net, clock = nn.Linear(40, 3), Clock()
    XmodalerCheckpointer(net, run, clock=clock).resume_or_load('')
    assert (net.weight == clock.n).all()
    return clock.n

def flip(file, bit):
    data = bytearray(file.read_bytes())
    data[bit//8] ^= 1 << bit%8
    file.write_bytes(data)


META = ['', '{', '[]', '5', 'null', '{"files": 5}', '{"format": "xmodaler_nb.checkpoint/1", "files": 5}', '{"format": "xmodaler_nb.checkpoint/1", "files": {"a": "b"}}', '{"format": "xmodaler_nb.checkpoint/1", "files": [[]]}',
        '{"format": "xmodaler_nb.checkpoint/1", "iteration": Infinity}', '{"format": "xmodaler_nb.checkpoint/1", "iteration": 1e999}', '{"format": "xmodaler_nb.checkpoint/1", "iteration": "x"}',
        '{"format": "xmodaler_nb.checkpoint/1", "iteration": ' + '9'*5000 + '}', '{"format": "xmodaler_nb.checkpoint/1", "sums": 3}', '{"format": "xmodaler_nb.checkpoint/1", "files": {"\\u0000": 3}}', '{"a":'*100_000, '['*100_000,
        '{"format": ["' + 'x'*1000 + '"]}', '\x00\ufeff', '{"format": "xmodaler_nb.checkpoint/1", "files": {"model.safetensors": 1e400}}', '{"format": "xmodaler_nb.checkpoint/1", "epoch": NaN}']

@pytest.mark.parametrize('k', range(len(META)))
def test_a_damaged_meta_is_left_out(run, caplog, k):
    (newest(run)/'meta.json').write_text(META[k])
    with pytest.raises(CheckpointError) as e: read_meta(newest(run))
    assert newest(run).name in str(e.value) and len(str(e.value)) < 400
    with caplog.at_level(logging.WARNING): assert resume(run) == 1
    assert newest(run).name in caplog.text and 'Iter_0000001 instead' in caplog.text

def test_the_tag_is_gone(run, caplog):
    (run/'last_checkpoint').unlink()
    with caplog.at_level(logging.WARNING): assert resume(run) == 2
    assert 'last_checkpoint: there is no such file; using model_Epoch_00003_Iter_0000002 instead' in caplog.text

@pytest.mark.parametrize('file', ['model.safetensors', 'training_state.pt'])
def test_any_flipped_bit_is_found(run, file):
    "Every hundredth bit of the file, one at a time."
    f = newest(run)/file
    good = f.read_bytes()
    for bit in range(0, 8*len(good), 97):
        flip(f, bit)
        with pytest.raises(CheckpointError, match=f'{file} is damaged: its check sum'): read_checkpoint(newest(run))
        f.write_bytes(good)
    assert read_checkpoint(newest(run))['clock'] == {'n': 2}

@pytest.mark.parametrize('file', ['model.safetensors', 'training_state.pt'])
def test_a_flipped_bit_makes_resume_take_the_one_before(run, caplog, file):
    flip(newest(run)/file, 8*(newest(run)/file).stat().st_size - 200)
    with caplog.at_level(logging.WARNING): assert resume(run) == 1
    assert f'{file} is damaged' in caplog.text and 'left out' in caplog.text

def test_nothing_is_started_over_beside_what_cannot_be_read(run):
    for k in range(3): (newest(run, k)/'model.safetensors').write_bytes(b'')
    for tag in (True, False):
        with pytest.raises(CheckpointError, match='no checkpoint in it is whole. Nothing was started over'): resume(run)
        if tag: (run/'last_checkpoint').unlink()
    for p in list(run.iterdir()): shutil.rmtree(p)
    net = nn.Linear(40, 3)
    assert XmodalerCheckpointer(net, run).resume_or_load('') == {}                      # an empty folder is a new run

def test_older_checkpoints_have_no_sums(run):
    meta = json.loads((newest(run)/'meta.json').read_text())
    del meta['sums']
    (newest(run)/'meta.json').write_text(json.dumps(meta))
    assert resume(run) == 2

@pytest.mark.parametrize('place', ['../away', '{tmp}/away', '../run/../away', 'x/../../away', './', '..', '.hidden'])
def test_a_tag_that_leads_elsewhere(run, tmp_path, place):
    from xmodaler_nb.captioner.picture_model import find_checkpoint
    shutil.copytree(newest(run, 0), tmp_path/'away')
    shutil.copytree(newest(run, 0), run/'.hidden')
    (run/'last_checkpoint').write_text(place.format(tmp=tmp_path))
    assert resume(run) == 2 and find_checkpoint(run) == newest(run)

def test_sums_see_what_sizes_do_not(tmp_path):
    a = np.random.default_rng(0).integers(0, 256, 3_000_001, dtype=np.uint8)
    def sum_of(x):
        (tmp_path/'f').write_bytes(x.tobytes())
        return checksum(tmp_path/'f')
    variants = [a, a[:-1], np.append(a, 0).astype(np.uint8), np.roll(a, 4096), np.concatenate([a[2**20:2**21], a[:2**20], a[2**21:]]), np.where(np.arange(len(a)) < 4096, 0, a).astype(np.uint8)]
    assert len({sum_of(v) for v in variants}) == len(variants) and sum_of(a) == sum_of(a.copy())


# torch files

def forged(tmp_path, storage_numbers, size, stride, offset=0, record=16):
    "A torch archive with one tensor that declares what it likes."
    def number(n): return b'\x8a\x08' + struct.pack('<q', n)
    def numbers(ns): return b'(' + b''.join(map(number, ns)) + b't'
    pid = b'(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu' + number(storage_numbers) + b'tQ'
    tensor = b'\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(' + pid + number(offset) + numbers(size) + numbers(stride) + b'\x89ccollections\nOrderedDict\n)RtR.'
    with zipfile.ZipFile(tmp_path/'x.pth', 'w') as z:
        z.writestr('x/data.pkl', tensor)
        z.writestr('x/data/0', bytes(record))
    return tmp_path/'x.pth'

@pytest.mark.parametrize('numbers, size, stride, offset', [(10**12, (10**12,), (1,), 0), (4, (10**12,), (1,), 0), (4, (10**12,), (0,), 0), (4, (5,), (1,), 0), (4, (2, 2), (3, 1), 0), (4, (2,), (1,), 3), (4, (2,), (-1,), 1), (4, (1,), (1,), -1),
                                                           (3, (3,), (1,), 0), (4, (10**9, 0), (1, 1), 0), (4, (-1,), (1,), 0), (4, (2**62, 4), (1, 1), 0)])
def test_tensors_that_declare_more_than_there_is(tmp_path, numbers, size, stride, offset):
    f = forged(tmp_path, numbers, size, stride, offset)
    with pytest.raises(CheckpointError, match='x.pth'): load_pth(f)

def test_a_tensor_that_fits(tmp_path): assert load_pth(forged(tmp_path, 4, (2, 2), (2, 1))).shape == (2, 2)

def test_a_compressed_archive_is_no_bomb(tmp_path):
    with zipfile.ZipFile(tmp_path/'x.pth', 'w', zipfile.ZIP_DEFLATED) as z: z.writestr('x/data.pkl', b'\x80\x02' + b'N0'*10**7 + b'N.')
    assert (tmp_path/'x.pth').stat().st_size < 100_000
    with pytest.raises(CheckpointError, match='is compressed'): load_pth(tmp_path/'x.pth')

@pytest.mark.parametrize('new', [True, False])
def test_our_reader_gives_what_torch_gives(tmp_path, new):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Embedding(5, 4))
    net[0](torch.randn(1, 3, 5, 5)).sum().backward()
    opt = torch.optim.SGD(net.parameters(), lr=.1, momentum=.9)
    opt.step()
    kinds = {str(t): torch.arange(3).to(t) for t in (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool, torch.complex64, torch.uint16)}
    if not new: del kinds['torch.uint16']                                # torch itself cannot read that back
    state = {'model': net.state_dict(), 'opt': opt.state_dict(), **kinds, 'scheduler': torch.optim.lr_scheduler.MultiStepLR(opt, [1, 2]).state_dict(), 'rng': torch.get_rng_state(), 'np': np.arange(3.), 'n': np.float32(1.5)}
    state['scheduler'] = {k: v for k, v in state['scheduler'].items() if not k.startswith('_')}
    torch.save(state, tmp_path/'a.pth', _use_new_zipfile_serialization=new)
    a, b = load_pth(tmp_path/'a.pth'), torch.load(tmp_path/'a.pth', weights_only=False)
    def same(x, y):
        if isinstance(x, torch.Tensor): assert torch.equal(x, y) and x.dtype == y.dtype and x.stride() == y.stride() and type(x) is type(y)
        elif isinstance(x, dict): assert list(x) == list(y) and type(x) is type(y); [same(x[k], y[k]) for k in x]
        elif isinstance(x, (list, tuple)): assert len(x) == len(y) and type(x) is type(y); [same(p, q) for p, q in zip(x, y)]
        else: assert type(x) is type(y) and np.array_equal(x, y)
    same(a, b)
    next(iter(a['model'].values())).add_(1)                              # what was read may be written to

def test_a_flipped_bit_in_a_torch_file(tmp_path):
    torch.save({'w': torch.arange(1000.)}, tmp_path/'a.pth')
    flip(tmp_path/'a.pth', 8*(tmp_path/'a.pth').read_bytes().index(torch.arange(1000.).numpy().tobytes()) + 8000)
    with pytest.raises(CheckpointError, match='its check sum differs'): load_pth(tmp_path/'a.pth')

def test_meta_is_json_for_everyone(tmp_path):
    d = write_checkpoint(tmp_path/'d', nn.Linear(2, 1).state_dict(), None, {'iteration': 1, 'loss': float('nan'), 'best': float('-inf')})
    meta = json.loads((d/'meta.json').read_text(), parse_constant=lambda c: pytest.fail(c))
    assert meta['loss'] is None and meta['best'] is None and read_checkpoint(d)['meta']['iteration'] == 1

def test_a_captioner_in_the_folder_is_no_checkpoint_of_the_training(run, tmp_path):
    net = nn.Linear(40, 3)
    write_checkpoint(run/'keep', net.state_dict(), meta={'kind': 'captioner'})
    assert all('keep' not in p for p in XmodalerCheckpointer(net, run).get_all_checkpoint_files())
    write_checkpoint(tmp_path/'new'/'keep', net.state_dict(), meta={'kind': 'captioner'})
    assert XmodalerCheckpointer(net, tmp_path/'new').resume_or_load('') == {}
