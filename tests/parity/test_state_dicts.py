"Every published config builds a model with exactly X-modaler's parameter names, shapes, dtypes and order, at full size."
import gzip, json
import pytest, torch
from conftest import ROOT, golden_dir
from xmodaler_nb.config import config_file
from xmodaler_nb.modeling import load_cfg_file
from xmodaler_nb.modeling.meta_arch import META_ARCH_REGISTRY

def manifests():
    "{yaml: {name: [shape, dtype]}}, from a folder of one file per config or from our copy of it in one file."
    folder = golden_dir()/'state_dicts'
    if folder.is_dir(): return {f.stem.removeprefix('configs__').replace('__', '/'): json.loads(f.read_text()) for f in sorted(folder.glob('configs__*.json'))}
    packed = next(f for f in (golden_dir()/'state_dicts.json.gz', ROOT/'tests'/'parity'/'golden'/'state_dicts.json.gz') if f.exists())
    return json.loads(gzip.decompress(packed.read_bytes()))

MANIFEST = manifests()


@pytest.mark.parametrize('name', MANIFEST)
def test_names_and_shapes(name):
    cfg = load_cfg_file(config_file(name), ['MODEL.DEVICE', 'cpu', 'INFERENCE.VOCAB', ''])
    with torch.device('meta'): model = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg)
    got = {k: [list(v.shape), str(v.dtype).removeprefix('torch.')] for k, v in model.state_dict().items()}
    want = MANIFEST[name]
    assert got == want, sorted({str(kv) for kv in got.items()} ^ {str(kv) for kv in want.items()})[:10]
    assert list(got) == list(want), 'the same names in another order'
