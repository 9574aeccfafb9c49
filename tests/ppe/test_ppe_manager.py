"The manager: order of calls, counters, state, errors."
import pytest
import torch
from torch import nn
from xmodaler_nb.ppe import training
from xmodaler_nb.ppe.reporting import report
from xmodaler_nb.ppe.training.extension import (Extension, ExtensionEntry, FunctionExtension, PRIORITY_EDITOR, PRIORITY_READER, PRIORITY_SNAPSHOT,
    PRIORITY_WRITER, make_extension)
from xmodaler_nb.ppe.training.manager import ExtensionsManager
from xmodaler_nb.ppe.training.triggers import EarlyStoppingTrigger, IntervalTrigger, OnceTrigger
from xmodaler_nb.utils.events import get_event_storage


class Log(Extension):
    "Writes down everything that happens to it."
    def __init__(self, out, tag=''): self.out, self.tag = out, tag
    def say(self, what): self.out.append(self.tag + what)
    def initialize(self, manager): self.say('init')
    def __call__(self, manager): self.say(f'call{manager.iteration}')
    def finalize(self, manager): self.say('end')
    def on_error(self, manager, exc, tb): self.say(f'error {exc}')


@pytest.fixture
def make(tmp_path):
    def f(model=None, optimizers=None, epochs=2, iters_per_epoch=3, **kw):
        return ExtensionsManager(model or nn.Linear(1, 1), optimizers if optimizers is not None else {}, epochs, iters_per_epoch=iters_per_epoch,
                                 out_dir=str(tmp_path/'out'), **kw)
    return f


def run(m, n=None, values=None):
    while not m.stop_trigger and (n is None or m.iteration < n):
        with m.run_iteration():
            if values: report({'x': values[m.iteration]})
    return m


def test_wrong_arguments(make, tmp_path):
    with pytest.raises(ValueError, match='models is a list'): make([nn.Linear(1, 1)])
    with pytest.raises(ValueError, match='iters_per_epoch is 0'): make(iters_per_epoch=0)


def test_names_of_single_ones(make):
    model = nn.Linear(1, 1)
    opt = torch.optim.SGD(model.parameters(), .1)
    m = make(model, opt)
    assert m.models == {'main': model} and m.optimizers == {'main': opt} and m.raw_models == {'main': model}
    assert make({'a': model}, {'b': opt}).optimizers == {'b': opt}


def test_counters(make, tmp_path):
    m = make()
    assert (tmp_path/'out').is_dir() and m.out == str(tmp_path/'out')
    assert m.is_before_training and (m.iteration, m.epoch, m.epoch_detail) == (0, 0, 0.)
    with pytest.raises(RuntimeError): m.elapsed_time
    run(m, 4)
    assert not m.is_before_training and (m.iteration, m.epoch) == (4, 1) and m.epoch_detail == pytest.approx(4/3) and m.elapsed_time >= 0
    with pytest.warns(DeprecationWarning): assert m.updater is m


def test_default_stop_and_finalize(make):
    out = []
    m = run(make(extensions=[Log(out)]))
    assert m.iteration == 6 and out == ['init', *(f'call{i}' for i in range(1, 7)), 'end']
    with pytest.raises(RuntimeError, match='had ended'):
        with m.run_iteration(): pass
    m.finalize()
    assert out.count('end') == 1


@pytest.mark.parametrize('read', ['iteration', 'models', 'optimizers', 'raw_models', 'epoch'])
def test_reading_starts_the_extensions(make, read):
    "The trap: after that, nothing may be added."
    out = []
    m = make(extensions=[Log(out)])
    assert out == []
    getattr(m, read)
    assert out == ['init']
    with pytest.raises(RuntimeError): m.extend(Log(out))
    m.start_extensions()
    assert out == ['init']


def test_order_of_one_iteration(make):
    out, model = [], nn.Linear(1, 1)
    class Opt(torch.optim.SGD):
        def zero_grad(self, *a, **k): out.append('zero')
        def step(self, *a, **k): out.append('step')
    m = make(model, {'main': Opt(model.parameters(), .1), 'other': Opt(model.parameters(), .1)})
    for tag, p in (('reader ', PRIORITY_READER), ('snapshot ', PRIORITY_SNAPSHOT), ('editor ', PRIORITY_EDITOR), ('writer ', PRIORITY_WRITER)):
        m.extend(Log(out, tag), name=tag, priority=p)
    m.start_extensions()
    out.clear()
    with m.run_iteration(step_optimizers=['main']): out.append('body')
    assert out == ['zero', 'body', 'step', 'writer call1', 'editor call1', 'reader call1', 'snapshot call1']
    out.clear()
    with m.run_iteration(): out.append('body')
    assert out[0] == 'body' and 'step' not in out


