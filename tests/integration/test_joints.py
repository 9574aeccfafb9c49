"The joints that later work hangs on: methods with several losses, trainers with several loaders, a step of one's own, hooks and callbacks in one run."
import sys
from pathlib import Path
import pytest
import torch
sys.path.insert(0, str(Path(__file__).parent))
from fastai.basics import Callback
from toy import ToyTrainer, events, fresh, loader, same_weights, toy_cfg, xe
from xmodaler_nb.config.constants import kfg
from xmodaler_nb.engine import (ENGINE_REGISTRY, DefaultTrainer, EarlyStopping, EvalHook, HookBase, KeepBest, MultiLoader, TrainerBase, TrainingMethod, build_engine)


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch):
    "Flushing to a busy disk is not what is tested here."
    import os
    monkeypatch.setattr(os, 'fsync', lambda fd: None)



class TwoLosses(TrainingMethod):
    "Two losses per batch; the second is computed after the first step."
    def losses(self, batch):
        self.weights = [p.detach().clone() for p in self.learn.model.parameters()]
        yield self.learn.compute_losses(self.learn.predict_batch(batch))
        assert any(not torch.equal(a, b) for a, b in zip(self.weights, self.learn.model.parameters())), 'no step was taken'
        yield {'again': xe(self.learn.predict_batch(batch))['xe'], 'acc': torch.tensor(.5)}


class Stepping(Callback):
    "Counts optimizer steps and backward passes."
    def before_fit(self): self.learn.counts = dict(backward=0, step=0)
    def after_backward(self): self.learn.counts['backward'] += 1
    def after_step(self): self.learn.counts['step'] += 1


def test_a_method_that_steps_twice(tmp_path):
    class T(ToyTrainer):
        def build_method(self, cfg): return TwoLosses()
    t = fresh(toy_cfg(tmp_path), T)
    t.learn.add_cb(Stepping())
    t.train()
    assert t.learn.counts == dict(backward=18, step=18) and t.iter == 9
    last = events(tmp_path)[-1]
    assert {'xe', 'again', 'acc', 'total_loss'} <= set(last) and last['total_loss'] == pytest.approx(last['xe'] + last['again'], rel=.5)


def test_a_list_of_losses_works_too(tmp_path):
    class Listed(TrainingMethod):
        def losses(self, batch): return [self.learn.compute_losses(self.learn.predict_batch(batch))]
    class T(ToyTrainer):
        def build_method(self, cfg): return Listed()
    a, b = fresh(toy_cfg(tmp_path/'a'), T), fresh(toy_cfg(tmp_path/'b'))
    for t in (a, b): torch.manual_seed(0); t.train()
    assert same_weights(a.model, b.model)


class TwoLoaders(ToyTrainer):
    seen = []
    @classmethod
    def build_train_loader(cls, cfg): return [loader(), loader(n=10, bs=5)]
    @classmethod
    def build_losses(cls, cfg): return [lambda o: (cls.seen.append(len(o[kfg.IDS])), xe(o))[1]]


def test_a_trainer_with_two_loaders(tmp_path):
    TwoLoaders.seen.clear()
    t = fresh(toy_cfg(tmp_path), TwoLoaders)
    assert isinstance(t.method, MultiLoader) and t.iters_per_epoch == 3
    t.train()
    assert TwoLoaders.seen == [4, 5]*9 and {'main/xe', 'loader2/xe'} <= set(events(tmp_path)[-1])


def test_the_second_loader_continues_after_a_resume(tmp_path):
    whole = fresh(toy_cfg(tmp_path/'whole'), TwoLoaders)
    torch.manual_seed(0); whole.train()
    parts = fresh(toy_cfg(tmp_path/'parts', CHECKPOINT_ITERS=1), TwoLoaders)
    torch.manual_seed(0); parts.train(0, 5)
    torch.manual_seed(7)
    again = fresh(toy_cfg(tmp_path/'parts', CHECKPOINT_ITERS=1), TwoLoaders, resume=True)
    again.train()
    assert same_weights(whole.model, again.model)


class OwnStep(ToyTrainer):
    "Written as for X-modaler."
    def run_step(self):
        data = next(self._train_data_loader_iter)
        data[kfg.SS_PROB] = self.ss_prob
        losses_dict = xe(self.model(data))
        losses = sum(losses_dict[k] for k in losses_dict if 'acc' not in k)
        self.optimizer.zero_grad()
        losses.backward()
        self._write_metrics(losses_dict, data_time=0.)
        self.optimizer.step()


