"""ppe.onnx: annotations reach their nodes, test cases hold what torch computed, stripped data come back as noise."""
import io, json, subprocess, sys, warnings
import pytest, torch
from torch import nn
from xmodaler_nb.ppe.onnx import annotate, apply_annotation, export, export_testcase, scoped_anchor
from xmodaler_nb.ppe.onnx import annotation

TRAIN = torch.onnx.TrainingMode.TRAINING
pytestmark = [pytest.mark.filterwarnings(f'ignore:{m}') for m in ('It is recommended', 'Converting a tensor', 'ONNX Preprocess', '.*torch.jit.*')]


def need_onnx(): return pytest.importorskip('onnx', reason='the extra `export` is not installed')


class Net(nn.Module):
    def __init__(self, body):
        super().__init__()
        self.conv, self.conv2, self.bn, self.lin = nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2), nn.Linear(4, 5)
        self.body = body

    def forward(self, *xs, **kw): return self.body(self, *xs, **kw)


X = torch.linspace(-1, 1, 72).view(2, 1, 6, 6)


def graph_of(body, *args, **kw):
    onnx, file = need_onnx(), io.BytesIO()
    export(Net(body), args or (X,), file, **kw)
    return onnx.load_model_from_string(file.getvalue())


def attrs(node, *names):
    onnx = need_onnx()
    got = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    return {n: got[n] for n in names if n in got}


def test_annotate_marks_first_nodes_of_modules_only():
    def body(net, x):
        with annotate(a='s', b=['x', 'y'], c=3, d=[1, 2], e=.5): h = torch.relu(net.lin(net.conv(x)))
        return net.conv2(h[..., :4])
    nodes = graph_of(body).graph.node
    marked = [n.name for n in nodes if attrs(n, 'a')]
    assert marked == ['/conv/Conv', '/lin/MatMul'], marked           # not lin's addition, not relu, not conv2
    assert attrs(nodes[0], *'abcde') == dict(a=b's', b=[b'x', b'y'], c=3, d=[1, 2], e=.5)


def test_nested_annotations_add_up_and_the_inner_one_wins():
    def body(net, x):
        with annotate(a=1, b=1):
            with annotate(b=2): return net.conv(x)
    assert attrs(graph_of(body).graph.node[0], 'a', 'b') == dict(a=1, b=2)


def test_one_module_called_twice_is_annotated_once():
    def body(net, x):
        h = net.conv(x)
        with annotate(a=1): h = net.conv2(h)
        return net.conv2(h)
    assert [bool(attrs(n, 'a')) for n in graph_of(body).graph.node] == [False, True, False]


def test_apply_annotation_marks_every_node():
    def body(net, x): return torch.relu(apply_annotation(lambda h: net.lin(h).tanh(), net.conv(x), a=7))
    nodes = graph_of(body).graph.node
    assert [(n.op_type, attrs(n, 'a')) for n in nodes] == [('Conv', {}), ('MatMul', dict(a=7)), ('Add', dict(a=7)),
                                                          ('Tanh', dict(a=7)), ('Relu', {})]


def test_a_merged_batch_norm_keeps_the_remark():
    def body(net, x):
        with annotate(a=1): return net.bn(net.conv(x))
    nodes = graph_of(body).graph.node
    assert [n.op_type for n in nodes] == ['Conv'] and attrs(nodes[0], 'a')
    nodes = graph_of(body, training=TRAIN).graph.node
    assert [n.op_type for n in nodes] == ['Conv', 'BatchNormalization'] and all(attrs(n, 'a') for n in nodes)


def test_anchors_enclose_the_block():
    def body(net, x):
        with scoped_anchor(part='head'): h = torch.relu(net.conv2(net.conv(x)))
        with scoped_anchor(part='tail'): return net.lin(h) + 1
    model = graph_of(body)
    nodes = {n.name: n for n in model.graph.node}
    assert [k for k in nodes if k.startswith('Anchor')] == ['Anchor_0_start', 'Anchor_0_end', 'Anchor_1_start', 'Anchor_1_end']
    assert all(n.op_type == 'Identity' and n.domain == '' for k, n in nodes.items() if k.startswith('Anchor'))
    assert attrs(nodes['Anchor_1_end'], 'part') == dict(part=b'tail')
    assert nodes['/conv/Conv'].input[0] == nodes['Anchor_0_start'].output[0]
    assert nodes['Anchor_0_end'].input[0] == nodes['/conv2/Conv'].output[0]
    assert nodes['/Relu'].input[0] == nodes['Anchor_0_end'].output[0]


def test_nested_anchors_and_one_on_the_output():
    def body(net, x):
        with scoped_anchor(a=1):
            with scoped_anchor(a=2): return net.conv(x)
    model = graph_of(body)
    assert [n.name for n in model.graph.node] == ['Anchor_0_start', 'Anchor_1_start', '/conv/Conv', 'Anchor_1_end', 'Anchor_0_end']
    assert [o.name for o in model.graph.output] == [model.graph.node[-1].output[0]] == ['output_0']


