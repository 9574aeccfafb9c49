"ppe.runtime, ppe.handler, ppe.engine, ppe.profiler, ppe.to."
import copy, json, pickle, time, warnings
from collections import namedtuple
import pytest, torch
from torch import nn
import xmodaler_nb.ppe as ppe
from xmodaler_nb.ppe.engine import create_evaluator, create_trainer
from xmodaler_nb.ppe.handler import BaseHandler, BaseLogic, CodeBlock, Handler, Logic, forward, update_parameters
from xmodaler_nb.ppe.profiler import TimeSummary, get_time_summary, record
from xmodaler_nb.ppe.runtime import BaseRuntime, PyTorchRuntime, runtime_of, runtime_registry

Out = namedtuple('Out', 'loss y')


class Line(nn.Module):
    def __init__(self, kind='dict', w=0.):
        super().__init__()
        self.w, self.kind, self.inner, self.modes = nn.Parameter(torch.tensor(w)), kind, nn.Dropout(.5), []
    def forward(self, x, y):
        self.modes.append(self.training)
        guess = self.w*x
        loss = ((guess - y)**2).mean()
        return dict(dict=dict(loss=loss, y=guess), tuple=(loss, guess), named=Out(loss, guess), tensor=loss)[self.kind]


DATA = [dict(x=torch.tensor([1., 2.])*k, y=torch.tensor([2., 4.])*k) for k in (.5, .7, .9)]


def trainer(tmp_path, net=None, epochs=2, lr=.05, **kw):
    net = ppe.to(net or Line(), 'cpu')
    return create_trainer(net, torch.optim.SGD(net.parameters(), lr=lr, momentum=.9), epochs, out_dir=str(tmp_path), **kw)


@pytest.mark.parametrize('kind, key', [('dict', 'loss'), ('tuple', '0'), ('named', 'loss'), ('tensor', '0')])
@pytest.mark.parametrize('batch', [dict, tuple, list])
def test_forms_of_batches_and_outputs(tmp_path, kind, key, batch):
    seen = []
    t = trainer(tmp_path, Line(kind), options=dict(train_report_keys=[key]))
    t.extend(lambda m: seen.append(float(m.observation[f'train/{key}'])), trigger=(1, 'iteration'), name='note')
    t.run(DATA if batch is dict else [batch(b.values()) for b in DATA])
    assert t.iteration == 6 and seen[-1] < seen[0]


def test_before_and_after_the_start(tmp_path):
    t = trainer(tmp_path)
    for name in ('iteration', 'epoch', 'models', 'optimizers', 'stop_trigger', 'observation', 'out'):
        with pytest.raises(RuntimeError, match='not started'): getattr(t, name)
    with pytest.raises(RuntimeError): t.state_dict()
    t.extend(lambda m: None, name='first')
    t.run(DATA)
    assert t.epoch == 2 and t.epoch_detail == 2. and t.out == str(tmp_path) and t.models['main'] is t.raw_models['main']
    with pytest.raises(RuntimeError): t.extend(lambda m: None)
    assert t.get_extension('first') and not t.is_before_training and t.elapsed_time >= 0


def test_lengths_of_epochs(tmp_path):
    t = trainer(tmp_path, epochs=2)
    t.run(iter(DATA*9), train_len=4)                                      # no length, and longer than an epoch
    assert t.iteration == 8
    t = trainer(tmp_path, epochs=1)
    t.run(DATA, train_len=7)                                              # ends early: started again
    assert t.iteration == 7
    with pytest.raises(ValueError, match='train_len'): trainer(tmp_path).run(iter(DATA))
    with pytest.raises(ValueError, match='empty'): trainer(tmp_path).run([], train_len=2)


def test_resume_at_every_iteration(tmp_path):
    states, whole = [], trainer(tmp_path)
    whole.extend(lambda m: states.append(copy.deepcopy(m.state_dict())), trigger=(1, 'iteration'), priority=-200, name='keep')
    whole.run(DATA)
    for state in states:
        again = trainer(tmp_path)
        again.load_state_dict(state)
        again.run(DATA)
        assert again.iteration == 6 and torch.equal(again.models['main'].w, whole.models['main'].w)
    assert len(states) == 6


