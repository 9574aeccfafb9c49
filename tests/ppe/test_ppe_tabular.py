"ppe.dataset: a TabularDataset and all its views against a plain list of tuples; laziness; the shared cache."
import numpy as np
import pytest, torch
from hypothesis import HealthCheck, given, settings, strategies as st
from xmodaler_nb.ppe.dataset import DelegateDataset, ItemNotFoundException, SharedDataset, TabularDataset, from_data

SETTINGS = settings(deadline=None, max_examples=120, derandomize=True, suppress_health_check=list(HealthCheck))


class Table(TabularDataset):
    "Rows of integers; writes down what it was asked for."
    def __init__(self, rows, keys=('a', 'b', 'c'), mode=tuple, array=False):
        self.rows, self._keys, self._mode, self.array, self.asked = rows, keys, mode, array, []
    def __len__(self): return len(self.rows)
    @property
    def keys(self): return self._keys
    @property
    def mode(self): return self._mode
    def get_examples(self, indices, key_indices):
        assert indices is None or isinstance(indices, (list, slice)), indices
        assert key_indices is None or isinstance(key_indices, tuple), key_indices
        self.asked.append((indices, key_indices))
        rows = self.rows if indices is None else self.rows[indices] if isinstance(indices, slice) else [self.rows[i] for i in indices]
        columns = [[r[k] for r in rows] for k in (range(len(self._keys)) if key_indices is None else key_indices)]
        return tuple(np.array(c, dtype=int) if self.array else c for c in columns)


class Plain:
    "The same operations on a list of tuples, without laziness."
    def __init__(self, rows, keys, mode): self.rows, self.keys, self.mode = rows, keys, mode
    def item(self, row): return dict(zip(self.keys, row)) if self.mode is dict else row if self.mode is tuple else row[0]
    def fetch(self):
        columns = tuple([r[k] for r in self.rows] for k in range(len(self.keys)))
        return self.item(columns)


def make(n, width, mode, array, base):
    rows = [tuple(base + 100*k + i for k in range(width)) for i in range(n)]
    keys = tuple('abc'[:width])
    return Table(rows, keys, mode, array), Plain(rows, keys, mode)


@st.composite
def row_index(draw, n):
    kind = draw(st.sampled_from(['slice', 'ints', 'mask', 'array', 'mask array']))
    if kind == 'slice': return slice(*[draw(st.none() | st.integers(-n - 2, n + 2)) for _ in range(2)], draw(st.none() | st.integers(-3, 3).filter(bool)))
    if 'mask' in kind: index = draw(st.lists(st.booleans(), min_size=n, max_size=n))
    else: index = draw(st.lists(st.integers(-n, n - 1), max_size=6)) if n else []
    return np.array(index, dtype=bool if 'mask' in kind else int) if 'array' in kind else index


def plain_rows(rows, index):
    if isinstance(index, slice): return rows[index]
    index = list(index)
    if index and isinstance(index[0], (bool, np.bool_)): return [r for r, keep in zip(rows, index) if keep]
    return [rows[i] for i in index]


@st.composite
def key_index(draw, keys):
    "(what to write, positions, bare?)"
    position = draw(st.integers(0, len(keys) - 1))
    spell = lambda p: draw(st.sampled_from([keys[p], p, p - len(keys)]))
    if draw(st.booleans()): return spell(position), [position], True
    positions = draw(st.lists(st.integers(0, len(keys) - 1), min_size=1, max_size=len(keys), unique=True))
    return draw(st.sampled_from([tuple, list]))(spell(p) for p in positions), positions, False


