"Nothing executes on load: thirty files that would like to. And a disk that is full, a folder that is read-only: a clear error, the last good checkpoint kept."
import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
import numpy as np
import pytest
import torch
from torch import nn
sys.path.insert(0, str(Path(__file__).parent))
from children import ask, server
from toy import events, fresh, same_weights, toy_cfg
from xmodaler_nb.checkpoint import CheckpointError, XmodalerCheckpointer, write_checkpoint
from xmodaler_nb.utils.checkpoint_files import check_name, load_weights
from xmodaler_nb.config import CfgNode
from xmodaler_nb.engine import HookBase
from xmodaler_nb.datasets.annotations import load_annotations
from xmodaler_nb.engine.setup import check_output_dir
from xmodaler_nb.functional import read_np, read_np_bbox

MARK = 'executed'


class Run:
    "Unpickled, creates a file."
    def __init__(self, call, *args): self.call, self.args = call, args
    def __reduce__(self): return self.call, self.args


def evils(mark):
    "name → an object whose pickle does something."
    touch = f"import pathlib; pathlib.Path({str(mark)!r}).write_text('x')"
    class State:
        def __reduce__(self): return (dict, (), None, iter(()), iter([('k', Run(exec, touch))]))
    class Slots:
        def __reduce_ex__(self, p): return (eval, (f"exec({touch!r})",))
    return {'os.system': Run(os.system, f'touch {mark}'), 'exec': Run(exec, touch), 'eval': Run(eval, f'exec({touch!r})'), 'subprocess': Run(subprocess.call, ['touch', str(mark)]),
            'path.write_text': Run(Path.write_text, Path(mark), 'x'), 'open': Run(open, str(mark), 'w'), 'nested': {'a': [({'b': Run(exec, touch)},)]}, 'dict items': State(),
            'reduce_ex': Slots(), 'getattr': Run(getattr, str, 'upper'), 'import': Run(__import__, 'antigravity_that_is_not_there'), 'np.load': Run(np.load, str(mark)),
            'torch.load': Run(torch.load, str(mark)), 'object array': np.array([Run(exec, touch)], dtype=object), 'storage': Run(torch.storage._load_from_bytes, b'x')}


KINDS = list(evils('x'))

@pytest.fixture
def mark(tmp_path):
    m = tmp_path/MARK
    yield m
    assert not m.exists(), 'the file executed something'


@pytest.fixture
def cp(tmp_path): return XmodalerCheckpointer(nn.Linear(2, 1), tmp_path/'run')


@pytest.mark.parametrize('kind', KINDS)
def test_pth_with_code(cp, mark, tmp_path, kind):
    try: torch.save({'model': {'weight': torch.ones(1, 2), 'evil': evils(mark)[kind]}}, tmp_path/'x.pth')
    except TypeError: pytest.skip('cannot be pickled at all')
    with pytest.raises((CheckpointError, FileNotFoundError)) as e: cp.load(str(tmp_path/'x.pth'))
    assert 'x.pth' in str(e.value) and 'weights_only' not in str(e.value)

@pytest.mark.parametrize('kind', KINDS)
def test_old_pickle_with_code(cp, mark, tmp_path, kind):
    with open(tmp_path/'x.pkl', 'wb') as f: pickle.dump({'model': evils(mark)[kind]}, f, protocol=2)
    with pytest.raises(CheckpointError, match='x.pkl'): cp.load(str(tmp_path/'x.pkl'))

def opcodes(mark):
    "Hand-made streams: global, stack global, extension registry, persistent id, inst, build."
    path = str(mark).encode()
    return {'GLOBAL': b'\x80\x02cos\nsystem\nX' + struct.pack('<I', len(path)+6) + b'touch ' + path + b'\x85R.',
            'INST': b"(S'touch " + path + b"'\nios\nsystem\n.", 'EXT1': b'\x80\x02\x82\x01.', 'EXT4': b'\x80\x02\x84\x01\x00\x00\x00.',
            'PERSID': b'Pexec\n.', 'BUILD': b'\x80\x02cbuiltins\nobject\n)\x81}X\x05\x00\x00\x00__a__X\x01\x00\x00\x00bsb.',
            'STACK_GLOBAL': b'\x80\x04\x8c\x02os\x8c\x06system\x93\x8c' + bytes([len(path)+6]) + b'touch ' + path + b'\x85R.', 'truncated': b'\x80\x04\x95\xff'}

@pytest.mark.parametrize('op', list(opcodes('x')))
@pytest.mark.parametrize('ending', ['pkl', 'pth'])
def test_hand_made_opcodes(cp, mark, tmp_path, op, ending):
    f = tmp_path/f'x.{ending}'
    f.write_bytes(opcodes(mark)[op])
    with pytest.raises(CheckpointError, match=f.name): cp.load(str(f))

