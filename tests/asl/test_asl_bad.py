"Signs: files that are not what they should be, and packages that are not there: a sentence that names the file or the extra."
import json
import sys
import numpy as np
import pytest
import torch
from xmodaler_nb.asl import hparam_search, metrics, parquet, predict_on_camera, predict_on_video, reader, video_utils
from xmodaler_nb.asl.clips import load_clips, save_clips, take_clips
from xmodaler_nb.asl.command import sign_main
from xmodaler_nb.asl.config import settings
from xmodaler_nb.asl.data import loaders, prepare
from xmodaler_nb.asl.models.pytorch import lightning_models, models
from xmodaler_nb.asl.models.tensorflow import models as keras_models
from xmodaler_nb.asl.signer.machine import SignerModel
from xmodaler_nb.asl.signer.numbers import evaluate
from xmodaler_nb.asl.signs import make_signs, sign_rows

pytest.importorskip('pandas')
pytest.importorskip('pyarrow')


@pytest.fixture(scope='module')
def clips(): return make_signs(signs=3, signers=2, takes=1)


@pytest.fixture(scope='module')
def model(clips):
    from xmodaler_nb.asl.data.resample import prepare_clips
    return SignerModel(clips.names).fit(prepare_clips(clips), clips.sign)


@pytest.fixture
def file(clips, tmp_path): return save_clips(clips, tmp_path/'clips.npz')


# clips in one file

