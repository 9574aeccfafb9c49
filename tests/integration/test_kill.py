"""kill -9, thirty times: in a step, in an evaluation, in the middle of writing a checkpoint. Continued with `--resume` each time,
Up-Down with dropout and scheduled sampling ends with the same losses, metrics, rates and weights as if nothing had happened."""
import json
import os
import random
import signal
import time
import zlib
from collections import Counter
from argparse import Namespace
from pathlib import Path
import pytest
import torch
from children import ended, server
from xmodaler_nb.checkpoint import XmodalerCheckpointer, read_checkpoint
from xmodaler_nb.modeling import load_cfg_file
from xmodaler_nb.config.constants import kfg
from xmodaler_nb.engine import defaults

pytestmark = pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')
SMALL = '''MODEL.DECODER_DIM 32 MODEL.TOKEN_EMBED.DIM 16 MODEL.VISUAL_EMBED.OUT_DIM 32 MODEL.UPDOWN.ATT_EMBED_SIZE 16 MODEL.UPDOWN.DROPOUT1 0.2
SOLVER.EPOCH 4 SOLVER.BASE_LR 0.03 SOLVER.WRITE_PERIOD 3 SOLVER.EVAL_PERIOD 1 SCHEDULED_SAMPLING.START_EPOCH 0 SCHEDULED_SAMPLING.INC_EVERY_EPOCH 1 SCHEDULED_SAMPLING.INC_PROB 0.2
DATALOADER.TRAIN_BATCH_SIZE 10 DECODE_STRATEGY.BEAM_SIZE 2 ENGINE.CHECKPOINT_ITERS 5 ENGINE.KEEP_LAST 3 ENGINE.KEEP_BEST val/CIDEr ENGINE.PROGRESS False MODEL.USE_EMA True MODEL.EMA_DECAY 0.9'''.split()


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    from xmodaler_nb.own.scenes import make_scenes
    return make_scenes(tmp_path_factory.mktemp('scenes'), 'tiny')


def config(data, out, workers):
    return load_cfg_file('demo.yaml', [*data.cfg_overrides, *SMALL, 'DATALOADER.NUM_WORKERS', str(workers), 'OUTPUT_DIR', str(out)])


def die_at(call, n):
    "Kill this process at the n-th call of a function of `os`, or of the decoder's loop."
    count, real = [0], {'fsync': os.fsync, 'rename': os.rename, 'replace': os.replace, 'check_stop': defaults.check_stop}[call]
    def f(*args, **kwargs):
        count[0] += 1
        if count[0] == n: os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)
    setattr(defaults if call == 'check_stop' else os, call, f)


def announce(owner, name, doing, what):
    "While this function runs, say so to the parent."
    real = getattr(owner, name)
    def f(*args, **kwargs):
        before, doing.value = doing.value, what
        try: return real(*args, **kwargs)
        finally: doing.value = before
    setattr(owner, name, f)


class Trainer(defaults.DefaultTrainer):
    "Its metrics are what the beams said and how sure they were, to the last bit: no difference between two models escapes."
    def build_evaluators(self, cfg): return None, None

    @classmethod
    def test(cls, cfg, model, loader, evaluator, epoch):
        sure = []
        handle = model.register_forward_hook(lambda m, i, out: sure.append(out[kfg.G_LOGP].double().sum().item()))
        class Fingerprint:
            def eval(self, results, epoch): return {'CIDEr': sum(sure), 'said': zlib.crc32(json.dumps(results).encode())/2**32}
        try: return super().test(cfg, model, loader, Fingerprint(), epoch)
        finally: handle.remove()


PHASES = ['before the first step', 'in a step', 'in an evaluation', 'writing a checkpoint']

