"All documented modules under the name of pytorch-pfn-extras, in a fresh process, are this package's: the same objects."
import json, os, subprocess, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MODULES = ['config', 'config_types', 'cuda', 'dataset', 'distributed', 'engine', 'handler', 'logging', 'nn', 'nn.parallel', 'onnx', 'onnx.strip_large_tensor', 'onnx.unstrip_tensor',
           'profiler', 'reporting', 'runtime', 'training', 'training.extension', 'training.extensions', 'training.triggers', 'utils.checkpoint', 'writing', 'training.manager', 'dataset.tabular', 'utils']
NAMES = ['training.Extension', 'training.ExtensionEntry', 'training.make_extension', 'training.PRIORITY_WRITER', 'training.PRIORITY_EDITOR', 'training.PRIORITY_READER', 'training.PRIORITY_SNAPSHOT',
         'reporting.Summary', 'reporting.DictSummary', 'reporting.get_current_reporter', 'profiler.get_time_summary', 'dataset.tabular.from_data', 'dataset.tabular.DelegateDataset',
         'training.extensions.snapshot_object', 'training.extensions.LRScheduler', 'training.extensions.FailOnNonNumber', 'training.metrics.AccuracyMetric', 'requires', '__version__']
CODE = '''
import importlib, json, sys
import xmodaler_nb.ppe
xmodaler_nb.ppe.install_alias()
import pytorch_pfn_extras.training.extensions
from pytorch_pfn_extras.training import extensions, triggers
import pytorch_pfn_extras as ppe
import pytorch_pfn_extras.engine
from pytorch_pfn_extras.training.triggers import EarlyStoppingTrigger
assert ppe is xmodaler_nb.ppe and ppe.engine.create_trainer is sys.modules['xmodaler_nb.ppe.engine'].create_trainer
assert extensions is pytorch_pfn_extras.training.extensions is xmodaler_nb.ppe.training.extensions
modules, names = json.load(sys.stdin)
for m in modules:
    one, two = (importlib.import_module(p + ('.' + m if m else '')) for p in ('pytorch_pfn_extras', 'xmodaler_nb.ppe'))
    assert one is two and two.__name__.startswith('xmodaler_nb.ppe') and two.__spec__.name == two.__name__, m
lost = []
for n in names:
    *path, last = n.split('.')
    for cut in range(len(path), -1, -1):                       # the longest part that is a module
        try: found = importlib.import_module('.'.join(['pytorch_pfn_extras', *path[:cut]]))
        except ModuleNotFoundError: continue
        break
    for part in [*path[cut:], last]: found = getattr(found, part, lost)
    if found is lost: lost.append(n)
print(json.dumps([len(modules), len(names), lost]))
'''


def documented():
    "Modules and the names in them, of the inventory, where it is there."
    file = Path(os.environ.get('XMODALER_API', ROOT.parent/'shared'/'api'))/'ppe.json'
    symbols = [s for s in json.loads(file.read_text())['symbols'] if s.get('required', True)] if file.exists() else []
    short = lambda m: m.partition('.')[2]
    return {short(s['module']) for s in symbols}, [f"{short(s['module'])}.{s['name']}".strip('.') for s in symbols if '.' not in s['name']]


def test_every_documented_module_by_the_other_name():
    modules, names = documented()
    given = [sorted({*MODULES, *modules}), [*NAMES, *names]]
    done = subprocess.run([sys.executable, '-c', CODE], input=json.dumps(given), capture_output=True, text=True, timeout=120, env={**os.environ, 'PYTHONPATH': str(ROOT)})
    assert done.returncode == 0, done.stderr[-1500:]
    n, k, lost = json.loads(done.stdout)
    assert n >= len(MODULES) and k >= len(NAMES) and lost == []
    assert modules <= {*MODULES, ''}, 'a documented module is missing from the list above'
