"A flipped bit in a weights file from elsewhere: found where anything is known of the file; where nothing is, that is said, once."
import io
import pickle
import shutil
import pytest
import torch
from torch import nn
from safetensors.torch import save_file
from xmodaler_nb.captioner.picture_index import read_rows, write_rows
from xmodaler_nb.checkpoint import CheckpointError, XmodalerCheckpointer, load_pth, load_weights, save_weights, write_checkpoint
from xmodaler_nb.checkpoint.bert_weights import read_bert
from xmodaler_nb.utils.checkpoint_files import checksum, read_weights, _sha256
from xmodaler_nb.utils.file_io import read_json, to_json
from xmodaler_nb.utils.torch_files import read_torch_file

NET = {'weight': torch.arange(12.).reshape(3, 4), 'bias': torch.ones(3)}

def flip(file, piece, bit=1):
    "Change a bit of the bytes of these numbers."
    data = bytearray(file.read_bytes())
    data[data.index(piece.numpy().tobytes()) + 5] ^= bit
    file.write_bytes(data)

def told(caplog): return [r.getMessage() for r in caplog.records if 'holds no check sums' in r.getMessage()]


def test_no_bit_of_a_torch_archive_changes_a_number_silently():
    "Bits of a small archive: an error, or what was written."
    file = io.BytesIO()
    torch.save(NET, file)
    data = bytearray(file.getvalue())
    for k in range(0, 8*len(data), 3):                # all places in a byte come by
        data[k//8] ^= 1 << k%8
        try: back = read_torch_file(io.BytesIO(data))
        except pickle.UnpicklingError: pass
        else: assert back.keys() == NET.keys() and all(torch.equal(back[n], NET[n]) for n in NET)
        data[k//8] ^= 1 << k%8

@pytest.mark.parametrize('name', ['w.pth', 'w.bin', 'snapshot_iter_4', 'best.ckpt'])
def test_an_archive_is_compared_with_its_own_sums(tmp_path, caplog, name):
    torch.save({'model': NET}, tmp_path/name)
    assert torch.equal(read_weights(tmp_path/name)['weight'], NET['weight']) and not told(caplog)
    flip(tmp_path/name, NET['weight'])
    with pytest.raises(CheckpointError, match='is not what was written: its check sum differs'): load_pth(tmp_path/name)

def test_an_archive_without_sums_is_read(tmp_path, caplog):
    "torch can be told to leave the sums out; such a file was called damaged."
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try: torch.save(NET, tmp_path/'w.pth')
    finally: torch.serialization.set_crc32_options(before)
    for _ in range(2): assert torch.equal(load_pth(tmp_path/'w.pth')['weight'], NET['weight'])
    assert len(told(caplog)) == 1

@pytest.mark.parametrize('kind', ['old', 'safetensors', 'pkl'])
def test_where_nothing_is_known_it_is_said_once(tmp_path, caplog, kind):
    path = tmp_path/{'old': 'w.pth', 'safetensors': 'w.safetensors', 'pkl': 'w.pkl'}[kind]
    if kind == 'old': torch.save(NET, path, _use_new_zipfile_serialization=False)
    elif kind == 'safetensors': save_file(NET, path)
    else: path.write_bytes(pickle.dumps({k: v.numpy() for k, v in NET.items()}))
    net = nn.Linear(4, 3)
    for _ in range(3): XmodalerCheckpointer(net).load(str(path), strict=True)
    assert torch.equal(net.weight, NET['weight'])
    assert told(caplog) == [f'{path} holds no check sums: a changed bit in it cannot be seen']

@pytest.mark.parametrize('file', ['model.safetensors', 'training_state.pt', 'reduction.safetensors'])
def test_a_file_of_a_checkpoint_by_its_own_name(tmp_path, caplog, file):
    "What meta.json says of a file holds also where the file is named, not its folder."
    save_file(NET, tmp_path/'r')
    write_checkpoint(tmp_path/'c', NET, {'net': NET}, files={'reduction.safetensors': (tmp_path/'r').read_bytes()})
    path, found = tmp_path/'c'/file, read_weights(tmp_path/'c'/file)
    assert torch.equal(found.get('net', found)['weight'], NET['weight']) and not told(caplog)
    flip(path, NET['weight'])
    with pytest.raises(CheckpointError, match='check sum'): read_weights(path)
    with pytest.raises(CheckpointError, match='check sum'): XmodalerCheckpointer(nn.Linear(4, 3)).load(str(path))

def test_the_header_of_a_single_file_may_hold_sums(tmp_path, caplog):
    save_weights({**NET, 'tied': NET['bias']}, tmp_path/'w.safetensors', summed=True)
    assert torch.equal(load_weights(tmp_path/'w.safetensors')['tied'], NET['bias']) and not told(caplog)
    flip(tmp_path/'w.safetensors', NET['weight'])
    with pytest.raises(CheckpointError, match='is damaged: the check sum of weight differs'): load_weights(tmp_path/'w.safetensors')

def test_what_a_name_says(tmp_path, caplog):
    "A store of downloads names a file by its SHA-256, torchvision by its first digits; eight digits of a date are no such."
    old, store = tmp_path/'net-0badc0de.pth', tmp_path/'blobs'
    torch.save(NET, old, _use_new_zipfile_serialization=False)
    store.mkdir()
    load_pth(shutil.copy(old, tmp_path/f'net-{_sha256(old)[:8]}.pth'))
    shutil.copy(old, store/_sha256(old))
    (tmp_path/'bert.bin').symlink_to(store/_sha256(old))
    load_pth(tmp_path/'bert.bin')
    assert not told(caplog)
    flip(store/_sha256(old), NET['weight'])
    with pytest.raises(CheckpointError, match='its SHA-256 is'): load_pth(tmp_path/'bert.bin')
    load_pth(old), load_pth(shutil.copy(old, tmp_path/'net-20240131.pth'))
    assert ['it is damaged' in t for t in told(caplog)][-2:] == [True, False]

def test_weights_of_bert(tmp_path, caplog):
    bert = {'embeddings.word_embeddings.weight': NET['weight'], 'pooler.dense.weight': NET['bias']}
    torch.save(bert, tmp_path/'pytorch_model.bin')
    assert read_bert(tmp_path).keys() == bert.keys() and not told(caplog)
    flip(tmp_path/'pytorch_model.bin', NET['weight'])
    with pytest.raises(CheckpointError, match='its check sum differs'): read_bert(tmp_path)
    save_file(bert, tmp_path/'model.safetensors')
    assert read_bert(tmp_path).keys() == bert.keys() and len(told(caplog)) == 1

def test_rows_of_pictures(tmp_path, caplog):
    "A damaged store counts as empty; its pictures are looked at again."
    write_rows(tmp_path/'s', {'a': {'f': NET['weight']}, 'b': {'f': NET['weight'] + 20}})
    assert torch.equal(read_rows(tmp_path/'s')['a']['f'], NET['weight'])
    flip(tmp_path/'s', NET['weight'])
    assert read_rows(tmp_path/'s') == {} and 'the check sum of f differs' in caplog.text

def test_a_signer(tmp_path, caplog, root):
    from xmodaler_nb.asl.signer import load_signer
    shutil.copytree(root/'configs'/'asl'/'signers', tmp_path/'s')
    model = load_signer(tmp_path/'s')
    load_signer(model.save_pretrained(tmp_path/'t'))
    assert not told(caplog)
    for name in 's', 't':
        flip(tmp_path/name/'model.safetensors', load_weights(tmp_path/name/'model.safetensors')['mean'])
        with pytest.raises(CheckpointError, match='the check sum of mean differs'): load_signer(tmp_path/name)

def test_a_reduction(tmp_path, caplog, root):
    from xmodaler_nb.captioner.picture_model import load_extractor
    shutil.copytree(root/'configs'/'models'/'photos', tmp_path/'photos')
    d = read_json(tmp_path/'photos'/'extractor.json')
    e = load_extractor(d, tmp_path/'photos')
    for name, data in e.files().items(): (tmp_path/name).write_bytes(data)
    load_extractor(d, tmp_path)
    assert not told(caplog)
    for folder in tmp_path, tmp_path/'photos':
        flip(folder/'reduction.safetensors', torch.tensor(e.cells.basis).half())
        with pytest.raises(CheckpointError, match='is damaged'): load_extractor(d, folder)

def test_exported_graphs(tmp_path):
    from xmodaler_nb.modeling.export import ExportedModel
    for n in 'encoder', 'step': torch.save(NET, tmp_path/f'{n}.pt2')
    (tmp_path/'export.json').write_text(to_json({'state_keys': [], 'memory_keys': [], 'sums': {f'{n}.pt2': checksum(tmp_path/f'{n}.pt2') for n in ('encoder', 'step')}}))
    flip(tmp_path/'step.pt2', NET['weight'])
    with pytest.raises(CheckpointError, match=r'step.pt2 is damaged: its check sum is \w+, export.json says'): ExportedModel(tmp_path)
