"Every link between notebooks, modules and files of the repository leads somewhere, in the pages that `make docs` gives to MkDocs."
import pytest
from xmodaler_nb.utils.docs import site_menu, write_pages
from xmodaler_nb.utils.links import dead_links, html_parts, markdown_anchors

pytest.importorskip('latex2mathml', reason='formulas of the site need latex2mathml (extra dev)')


@pytest.fixture(scope='module')
def pages(root, tmp_path_factory):
    folder = tmp_path_factory.mktemp('site')/'pages'
    assert write_pages(root, folder) > 400
    (folder/'captioner.md').write_text('# The captioner\n')
    return folder


def test_no_dead_link(pages):
    dead = dead_links(pages, '.md')
    assert not dead, '\n'.join(f'{page}: {link} {problem}' for page, link, problem in dead)


def test_a_dead_link_is_found(pages):
    (pages/'_extra.md').write_text('[a](index.md#no-such-part), [b](nowhere.md), [c](index.md)')
    try: assert [d[1] for d in dead_links(pages, '.md') if d[0] == '_extra.md'] == ['index.md#no-such-part', 'nowhere.md']
    finally: (pages/'_extra.md').unlink()


def test_modules_and_notebooks_point_at_each_other(pages):
    page, api = (pages/'16_look'/'10_render.md').read_text(), (pages/'api'/'look.render.md').read_text()
    assert '(../api/look.render.md)' in page and '(../16_look/10_render.md#render_attention)' in api
    assert 'render_attention' in markdown_anchors(page) and 'render_attention' in markdown_anchors(api)


def test_the_menu_lists_every_notebook(pages, root):
    def listed(entry): return [entry] if isinstance(entry, str) else [x for e in (entry.values() if isinstance(entry, dict) else entry) for x in listed(e)]
    found = listed(site_menu(root/'nbs'))
    assert len(found) == len(set(found)) and all((pages/f).is_file() for f in found)
    of_notebooks = {p.relative_to(pages).with_suffix('.md').as_posix() for p in pages.rglob('*.ipynb')}
    assert of_notebooks <= set(found)


def test_anchors_as_mkdocs_names_them():
    "Our names of headings are those of the converter."
    markdown = pytest.importorskip('markdown')
    text = '# One `two`: three_four – five?\n\n## [A link](x.md) & *more*\n\n## Twice\n\n## Twice\n'
    made = html_parts(markdown.markdown(text, extensions=['toc']))[1]
    assert made == markdown_anchors(text)
