"xm-app in Chromium: every tab and slider, keys only, an upload, a hostile caption, a picture that is too large, axe-core; nothing outside this machine is reached."
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
import numpy as np
import pytest
import torch
from PIL import Image
from axe import axe_source, axe_or_skip, violations
from pages import CAMERA
from test_explorer import CHROMIUM, free_port, missing
from xmodaler_nb.captioner import Answerer, Captioner, Retriever
from xmodaler_nb.modeling import build_model, load_cfg_file
from xmodaler_nb.own.scenes.draw import render, sample_scene
from xmodaler_nb.own.scenes.features import FoundRegions, SceneFeatures
from xmodaler_nb.datasets.task_layout import write_pieces
from xmodaler_nb.tokenization import BertTokenizer

pytestmark = pytest.mark.browser
if missing(): pytest.skip(missing(), allow_module_level=True)
ROOT = Path(__file__).resolve().parents[2]
HOSTILE = '<img/src=x/onerror=document.title="broken">'
PATIENCE = 180_000


def write_readers(folder):
    "An untrained answerer and an untrained retriever of the same word pieces."
    regions, pieces = FoundRegions(), write_pieces(folder/'wordpieces.txt', ['how many balls boxes are there is a red blue ball ?'])
    def config(file, labels):
        sizes = dict(HIDDEN_SIZE=16, NUM_ATTENTION_HEADS=2, INTERMEDIATE_SIZE=32, NUM_HIDDEN_LAYERS=1)
        return load_cfg_file(f'mm_understanding/{file}', DATALOADER=dict(MAX_FEAT_NUM=12), MODEL=dict(
            DEVICE='cpu', VOCAB_SIZE=len(pieces), BERT=sizes, MM_PREDICTOR=dict(LABELS_NUM=labels), WEIGHTS='',
            TOKEN_EMBED=dict(DIM=16), VISUAL_EMBED=dict(IN_DIM=regions.dim, OUT_DIM=16)))
    ask, find = config('vqa/uniter/vqa.yaml', 3), config('flickr30k_retrieval/uniter/flickr30k_retrieval.yaml', 1)
    tokenizer = BertTokenizer(folder/'wordpieces.txt')
    Answerer(build_model(ask), ask, tokenizer, ['one', 'two', HOSTILE], regions).save_pretrained(folder/'answerer')
    Retriever(build_model(find), find, tokenizer, [], regions).save_pretrained(folder/'retriever')


def write_model(folder):
    "An untrained Transformer with a hostile word in its vocabulary."
    torch.manual_seed(1)
    look, vocab = SceneFeatures(), ['.', HOSTILE] + 'a red green ball box on the grass next to big small'.split()
    bert = dict(HIDDEN_SIZE=16, INTERMEDIATE_SIZE=32, NUM_ATTENTION_HEADS=2, NUM_HIDDEN_LAYERS=2, NUM_GENERATION_LAYERS=2)
    sizes = dict(DEVICE='cpu', VOCAB_SIZE=len(vocab), MAX_SEQ_LEN=10, DECODER_DIM=16, ENCODER_DIM=16, BERT=bert, TOKEN_EMBED=dict(DIM=16), VISUAL_EMBED=dict(IN_DIM=look.dim, OUT_DIM=16))
    cfg = load_cfg_file('image_caption/transformer/transformer.yaml', INFERENCE=dict(VOCAB=''), MODEL=sizes, DECODE_STRATEGY=dict(MIN_LENGTH=5, NO_REPEAT_NGRAM=2, REQUIRED_WORDS=[1]))
    return Captioner(build_model(cfg), cfg, vocab, look).save_pretrained(folder)


def write_run(folder, looks=range(6), samples=True):
    "What a self-critical training writes."
    with open(folder/'events.jsonl', 'a') as f: f.writelines(json.dumps({'iteration': i, 'total_loss': 5 - i/10, 'rl/reward': i/20, 'rl/baseline': .3, 'rl/distinct': .9}) + '\n' for i in looks)
    if not samples: return
    rows = (dict(iteration=i, id=k, greedy=f'a ball {i}', baseline=i/9, sampled=[HOSTILE, 'a box'], rewards=[.1, .3], reward=.2, distinct=2) for i in looks for k in ('11', '22'))
    with open(folder/'samples.jsonl', 'a') as f: f.writelines(json.dumps(r) + '\n' for r in rows)


