"Features are kept by what made them: a picture that was added, replaced or renamed, another network, other options; after any kill, `verify` proves that each item comes from its picture."
import json
import subprocess
import sys
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from xmodaler_nb.commands.data import data_main
from xmodaler_nb.functional import read_np
from xmodaler_nb.own import CaptionData
from xmodaler_nb.own.extract import BackboneExtractor, extract_features
from xmodaler_nb.own.origin import verify_features
from xmodaler_nb.utils.store import FeatureStore, FeatureWriter

SIDE = dict(size=16, cells=1)

def paint(folder, **greys):
    "One picture per name, of one grey each, with two captions."
    folder.mkdir(exist_ok=True)
    for name, grey in greys.items():
        Image.new('RGB', (16, 16), (grey, grey, grey)).save(folder/f'{name}.png')
        (folder/f'{name}.txt').write_text('a grey square\nanother square\n')
    return folder


def write(folder, out, backbone='patches', **options):
    options = dict(dict(size=16, cells=2), **options) if backbone == 'patches' else options
    return CaptionData.from_folder(folder).write(out, backbone, val=.2, test=.2, **options)


def greys(written):
    "File name → the grey that its features show."
    stored = {i: read_np(written.folder/'features'/f'{i}.npz')['features'] for i in written.files}
    return {written.files[i].split('/')[-1]: round(float(f[0, 0]*255)) for i, f in stored.items()}


@pytest.mark.parametrize('layout', ['xmodaler', 'store'])
def test_a_picture_that_sorts_first(tmp_path, layout):
    "The case of the issue: every id moves by one, and every feature with it; only the new picture is extracted."
    photos = paint(tmp_path/'p', b=10, c=20, d=30, e=40, f=50)
    write(photos, tmp_path/'o', layout=layout)
    paint(photos, a=200)
    seen = []
    class Counting(BackboneExtractor):
        def preprocess(self, image):
            seen.append(1)
            return super().preprocess(image)
    written = write(photos, tmp_path/'o', layout=layout)
    assert greys(written) == {'a.png': 200, 'b.png': 10, 'c.png': 20, 'd.png': 30, 'e.png': 40, 'f.png': 50}
    assert written.verify() == []
    counting = Counting('patches', 'grid', size=16, cells=2)
    write(photos, tmp_path/'o2', counting, layout=layout)
    assert len(seen) == 6
    paint(photos, A=250)
    written = write(photos, tmp_path/'o2', counting, layout=layout)
    assert len(seen) == 7 and greys(written)['A.png'] == 250 and len(set(greys(written).values())) == 7 and written.verify() == []


@pytest.mark.parametrize('layout', ['xmodaler', 'store'])
def test_a_replaced_and_a_removed_picture(tmp_path, layout):
    photos = paint(tmp_path/'p', a=10, b=20, c=30, d=40, e=50)
    first = write(photos, tmp_path/'o', layout=layout)
    paint(photos, b=210)
    problem, = first.verify()
    assert 'id 2 was made from another picture than' in problem and 'b.png' in problem
    for name in ('d.png', 'd.txt'): (photos/name).unlink()
    written = write(photos, tmp_path/'o', layout=layout)
    assert greys(written) == {'a.png': 10, 'b.png': 210, 'c.png': 30, 'e.png': 50} and written.verify() == []
    assert len({p for p in (tmp_path/'o/features').glob('[!.]*.npz')}) == 4 or layout == 'store'
    if layout == 'store': assert len(FeatureStore(tmp_path/'o/features')) == 4


@pytest.mark.parametrize('layout', ['xmodaler', 'store'])
@pytest.mark.parametrize('change', [dict(size=8), dict(cells=1), dict(mean=(.5, .5, .5)), dict(crop='centre'), dict(kind='global')])
def test_other_options(tmp_path, layout, change):
    "The features of a folder that is written anew are those of the new options, and extractor.json states them."
    photos = paint(tmp_path/'p', a=10, b=20, c=30, d=40)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 40, 3), dtype=np.uint8)).save(photos/'a.png')
    write(photos, tmp_path/'o', layout=layout)
    again = write(photos, tmp_path/'o', layout=layout, **change)
    fresh = write(photos, tmp_path/'fresh', layout=layout, **change)
    for i in fresh.files: assert np.array_equal(read_np(again.folder/'features'/f'{i}.npz')['features'], read_np(fresh.folder/'features'/f'{i}.npz')['features'])
    told = json.loads((again.folder/'features/extractor.json').read_text())
    assert all(told[k] == (list(v) if isinstance(v, tuple) else v) for k, v in change.items()) and again.verify() == []
    (again.folder/'features/extractor.json').write_text(json.dumps(dict(told, size=99)))
    assert 'does not describe what made these features' in again.verify()[0]


