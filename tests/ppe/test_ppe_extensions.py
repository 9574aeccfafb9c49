"The extensions, in a manager's loop: what they report, write, print and draw."
import io, json, math, sys, types, urllib.request, warnings
from collections import namedtuple
import numpy as np
import pytest
import torch
import yaml
from torch import nn
from xmodaler_nb.ppe.reporting import Reporter, report
from xmodaler_nb.ppe.training import extensions
from xmodaler_nb.ppe.training.extensions import (BestValue, Evaluator, FailOnNonNumber, IgniteEvaluator, LogReport, LRScheduler, MaxValue, MicroAverage, MinValue,
    ParameterStatistics, PlotReport, PrintReport, ProgressBar, Slack, SlackWebhook, StopTraining, VariableStatisticsPlot, observe_lr, observe_value)
from xmodaler_nb.ppe.training.extensions.log_report import LogBuffer
from xmodaler_nb.ppe.training.extensions.lr_scheduler import step_by_value
from xmodaler_nb.ppe.training.manager import ExtensionsManager
from xmodaler_nb.ppe.training.metrics import AccuracyMetric


@pytest.fixture
def run(tmp_path):
    "Run a manager over observations; three iterations are an epoch."
    def f(values, *exts, model=None, start=0, epoch=3, **kw):
        m = ExtensionsManager(model if model is not None else {}, {}, 99, iters_per_epoch=epoch, out_dir=str(tmp_path), extensions=exts, **kw)
        m._set_iteration(start)
        for v in values:
            if m.stop_trigger: break
            with m.run_iteration(): report(v)
        m.finalize()
        return m
    return f


def losses(*values): return [{'loss': v} for v in values]
def file(m, name): return open(f'{m.out}/{name}').read()
def split_run(run, make, values, stop):
    "The extension of a whole run, and that of a run stopped in between."
    whole, a, b = make(), make(), make()
    run(values, whole)
    run(values[:stop], a)
    b.load_state_dict(json.loads(json.dumps(a.state_dict())))          # plain containers
    run(values[stop:], b, start=stop)
    return whole, b


# ------------------------------------------------------------------ values

def test_observe(run):
    opt = torch.optim.SGD([{'params': [nn.Parameter(torch.zeros(1))], 'lr': r} for r in (.1, .2)], lr=1.)
    seen = []
    run([{}]*3, observe_lr(opt, 1, 'rate'), observe_value('x', lambda m: m.iteration*2), lambda m: seen.append(dict(m.observation)))
    assert seen == [{}, {}, {'rate': .2, 'x': 6}]


@pytest.mark.parametrize('stop', [1, 4])
def test_micro_average(run, stop):
    values = [{'n': 1., 'd': 4.}, {'n': 1.}, {'n': torch.tensor(1.), 'd': 1.}, {'n': 3., 'd': 4.}, {'d': 4.}, {}]
    make = lambda: MicroAverage('n', 'd', 'q')
    seen = []
    run(values, make(), lambda m: seen.append(m.observation.get('q')))
    assert seen == [None, None, 2/5, None, None, 3/4]
    a, b = make(), make()
    run(values[:stop], a)
    b.load_state_dict(a.state_dict())
    rest = []
    run(values[stop:], b, lambda m: rest.append(m.observation.get('q')), start=stop)
    assert rest == seen[stop:]


@pytest.mark.parametrize('make, expected', [(lambda: MinValue('loss'), (1., 6, 2)), (lambda: MaxValue('loss'), (3., 3, 1)),
    (lambda: BestValue('loss', lambda best, new: abs(new - 2) < abs(best - 2)), (2., 9, 3))])
def test_best_value(run, make, expected):
    values = losses(3, 3, 3, 0, 1, 2, 2, 2, 2)
    for stop in (2, 4, 8):
        whole, b = split_run(run, make, values, stop)
        assert (b.best_value, b.best_iteration, b.best_epoch) == (whole.best_value, whole.best_iteration, whole.best_epoch) == expected
    for name in ('best_value', 'best_iteration', 'best_epoch'):
        with pytest.raises(RuntimeError, match='not observed'): getattr(make(), name)


