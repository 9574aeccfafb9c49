"A resumed training of signs: what may change takes effect, everything else is refused by name and changes no file; damage is named."
import json
import logging
import os
import shutil
import socket
import pytest
import torch
from xmodaler_nb.asl.config import settings
from xmodaler_nb.asl.data.dataset import ASL_DATASET
from xmodaler_nb.asl.models.pytorch import models
from xmodaler_nb.asl.signs import make_signs
from xmodaler_nb.asl.trainer import Trainer
from xmodaler_nb.utils.run_lock import FILE, started

SHARES = dict(TRAIN_SIZE=.6, VALID_SIZE=.2, TEST_SIZE=.2, BATCH_SIZE=12)


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch): monkeypatch.setattr(os, 'fsync', lambda fd: None)


@pytest.fixture(scope='module')
def clips(): return make_signs(signs=3, signers=2, takes=4)


def section(lr=.01, scheduler='ExponentialLR', **params):
    sizes = dict(d_model=16, n_head=2, num_layers=1, dropout=.2)
    options = dict(ExponentialLR=dict(gamma=.5), CosineAnnealingLR=dict(T_max=4), MultiStepLR=dict(milestones=[1, 3], gamma=.1))
    return dict(params=sizes | params, optimizer=dict(name='Adam', params=dict(lr=lr)), scheduler=dict(name=scheduler, params=options[scheduler]))


def trainer(clips, out, model=None, change=None, **kwargs):
    "A trainer of a small model; `change` are settings."
    torch.manual_seed(3)
    with settings.changed(**{**SHARES, **(change or {})}):
        model = models.YetAnotherTransformer(**(model or section()), n_classes=3)
        return Trainer(dataset=ASL_DATASET.from_clips(clips), out_dir=out, model=model, patience=kwargs.pop('patience', 9), **kwargs)


def train(clips, out, epochs, model=None, change=None, **kwargs):
    t = trainer(clips, out, model, change, **kwargs)
    with settings.changed(**{**SHARES, **(change or {})}): t.train(epochs)
    return t


@pytest.fixture(scope='module')
def two_epochs(clips, tmp_path_factory):
    "A run of two epochs, once for all."
    out = tmp_path_factory.mktemp('signs')/'run'
    train(clips, out, 2)
    return out


@pytest.fixture
def run(two_epochs, tmp_path): return shutil.copytree(two_epochs, tmp_path/'run')


def state_of(folder): return {str(p.relative_to(folder)): (p.read_bytes(), p.stat().st_mtime_ns) for p in sorted(folder.rglob('*')) if p.is_file()}


def rates(folder):
    "The rate of each epoch."
    lines = [json.loads(l) for l in (folder/'events.jsonl').read_text().splitlines()]
    return [l['lr'] for l in lines if 'lr' in l]


@pytest.mark.parametrize('scheduler', ['ExponentialLR', 'CosineAnnealingLR', 'MultiStepLR'])
def test_a_new_rate_and_a_new_schedule_take_effect(clips, run, tmp_path, scheduler):
    "From the third epoch on the rates are those of a run that had the new ones from the start."
    new = section(.003, scheduler)
    train(clips, tmp_path/'new', 4, new)
    t = train(clips, run, 4, new)
    assert t.engine.start_iter > 0 and rates(run)[2:] == pytest.approx(rates(tmp_path/'new')[2:], rel=1e-9)
    assert rates(run)[:2] == pytest.approx([.01, .005])


def test_another_batch_size_keeps_the_schedule(clips, run):
    t = train(clips, run, 4, change=dict(BATCH_SIZE=6))
    assert t.epoch == 4 and rates(run) == pytest.approx([.01, .005, .0025, .00125])


def test_dropout_and_augmentation_take_effect(clips, run):
    t = train(clips, run, 3, section(dropout=.4), augmentation_threshold=.1)
    assert .4 in {m.p for m in t._dropouts()} and .2 not in {m.p for m in t._dropouts()}
    assert t.train_loader.dataset.augmentation_threshold == .1
    same = trainer(clips, run, section(dropout=.4), augmentation_threshold=.1)
    assert same.check_resume(same._config(4)) == {}


def test_another_metric_begins_anew(clips, run):
    "Losses are not compared with accuracies."
    loss = dict(EARLY_STOP_METRIC='loss', EARLY_STOP_MODE='min', EARLY_STOP_TOLERENCE=0.)
    t = train(clips, run, 3, change=loss)
    assert t.best == t.metrics['Loss/Validation'] and t.wait == 0


