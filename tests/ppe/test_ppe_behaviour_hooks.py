"The hooks of runtimes, handlers and logics, one by one: those that do nothing, and what the others do in which order."
import copy, types
import pytest
import torch
from torch import nn
import xmodaler_nb.ppe as ppe
from xmodaler_nb.ppe.handler import BaseHandler, BaseLogic, CodeBlock, Handler, Logic, forward
from xmodaler_nb.ppe.runtime import BaseRuntime, PyTorchRuntime

HOOKS = {'train_epoch_begin': 0, 'train_epoch_end': 0, 'train_validation_begin': 0, 'train_validation_end': 0, 'train_cleanup': 0,
         'train_pre_step': 3, 'train_post_step': 4, 'eval_pre_step': 3, 'eval_post_step': 4}      # name: arguments beside the module


class Untouchable:
    "Whoever reads an attribute of it fails."
    def __getattr__(self, name): raise AssertionError(f'{name} was read')


def picture(net): return (net.training, {k: v.tolist() for k, v in net.state_dict().items()}, [p.grad is None for p in net.parameters()])


# ------------------------------------------------------------------ runtimes

@pytest.mark.parametrize('cls', [BaseRuntime, PyTorchRuntime])
@pytest.mark.parametrize('hook', HOOKS)
@pytest.mark.parametrize('mode', [True, False])
def test_hooks_of_a_runtime_do_nothing(cls, hook, mode):
    net, r = nn.Linear(2, 2).train(mode), cls('cpu', {})
    before, rest = picture(net), [Untouchable() for _ in range(HOOKS[hook])]
    args = [rest[0], net, *rest[1:]] if rest else [net]
    assert getattr(r, hook)(*args) is None and picture(net) == before


@pytest.mark.parametrize('cls', [BaseRuntime, PyTorchRuntime])
def test_settings_and_traces(cls):
    options, ran = {'a': 1}, []
    r = cls('cpu', options)
    assert r.device_spec == 'cpu' and r.options is options
    with r.trace('step', Untouchable()): ran.append(1)
    with pytest.raises(ZeroDivisionError):
        with r.trace('step', None): 1/0
    assert ran == [1]


def test_what_a_torch_runtime_moves():
    r, net = PyTorchRuntime('meta', {}), nn.Linear(2, 2)
    assert r.move_tensor(torch.ones(3)).is_meta and r.move_module(net) is net and net.weight.is_meta
    net = nn.Linear(2, 2)
    before = picture(net)
    assert r.initialize_module(net, Untouchable(), Untouchable()) is None and picture(net) == before


def test_a_map_works_while_it_is_read():
    asked = []
    def double(batch):
        asked.append(batch['x'].item())
        return {'y': batch['x']*2, 'z': 1}
    outs = PyTorchRuntime('cpu', {}).map(double, ({'x': torch.tensor(float(i))} for i in range(3)), out_keys=['y'], device='meta')
    assert asked == []
    first = next(outs)
    assert asked == [0.] and set(first) == {'y'} and first['y'].is_meta
    assert len(list(outs)) == 2 and asked == [0., 1., 2.]
    assert [o['y'].item() for o in PyTorchRuntime('cpu', {}).map(double, [{'x': torch.tensor(4.)}])] == [8.]


def test_execute_takes_the_options_of_the_runtime():
    class Mult(nn.Module):
        def __init__(self): super().__init__(); self.w = nn.Parameter(torch.ones(2, 2))
        def forward(self, x): return {'y': x @ self.w}
    for autocast, dtype in ((dict(device_type='cpu', dtype=torch.bfloat16), torch.bfloat16), (False, torch.float32)):
        net, r = Mult(), PyTorchRuntime('cpu', {'autocast': autocast})
        assert r.execute(CodeBlock(net, runtime=r), dict(x=torch.ones(2, 2)))['y'].dtype == dtype and net.w.grad is None
    net = ppe.to(Mult(), 'cpu')
    assert forward(net)(dict(x=torch.ones(2, 2)))['y'].tolist() == [[2, 2], [2, 2]] and net.w.grad is None


# ------------------------------------------------------------------ logics

