"A data folder may be written by two programs at once, or read while it is written again: a reader finds whole files."
import threading
import numpy as np
import pytest
from xmodaler_nb.datasets.layout import write_features, write_frames
from xmodaler_nb.functional import read_np


@pytest.mark.parametrize('write, ending', [(lambda d, i, a: write_features(d, i, features=a), 'npz'), (lambda d, i, a: write_frames(d, i, a), 'npy')], ids=['regions', 'frames'])
def test_whole_files(write, ending, tmp_path):
    a, path, over, errors = np.arange(120_000, dtype=np.float32).reshape(100, -1), tmp_path/f'7.{ending}', threading.Event(), []
    write(tmp_path, 7, a)

    def read():
        while not over.is_set():
            try:
                found = read_np(path)
                found = found['features'] if isinstance(found, dict) else found
                assert np.array_equal(found, a)
            except Exception as e: errors.append(e)
    readers = [threading.Thread(target=read) for _ in range(2)]
    for t in readers: t.start()
    for _ in range(15): write(tmp_path, 7, a)
    over.set()
    for t in readers: t.join()
    assert not errors, errors[0]
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
