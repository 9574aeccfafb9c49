"The real data sets, where they are: every file is read, every word is found again."
import collections
import pytest
from xmodaler_nb.modeling import load_cfg_file
from xmodaler_nb.datasets import build_xmodaler_train_loader
from xmodaler_nb.datasets.check import check_datasets
from xmodaler_nb.own.real import write_real_dataset, read_split, split_ascii_words
from xmodaler_nb.functional import decode_sequence, load_vocab, read_lines


@pytest.mark.parametrize('name,min_count', [('rsicd', 5), ('ucm_captions', 1)])
def test_words(real_data, name, min_count):
    "Counting the words of the training captions gives the vocabulary file."
    folder = real_data(name)
    ids, feats, whole, said = read_split(folder, 'train')
    count = collections.Counter(w for texts in said.values() for t in texts for w in split_ascii_words(t))
    assert {w for w, n in count.items() if n >= min_count} == {w for w in read_lines(folder/'vocabulary.txt') if w} - {'UNK'}
    assert len(ids) == len(feats) == len(whole) and feats.ndim == 3


def test_prepare(real_data, tmp_path):
    "Prepared, all of it fits the config and the model, and rows spell what was said."
    folder = real_data('ucm_captions')
    data = write_real_dataset(folder, tmp_path)
    assert data.report == dict(prefix='mscoco', counts=dict(train=1680, val=210, test=210), vocab_size=321, rows=50, width=384)
    cfg = load_cfg_file('real/ucm.yaml', [*data.cfg_overrides, 'DATALOADER.NUM_WORKERS', 0, 'SEED', 0])
    train, val, test = check_datasets(cfg, sample=50)
    assert (train.rows, train.regions, train.widths, train.warnings) == (8400, (50, 50), {'ATT_FEATS': 384}, [])
    said, vocab = read_split(folder, 'train')[3], load_vocab(tmp_path/'vocabulary.txt')
    batch = next(iter(build_xmodaler_train_loader(cfg)))
    k = len(batch.G_TARGET_IDS)//len(batch)
    for i, id in enumerate(batch.IDS):
        cut = {' '.join(split_ascii_words(c)[:20]) for c in said[id]}
        for text in decode_sequence(vocab, batch.G_TOKENS_IDS[i*k:(i+1)*k,1:]): assert text in cut
