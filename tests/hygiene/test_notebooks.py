"Notebooks are clean, small and say nothing about the machine they ran on."
import json, re, subprocess
from pathlib import Path
import pytest

ROOT = Path(__file__).resolve().parents[2]
MAX_KB = 400             # of a notebook, outputs included
SILENT = 7               # at most so many cells that a reader runs for each that shows a result
MAX_CELL = 50            # lines of a code cell


def notebooks() -> list:
    "Notebooks of the project; those beginning with _ are scratch."
    return sorted(p for p in (ROOT/'nbs').rglob('*.ipynb') if not any(part.startswith(('_', '.')) for part in p.relative_to(ROOT).parts))


@pytest.fixture(params=notebooks(), ids=lambda p: p.relative_to(ROOT/'nbs').as_posix())
def nb(request): return request.param, json.loads(request.param.read_text(encoding='utf-8'))


def code(d): return [c for c in d['cells'] if c['cell_type'] == 'code']
def text(x): return x if isinstance(x, str) else ''.join(x)
def visible(o): return bool(text(o.get('text', '')).strip() or o.get('data'))         # text, a table or a picture


def test_clean(nb):
    path, d = nb
    assert set(d['metadata']) <= {'kernelspec'} and set(d['metadata'].get('kernelspec', {})) <= {'display_name', 'language', 'name'}
    for c in d['cells']: assert not c.get('metadata'), f"cell metadata {c['metadata']}"
    for c in code(d):
        assert c.get('execution_count') is None, 'execution count left: run nbdev_clean'
        for o in c['outputs']: assert o.get('execution_count') is None and not o.get('metadata')


def test_small(nb):
    path, d = nb
    assert path.stat().st_size <= MAX_KB*1024
    long = [(i, n) for i, c in enumerate(d['cells']) if c['cell_type'] == 'code' and (n := text(c['source']).count('\n') + 1) > MAX_CELL]
    assert not long, f'code cells (number, lines) longer than {MAX_CELL} lines: {long}'


def test_outputs(nb):
    "No error, no warning, no machine path, no progress bar left behind."
    for c in code(nb[1]):
        for o in c['outputs']:
            assert o['output_type'] != 'error', text(c['source'])[:200]
            assert o.get('name') != 'stderr', f"warning or log left in an output: {text(o['text'])[:300]}"
            said = text(o.get('text', '')) + text(o.get('data', {}).get('text/plain', '')) + text(o.get('data', {}).get('text/html', ''))
            assert not re.search(r'(?<![\w.])/(home|Users|root|opt|usr|tmp|var)/\w', said), f'machine path in an output: {said[:300]}'


def test_form(nb):
    "A title, and a question where something is exported; nothing that a reader without nbdev cannot run."
    path, d = nb
    prose = [text(c['source']) for c in d['cells'] if c['cell_type'] == 'markdown']
    assert prose and prose[0].startswith('# '), 'the first prose cell is the title'
    assert '\n- ' not in prose[0], 'nbdev reads lines with a dash in the title cell as settings: begin its lists with *'
    exports = any(re.match(r'\s*#\s*\|\s*default_exp', text(c['source'])) for c in code(d))
    if exports:
        assert '\n> ' in prose[0], 'below the title stands the question the notebook answers, as a quote'
    used = [i for i, c in enumerate(d['cells']) if c['cell_type'] == 'code' and re.search(r'^\s*(import|from) nbdev\b', text(c['source']), re.M)]
    assert not used or path.name == '95_docs.ipynb', f'cells {used} need nbdev: exporting is `make export`, not a part of a lesson'


def test_executed(nb):
    "A reader sees that it ran: something is shown, and not by one cell among dozens of silent ones."
    kept = r'^\s*#\s*\|\s*(export|default_exp|hide|slow|cuda|eval)'                   # exported, hidden, or not run here
    read = [c for c in code(nb[1]) if not re.search(kept, text(c['source']), re.M)]
    shown = sum(any(visible(o) for o in c['outputs']) for c in read)
    assert shown, 'no cell shows a result: a notebook of silent tests reads as one that never ran'
    assert SILENT*shown >= len(read), f'{shown} of {len(read)} cells show a result; at least one in {SILENT} should'


def test_drawings_are_there(nb):
    "A cell that draws with matplotlib shows its picture; a backend without a display loses it silently."
    path, d = nb
    draws = lambda s: 'plt.subplots(' in s or 'plt.figure(' in s
    hidden = lambda s: re.search(r'^#\| *(exporti?|hide|eval: *false)\b', s, re.M) or 'close' in s
    missing = [i for i, c in enumerate(d['cells']) if c['cell_type'] == 'code' and draws(text(c['source'])) and not hidden(text(c['source']))
               and not any(k.startswith('image/') for o in c['outputs'] for k in o.get('data', {}))]
    assert not missing, f'cells {missing} draw and show no picture: execute the notebook without MPLBACKEND'