def test_names_of_best_values(): assert [c.default_name for c in (BestValue, MaxValue, MinValue)] == ['best_value', 'max_value', 'min_value']


def test_fail_on_non_number(run):
    model = nn.Linear(1, 1)
    run([{}], FailOnNonNumber(), model=model)
    model.bias.data.fill_(math.inf)
    with pytest.raises(RuntimeError, match='main.bias'): run([{}], FailOnNonNumber(), model=model)


def test_stop_training(run):
    m = ExtensionsManager({}, {}, 99, iters_per_epoch=3, out_dir=run([]).out)
    m.extend(StopTraining('enough'), trigger=(4, 'iteration'))
    while not m.stop_trigger:
        with m.run_iteration(): pass
    assert m.iteration == 4 and m.why == 'enough'


# ------------------------------------------------------------------ evaluator

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.frozen = nn.Linear(1, 1), nn.BatchNorm1d(1).eval()
    def forward(self, x, y=0.):
        assert not self.training or torch.is_grad_enabled()
        report({'loss': (self.fc(x) - y).abs().mean()}, self)
        report({'seen': len(x)}, self.fc)


def test_evaluator_reports_the_mean_over_batches(run):
    net, out = Net(), {}
    batches = [(torch.ones(2, 1), 1.), [torch.zeros(1, 1), 0.], {'x': torch.ones(4, 1), 'y': 3.}]
    with Reporter().scope(out): result = Evaluator(batches, net)()
    assert out == result and set(out) == {'validation/main/loss', 'validation/main/fc/seen'} and out['validation/main/fc/seen'] == pytest.approx(7/3)
    assert net.training and not net.frozen.training


def test_evaluator_of_a_manager(run):
    hooks, net = [], Net()
    ev = Evaluator({'main': [(torch.ones(1, 1),)]}, {'main': net}, eval_hook=hooks.append)
    m = run([{}]*3, ev, model=net)
    assert 'validation/main/loss' in m.observation and hooks == [ev]
    assert (ev.trigger, ev.priority, ev.needs_model_state, ev.default_name) == ((1, 'epoch'), 300, True, 'validation')
    assert ev.get_target('main') is net and ev.get_iterator('main') == [(torch.ones(1, 1),)] and list(ev.get_all_targets()) == list(ev.get_all_iterators()) == ['main']


def test_two_evaluators_have_two_names(run):
    net = Net()
    m = run([{}]*3, Evaluator([(torch.ones(1, 1),)], net), Evaluator([(torch.ones(1, 1),)], net), model=net)
    assert {'validation/main/loss', 'validation_1/main/loss'} <= set(m.observation)


def test_evaluator_functions_and_metrics():
    Pair = namedtuple('Pair', 'a b')
    seen, got = [], []
    ev = Evaluator([Pair(1, 2), 3], nn.Linear(1, 1), eval_func=lambda batch: got.append(batch) or 'out', metrics=[lambda *a: seen.append(a)])
    ev.add_metric(lambda batch, out, last: report({'last': float(last)}))
    assert ev() == {'last': .5} and got == [Pair(1, 2), 3] and seen == [(Pair(1, 2), 'out', False), (3, 'out', True)]


def test_evaluator_restores_modes_after_an_error():
    net = Net()
    with pytest.raises(TypeError): Evaluator([{'z': 1}], net)()
    assert net.training and not net.frozen.training and torch.is_grad_enabled()


def test_evaluator_progress_bar(capsys):
    Evaluator([(torch.ones(1, 1),)]*3, Net(), progress_bar=True)()
    assert 'validation' in capsys.readouterr().err


def test_ignite_evaluator():
    class Engine:
        state = types.SimpleNamespace(metrics={})
        def run(self, loader): self.state.metrics.update(n=len(loader), training=float(net.training))
    net, out = nn.Linear(1, 1), {}
    with Reporter().scope(out): IgniteEvaluator(Engine(), [1, 2], net)()
    assert out == {'val/n': 2, 'val/training': 0.} and net.training


