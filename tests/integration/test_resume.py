"An interrupted run, continued, is the run: losses, rates, metrics and weights to the last bit."
import os
import shutil
import signal
import sys
from pathlib import Path
import numpy as np
import pytest
import torch
sys.path.insert(0, str(Path(__file__).parent))
from toy import ToyTrainer, events, fresh, same_weights, toy_cfg
from xmodaler_nb.checkpoint import CheckpointError, XmodalerCheckpointer, read_checkpoint
from xmodaler_nb.engine import HookBase
from xmodaler_nb.utils.env import seed_all_rng


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch):
    "Flushing to a busy disk is not what is tested here."
    import os
    monkeypatch.setattr(os, 'fsync', lambda fd: None)



class Stop(HookBase):
    "Ends the process's life, as far as Python can, at a moment of a step."
    def __init__(self, at, moment): self.at, self.moment = at, moment
    def before_step(self):
        if self.trainer.iter == self.at and self.moment == 'before_step': raise SystemExit
    def after_step(self):
        if self.trainer.iter == self.at and self.moment == 'after_step': raise SystemExit


def whole_run(folder, cls=ToyTrainer, **engine):
    seed_all_rng(3)
    t = fresh(toy_cfg(folder, **engine), cls)
    t.train()
    return t


def broken_run(folder, at, moment='before_step', cls=ToyTrainer, **engine):
    "Train, die, continue in what is as good as a new process."
    seed_all_rng(3)
    t = fresh(toy_cfg(folder, **engine), cls)
    t.register_hooks([Stop(at, moment)])
    with pytest.raises(SystemExit): t.train()
    seed_all_rng(1000+at)
    np.random.rand(3)
    t = fresh(toy_cfg(folder, **engine), cls, resume=True)
    t.train()
    return t


def check_same(a, b, folder_a, folder_b):
    assert events(folder_a) == events(folder_b)
    assert same_weights(a.model, b.model)
    assert a.optimizer.state_dict()['param_groups'] == b.optimizer.state_dict()['param_groups']


@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('at,moment', [(4, 'before_step'), (5, 'after_step'), (8, 'after_step')])
def test_continued_is_the_same(tmp_path, workers, at, moment):
    class T(ToyTrainer): pass
    T.workers = workers
    check_same(whole_run(tmp_path/'whole', T, CHECKPOINT_ITERS=2), broken_run(tmp_path/'broken', at, moment, T, CHECKPOINT_ITERS=2), tmp_path/'whole', tmp_path/'broken')


@pytest.mark.parametrize('engine', [dict(AMP='bf16'), dict(AMP='fp16'), dict(ACCUMULATE=2), dict(KEEP_BEST='val/acc', EARLY_STOP='val/acc', KEEP_LAST=1)])
def test_with_every_switch(tmp_path, engine):
    engine = dict(CHECKPOINT_ITERS=1, **engine)
    check_same(whole_run(tmp_path/'whole', **engine), broken_run(tmp_path/'broken', 4, **engine), tmp_path/'whole', tmp_path/'broken')


@pytest.mark.parametrize('at', [5, 6])
def test_lines_of_the_log_where_nothing_is_written(tmp_path, at):
    "The checkpoint of step 4 knows a time that was never written, since the next line is that of step 5."
    def cfg(folder):
        c = toy_cfg(folder, CHECKPOINT_ITERS=5)
        c.SOLVER.WRITE_PERIOD = 3
        return c
    for name in ('whole', 'broken'):
        seed_all_rng(3)
        t = fresh(cfg(tmp_path/name))
        if name == 'broken':
            t.register_hooks([Stop(at, 'before_step')])
            with pytest.raises(SystemExit): t.train()
            t = fresh(cfg(tmp_path/name), resume=True)
        t.train()
    assert [e['iteration'] for e in events(tmp_path/'whole')] == [2, 5, 8] and events(tmp_path/'broken') == events(tmp_path/'whole')


def test_ema_continues(tmp_path):
    class T(ToyTrainer):
        def __init__(self, cfg): cfg.MODEL.USE_EMA, cfg.MODEL.EMA_DECAY = True, .8; super().__init__(cfg)
    a, b = whole_run(tmp_path/'whole', T, CHECKPOINT_ITERS=2), broken_run(tmp_path/'broken', 5, cls=T, CHECKPOINT_ITERS=2)
    check_same(a, b, tmp_path/'whole', tmp_path/'broken')
    assert same_weights(a.ema.module, b.ema.module)


def test_an_evaluation_that_dies_is_caught_up(tmp_path):
    "The checkpoint is older than the evaluation; the continued run evaluates first."
    class Dies(ToyTrainer):
        dead = False
        @classmethod
        def test(cls, cfg, model, loader, evaluator, epoch):
            if epoch == 2 and not cls.dead: cls.dead = True; raise SystemExit
            return super().test(cfg, model, loader, evaluator, epoch)
    whole = whole_run(tmp_path/'whole')
    seed_all_rng(3)
    t = fresh(toy_cfg(tmp_path/'broken'), Dies)
    with pytest.raises(SystemExit): t.train()
    t = fresh(toy_cfg(tmp_path/'broken'), Dies, resume=True)
    t.train()
    check_same(whole, t, tmp_path/'whole', tmp_path/'broken')


