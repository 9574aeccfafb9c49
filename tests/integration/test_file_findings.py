"What `xm-data check` finds about files: nothing that extraction or training would stumble over passes as 'nothing was found'."
import io
import json
import struct
import time
import zipfile
import numpy as np
import pytest
from PIL import Image
from xmodaler_nb.commands.data import data_main
from xmodaler_nb.functional import read_np
from xmodaler_nb.own import CaptionData
from xmodaler_nb.utils.store import FeatureWriter


def folder(tmp_path, **files):
    "Two good feature files, and others: name → array."
    for name, a in dict(good=np.ones((2, 3)), good2=np.zeros((4, 3)), **files).items(): np.savez(tmp_path/f'{name}.npz', features=a)
    captions(tmp_path)
    return tmp_path


def captions(d, ending='.npz'):
    rows = [dict(image=p.relative_to(d).as_posix(), caption=f'a square called {p.stem}') for p in sorted(d.rglob(f'*{ending}')) if p.name[0] != '.']
    (d/'captions.jsonl').write_text('\n'.join(map(json.dumps, rows)))


def check(d, capsys):
    code = data_main(['check', str(d)])
    return code, capsys.readouterr().out


@pytest.mark.parametrize('a, why', [(np.zeros((0, 3)), 'no regions, rows or columns'), (np.full((2, 3), np.nan), '6 numbers that are not finite'), (np.array([[1, 2, np.inf]]), '1 numbers that are not'),
                                    (np.ones(3), 'sizes (3,)'), (np.ones((1, 2, 3)), 'sizes (1, 2, 3)'), (np.full((2, 3), 'a'), 'type <U1'), (np.ones((2, 3), complex), 'type complex128')])
def test_feature_files(tmp_path, capsys, a, why):
    code, out = check(folder(tmp_path, odd=a), capsys)
    assert code == 1 and 'unreadable file (1)' in out and why in out and 'odd.npz' in out
    assert check(folder(tmp_path/'good', ) if (tmp_path/'good').mkdir() is None else None, capsys)[0] == 0


def test_another_width(tmp_path, capsys):
    code, out = check(folder(tmp_path, odd=np.ones((2, 7))), capsys)
    assert code == 1 and 'other width (1)' in out and 'rows are 7 wide, most are 3' in out
    assert data_main(['write', str(tmp_path), str(tmp_path.parent/'out')]) == 1


@pytest.mark.parametrize('name', ['text.mp4', 'text.gif', 'text.webm', 'text.png', 'text.npz', 'text.npy'])
def test_text_of_another_name(tmp_path, capsys, name):
    if name.endswith(('.mp4', '.webm')): pytest.importorskip('av')
    (tmp_path/name).write_text('this is text')
    (tmp_path/name).with_suffix('.txt').write_text('a square')
    code, out = check(tmp_path, capsys)
    assert code == 1 and 'unreadable file (1)' in out and name in out


def test_without_pyav_videos_are_a_remark(tmp_path, capsys, monkeypatch):
    import sys
    monkeypatch.setitem(sys.modules, 'av', None)
    (tmp_path/'a.mp4').write_bytes(b'x'*99)
    (tmp_path/'a.txt').write_text('a square')
    code, out = check(tmp_path, capsys)
    assert 'not opened (1)' in out and 'xmodaler_nb[video]' in out


def test_hidden_files(tmp_path, capsys):
    Image.new('RGB', (8, 8)).save(tmp_path/'a.png')
    (tmp_path/'a.txt').write_text('a square')
    (tmp_path/'._a.jpg').write_bytes(b'Mac OS X')
    code, out = check(tmp_path, capsys)
    assert code == 0 and 'hidden file (1)' in out and '._a.jpg' in out and 'nothing was found' not in out


