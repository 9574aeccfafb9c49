"What a resumed run may change takes effect; everything else is refused by name. Two runs in one folder are refused."
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
import pytest
import torch
sys.path.insert(0, str(Path(__file__).parent))
from toy import ToyTrainer, events, fresh, same_weights, toy_cfg
from xmodaler_nb import lr_scheduler, optim
from xmodaler_nb.engine.setup import default_setup
from xmodaler_nb.lr_scheduler import LR_SCHEDULER_REGISTRY


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch): monkeypatch.setattr(os, 'fsync', lambda fd: None)


class T(ToyTrainer):
    "With the optimizer and the schedule of the config."
    build_optimizer = classmethod(lambda cls, cfg, model: optim.build_optimizer(cfg, model))
    build_lr_scheduler = classmethod(lambda cls, cfg, optimizer, n: lr_scheduler.build_lr_scheduler(cfg, optimizer, n))


def config(folder, epochs=3, name='StepLR', **more):
    "Three steps are an epoch."
    cfg = toy_cfg(folder)
    cfg.SOLVER.EPOCH, cfg.LR_SCHEDULER.NAME, cfg.LR_SCHEDULER.STEP_SIZE = epochs, name, 2
    cfg.LR_SCHEDULER.WARMUP, cfg.LR_SCHEDULER.MODEL_SIZE, cfg.LR_SCHEDULER.MILESTONES = 1, 16, [5, 9]
    for k, v in more.items():
        node, _, last = k.rpartition('__')
        cfg[node][last] = v
    return cfg


def run(cfg, resume=False, end=None, cls=T):
    torch.manual_seed(3)
    t = fresh(cfg, cls, resume=resume)
    t.train(max_iter=end)
    return t


def rates(folder): return [e['lr'] for e in events(folder) if 'lr' in e]


@pytest.mark.parametrize('name', LR_SCHEDULER_REGISTRY.names())
@pytest.mark.parametrize('epochs', [5, 2])
def test_every_schedule_in_a_longer_and_a_shorter_resume(tmp_path, name, epochs):
    "Four steps of the old training; from then on the rates are those of a training that had the new length from the start."
    run(config(tmp_path/'new', epochs, name))
    run(config(tmp_path/'old', 3, name), end=4)
    t = run(config(tmp_path/'old', epochs, name), resume=True)
    assert t.iter == 3*epochs and rates(tmp_path/'old')[4:] == pytest.approx(rates(tmp_path/'new')[4:], rel=1e-9)


def test_a_new_rate_takes_effect(tmp_path):
    run(config(tmp_path), end=4)
    t = run(config(tmp_path, SOLVER__BASE_LR=.0005, SOLVER__WEIGHT_DECAY=.25), resume=True)
    assert rates(tmp_path) == pytest.approx([.02]*4 + [.0005]*2 + [.00005]*3)
    assert {g['weight_decay'] for g in t.optimizer.param_groups} == {.25, 0.}       # biases have their own


def test_a_new_schedule_takes_effect(tmp_path):
    run(config(tmp_path/'new', name='WarmupCosine'))
    run(config(tmp_path/'old', name='MultiStepLR'), end=4)
    run(config(tmp_path/'old', name='WarmupCosine'), resume=True)
    assert rates(tmp_path/'old')[4:] == pytest.approx(rates(tmp_path/'new')[4:])


def test_another_batch_size_keeps_the_schedule_in_epochs(tmp_path):
    "Twice as many steps per epoch: the drop comes after two epochs as before."
    class Small(T):
        @classmethod
        def build_train_loader(cls, cfg):
            from toy import loader
            return loader(bs=2)
    run(config(tmp_path, 4), end=3)
    run(config(tmp_path, 4), resume=True, cls=Small)
    assert rates(tmp_path)[3:] == pytest.approx([.02]*6 + [.002]*12)


def test_the_average_of_a_resume_begins_with_the_weights(tmp_path):
    run(config(tmp_path), end=4)
    cfg = config(tmp_path)
    cfg.MODEL.USE_EMA, cfg.MODEL.EMA_DECAY = True, .9
    t = fresh(cfg, T, resume=True)
    assert same_weights(t.ema.module, t.model)


