"The CaptionExplorer in a real page: voila serves the demo notebook, chromium clicks, nothing outside this machine is reached."
import importlib.util, os, shutil, socket, subprocess, sys, time
from pathlib import Path
import pytest

pytestmark = pytest.mark.browser
HERE = Path(__file__).resolve().parent
CHROMIUM = os.environ.get('XMODALER_CHROMIUM') or next((p for p in map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome')) if p), None)

def missing():
    "Why this test cannot run here, or None."
    if CHROMIUM is None: return 'no chromium on this machine (apt-get install chromium, or set XMODALER_CHROMIUM)'
    absent = [m for m in ('playwright', 'voila', 'ipywidgets') if importlib.util.find_spec(m) is None]
    return f"{', '.join(absent)} not installed (extras dev, widgets)" if absent else None

if missing(): pytest.skip(missing(), allow_module_level=True)

def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


@pytest.fixture(scope='module')
def address(tmp_path_factory):
    "Serve the demo notebook."
    tmp, port = tmp_path_factory.mktemp('voila'), free_port()
    env = {**os.environ, 'PYTHONPATH': os.pathsep.join([str(HERE.parents[1]), os.environ.get('PYTHONPATH', '')]), 'OMP_NUM_THREADS': '1', 'JUPYTER_CONFIG_DIR': str(tmp/'config'),
           'JUPYTER_RUNTIME_DIR': str(tmp/'runtime'), 'IPYTHONDIR': str(tmp/'ipython'), 'HOME': str(tmp)}
    log = open(tmp/'log', 'w')
    server = subprocess.Popen([sys.executable, '-m', 'voila', str(HERE/'explorer_demo.ipynb'), f'--port={port}', '--no-browser', '--show_tracebacks=True', '--Voila.ip=127.0.0.1'],
                              cwd=tmp, env=env, stdout=log, stderr=subprocess.STDOUT)
    url = f'http://127.0.0.1:{port}/'
    for _ in range(120):
        if server.poll() is not None: pytest.fail(f'voila ended: {(tmp/"log").read_text()[-2000:]}')
        with socket.socket() as s:
            s.settimeout(1)
            if s.connect_ex(('127.0.0.1', port)) == 0: break
        time.sleep(.5)
    yield url
    server.terminate()
    server.wait(20)
    log.close()


@pytest.fixture(scope='module')
def page(address):
    from playwright.sync_api import sync_playwright
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox', '--disable-dev-shm-usage'])
        tab = browser.new_page(viewport=dict(width=1200, height=900))
        tab.errors = []
        tab.on('pageerror', lambda e: tab.errors.append(str(e)))
        tab.route('**/*', lambda r: r.continue_() if r.request.url.startswith((address, 'data:', 'blob:')) else r.abort())    # offline
        tab.goto(address, timeout=120_000)
        tab.wait_for_selector('.sentence', timeout=120_000)
        yield tab
        browser.close()


def marked(page): return page.eval_on_selector_all('.sentence span', 'xs => xs.map(x => x.style.background !== "")')
def words(page): return page.eval_on_selector_all('.sentence span', 'xs => xs.map(x => x.firstChild.textContent)')
def pixels(page): return page.eval_on_selector('.attention image', 'x => x.getAttribute("href")')
def lights(page): return page.eval_on_selector_all('.attention figure:first-child rect', 'xs => xs.map(x => x.getAttribute("fill-opacity")).join()')


def test_words_pictures_and_searches(page):
    assert words(page) and marked(page)[0] and sum(marked(page)) == 1
    assert page.locator('.beams svg').count() == 1 and 'one & two' in page.inner_text('body')
    before = lights(page)
    page.get_by_text('word ▶').click()                                      # the next word: marked, and the light moves
    page.wait_for_function('document.querySelectorAll(".sentence span")[1].style.background !== ""', timeout=20_000)
    assert marked(page)[1] and (lights(page) != before or not before.strip(','))   # with some seeds no region is lit for either word
    page.get_by_text('◀ word').click()
    page.wait_for_function('document.querySelectorAll(".sentence span")[0].style.background !== ""', timeout=20_000)
    assert lights(page) == before
    picture = pixels(page)
    page.locator('select').first.select_option(label='second scene')       # another picture
    page.wait_for_function('document.body.innerText.includes("<three>")', timeout=20_000)
    page.wait_for_function('old => document.querySelector(".attention image").getAttribute("href") !== old', arg=picture, timeout=20_000)
    page.wait_for_timeout(500)
    beams = page.locator('.beams rect').count()
    page.get_by_role('button', name='greedy').click()                      # one beam instead of three
    page.wait_for_function(f'document.querySelectorAll(".beams rect").length < {beams}', timeout=20_000)
    assert not page.errors


@pytest.mark.parametrize('width', [1200, 800, 500])
def test_a_long_caption_stays_on_the_page(page, width):
    "Sixteen words and a wide tree of beams: nothing is pushed out at the right; the tree has its own scroll bar."
    page.get_by_role('button', name='beam').click()
    page.wait_for_function('document.querySelectorAll(".beams rect").length > 20', timeout=20_000)
    page.set_viewport_size(dict(width=width, height=900))
    page.wait_for_timeout(300)
    assert len(words(page)) > 11
    right = page.eval_on_selector_all('.sentence span, .attention figure, .beams, .jupyter-widgets', 'xs => Math.max(...xs.map(x => x.getBoundingClientRect().right))')
    scroll = page.evaluate('document.documentElement.scrollWidth')
    page.set_viewport_size(dict(width=1200, height=900))
    assert right <= width and scroll <= width, (right, scroll, width)


def test_the_page_holds_no_script_of_ours(page):
    assert page.locator('.widget-html script, .jupyter-widgets script').count() == 0
