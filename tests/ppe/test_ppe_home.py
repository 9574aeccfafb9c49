"Extensions in a captioning training: by `trainer.extend` and by a config; stopped at every iteration and continued."
import json, logging, time
import pytest
import torch
from torch import nn
from xmodaler_nb.config import get_cfg
from xmodaler_nb.config.constants import Batch, kfg
from xmodaler_nb.engine import DefaultTrainer
from xmodaler_nb.engine.train_loop import TrainerBase
from xmodaler_nb.ppe.reporting import report
from xmodaler_nb.ppe.training.extensions import LogReport, MinValue, observe_value, snapshot
from xmodaler_nb.ppe.training.triggers import EarlyStoppingTrigger, ManualScheduleTrigger, MaxValueTrigger, MinValueTrigger, OnceTrigger, TimeTrigger
from xmodaler_nb.utils.testing import set_seed


class Data(torch.utils.data.Dataset):
    def __len__(self): return 12
    def __getitem__(self, i): return Batch({kfg.IDS: [int(i)], 'x': torch.full((1, 3), i/12.), 'y': torch.tensor([i % 3])})


def join(items): return Batch({kfg.IDS: [i for item in items for i in item[kfg.IDS]], **{k: torch.cat([i[k] for i in items]) for k in 'xy'}})


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 8), nn.Dropout(.3), nn.Linear(8, 3))
    def forward(self, batch, **kw):
        out = self.net(batch['x'])
        report({'spread': out.std().detach()}, self)                 # as a PPE model does
        return batch.merge({kfg.G_LOGITS: out, kfg.OUTPUT: [str(i) for i in out.argmax(1).tolist()]})


class Eval:
    def eval(self, results, epoch): return {'acc': sum(r['caption'] == str(r['image_id'] % 3) for r in results)/len(results)}


class Trainer(DefaultTrainer):
    @classmethod
    def build_model(cls, cfg):
        set_seed(1)
        return Model()
    @classmethod
    def build_optimizer(cls, cfg, model): return torch.optim.Adam(model.parameters(), .05)
    @classmethod
    def build_lr_scheduler(cls, cfg, optimizer, n): return torch.optim.lr_scheduler.StepLR(optimizer, n, .9)
    @classmethod
    def build_losses(cls, cfg): return [lambda out: {'xe': nn.functional.cross_entropy(out[kfg.G_LOGITS], out['y'])}]
    @classmethod
    def build_train_loader(cls, cfg): return torch.utils.data.DataLoader(Data(), 4, shuffle=True, collate_fn=join)
    @classmethod
    def build_val_loader(cls, cfg): return torch.utils.data.DataLoader(Data(), 5, collate_fn=join)
    @classmethod
    def build_test_loader(cls, cfg): return None
    def build_evaluators(self, cfg): return Eval(), None


def config(folder, epochs=10, entries=(), **engine):
    cfg = get_cfg()
    cfg.OUTPUT_DIR, cfg.MODEL.DEVICE, cfg.INFERENCE.VOCAB = str(folder), 'cpu', ''
    cfg.SOLVER.EPOCH, cfg.SOLVER.WRITE_PERIOD, cfg.ENGINE.PROGRESS, cfg.ENGINE.EXTENSIONS = epochs, 1, False, list(entries)
    for k, v in engine.items(): cfg.ENGINE[k] = v
    return cfg


YAML = [{'type': 'LogReport', 'args': {'filename': 'log.jsonl'}}, {'type': 'MinValue', 'args': {'key': 'total_loss'}},
        {'type': 'StopTraining', 'trigger': {'type': 'EarlyStoppingTrigger', 'args': {'monitor': 'val/acc', 'patience': 2, 'mode': 'max'}}},
        {'type': 'snapshot', 'args': {'filename': 'best', }, 'trigger': {'type': 'MinValueTrigger', 'args': {'key': 'total_loss'}}}]


def train(cfg, end=None):
    t = Trainer(cfg)
    t.resume_or_load(resume=True)
    t.train(max_iter=end)
    return t


def log_of(t): return [{k: v for k, v in e.items() if 'time' not in k} for e in t._hooks[t.hook_names().index('ExtensionHook')].manager.get_extension('LogReport').log]


def test_a_training_without_extensions_has_no_host(tmp_path): assert 'ExtensionHook' not in Trainer(config(tmp_path)).hook_names()


def test_where_the_host_stands(tmp_path):
    names = Trainer(config(tmp_path, entries=['LogReport'])).hook_names()
    assert names[0] == 'Reports' and names.index('EvalHook') < names.index('ExtensionHook') < names.index('PeriodicWriter')
    t = Trainer(config(tmp_path))
    t.extend(LogReport())
    t.extend(MinValue('total_loss'))
    assert t.hook_names() == names                              # one host, at the same place


