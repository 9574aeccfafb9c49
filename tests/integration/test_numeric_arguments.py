"Every numeric argument of a public call, given what is no such number: a sentence that names the argument, never a raw error and never a silent answer."
import numpy as np
import pytest
import torch
from PIL import Image
from small import small_captioner
from xmodaler_nb.evaluation import evaluate
from xmodaler_nb.own import CaptionData
from xmodaler_nb.own.extract import extract_features

FEATS = np.ones((2, 4), np.float32)
ODD = {'zero': 0, 'minus': -1, 'fraction': 2.5, 'nan': float('nan'), 'infinite': float('inf'), 'truth': True, 'text': '3', 'list': [1]}
NOT = {k: v for k, v in ODD.items() if k != 'zero'}          # where 0 means "no rule"

@pytest.fixture(scope='module')
def cap(): return small_captioner()

def named(name, f):
    "The call is refused, and the message names the argument."
    with pytest.raises(ValueError, match=f'(?i){name}'): f()


@pytest.mark.parametrize('value', ODD.values(), ids=ODD)
@pytest.mark.parametrize('name', ['nbest', 'batch_size', 'max_seq_len', 'n'])
def test_counts_of_a_caption(cap, name, value):
    if name == 'n' and value is True: return                 # `n=True` is n=1, the default
    named('nbest' if name == 'n' else name, lambda: cap.caption(FEATS, **{name: value}))

@pytest.mark.parametrize('value', NOT.values(), ids=NOT)
@pytest.mark.parametrize('name', ['beam_size', 'min_length', 'max_length', 'no_repeat_ngram', 'sync_every', 'top_k'])
def test_counts_that_may_be_zero(cap, name, value): named(name, lambda: cap.caption(FEATS, strategy='sample' if name == 'top_k' else 'beam', **{name: value}))

@pytest.mark.parametrize('name, values', [('temperature', (0, -1, float('nan'), float('inf'), True, '1')), ('top_p', (0, 1.5, float('nan'), True, '1'))])
def test_numbers_of_sampling(cap, name, values):
    for value in values: named(name, lambda: cap.caption(FEATS, strategy='sample', **{name: value}))

@pytest.mark.parametrize('value', [float('nan'), float('inf'), True, '1', None])
def test_length_penalty(cap, value): named('length_penalty', lambda: cap.caption(FEATS, length_penalty=value))

def test_an_option_that_is_none(cap):
    with pytest.raises(ValueError, match="'max_len' is no option of BeamSearcher; did you mean 'max_length'"): cap.describe(FEATS, max_len=0)
    with pytest.raises(ValueError, match="'temperature' is no option of BeamSearcher"): cap.describe(FEATS, temperature=2.)
    with pytest.raises(ValueError, match='temperature: the strategy is made already'): cap.describe(FEATS, strategy=cap.build_strategy('greedy'), temperature=2.)

def test_large_numbers_do_no_harm(cap):
    "More beams than words, more captions than there are: as many as there are, or a sentence."
    for kw in (dict(nbest=20), dict(beam_size=20), dict(batch_size=10**12), dict(strategy='sample', top_k=10**9)):
        assert cap.describe(FEATS, **kw)
    for kw in (dict(nbest=10**6), dict(beam_size=10**9)): named('BEAM_SIZE', lambda: cap.caption(FEATS, **kw))

@pytest.mark.parametrize('words', [[99], [-1], [2.5], 'dog', [None]])
@pytest.mark.parametrize('name', ['banned_words', 'required_words', 'begin_words'])
def test_words_that_the_model_does_not_have(cap, name, words):
    with pytest.raises(ValueError): cap.caption(FEATS, **{name: words})

def test_numbers_of_numpy_and_torch_are_numbers(cap):
    assert cap.caption([FEATS]*3, batch_size=np.int64(2), beam_size=torch.tensor(2)) == cap.caption([FEATS]*3, batch_size=2, beam_size=2)


@pytest.fixture
def data(tmp_path):
    for k in range(6): Image.new('RGB', (9, 9), (k, 0, 0)).save(tmp_path/f'{k}.png')
    (tmp_path/'captions.csv').write_text('image,caption\n' + ''.join(f'{k}.png,a thing {k}\n' for k in range(6)))
    return CaptionData.from_folder(tmp_path)

@pytest.mark.parametrize('name', ['max_len', 'min_count', 'val', 'test', 'seed'])
@pytest.mark.parametrize('value', [-1, 2.5, float('nan'), True, '3', [1]])
def test_numbers_of_written_data(data, tmp_path, name, value):
    named(name, lambda: data.write(tmp_path/'out', **{name: value}))
    assert not (tmp_path/'out').exists()

@pytest.mark.parametrize('name', ['n_references', 'max_len'])
@pytest.mark.parametrize('value', [0, -1, 2.5, float('nan'), '3'])
def test_numbers_of_a_check(data, name, value): named(name, lambda: data.check(**{name: value}))

@pytest.mark.parametrize('name', ['batch_size', 'workers', 'seal_every'])
@pytest.mark.parametrize('value', [0, -1, 2.5, float('nan'), '3'])
def test_numbers_of_extraction(data, tmp_path, name, value):
    named(name, lambda: extract_features('patches', {s.id: s.file for s in data.samples}, tmp_path/'out', **{name: value}))


@pytest.mark.parametrize('name, value', [('n', 0), ('n', -1), ('n', 2.5), ('n', '9'), ('level', 0), ('level', 1), ('level', float('nan')), ('level', '0.9'), ('seed', -1)])
def test_numbers_of_an_interval(name, value):
    scored = evaluate({'a': 'a dog runs', 'b': 'a red cat'}, {'a': ['a dog runs'], 'b': ['the cat']}, metrics=['BLEU'])
    named(name, lambda: scored.confidence(**{name: value}))
