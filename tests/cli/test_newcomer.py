"The first hour: misleading errors, long screens and lost answers that newcomers met."
import json, subprocess, sys, threading
from pathlib import Path
import numpy as np, pytest
from PIL import Image
from test_commands import data, options, refused, run, untouched
from xmodaler_nb.commands.caption import caption_main
from xmodaler_nb.commands.train import train_main
from xmodaler_nb.engine.setup import default_argument_parser
from xmodaler_nb.modeling import load_cfg_file


@pytest.fixture
def trained(data, tmp_path):
    assert run(data, tmp_path/'run', 'SOLVER.EPOCH', 1) == 0
    return tmp_path/'run'


def test_evaluation_needs_weights(data, tmp_path, capsys, trained):
    refused(capsys, run(data, tmp_path/'out1', flags=['--eval-only']), 'no trained weights', '--resume', 'MODEL.WEIGHTS', 'out1 holds no checkpoint')
    refused(capsys, run(data, tmp_path/'out1', flags=['--eval-only', '--resume']), '--resume', 'MODEL.WEIGHTS')
    assert not (tmp_path/'out1').exists()
    refused(capsys, run(data, trained, flags=['--eval-only']), 'run holds a checkpoint: add --resume')
    assert run(data, trained, flags=['--eval-only', '--resume']) == 0
    with_resume = capsys.readouterr().out.splitlines()[-2:]
    assert run(data, tmp_path/'out2', 'MODEL.WEIGHTS', trained/'model_final', flags=['--eval-only']) == 0
    assert capsys.readouterr().out.splitlines()[-2:] == with_resume


def test_evaluation_needs_weights_that_fit(data, tmp_path, capsys, trained):
    refused(capsys, run(data, tmp_path/'out', 'MODEL.WEIGHTS', trained/'model_final', 'MODEL.DECODER_DIM', 40, flags=['--eval-only']),
            'model_final does not fit the model', 'has shape')


def test_flags_may_come_after_pairs(capsys):
    parse = default_argument_parser().parse_args
    a = parse('A 1 --resume --opts B 2 C 3 --num-gpus 2 D 4'.split())
    assert (a.resume, a.num_gpus, sorted(a.opts)) == (True, 2, ['1', '2', '3', '4', 'A', 'B', 'C', 'D'])
    with pytest.raises(SystemExit): parse('OUTPUT_DIR --resume'.split())
    assert 'odd number (before --resume): OUTPUT_DIR' in capsys.readouterr().err
    with pytest.raises(SystemExit): parse('A 1 --resum-e'.split())
    assert '--resum-e' in capsys.readouterr().err


def test_resume_after_pairs(data, trained):
    assert train_main(['--config-file', 'image_caption/updown/updown.yaml', *options(data, trained), 'SOLVER.EPOCH', '2', '--resume']) == 0


def test_base_names_a_published_config(tmp_path):
    (tmp_path/'mine.yaml').write_text('_BASE_: image_caption/updown/updown.yaml\nMODEL:\n  DECODER_DIM: 3\n')
    cfg = load_cfg_file(tmp_path/'mine.yaml')
    assert (cfg.MODEL.DECODER, cfg.MODEL.DECODER_DIM) == ('UpDownDecoder', 3)


def test_a_folder_exists(data, tmp_path, capsys):
    "A folder where a file belongs is called one."
    (tmp_path/'a.yaml').write_text('SEED: 1\n')
    refused(capsys, run(data, tmp_path/'run', config=tmp_path), 'is a folder; name a file in it: a.yaml')
    for key in ('INFERENCE.VOCAB', 'INFERENCE.TEST_ANNFILE'):
        refused(capsys, run(data, tmp_path/'run', key, tmp_path), f'{tmp_path}: is a folder, not a file')


def test_the_screen_stays_short(data, tmp_path, capsys):
    "The config goes to the log file; before training the screen shows a few lines."
    assert run(data, tmp_path/'run', 'SOLVER.EPOCH', 1) == 0
    out = capsys.readouterr().out
    assert len(out[:out.index('total_loss')].splitlines()) < 40 and 'DECODE_STRATEGY' not in out
    assert 'config image_caption/updown/updown.yaml' in out and 'log.txt' in out
    log = (tmp_path/'run'/'log.txt').read_text()
    assert 'DECODE_STRATEGY' in log and 'full config' in log and 'environment' in log