def test_pictures_in_subfolders(tmp_path, capsys):
    "Named by their short names in a table that lies elsewhere; and in a folder given to `extract`."
    photos = tmp_path/'photos'
    (photos/'deep').mkdir(parents=True)
    for k in range(3): Image.new('RGB', (8, 8), (k, k, k)).save(photos/'deep'/f'{k}.png')
    (tmp_path/'captions.csv').write_text('image,caption\n' + ''.join(f'{k}.png,a square\n' for k in range(3)))
    assert data_main(['check', str(tmp_path/'captions.csv'), '--images', str(photos)]) == 0
    assert 'missing' not in capsys.readouterr().out
    (photos/'other').mkdir()
    Image.new('RGB', (8, 8), (9, 9, 9)).save(photos/'other'/'1.png')
    assert data_main(['check', str(tmp_path/'captions.csv'), '--images', str(photos)]) == 1
    out = capsys.readouterr().out
    assert 'missing file (1)' in out and 'several subfolders hold a file of this name' in out
    assert data_main(['extract', str(photos), str(tmp_path/'s')]) == 1
    assert 'its subfolders hold 4, and are not searched' in capsys.readouterr().err and not (tmp_path/'s').exists()
    (tmp_path/'empty').mkdir()
    assert data_main(['extract', str(tmp_path/'empty'), str(tmp_path/'s')]) == 1


def test_captions_without_a_file(tmp_path, capsys):
    (tmp_path/'c.json').write_text(json.dumps(dict(images=[dict(id=1), dict(id=2)], annotations=[dict(image_id=i, caption='a square') for i in (1, 2)])))
    assert data_main(['check', str(tmp_path/'c.json')]) == 0
    assert 'no file (2)' in capsys.readouterr().out


def test_features_in_a_store_are_no_missing_files(tmp_path):
    from xmodaler_nb.datasets.layout import write_tiny
    write_tiny(tmp_path/'t')
    with FeatureWriter(tmp_path/'store') as w:
        for k in range(6): w.add(str(100 + k), features=np.ones((2, 4)) if k else np.full((2, 4), np.nan))
    table = CaptionData.from_xmodaler(tmp_path/'t', tmp_path/'store').check()
    assert [(f.kind, f.id) for f in table.errors] == [('unreadable file', '100')]


# files that declare more than there is

def npy(shape, data=b''):
    header = repr(dict(descr='<f4', fortran_order=False, shape=shape)).encode() + b'\n'
    return b'\x93NUMPY\x01\0' + struct.pack('<H', len(header)) + header + data

def packed(path, content, how=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, 'w', how) as z:
        with z.open('features.npy', 'w', force_zip64=True) as f:
            for part in content: f.write(part)


@pytest.mark.parametrize('shape', [(10**12,), (10**6, 10**6), (10**9, 10**9, 10**9), (2, 10**10), (-1, 3), (0, 10**30), (2.5, 3)])
@pytest.mark.parametrize('kind', ['npy', 'npz', 'stored'])
def test_arrays_that_declare_more_than_there_is(tmp_path, shape, kind):
    path = tmp_path/f"a.{'npy' if kind == 'npy' else 'npz'}"
    if kind == 'npy': path.write_bytes(npy(shape, b'\0'*400))
    else: packed(path, [npy(shape, b'\0'*400)], zipfile.ZIP_STORED if kind == 'stored' else zipfile.ZIP_DEFLATED)
    start = time.time()
    with pytest.raises(ValueError, match='a.np. ?: not a readable'.replace(' ?', '')): read_np(path)
    assert time.time() - start < 2


def test_a_zip_bomb(tmp_path):
    "A gigabyte of zeros in a megabyte is refused before it is unpacked; ordinary packed features are not."
    packed(tmp_path/'a.npz', [npy((2**28,)), *(b'\0'*2**24 for _ in range(64))])
    assert (tmp_path/'a.npz').stat().st_size < 2**21
    start = time.time()
    with pytest.raises(ValueError, match='a.npz: not a readable.*would unpack to more than'): read_np(tmp_path/'a.npz')
    assert time.time() - start < 1
    np.savez_compressed(tmp_path/'b.npz', features=np.zeros((1000, 2048), np.float32), boxes=np.zeros((1000, 4)))
    assert read_np(tmp_path/'b.npz')['features'].shape == (1000, 2048)


