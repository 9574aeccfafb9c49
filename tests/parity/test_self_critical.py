"Self-critical training gives X-modaler's loss and gradient, in one pass as well as step by step."
import numpy as np
import pytest
import torch
from xmodaler_nb.config import kfg
from xmodaler_nb.engine.learner import CaptionLearner
from xmodaler_nb.engine.self_critical import SelfCritical, forced_log_probs, images_of
from xmodaler_nb.losses import RewardCriterion
from xmodaler_nb.losses.reward_criterion import upto_eos
from golden_models import Golden, no_dropout

FAMILIES = ['updown', 'attention', 'lstm_a', 'gcn', 'transformer', 'xlan', 'video_mplstm', 'video_salstm', 'video_transformer', 'meshed_memory', 'clip_transformer', 'cosnet', 'video_tdconved', 'tden_captioner']


@pytest.mark.parametrize('name', FAMILIES)
def test_forced_pass_has_the_golden_gradient(name):
    "The captions that X-modaler drew, told once more in one pass: its log-probabilities, its loss, its gradient."
    g = Golden(name)
    if 'output.sample.' not in g: pytest.skip(f'{name} has no sample')
    model, ids, batch = g.model(), g.tensors['output.sample.G_SENTS_IDS'], g.batch('input_gen')
    strategy = model.greedy_decoder
    out, logp = forced_log_probs(model, batch, ids, strategy.bos_token_id, strategy.eos_token_id)
    valid = upto_eos(ids, strategy.eos_token_id)
    from xmodaler_nb.utils.testing import test_near as near
    near(logp[valid], g.tensors['output.sample.G_LOGP'][valid], g.noise('greedy logp'))
    losses = RewardCriterion(g.cfg())({**out, kfg.G_SENTS_IDS: ids, kfg.G_LOGP: logp, kfg.REWARDS: g.tensors['rl_input.REWARDS']})
    for k, v in losses.items(): g.near(v, f'rl_loss.{k}', 'greedy logp')
    sum(losses.values()).backward()
    for k in g.group('rl_grad.'): g.near(model.get_parameter(k).grad, f'rl_grad.{k}', 'G_LOGITS')


class ByLength:
    "A reward without references: longer is better."
    types = ['Length']
    def __call__(self, batch):
        n = (batch[kfg.G_SENTS_IDS] > 5).double().sum(1).numpy()
        assert len(n) == len(batch[kfg.IDS])
        return {'Length': float(n.mean()), kfg.REWARDS: (n + np.arange(len(n)) % 3)/10}


def in_precision(x, dtype):
    "Floating-point tensors of a batch, or of a list of items, in another precision."
    if isinstance(x, (list, tuple)): return [in_precision(o, dtype) for o in x]
    if isinstance(x, dict): return type(x)({k: in_precision(v, dtype) for k, v in x.items()})
    return x.to(dtype) if torch.is_tensor(x) and x.is_floating_point() else x


@pytest.mark.parametrize('name', FAMILIES)
@pytest.mark.parametrize('dtype,most', [(torch.float64, 1e-12), (torch.float32, 1e-5)], ids=['double', 'single'])
def test_both_modes_have_one_gradient(name, dtype, most):
    "Without dropout, `eval` mode (one encoding, one pass) and `upstream` mode (graph of the draw) have one gradient; in single precision sums in another order round otherwise."
    g, found = Golden(name), {}
    model = no_dropout(g.model()).train().to(dtype)
    for mode in SelfCritical.modes:
        images = in_precision(g.images(), dtype)
        learn = CaptionLearner([[images]], model, [RewardCriterion(g.cfg())], method=SelfCritical(ByLength(), mode, check='off'))
        torch.manual_seed(3)
        model.zero_grad()
        sum(next(learn.method.losses(images)).values()).backward()
        found[mode] = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}, learn.method.captions
        assert model.training
    assert torch.equal(found['eval'][1]['sampled'], found['upstream'][1]['sampled'])
    assert set(found['eval'][0]) == set(found['upstream'][0])
    for n, a in found['upstream'][0].items(): assert (found['eval'][0][n] - a).abs().max() <= most*max(1, a.abs().max()), n


def test_pictures_of_an_expanded_batch():
    "Repeated beforehand or not, the pictures are the same."
    g = Golden('updown')
    images, k = images_of(g.images())
    again, k2 = images_of(g.model().preprocess_batch(g.images()))
    assert k == k2 > 1 and torch.equal(images[kfg.ATT_FEATS], again[kfg.ATT_FEATS]) and list(images[kfg.IDS]) == list(again[kfg.IDS])


@pytest.mark.parametrize('name', ['updown', 'transformer', 'xlan', 'video_mplstm'])
def test_one_decoding_draws_and_says_the_greedy_caption(name):
    "Rows of one batch, or two decodings: the same greedy captions, the same draws."
    g = Golden(name)
    model = no_dropout(g.model()).eval()
    method = CaptionLearner([[g.images()]], model, [RewardCriterion(g.cfg())], method=SelfCritical(ByLength(), 'eval', check='off')).method
    images, k = method.decoding_inputs(g.images())
    assert method.shares_decoding(images)
    torch.manual_seed(3)
    out, greedy = method.sample_with_baseline(images, k)
    torch.manual_seed(3)
    alone = method.sample_captions(images, k)
    assert torch.equal(out[kfg.G_SENTS_IDS], alone[kfg.G_SENTS_IDS]) and torch.equal(greedy, method.baseline(images))
    assert (out[kfg.G_LOGP] - alone[kfg.G_LOGP]).abs().max() < 1e-4
