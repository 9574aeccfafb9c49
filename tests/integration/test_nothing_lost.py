"Saving and training remove only what they wrote: whatever else stands in a folder stays, or the call is refused."
import os
from pathlib import Path
import pytest, torch
from xmodaler_nb.captioner import Captioner
from xmodaler_nb.checkpoint import XmodalerCheckpointer
from xmodaler_nb.commands.models import models_main, read_rows
from xmodaler_nb.own.scenes import make_scenes
from xmodaler_nb.utils.checkpoint_files import read_checkpoint, recover, remove_dir, set_aside, write_checkpoint
from small import small_captioner


@pytest.fixture(scope='module')
def cap(): return small_captioner()


def content(folder):
    "Every file of a folder, by its path."
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in Path(folder).rglob('*') if p.is_file()}


def captions(folder): return Captioner.from_pretrained(folder).caption(torch.ones(2, 4))


def test_save_pretrained_leaves_other_files(cap, tmp_path):
    keep = tmp_path/'keep'
    (keep/'plans').mkdir(parents=True)
    (keep/'notes.txt').write_text('mine')
    (keep/'plans'/'a.txt').write_text('mine too')
    before = content(keep)
    for _ in range(2):
        cap.save_pretrained(keep)
        assert before.items() <= content(keep).items()
    assert captions(keep) == cap.caption(torch.ones(2, 4))


def test_save_pretrained_in_the_working_directory(cap, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path/'notes.txt').write_text('mine')
    for _ in range(2): cap.save_pretrained('.')
    assert Path('notes.txt').read_text() == 'mine' and Path.cwd() == tmp_path
    assert captions('.') == captions(tmp_path)


def test_save_pretrained_refuses_a_run(cap, tmp_path):
    (tmp_path/'model_final').mkdir()
    for name in ('config.yaml', 'events.jsonl', 'model_final/model.safetensors'): (tmp_path/name).write_text('the run\'s')
    before = content(tmp_path)
    with pytest.raises(FileExistsError, match='config.yaml, which no captioner wrote'): cap.save_pretrained(tmp_path)
    assert content(tmp_path) == before


def test_save_pretrained_refuses_a_training_checkpoint(cap, tmp_path):
    write_checkpoint(tmp_path/'model_final', cap.model.state_dict(), {'optimizer': {'step': 1}}, {'iteration': 3},
                     {'config.yaml': cap.cfg.dump(), 'vocabulary.txt': 'a\n'})
    before = content(tmp_path)
    with pytest.raises(FileExistsError, match='checkpoint of a training'): cap.save_pretrained(tmp_path/'model_final')
    assert content(tmp_path) == before


@pytest.mark.parametrize('name', ['config.yaml', 'vocabulary.txt'])
def test_save_pretrained_refuses_what_was_changed(cap, tmp_path, name):
    cap.save_pretrained(tmp_path/'c')
    with open(tmp_path/'c'/name, 'a') as f: f.write('# changed by hand\n')
    before = content(tmp_path)
    with pytest.raises(FileExistsError, match=f'{name} was changed'): cap.save_pretrained(tmp_path/'c')
    assert content(tmp_path) == before


def test_model_card_of_the_owner_stays(cap, tmp_path):
    "A changed README.md neither stops the captioner from loading nor is it lost; an unchanged one is renewed."
    c = cap.save_pretrained(tmp_path/'c')
    card = (c/'README.md').read_text()
    (c/'README.md').write_text(card + 'Trained by me.\n')
    assert captions(c)
    cap.save_pretrained(c)
    assert (c/'README.md').read_text() == card + 'Trained by me.\n'
    (c/'README.md').write_text(card)
    Captioner(cap.model, cap.cfg, cap.vocab, metrics={'CIDEr': 1.25}).save_pretrained(c)
    assert '1.25' in (c/'README.md').read_text() and (c/'metrics.json').exists()
    cap.save_pretrained(c)
    assert '1.25' not in (c/'README.md').read_text() and not (c/'metrics.json').exists()      # nothing stale


