"A test that hangs fails and the next one runs; a process of pytest that has threads is never forked."
import re
import shutil
import subprocess
import sys
from pathlib import Path
import pytest

TESTS = Path(__file__).resolve().parent.parent
HANGING = """
import multiprocessing, subprocess, sys, time, pytest
def wait(): time.sleep(600)
def test_waits_for_a_process():
    p = multiprocessing.get_context('spawn').Process(target=time.sleep, args=(600,))
    p.start()
    p.join()
def test_waits_for_a_command(): subprocess.run([sys.executable, '-c', 'import time; time.sleep(600)'])
@pytest.fixture
def slow(): time.sleep(600)
def test_prepares(slow): pass
def test_goes_on(): pass
"""

def test_what_hangs_fails(tmp_path):
    shutil.copy(TESTS/'conftest.py', tmp_path)
    (tmp_path/'test_hanging.py').write_text(HANGING)
    cmd = [sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', '-c', '/dev/null', '--rootdir', str(tmp_path), str(tmp_path)]
    done = subprocess.run(cmd, capture_output=True, text=True, timeout=100, env={**__import__('os').environ, 'XMODALER_TEST_LIMIT': '3'})
    assert '2 failed, 1 passed, 1 error' in done.stdout, done.stdout[-2000:]
    assert len(re.findall(r'took longer than 3 s', done.stdout)) >= 3

NOT_FORKED = re.compile(r"get_context\('fork'\)|set_start_method\('fork'\)|^ *(pid = )?os\.fork\(\)", re.M)

@pytest.mark.parametrize('path', sorted(TESTS.rglob('test_*.py')), ids=lambda p: p.stem)
def test_pytest_is_not_forked(path):
    "A fork is allowed in a program that a test starts (a text), in a process of its own."
    text = re.sub(r"(\'{3}|\"{3}).*?\1", '', path.read_text(encoding='utf8'), flags=re.S)
    assert not NOT_FORKED.search(text), NOT_FORKED.search(text).group()
