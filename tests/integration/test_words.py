"A model, a checkpoint and a table of document frequencies know their words; UNK is not said and earns nothing."
import pickle
import sys
from pathlib import Path
import numpy as np
import pytest
import torch
sys.path.insert(0, str(Path(__file__).parent))
from toy import ToyTrainer, fresh, toy_cfg
from xmodaler_nb.config import get_cfg
from xmodaler_nb.config.constants import kfg
from xmodaler_nb.datasets.layout import annotation, folder_paths, write_annotations, write_vocabulary
from xmodaler_nb.modeling.decode_strategy import BeamSearcher, GreedyDecoder
from xmodaler_nb.modeling.decode_strategy.toy import TableModel
from xmodaler_nb.scorer import build_scorer

WORDS = ['a', 'dog', 'runs', 'UNK']


@pytest.fixture
def folder(tmp_path):
    "A data folder of two pictures; its table of document frequencies is of these words."
    write_vocabulary(tmp_path/'vocabulary.txt', WORDS)
    write_annotations(tmp_path, 'train', [annotation('7', [[1, 2, 3]], 5), annotation('8', [[1, 4, 3]], 5)])
    return tmp_path


def scorer_cfg(folder, vocab):
    cfg, paths = get_cfg(), folder_paths(folder)
    cfg.SCORER.NAME, cfg.SCORER.TYPES, cfg.INFERENCE.VOCAB = 'BaseScorer', ['Cider'], str(vocab)
    cfg.SCORER.GT_PATH, cfg.SCORER.CIDER_CACHED = str(paths['references']), str(paths['ngrams'])
    return cfg


def test_the_table_of_document_frequencies_knows_its_words(folder, tmp_path):
    build_scorer(scorer_cfg(folder, folder/'vocabulary.txt'))
    write_vocabulary(tmp_path/'other.txt', WORDS[::-1])
    with pytest.raises(ValueError, match="other.txt: word 1 is 'UNK'; the table .*train_cider.pkl was made with 'a' there"): build_scorer(scorer_cfg(folder, tmp_path/'other.txt'))
    path = folder_paths(folder)['ngrams']                     # one of X-modaler's own does not know them
    table = pickle.loads(path.read_bytes())
    table.pop('words')
    path.write_bytes(pickle.dumps(table))
    build_scorer(scorer_cfg(folder, tmp_path/'other.txt'))


def test_an_unknown_word_earns_nothing(folder):
    "The reference of picture 8 is 'a UNK runs': UNK is worth as much as any wrong word."
    scorer = build_scorer(scorer_cfg(folder, folder/'vocabulary.txt'))
    rewards = scorer({kfg.IDS: ['8', '8', '7'], kfg.G_SENTS_IDS: np.array([[1, 4, 3, 0], [1, 9, 3, 0], [1, 2, 3, 0]])})[kfg.REWARDS]
    assert rewards[0] == rewards[1] < rewards[2]
    paid = build_scorer(scorer_cfg(folder, ''))               # without the words nothing can be known
    assert paid({kfg.IDS: ['8'], kfg.G_SENTS_IDS: np.array([[1, 4, 3, 0]])})[kfg.REWARDS][0] > rewards[0]


@pytest.mark.parametrize('resume', [True, False])
def test_a_checkpoint_knows_its_words(tmp_path, resume):
    "Continued, evaluated or fine-tuned with another vocabulary of the same size, the error names the first word that differs."
    def cfg(name, words):
        c = toy_cfg(tmp_path/name)
        write_vocabulary(tmp_path/f'{name}.txt', words)
        c.INFERENCE.VOCAB = str(tmp_path/f'{name}.txt')
        return c
    c = cfg('run', WORDS)
    fresh(c).train()
    c.MODEL.WEIGHTS = '' if resume else str(tmp_path/'run'/'model_final')
    if not resume: c.OUTPUT_DIR = str(tmp_path/'new')
    fresh(c, resume=resume)                                    # the same words
    write_vocabulary(tmp_path/'run.txt', [*WORDS[:2], 'sleeps', 'UNK'])
    with pytest.raises(ValueError, match="run.txt: word 3 is 'sleeps'; the checkpoint .*model_final was made with 'runs' there"): fresh(c, resume=resume)


def test_fine_tuning_with_another_number_of_words(tmp_path):
    "It was a warning once. Now it is an error that names the first word that differs, and the switch."
    c = toy_cfg(tmp_path/'run')
    write_vocabulary(tmp_path/'own.txt', WORDS)
    c.INFERENCE.VOCAB = str(tmp_path/'own.txt')
    fresh(c).train()
    write_vocabulary(tmp_path/'own.txt', ['a', 'fast', *WORDS[1:]])
    c.MODEL.WEIGHTS, c.OUTPUT_DIR = str(tmp_path/'run'/'model_final'), str(tmp_path/'new')
    with pytest.raises(ValueError, match="own.txt: word 2 is 'fast'; .* was made with 'dog' there.*ENGINE.OTHER_WORDS True"): fresh(c, resume=False)
    c.ENGINE.OTHER_WORDS = True
    fresh(c, resume=False)
    c.MODEL.WEIGHTS, c.OUTPUT_DIR = '', str(tmp_path/'run')
    with pytest.raises(ValueError, match="word 2 is 'fast'"): fresh(c, resume=True)         # continuing is another thing


@pytest.mark.parametrize('kind', [BeamSearcher, GreedyDecoder])
def test_unk_is_said_only_on_demand(tmp_path, kind):
    "A model whose favourite word is UNK."
    write_vocabulary(tmp_path/'v.txt', WORDS)
    table = torch.full((5, 5), -9.)
    table[:, 4], table[:, 0], table[4, 2], table[0, 1] = 5., 1., 9., 4.
    def say(**kw):
        s = kind(vocab_path=str(tmp_path/'v.txt'), beam_size=2, max_seq_len=4, bert_tokenizer=None, bos_token_id=0, eos_token_id=0, **kw)
        return s({kfg.IDS: [1]}, output_sents=True, model=TableModel(table.log_softmax(-1)[None]))[kfg.OUTPUT]
    assert 'UNK' not in str(say()) and 'UNK' in str(say(say_unknown=True)) and 'UNK' in str(say(required_words=['UNK']))
