"Each switch of ENGINE and each hook with two processes: nobody waits for the other in vain, and both take the same decisions."
import sys
import textwrap
from pathlib import Path
import pytest
sys.path.insert(0, str(Path(__file__).parent))
from toy import events
from xmodaler_nb.config import get_cfg
from xmodaler_nb.engine import hooks, watch
from xmodaler_nb.engine.train_loop import HookBase
from xmodaler_nb.utils.testing import run_ranks

HERE = str(Path(__file__).parent)
START = f'''
import sys, os, signal, faulthandler, logging, torch; sys.path.insert(0, {HERE!r})
from toy import *
from xmodaler_nb.engine import HookBase, hooks, watch
from xmodaler_nb.utils import comm
rank = comm.get_rank()
os.fsync = lambda fd: None       # flushing to a busy disk is not what is tested here
class Evaluates(ToyEval):
    "Better up to the second evaluation, never again."
    n = 0
    def eval(self, results, epoch):
        self.n += 1
        return {{'acc': [0.1, 0.5, 0.3, 0.2, 0.1, 0.1][min(self.n, 6)-1]}}
class T(ToyTrainer):
    def build_evaluators(self, cfg): return Evaluates(), None
def run(name, more=(), epochs=3, ema=False, **engine):
    "One training with a time limit; prints where it ended and what its weights are."
    faulthandler.dump_traceback_later(25, exit=True)
    cfg = toy_cfg(FOLDER + '/' + name, **engine)
    cfg.SOLVER.EPOCH, cfg.MODEL.USE_EMA, cfg.MODEL.EMA_DECAY = epochs, ema, .9
    t = fresh(cfg, T)
    t.register_hooks(more(t) if callable(more) else more)
    ended = 'whole'
    try: t.train()
    except KeyboardInterrupt: ended = 'interrupted'
    weights = torch.cat([p.detach().flatten() for p in comm.unwrap_model(t.model).parameters()])
    comm.synchronize()
    faulthandler.cancel_dump_traceback_later()
    print(name, ended, t.iter, t.max_iter, weights.double().sum().item())
'''
SWITCHES = dict(AMP=['bf16', 'fp16'], ACCUMULATE=[2], CHECKPOINT_ITERS=[2], KEEP_LAST=[1], KEEP_BEST=['val/acc', 'total_loss'],
                EARLY_STOP=['val/acc'], GLOBAL_TOKENS=[True], SHARD_EVAL=[False], PROGRESS=[True], WAIT_WARNING=[0], COMPILE=[True], PACK_WORDS=[True], OTHER_WORDS=[True],
                EXTENSIONS=[['LogReport']])


def both(tmp_path, body, timeout=120):
    "What the processes printed, line by line; both must have printed the same."
    a, b = run_ranks(START.replace('FOLDER', repr(str(tmp_path))) + textwrap.dedent(body), timeout=timeout)
    assert a == b
    return {l.split()[0]: l.split()[1:] for l in a.splitlines()}


def test_each_switch(tmp_path):
    "All but COMPILE, which takes a minute."
    names = set(get_cfg().ENGINE) - {'NAME', 'EARLY_STOP_PATIENCE'}
    assert names == set(SWITCHES), 'a new switch of ENGINE needs a line here'
    runs = [(f'{k}-{str(v).replace("/", "_")}', {k: v}) for k, vs in SWITCHES.items() if k != 'COMPILE' for v in vs]
    out = both(tmp_path, f'''
        for name, engine in {runs!r}: run(name, EARLY_STOP_PATIENCE=2, epochs=6 if 'EARLY_STOP' in engine else 3, **engine)
        run('ema', ema=True)
        ''')
    steps = {name: int(o[1]) for name, o in out.items()}
    per_epoch = steps['ema']//3
    assert steps.pop('EARLY_STOP-val_acc') == 4*per_epoch and set(steps.values()) == {3*per_epoch}
    assert all(o[0] == 'whole' for o in out.values())
    assert (tmp_path/'KEEP_BEST-val_acc'/'model_best').is_dir() and (tmp_path/'KEEP_BEST-total_loss'/'model_best').is_dir()