def test_evaluators_and_their_triggers(tmp_path):
    seen, net = [], ppe.to(Line(), 'cpu')
    def error(batch, outputs):
        assert set(outputs) == {'loss', 'y'}
        return dict(error=(outputs['y'] - batch['y']).abs().mean())
    e = create_evaluator(net, metrics=[error], options=dict(eval_report_keys=['loss', 'error']))
    f = create_evaluator(net, options=dict(eval_report_keys=['y']))
    for given, at in ((e, [3, 6]), ((e, (2, 'iteration')), [2, 4, 6]), ({e: (1, 'epoch'), f: (6, 'iteration')}, [3, 6])):
        seen.clear()
        t = create_trainer(net, torch.optim.SGD(net.parameters(), lr=.01), 2, out_dir=str(tmp_path), evaluator=given)
        t.extend(lambda m: seen.append(m.iteration) if 'val/error' in m.observation else None, trigger=(1, 'iteration'))
        t.run(DATA, DATA, eval_len=2)
        assert seen == at
    assert net.modes.count(False) > 0 and net.training is False            # the epoch's end is evaluation mode
    with pytest.raises(ValueError, match='val_loader'): trainer(tmp_path, evaluator=e).run(DATA)
    with pytest.warns(UserWarning, match='val_loader'): trainer(tmp_path).run(DATA, DATA)


def test_evaluator_alone():
    net = ppe.to(Line(w=1.), 'cpu').train()
    means = create_evaluator(net, options=dict(eval_report_keys=['loss'])).run(DATA)
    expect = sum(float(((b['x'] - b['y'])**2).mean()) for b in DATA)/3
    assert means['val/loss'] == pytest.approx(expect) and net.training and net.inner.training and net.modes == [False]*3
    with pytest.raises(KeyError, match='nothing'): create_evaluator(net, options=dict(eval_report_keys=['nothing'])).run(DATA)


def test_options_that_nobody_knows():
    for make in (lambda **k: create_evaluator(Line(), **k), lambda **k: create_trainer(Line(), {}, 1, **k)):
        with pytest.raises(ValueError, match='typo'): make(options=dict(typo=1))
    options = dict(autocast=False, eval_report_keys=[])
    create_evaluator(Line(), options=options)
    assert options == dict(autocast=False, eval_report_keys=[])             # the caller's dict stays


def test_no_runtime(tmp_path):
    net = Line()
    with pytest.raises(RuntimeError, match='ppe.to'): create_trainer(net, torch.optim.SGD(net.parameters(), lr=1.), 1, out_dir=str(tmp_path)).run(DATA)


@pytest.mark.parametrize('names, losses', [(None, 2), ('a', 1), (['b'], 1), (['a', 'b'], 2), (['none'], 0)])
def test_backward_outputs(names, losses):
    net, got = nn.Linear(2, 2), []
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = net
        def forward(self, x):
            y = self.inner(x)
            return dict(a=y.sum(), b=y.mean(), y=y, n=torch.tensor(1), plain=torch.tensor(1.))
    logic = Logic(options=dict(backward_outputs=names, backward_function=got.append))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        logic.train_step(dict(main=Two()), {}, 0, torch.ones(3, 2))
    assert len(got) == losses and any('none' in str(w.message) for w in said) == (names == ['none'])
    if names is None:                                                       # one graph, two losses
        Logic().train_step(dict(main=Two()), {}, 0, torch.ones(3, 2))
        assert net.weight.grad[0, 0] == pytest.approx(3 + .5)


def test_grad_scaler():
    with pytest.raises(RuntimeError): Logic(options=dict(grad_scaler='yes'))
    scaler = torch.amp.GradScaler('cpu', init_scale=4.)
    net = Line()
    sgd = dict(main=torch.optim.SGD(net.parameters(), lr=.5))
    logic = Logic(options=dict(grad_scaler=scaler, backward_outputs='loss'))
    logic.train_step(dict(main=net), sgd, 0, DATA[0])
    assert net.w.grad == pytest.approx(4*-2.5, rel=1e-5)
    logic.train_step_optimizers(dict(main=net), sgd, 0)
    assert net.w.item() == pytest.approx(1.25)
    with pytest.raises(AssertionError): Logic(options=dict(grad_scaler=scaler)).train_step(dict(main=lambda x: dict(a=net.w*1, b=net.w*2)), {}, 0, 1)