def test_accuracy_metric():
    with Reporter().scope(out := {}):
        AccuracyMetric('y', 'p')({'y': torch.tensor([0, 1])}, {'p': torch.tensor([[1., 0.], [1., 0.]])})
        AccuracyMetric(1, 0, 'second')((None, torch.tensor([1])), (torch.tensor([[0., 1.]]),))
    assert out == {'accuracy': .5, 'second': 1.}


# ------------------------------------------------------------------ log report

def test_log_entries(run):
    log = LogReport()
    m = run(losses(1, 2, 3, 5, 5, 5), log)
    assert [(e['loss'], e['epoch'], e['iteration']) for e in log.log] == [(2., 1, 3), (5., 2, 6)] and log.log[0]['elapsed_time'] >= 0
    assert json.loads(file(m, 'log')) == log.log and file(m, 'log').startswith('[\n    {')


def test_log_keys_and_postprocess(run):
    log = LogReport(['a'], (1, 'iteration'), postprocess=lambda e: e.update(double=2*e['a']))
    run([{'a': 1, 'b': 2}], log)
    assert {k: v for k, v in log.log[0].items() if k != 'elapsed_time'} == {'a': 1., 'epoch': 0, 'iteration': 1, 'double': 2.}


@pytest.mark.parametrize('name, format, read', [('x', 'json', json.loads), ('x.jsonl', None, lambda t: [json.loads(l) for l in t.splitlines()]), ('x.yaml', None, yaml.safe_load),
    ('x', 'json-lines', lambda t: [json.loads(l) for l in t.splitlines()]), ('x', 'yaml', yaml.safe_load)])
def test_log_formats(run, name, format, read):
    log = LogReport(filename=name, format=format)
    assert read(file(run(losses(1, 2, 3, 4, 5, 6), log), name)) == log.log


@pytest.mark.parametrize('name', ['x.jsonl', 'x.yaml'])
def test_log_append_forgets(run, name):
    log, out = LogReport(filename=name, append=True), io.StringIO()
    m = run(losses(1, 2, 3, 4, 5, 6), log, PrintReport(['loss'], out=out))
    rows = yaml.safe_load(file(m, name)) if name.endswith('yaml') else file(m, name).splitlines()
    assert len(rows) == 2 and len(log.log) <= 1 and out.getvalue().count('\n') == 3


def test_log_wrong_formats():
    with pytest.raises(ValueError, match='csv'): LogReport(format='csv')
    with pytest.raises(ValueError, match='appended'): LogReport(append=True)
    with pytest.raises(TypeError, match='colour'): LogReport(colour=1)


def test_log_file_name_from_the_entry(run):
    m = run(losses(1, 2, 3, 4, 5, 6), LogReport(filename='log_{iteration}'))
    assert len(json.loads(file(m, 'log_3'))) == 1 and len(json.loads(file(m, 'log_6'))) == 2


def test_log_before_training(run):
    m = ExtensionsManager({}, {}, 9, iters_per_epoch=3, out_dir=run([]).out)
    log = LogReport()
    m.extend(log, call_before_training=True)
    m.start_extensions()
    assert log.log == [{'epoch': 0, 'iteration': 0, 'elapsed_time': 0.}]


@pytest.mark.parametrize('stop', range(1, 9))
def test_log_survives_a_stop(run, stop):
    whole, b = split_run(run, lambda: LogReport(postprocess=lambda e: e.pop('elapsed_time')), losses(*range(9)), stop)
    assert whole.log == b.log


def test_log_nan_is_valid_json(run): assert json.loads(file(run(losses(math.nan, 1, 1), LogReport()), 'log'))[0]['loss'] is None


def test_log_data_frame(run, monkeypatch):
    log = LogReport()
    run(losses(1, 2, 3), log)
    assert list(log.to_dataframe()['loss']) == [2.]
    monkeypatch.setitem(sys.modules, 'pandas', None)
    with pytest.raises(ImportError, match='pandas'): log.to_dataframe()


