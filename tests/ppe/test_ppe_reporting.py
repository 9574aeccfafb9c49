"Reporters, summaries and the toolkit's logger."
import importlib, logging, threading
import numpy as np
import pytest
import torch
from torch import nn
from xmodaler_nb.ppe import reporting
from xmodaler_nb.ppe.reporting import DictSummary, Reporter, Summary, get_current_reporter, observed, publish, report, report_scope
from xmodaler_nb.utils.events import EventStorage


def test_report_without_a_reporter_is_silent():
    report({'x': 1})
    with pytest.raises(IndexError): get_current_reporter()


def test_scope_requires_a_reporter():
    with pytest.raises(IndexError):
        with report_scope({}): pass


def test_scopes_nest_and_restore():
    r, a, b = Reporter(), {}, {}
    old = r.observation
    with r.scope(a):
        report({'x': 1})
        with r.scope(b): report({'x': 2})
        report({'x': 3})                       # a later value replaces an earlier one
    assert (a, b) == ({'x': 3}, {'x': 2}) and r.observation is old


def test_scope_restores_after_an_error():
    r, a = Reporter(), {}
    with pytest.raises(KeyError):
        with r.scope(a): raise KeyError('x')
    assert r.observation == {} and r.observation is not a
    with pytest.raises(IndexError): get_current_reporter()


def test_report_scope_exchanges_the_dictionary_only():
    r, a, b = Reporter(), {}, {}
    with r.scope(a):
        with report_scope(b):
            assert get_current_reporter() is r
            report({'x': 1})
        report({'y': 2})
    assert (a, b) == ({'y': 2}, {'x': 1})


def test_reporter_as_context():
    with Reporter() as r:
        report({'x': 1})
        assert get_current_reporter() is r
    assert r.observation == {'x': 1}


def test_observers_by_identity():
    r, (a, b), seen = Reporter(), (nn.Linear(1, 1), nn.Linear(1, 1)), {}
    b.load_state_dict(a.state_dict())
    r.add_observer('a', a)
    r.add_observers('pre-', [('b', b)])        # plain concatenation
    with r.scope(seen):
        report({'x': 1}, a)
        report({'x': 2}, b)
    assert seen == {'a/x': 1, 'pre-b/x': 2}
    with pytest.raises(KeyError, match='no name; named observers: a, pre-b'): r.report({'x': 1}, nn.Linear(1, 1))


def test_tensors_are_detached():
    r = Reporter()
    r.report({'x': torch.ones((), requires_grad=True)*2})
    assert not r.observation['x'].requires_grad


def test_each_thread_has_its_own_stack():
    seen = {}
    def work(): report({'x': 1})
    with Reporter().scope(seen):
        t = threading.Thread(target=work)
        t.start()
        t.join()
    assert seen == {}


@pytest.mark.parametrize('kind', [float, np.float32, np.float64, lambda v: np.array(v), lambda v: torch.tensor(v), lambda v: (lambda: v)])
def test_summary(kind):
    s, values = Summary(), [1., 2.5, -3.]
    for v in values: s.add(kind(v))
    mean, std = s.make_statistics()
    assert s.compute_mean() == pytest.approx(np.mean(values)) and mean == pytest.approx(np.mean(values)) and std == pytest.approx(np.std(values))


def test_summary_weights_sum_and_state():
    a, b, c = Summary(), Summary(), Summary()
    a.add(1., 2)
    b.add(4.)
    assert (a + b).compute_mean() == pytest.approx(2.)
    c.load_state_dict(a.state_dict())
    assert set(a.state_dict()) == {'_x', '_x2', '_n'} and all(type(v) is float for v in a.state_dict().values())
    c.add(4.)
    assert c.compute_mean() == pytest.approx(2.)


def test_summary_calls_functions_once_and_late():
    calls, s = [], Summary()
    s.add(lambda: calls.append(1) or 3.)
    assert not calls
    assert s.compute_mean() == s.compute_mean() == 3. and len(calls) == 1


def test_constant_values_have_no_deviation():
    s = Summary()
    for _ in range(7): s.add(.1)
    assert 0 <= s.make_statistics()[1] < 1e-6


def test_dict_summary():
    d = DictSummary()
    d.add({'a': 1, 'b': (2., 3), 'text': 'x', 'vector': np.ones(2), 'list': [1]})
    d.add({'a': 3, 'b': (torch.tensor(6.), np.float32(1))})
    assert d.compute_mean() == {'a': 2., 'b': 3.}
    assert set(d.make_statistics()) == {'a', 'b', 'a.std', 'b.std'}
    again = DictSummary()
    again.load_state_dict(d.state_dict())
    assert (again + d).compute_mean() == d.compute_mean()


def test_dict_summary_refuses_a_weight_that_is_no_number():
    with pytest.raises(ValueError, match="weight of 'a'"): DictSummary().add({'a': (1., np.ones(2))})


def test_publish_leaves_what_is_there_and_what_costs_time():
    s = EventStorage()
    s.put_scalar('lr', .1, smoothing_hint=False)
    left = publish(s, {'lr': 5., 'loss': torch.tensor(2.), 'late': lambda: 1., 'text': 'x'})
    assert observed(s) == {'lr': .1, 'loss': 2.} and list(left) == ['late']
    s.step()
    assert observed(s) == {}
    publish(s, {'lr': .2}, wait=True)                    # keeps the smoothing hint of the name
    assert s.latest()['lr'] == (.2, 1)


def test_names_of_the_module(): assert {'report', 'report_scope', 'Reporter', 'Summary', 'DictSummary', 'get_current_reporter'} <= set(dir(reporting))


@pytest.mark.parametrize('level, said', [('ERROR', False), ('INFO', True), ('nonsense', True)])
def test_log_level(level, said, tmp_path, monkeypatch):
    from xmodaler_nb.ppe import logging as module
    with monkeypatch.context() as m:
        m.setenv('PPE_LOG_LEVEL', level)
        m.setenv('PPE_LOG_FILENAME', str(tmp_path/'log'))
        importlib.reload(module)                          # the environment is read at import
        module.get_logger('mine').info('hello')
    importlib.reload(module)
    text = (tmp_path/'log').read_text()
    assert ('[ppe.mine]' in text and '(INFO) hello' in text) == said
    assert ('nonsense' in text) == (level == 'nonsense')


def test_get_logger_is_a_child():
    from xmodaler_nb.ppe.logging import get_logger
    assert get_logger('x').parent is logging.getLogger('ppe')