def test_a_foreign_loader_continues_too(tmp_path):
    class T(ToyTrainer):
        @classmethod
        def build_train_loader(cls, cfg):
            from toy import ToySet, join
            return torch.utils.data.DataLoader(ToySet(), batch_size=4, shuffle=True, collate_fn=join)
    check_same(whole_run(tmp_path/'whole', T, CHECKPOINT_ITERS=2), broken_run(tmp_path/'broken', 5, cls=T, CHECKPOINT_ITERS=2), tmp_path/'whole', tmp_path/'broken')


def test_a_finished_run_resumed_changes_nothing(tmp_path):
    a = whole_run(tmp_path)
    before = events(tmp_path)
    b = fresh(toy_cfg(tmp_path), resume=True)
    b.train()
    assert b.start_iter == 9 and events(tmp_path) == before and same_weights(a.model, b.model)


def test_a_longer_training_continues_from_the_final_checkpoint(tmp_path):
    whole_run(tmp_path)
    cfg = toy_cfg(tmp_path)
    cfg.SOLVER.EPOCH = 5
    t = fresh(cfg, resume=True)
    t.train()
    assert t.iter == 15 and [e['iteration'] for e in events(tmp_path)] == list(range(15))


def test_ctrl_c_saves_and_says_where(tmp_path, caplog):
    class CtrlC(HookBase):
        def before_step(self):
            if self.trainer.iter == 4: os.kill(os.getpid(), signal.SIGINT)
    whole = whole_run(tmp_path/'whole')
    seed_all_rng(3)
    t = fresh(toy_cfg(tmp_path/'broken'))
    t.register_hooks([CtrlC()])
    with caplog.at_level('WARNING', 'xmodaler_nb'), pytest.raises(KeyboardInterrupt): t.train()
    assert 'model_Epoch_00001_Iter_0000004' in caplog.text and '--resume' in caplog.text
    t = fresh(toy_cfg(tmp_path/'broken'), resume=True)
    assert t.start_iter == 5
    t.train()
    check_same(whole, t, tmp_path/'whole', tmp_path/'broken')


def test_ctrl_c_during_an_evaluation(tmp_path):
    class T(ToyTrainer):
        pressed = False
        @classmethod
        def test(cls, cfg, model, loader, evaluator, epoch):
            if epoch == 2 and not cls.pressed: cls.pressed = True; os.kill(os.getpid(), signal.SIGINT)
            return super().test(cfg, model, loader, evaluator, epoch)
    def cfg(folder):
        c = toy_cfg(folder)
        c.SOLVER.CHECKPOINT_PERIOD = 3                    # the interrupted epoch has no checkpoint of its own
        return c
    seed_all_rng(3)
    whole = fresh(cfg(tmp_path/'whole'))
    whole.train()
    seed_all_rng(3)
    t = fresh(cfg(tmp_path/'broken'), T)
    with pytest.raises(KeyboardInterrupt): t.train()
    assert (tmp_path/'broken'/'last_checkpoint').read_text() == 'model_Epoch_00002_Iter_0000005'
    t = fresh(cfg(tmp_path/'broken'), T, resume=True)
    t.train()
    check_same(whole, t, tmp_path/'whole', tmp_path/'broken')


def test_another_batch_size_continues_at_the_same_part(tmp_path, caplog):
    whole_run(tmp_path)
    class T(ToyTrainer):
        @classmethod
        def build_train_loader(cls, cfg):
            from toy import loader
            return loader(bs=2)
    shutil.rmtree(tmp_path/'model_final')
    shutil.rmtree(tmp_path/'model_Epoch_00003_Iter_0000008')
    with caplog.at_level('WARNING', 'xmodaler_nb'): t = fresh(toy_cfg(tmp_path), T, resume=True)
    assert t.start_iter == 12 and '6' in caplog.text
    t.train()
    assert t.iter == 18


def test_another_model_is_refused(tmp_path):
    whole_run(tmp_path)
    class T(ToyTrainer):
        @classmethod
        def build_model(cls, cfg):
            m = super().build_model(cfg)
            m.net[3] = torch.nn.Linear(16, 4)
            return m
    with pytest.raises(CheckpointError, match=r'net\.3\.weight has shape \(3, 16\) there and \(4, 16\) here'): fresh(toy_cfg(tmp_path), T, resume=True)


def test_resume_without_a_checkpoint_starts_over(tmp_path):
    (tmp_path/'events.jsonl').write_text('{"iteration": 0, "total_loss": 9}\n{"iter')
    t = fresh(toy_cfg(tmp_path), resume=True)
    t.train()
    assert [e['iteration'] for e in events(tmp_path)] == list(range(9))


def test_config_travels_with_the_checkpoint(tmp_path):
    whole_run(tmp_path)
    assert 'ENGINE' in (tmp_path/'model_final'/'config.yaml').read_text()


def test_x_modalers_checkpoint_resumes(tmp_path):
    "A `.pth` with trainer state, as X-modaler writes it."
    t = whole_run(tmp_path/'a')
    (tmp_path/'b').mkdir()
    torch.save({'model': {f'module.{k}': v for k, v in t.model.state_dict().items()}, 'iteration': 5,
                'trainer': {'iteration': 5, 'optimizer': t.optimizer.state_dict(), 'scheduler': t.scheduler.state_dict()}}, tmp_path/'b'/'model_Epoch_00002_Iter_0000005.pth')
    (tmp_path/'b'/'last_checkpoint').write_text('model_Epoch_00002_Iter_0000005.pth')
    again = fresh(toy_cfg(tmp_path/'b'), resume=True)
    assert again.start_iter == 6 and same_weights(t.model, again.model)
    again.train()
    assert again.iter == 9
