"Signs: bad files, preprocessing that stops and goes on, and removal that lists before it deletes."
import json
import numpy as np
import pytest
from xmodaler_nb.asl.config import settings
from xmodaler_nb.asl.data import prepare
from xmodaler_nb.asl.data.clean import (REMOVED, calculate_avg_landmark_positions, calculate_landmark_length_stats,
    remove_outlier_or_missing_data, remove_unusable_data)
from xmodaler_nb.asl.data.dataset import ASL_DATASET
from xmodaler_nb.asl.data.prepare import mean_and_std, preprocess_data_item, preprocess_raw_data, processed_path
from xmodaler_nb.asl.parquet import load_relevant_data_subset, write_parquet
from xmodaler_nb.asl.signs import sign_rows, write_signs

pd = pytest.importorskip('pandas')
pytest.importorskip('pyarrow')


@pytest.fixture(scope='module')
def rows(): return sign_rows('wave', 1, frames=5)


@pytest.fixture
def table(rows, tmp_path): return pd.read_parquet(write_parquet(tmp_path/'good.parquet', rows, first=7))


@pytest.fixture
def root(tmp_path):
    with settings.changed(ROOT_PATH=tmp_path):
        write_signs(settings.path('RAW_DATA_DIR'), signs=2, signers=2, takes=2)
        yield tmp_path


# one file

@pytest.mark.parametrize('change', [
    lambda t: t, lambda t: t.sample(frac=1, random_state=1), lambda t: t.sort_values('landmark_index'),
    lambda t: t.astype(dict(frame='int64', landmark_index='int64')), lambda t: t.astype(dict(frame='int32', landmark_index='uint16', type='category')),
    lambda t: t.astype(dict(x='float32', y='float32', frame='float64')), lambda t: t.assign(frame=3*t.frame), lambda t: t[['x', 'y']],
    lambda t: pd.concat([t[t.type != 'left_hand'], t[t.type == 'left_hand']]).sort_values('frame', kind='stable')],
    ids=['as is', 'shuffled', 'by landmark', 'int64', 'category', 'float frames', 'gaps in frame numbers', 'x and y only', 'hand last'])
def test_the_same_clip(rows, table, tmp_path, change):
    change(table).to_parquet(tmp_path/'x.parquet')
    got = load_relevant_data_subset(tmp_path/'x.parquet')
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, rows[...,:2])


@pytest.mark.parametrize('change, message', [
    (lambda t: t[:0], 'has no rows'), (lambda t: t.drop(columns='x'), "no column 'x'"), (lambda t: t.assign(y='high'), "column 'y' must hold numbers"),
    (lambda t: t.assign(type='elbow'), "type 'elbow'"), (lambda t: t.assign(landmark_index=500), 'landmark_index 500 of face'),
    (lambda t: t[['x', 'y']][:600], "without 'frame' cannot be sorted")], ids=['empty', 'no x', 'text', 'type', 'index', 'unsortable'])
def test_refused(table, tmp_path, change, message):
    change(table).to_parquet(tmp_path/'bad.parquet')
    with pytest.raises(ValueError, match=message) as e: load_relevant_data_subset(tmp_path/'bad.parquet')
    assert 'bad.parquet' in str(e.value)


def test_not_a_parquet_file(tmp_path):
    (tmp_path/'x.parquet').write_bytes(b'PAR1 and no more')
    with pytest.raises(ValueError, match='cannot be read as parquet'): load_relevant_data_subset(tmp_path/'x.parquet')
    with pytest.raises(FileNotFoundError, match='gone.parquet'): load_relevant_data_subset(tmp_path/'gone.parquet')


def test_duplicate_frames(rows, table, tmp_path):
    "The first of each row counts, and it is said."
    twice = table[table.frame == 8].assign(x=9.)
    pd.concat([table, twice]).to_parquet(tmp_path/'x.parquet')
    with pytest.warns(UserWarning, match='543 of 3258 rows repeat'): got = load_relevant_data_subset(tmp_path/'x.parquet')
    np.testing.assert_array_equal(got, rows[...,:2])


@pytest.mark.parametrize('n, fill, usable', [(1, .4, 1), (5000, .4, 5000), (6, np.nan, 0)], ids=['one frame', '5,000 frames', 'nothing detected'])
def test_extreme_files(tmp_path, n, fill, usable):
    pd.DataFrame(dict(x=np.full(n*543, fill), y=np.full(n*543, fill))).to_parquet(tmp_path/'x.parquet')
    item = preprocess_data_item(tmp_path/'x.parquet', 3)
    assert (item['target'], item['size'], item['orig_size'], item['usable_size']) == (3, 32, n, usable)
    assert np.allclose(item['landmarks'], .4 if usable else 0)


# a folder

def change_csv(old, new):
    path = settings.path('RAW_DATA_DIR', 'train.csv')
    path.write_text(path.read_text().replace(old, new, 1))


@pytest.mark.parametrize('old, new, message', [('circle', 'dance', "'dance' is not in sign_to"), ('/0/1000.', '/0/77.', '0/77.parquet does not exist'),
    ('0,1,wave', '0,0,wave', 'participant 0, sequence 0 comes twice'), ('sign\n', 'word\n', "no column 'sign'")], ids=['label', 'file', 'twice', 'column'])
def test_table_is_checked_first(root, monkeypatch, old, new, message):
    change_csv(old, new)
    monkeypatch.setattr(prepare, '_prepare_row', lambda row: pytest.fail('a clip was read'))
    with pytest.raises(ValueError, match=message): preprocess_raw_data(progress=False)
    assert not settings.path('PROCESSED_DATA_DIR').exists()