def test_a_foreign_environment_is_taken_as_it_is(tmp_path, root):
    "`make setup` installs into the project's own environment only."
    def make(*args): return subprocess.run(['make', '-n', *args], cwd=root, capture_output=True, text=True)
    assert 'pip install' in make('setup', '-B').stdout
    said = make('setup', '-B', f'VENV={tmp_path}').stdout
    assert 'pip' not in said and '-m venv' not in said
    failed = subprocess.run(['make', 'setup', f'VENV={tmp_path}'], cwd=root, capture_output=True, text=True)
    assert failed.returncode and 'no environment there' in failed.stdout


@pytest.fixture(scope='module')
def captioner(tmp_path_factory):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]/'integration'))
    from small import small_captioner
    from xmodaler_nb.own.extract import BackboneExtractor
    c = small_captioner('MODEL.VISUAL_EMBED.IN_DIM', 43, extractor=BackboneExtractor('patches'))
    return str(c.save_pretrained(tmp_path_factory.mktemp('c')/'captioner'))


def picture(path, value=90):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((40, 50, 3), value, dtype=np.uint8)).save(path)
    return path


def captioned(capsys): return [json.loads(l)['picture'] for l in capsys.readouterr().out.splitlines() if l.startswith('{')]


def test_folder_and_pattern(tmp_path, capsys, captioner):
    for name in ('b.png', 'a.jpg', 'sub/c.png', '.d.png'): picture(tmp_path/'box'/name)
    (tmp_path/'box'/'notes.txt').write_text('')
    def names(*args):
        assert caption_main([*map(str, args), '--model', captioner, '--beam', '1', '--json']) == 0
        return [Path(p).relative_to(tmp_path/'box').as_posix() for p in captioned(capsys)]
    box = tmp_path/'box'
    assert names(box) == ['a.jpg', 'b.png']
    assert names(f'{box}/**/*.png') == ['b.png', 'sub/c.png']
    assert names(box/'sub'/'c.png', box) == ['sub/c.png', 'a.jpg', 'b.png']
    picture(box/'odd'/'x[1].png')
    assert names(box/'odd'/'x[1].png') == ['odd/x[1].png']
    refused(capsys, caption_main([f'{box}/*.gif', '--model', captioner]), 'matches', '*.gif')
    (tmp_path/'empty').mkdir()
    refused(capsys, caption_main([str(tmp_path/'empty'), '--model', captioner]), 'empty holds no pictures')


def test_web_address(tmp_path, capsys, captioner):
    from functools import partial
    from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args): pass
    picture(tmp_path/'a.png')
    (tmp_path/'b.png').write_text('no picture')
    server = ThreadingHTTPServer(('127.0.0.1', 0), partial(Quiet, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    at = f'http://127.0.0.1:{server.server_port}'
    try:
        assert caption_main([f'{at}/a.png', '--model', captioner, '--json']) == 0
        assert captioned(capsys) == [f'{at}/a.png']
        refused(capsys, caption_main([f'{at}/b.png', '--model', captioner]), f'{at}/b.png')
        refused(capsys, caption_main([f'{at}/c.png', '--model', captioner]), f'{at}/c.png', '404')
    finally:
        server.shutdown()
        server.server_close()
    refused(capsys, caption_main([f'{at}/a.png', '--model', captioner]), f'{at}/a.png', 'no network')


def test_a_page_does_not_replace_a_picture(tmp_path, capsys, captioner):
    file = picture(tmp_path/'a.png')
    before = file.read_bytes()
    refused(capsys, caption_main(['--model', captioner, '--html', str(file), str(picture(tmp_path/'b.png'))]), '.html')
    refused(capsys, caption_main([str(file), '--model', captioner, '--html', str(tmp_path/'no'/'x.html')]), 'folder does not exist')
    assert file.read_bytes() == before


def test_train_writes_the_report(data, tmp_path, capsys):
    "`--report` writes what xm-demo writes; what it needs is asked for before the training."
    assert run(data, tmp_path/'run', 'SOLVER.EPOCH', 1, flags=['--report']) == 0
    numbers = json.loads((tmp_path/'run'/'metrics.json').read_text())
    assert {'CIDEr_D', 'beam', 'greedy', 'compare'} <= set(numbers) and (tmp_path/'run'/'captions.json').is_file()
    page = (tmp_path/'run'/'report.html').read_text()
    assert 'Test pictures' in page and 'caption of another picture' in page and '<img' in page
    refused(capsys, run(data, tmp_path/'other', 'DATASETS.TEST', '', flags=['--report']), '--report needs a test split')
    assert not (tmp_path/'other').exists()