def test_log_with_a_writer_of_its_own(run):
    calls = []
    class W:
        def __call__(self, filename, out_dir, target, *, savefun, append): calls.append((filename, len(target)))
        def finalize(self): calls.append('end')
    run(losses(1, 2, 3), LogReport(writer=W()))
    assert calls == [('log', 1), 'end']


def test_readers_of_a_log_have_positions():
    b = LogBuffer()
    b.append(1)
    assert b.follow('a') == [1]
    b.append(2)
    b.drop()                                        # 1 was passed by all readers
    assert b.entries == [2] and b.follow('new') == [2] and b.follow('a') == [2]
    b.restart([5, 6])
    assert b.follow('a') == [5, 6]


# ------------------------------------------------------------------ print report, progress bar

def lines(out): return out.getvalue().replace('\033[J', '').splitlines()


def test_print_report(run):
    out = io.StringIO()
    run(losses(1, 2, 3, 4, 5, 6), LogReport(), PrintReport(['epoch', 'loss', 'a_long_name_of_a_value', 'iteration'], out=out))
    assert lines(out)[0] == 'epoch       loss        a_long_name_of_a_value  iteration '
    assert lines(out)[1] == '1           2                                   3         ' and len(lines(out)) == 3
    assert out.getvalue().count('\033[J') == 3


def test_print_report_infers_columns(run):
    out = io.StringIO()
    run([{'b': 1.}]*3 + [{'b': 1., 'a': 2.}]*3 + [{}]*3, LogReport(), PrintReport(out=out))
    assert [l.split() for l in lines(out) if 'epoch' in l] == [['epoch', 'b', 'elapsed_time'], ['epoch', 'b', 'a', 'elapsed_time']] and len(lines(out)) == 5


def test_print_report_by_iterations(run):
    out = io.StringIO()
    run([{'b': 1.}]*3, LogReport(trigger=(1, 'iteration')), PrintReport(out=out))
    assert lines(out)[0].split()[0] == 'iteration' and 'epoch' not in lines(out)[0]


def test_print_report_with_a_log_of_its_own(run):
    out, values = io.StringIO(), losses(1, 2, 3, 4, 5, 6)
    p = PrintReport(['loss'], LogReport(), out)
    run(values, p)
    assert [l.strip() for l in lines(out)] == ['loss', '2', '5']
    again = PrintReport(['loss'], LogReport(), io.StringIO())
    again.load_state_dict(p.state_dict())
    assert again.get_log_report(None).log == p.get_log_report(None).log


def test_print_report_wrong_log():
    with pytest.raises(TypeError, match='must be a LogReport'): PrintReport(log_report=3).get_log_report(None)


def test_progress_bar(run):
    out = io.StringIO()
    run([{}]*4, ProgressBar((2, 'epoch'), update_interval=2, bar_length=10, out=out))
    drawn = out.getvalue().split('\033[4A')
    assert len(drawn) == 3 and '[###.......] 33.33%' in drawn[0] and '[######....] 66.67%' in drawn[0] and '2 iter, 0 epoch / 2 epochs' in drawn[0] and 'iters/sec' in drawn[0]


def test_progress_bar_takes_the_length_of_the_stop_trigger(run):
    out = io.StringIO()
    run([{}]*2, ProgressBar(update_interval=1, out=out), stop_trigger=(8, 'iteration'))
    assert '/ 8 iterations' in out.getvalue() and '25.00%' in out.getvalue()


def test_progress_bar_without_a_known_length(run):
    out = io.StringIO()
    run([{}]*2, ProgressBar(update_interval=1, out=out), stop_trigger=lambda m: False)
    assert 'unknown' in out.getvalue()


# ------------------------------------------------------------------ plots, statistics

def test_plot_report(run, tmp_path):
    seen = []
    make = lambda: PlotReport(['loss', 'other'], 'epoch', postprocess=lambda fig, ax, means: seen.append((fig, ax, means)))
    for stop in (2, 4):
        whole, b = split_run(run, make, losses(1, 2, 3, 4, 5, 6), stop)
        assert whole._data == b._data == {'loss': [(1., 2.), (2., 5.)], 'other': []}
    assert (tmp_path/'plot.png').read_bytes()[:4] == b'\x89PNG' and seen[0][2] == {'loss': 2.} and PlotReport.available()