def test_another_metric_begins_anew(tmp_path):
    run(config(tmp_path, ENGINE__KEEP_BEST='val/acc'), end=6)
    t = fresh(config(tmp_path, ENGINE__KEEP_BEST='total_loss'), T, resume=True)
    assert [h.best for h in t._hooks if type(h).__name__ == 'KeepBest'] == [None]


@pytest.mark.parametrize('key,value', [('MODEL__DECODER_DIM', 7), ('SOLVER__NAME', 'SGD'), ('DATASETS__TRAIN', 'other'), ('ENGINE__NAME', 'RLTrainer')])
def test_what_cannot_change_is_refused_by_name(tmp_path, key, value):
    "By the trainer, and by the set-up, before it writes anything."
    cfg = config(tmp_path)
    default_setup(cfg, SimpleNamespace(resume=False))
    run(cfg, end=4)
    before = (tmp_path/'config.yaml').read_text()
    other = config(tmp_path, **{key: value})
    with pytest.raises(ValueError, match=key.replace('__', r'\.') + ' was .*, is now'): fresh(other, T, resume=True)
    with pytest.raises(ValueError, match=key.replace('__', r'\.')): default_setup(other, SimpleNamespace(resume=True))
    assert (tmp_path/'config.yaml').read_text() == before and events(tmp_path)[-1]['iteration'] == 3


def test_a_training_that_was_stopped_early_has_ended(tmp_path):
    "Resuming it changes nothing, unless the config is more patient."
    engine = dict(ENGINE__EARLY_STOP='val/acc', ENGINE__EARLY_STOP_PATIENCE=1)
    class Worse(T):
        def build_evaluators(self, cfg): return SimpleNamespace(eval=lambda r, epoch: {'acc': -epoch}), None
    a = run(config(tmp_path, 5, **engine), cls=Worse)
    before = events(tmp_path)
    b = run(config(tmp_path, 5, **engine), resume=True, cls=Worse)
    assert (a.iter, b.iter) == (6, 6) and events(tmp_path) == before and same_weights(a.model, b.model)
    engine['ENGINE__EARLY_STOP_PATIENCE'] = 2
    assert run(config(tmp_path, 5, **engine), resume=True, cls=Worse).iter == 9


HOLD = f'''
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
from toy import *
class Waits(ToyTrainer):
    def before_train(self): super().before_train(); print('training', flush=True); input()
fresh(toy_cfg(sys.argv[1]), Waits).train()
'''

