"METEOR's compiled table without a usable cache folder: the scores are the same, and the log says it once."
import gzip
import logging
import os
import numpy as np
import pytest
from xmodaler_nb.evaluation import meteor_tables

LINES = b'0.5\na dog\nthe hound\n0.25\na cat\nthe feline\n'
ARRAYS = ('lhs', 'start', 'rhs')


@pytest.fixture
def table(tmp_path):
    with gzip.open(tmp_path/'p.gz', 'wb') as f: f.write(LINES)
    return tmp_path/'p.gz'


def same(a, b): return all(np.array_equal(getattr(a, n), getattr(b, n)) for n in ARRAYS)


def warnings(caplog): return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


def test_a_folder_that_cannot_be_written(table, tmp_path, monkeypatch, caplog):
    def denied(*args, **kwargs): raise PermissionError(13, 'Permission denied', str(tmp_path/'no'))
    want = meteor_tables.load_index(table, tmp_path/'yes')
    monkeypatch.setattr(meteor_tables.tempfile, 'TemporaryDirectory', denied)
    for _ in range(3): assert same(meteor_tables.load_index(table, tmp_path/'no'), want)
    said = warnings(caplog)
    assert len(said) == 1 and 'Permission denied' in said[0] and 'XMODALER_CACHE' in said[0] and str(tmp_path/'no') in said[0]


def test_a_folder_that_may_not_be_entered(table, tmp_path, monkeypatch, caplog):
    "`stat` and `open` are refused as well."
    want = meteor_tables.load_index(table, tmp_path/'closed')
    real = os.stat
    def refused(path, *args, **kwargs):
        if 'closed' in str(path): raise PermissionError(13, 'Permission denied', str(path))
        return real(path, *args, **kwargs)
    monkeypatch.setattr(os, 'stat', refused)
    monkeypatch.setattr(meteor_tables.np, 'load', lambda path, **how: refused(path))
    for _ in range(2): assert same(meteor_tables.load_index(table, tmp_path/'closed'), want)
    assert len(warnings(caplog)) <= 2


def test_a_file_where_the_folder_should_be(table, tmp_path, caplog):
    (tmp_path/'file').write_text('not a folder')
    assert same(meteor_tables.load_index(table, tmp_path/'file'/'cache'), meteor_tables.load_index(table, tmp_path/'cache'))
    assert len(warnings(caplog)) == 1


@pytest.mark.parametrize('keep', [0, 7, -3])
def test_a_damaged_cache(table, tmp_path, keep, caplog):
    want = meteor_tables.load_index(table, tmp_path/'cache')
    lhs = next((tmp_path/'cache').rglob('lhs.npy'))
    data = lhs.read_bytes()
    del want
    want = meteor_tables.load_index(table, tmp_path/'other')
    lhs.write_bytes(data[:keep])
    assert same(meteor_tables.load_index(table, tmp_path/'cache'), want)
    assert any('cannot be read' in w and 'remove it' in w for w in warnings(caplog))