def test_a_file_or_a_link_is_not_replaced(cap, tmp_path):
    (tmp_path/'file').write_text('mine')
    with pytest.raises(NotADirectoryError, match='file is a file'): cap.save_pretrained(tmp_path/'file')
    (tmp_path/'dangling').symlink_to(tmp_path/'nowhere')
    with pytest.raises(FileExistsError, match='is a link to'): cap.save_pretrained(tmp_path/'dangling')
    (tmp_path/'disk').mkdir()
    (tmp_path/'link').symlink_to(tmp_path/'disk')
    cap.save_pretrained(tmp_path/'link')
    assert (tmp_path/'link').is_symlink() and (tmp_path/'disk'/'model.safetensors').exists()
    assert (tmp_path/'file').read_text() == 'mine' and (tmp_path/'dangling').is_symlink()
    with pytest.raises(OSError, match='file is a file'): XmodalerCheckpointer(cap.model, tmp_path).save('file')


def test_a_failed_save_changes_nothing(cap, tmp_path, monkeypatch):
    "Neither in a folder of others nor over an older captioner."
    old, shared = cap.save_pretrained(tmp_path/'old'), tmp_path/'shared'
    shared.mkdir()
    (shared/'notes.txt').write_text('mine')
    before = content(tmp_path)
    def full(*args, **kwargs): raise OSError(28, 'No space left on device')
    monkeypatch.setattr('xmodaler_nb.utils.checkpoint_files.save_weights', full)
    for folder in (old, shared, tmp_path/'new'):
        with pytest.raises(OSError, match='No space left'): cap.save_pretrained(folder)
    assert content(tmp_path) == before and not list(tmp_path.rglob('.tmp-*'))


def test_pruning_and_recovery_leave_other_files(tmp_path):
    a = write_checkpoint(tmp_path/'model_1', {'w': torch.ones(2)})
    (a/'notes.txt').write_text('mine')
    remove_dir(a)
    assert content(tmp_path) == {'model_1/notes.txt': b'mine'}
    for name in ('.old-mine', '.tmp-mine'):
        (tmp_path/name).mkdir()
        (tmp_path/name/'x').write_text('mine')
    (tmp_path/'.tmp-notes').write_text('mine')
    before = content(tmp_path)
    recover(tmp_path)
    assert content(tmp_path) == before


def test_a_checkpoint_is_written_over_a_damaged_one(tmp_path):
    d = write_checkpoint(tmp_path/'m', {'w': torch.ones(2)}, {'s': {'a': 1}})
    (d/'meta.json').write_text('{')
    (d/'notes.txt').write_text('mine')
    write_checkpoint(d, {'w': torch.zeros(2)}, {'s': {'a': 2}})
    assert read_checkpoint(d)['s'] == {'a': 2} and (d/'notes.txt').read_text() == 'mine'
    remove_dir(d)
    assert [p.name for p in d.iterdir()] == ['notes.txt']


def test_models_leave_what_is_there(tmp_path, capsys):
    "A folder, file or link with the name of a model's run gets another name; rows come from the latest run."
    (tmp_path/'mp_lstm_clips').mkdir()
    (tmp_path/'mp_lstm_clips'/'notes.txt').write_text('mine')
    args = ['MP-LSTM (clips)', '--tiny', '--output-dir', str(tmp_path)]
    for n in (1, 2): assert models_main(args) == 0
    assert (tmp_path/'mp_lstm_clips.1'/'notes.txt').read_text() == 'mine' and (tmp_path/'mp_lstm_clips.2'/'row.json').exists()
    assert 'mp_lstm_clips exists; it is now' in capsys.readouterr().out
    assert len(read_rows(tmp_path)) == 1


@pytest.mark.parametrize('make', [lambda p: p.write_text('mine'), lambda p: p.symlink_to('nowhere')])
def test_set_aside(tmp_path, make):
    make(tmp_path/'run')
    moved = set_aside(tmp_path/'run')
    assert moved.name == 'run.1' and os.path.lexists(moved) and not os.path.lexists(tmp_path/'run')


def test_replaced_scenes_leave_other_files(tmp_path):
    folder, counts = tmp_path/'scenes', dict(train=4, val=2, test=2)
    make_scenes(folder, counts=counts, variants=('grid', 'boxes'))
    (folder/'notes.txt').write_text('mine')
    (folder/'run').mkdir()
    (folder/'run'/'events.jsonl').write_text('{}')
    make_scenes(folder, counts=counts, seed=1, overwrite=True)
    assert (folder/'notes.txt').read_text() == 'mine' and (folder/'run'/'events.jsonl').exists()
    assert not (folder/'features_grid').exists()                                             # of the replaced data set
