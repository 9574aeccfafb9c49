"Two processes and one folder: the second one is refused, with the name of the first, before it changes anything; or both end with whole results."
import json
import shutil
import socket
import subprocess
import pytest
from PIL import Image
from small import small_captioner
from xmodaler_nb.commands.app import app_main, check_port
from xmodaler_nb.commands.experiment import rename_finished_run
from xmodaler_nb.commands.finetune import finetune_main
from xmodaler_nb.commands.models import run_folder, train_one
from xmodaler_nb.commands.photos import photos_main
from xmodaler_nb.commands.real import real_main
from xmodaler_nb.commands.understand import _copy_whole
from xmodaler_nb.look import page
from xmodaler_nb.modeling.export import export_captioner
from xmodaler_nb.own import CaptionData
from xmodaler_nb.own.real import write_real_dataset
from xmodaler_nb.own.scenes.tasks import write_once
from xmodaler_nb.utils.run_lock import FILE, RunLock, hold, started


@pytest.fixture
def other():
    "Another process that lives."
    p = subprocess.Popen(['sleep', '250'])
    yield p
    p.kill()
    p.wait()

@pytest.fixture
def held(tmp_path, other):
    "A folder in which the other process works."
    def make(name='out'):
        folder = tmp_path/name
        folder.mkdir(parents=True, exist_ok=True)
        (folder/FILE).write_text(json.dumps(dict(pid=other.pid, host=socket.gethostname(), started=started(other.pid), since='12:00')))
        return folder
    return make

def contents(folder): return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob('*') if p.is_file() and p.name != '.written'}

def refused(folder, other, call):
    "The call names the process and the folder, and changes nothing."
    before = contents(folder)
    with pytest.raises(FileExistsError, match=rf'folder {folder} is in use: process {other.pid} on .*Nothing was changed'): call()
    assert contents(folder) == before

def refused_command(folder, other, capsys, main, *args):
    "The same of a command."
    before = contents(folder)
    try: code = main([str(a) for a in args])
    except SystemExit as e: code = e.code
    said = capsys.readouterr().err
    assert code and f'folder {folder} is in use: process {other.pid} on' in said, said
    assert contents(folder) == before


@pytest.fixture
def data(tmp_path):
    (tmp_path/'pictures').mkdir()
    for k in range(6): Image.new('RGB', (9, 9), (k, 0, 0)).save(tmp_path/'pictures'/f'{k}.png')
    (tmp_path/'pictures'/'captions.csv').write_text('image,caption\n' + ''.join(f'{k}.png,a thing {k}\n' for k in range(6)))
    return CaptionData.from_folder(tmp_path/'pictures')

def test_data_that_is_written(data, tmp_path, held, other):
    data.write(tmp_path/'out')
    assert not (tmp_path/'out'/FILE).exists()
    refused(held(), other, lambda: data.write(tmp_path/'out', max_len=3))

def test_a_killed_writer_is_no_hindrance(data, held, other):
    folder = held()
    other.kill()
    other.wait()
    assert data.write(folder).report['counts'] and not (folder/FILE).exists()

def test_neutral_files_that_are_written(tmp_path, held, other): refused(held(), other, lambda: write_real_dataset(tmp_path/'neutral', tmp_path/'out'))

def test_graphs(held, other):
    folder = held()
    refused(folder, other, lambda: export_captioner(small_captioner(), folder))

def test_a_page(held, other, monkeypatch):
    folder = held()
    monkeypatch.setattr(page, 'check_page_model', lambda captioner: None)
    refused(folder, other, lambda: page.write_page(None, folder))

def test_a_folder_that_was_made_for_nothing_goes(tmp_path, monkeypatch):
    def fail(*_): raise ValueError('no pictures')
    monkeypatch.setattr(page, 'check_page_model', lambda captioner: None)
    monkeypatch.setattr(page, 'sample_pictures', fail)
    with pytest.raises(ValueError, match='no pictures'): page.write_page(None, tmp_path/'new')
    assert not (tmp_path/'new').exists()

def test_finetune(tmp_path, held, other, capsys): refused_command(held('out/plain'), other, capsys, finetune_main, '--data', tmp_path, '--out', tmp_path/'out')

def test_photos(tmp_path, held, other, capsys): refused_command(held(), other, capsys, photos_main, '--data', tmp_path, '--train', tmp_path/'out')

def test_real(tmp_path, held, other, capsys):
    "The data beside a run stay as they are while it trains with them."
    refused_command(held('run-data'), other, capsys, real_main, '--data', tmp_path, '--config-file', 'x.yaml', '--output-dir', tmp_path/'run')