def test_a_zip_with_code_in_it(cp, mark, tmp_path):
    "A torch archive whose data.pkl calls a function, and one that is a script module."
    torch.save({'w': torch.ones(2)}, tmp_path/'good.pth')
    with zipfile.ZipFile(tmp_path/'good.pth') as a, zipfile.ZipFile(tmp_path/'x.pth', 'w') as b:
        for n in a.namelist(): b.writestr(n, opcodes(mark)['GLOBAL'] if n.endswith('data.pkl') else a.read(n))
    with pytest.raises(CheckpointError): cp.load(str(tmp_path/'x.pth'))
    torch.jit.script(nn.Linear(2, 1)).save(str(tmp_path/'s.pth'))
    with pytest.raises(CheckpointError): cp.load(str(tmp_path/'s.pth'))

@pytest.mark.parametrize('file', ['model.safetensors', 'training_state.pt', 'meta.json'])
def test_a_checkpoint_directory_with_a_forged_part(cp, mark, tmp_path, file):
    d = write_checkpoint(tmp_path/'d', nn.Linear(2, 1).state_dict(), {'x': 1}, {'iteration': 1})
    (d/file).write_bytes(opcodes(mark)['GLOBAL'])
    meta = d/'meta.json'
    if file != 'meta.json':
        m = json.loads(meta.read_text()); m['files'][file] = (d/file).stat().st_size; meta.write_text(json.dumps(m))
    with pytest.raises(CheckpointError): cp.load(str(d))

@pytest.mark.parametrize('header', [b'{}', b'{"__metadata__":{"tied":"{\\"a\\": \\"../../x\\"}"}}', b'{"w":{"dtype":"F32","shape":[99999999],"data_offsets":[0,399999996]}}', b'not json', b''])
def test_forged_safetensors(tmp_path, header):
    f = tmp_path/'m.safetensors'
    f.write_bytes(struct.pack('<Q', len(header)) + header)
    if header == b'{}': assert load_weights(f) == {}
    else:
        with pytest.raises(CheckpointError): load_weights(f)

@pytest.mark.parametrize('name', ['../x', '/etc/passwd', 'a/../../b', '..', '.', '', '.hidden', 'a\\b', 'a\0b'])
def test_names_that_lead_out(cp, tmp_path, name):
    with pytest.raises(CheckpointError): check_name(name)
    with pytest.raises(CheckpointError): cp.save(name)
    with pytest.raises(CheckpointError): cp.attach(name, 'x')
    (tmp_path/'run').mkdir(exist_ok=True)
    (tmp_path/'run'/'last_checkpoint').write_bytes(name.encode())
    assert cp.get_checkpoint_file() == ''

@pytest.mark.parametrize('files', ['{"../../secret": 3}', '{"/etc/passwd": 3}'])
def test_meta_that_lists_files_elsewhere(cp, tmp_path, files):
    d = write_checkpoint(tmp_path/'d', nn.Linear(2, 1).state_dict())
    m = json.loads((d/'meta.json').read_text()); m['files'] = json.loads(files); (d/'meta.json').write_text(json.dumps(m))
    with pytest.raises(CheckpointError, match='plain name'): cp.load(str(d))

@pytest.mark.parametrize('text', ['a: !!python/object/apply:os.system ["touch MARK"]', 'a: !!python/name:os.system', 'a: !!python/object/new:os.system ["touch MARK"]',
                                  '!!python/object/apply:eval ["1"]', 'a: !!python/module:os', 'a: !unknown x'])
def test_yaml_with_a_tag(mark, tmp_path, text):
    (tmp_path/'c.yaml').write_text(text.replace('MARK', str(mark)))
    with pytest.raises(Exception) as e: CfgNode.load_yaml_with_base(str(tmp_path/'c.yaml'))
    assert 'c.yaml' in str(e.value)


@pytest.mark.parametrize('kind', ['exec', 'os.system', 'nested', 'reduce_ex'])
@pytest.mark.parametrize('ending', ['npz', 'npy'])
def test_feature_files_with_objects(mark, tmp_path, kind, ending):
    f = tmp_path/f'7.{ending}'
    evil = np.empty(1, dtype=object)
    evil[0] = evils(mark)[kind]
    np.savez(f, features=evil) if ending == 'npz' else np.save(f, evil, allow_pickle=True)
    for read in (read_np, lambda path: read_np_bbox(path, 10)):
        with pytest.raises(ValueError, match=f.name): read(str(f))

@pytest.mark.parametrize('op', list(opcodes('x')))
def test_annotations_with_opcodes(mark, tmp_path, op):
    f = tmp_path/'mscoco_caption_anno_train.pkl'
    f.write_bytes(opcodes(mark)[op])
    with pytest.raises((ValueError, pickle.UnpicklingError), match=f.name): load_annotations(f)


# disks