def test_no_mark_is_left_and_the_numbers_are_torchs():
    onnx = need_onnx()
    from onnx.reference import ReferenceEvaluator
    def body(net, x):
        with scoped_anchor(), annotate(), annotate(): h = net.lin(net.bn(net.conv(x)))
        return apply_annotation(torch.relu, h), h
    net, file = Net(body), io.BytesIO()
    want = export(net, X, file, return_output=True)
    model = onnx.load_model_from_string(file.getvalue())
    onnx.checker.check_model(model, full_check=True)                 # empty annotations leave a graph by the standard
    assert annotation.DOMAIN not in [o.domain for o in model.opset_import] and len(model.graph.output) == 2
    got = ReferenceEvaluator(model).run(None, {'input_0': X.numpy()})
    for a, b in zip(got, want): torch.testing.assert_close(torch.tensor(a), b.detach(), rtol=1e-4, atol=1e-5)


def test_outside_an_export_nothing_happens():
    def body(net, x):
        with annotate(a=1), scoped_anchor(b=2): h = net.conv(x)
        return apply_annotation(torch.relu, h, c=3)
    net = Net(body)
    assert torch.equal(net(X), torch.relu(net.conv(X)))
    assert not nn.modules.module._global_forward_hooks and not nn.modules.module._global_forward_pre_hooks
    with pytest.raises(TypeError, match='attribute a is None'), annotate(a=None): pass


def test_an_export_that_fails_leaves_no_hooks():
    need_onnx()
    def body(net, x):
        if torch.jit.is_tracing():
            with annotate(a=1): net.lin(x[..., :1])
        return net.conv(x)
    net = Net(body)
    with pytest.raises(RuntimeError): export(net, X, io.BytesIO())
    assert not annotation._RUNNING and not net._forward_hooks and not nn.modules.module._global_forward_hooks


def test_a_path_warns_a_file_does_not(tmp_path):
    need_onnx()
    net = Net(lambda net, x: net.conv(x))
    with pytest.warns(UserWarning, match='export_testcase'): export(net, X, tmp_path/'net.onnx')
    with warnings.catch_warnings(), open(tmp_path/'same.onnx', 'wb') as f:
        warnings.simplefilter('error')
        assert export(net, X, f) is None
    assert (tmp_path/'net.onnx').read_bytes() == (tmp_path/'same.onnx').read_bytes()
    with pytest.raises(ValueError, match='dynamo is True'): export(net, X, io.BytesIO(), dynamo=True)


def files(folder): return sorted(str(p.relative_to(folder)) for p in folder.rglob('*.*'))


def test_testcase_layout_names_and_values(tmp_path):
    onnx = need_onnx()
    net = Net(lambda net, x, unused, y: (net.conv(x)*y, net.conv(x).sum()))
    y = torch.tensor([3.])
    out = export_testcase(net, (X, y, y), tmp_path/'new'/'case', return_output=True, user_meta={'k': 1}, input_names=['x', 'u', 'y'])
    case = tmp_path/'new'/'case'
    assert files(case) == ['meta.json', 'model.onnx'] + [f'test_data_set_0/{n}.pb' for n in ('input_0', 'input_1', 'output_0', 'output_1')]
    read = lambda n: onnx.load_tensor(str(case/'test_data_set_0'/f'{n}.pb'))
    assert [read(n).name for n in ('input_0', 'input_1', 'output_0', 'output_1')] == ['x', 'y', 'output_0', 'output_1']
    assert torch.equal(torch.tensor(onnx.numpy_helper.to_array(read('output_0'))), out[0])
    meta = json.loads((case/'meta.json').read_text())
    assert meta['user_meta'] == {'k': 1} and meta['strip_large_tensor_data'] is False and meta['output_directory'] == str(case)
    assert set(meta.get('git', {'branch': 0, 'commit': 0, 'remote': 0, 'commit_date': 0})) == {'branch', 'commit', 'remote', 'commit_date'}


def test_testcase_overwrite_or_add(tmp_path):
    need_onnx()
    net = Net(lambda net, x: net.conv(x))
    export_testcase(net, X, tmp_path, metadata=False)
    first = (tmp_path/'model.onnx').read_bytes()
    net.conv.weight.data.zero_()
    export_testcase(net, X, tmp_path, metadata=False, model_overwrite=False)
    assert (tmp_path/'model.onnx').read_bytes() == first and (tmp_path/'test_data_set_1'/'input_0.pb').exists()
    (tmp_path/'test_data_set_0'/'gradient_9.pb').write_bytes(b'old')
    export_testcase(net, X, tmp_path, metadata=False)
    assert (tmp_path/'model.onnx').read_bytes() != first and not (tmp_path/'test_data_set_0'/'gradient_9.pb').exists()
    with pytest.warns(UserWarning, match='user_meta'): export_testcase(net, X, tmp_path, metadata=False, user_meta={'a': 1})
    assert not (tmp_path/'meta.json').exists()


