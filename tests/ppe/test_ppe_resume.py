"A run of thirty iterations, stopped at every one of them and continued from its snapshot, is the run that was never stopped."
import json
import pytest
import torch
from torch import nn
from xmodaler_nb.ppe.reporting import report
from xmodaler_nb.ppe.training import manager as manager_module
from xmodaler_nb.ppe.training.extension import Extension
from xmodaler_nb.ppe.training.extensions import LogReport, LRScheduler, MicroAverage, MinValue, PlotReport, observe_lr, snapshot
from xmodaler_nb.ppe.training.manager import ExtensionsManager
from xmodaler_nb.ppe.training.triggers import EarlyStoppingTrigger, ManualScheduleTrigger, MaxValueTrigger, MinValueTrigger, OnceTrigger, TimeTrigger

EPOCH, LENGTH = 5, 30


class Fired(Extension):
    "Writes down when it was called; its list is part of the snapshot."
    def __init__(self): self.at = []
    def __call__(self, manager): self.at.append(manager.iteration)
    def state_dict(self): return {'at': list(self.at)}
    def load_state_dict(self, state): self.at = list(state['at'])


class Nowhere:
    "A writer that writes nothing."
    def __call__(self, *args, **kwargs): return None
    def finalize(self): return None


@pytest.fixture
def clock(monkeypatch):
    "A clock that the training advances."
    now = [1000.]
    monkeypatch.setattr(manager_module.time, 'time', lambda: now[0])
    return now


def train(folder, end, clock, stop=None):
    "Train until an iteration; the weights and what the extensions know."
    torch.manual_seed(0)
    model = nn.Linear(2, 1)
    opt = torch.optim.Adam(model.parameters(), .3)
    triggers = dict(once=OnceTrigger(), again=OnceTrigger(call_on_resume=True), best=MinValueTrigger('loss'), high=MaxValueTrigger('loss', (3, 'iteration')), time=TimeTrigger(6.5),
                    points=ManualScheduleTrigger([.5, 2, 4.2], 'epoch'), early=EarlyStoppingTrigger((2, 'iteration'), monitor='loss', patience=2, max_trigger=(99, 'epoch')))
    fired = {k: Fired() for k in triggers}
    log = LogReport(trigger=(4, 'iteration'), writer=Nowhere())
    m = ExtensionsManager(model, opt, 99, iters_per_epoch=EPOCH, out_dir=str(folder), stop_trigger=stop or (LENGTH, 'iteration'))
    for k, t in triggers.items(): m.extend(fired[k], name=k, trigger=t)
    best = MinValue('loss')
    for e in (log, best, observe_lr(opt), LRScheduler(torch.optim.lr_scheduler.StepLR(opt, 2, .5)), MicroAverage('loss', 'n', 'micro'), PlotReport('nothing', trigger=(999, 'epoch'))): m.extend(e)
    m.extend(snapshot(autoload=True), trigger=lambda m: m.iteration == end)             # saves where it is stopped
    while not m.stop_trigger and m.iteration < end:
        clock[0] += 1
        i = m.iteration
        with m.run_iteration(step_optimizers=['main']):
            loss = (model(torch.tensor([[1., (i*7 % 5)/5]])) - (i*3 % 4)/4).pow(2).mean()
            report({'loss': loss, 'n': 1 + i % 3})
            loss.backward()
    weights = {k: v.tolist() for k, v in model.state_dict().items()}
    return dict(weights=weights, log=log.log, fired={k: f.at for k, f in fired.items() if k != 'again'}, again=fired['again'].at, best=(best.best_value, best.best_iteration) if m.iteration >= EPOCH else None,
                lr=opt.param_groups[0]['lr'], end=m.iteration)


def compare(tmp_path, clock, stop):
    whole = train(tmp_path/'whole', 99, clock, stop and stop())
    for at in range(1, whole['end'] + 1):
        folder = tmp_path/f'stopped{at}'
        train(folder, at, clock, stop and stop())
        clock[0] += 10_000                                    # a night later
        rest = train(folder, 99, clock, stop and stop())
        again = rest.pop('again')
        assert again == ([1] if at == whole['end'] else [1, at + 1]), at           # once more in the second process
        assert json.dumps(rest, sort_keys=True) == json.dumps({k: v for k, v in whole.items() if k != 'again'}, sort_keys=True), at
    return whole


def test_thirty_iterations(tmp_path, clock):
    whole = compare(tmp_path, clock, None)
    assert whole['end'] == LENGTH and all(whole['fired'].values()) and whole['fired']['once'] == [1] and len(whole['log']) == 7


def test_until_an_early_stop(tmp_path, clock):
    whole = compare(tmp_path, clock, lambda: EarlyStoppingTrigger(monitor='loss', patience=1))
    assert EPOCH < whole['end'] < LENGTH


def test_a_finished_training_is_made_longer(tmp_path):
    "The state of a training that ended, loaded under a longer stop trigger, goes on; under the same one it is over."
    def manager(epochs): return ExtensionsManager(nn.Linear(2, 1), [], epochs, iters_per_epoch=2, out_dir=tmp_path)
    short = manager(2)
    while not short.stop_trigger:
        with short.run_iteration(): pass
    for epochs, end in ((2, 4), (5, 10)):
        again = manager(epochs)
        again.load_state_dict(short.state_dict())
        while not again.stop_trigger:
            with again.run_iteration(): pass
        assert again.iteration == end
