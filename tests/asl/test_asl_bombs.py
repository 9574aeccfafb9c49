"Signs: small files that declare more than they hold end with a sentence that names them, at once."
import io
import time
import zipfile
import numpy as np
import pytest
from xmodaler_nb.asl.clips import load_clips, save_clips
from xmodaler_nb.asl.command import sign_main
from xmodaler_nb.asl.parquet import load_relevant_data_subset
from xmodaler_nb.asl.signs import make_signs

resource = pytest.importorskip('resource')


def header(shape, dtype='<f4'):
    "The beginning of a .npy file."
    f = io.BytesIO()
    np.lib.format.write_array_header_1_0(f, dict(descr=dtype, fortran_order=False, shape=shape))
    return f.getvalue()


def zeros_npz(path, **shapes):
    "An archive of zeros, packed."
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED, compresslevel=9) as z:
        for name, shape in shapes.items():
            with z.open(f'{name}.npy', 'w', force_zip64=True) as f:
                f.write(header(shape))
                for _ in range(int(np.prod(shape))*4//2**20): f.write(bytes(2**20))


def clips_bomb(path):
    "The clips' own arrays, and 300 MB of zeros among them."
    save_clips(make_signs(signs=2, signers=1, takes=1), path)
    with np.load(path) as z: others = {k: v for k, v in z.items() if k != 'xyz_q'}
    np.savez(path.with_name('others.npz'), **others)
    zeros_npz(path, xyz_q=(300, 2**18))
    with zipfile.ZipFile(path, 'a') as a, zipfile.ZipFile(path.with_name('others.npz')) as b:
        for name in b.namelist(): a.writestr(name, b.read(name))


def memory(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1e3      # MB


@pytest.fixture
def limits():
    "Little time, little memory."
    start, before = time.process_time(), memory()
    yield
    assert time.process_time() - start < 6 and memory() - before < 250


@pytest.mark.parametrize('content', [header((10**12,)), header((10**6, 543, 3)) + bytes(100), header((2, 543, 3), '|O') + b'x', b'\x93NUMPY', b'PK\x05\x06' + bytes(18), header((-1, 543, 3))],
                         ids=['huge', 'cut off', 'objects', 'beginning', 'archive', 'negative'])
def test_landmarks_of_a_numpy_file(tmp_path, capsys, limits, content):
    (tmp_path/'x.npy').write_bytes(content)
    assert sign_main([str(tmp_path/'x.npy')]) == 1
    out, err = capsys.readouterr()
    assert 'x.npy cannot be read as .npy' in out + err and 'Traceback' not in err


def test_clips_that_unpack_to_more(tmp_path):
    clips_bomb(tmp_path/'clips.npz')
    assert (tmp_path/'clips.npz').stat().st_size < 2**20
    start, before = time.process_time(), memory()
    with pytest.raises(ValueError, match='clips.npz cannot be read as .npz: its arrays would unpack to more than 100 times the file'): load_clips(tmp_path/'clips.npz')
    assert time.process_time() - start < 2 and memory() - before < 250


def test_parquet_of_millions_of_equal_rows(tmp_path, limits):
    pa, pq = pytest.importorskip('pyarrow'), pytest.importorskip('pyarrow.parquet')
    column = pa.array(np.zeros(2**20), pa.float64())
    with pq.ParquetWriter(tmp_path/'x.parquet', pa.schema([('x', pa.float64()), ('y', pa.float64())])) as w:
        for _ in range(20): w.write_table(pa.table(dict(x=column, y=column)), row_group_size=2**20)
    assert (tmp_path/'x.parquet').stat().st_size < 300_000
    with pytest.raises(ValueError, match='x.parquet: declares 20971520 rows, far more than the file holds'): load_relevant_data_subset(tmp_path/'x.parquet')


def test_the_base_of_an_extractor(tmp_path, limits):
    from xmodaler_nb.own.reduce import published_extractor
    zeros_npz(tmp_path/'pca.npz', grid_mean=(300, 2**18))
    with pytest.raises(ValueError, match='unpack to more'): published_extractor(tmp_path/'pca.npz', 'patches')


def test_clips_are_written_whole_or_not_at_all(tmp_path, monkeypatch):
    "A disk that is full in the middle leaves the clips of before."
    clips = make_signs(signs=2, signers=1, takes=1)
    save_clips(clips, tmp_path/'clips.npz')
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    def full(f, **arrays):
        f.write(b'PK half of it')
        raise OSError(28, 'No space left on device')
    monkeypatch.setattr(np, 'savez_compressed', full)
    with pytest.raises(OSError, match='No space'): save_clips(make_signs(signs=3, signers=1, takes=1), tmp_path/'clips.npz')
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