@pytest.mark.parametrize('mode', [True, False])
def test_hooks_of_a_base_logic_do_nothing(mode):
    net = nn.Linear(2, 2).train(mode)
    net(torch.ones(1, 2)).sum().backward()
    models, optimizers, before, logic = {'main': net}, {'main': torch.optim.SGD(net.parameters(), lr=1.)}, picture(net), BaseLogic()
    for hook, args in (('train_epoch_begin', (3, Untouchable())), ('train_epoch_end', (3,)), ('train_validation_begin', ()), ('train_validation_end', ()), ('train_step_optimizers', (optimizers, 0))):
        assert getattr(logic, hook)(models, *args) is None and picture(net) == before
    for use in (lambda: logic.train_step(models, optimizers, 0, None), lambda: logic.eval_step(models, 0, None)):
        with pytest.raises(RuntimeError, match='BaseLogic must define'): use()


def test_options_of_logics():
    given = {'a': 1, 'backward_outputs': 'loss', 'autocast': False, 'grad_scaler': None, 'backward_function': None}
    base, full = dict(given), dict(given)
    BaseLogic().consume_options(base)
    Logic().consume_options(full)
    assert base == given and full == {'a': 1}
    class Takes(BaseLogic):
        def consume_options(self, options): self.a = options.pop('a', None)
    assert Takes({'a': 5}).a == 5 and Takes().a is None


def test_a_logic_steps_all_optimizers_and_trains_the_named_model():
    nets = {n: nn.Linear(1, 1) for n in ('main', 'other')}
    opts = {n: torch.optim.SGD(m.parameters(), lr=1.) for n, m in nets.items()}
    for m in nets.values(): m(torch.ones(1, 1)).sum().backward()
    before = {n: copy.deepcopy(m.state_dict()) for n, m in nets.items()}
    logic = Logic('other')
    logic.train_step_optimizers(nets, opts, 0)
    assert all((before[n]['weight'] - nets[n].weight).item() == pytest.approx(1.) for n in nets)
    logic.train_epoch_end(nets, 0)
    assert nets['main'].training and not nets['other'].training
    assert logic.train_step(nets, opts, 0, torch.full((1, 1), 2.)).shape == (1, 1)
    assert nets['main'].weight.grad is None and nets['other'].weight.grad.item() == 2.       # zeroed, not added up


# ------------------------------------------------------------------ handlers

HANDLED = {'train_setup': 2, 'train_cleanup': 1, 'train_epoch_begin': 2, 'train_epoch_end': 1, 'train_validation_begin': 2, 'train_validation_end': 2, 'train_post_step': 4,
           'eval_setup': 2, 'eval_loop_begin': 1, 'eval_loop_end': 1, 'eval_post_step': 4}


@pytest.mark.parametrize('hook', HANDLED)
def test_hooks_of_a_base_handler_do_nothing(hook):
    assert getattr(BaseHandler(BaseLogic(), {}), hook)(*[Untouchable() for _ in range(HANDLED[hook])]) is None


def test_options_go_to_the_handler_first():
    class Mine(BaseHandler):
        def consume_options(self, options): self.mine = options.pop('autocast', None)
    logic, options = Logic(), {'autocast': True, 'backward_outputs': 'x'}
    assert Mine(logic, options).mine is True and logic.backward_outputs == 'x' and options == {'autocast': True, 'backward_outputs': 'x'}
    with pytest.raises(ValueError, match='eval_report_keys'): BaseHandler(Logic(), {'eval_report_keys': []})
    rest = {'eval_report_keys': ['a'], 'train_report_keys': ['b'], 'c': 1}
    Handler(Logic(), None, {}).consume_options(rest)
    assert rest == {'c': 1}