# backbones

def pictures(d):
    d.mkdir()
    for k in range(5):
        Image.new('RGB', (8, 8), (40*k, 0, 0)).save(d/f'{k}.png')
        (d/f'{k}.txt').write_text('a square\n')
    return d


def test_without_a_backbone_it_is_said(tmp_path, capsys, caplog):
    "By the shell and by the call: no features, and what to do; with one, which."
    photos = pictures(tmp_path/'p')
    assert data_main(['write', str(photos), str(tmp_path/'o'), '--backbone', 'none']) == 0
    out = capsys.readouterr().out
    assert 'no features were written, and nothing can be trained without them. Name a backbone' in out and 'no features)' in out
    written = CaptionData.from_folder(photos).write(tmp_path/'o2')
    assert 'no features were written' in caplog.text and 'no features' in repr(written)
    assert data_main(['write', str(photos), str(tmp_path/'o3')]) == 0
    assert 'features: by the backbone patches; it knows colours and edges only' in capsys.readouterr().out


@pytest.mark.parametrize('how', ['missing', 'of another torch'])
def test_torchvision_that_cannot_be_imported_is_said_first(tmp_path, capsys, monkeypatch, how):
    "Before a picture is opened and before anything is written, with what works here."
    import sys
    import xmodaler_nb.own.data as own
    photos = pictures(tmp_path/'p')
    monkeypatch.setitem(sys.modules, 'torchvision', None)
    if how == 'of another torch':
        import importlib
        real = importlib.import_module
        def broken(name, *args):
            if name == 'torchvision': raise RuntimeError('operator torchvision::nms does not exist')
            return real(name, *args)
        monkeypatch.setattr(importlib, 'import_module', broken)
    monkeypatch.setattr(own.CaptionData, 'check', lambda *a, **k: pytest.fail('the work began'))
    for command in ('write', 'extract'):
        assert data_main([command, str(photos), str(tmp_path/'o'), '--backbone', 'torchvision/resnet18']) == 1
        err = capsys.readouterr().err
        assert "backbone 'torchvision/resnet18' cannot be used here" in err and "What works here is the backbone 'patches'" in err and not (tmp_path/'o').exists()
    with pytest.raises(ImportError, match="What works here is the backbone 'patches'"): own.CaptionData.from_folder(photos).write(tmp_path/'o', 'torchvision/resnet18')
    assert data_main(['write', str(photos), str(tmp_path/'o'), '--backbone', 'resnet18']) == 1
    assert "there are 'patches', 'efficientnet_lite0' to 'efficientnet_lite4' and 'torchvision/NAME'" in capsys.readouterr().err and not (tmp_path/'o').exists()


def test_captions_whose_picture_is_not_read(tmp_path, capsys):
    "A text beside a .heic, a link to nowhere, a folder or nothing: each is named, and the others are read."
    folder = tmp_path/'photos'
    folder.mkdir()
    for n in range(3): Image.new('RGB', (8, 8), (60*n, 0, 0)).save(folder/f'{n}.png')
    (folder/'phone.heic').write_bytes(b'ftypheic')
    (folder/'gone.png').symlink_to('nowhere.png')
    (folder/'sub.png').mkdir()
    for name in ('0', '1', '2', 'phone', 'gone', 'sub', 'alone [1]', '.hidden'): (folder/f'{name}.txt').write_text('a red square\n')
    data = CaptionData.from_folder(folder)
    lone = {f.where.rpartition('/')[2]: f.detail for f in data.check() if f.kind == 'text without file'}
    assert len(data) == 3 and set(lone) == {'phone.txt', 'gone.txt', 'sub.txt', 'alone [1].txt'}
    assert lone['phone.txt'].startswith('phone.heic is not read: files are .avi') and lone['alone [1].txt'].startswith('no picture')
    assert data_main(['check', str(folder)]) == 0 and 'text without file (4)' in capsys.readouterr().out
    assert data_main(['write', str(folder), str(tmp_path/'out')]) == 0 and 'phone.heic is not read' in capsys.readouterr().out
