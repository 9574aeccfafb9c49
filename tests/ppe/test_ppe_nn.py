"ppe.nn, ppe.utils.checkpoint, ppe.cuda: checks, lazy layers, recomputation."
import copy, io, pickle, sys, warnings
from types import SimpleNamespace as NS
import pytest, torch
from torch import nn
import xmodaler_nb.ppe as ppe
from xmodaler_nb.ppe.nn import (Ensure, LazyBatchNorm1d, LazyBatchNorm2d, LazyBatchNorm3d, LazyConv1d, LazyConv2d, LazyConv3d, LazyLinear, ensure)
from xmodaler_nb.ppe.utils.checkpoint import checkpoint

LAYERS = {   # name: (lazy class, torch's class, arguments, shape of an input)
    'linear': (LazyLinear, nn.Linear, dict(out_features=4), (2, 5, 3)), 'no bias': (LazyLinear, nn.Linear, dict(out_features=4, bias=False), (2, 3)),
    'conv1': (LazyConv1d, nn.Conv1d, dict(out_channels=4, kernel_size=2), (2, 6, 5)), 'conv2': (LazyConv2d, nn.Conv2d, dict(out_channels=4, kernel_size=(2, 3), groups=2), (2, 6, 5, 5)),
    'conv3': (LazyConv3d, nn.Conv3d, dict(out_channels=4, kernel_size=1, padding=1), (2, 3, 4, 4, 4)), 'norm1': (LazyBatchNorm1d, nn.BatchNorm1d, {}, (4, 3)),
    'norm2': (LazyBatchNorm2d, nn.BatchNorm2d, dict(momentum=.5), (4, 3, 2, 2)), 'norm3': (LazyBatchNorm3d, nn.BatchNorm3d, {}, (4, 3, 2, 2, 2)),
    'no affine': (LazyBatchNorm1d, nn.BatchNorm1d, dict(affine=False), (4, 3)), 'no statistics': (LazyBatchNorm1d, nn.BatchNorm1d, dict(track_running_stats=False), (4, 3))}


@pytest.fixture(params=LAYERS)
def case(request):
    lazy, plain, args, shape = LAYERS[request.param]
    size = shape[-1] if plain is nn.Linear else shape[1]
    return NS(make=lambda n=None: lazy(n, **args), plain=lambda: plain(size, **args), x=torch.randn(shape), size=size, lazy=lazy)


def test_first_forward_makes_the_ordinary_layer(case):
    layer = case.make()
    waits = bool(layer.lazy_parameter_names or layer.lazy_buffer_names)
    assert waits and not layer.lazy_parmeters_determined or not waits
    torch.manual_seed(3)
    plain = case.plain()
    torch.manual_seed(3)
    a, b = layer(case.x), plain(case.x)
    assert layer.lazy_parmeters_determined and type(layer) is case.lazy
    assert {k: v.shape for k, v in layer.state_dict().items()} == {k: v.shape for k, v in plain.state_dict().items()}
    plain.load_state_dict(layer.state_dict())
    torch.testing.assert_close(layer.eval()(case.x), plain.eval()(case.x))
    assert a.shape == b.shape


def test_with_a_number_they_are_ordinary(case):
    layer = case.make(case.size)
    assert layer.lazy_parmeters_determined
    case.plain().load_state_dict(layer.state_dict())
    layer.reset_parameters()


def test_state(case):
    layer, known = case.make(), case.make()
    known(case.x)
    assert not set(layer.state_dict()) & {*layer.lazy_parameter_names, *layer.lazy_buffer_names}
    stored = io.BytesIO()
    torch.save(layer.state_dict(), stored)
    stored.seek(0)
    case.make().load_state_dict(torch.load(stored, weights_only=True))                    # unknown into unknown
    layer.load_state_dict(known.state_dict())                                            # known into unknown
    assert layer.lazy_parmeters_determined
    torch.testing.assert_close(layer.eval()(case.x), known.eval()(case.x))
    if known.lazy_parameter_names or known.lazy_buffer_names:
        with pytest.raises(RuntimeError, match='Missing key'): known.load_state_dict(case.make().state_dict())


def test_loading_tells_the_size():
    for layer, name, state in ((LazyLinear(None, 4), 'in_features', nn.Linear(3, 4)), (LazyConv2d(None, 4, 1, groups=2), 'in_channels', nn.Conv2d(6, 4, 1, groups=2)), (LazyBatchNorm1d(None), 'num_features', nn.BatchNorm1d(5))):
        layer.load_state_dict(state.state_dict())
        assert getattr(layer, name) == getattr(state, name)


