"axe-core in a page: what hinders people who use a keyboard or a screen reader."
import functools
import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path
import pytest

VERSION = '4.10.2'
GRAVE = 'serious', 'critical'


@functools.lru_cache(None)
def axe_source():
    "(the script, '') or (None, why it is not there): XMODALER_AXE may name the file axe.min.js; else npm fetches the package."
    named = os.environ.get('XMODALER_AXE')
    if named: return Path(named).read_text(encoding='utf8'), ''
    if shutil.which('npm') is None: return None, 'no npm on this machine, and XMODALER_AXE names no axe.min.js'
    with tempfile.TemporaryDirectory() as folder:
        try: done = subprocess.run(['npm', 'pack', '--silent', f'axe-core@{VERSION}'], cwd=folder, capture_output=True, text=True, timeout=90)
        except subprocess.TimeoutExpired: return None, 'npm did not fetch axe-core within 90 seconds'
        found = sorted(Path(folder).glob('*.tgz'))
        if not found: return None, f'npm could not fetch axe-core ({(done.stderr.strip().splitlines() or ["no message"])[-1]})'
        with tarfile.open(found[0]) as archive: return archive.extractfile('package/axe.min.js').read().decode(), ''


def axe_or_skip():
    "The script; the test that needs it is skipped with a sentence where it is absent."
    script, why = axe_source()
    if script is None: pytest.skip(f'accessibility is not checked: {why}')
    return script


def violations(page, within=None):
    "Serious and critical violations: (rule, what it says, the elements); `within` names a part of the page."
    page.evaluate(axe_or_skip())
    found = page.evaluate('within => axe.run(within || document, {resultTypes: ["violations"]})', within)['violations']
    return [(v['id'], v['help'], [n['html'][:160] for n in v['nodes']][:3]) for v in found if v['impact'] in GRAVE]
