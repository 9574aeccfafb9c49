"Paths that tests share, how to point them elsewhere, and how long a test may take."
import multiprocessing
import os
import signal
import sys
from contextlib import contextmanager, nullcontext
from pathlib import Path
import pytest

ROOT = Path(__file__).resolve().parent.parent

def golden_dir() -> Path:
    "Numbers computed with X-modaler; XMODALER_GOLDEN points at other files of the same form."
    return Path(os.environ.get('XMODALER_GOLDEN', ROOT/'tests'/'parity'/'golden'))

def data_dir() -> Path:
    "Real data, used when present; XMODALER_DATA points elsewhere."
    return Path(os.environ.get('XMODALER_DATA', ROOT.parent/'shared'/'data'))

@pytest.fixture(scope='session')
def golden(): return golden_dir()

@pytest.fixture(scope='session')
def real_data():
    "Folder → path, or skip with the reason."
    def find(name):
        path = data_dir()/name
        if not path.exists(): pytest.skip(f'{name} is not in the real-data folder (set XMODALER_DATA to the folder that holds it)')
        return path
    return find

@pytest.fixture(scope='session')
def root(): return ROOT


# A test that waits for a child for ever fails after this time and the next one begins. (One that hangs where no Python runs ends the run: `faulthandler_timeout` in pytest.ini.)

@contextmanager
def limited(item, what):
    "Fail what takes too long: 5 minutes, 20 if it is slow; XMODALER_TEST_LIMIT gives other seconds."
    seconds = float(os.environ.get('XMODALER_TEST_LIMIT') or (1200 if item.get_closest_marker('slow') else 300))
    def too_long(*_):
        for child in multiprocessing.active_children(): child.kill()
        pytest.fail(f'{what} of {item.nodeid} took longer than {seconds:.0f} s')
    before = signal.signal(signal.SIGALRM, too_long)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try: yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)

if hasattr(signal, 'setitimer'):
    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(item):
        with limited(item, 'the preparation'): return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(item):
        with limited(item, 'the test'): return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_teardown(item):
        with limited(item, 'the end'): return (yield)


# Runs with shifted seeds (tests/portable.py) leave alone what is compared with stored numbers: tests/parity and what is marked `stored_numbers`.

@pytest.fixture(autouse=True)
def seeds_of_stored_numbers(request):
    "Seeds mean what they say where numbers are stored."
    stored = 'parity' in request.path.parts or request.node.get_closest_marker('stored_numbers')
    with getattr(sys.modules.get('sitecustomize'), 'unshifted', nullcontext)() if stored else nullcontext(): yield
