"The portable runs cover what they promise, and seeds are shifted where seeds are set."
import os
import subprocess
import sys
from pathlib import Path
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import portable

DRAW = 'from xmodaler_nb.utils.testing import set_seed; import torch; set_seed(3); print(torch.rand(1).item())'


def test_every_variant_has_its_day():
    assert {portable.chosen('today', day)[0] for day in range(1, 8)} == set(portable.VARIANTS)
    assert portable.chosen('all') == list(portable.VARIANTS)


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
