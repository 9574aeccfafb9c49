"""The gradient of self-critical training is that of the distribution the captions were drawn from, forbidden words and all.
(UNK is never drawn. Where its probability stayed in the gradient's distribution, nothing kept it from growing: on photographs, captions became random.)"""
import pytest
import torch
from test_rl import BERT, scenes, trainer  # noqa: F401
from xmodaler_nb.config import kfg
from xmodaler_nb.engine.self_critical import forced_log_probs, sampling, SamplePlan

RULES = ['DECODE_STRATEGY.MIN_LENGTH', 2, 'DECODE_STRATEGY.NO_REPEAT_NGRAM', 2]


def made(scenes, folder, mode, *opts):
    t = trainer(scenes, folder, 'transformer/transformer', *BERT, 'RL.SAMPLE_MODE', mode, *opts)
    batch = t.model.preprocess_batch(next(iter(t.train_data_loader)))
    t.method.learn = type('Learn', (), dict(model=t.model))()
    t.model.eval()
    for s in (t.model.greedy_decoder, t.model.beam_searcher): s._vocab, s._unspoken = [*s.vocab[:-1], 'UNK'], None      # scenes have no rare words
    images, k = t.method.decoding_inputs(batch)
    return t, images, k


def next_words(t, images, prefix, strategy):
    "exp of the log-probability of every word after a prefix, for the first picture."
    v = t.cfg.MODEL.VOCAB_SIZE
    ids = torch.cat([torch.tensor([prefix]*v, dtype=torch.long).view(v, len(prefix)), torch.arange(v)[:,None]], 1).repeat(len(images[kfg.IDS]), 1)
    with torch.no_grad(): return forced_log_probs(t.model, images, ids, 0, 0, strategy.temperature, strategy)[1][:v,len(prefix)].exp()


@pytest.mark.parametrize('rules', [[], RULES], ids=['UNK', 'rules'])
def test_one_pass(rules, scenes, tmp_path):  # noqa: F811
    t, images, _ = made(scenes, tmp_path, 'eval', 'DECODE_STRATEGY.TEMPERATURE', .5, *rules)
    strategy = t.model.greedy_decoder
    unknown = strategy.vocab.index('UNK')
    for prefix in ([], [5], [5, 7], [5, 7, 5]):
        p = next_words(t, images, prefix, strategy)
        assert p.sum() == pytest.approx(1, abs=1e-5) and p[unknown] == 0
        if not rules: assert (p > 0).sum() == len(p) - 1
        else: assert (p[0] == 0) == (len(prefix) < 2) and (p[7] == 0) == (len(prefix) == 3)


def test_one_pass_is_step_by_step(scenes, tmp_path):  # noqa: F811
    "With gradient, drawing word by word and the single pass agree in values and gradients."
    t, images, k = made(scenes, tmp_path, 'upstream', *RULES)
    torch.manual_seed(1)
    out = t.method.sample_captions(images, k)
    strategy = t.model.greedy_decoder
    ids, valid = out[kfg.G_SENTS_IDS], out[kfg.G_LOGP] != 0
    once = forced_log_probs(t.model, images, ids, 0, 0, 1., strategy)[1]
    torch.testing.assert_close(once[valid], out[kfg.G_LOGP][valid], atol=2e-5, rtol=1e-4)
    weight = t.model.predictor.logits.weight
    a, b = (torch.autograd.grad(x[valid].sum(), weight, retain_graph=True)[0] for x in (once, out[kfg.G_LOGP]))
    torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)
    assert (a[strategy.vocab.index('UNK')] == 0).all() and a.abs().max() > .01        # UNK is neither pushed nor pulled


def test_beams(scenes, tmp_path):  # noqa: F811
    "Beams with gradient, too; without gradient, scores stay the model's own."
    t, images, _ = made(scenes, tmp_path, 'upstream')
    search = t.model.beam_searcher
    out = t.model(images.merge({kfg.OUT_SIZE: 2}), use_beam_search=True)
    with torch.no_grad(): plain = t.model(images.merge({kfg.OUT_SIZE: 2}), use_beam_search=True)
    assert torch.equal(out[kfg.G_SENTS_IDS], plain[kfg.G_SENTS_IDS]) and search.vocab is not None
    valid = plain[kfg.G_LOGP] != 0
    assert (out[kfg.G_LOGP][valid] > plain[kfg.G_LOGP][valid]).all()
    with torch.no_grad(), sampling(t.model.greedy_decoder, SamplePlan(copies=2)): assert not t.model(images, use_beam_search=False)[kfg.G_LOGP].requires_grad
