"""Every shell block of README and of the how-tos is run as printed.

A block whose first line is a comment `# not run here: why` needs a download, `make`, torchrun or gigabytes; of it every `xm-…` command is only
parsed. Each page has one working directory, with the files its reader has: twenty pictures, a new one, and (weights) a checkpoint of X-modaler."""
import json, os, re, shlex, stat, subprocess, sys
from configparser import ConfigParser
from pathlib import Path
import numpy as np, pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT/'nbs'/'index.ipynb', *sorted((ROOT/'nbs'/'30_howto').glob('*.ipynb'))]
NOT_RUN = '# not run here: '


def shell_blocks(page) -> list:
    "The ```bash blocks of a notebook, in order."
    cells = json.loads(page.read_text(encoding='utf-8'))['cells']
    text = '\n\n'.join(''.join(c['source']) for c in cells if c['cell_type'] == 'markdown')
    return re.findall(r'^```bash\n(.*?)^```', text, flags=re.M | re.S)


def entry_points() -> dict:
    "Command → (module, function), from settings.ini."
    settings = ConfigParser()
    settings.read(ROOT/'settings.ini')
    lines = settings['DEFAULT']['console_scripts'].split()
    return {name: target.split(':') for name, _, target in (l.partition('=') for l in lines)}


def install(folder):
    "The console commands of this checkout, as files on a path."
    folder.mkdir()
    for name, (module, function) in entry_points().items():
        code = f'import sys; from {module} import {function}; sys.exit({function}())'
        path = folder/name
        path.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -c {shlex.quote(code)} "$@"\n')
        path.chmod(path.stat().st_mode | stat.S_IEXEC)


def draw(path, colour, square):
    "A square or a stripe on grey."
    a, x = np.full((64, 64, 3), 245, np.uint8), 24
    a[x:x+20, x:x+20 if square else None] = colour
    Image.fromarray(a).save(path)


@pytest.fixture
def desk(tmp_path):
    "What a reader has at hand: twenty pictures with two captions each, and a new one."
    photos = tmp_path/'photos'
    photos.mkdir()
    colours = dict(red=(220, 40, 40), green=(40, 170, 70), blue=(50, 70, 220), yellow=(235, 205, 50))
    for i, (name, rgb) in enumerate([*colours.items()]*5):
        draw(photos/f'{i:02d}.png', tuple(c - i//4 for c in rgb), i % 2 == 0)
        shape = 'square' if i % 2 == 0 else 'stripe'
        (photos/f'{i:02d}.txt').write_text(f'a {name} {shape}\none {name} {shape} on grey paper\n')
    draw(tmp_path/'new.png', colours['red'], True)
    install(tmp_path/'bin')
    return tmp_path


def shell(block, desk):
    "Run a block as printed; stop at the first command that fails."
    env = {**os.environ, 'PATH': f"{desk/'bin'}:{os.environ['PATH']}", 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'}
    return subprocess.run(['bash', '-ec', block], cwd=desk, env=env, capture_output=True, text=True, timeout=500)


def blocks_to_run(page) -> list:
    "The blocks of a page that need nothing but this checkout."
    return [b for b in shell_blocks(page) if not b.startswith(NOT_RUN)]


RUN = [p for p in PAGES if blocks_to_run(p)]


def test_the_front_doors_are_run():
    "A page that loses its blocks, or marks them all, would be tested by nobody."
    assert {p.stem for p in RUN} == {'index', '10_own_images', '50_big_data'}


@pytest.mark.parametrize('page', RUN, ids=lambda p: p.stem)
def test_blocks_run_as_printed(page, desk):
    for block in blocks_to_run(page):
        done = shell(block, desk)
        assert done.returncode == 0, (block, done.stdout[-1500:], done.stderr[-1500:])
        assert 'captions are empty' not in done.stderr, done.stderr
        if 'xm-caption' in block: assert re.search(r'^new\.png: a? ?\w+', done.stdout, flags=re.M), done.stdout[-500:]


def parser_of(name):
    "The parser of a command, and of options at the end of its line."
    from xmodaler_nb.commands import answer, caption, data, demo, find, real, understand
    from xmodaler_nb.commands.train import default_argument_parser
    return {'xm-train': default_argument_parser, 'xm-caption': caption.caption_parser, 'xm-data': data.data_parser,
            'xm-demo': demo.demo_parser, 'xm-real': real.real_parser, 'xm-answer': answer.answer_parser, 'xm-find': find.find_parser,
            'xm-understand': understand.understand_parser}[name]()


def commands(block) -> list:
    "The words of every `xm-…` command in a block; `torchrun … --no-python xm-data …` counts too."
    lines = [shlex.split(l, comments=True) for l in block.replace('\\\n', ' ').splitlines()]
    return [words[i:] for words in lines for i, w in enumerate(words) if w.startswith('xm-')]


@pytest.mark.parametrize('page', PAGES, ids=lambda p: p.stem)
def test_other_blocks_parse(page):
    for block in shell_blocks(page):
        for name, *argv in commands(block):
            if name == 'xm-score' or name == 'xm-models': continue
            args = parser_of(name).parse_args(argv)
            if name == 'xm-train': assert len(args.opts) % 2 == 0 and args.config_file


def test_there_are_blocks():
    run = [b for p in PAGES for b in shell_blocks(p) if not b.startswith(NOT_RUN)]
    assert sum('"my data' in b for b in run) >= 2, 'a folder whose name has a blank'
    assert len(run) >= 3
