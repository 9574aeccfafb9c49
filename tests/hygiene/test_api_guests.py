"""The guests' documented names exist: pytorch-pfn-extras as xmodaler_nb.ppe, MMF as xmodaler_nb.mmf.

The inventories are not part of this repository; XMODALER_API names their folder."""
import json, os, subprocess, sys
from pathlib import Path
import pytest

ROOT = Path(__file__).resolve().parents[2]
FLOOR = dict(ppe=506, mmf=18)      # names reached when this was last raised; of 506 and 18
HOMES = dict(ppe='pytorch_pfn_extras=xmodaler_nb.ppe', mmf='mmf=xmodaler_nb.mmf')


@pytest.mark.parametrize('guest', FLOOR)
def test_guest_names_and_parameters(guest, tmp_path):
    "Every documented name can be reached and takes the documented parameters."
    folder = Path(os.environ.get('XMODALER_API', ROOT.parent/'shared'/'api'))
    if not (folder/f'{guest}.json').exists(): pytest.skip(f'no API inventory (set XMODALER_API to the folder with {guest}.json and check_api.py)')
    cmd = [sys.executable, folder/'check_api.py', folder/f'{guest}.json', '--map', HOMES[guest], '--path', ROOT, '--quiet', '--json', tmp_path/'out.json']
    done = subprocess.run([str(c) for c in cmd], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads((tmp_path/'out.json').read_text())
    missing = [f"{s['module']}.{s['name']}" for s in result['symbols'] if not s['passed']]
    print(f"{guest}: {result['passed']} of {result['total']}; missing, first 40: {missing[:40]}")
    assert result['passed'] >= FLOOR[guest], f"{result['passed']} of {result['total']}, the floor is {FLOOR[guest]}; missing: {missing[:40]}"
