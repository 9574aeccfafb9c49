"A captioner says when a picture is unlike those that it was trained on."
import logging, sys
from pathlib import Path
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]/'cli'))
from test_commands import run
from xmodaler_nb.datasets.layout import write_tiny
from xmodaler_nb.captioner import Captioner
from xmodaler_nb.datasets.familiar import measure
from xmodaler_nb.own.scenes.draw import render, sample_scene
from xmodaler_nb.own.scenes.features import SceneFeatures


@pytest.fixture
def data(tmp_path): return write_tiny(tmp_path/'data', n=80)


def test_stored_with_the_checkpoint_and_the_captioner(data, tmp_path):
    assert run(data, tmp_path/'run', 'SOLVER.EPOCH', 1) == 0
    cap = Captioner.from_pretrained(tmp_path/'run')
    files = sorted((data/'features').glob('*.npz'))
    again = Captioner.from_pretrained(cap.save_pretrained(tmp_path/'c'))
    for c in (cap, again):
        unlike = [x.unlike for x in c.describe(files)]
        assert np.mean(np.array(unlike) <= 1) > .75                     # a few of its own are always beyond
        log = logging.getLogger('xmodaler_nb.captioner.picture_model')
        seen, handler = [], logging.Handler()
        handler.emit = lambda record: seen.append(record.getMessage())
        log.addHandler(handler)
        far, near = c.describe([np.full((3, 4), 99, dtype='float32'), files[np.argmin(unlike)]], ids=['far', 'near'])
        log.removeHandler(handler)
        assert far.unlike > 1 >= near.unlike
        assert seen == ['1 of 2 pictures are unlike those that the model was trained on (far); their captions may mean nothing']


def test_captioner_without_the_file(data, tmp_path):
    assert run(data, tmp_path/'run', 'SOLVER.EPOCH', 1) == 0
    cap = Captioner.from_pretrained(tmp_path/'run')
    cap.familiar = None
    assert Captioner.from_pretrained(cap.save_pretrained(tmp_path/'c')).describe(np.full((3, 4), 99.)).unlike is None


def test_photograph_like_pictures_are_unlike_scenes():
    extractor, rng = SceneFeatures(), np.random.default_rng(0)
    scenes = [extractor(render(sample_scene(rng)))['features'] for _ in range(160)]
    known = measure(scenes[:60], scenes[60:100])
    assert np.mean([known.unlikeness(f) > 1 for f in scenes[100:]]) <= .2
    y, x = np.mgrid[:64, :64]/64
    sky = np.stack([120 + 90*y, 150 + 60*y, 255 - 150*y*x], -1) + rng.normal(0, 25, (64, 64, 3))      # a gradient with grain
    for other in (rng.integers(0, 256, (64, 64, 3)), sky.clip(0, 255)):
        assert known.unlikeness(extractor(other.astype(np.uint8))['features']) > 1


def test_few_pictures_say_nothing(tmp_path):
    data = write_tiny(tmp_path/'few', n=8)
    assert run(data, tmp_path/'run', 'SOLVER.EPOCH', 1) == 0
    assert not (tmp_path/'run'/'model_final'/'familiar.json').exists()