def test_two_runs_in_one_folder(tmp_path):
    "The second is refused with the first one's name, a resume, too; the lock of a killed one is taken over, and none is left at the end."
    p = subprocess.Popen([sys.executable, '-c', HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert p.stdout.readline() == 'training\n'
    before = sorted(tmp_path.iterdir())
    for resume in (False, True):
        with pytest.raises(FileExistsError, match=f'process {p.pid} on .*, since 20'): run(config(tmp_path), resume=resume)
        with pytest.raises(FileExistsError, match=f'process {p.pid}'): default_setup(config(tmp_path), SimpleNamespace(resume=resume))
    assert sorted(tmp_path.iterdir()) == before
    p.kill()
    p.wait()
    assert run(config(tmp_path)).iter == 9 and not list(tmp_path.glob('*.lock'))


@pytest.mark.parametrize('then', ['removed', 'made again'])
def test_the_output_folder_is_removed_while_training(tmp_path, then):
    "An error at the next line of the log, not at the end and not never; the weights are saved where they were to be."
    from xmodaler_nb.engine import HookBase
    class Removes(HookBase):
        def before_step(self):
            if self.trainer.iter != 4: return
            while (tmp_path/'run').exists(): shutil.rmtree(tmp_path/'run', ignore_errors=True)  # TensorBoard's thread writes, too
            if then == 'made again': (tmp_path/'run').mkdir()
    t = fresh(config(tmp_path/'run'), T)
    t.register_hooks([Removes()])
    with pytest.raises(OSError, match='events.jsonl was removed .* A checkpoint was saved: .*Iter_0000004'): t.train()
    again = fresh(config(tmp_path/'run'), T, resume=True)
    assert again.start_iter == 5 and same_weights(again.model, t.model)


def test_validate_of_a_trainer(tmp_path):
    t = run(config(tmp_path))
    last = [e for e in events(tmp_path) if 'val/acc' in e][-1]
    assert t.learn.validate()['val/acc'] == last['val/acc']
    assert 'net' in t.learn.summary() and t.learn.to_bf16() is t.learn and t.amp.mode == 'bf16'
    with pytest.raises(TypeError, match='decode'): t.learn.get_preds()


# a refused resume changes nothing

def state_of(folder): return {str(p.relative_to(folder)): (p.read_bytes(), p.stat().st_mtime_ns) for p in sorted(folder.rglob('*')) if p.is_file()}

def flip_last(path): path.write_bytes(path.read_bytes()[:-2] + bytes([path.read_bytes()[-2] ^ 1]) + path.read_bytes()[-1:])

def other_words(folder, cfg):
    (folder/'../other.txt').write_text('a\nbird\ncow\n')
    cfg.INFERENCE.VOCAB = str(folder/'../other.txt')

def other_model(folder, cfg):
    "The run's own copy of the config has been replaced; the checkpoint has the right one."
    cfg.MODEL.DECODER_DIM = 7
    (folder/'config.yaml').write_text(cfg.dump())

REFUSED = {'other words': (other_words, 'word 3 is'), 'another seed': (lambda folder, cfg: cfg.__setattr__('SEED', 5), 'SEED was'), 'another model': (other_model, 'DECODER_DIM was'),
           'damaged words': (lambda folder, cfg: flip_last(folder/'model_final/vocabulary.txt'), 'vocabulary.txt is damaged'),
           'damaged weights': (lambda folder, cfg: flip_last(folder/'model_final/model.safetensors'), 'model.safetensors is damaged'),
           'damaged state': (lambda folder, cfg: flip_last(folder/'model_final/training_state.pt'), 'training_state.pt is damaged'),
           'nothing whole': (lambda folder, cfg: [p.write_bytes(b'') for p in folder.glob('*/model.safetensors')], 'no checkpoint in it is whole')}

@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    "A run with a vocabulary, once for all."
    top = tmp_path_factory.mktemp('finished')
    (top/'words.txt').write_text('a\nbird\ncat\n')
    cfg = config(top/'run', 1, INFERENCE__VOCAB=str(top/'words.txt'))
    default_setup(cfg, SimpleNamespace(resume=False))
    run(cfg)
    return top

@pytest.mark.parametrize('only_eval, crash', [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize('why', REFUSED)
def test_a_refused_resume_changes_no_file(finished, tmp_path, why, only_eval, crash):
    "With `crash`, the checkpoint stands where a crash between two renames left it."
    shutil.copytree(finished, tmp_path/'top')
    folder, (change, text) = tmp_path/'top/run', REFUSED[why]
    cfg = config(folder, 1, INFERENCE__VOCAB=str(tmp_path/'top/words.txt'))
    change(folder, cfg)
    if crash: (folder/'model_final').rename(folder/'.old-model_final')
    before = state_of(folder)
    def resume():
        default_setup(cfg, SimpleNamespace(resume=True, eval_only=only_eval))
        fresh(cfg, T, resume=True)
    with pytest.raises(ValueError, match=text): resume()
    assert state_of(folder) == before and 'config.yaml' in before and 'log.txt' in before

def test_a_resume_after_a_crash_between_two_renames(finished, tmp_path):
    "The set-up reads the checkpoint where it stands; the trainer puts it back."
    shutil.copytree(finished, tmp_path/'top')
    folder = tmp_path/'top/run'
    (folder/'model_final').rename(folder/'.old-model_final')
    cfg = config(folder, 2, INFERENCE__VOCAB=str(tmp_path/'top/words.txt'))
    default_setup(cfg, SimpleNamespace(resume=True))
    assert (folder/'.old-model_final').is_dir()
    assert run(cfg, resume=True).iter == 6 and not list(folder.glob('.old-*'))

def test_the_trainer_alone_does_not_start_over(finished, tmp_path):
    shutil.copytree(finished/'run', tmp_path/'run')
    for p in tmp_path.glob('run/*/model.safetensors'): p.write_bytes(b'')
    before = state_of(tmp_path/'run')
    with pytest.raises(ValueError, match='Nothing was started over'): fresh(config(tmp_path/'run'), T, resume=True)
    assert state_of(tmp_path/'run') == before
