"Reading the golden model files: a config, weights, inputs, and what X-modaler answered."
import json, os, tempfile
from pathlib import Path
import pytest, torch
from safetensors.torch import load_file
from conftest import golden_dir
from xmodaler_nb.config import Batch, config_file, kfg
from xmodaler_nb.modeling import load_cfg_file
from xmodaler_nb.modeling import build_model
from xmodaler_nb.utils.testing import test_near as near

DEVICE = os.environ.get('XMODALER_DEVICE', 'cpu')        # where the parity tests compute
seeded_draw = pytest.mark.skipif(DEVICE != 'cpu', reason="the same seed draws other numbers on another device")

IMAGE_KEYS = ('ATT_FEATS', 'ATT_MASKS', 'ATT_FEATS_LOC', 'RELATION', 'ATTRIBUTE', 'GLOBAL_FEATS')


class Golden:
    "One golden file, and the model that it describes."
    def __init__(self, name, folder='models'):
        path = golden_dir()/folder/name
        if not path.with_suffix('.json').exists(): pytest.skip(f'no golden file {path}.json')
        self.name, self.meta, self.tensors = name, json.loads(path.with_suffix('.json').read_text()), load_file(path.with_suffix('.safetensors'), device=DEVICE)

    def opts(self):
        "Overrides as a flat list; a made-up WordPiece vocabulary in the file stands for the published one."
        more = {'MODEL.DEVICE': DEVICE, **({'MODEL.PRETRAINING.MODEL_NAME': self.vocab_file(), 'SCORER.EOS_ID': self.meta['eos_id']} if 'bert_vocab' in self.meta else {})}
        return [x for kv in {**self.meta['overrides'], **more}.items() for x in kv]

    def vocab_file(self):
        "The file's own WordPiece vocabulary, written out."
        if not hasattr(self, 'folder'): self.folder = tempfile.TemporaryDirectory()
        path = Path(self.folder.name)/'vocab.txt'
        path.write_text('\n'.join(self.meta['bert_vocab']), encoding='utf-8')
        return str(path)

    def cfg(self, *more): return load_cfg_file(config_file(self.meta['config'].removeprefix('configs/')), [*self.opts(), *more])

    def model(self, *more):
        "In eval mode, with the golden weights; no name may be missing or unexpected."
        model = build_model(self.cfg(*more))
        model.load_state_dict(self.group('state_dict.'), strict=True)
        return model.to(DEVICE).eval()

    def group(self, prefix):
        "Tensors below a prefix; lists stored as name.0, name.1 … are lists again."
        found = {k[len(prefix):]: v for k, v in self.tensors.items() if k.startswith(prefix)}
        for k, n in self.meta.get('lists', {}).items():
            if k.startswith(prefix): found[k[len(prefix):]] = [found.pop(f'{k[len(prefix):]}.{i}') for i in range(n)]
        return found

    def values(self, prefix): return {k[len(prefix):]: v for k, v in self.meta['values'].items() if k.startswith(prefix)}
    def __contains__(self, prefix): return any(k.startswith(prefix) for k in self.tensors)

    def items(self, kind='sample'):
        "What the data set returned, item by item."
        n = len([k for k in self.meta['values'] if k.startswith(f'{kind}.') and k.endswith('.IDS')])
        return [{**self.group(f'{kind}.{i}.'), **self.values(f'{kind}.{i}.')} for i in range(n)]

    def batch(self, kind='input'):
        "The expanded batch that X-modaler's preprocess_batch made."
        return Batch({**self.group(f'{kind}.'), **self.values(f'{kind}.')})

    def images(self):
        "The training batch with one row per image."
        b, n = self.batch(), len(self.items())
        s = len(b[kfg.ATT_FEATS])//n
        return b.merge({k: b[k][::s] for k in IMAGE_KEYS if k in b}).merge({kfg.IDS: list(b[kfg.IDS])[::s]})

    def noise(self, key): return self.meta['float32_vs_float64_max_abs_diff'].get(key)

    def near(self, got, key, noise=None): near(got, self.tensors[key], self.noise(noise) if noise else None)

    def __repr__(self): return self.name


def no_dropout(model):
    "Every dropout rate 0, whatever mode the model is in."
    for m in model.modules():
        if isinstance(m, torch.nn.Dropout): m.p = 0.
        if hasattr(m, 'dropout_p'): m.dropout_p = 0.
    return model
