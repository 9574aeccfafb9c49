"Snapshots: names, retention, loading, errors; and a kill at any moment."
import os, subprocess, sys, time
import pytest
import torch
from torch import nn
from xmodaler_nb.ppe.reporting import report
from xmodaler_nb.ppe.training.extensions import snapshot, snapshot_object
from xmodaler_nb.ppe.training.extensions.snapshots import find_snapshots, fixed_parts
from xmodaler_nb.ppe.training.manager import ExtensionsManager
from xmodaler_nb.ppe.writing import LocalFileSystem, SimpleWriter, ThreadWriter


@pytest.fixture
def train(tmp_path):
    def f(until, *exts, folder='run', seed=0, out=None):
        torch.manual_seed(seed)
        model = nn.Linear(2, 1)
        opt = torch.optim.Adam(model.parameters(), .1)
        m = ExtensionsManager(model, opt, 99, iters_per_epoch=2, out_dir=str(out or tmp_path/folder), extensions=exts)
        while m.iteration < until:
            with m.run_iteration(step_optimizers=['main']):
                loss = (model(torch.full((1, 2), float(m.iteration))) - 1).pow(2).mean()
                report({'loss': loss})
                loss.backward()
        m.finalize()
        return m
    return f


def names(m): return sorted(os.listdir(m.out))


def test_names_and_plain_content(train):
    m = train(4, snapshot())
    assert names(m) == ['snapshot_iter_2', 'snapshot_iter_4']
    state = torch.load(f'{m.out}/snapshot_iter_4', weights_only=True)             # the trap of torch 2.6: loads without trust
    assert state['_start_iteration'] == 4 and set(state['models']['main']) == {'weight', 'bias'}


def test_attributes():
    s = snapshot()
    assert (s.trigger, s.priority, s.needs_model_state) == ((1, 'epoch'), -100, True)


def test_what_is_not_plain_is_refused(train):
    class Odd:
        def state_dict(self): return {'a': {'b': [lambda: 0]}}
    with pytest.raises(TypeError, match=r'snapshot.a.b\[0\] is a'): train(2, snapshot_object(Odd(), 'odd'))


@pytest.mark.parametrize('stop', [2, 3, 5])
def test_autoload_continues(train, stop):
    whole = train(8, snapshot(autoload=True), folder='whole')
    train(stop, snapshot(autoload=True))
    again = train(8, snapshot(autoload=True), seed=9)
    for k, v in whole.models['main'].state_dict().items(): assert torch.equal(v, again.models['main'].state_dict()[k])


def test_autoload_takes_the_newest_by_time(train):
    m = train(6, snapshot())
    now = time.time()
    for n, age in (('snapshot_iter_2', 0), ('snapshot_iter_4', 50), ('snapshot_iter_6', 99)): os.utime(f'{m.out}/{n}', (now - age, now - age))
    assert train(0, snapshot(autoload=True)).iteration == 2


def test_retention_keeps_the_newest(train):
    m = train(9, snapshot(n_retains=2))
    assert names(m) == ['snapshot_iter_6', 'snapshot_iter_8']


def test_retention_looks_only_at_the_fixed_parts(train, tmp_path):
    "The trap: what begins like a snapshot is one. What does not is never touched."
    (tmp_path/'run').mkdir()
    for n in ('s_notes.pt', 's_notes.txt', 'other.pt'):
        (tmp_path/'run'/n).write_text('mine')
        os.utime(tmp_path/'run'/n, (1, 1))
    m = train(4, snapshot(filename='s_{.iteration}.pt', n_retains=2))
    assert names(m) == ['other.pt', 's_2.pt', 's_4.pt', 's_notes.txt']


def test_a_name_without_fixed_parts_is_refused():
    with pytest.raises(ValueError, match='no fixed part'): snapshot(filename='{.iteration}', n_retains=1)
    with pytest.raises(ValueError, match='pattern'): snapshot(filename=lambda m: 'x', autoload=True)
    assert snapshot(filename='{.iteration}') is not None                      # only saves: allowed