def test_what_extensions_see_is_what_writers_see(tmp_path):
    seen = []
    t = Trainer(config(tmp_path, 2))
    t.extend(observe_value('twice', lambda m: 2*m.iteration))
    t.extend(lambda m: seen.append((m.iteration, m.epoch, dict(m.observation))), name='look')
    t.train()
    assert [s[:2] for s in seen] == [(i, i//3) for i in range(1, 7)]
    lines = [json.loads(l) for l in (tmp_path/'events.jsonl').read_text().splitlines()]
    for (i, _, observation), line in zip(seen, lines):
        assert line['iteration'] == i - 1
        for k in ('total_loss', 'lr'): assert k in observation
        assert observation['lr'] == pytest.approx(line['lr']) and 'main/spread' in observation and 'main/spread' in line
        assert ('val/acc' in observation) == (i % 3 == 0) == ('twice' in line)
        if i % 3 == 0: assert line['twice'] == 2*i and observation['val/acc'] == line['val/acc']


def test_by_config(tmp_path):
    t = train(config(tmp_path/'run', 10, YAML))
    assert t.max_iter < 30 and t.max_iter % 3 == 0                          # ended early, at an epoch's end
    lines = [json.loads(l) for l in (tmp_path/'run'/'log.jsonl').read_text().splitlines()]
    assert len(lines) == t.max_iter//3 and [e['iteration'] for e in lines] == [3*(i + 1) for i in range(len(lines))]
    state = torch.load(tmp_path/'run'/'best', weights_only=True)
    assert set(state['models']['main']) == set(t.model.state_dict())
    again = train(config(tmp_path/'run', 10, YAML))                          # it has ended: no further step
    assert (again.iter, log_of(again)) == (t.iter, log_of(t))


def test_stopped_at_every_iteration(tmp_path):
    whole = train(config(tmp_path/'whole', 10, YAML))
    for stop in range(1, whole.max_iter):
        folder = tmp_path/f's{stop}'
        train(config(folder, 10, YAML, CHECKPOINT_ITERS=1), stop)
        rest = train(config(folder, 10, YAML, CHECKPOINT_ITERS=1))
        assert rest.max_iter == whole.max_iter and log_of(rest) == log_of(whole), stop
        for a, b in zip(whole.model.state_dict().values(), rest.model.state_dict().values()): assert torch.equal(a, b), stop


@pytest.mark.parametrize('entry, message', [('Log', "EXTENSIONS\\[0\\]: 'Log' is not known; known are BestValue"), ({'type': 'LogReport', 'when': 1}, 'when is not known'),
    ('MinValue', 'MinValue could not be made'), ({'type': 'LogReport', 'trigger': {'type': 'os.system', 'args': {}}}, "'os.system' is not known")])
def test_mistakes_in_a_config_are_said_at_the_start(tmp_path, entry, message):
    with pytest.raises(ValueError, match=message): Trainer(config(tmp_path, entries=[entry]))


def test_errors_reach_the_extensions(tmp_path):
    calls = []
    class Notice(MinValue):
        def on_error(self, manager, exc, tb): calls.append(repr(exc))
        def finalize(self, manager): calls.append('end')
    class Fails(TrainerBase):
        iters_per_epoch = 2
        def run_step(self):
            self.storage.put_scalar('x', 1.)
            if self.iter == 2: raise KeyError('lost')
    t = Fails()
    t.extend(Notice('x'))
    logging.disable(logging.CRITICAL)
    with pytest.raises(KeyError): t.train(0, 5)
    logging.disable(logging.NOTSET)
    assert calls == ["KeyError('lost')"]
    report({'x': 1})                                            # no scope was left open


def test_snapshots_do_not_autoload_here(tmp_path):
    for i in range(2):
        t = Trainer(config(tmp_path/'run', 1))
        t.extend(snapshot(autoload=True))
        if i == 0: t.train()
    logging.disable(logging.CRITICAL)
    with pytest.raises(RuntimeError, match='--resume'): t.train()
    logging.disable(logging.NOTSET)


def test_a_trigger_of_the_best_value_on_a_validation_score(tmp_path):
    best = []
    t = Trainer(config(tmp_path, 5))
    t.extend(lambda m: best.append((m.epoch, m.observation['val/acc'])), name='best', trigger=MinValueTrigger('val/acc'))
    t.train()
    assert best and all(b < a for (_, a), (_, b) in zip(best, best[1:]))


def test_triggers_with_a_state_fire_as_if_nothing_had_happened(tmp_path, monkeypatch):
    "Thirty iterations; stopped, and continued a night later. A checkpoint is older than the extensions' calls of its iteration: these are made again."
    now = [1000.]
    monkeypatch.setattr(time, 'time', lambda: now[0])
    def tick(m): now[0] += 1
    def go(name, end=None):
        fired = {}
        t = Trainer(config(tmp_path/name, 10, CHECKPOINT_ITERS=1))
        t.extend(tick, name='tick', priority=400)
        for k, trigger in dict(once=OnceTrigger(), time=TimeTrigger(6.5), best=MinValueTrigger('total_loss'), high=MaxValueTrigger('total_loss', (2, 'iteration')), points=ManualScheduleTrigger([2, 17], 'iteration'),
                               early=EarlyStoppingTrigger((2, 'iteration'), monitor='total_loss', patience=2, max_trigger=(99, 'epoch'))).items():
            t.extend(lambda m, k=k: fired.setdefault(k, []).append(m.iteration), name=k, trigger=trigger)
        t.resume_or_load(resume=True)
        t.train(max_iter=end)
        return fired
    whole = go('whole')
    assert set(whole) == {'once', 'time', 'best', 'high', 'points', 'early'} and whole['once'] == [1] and len(whole['time']) == 4
    for stop in range(1, 30, 7):
        first = go(f's{stop}', stop)
        now[0] += 10_000
        rest = go(f's{stop}')
        assert {k: [i for i in first.get(k, []) if i < stop] + rest.get(k, []) for k in whole} == whole, stop
