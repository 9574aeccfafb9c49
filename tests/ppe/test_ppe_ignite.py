"PPE's manager and extensions in a loop that belongs to PyTorch-Ignite."
import json
import pytest
import torch
from torch import nn
from xmodaler_nb.ppe.reporting import report
from xmodaler_nb.ppe.training import IgniteExtensionsManager, extensions, triggers
from xmodaler_nb.ppe.training.extension import Extension

ignite = pytest.importorskip('ignite', reason='the extra `ignite` is not installed')
from ignite.engine import Engine, Events                                # noqa: E402
from ignite.metrics import Average                                      # noqa: E402

DATA = [torch.full((4, 1), float(i)) for i in range(3)]


def setting(folder, exts=(), epochs=4, fail_at=None, **kw):
    "An engine that trains a line, and its manager."
    torch.manual_seed(0)
    net = nn.Linear(1, 1)
    opt = torch.optim.SGD(net.parameters(), .05)
    def step(engine, x):
        if engine.state.iteration == fail_at: raise ZeroDivisionError('in the step')
        opt.zero_grad()
        loss = (net(x) - 2*x).pow(2).mean()
        loss.backward()
        opt.step()
        report({'loss': loss}, net)
        return loss.item()
    engine = Engine(step)
    return engine, IgniteExtensionsManager(engine, net, opt, epochs, out_dir=str(folder), extensions=list(exts), **kw)


class Notice(Extension):
    def __init__(self): self.seen = []
    def initialize(self, manager): self.seen.append('begin')
    def __call__(self, manager): self.seen.append(manager.iteration)
    def on_error(self, manager, exc, tb): self.seen.append(repr(exc))
    def finalize(self, manager): self.seen.append('end')


def test_extensions_see_the_engines_iterations(tmp_path):
    notice, order = Notice(), []
    engine, m = setting(tmp_path, [extensions.LogReport(filename='log.jsonl', append=True), notice])
    m.extend(lambda manager: order.append('extension'), name='order', trigger=(1, 'epoch'))
    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda e: order.append('epoch'))
    engine.add_event_handler(Events.ITERATION_COMPLETED(every=3), lambda e: order.append('user'))
    engine.run(DATA, max_epochs=4)
    assert notice.seen == ['begin', *range(1, 13), 'end'] and order == ['user', 'extension', 'epoch']*4
    log = [json.loads(l) for l in (tmp_path/'log.jsonl').read_text().splitlines()]
    assert [(e['epoch'], e['iteration']) for e in log] == [(n, 3*n) for n in (1, 2, 3, 4)] and log[-1]['main/loss'] < log[0]['main/loss']
    assert (m.iteration, m.epoch, m.epoch_detail, m.is_before_training, m.out) == (12, 4, 4., False, str(tmp_path))
    assert list(m.models) == list(m.raw_models) == list(m.optimizers) == ['main'] and m.elapsed_time > 0 and m.stop_trigger
    assert m.get_extension('LogReport').log == [] and len(m.storage.history('main/loss').values()) == 12
    with pytest.warns(DeprecationWarning): assert m.updater is m


def test_stopped_and_continued(tmp_path):
    first, _ = setting(tmp_path/'run', [extensions.snapshot()], 2)
    first.run(DATA, max_epochs=2)
    notice = Notice()
    second, m = setting(tmp_path/'run', [extensions.snapshot(autoload=True), notice])
    second.run(DATA, max_epochs=4)
    assert notice.seen == ['begin', *range(7, 13), 'end'] and second.state.epoch == 4
    assert m.models['main'].weight.item() == pytest.approx(trained(tmp_path), abs=0)


def trained(folder):
    "The weight of an uninterrupted training."
    engine, m = setting(folder/'again')
    engine.run(DATA, max_epochs=4)
    return m.models['main'].weight.item()


def test_triggers_and_an_evaluation_by_ignite(tmp_path):
    judge = Engine(lambda engine, x: x.mean())
    Average().attach(judge, 'height')
    best = []
    engine, m = setting(tmp_path, [extensions.IgniteEvaluator(judge, DATA, nn.Linear(1, 1))], epochs=3)
    m.extend(lambda manager: best.append(f'epoch {manager.epoch}'), name='best', trigger=triggers.MinValueTrigger('main/loss'))
    m.extend(lambda manager: best.append(manager.observation['val/height']), name='seen', trigger=triggers.ManualScheduleTrigger([2], 'epoch'))
    engine.run(DATA, max_epochs=3)
    assert m.needs_model_state(3) and m.needs_state_this_iteration() and not m.needs_model_state(2)
    assert best == ['epoch 1', 'epoch 2', 1., 'epoch 3']                # the loss fell; the mean of 0, 1 and 2 is 1


def test_early_stopping_ends_the_engine(tmp_path):
    engine, m = setting(tmp_path, epochs=50)
    m._stop_trigger = m._own_stop_trigger = triggers.EarlyStoppingTrigger(monitor='constant', patience=2, max_trigger=(50, 'epoch'))
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda e: report({'constant': 1.}))
    engine.run(DATA, max_epochs=50)
    assert m.epoch == 3 and engine.state.epoch == 3


def test_an_error_reaches_the_extensions(tmp_path):
    notice = Notice()
    engine, m = setting(tmp_path, [notice], fail_at=5)
    with pytest.raises(ZeroDivisionError): engine.run(DATA, max_epochs=4)
    assert notice.seen == ['begin', 1, 2, 3, 4, "ZeroDivisionError('in the step')"]
    report({'x': 1})                                                    # no scope was left open


def test_only_an_engine_is_taken(tmp_path):
    with pytest.raises(TypeError, match='must be an Ignite Engine'): IgniteExtensionsManager(object(), nn.Linear(1, 1), {}, 1, out_dir=str(tmp_path))