def test_equal_priorities_keep_their_order(make):
    out = []
    m = make(extensions=[Log(out, t) for t in 'abc'])
    m.start_extensions()
    assert out == ['ainit', 'binit', 'cinit']


def test_snapshots_come_after_all_triggers(make):
    "The trap: a trigger of low priority is asked before anything is saved, the stop trigger included."
    out = []
    def trigger(name):
        def ask(manager): return out.append(f'ask {name}') or True
        return ask
    m = make(stop_trigger=trigger('stop'))
    m.extend(Log(out, 'save '), name='save', priority=PRIORITY_SNAPSHOT, trigger=trigger('save'))
    m.extend(Log(out, 'late '), name='late', priority=PRIORITY_SNAPSHOT - 1, trigger=trigger('late'))
    m.start_extensions()
    out.clear()
    with m.run_iteration(): pass
    assert out[:5] == ['ask save', 'ask late', 'ask stop', 'save call1', 'late call1']


def test_extend_names(make):
    m = make()
    for _ in range(3): m.extend(Log([]))
    m.extend(lambda manager: None, name='mine')
    m.extend(ExtensionEntry(Log([]), name='entry', priority=7, trigger=(2, 'epoch')))
    m.extend(ExtensionEntry(Log([]), name='entry', priority=7), name='other', priority=8, trigger=(4, 'epoch'))
    assert list(m._extensions) == ['Log', 'Log_1', 'Log_2', 'mine', 'entry', 'other']
    assert m._extensions['entry'].priority == 7 and m._extensions['other'].priority == 8 and m._extensions['other'].trigger.period == 4
    with pytest.raises(ValueError, match='reserved'): m.extend(Log([]), name='training')
    with pytest.raises(ValueError, match="'nobody'"): m.get_extension('nobody')
    with pytest.raises(TypeError, match='colour'): m.extend(Log([]), colour=1)
    with pytest.raises(TypeError, match='no extension'): m.extend(3)


def test_the_extensions_own_name_wins_over_its_class(make):
    class Named(Log): name = 'own'
    m = make(extensions=[Named([])])
    m.extend(Named([]), name='given')
    assert list(m._extensions) == ['own', 'given']


def test_get_extension_gives_what_was_registered(make):
    def f(manager): return None
    e = Log([])
    m = make(extensions=[f, e])
    assert m.get_extension('f') is f and m.get_extension('Log') is e


def test_call_before_training_reports(make):
    seen = []
    def early(manager):
        report({'early': 1})
        seen.append(manager.iteration)
    m = make()
    m.extend(early, call_before_training=True, trigger=(1, 'epoch'))
    m.start_extensions()
    assert seen == [0] and m.observation == {'early': 1}


def test_finished_triggers_are_not_initialised(make):
    out = []
    m = make()
    t = OnceTrigger()
    t(None)
    m.extend(Log(out), trigger=t)
    run(m, 2)
    assert out == []


def test_errors_reach_every_extension_once(make):
    out = []
    m = make(extensions=[Log(out, 'a'), Log(out, 'b')])
    with pytest.raises(ZeroDivisionError):
        with m.run_iteration(): 1/0
    assert [o for o in out if 'error' in o] == ['aerror division by zero', 'berror division by zero']


def test_an_error_in_an_extension(make):
    out = []
    def bad(manager): raise KeyError('x')
    m = make(extensions=[Log(out), bad])
    with pytest.raises(KeyError):
        with m.run_iteration(): pass
    assert out[-1] == "error 'x'"


def test_observation_is_fresh_and_shared_with_the_storage(make):
    seen = []
    model = nn.Linear(1, 1)
    m = make(model, extensions=[lambda manager: seen.append(dict(manager.observation))])
    for i in range(2):
        with m.run_iteration():
            if i == 0: report({'loss': 2.}, model)
            get_event_storage().put_scalar('lr', .5, smoothing_hint=False)      # a part of the library
    assert seen == [{'main/loss': 2., 'lr': .5}, {'lr': .5}]
    assert m.storage.history('main/loss').values() == [(2., 0)] and [i for _, i in m.storage.history('lr').values()] == [0, 1]


def test_functions_are_read_late_but_not_lost(make):
    m = make()
    with m.run_iteration(): report({'late': lambda: 3.})
    assert 'late' not in m._storage.latest() and m.storage.latest()['late'] == (3., 0)


def test_reports_of_parts_of_a_model(make):
    model = nn.Sequential(nn.Linear(1, 1))
    m = make(model)
    with m.run_iteration(): report({'norm': 1.}, model[0])
    assert m.observation == {'main/0/norm': 1.}


