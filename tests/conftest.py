"Paths that tests share, and how to point them elsewhere."
import os
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
