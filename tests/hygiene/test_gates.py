"How code reads: short bodies, narrow lines, an example behind every few exported cells. The rules stand in code_statistics.py."
import pytest
from code_statistics import MAX_BODY, RULES, breaches, code_cells, functions, notebooks, percentile

def test_rules_hold():
    lines = [f'{rule}: {line}' for rule, line in breaches()]
    assert not lines, '\n'.join(lines)


def test_bodies_are_short():
    "Ninety of a hundred functions have a body of at most so many characters, signature and docstring not counted."
    sizes = [f[2] for p in notebooks() for c in code_cells(p) if c.kind.startswith('export') for f in functions(c)]
    assert percentile(sizes, .9) <= MAX_BODY


@pytest.mark.parametrize('rule', RULES, ids=lambda r: r.__name__)
def test_rules_find_what_they_are_for(rule, tmp_path):
    "Each rule on a cell that breaks it."
    from code_statistics import ROOT, Cell
    bad = dict(wide_lines='x = ' + '1 + '*40 + '1', nested_conditionals='x = 1 if a else 2 if b else 3', semicolons='x = 1; y = 2',
               tight_tuples='x = f(1,2)', long_cell='\n'.join('x = 1' for _ in range(60)), option_lists=repr([f'A.B{i}' for i in range(9)]))
    assert rule(Cell(ROOT/'nbs'/'x.ipynb', 0, bad[rule.__name__]))
    assert not rule(Cell(ROOT/'nbs'/'x.ipynb', 0, 'x = f(1, 2)'))