def test_patience_is_that_of_the_new_trainer(clips, tmp_path):
    "A run that has ended goes on if the new one is more patient."
    strict = dict(EARLY_STOP_TOLERENCE=0.)
    a = train(clips, tmp_path, 6, section(lr=0.), change=strict, patience=1)
    b = train(clips, tmp_path, 6, section(lr=0.), change=strict, patience=1)
    c = train(clips, tmp_path, 6, section(lr=0.), change=strict, patience=2)
    assert (a.epoch, b.epoch, c.epoch) == (2, 2, 3)


def flip_last(path): path.write_bytes(path.read_bytes()[:-2] + bytes([path.read_bytes()[-2] ^ 1]) + path.read_bytes()[-1:])


def renamed(clips):
    "The same clips, other words for the signs."
    other = make_signs(signs=3, signers=2, takes=4)
    other.names = [clips.names[1], clips.names[0], *clips.names[2:]]
    return other


NOTHING = lambda run: None
REFUSED = {'other signs': (NOTHING, dict(other=True), r"signs\[0\] was '.*', is now"),
           'another seed': (NOTHING, dict(change=dict(SEED=5)), 'SEED was 0, is now 5'),
           'another split': (NOTHING, dict(change=dict(TRAIN_SIZE=.5, TEST_SIZE=.3)), 'settings.TRAIN_SIZE was 0.6, is now 0.5'),
           'other landmarks': (NOTHING, dict(change=dict(USEFUL_POSE_LANDMARKS=range(501, 515))), r'settings.USEFUL_POSE_LANDMARKS\[0\] was 500, is now 501'),
           'other frames': (NOTHING, dict(change=dict(INPUT_SIZE=16)), 'settings.INPUT_SIZE was 32, is now 16'),
           'another network': (NOTHING, dict(model=section(n_head=4)), 'network.params.n_head was 2, is now 4'),
           'another width': (NOTHING, dict(model=section(d_model=32)), 'd_model was 16, is now 32'),
           'another optimizer': (NOTHING, dict(model=section() | dict(optimizer=dict(name='SGD', params=dict(lr=.1)))), "optimizer was 'Adam', is now 'SGD'"),
           'damaged weights': (lambda run: flip_last(run/'model_final/model.safetensors'), {}, 'model.safetensors is damaged'),
           'damaged state': (lambda run: flip_last(run/'model_final/training_state.pt'), {}, 'training_state.pt is damaged'),
           'damaged facts': (lambda run: flip_last(run/'model_final/run.json'), {}, 'run.json is damaged'),
           'nothing whole': (lambda run: [p.write_bytes(b'') for p in run.glob('*/model.safetensors')], {}, 'no checkpoint in it is whole')}


@pytest.mark.parametrize('crash', [False, True])
@pytest.mark.parametrize('why', REFUSED)
def test_a_refused_resume_changes_no_file(clips, run, why, crash):
    "With `crash`, the checkpoint stands where a crash between two renames left it."
    damage, how, text = REFUSED[why]
    damage(run)
    if crash: (run/'model_final').rename(run/'.old-model_final')
    before, how = state_of(run), dict(how)
    t = trainer(renamed(clips) if how.pop('other', False) else clips, run, **how)
    with settings.changed(**{**SHARES, **how.get('change', {})}), pytest.raises(ValueError, match=text): t.train(4)
    assert state_of(run) == before and 'config.yaml' in before


def test_a_half_written_checkpoint_is_passed_over(clips, run, caplog):
    "The newest that is whole is taken, and it is said."
    (run/'model_final/training_state.pt').write_bytes(b'half')
    shutil.rmtree(sorted(run.glob('model_Epoch_*'))[-1])
    with caplog.at_level(logging.WARNING): t = train(clips, run, 2)
    assert t.engine.start_iter == t.engine.iters_per_epoch and 'using model_Epoch_00001' in caplog.text


def test_a_run_of_an_earlier_version_goes_on(clips, run, caplog):
    "Without facts nothing can be compared; that is said."
    for meta in run.glob('*/meta.json'):
        facts = json.loads(meta.read_text())
        for part in ('files', 'sums'): facts[part].pop('run.json')
        meta.write_text(json.dumps(facts))
        (meta.parent/'run.json').unlink()
    with caplog.at_level(logging.WARNING): assert train(clips, run, 3).epoch == 3
    assert 'does not say what it was trained with' in caplog.text


def test_two_trainings_in_one_folder(clips, run):
    "The second is refused with the name of the first, before it writes."
    other = dict(pid=os.getppid(), host=socket.gethostname(), started=started(os.getppid()), since='2026-01-01 00:00:00')
    (run/FILE).write_text(json.dumps(other))
    before = state_of(run)
    with pytest.raises(FileExistsError, match=f'process {os.getppid()} on .*, since 2026-01-01'): train(clips, run, 4)
    assert state_of(run) == before
    (run/FILE).unlink()
    assert train(clips, run, 3).epoch == 3 and not (run/FILE).exists()