@pytest.mark.parametrize('spoil', [lambda b: b[:len(b)//2], lambda b: b'', lambda b: b'no clips', lambda b: b[:len(b)//3] + bytes([b[len(b)//3] ^ 255]) + b[len(b)//3+1:]],
    ids=['half', 'empty', 'text', 'one byte changed'])
def test_npz_that_is_not_one(file, model, spoil):
    file.write_bytes(spoil(file.read_bytes()))
    with pytest.raises(ValueError, match='clips.npz cannot be read as .npz'): evaluate(str(file), model)


@pytest.mark.parametrize('key, change, message', [('sign', lambda a: a + 9, 'class 9 is used, but the 3 signs'), ('sign', lambda a: a - 1, 'class -1 is used'),
    ('sign', lambda a: a[1:], '6 clips, but 5 of `sign`'), ('participant', lambda a: a[1:], '6 clips, but 5 of `participant`'), ('length', lambda a: a + 1, 'the lengths add up to'),
    ('landmark', lambda a: a[::-1], '`landmark` must ascend'), ('xyz_q', lambda a: a[:,1:], r'must be \(frames, landmarks, 3\)')], ids=['class', 'negative', 'signs', 'people', 'length', 'landmark', 'columns'])
def test_npz_whose_arrays_disagree(file, model, key, change, message):
    arrays = dict(np.load(file))
    np.savez(file, **{**arrays, key: change(arrays[key])})
    with pytest.raises(ValueError, match=message): evaluate(file, model)


def test_labels_unknown_to_the_model_or_to_the_map(file, model, clips):
    index = file.with_name(settings.MAP_JSON_FILE)
    index.write_text(json.dumps({n + '!': i for i, n in enumerate(clips.names)}))
    with pytest.raises(ValueError, match=f'does not know: {clips.names[1]}!'): evaluate(file, model)
    index.write_text('{"wave": 0,')
    with pytest.raises(ValueError, match=f'{settings.MAP_JSON_FILE} cannot be read as JSON'): evaluate(file, model)
    index.write_text('{"wave": 1, "circle": 2}')
    with pytest.raises(ValueError, match='the classes must be 0, 1'): evaluate(file, model)
    with pytest.raises(FileNotFoundError, match='gone.npz: no such file'): load_clips(file.with_name('gone.npz'))


def test_clips_of_nothing(file, model, clips):
    "NaN everywhere: an answer, right or not, for each; no clip at all: a sentence."
    clips = load_clips(file)
    with pytest.raises(ValueError, match='holds no clip'): evaluate(save_clips(take_clips(clips, []), file), model)
    clips.xyz[:] = np.nan
    found = evaluate(save_clips(clips, file), model)
    assert len(found.chosen) == 6 and found.confusion.sum() == 6


# one clip in one file

def test_parquet_with_a_spoiled_page(tmp_path):
    "Header and footer are fine; the numbers are not."
    path = parquet.write_parquet(tmp_path/'x.parquet', sign_rows('wave', 1, frames=20))
    data = bytearray(path.read_bytes())
    for i in range(len(data)//2, len(data)//2 + 4000): data[i] ^= 0x5a
    path.write_bytes(data)
    with pytest.raises(ValueError, match='x.parquet cannot be read as parquet'): parquet.load_relevant_data_subset(path)


def test_many_files_in_order(tmp_path):
    "Shuffled rows, several row groups, other numbers of frames, read by three threads; a bad file is named when its turn comes."
    import pyarrow.parquet as pq
    rows = [sign_rows('wave', 1, frames=n) for n in (9, 4, 1, 12, 7)]
    files = [parquet.write_parquet(tmp_path/f'{i}.parquet', r) for i, r in enumerate(rows)]
    pq.write_table(pq.read_table(files[0]), files[0], row_group_size=1000)                           # a frame is cut in two
    pq.write_table(pq.read_table(files[3]).take(np.random.default_rng(0).permutation(12*543)), files[3])
    for got, want in zip(parquet.load_landmark_files(files*3, threads=3), rows*3, strict=True): np.testing.assert_array_equal(got, want[...,:2])
    files[2].write_bytes(b'PAR1')
    some = parquet.load_landmark_files(files)
    assert len(next(some)) == 9 and len(next(some)) == 4
    with pytest.raises(ValueError, match='2.parquet'): next(some)


def test_hands_that_changed_places_are_seen(tmp_path):
    "Only `type` tells left from right: two blocks of 21 rows in the second frame stand in each other's place."
    rows = sign_rows('lift', 1, frames=4, camera=False)
    path = parquet.write_parquet(tmp_path/'x.parquet', rows)
    import pyarrow.parquet as pq
    order = np.arange(4*543)
    order[543+468:543+489], order[543+522:543+543] = np.arange(543+522, 543+543), np.arange(543+468, 543+489)
    pq.write_table(pq.read_table(path).take(order), path)
    np.testing.assert_array_equal(parquet.load_relevant_data_subset(path), rows[...,:2])


def test_command_names_every_bad_file_and_goes_on(tmp_path, capsys):
    good = parquet.write_parquet(tmp_path/'good.parquet', sign_rows('wave', 1))
    bad = {n: tmp_path/n for n in ('text.npy', 'broken.mp4', 'empty.parquet')}
    for p in bad.values(): p.write_text('nothing')
    assert sign_main([*map(str, bad.values()), str(tmp_path/'gone.npy'), str(tmp_path), str(good), '--json']) == 1
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == 1 and json.loads(said.out)['file'].endswith('good.parquet')
    lines = said.err.splitlines()
    assert len(lines) == 5 and all(l.startswith('xm-sign: ') for l in lines)
    for name, line in zip([*bad, 'gone.npy', 'no pictures in this folder'], lines): assert name in line


# packages

def lightning(): lightning_models.LightningBaseModel(.1)

def stratified(): loaders.split_indices(np.zeros(9, int), .6, .2, .2)


@pytest.mark.parametrize('hidden, call, extra', [
    ('mediapipe', lambda p: video_utils.convert_frames_to_landmarks([1]), 'mediapipe'), ('mediapipe', lambda p: reader.landmarks_of([1]), 'mediapipe'),
    ('cv2', lambda p: list(predict_on_camera.camera_frames(0)), 'camera'), ('cv2', lambda p: predict_on_video.WindowDisplay(), 'camera'),
    ('lightning', lambda p: lightning(), 'lightning'), ('keras', lambda p: keras_models.LSTMPredictor(), 'keras'),
    ('tensorflow', lambda p: loaders.to_TF_DataLoader(*[None]*2), 'tensorflow'), ('torchvision', lambda p: models.named_backbone('resnet18'), 'vision'),
    ('optuna', lambda p: hparam_search.open_study(p/'study.db'), 'search'), ('pyarrow', lambda p: parquet.load_relevant_data_subset(p/'x.parquet'), 'signs'),
    ('pyarrow', lambda p: parquet.write_parquet(p/'x.parquet', np.zeros((1, 543, 3))), 'signs'), ('pandas', lambda p: prepare._read_csv(p/'train.csv'), 'signs'),
    ('pandas', lambda p: video_utils.convert_mp_to_df(np.zeros((543, 3))), 'signs'), ('sklearn', lambda p: metrics.f1score(torch.eye(2), torch.tensor([0, 1])), 'signs'),
    ('sklearn', lambda p: stratified(), 'signs')], ids=lambda v: v if isinstance(v, str) else '')
def test_absence_names_the_extra(hidden, call, extra, monkeypatch, tmp_path):
    "Every optional package, hidden: the error says what to install, and nothing is left behind."
    (tmp_path/'train.csv').write_text('path,participant_id,sequence_id,sign\n')
    before = sorted(tmp_path.iterdir())
    for name in [hidden, *(m for m in sys.modules if m.startswith(hidden + '.'))]: monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(lightning_models, 'LightningModule', None)
    with pytest.raises(ImportError, match=fr'this needs {hidden}.*xmodaler_nb\[{extra}\]'): call(tmp_path)
    assert sorted(tmp_path.iterdir()) == before