def test_a_subclass_with_its_own_run_step(tmp_path):
    a, b = fresh(toy_cfg(tmp_path/'a'), OwnStep), fresh(toy_cfg(tmp_path/'b'))
    for t in (a, b): torch.manual_seed(0); t.train()
    assert same_weights(a.model, b.model) and events(tmp_path/'a') == events(tmp_path/'b')


def test_a_run_step_that_calls_the_default_one(tmp_path):
    class T(ToyTrainer):
        n = 0
        def run_step(self): self.n += 1; super().run_step()
    t = fresh(toy_cfg(tmp_path), T)
    t.train()
    assert t.n == 9


def test_two_batches_in_one_step_are_an_error_in_words(tmp_path):
    class T(ToyTrainer):
        def run_step(self): next(self._train_data_loader_iter); next(self._train_data_loader_iter)
    with pytest.raises(RuntimeError, match='EndlessLoader'): fresh(toy_cfg(tmp_path), T).train()


def test_hook_callback_and_schedule_in_one_run(tmp_path):
    "The documented order, within a step and around the training."
    log = []
    class H(HookBase):
        def before_train(self): log.append(('hook', 'before_train'))
        def before_step(self): log.append(('hook', 'before_step', self.trainer.iter, self.trainer.optimizer.param_groups[0]['lr']))
        def after_step(self): log.append(('hook', 'after_step', self.trainer.iter, self.trainer.optimizer.param_groups[0]['lr']))
        def after_train(self): log.append(('hook', 'after_train', self.trainer.iter))
    class C(Callback):
        def before_fit(self): log.append(('callback', 'before_fit'))
        def before_batch(self): log.append(('callback', 'before_batch', self.iter))
        def before_step(self): log.append(('callback', 'before_step', self.iter))
        def after_batch(self): log.append(('callback', 'after_batch', self.iter))
        def after_fit(self): log.append(('callback', 'after_fit'))
    t = fresh(toy_cfg(tmp_path))
    t.register_hooks([H()])
    t.learn.add_cb(C())
    t.train()
    lr = [.02*.9**e for e in range(4)]
    assert log[:2] == [('callback', 'before_fit'), ('hook', 'before_train')] and log[-2:] == [('callback', 'after_fit'), ('hook', 'after_train', 9)]
    assert log[2:7] == [('callback', 'before_batch', 0), ('hook', 'before_step', 0, lr[0]), ('callback', 'before_step', 0), ('callback', 'after_batch', 0), ('hook', 'after_step', 0, lr[0])]
    fifth = [e for e in log if e[0] == 'hook' and len(e) == 4 and e[2] == 5]
    assert [e[3] for e in fifth] == pytest.approx([lr[1], lr[2]])               # the schedule stepped in between, at the epoch's end
    assert [round(e['lr'], 6) for e in events(tmp_path)] == [round(lr[i//3], 6) for i in range(9)]   # recorded: the rate that was used


def test_the_trainer_can_be_extended_at_its_moments(tmp_path):
    "A subclass overrides after_step and calls super."
    class T(ToyTrainer):
        def after_step(self):
            self.storage.put_scalar('mine', self.iter)
            super().after_step()
    t = fresh(toy_cfg(tmp_path), T)
    t.train()
    assert t.storage.history('mine').values() == [(float(i), i) for i in range(9)] and all('mine' in e for e in events(tmp_path))


def test_training_may_end_inside_an_epoch(tmp_path):
    "Numbers are flushed, the final checkpoint is written; the rest can follow."
    t = fresh(toy_cfg(tmp_path))
    t.train(0, 4)
    its = [e['iteration'] for e in events(tmp_path)]
    assert its == [0, 1, 2, 3] and 'val/acc' in events(tmp_path)[-1] and t.iter == 4          # the closing evaluation belongs to the last step
    t.train(4, 9)
    assert sorted({e['iteration'] for e in events(tmp_path)}) == list(range(9))


def test_accumulation_and_several_losses_do_not_mix(tmp_path):
    class Twice(TrainingMethod):
        def losses(self, batch):
            for _ in range(2): yield xe(self.learn.predict_batch(batch))
    class T(ToyTrainer):
        def build_method(self, cfg): return Twice()
    with pytest.raises(ValueError, match='accumulate=2'): fresh(toy_cfg(tmp_path, ACCUMULATE=2), T).train()


def test_early_stopping_and_best_checkpoint(tmp_path):
    cfg = toy_cfg(tmp_path, KEEP_BEST='val/acc', EARLY_STOP='val/acc', EARLY_STOP_PATIENCE=1)
    cfg.SOLVER.EPOCH, cfg.SOLVER.BASE_LR = 50, 0.
    t = fresh(cfg)
    t.train()
    assert t.iter == 6 and (tmp_path/'model_best').is_dir() and (tmp_path/'last_checkpoint').read_text() == 'model_final'


def test_last_epoch_is_evaluated_once_and_names_carry_their_set(tmp_path):
    epochs = []
    class T(ToyTrainer):
        @classmethod
        def build_test_loader(cls, cfg): return loader(bs=5, shuffle=False)
        def build_evaluators(self, cfg):
            class E:
                def __init__(self, tag): self.tag = tag
                def eval(self, results, epoch): epochs.append((self.tag, epoch)); return {'CIDEr': float(len(self.tag))}
            return E('val'), E('test')
    t = fresh(toy_cfg(tmp_path), T)
    t.train()
    assert epochs == [(s, e) for e in (1, 2, 3) for s in ('val', 'test')]
    last = events(tmp_path)[-1]
    assert (last['val/CIDEr'], last['test/CIDEr'], last['CIDEr']) == (3., 4., 4.)


def test_nan_names_the_loss_the_step_and_the_module_and_keeps_the_checkpoint(tmp_path):
    t = fresh(toy_cfg(tmp_path))
    class Poison(HookBase):
        def before_step(self):
            if self.trainer.iter == 5: self.trainer.model.net[1].register_forward_hook(lambda m, i, o: o*float('inf'))
    t.register_hooks([Poison()])
    with pytest.raises(FloatingPointError, match=r'iteration 5: xe=.*net\.1 \(Tanh\)'): t.train()
    assert (tmp_path/'last_checkpoint').read_text() == 'model_Epoch_00001_Iter_0000002'
    assert all(p.isfinite().all() for p in t.model.parameters())
    assert fresh(toy_cfg(tmp_path), resume=True).start_iter == 3


def test_engine_by_name():
    with ENGINE_REGISTRY.scratch():
        @ENGINE_REGISTRY.register()
        class Named:
            def __init__(self, cfg): self.cfg = cfg
        from xmodaler_nb.config import get_cfg
        cfg = get_cfg()
        cfg.ENGINE.NAME = 'Named'
        assert isinstance(build_engine(cfg), Named)


def test_ema_follows_and_is_evaluated(tmp_path):
    cfg = toy_cfg(tmp_path)
    cfg.MODEL.USE_EMA, cfg.MODEL.EMA_DECAY = True, .5
    t = fresh(cfg)
    t.train()
    assert 'val_ema/acc' in events(tmp_path)[-1] and not same_weights(t.ema.module, t.model)
    again = fresh(cfg, resume=True)
    assert same_weights(again.ema.module, t.ema.module)


def test_evaluation_only_needs_no_training_set(tmp_path):
    class T(ToyTrainer):
        @classmethod
        def build_train_loader(cls, cfg): return None
    t = fresh(toy_cfg(tmp_path), T)
    assert t.test(t.cfg, t.model, t.val_data_loader, t.val_evaluator, -1)['acc'] >= 0
    with pytest.raises(ValueError, match='DATASETS.TRAIN'): t.train()


@pytest.mark.slow
def test_compiled_is_the_same(tmp_path):
    "The switch compiles in place: names of the weights stay, losses agree."
    a, b = fresh(toy_cfg(tmp_path/'a')), fresh(toy_cfg(tmp_path/'b', COMPILE=True))
    assert list(a.model.state_dict()) == list(b.model.state_dict())
    for t in (a, b):
        t.model.net[2].p = 0.
        torch.manual_seed(0)
        t.train()
    assert [e['total_loss'] for e in events(tmp_path/'a')] == pytest.approx([e['total_loss'] for e in events(tmp_path/'b')], rel=.2)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
@pytest.mark.parametrize('amp', ['', 'bf16', 'fp16'])
def test_the_same_trainer_on_a_gpu(tmp_path, amp):
    class T(ToyTrainer):
        @classmethod
        def build_model(cls, cfg): return super().build_model(cfg).to('cuda')
    cfg = toy_cfg(tmp_path, AMP=amp)
    cfg.MODEL.DEVICE = 'cuda'
    t = fresh(cfg, T)
    t.train()
    again = fresh(cfg, T, resume=True)
    assert t.iter == 9 and next(t.model.parameters()).is_cuda and same_weights(t.model, again.model)
