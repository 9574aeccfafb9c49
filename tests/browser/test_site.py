"The docs site: hidden cells stay hidden, the search index is small, and what is wide has a scroll bar instead of being cut off."
import json, re, shutil, subprocess, sys
from pathlib import Path
import pytest
from test_explorer import CHROMIUM
from xmodaler_nb.utils.docs import build_site

pytestmark = pytest.mark.browser
WIDE = '| ' + ' | '.join(f'a_column_with_a_long_name_{i}' for i in range(14)) + ' |'


def cell(kind, source, **more): return dict(cell_type=kind, id=f'c{abs(hash(source)) % 10**8}', metadata={}, source=source, **more)
def code(source, *outputs): return cell('code', source, execution_count=None, outputs=list(outputs))


@pytest.fixture(scope='module')
def site(tmp_path_factory, root):
    top = tmp_path_factory.mktemp('checkout')
    shutil.copyfile(root/'mkdocs.yml', top/'mkdocs.yml')
    (top/'nbs').mkdir()
    html = '<table><tr>' + ''.join(f'<td>a_cell_with_a_long_name_{i}</td>' for i in range(14)) + '</tr></table>'
    table = dict(output_type='execute_result', metadata={}, execution_count=None, data={'text/html': html, 'text/plain': 'x'})
    line = 'wide = ' + '+'.join(f'variable_{i}' for i in range(40))
    cells = [code('#| default_exp hidden_module'), cell('markdown', '# Wide\n\n' + WIDE + '\n' + '|---'*14 + '|\n' + WIDE), code('#| hide\nsecret_import = 1'), code('#| export\n' + line, table),
             code('#| hide\nimport nbdev; nbdev.nbdev_export()')]
    for name in ('index', 'other'):
        (top/'nbs'/f'{name}.ipynb').write_text(json.dumps(dict(cells=cells, metadata=dict(kernelspec=dict(name='python3', display_name='p', language='python')), nbformat=4, nbformat_minor=5)))
    assert build_site(top) == 0
    return top/'_docs'


def test_hidden_cells_are_not_shown(site):
    page = (site/'other.html').read_text()
    assert 'variable_39' in re.sub('<[^>]+>', '', page)
    for word in ('secret_import', 'hidden_module', 'nbdev_export', '#| export'): assert word not in re.sub('<[^>]+>', '', page)


def test_search_index_is_small_and_finds_words(site):
    path = site/'search'/'search_index.json'
    assert path.stat().st_size < 10_000
    docs = json.loads(path.read_text())['docs']
    assert {'index.html', 'other.html'} <= {d['location'] for d in docs} and all('variable_39' in d['text'] for d in docs)


@pytest.mark.parametrize('width', [1300, 700])
def test_wide_things_scroll(site, width):
    from playwright.sync_api import sync_playwright
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox', '--disable-dev-shm-usage'])
        tab = browser.new_page(viewport=dict(width=width, height=900))
        tab.route('**/*', lambda r: r.continue_() if r.request.url.startswith(('file:', 'data:')) else r.abort())
        tab.goto((site/'other.html').as_uri())
        assert tab.evaluate('document.documentElement.scrollWidth') <= width
        reachable = '''sel => [...document.querySelectorAll(sel)].map(x => {
            let bar = x; while (bar && !(['auto', 'scroll'].includes(getComputedStyle(bar).overflowX) && bar.scrollWidth > bar.clientWidth)) bar = bar.parentElement;
            return bar !== null && bar.getBoundingClientRect().right <= innerWidth })'''
        for sel in ('.jupyter-wrapper table', '.jp-InputArea-editor pre'):
            found = tab.evaluate(reachable, sel)
            assert found and all(found), (sel, found)
        browser.close()
