"What every extension inherits, shown by what the manager does with it: name, order, moment, model state, errors, state."
import io, itertools, json, os, sys, threading, types, urllib.request, warnings
from pathlib import Path
import pytest
import torch
from torch import nn
from xmodaler_nb.ppe.profiler import get_time_summary, record
from xmodaler_nb.ppe.reporting import Reporter, report
from xmodaler_nb.ppe.training.extension import Extension
from xmodaler_nb.ppe.training.extensions import (BestValue, Evaluator, LogReport, MaxValue, MicroAverage, MinValue, ParameterStatistics, PlotReport, PrintReport, ProfileReport,
    ProgressBar, Slack, SlackWebhook, VariableStatisticsPlot)
from xmodaler_nb.ppe.training.manager import ExtensionsManager

NET = nn.Linear(2, 2)
EVERY, EPOCH = [1, 2, 3, 4, 5, 6], [3, 6]
KINDS = {   # class: (how to make one, name, priority, iterations of six at which it is called, reads the weights?)
    BestValue: (lambda: BestValue('loss', lambda best, new: new < best), 'best_value', 100, EVERY, False),
    MaxValue: (lambda: MaxValue('loss'), 'max_value', 100, EVERY, False),
    MinValue: (lambda: MinValue('loss'), 'min_value', 100, EVERY, False),
    Evaluator: (lambda: Evaluator([(torch.ones(1, 2),)], NET, metrics=[lambda batch, out, last: report({'n': 1.})]), 'validation', 300, EPOCH, True),
    LogReport: (lambda: LogReport(), 'LogReport', 100, EVERY, False),
    MicroAverage: (lambda: MicroAverage('loss', 'n', 'q'), 'MicroAverage', 200, EVERY, False),
    ParameterStatistics: (lambda: ParameterStatistics(NET, report_grads=False), 'ParameterStatistics', 300, EPOCH, True),
    PlotReport: (lambda: PlotReport('loss', trigger=(99, 'iteration')), 'PlotReport', 100, EVERY, False),
    PrintReport: (lambda: PrintReport(['loss'], LogReport(filename='printed'), io.StringIO()), 'PrintReport', 100, EVERY, False),
    ProgressBar: (lambda: ProgressBar(update_interval=1, out=io.StringIO()), 'ProgressBar', 100, EVERY, False),
    ProfileReport: (lambda: ProfileReport(filename='times'), 'ProfileReport', 100, EVERY, False),
    Slack: (lambda: Slack('#c', 'at {manager.iteration}', token='t'), 'Slack', 100, EPOCH, False),
    SlackWebhook: (lambda: SlackWebhook('http://x', 'at {manager.iteration}'), 'SlackWebhook', 100, EPOCH, False),
    VariableStatisticsPlot: (lambda: VariableStatisticsPlot(NET, report_grad=False, max_sample_size=3, trigger=(99, 'iteration')), 'VariableStatisticsPlot', 100, EVERY, True)}


@pytest.fixture(params=KINDS, ids=lambda c: c.__name__)
def kind(request): return types.SimpleNamespace(**dict(zip(('make', 'name', 'priority', 'calls', 'reads'), KINDS[request.param])), cls=request.param)


@pytest.fixture(autouse=True)
def posts(monkeypatch):
    "What both bots post; nothing leaves the process."
    said = []
    class Client:
        def __init__(self, token): self.token = token
        def chat_postMessage(self, **kw): said.append(kw['text']); return {'ts': '1'}
    def urlopen(request, timeout): said.append(json.loads(request.data)['text']); return io.BytesIO()
    monkeypatch.setitem(sys.modules, 'slack_sdk', types.SimpleNamespace(WebClient=Client))
    monkeypatch.setattr(urllib.request, 'urlopen', urlopen)
    return said


@pytest.fixture
def manager(tmp_path):
    folders = itertools.count()
    def f(*exts): return ExtensionsManager(NET, {}, 2, iters_per_epoch=3, out_dir=str(tmp_path/str(next(folders))), extensions=exts)
    return f


def run(m, until=6, start=0):
    if start: m._set_iteration(start)
    while m.iteration < until:
        with m.run_iteration(): report({'loss': float((m.iteration*7) % 5), 'n': 2.})
    return m


def watched(kind, seen):
    "An extension that writes down when it is called."
    class Watched(kind.cls):
        def __call__(self, manager):
            seen.append(manager.iteration)
            return super().__call__(manager)
    Watched.__name__, e = kind.cls.__name__, kind.make()
    e.__class__ = Watched
    return e


# ------------------------------------------------------------------ name, order, moment

