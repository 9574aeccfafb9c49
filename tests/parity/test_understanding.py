"Understanding and pre-training against the numbers X-modaler computed: batches, outputs, losses, gradients, binding, batch norm's statistics."
import re
import numpy as np, pytest, torch
from golden_models import Golden, near, no_dropout
from xmodaler_nb.config import kfg
from xmodaler_nb.losses import build_losses

SINGLE = ['uniter_vqa', 'uniter_vcr', 'uniter_retrieval']
PLAIN = [*SINGLE, 'tden_vqa', 'tden_vcr']                   # one pass, in eval mode
TASKS = ['itm', 'mlm', 'mrfr', 'mrc-kl']
plain = pytest.mark.parametrize('golden', PLAIN, indirect=True, ids=str)
OTHERS = ['tden_retrieval', 'uniter_pretrain', 'tden_pretrain']

@pytest.fixture
def golden(request): return Golden(request.param)

def items(golden):
    "What the data set returned; retrieval items have no IDS, so they are counted by their numbers."
    n = 1 + max(int(m[1]) for k in golden.tensors if (m := re.match(r'sample\.(\d+)\.', k)))
    return [{**golden.group(f'sample.{i}.'), **golden.values(f'sample.{i}.')} for i in range(n)]

def answers_alike(got, want):
    "Numbers of answers, as an array or a tensor."
    assert np.array_equal(np.asarray(got.cpu() if torch.is_tensor(got) else got), want.cpu().numpy())

def check_losses(golden, model, out, part='', noise=None):
    "Losses by name, gradients, the gradient's norm, and which parameters have none."
    model.zero_grad(set_to_none=True)
    losses = {k: v for loss in build_losses(golden.cfg()) for k, v in loss(out).items()}
    want = {k: v for k, v in golden.group(f'loss.{part}').items()}
    assert set(losses) == set(want)
    for k in want: golden.near(losses[k], f'loss.{part}{k}', noise)
    sum(losses.values()).backward()
    for k in golden.group(f'grad.{part}'): golden.near(model.get_parameter(k).grad, f'grad.{part}{k}', noise)
    tail, values = f'.{part[:-1]}' if part else '', golden.meta['values']
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert torch.stack([g.norm() for g in grads]).norm().item() == pytest.approx(values[f'grad_norm{tail}'], rel=1e-5)
    assert sum(losses.values()).item() == pytest.approx(values[f'total_loss{tail}'], rel=1e-5)
    assert [k for k, p in model.named_parameters() if p.grad is None] == values[f'params_without_grad{tail}']


@pytest.mark.parametrize('golden', [*PLAIN, *OTHERS], indirect=True, ids=str)
def test_preprocess_batch(golden):
    "Padding, masks, repetition and ids, key by key."
    got = golden.model().preprocess_batch(items(golden))
    want = {k: v for k, v in golden.batch().items() if not k.startswith('stage2.')}
    extra = set(got) - set(want) - {kfg.COPIES}
    assert extra <= {kfg.IDS} and not set(want) - set(got)
    for k, v in want.items():
        if isinstance(v, torch.Tensor):
            near(got[k], v)
            assert got[k].dtype == v.dtype, k
        else: assert list(np.ravel(got[k])) == list(np.ravel(v)), k


@plain
@pytest.mark.parametrize('rows', ['expanded', 'images', 'early'])
def test_outputs_losses_gradients(golden, rows):
    "With images repeated beforehand, in the model after their embedding (late) or first thing in the model (early)."
    model, batch = golden.model('MODEL.EXPAND', 'early' if rows == 'early' else 'late'), golden.batch()
    if rows != 'expanded':
        s = len(batch[kfg.ATT_FEATS])//len(items(golden)) if golden.name != 'uniter_retrieval' else 1
        batch = batch.merge({k: batch[k][::s] for k in (kfg.ATT_FEATS, kfg.ATT_MASKS, kfg.ATT_FEATS_LOC)})
    out = model(batch)
    for k in (kfg.U_LOGITS, kfg.G_LOGITS):
        if f'output.eval.{k}' in golden.tensors: golden.near(out[k], f'output.eval.{k}', k)
    want = golden.tensors['output.eval.OUTPUT']
    if golden.name == 'tden_vcr': assert np.asarray(out[kfg.OUTPUT]).tolist() == [0]*len(want)     # one label; X-modaler returns its probability
    elif golden.name == 'uniter_retrieval': golden.near(out[kfg.OUTPUT], 'output.eval.OUTPUT', kfg.U_LOGITS)
    else: answers_alike(out[kfg.OUTPUT], want)
    if 'vcr' in golden.name: out = out.merge({kfg.U_LOGITS: out[kfg.U_LOGITS].view(-1, 4)})
    check_losses(golden, model, out, noise=kfg.U_LOGITS)


@pytest.mark.parametrize('golden', SINGLE, indirect=True, ids=str)
@pytest.mark.parametrize('when', ['before loading', 'after loading'])
def test_binding(golden, when):
    "The pre-trained pooler, and for retrieval the match head's first row, whether bound before the weights come or after."
    model = golden.model()
    weights = {k: v for k, v in golden.group('state_dict.').items() if not k.startswith('predictor.')}     # as from pre-training
    if when == 'before loading': model.bind_or_init_weights()
    missing = model.load_state_dict(weights, strict=False).missing_keys
    assert all(k.startswith('predictor.') for k in missing)
    if golden.name != 'uniter_retrieval':                               # the answers' own map is not in the pre-trained file
        model.predictor.cls.load_state_dict(golden.group('state_dict.predictor.cls.'))
    if when == 'after loading': model.bind_or_init_weights()
    golden.near(model(golden.batch())[kfg.U_LOGITS], 'output.bound.U_LOGITS', kfg.U_LOGITS)
    if golden.name == 'uniter_retrieval':
        assert model.predictor.cls.weight.data_ptr() == model.itm_predictor.is_match_cls.weight.data_ptr()


