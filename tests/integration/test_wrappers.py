"Every documented data set of captions reads X-modaler's files: pickles of Python 2 too, features as single files or from a store, and nothing that would execute."
import pickle
import numpy as np
import pytest
import torch
from xmodaler_nb.modeling import load_cfg_file
from xmodaler_nb.datasets.build import build_dataset_mapper
from xmodaler_nb.datasets.common import ItemKey, MapDataset
from xmodaler_nb.datasets.layout import write_tiny
from xmodaler_nb.own.store_import import import_npz
from xmodaler_nb.utils.safe_pickle import safe_load

SETS = dict(MSCoCoDataset=('mscoco', 'image_id'), MSCoCoSampleByTxtDataset=('mscoco', 'image_id'), MSCoCoCOSNetDataset=('cosnet/mscoco', 'image_id'), MSVDDataset=('msvd', 'video_id'), MSRVTTDataset=('msrvtt', 'video_id'))
CONFIGS = dict(MSCoCoCOSNetDataset='image_caption/cosnet/cosnet.yaml')


class Evil:
    def __reduce__(self): return print, ('executed',)


def anno(d, name, stage):
    end = f'_clipfilter_fast_{stage}' if 'COSNet' in name else f'_{stage}'
    return d/f'{SETS[name][0]}_caption_anno{end}.pkl'


def write(d, name, protocol=4):
    "A tiny data set as X-modaler's scripts write it, its pickles in an old protocol if wanted."
    prefix, key = SETS[name]
    write_tiny(d, prefix=prefix.split('/')[-1], key=key)
    anno(d, name, 'train').parent.mkdir(exist_ok=True)
    for stage in ('train', 'val', 'test'):
        entries = safe_load(d/f"{prefix.split('/')[-1]}_caption_anno_{stage}.pkl")
        if 'COSNet' in name: entries = [{**e, 'attr_pred': np.array([1, 2, 3]), 'attr_labels': np.array([1, 906, 3]), 'missing_labels': [5, 6]} for e in entries]
        with open(anno(d, name, stage), 'wb') as f: pickle.dump(entries, f, protocol=protocol)


def items(d, name, feats, stage='train'):
    k = 1 if 'SampleByTxt' in name else 2
    cfg = load_cfg_file(CONFIGS.get(name, 'image_caption/updown/updown.yaml'), ['DATALOADER.ANNO_FOLDER', str(d), 'DATALOADER.FEATS_FOLDER', str(feats), 'DATALOADER.SEQ_PER_SAMPLE', k, 'DATALOADER.MAX_FEAT_NUM', 50])
    mapper = build_dataset_mapper(cfg, name, stage)
    entries = mapper.load_data(cfg)
    return [MapDataset(entries, mapper)[ItemKey(i, 0, 1)] for i in range(len(entries))]


def same(a, b):
    if isinstance(a, (list, tuple)): return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


@pytest.mark.parametrize('protocol', [0, 2, 4])
@pytest.mark.parametrize('name', SETS)
def test_reads_pickles_of_any_age_and_both_kinds_of_features(tmp_path, name, protocol):
    write(tmp_path, name, protocol)
    import_npz(tmp_path/'features', tmp_path/'store')
    for stage in ('train', 'val', 'test'):
        one, two = (items(tmp_path, name, tmp_path/f, stage) for f in ('features', 'store'))
        assert one and len(one) == len(two)
        for a, b in zip(one, two):
            assert set(a) == set(b) and all(same(a[k], b[k]) for k in a)
            assert isinstance(a['IDS'], str) and a['ATT_FEATS'].dtype == torch.float32 and ('G_TARGET_IDS' in a) == (stage == 'train')


@pytest.mark.parametrize('name', SETS)
def test_refuses_a_pickle_that_would_execute(tmp_path, name, capsys):
    write(tmp_path, name)
    with open(anno(tmp_path, name, 'train'), 'wb') as f: pickle.dump([{'image_id': '1', 'tokens_ids': Evil()}], f)
    with pytest.raises(pickle.UnpicklingError, match=r'builtins\.print'): items(tmp_path, name, tmp_path/'features')
    assert 'executed' not in capsys.readouterr().out


def test_feature_files_named_in_the_config(tmp_path):
    "MSCoCoFeatDataset: no annotations; a path into a store works like a file."
    write(tmp_path, 'MSCoCoDataset')
    import_npz(tmp_path/'features', tmp_path/'store')
    read = []
    for folder in ('features', 'store'):
        cfg = load_cfg_file('image_caption/updown/updown.yaml', ['DATALOADER.SAMPLE_IDS', ['100', '101'], 'DATALOADER.FILE_PATHS', [str(tmp_path/folder/f'{i}.npz') for i in (100, 101)], 'DATALOADER.MAX_FEAT_NUM', 50])
        mapper = build_dataset_mapper(cfg, 'MSCoCoFeatDataset', 'test')
        read.append([mapper(e) for e in mapper.load_data(cfg)])
    assert all(same(a[k], b[k]) for a, b in zip(*read) for k in a) and read[0][0]['IDS'] == '100' and 'GLOBAL_FEATS' in read[0][0]
