"""The published configs of understanding and pre-training, from `ENGINE.NAME` to scores, on scenes: built, trained, killed and resumed bit for bit, evaluated;
and two processes that do what one does, each id counted once."""
import json, math, os, signal, sys
from pathlib import Path
import pytest, torch
sys.path.insert(0, str(Path(__file__).parent))
from test_scenes_tasks import CONFIGS, MM, config, options
from children import run, server
from toy import events
from xmodaler_nb.commands.train import evaluate_only, train_main
from xmodaler_nb.engine import ENGINE_REGISTRY, HookBase, build_engine
from xmodaler_nb.modeling import build_model, load_cfg_file
from xmodaler_nb.own.scenes import make_scenes, write_tasks
from xmodaler_nb.utils.testing import set_seed

TRAINERS = {MM + 'vqa/uniter/vqa.yaml': 'DefaultTrainer', MM + 'vqa/tden/vqa.yaml': 'DefaultTrainer', MM + 'vcr/uniter/vcr.yaml': 'VCRTrainer', MM + 'vcr/tden/vcr.yaml': 'VCRTrainer',
            MM + 'flickr30k_retrieval/uniter/flickr30k_retrieval.yaml': 'SingleStreamRetrievalTrainer',
            MM + 'flickr30k_retrieval/uniter/flickr30k_retrieval_hard.yaml': 'SingleStreamRetrievalTrainerHardNegatives',
            MM + 'flickr30k_retrieval/tden/flickr30k_retrieval.yaml': 'RetrievalTrainer', 'pretrain/uniter/uniter.yaml': 'DefaultTrainer', 'pretrain/tden/tden.yaml': 'TDENPretrainer'}
METRICS = dict(vqa='accuracy', vcr='Q -> AR', flickr30k='r1', conceptual_captions=None)
STEPS = {'DATALOADER.TRAIN_BATCH_SIZE': 4, 'SOLVER.EPOCH': 4, 'SOLVER.WRITE_PERIOD': 1, 'SOLVER.EVAL_PERIOD': 99, 'SOLVER.CHECKPOINT_PERIOD': 99, 'ENGINE.CHECKPOINT_ITERS': 2, 'ENGINE.PROGRESS': False,
         'LR_SCHEDULER.NAME': 'FixLR', 'SOLVER.BASE_LR': 1e-3}


@pytest.fixture(scope='module')
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp('world')
    data = make_scenes(folder/'scenes', counts=dict(train=8, val=4, test=3))
    return data, write_tasks(folder/'tasks', data)


class KilledAt(HookBase):
    "SIGKILL after the step with this number."
    def __init__(self, iteration): self.iteration = iteration
    def after_step(self):
        if self.trainer.iter == self.iteration: os.kill(os.getpid(), signal.SIGKILL)


def trainer(path, world, out, resume=False, **more):
    cfg = config(path, world, **{**STEPS, 'OUTPUT_DIR': str(out), **more})
    set_seed(0)                                              # layer drop and UNITER's tasks are drawn from Python's generator
    t = build_engine(cfg)
    t.resume_or_load(resume=resume)
    return t


def dies(path, world, out):
    "A training that ends in its third step, after a checkpoint at its second."
    t = trainer(path, world, out)
    t.register_hooks([KilledAt(2)])
    t.train(0, 4)


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')
@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('path', TRAINERS)
def test_trains_resumes_and_is_scored(path, world, tmp_path):
    whole = trainer(path, world, tmp_path/'whole')
    assert type(whole) is ENGINE_REGISTRY.get(TRAINERS[path]) and whole.cfg.ENGINE.NAME == TRAINERS[path]
    before = {k: v.clone() for k, v in whole.model.state_dict().items()}
    whole.train(0, 4)
    assert any(not torch.equal(v, before[k]) for k, v in whole.model.state_dict().items())
    assert run(server('test_task_trainers'), dies, path, world, tmp_path/'parts') == -signal.SIGKILL and not (tmp_path/'parts'/'model_final').exists()
    second = trainer(path, world, tmp_path/'parts', resume=True)
    set_seed(99)
    assert second.start_iter == 2
    second.train(max_iter=4)
    for k, v in whole.model.state_dict().items(): assert torch.equal(v, second.model.state_dict()[k]), k
    assert events(tmp_path/'parts') == events(tmp_path/'whole') and len(events(tmp_path/'whole')) == 4
    metric = METRICS[CONFIGS[path]]
    if metric is None: return
    scores = evaluate_only(second.cfg, second)
    assert set(scores) == ({'val'} if CONFIGS[path] == 'vcr' else {'val', 'test'})
    for s in scores.values():
        found = [v for k, v in s.items() if metric in k]
        assert found and all(math.isfinite(v) and 0 <= v <= 100 for v in found)


@pytest.mark.parametrize('base', ['mm_understanding_base', 'uniter_mm_understanding_base'])
def test_bases_build(base):
    "The two files that the others begin with name a model of their own."
    cfg = load_cfg_file(f'{MM}{base}.yaml', MODEL=dict(DEVICE='cpu', VOCAB_SIZE=50, BERT=dict(HIDDEN_SIZE=24, INTERMEDIATE_SIZE=24, NUM_HIDDEN_LAYERS=1),
                                                       TOKEN_EMBED=dict(DIM=24), VISUAL_EMBED=dict(OUT_DIM=24, IN_DIM=8)))
    assert sum(p.numel() for p in build_model(cfg).parameters()) > 1000


def test_the_command_trains_and_evaluates(world, tmp_path, capsys):
    "`xm-train --config-file`, then `--eval-only --resume`: two tasks, two loaders."
    path = MM + 'vcr/uniter/vcr.yaml'
    opts = options(path, world, **{**STEPS, 'SOLVER.EPOCH': 1, 'DATALOADER.TRAIN_BATCH_SIZE': 8, 'OUTPUT_DIR': str(tmp_path)})
    args = ['--config-file', path, *(str(x) for kv in opts.items() for x in kv)]
    assert train_main(args) == 0
    log = events(tmp_path)
    assert train_main(['--eval-only', '--resume', *args]) == 0
    assert events(tmp_path) == log                           # the log of the training stays whole
    scores = json.loads(capsys.readouterr().out.strip().splitlines()[-1].removeprefix('val '))
    assert set(scores) == {'Q -> A', 'QA -> R', 'Q -> AR'}
    assert all(scores[k] == pytest.approx(log[-1][f'val/{k}']) for k in scores)


@pytest.mark.parametrize('name, task', [('retrieval_tden', 'flickr30k'), ('vqa_tden', 'vqa')])
def test_small_configs_run(name, task, world, tmp_path):
    "The configs for scenes take the data set's entries and train; the second starts from the first's encoders."
    few = {'DATALOADER.TRAIN_BATCH_SIZE': 4, 'OUTPUT_DIR': str(tmp_path/name), 'ENGINE.PROGRESS': False, 'DATASETS.VAL': '', 'DATASETS.TEST': ''}
    cfg = load_cfg_file(f'scenes/{name}.yaml', [x for kv in {**world[1][task].entries, **few}.items() for x in kv])
    t = build_engine(cfg)
    t.train(0, 1)
    assert (tmp_path/name/'model_final').is_dir()
    first = build_model(load_cfg_file('scenes/retrieval_tden.yaml', world[1]['flickr30k'].cfg_overrides)).state_dict()
    shared = [k for k in t.model.state_dict() if k.startswith(('encoder.', 'token_embed.', 'visual_embed.'))]
    assert all(first[k].shape == t.model.state_dict()[k].shape for k in shared)