def step(draw, ds, plain, number):
    "One random view of both."
    n, keys = len(plain.rows), plain.keys
    kind = draw(st.sampled_from(['rows', 'keys', 'both', 'tuple', 'dict', 'concat', 'join', 'transform', 'batch', 'converter', 'delegate']))
    if kind == 'rows':
        index = draw(row_index(n))
        return ds.slice[index], Plain(plain_rows(plain.rows, index), keys, plain.mode)
    if kind in ('keys', 'both'):
        index = draw(row_index(n)) if kind == 'both' else slice(None)
        written, positions, bare = draw(key_index(keys))
        rows = [tuple(r[p] for p in positions) for r in plain_rows(plain.rows, index)]
        return ds.slice[index, written], Plain(rows, tuple(keys[p] for p in positions), None if bare else plain.mode or tuple)
    if kind in ('tuple', 'dict'): return (ds.astuple(), Plain(plain.rows, keys, tuple)) if kind == 'tuple' else (ds.asdict(), Plain(plain.rows, keys, dict))
    if kind == 'concat':
        index = draw(row_index(n))
        return ds.concat(ds.slice[index], ds), Plain(plain.rows + plain_rows(plain.rows, index) + plain.rows, keys, plain.mode)
    if kind == 'join':
        other = Table([(-number, i) for i in range(n)], (f'j{number}', f'k{number}'))
        return ds.join(other), Plain([(*r, -number, i) for i, r in enumerate(plain.rows)], (*keys, *other.keys), plain.mode or tuple)
    if kind == 'converter': return ds.with_converter(lambda *a, **k: ('converted', len(a), sorted(k))), plain
    if kind == 'delegate': return DelegateDataset(ds), plain
    return transformed(draw, ds, plain, kind, number)


def transformed(draw, ds, plain, kind, number):
    first, out = plain.keys[0], draw(st.sampled_from([tuple, dict, None]))
    names = (f't{number}',) if out is None else (f't{number}', f'u{number}')
    def f(*args, **kwargs):
        assert (plain.mode is dict) == bool(kwargs)
        x = kwargs[first] if kwargs else args[0]
        twice = 2*np.asarray(x) if kind == 'batch' else 2*x
        return twice if out is None else (twice, x) if out is tuple else {names[0]: twice, names[1]: x}
    view = (ds.transform if kind == 'transform' else ds.transform_batch)(names if len(names) > 1 else names[0], [(((first,), names), f)])
    mode = out if out is not None or plain.rows else plain.mode and None
    rows = [(2*r[0],) if out is None else (2*r[0], r[0]) for r in plain.rows]
    return view, Plain(rows, names, mode)


def same(a, b):
    if isinstance(b, dict): return list(a) == list(b) and all(same(a[k], b[k]) for k in b)
    if isinstance(b, (tuple, list)): return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b))
    return a == b


@SETTINGS
@given(st.data())
def test_views_against_a_list_of_tuples(data):
    "Up to five random views on top of one another, then every way of reading."
    width, array = data.draw(st.integers(1, 3)), data.draw(st.booleans())
    mode = data.draw(st.sampled_from([tuple, dict, None] if width == 1 else [tuple, dict]))
    ds, plain = make(data.draw(st.integers(1, 6)), width, mode, array, 0)
    for number in range(data.draw(st.integers(0, 5))):
        if not plain.rows: break                     # a function that never ran has no mode
        ds, plain = step(data.draw, ds, plain, number)
    assert (len(ds), tuple(ds.keys)) == (len(plain.rows), plain.keys)
    if not plain.rows: return
    assert ds.mode is plain.mode
    assert same(ds.fetch(), plain.fetch())
    assert all(same(ds[i], plain.item(r)) for i, r in enumerate(plain.rows))
    index = data.draw(row_index(len(plain.rows)))
    assert same(ds[index], [plain.item(r) for r in plain_rows(plain.rows, index)])
    positions = data.draw(st.permutations(range(len(plain.keys))).map(lambda p: tuple(p[:2])))
    columns = ds.get_examples(index if isinstance(index, slice) else None, positions)
    rows = plain.rows[index] if isinstance(index, slice) else plain.rows
    assert same(tuple(map(list, columns)), tuple([r[p] for r in rows] for p in positions))


