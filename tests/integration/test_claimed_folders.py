"Data sets are written into folders of their own: files of somebody else stay, and a store takes no other numbers under an id."
import json
import numpy as np
import pytest
from PIL import Image
from xmodaler_nb.own import CaptionData
from xmodaler_nb.own.real import write_neutral_tiny, write_real_dataset
from xmodaler_nb.own.store_import import import_features
from xmodaler_nb.utils.store import FeatureStore


def photos(folder):
    folder.mkdir()
    for n in range(6):
        Image.new('RGB', (8, 8), (40*n, 0, 0)).save(folder/f'{n}.png')
        (folder/f'{n}.txt').write_text('a red square\nanother square\n')
    return CaptionData.from_folder(folder)


@pytest.mark.parametrize('name', ['vocabulary.txt', 'captions_val.json', 'mscoco_caption_anno_train.pkl'])
def test_files_of_somebody_else_stay(tmp_path, name):
    data, mine = photos(tmp_path/'photos'), tmp_path/'mine'
    mine.mkdir()
    (mine/name).write_text('written by hand')
    with pytest.raises(FileExistsError, match=name): data.write(mine, 'patches', size=8, cells=1)
    assert [p.name for p in mine.iterdir()] == [name] and (mine/name).read_text() == 'written by hand'
    with pytest.raises(FileExistsError, match=name): write_real_dataset(write_neutral_tiny(tmp_path/'neutral'), mine)


def test_neutral_files_are_not_written_over(tmp_path):
    folder = write_neutral_tiny(tmp_path/'neutral')
    before = (folder/'captions_val.json').read_text()
    with pytest.raises(FileExistsError, match='captions_test.json'): write_real_dataset(folder, folder)
    assert (folder/'captions_val.json').read_text() == before


def test_a_stopped_write_goes_on(tmp_path, monkeypatch):
    data = photos(tmp_path/'photos')
    with monkeypatch.context() as m:
        m.setattr('xmodaler_nb.own.data._write_report', lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt): data.write(tmp_path/'out', 'patches', size=8, cells=1)
    assert data.write(tmp_path/'out', 'patches', size=8, cells=1).verify() == []


def test_import_compares(tmp_path):
    "A second source with the same ids: equal numbers are left, others are refused, in both precisions."
    (tmp_path/'a').mkdir()
    (tmp_path/'b').mkdir()
    rng = np.random.default_rng(0)
    for i in range(3): np.savez(tmp_path/'a'/f'{i}.npz', features=rng.normal(size=(2, 4)).astype('f4'))
    np.savez(tmp_path/'b'/'1.npz', features=rng.normal(size=(2, 4)).astype('f4'))
    for dtype in ('float32', 'float16'):
        out = tmp_path/dtype
        assert [import_features(tmp_path/'a', out, dtype=dtype) for _ in range(2)] == [3, 0]
        with pytest.raises(ValueError, match='id 1 is stored already with other numbers .features.'):
            import_features(tmp_path/'b', out, dtype=dtype)
        assert len(FeatureStore(out)) == 3 and FeatureStore(out).verify() == []