def test_default_name_and_name(kind, manager):
    first, second, third = kind.make(), kind.make(), kind.make()
    third.name = 'own'
    m = manager(first, second, third)
    assert [m.get_extension(n) for n in (kind.name, f'{kind.name}_1', 'own')] == [first, second, third]
    assert first.default_name == kind.name and (first.name, second.name, third.name) == (None, f'{kind.name}_1', 'own')


def test_trigger(kind, manager):
    seen = []
    run(manager(watched(kind, seen)))
    assert seen == kind.calls


def test_another_trigger_of_the_manager_wins(kind, manager):
    seen, m = [], manager()
    m.extend(watched(kind, seen), trigger=(4, 'iteration'))
    run(m)
    assert seen == [4]


def test_priority(kind, manager):
    order, m = [], manager()
    m.extend(lambda manager: order.append('after'), name='after', priority=kind.priority - 1)
    m.extend(watched(kind, order))
    m.extend(lambda manager: order.append('before'), name='before', priority=kind.priority + 1)
    run(m, 3)
    assert order[-3:] == ['before', 3, 'after']


def test_needs_model_state(kind, manager):
    "An extension that reads the weights opens the models for all, in the iterations where it is due."
    m, read = manager(kind.make()), []
    def look(manager):
        try: read.append(bool(manager.models))
        except RuntimeError: read.append(False)
    m.extend(look, name='look', priority=0)
    assert [m.needs_model_state(i) for i in EVERY] == [kind.reads and i in kind.calls for i in EVERY]
    run(m)
    assert read == [kind.reads and i in kind.calls for i in EVERY]


def test_is_async(kind, manager):
    "None of them works on after its call: no thread is left, and each is called in the thread of the training."
    threads, before = [], threading.active_count()
    class Here(kind.cls):
        def __call__(self, manager):
            super().__call__(manager)
            threads.append((threading.get_ident(), threading.active_count()))
    e = kind.make()
    e.__class__ = Here
    run(manager(e))
    assert e.is_async is False and set(threads) == {(threading.get_ident(), before)}


# ------------------------------------------------------------------ errors, the two ends, state

def test_on_error(kind, manager, posts):
    "The error of the training is the one that is raised; nothing that an extension has gathered is lost."
    class Told(kind.cls):
        def on_error(self, manager, exc, tb):
            told.append((repr(exc), tb is not None, super().on_error(manager, exc, tb)))
    told, e = [], kind.make()
    e.__class__ = Told
    m = run(manager(e), 4)
    state = json.dumps(e.state_dict())
    posts.clear()
    with pytest.raises(ZeroDivisionError):
        with m.run_iteration(): 1/0
    assert told == [("ZeroDivisionError('division by zero')", True, None)] and json.dumps(e.state_dict()) == state
    assert posts == (['Training failed: ZeroDivisionError: division by zero'] if kind.cls in (Slack, SlackWebhook) else [])


def test_the_two_ends(kind, manager, posts):
    "What was loaded survives `initialize`; `finalize` ends the work and forgets nothing."
    old, new = kind.make(), kind.make()
    run(manager(old), 4)
    state = json.dumps(old.state_dict())
    posts.clear()
    new.load_state_dict(json.loads(state))
    m = manager(new)
    m.start_extensions()
    assert json.dumps(new.state_dict()) == state
    m.finalize()
    assert json.dumps(new.state_dict()) == state
    assert [p.split(' on ')[0] for p in posts] == (['Training started', 'Training finished'] if kind.cls in (Slack, SlackWebhook) else [])


def test_state_is_plain(kind, manager):
    "A snapshot loads with weights_only, so a state may hold numbers, texts and containers only."
    e, stored = kind.make(), io.BytesIO()
    run(manager(e), 4)
    torch.save(e.state_dict(), stored)
    stored.seek(0)
    new = kind.make()
    new.load_state_dict(torch.load(stored, weights_only=True))
    assert json.dumps(new.state_dict()) == json.dumps(e.state_dict())
    assert bool(e.state_dict()) == (kind.cls not in (Evaluator, ParameterStatistics, ProgressBar, Slack, SlackWebhook))


# ------------------------------------------------------------------ states and ends that nothing else compares

@pytest.mark.parametrize('stop', [1, 2, 4, 5])
def test_the_sample_of_a_statistics_plot_survives_a_stop(manager, stop):
    make = KINDS[VariableStatisticsPlot][0]
    whole, a, b = make(), make(), make()
    run(manager(whole))
    run(manager(a), stop)
    b.load_state_dict(json.loads(json.dumps(a.state_dict())))
    run(manager(b), start=stop)
    rows = whole.state_dict()['data']['items']
    assert json.dumps(b.state_dict()) == json.dumps(whole.state_dict()) and len(rows) == 3 and [r[0] for r in rows] == sorted({r[0] for r in rows})


