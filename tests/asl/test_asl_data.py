"Signs: the augmentations and the resampling rule, each trap with the documented and the mended value; the data set and its loaders."
import json
import os
import subprocess
import sys
import numpy as np
import pytest
from xmodaler_nb.asl import augmentations as aug
from xmodaler_nb.asl import config
from xmodaler_nb.asl.clips import load_clips, used_landmarks
from xmodaler_nb.asl.data.dataset import ASL_DATASET
from xmodaler_nb.asl.data.loaders import create_data_loaders
from xmodaler_nb.asl.data.resample import (interpolate_missing_values, prepare_clip, prepare_clips, preprocess_data,
    preprocess_data_to_same_size)
from xmodaler_nb.asl.parquet import load_relevant_data_subset
from xmodaler_nb.asl.signs import make_signs, sign_rows

NAN = np.nan


@pytest.fixture(scope='module')
def world(): return make_signs(signs=4, signers=2, takes=10)


def test_values_of_constants():
    "Every constant of the inventory has its value, and importing changes no global state."
    folder = os.environ.get('XMODALER_API')
    if not folder: pytest.skip('no API inventory (set XMODALER_API)')
    known = json.loads(open(os.path.join(folder, 'asl.json')).read())['symbols']
    for s in [s for s in known if s['module'] == 'config' and s['name'] != 'ROOT_PATH']:
        value = getattr(config, s['name'])
        want = eval(s['value'], dict(array=np.array))
        assert np.array_equal(value, want) and type(value) is type(want), s['name']
    assert str(config.ROOT_PATH) == '.'


def test_import_has_no_effect():
    code = ("import random, numpy as np; a, b = random.getstate(), np.random.get_state()[1].copy(); import xmodaler_nb.asl, xmodaler_nb.asl.config, sys; "
            "assert a == random.getstate() and (b == np.random.get_state()[1]).all(); assert not {'matplotlib', 'pandas', 'pyarrow', 'sklearn', 'cv2', 'mediapipe', 'PIL'} & set(sys.modules)")
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert not done.returncode, done.stderr


# augmentations

def test_rotation_returns_a_copy():
    "The original turned its input in place."
    x = np.random.default_rng(0).random((5, 96, 3))
    before = x.copy()
    y = aug.random_rotation(x, 30, np.random.default_rng(1))
    assert np.array_equal(x, before) and not np.array_equal(x, y)
    angle = np.random.default_rng(1).uniform(-np.radians(30), np.radians(30))
    c, s = np.cos(angle), np.sin(angle)
    documented = before.copy()                                        # what the original leaves in its input
    documented[...,:2] = documented[...,:2] @ np.array([[c, -s], [s, c]])
    assert not np.array_equal(documented, x) and np.allclose(documented, y)
    np.testing.assert_allclose(y[...,:2], x[...,:2] @ np.array([[c, -s], [s, c]]))
    assert np.array_equal(y[...,2], x[...,2])


@pytest.mark.parametrize('f', [aug.shift_landmarks, aug.mirror_landmarks, aug.random_scaling, aug.random_rotation, aug.frame_dropout, aug.standardize])
def test_inputs_stay(f):
    x = np.random.default_rng(0).random((6, 96, 2)).astype(np.float32)
    before = x.copy()
    y = f(x)
    assert np.array_equal(x, before) and y.dtype == np.float32 and y.shape[1:] == x.shape[1:]


def test_dropout_keeps_order_and_number():
    x = np.arange(40.)[:,None,None]*np.ones((1, 2, 2))
    for rate, n in ((.05, 38), (.5, 20), (0, 40), (.99, 1)):
        kept = aug.frame_dropout(x, rate)[:,0,0]
        assert len(kept) == n and (np.diff(kept) > 0).all()
    assert len(aug.frame_dropout(x[:1], .5)) == 1                     # int(0.5) would be no frame at all
    assert len(aug.frame_dropout(x[:0], .5)) == 0


def test_shift_is_independent_and_bounded():
    d = aug.shift_landmarks(np.zeros((50, 96, 2)), .02)
    assert abs(d).max() <= .02 and d.std() > .01 and len(np.unique(d)) == d.size


# gaps and resampling

def test_gap_is_a_distance():
    "`max_gap=3` is the distance of two valid frames: at most two missing ones between them are filled."
    x = np.array([0, NAN, NAN, 3, NAN, NAN, NAN, 7, NAN])[:,None]
    assert interpolate_missing_values(x) is x                         # changed in place and returned
    np.testing.assert_array_equal(x[:,0], [0, 1, 2, 3, NAN, NAN, NAN, 7, NAN])


