"Importing the package is light: few packages, little time."
import importlib.util, json, os, subprocess, sys
import pytest

HEAVY = ['fastai', 'pandas', 'matplotlib', 'ipywidgets', 'tensorboard', 'pycocotools', 'torchvision', 'transformers', 'detectron2', 'yacs', 'fvcore', 'IPython', 'PIL', 'scipy', 'sklearn']
LIGHT = ['config', 'functional', 'modeling', 'scorer', 'losses', 'datasets', 'optim', 'lr_scheduler', 'tokenization', 'evaluation', 'checkpoint', 'utils']
TORCHS_OWN = {'sympy', 'mpmath', 'networkx', 'jinja2', 'markupsafe', 'filelock', 'fsspec', 'typing_extensions', 'functorch', 'torchgen', 'setuptools', 'pkg_resources', 'triton'}
SECONDS = 0.5


def there(names): return [f'xmodaler_nb.{n}' for n in names if importlib.util.find_spec(f'xmodaler_nb.{n}')]


def run(code) -> str:
    "What a fresh interpreter prints."
    done = subprocess.run([sys.executable, '-W', 'error::SyntaxWarning', '-c', code], capture_output=True, text=True, env={**os.environ, 'OMP_NUM_THREADS': '1'})
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_light_packages_load_nothing_heavy():
    code = f"""
import json, sys
import torch, numpy, fastcore.basics, yaml, safetensors
before = {{m.split('.')[0] for m in sys.modules}}
out = {{}}
for name in {['xmodaler_nb'] + there(LIGHT)}:
    __import__(name)
    out[name] = sorted({{m.split('.')[0] for m in sys.modules}} - before)
    before |= set(out[name])
print(json.dumps(out))
"""
    loaded = json.loads(run(code))
    heavy = {k: [m for m in v if m in HEAVY] for k, v in loaded.items()}
    assert not any(heavy.values()), f'loaded on import: { {k: v for k, v in heavy.items() if v} }'
    known = set(sys.stdlib_module_names) | {'xmodaler_nb', 'torch', 'numpy', 'fastcore', 'yaml', 'safetensors'}
    other = {k: [m for m in v if m not in known | TORCHS_OWN and not m.startswith('_')] for k, v in loaded.items()}
    assert not any(other.values()), f'more than torch, numpy, fastcore, PyYAML and safetensors: { {k: v for k, v in other.items() if v} }'


def test_light_packages_need_nothing_else():
    "The same with every optional package made unimportable."
    run(f"""
import sys
for m in {HEAVY}: sys.modules[m] = None
for name in {['xmodaler_nb'] + there(LIGHT)}: __import__(name)
""")


def test_import_time():
    "Seconds of processor time after `import torch` in the same process, best of five: other work on the machine is no fault of ours."
    names = ', '.join(['xmodaler_nb'] + there(['config', 'modeling']))
    code = f"import time, torch\nt = time.process_time()\nimport {names}\nprint(time.process_time() - t)"
    best = float('inf')
    for _ in range(5):
        best = min(best, float(run(code)))
        if best <= SECONDS: break
    print(f'import {names}: {best:.2f} s after torch')
    assert best <= SECONDS
