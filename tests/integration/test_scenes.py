"The embedded data set: the same everywhere, complete, and read by the package's own data sets."
import hashlib, json, os, subprocess, sys
from pathlib import Path
import numpy as np
import pytest
from xmodaler_nb.config import kfg, config_file
from xmodaler_nb.modeling import load_cfg_file
from xmodaler_nb.datasets.build import build_xmodaler_train_loader, build_xmodaler_valtest_loader
from xmodaler_nb.own.scenes import make_scenes, bounds, vocabulary
from xmodaler_nb.own.scenes.grammar import TEMPLATES
from xmodaler_nb.own.scenes.write import sample_splits

COUNTS = dict(train=30, val=5, test=20)
# Of `sample_splits(COUNTS, seed=0)`: if this changes, raise `own.scenes.write.VERSION` too.
PICTURES = 'ca057a35822d56a2ac3245e512818284cebf8a0e7471f48e369a52f905098074'
CLIPS = 'a379aac08d2a853213420243cfa64c228ae8feb39d714ebf06f8b2592733d16e'

def drawn(video):
    h = hashlib.sha256()
    for o in sample_splits(COUNTS, seed=0, video=video): h.update(o['pixels'].tobytes() + '\n'.join(o['captions']).encode())
    return h.hexdigest()

@pytest.mark.parametrize('video', [False, True])
def test_the_same_on_every_machine(video):
    "In a process of its own, whose seeds are not shifted (`tests/portable.py`)."
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_scenes; print(test_scenes.drawn({video}))"
    env = {k: v for k, v in os.environ.items() if k != 'XMODALER_SHIFT_EVERY_SEED'}
    run = subprocess.run([sys.executable, '-c', code], check=True, env=env, capture_output=True, text=True)
    assert run.stdout.split()[-1] == (CLIPS if video else PICTURES)

def digest(folder): return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob('*')) if p.is_file()}

def test_two_processes_write_the_same_bytes(tmp_path):
    code = f"import sys; from xmodaler_nb.own.scenes import make_scenes; make_scenes(sys.argv[1], counts={COUNTS}, variants=('boxes','regions36'))"
    for i in range(2):
        subprocess.run([sys.executable, '-c', code, str(tmp_path/str(i))], check=True, env={**os.environ, 'PYTHONHASHSEED': str(i)})
    a, b = (digest(tmp_path/str(i)) for i in range(2))
    assert a == b and len(a) > 3*sum(COUNTS.values())

def test_words_templates_and_freedom(tmp_path):
    data = make_scenes(tmp_path/'s', counts=dict(train=60, val=5, test=60))
    table = bounds(data)
    assert len(vocabulary()) >= 80 and len(set(TEMPLATES)) >= 8
    assert len({w for o in data.records.values() for c in o['captions'] for w in c.split()}) >= 80
    assert table['one_vs_rest'] <= .8*table['bound'] < table['oracle']
    assert table['most_frequent'] < table['random'] < table['bound']
    assert all(5 <= len(c.split()) <= 16 for o in data.records.values() for c in o['captions'])

def batches(data, config, opts):
    cfg = load_cfg_file(config_file(config), [*opts, 'DATALOADER.NUM_WORKERS', 0, 'DATALOADER.TRAIN_BATCH_SIZE', 4, 'MODEL.DEVICE', 'cpu'])
    return next(iter(build_xmodaler_train_loader(cfg))), next(iter(build_xmodaler_valtest_loader(cfg, stage='test')))

def test_read_by_the_image_data_set(tmp_path):
    data = make_scenes(tmp_path/'s', counts=COUNTS, variants=('regions36',))
    train, test = batches(data, 'image_caption/updown/updown.yaml', data.select('gv_feat').cfg_overrides)
    assert train[kfg.ATT_FEATS].shape[2] == data.extractor().dim and train[kfg.G_TOKENS_IDS].shape == (20, 17)
    i = int(test[kfg.IDS][0])
    n = len(data.features(i)['features'])
    np.testing.assert_array_equal(test[kfg.ATT_FEATS][0,:n].numpy(), data.features(i)['features'])
    train, _ = batches(data, 'image_caption/gcn/gcn.yaml', data.select('regions36', 'relation').cfg_overrides)
    assert train[kfg.RELATION].shape[1:] == (36, 36) and train[kfg.ATT_FEATS].shape[1] == 36

def test_read_by_the_video_data_set(tmp_path):
    data = make_scenes(tmp_path/'s', counts=COUNTS, video=True)
    train, test = batches(data, 'video_caption/msvd/mplstm/mplstm.yaml', data.cfg_overrides)
    assert train[kfg.ATT_FEATS].shape[1:] == (8, data.extractor().dim)

def test_a_picture_that_was_never_in_the_set(tmp_path):
    data = make_scenes(tmp_path/'s', counts=COUNTS)
    ex = data.extractor()
    raw = np.random.default_rng(0).integers(0, 256, (123, 77, 3), dtype=np.uint8)
    np.testing.assert_array_equal(ex(raw)['features'], ex(raw.copy())['features'])
    assert ex(raw)['boxes'][0].tolist() == [0, 0, 77, 123]