def test_models(tmp_path, held, other):
    "A run in which somebody trains was given another name."
    folder = held(run_folder('Up-Down', tmp_path/'models').relative_to(tmp_path))
    refused(folder, other, lambda: train_one('Up-Down', tmp_path/'data', tmp_path/'models', tiny=True))

def test_a_finished_run_whose_report_is_being_written(held, other):
    folder = held()
    (folder/'metrics.json').write_text('{}')
    refused(folder, other, lambda: rename_finished_run(folder))
    other.kill()
    other.wait()
    assert rename_finished_run(folder).name == 'out.1'


def test_the_port_of_an_app(tmp_path, capsys):
    "The server would have taken another port than the address that is printed."
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        s.listen()
        port = s.getsockname()[1]
        with pytest.raises(OSError, match=f'port {port} cannot be used .*choose another one with --port'): check_port(port)
        try: app_main(['--port', str(port), '--model', str(tmp_path)])
        except SystemExit as e: assert e.code
        assert f'port {port} cannot be used' in capsys.readouterr().err
    check_port(port)
    for port in (0, -1, 65536, 10**30):
        with pytest.raises(ValueError, match='--port is '): check_port(port)


def test_two_make_the_same_tasks(tmp_path):
    "The one that ends later uses what is there; something else under that name is an error."
    def write(made_of):
        def fill(folder):
            (folder/'tasks.json').write_text(json.dumps(dict(made_of=made_of)))
            shutil.copytree(folder, tmp_path/'tasks')                         # the other process is faster
        return fill
    write_once(tmp_path/'tasks', {'seed': 1}, write({'seed': 1}))
    assert [p.name for p in tmp_path.iterdir()] == ['tasks'] and [p.name for p in (tmp_path/'tasks').iterdir()] == ['tasks.json']
    shutil.rmtree(tmp_path/'tasks')
    with pytest.raises(OSError): write_once(tmp_path/'tasks', {'seed': 1}, write({'seed': 2}))

def test_a_copy_is_whole(tmp_path, monkeypatch):
    (tmp_path/'a').write_bytes(b'new')
    (tmp_path/'b').write_bytes(b'old')
    monkeypatch.setattr(shutil, 'copyfile', lambda s, p: (p.write_bytes(b'n'), 1/0))
    with pytest.raises(ZeroDivisionError): _copy_whole(tmp_path/'a', tmp_path/'b')
    assert (tmp_path/'b').read_bytes() == b'old'

def test_a_lock_within_a_lock(tmp_path):
    "One process may take it again; it stays locked until the first one is given back."
    with hold(tmp_path/'a'):
        with RunLock(tmp_path/'a'): pass
        assert (tmp_path/'a'/FILE).exists()
    assert not (tmp_path/'a').exists()


def test_pictures_are_unpacked_whole(tmp_path, monkeypatch):
    "What a killed call left half of a picture of had its name, and counted as there."
    import tarfile
    from pathlib import Path
    from xmodaler_nb.commands.neighbour import split_pictures
    (tmp_path/'data').mkdir()
    (tmp_path/'a.jpg').write_bytes(b'a picture')
    with tarfile.open(tmp_path/'data'/'images144_val.tar', 'w') as tar: tar.add(tmp_path/'a.jpg', 'x/a.jpg')
    (tmp_path/'data'/'captions_val.jsonl').write_text('{"image_id": 1, "file_name": "a.jpg", "captions": []}\n')
    real = Path.write_bytes
    monkeypatch.setattr(Path, 'write_bytes', lambda p, data: (real(p, data[:3]), 1/0))
    with pytest.raises(ZeroDivisionError): split_pictures(tmp_path/'data', 'val', tmp_path/'out')
    monkeypatch.setattr(Path, 'write_bytes', real)
    assert split_pictures(tmp_path/'data', 'val', tmp_path/'out')['1'].read_bytes() == b'a picture'

@pytest.mark.parametrize('name', ['scores.json', 'scores.csv'])
def test_scores_are_replaced_whole(tmp_path, monkeypatch, name):
    import os
    from xmodaler_nb.commands.score import _write_per_image
    from xmodaler_nb.evaluation import evaluate
    result = evaluate({'a': 'a dog', 'b': 'a cat'}, {'a': ['a dog'], 'b': ['the cat']}, metrics=['BLEU'])
    _write_per_image(result, tmp_path/name)
    before = (tmp_path/name).read_bytes()
    monkeypatch.setattr(os, 'fsync', lambda fd: 1/0)
    with pytest.raises(ZeroDivisionError): _write_per_image(evaluate({'a': 'x'}, {'a': ['a dog']}, metrics=['BLEU']), tmp_path/name)
    assert (tmp_path/name).read_bytes() == before and [p.name for p in tmp_path.iterdir()] == [name]
