"One feature file that cannot be used: an evaluation scores the others and names it, a training saves what it has learnt and goes on once it is mended."
import json
import numpy as np, pytest, torch
from safetensors.torch import load_file
from test_ids import options
from test_task_trainers import MM, STEPS, config, world                     # noqa: F401
from xmodaler_nb.commands.train import evaluate_only, train_main
from xmodaler_nb.datasets.layout import write_features, write_tiny
from xmodaler_nb.engine import build_engine, hooks
from xmodaler_nb.evaluation.split import read_references, score_split
from xmodaler_nb.utils.safe_pickle import safe_load


@pytest.fixture
def data(tmp_path): return write_tiny(tmp_path/'data', n=24)

def ids(data, stage): return [e['image_id'] for e in safe_load(data/f'mscoco_caption_anno_{stage}.pkl')]
def cut(data, i):
    "Cut a feature file off; what mends it."
    file = data/'features'/f'{i}.npz'
    whole = file.read_bytes()
    file.write_bytes(whole[:60])
    return lambda: file.write_bytes(whole)
def run(data, out, *opts, flags=()):
    return train_main(['--config-file', 'image_caption/updown/updown.yaml', *flags, *options(data, out), *map(str, opts)])

@pytest.fixture
def trained(data, tmp_path):
    assert run(data, tmp_path/'run') == 0
    return ['MODEL.WEIGHTS', tmp_path/'run'/'model_final']


@pytest.mark.parametrize('how', ['cut', 'gone', 'width', 'nan'])
def test_evaluation_scores_the_others(data, tmp_path, trained, capsys, how):
    bad = ids(data, 'val')[1]
    file = data/'features'/f'{bad}.npz'
    if how == 'cut': cut(data, bad)
    elif how == 'gone': file.unlink()
    else: write_features(data/'features', bad, features=np.ones((3, 5), 'f4') if how == 'width' else np.full((3, 4), np.nan, 'f4'))
    capsys.readouterr()
    assert run(data, tmp_path/'out', *trained, flags=['--eval-only']) == 1
    out, err = capsys.readouterr()
    lines = [l.split(' ', 1) for l in out.splitlines() if l.startswith(('val ', 'test '))]
    assert [stage for stage, _ in lines] == ['val', 'test'] and all('CIDEr' in json.loads(s) for _, s in lines)
    assert f'failed: val {bad}: ' in err and f'{bad}.npz' in err and f"1 of {len(ids(data, 'val')) + len(ids(data, 'test'))} failed" in err and 'Traceback' not in err

def test_scores_are_those_of_the_others(data, tmp_path, trained, capsys):
    bad = ids(data, 'test')[0]
    assert run(data, tmp_path/'whole', *trained, flags=['--eval-only']) == 0
    said = {str(r['image_id']): r['caption'] for r in json.loads((tmp_path/'whole'/'results'/'-1.json').read_text())}
    cut(data, bad)
    capsys.readouterr()
    assert run(data, tmp_path/'out', *trained, flags=['--eval-only']) == 1
    left = {i: c for i, c in said.items() if i != bad}
    assert {str(r['image_id']): r['caption'] for r in json.loads((tmp_path/'out'/'results'/'-1.json').read_text())} == left
    scores = json.loads(next(l for l in capsys.readouterr().out.splitlines() if l.startswith('test '))[5:])
    refs = {str(i): r for i, r in read_references(data/'captions_test.json').items() if str(i) in left}
    for name in ('Bleu_1', 'CIDEr', 'ROUGE_L'): assert scores[name] == pytest.approx(score_split(left, refs)[0][name], abs=1e-6)

def test_nothing_left(data, tmp_path, trained, capsys):
    for i in ids(data, 'val'): cut(data, i)
    assert run(data, tmp_path/'out', *trained, flags=['--eval-only']) == 1
    assert 'val: none of the' in (err := capsys.readouterr().err) and '.npz: not a readable' in err


@pytest.mark.parametrize('task', ['vqa/uniter/vqa.yaml', 'vcr/uniter/vcr.yaml', 'flickr30k_retrieval/tden/flickr30k_retrieval.yaml'])
@pytest.mark.filterwarnings('ignore')
def test_tasks(task, world, tmp_path):                                  # noqa: F811
    cfg = config(MM + task, world, **{**STEPS, 'OUTPUT_DIR': str(tmp_path)})
    t = build_engine(cfg)
    loader = t.val_data_loader[0] if isinstance(t.val_data_loader, list) else t.val_data_loader
    mapper, bad = loader.dataset.mapper, loader.dataset.entry(1)
    read = type(mapper).__call__
    class Broken(type(mapper)):
        def __call__(self, e, *args, **kwargs):
            if e['image_id'] == bad['image_id']: raise ValueError('7.npz: not a readable file')
            return read(self, e, *args, **kwargs)
    mapper.__class__, failed = Broken, {}
    try: assert 'val' in evaluate_only(cfg, t, failed)
    finally: mapper.__class__ = Broken.__mro__[1]
    assert failed and all(k.startswith('val ') and '7.npz' in why for k, why in failed.items())


# training

@pytest.mark.parametrize('workers, step', [(0, 3), (1, 8)])          # inside an epoch and in the next
def test_training_saves_what_it_has_learnt(data, tmp_path, capsys, monkeypatch, workers, step):
    opts, mends = ['SOLVER.EPOCH', 3, 'DATALOADER.NUM_WORKERS', workers, 'SOLVER.EVAL_PERIOD', 99, 'SOLVER.CHECKPOINT_PERIOD', 99], []
    assert run(data, tmp_path/'whole', *opts) == 0
    after = hooks.IterationTimer.after_step
    def breaks(self):
        if self.trainer.iter == step and not mends: mends.extend(cut(data, i) for i in ids(data, 'train'))
        return after(self)
    monkeypatch.setattr(hooks.IterationTimer, 'after_step', breaks)
    capsys.readouterr()
    assert run(data, tmp_path/'run', *opts) == 1
    err = capsys.readouterr().err.strip()
    assert '.npz: not a readable' in err and 'Nothing is lost: ' in err and '--resume' in err and len(err.splitlines()) == 1
    monkeypatch.undo()
    for mend in mends: mend()
    assert run(data, tmp_path/'run', *opts, flags=['--resume']) == 0
    same_runs(tmp_path/'whole', tmp_path/'run')

def same_runs(one, other):
    a, b = (load_file(f/'model_final'/'model.safetensors') for f in (one, other))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    numbers = [[{k: v for k, v in json.loads(l).items() if 'time' not in k and 'eta' not in k} for l in (f/'events.jsonl').read_text().splitlines()] for f in (one, other)]
    assert numbers[0] == numbers[1]

def test_validation_file_breaks_during_a_training(data, tmp_path, capsys, monkeypatch):
    opts, bad, mends = ['SOLVER.EPOCH', 2], ids(data, 'val')[1], []
    assert run(data, tmp_path/'whole', *opts) == 0
    start = hooks.EvalHook.before_train
    monkeypatch.setattr(hooks.EvalHook, 'before_train', lambda self: (start(self), mends or mends.append(cut(data, bad)))[0])
    capsys.readouterr()
    assert run(data, tmp_path/'run', *opts) == 1
    assert f'{bad}.npz: not a readable' in (err := capsys.readouterr().err) and 'Nothing is lost' in err
    monkeypatch.undo()
    mends[0]()
    assert run(data, tmp_path/'run', *opts, flags=['--resume']) == 0
    same_runs(tmp_path/'whole', tmp_path/'run')
