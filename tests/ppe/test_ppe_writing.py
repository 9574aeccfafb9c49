"Writers: where files go, what is on the disk after a failure, who waits."
import os
import pytest
import torch
from xmodaler_nb.ppe import writing
from xmodaler_nb.ppe.writing import (LocalFileSystem, ProcessQueueWriter, ProcessWriter, SimpleWriter, StandardWriter, TensorBoardWriter,
    ThreadQueueWriter, ThreadWriter, Writer)


def text(target, f): f.write(str(target).encode())
def fail(target, f): raise OSError('disk full')
def die(target, f): os._exit(3)


def test_the_writers_own_directory_counts(tmp_path):
    w = SimpleWriter(out_dir=str(tmp_path/'own'))
    w.initialize('elsewhere')
    w('a/b.txt', str(tmp_path/'other'), 'x', savefun=text)
    assert (tmp_path/'own'/'a'/'b.txt').read_text() == 'x' and not (tmp_path/'other').exists()
    SimpleWriter()('c.txt', str(tmp_path/'other'), 'y', savefun=text)          # has none: that of the call
    assert (tmp_path/'other'/'c.txt').read_text() == 'y'


def test_torch_save_by_default_and_append(tmp_path):
    w = SimpleWriter(out_dir=str(tmp_path))
    w('t', '', {'w': torch.ones(2)})
    assert torch.equal(torch.load(tmp_path/'t', weights_only=True)['w'], torch.ones(2))
    for i in range(3): w('log', '', i, savefun=text, append=True)
    assert (tmp_path/'log').read_text() == '012'


def test_a_failed_save_leaves_the_old_file(tmp_path):
    w = SimpleWriter(out_dir=str(tmp_path))
    w('t', '', 'old', savefun=text)
    with pytest.raises(OSError, match='disk full'): w('t', '', 'new', savefun=fail)
    assert (tmp_path/'t').read_text() == 'old'


def test_another_file_system_goes_through_a_backup(tmp_path):
    steps = []
    class Store(LocalFileSystem):
        replace = property()
        def rename(self, src, dst):
            steps.append((os.path.basename(src), os.path.basename(dst)))
            super().rename(src, dst)
    w = SimpleWriter(Store(), str(tmp_path))
    for v in ('a', 'b'): w('t', '', v, savefun=text)
    assert steps == [('tmp_t', 't'), ('t', 't.bak'), ('tmp_t', 't')] and os.listdir(tmp_path) == ['t'] and (tmp_path/'t').read_text() == 'b'


def test_local_file_system(tmp_path):
    fs = LocalFileSystem()
    fs.mkdir(tmp_path/'d')
    fs.makedirs(tmp_path/'d'/'e')
    with fs.open(str(tmp_path/'d'/'f'), 'wb') as f: f.write(b'x')
    assert fs.list(tmp_path/'d') == ['e', 'f'] and fs.isdir(tmp_path/'d'/'e') and fs.stat(tmp_path/'d'/'f').st_size == 1
    fs.remove(tmp_path/'d'/'f')
    assert not fs.exists(tmp_path/'d'/'f')


@pytest.mark.parametrize('cls', [SimpleWriter, ThreadWriter, ProcessWriter, ThreadQueueWriter, ProcessQueueWriter])
def test_every_writer_writes_all(cls, tmp_path):
    w = cls(out_dir=str(tmp_path))
    w.initialize('')
    for i in range(3): w(f'{i}', '', i, savefun=text)
    w.finalize()
    assert sorted(os.listdir(tmp_path)) == ['0', '1', '2'] and (tmp_path/'2').read_text() == '2'
    w.finalize()                                     # a second time: nothing happens


@pytest.mark.parametrize('cls, job', [(ThreadWriter, fail), (ProcessWriter, die), (ThreadQueueWriter, fail), (ProcessQueueWriter, die)])
def test_a_failed_worker_is_reported(cls, job, tmp_path, capsys):
    w = cls(out_dir=str(tmp_path))
    w('x', '', 0, savefun=job)
    with pytest.raises(RuntimeError, match='exit code'): w.finalize()


def test_the_bases_say_what_is_missing(tmp_path):
    for call in (lambda: Writer()('x', '', 0), lambda: StandardWriter()('x', '', 0), lambda: writing.QueueWriter()('x', '', 0)):
        with pytest.raises(TypeError, match='must define'): call()


def test_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    w = TensorBoardWriter(str(tmp_path), stats=['loss'])
    w.initialize('')
    for i in range(3): w('log', '', [{'iteration': j, 'loss': float(j), 'other': 1} for j in range(i + 1)])
    with pytest.raises(TypeError): w('log', '', 'text')
    w.finalize()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(e.step, e.value) for e in events.Scalars('loss')] == [(0, 0.), (1, 1.), (2, 2.)] and events.Tags()['scalars'] == ['loss']


def test_without_tensorboard(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__('sys').modules, 'torch.utils.tensorboard', None)
    with pytest.warns(UserWarning, match='not installed'): w = TensorBoardWriter(str(tmp_path))
    w('log', '', [{'iteration': 1}])
    w.finalize()
