"Files beside a run that a crash or a disk has damaged: what is whole is used, what is not is named."
import json
import logging
import numpy as np
import pytest
import torch
from small import small_captioner
from torch import nn
from xmodaler_nb.asl.config import settings
from xmodaler_nb.asl.data import prepare
from xmodaler_nb.asl.models.pytorch.models import BaseModel
from xmodaler_nb.captioner import Captioner
from xmodaler_nb.own.origin import FeatureFolder
from xmodaler_nb.ppe.training import ExtensionsManager
from xmodaler_nb.ppe.training.extensions import snapshot
from xmodaler_nb.utils.checkpoint_files import CheckpointError

BAD_LINES = ['5\n', '[1]\n', '{"a": 1, "b": 2, "c": 3}\n', '["a", ["b"], {}]\n', '['*100_000 + '\n', '\x00\n', 'null\n', '"abc"\n']


@pytest.mark.parametrize('bad', BAD_LINES, ids=range(len(BAD_LINES)))
def test_notes_of_a_feature_folder(tmp_path, bad):
    first = FeatureFolder(tmp_path)
    first.add('a', 'origin', features=np.ones((2, 3), np.float32))
    log = tmp_path/'.made-all.jsonl'
    log.write_bytes(bad.encode() + log.read_bytes() + b'\xff\xfe\n')
    again = FeatureFolder(tmp_path)
    assert again.noted() == {'a': 'origin'} and again.origins('a') == {'origin'}

@pytest.mark.parametrize('bad', BAD_LINES, ids=range(len(BAD_LINES)))
def test_journal_of_prepared_signs(tmp_path, monkeypatch, bad):
    (tmp_path/'there.npy').write_bytes(b'x')
    monkeypatch.setattr(prepare, 'processed_path', lambda *key: tmp_path/'there.npy')
    note = dict({k: 1 for k in prepare.KEY}, size=settings.INPUT_SIZE)
    (tmp_path/'journal').write_bytes(bad.encode() + json.dumps(note).encode() + b'\n\xff\xfe\n')
    assert list(prepare._read_journal(tmp_path/'journal').values()) == [note]


def damage(path):
    "Change a byte in the middle of the numbers."
    content = bytearray(path.read_bytes())
    at = content.index(bytes(torch.full((50,), 1.5).numpy().tobytes())) + 21
    content[at] ^= 64
    path.write_bytes(content)

class Toy(BaseModel):
    def __init__(self):
        super().__init__(learning_rate=.1)
        self.linear = nn.Linear(50, 1)
        nn.init.constant_(self.linear.weight, 1.5)

@pytest.mark.parametrize('how, why', [(damage, 'check sum'), (lambda p: p.write_bytes(p.read_bytes()[:300]), 'not a readable'), (lambda p: p.write_text('text'), 'not a readable'),
                                      (lambda p: torch.save([1], p), 'no model_state_dict'), (lambda p: torch.save({'other': {}}, p), 'no model_state_dict')])
def test_checkpoint_of_a_sign_model(tmp_path, how, why):
    path = tmp_path/'best.ckpt'
    Toy().save_checkpoint(path)
    how(path)
    with pytest.raises(CheckpointError, match=f'best.ckpt.*{why}'): Toy().load_checkpoint(path)


def manager(tmp_path, **kw):
    net = nn.Linear(50, 1)
    nn.init.constant_(net.weight, 1.5)
    return ExtensionsManager(net, {}, 9, iters_per_epoch=1, out_dir=tmp_path, extensions=[snapshot(**kw)])

def test_a_damaged_snapshot_is_passed_over(tmp_path, caplog):
    m = manager(tmp_path)
    for _ in range(3):
        with m.run_iteration(): pass
    damage(tmp_path/'snapshot_iter_3')
    (tmp_path/'snapshot_iter_2').write_bytes(b'')
    again = manager(tmp_path, autoload=True)
    with caplog.at_level(logging.WARNING), again.run_iteration(): pass
    assert again.iteration == 2                              # one iteration after snapshot_iter_1
    assert 'snapshot_iter_3' in caplog.text and 'snapshot_iter_2' in caplog.text

def test_snapshots_that_are_all_damaged(tmp_path):
    "Nothing is begun anew over files that may still be mended."
    m = manager(tmp_path)
    with m.run_iteration(): pass
    damage(tmp_path/'snapshot_iter_1')
    with pytest.raises(CheckpointError, match='snapshot_iter_1'), manager(tmp_path, autoload=True).run_iteration(): pass


# the files of a saved model

@pytest.fixture(scope='module')
def cap(): return small_captioner()

def flip(path):
    "Change the last letter or digit to its neighbour: as long as before, and as readable."
    content = bytearray(path.read_bytes())
    content[max(i for i, c in enumerate(content) if chr(c).isalnum())] ^= 1
    path.write_bytes(content)

@pytest.mark.parametrize('name', ['vocabulary.txt', 'calibration.json', 'familiar.json', 'extractor.json', 'metrics.json', 'more.txt'])
def test_a_flipped_bit_beside_the_weights(cap, tmp_path, monkeypatch, name):
    monkeypatch.setattr(Captioner, '_small_files', lambda self, was=Captioner._small_files: {'more.txt': 'a word\n', name: '{"a": 1}', **was(self)})
    folder = cap.save_pretrained(tmp_path/'model')
    flip(folder/name)
    with pytest.raises(CheckpointError, match=f'{name} is damaged: its check sum'): Captioner.from_pretrained(folder)
    with pytest.raises(FileExistsError, match=f'{name} was changed since'): cap.save_pretrained(folder)

@pytest.mark.parametrize('change', [lambda t: t.replace('BEAM_SIZE: 3', 'BEAM_SIZE: 2'), lambda t: t + '# mine\n'])
def test_an_edited_config_gets_one_sentence(cap, tmp_path, caplog, change):
    folder = cap.save_pretrained(tmp_path/'model')
    old = (folder/'config.yaml').read_text()
    (folder/'config.yaml').write_text(change(old))
    assert change(old) != old
    with caplog.at_level(logging.WARNING): assert Captioner.from_pretrained(folder).cfg.DECODE_STRATEGY.BEAM_SIZE in (2, 3)
    assert caplog.text.count('config.yaml is not what was written') == 1
    with pytest.raises(FileExistsError, match='config.yaml was changed since'): cap.save_pretrained(folder)

def test_a_model_saved_before_there_were_sums_of_texts(cap, tmp_path):
    folder = cap.save_pretrained(tmp_path/'model')
    meta = json.loads((folder/'meta.json').read_text())
    meta['sums'] = {k: v for k, v in meta['sums'].items() if k == 'model.safetensors'}
    meta.pop('editable', None)
    (folder/'meta.json').write_text(json.dumps(meta))
    assert Captioner.from_pretrained(folder).vocab == cap.vocab
