"Bad data is found before the first step, and the message names file or id, the rule and what was seen."
import pickle, random
import numpy as np, pytest, torch
from xmodaler_nb.modeling import load_cfg_file
from xmodaler_nb.datasets import build_xmodaler_train_loader
from xmodaler_nb.datasets.check import DatasetError, check_dataset, check_datasets
from xmodaler_nb.datasets.layout import write_features, write_pickle, write_tiny, write_vocabulary
from xmodaler_nb.utils.safe_pickle import UnsafePickleError, safe_load


def config(root, *opts, file='image_caption/updown/updown.yaml'):
    return load_cfg_file(file, ['DATALOADER.ANNO_FOLDER', str(root), 'DATALOADER.FEATS_FOLDER', str(root/'features'), 'DATALOADER.TRAIN_BATCH_SIZE', 2, 'DATALOADER.NUM_WORKERS', 0,
        'DATALOADER.MAX_FEAT_NUM', 10, 'MODEL.VOCAB_SIZE', 9, 'MODEL.VISUAL_EMBED.IN_DIM', 4, 'MODEL.DEVICE', 'cpu', 'SEED', 1, 'INFERENCE.VOCAB', str(root/'vocabulary.txt'),
        'INFERENCE.VAL_ANNFILE', str(root/'captions_val.json'), 'INFERENCE.TEST_ANNFILE', str(root/'captions_test.json'), *opts])


@pytest.fixture
def root(tmp_path): return write_tiny(tmp_path)


def train_list(root): return safe_load(root/'mscoco_caption_anno_train.pkl')
def save_train(root, entries): write_pickle(root/'mscoco_caption_anno_train.pkl', entries)


def test_good_data(root):
    reports = check_datasets(config(root))
    assert [(r.stage, r.entries) for r in reports] == [('train', 3), ('val', 2), ('test', 1)]
    assert check_dataset(config(root, 'DATASETS.VAL', ''), 'val') is None


def test_check_leaves_chance_alone(root):
    random.seed(0); np.random.seed(0); torch.manual_seed(0)
    check_datasets(config(root), sample='all')
    got = random.random(), np.random.rand(), torch.rand(1)
    random.seed(0); np.random.seed(0); torch.manual_seed(0)
    assert got == (random.random(), np.random.rand(), torch.rand(1))


def test_missing_annotation_file(root):
    (root/'mscoco_caption_anno_train.pkl').unlink()
    with pytest.raises(FileNotFoundError, match='mscoco_caption_anno_train.pkl'): check_dataset(config(root))
    with pytest.raises(FileNotFoundError, match='mscoco_caption_anno_train.pkl'): build_xmodaler_train_loader(config(root))


def test_missing_feature_file(root):
    (root/'features'/'101.npz').unlink()
    with pytest.raises(DatasetError, match=r'101\.npz: no such feature file, but the annotations name id 101'): check_dataset(config(root))
    with pytest.raises(FileNotFoundError, match=r'101\.npz'): list(build_xmodaler_train_loader(config(root, 'DATALOADER.TRAIN_BATCH_SIZE', 3)))


def test_missing_feature_folder(root):
    with pytest.raises(DatasetError, match='nowhere: the feature folder does not exist'): check_dataset(config(root, 'DATALOADER.FEATS_FOLDER', str(root/'nowhere')))


@pytest.mark.parametrize('keep', [0, 10, 200, -20])
def test_truncated_npz(root, keep):
    path = root/'features'/'102.npz'
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DatasetError, match=r'id 102: .*102\.npz: not a readable'): check_dataset(config(root))


def test_object_array(root):
    np.savez(root/'features'/'102.npz', features=np.array([[print]], dtype=object))
    with pytest.raises(DatasetError, match=r'102\.npz: not a readable'): check_dataset(config(root))


def test_annotation_without_features(root):
    save_train(root, [*train_list(root), {**train_list(root)[0], 'image_id': '999'}])
    with pytest.raises(DatasetError, match=r'999\.npz: no such feature file, but the annotations name id 999'): check_dataset(config(root))


def test_wrong_feature_width(root):
    with pytest.raises(DatasetError, match=r'100\.npz: ATT_FEATS are 4 wide, but the model expects 2048 \(MODEL.VISUAL_EMBED.IN_DIM\)'): check_dataset(config(root, 'MODEL.VISUAL_EMBED.IN_DIM', 2048))
    write_features(root/'features', '101', features=np.ones((3, 7)))
    with pytest.raises(DatasetError, match=r'101\.npz: ATT_FEATS are 7 wide'): check_dataset(config(root))


def test_not_a_number(root):
    write_features(root/'features', '101', features=np.full((3, 4), np.nan))
    with pytest.raises(DatasetError, match=r'101\.npz: ATT_FEATS contain 12 numbers that are infinite or not a number'): check_dataset(config(root))


