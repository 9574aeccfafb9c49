"What must not be in the repository, and what must be on every public name."
import ast, importlib, inspect, pkgutil, re, subprocess
from pathlib import Path
import pytest
import xmodaler_nb

ROOT = Path(__file__).resolve().parents[2]
BINARY = {'.safetensors', '.npz', '.npy', '.png', '.jpg', '.pkl', '.gz', '.pt', '.pth'}
PATHS = r'(?<![\w.}])/(' + '|'.join(['home/[a-z]', 'Users/[A-Za-z]', 'root/', 'wo' + 'rk/', 'fa' + 'rm/', 'opt/whe' + 'els']) + ')'
MAY_LACK = 0.10         # share of public parameters that may lack a comment
UNFINISHED = '|'.join(['TO' + 'DO', 'FIX' + 'ME', r'\bXX' + r'X\b', r'\bHA' + r'CK\b', r'NotImpl' + r'ementedError', r'pass +# *stub'])


def tracked(*args) -> list:
    "Text files git knows or would add."
    if not (ROOT/'.git').exists(): pytest.skip('not a git checkout')
    out = subprocess.run(['git', 'ls-files', '-z', '--cached', '--others', '--exclude-standard', *args], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [f for f in sorted(set(out.split('\0'))) if f and (ROOT/f).is_file() and Path(f).suffix not in BINARY]


def hits(pattern, names, flags=0) -> list:
    "file:line: text, for every line that matches."
    out = []
    for f in names:
        body = (ROOT/f).read_text(encoding='utf-8', errors='replace')
        if f.endswith('.ipynb'): body = re.sub(r'"image/png": "[^"]*"', '', body)
        out += [f'{f}:{i}: {line.strip()[:120]}' for i, line in enumerate(body.splitlines(), 1) if re.search(pattern, line, flags)]
    return out


def test_no_machine_paths(): assert not hits(PATHS, tracked())
def test_no_hard_wired_device(): assert not hits(r'\.cuda\(', [f for f in tracked('xmodaler_nb', 'benchmarks', 'nbs') if f.endswith(('.py', '.ipynb'))])
# base classes of the guests, whose methods a subclass must write: this error is what they are documented to raise
DOCUMENTED = ('nbs/40_ppe/58_override.ipynb', 'xmodaler_nb/ppe/override.py', 'nbs/41_mmf/40_base_model.ipynb', 'xmodaler_nb/mmf/models/base_model.py')
def test_nothing_unfinished():
    found = hits(UNFINISHED, tracked('xmodaler_nb', 'tests', 'benchmarks', 'nbs', 'configs'))                                   # code, notebooks and test data
    assert not [h for h in found if not (h.startswith(DOCUMENTED) and 'must define the met' in h)]
def test_no_muted_warnings(): assert not hits(r'filterwarnings\(.{0,2}ignore', tracked('xmodaler_nb', 'nbs'))


def test_no_silent_excepts():
    "A handler that catches everything and does nothing hides the next bug."
    silent = []
    for f in tracked('xmodaler_nb', 'tests', 'benchmarks'):
        if not f.endswith('.py'): continue
        for node in ast.walk(ast.parse((ROOT/f).read_text())):
            if isinstance(node, ast.ExceptHandler) and (node.type is None or getattr(node.type, 'id', '') in ('Exception', 'BaseException')) \
               and all(isinstance(b, (ast.Pass, ast.Continue)) or isinstance(b, ast.Expr) and isinstance(b.value, ast.Constant) for b in node.body):
                silent.append(f'{f}:{node.lineno}')
    assert not silent


def test_never_imported():
    "torchvision, transformers and the like may be installed; the package does not use them at import, nor fastai outside `engine`."
    bad = []
    for f in tracked('xmodaler_nb'):
        if not f.endswith('.py'): continue
        for node in ast.parse((ROOT/f).read_text()).body:
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ''] if isinstance(node, ast.ImportFrom) and not node.level else []
            for n in names:
                top = n.split('.')[0]
                if top in ('torchvision', 'transformers', 'detectron2', 'yacs', 'fvcore', 'timm', 'torchmetrics', 'pandas', 'matplotlib', 'ipywidgets', 'tensorboard', 'pycocotools') \
                   or n.startswith('fastai.vision'): bad.append((f, n))
    assert not bad, f'import these inside the functions that use them: {bad}'


def modules() -> list:
    "Every module of the package."
    return [m.name for m in pkgutil.walk_packages(xmodaler_nb.__path__, 'xmodaler_nb.') if not m.name.endswith('._modidx')]


def public(module) -> list:
    "(name, object) of the functions, classes and public methods that a module defines; a callback's events are named by what they do."
    out = []
    for name in getattr(module, '__all__', []):
        obj = getattr(module, name)
        if not (inspect.isclass(obj) or inspect.isfunction(obj)) or obj.__module__ != module.__name__: continue
        out.append((f'{module.__name__}.{name}', obj))
        if not inspect.isclass(obj): continue
        out += [(f'{module.__name__}.{name}.{k}', getattr(obj, k)) for k, v in vars(obj).items()
                if not k.startswith('_') and not re.match(r'(before|after)_', k) and (inspect.isfunction(v) or isinstance(v, (classmethod, staticmethod, property)))]
    return out


def says_all(obj) -> bool:
    "Is it a method whose whole body stands on the line of its `def`?"
    f = inspect.unwrap(obj.fget if isinstance(obj, property) else getattr(obj, '__func__', obj))
    if not inspect.isfunction(f): return True                       # a property made by itemgetter and the like
    try: lines = [l for l in inspect.getsource(f).strip().splitlines() if not l.strip().startswith('@')]
    except OSError: return False
    return len(lines) == 1


def test_every_public_name_has_a_docstring():
    "Functions, classes, and methods longer than their first line."
    mute = [n for m in modules() for n, obj in public(importlib.import_module(m)) if not (inspect.getdoc(obj) or '').strip()
            and not (n.removeprefix(m + '.').count('.') and says_all(obj))]
    assert not mute, f'{len(mute)} public names without a docstring: {mute[:40]}'


def test_public_parameters_are_described():
    "A comment on the line of nearly every public parameter (those that every class shares are exempt)."
    from fastcore.docments import docments
    share, bare = 0, []
    for m in modules():
        for n, obj in public(importlib.import_module(m)):
            f = vars(obj).get('__init__') if inspect.isclass(obj) else obj
            if not inspect.isfunction(f) or f.__code__.co_filename.startswith('<'): continue     # dataclasses write their own
            for k, v in docments(f, full=True).items():
                if k in ('self', 'cls', 'cfg', 'tmp_cfg', 'args', 'kwargs', 'return'): continue
                share += 1
                if not (v or {}).get('docment'): bare.append(f'{n}: {k}')
    print(f'{share - len(bare)} of {share} public parameters are described')
    assert len(bare) <= MAY_LACK*share, f'{len(bare)} of {share} parameters without a comment, e.g. {bare[:40]}'