def test_temporary_files_and_backups_are_no_snapshots(tmp_path):
    for n in ('tmp_s_9', 's_1', 's_2.bak', 's_10'):
        (tmp_path/n).write_text('')
        os.utime(tmp_path/n, (1, 1))
    assert [os.path.basename(p) for p in find_snapshots('s_{.iteration}', str(tmp_path), LocalFileSystem())] == ['s_1', 's_10']
    assert find_snapshots('s_{.iteration}', str(tmp_path/'nowhere'), LocalFileSystem()) == []


def test_a_fixed_name_is_that_name(tmp_path):
    for n in ('best', 'best_2'): (tmp_path/n).write_text('')
    assert [os.path.basename(p) for p in find_snapshots('best', str(tmp_path), LocalFileSystem())] == ['best'] and fixed_parts('a/b_{x}.pt') == ('a', 'b_', '.pt')


def test_sub_folders(train):
    m = train(6, snapshot(filename='deep/s_{.iteration}', n_retains=1))
    assert os.listdir(f'{m.out}/deep') == ['s_6'] and train(0, snapshot(filename='deep/s_{.iteration}', autoload=True)).iteration == 6


def test_targets(train):
    net = nn.Linear(1, 1)
    m = train(2, snapshot(target={'net': net}, filename='a'), snapshot_object(net, 'b_{.epoch}'), snapshot_object(net, lambda m: f'c{m.iteration}'))
    assert names(m) == ['a', 'b_1', 'c2'] and set(torch.load(f'{m.out}/a', weights_only=True)) == {'net'} and set(torch.load(f'{m.out}/c2', weights_only=True)) == {'weight', 'bias'}
    other = nn.Linear(1, 1)
    train(0, snapshot(target={'net': other}, filename='a', autoload=True))
    assert torch.equal(other.weight, net.weight)


def test_condition(train):
    assert names(train(4, snapshot(condition=iter([False, True]).__next__))) == ['snapshot_iter_4']


def test_savefun_and_writer(train, tmp_path):
    m = train(2, snapshot(lambda target, f: f.write(b'x')))
    assert open(f'{m.out}/snapshot_iter_2').read() == 'x'
    with pytest.raises(TypeError, match='both given'): snapshot(torch.save, writer=SimpleWriter())
    with pytest.raises(TypeError, match='colour'): snapshot(colour=1)
    w = ThreadWriter(out_dir=str(tmp_path/'own'))
    train(2, snapshot(writer=w), folder='elsewhere')
    assert os.listdir(tmp_path/'own') == ['snapshot_iter_2'] and os.listdir(tmp_path/'elsewhere') == []       # finalize has joined the thread


@pytest.mark.parametrize('wanted', [True, False])
def test_on_error(train, wanted, tmp_path):
    def fail(manager):
        if manager.iteration == 3: raise KeyError('x')
    with pytest.raises(KeyError): train(9, snapshot(snapshot_on_error=wanted), fail)
    assert (tmp_path/'run'/'snapshot_iter_3').exists() == wanted


def test_saver_rank_needs_processes():
    with pytest.raises(RuntimeError, match='not initialised'): snapshot(saver_rank=0)


