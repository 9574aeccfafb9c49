"The portable runs cover what they promise, and seeds are shifted where seeds are set."
import os
import subprocess
import sys
from pathlib import Path
import pytest
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import portable

DRAW = 'from xmodaler_nb.utils.testing import set_seed; import torch; set_seed(3); print(torch.rand(1).item())'


def test_every_variant_has_its_day():
    assert {portable.chosen('today', day)[0] for day in range(1, 8)} == set(portable.VARIANTS)
    assert portable.chosen('all') == list(portable.VARIANTS)


EVERY = """
import pickle, random, sys
import numpy as np
assert 'torch' not in sys.modules
import torch
torch.manual_seed(3)
random.seed(3)
np.random.seed(3)
g = torch.Generator().manual_seed(3)
r = pickle.loads(pickle.dumps(random.Random(3)))
print([torch.rand(1).item(), torch.rand(1, generator=g).item(), random.random(), r.random(), np.random.rand(), np.random.default_rng(seed=3).random()],
      [np.random.default_rng([3, 1]).random(), random.Random('three').random()])
"""
BY_LIBRARY = """
from fastai.torch_core import set_seed as fastais
from xmodaler_nb.utils.testing import set_seed
import random, numpy as np, torch
for fn in (set_seed, fastais):
    fn(3)
    print(torch.rand(1).item(), random.random(), np.random.rand())
"""
DRAWS = """
import torch
def test_one():
    torch.manual_seed(3)
    print('drawn', torch.rand(1).item())
"""


def _says(code, shift=None):
    "What these lines print, with every seed shifted or none."
    env = portable.environment(f'seeds-{shift}') if shift else {k: v for k, v in os.environ.items() if k != 'XMODALER_SHIFT_EVERY_SEED'}
    return subprocess.run([sys.executable, '-c', code], env=env, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize('code', [EVERY, BY_LIBRARY], ids=['direct', 'by a library'])
def test_every_seed_is_shifted_once(code):
    assert _says(code, shift=1) == _says(code.replace('(3)', '(4)').replace('seed=3', 'seed=4')) != _says(code)


def test_what_is_compared_with_stored_numbers_keeps_its_seed(tmp_path):
    (tmp_path/'parity').mkdir()
    (tmp_path/'conftest.py').write_text((Path(__file__).resolve().parents[1]/'conftest.py').read_text())
    command, said = [sys.executable, '-m', 'pytest', '-s', '-q', '-p', 'no:cacheprovider'], {}
    for folder, name in {'parity': 'test_a.py', '.': 'test_b.py'}.items():
        (tmp_path/folder/name).write_text(DRAWS)
        out = subprocess.run([*command, f'{folder}/{name}'], cwd=tmp_path, env=portable.environment('seeds-1'), capture_output=True, text=True, check=True)
        said[folder] = out.stdout.split('drawn ')[1].split()[0].rstrip('.')
    plain = lambda seed: _says(f'import torch; torch.manual_seed({seed}); print(torch.rand(1).item())').strip()
    assert said == {'parity': plain(3), '.': plain(4)}


def test_seeds_are_shifted():
    from xmodaler_nb.utils.testing import set_seed
    import torch
    set_seed(4)
    four = torch.rand(1).item()
    out = subprocess.run([sys.executable, '-c', DRAW], env={**os.environ, 'XMODALER_SEED_SHIFT': '1'}, capture_output=True, text=True)
    assert float(out.stdout) == four


def test_a_failing_part_is_named(capfd, monkeypatch):
    monkeypatch.setattr(portable, 'commands', lambda *args: [['false', 'a part'], ['true', 'another']])
    assert portable.main(['--variant', 'avx2']) == 1
    assert 'failed:\navx2: a part' in capfd.readouterr().out