@SETTINGS
@given(st.integers(1, 7).flatmap(lambda n: st.tuples(st.just(n), row_index(n))), st.data())
def test_slice_of_slice_reads_once(pair, data):
    "Rows and columns arrive merged; a slice of a slice stays a slice."
    n, first = pair
    ds, plain = make(n, 3, tuple, False, 0)
    rows = plain_rows(plain.rows, first)
    second = data.draw(row_index(len(rows)))
    view = ds.slice[first, ('c', 'a')].slice[second, ['a']]
    assert ds.asked == []
    assert view.fetch() == ([r[0] for r in plain_rows(rows, second)],)
    (asked, columns), = ds.asked
    assert columns == (0,) and isinstance(asked, slice) == (isinstance(first, slice) and isinstance(second, slice))


def test_slicing_a_million_rows_touches_none():
    class Huge(TabularDataset):
        keys, mode = ('x',), None
        def __len__(self): return 10**6
        def get_examples(self, indices, key_indices): asked.append(indices); return [i for i in range(10**6)[indices]] if isinstance(indices, slice) else indices,
    asked = []
    view = Huge()
    for _ in range(3000): view = view.slice[::-1].slice[1:-1]          # 3,000 views: one view, not a tower
    view = view.concat(Huge()).slice[:5000:1000].transform('y', [(('x', 'y'), lambda x: -x)])
    assert asked == [] and len(view) == 5
    assert view[2] == -(3000 + 2000)
    assert all(isinstance(i, (list, slice)) and len(range(10**6)[i] if isinstance(i, slice) else i) <= 5 for i in asked)


def test_concat_hands_slices_on():
    a, b = make(4, 2, tuple, True, 0)[0], make(5, 2, tuple, True, 50)[0]
    whole = a.concat(b)
    assert whole.get_examples(slice(7, 0, -3), (1,)) == ([153, 150, 101],)
    assert [isinstance(i, slice) for i, _ in a.asked + b.asked] == [True, True]
    a.asked.clear(), b.asked.clear()
    assert whole.slice[6:].fetch() == ([52, 53, 54], [152, 153, 154]) and not a.asked


@pytest.mark.parametrize('ask, error', [
    (lambda d: d.slice[[True]], ValueError), (lambda d: d.slice[[4]], IndexError), (lambda d: d.slice[[-5]], IndexError), (lambda d: d.slice[:, 'z'], KeyError),
    (lambda d: d.slice[:, ('a', 3)], IndexError), (lambda d: d.slice[:, -4], IndexError), (lambda d: d[4], IndexError), (lambda d: d[[0, 9]], IndexError),
    (lambda d: d.concat(d.slice[:, ('b', 'a', 'c')]), ValueError), (lambda d: d.join(d), ValueError), (lambda d: d.join(from_data(dict(x=[1]))), ValueError),
    (lambda d: d.transform(('x',), [((('a',), ('y',)), abs)]), ValueError), (lambda d: d.transform(('x', 'y'), [((('a',), ('x',)), abs)]), ValueError),
    (lambda d: d.transform(('x',), [((('a',), ('x',)), abs), ((('b',), ('x',)), abs)]), ValueError),
    (lambda d: d.transform(('x',), [((('a',), ('x',)), lambda a: (a, a))])[0], ValueError), (lambda d: d.transform(('x',), [((('a',), ('x',)), lambda a: dict(z=a))])[0], ValueError),
    (lambda d: d.transform('x', [((('a',), ('x',)), lambda a: (a,) if a else a)]).fetch(), ValueError),
    (lambda d: d.transform_batch('x', [((('a',), ('x',)), lambda a: a[:-1])]).fetch(), ValueError)])
def test_refusals(ask, error):
    with pytest.raises(error): ask(make(4, 3, tuple, False, 0)[0])


def test_only_the_needed_functions_run():
    ran = []
    ds = make(3, 3, dict, False, 0)[0]
    view = ds.transform(('x', 'y'), [((('a',), ('x',)), lambda a: ran.append('x') or dict(x=a)), ((('b', 'c'), ('y',)), lambda b, c: ran.append('y') or dict(y=b + c))])
    view.get_examples([1], (1,))
    assert ran == ['y'] and ds.asked == [([1], (1, 2))]
    assert view[0] == dict(x=0, y=300) and view.mode is dict