def test_plot_report_without_anything(run, tmp_path):
    with pytest.warns(UserWarning, match='was reported yet'): run([{}]*3, PlotReport('loss', filename='p.pdf'))
    assert not (tmp_path/'p.pdf').exists()


@pytest.mark.parametrize('make', [lambda: PlotReport('loss'), lambda: VariableStatisticsPlot(nn.Linear(1, 1))])
def test_plots_without_matplotlib(run, make, monkeypatch, tmp_path):
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    with pytest.warns(UserWarning, match='matplotlib is not installed'):
        run(losses(1, 2, 3), make())
    assert not list(tmp_path.iterdir())


def test_variable_statistics_plot(run, tmp_path):
    net = nn.Linear(2, 2)
    net(torch.ones(1, 2)).sum().backward()
    plot = VariableStatisticsPlot(net, max_sample_size=2, filename='s.png')
    run([{}]*3, plot)
    assert (tmp_path/'s.png').exists() and len(plot._samples['data'].items) == 2
    flat = torch.cat([p.detach().flatten() for p in net.parameters()]).numpy()
    assert plot._samples['data'].items[-1][1:3] == pytest.approx([flat.mean(), flat.std()], rel=1e-5)
    assert plot._samples['data'].items[-1][3 + 4] == pytest.approx(np.percentile(flat, 50), rel=1e-5)


def test_variable_statistics_plot_refuses():
    with pytest.raises(ValueError, match='no variables'): VariableStatisticsPlot(nn.ReLU())
    with pytest.raises(ValueError, match='nothing to plot'): VariableStatisticsPlot(nn.Linear(1, 1), plot_mean=False, percentile_sigmas=())


def test_parameter_statistics(run):
    net = nn.Linear(3, 2)
    net.weight.data.zero_()
    m = run([{}]*3, ParameterStatistics(net, prefix='p'), model=net)
    assert m.observation['p/weight/data/zeros'] == 6 and {f'p/{n}/data/{s}' for n in ('weight', 'bias') for s in ('mean', 'std', 'min', 'max', 'zeros')} == set(m.observation)


def test_parameter_statistics_choices():
    net = nn.Linear(1, 1)
    net(torch.ones(1, 1)).sum().backward()
    ps = ParameterStatistics([net], None, report_params=False)
    ps.register_statistics('both', lambda x: torch.stack([x.min(), x.max()]))
    with Reporter().scope(out := {}): ps(None)
    assert set(out) == {f'{n}/grad/both/{i}' for n in ('weight', 'bias') for i in (0, 1)} and ParameterStatistics.report_key_template
    net.weight.data.fill_(math.nan)
    with Reporter().scope(out := {}): ParameterStatistics(net, {'m': torch.mean}, report_grads=False, skip_nan_params=True)(None)
    assert set(out) == {'bias/data/m'} and set(ParameterStatistics.default_statistics) == {'mean', 'std', 'min', 'max', 'zeros'}


# ------------------------------------------------------------------ slack, schedules

@pytest.fixture
def slack(monkeypatch):
    posts = []
    class Client:
        def __init__(self, token): self.token = token
        def chat_postMessage(self, **kw):
            if 'fail' in kw['text']: raise OSError('no network')
            posts.append((kw['text'], kw['thread_ts']))
            return {'ts': f'{len(posts)}'}
        def files_upload_v2(self, **kw): posts.append((kw['file'], kw['thread_ts']))
    monkeypatch.setitem(sys.modules, 'slack_sdk', types.SimpleNamespace(WebClient=Client))
    monkeypatch.setenv('SLACK_BOT_TOKEN', 'x')
    return posts


def test_slack(run, slack):
    run(losses(1, 2, 3), Slack('#c', '{manager.iteration}: {loss} {context} {default}', context='ctx', filenames=['a_{manager.epoch}'], upload_trigger=(1, 'epoch'), start_msg='begin'))
    assert slack == [('begin', None), ('3: 3 ctx Training goes on', '1'), ('a_1', '1'), ('Training finished', '1')]