def test_another_network_of_the_same_name(tmp_path):
    "Weights, an option of a layer, or a line of a class of your own: all of these make other features."
    photos = paint(tmp_path/'p', a=10, b=20, c=30, d=40)
    net = lambda seed, **kw: (torch.manual_seed(seed), nn.Sequential(nn.Conv2d(3, 4, 3, **kw), nn.Flatten(2)))[1]
    def features(net):
        written = write(photos, tmp_path/'o', BackboneExtractor(nn.Sequential(net, Rows()), 'grid', size=8))
        return read_np(written.folder/'features/1.npz')['features']
    a = features(net(0))
    assert np.array_equal(features(net(0)), a)
    assert not np.array_equal(features(net(1)), a)
    b = features(net(0, padding=1))
    assert b.shape != a.shape


class Rows(nn.Module):
    def forward(self, x): return x.transpose(1, 2)


@pytest.mark.parametrize('layout', ['npz', 'npy', 'store'])
def test_extract_refuses_what_would_mix(tmp_path, layout):
    photos = paint(tmp_path/'p', a=10, b=20, c=30)
    out, how = tmp_path/'s', dict(layout=layout, **SIDE)
    assert extract_features('patches', photos, out, **how).added == 3
    assert extract_features('patches', photos, out, **how).skipped == 3
    with pytest.raises(ValueError, match=r's: id a and 2 more was made by another network or with other options, or make them anew with replace=True \(--replace\)'):
        extract_features('patches', photos, out, **dict(how, size=8))
    with pytest.raises(ValueError, match='id c was made by another network or with other options, which are not among the files of this call'):
        extract_features('patches', [photos/'a.png', photos/'b.png'], out, replace=True, **dict(how, size=8))
    assert extract_features('patches', photos, out, replace=True, **dict(how, size=8)).added == 3
    assert extract_features('patches', photos, out, **dict(how, size=8)).skipped == 3
    paint(tmp_path/'q', d=99)
    assert extract_features('patches', tmp_path/'q', out, **dict(how, size=8)).added == 1          # more files into the same folder
    assert verify_features(out, {n: tmp_path/f for n, f in dict(a='p/a.png', b='p/b.png', c='p/c.png', d='q/d.png').items()}) == []


def test_features_that_nobody_noted_are_left_alone(tmp_path):
    photos = paint(tmp_path/'p', a=10, b=20)
    (tmp_path/'s').mkdir()
    np.savez(tmp_path/'s/a.npz', features=np.ones((1, 43)))
    before = (tmp_path/'s/a.npz').read_bytes()
    with pytest.raises(ValueError, match='s: holds features of id a, and nothing says what they were made from; name another folder'):
        extract_features('patches', photos, tmp_path/'s', layout='npz', **SIDE)
    assert (tmp_path/'s/a.npz').read_bytes() == before
    with FeatureWriter(tmp_path/'t') as w: w.add('a', features=np.ones((1, 43)))
    with pytest.raises(ValueError, match='t: holds features of id a'): extract_features('patches', photos, tmp_path/'t', **SIDE)


def test_features_that_exist_are_copied_by_their_content(tmp_path):
    "Feature files as the source: replaced, added, into single files and into a store."
    source = tmp_path/'f'
    source.mkdir()
    def save(**values):
        for k, v in values.items():
            np.savez(source/f'{k}.npz', features=np.full((2, 3), float(v)))
            (source/f'{k}.txt').write_text('a square\n')
    save(b=1, c=2, d=3, e=4)
    for layout in ('xmodaler', 'store'): write(source, tmp_path/layout, None, layout=layout)
    save(a=9, c=7)
    for layout in ('xmodaler', 'store'):
        written = write(source, tmp_path/layout, None, layout=layout)
        got = {f.split('/')[-1]: read_np(written.folder/'features'/f'{i}.npz')['features'][0, 0] for i, f in written.files.items()}
        assert got == {'a.npz': 9, 'b.npz': 1, 'c.npz': 7, 'd.npz': 3, 'e.npz': 4} and written.verify() == []


