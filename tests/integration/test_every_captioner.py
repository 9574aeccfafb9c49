"What every captioner must do beyond the exam: half precision, padding, greedy as beam 1, X-modaler's files, averages and ensembles."
import sys
from pathlib import Path
import pytest, torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]/'parity'))
from golden_models import Golden, near, no_dropout
from test_exam import CAPTIONERS
from xmodaler_nb.checkpoint import XmodalerCheckpointer
from xmodaler_nb.utils.checkpoint_files import CheckpointError
from xmodaler_nb.config import config_file, kfg
from xmodaler_nb.modeling import load_cfg_file
from xmodaler_nb.engine.ema import ModelEma
from xmodaler_nb.losses import build_losses
from xmodaler_nb.modeling import build_model
from xmodaler_nb.modeling.meta_arch import Ensemble
from xmodaler_nb.modeling.exam import check_learns

every = pytest.mark.parametrize('name', CAPTIONERS)
LEAKS = {'video_tdconved'}                     # models that, as X-modaler's, look at padded frames
FIXED = {'gcn', 'lstm_a', 'clip_transformer', 'cosnet'}   # their number of regions is fixed: nothing is padded


def total(losses, out): return sum(v for loss in losses for v in loss(out).values())


@every
def test_bf16(name):
    "Under autocast the loss stays near the one in float32, and all gradients are finite."
    g = Golden(name)
    model, losses, batch = no_dropout(g.model()).train(), build_losses(g.cfg()), g.images()
    full = total(losses, model(batch)).item()
    with torch.autocast('cpu', torch.bfloat16): half = total(losses, model(batch))
    assert abs(half.item() - full) < 0.03*abs(full), (full, half.item())
    half.backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert grads and all(x.isfinite().all() for x in grads)
    assert all(p.dtype == torch.float32 for p in model.parameters())


@every
def test_greedy_is_beam_one(name):
    g = Golden(name)
    model, batch = g.model(), g.batch('input_gen')
    with torch.no_grad():
        greedy = model(batch, use_beam_search=False)
        one = model.beam_searcher
        one.beam_size = 1
        beam = one(batch, False, model)
    ids, end = greedy[kfg.G_SENTS_IDS], one.eos_token_id
    said = (ids == end).cumsum(1) - (ids == end).long() == 0           # words before the end mark; what follows it is padding
    assert torch.equal(ids[said], beam[kfg.G_SENTS_IDS][said]) and torch.equal((ids == end).any(1), (beam[kfg.G_SENTS_IDS] == end).any(1))


def padded(batch, n, value):
    "The batch with n further regions that the mask excludes."
    more = {k: torch.cat([batch[k], batch[k].new_full((len(batch[k]), n, *batch[k].shape[2:]), value)], 1) for k in (kfg.ATT_FEATS, kfg.ATT_FEATS_LOC) if k in batch}
    return batch.merge(more).merge({kfg.ATT_MASKS: torch.cat([batch[kfg.ATT_MASKS], batch[kfg.ATT_MASKS].new_zeros(len(batch[kfg.ATT_MASKS]), n)], 1)})


@every
def test_padding(name):
    "More padding changes nothing, except in the models named above."
    if name in FIXED: pytest.skip('the number of regions is fixed')
    g = Golden(name)
    model, batch = g.model(), g.batch()
    with torch.no_grad(): want, got = (model(b)[kfg.G_LOGITS] for b in (batch, padded(batch, 3, 0.)))
    changed = (want - got).abs().max() > 1e-4*want.abs().max()
    assert bool(changed) == (name in LEAKS), f'{name}: logits change by {(want - got).abs().max():.2g}'


@every
def test_xmodaler_file(name, tmp_path):
    "X-modaler's .pth: the weights under `model`, other things beside them."
    g = Golden(name)
    weights = g.group('state_dict.')
    torch.save({'model': weights, 'optimizer': {'state': {}}, 'iteration': 41}, tmp_path/'model_final.pth')
    model = build_model(g.cfg())
    rest = XmodalerCheckpointer(model).load(str(tmp_path/'model_final.pth'), checkpointables=[], strict=True)
    assert rest['iteration'] == 41
    for k, v in model.state_dict().items(): assert torch.equal(v, weights[k]), k


def test_misfits_are_named(tmp_path, caplog):
    g = Golden('updown')
    weights = g.group('state_dict.')
    name = 'predictor.logits.weight'
    weights[name] = weights[name][:-1]
    weights['foreign.weight'] = weights.pop('decoder.att.w_alpha.weight')
    torch.save({'model': weights}, tmp_path/'m.pth')
    model = build_model(g.cfg())
    before = model.state_dict()[name].clone()
    with caplog.at_level('WARNING'): XmodalerCheckpointer(model).load(str(tmp_path/'m.pth'), checkpointables=[])
    said = caplog.text
    for part in (name, str(tuple(weights[name].shape)), str(tuple(before.shape)), 'foreign: weight', 'w_alpha'): assert part in said, part
    assert torch.equal(model.state_dict()[name], before)
    with pytest.raises(CheckpointError, match='foreign.weight is unknown'): XmodalerCheckpointer(model).load(str(tmp_path/'m.pth'), checkpointables=[], strict=True)


