"""X-modaler's documented names exist here.

The inventory is not part of this repository; XMODALER_API names its folder (`xmodaler.json`, `check_api.py`)."""
import importlib, json, os, subprocess, sys
from pathlib import Path
import pytest

ROOT = Path(__file__).resolve().parents[2]
FLOOR = 831     # names reached when this was last raised; of 953


@pytest.fixture(scope='module')
def api():
    folder = Path(os.environ.get('XMODALER_API', ROOT.parent/'shared'/'api'))
    if not (folder/'xmodaler.json').exists(): pytest.skip('no API inventory (set XMODALER_API to the folder with xmodaler.json and check_api.py)')
    return folder


def test_names_and_parameters(api, tmp_path):
    "Every documented name can be reached and takes the documented parameters."
    cmd = [sys.executable, api/'check_api.py', api/'xmodaler.json', '--map', 'xmodaler=xmodaler_nb', '--path', ROOT, '--quiet', '--json', tmp_path/'out.json']
    done = subprocess.run([str(c) for c in cmd], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads((tmp_path/'out.json').read_text())
    missing = [f"{s['module']}.{s['name']}" for s in result['symbols'] if not s['passed']]
    print(f"{result['passed']} of {result['total']}; missing, first 40: {missing[:40]}")
    assert result['passed'] >= FLOOR, f"{result['passed']} of {result['total']}, the floor is {FLOOR}"


def test_both_homes(api):
    "A name that X-modaler documents in one module and defines in another is found in both here."
    data = json.loads((api/'xmodaler.json').read_text())
    lost, seen = [], 0
    for s in data['symbols']:
        home = s.get('defined_in')
        if not home or '.' in s['name'] or home == s['module'] or not s.get('required', True): continue
        found = []
        for m in (s['module'], home):
            try: module = importlib.import_module(m.replace('xmodaler', 'xmodaler_nb', 1))
            except ImportError: found.append(None); continue
            found.append(next((getattr(module, n) for n in (s['name'], s.get('upstream_name')) if n and hasattr(module, n)), None))
        if all(f is None for f in found): continue          # counted by the test above
        seen += 1
        if found[0] is not found[1]: lost.append((s['name'], s['module'], home))
    print(f'{seen} names have two homes')
    assert not lost, f'found in one of its two modules only: {lost}'
