"Two processes on gloo: the same gradient, the same evaluation, one end."
import json
import subprocess
import sys
import textwrap
import time
from pathlib import Path
import pytest
import torch
sys.path.insert(0, str(Path(__file__).parent))
from toy import ToyTrainer, events, fresh, loader, toy_cfg
from xmodaler_nb.checkpoint import read_checkpoint
from xmodaler_nb.engine.launch import free_port
from xmodaler_nb.utils.testing import run_ranks

HERE = str(Path(__file__).parent)
PLAIN = f'''
import sys, json, torch; sys.path.insert(0, {HERE!r})
from toy import *
class Plain(ToyTrainer):
    "Without chance, so that runs of different shape can be compared."
    bs, n = 2, 12
    @classmethod
    def build_model(cls, cfg): m = super().build_model(cfg); m.net[2].p = 0.; return m
    @classmethod
    def build_optimizer(cls, cfg, model): return torch.optim.SGD(model.parameters(), .5)
    @classmethod
    def build_train_loader(cls, cfg): return loader(n=cls.n, bs=cls.bs)
def plain_cfg(folder, **engine):
    cfg = toy_cfg(folder, **engine)
    cfg.SCHEDULED_SAMPLING.START_EPOCH = 99
    return cfg
'''


def single(folder, bs, n=12):
    "One process on the whole batch."
    space = {}
    exec(PLAIN, space)
    T = space['Plain']
    T.bs, T.n = bs, n
    t = fresh(space['plain_cfg'](folder), T)
    t.train()
    return t


def script(folder, name, body, entry):
    "A file for `launch` or `torchrun` to run: new processes import it."
    f = folder/name
    f.write_text(PLAIN + 'from datetime import timedelta\nimport os, signal, time\nfrom xmodaler_nb.engine import HookBase, launch\nfrom xmodaler_nb.utils import comm\n'
                 + textwrap.dedent(body) + f"\nif __name__ == '__main__': {entry}\n")
    return str(f)


