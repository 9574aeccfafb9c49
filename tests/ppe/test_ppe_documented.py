"Every documented symbol is used by a test or by a test cell of its notebook; and the few that are used nowhere else."
import json, os, re
from pathlib import Path
import pytest
import torch
from torch import nn
from xmodaler_nb import ppe
from xmodaler_nb.ppe.dataset import TabularDataset
from xmodaler_nb.ppe.handler import BaseHandler
from xmodaler_nb.ppe.training import ExtensionsManager, extensions

ROOT = Path(__file__).resolve().parents[2]


def sources():
    "The tests, and the cells of the guest's notebooks that export nothing."
    for p in (ROOT/'tests'/'ppe').glob('*.py'): yield p.read_text(encoding='utf-8')
    for nb in (ROOT/'nbs'/'40_ppe').rglob('*.ipynb'):
        for c in json.loads(nb.read_text(encoding='utf-8'))['cells']:
            code = ''.join(c['source'])
            if c['cell_type'] == 'code' and not re.search(r'^#\| export', code, re.M): yield code


def used_name(name):
    "The word that a use of a symbol contains: of `Class.method` the method, of `Class.__init__` the class."
    *above, last = name.strip('.').split('.')
    return above[-1] if last in ('__init__', '__call__', '__enter__', '__exit__') else last


def test_each_documented_symbol_is_used():
    file = Path(os.environ.get('XMODALER_API', ROOT.parent/'shared'/'api'))/'ppe.json'
    if not file.exists(): pytest.skip('no API inventory (set XMODALER_API to the folder with ppe.json)')
    symbols = [s for s in json.loads(file.read_text())['symbols'] if s.get('required', True)]
    words = set(re.findall(r'\w+', '\n'.join(sources())))
    unused = [f"{s['module']}.{s['name']}" for s in symbols if used_name(s['module'] + '.' + s['name']) not in words]
    assert len(symbols) >= 500 and unused == []


def test_the_hooks_of_an_evaluation_in_their_order():
    seen = []
    class Noted(BaseHandler): "Does nothing but write down."
    base = Noted(ppe.handler.Logic(), {})
    for hook, args in (('eval_setup', (None, None)), ('eval_loop_begin', (None,)), ('eval_loop_end', (None,))): assert getattr(base, hook)(*args) is None
    for name in ('eval_setup', 'eval_loop_begin', 'eval_step', 'eval_loop_end'):
        def note(self, *args, name=name): seen.append(name)
        setattr(Noted, name, note)
    evaluator = ppe.engine.create_evaluator(ppe.to(nn.Linear(1, 1), 'cpu'), handler_class=lambda *a, **k: base)
    evaluator.run([torch.ones(1, 1)]*2)
    assert seen == ['eval_setup', 'eval_loop_begin', 'eval_step', 'eval_step', 'eval_loop_end']


def test_the_hooks_of_a_runtime_around_an_evaluation():
    "`Handler.eval_setup` tells the runtime of each part."
    seen = []
    class Runtime(ppe.runtime.PyTorchRuntime):
        def initialize_module(self, module, loader_or_batch, optimizer=None): seen.append(type(module).__name__)
    net = nn.Linear(1, 1)
    ppe.to(net, 'cpu', runtime_class=Runtime)
    evaluator = ppe.engine.create_evaluator({'main': net})
    evaluator.handler.eval_setup(evaluator, [torch.ones(1, 1)])
    evaluator.handler.eval_loop_begin(evaluator)
    evaluator.handler.eval_loop_end(evaluator)
    assert seen == ['Linear']


def test_one_row():
    class Table(TabularDataset):
        keys, mode = ('a', 'b'), tuple
        def __len__(self): return 3
        def get_examples(self, indices, key_indices): return tuple([10*k + i for i in range(3)[slice(None) if indices is None else slice(indices[0], indices[0] + 1)]] for k in key_indices or (0, 1))
    t = Table()
    assert t.get_example(2) == t[2] == (2, 12) and t.get_example(-1) == (2, 12)
    with pytest.raises(IndexError): t.get_example(3)


def test_statistics_are_drawn_with_the_module_that_is_given(tmp_path):
    import matplotlib.pyplot as plt
    calls = []
    class Pyplot:
        def __getattr__(self, name):
            calls.append(name)
            return getattr(plt, name)
    net = nn.Linear(2, 2)
    plot = extensions.VariableStatisticsPlot([net.weight], report_grad=False, trigger=(99, 'iteration'))
    m = ExtensionsManager(net, {}, 9, iters_per_epoch=9, out_dir=str(tmp_path), extensions=[plot])
    with m.run_iteration(): pass
    plot.save_plot_using_module(Pyplot(), m)
    assert (tmp_path/'statistics.png').stat().st_size > 1000 and calls
    plt.close('all')


def test_the_handlers_of_ignite_can_be_attached_again(tmp_path):
    pytest.importorskip('ignite', reason='the extra `ignite` is not installed')
    from ignite.engine import Engine, Events
    engine = Engine(lambda engine, x: None)
    m = ppe.training.IgniteExtensionsManager(engine, nn.Linear(1, 1), {}, 1, out_dir=str(tmp_path))
    assert len(engine._event_handlers[Events.STARTED]) == 1
    m.set_ignite_handlers()
    assert len(engine._event_handlers[Events.STARTED]) == 2
