"The first hour: misleading errors, long screens and lost answers that newcomers met."
import json, logging, shutil, subprocess, sys
from pathlib import Path
import numpy as np, pytest
from test_commands import data, options, refused, run, untouched
from xmodaler_nb.commands.train import train_main
from xmodaler_nb.config import config_file
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