@pytest.fixture(scope='module')
def address(tmp_path_factory):
    tmp, port = tmp_path_factory.mktemp('app'), free_port()
    write_model(tmp/'model')
    write_run(tmp/'model')
    (tmp/'others'/'slower').mkdir(parents=True)
    write_run(tmp/'others'/'slower', range(4), samples=False)
    write_readers(tmp)
    env = {**os.environ, 'PYTHONPATH': os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')]), 'OMP_NUM_THREADS': '1', 'HOME': str(tmp),
           'JUPYTER_CONFIG_DIR': str(tmp/'config'), 'JUPYTER_RUNTIME_DIR': str(tmp/'runtime'), 'IPYTHONDIR': str(tmp/'ipython')}
    order = 'import sys; from xmodaler_nb.commands.app import app_main; sys.exit(app_main())'
    log = open(tmp/'log', 'w')
    server = subprocess.Popen([sys.executable, '-c', order, '--model', str(tmp/'model'), '--run', str(tmp/'model'), str(tmp/'others'), '--answerer', str(tmp/'answerer'), '--retriever', str(tmp/'retriever'), '--port', str(port), '--no-browser'],
                              cwd=tmp, env=env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    for _ in range(360):
        if server.poll() is not None: pytest.fail(f'xm-app ended: {(tmp/"log").read_text()[-2000:]}')
        with socket.socket() as s:
            s.settimeout(1)
            if s.connect_ex(('127.0.0.1', port)) == 0: break
        time.sleep(.5)
    yield f'http://127.0.0.1:{port}/', tmp/'model'
    os.killpg(server.pid, 15)
    server.wait(30)
    log.close()


@pytest.fixture(scope='module')
def page(address):
    from playwright.sync_api import sync_playwright
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox', '--disable-dev-shm-usage', *CAMERA])
        tab = browser.new_page(viewport=dict(width=1280, height=800))
        tab.set_default_timeout(PATIENCE)
        tab.errors, tab.grave, tab.folder, address = [], {}, address[1], address[0]
        tab.on('pageerror', lambda e: tab.errors.append(str(e)))
        tab.route('**/*', lambda r: r.continue_() if r.request.url.startswith((address, 'data:', 'blob:')) else r.abort())
        tab.goto(address)
        tab.locator('.sentence').first.wait_for()
        yield tab
        browser.close()


def open_tab(page, name): page.get_by_role('tab', name=name, exact=True).click()


def look_at(page, name):
    "A picture of the page for who wants to look: XMODALER_SCREENSHOTS names a folder."
    folder = os.environ.get('XMODALER_SCREENSHOTS')
    for width, height in ((1280, 800), (390, 844)):
        page.set_viewport_size(dict(width=width, height=height))
        page.wait_for_timeout(200)
        if folder: page.screenshot(path=Path(folder)/f'{name}-{width}.png')
        assert page.evaluate('() => document.documentElement.scrollWidth') <= width, (name, width)
    page.set_viewport_size(dict(width=1280, height=800))
    if axe_source()[0]: page.grave[name] = violations(page)


MOVE = """([slider, key]) => new Promise(done => {
    const views = [...document.querySelectorAll('.widget-html-content')].filter(x => x.checkVisibility())
    const start = performance.now(), seen = new MutationObserver(() => { seen.disconnect(); done(performance.now() - start) })
    for (const v of views) seen.observe(v, {childList: true, subtree: true, characterData: true})
    setTimeout(() => { seen.disconnect(); done(null) }, 20000)
    slider.dispatchEvent(new KeyboardEvent('keydown', {key, bubbles: true}))
})"""


def move_sliders(page, tab):
    "Move every slider that is seen to an end and to the other one: milliseconds until a view has changed, by its label."
    times = {}
    for slider in page.get_by_role('slider').all():
        if not slider.is_visible(): continue
        name = slider.get_attribute('aria-label') or slider.evaluate('x => x.closest(".widget-slider").querySelector("label").innerText')
        at_end = slider.get_attribute('aria-valuenow') == slider.get_attribute('aria-valuemax')
        for key in ('Home', 'End') if at_end or name != 'Word' else ('End', 'Home'):
            took = page.evaluate(MOVE, [slider.element_handle(), key])
            if took is not None: times[tab, name] = max(times.get((tab, name), 0), round(took))
    return times


def test_every_tab(page):
    assert HOSTILE in page.locator('.sentence').first.inner_text()      # shown as text
    look_at(page, 'look')
    page.get_by_text('The search after word 1').wait_for()
    before = page.locator('.sentence').first.inner_html()
    handle = page.get_by_role('slider').nth(1)
    handle.focus()
    handle.press('ArrowRight')
    page.wait_for_function('old => document.querySelector(".sentence").innerHTML !== old', arg=before)
    page.get_by_text('The search after word 2').wait_for()
    light = 'document.querySelector(".attention").innerHTML'
    before = page.evaluate(light)
    page.get_by_label('Attention').select_option(label='one head')              # a Transformer: heads and layers can be chosen
    page.get_by_label('Head').select_option(label='2')
    page.wait_for_function(f'old => {light} !== old', arg=before)
    before = page.evaluate(light)
    page.get_by_label('Attention').select_option(label='rollout')
    page.wait_for_function(f'old => {light} !== old', arg=before)
    look_at(page, 'look-rollout')
    open_tab(page, 'Words')
    page.get_by_label('Never say').fill('ball')
    page.get_by_text('three beams').first.wait_for()
    page.get_by_label('Begin with').fill('big red')
    page.get_by_text('big red').first.wait_for()
    look_at(page, 'words')
    open_tab(page, 'Needs')
    page.get_by_role('button', name='Take regions away').click()
    page.get_by_text('needed: occlusion').wait_for()
    look_at(page, 'needs')
    open_tab(page, 'Score')
    page.get_by_label('Caption', exact=True).fill(HOSTILE + ' ball')
    page.locator('[aria-label="drawing of a score"]', has_text='broken').first.wait_for()     # of this caption, not of the one before
    look_at(page, 'score')
    page.get_by_label('Caption', exact=True).fill('a ball on a couch')
    page.get_by_label('References').fill('the sofa')
    page.get_by_role('button', name='METEOR').click()
    page.get_by_text('Blue: equal stems').wait_for()
    page.locator('line[stroke="#b35900"]').first.wait_for(state='attached')    # couch, sofa
    look_at(page, 'meteor')
    open_tab(page, 'Ask')
    ask = page.get_by_label('Question')
    ask.fill('is there a red ball ?')
    ask.press('Enter')
    page.get_by_text('is there a red ball ?').wait_for()
    assert page.locator('section.card').first.get_by_text(HOSTILE).count() == 1
    look_at(page, 'ask')
    open_tab(page, 'Find')
    page.get_by_text('word by word').wait_for()
    look_at(page, 'find')
    open_tab(page, 'Browse')
    page.get_by_role('button', name='Caption 12 pictures').click()
    page.get_by_role('columnheader', name='references').wait_for()
    look_at(page, 'browse')
    page.get_by_role('button', name='Open', exact=True).click()
    page.wait_for_function('() => document.querySelector("[role=tab][aria-selected=true]").innerText === "Look"')
    open_tab(page, 'Run')
    page.get_by_text('Picture 11').wait_for()
    page.get_by_alt_text('curves of what 2 runs have logged').wait_for()
    page.get_by_label('Picture of the samples').select_option('model: 22')
    page.get_by_text('Picture 22').wait_for()
    look_at(page, 'run')
    assert page.title() != 'broken' and page.locator('img[src=x]').count() == 0 and not page.errors


def test_a_run_that_is_still_training_is_drawn_again(page):
    "Curves and samples follow the files; nothing is clicked."
    open_tab(page, 'Run')
    page.get_by_label('Picture of the samples').select_option('model: 11')
    page.get_by_text('Picture 11').wait_for()
    curves = '[...document.querySelectorAll("img")].filter(x => x.checkVisibility() && x.alt.match("curves|reward")).map(x => x.src).join()'
    before, steps = page.evaluate(curves), range(6, 12)
    assert before and page.get_by_text('a ball 11').count() == 0
    write_run(page.folder, steps)
    page.get_by_text('a ball 11').first.wait_for(timeout=20_000)
    page.wait_for_function(f'old => {curves} !== old', arg=before, timeout=20_000)
    assert page.get_by_label('Picture of the samples').input_value() == 'model: 11' and not page.errors
    open_tab(page, 'Look')


def test_every_slider_answers(page):
    "Times are for a quiet machine: printed, and asserted with much room."
    times = {}
    for tab in ('Look', 'Words', 'Find', 'Browse', 'Run'):
        open_tab(page, tab)
        page.wait_for_timeout(500)
        times |= move_sliders(page, tab)
    print(times)
    want = {('Look', 'Beams'), ('Look', 'Word'), ('Words', 'Temperature'), ('Words', 'Top p'), ('Words', 'Top k'), ('Words', 'Change word'),
            ('Find', 'Pictures'), ('Browse', 'Words at most'), ('Browse', 'Pictures'), ('Run', 'Looks shown')}
    assert want <= set(times), want - set(times)
    assert max(times.values()) < 5000, times
    open_tab(page, 'Look')


def test_with_keys_only(page):
    "From the top of the page: the picture is reached by Tab, then the tabs, which arrow keys change and Enter opens."
    page.evaluate('document.activeElement.blur(); window.scrollTo(0, 0)')
    seen = []
    for _ in range(12):
        page.keyboard.press('Tab')
        seen.append(page.evaluate('() => { const x = document.activeElement; return (x.getAttribute("role") || x.tagName.toLowerCase()) }'))
    assert 'select' in seen and 'button' in seen and 'slider' in seen, seen
    word = page.get_by_role('slider').nth(1)
    word.focus()
    before = page.locator('.sentence').first.inner_html()
    page.keyboard.press('ArrowRight')
    page.wait_for_function('old => document.querySelector(".sentence").innerHTML !== old', arg=before)
    page.get_by_role('tab', name='Look', exact=True).focus()
    page.keyboard.press('ArrowRight')
    page.keyboard.press('Enter')
    page.wait_for_function('() => document.querySelector("[role=tab][aria-selected=true]").innerText === "Words"')
    open_tab(page, 'Look')


def test_axe_finds_nothing_serious(page):
    axe_or_skip()
    assert len(page.grave) > 7
    assert not any(page.grave.values()), json.dumps({k: v for k, v in page.grave.items() if v}, indent=1)
    pictures = page.evaluate('() => [...document.querySelectorAll("img")].filter(x => !x.alt).length')
    assert pictures == 0


def test_uploads(page, tmp_path):
    Image.fromarray(render(sample_scene(np.random.default_rng(9)))).save(tmp_path/'own.png')
    Image.new('1', (8000, 7500)).save(tmp_path/'large.png')
    (tmp_path/'no.png').write_text('no picture')
    def choose(path):
        with page.expect_file_chooser() as chooser: page.get_by_role('button', name='Own picture').click()
        chooser.value.set_files(path)
    choose(tmp_path/'own.png')
    page.wait_for_function('() => [...document.querySelectorAll("select")].some(x => x.selectedOptions[0]?.text.startsWith("own.png"))')
    choose(tmp_path/'large.png')
    page.get_by_text('60 megapixels; at most 50 are read').wait_for()
    choose(tmp_path/'no.png')
    page.get_by_text('no picture that can be read').wait_for()
    page.get_by_role('button', name='Webcam').click()
    page.get_by_role('button', name='Take the picture').click()
    page.wait_for_function('() => [...document.querySelectorAll("select")].some(x => x.selectedOptions[0]?.text.startsWith("webcam.png"))')
    assert page.locator('video').count() == 0 and not page.errors