@pytest.mark.parametrize('golden', ['uniter_retrieval_hard'], indirect=True, ids=str)
@pytest.mark.parametrize('hard', ['hard1', 'hard2'])
def test_hard_negatives(golden, hard):
    "The loss of batches with one and two hard negatives (mining: tests of the training method)."
    model = no_dropout(golden.model()).train()
    out = model(golden.batch(hard))
    golden.near(out[kfg.U_LOGITS], f'output.{hard}.U_LOGITS')
    check_losses(golden, model, out, f'{hard}.')


@pytest.mark.parametrize('golden', ['uniter_pretrain'], indirect=True, ids=str)
@pytest.mark.parametrize('task', TASKS)
def test_uniter_tasks(golden, task, monkeypatch):
    "Each task's output, targets, loss and gradients; the task is the generator's choice."
    model, batch = golden.model(), golden.batch()
    before = {k: v.clone() for k, v in batch.items() if isinstance(v, torch.Tensor)}
    pools = []
    monkeypatch.setattr('random.choice', lambda pool: pools.append(list(pool)) or task)
    out = model(batch)
    assert pools == [['itm']*3 + ['mlm']*4 + ['mrfr']*2 + ['mrc-kl']*2]
    for k in golden.group(f'output.train.{task}.'):
        if 'TARGET' in k: assert torch.equal(out[k], golden.tensors[f'output.train.{task}.{k}']), k
        else: golden.near(out[k], f'output.train.{task}.{k}', task)
    check_losses(golden, model, out, f'{task}.', task)
    for k, v in before.items(): assert torch.equal(batch[k], v), f'{k} of the given batch was changed'


def test_uniter_ties():
    golden = Golden('uniter_pretrain')
    model = golden.model()
    for a, b in golden.meta['tied_parameters']: assert model.get_parameter(a) is model.get_parameter(b), (a, b)


def train_mode(golden): return no_dropout(golden.model('MODEL.BERT.LAYER_DROP', 0., 'MODEL.BERT.V_LAYER_DROP', 0., 'MODEL.BERT.U_LAYER_DROP', 0.)).train()

def check_buffers(golden, model, prefix):
    buffers = dict(model.named_buffers())
    for k in golden.group(prefix): golden.near(buffers[k].float(), prefix + k) if buffers[k].is_floating_point() else near(buffers[k], golden.tensors[prefix + k])

def check_pair(golden, out):
    for i in (0, 1): golden.near(out[kfg.OUTPUT][i], f'output.eval.OUTPUT.{i}', kfg.OUTPUT)


@pytest.mark.parametrize('golden', ['tden_retrieval'], indirect=True, ids=str)
def test_tden_retrieval(golden):
    "Unit vectors in evaluation; scores, loss, gradients and batch norm's statistics in training."
    check_pair(golden, golden.model()(golden.batch()))
    model = train_mode(golden)
    out = model(golden.batch())
    golden.near(out[kfg.OUTPUT], 'output.train.OUTPUT', kfg.OUTPUT)
    check_losses(golden, model, out, noise=kfg.OUTPUT)
    check_buffers(golden, model, 'buffers_after.')


@pytest.mark.parametrize('golden', ['tden_retrieval'], indirect=True, ids=str)
def test_more_texts_than_pictures(golden):
    "An evaluation batch has several texts per picture, also a multiple of them; pictures are not repeated."
    model, batch = golden.model(), golden.batch()
    texts = (kfg.U_TOKENS_IDS, kfg.U_TOKENS_TYPE, kfg.TOKENS_MASKS)
    for rows in ([0, 1, 2, 2, 1], [0, 0, 1, 1, 2, 2]):
        more = batch.merge({k: batch[k][rows] for k in texts})
        out = model(model.preprocess_batch(more))
        near(out[kfg.OUTPUT][0], golden.tensors['output.eval.OUTPUT.0'])
        near(out[kfg.OUTPUT][1], golden.tensors['output.eval.OUTPUT.1'][rows])


@pytest.mark.parametrize('golden', ['tden_pretrain'], indirect=True, ids=str)
def test_tden_stages(golden):
    "Both passes: outputs, losses and gradients; the comparison in the first only."
    flag, heads = 'tden_pretrain_similarity', (kfg.U_LOGITS, kfg.G_LOGITS, kfg.V_LOGITS)
    out = golden.model()(golden.batch().merge({flag: True}))
    check_pair(golden, out)
    for k in heads: golden.near(out[k], f'output.eval.{k}', k)
    model = train_mode(golden)
    out = model(golden.batch().merge({flag: True}))
    for k in (*heads, kfg.OUTPUT): golden.near(out[k], f'output.train.stage1.{k}', k)
    check_losses(golden, model, out, 'stage1.', kfg.G_LOGITS)
    check_buffers(golden, model, 'buffers_after_stage1.')
    second = golden.batch().merge({flag: False, **{k: golden.tensors[f'input.stage2.{k}'] for k in (kfg.U_TOKENS_IDS, kfg.G_TOKENS_IDS)}})
    out = model(second)
    assert kfg.OUTPUT not in out
    for k in heads: golden.near(out[k], f'output.train.stage2.{k}', k)
    check_losses(golden, model, out, 'stage2.', kfg.G_LOGITS)
