"What a user can get wrong ends in one sentence and a non-zero exit code, before anything is written over."
import json, os, subprocess, sys
from pathlib import Path
import numpy as np, pytest
from xmodaler_nb.datasets.layout import write_features, write_pickle, write_tiny, write_vocabulary
from xmodaler_nb.commands.caption import caption_main
from xmodaler_nb.commands.demo import demo_main
from xmodaler_nb.commands.real import real_main
from xmodaler_nb.commands.train import train_main
from xmodaler_nb.utils.safe_pickle import safe_load


@pytest.fixture
def data(tmp_path): return write_tiny(tmp_path/'data', n=8)


def options(data, out):
    pairs = {'DATALOADER.ANNO_FOLDER': data, 'DATALOADER.FEATS_FOLDER': data/'features', 'DATALOADER.TRAIN_BATCH_SIZE': 2, 'DATALOADER.NUM_WORKERS': 0, 'DATALOADER.MAX_FEAT_NUM': 10,
             'MODEL.VOCAB_SIZE': 9, 'MODEL.VISUAL_EMBED.IN_DIM': 4, 'MODEL.VISUAL_EMBED.OUT_DIM': 8, 'MODEL.TOKEN_EMBED.DIM': 8, 'MODEL.DECODER_DIM': 8, 'MODEL.UPDOWN.ATT_EMBED_SIZE': 4,
             'MODEL.DEVICE': 'cpu', 'MODEL.MAX_SEQ_LEN': 6, 'SEED': 1, 'SOLVER.EPOCH': 2, 'SOLVER.WRITE_PERIOD': 1, 'INFERENCE.VOCAB': data/'vocabulary.txt',
             'INFERENCE.VAL_ANNFILE': data/'captions_val.json', 'INFERENCE.TEST_ANNFILE': data/'captions_test.json', 'OUTPUT_DIR': out}
    return [str(x) for pair in pairs.items() for x in pair]


def run(data, out, *more, config='image_caption/updown/updown.yaml', flags=()):
    return train_main(['--config-file', str(config), *flags, *options(data, out), *map(str, more)])


def refused(capsys, code, *words):
    said = capsys.readouterr().err
    assert code != 0 and 'Traceback' not in said, said
    last = said.strip().splitlines()[-1] if said.strip() else ''
    for w in words: assert w in said, (w, last)


def untouched(out): return not any(Path(out).glob('model_*')) and not (Path(out)/'last_checkpoint').exists()


def test_train_evaluate_resume(data, tmp_path, capsys):
    out = tmp_path/'run'
    assert run(data, out) == 0
    assert (out/'last_checkpoint').read_text().strip() == 'model_final'
    assert {'config.yaml', 'vocabulary.txt', 'model.safetensors', 'meta.json'} <= {p.name for p in (out/'model_final').iterdir()}
    events = [json.loads(l) for l in (out/'events.jsonl').read_text().splitlines()]
    assert events and all(np.isfinite(e['total_loss']) for e in events if 'total_loss' in e)
    assert run(data, out, 'SOLVER.EPOCH', 3, flags=['--resume']) == 0                                  # one epoch more
    assert run(data, tmp_path/'eval', 'MODEL.WEIGHTS', out/'model_final', flags=['--eval-only']) == 0
    assert 'CIDEr' in capsys.readouterr().out


def test_evaluation_opens_only_what_it_needs(data, tmp_path, capsys):
    "`--eval-only` needs no training files, with a reward in the config neither; and the test split is optional."
    out = tmp_path/'run'
    assert run(data, out, 'SOLVER.EPOCH', 1) == 0
    weights = ['MODEL.WEIGHTS', out/'model_final']
    assert run(data, tmp_path/'before', *weights, flags=['--eval-only']) == 0
    before = capsys.readouterr().out.splitlines()[-2:]
    for f in data.glob('*train*'): f.unlink()
    refused(capsys, run(data, tmp_path/'again'), 'train')                                              # a training does need them
    assert run(data, tmp_path/'eval', *weights, flags=['--eval-only']) == 0
    assert capsys.readouterr().out.splitlines()[-2:] == before
    gone = ['SCORER.GT_PATH', tmp_path/'gone.pkl', 'SCORER.CIDER_CACHED', tmp_path/'gone.pkl']
    assert run(data, tmp_path/'rl', *weights, *gone, config='image_caption/updown/updown_rl.yaml', flags=['--eval-only']) == 0
    assert run(data, tmp_path/'val', *weights, 'DATASETS.TEST', '', flags=['--eval-only']) == 0
    assert [l.split()[0] for l in capsys.readouterr().out.splitlines() if l.startswith(('val', 'test'))][-1] == 'val'


