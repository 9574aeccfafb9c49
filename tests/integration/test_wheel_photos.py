"The wheel in an empty environment, outside the repository: the line of the README gives a sentence."
import os
import shutil
import subprocess
import sys
import time
import pytest
from conftest import ROOT

pytestmark = pytest.mark.slow


def run(*command, cwd):
    "What a command prints; what it says where it fails."
    alone = {k: v for k, v in os.environ.items() if k not in ('PYTHONPATH', 'VIRTUAL_ENV', 'PYTHONHOME')}
    done = subprocess.run([*map(str, command)], cwd=cwd, env=alone, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(map(str, command))}: {done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope='module')
def outside(tmp_path_factory):
    "An environment with the wheel and its extra `photos`, and a photograph, in a folder of their own."
    folder, source = tmp_path_factory.mktemp('outside'), tmp_path_factory.mktemp('source')/'source'
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns('.git', '.venv', 'runs', '_docs', 'tests', '*.egg-info'))
    run(sys.executable, '-m', 'venv', folder/'env', cwd=folder)
    pip = folder/'env'/'bin'/'pip'
    run(pip, 'wheel', '-q', '--no-deps', '-w', folder, source, cwd=folder)
    wheel, = folder.glob('*.whl')
    shutil.rmtree(source)
    run(pip, 'install', '-q', '-c', ROOT/'constraints.txt', f'{wheel}[photos]', cwd=folder)
    shutil.copy(ROOT/'nbs'/'images'/'dog.jpg', folder/'dog.jpg')
    return folder


def readme_lines():
    "The README's lines of Python that open the model `photos`."
    blocks = (ROOT/'README.md').read_text().split('```')[1::2]
    return next(b for b in blocks if "from_pretrained('photos')" in b).removeprefix('python').strip().splitlines()


def test_a_sentence_in_five_seconds(outside):
    "`xm-caption`, twice: the first call of a new installation also compiles what it imports."
    for what in ('first call', 'second call'):
        begun = time.perf_counter()
        said = run(outside/'env'/'bin'/'xm-caption', 'dog.jpg', cwd=outside)
        seconds = time.perf_counter() - begun
        print(f'{what}: {said.strip()} ({seconds:.1f} s from the start of the process)')
    assert 'dog' in said and len(said.split()) > 4
    assert seconds < 5 or os.getloadavg()[0] > 1, f'{seconds:.1f} s'


def test_the_readme_line(outside):
    "What the README says to type, with the photograph that lies here: three sentences."
    *first, last = [line.replace('nbs/images/', '') for line in readme_lines()]
    said = run(outside/'env'/'bin'/'python', '-c', '\n'.join([*first, f'print(*{last}, sep="\\n")']), cwd=outside)
    print(said)
    assert len(said.splitlines()) == 3 and all('dog' in line for line in said.splitlines())


def test_nothing_comes_from_the_repository(outside):
    where = run(outside/'env'/'bin'/'python', '-c', 'import xmodaler_nb; print(xmodaler_nb.__file__)', cwd=outside).strip()
    assert where.startswith(str(outside)) and str(ROOT) not in where