def test_a_full_disk_keeps_the_last_good_checkpoint(tmp_path):
    "A limit on the size of files stands for a full disk; in a process of its own."
    code = f'''
import sys, resource, signal; sys.path.insert(0, {str(Path(__file__).parent)!r})
from toy import *
from xmodaler_nb.engine import HookBase
class Full(HookBase):
    def after_step(self):
        if self.trainer.iter == 4:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))
class T(ToyTrainer):
    def build_writers(self): return []
t = fresh(toy_cfg({str(tmp_path/"run")!r}), T)
t.register_hooks([Full()])
t.train()
'''
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert 'could not write checkpoint' in last and 'the last good checkpoint is' in last and 'model_Epoch_00001_Iter_0000002' in last, done.stderr[-1500:]
    t = fresh(toy_cfg(tmp_path/'run'), resume=True)
    assert t.start_iter == 3 and not list((tmp_path/'run').glob('.tmp*'))

@pytest.mark.skipif(os.name != 'posix' or os.getuid() != 0, reason='needs root to mount a small disk')
def test_a_small_disk_fills_up(tmp_path):
    "A disk of 400 kB with everything a run writes on it: the error says what could not be written, and with room again the run continues as if nothing had been."
    disk = tmp_path/'disk'
    disk.mkdir()
    if subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=400k', 'tmpfs', str(disk)], capture_output=True).returncode: pytest.skip('this container may not mount')
    class Fill(HookBase):
        def before_step(self):
            if self.trainer.iter != 4: return
            with open(disk/'ballast', 'wb', buffering=0) as f:
                try:
                    while f.write(b'x'*1024): pass
                except OSError: pass
    try:
        torch.manual_seed(7)
        whole = fresh(toy_cfg(tmp_path/'whole', CHECKPOINT_ITERS=2, KEEP_LAST=2))
        whole.train()
        torch.manual_seed(7)
        t = fresh(toy_cfg(disk/'run', CHECKPOINT_ITERS=2, KEEP_LAST=2))
        t.register_hooks([Fill()])
        with pytest.raises(OSError, match='cannot write|could not write') as e: t.train()
        assert str(disk/'run') in str(e.value) and 'No space left' in str(e.value)
        (disk/'ballast').unlink()
        t = fresh(toy_cfg(disk/'run', CHECKPOINT_ITERS=2, KEEP_LAST=2), resume=True)
        assert t.start_iter == 4
        t.train()
        assert same_weights(whole.model, t.model) and events(disk/'run') == events(tmp_path/'whole')
    finally: subprocess.run(['umount', '-l', str(disk)])

def refused_as_nobody(call, *args):
    "What is said to another user who tries this."
    os.setgid(65534); os.setuid(65534)
    try: call(*args)
    except OSError as e: return str(e)
    return 'nothing'

def save_second(model, run): XmodalerCheckpointer(model, run).save('model_Epoch_00002_Iter_0000005', iteration=5)

@pytest.mark.skipif(not hasattr(os, 'fork') or os.getuid() != 0, reason='needs root to become someone else')
def test_a_read_only_folder_as_another_user(tmp_path):
    for p in [tmp_path, *tmp_path.parents]:
        if p == Path('/'): break
        if not p.stat().st_mode & 1: p.chmod(p.stat().st_mode | 0o055)
    run = tmp_path/'run'
    run.mkdir(); run.chmod(0o755)
    said = ask(server(), refused_as_nobody, check_output_dir, run)
    assert 'cannot write to OUTPUT_DIR' in said and 'Permission denied' in said and not list(run.iterdir())


@pytest.mark.skipif(not hasattr(os, 'fork') or os.getuid() != 0, reason='needs root to become someone else')
def test_a_folder_that_becomes_read_only_keeps_its_checkpoint(tmp_path):
    for p in [tmp_path, *tmp_path.parents]:
        if p == Path('/'): break
        if not p.stat().st_mode & 1: p.chmod(p.stat().st_mode | 0o055)
    m, run = nn.Linear(2, 1), tmp_path/'run'
    XmodalerCheckpointer(m, run).save('model_Epoch_00001_Iter_0000002', iteration=2)
    said = ask(server(), refused_as_nobody, save_second, m, run)
    assert 'Permission denied' in said and 'the last good checkpoint is' in said and 'Iter_0000002' in said
    assert XmodalerCheckpointer(m, run).load(XmodalerCheckpointer(m, run).get_checkpoint_file())['iteration'] == 2


def test_the_folder_of_another_run_is_refused_and_untouched(tmp_path):
    t = fresh(toy_cfg(tmp_path)); t.train()
    before = {p: p.read_bytes() for p in tmp_path.rglob('*') if p.is_file()}
    with pytest.raises(FileExistsError, match='holds another run .*--resume'): check_output_dir(tmp_path)
    assert {p: p.read_bytes() for p in tmp_path.rglob('*') if p.is_file()} == before
    check_output_dir(tmp_path, resume=True)


def test_a_crash_between_two_renames_is_repaired(tmp_path):
    m = nn.Linear(2, 1)
    cp = XmodalerCheckpointer(m, tmp_path)
    cp.save('model_final')
    (tmp_path/'model_final').rename(tmp_path/'.old-model_final')
    (tmp_path/'.tmp-model_final-1').mkdir()
    assert XmodalerCheckpointer(m, tmp_path).get_checkpoint_file().endswith('model_final') and sorted(p.name for p in tmp_path.iterdir()) == ['last_checkpoint', 'model_final']