def test_autocast():
    class Mult(nn.Module):
        def forward(self, x): return dict(y=x @ x)
    for options, dtype in ((dict(device_type='cpu', dtype=torch.bfloat16), torch.bfloat16), (False, torch.float32)):
        out = Logic(options=dict(autocast=options)).eval_step(dict(main=Mult()), 0, dict(x=torch.ones(2, 2)))
        assert out['y'].dtype == dtype


def test_logic_modes_and_sampler():
    class Sampler:
        def set_epoch(self, n): self.epoch = n
    loader = namedtuple('Loader', 'sampler')(Sampler())
    net, logic = Line().eval(), Logic()
    logic.train_epoch_begin(dict(main=net), 7, loader)
    assert net.training and loader.sampler.epoch == 7
    for event, mode in ((logic.train_validation_begin, False), (logic.train_validation_end, True)):
        event(dict(main=net))
        assert net.training is mode
    logic.train_epoch_end(dict(main=net), 7)
    assert not net.training
    other = Logic(model_name='other')
    assert other.eval_step(dict(other=lambda x: x + 1), 0, (1,)) == 2


class Spy(PyTorchRuntime):
    log = []
    def note(name): return lambda self, *a: Spy.log.append(name)
    for _n in ('initialize_module', 'train_epoch_begin', 'train_epoch_end', 'train_validation_begin', 'train_validation_end', 'train_pre_step', 'train_post_step', 'eval_pre_step', 'eval_post_step', 'train_cleanup'):
        locals()[_n] = note(_n)
    def move_module(self, module): return module
    def move_tensor(self, tensor): return tensor


def test_hooks_and_their_order(tmp_path):
    with runtime_registry.scratch():
        runtime_registry.register('spy', Spy)
        net = ppe.to(Line(), 'spy:3')
        net.inner = nn.Identity()                                           # not tagged: one runtime is called per moment
        Spy.log.clear()
        e = create_evaluator(net, device='spy', options=dict(eval_report_keys=['loss']))
        create_trainer(net, torch.optim.SGD(net.parameters(), lr=.1), 1, out_dir=str(tmp_path), evaluator=e, device='spy').run(DATA[:1], DATA[:1])
        assert Spy.log == ['initialize_module', 'train_epoch_begin', 'train_pre_step', 'train_post_step', 'train_validation_begin', 'initialize_module', 'eval_pre_step', 'eval_post_step',
                           'train_validation_end', 'train_epoch_end', 'train_cleanup']
        assert runtime_of(net).device_spec == 'spy:3'


def test_a_logic_of_ones_own(tmp_path):
    class Counts(BaseLogic):
        steps = 0
        def train_step(self, models, optimizers, batch_idx, batch): self.steps += 1; return dict(n=torch.tensor(float(self.steps)))
    logic, net = Counts(), ppe.to(Line(), 'cpu')
    create_trainer(net, {}, 2, out_dir=str(tmp_path), logic=logic).run(DATA)
    assert logic.steps == 6
    with pytest.raises(RuntimeError, match='eval_step'): logic.eval_step({}, 0, None)
    for use in (lambda h: h.train_step(None, 0, None, None), lambda h: h.eval_step(None, 0, None, None)):
        with pytest.raises(RuntimeError, match='must define'): use(BaseHandler(logic, {}))


def test_to():
    net = ppe.to(nn.Sequential(nn.Linear(1, 1)), torch.device('cpu'))
    assert isinstance(runtime_of(net[0]), PyTorchRuntime) and runtime_of(pickle.loads(pickle.dumps(net))) is None
    assert ppe.to(torch.ones(1), 'cpu').tolist() == [1]
    for bad in (3, [torch.ones(1)]):
        with pytest.raises(ValueError): ppe.to(bad, 'cpu')
    assert runtime_registry.get_runtime_class_for_device_spec('cuda:0') is PyTorchRuntime
    for use in (lambda r: r.move_tensor(1), lambda r: r.move_module(1), lambda r: r.convert_batch(1), lambda r: r.initialize_module(1, 1), lambda r: r.execute(1, 1), lambda r: r.map(1, 1)):
        with pytest.raises(RuntimeError, match='must define'): use(BaseRuntime('x', {}))