def test_the_backbone_follows_features_that_were_copied(tmp_path):
    "A folder first written from feature files, then from pictures of the same ids."
    source = tmp_path/'f'
    source.mkdir()
    for k in 'abcd': np.savez(source/f'{k}.npz', features=np.ones((2, 3))); (source/f'{k}.txt').write_text('a square\n')
    write(source, tmp_path/'o', None)
    written = write(paint(tmp_path/'p', a=10, b=20, c=30, d=40), tmp_path/'o')
    assert greys(written) == {'a.png': 10, 'b.png': 20, 'c.png': 30, 'd.png': 40} and written.verify() == []


KILLED = """
import os, sys
from xmodaler_nb.own import CaptionData, origin
count, stop = [0], int(sys.argv[3])
def dying(f):
    def g(*args, **kwargs):
        count[0] += 1
        if count[0] > stop: os._exit(9)
        return f(*args, **kwargs)
    return g
os.replace = dying(os.replace)
CaptionData.from_folder(sys.argv[1]).write(sys.argv[2], 'patches', val=.2, test=.2, size=16, cells=2, layout=sys.argv[4])
"""

@pytest.mark.slow
@pytest.mark.parametrize('layout', ['xmodaler', 'store'])
def test_killed_at_every_renaming(tmp_path, layout):
    "Whatever moment the process dies at, no annotation points to the features of another picture, and the next call ends well."
    import shutil
    photos = paint(tmp_path/'p', b=10, c=20, d=30)
    write(photos, tmp_path/'o', layout=layout)
    paint(photos, a=200, c=90)
    for stop in range(0, 60, 3):
        out = tmp_path/f'o{stop}'
        shutil.copytree(tmp_path/'o', out)
        ended = subprocess.run([sys.executable, '-c', KILLED, str(photos), str(out), str(stop), layout], capture_output=True, text=True)
        assert ended.returncode in (0, 9), ended.stderr
        if (out/'mscoco_caption_anno_train.pkl').is_file() and (out/'report.json').is_file():      # the old or the new folder, whole
            from xmodaler_nb.own.data import WrittenData
            left = WrittenData(out)
            kept = {i for i in left.files if not (photos/left.files[i].split('/')[-1]).name == 'c.png'}
            assert not [p for p in left.verify() if 'another picture' in p and any(f'id {i} ' in p for i in kept)]
        written = write(photos, out, layout=layout)
        assert greys(written) == {'a.png': 200, 'b.png': 10, 'c.png': 90, 'd.png': 30} and written.verify() == []
        if ended.returncode == 0: break
    assert stop > 5


def test_verify_from_the_shell(tmp_path, capsys):
    photos = paint(tmp_path/'p', a=10, b=20, c=30, d=40)
    write(photos, tmp_path/'o')
    assert data_main(['verify', str(tmp_path/'o')]) == 0
    assert data_main(['verify', str(tmp_path/'o/features')]) == 0
    assert data_main(['extract', str(photos), str(tmp_path/'s'), '--size', '16']) == 0
    assert data_main(['verify', str(tmp_path/'s')]) == 0
    paint(photos, c=31)
    capsys.readouterr()
    assert data_main(['verify', str(tmp_path/'o')]) == 1
    assert 'id 3 was made from another picture' in capsys.readouterr().out
    assert data_main(['extract', str(photos), str(tmp_path/'s'), '--size', '32']) == 1
    assert '--replace' in capsys.readouterr().err
    assert data_main(['extract', str(photos), str(tmp_path/'s'), '--size', '32', '--replace']) == 0
    assert data_main(['verify', str(tmp_path/'nowhere')]) == 1


def test_a_function_that_does_not_describe_itself(tmp_path, caplog):
    "Two functions cannot be told apart, so nothing of theirs is used again."
    photos = paint(tmp_path/'p', a=10, b=20)
    for value in (1., 2.):
        done = extract_features(lambda picture: dict(features=np.full((1, 3), value)), photos, tmp_path/'s', dtype='float32')
        assert done.added == 2 and done.skipped == 0 and FeatureStore(tmp_path/'s')['a']['features'][0, 0] == value
    assert 'has no to_dict' in caplog.text
