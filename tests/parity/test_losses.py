"Every loss against values and gradients written by X-modaler itself."
import json, math, os
from pathlib import Path
import pytest, torch
from safetensors.torch import load_file
from xmodaler_nb.config import CfgNode, get_cfg
from xmodaler_nb.losses import LOSSES_REGISTRY

MISC = Path(os.environ.get('XMODALER_GOLDEN', Path(__file__).parent/'golden'))/'misc'
GOLDEN = json.loads((MISC/'losses.json').read_text())


@pytest.fixture(scope='module')
def tensors(): return load_file(MISC/'losses.safetensors')


def configured(settings):
    cfg = get_cfg()
    for key, value in settings.items():
        *above, last = key.split('.')
        node = cfg
        for k in above:
            if k not in node: node[k] = CfgNode()
            node = node[k]
        node[last] = value
    return cfg


@pytest.mark.parametrize('case', GOLDEN['cases'], ids=lambda c: c['case'])
def test_values_keys_and_gradients(case, tensors):
    batch = {k: tensors[f"{case['case']}.input.{k}"].clone() for k in case['inputs']}
    batch.update(case['input_values'])
    wanted = {k: tensors.get(f"{case['case']}.grad.{k}") for k in case['inputs']}
    for k, g in wanted.items():
        if g is not None: batch[k].requires_grad_()
    before = {k: v.detach().clone() for k, v in batch.items() if torch.is_tensor(v)}
    losses = LOSSES_REGISTRY.get(case['loss'])(configured(case['config']))(batch)
    assert list(sorted(losses)) == sorted(case['outputs'])
    for name, want in case['outputs'].items():
        if math.isnan(want): continue
        assert losses[name].item() == pytest.approx(want, abs=max(1e-5*abs(want), 1e-6)), name
    if any(l.requires_grad for l in losses.values()): sum(losses.values()).backward()
    for k, g in wanted.items():
        if g is None: continue
        assert torch.allclose(batch[k].grad, g, rtol=0, atol=1e-5*max(g.abs().max().item(), 1e-3)), f'gradient of {k}'
    for k, v in before.items(): assert torch.equal(batch[k].detach(), v), f'{case["loss"]} changed {k}'


def test_registered(): assert set(GOLDEN['registered']) <= set(LOSSES_REGISTRY.names())
