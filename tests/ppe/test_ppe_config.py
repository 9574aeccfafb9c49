"ppe.config and ppe.config_types: references, circles, types, imports, overrides; the message names the chain of keys."
import json, time, warnings
import pytest
from xmodaler_nb.ppe.config import Config, customize_type
from xmodaler_nb.ppe.config_types import load_path_with_optuna_types, optuna_types


class Box:
    def __init__(self, **kw): self.__dict__.update(kw)


TYPES = dict(box=Box, add=lambda a, b: a + b, make=dict)


def config(**tree): return Config(tree, TYPES)


@pytest.mark.parametrize('path, value', [
    ('/a', 3), ('a', 3), ('/list/1', 20), ('/list/-1', 30), ('/ref', 3), ('/rel', 10), ('/deep/up', 3), ('/deep/here', 5), ('/deep/item', 20),
    ('/made', 23), ('/box.n', 3), ('/box.inner.0', 20), ('/viabox', 20), ('/0', 'zero'), ('/.', None)])
def test_paths(path, value):
    cfg = Config({'a': 3, 'list': [10, 20, 30], 'ref': '@/a', 'rel': '@list/0', 'deep': {'up': '@../a', 'here': '@./x', 'x': 5, 'item': '@/list/1'},
                  'made': {'type': 'add', 'a': '@/a', 'b': '@/list/1'}, 'box': {'type': 'box', 'n': '@/a', 'inner': ['@/list/1']}, 'viabox': '@/box.inner.0', 0: 'zero'}, TYPES)
    found = cfg[path]
    assert found == value or value is None and found['a'] == 3


def test_results_are_cached_and_lazy():
    made = []
    cfg = Config({'x': {'type': 'make'}, 'y': ['@/x', '@/x'], 'z': {'type': 'make'}}, dict(make=lambda: made.append(1) or object()))
    assert cfg['/y'][0] is cfg['/y'][1] is cfg['/x']
    assert len(made) == 1                                       # z was not asked for


def test_raw_values():
    cfg = config(a='@/b', b={'type': 'box', 'n': [1, '@/a']})
    assert cfg['!/a'] == '@/b' and cfg['!/b']['type'] == 'box' and cfg['!/b/n/1'] == '@/a'
    with pytest.raises(ValueError): cfg['!/b.n']


@pytest.mark.parametrize('tree, path, error, words', [
    (dict(a='@/b', b='@/c'), '/a', KeyError, ['/c', '/a -> /b']),
    (dict(a=['@/l/7'], l=[1]), '/a', IndexError, ['no item 7', '/a -> /a/0 -> /l/7']),
    (dict(a='@/n.x', n=3), '/a', AttributeError, ["'x'", '/a -> /n.x']),
    (dict(a={'type': 'add', 'a': 1, 'b': 'x'}), '/a', TypeError, ['/a']),
    (dict(a={'type': 'add', 'a': 1}), '/a', TypeError, ["'b'", '/a']),
    (dict(a={'b': {'type': 'unknown'}}), '/a', KeyError, ['unknown', '/a -> /a/b']),
    (dict(n=3, a='@/n/0'), '/a', TypeError, ['/a -> /n/0'])])
def test_errors_keep_their_type_and_name_the_chain(tree, path, error, words):
    with pytest.raises(error) as e: config(**tree)[path]
    for w in words: assert w in str(e.value), str(e.value)


@pytest.mark.parametrize('tree, chain', [
    (dict(a='@/a'), '/a -> /a'), (dict(a='@/b', b='@/a'), '/a -> /b -> /a'), (dict(a={'b': ['@/a']}), '/a -> /a/b -> /a/b/0 -> /a'),
    (dict(a={'type': 'box', 'n': '@/a.n'}), '/a -> /a/n -> /a.n -> /a')])
def test_circles(tree, chain):
    with pytest.raises(RuntimeError, match='Circular dependency') as e: config(**tree)['/a']
    assert chain in str(e.value)


def test_after_an_error_the_config_still_works():
    cfg = config(a='@/nowhere', b=1)
    for _ in range(2):
        with pytest.raises(KeyError): cfg['/a']
    assert cfg['/b'] == 1


