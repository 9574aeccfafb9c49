"Triggers without a state, calls of both managers from outside their loops, and the names and the reset of lazy layers."
import json, os
from pathlib import Path
from types import SimpleNamespace
import pytest
import torch
from torch import nn
from xmodaler_nb.ppe.nn import LazyBatchNorm1d, LazyBatchNorm2d, LazyBatchNorm3d, LazyConv1d, LazyConv2d, LazyConv3d, LazyLinear
from xmodaler_nb.ppe.reporting import report
from xmodaler_nb.ppe.training import ExtensionsManager, IgniteExtensionsManager
from xmodaler_nb.ppe.training.extension import Extension
from xmodaler_nb.ppe.training.triggers import (BestValueTrigger, EarlyStoppingTrigger, IntervalTrigger, ManualScheduleTrigger, MaxValueTrigger, MinValueTrigger, OnceTrigger,
    TimeTrigger)


# ------------------------------------------------------------------ triggers

def fired(trigger, first, last):
    def at(i): return SimpleNamespace(iteration=i, iters_per_epoch=4, elapsed_time=float(i), observation={'x': float((i*5) % 7)})
    return [i for i in range(first, last) if trigger(at(i))]


KINDS = {IntervalTrigger: (1.5, 'epoch'), ManualScheduleTrigger: ([3, .75, 2], 'epoch'), BestValueTrigger: ('x', lambda best, new: new > best), MaxValueTrigger: ('x', (3, 'iteration')),
         MinValueTrigger: ('x', (2, 'iteration')), EarlyStoppingTrigger: ((1, 'epoch'), 'x', 2, 'max'), OnceTrigger: (), TimeTrigger: (3.5,)}
STATELESS = (IntervalTrigger, ManualScheduleTrigger)


@pytest.mark.parametrize('cls', KINDS, ids=lambda c: c.__name__)
@pytest.mark.parametrize('stop', [1, 3, 4, 7, 12])
def test_a_state_is_plain_and_continues(cls, stop):
    whole, a, b = (cls(*KINDS[cls]) for _ in range(3))
    expected = fired(whole, 1, 17)
    before = fired(a, 1, stop + 1)
    b.load_state_dict(json.loads(json.dumps(a.state_dict())))
    assert expected and before + fired(b, stop + 1, 17) == expected and (a.state_dict() == {}) == (cls in STATELESS)


@pytest.mark.parametrize('cls', KINDS, ids=lambda c: c.__name__)
def test_looking_ahead_changes_nothing(cls):
    "Where a trigger fires it said that it may; and to ask does not move it."
    asked, plain = cls(*KINDS[cls]), cls(*KINDS[cls])
    fires = []
    for i in range(1, 17):
        state = json.dumps(asked.state_dict())
        may = [asked.may_fire(i, 4) for _ in range(3)]
        assert json.dumps(asked.state_dict()) == state and len(set(may)) == 1
        fires += fired(asked, i, i + 1)
        assert may[0] or i not in fires
    assert fires == fired(plain, 1, 17)


# ------------------------------------------------------------------ managers

class Count(Extension):
    def __init__(self): self.n, self.begun = 0, 0
    def initialize(self, manager): self.begun += 1
    def __call__(self, manager): self.n += 1
    def state_dict(self): return {'n': self.n}
    def load_state_dict(self, to_load): self.n = to_load['n']


def own(folder, exts):
    net = nn.Linear(1, 1)
    return ExtensionsManager(net, torch.optim.SGD(net.parameters(), .1, momentum=.9), 3, iters_per_epoch=2, out_dir=str(folder), extensions=exts)


def guest(folder, exts):
    engine = pytest.importorskip('ignite.engine', reason='the extra `ignite` is not installed')
    net = nn.Linear(1, 1)
    opt = torch.optim.SGD(net.parameters(), .1, momentum=.9)
    def step(engine, x):
        opt.zero_grad()
        net(x).sum().backward()
        opt.step()
        report({'x': 1.})
    return IgniteExtensionsManager(engine.Engine(step), net, opt, 3, out_dir=str(folder), extensions=exts)


@pytest.mark.parametrize('make', [own, guest])
def test_extensions_by_hand(make, tmp_path):
    "Starting happens once; each `run_extensions` asks the triggers of the present iteration anew."
    every, second = Count(), Count()
    m = make(tmp_path, [every])
    m.iters_per_epoch = 2
    m.extend(second, name='second', trigger=(2, 'iteration'))
    m.start_extensions()
    m.start_extensions()
    assert (every.begun, second.begun) == (1, 1)
    for at in (1, 2):
        m._set_iteration(at)
        m.run_extensions()
    assert (every.n, second.n) == (2, 1) and m.get_extension('second') is second and m.epoch == 1 and m.epoch_detail == 1. and not m.stop_trigger
    with pytest.raises(RuntimeError): m.extend(Count())
    with pytest.raises(ValueError, match="'nobody'"): m.get_extension('nobody')
    m._set_iteration(6)
    m.run_extensions()
    assert m.stop_trigger


