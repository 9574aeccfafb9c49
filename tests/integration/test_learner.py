"DESIGN, fine print 4: each trap of fastai 2.8 that `CaptionLearner` removes, one test per line; and fastai's own callbacks, unchanged."
import shutil
import sys
from pathlib import Path
import pytest
import torch
from torch import nn
sys.path.insert(0, str(Path(__file__).parent))
from fastai.basics import Callback, Learner
from toy import ToyModel, ToyTrainer, events, fresh, loader, toy_cfg, xe
from xmodaler_nb.config.constants import Batch, kfg
from xmodaler_nb.engine import AMP, CaptionLearner, HookBase, Loaders


def learner(valid=None, cbs=None, opt=None, **kwargs):
    torch.manual_seed(1)
    model = ToyModel()
    opt = opt(model) if opt else torch.optim.Adam([{'params': [p], 'lr': .01*(i+1)} for i, p in enumerate(model.parameters())])
    return CaptionLearner(Loaders(loader(), valid, **kwargs), model, [xe], opt_func=opt, cbs=cbs)


class See(Callback):
    "Keeps what a batch looked like."
    def after_pred(self): self.learn.seen = (self.batch, self.xb, self.yb, self.pred)


def quiet_fit(learn, *args, **kwargs):
    with learn.no_logging(): learn.fit(*args, **kwargs)
    return learn


def test_a_dict_batch_is_split_into_batch_and_targets():
    batch, xb, yb, pred = quiet_fit(learner(cbs=See()), 1).seen
    assert xb[0] is batch and torch.equal(yb[0], batch[kfg.G_TARGET_IDS])

def test_a_batch_stays_a_batch_on_its_way_to_the_device():
    assert type(quiet_fit(learner(cbs=See()), 1).seen[0]) is Batch

def test_fit_keeps_every_groups_rate_unless_told():
    learn = quiet_fit(learner(), 1)
    assert [g['lr'] for g in learn.opt.opt.param_groups] == pytest.approx([.01, .02, .03, .04])
    assert {g['lr'] for g in quiet_fit(learn, 1, lr=.5).opt.opt.param_groups} == {.5}

def test_optimizer_state_loaded_before_the_first_fit_survives():
    first = quiet_fit(learner(), 1)
    second = learner()
    second.opt.load_state_dict(first.opt.state_dict())
    step = []
    class Steps(Callback):
        def after_step(self): step.append(int(next(iter(self.opt.opt.state.values()))['step']))
    second.add_cb(Steps())
    quiet_fit(second, 1)
    assert step == [4, 5, 6]

def test_average_losses_know_the_batch_size():
    "Three batches of 5, 5 and 2 items: the mean over items, not over batches."
    learn = quiet_fit(learner(valid=loader(bs=5, shuffle=False)), 1)
    learn.model.eval()
    with torch.no_grad(): want = xe(learn.model(next(iter(loader(bs=12, shuffle=False)))))['xe']
    assert learn.recorder.values[-1][1] == pytest.approx(want.item(), abs=1e-6)

def test_no_validation_set_is_no_error(): assert quiet_fit(learner(), 1).recorder.metric_names == ['epoch', 'train_loss', 'time']

def test_validation_items_without_targets_give_no_loss():
    assert quiet_fit(learner(valid=loader(shuffle=False, answers=False)), 1).recorder.values[-1][1] is None

def test_accumulation_is_one_big_batch():
    def run(bs, acc, opt=lambda m: torch.optim.SGD(m.parameters(), .1)):
        torch.manual_seed(1)
        model = ToyModel()
        model.net[2].p = 0.
        learn = CaptionLearner(Loaders(loader(bs=bs, shuffle=False)), model, [xe], opt_func=opt(model), accumulate=acc)
        return quiet_fit(learn, 1).model
    for a, b in zip(run(3, 2).parameters(), run(6, 1).parameters()): assert torch.allclose(a, b, atol=1e-6)