def per_node(n, kind):
    tree = {'list': {'l': [{'type': 'box', 'x': i, 'y': '@/c'} for i in range(n//4)], 'c': 1}, 'chain': {str(i): f'@/{i+1}' if i < n else 7 for i in range(n + 1)}}[kind]
    best = float('inf')
    for _ in range(3):
        cfg = Config(tree, TYPES)
        start = time.perf_counter()
        cfg['/l' if kind == 'list' else '/0']
        best = min(best, time.perf_counter() - start)
    return best/n


@pytest.mark.parametrize('kind', ['list', 'chain'])
def test_ten_thousand_nodes_in_linear_time(kind):
    "Per node at most four times the time of a config of a tenth of the size; a quadratic walk would take ten times as long."
    assert per_node(10_000, kind) < 4*per_node(1000, kind) + 2e-6


def test_customize_type():
    @customize_type(width='/width', depth='deep/d', given='/nowhere')
    def net(width, depth, given, deep=None): return width, depth, given
    cfg = Config({'width': 4, 'n': {'type': 'net', 'given': 1, 'deep': {'d': 2}}}, dict(net=net))
    assert cfg['/n'] == (4, 2, 1)

    @customize_type(width='../w')
    class Net:
        def __init__(self, width): self.width = width
    cfg = Config({'w': 5, 'n': {'type': 'net'}}, dict(net=Net))
    assert cfg['/n.width'] == 5 and isinstance(cfg['/n'], Net)


def test_update_via_args():
    cfg = config(i=1, f=.5, b=True, s='x', l=['@/i'], deep={'list': [1, 2]})
    assert cfg['/l'] == [1]
    cfg.update_via_args([('/i', '5'), ('/f', '2'), ('/b', 'false'), ('/s', 7), ('/deep/list/1', '9')])
    assert (cfg['/i'], cfg['/f'], cfg['/b'], cfg['/s'], cfg['/l']) == (5, 2., False, '7', [5])
    assert cfg['/deep'] == {'list': [1, 9]}
    cfg.update_via_args([('/f', 3)])
    assert cfg['/i'] == 5                                      # earlier overrides stay
    for bad in ('1', 'yes', ''):
        with pytest.raises(ValueError): cfg.update_via_args([('/b', bad)])
    with pytest.raises(ValueError): cfg.update_via_args([('/i', 'x')])
    with pytest.raises(KeyError): cfg.update_via_args([('/unknown', 1)])


def write(folder, **files):
    for name, tree in files.items(): (folder/f'{name}.json').write_text(json.dumps(tree))


def test_imports(tmp_path):
    (tmp_path/'sub').mkdir()
    write(tmp_path, main={'a': {'import': 'sub/a.json', 'x': 2, 'deep/0/y': {'import': 'b.json'}}, 'l': [{'import': 'b.json'}]}, b={'b': 'at the top'})
    write(tmp_path/'sub', a={'x': 1, 'deep': [{'y': 0}], 'b': {'import': 'b.json'}}, b={'b': 'below'})
    cfg = Config.load_path(str(tmp_path/'main.json'))
    assert cfg['/'] == {'a': {'x': 2, 'deep': [{'y': {'b': 'at the top'}}], 'b': {'b': 'below'}}, 'l': [{'b': 'at the top'}]}


def test_circular_import_names_the_files(tmp_path):
    write(tmp_path, a={'x': {'import': 'b.json'}}, b={'y': [{'import': './a.json'}]})
    with pytest.raises(RuntimeError, match='Circular import.*a.json -> .*b.json -> .*a.json'): Config.load_path(tmp_path/'a.json')


def test_another_loader(tmp_path):
    (tmp_path/'n').write_text('3')
    assert Config.load_path(tmp_path/'n', loader=lambda p: {'n': int(open(p).read())})['/n'] == 3
    with pytest.raises(FileNotFoundError): Config.load_path(tmp_path/'absent.json')


class Trial:
    def suggest_categorical(self, name, choices): return choices[-1]
    def suggest_discrete_uniform(self, name, low, high, q): return high
    def suggest_float(self, name, low, high, *, step=None, log=False): return (name, low, high, step, log)
    def suggest_int(self, name, low, high): return high
    def suggest_loguniform(self, name, low, high): return low
    def suggest_uniform(self, name, low, high): return high


KINDS = ['categorical', 'discrete_uniform', 'float', 'int', 'loguniform', 'uniform']


def test_optuna_types_are_the_bound_methods():
    trial = Trial()
    assert optuna_types(trial) == {f'optuna_suggest_{k}': getattr(trial, f'suggest_{k}') for k in KINDS}


def test_methods_that_optuna_removes():
    class Newer:
        suggest_categorical, suggest_int, suggest_float = Trial.suggest_categorical, Trial.suggest_int, Trial.suggest_float
    types = optuna_types(Newer())
    assert types['optuna_suggest_discrete_uniform']('q', 0, 1, .5) == ('q', 0, 1, .5, False)
    assert types['optuna_suggest_loguniform']('l', 1, 2) == ('l', 1, 2, None, True)
    assert types['optuna_suggest_uniform']('u', 1, 2) == ('u', 1, 2, None, False)


def test_load_path_with_optuna_types(tmp_path):
    write(tmp_path, a={'n': {'type': 'optuna_suggest_int', 'name': 'n', 'low': 1, 'high': 8}, 's': {'type': 'add', 'a': '@/n', 'b': 1}})
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert load_path_with_optuna_types(str(tmp_path/'a.json'), Trial(), types=TYPES)['/s'] == 9
    with pytest.warns(UserWarning, match='optuna_suggest_int'):
        assert load_path_with_optuna_types(tmp_path/'a.json', Trial(), loader=lambda p: json.load(open(p)), types=dict(TYPES, optuna_suggest_int=None))['/n'] == 8
