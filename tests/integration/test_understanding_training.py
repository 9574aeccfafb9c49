"Training understanding models on toy pictures: heads are bound before the optimizer is built, batches with nothing to learn, two processes."
import math
from pathlib import Path
import pytest, torch
from xmodaler_nb.checkpoint import read_checkpoint
from xmodaler_nb.config import Batch, kfg
from xmodaler_nb.engine import DefaultTrainer
from xmodaler_nb.modeling.meta_arch.toy_questions import COLOURS, SHAPES, toy_captions, toy_cfg, toy_pretraining, toy_questions
from xmodaler_nb.utils.testing import run_ranks

ANSWERS = dict(MM_PREDICTOR=dict(LABELS_NUM=len(COLOURS)))
FILES = dict(answer='mm_understanding/vqa/uniter/vqa.yaml', retrieve='mm_understanding/flickr30k_retrieval/uniter/flickr30k_retrieval.yaml',
             pretrain='pretrain/uniter/uniter.yaml')


def train_cfg(folder, task='answer', **model):
    cfg = toy_cfg(FILES[task], width=16, **{**(ANSWERS if task == 'answer' else {}), **model}).clone()
    cfg.defrost()
    cfg.OUTPUT_DIR, cfg.ENGINE.PROGRESS, cfg.SOLVER.EPOCH, cfg.SOLVER.WRITE_PERIOD, cfg.SOLVER.BASE_LR = str(folder), False, 1, 1, 1e-2
    cfg.LR_SCHEDULER.NAME = 'FixLR'
    cfg.LOSSES.MARGIN = 5.                                  # every pair violates it, so a mean over ranks is the mean over all
    cfg.DATASETS.VAL = cfg.DATASETS.TEST = ''
    return cfg


class Given:
    "A loader of ready batches, in their order."
    def __init__(self, batches): self.batches = batches
    def __iter__(self): return iter(self.batches)
    def __len__(self): return len(self.batches)


class Trainer(DefaultTrainer):
    "Trains on the given batches."
    batches = None
    @classmethod
    def build_train_loader(cls, cfg): return Given(cls.batches)


def trainer(folder, batches, task='answer', seed=3, **model):
    torch.manual_seed(seed)
    T = type('T', (Trainer,), dict(batches=batches))
    return T(train_cfg(folder, task, **model))


def retrieval_pairs(n=6):
    "Each right pair is followed by one with another caption."
    b = toy_captions(2*n)
    texts = (kfg.U_TOKENS_IDS, kfg.U_TOKENS_TYPE, kfg.TOKENS_MASKS)
    rows = torch.arange(2*n) // 2 * 2
    pictures = {k: b[k][rows] for k in (kfg.ATT_FEATS, kfg.ATT_FEATS_LOC, kfg.ATT_MASKS)}
    return Batch({**pictures, **{k: b[k] for k in texts}, kfg.IDS: rows.tolist(), kfg.SAMPLE_PER_SAMPLE: 2})


def pretrained(folder, **kwargs):
    "A checkpoint of the pre-training model."
    t = trainer(folder, [toy_pretraining(4)], 'pretrain', BERT=dict(V_TARGET_SIZE=len(SHAPES)), **kwargs)
    t.checkpointer.save('pretrained')
    return Path(folder)/'pretrained', t.model


@pytest.mark.parametrize('task', ['answer', 'retrieve'])
def test_bound_before_the_optimizer_and_trained(tmp_path, task):
    "The optimizer holds the one pooler, both names get its trained values, and the file that pre-training wrote fills it."
    file, source = pretrained(tmp_path/'pre', seed=8)
    batches = [toy_questions(8) if task == 'answer' else retrieval_pairs() for _ in range(4)]
    t = trainer(tmp_path/'fine', batches, task)
    held = {id(p) for g in t.optimizer.param_groups for p in g['params']}
    assert t.model.predictor.pooler is t.model.itm_predictor.pooler
    assert held == {id(p) for p in t.model.parameters()}                # no parameter that the model does not use any more
    t.checkpointer.load(str(file), checkpointables=[])
    assert torch.equal(t.model.predictor.pooler.dense.weight, source.itm_predictor.pooler.dense.weight)
    if task == 'retrieve': assert torch.equal(t.model.predictor.cls.weight[0], source.itm_predictor.is_match_cls.weight[0])
    t.train()
    saved = read_checkpoint(tmp_path/'fine'/'model_final')['model']
    for k in ('weight', 'bias'):
        assert torch.equal(saved[f'predictor.pooler.dense.{k}'], saved[f'itm_predictor.pooler.dense.{k}'])
        if task == 'retrieve': assert torch.equal(saved[f'predictor.cls.{k}'], saved[f'itm_predictor.is_match_cls.{k}'][:1])
    assert not torch.equal(saved['predictor.pooler.dense.weight'], source.itm_predictor.pooler.dense.weight)


