"`xm-answer` and `xm-find` as a shell calls them, with small untrained models: what is printed, which code is returned, what is said when something is wrong."
import json, logging, os, subprocess, sys
from configparser import ConfigParser
from pathlib import Path
import pytest, torch
from PIL import Image
from xmodaler_nb.captioner import Answerer, Retriever
from xmodaler_nb.commands.answer import answer_main
from xmodaler_nb.commands.find import find_main
from xmodaler_nb.commands.understand import understand_main
from xmodaler_nb.datasets.task_layout import write_pieces
from xmodaler_nb.modeling import build_model, load_cfg_file
from xmodaler_nb.own.scenes.features import FoundRegions
from xmodaler_nb.tokenization import BertTokenizer

ROOT = Path(__file__).resolve().parents[2]
ANSWERS = ['yes', 'no', 'one', 'two', 'three', 'red']
SENTENCES = ['a red ball', 'two boxes on the grass', 'a ball is on the grass']
BERT = dict(HIDDEN_SIZE=16, NUM_ATTENTION_HEADS=2, INTERMEDIATE_SIZE=32, NUM_HIDDEN_LAYERS=1, V_NUM_HIDDEN_LAYERS=1)


@pytest.fixture(autouse=True)
def a_new_process(monkeypatch):
    "Earlier tests in this process may have set up the logger of a training; a shell has none."
    log = logging.getLogger('xmodaler_nb')
    monkeypatch.setattr(log, 'handlers', [])
    monkeypatch.setattr(log, 'level', logging.NOTSET)
    log.manager._clear_cache()


@pytest.fixture(scope='module')
def desk(tmp_path_factory):
    "A folder with three pictures, an answerer and a retriever."
    home = tmp_path_factory.mktemp('desk')
    write_pieces(home/'pieces.txt', ['how many balls boxes are there is a red ball on the grass two ? what'])
    tokenizer, regions = BertTokenizer(home/'pieces.txt'), FoundRegions()
    def untrained(file, **head):
        torch.manual_seed(0)
        cfg = load_cfg_file(file, MODEL=dict(DEVICE='cpu', VOCAB_SIZE=len(tokenizer), MAX_SEQ_LEN=20, BERT=BERT, WEIGHTS='', MM_PREDICTOR=head, TOKEN_EMBED=dict(DIM=16),
                                             VISUAL_EMBED=dict(IN_DIM=regions.dim, OUT_DIM=16)))
        return build_model(cfg), cfg, tokenizer
    Answerer(*untrained('mm_understanding/vqa/uniter/vqa.yaml', LABELS_NUM=len(ANSWERS)), ANSWERS, regions).save_pretrained(home/'vqa')
    tden = untrained('mm_understanding/flickr30k_retrieval/tden/flickr30k_retrieval.yaml', POOLER_INPUT_SIZE=16, POOLER_OUTPUT_SIZE=8)
    Retriever(*tden, SENTENCES, regions).save_pretrained(home/'retrieval')
    (home/'my pictures').mkdir()
    for k, colour in enumerate([(200, 30, 30), (30, 200, 30), (30, 30, 200)]):
        img = Image.new('RGB', (64, 64), (230, 230, 230))
        img.paste(colour, (10, 10, 30 + 10*k, 30))
        img.save(home/'my pictures'/f'{k}.png')
    return home


@pytest.fixture
def call(desk, capsys, monkeypatch):
    "Run a command in the folder: (code, out, err)."
    monkeypatch.chdir(desk)
    def run(main, *argv):
        code = main([str(a) for a in argv])
        out = capsys.readouterr()
        assert 'Traceback' not in out.err
        return code, out.out.splitlines(), out.err
    return run


def test_answers(call):
    code, out, err = call(answer_main, 'my pictures/0.png', 'how many balls are there?', 'is there a red ball?', '--model', 'vqa')
    assert code == 0 and not err and len(out) == 2 and out[0].startswith('my pictures/0.png: how many balls are there? ') and out[0].count(',') == 4
    code, out, err = call(answer_main, 'my pictures', 'how many snorks?', '--model', 'vqa', '--json', '--top', 2)
    rows = [json.loads(l) for l in out]
    assert code == 0 and len(rows) == 3 and all(len(r['best']) == 2 and r['best'][0][0] == r['answer'] in ANSWERS and r['unknown'] == ['snorks'] for r in rows)
    assert err == 'warning: the model does not know snorks\n'