def test_model_state_is_locked_when_nobody_needs_it(make):
    class Reads(Log):
        needs_model_state = True
    m = make()
    m.extend(Reads([]), trigger=(2, 'iteration'))
    m.extend(lambda manager: manager.models, name='curious', trigger=lambda manager: manager.iteration == 1)
    assert [m.needs_model_state(i) for i in (1, 2)] == [False, True] and not m.needs_model_state()
    with pytest.raises(RuntimeError, match='needs_model_state'):
        with m.run_iteration(): m.models                # in the body it may be read
    assert m.needs_model_state() and not m.needs_state_this_iteration()


def test_transform_model(make):
    model = nn.Sequential(nn.Linear(1, 1))
    m = make(model, transform_model=lambda name, x: x[0])
    assert m.models['main'] is model[0] and m.raw_models['main'] is model and set(m.state_dict()['models']['main']) == {'weight', 'bias'}
    assert set(m.state_dict(transform_models=lambda name, x: x)['models']['main']) == {'0.weight', '0.bias'}


def test_state_round_trip(make):
    class Counter(Extension):
        n = 0
        def __call__(self, manager): self.n += 1
        def state_dict(self): return {'n': self.n}
        def load_state_dict(self, s): self.n = s['n']
    model = nn.Linear(1, 1)
    a = make(model, torch.optim.SGD(model.parameters(), .1, momentum=.9), extensions=[Counter()], state_objects={'c': Counter()})
    run(a, 4)
    s = a.state_dict()
    assert {'_start_iteration', '_start_execution', 'models', 'optimizers', 'state_objects', 'extensions'} <= set(s) and set(s['extensions']['Counter']) == {'extension', 'trigger'}
    other = nn.Linear(1, 1)
    b = make(other, torch.optim.SGD(other.parameters(), .5), extensions=[Counter()], state_objects={'c': Counter()})
    b.load_state_dict(s)
    assert b.iteration == 4 and b.get_extension('Counter').n == 4 and b.optimizers['main'].param_groups[0]['lr'] == .1
    assert torch.equal(other.weight, model.weight) and b.elapsed_time == pytest.approx(a.elapsed_time, abs=.5)
    with pytest.warns(UserWarning, match='version'): b.load_state_dict({**s, '_version': '99'})
    with pytest.warns(UserWarning, match='no extension'): make(other, torch.optim.SGD(other.parameters(), .1), extensions=[Log([])]).load_state_dict(s)


@pytest.mark.parametrize('stop', range(1, 16))
def test_early_stopping_survives_a_resume(make, stop):
    "The loop's question and the manager's own copy give one answer, also when the run was stopped between the two."
    values = [v for v in (5, 3, 4, 4, 4, 4) for _ in range(3)]
    def new(): return make(stop_trigger=EarlyStoppingTrigger(monitor='x', patience=2))
    whole = run(new(), values=values).iteration
    assert whole == 12
    a, b = run(new(), stop, values=values), new()
    b.load_state_dict(a.state_dict())
    assert run(b, values=values).iteration == whole


def test_a_function_as_stop_trigger_is_asked_anew(make):
    state = {'stop': False}
    m = make(stop_trigger=lambda manager: state['stop'])
    with m.run_iteration(): pass
    assert not m.stop_trigger
    state['stop'] = True
    assert m.stop_trigger


def test_make_extension():
    calls = []
    @make_extension(trigger=(2, 'epoch'), default_name='nice', priority=PRIORITY_WRITER, finalizer=lambda m: calls.append('end'),
                    initializer=lambda m: calls.append('init'), on_error=lambda m, e, tb: calls.append('error'))
    def f(manager): calls.append('call')
    e = ExtensionEntry(f)
    assert e.name == 'nice' and e.priority == PRIORITY_WRITER and e.trigger.period == 2
    e.extension.initialize(None)
    e.extension(None)
    e.extension.on_error(None, None, None)
    e.extension.finalize(None)
    assert calls == ['init', 'call', 'error', 'end']


def test_extension_defaults():
    e = Extension()
    assert (e.trigger, e.priority, e.name, e.default_name, e.needs_model_state, e.is_async) == ((1, 'iteration'), 100, None, 'Extension', False, False)
    assert e.state_dict() == {} and e.load_state_dict({}) is None and e.initialize(None) is None and e.finalize(None) is None and e.on_error(None, None, None) is None
    with pytest.raises(TypeError, match='must define'): e(None)


def test_entry():
    e = ExtensionEntry(Log([]), name='n', priority=5, trigger=IntervalTrigger(3, 'epoch'), call_before_training=True)
    assert (e.name, e.priority, e.trigger.period, e.call_before_training) == ('n', 5, 3, True)
    assert e.state_dict() == {'extension': {}, 'trigger': {}} and ExtensionEntry(lambda m: m).name == '<lambda>'
    assert isinstance(ExtensionEntry(print).extension, FunctionExtension)


def test_priorities():
    assert (training.PRIORITY_WRITER, training.PRIORITY_EDITOR, training.PRIORITY_READER, training.PRIORITY_SNAPSHOT) == (300, 200, 100, -100)
