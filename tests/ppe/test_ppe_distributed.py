"ppe.distributed and ppe.nn.parallel on two gloo processes that are started as OpenMPI starts them."
import os, socket, subprocess, sys
from pathlib import Path
import pytest, torch
from torch import nn
from xmodaler_nb.ppe.distributed import initialize_ompi_environment
from xmodaler_nb.ppe.nn.parallel import DistributedDataParallel

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = '''
import torch, torch.distributed as dist
from torch import nn
from xmodaler_nb.ppe.distributed import initialize_ompi_environment
from xmodaler_nb.ppe.nn.parallel import DistributedDataParallel

size, rank, local = initialize_ompi_environment(init_method={method!r}, rank=9, port='1')      # the environment wins
assert (size, rank, local) == (2, dist.get_rank(), 0) and dist.get_world_size() == 2

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.idle, self.norm = nn.Linear(3, 1), nn.Linear(3, 1), nn.Linear(3, 1), nn.BatchNorm1d(3)
    def forward(self, x, branch): return dict(y=[getattr(self, branch)(self.norm(x))])

torch.manual_seed(rank)
plain = Net()
net = DistributedDataParallel(plain)
torch.manual_seed(0)
assert all(torch.equal(p, q) for p, q in zip(plain.parameters(), Net().parameters()))         # the first one's weights
assert list(net.state_dict()) == list(plain.state_dict())

x = torch.randn(4, 3, generator=torch.Generator().manual_seed(rank))
branch = 'ab'[rank]                                              # each rank has no gradient for the other's branch
net(x, branch)['y'][0].sum().backward()
assert plain.idle.weight.grad is None
both = [torch.zeros_like(plain.a.weight.grad) for _ in range(2)]
dist.all_gather(both, plain.a.weight.grad)
assert torch.equal(*both) and plain.b.weight.grad.abs().sum() > 0
own = nn.BatchNorm1d(3)(x).sum(0)/2 if rank == 0 else plain.a.weight.grad[0]
torch.testing.assert_close(plain.a.weight.grad[0], own, atol=1e-5, rtol=1e-4)
stats = [torch.zeros(3) for _ in range(2)]
dist.all_gather(stats, plain.norm.running_mean)
assert torch.equal(*stats)                                       # buffers are the first one's

before = plain.a.weight.grad.clone()
with net.no_sync(): net(x, 'a')['y'][0].sum().backward()
dist.all_gather(both, plain.a.weight.grad)
assert not torch.equal(*both) or torch.equal(plain.a.weight.grad, before)
net(x, 'a')['y'][0].sum().backward()                             # what was collected is averaged, too
dist.all_gather(both, plain.a.weight.grad)
assert torch.equal(*both)

agreed = DistributedDataParallel(nn.Linear(3, 1), negotiate_grads=False, broadcast_buffers=False, reduce_function=lambda grads, group: [g.fill_(7) for g in grads])
agreed(x).sum().backward()
assert agreed.module.weight.grad.tolist() == [[7, 7, 7]]
print('fine', rank)
dist.destroy_process_group()
'''


def two_processes(method):
    with socket.socket() as s:
        s.bind(('localhost', 0))
        port = s.getsockname()[1]
    env = {**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1', 'MASTER_ADDR': 'localhost', 'MASTER_PORT': str(port), 'OMPI_COMM_WORLD_SIZE': '2', 'OMPI_COMM_WORLD_LOCAL_RANK': '0'}
    run = [subprocess.Popen([sys.executable, '-c', PROGRAM.replace('{method!r}', repr(method))], env={**env, 'OMPI_COMM_WORLD_RANK': str(r)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for r in range(2)]
    return [p.communicate(timeout=120) for p in run]


def test_two_processes():
    for rank, (out, err) in enumerate(two_processes('tcp')): assert out.strip() == f'fine {rank}', err[-2000:]


def test_alone(monkeypatch):
    for name in ('SIZE', 'RANK', 'LOCAL_RANK'): monkeypatch.delenv(f'OMPI_COMM_WORLD_{name}', raising=False)
    for method in ('tcp', 'env'): assert initialize_ompi_environment(init_method=method, local_rank=2) == (1, 0, 2)
    for bad in (dict(backend='mpi'), dict(init_method='file')):
        with pytest.raises(ValueError): initialize_ompi_environment(**bad)
    monkeypatch.setenv('OMPI_COMM_WORLD_RANK', '3')
    with pytest.raises(ValueError, match='rank 3'): initialize_ompi_environment()


def test_env_method(monkeypatch):
    "The environment that torch reads is filled before the group is made."
    asked = {}
    monkeypatch.setattr(torch.distributed, 'init_process_group', lambda backend, **kw: asked.update(kw, backend=backend, env={k: os.environ[k] for k in ('WORLD_SIZE', 'RANK', 'MASTER_PORT')}))
    for k in ('WORLD_SIZE', 'RANK', 'MASTER_ADDR', 'MASTER_PORT'): monkeypatch.setenv(k, os.environ.get(k, '0'))
    monkeypatch.delenv('MASTER_PORT')
    monkeypatch.delenv('MASTER_ADDR')
    assert initialize_ompi_environment(backend='nccl', init_method='env', world_size=4, rank=2, port='77') == (4, 2, 0)
    assert asked['init_method'] == 'env://' and asked['backend'] == 'nccl' and asked['env'] == dict(WORLD_SIZE='4', RANK='2', MASTER_PORT='77')


def test_without_a_group():
    with pytest.warns(UserWarning, match='no process group'): net = DistributedDataParallel(nn.Linear(2, 1))
    net(torch.ones(1, 2)).sum().backward()
    assert net.module.weight.grad.tolist() == [[1, 1]]
    with net.no_sync(): net(torch.ones(1, 2)).sum().backward()
    assert list(net.state_dict()) == ['weight', 'bias']
    net.load_state_dict(nn.Linear(2, 1).state_dict(), True)
    with pytest.raises(RuntimeError): net.register_comm_hook(None)
    with pytest.warns(UserWarning, match='find_unused_parameters'): DistributedDataParallel(nn.Linear(2, 1), find_unused_parameters=True)