def test_a_plain_function_takes_all_columns():
    ds = make(3, 2, tuple, False, 0)[0]
    assert ds.transform(('x', 'y'), lambda a, b: (b, a))[1] == (101, 1)


def test_convert():
    ds = from_data(dict(x=[torch.ones(2), torch.zeros(2)], y=[1, 2], z=np.ones((2, 3))))
    got = ds.convert(ds.fetch())
    assert isinstance(got['x'], torch.Tensor) and got['x'].shape == (2, 2) and isinstance(got['y'], np.ndarray) and got['z'].shape == (2, 3)
    assert ds.slice[:, 'y'].convert([3, 4]).tolist() == [3, 4]
    for view, expect in ((ds.with_converter(lambda **k: sorted(k)), ['x', 'y', 'z']), (ds.astuple().with_converter(lambda x, y, z: y), [1, 2]), (ds.slice[:, 'y'].with_converter(max), 2)):
        assert view.convert(view.fetch()) == expect
        assert view.slice[:1].convert(view.fetch()) == expect          # views of it keep the converter


def test_base_class_names_what_is_missing():
    for use in (len, lambda d: d.keys, lambda d: d.mode, lambda d: d.get_examples(None, None)):
        with pytest.raises(RuntimeError, match='TabularDataset must define'): use(TabularDataset())


def test_from_data():
    t = from_data((('x', np.arange(4)), [5, 6, 7, 8], ('y', lambda i: -i), (('p', 'q'), lambda i: dict(p=i, q=2*i))))
    assert t.mode is tuple and t.keys[0] == 'x' and t.keys[2:] == ('y', 'p', 'q')
    assert t[2] == (2, 7, -2, 2, 4) and t.slice[::-2, ('y', 'x')][0] == (-3, 3)
    with pytest.raises(ValueError): from_data((('x', [1]), ('y', [1, 2])))
    with pytest.raises(ValueError): from_data(lambda i: i, size=2)
    with pytest.raises(ValueError): from_data(('x', lambda i: i))
    shared = np.arange(4)
    assert np.shares_memory(from_data(shared).slice[1:3].fetch(), shared)


def test_loader_workers():
    ds = make(8, 2, dict, False, 0)[0].transform(('s',), [((('a', 'b'), ('s',)), lambda a, b: dict(s=a + b))])
    batches = list(torch.utils.data.DataLoader(ds, batch_size=4))
    assert torch.cat([b['s'] for b in batches]).tolist() == [100 + 2*i for i in range(8)]


def test_shared_dataset():
    class Squares(SharedDataset):
        computed = 0
        def __getitem__(self, i):
            try: return super().__getitem__(i)
            except ItemNotFoundException:
                self.computed += 1
                x = torch.full((2,), float(i*i))
                self.cache_item(i, x)
                return x
    ds = Squares((4, 2))
    assert not ds.is_cached(3)
    assert ds[3].tolist() == ds[3].tolist() == [9., 9.] and ds.computed == 1 and ds.is_cached(3) and not ds.is_cached(0)
    assert ds[3].is_shared() and ds[3].dtype == torch.float32
    with pytest.raises(ValueError): ds.cache_item(0, torch.ones(3))
    class Nothing:
        def __init__(self, sm_size): self.size = sm_size
        def is_cached(self, i): return False
    assert SharedDataset((4, 2), cache_type=Nothing).cache.size == (4, 2)


def test_caption_data_is_a_table():
    from xmodaler_nb.own.check import Sample
    from xmodaler_nb.own.data import CaptionData
    table = CaptionData([Sample(str(i), f'{i}.jpg', ['a dog']*i, 'train') for i in range(4)]).tabular()
    assert isinstance(table, TabularDataset) and table.mode is dict and table.keys == ('id', 'file', 'captions', 'split')
    assert table.slice[[3, 1], 'id'].fetch() == ['3', '1'] and table[2]['captions'] == ['a dog']*2
