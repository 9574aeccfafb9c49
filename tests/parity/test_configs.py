"All published YAMLs: what they write, what they resolve to, and that the three X-modaler itself cannot load do load."
import json, os, warnings
from pathlib import Path
import pytest, yaml
from xmodaler_nb.config import CfgNode, config_file, get_cfg
from xmodaler_nb.modeling import load_cfg_file

GOLDEN = Path(os.environ.get('XMODALER_GOLDEN', Path(__file__).parent/'golden'))/'configs'
CASES = {d['config']: d for d in (json.loads(f.read_text()) for f in sorted(GOLDEN.glob('configs__*.json')))}
DEFAULTS = json.loads((GOLDEN/'_defaults.json').read_text())
LOADABLE = [c for c, d in CASES.items() if d['resolved']]
BROKEN = [c for c, d in CASES.items() if not d['resolved']]     # upstream fails: two wrong _BASE_ paths, one bool for a float
NEW_KEYS = {'MODEL.EXPAND'}                                     # ours, beyond X-modaler's tree; see also `own_keys`


def published(config): return config_file(config.removeprefix('configs/'))


def flat(tree, prefix=''):
    "{dotted key: value}; an empty node is a value of its own."
    out = {}
    for k, v in tree.items():
        if isinstance(v, dict) and v: out.update(flat(v, f'{prefix}{k}.'))
        else: out[prefix+k] = list(v) if isinstance(v, tuple) else v
    return out


def own_keys():
    "Keys of our default tree that X-modaler's does not have."
    return set(flat(get_cfg())) - set(flat(DEFAULTS))


def load(config):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return load_cfg_file(published(config))


def same(got, want): return got == want and type(got) is type(want)


def test_all_are_there(): assert len(CASES) == 43 and len(BROKEN) == 3


def test_defaults():
    ours, theirs = flat(get_cfg()), flat(DEFAULTS)
    wrong = {k: (ours.get(k), v) for k, v in theirs.items() if k not in ours or not same(ours[k], v)}
    assert not wrong, 'key: (ours, X-modaler)'
    assert NEW_KEYS <= own_keys()


@pytest.mark.parametrize('config', CASES)
def test_written(config):
    assert yaml.safe_load(published(config).read_text()) == CASES[config]['as_written']


@pytest.mark.parametrize('config', LOADABLE)
def test_resolved(config):
    ours, theirs = flat(load(config)), flat(CASES[config]['resolved'])
    wrong = {k: (ours.get(k, 'missing'), v) for k, v in theirs.items() if k not in ours or not same(ours[k], v)}
    assert not wrong, 'key: (ours, X-modaler)'
    assert set(ours) - set(theirs) <= own_keys(), 'keys that X-modaler does not have'


@pytest.mark.parametrize('config', BROKEN)
def test_broken_upstream_loads_with_a_warning(config):
    with pytest.warns(UserWarning): cfg = load_cfg_file(published(config))
    ours, written = flat(cfg), flat({k: v for k, v in CASES[config]['as_written'].items() if k != '_BASE_'})
    for k, v in written.items():
        want = CfgNode._decode_cfg_value(v)
        assert k in ours and ours[k] == want, k
    assert isinstance(cfg.SOLVER.NESTEROV, float)
    if 'gcn' in config: assert cfg.MODEL.DECODER == 'UpDownDecoder' and cfg.MODEL.VOCAB_SIZE == load('configs/image_caption/updown/updown.yaml').MODEL.VOCAB_SIZE


@pytest.mark.parametrize('config', ['configs/image_caption/updown/updown_rl.yaml'])
def test_a_dump_says_the_same(config, tmp_path):
    cfg = load(config)
    (tmp_path/'dump.yaml').write_text(cfg.dump())
    assert flat(load_cfg_file(tmp_path/'dump.yaml')) == flat(cfg)