def times(m, e, until, start=0):
    if start: m._set_iteration(start)
    while m.iteration < until:
        with m.run_iteration():
            with record('load'): pass
    return [(entry['epoch'], entry['iteration'], 'load' in entry) for entry in e.log]


def test_a_profile_continues_its_log(manager):
    get_time_summary().get_statistics(clear=True)
    a, b = ProfileReport(['load']), ProfileReport(['load'])
    assert times(manager(a), a, 4) == [(1, 3, True)]
    b.load_state_dict(json.loads(json.dumps(a.state_dict())))
    m = manager(b)
    assert times(m, b, 6, start=4) == [(1, 3, True), (2, 6, True)]
    with open(f'{m.out}/log') as f: assert json.load(f) == b.log
    get_time_summary().get_statistics(clear=True)


class Writer:
    def __init__(self): self.ended, self.names = 0, []
    def __call__(self, filename, out_dir, target, *, savefun=None, append=False): self.names.append(filename)
    def finalize(self): self.ended += 1


@pytest.mark.parametrize('make, name', [(lambda w: PlotReport('loss', writer=w), 'plot.png'), (lambda w: VariableStatisticsPlot(NET, report_grad=False, trigger=(1, 'epoch'), writer=w), 'statistics.png'),
    (lambda w: ProfileReport(writer=w), 'log'), (lambda w: PrintReport(['loss'], LogReport(writer=w), io.StringIO()), 'log')])
def test_finalize_ends_a_writer_of_ones_own_once(manager, make, name):
    w = Writer()
    m = run(manager(make(w)), 3)
    assert w.names == [name] and w.ended == 0
    m.finalize()
    assert w.ended == 1


def test_a_print_report_finds_its_log_before_the_training(manager):
    m = manager(PrintReport(['loss'], 'nobody', io.StringIO()))
    with pytest.raises(ValueError, match="'nobody'"): m.start_extensions()
    by_name = PrintReport(['loss'], out=io.StringIO())
    m = manager(LogReport(), by_name)
    assert by_name.get_log_report(m) is m.get_extension('LogReport') and by_name.state_dict() == {}
    by_name.load_state_dict({})


def test_statistics_continue_after_a_stop(manager):
    "They have no state of their own; statistics that were registered are those of the new object."
    old, new = KINDS[ParameterStatistics][0](), KINDS[ParameterStatistics][0]()
    new.register_statistics('norm', torch.norm)
    new.load_state_dict(old.state_dict())
    m = run(manager(new), start=4)
    assert m.observation['weight/data/norm'] == pytest.approx(NET.weight.norm().item()) and m.observation['bias/data/max'] == NET.bias.max().item()


def test_another_key_template():
    class Short(ParameterStatistics): report_key_template = '{prefix}{function_name} of {param_name} ({attr_name})'
    with Reporter().scope(out := {}): Short(NET, {'top': torch.max}, report_grads=False, prefix='p')(None)
    assert set(out) == {'p/top of weight (data)', 'p/top of bias (data)'}


def test_default_statistics_of_a_subclass():
    class Few(ParameterStatistics): default_statistics = {'mean': torch.mean}
    with Reporter().scope(out := {}): Few(NET, report_grads=False)(None)
    assert set(out) == {'weight/data/mean', 'bias/data/mean'} and out['bias/data/mean'] == NET.bias.mean()


@pytest.mark.parametrize('cls', [PlotReport, VariableStatisticsPlot])
def test_available(cls, monkeypatch):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert cls.available() is True
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    with pytest.warns(UserWarning, match='matplotlib'): assert cls.available() is False


def test_an_extension_of_ones_own(manager):
    "Attributes of the class and of the object count in the same way."
    class Late(Extension):
        trigger, priority, name, needs_model_state = (2, 'epoch'), 7, 'late', True
        def __call__(self, manager): self.at = manager.iteration
    e, m = Late(), manager(Late())
    m.extend(e)
    run(m)
    entries = [m._extensions[n] for n in ('late', 'late_1')]
    assert [x.priority for x in entries] == [7, 7] and [x.extension.at for x in entries] == [6, 6] and not m.needs_model_state(3) and m.needs_model_state(6)


def documented(module, ending):
    "Classes of a module whose documented names end so."
    file = Path(os.environ.get('XMODALER_API', Path(__file__).resolve().parents[3]/'shared'/'api'))/'ppe.json'
    if not file.exists(): pytest.skip('no API inventory (set XMODALER_API to the folder with ppe.json)')
    symbols = [s for s in json.loads(file.read_text())['symbols'] if s.get('required', True) and s['module'] == f'pytorch_pfn_extras.{module}']
    return {s['name'].rpartition('.')[0] for s in symbols if s['name'].endswith(ending)}


def test_no_documented_extension_is_missing_here(): assert documented('training.extensions', '.trigger') == {c.__name__ for c in KINDS}