def test_convert_batch():
    r = PyTorchRuntime('meta', {})
    got = r.convert_batch(dict(a=[torch.ones(1), 'text'], b=Out(torch.ones(1), 3), c=(torch.ones(1), None)))
    assert got['a'][0].is_meta and got['a'][1] == 'text' and isinstance(got['b'], Out) and got['b'].loss.is_meta and got['c'][1] is None


def test_code_blocks():
    net = ppe.to(Line(), 'cpu')
    block = update_parameters(net, [torch.optim.SGD(net.parameters(), lr=.1)], backprop_from='loss')
    assert isinstance(block, CodeBlock) and block.backprop and block.runtime is runtime_of(net)
    losses = [block(DATA[0])['loss'].item() for _ in range(3)]
    assert losses[2] < losses[1] < losses[0]
    before = net.w.item()
    assert forward(net.forward)(DATA[0])['loss'].requires_grad and net.w.item() == before       # a bound method
    outs = list(runtime_of(net).map(forward(net), DATA, out_keys={'y'}))
    assert [set(o) for o in outs] == [{'y'}]*3
    with pytest.raises(RuntimeError, match='ppe.to'): forward(Line())
    x = torch.ones(1, requires_grad=True)
    net.w.grad = None
    update_parameters(net, [], backprop_from='loss', backprop_to=['x'])(dict(x=x, y=torch.zeros(1)))
    assert x.grad is not None and net.w.grad is None


def test_our_own_captioner(tmp_path):
    "A model of this library takes the batch as one dict."
    class Reads(nn.Module):
        def __init__(self): super().__init__(); self.w = nn.Parameter(torch.ones(1))
        def forward(self, batched_inputs): return dict(loss=(self.w*batched_inputs['ATT_FEATS']).sum())
    net = ppe.to(Reads(), 'cpu')
    t = create_trainer(net, torch.optim.SGD(net.parameters(), lr=.1), 1, out_dir=str(tmp_path), options=dict(backward_outputs='loss'))
    t.run([{'ATT_FEATS': torch.ones(2), 'IDS': ['a']}])
    assert net.w.item() == pytest.approx(.8)


def test_errors_reach_extensions(tmp_path):
    from xmodaler_nb.ppe.training import Extension
    class Sees(Extension):
        seen = None
        def __call__(self, manager): pass
        def on_error(self, manager, exc, tb): self.seen = exc
    def broken():
        yield DATA[0]
        raise OSError('disk')
    e, t = Sees(), trainer(tmp_path)
    t.extend(e)
    with pytest.raises(OSError): t.run(broken(), train_len=3)
    assert isinstance(e.seen, OSError) and t.iteration == 1


def test_time_summary():
    s = TimeSummary()
    for seconds in (.002, .006):
        with s.report('a'): time.sleep(seconds)
    with s.report('b') as n: n.defer()
    assert 'b' not in s.get_statistics()
    n.complete()
    n.complete()
    stats = s.get_statistics(clear=True)
    assert stats['a.min'] <= stats['a'] <= stats['a.max'] and stats['a.std'] > 0 and 'b' in stats and s.get_statistics() == {}
    with pytest.raises(OSError):
        with s.report('c'): raise OSError
    assert 'c' in s.get_statistics()
    with s.summary(clear=True) as (summary, ends): assert 'c' in summary.compute_mean() and set(ends) == {'c.min', 'c.max'}
    assert s.get_statistics() == {}


def test_record():
    get_time_summary().get_statistics(clear=True)
    with record('x', metric='y'): pass
    with record('z', enable=False) as n: n.complete()
    assert set(get_time_summary().get_statistics(clear=True)) == {'y', 'y.std', 'y.min', 'y.max'}
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        with record('marked for torch'): torch.ones(1)
    assert 'marked for torch' in {e.key for e in profile.key_averages()}


def test_cuda_sections(monkeypatch):
    class Event:
        now = 0
        def record(self): Event.now += 5; self.at = Event.now
        def synchronize(self): pass
        def elapsed_time(self, other): return other.at - self.at
    monkeypatch.setattr(torch.cuda, 'Event', lambda enable_timing: Event())
    s = TimeSummary()
    with s.report('k', use_cuda=True): pass
    assert s.get_statistics()['k.cuda'] == pytest.approx(.005)