@pytest.mark.parametrize('task', ['answer', 'retrieve'])
def test_a_checkpoint_trained_without_binding_answers_as_before(tmp_path, task):
    "Evaluation of published weights: what the head learnt wins over the match head, in a trainer that bound it."
    batches = [toy_questions(8) if task == 'answer' else retrieval_pairs() for _ in range(3)]
    free = trainer(tmp_path/'free', batches, task, BIND=False)
    assert free.model.predictor.pooler is not free.model.itm_predictor.pooler
    free.train()
    bound = trainer(tmp_path/'bound', batches, task, seed=99)
    bound.checkpointer.load(str(tmp_path/'free'/'model_final'), checkpointables=[])
    free.model.eval(), bound.model.eval()
    assert torch.allclose(free.model(batches[0])[kfg.U_LOGITS], bound.model(batches[0])[kfg.U_LOGITS], atol=1e-6)


def nothing_hidden(n=4):
    "A pre-training batch in which chance hid nothing."
    b = toy_pretraining(n)
    return b.merge({k: torch.full_like(b[k], -1) for k in (kfg.U_TARGET_IDS, kfg.V_TARGET_LABELS)})


def test_a_batch_with_nothing_to_learn_is_skipped(tmp_path):
    "No step: weights and the optimizer's averages stay; the next batch is trained as usual."
    mlm = dict(PRETRAIN_TASKS=['mlm'], PRETRAIN_TASKS_MIX_RATIO=[1], BERT=dict(V_TARGET_SIZE=len(SHAPES)))
    full, seen = [toy_pretraining(4), nothing_hidden(), toy_pretraining(4)], []
    t = trainer(tmp_path, full, 'pretrain', **mlm)
    step = t.optimizer.step
    t.optimizer.step = lambda *a: (seen.append(t.iter), step(*a))[1]
    t.train()
    assert seen == [0, 2]
    assert all(math.isfinite(p.detach().abs().sum().item()) for p in t.model.parameters())


RANKS = f'''
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_understanding_training import *
'''

def test_two_processes_agree_where_one_has_nothing_to_learn(tmp_path):
    "One rank's batch is empty, then both are, then none: ranks keep equal weights, and the middle iteration is no step."
    out = run_ranks(RANKS + f'''
from xmodaler_nb.utils import comm
torch.manual_seed(5)
mlm = dict(PRETRAIN_TASKS=['mlm'], PRETRAIN_TASKS_MIX_RATIO=[1], BERT=dict(V_TARGET_SIZE=len(SHAPES)))
r = comm.get_rank()
full = [toy_pretraining(4) for _ in range(2)]
batches = [full[0] if r == 0 else nothing_hidden(), nothing_hidden(), full[r]]
t = trainer({str(tmp_path)!r}, batches, 'pretrain', **mlm)
steps = []
step = t.optimizer.step
t.optimizer.step = lambda *a: (steps.append(t.iter), step(*a))[1]
t.train()
total = sum(p.double().abs().sum().item() for p in t.model.parameters())
print(steps, f'{{total:.12f}}')
''')
    ends = [o.strip().splitlines()[-1] for o in out]
    assert ends[0] == ends[1] and ends[0].startswith('[0, 2]'), ends


@pytest.mark.parametrize('task', ['answer', 'retrieve'])
def test_two_processes_are_one(tmp_path, task):
    "Binding works inside the data-parallel wrapper: the same weights as one process with the whole batch."
    out = run_ranks(RANKS + f'''
from xmodaler_nb.utils import comm
def share(b, r):
    n = len(b[kfg.U_TOKENS_IDS])//2
    cut = lambda v: v[r*n:(r+1)*n] if isinstance(v, (torch.Tensor, list)) else v
    return Batch({{k: cut(v) for k, v in b.items()}})
torch.manual_seed(5)
batches = [toy_questions(8) if {task!r} == 'answer' else retrieval_pairs() for _ in range(3)]
class SGD(Trainer):
    @classmethod
    def build_optimizer(cls, cfg, model): return torch.optim.SGD(model.parameters(), .05)
SGD.batches = [share(b, comm.get_rank()) for b in batches]
torch.manual_seed(3)
t = SGD(train_cfg({str(tmp_path/'two')!r}, {task!r}))
assert comm.unwrap_model(t.model).bound
t.train()
''')
    torch.manual_seed(5)
    batches = [toy_questions(8) if task == 'answer' else retrieval_pairs() for _ in range(3)]
    class SGD(Trainer):
        @classmethod
        def build_optimizer(cls, cfg, model): return torch.optim.SGD(model.parameters(), .05)
    SGD.batches = batches
    torch.manual_seed(3)
    one = SGD(train_cfg(tmp_path/'one', task))
    one.train()
    two = read_checkpoint(tmp_path/'two'/'model_final')['model']
    for k, v in one.model.state_dict().items(): assert torch.allclose(two[k], v, atol=2e-6), k
