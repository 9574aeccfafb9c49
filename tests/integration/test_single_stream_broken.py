"Single-stream retrieval with one feature file that cannot be used: the other pictures are scored as before, this one is named, and a training does not begin."
import numpy as np
import pytest
from test_task_trainers import MM, STEPS, config, world                     # noqa: F401
from xmodaler_nb.commands.run_report import readable_split
from xmodaler_nb.commands.train import evaluate_only
from xmodaler_nb.engine import build_engine
from xmodaler_nb.utils.store import FeatureStore

@pytest.fixture
def files(world, tmp_path):                                                  # noqa: F811
    "The features of the world as single files, in place of its store."
    (folder := tmp_path/'features').mkdir()
    store = FeatureStore(config(CONFIG, world).DATALOADER.FEATS_FOLDER)
    for i in store: np.savez(folder/f'{i}.npz', **{k: np.array(v) for k, v in store[i].items()})
    return folder

CONFIG = MM + 'flickr30k_retrieval/uniter/flickr30k_retrieval.yaml'

@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('how', ['cut', 'gone', 'width', 'nan'])
def test_the_others_are_scored(world, files, tmp_path, how):                        # noqa: F811
    cfg = config(CONFIG, world, **{**STEPS, 'OUTPUT_DIR': str(tmp_path), 'DATALOADER.INF_BATCH_SIZE': 2})
    cfg.defrost()
    cfg.DATALOADER.FEATS_FOLDER = str(files)
    whole = build_engine(cfg)
    mapper = whole.val_data_loader.dataset.mapper
    bad, owners = mapper.image_ids[1], np.array([e['image_id'] for e in mapper.load_data()])
    scores, right = whole.inference(cfg, whole.model, whole.val_data_loader)
    file, arrays = files/f'{bad}.npz', dict(np.load(files/f'{bad}.npz'))
    if how == 'cut': file.write_bytes(file.read_bytes()[:100])
    elif how == 'gone': file.unlink()
    else: np.savez(file, **{**arrays, 'features': arrays['features'][:, 1:] if how == 'width' else arrays['features']*np.nan})
    t, failed = build_engine(cfg), {}
    t.model.load_state_dict(whole.model.state_dict())
    assert set(evaluate_only(cfg, t, failed)) == {'val', 'test'}
    assert list(failed) == [f'val {bad}'] and f'{bad}.npz' in failed[f'val {bad}']
    left, columns = owners != bad, [k for k, i in enumerate(mapper.image_ids) if i != bad]
    again, new = t.inference(cfg, t.model, readable_split(t, 'val')[0])
    np.testing.assert_allclose(again, scores[left][:, columns], atol=1e-5)
    assert [columns[k] for k in new] == list(np.array(right)[left])
    with pytest.raises(ValueError, match=f'{bad}.npz'): t.train(0, 4)

@pytest.mark.filterwarnings('ignore')
def test_nothing_left(world, tmp_path, monkeypatch):                        # noqa: F811
    from xmodaler_nb.datasets.images.flickr30k_single_stream import Flickr30kDatasetForSingleStreamVal
    def broken(self, image_id): raise ValueError(f'{image_id}.npz: not a readable file')
    monkeypatch.setattr(Flickr30kDatasetForSingleStreamVal, 'box_fields', broken)
    with pytest.raises(ValueError, match='val: none of the 4 pictures can be used; the first: .*npz'):
        build_engine(config(CONFIG, world, **{**STEPS, 'OUTPUT_DIR': str(tmp_path)}))