RL = {'image_caption/updown/updown_rl.yaml': 'updown', 'image_caption/attention/attention_rl.yaml': 'attention', 'image_caption/lstm-A/lstm-A_rl.yaml': 'lstm_a', 'image_caption/gcn/gcn_rl.yaml': 'gcn',
      'image_caption/xlan/xlan_rl.yaml': 'xlan', 'image_caption/transformer/transformer_rl.yaml': 'transformer', 'image_caption/meshed_memory/meshed_memory_rl.yaml': 'meshed_memory',
      'image_caption/cosnet/cosnet_rl.yaml': 'cosnet', 'image_caption/tden/tden_rl.yaml': 'tden_captioner'}

@pytest.mark.parametrize('yaml', RL)
def test_xe_checkpoint_starts_rl(yaml, tmp_path):
    "The weights of a cross-entropy training fit the model of the self-critical config exactly."
    g = Golden(RL[yaml])
    torch.save({'model': g.group('state_dict.')}, tmp_path/'xe.pth')
    cfg = load_cfg_file(config_file(yaml), [*g.opts(), 'MODEL.WEIGHTS', str(tmp_path/'xe.pth')])
    assert cfg.ENGINE.NAME.startswith('RL')
    model = build_model(cfg)
    XmodalerCheckpointer(model).load(cfg.MODEL.WEIGHTS, checkpointables=[], strict=True)
    with torch.no_grad(): ids = model.eval()(g.batch('input_gen'), use_beam_search=False)[kfg.G_SENTS_IDS]
    assert torch.equal(ids, g.tensors['output.greedy.G_SENTS_IDS'])


@pytest.mark.parametrize('name', ['ensemble_updown', 'ensemble_transformer'])
@pytest.mark.parametrize('key', ['beam', 'beam_all'])
def test_ensemble_parity(name, key):
    "Two models of X-modaler's, weighted, decode as they did there."
    g = Golden(name, 'models_ensemble')
    members = []
    for i in range(2):
        members.append(build_model(g.cfg()))
        members[-1].load_state_dict(g.group(f'state_dict.{i}.'), strict=True)
    batch = g.batch('input_gen')
    if key == 'beam_all': batch[kfg.OUT_SIZE] = g.meta['beam_size']
    with torch.no_grad(): out = Ensemble(members, g.cfg()).eval()(batch)
    assert torch.equal(out[kfg.G_SENTS_IDS], g.tensors[f'output.{key}.G_SENTS_IDS'])
    near(out[kfg.G_LOGP], g.tensors[f'output.{key}.G_LOGP'])


def test_average_ensemble_and_weight_norm_together(tmp_path):
    "TDConvED's weight-normed layers can be averaged, saved under X-modaler's names, loaded, and decoded in an ensemble with the raw model."
    g = Golden('video_tdconved')
    model, losses = no_dropout(g.model()).train(), build_losses(g.cfg())
    names = list(model.state_dict())
    assert sum(n.endswith('weight_g') for n in names) == sum(n.endswith('weight_v') for n in names) > 0
    opt, ema = torch.optim.SGD(model.parameters(), .1), ModelEma(model, .5)
    mean = {k: v.clone() for k, v in model.state_dict().items()}
    for _ in range(3):
        opt.zero_grad()
        total(losses, model(g.batch())).backward()
        opt.step()
        ema.update(model)
        mean = {k: mean[k].lerp(v, .5) if v.is_floating_point() else v for k, v in model.state_dict().items()}   # from the first step on
    for k, v in ema.module.state_dict().items(): near(v, mean[k], atol=1e-6)
    assert list(ema.module.state_dict()) == names and any(not torch.equal(v, model.state_dict()[k]) for k, v in ema.module.state_dict().items())
    torch.save({'model': ema.module.state_dict()}, tmp_path/'ema.pth')
    again = build_model(g.cfg())
    XmodalerCheckpointer(again).load(str(tmp_path/'ema.pth'), checkpointables=[], strict=True)
    cfg = g.cfg('DECODE_STRATEGY.NAME', 'EnsembleBeamSearcher', 'MODEL.MODEL_WEIGHTS', [1., 1.])
    batch = g.batch('input_gen')
    with torch.no_grad():
        both, twice, alone = (Ensemble(m, cfg).eval()(batch) for m in ([model, again], [again, ema.module], [again, again]))
    assert both[kfg.G_SENTS_IDS].shape == alone[kfg.G_SENTS_IDS].shape and both[kfg.G_LOGP].isfinite().all()
    assert torch.equal(twice[kfg.G_SENTS_IDS], alone[kfg.G_SENTS_IDS])                 # the average and its reloaded copy are one model


@pytest.mark.slow
@every
def test_overfits(name):
    "One batch can be learnt by heart."
    g = Golden(name)
    model = no_dropout(build_model(g.cfg()))
    check_learns(model, build_losses(g.cfg('LOSSES.NAMES', ['CrossEntropy'])), g.images(), steps=150, lr=5e-3, ratio=.4)     # most fall below .2, gcn is near it