def test_slack_none_is_silent_and_functions_are_called(run, slack):
    run(losses(1, 2, 3), Slack('#c', lambda manager, context: f'{manager.iteration}', start_msg=None, end_msg=None, thread=False))
    assert slack == [('3', None)]


def test_slack_errors(run, slack):
    with pytest.raises(ZeroDivisionError):
        run(losses(1), Slack('#c', start_msg=None, error_msg=lambda manager, exc, context: f'{exc}'), lambda m: 1/0)
    assert slack == [('division by zero', None)]


def test_slack_failures_only_warn(run, slack):
    with pytest.warns(UserWarning, match='no network'): run(losses(1), Slack('#c', start_msg='fail', end_msg=None))
    with pytest.warns(UserWarning, match='unknown'): run(losses(1, 2, 3), Slack('#c', '{unknown}', start_msg=None, end_msg=None))


def test_slack_needs_a_token(monkeypatch):
    monkeypatch.delenv('SLACK_BOT_TOKEN', raising=False)
    with pytest.raises(RuntimeError, match='SLACK_BOT_TOKEN'): Slack('#c')


def test_slack_without_the_package_warns(run, monkeypatch):
    monkeypatch.setitem(sys.modules, 'slack_sdk', None)
    with pytest.warns(UserWarning, match='nothing is posted: this needs slack_sdk'): s = Slack('#c', 'x', token='t')
    run(losses(1, 2, 3), s)


def test_slack_webhook(run, monkeypatch):
    sent = []
    def urlopen(request, timeout): sent.append((request.full_url, json.loads(request.data))); return io.BytesIO()
    monkeypatch.setattr(urllib.request, 'urlopen', urlopen)
    run(losses(1, 2, 3), SlackWebhook('http://x/hook', 'loss {loss}', start_msg=None))
    assert sent == [('http://x/hook', {'text': 'loss 3'}), ('http://x/hook', {'text': 'Training finished'})]


def test_lr_scheduler(run):
    opt = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.)
    opt.step()
    ext = LRScheduler(torch.optim.lr_scheduler.StepLR(opt, 1, .5))
    run([{}]*6, ext)
    assert opt.param_groups[0]['lr'] == .25
    again = LRScheduler(torch.optim.lr_scheduler.StepLR(opt, 1, .5))
    again.load_state_dict(ext.state_dict())
    assert again.scheduler.last_epoch == 2
    late = LRScheduler(torch.optim.lr_scheduler.StepLR(torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.), 1, .5), wait_for_first_optimizer_step=True)
    run([{}]*3, late)
    assert late.scheduler.last_epoch == 0


def test_lr_scheduler_by_value(run):
    opt = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.)
    run(losses(1, 2, 2, 2), LRScheduler(torch.optim.lr_scheduler.ReduceLROnPlateau(opt, factor=.1, patience=1), stepper=step_by_value('loss'), trigger=(1, 'iteration')))
    assert opt.param_groups[0]['lr'] == pytest.approx(.1)


def test_profile_report(run):
    from xmodaler_nb.ppe.profiler import get_time_summary, record
    get_time_summary().get_statistics(clear=True)
    m = ExtensionsManager({}, {}, 1, iters_per_epoch=2, out_dir=run([]).out, enable_profile=True,
                          extensions=[extensions.ProfileReport(['load', 'run_iteration'], ['load'], filename='t.jsonl')])
    get_time_summary().get_statistics(clear=True)
    while not m.stop_trigger:
        with m.run_iteration():
            with record('load'): pass
            with record('other'): pass
    entry = json.loads(file(m, 't.jsonl'))
    assert list(entry) == sorted(entry)
    assert {'load', 'load.std', 'run_iteration', 'epoch', 'iteration', 'elapsed_time'} <= set(entry) and 'other' not in entry and m.observation['time.load'] == entry['load']
    get_time_summary().get_statistics(clear=True)
