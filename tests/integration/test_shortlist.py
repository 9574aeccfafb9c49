"A shortlist never changes a greedy caption, and a search that needs every word never uses one."
import copy
import pickle
import threading
import pytest, torch
from xmodaler_nb.config import kfg
from xmodaler_nb.modeling.decode_strategy import BeamSearcher, DiverseBeamSearcher, EnsembleBeamSearcher, GreedyDecoder
from xmodaler_nb.modeling.decode_strategy.greedy_decoder import SamplePlan, sampling
from xmodaler_nb.modeling.predictor import shortlist
from test_decoding_rules import TRANSFORMER, UPDOWN, batch, make


def spread(model):
    "Word vectors of unlike lengths, so that some words win clearly, and few states that matter."
    head = model.predictor.logits if hasattr(model.predictor, 'logits') else model.predictor.decoder
    with torch.no_grad():
        head.weight.mul_(torch.linspace(.2, 6, len(head.weight))[:,None])
        head.weight[:,4:].mul_(.02)
    return head

@pytest.fixture(autouse=True)
def no_map_is_small(monkeypatch): monkeypatch.setattr(shortlist, 'SMALL', 0)

def learnt(kind, cfg, model, **kw):
    s = kind(cfg, shortlist=True, **kw)
    with torch.no_grad():
        for _ in range(12): s(batch(), False, model)
    return s


@pytest.mark.parametrize('which', [UPDOWN, TRANSFORMER], ids=['updown', 'transformer'])
@pytest.mark.parametrize('tail', ['upstream', 'drop'])
def test_greedy_captions_stay(which, tail):
    cfg, model = make(which)
    head = spread(model)
    s = learnt(GreedyDecoder, cfg, model, tail=tail)
    parts = head.shortlist.parts[1]                                     # the states of the tiny Transformer fill all directions: there it may give up
    with torch.no_grad(): a, b = s(batch(), False, model), GreedyDecoder(cfg, tail=tail)(batch(), False, model)
    assert which is TRANSFORMER or parts.share() < .7
    assert torch.equal(a[kfg.G_SENTS_IDS], b[kfg.G_SENTS_IDS])
    torch.testing.assert_close(a[kfg.G_LOGP], b[kfg.G_LOGP], atol=.05, rtol=.02)
    assert kfg.BEST_WORDS not in a


@pytest.mark.parametrize('scale', [.1, 1, 10])
def test_pictures_that_are_unlike_those_it_learnt_from(scale):
    "The bound holds for every state: the captions are those of all words, however many are left."
    cfg, model = make(UPDOWN)
    head = spread(model)
    s, g = learnt(GreedyDecoder, cfg, model), torch.Generator().manual_seed(8)
    for n in (1, 4, 30):
        b = batch(n + 1).merge({kfg.ATT_FEATS: scale*torch.randn(n + 1, 5, 20, generator=g)})
        with torch.no_grad(): assert torch.equal(s(b, False, model)[kfg.G_SENTS_IDS], GreedyDecoder(cfg)(b, False, model)[kfg.G_SENTS_IDS])
    assert 1 in head.shortlist.parts


def test_beams_get_estimates_of_the_sum_alone():
    cfg, model = make(UPDOWN)
    head = spread(model)
    s = learnt(BeamSearcher, cfg, model, beam_size=3)
    assert set(head.shortlist.parts) == {3} and head.shortlist.parts[3] is not None
    with torch.no_grad(): a, b = s(batch(), False, model), BeamSearcher(cfg, beam_size=3)(batch(), False, model)
    torch.testing.assert_close(a[kfg.G_LOGP].sum(-1), b[kfg.G_LOGP].sum(-1), atol=.2, rtol=.05)