def test_each_hook(tmp_path):
    "The hooks that a config builds, and the others; hooks of a user that act in one process only."
    out = both(tmp_path, '''
        class Draws(nn.Module):
            "Its weights are drawn when the training begins, by each process from its own generator."
            def bind_or_init_weights(self): nn.init.normal_(self.net[0].weight)
        class WithBN(Draws, ToyModel):
            def __init__(self): super().__init__(); self.net.insert(1, nn.BatchNorm1d(16))
        class Puts(HookBase):
            "A number that only the first process has."
            def after_step(self):
                if rank == 0: self.trainer.storage.put_scalar('mine', [3., 1., 2., 5., 4., 6., 7.][min(6, self.trainer.iter)])
        class Stops(HookBase):
            "One process wants to end, and puts it before everything else."
            def __init__(self, who): self.who = who
            def after_step(self):
                if rank == self.who and self.trainer.iter == 2: self.trainer.stop('enough')
        class Signals(HookBase):
            def before_step(self):
                if rank == 1 and self.trainer.iter == 11: os.kill(os.getpid(), signal.SIGTERM)
        called = []
        tell = hooks.CallbackHook(**{m: (lambda t, m=m: called.append(m)) for m in ('before_train', 'after_train', 'before_step', 'after_step')})
        def others(t):
            folder, loader = t.cfg.OUTPUT_DIR, t.train_data_loader
            return [tell, hooks.AutogradProfiler(lambda t: t.iter == 1, folder), watch.ProgressBar(2, show=rank == 0),
                    hooks.PreciseBN(2, t.model, loader, 2), hooks.EvalHook(1, -1, lambda e: {'one': rank}, t.iters_per_epoch, 'mine', True),
                    Puts(), watch.EarlyStopping('mine', 99), watch.KeepBest('mine', t.checkpointer, name='model_mine')]
        def first(hook):
            def put(t): t._hooks.insert(0, hook); hook.trainer = t; return []
            return put
        run('plain')
        T.build_model = classmethod(lambda cls, cfg: WithBN())
        torch.manual_seed(rank)
        run('others', others)
        T.build_model = classmethod(lambda cls, cfg: ToyModel())
        for who in (0, 1): run(f'stopped_by_{who}', [Stops(who)]); run(f'stopped_first_by_{who}', first(Stops(who)))
        run('signal', [Signals()], epochs=20)
        print('called', len(called))
        ''')
    assert {name: o[1] for name, o in out.items() if name.startswith('stopped')} == {f'stopped{f}_by_{r}': '3' for f in ('', '_first') for r in (0, 1)}
    assert int(out['called'][0]) == 2*int(out['plain'][1]) + 2
    assert out['others'][:2] == ['whole', out['plain'][1]] and out['signal'][:2] == ['interrupted', '19']
    assert len(list((tmp_path/'others').glob('profiler-trace-*'))) == 2 and (tmp_path/'others'/'model_mine').is_dir()
    for f in ('stopped_by_1', 'stopped_first_by_0'): assert 'val/acc' in events(tmp_path/f)[-1]
    known = {c for m in (hooks, watch) for c in vars(m).values() if isinstance(c, type) and issubclass(c, HookBase)}
    assert {c.__name__ for c in known} - {'HookBase'} == {
        'Tracked', 'CallbackHook', 'IterationTimer', 'PeriodicWriter', 'PeriodicCheckpointer', 'LRScheduler', 'ScheduledSampling', 'EvalHook',
        'ModelWeightsManipulating', 'AutogradProfiler', 'PreciseBN', 'KeepBest', 'EarlyStopping', 'ProgressBar', 'Interrupts'}, 'a new hook needs a line here'


def test_who_waits_says_where(tmp_path):
    "One process comes late to where they meet: after the time set, both say where they are."
    out = run_ranks(START.replace('FOLDER', repr(str(tmp_path))) + textwrap.dedent('''
        logging.basicConfig(stream=sys.stdout, format='%(message)s')
        class Late(HookBase):
            def after_step(self):
                if self.trainer.iter != 1: return
                if rank == 0: import time; time.sleep(4)
                comm.synchronize()
        run('late', [Late()], WAIT_WARNING=1)
        '''))
    for r in (0, 1): assert f'process {r} of 2 has been in Late.after_step of iteration 1 for' in out[r]