def test_stops_and_goes_on(root, monkeypatch):
    "Interrupted after three clips: the second run reads five, and the result is that of one run."
    plain, seen = prepare._prepare_row, []

    def row(r):
        if len(seen) == 3: raise KeyboardInterrupt
        seen.append(r['sequence_id'])
        return plain(r)
    monkeypatch.setattr(prepare, '_prepare_row', row)
    with pytest.raises(KeyboardInterrupt): preprocess_raw_data(progress=False)
    assert not (settings.path('PROCESSED_DATA_DIR')/'train.csv').exists()
    monkeypatch.setattr(prepare, '_prepare_row', lambda r: seen.append(r['sequence_id']) or plain(r))
    table = preprocess_raw_data(progress=False)
    assert len(seen) == 8 == len(table)
    fresh = [preprocess_data_item(p, t) for p, t in zip(table.path, table.target)]
    for k, item in zip(zip(table.participant_id, table.sequence_id), fresh): np.testing.assert_array_equal(np.load(processed_path(*k)), item['landmarks'])
    for k in ('size', 'orig_size', 'usable_size'): assert table[k].tolist() == [i[k] for i in fresh]
    monkeypatch.setattr(prepare, '_prepare_row', lambda r: pytest.fail('the marker was ignored'))
    assert preprocess_raw_data(progress=False).equals(table)


def test_unreadable_file_is_left_out_and_named(root):
    settings.path('RAW_DATA_DIR', 'train_landmark_files/1/0.parquet').write_bytes(b'')
    with pytest.warns(UserWarning, match='1 of 8 clips could not be read'): table = preprocess_raw_data(progress=False)
    assert len(table) == 7 and '1/0.parquet' in (settings.path('PROCESSED_DATA_DIR')/'unreadable.csv').read_text()
    assert len(list(settings.path('PROCESSED_DATA_DIR').rglob('*.npy'))) == 7 + 2


def test_statistics_leave_out_zeros(root):
    table = preprocess_raw_data(sample=5, progress=False)
    assert len(table) == 5
    x = np.concatenate([np.load(processed_path(*k)) for k in zip(table.participant_id, table.sequence_id)]).astype(float)
    x[x == 0] = np.nan
    mean = np.load(settings.path('PROCESSED_DATA_DIR', 'mean.npy'))
    there = ~np.isnan(x).all(0)
    np.testing.assert_allclose(mean[there], np.nanmean(x[:,there], 0), rtol=1e-6)
    np.testing.assert_allclose(np.load(settings.path('PROCESSED_DATA_DIR', 'std.npy'))[there], np.nanstd(x[:,there], 0), rtol=1e-4, atol=1e-6)
    assert np.isnan(mean_and_std([np.zeros((3, 96, 2))])[0]).all()


def test_dataset_reads_the_folder(root):
    with pytest.raises(FileNotFoundError, match='run preprocess_raw_data'): ASL_DATASET()
    table = preprocess_raw_data(progress=False)
    ds = ASL_DATASET(standardize=False)
    assert len(ds) == 8 and 'participants=[0, 1]' in repr(ds)
    x, y = ds[5]
    np.testing.assert_array_equal(x, np.load(processed_path(*table.iloc[5][['participant_id', 'sequence_id']])))
    assert y == table.target[5]
    place = calculate_avg_landmark_positions(ds)
    assert set(place) == {'wave', 'circle'} and set(place['wave']) == {'left_hand', 'right_hand', 'face'}


def lengthen(table):
    "Make one clip of `wave` far too long and one of `circle` far too short."
    table.loc[table.index[0], 'size'], table.loc[table.index[2], 'size'] = 900, 2
    table.loc[table.index[5:], 'size'] = 30
    table.to_csv(settings.path('PROCESSED_DATA_DIR', 'train.csv'), index=False)


def test_removal_lists_first(root):
    "A dry run is the default. The original kept the row of a missing file; here it goes."
    table = preprocess_raw_data(progress=False)
    stats = calculate_landmark_length_stats()
    assert set(stats['wave']) == {'min', 'max', 'mean', 'std', 'med'}
    lengthen(table)
    processed_path(1, 1).unlink()
    before = sorted(root.rglob('*'))
    listed = remove_outlier_or_missing_data(stats)
    assert listed.reason.tolist() == ['longer than 32', 'shorter than 10', 'the file is missing']
    assert sorted(root.rglob('*')) == before                            # nothing happened
    documented = listed[listed.reason != 'the file is missing']
    assert len(table) - len(documented) == 6                            # rows the original leaves: one without a file
    remove_outlier_or_missing_data(stats, dry_run=False)
    left = pd.read_csv(settings.path('PROCESSED_DATA_DIR', 'train.csv'))
    assert len(left) == 5 and not processed_path(0, 0).exists() and processed_path(0, 1).exists()
    assert len(pd.read_csv(settings.path('PROCESSED_DATA_DIR', REMOVED))) == 3
    assert json.loads(settings.path('PROCESSED_DATA_DIR', 'cleansed_data.marker').read_text()) == ['outliers']
    assert not len(remove_outlier_or_missing_data(stats))


def test_unusable(root):
    table = preprocess_raw_data(progress=False)
    table.loc[3, 'usable_size'] = 7
    table.to_csv(settings.path('PROCESSED_DATA_DIR', 'train.csv'), index=False)
    few = int((table.usable_size < 8).sum())
    assert len(remove_unusable_data()) == few >= 1 and len(pd.read_csv(settings.path('PROCESSED_DATA_DIR', 'train.csv'))) == 8
    assert remove_unusable_data(dry_run=False).reason.str.contains('7 frames').any()
    assert len(pd.read_csv(settings.path('PROCESSED_DATA_DIR', 'train.csv'))) == 8 - few
    assert not len(remove_unusable_data()) and len(remove_unusable_data(skip_check=True)) == 0
