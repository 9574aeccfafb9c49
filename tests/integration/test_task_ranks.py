"""Two gloo processes train and score understanding models as one process does. For a loss that is a mean over rows (VQA) one process has the whole batch; where
the pairs of a batch compete (retrieval), each process has a batch of its own, and one process accumulates the two."""
import json, sys
from itertools import chain
from pathlib import Path
import numpy as np, pytest, torch
sys.path.insert(0, str(Path(__file__).parent))
from test_scenes_tasks import CONFIGS, MM, config
from xmodaler_nb.checkpoint import read_checkpoint
from xmodaler_nb.config import kfg
from xmodaler_nb.engine import ENGINE_REGISTRY
from xmodaler_nb.own.scenes import make_scenes, write_tasks
from xmodaler_nb.utils import comm
from xmodaler_nb.utils.testing import run_ranks, set_seed

NAMES = dict(vqa=MM + 'vqa/uniter/vqa.yaml', vcr=MM + 'vcr/uniter/vcr.yaml', tden=MM + 'flickr30k_retrieval/tden/flickr30k_retrieval.yaml',
             pairs=MM + 'flickr30k_retrieval/uniter/flickr30k_retrieval.yaml', hard=MM + 'flickr30k_retrieval/uniter/flickr30k_retrieval_hard.yaml')
NO_CHANCE = {f'MODEL.BERT.{k}': 0. for k in ('HIDDEN_DROPOUT_PROB', 'INTERMEDIATE_DROP', 'FFN_DROPOUT_PROB', 'ATTENTION_PROBS_DROPOUT_PROB')} | {
    'MODEL.TOKEN_EMBED.DROPOUT': 0., 'MODEL.VISUAL_EMBED.DROPOUT': 0.}
TWO_STREAMS = {'MODEL.BERT.LAYER_DROP': 0., 'MODEL.BERT.V_LAYER_DROP': 0., 'MODEL.MM_PREDICTOR.POOLER_BN': False, 'MODEL.MM_PREDICTOR.POOLER_DROPOUT': 0.}


def make(folder): return (data := make_scenes(folder/'scenes', counts=dict(train=8, val=4, test=3)), write_tasks(folder/'tasks', data))


class Seen:
    "An evaluator that keeps what it got."
    def eval(self, *args): self.args = args; return {}


def trainer(name, world, out, batch=4, loaders=None, **more):
    "Plain gradient steps, nothing left to chance."
    path = NAMES[name]
    cfg = config(path, world, **{**NO_CHANCE, **(TWO_STREAMS if name == 'tden' else {}), 'DATALOADER.TRAIN_BATCH_SIZE': batch, 'OUTPUT_DIR': str(out), 'LR_SCHEDULER.NAME': 'FixLR',
                                 'LOSSES.MARGIN': 9., 'ENGINE.PROGRESS': False, 'SOLVER.GRAD_CLIP': -1., 'SOLVER.EVAL_PERIOD': 99, 'DATASETS.VAL': '', **more})

    class Plain(ENGINE_REGISTRY.get(cfg.ENGINE.NAME)):
        @classmethod
        def build_optimizer(cls, cfg, model): return torch.optim.SGD(model.parameters(), .05)
        @classmethod
        def build_train_loader(cls, cfg): return loaders(super().build_train_loader, cfg) if loaders else super().build_train_loader(cfg)
    set_seed(3)
    return Plain(cfg)


class InTurn:
    "The batches of the two processes, one after the other."
    def __init__(self, *loaders):
        for r, l in enumerate(loaders): l.sampler.rank, l.sampler.world_size = r, 2
        self.loaders = loaders
    def __len__(self): return sum(map(len, self.loaders))
    def __iter__(self): return chain.from_iterable(zip(*self.loaders))
def in_turn(build, cfg): return InTurn(build(cfg), build(cfg))


def weights(t): return {k: v.clone() for k, v in comm.unwrap_model(t.model).state_dict().items()}
def scored(t, evaluator=None): return t.test(t.cfg, t.model, t.test_data_loader, evaluator or t.test_evaluator, -1)


def both(folder, out):
    "What each of the two processes does: two steps of each training, an evaluation of each."
    world, found = make(Path(folder)), {}
    for name in ('vqa', 'tden', 'hard'):
        t = trainer(name, world, Path(out)/name)
        t.train(0, 2)
        found[name] = weights(t)
        if name != 'hard': found[f'{name} scores'] = scored(t)
    t = trainer('pairs', world, Path(out)/'pairs')
    scores, right = t.inference(t.cfg, t.model, t.test_data_loader)
    if comm.is_main_process(): torch.save(found | {'pairs': torch.as_tensor(scores), 'right': right}, Path(out)/'found.pt')
    else: assert scores is None and found['vqa scores'] == found['tden scores'] == {}


@pytest.fixture(scope='module')
def folder(tmp_path_factory): return tmp_path_factory.mktemp('world')
@pytest.fixture(scope='module')
def world(folder): return make(folder)
@pytest.fixture(scope='module')
def two(folder, world, tmp_path_factory):
    out = tmp_path_factory.mktemp('two')
    run_ranks(f'''
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_task_ranks import both
both({str(folder)!r}, {str(out)!r})
''', timeout=300)
    return torch.load(out/'found.pt', weights_only=False)


@pytest.mark.parametrize('name', ['vqa', 'tden', 'hard'])
def test_two_processes_train_as_one(two, world, tmp_path, name):
    how = dict(batch=8) if name == 'vqa' else dict(loaders=in_turn, **{'ENGINE.ACCUMULATE': 2})
    one = trainer(name, world, tmp_path, **how)
    start = weights(one)
    one.train(0, 2 if name == 'vqa' else 4)
    for k, v in weights(one).items(): assert torch.allclose(two[name][k], v, atol=2e-6), k
    assert any((two[name][k] - v).abs().max() > 1e-4 for k, v in start.items() if v.is_floating_point())      # it was a training


@pytest.mark.parametrize('name', ['vqa', 'tden'])
def test_two_processes_score_as_one(two, world, tmp_path, name):
    "The same weights, the same scores: each question and each picture once, although their number is odd."
    one = trainer(name, world, tmp_path)
    one.model.load_state_dict(two[name])
    assert scored(one) == pytest.approx(two[f'{name} scores'])
    if name == 'tden':
        scored(one, seen := Seen())
        assert [tuple(x.shape) for x in seen.args] == [(3, 16), (15, 16), (15, 3)] and seen.args[2].sum() == 15


def test_two_processes_compare_all_pairs(two, world, tmp_path):
    one = trainer('pairs', world, tmp_path)
    scores, right = one.inference(one.cfg, one.model, one.test_data_loader)
    assert scores.shape == (15, 3) and right == two['right'] == [k//5 for k in range(15)]
    assert np.allclose(scores, two['pairs'], atol=1e-6)