@pytest.mark.parametrize('n', [31, 32, 33, 40, 63, 64, 100, 512, 513, 1023, 1024, 1025, 5000])
def test_blocks(n):
    "Repeat, extend the edges, average: against the description with arrays."
    x = np.random.default_rng(n).random((n, 96, 2)).astype(np.float32)
    got, usable = prepare_clip(x)
    assert got.shape == (32, 96, 2) and got.dtype == np.float32 and usable == n
    if n < 32: want = [[np.interp(np.linspace(0, n-1, 32), np.arange(n), x[:,i,d]) for d in range(2)] for i in range(96)]
    if n < 32: return np.testing.assert_allclose(got, np.transpose(want, (2, 0, 1)), atol=1e-5)
    if n == 32: return np.testing.assert_array_equal(got, x)
    y = np.repeat(x.astype(float), 1024//n, 0) if n < 1024 else x.astype(float)
    pool = -(-len(y)//32)
    pad = pool*32 - len(y)
    y = np.pad(y, ((pad//2 + 16, pad//2 + 16 + pad % 2), (0, 0), (0, 0)), 'edge')
    np.testing.assert_allclose(got, y.reshape(32, -1, 96, 2).mean(1), atol=1e-5)


def test_missing_values_are_left_out_of_means():
    x = np.ones((64, 96, 2), np.float32)
    x[::2,82:] = NAN                                                   # the body, every second frame
    x[:,0] = NAN
    got, _ = prepare_clip(x)
    assert np.allclose(got[:,82:], 1) and not got[:,0].any()


def test_order_of_results():
    rows = sign_rows('wave', 1)[...,:2]
    before = rows.copy()
    data, size, original, usable = preprocess_data_to_same_size(rows)
    np.testing.assert_array_equal(rows, before)
    assert (size, original) == (32, len(rows)) and 0 < usable < original and not np.isnan(data).any()


def test_old_variant_fills_with_zeros():
    rows = sign_rows('wave', 1, frames=20, camera=False)[...,:2]
    data, size = preprocess_data(rows)
    assert size == 20 and not data[20:].any()
    np.testing.assert_array_equal(data[:20], rows[:,config.USEFUL_ALL_LANDMARKS])
    assert preprocess_data(sign_rows('wave', 1, frames=50, camera=False)[...,:2])[1] == 32


@pytest.mark.parametrize('rows, usable', [(np.full((9, 543, 2), NAN), 0), (np.zeros((0, 543, 2)), 0), (np.full((1, 543, 2), .5), 1), (np.full((5000, 543, 2), .5), 5000)], ids=['nan', 'empty', 'one', 'long'])
def test_extreme_clips(rows, usable):
    data, size, original, n = preprocess_data_to_same_size(rows)
    assert (n, original) == (usable, len(rows)) and data.shape == (32, 96, 2)
    assert np.allclose(data, .5) if usable else not data.any()


# data set and loaders

def test_item_order_of_steps(world):
    "Zeros are appended before standardisation and stay zero; a transform comes first."
    x = prepare_clips(world)
    ds = ASL_DATASET.from_arrays(x, world.sign, transform=lambda c: c[:20])
    item, target = ds[3]
    assert item.shape == (32, 96, 2) and item.dtype == np.float32 and not item[20:].any() and target == world.sign[3]
    np.testing.assert_allclose(item[:20], aug.standardize(x[3][:20]), atol=1e-5)


def test_augmentation_belongs_to_epoch_and_index(world):
    ds = ASL_DATASET.from_clips(world, augment=True, augmentation_threshold=.6)
    a = [ds[i][0] for i in range(6)]
    assert all(np.array_equal(ds[i][0], a[i]) for i in reversed(range(6)))
    ds.set_epoch(1)
    assert any(not np.array_equal(ds[i][0], a[i]) for i in range(6))
    ds.augment = False
    assert np.array_equal(ds[0][0], ASL_DATASET.from_clips(world)[0][0])


def test_dropout_can_be_off(world):
    x = prepare_clips(world)
    on, off = (ASL_DATASET.from_arrays(x, world.sign, augment=True, augmentation_threshold=1., enableDropout=d, standardize=False)[0][0] for d in (True, False))
    assert not on[30:].any() and off[30:].any()


def test_loaders_are_stratified(world):
    ds = ASL_DATASET.from_clips(world)
    train, valid, test = create_data_loaders(ds, .8, .1, .1, batch_size=8)
    assert [len(l.dataset) for l in (train, valid, test)] == [64, 8, 8]
    for l in (train, valid, test): assert len(set(np.bincount(l.dataset.target))) == 1
    assert train.dataset.augment and not valid.dataset.augment and not ds.augment
    assert [p for p in repr(ds) if p.isdigit()][:2] == ['0', '1']
    with pytest.raises(ValueError, match='too few'): create_data_loaders(ds.subset(slice(40)))
    with pytest.raises(ValueError, match='add up to 1'): create_data_loaders(ds, .8, .1, .2)


# real files

def test_parquet_and_npz_agree(real_data):
    "The 33 clips in competition format give the tensors of their rows in the npz, within its quantisation."
    folder = real_data('isolated_signs')
    clips, lines = load_clips(folder/'sequences.npz'), (folder/'train.csv').read_text().split()[1:]
    where = {(int(p), 1000*int(s) + int(q)): i for i, (p, s, q) in enumerate(zip(clips.participant, clips.sign, clips.sequence))}
    assert len(lines) == 33
    for line in lines:
        path, person, number, sign = line.split(',')
        i = where[int(person), int(number) % 1_000_000]
        rows = load_relevant_data_subset(folder/path)
        assert clips.names[clips.sign[i]] == sign
        a, b = preprocess_data_to_same_size(rows), prepare_clip(used_landmarks(clips, i))
        assert a[3] == b[1]
        np.testing.assert_allclose(a[0], b[0], atol=.5/8192 + 6e-6)                   # the parquet files hold five decimals


def test_letters_are_read(real_data):
    "One frame, int64 columns, nothing missing."
    folder = real_data('isolated_signs')/'single_frame_letters'
    files = sorted(folder.rglob('*.parquet'))
    assert len(files) == 72
    for f in files:
        data, size, original, usable = preprocess_data_to_same_size(load_relevant_data_subset(f))
        assert (original, usable) == (1, 1) and (data == data[0]).all()
