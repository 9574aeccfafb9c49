"What belongs around one iteration is closed again, whatever fails in it; and the bookkeeping stays short."
import sys
import pytest
import torch
from torch import nn
from xmodaler_nb.ppe.reporting import Reporter, get_current_reporter, report
from xmodaler_nb.ppe.training.extension import Extension
from xmodaler_nb.ppe.training.extensions import LogReport, PrintReport
from xmodaler_nb.ppe.training.manager import ExtensionsManager
from xmodaler_nb.ppe.training.trigger import IntervalTrigger, NeverTrigger
from xmodaler_nb.ppe.training.triggers import EarlyStoppingTrigger, MinValueTrigger
from xmodaler_nb.utils import events


class Notice(Extension):
    def __init__(self): self.seen = []
    def __call__(self, manager):
        if manager.iteration == 3: raise KeyError('in an extension')
    def on_error(self, manager, exc, tb): self.seen.append((manager.iteration, repr(exc), tb is not None, len(events._STACK)))


class Bad:
    "An optimizer that fails at one of its calls."
    def __init__(self, where): self.where = where
    def zero_grad(self): self.go('zero_grad')
    def step(self): self.go('step')
    def go(self, name):
        if name == self.where: raise ValueError(name)


@pytest.mark.parametrize('profile', [False, True])
@pytest.mark.parametrize('where', ['zero_grad', 'body', 'step', 'extension', 'interrupt'])
def test_everything_is_closed_after_an_error(tmp_path, where, profile):
    notice, outer = Notice(), Reporter()
    m = ExtensionsManager(nn.Linear(1, 1), Bad(where), 9, iters_per_epoch=9, out_dir=tmp_path, extensions=[notice], enable_profile=profile)
    if where == 'extension': m._set_iteration(2)
    before = m.reporter.observation
    with outer, pytest.raises({'extension': KeyError, 'interrupt': KeyboardInterrupt}.get(where, ValueError)):
        with m.run_iteration(step_optimizers=['main']):
            assert where != 'zero_grad' and get_current_reporter() is m.reporter and events.get_event_storage() is m._storage
            if where == 'body': raise ValueError('body')
            if where == 'interrupt': raise KeyboardInterrupt
    assert not events._STACK and m.reporter.observation is before
    with pytest.raises(IndexError): get_current_reporter()
    assert len(notice.seen) == (where != 'interrupt') and all(t and n == 0 for *_, t, n in notice.seen)     # nobody is told of Ctrl-C


def test_a_finished_training_is_refused_without_traces(tmp_path):
    m = ExtensionsManager(nn.Linear(1, 1), {}, 1, iters_per_epoch=1, out_dir=tmp_path)
    with m.run_iteration(): pass
    with pytest.raises(RuntimeError, match='had ended'):
        with m.run_iteration(): pass
    assert not events._STACK


def test_the_interval_and_what_it_may_fire_agree(tmp_path):
    class At:
        def __init__(self, n, length): self.iteration, self.iters_per_epoch = n, length
    triggers = [IntervalTrigger(p, u) for p in (1, 3, .5, 1.3, 1/3) for u in ('epoch', 'iteration')] + [NeverTrigger()]
    for t in triggers:
        for length in (1, 3, 10):
            assert [t(At(n, length)) for n in range(70)] == [t.may_fire(n, length) for n in range(70)], t
    assert not any(NeverTrigger().may_fire(n, 3) for n in range(99))


def test_the_bookkeeping_of_an_iteration_is_few_calls(tmp_path):
    "Counted, not timed, so a busy machine cannot fail it: 158 calls of Python functions were 69 µs, 20 are 25 µs."
    stop = EarlyStoppingTrigger(monitor='loss', patience=10**9, max_trigger=(10**9, 'epoch'))
    m = ExtensionsManager(nn.Linear(1, 1), {}, 10**9, iters_per_epoch=10**6, out_dir=tmp_path, stop_trigger=stop, extensions=[LogReport(), PrintReport()])
    m.extend(lambda manager: None, name='best', trigger=MinValueTrigger('loss'))
    calls = []
    def count(frame, event, arg): calls.append(frame.f_code.co_name) if event == 'call' else None
    with m.run_iteration(): report({'loss': 1.})
    sys.setprofile(count)
    try:
        with m.run_iteration(): report({'loss': 1.})
    finally: sys.setprofile(None)
    assert len(calls) <= 24, calls


def test_what_waits_on_a_device_or_is_called_later_is_still_counted(tmp_path):
    m = ExtensionsManager(nn.Linear(1, 1), {}, 1, iters_per_epoch=2, out_dir=tmp_path, extensions=[LogReport()])
    for v in ({'a': 1, 'b': torch.tensor(2.), 'c': lambda: 3., 'd': (4., 2)}, {'a': 2., 'b': 4., 'c': 5, 'd': (7., 1), 'e': 'text'}):
        with m.run_iteration(): report(v)
    entry, = m.get_extension('LogReport').log
    assert [entry[k] for k in 'abcd'] == [1.5, 3., 4., 5.] and 'e' not in entry
    assert {k: sorted(v for v, _ in m.storage.history(k).values()) for k in 'abc'} == dict(a=[1, 2], b=[2, 4], c=[3, 5])