def test_a_page(call):
    assert call(answer_main, 'my pictures/*.png', 'how many balls are there?', '--model', 'vqa', '--html', 'a.html')[0] == 0
    assert call(find_main, 'my pictures', 'a red ball', '--model', 'retrieval', '--html', 'f.html')[0] == 0
    for f in ('a.html', 'f.html'): assert Path(f).read_text().count('<section') == 3 and '<script' not in Path(f).read_text()


def test_finds_and_describes(call):
    code, out, err = call(find_main, 'my pictures', 'a red ball', '--model', 'retrieval', '-k', 2)
    assert code == 0 and not err and len(out) == 2 and float(out[0].split()[0]) >= float(out[1].split()[0]) and out[0].split(' ', 1)[1].startswith('my pictures/')
    code, out, err = call(find_main, 'my pictures', 'a red ball', 'two boxes', '--model', 'retrieval')
    assert code == 0 and 'my pictures holds 3 pictures, fewer than 5' in err and [l for l in out if l.endswith(':')] == ['a red ball:', 'two boxes:'] and len(out) == 8
    code, out, _ = call(find_main, 'my pictures/0.png', '--describe', '--model', 'retrieval', '--json')
    assert code == 0 and {json.loads(l)['sentence'] for l in out} == set(SENTENCES)
    Path('more.txt').write_text('a ball\n\nis there a box?\n')
    code, out, _ = call(find_main, 'my pictures/0.png', '--describe', '--from-file', 'more.txt', '--model', 'retrieval')
    assert code == 0 and {l.split(' ', 1)[1] for l in out} == {'a ball', 'is there a box?'}


@pytest.mark.parametrize('main, argv, words', [
    (answer_main, ['0.png', 'how many?', '--model', 'gone'], 'gone does not exist.*xm-understand'),
    (answer_main, ['none.png', 'how many balls?', '--model', 'vqa'], 'none.png.*does not exist|1 of 1 failed'),
    (answer_main, ['my pictures/0.png', '', '--model', 'vqa'], 'the question: the text is empty'),
    (answer_main, ['my pictures/0.png', 'wieviele?', '--model', 'vqa'], 'has none of its words'),
    (answer_main, ['my pictures/0.png', 'how many balls?', '--model', 'retrieval'], 'no answers.json beside the weights'),
    (answer_main, ['my pictures/0.png', 'how many balls?', '--model', 'vqa', '--top', '0'], 'k is 0'),
    (answer_main, ['my pictures/0.png', 'how many balls?', '--model', 'vqa', '--html', 'x.png'], 'must end in .html'),
    (understand_main, ['vqa', 'vqaa'], "no task 'vqaa'; there are pretrain, retrieval, places, vqa"),
    (find_main, ['my pictures', '--model', 'retrieval'], 'no sentence to find'),
    (find_main, ['gone', 'a ball', '--model', 'retrieval'], 'gone: no such folder'),
    (find_main, ['vqa', 'a ball', '--model', 'retrieval'], 'vqa: holds no pictures'),
    (find_main, ['my pictures', 'eine Kiste', '--model', 'retrieval'], 'has none of its words'),
    (find_main, ['my pictures', '--describe', '--model', 'retrieval'], 'is a folder; --describe needs one picture'),
    (find_main, ['my pictures', 'a ball', '--model', 'vqa'], 'gives 6 scores, but a retrieval model gives one')])
def test_refused(call, main, argv, words):
    code, out, err = call(main, *argv)
    import re
    assert code == 1 and not out and re.search(words, err), err


def test_the_shell_knows_them(desk):
    "As installed: the names stand in settings.ini, and a process of its own answers."
    settings = ConfigParser(delimiters=['='], interpolation=None)
    settings.read(ROOT/'settings.ini', encoding='utf-8')
    scripts = dict(l.split('=') for l in settings['DEFAULT']['console_scripts'].split())
    for name, argv in (('xm-answer', ['my pictures/1.png', 'is there a ball?', '--model', 'vqa']), ('xm-find', ['my pictures', 'a ball', '--model', 'retrieval', '--no-store'])):
        module, function = scripts[name].split(':')
        line = f'import sys; from {module} import {function}; sys.exit({function}())'
        done = subprocess.run([sys.executable, '-c', line, *argv], cwd=desk, capture_output=True, text=True, env={**os.environ, 'PYTHONPATH': str(ROOT)})
        assert done.returncode == 0 and 'my pictures/1.png' in done.stdout, done.stderr