def test_inside_a_network():
    net = nn.Sequential(LazyConv2d(None, 4, 3), LazyBatchNorm2d(None), nn.Flatten(), LazyLinear(None, 2))
    twin = copy.deepcopy(net)
    net(torch.randn(2, 3, 5, 5)).sum().backward()
    twin.load_state_dict(net.state_dict())
    assert not any(p.grad is None for p in net.parameters())
    assert pickle.loads(pickle.dumps(net))[3].in_features == 36
    half = nn.Sequential(LazyLinear(None, 2)).double()
    half(torch.randn(1, 3).double())
    assert half[0].weight.dtype == torch.float64


def test_optimizer_and_shared_memory():
    layer = LazyLinear(None, 2)
    with pytest.warns(UserWarning, match='lazy parameter'): torch.optim.Adam(layer.parameters())
    with pytest.raises(RuntimeError): layer.share_memory()
    layer(torch.ones(1, 3))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        torch.optim.Adam(layer.parameters())
    layer.share_memory()


@pytest.mark.parametrize('kw, shape, fine', [
    (dict(shape=(2, 3)), (2, 3), True), (dict(shape=(3, 2)), (2, 3), False), (dict(shape=(None, 3)), (7, 3), True), (dict(shape=(None, 3)), (7, 4), False), (dict(shape=(2, 3)), (3,), False),
    (dict(shape=(2, 3), broadcastable=True), (3,), True), (dict(shape=(2, 3), broadcastable=True), (2, 1), True), (dict(shape=(2, 3), broadcastable=True), (2, 2), False),
    (dict(dtype=torch.float32), (1,), True), (dict(dtype=torch.float64), (1,), False), (dict(dtype=torch.float64, can_cast=True), (1,), True), (dict(dtype=torch.int64, can_cast=True), (1,), False)])
def test_ensure(kw, shape, fine):
    x = torch.zeros(shape)
    if fine: assert ensure(x, **kw) is x and Ensure(**kw)(x) is x
    else:
        with pytest.raises(ValueError): ensure(x, **kw)
        with pytest.raises(ValueError): Ensure(**kw)(x)


def test_ensure_needs_a_demand():
    for f in (lambda: ensure(torch.zeros(1)), Ensure):
        with pytest.raises(ValueError): f()


def test_checkpoint_equals_one_pass():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, momentum=.3), nn.Dropout(.5), nn.Linear(4, 1))
    twin = copy.deepcopy(net)
    for step in range(3):
        x = torch.randn(6, 3, requires_grad=True)
        torch.manual_seed(step)
        net(x).sum().backward()
        torch.manual_seed(step)
        checkpoint(twin, x, preserve_rng_state=True).sum().backward()
    assert twin[1].momentum == pytest.approx(1 - .7**.5)               # replaced once, not once per call
    torch.testing.assert_close(twin[1].running_mean, net[1].running_mean)
    torch.testing.assert_close(twin[0].weight.grad, net[0].weight.grad)
    with pytest.raises(ValueError, match='use_reentrant'): checkpoint(twin, x, use_reentrant=False)
    averaging = nn.BatchNorm1d(3, momentum=None)
    checkpoint(averaging, x)
    assert averaging.momentum is None


def test_cuda_without_cupy(monkeypatch):
    monkeypatch.setitem(sys.modules, 'cupy', None)
    with ppe.cuda.stream(None): pass
    for f in (ppe.cuda.use_torch_mempool_in_cupy, ppe.cuda.use_default_mempool_in_cupy):
        with pytest.raises(RuntimeError, match='CuPy'): f()
    seen = []
    monkeypatch.setattr(torch.cuda, 'stream', lambda s: seen.append(s) or 'context')
    assert ppe.cuda.stream('s') == 'context' and seen == ['s']


class FakeCupy:
    "Two pools and one stream."
    def __init__(self, pointer):
        self.pool = []
        self.cuda = NS(set_allocator=self.pool.append, get_current_stream=lambda: NS(ptr=pointer), PythonFunctionAllocator=lambda a, f: NS(malloc=a))
    def get_default_memory_pool(self): return NS(malloc='default')


def test_streams_must_agree(monkeypatch):
    cupy = FakeCupy(7)
    monkeypatch.setitem(sys.modules, 'cupy', cupy)
    monkeypatch.setattr(torch.cuda, 'current_stream', lambda device=None: NS(cuda_stream=current))
    monkeypatch.setattr(torch.cuda, 'caching_allocator_alloc', lambda size, device, stream: (size, device, stream))
    ppe.cuda.use_torch_mempool_in_cupy()
    ppe.cuda.use_default_mempool_in_cupy()
    allocate, default = cupy.pool
    current = 7
    assert allocate(64, 0) == (64, 0, 7) and default == 'default'
    current = 8
    with pytest.raises(RuntimeError, match='differ'): allocate(64, 0)