def test_opts_flag(data, tmp_path):
    assert train_main(['--config-file', 'image_caption/updown/updown.yaml', '--opts', *options(data, tmp_path/'run'), 'SOLVER.EPOCH', '1']) == 0


def test_output_folder_of_another_run(data, tmp_path, capsys):
    out = tmp_path/'run'
    assert run(data, out, 'SOLVER.EPOCH', 1) == 0
    before = {p: p.stat().st_mtime_ns for p in out.rglob('*') if p.is_file()}
    refused(capsys, run(data, out), 'holds another run', '--resume')
    assert before == {p: p.stat().st_mtime_ns for p in out.rglob('*') if p.is_file()}


def test_unknown_key(data, tmp_path, capsys):
    refused(capsys, run(data, tmp_path/'run', 'SOLVER.EPOCHS', 3), 'unknown config key SOLVER.EPOCHS', 'nearest known key is SOLVER.EPOCH')
    (tmp_path/'bad.yaml').write_text('_BASE_: %s\nMODEL:\n  DECODER_DIMS: 3\n' % Path('configs/image_caption/updown/updown.yaml').resolve())
    refused(capsys, run(data, tmp_path/'run', config=tmp_path/'bad.yaml'), 'bad.yaml, line 3', 'MODEL.DECODER_DIM')
    assert untouched(tmp_path/'run')


def test_python_tag(data, tmp_path, capsys):
    (tmp_path/'bad.yaml').write_text(f'A: !!python/object/apply:os.system ["touch {tmp_path}/ran"]\n')
    refused(capsys, run(data, tmp_path/'run', config=tmp_path/'bad.yaml'), 'bad.yaml, line 1', 'nothing may run on load')
    assert not (tmp_path/'ran').exists()


def test_missing_config(tmp_path, capsys):
    refused(capsys, train_main([]), '--config-file')
    refused(capsys, train_main(['--config-file', 'image_caption/updwn.yaml']), 'image_caption/updwn.yaml does not exist')


@pytest.mark.parametrize('key, value, words', [
    ('MODEL.DECODER', 'UpdownDecoder', ("no object named 'UpdownDecoder' in the DECODER registry", "Did you mean 'UpDownDecoder'")),
    ('DATASETS.TRAIN', 'MSCocoDataset', ("'MSCocoDataset'", 'MSCoCoDataset')),
    ('MODEL.VISUAL_EMBED.IN_DIM', 5, ('.npz: ATT_FEATS are 4 wide', 'the model expects 5 (MODEL.VISUAL_EMBED.IN_DIM)')),
    ('MODEL.VOCAB_SIZE', 6, ('MODEL.VOCAB_SIZE',)),
    ('DATALOADER.ANNO_FOLDER', 'nowhere', ('mscoco_caption_anno_train.pkl',)),
    ('DATALOADER.FEATS_FOLDER', 'nowhere', ('nowhere: the feature folder does not exist',)),
    ('INFERENCE.TEST_ANNFILE', 'nowhere.json', ('nowhere.json',))])
def test_config_and_data_do_not_fit(data, tmp_path, capsys, key, value, words):
    refused(capsys, run(data, tmp_path/'run', key, value), *words)
    assert untouched(tmp_path/'run')