def start(*cmd): return subprocess.Popen([sys.executable, *cmd], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_two_processes_are_one(tmp_path):
    "Gradients of the same global batch, hence weights after nine steps; and the evaluation, sharded, is the same."
    code = PLAIN + f'''
t = fresh(plain_cfg({str(tmp_path/"two")!r}), Plain); t.train()
print(t.iters_per_epoch, len(t.train_data_loader.sampler))
'''
    out = run_ranks(code)
    assert out[0].split()[-2:] == ['3', '6'] and 'samples' not in out[1]
    one = single(tmp_path/'one', 4)
    for k, v in read_checkpoint(tmp_path/'two'/'model_final')['model'].items(): assert torch.allclose(v, one.model.state_dict()[k], atol=1e-6), k
    a, b = events(tmp_path/'one'), events(tmp_path/'two')
    assert [e.get('val/acc') for e in a] == [e.get('val/acc') for e in b] and [e['total_loss'] for e in a] == pytest.approx([e['total_loss'] for e in b], abs=1e-6)
    assert list((tmp_path/'two').glob('*rank*')) == []


def test_uneven_data_and_resuming_with_another_number_of_processes(tmp_path):
    "13 items in batches of 2 for 2 processes: 3 steps per epoch. Then one process goes on, with 6."
    code = PLAIN + f'''
Plain.n = 13
t = fresh(plain_cfg({str(tmp_path)!r}), Plain); t.train(0, 6)
'''
    run_ranks(code)
    space = {}
    exec(PLAIN, space)
    space['Plain'].n = 13
    t = fresh(space['plain_cfg'](tmp_path), space['Plain'], resume=True)
    assert t.start_iter == 12
    t.train()
    assert t.iter == 18 and 'val/acc' in events(tmp_path)[-1]


def test_a_dying_rank_ends_the_others_with_its_error(tmp_path):
    f = script(tmp_path, 'dies.py', f'''
        class Dies(HookBase):
            def after_step(self):
                if comm.get_rank() == 1 and self.trainer.iter == 2: raise ValueError('rank 1 has had enough')
        def main():
            t = fresh(plain_cfg({str(tmp_path/"run")!r}), Plain)
            t.register_hooks([Dies()])
            t.train()
        ''', "launch(main, 2, dist_url='auto')")
    done = subprocess.run([sys.executable, f], capture_output=True, text=True, timeout=200)
    assert done.returncode != 0 and 'rank 1 has had enough' in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize('how', ['launch', 'torchrun'])
def test_two_machines(tmp_path, how):
    "The documented commands for two machines, both on this one; the run equals the one of a single process."
    f = script(tmp_path, 'run.py', f'def main(): fresh(plain_cfg({str(tmp_path/"run")!r}), Plain).train()',
               "launch(main, 1, num_machines=2, machine_rank=int(sys.argv[2]), dist_url=sys.argv[1])" if how == 'launch' else 'launch(main, 1)')
    port = free_port()
    if how == 'launch': procs = [start(f, f'tcp://127.0.0.1:{port}', str(r)) for r in (0, 1)]
    else: procs = [start('-m', 'torch.distributed.run', '--nnodes', '2', '--nproc-per-node', '1', '--node-rank', str(r), '--master-addr', '127.0.0.1', '--master-port', str(port), f) for r in (0, 1)]
    for p in procs:
        err = p.communicate(timeout=300)[1]
        assert p.returncode == 0, err[-2000:]
    one = single(tmp_path/'one', 4)
    for k, v in read_checkpoint(tmp_path/'run'/'model_final')['model'].items(): assert torch.allclose(v, one.model.state_dict()[k], atol=1e-6), k


@pytest.mark.slow
@pytest.mark.parametrize('how', ['killed', 'hangs'])
def test_a_lost_rank_ends_the_others_in_time(tmp_path, how):
    "One process is killed, or hangs in the middle of a step: within the timeout the command ends with an error."
    f = script(tmp_path, 'lost.py', f'''
        class Lost(HookBase):
            def after_step(self):
                if comm.get_rank() == 1 and self.trainer.iter == 2:
                    open({str(tmp_path/"lost")!r}, 'w').close()
                    os.kill(os.getpid(), signal.SIGKILL) if {how == 'killed'} else time.sleep(10000)
        def main():
            t = fresh(plain_cfg({str(tmp_path/"run")!r}), Plain)
            t.register_hooks([Lost()])
            t.train()
        ''', "launch(main, 2, dist_url='auto', timeout=timedelta(seconds=20))")
    p = start(f)
    while not (tmp_path/'lost').exists() and p.poll() is None: time.sleep(.1)
    begin = time.monotonic()
    err = p.communicate(timeout=200)[1]
    assert p.returncode != 0 and time.monotonic() - begin < 90           # 20 s, and torch waits 30 s for those who do not react
    assert ('SIGKILL' in err) if how == 'killed' else ('imed out' in err or 'timeout' in err.lower()), err[-2000:]


@pytest.mark.slow
def test_torchrun(tmp_path):
    f = script(tmp_path, 'run.py', f'def main(): fresh(plain_cfg({str(tmp_path/"run")!r}), Plain).train()', 'launch(main, 2)')
    done = subprocess.run([sys.executable, '-m', 'torch.distributed.run', '--nproc-per-node', '2', '--master-port', str(free_port()), f], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    one = single(tmp_path/'one', 4)
    for k, v in read_checkpoint(tmp_path/'run'/'model_final')['model'].items(): assert torch.allclose(v, one.model.state_dict()[k], atol=1e-6), k
    assert [e.get('val/acc') for e in events(tmp_path/'run')] == [e.get('val/acc') for e in events(tmp_path/'one')]


def test_a_process_leaves_without_the_group(tmp_path):
    "A group that outlives `main` has threads that may be killed while Python shuts down, and the process ends with SIGABRT."
    f = script(tmp_path, 'leaves.py', f'''
        import atexit, weakref
        import torch.distributed as dist
        def main():
            group = weakref.ref(dist.group.WORLD)
            atexit.register(lambda: open({str(tmp_path)!r} + f'/rank{{rank}}', 'w').write(str(group())))
            rank = comm.get_rank()
            t = fresh(plain_cfg({str(tmp_path/"run")!r}), Plain)
            t.train(0, 3)
            comm.all_gather(rank)
        ''', "launch(main, 2, dist_url='auto')")
    done = subprocess.run([sys.executable, f], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert [(tmp_path/f'rank{r}').read_text() for r in (0, 1)] == ['None', 'None']
