"When triggers fire, also after a stop in between."
import math, warnings
from types import SimpleNamespace
import pytest
from xmodaler_nb.ppe.training.trigger import Trigger, get_trigger
from xmodaler_nb.ppe.training.triggers import (BestValueTrigger, EarlyStoppingTrigger, IntervalTrigger, ManualScheduleTrigger,
    MaxValueTrigger, MinValueTrigger, OnceTrigger, TimeTrigger)


def manager(i, value=None, epoch=5, key='x'):
    return SimpleNamespace(iteration=i, iters_per_epoch=epoch, elapsed_time=float(i), observation={} if value is None else {key: value})


def fired(trigger, values, first=1, **kw): return [i for i, v in enumerate(values, first) if trigger(manager(i, v, **kw))]


@pytest.mark.parametrize('period, unit, expected', [(1, 'epoch', [5, 10, 15, 20]), (2, 'epoch', [10, 20]), (3, 'iteration', [3, 6, 9, 12, 15, 18]),
    (.5, 'epoch', [3, 5, 8, 10, 13, 15, 18, 20]), (2.5, 'iteration', [3, 5, 8, 10, 13, 15, 18, 20])])
def test_interval(period, unit, expected):
    t = IntervalTrigger(period, unit)
    assert fired(t, [None]*20) == expected == [i for i in range(21) if t.may_fire(i, 5)]
    assert t.get_training_length() == (period, unit) and t.state_dict() == {}


def test_interval_never_fires_at_zero(): assert not IntervalTrigger(1, 'iteration')(manager(0))
def test_interval_unit():
    with pytest.raises(ValueError, match="'step'"): IntervalTrigger(1, 'step')


@pytest.mark.parametrize('points, unit, expected', [([2, 7], 'iteration', [2, 7]), (3, 'iteration', [3]), ([1, 2.5], 'epoch', [5, 12]), (1, 'epoch', [5])])
def test_manual_schedule(points, unit, expected):
    t = ManualScheduleTrigger(points, unit)
    assert fired(t, [None]*20) == expected == [i for i in range(21) if t.may_fire(i, 5)]
def test_manual_schedule_unit():
    with pytest.raises(ValueError): ManualScheduleTrigger([1], 'step')


def test_once():
    t = OnceTrigger()
    assert not t.finished and t.may_fire(1, 5) and t.may_fire(1, 5)     # looking ahead changes nothing
    assert fired(t, [None]*3) == [1] and t.finished and not t.may_fire(9, 5)


@pytest.mark.parametrize('call_on_resume, expected', [(False, []), (True, [4])])
def test_once_after_a_resume(call_on_resume, expected):
    t, new = OnceTrigger(call_on_resume), OnceTrigger(call_on_resume)
    fired(t, [None]*3)
    new.load_state_dict(t.state_dict())
    assert new.finished == (not call_on_resume) and fired(new, [None]*3, first=4) == expected


def test_time_marks_do_not_drift():
    t = TimeTrigger(2.5)
    assert [s for s in (1., 2.6, 2.7, 7.9, 8., 8.1, 12.6) if t(SimpleNamespace(elapsed_time=s))] == [2.6, 7.9, 8., 12.6]
    new = TimeTrigger(2.5)
    new.load_state_dict(t.state_dict())
    assert [s for s in (12.4, 12.7, 14., 15.1) if new(SimpleNamespace(elapsed_time=s))] == [12.7, 15.1]
    assert t.may_fire(1, 1)


VALUES = [3, 3, 3, 3, 3, 4, 4, 4, 4, 4, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 1, 5, 1, 1, 1]      # means 3, 4, 2, 2, 1.8

@pytest.mark.parametrize('make, expected', [(lambda: MinValueTrigger('x'), [5, 15, 25]), (lambda: MaxValueTrigger('x'), [5, 10]),
    (lambda: BestValueTrigger('x', lambda best, new: new <= best), [5, 15, 20, 25])])
def test_best_value(make, expected):
    assert fired(make(), VALUES) == expected
    for stop in range(1, 25):
        a, b = make(), make()
        before = fired(a, VALUES[:stop])
        b.load_state_dict(a.state_dict())
        assert before + fired(b, VALUES[stop:], first=stop + 1) == expected
    assert make().may_fire(5, 5) and not make().may_fire(6, 5)


def test_best_value_unknown_key():
    with pytest.raises(KeyError, match="'y' was not reported"): fired(MinValueTrigger('y'), VALUES)


@pytest.mark.parametrize('mode, key, values, expected', [('auto', 'x', [5, 4, 4, 5], 20), ('auto', 'val/accuracy', [1, 2, 2, 1], 20), ('max', 'x', [1, 2, 2, 1], 20),
    ('min', 'x', [3, 1, 2, .5], None)])
def test_early_stopping(mode, key, values, expected):
    stream = [v for v in values for _ in range(5)]
    def make(): return EarlyStoppingTrigger(monitor=key, patience=2, mode=mode)
    whole = fired(make(), stream, key=key)
    assert whole == ([] if expected is None else [expected])
    for stop in range(1, 20):
        a, b = make(), make()
        before = fired(a, stream[:stop], key=key)
        b.load_state_dict(a.state_dict())
        assert before + fired(b, stream[stop:], first=stop + 1, key=key) == whole


def test_early_stopping_ends_in_any_case():
    t = EarlyStoppingTrigger(monitor='x', max_trigger=(7, 'iteration'))
    assert fired(t, [1.]*8)[0] == 7 and t.get_training_length() == (7, 'iteration')
    assert t.may_fire(7, 5) and t.may_fire(5, 5) and not t.may_fire(6, 5)


def test_early_stopping_missing_key_warns():
    with pytest.warns(UserWarning, match="'main/loss'"): assert fired(EarlyStoppingTrigger(patience=1), [1.]*10) == []


def test_early_stopping_verbose(capsys):
    fired(EarlyStoppingTrigger(monitor='x', verbose=True), [1.]*5)
    assert 'x: 1, best 1' in capsys.readouterr().out


def test_get_trigger():
    t = IntervalTrigger(1, 'epoch')
    assert get_trigger(t) is t and isinstance(get_trigger((2, 'iteration')), IntervalTrigger)
    assert not get_trigger(None)(manager(5)) and not get_trigger(None).may_fire(5, 5)
    assert get_trigger(lambda m: m.iteration == 3)(manager(3))
    with pytest.raises(TypeError): get_trigger('epoch')


def test_a_trigger_of_ones_own():
    class Odd(Trigger):
        def __call__(self, manager): return manager.iteration % 2 == 1
    t = Odd()
    assert fired(t, [None]*4) == [1, 3] and t.may_fire(2, 5) and not t.finished and t.state_dict() == {}
    t.load_state_dict({})
    with pytest.raises(TypeError, match='must define __call__'): Trigger()(None)
    with pytest.raises(TypeError, match='how long'): t.get_training_length()