def test_broken_files(data, tmp_path, capsys):
    first = safe_load(data/'mscoco_caption_anno_train.pkl')[0]['image_id']
    path = data/'features'/f'{first}.npz'
    whole = path.read_bytes()
    path.write_bytes(whole[:len(whole)//2])
    refused(capsys, run(data, tmp_path/'run'), f'{first}.npz', 'not a readable')
    path.unlink()
    refused(capsys, run(data, tmp_path/'run'), f'{first}.npz: no such feature file')
    path.write_bytes(whole)
    write_pickle(data/'mscoco_caption_anno_train.pkl', [])
    refused(capsys, run(data, tmp_path/'run'), 'empty')
    assert untouched(tmp_path/'run')


def test_annotation_without_features(data, tmp_path, capsys):
    entries = safe_load(data/'mscoco_caption_anno_train.pkl')
    write_pickle(data/'mscoco_caption_anno_train.pkl', [*entries, {**entries[0], 'image_id': '999'}])
    refused(capsys, run(data, tmp_path/'run'), '999')
    assert untouched(tmp_path/'run')


def test_pickle_that_would_run(data, tmp_path, capsys):
    import pickle
    class Evil:
        def __reduce__(self): return os.system, (f'touch {tmp_path}/ran',)
    (data/'mscoco_caption_anno_train.pkl').write_bytes(pickle.dumps([Evil()]))
    refused(capsys, run(data, tmp_path/'run'), 'mscoco_caption_anno_train.pkl', 'system')
    assert not (tmp_path/'ran').exists() and untouched(tmp_path/'run')


def test_nan_in_features(data, tmp_path, capsys):
    for e in safe_load(data/'mscoco_caption_anno_train.pkl'): write_features(data/'features', e['image_id'], features=np.full((2, 4), np.nan, dtype=np.float32))
    refused(capsys, run(data, tmp_path/'run'), 'ATT_FEATS contain 8 numbers that are infinite or not a number')
    assert untouched(tmp_path/'run')


def test_nan_loss(data, tmp_path, capsys):
    refused(capsys, run(data, tmp_path/'run', 'SOLVER.BASE_LR', '1e38', 'SOLVER.GRAD_CLIP', '0.0', 'SOLVER.EPOCH', 20, 'SOLVER.CHECKPOINT_PERIOD', 100), 'CrossEntropy')
    assert not (tmp_path/'run'/'model_final').exists()


def test_captions_from_the_shell(data, tmp_path, capsys):
    assert run(data, tmp_path/'run', 'SOLVER.EPOCH', 1) == 0
    feats = next((data/'features').glob('*.npz'))
    capsys.readouterr()
    assert caption_main([str(feats), '--model', str(tmp_path/'run'), '--beam', '2', '--json', '--html', str(tmp_path/'out.html')]) == 0
    said = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert said['picture'] == str(feats) and said['log_prob'] < 0
    assert '<script' not in (tmp_path/'out.html').read_text()
    refused(capsys, caption_main(['gone.png', '--model', str(tmp_path/'run')]), 'no extractor')
    refused(capsys, caption_main([str(feats), '--model', str(tmp_path)]), 'holds no captioner')


def test_demo_on_tiny_data(tmp_path, capsys):
    out = tmp_path/'demo'
    assert demo_main(['--output-dir', str(out), '--size', 'tiny', '--opts', 'SOLVER.EPOCH', '2', 'SOLVER.WRITE_PERIOD', '1']) == 0
    numbers = json.loads((out/'metrics.json').read_text())
    assert {'Bleu_1', 'Bleu_4', 'ROUGE_L', 'CIDEr', 'CIDEr_D', 'distinct_captions', 'seconds', 'greedy', 'beam', 'compare', 'fraction_of_bound'} <= set(numbers)
    assert {'bound', 'oracle', 'random', 'most_frequent', 'one_vs_rest'} <= set(numbers['compare'])
    page = (out/'report.html').read_text()
    assert page.count('class="card"') == 12 and 'src="http' not in page and '<script' not in page
    assert list(out.glob('events.out.tfevents*')) and (out/'events.jsonl').exists()
    from xmodaler_nb.captioner import Captioner
    captioner = Captioner.from_pretrained(out)
    assert isinstance(captioner.caption(np.zeros((64, 64, 3), np.uint8)), str)
    assert demo_main(['--output-dir', str(out), '--size', 'tiny', '--opts', 'SOLVER.EPOCH', '1']) == 0    # the finished run is kept
    assert (tmp_path/'demo.1'/'report.html').exists()


def test_real_needs_a_folder(tmp_path, capsys):
    refused(capsys, real_main(['--data', str(tmp_path/'nowhere')]), 'is not a folder')


def test_train_net_help(root):
    out = subprocess.run([sys.executable, 'train_net.py', '--help'], cwd=root, capture_output=True, text=True, timeout=120)
    assert out.returncode == 0 and '--config-file' in out.stdout and '--eval-only' in out.stdout
