"`collate` on the items of every golden model gives the input X-modaler computed, image fields not yet repeated."
import json
import pytest, torch
from safetensors.torch import load_file
from xmodaler_nb.config import kfg
from xmodaler_nb.datasets.collate import collate

PER_IMAGE = (kfg.ATT_FEATS, kfg.ATT_MASKS, kfg.ATT_FEATS_LOC, kfg.RELATION, kfg.ATTRIBUTE, kfg.GLOBAL_FEATS)


def items_of(js, tensors, kind) -> list:
    "The items of a batch as dicts, lists put together again."
    items = {}
    def put(name, value):
        _, n, key, *more = name.split('.')
        item = items.setdefault(int(n), {})
        if more: item.setdefault(key, []).append((int(more[0]), value))
        else: item[key] = value
    for name, t in tensors.items():
        if name.startswith(f'{kind}.'): put(name, t)
    for name, v in js['values'].items():
        if name.startswith(f'{kind}.'): put(name, v)
    sort = lambda v: [t for _, t in sorted(v, key=lambda p: p[0])] if isinstance(v, list) and v and isinstance(v[0], tuple) else v
    return [{k: sort(v) for k, v in items[n].items()} for n in sorted(items)]


def cases():
    from conftest import golden_dir
    return sorted(p.stem for p in (golden_dir()/'models').glob('*.json'))


@pytest.mark.parametrize('kind', ['sample', 'sample_gen'])
@pytest.mark.parametrize('name', cases())
def test_collate(golden, name, kind):
    js, tensors = json.loads((golden/'models'/f'{name}.json').read_text()), load_file(golden/'models'/f'{name}.safetensors')
    items = items_of(js, tensors, kind)
    if not items: pytest.skip(f'{name} has no {kind}')
    batch = collate(items)
    want = {k.split('.', 1)[1]: v for k, v in tensors.items() if k.startswith(kind.replace('sample', 'input') + '.') and k.count('.') == 1}
    assert {k for k, v in batch.items() if isinstance(v, torch.Tensor)} == set(want)
    repeat = int(items[0].get(kfg.SEQ_PER_SAMPLE, 1))
    for key, ref in want.items():
        got = batch[key]
        if key in PER_IMAGE and repeat > 1: got = got.repeat_interleave(repeat, 0)
        assert torch.equal(got.reshape(ref.shape), ref), key
        assert got.dtype == ref.dtype, key
