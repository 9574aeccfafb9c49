"From a cold process to the first caption: what is imported on the way, and the seconds it takes."
import json
import os
import subprocess
import sys
import pytest
from PIL import Image
from xmodaler_nb.own.extract import BackboneExtractor
from small import small_captioner

SECONDS = 5          # of processor time, interpreter and torch included: on two cores that is an upper bound for the clock
PACKAGES = {'torch', 'numpy', 'PIL', 'fastcore', 'safetensors', 'yaml', 'xmodaler_nb'}
TORCHS_OWN = {'sympy', 'mpmath', 'networkx', 'jinja2', 'markupsafe', 'filelock', 'fsspec', 'typing_extensions', 'functorch', 'torchgen', 'triton', 'setuptools', 'pkg_resources', 'tqdm', 'cython_runtime'}
OURS = {'captioner', 'modeling', 'functional', 'config', 'tokenization', 'checkpoint', 'utils', 'datasets', 'own', 'evaluation'}

CODE = '''
import json, sys, time
start = time.perf_counter()
before = set(sys.modules)
import xmodaler_nb
assert not any(m.startswith('torch') for m in sys.modules)
from xmodaler_nb.captioner import Captioner
said = Captioner.from_pretrained({folder!r}).caption({picture!r})
new = sorted(set(sys.modules) - before)
print(json.dumps(dict(said=said, modules=new, seconds=time.process_time(), clock=time.perf_counter() - start)))
'''


@pytest.fixture(scope='module')
def first(tmp_path_factory):
    "What a fresh process says about its first caption; of three tries the quickest."
    d = tmp_path_factory.mktemp('startup')
    extractor = BackboneExtractor('patches')
    Image.new('RGB', (64, 48), 'darkgreen').save(d/'green.png')
    width = extractor(Image.open(d/'green.png'))['features'].shape[-1]
    small_captioner('MODEL.VISUAL_EMBED.IN_DIM', width, 'DATALOADER.MAX_FEAT_NUM', 80, extractor=extractor).save_pretrained(d/'model')
    code, tries = CODE.format(folder=str(d/'model'), picture=str(d/'green.png')), []
    while len(tries) < 3 and (not tries or tries[-1]['seconds'] > SECONDS):
        done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env={**os.environ, 'OMP_NUM_THREADS': '1'})
        assert done.returncode == 0, done.stderr[-2000:]
        tries.append(json.loads(done.stdout.splitlines()[-1]))
    return min(tries, key=lambda t: t['seconds'])


def test_no_module_that_is_not_needed(first):
    "Nothing that trains, draws, scores or serves; no package besides those six and what torch itself imports."
    tops = {m.split('.')[0] for m in first['modules']} - set(sys.stdlib_module_names) - PACKAGES - TORCHS_OWN
    assert not {m for m in tops if not m.startswith('_')}
    ours = {m.split('.')[1] for m in first['modules'] if m.startswith('xmodaler_nb.')}
    assert ours <= OURS, f'not needed for a caption: {sorted(ours - OURS)}'
    assert isinstance(first['said'], str)


def test_first_caption_within_five_seconds(first):
    print(f"{first['seconds']:.2f} s of processor time, {first['clock']:.2f} s by the clock, {len(first['modules'])} modules")
    assert first['seconds'] < SECONDS
