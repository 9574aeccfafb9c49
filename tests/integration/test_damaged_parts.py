"One file of a saved model replaced by something else: an error that names the file, or a model that works."
import json
import numpy as np
import pytest
from small import small_captioner
from xmodaler_nb.asl.dl_utils import read_params
from xmodaler_nb.asl.signer.machine import load_signer
from xmodaler_nb.captioner import Captioner

FEATS = np.ones((2, 4), np.float32)
PARTS = ['config.yaml', 'calibration.json', 'familiar.json', 'extractor.json', 'metrics.json']
CONTENT = ['{', '[1]', '5', '{"x": 1}', '{"mean": 1, "scale": 1, "limits": 1}', '{"weights": ["a", "b", "c", "d"]}', '{"extractor": "BackboneExtractor"}', '{"extractor": 5}', '[' * 100_000, '']

@pytest.fixture(scope='module')
def cap(): return small_captioner()

@pytest.mark.parametrize('text', CONTENT, ids=[t[:20] for t in CONTENT])
@pytest.mark.parametrize('name', PARTS)
def test_a_part_of_a_captioner(cap, tmp_path, name, text):
    folder = cap.save_pretrained(tmp_path/'model')
    (folder/name).write_text(text)
    meta = json.loads((folder/'meta.json').read_text())
    meta['files'].pop(name, None)                            # as in a folder that was put together by hand
    (folder/'meta.json').write_text(json.dumps(meta))
    try: assert isinstance(Captioner.from_pretrained(folder).caption(FEATS), str)
    except (ValueError, KeyError) as e: assert name in str(e) and len(str(e)) < 900
    else: assert name == 'metrics.json' and text[0] == '{' or text == '[]'

@pytest.mark.parametrize('strategy', [None, 3, [], {}])
def test_a_strategy_that_is_none(cap, strategy):
    with pytest.raises(ValueError, match='strategy is'): cap.caption(FEATS, strategy=strategy)

def test_a_picture_without_features(cap):
    with pytest.raises(ValueError, match="picture 0: a dict without 'features'; it has feats"): cap.caption({'feats': FEATS})

@pytest.mark.parametrize('text', ['[1', '[1]', '', '{a: &a [x, x], b: 1}', 'model: !!python/object/apply:os.system [ls]'])
def test_parameters_of_a_sign_model(tmp_path, text):
    (tmp_path/'Toy_params.yaml').write_text(text)
    with pytest.raises(ValueError, match='Toy_params.yaml'): read_params(tmp_path/'best.ckpt')

@pytest.mark.parametrize('text', ['[1', '[1]', '{"x": 1}', '5'])
def test_parameters_of_a_signer(tmp_path, text):
    (tmp_path/'signer.json').write_text(text)
    (tmp_path/'model.safetensors').write_bytes(b'')
    with pytest.raises(ValueError, match='signer.json'): load_signer(tmp_path)
