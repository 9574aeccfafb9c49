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