def life(data, out, workers, resume, doing, death):
    "One process: train until the end, or until killed."
    torch.set_num_threads(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(os.open(out.with_suffix('.err'), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    if death is None or death[0] != 'fsync': os.fsync = lambda fd: None        # the kernel survives; flushing would only take time here
    if death and death[0] != 'time': die_at(*death)
    announce(defaults, 'decode_loader', doing, 2)
    announce(XmodalerCheckpointer, 'save', doing, 3)
    cfg = config(data, out, workers)
    defaults._report = lambda *args: None                                      # the environment report is long and not what is tested
    defaults.default_setup(cfg, Namespace(resume=resume, eval_only=False, config_file=''))
    t = Trainer(cfg)
    t.resume_or_load(resume=resume)
    doing.value = 1
    t.train()


def run(data, out, workers, resume=False, death=None):
    "Exit code of one life, and what it was doing when it ended."
    ctx = server('torch._dynamo', 'torch.utils.tensorboard', 'xmodaler_nb.datasets', 'xmodaler_nb.modeling', 'test_kill')      # what every life would import
    doing = ctx.Value('i', 0, lock=False)
    p = ctx.Process(target=life, args=(data, out, workers, resume, doing, death), daemon=False)
    p.start()
    if death and death[0] == 'time':
        while not doing.value and p.is_alive(): time.sleep(.005)
        p.join(death[1])
        if p.is_alive(): os.kill(p.pid, signal.SIGKILL)
    return ended(p, 300), PHASES[doing.value]


def lines(out):
    "The lines of the log; of times only that they are there."
    return [{k: 'time' in k or 'eta' in k or v for k, v in json.loads(l).items()} for l in (out/'events.jsonl').read_text().splitlines()]


def readable(out):
    "Whatever is called a checkpoint can be read."
    for p in out.iterdir():
        if p.is_dir() and p.name.startswith('model'): read_checkpoint(p)
    tag = out/'last_checkpoint'
    if tag.exists(): assert XmodalerCheckpointer(torch.nn.Linear(1, 1), out, save_to_disk=False).get_checkpoint_file().endswith(tag.read_text())


def same(whole, out):
    "Log, rates, metrics, weights, average, best checkpoint: to the last bit; nothing is left over."
    assert lines(out) == lines(whole)
    a, b = (read_checkpoint(d/'model_final') for d in (whole, out))
    assert all(torch.equal(a['model'][k], b['model'][k]) for k in a['model']) and set(a['model']) == set(b['model'])
    assert all(torch.equal(v, b['trainer']['ema'][k]) for k, v in a['trainer']['ema'].items())
    def curves(c):       # a final checkpoint that had to be written after its evaluation knows it already
        return {k: [d for d in v['data'] if k in ('total_loss', 'lr') or d[1] < 15] for k, v in c['trainer']['storage']['scalars'].items() if 'time' not in k and 'eta' not in k}
    assert {k: v for k, v in curves(b).items() if v} == {k: v for k, v in curves(a).items() if v} and len(curves(a)['total_loss']) == 16      # every step, unsmoothed
    for k, s in a['trainer']['optimizer']['state'].items(): assert all(torch.equal(torch.as_tensor(v), torch.as_tensor(b['trainer']['optimizer']['state'][k][n])) for n, v in s.items())
    best = [json.loads((d/'model_best'/'meta.json').read_text())['value'] for d in (whole, out)]
    assert best[0] == best[1] and not list(out.glob('.tmp*')) and len(list(out.glob('model_Epoch*'))) == 3


def check(data, tmp_path, workers, kills, seed):
    "Train once in peace. Then kill and resume; a training that reaches its end is compared and the next one begins, until there were enough kills."
    rng, whole, out, found = random.Random(seed), tmp_path/'whole', tmp_path/'broken0', Counter()
    start = time.perf_counter()
    assert run(data, whole, workers)[0] == 0
    usual = time.perf_counter() - start
    while sum(found.values()) < kills:
        kind = rng.choice(['time', 'time', 'time', 'fsync', 'rename', 'replace', 'check_stop'])
        death = (kind, rng.uniform(0, .7*usual) if kind == 'time' else rng.randint(1, {'fsync': 30, 'rename': 6, 'replace': 4, 'check_stop': 6}[kind]))
        code, doing = run(data, out, workers, resume=True, death=death)
        if code == -signal.SIGKILL: found[doing] += 1
        else:
            assert code == 0, out.with_suffix('.err').read_text()[-2000:]
            same(whole, out)
            out = tmp_path/f'broken{int(out.name[6:])+1}'
        if out.exists(): readable(out)
    assert run(data, out, workers, resume=True)[0] == 0
    same(whole, out)
    print(f'{sum(found.values())} kills in {int(out.name[6:])+1} trainings with {workers} workers: {dict(found)}')
    return found


def test_killed_a_few_times(data, tmp_path): assert len(check(data, tmp_path, workers=0, kills=4, seed=1)) > 1

@pytest.mark.slow
@pytest.mark.parametrize('workers', [0, 2])
def test_killed_thirty_times(data, tmp_path, workers): assert {'in a step', 'in an evaluation', 'writing a checkpoint'} <= set(check(data, tmp_path, workers, kills=30, seed=workers))