def test_the_state_of_a_manager_of_ignite(tmp_path):
    "Saved after an epoch and taken over by another: weights, momentum, counters and extensions go on."
    data = [torch.ones(1, 1)]*2
    whole, a, b = (guest(tmp_path/n, [Count()]) for n in 'wab')
    a._models['main'].load_state_dict(whole._models['main'].state_dict())
    whole.engine.run(data, max_epochs=3)
    a.engine.run(data, max_epochs=1)
    state = a.state_dict()
    assert {'_start_iteration', '_start_execution', 'models', 'optimizers', 'extensions'} <= set(state) and state['extensions']['Count']['extension'] == {'n': 2}
    b.load_state_dict(state)
    b.engine.run(data, max_epochs=3)
    assert b.get_extension('Count').n == whole.get_extension('Count').n == 6 and b.iteration == 6 and b.engine.state.epoch == 3
    assert torch.equal(b.models['main'].weight, whole.models['main'].weight) and not torch.equal(a.models['main'].weight, whole.models['main'].weight)
    momentum = [m.optimizers['main'].state_dict()['state'][0]['momentum_buffer'] for m in (b, whole)]
    assert torch.equal(*momentum)


# ------------------------------------------------------------------ lazy layers

LAYERS = {LazyLinear: ((4,), (2, 3)), LazyConv1d: ((4, 2), (2, 3, 5)), LazyConv2d: ((4, 2), (2, 3, 5, 5)), LazyConv3d: ((4, 2), (2, 3, 4, 4, 4)),
          LazyBatchNorm1d: ((), (4, 3)), LazyBatchNorm2d: ((), (4, 3, 2, 2)), LazyBatchNorm3d: ((), (4, 3, 2, 2, 2))}


@pytest.fixture(params=LAYERS, ids=lambda c: c.__name__)
def layer(request):
    args, shape = LAYERS[request.param]
    return SimpleNamespace(make=lambda n=None: request.param(n, *args), x=torch.randn(shape), norm='Norm' in request.param.__name__)


def test_lazy_names(layer):
    "Of the parameters and the buffers whose size the first input tells."
    net = layer.make()
    assert tuple(net.lazy_parameter_names) == (('weight', 'bias') if layer.norm else ('weight',)) and tuple(net.lazy_buffer_names) == (('running_mean', 'running_var') if layer.norm else ())
    assert net.lazy_parmeters_determined is False and layer.make(3).lazy_parmeters_determined is True
    net(layer.x)
    assert net.lazy_parmeters_determined is True


def test_reset_parameters(layer):
    "Without a size there is nothing to set; with one the values are torch's initial ones."
    net = layer.make()
    net.reset_parameters()
    assert net.lazy_parmeters_determined is False
    torch.manual_seed(1)
    fresh = layer.make(3).state_dict()
    net(layer.x)
    for p in net.parameters(): p.data.fill_(7.)
    torch.manual_seed(1)
    net.reset_parameters()
    assert all(torch.equal(v, fresh[k]) for k, v in net.state_dict().items()) and set(fresh) == set(net.state_dict())


def test_the_first_forward_sets_torchs_values(layer):
    net = layer.make().eval()
    torch.manual_seed(2)
    expected = layer.make(3).eval()
    torch.manual_seed(2)
    torch.testing.assert_close(net(layer.x), expected(layer.x))


def documented(module, ending):
    "Classes of a module whose documented names end so."
    file = Path(os.environ.get('XMODALER_API', Path(__file__).resolve().parents[3]/'shared'/'api'))/'ppe.json'
    if not file.exists(): pytest.skip('no API inventory (set XMODALER_API to the folder with ppe.json)')
    symbols = [s for s in json.loads(file.read_text())['symbols'] if s.get('required', True) and s['module'] == f'pytorch_pfn_extras.{module}']
    return {s['name'].rpartition('.')[0] for s in symbols if s['name'].endswith(ending)}


def test_no_documented_trigger_is_missing_here(): assert documented('training.triggers', '.may_fire') == {c.__name__ for c in KINDS}
def test_no_lazy_layer_is_missing_here(): assert documented('nn', '.reset_parameters') == {c.__name__ for c in LAYERS}
