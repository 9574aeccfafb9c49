"Captioners against the numbers X-modaler computed: batches, logits, losses, gradients, scheduled sampling, policy gradients (decoding: test_decoding.py)."
import numpy as np, pytest, torch
from golden_models import Golden, near, no_dropout, seeded_draw
from xmodaler_nb.config import kfg
from xmodaler_nb.losses import RewardCriterion, build_losses

RNN = ['updown', 'attention', 'lstm_a', 'video_mplstm', 'video_salstm', 'gcn', 'xlan']
FAMILIES = [*RNN, 'transformer', 'video_transformer', 'meshed_memory', 'clip_transformer', 'cosnet', 'video_tdconved', 'tden_captioner']
family = pytest.mark.parametrize('golden', FAMILIES, indirect=True, ids=str)
rnn = pytest.mark.parametrize('golden', RNN, indirect=True, ids=str)

@pytest.fixture
def golden(request): return Golden(request.param)


@family
@pytest.mark.parametrize('kind', ['sample', 'sample_gen'])
def test_preprocess_batch(golden, kind):
    "Padding, masks, repetition and ids, key by key."
    got, want = golden.model().preprocess_batch(golden.items(kind)), golden.batch('input' if kind == 'sample' else 'input_gen')
    assert set(got) - {kfg.COPIES} == set(want)                     # one field of ours: how often each image stands there
    for k, v in want.items():
        if isinstance(v, torch.Tensor):
            near(got[k], v); assert got[k].dtype == v.dtype, k
        else: assert list(got[k]) == list(v), k


@family
@pytest.mark.parametrize('rows', ['expanded', 'images', 'early'])
def test_teacher_forcing(golden, rows):
    "Logits, losses and gradients, with images repeated beforehand, afterwards (late) or first thing in the model (early)."
    model = golden.model('MODEL.EXPAND', 'early' if rows == 'early' else 'late')
    if 'in mode: train' in golden.meta['train_pass']: no_dropout(model).train()
    batch = (golden.batch() if rows == 'expanded' else golden.images()).merge({kfg.SS_PROB: 0.})
    batch = batch.merge({kfg.G_TARGET_IDS: batch[kfg.G_TARGET_IDS].clone()})
    out = model(batch)
    golden.near(out[kfg.G_LOGITS], 'output.train.G_LOGITS', 'G_LOGITS')
    losses = {k: v for loss in build_losses(golden.cfg()) for k, v in loss(out).items()}
    want = golden.group('loss.')
    assert set(losses) == set(want)
    for k, v in want.items(): golden.near(losses[k], f'loss.{k}', 'G_LOGITS')
    sum(losses.values()).backward()
    for k, v in golden.group('grad.').items(): golden.near(model.get_parameter(k).grad, f'grad.{k}', 'G_LOGITS')
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert torch.stack([g.norm() for g in grads]).norm().item() == pytest.approx(golden.meta['values']['grad_norm'], rel=1e-5)
    unused = [k for k, p in model.named_parameters() if p.grad is None]
    assert unused == golden.meta['values']['params_without_grad']


@seeded_draw
@rnn
@pytest.mark.parametrize('rows', ['expanded', 'images'])
def test_scheduled_sampling(golden, rows):
    "The same draws from the same seed."
    model = no_dropout(golden.model()).train()
    batch = (golden.batch() if rows == 'expanded' else golden.images()).merge({kfg.SS_PROB: 0.5})
    torch.manual_seed(4321)
    golden.near(model(batch)[kfg.G_LOGITS], 'output.scheduled_sampling.G_LOGITS', 'G_LOGITS')


def check_decoded(golden, out, name, noise):
    assert torch.equal(out[kfg.G_SENTS_IDS], golden.tensors[f'output.{name}.G_SENTS_IDS'])
    golden.near(out[kfg.G_LOGP], f'output.{name}.G_LOGP', f'{noise} logp')


@seeded_draw
@family
def test_sampling_and_policy_gradient(golden):
    "A seeded draw, and the gradient of the reward-weighted log-probability."
    if 'output.sample.' not in golden: pytest.skip(f'{golden} has no sample')
    model = golden.model()
    torch.manual_seed(1234)
    out = model(golden.batch('input_gen').merge({kfg.DECODE_BY_SAMPLE: True}), use_beam_search=False)
    check_decoded(golden, out, 'sample', 'greedy')
    out = {**out, kfg.REWARDS: golden.tensors['rl_input.REWARDS']}
    losses = RewardCriterion(golden.cfg())(out)
    for k, v in losses.items(): golden.near(v, f'rl_loss.{k}', 'greedy logp')
    sum(losses.values()).backward()
    for k in golden.group('rl_grad.'): golden.near(model.get_parameter(k).grad, f'rl_grad.{k}', 'G_LOGITS')
