"Beam and greedy decoding on first-order tables: the corner cases, X-modaler's answers to them, and brute force."
import json
import pytest, torch
from safetensors.torch import load_file
from conftest import golden_dir
from xmodaler_nb.config import kfg
from xmodaler_nb.modeling.decode_strategy import BeamSearcher, DiverseBeamSearcher, EnsembleBeamSearcher, GreedyDecoder
from xmodaler_nb.modeling.decode_strategy.toy import TableModel, all_sentences
from xmodaler_nb.utils.testing import test_near as near

PATH = golden_dir()/'misc'/'beam_corner_cases.json'
CASES = json.loads(PATH.read_text())['cases']
TENSORS = load_file(PATH.with_suffix('.safetensors'))


def case(name): return CASES[name], TableModel(TENSORS[f'{name}.logits'])

def strategy(kind, c, beam_size=None, **kw):
    return kind(vocab_path='', beam_size=beam_size or c['beam_size'], max_seq_len=c['max_seq_len'], bert_tokenizer=None, bos_token_id=c['bos'], eos_token_id=c['eos'], **kw)

def decode(s, c, model, **batch):
    with torch.no_grad(): return s({kfg.IDS: list(range(c['batch'])), **batch}, model=model)


@pytest.mark.parametrize('sync_every', [1, 4])
@pytest.mark.parametrize('name', CASES)
def test_beam_equals_xmodaler(name, sync_every):
    c, model = case(name)
    if 'beam_error' in c: pytest.skip('X-modaler cannot search wider than the vocabulary; see test_beam_wider_than_the_vocabulary')
    for key, out_size in (('beam', 1), ('beam_all', c['beam_size'])):
        out = decode(strategy(BeamSearcher, c, sync_every=sync_every), c, model, OUT_SIZE=out_size)
        assert torch.equal(out[kfg.G_SENTS_IDS], TENSORS[f'{name}.{key}.G_SENTS_IDS']), (name, out[kfg.G_SENTS_IDS], TENSORS[f'{name}.{key}.G_SENTS_IDS'])
        near(out[kfg.G_LOGP], TENSORS[f'{name}.{key}.G_LOGP'])


@pytest.mark.parametrize('sync_every', [1, 4])
@pytest.mark.parametrize('name', CASES)
def test_greedy_equals_xmodaler(name, sync_every):
    c, model = case(name)
    out = decode(strategy(GreedyDecoder, c, sync_every=sync_every), c, model)
    assert torch.equal(out[kfg.G_SENTS_IDS], TENSORS[f'{name}.greedy.G_SENTS_IDS'])
    near(out[kfg.G_LOGP], TENSORS[f'{name}.greedy.G_LOGP'])


@pytest.mark.parametrize('name', CASES)
def test_dropping_rows_changes_no_word(name):
    c, model = case(name)
    out = decode(strategy(GreedyDecoder, c, tail='drop'), c, model)
    assert torch.equal(out[kfg.G_SENTS_IDS], TENSORS[f'{name}.greedy.G_SENTS_IDS'])
    ended = (out[kfg.G_SENTS_IDS] == c['eos']).cumsum(1)
    until = (ended <= 1) & ((ended == 0) | (out[kfg.G_SENTS_IDS] == c['eos']))
    near(out[kfg.G_LOGP][until], TENSORS[f'{name}.greedy.G_LOGP'][until])
    assert (out[kfg.G_LOGP][~until] == 0).all()


def test_beam_wider_than_the_vocabulary():
    c, model = case('vocab_smaller_than_beam')
    out = decode(strategy(BeamSearcher, c), c, model)
    best = decode(strategy(BeamSearcher, c, beam_size=3**c['max_seq_len']), c, model)
    assert torch.equal(out[kfg.G_SENTS_IDS], best[kfg.G_SENTS_IDS])


def test_a_wide_beam_finds_the_optimum():
    for seed in range(10):
        torch.manual_seed(seed)
        model = TableModel(torch.randn(4, 5, 5))
        score, words = all_sentences(model, 4)[0]
        c = dict(beam_size=5**4, max_seq_len=4, bos=0, eos=0, batch=1)
        out = decode(strategy(BeamSearcher, c), c, model)
        assert tuple(out[kfg.G_SENTS_IDS][0].tolist())[:len(words)] == words
        assert abs(out[kfg.G_LOGP].sum().item() - score) < 1e-5


@pytest.mark.parametrize('name', [n for n in CASES if 'beam_error' not in CASES[n]])
def test_one_group_and_one_model_are_plain_beam_search(name):
    c, model = case(name)
    want = TENSORS[f'{name}.beam.G_SENTS_IDS']
    assert torch.equal(decode(strategy(DiverseBeamSearcher, c), c, model)[kfg.G_SENTS_IDS], want)
    with torch.no_grad(): out = strategy(EnsembleBeamSearcher, c)({kfg.IDS: list(range(c['batch']))}, model=[model, model], weights=[.3, .9, 5.])
    if name != 'all_ties': assert torch.equal(out[kfg.G_SENTS_IDS], want)
    assert out[kfg.G_LOGP].isfinite().all()


def test_sampling_follows_the_softmax():
    "χ² with 6 degrees of freedom exceeds 22.5 once in a thousand tries; the seed is fixed."
    c, model = case('plain')
    torch.manual_seed(0)
    n = 7000
    out = decode(strategy(GreedyDecoder, {**c, 'max_seq_len': 1}), dict(batch=n), model, DECODE_BY_SAMPLE=True)
    seen = torch.bincount(out[kfg.G_SENTS_IDS][:,0], minlength=7).double()
    expected = model.logits[0, c['bos']].detach().double().softmax(-1)*n
    assert ((seen - expected)**2/expected).sum() < 22.5
    near(out[kfg.G_LOGP][:,0], model.logits[0, c['bos']].detach().log_softmax(-1)[out[kfg.G_SENTS_IDS][:,0]])


def test_the_callers_batch_stays_as_it_was():
    c, model = case('plain')
    batch = {kfg.IDS: [0, 1]}
    for kind in (GreedyDecoder, BeamSearcher): strategy(kind, c)(batch, model=model)
    assert batch == {kfg.IDS: [0, 1]}