@pytest.fixture
def world():
    "A handler whose runtime and logic write down what they are told; the network has two parts."
    log = []
    class Runtime(PyTorchRuntime):
        def initialize_module(self, module, data, optimizer=None): log.append(('initialize_module', type(module).__name__, data, optimizer))
    class Noted(Logic): pass
    for hook, n in HOOKS.items():
        def tell(self, *args, hook=hook, at=1 if n else 0): log.append((hook, type(args[at]).__name__))
        setattr(Runtime, hook, tell)
    for hook in ('train_epoch_begin', 'train_epoch_end', 'train_validation_begin', 'train_validation_end', 'train_step', 'train_step_optimizers', 'eval_step'):
        def note(self, *args, hook=hook): log.append((hook, 'logic', *args[1:])); return {'loss': 3., 'n': 4.}
        setattr(Noted, hook, note)
    net = ppe.to(nn.Sequential(nn.Linear(1, 1)), 'cpu', runtime_class=Runtime)
    engine = types.SimpleNamespace(models={'main': net}, optimizers={'main': 'SGD'}, epoch=5)
    return types.SimpleNamespace(log=log, engine=engine, handler=Handler(Noted(), None, {'eval_report_keys': ['loss'], 'train_report_keys': ['n']}))


@pytest.mark.parametrize('hook, args, told', [('train_epoch_begin', ('loader',), (5, 'loader')), ('train_epoch_end', (), (5,)), ('train_validation_begin', (None,), ()), ('train_validation_end', (None,), ())])
def test_a_handler_calls_the_runtime_of_every_part_and_then_the_logic(world, hook, args, told):
    getattr(world.handler, hook)(world.engine, *args)
    assert world.log[-1] == (hook, 'logic', *told) and sorted(world.log[:-1]) == [(hook, 'Linear'), (hook, 'Sequential')]


def test_setting_up_and_cleaning_up(world):
    world.handler.train_setup(world.engine, 'loader')
    assert sorted(world.log) == [('initialize_module', n, 'loader', {'main': 'SGD'}) for n in ('Linear', 'Sequential')]
    world.log.clear()
    world.handler.eval_setup(world.engine, 'loader')
    assert sorted(x[:3] for x in world.log) == [('initialize_module', n, 'loader') for n in ('Linear', 'Sequential')]
    world.log.clear()
    world.handler.train_cleanup(world.engine)
    assert sorted(world.log) == [('train_cleanup', 'Linear'), ('train_cleanup', 'Sequential')]
    for setup in (world.handler.train_setup, world.handler.eval_setup):
        with pytest.raises(RuntimeError, match='ppe.to'): setup(types.SimpleNamespace(models={'main': nn.Linear(1, 1)}, optimizers={}), 'loader')


def test_the_steps(world):
    done = []
    world.handler.train_step(world.engine, 7, 'batch', lambda *a: done.append(a))
    assert [x[0] for x in world.log] == ['train_pre_step']*2 + ['train_step', 'train_step_optimizers'] and world.log[2][2:] == ({'main': 'SGD'}, 7, 'batch')
    world.log.clear()
    world.handler.eval_step(world.engine, 8, 'batch', lambda *a: done.append(a))
    assert [x[0] for x in world.log] == ['eval_pre_step']*2 + ['eval_step'] and done == [(7, {'loss': 3., 'n': 4.}), (8, {'loss': 3., 'n': 4.})]


def test_after_the_steps(world):
    with ppe.reporting.Reporter().scope(out := {}):
        world.handler.train_post_step(world.engine, 0, 'batch', {'loss': 3., 'n': 4.})
        assert out == {'train/n': 4.} and [x[0] for x in world.log] == ['train_post_step']*2
        world.handler.eval_post_step(world.engine, 0, 'batch', {'loss': 3., 'n': 4.})
    assert out == {'train/n': 4., 'val/loss': 3.} and [x[0] for x in world.log[2:]] == ['eval_post_step']*2


def test_the_ends_of_an_evaluation_leave_the_models_alone(world):
    for hook in (world.handler.eval_loop_begin, world.handler.eval_loop_end): assert hook(world.engine) is None and world.log == []


def test_no_hook_is_missing_here():
    "Each public method of the bases is a hook above, or one that a subclass has to write, or a service."
    def methods(cls): return {n for n in dir(cls) if not n.startswith('_') and callable(getattr(cls, n))}
    assert methods(BaseRuntime) == {*HOOKS, 'initialize_module', 'move_module', 'move_tensor', 'convert_batch', 'execute', 'map', 'trace'}
    assert methods(BaseHandler) == {*HANDLED, 'train_step', 'eval_step', 'consume_options'}
