#!/usr/bin/env python
"""Numbers about the code of this library, like those of a review: how long, how wide, how nested.

    python tests/hygiene/code_statistics.py            # the table
    python tests/hygiene/code_statistics.py 07_        # the places that break a rule, in notebooks whose path contains 07_
"""
import ast, io, json, re, sys, tokenize
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MAX_WIDTH = 119        # columns of a line of code in a notebook: none has 120 or more
MAX_CELL = 50          # lines of a code cell
MAX_RUN = 3            # exported cells in a row before a reader sees one at work
MAX_BODY = 450         # characters of a function's body, 90th percentile
PAIRS = 8              # KEY, value pairs in one list of options


def notebooks(part='') -> list:
    "Notebooks of the project, in reading order."
    found = sorted(p for p in (ROOT/'nbs').rglob('*.ipynb') if not any(n.startswith(('_', '.')) for n in p.relative_to(ROOT).parts))
    return [p for p in found if part in p.relative_to(ROOT/'nbs').as_posix()]


class Cell:
    "A code cell: where it stands, its source, what kind it is."
    def __init__(self, path, number, source):
        self.path, self.number = path, number
        self.source = re.sub(r'^[ \t]*[%!].*$', 'pass', source, flags=re.M)
        first = re.match(r'\s*#\s*\|\s*(\w+)', source)
        self.kind = first[1] if first else 'shown'
        self.lines, self.tree = source.split('\n'), ast.parse(self.source)

    @property
    def place(self): return f"{self.path.relative_to(ROOT/'nbs').as_posix()} [{self.number}]"
    def tokens(self): return list(tokenize.generate_tokens(io.StringIO(self.source).readline))


def code_cells(path) -> list:
    "The code cells of a notebook."
    cells = json.loads(path.read_text(encoding='utf-8'))['cells']
    return [Cell(path, i, ''.join(c['source'])) for i, c in enumerate(cells) if c['cell_type'] == 'code']


def wide_lines(cell) -> list:
    "Lines that are too wide."
    return [f'{cell.place} {len(l)} columns: {l.strip()[:80]}' for l in cell.lines if len(l) > MAX_WIDTH]


def nested_conditionals(cell) -> list:
    "A conditional expression inside a conditional expression."
    outer = [n for n in ast.walk(cell.tree) if isinstance(n, ast.IfExp)]
    inner = {id(m) for n in outer for m in ast.walk(n) if isinstance(m, ast.IfExp) and m is not n}
    return [f'{cell.place} line {n.lineno}: {ast.unparse(n)[:100]}' for n in outer if id(n) in inner]


def semicolons(cell) -> list:
    "Statements joined by `;` where a reader runs them; one at the end of a cell, which hides its result, is the notebook's own."
    if cell.kind != 'shown': return []
    last = len(cell.source.rstrip().split('\n'))
    return [f'{cell.place} line {t.start[0]}: {t.line.strip()[:100]}' for t in cell.tokens()
            if t.type == tokenize.OP and t.string == ';' and not (t.start[0] == last and not t.line[t.end[1]:].strip())]


def tight_tuples(cell) -> list:
    "A comma without a blank behind it, outside subscripts."
    out, stack, value = [], [], False
    tokens = cell.tokens()
    for a, b in zip(tokens, tokens[1:]):
        if a.type == tokenize.OP and a.string in '([{': stack.append('subscript' if a.string == '[' and value else a.string)
        elif a.type == tokenize.OP and a.string in ')]}' and stack: stack.pop()
        elif a.string == ',' and a.type == tokenize.OP and b.start == a.end and b.string not in ')]}' and b.type in (tokenize.NAME, tokenize.NUMBER, tokenize.STRING, tokenize.OP) \
            and 'subscript' not in stack[-1:]: out.append(f'{cell.place} line {a.start[0]}: {a.line.strip()[:100]}')
        if a.type not in (tokenize.NL, tokenize.COMMENT): value = a.type in (tokenize.NAME, tokenize.STRING) and a.string not in KEYWORDS or a.string in (')', ']')
    return out
KEYWORDS = set('in return and or not if else for yield print assert is lambda del from import'.split())


def long_cell(cell) -> list:
    "A cell that has to be scrolled."
    n = len(cell.lines)
    return [f'{cell.place} {n} lines'] if n > MAX_CELL else []


