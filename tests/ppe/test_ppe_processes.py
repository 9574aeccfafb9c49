"""Extensions with two gloo processes, within a time limit: in a captioning training, where the first process runs them and
both end together, and in PPE's own loop, where each process has a manager."""
import json, os
from pathlib import Path
import torch
from xmodaler_nb.utils.testing import run_ranks

TOY = str(Path(__file__).resolve().parents[1]/'integration')
LIMIT = 90       # seconds for each training, inside the processes; a hang prints where everyone waits

HOME = '''
import sys, io, os, faulthandler, torch; sys.path.insert(0, TOY)
from toy import *
from xmodaler_nb.ppe.reporting import report
from xmodaler_nb.ppe.training import extensions as E, triggers as T
from xmodaler_nb.ppe.training.extension import Extension
from xmodaler_nb.utils import comm
rank, folder = comm.get_rank(), FOLDER
os.fsync = lambda fd: None
class Worse(ToyEval):
    "Better up to the second evaluation, never again."
    n = 0
    def eval(self, results, epoch):
        self.n += 1
        return {'acc': [.1, .5, .3, .2, .1, .1][min(self.n, 6) - 1]}
class Trainer(ToyTrainer):
    def build_evaluators(self, cfg): return Worse(), None
class Where(Extension):
    "Which process calls it, and at which moments."
    def __init__(self): self.calls = []
    def initialize(self, manager): self.calls.append('begin')
    def __call__(self, manager): self.calls.append(manager.iteration)
    def finalize(self, manager): self.calls.append('end')

faulthandler.dump_traceback_later(LIMIT, exit=True)
cfg = toy_cfg(folder)
cfg.SOLVER.EPOCH = 9
t = fresh(cfg, Trainer)
out, where = io.StringIO(), Where()
t.extend(E.LogReport(filename='log.jsonl'))
t.extend(E.PrintReport(['epoch', 'val/acc'], out=out))
t.extend(E.snapshot(filename='every_{.iteration}', n_retains=2))
t.extend(E.snapshot(filename='best'), name='best', trigger=T.MaxValueTrigger('val/acc'))
t.extend(E.Evaluator([torch.ones(2, 3)]*2, torch.nn.Linear(3, 1), eval_func=lambda x: report({'own/seen': float(len(x))})), name='own')
t.extend(E.StopTraining(), trigger=T.EarlyStoppingTrigger(monitor='val/acc', patience=2, mode='max'))
t.extend(where)
t.train()
faulthandler.cancel_dump_traceback_later()
weights = torch.cat([p.detach().flatten() for p in comm.unwrap_model(t.model).parameters()])
comm.synchronize()
print(json.dumps(dict(end=t.iter, weights=weights.double().sum().item(), printed=out.getvalue().count('\\n'), calls=where.calls)))
'''

LOOP = '''
import io, json, os, faulthandler, torch, torch.distributed as dist
from torch import nn
from xmodaler_nb.ppe.nn.parallel import DistributedDataParallel
from xmodaler_nb.ppe.reporting import report
from xmodaler_nb.ppe.training import ExtensionsManager, extensions as E, triggers as T
rank, folder = dist.get_rank(), FOLDER
faulthandler.dump_traceback_later(LIMIT, exit=True)
def average(x):
    x = torch.tensor(float(x))
    dist.all_reduce(x)
    return x.item()/2

def train(until=99):
    torch.manual_seed(rank)
    net = DistributedDataParallel(nn.Linear(2, 1))
    opt = torch.optim.SGD(net.parameters(), .05)
    data = [torch.randn(4, 2, generator=torch.Generator().manual_seed(2*i + rank)) for i in range(3)]     # each process its own
    out = io.StringIO()
    stop = T.EarlyStoppingTrigger(monitor='val/loss', patience=2, max_trigger=(until, 'epoch'))
    def seen(x): report({'val/loss': average((net.module(x) - x[:, :1]).pow(2).mean()) if m.epoch < 5 else 9.})
    own = [E.LogReport(filename='log.jsonl'), E.PrintReport(['epoch', 'loss', 'val/loss'], out=out)] if rank == 0 else []
    m = ExtensionsManager(net.module, opt, until, iters_per_epoch=3, out_dir=folder, stop_trigger=stop, extensions=[
        E.Evaluator(data, net.module, eval_func=seen), *own, E.snapshot(n_retains=1, autoload=True, saver_rank=0)])
    m.extend(E.snapshot(filename='best', saver_rank=0), name='best', trigger=T.MinValueTrigger('val/loss'))
    while not m.stop_trigger:
        with m.run_iteration(step_optimizers=['main']):
            x = data[m.iteration % 3]
            loss = (net(x) - x[:, :1]).pow(2).mean()
            report({'loss': average(loss)})
            loss.backward()
    m.finalize()
    return m, out.getvalue().count('\\n')

m, printed = train(3)
m, printed = train()
faulthandler.cancel_dump_traceback_later()
w = m.models['main'].weight.double().sum().item()
dist.barrier()
print(json.dumps(dict(iteration=m.iteration, weight=w, printed=printed, count=m.state_dict()['_stop']['trigger']['count'])))
'''


def two(program, folder): return [json.loads(o.splitlines()[-1]) for o in run_ranks(program.replace('FOLDER', repr(str(folder))).replace('TOY', repr(TOY)).replace('LIMIT', str(LIMIT)), timeout=200)]


def test_in_a_captioning_training(tmp_path):
    a, b = two(HOME, tmp_path)
    assert a['end'] == b['end'] and a['weights'] == b['weights'] and a['end'] % 4 == 0      # the score was best at the second evaluation
    per_epoch = a['end']//4
    assert a['calls'] == ['begin', *range(1, a['end'] + 1), 'end'] and b['calls'] == [] and (a['printed'], b['printed']) == (5, 0)
    lines = [json.loads(l) for l in (tmp_path/'log.jsonl').read_text().splitlines()]
    assert [l['val/acc'] for l in lines] == [.1, .5, .3, .2] and all(l['own/seen'] == 2 for l in lines)
    assert torch.load(tmp_path/'best', weights_only=True)['_start_iteration'] == 2*per_epoch
    assert sorted(p.name for p in tmp_path.glob('every_*')) == sorted(f'every_{n*per_epoch}' for n in (3, 4))
    assert not list(tmp_path.glob('tmp_*'))


def test_in_a_loop_of_its_own_stopped_and_continued(tmp_path):
    a, b = two(LOOP, tmp_path)
    assert (a['iteration'], a['weight'], a['count']) == (b['iteration'], b['weight'], b['count']) and a['count'] == 2
    assert a['iteration'] > 9 and b['printed'] == 0 < a['printed']                 # the second part continued after three epochs
    lines = [json.loads(l) for l in (tmp_path/'log.jsonl').read_text().splitlines()]
    assert [l['iteration'] for l in lines] == list(range(3, a['iteration'] + 1, 3))
    best = min(lines, key=lambda l: l['val/loss'])['iteration']
    assert torch.load(tmp_path/'best', weights_only=True)['_start_iteration'] == best
    assert sorted(os.listdir(tmp_path)) == ['best', 'log.jsonl', f"snapshot_iter_{a['iteration']}"]
