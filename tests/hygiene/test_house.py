"The house: no import circle, and a notebook imports from smaller folder numbers only."
import ast, importlib, json, re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = 'xmodaler_nb'


def notebooks() -> list:
    "Notebooks of the project, in reading order."
    return sorted(p for p in (ROOT/'nbs').rglob('*.ipynb') if not any(part.startswith(('_', '.')) for part in p.relative_to(ROOT).parts))


def code_cells(path) -> list:
    "(number, source) of the code cells; lines of magic are left out."
    cells = json.loads(path.read_text(encoding='utf-8'))['cells']
    sources = [(i, ''.join(c['source'])) for i, c in enumerate(cells) if c['cell_type'] == 'code']
    return [(i, re.sub(r'^\s*[%!].*$', '', s, flags=re.M)) for i, s in sources]


def imported(tree, package, known) -> list:
    "Modules that the import statements of a tree ask for, those inside functions included; `from p import q` asks for p.q where that is a module."
    out = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import): out += [a.name for a in node.names]
        if isinstance(node, ast.ImportFrom):
            above = package.split('.')[:len(package.split('.')) - node.level + 1] if node.level else []
            base = '.'.join([*above, *([node.module] if node.module else [])])
            out += [f'{base}.{a.name}' if f'{base}.{a.name}' in known else base for a in node.names]
    return [n for n in out if n in known]


def import_graph() -> dict:
    "module → modules of the package that it imports."
    files = {'.'.join(p.relative_to(ROOT).with_suffix('').parts).removesuffix('.__init__'): p for p in (ROOT/PACKAGE).rglob('*.py') if p.name != '_modidx.py'}
    graph = {}
    for module, path in files.items():
        package = module if path.name == '__init__.py' else module.rpartition('.')[0]
        graph[module] = set(imported(ast.parse(path.read_text()), package, files)) - {module}
    return graph


def circles(graph) -> list:
    "Strongly connected components of more than one module (Tarjan 1972, https://doi.org/10.1137/0201010)."
    index, low, stack, out = {}, {}, [], []

    def visit(v):
        index[v] = low[v] = len(index)
        stack.append(v)
        for w in graph[v]:
            if w not in index: visit(w)
            if w in stack: low[v] = min(low[v], low[w])
        if low[v] == index[v]:
            at = stack.index(v)
            if len(stack) - at > 1: out.append(sorted(stack[at:]))
            del stack[at:]
    for v in sorted(graph):
        if v not in index: visit(v)
    return out


def test_circles_are_found():
    assert circles(dict(a=['b'], b=['c'], c=['a'], d=['a'])) == [['a', 'b', 'c']]
    assert circles(dict(a=['b', 'c'], b=['c'], c=[])) == []


def test_no_import_circle():
    "Imports inside functions count."
    assert not circles(import_graph())


def homes() -> dict:
    "module → its notebook."
    out = {}
    for p in notebooks():
        for _, s in code_cells(p):
            m = re.match(r'#\|\s*default_exp\s+(\S+)', s)
            if m: out[f"{PACKAGE}.{m[1]}".removesuffix('.__init__')] = p
    return out


def stairs_back() -> list:
    "(notebook, cell, module) where a notebook imports from a folder with a larger number; in exported cells, from any later notebook of its own folder."
    home, bad = homes(), []
    for p in notebooks():
        here = p.relative_to(ROOT/'nbs').parts
        if here[0] == 'index.ipynb' or here[0].startswith('01_'): continue          # the tour shows everything
        for i, s in code_cells(p):
            exported = re.match(r'#\|\s*export', s)
            for n in imported(ast.parse(s), '', home):
                if home[n] == p: continue
                there = home[n].relative_to(ROOT/'nbs').parts
                package = there[-1].startswith('99_')
                if there[0] > here[0] or exported and not package and there > here: bad.append(('/'.join(here), i, n))
    return bad


def test_imports_run_downhill():
    assert not stairs_back()


def test_guests_are_not_imported():
    "Guests import the rest; the rest never imports them."
    guests = tuple(f'{PACKAGE}.{g}' for g in ('ppe', 'mmf', 'asl'))
    assert not [(m, n) for m, names in import_graph().items() for n in names if n.startswith(guests) and not m.startswith(guests)]


def test_numbers_are_unique():
    "Two notebooks or folders with one number have no order."
    twice = []
    for folder in {p.parent for p in notebooks()}:
        numbers = [c.name[:2] for c in folder.iterdir() if re.match(r'\d\d_', c.name)]
        twice += [(str(folder.relative_to(ROOT)), n) for n in sorted(set(numbers)) if numbers.count(n) > 1]
    assert not twice


def test_promised_names_exist():
    "`from package import *` works: every name in an `__all__` is there."
    missing = []
    for module in import_graph():
        loaded = importlib.import_module(module)
        missing += [f'{module}.{n}' for n in getattr(loaded, '__all__', ()) if not hasattr(loaded, n)]
    assert not missing