def option_lists(cell) -> list:
    "Many KEY, value pairs in one list: a nested dict or a YAML text is read more easily."
    out = []
    for n in ast.walk(cell.tree):
        if not isinstance(n, (ast.List, ast.Tuple)): continue
        keys = [e for e in n.elts if isinstance(e, ast.Constant) and isinstance(e.value, str) and re.fullmatch(r'[A-Z]\w*(\.[A-Z_0-9]+)+', e.value)]
        if len(keys) >= PAIRS: out.append(f'{cell.place} line {n.lineno}: {len(keys)} pairs')
    return out


def export_runs(path) -> list:
    "(length, place of the last) of exported cells that define something, in a row without a cell that is run in between."
    runs, n, at = [], 0, ''
    for cell in code_cells(path):
        defines = any(isinstance(s, (ast.FunctionDef, ast.ClassDef)) for s in cell.tree.body)
        if cell.kind in ('export', 'exports', 'exporti') and defines: n, at = n + 1, cell.place
        elif cell.kind not in ('export', 'exports', 'exporti', 'default_exp') and n: runs, n = [*runs, (n, at)], 0
    return runs + ([(n, at)] if n else [])


def long_runs(path) -> list:
    "Runs of exported cells that are too long."
    return [f'{at} ends a run of {n} exported cells' for n, at in export_runs(path) if n > MAX_RUN]


def functions(cell) -> list:
    "(lines, body lines, body characters) of every function: the body without signature and docstring."
    out = []
    for f in ast.walk(cell.tree):
        if not isinstance(f, (ast.FunctionDef, ast.AsyncFunctionDef)): continue
        body = f.body[1:] if ast.get_docstring(f) is not None else f.body
        text = [] if not body else cell.source.split('\n')[body[0].lineno - 1:f.end_lineno]
        if body and body[0].lineno == f.lineno: text = [text[0][body[0].col_offset:], *text[1:]]
        out.append((f.end_lineno - f.lineno + 1, len(text), sum(len(l.strip()) for l in text)))
    return out


RULES = (wide_lines, nested_conditionals, semicolons, tight_tuples, long_cell, option_lists)


def breaches(part='') -> list:
    "Every place that breaks a rule."
    paths = notebooks(part)
    return [(rule.__name__, line) for p in paths for c in code_cells(p) for rule in RULES for line in rule(c)] + [('long_runs', line) for p in paths for line in long_runs(p)]


def percentile(values, share) -> int:
    "The value below which a share of the values lies."
    values = sorted(values)
    return values[min(len(values) - 1, int(share*len(values)))] if values else 0


def table() -> dict:
    "The numbers."
    cells = [c for p in notebooks() for c in code_cells(p)]
    exported = [c for c in cells if c.kind.startswith('export')]
    lines = [l for c in exported for l in c.lines if l.strip()]
    shown = [l for c in cells if c.kind == 'shown' for l in c.lines if l.strip()]
    funcs = [f for c in exported for f in functions(c)]
    whole, body, characters = zip(*funcs)
    spread = lambda v: f'{percentile(v, .5)} / {percentile(v, .9)} / {percentile(v, .99)} / {max(v)}'
    share = lambda ls, n: f'{100*sum(len(l) >= n for l in ls)/len(ls):.1f} %'
    count = lambda rule, of: sum(len(rule(c)) for c in of)
    return {'notebooks': len(notebooks()), 'exported cells': len(exported), 'functions': len(funcs),
            'whole function, lines: median / p90 / p99 / max': spread(whole), 'body, lines': spread(body), 'body, characters': spread(characters),
            'exported lines of 100 columns or more': share(lines, 100), 'of 120 or more': share(lines, 120), 'of 140 or more': share(lines, 140),
            'shown lines of 120 columns or more': share(shown, 120), 'lines of 120 columns or more (exported, shown, hidden)': count(wide_lines, cells),
            'conditionals inside a conditional': count(nested_conditionals, cells), 'semicolons in shown cells': count(semicolons, cells), 'tuples without blanks': count(tight_tuples, cells),
            'cells above 50 lines': count(long_cell, cells), 'lists of 8 or more options': count(option_lists, cells),
            'longest run of exported cells': max(n for p in notebooks() for n, _ in export_runs(p)), 'runs above 3': sum(len(long_runs(p)) for p in notebooks())}


if __name__ == '__main__':
    if len(sys.argv) > 1:
        found = breaches(sys.argv[1])
        for rule, line in found: print(f'{rule:20} {line}')
        print(f'{len(found)} places')
    else:
        for name, value in table().items(): print(f'{name:55} {value}')