def test_mixed_precision_lives_where_the_model_does_and_minds_no_strings():
    kinds = []
    class Kind(Callback):
        def after_pred(self): kinds.append(self.pred[kfg.G_LOGITS].dtype)
    learn = learner(cbs=[AMP('bf16'), Kind()])
    inner = []
    learn.model.net[0].register_forward_hook(lambda m, i, o: inner.append(o.dtype))
    quiet_fit(learn, 1)
    assert set(inner) == {torch.bfloat16} and set(kinds) == {torch.float32}      # losses see single precision

def test_lr_find_writes_no_checkpoint_and_leaves_no_trace(tmp_path):
    called = []
    class Writes(HookBase):
        def after_step(self): called.append(self)
    learn = learner(cbs=Writes(), path=tmp_path)
    before, rng = [p.clone() for p in learn.model.parameters()], torch.get_rng_state()
    found = learn.lr_find(num_it=20, show_plot=False)
    assert found.valley > 0 and not called and not list(tmp_path.rglob('*'))
    assert all(torch.equal(a, b) for a, b in zip(before, learn.model.parameters())) and torch.equal(rng, torch.get_rng_state())
    assert [g['lr'] for g in learn.opt.opt.param_groups] == pytest.approx([.01, .02, .03, .04])
    t = fresh(toy_cfg(tmp_path/'run'))
    t.learn.lr_find(num_it=10, show_plot=False)
    assert not list((tmp_path/'run').rglob('model*'))


# fastai's own callbacks

def test_csv_logger(tmp_path):
    from fastai.callback.progress import CSVLogger
    learn = learner(valid=loader(shuffle=False), cbs=CSVLogger())
    learn.path = tmp_path
    quiet_fit(learn, 2)
    assert (tmp_path/'history.csv').read_text().splitlines()[0] == 'epoch,train_loss,valid_loss,time' and len((tmp_path/'history.csv').read_text().splitlines()) == 3

def test_progress_bar(capsys):
    from fastai.callback.progress import ProgressCallback
    learn = learner(valid=loader(shuffle=False), cbs=ProgressCallback())
    learn.fit(2)
    assert 'train_loss' in capsys.readouterr().out

def test_early_stopping(capsys):
    from fastai.callback.tracker import EarlyStoppingCallback
    learn = learner(valid=loader(shuffle=False), cbs=EarlyStoppingCallback(min_delta=100., patience=2))
    quiet_fit(learn, 9)
    assert len(learn.recorder.values) == 3

def test_save_model_and_load_without_trusting_the_file(tmp_path, capsys):
    from fastai.callback.tracker import SaveModelCallback
    learn = learner(valid=loader(shuffle=False), cbs=SaveModelCallback(fname='best'))
    learn.path = tmp_path
    seen = {}
    real = torch.load
    def spy(*args, **kwargs): seen.update(kwargs); return real(*args, **kwargs)
    torch.load = spy
    try: quiet_fit(learn, 2)
    finally: torch.load = real
    assert (tmp_path/'models'/'best.pth').exists() and seen['weights_only'] is True

def test_tensorboard(tmp_path):
    from fastai.callback.tensorboard import TensorBoardCallback
    quiet_fit(learner(valid=loader(shuffle=False), cbs=TensorBoardCallback(log_dir=tmp_path, trace_model=False, log_preds=False)), 1)
    assert list(tmp_path.glob('events*'))

def test_one_cycle_schedule_of_fastai():
    from fastai.callback import schedule
    learn = learner()
    with learn.no_logging(): learn.fit_one_cycle(2, 1e-2)
    assert max(learn.recorder.lrs) == pytest.approx(1e-2, rel=.1)


def test_the_output_folder_need_not_exist(tmp_path):
    "A trainer built without `default_setup`, in a notebook say, makes its folder itself."
    cfg = toy_cfg(tmp_path/'runs'/'one')
    shutil.rmtree(tmp_path/'runs')
    fresh(cfg).train()
    assert (tmp_path/'runs'/'one'/'model_final').is_dir() and events(tmp_path/'runs'/'one')