@pytest.mark.parametrize('kind, kw', [(GreedyDecoder, dict(no_repeat_ngram=2)), (GreedyDecoder, dict(trace=True)), (GreedyDecoder, dict(banned_words=[3])), (DiverseBeamSearcher, dict(beam_size=4, groups=2)), (BeamSearcher, dict(beam_size=3, min_length=2))])
def test_searches_that_need_every_word_have_them(kind, kw):
    cfg, model = make(UPDOWN)
    head = spread(model)
    s = learnt(kind, cfg, model, **kw)
    assert not hasattr(head, 'shortlist')
    with torch.no_grad(): assert torch.equal(s(batch(), False, model)[kfg.G_LOGP], kind(cfg, **kw)(batch(), False, model)[kfg.G_LOGP])


def test_sampling_and_ensembles_have_every_word():
    cfg, model = make(UPDOWN)
    s, head = GreedyDecoder(cfg, shortlist=True), spread(model)
    with torch.no_grad(), sampling(s, SamplePlan(copies=2)): s(batch(), False, model)
    with torch.no_grad(): EnsembleBeamSearcher(cfg, shortlist=True, beam_size=2)(batch(), False, [model, copy.deepcopy(model)])
    assert not hasattr(head, 'shortlist')


@pytest.mark.parametrize('change', ['data', 'in place', 'new'])
def test_other_weights_are_noticed(change):
    "By a training step, by `.data`, or as another parameter: the next search is that of the new weights."
    cfg, model = make(UPDOWN)
    head = spread(model)
    s = learnt(GreedyDecoder, cfg, model)
    with torch.no_grad():
        before = s(batch(), False, model)[kfg.G_SENTS_IDS]
        for w in (model.decoder.lstm1.weight_ih, model.decoder.lstm2.weight_ih): w.data.mul_(1.3)
        if change == 'data': head.weight.data = head.weight.data.roll(1, 0)
        elif change == 'in place': head.weight.copy_(head.weight.roll(1, 0).clone())
        else: head.weight = torch.nn.Parameter(head.weight.roll(1, 0).clone())
        a, b = (d(batch(), False, m)[kfg.G_SENTS_IDS] for d, m in ((s, model), (GreedyDecoder(cfg), copy.deepcopy(model))))
    assert torch.equal(a, b) and not torch.equal(a, before)


def test_a_model_with_tables_can_be_copied_and_pickled():
    cfg, model = make(UPDOWN)
    head = spread(model)
    s = learnt(GreedyDecoder, cfg, model)
    keys = set(model.state_dict())
    other = pickle.loads(pickle.dumps(copy.deepcopy(model)))
    assert head.shortlist.parts and not other.predictor.logits.shortlist.parts and set(other.state_dict()) == keys
    with torch.no_grad(): assert torch.equal(s(batch(), False, other)[kfg.G_SENTS_IDS], s(batch(), False, model)[kfg.G_SENTS_IDS])
    with torch.inference_mode(): s(batch(), False, model)
    with torch.no_grad(): s(batch(), False, model)


def test_threads_share_a_model():
    cfg, model = make(UPDOWN)
    spread(model)
    b, wrong = batch(), []                                               # made once: it is drawn with the seed that all threads share
    with torch.no_grad(): want = GreedyDecoder(cfg)(b, False, copy.deepcopy(model))[kfg.G_SENTS_IDS]
    def work():
        s = GreedyDecoder(cfg, shortlist=True)
        with torch.no_grad():
            for _ in range(10):
                if not torch.equal(s(b, False, model)[kfg.G_SENTS_IDS], want): wrong.append(1)
    threads = [threading.Thread(target=work) for _ in range(4)]
    for t in threads: t.start()
    for t in threads: t.join()
    assert not wrong


def test_the_config_asks_for_it():
    cfg, _ = make(UPDOWN, 'DECODE_STRATEGY.SHORTLIST', True)
    assert GreedyDecoder(cfg).shortlist and BeamSearcher(cfg).shortlist and not GreedyDecoder(make(UPDOWN)[0]).shortlist