def test_testcase_gradients(tmp_path):
    onnx = need_onnx()
    net = Net(lambda net, x: net.bn(net.conv(x)).pow(2))
    given = torch.rand(2, 2, 4, 4)
    with pytest.warns(UserWarning, match='do not depend on conv2.weight, conv2.bias, lin'):
        export_testcase(net, X, tmp_path, output_grad=given, training=TRAIN)
    assert net.training and net.bn.running_mean.eq(0).all() and net.conv.weight.grad is None
    net(X).backward(given)
    for i, (name, p) in enumerate(net.named_parameters()):
        file = tmp_path/'test_data_set_0'/f'gradient_{i}.pb'
        assert file.exists() == (p.grad is not None), name
        if p.grad is None: continue
        t = onnx.load_tensor(str(file))
        assert t.name == name
        torch.testing.assert_close(torch.tensor(onnx.numpy_helper.to_array(t)), p.grad)
    assert torch.equal(torch.tensor(onnx.numpy_helper.to_array(onnx.load_tensor(str(tmp_path/'test_data_set_0'/'gradient_input_0.pb')))), given)
    with pytest.warns(UserWarning, match='evaluation mode'): export_testcase(net, X, tmp_path, output_grad=True)
    with pytest.raises(ValueError, match='output_grad has shapes'): export_testcase(net, X, tmp_path, output_grad=X, training=TRAIN)


class Keyword(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(3, 3)

    def forward(self, x, scale, shift): return self.lin(x)*scale + shift


def test_testcase_keyword_arguments_and_torchs_own_files(tmp_path):
    onnx = need_onnx()
    net, x, kw = Keyword(), torch.ones(2, 3), {'shift': torch.ones(3), 'scale': torch.ones(1)}
    with pytest.raises(ValueError, match='give input_names'): export_testcase(net, (x, kw), tmp_path)
    export_testcase(net, (x, kw), tmp_path, input_names=['x', 'scale', 'shift'], export_torch_script=True, export_torch_trace=True)
    t = onnx.load_tensor(str(tmp_path/'test_data_set_0'/'input_1.pb'))
    assert (t.name, list(t.dims)) == ('scale', [1])
    for name in ('script', 'trace'): torch.testing.assert_close(torch.jit.load(tmp_path/f'model_{name}.pt')(x, **kw), net(x, **kw))


def run(module, *words):
    cmd = [sys.executable, '-m', f'xmodaler_nb.ppe.onnx.{module}', *map(str, words)]
    done = subprocess.run(cmd, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return done.stdout


def test_strip_and_fill_on_the_command_line(tmp_path):
    onnx = need_onnx()
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(50, 80), nn.Linear(80, 2))
    export_testcase(net, torch.ones(1, 50), tmp_path, metadata=False)
    assert '2 tensors stripped' in run('strip_large_tensor', tmp_path/'model.onnx', '--out_onnx_path', tmp_path/'s.onnx')
    stripped = onnx.load(tmp_path/'s.onnx', load_external_data=False)
    large = {t.name: t for t in stripped.graph.initializer}['0.weight']
    note = json.loads(large.external_data[0].value)
    assert not large.raw_data and note['type'] == 'stripped' and large.external_data[0].key == 'location'
    assert abs(note['variance'] - net[0].weight.var(correction=0).item()) < 1e-6
    assert '2 tensors filled' in run('unstrip_tensor', tmp_path/'s.onnx', '--out_onnx_path', tmp_path/'f.onnx')
    filled = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(tmp_path/'f.onnx').graph.initializer}
    assert abs(filled['0.weight'].std() - net[0].weight.std().item()) < .01 and filled['0.weight'].shape == (80, 50)
    assert torch.equal(torch.tensor(filled['1.bias']), net[1].bias.detach())
    onnx.checker.check_model(onnx.load(tmp_path/'f.onnx'))


def test_export_strips_by_threshold(tmp_path):
    onnx = need_onnx()
    file, net = io.BytesIO(), nn.Linear(50, 80)
    export(net, torch.ones(1, 50), file, strip_large_tensor_data=True, large_tensor_threshold=80)
    kinds = {t.name: t.data_location for t in onnx.load_model_from_string(file.getvalue()).graph.initializer}
    assert kinds == {'weight': onnx.TensorProto.EXTERNAL, 'bias': onnx.TensorProto.DEFAULT}


def test_without_onnx_the_extra_is_named(monkeypatch, tmp_path):
    from xmodaler_nb.ppe.onnx import strip_large_tensor, unstrip_tensor
    monkeypatch.setitem(sys.modules, 'onnx', None)
    net = nn.Linear(2, 2)
    for call in (lambda: export(net, torch.ones(2), io.BytesIO()), lambda: export_testcase(net, torch.ones(2), tmp_path/'c'),
                 lambda: strip_large_tensor.main(['x.onnx']), lambda: unstrip_tensor.main(['x.onnx'])):
        with pytest.raises(ImportError, match=r'xmodaler_nb\[export\]'): call()
    assert not (tmp_path/'c').exists()
