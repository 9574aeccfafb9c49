"Inputs that are odd, and that people have: each is read rightly or refused with a sentence."
import os
import subprocess
import sys
import unicodedata
import numpy as np
import pytest
import torch
from PIL import Image
from small import small_captioner
from xmodaler_nb.own import CaptionData
from xmodaler_nb.utils.env import seed_all_rng

FEATS = np.ones((2, 4), np.float32)

@pytest.fixture(scope='module')
def cap(): return small_captioner()


@pytest.mark.parametrize('table, disk', [('NFC', 'NFD'), ('NFD', 'NFC')])
def test_two_ways_to_write_an_accent(tmp_path, table, disk):
    "A Mac's disk takes the accent off its letter, a table keeps it there, or the other way round."
    names = [f'{w}.png' for w in ('café', 'Übung', 'naïve', 'plain')]
    for name in names: Image.new('RGB', (9, 9)).save(tmp_path/unicodedata.normalize(disk, name))
    rows = '\n'.join(f'{unicodedata.normalize(table, name)},a thing number {k}' for k, name in enumerate(names))
    (tmp_path/'captions.csv').write_text('image,caption\n' + rows + '\n', encoding='utf-8')
    found = CaptionData.from_folder(tmp_path)
    assert not found.check().of_kinds('missing file', 'file without caption')
    assert all(os.path.isfile(s.file) for s in found.samples)


@pytest.mark.parametrize('kw, why', [(dict(max_len=0), 'max_len is 0'), (dict(max_len=-3), 'max_len is -3'), (dict(val=-.05), 'none may be negative'), (dict(test=-.01, val=.5), 'none may be negative'),
                                     (dict(val=float('nan')), 'val and test are nan')])
def test_options_of_write(tmp_path, kw, why):
    for k in range(6): Image.new('RGB', (9, 9), (k, 0, 0)).save(tmp_path/f'{k}.png')
    (tmp_path/'captions.csv').write_text('image,caption\n' + ''.join(f'{k}.png,a thing {k}\n' for k in range(6)))
    with pytest.raises(ValueError, match=why): CaptionData.from_folder(tmp_path).write(tmp_path/'out', **kw)
    assert not (tmp_path/'out').exists()


def test_pictures_from_an_iterator(cap):
    a = [c.text for c in cap.describe([FEATS, FEATS*2])]
    assert [c.text for c in cap.describe(f for f in (FEATS, FEATS*2))] == a == [c.text for c in cap.describe(map(np.asarray, (FEATS, FEATS*2)))]
    assert cap.describe(iter(())) == []


@pytest.mark.parametrize('feats, why', [(np.ma.masked_array(FEATS, FEATS > 0), 'picture sea: features: 8 numbers are masked'), (torch.empty(2, 4, device='meta'), 'picture sea: .*device meta')])
def test_arrays_whose_numbers_are_not_there(cap, feats, why):
    with pytest.raises(ValueError, match=why): cap.describe([feats], ids=['sea'])
    assert cap.describe([np.ma.masked_array(FEATS, FEATS > 9)])[0].text == cap.describe([FEATS])[0].text       # nothing is masked


def test_no_name_is_not_this_folder(cap, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="name of the folder is empty"): cap.save_pretrained('')
    assert not any(tmp_path.iterdir())
    cap.save_pretrained('.')
    assert (tmp_path/'model.safetensors').is_file()


def test_seeds():
    assert [seed_all_rng(s) for s in (np.int64(3), np.uint8(3), torch.tensor(3), 3)] == [3]*4
    for bad in (1.5, 'a', [1]):
        with pytest.raises(ValueError, match='the seed is .*, but must be a whole number'): seed_all_rng(bad)
    run = lambda shift: subprocess.run([sys.executable, '-c', 'from xmodaler_nb.utils.env import seed_all_rng; seed_all_rng(1)'], env={**os.environ, 'XMODALER_SEED_SHIFT': shift}, capture_output=True, text=True)
    assert "XMODALER_SEED_SHIFT is 'many', but must be a whole number" in run('many').stderr