def test_token_outside_vocabulary(root):
    entries = train_list(root)
    entries[1]['tokens_ids'][0, 1] = entries[1]['target_ids'][0, 0] = 9
    save_train(root, entries)
    with pytest.raises(DatasetError, match=r'id 101: tokens_ids are 0 … 8 \(MODEL.VOCAB_SIZE is 9\), here are 0 … 9') as e: check_dataset(config(root))
    assert len(e.value.problems) == 2


def test_vocabulary_smaller_than_the_model(root):
    with pytest.raises(DatasetError, match=r"vocabulary.txt: 8 words and '.' make a vocabulary of 9, but MODEL.VOCAB_SIZE is 20"): check_dataset(config(root, 'MODEL.VOCAB_SIZE', 20))
    write_vocabulary(root/'vocabulary.txt', [f'w{i}' for i in range(20)])
    assert 'make a vocabulary of 21' in check_dataset(config(root)).warnings[0]       # a larger one is worth a note
    (root/'vocabulary.txt').unlink()
    with pytest.raises(DatasetError, match='vocabulary.txt: no such file'): check_dataset(config(root))


def test_rows_of_unequal_sizes(root):
    entries = train_list(root); entries[0]['target_ids'] = entries[0]['target_ids'][:,:-1]; save_train(root, entries)
    with pytest.raises(DatasetError, match=r'id 100: tokens_ids have sizes \(3, 6\), target_ids \(3, 5\)'): check_dataset(config(root))


def test_empty_data_set(root):
    save_train(root, [])
    with pytest.raises(ValueError, match='mscoco_caption_anno_train.pkl: the annotation list is empty'): check_dataset(config(root))
    with pytest.raises(ValueError, match='the annotation list is empty'): build_xmodaler_train_loader(config(root))


def test_fewer_entries_than_a_batch(root):
    with pytest.raises(DatasetError, match='3 entries do not fill one batch of 64'): check_dataset(config(root, 'DATALOADER.TRAIN_BATCH_SIZE', 64))


def test_unknown_data_set(root):
    with pytest.raises(KeyError, match="no object named 'MSCoCoDatset' in the DATASETS registry. Did you mean 'MSCoCoDataset'"): check_dataset(config(root, 'DATASETS.TRAIN', 'MSCoCoDatset'))


def test_no_references(root):
    entries = safe_load(root/'mscoco_caption_anno_val.pkl')
    write_features(root/'features', '777', features=np.ones((2, 4)))
    write_pickle(root/'mscoco_caption_anno_val.pkl', [*entries, dict(image_id='777'), entries[0]])
    with pytest.raises(DatasetError, match='captions_val.json: no reference for id 777') as e: check_dataset(config(root), 'val')
    assert 'stands in the evaluation list twice' in e.value.problems[1]
    with pytest.raises(DatasetError, match='gone.json: no such file .of references'): check_dataset(config(root, 'INFERENCE.VAL_ANNFILE', str(root/'gone.json')), 'val')


class Evil:
    def __init__(self, path): self.path = path
    def __reduce__(self): return (open, (str(self.path), 'w'))


@pytest.mark.parametrize('where', ['mscoco_caption_anno_train.pkl', 'gv.pkl'])
def test_pickle_that_would_run(root, where, tmp_path):
    (root/where).write_bytes(pickle.dumps([Evil(tmp_path/'was_here')]))
    with pytest.raises(UnsafePickleError, match=where): check_dataset(config(root, 'DATALOADER.GV_FEAT_FILE', str(root/'gv.pkl') if where == 'gv.pkl' else ''))
    assert not (tmp_path/'was_here').exists()


def python_2(x) -> bytes:
    "What Python 2's pickle, protocol 0, writes for strings, ints, lists and dicts."
    if isinstance(x, str): return f"S'{x}'\n".encode()
    if isinstance(x, dict): return b'(d' + b''.join(python_2(k) + python_2(v) + b's' for k, v in x.items())
    if isinstance(x, list): return b'(l' + b''.join(python_2(v) + b'a' for v in x)
    return f'I{int(x)}\n'.encode()


def test_python_2_annotations(root):
    "Annotation lists that Python 2 wrote are read like the rest."
    e = train_list(root)[0]
    (root/'mscoco_caption_anno_train.pkl').write_bytes(python_2([{k: v if k == 'image_id' else v.tolist() for k, v in e.items()}]) + b'.')
    assert check_dataset(config(root, 'DATALOADER.TRAIN_BATCH_SIZE', 1)).rows == 3


def test_video(tmp_path):
    root = write_tiny(tmp_path, prefix='msvd', key='video_id')
    cfg = config(root, file='video_caption/msvd/salstm/salstm.yaml')
    assert check_dataset(cfg).entries == 9               # a training entry per sentence
    (root/'features'/'101.npy').unlink()
    with pytest.raises(DatasetError, match=r'101\.npy: no such feature file') as e: check_dataset(cfg)
    assert len(e.value.problems) == 1
