"""Signs: kill -9 in a step, in an evaluation, while a file is being written. The training that goes on afterwards ends like one that was left
alone: weights, optimizer, best model, curves, early stopping, callbacks, to the last bit. A killed search goes on from its file."""
import json
import os
import signal
import pytest
import torch
from children import run as run_child, server
from xmodaler_nb.asl import metrics
from xmodaler_nb.asl.callbacks import augmentation_increase_callback, dropout_callback
from xmodaler_nb.asl.config import settings
from xmodaler_nb.asl.data.dataset import ASL_DATASET
from xmodaler_nb.asl.models.pytorch import models
from xmodaler_nb.asl.signs import make_signs
from xmodaler_nb.asl.trainer import Trainer
from xmodaler_nb.checkpoint import read_checkpoint

pytestmark = pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')
IMPORTS = 'torch._dynamo', 'torch.utils.tensorboard', 'xmodaler_nb.asl.hparam_search', 'test_asl_kill'      # what every life would import
SHARES = dict(TRAIN_SIZE=.6, VALID_SIZE=.2, TEST_SIZE=.2, BATCH_SIZE=6)
EPOCHS = 5


@pytest.fixture(scope='module')
def dataset():
    return ASL_DATASET.from_clips(make_signs(signs=3, signers=3, takes=4))


def die_at(owner, name, n):
    "Kill this process at the n-th call of a function, before the call does anything."
    count, real = [0], getattr(owner, name)
    def f(*args, **kwargs):
        count[0] += 1
        if count[0] == n: os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)
    setattr(owner, name, f)


OWNERS = dict(step=(torch.optim.Adam, 'step'), evaluation=(models.BaseModel, 'validation_step'), best=(models.BaseModel, 'save_checkpoint'),
              replace=(os, 'replace'), rename=(os, 'rename'))


def new_trainer(dataset, out):
    torch.manual_seed(3)
    params = dict(d_model=16, n_head=2, num_layers=1, dropout=.2)
    model = models.YetAnotherTransformer(params=params, n_classes=3, optimizer=dict(name='Adam', params=dict(lr=.01)))
    return Trainer(dataset=dataset, out_dir=out, model=model, patience=3)


def life(dataset, out, death):
    "One process: train until the end, or until killed."
    torch.set_num_threads(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(os.open(out.with_suffix('.err'), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    os.fsync = lambda fd: None                       # the kernel survives; flushing would only take time here
    if death: die_at(*OWNERS[death[0]], death[1])
    with settings.changed(**SHARES):
        t = new_trainer(dataset, out)
        torch.manual_seed(os.getpid())               # a life begins with other random numbers
        t.add_callback(dropout_callback).add_callback(augmentation_increase_callback).train(EPOCHS)


def run(dataset, out, death=None):
    "How one life ended."
    return run_child(server(*IMPORTS), life, dataset, out, death)


def readable(out):
    "Whatever is called a checkpoint can be read."
    for p in out.glob('model*'):
        if p.is_dir(): read_checkpoint(p)
    for p in out.glob('*.ckpt'): assert set(torch.load(p, weights_only=True)) == {'model_state_dict', 'optimizer_state_dict', 'scheduler_state_dict'}


def facts(out):
    "What a run leaves, without times."
    c = read_checkpoint(out/'model_final')
    lines = [{k: v for k, v in json.loads(l).items() if 'time' not in k and 'eta' not in k} for l in (out/'events.jsonl').read_text().splitlines()]
    curves = {k: v['data'] for k, v in c['trainer']['storage']['scalars'].items() if 'time' not in k and 'eta' not in k}
    best = torch.load(next(out.glob('*_best_model.ckpt')), weights_only=True)
    return dict(lines=lines, curves=curves, model=c['model'], optimizer=c['trainer']['optimizer'], face=c['trainer']['hooks']['EpochEnd'], best=best)


def equal(a, b, at=''):
    "To the last bit."
    if isinstance(a, torch.Tensor): assert torch.equal(a, b), at
    elif isinstance(a, dict):
        assert set(a) == set(b), at
        for k in a: equal(a[k], b[k], f'{at}/{k}')
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), at
        for i, (x, y) in enumerate(zip(a, b)): equal(x, y, f'{at}/{i}')
    else: assert a == b or a != a and b != b, at


def test_killed_training_is_the_same_training(dataset, tmp_path):
    "Four deaths in one training: in a step, while a checkpoint is written, in an evaluation, before the best model is written."
    whole, out = tmp_path/'whole', tmp_path/'broken'
    assert run(dataset, whole) == 0, whole.with_suffix('.err').read_text()[-2000:]
    for death in [('step', 5), ('replace', 3), ('evaluation', 3), ('best', 1)]:
        assert run(dataset, out, death) == -signal.SIGKILL, (death, out.with_suffix('.err').read_text()[-2000:])
        readable(out)
    assert run(dataset, out) == 0, out.with_suffix('.err').read_text()[-2000:]
    equal(facts(whole), facts(out))
    assert not list(out.glob('.tmp*'))
    with settings.changed(**SHARES): a, b = (new_trainer(dataset, d) for d in (whole, out))
    chosen, y = b.test()                             # of the best model
    assert a.test()[0].tolist() == chosen.tolist() and b.metrics['Accuracy/Test'] == metrics.accuracy(chosen, y)


def search_life(dataset, folder, out, kill_at):
    "A search of three trials whose trainings only say how good they were; it may be killed in a trial."
    from xmodaler_nb.asl import hparam_search as h

    def train(self, n_epochs):
        with open(out, 'a') as f: f.write(f'{self.trial.number}\n')
        if self.trial.number == kill_at: os.kill(os.getpid(), signal.SIGKILL)
        self.pruned = False
        return self.trial.number/10
    h.Trainer_HparamSearch.train = train
    with settings.changed(**SHARES): study = h.search(dataset, folder, n_trials=3)
    assert len(h.done_trials(study)) == 3 and study.best_value == .3
    assert sorted(t.state.name for t in study.trials) == ['COMPLETE']*3 + ['FAIL']


def test_killed_search_goes_on(dataset, tmp_path):
    "The trial that was cut off has failed and is replaced by another; what was done is not done again."
    pytest.importorskip('optuna')
    for kill_at, code in ((1, -signal.SIGKILL), (None, 0)):
        assert run_child(server(*IMPORTS), search_life, dataset, tmp_path/'s', tmp_path/'seen', kill_at) == code
    assert (tmp_path/'seen').read_text().split() == ['0', '1', '2', '3']