def test_saver_rank(train, tmp_path):
    torch.distributed.init_process_group('gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1)
    try:
        with pytest.raises(ValueError, match='saver_rank is 1'): snapshot(saver_rank=1)
        assert names(train(2, snapshot(saver_rank=0))) == ['snapshot_iter_2']
        assert train(0, snapshot(saver_rank=0, autoload=True)).iteration == 2
    finally: torch.distributed.destroy_process_group()


class Cut(BaseException):
    "The process ends here."


class Fragile(LocalFileSystem):
    "A disk whose process is killed at its n-th operation; before that operation, or in the middle of what is written."
    left = 10**9

    def step(self):
        self.left -= 1
        if self.left < 0: raise Cut

    def open(self, path, mode='rb'):
        self.step()
        f, fs = open(path, mode), self
        if 'w' not in mode: return f

        class Half:
            def __enter__(self): return self
            def __exit__(self, *_): f.close()
            def __getattr__(self, name): return getattr(f, name)
            def write(self, data):
                if fs.left < 1: f.write(bytes(data)[:len(data)//2])
                fs.step()
                return f.write(data)
        return Half()

    def replace(self, src, dst):
        self.step()
        super().replace(src, dst)
        self.step()

    def remove(self, path):
        self.step()
        super().remove(path)


def numbers_of(folder):
    "Iterations of all snapshots, each loaded."
    found = find_snapshots('snapshot_iter_{.iteration}', str(folder), LocalFileSystem())
    return [torch.load(p, weights_only=True)['_start_iteration'] for p in found]


def test_an_end_before_every_single_operation_on_the_disk(train, tmp_path):
    "Between opening, each write, the new name and the removal of older files: the newest whole snapshot is continued."
    saved = lambda fs, out: snapshot(n_retains=1, autoload=True, writer=SimpleWriter(fs, out_dir=str(out)))
    for n in range(10**3):
        fs, out = Fragile(), tmp_path/str(n)
        train(2, saved(fs, out), folder='log')
        fs.left = n
        try: train(4, saved(fs, out), folder='log')
        except (Cut, RuntimeError):                          # torch's writer turns the one into the other
            if fs.left >= 0: raise
        else: break
        found = numbers_of(out)
        assert found in ([2], [2, 4], [4]), (n, found)
        assert train(0, saved(LocalFileSystem(), out), folder='log').iteration == found[-1]
        train(6, saved(LocalFileSystem(), out), folder='log')
        assert os.listdir(out) == ['snapshot_iter_6'], (n, os.listdir(out))
    assert n > 5


KILLED = """
import os, signal, sys, time, traceback, torch
from torch import nn
from xmodaler_nb.ppe.training.extensions import snapshot
from xmodaler_nb.ppe.training.extensions.snapshots import find_snapshots
from xmodaler_nb.ppe.training.manager import ExtensionsManager
from xmodaler_nb.ppe.writing import LocalFileSystem

def numbers():
    'The iterations of all snapshots; each is loaded, and its weights are that number.'
    out = []
    for path in find_snapshots('snapshot_iter_{.iteration}', sys.argv[1], LocalFileSystem()):
        state = torch.load(path, weights_only=True)
        assert (state['models']['main']['weight'] == state['_start_iteration']).all(), path
        out.append(state['_start_iteration'])
    return out

def work(say, until=10**6):
    found, model = numbers(), nn.Linear(300, 300)
    m = ExtensionsManager(model, torch.optim.SGD(model.parameters(), .1), 10**6, iters_per_epoch=1, out_dir=sys.argv[1], extensions=[snapshot(n_retains=2, autoload=True)])
    assert m.iteration == max(found, default=0), (m.iteration, found)
    os.write(say, str(m.iteration).encode())
    for _ in range(until):
        with m.run_iteration(): model.weight.data.fill_(m.iteration + 1.)

def child(until=10**6):
    'A process at work, and the iteration at which it begins.'
    hear, say = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            work(say, until)
            os._exit(0)
        except BaseException: traceback.print_exc()
        finally: os._exit(1)
    os.close(say)
    print(int(os.read(hear, 20)), flush=True)        # an empty answer, of a child that failed, is an error
    return pid

torch.optim.SGD([nn.Parameter(torch.ones(1))], .1)   # all imports happen here, once; no child repeats them
assert len(os.listdir('/proc/self/task')) == 1       # a fork of a process with threads may hang
for i in range(30):
    pid = child()
    time.sleep(.01 + .0037*i)
    os.kill(pid, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
assert os.waitpid(child(until=3), 0)[1] == 0         # one that is left alone tidies up after all of them
assert len(numbers()) == 2, numbers()
"""


@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_a_loadable_snapshot(tmp_path):
    "Thirty processes, each killed while it saves; the next one loads all that is there and continues with the newest."
    done = subprocess.run([sys.executable, '-c', KILLED, str(tmp_path)], capture_output=True, text=True, timeout=170, env={**os.environ, 'OMP_NUM_THREADS': '1'})
    assert done.returncode == 0, done.stderr[-2000:]
    starts = [int(line) for line in done.stdout.split()]
    assert len(starts) == 31 and starts == sorted(starts) and starts[-1] > 0
