"The benchmark scripts run, both ways of a training step have the same loss, and both ways of a beam search say the same words."
import importlib.util
import json
import subprocess
import sys
import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT/'benchmarks'))
import decode, engine, plain


SMOKE = dict(plain=['updown', '--small', '--repeats', '1'], decode=['updown', '--small', '--images', '2', '--beams', '2', '--repeats', '1', '--memory'], engine=['--small'], store=['--small'], ppe=['--small'],
             metrics=['--smoke', '--images', '12', '--repeats', '1', '--only', 'BLEU', 'reward'], rl=['updown', '--small', '--repeats', '1', '--mode', 'eval'], scst=['--table'], signs=['--smoke', '--repeats', '1'], signers=['--small'], understanding=['--small'], scale=['--small'], photos=['--small'], look=['--small'], shortlist=['--small'],
             floor=['updown', 'uniter pre-training', '--small', '--repeats', '1', '--images', '2', '--what', 'training', 'beam 3'],
             precision=['updown', '--small', '--images', '2', '--repeats', '1', '--what', 'training'],
             gpu=['updown', '--small', '--device', 'cpu', '--only', 'decode', 'train'])

@pytest.mark.parametrize('script', sorted(p.stem for p in (ROOT/'benchmarks').glob('*.py')))
def test_every_script_prints_its_rows(script, tmp_path):
    "`--json`: one list on the standard output and nothing else, whatever the work had to say."
    done = subprocess.run([sys.executable, ROOT/'benchmarks'/f'{script}.py', *SMOKE[script], '--json'], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    out = json.loads(done.stdout)
    if '--memory' in SMOKE[script]: assert all(r['ours_peak_mb'] >= 0 and r['peer_peak_mb'] >= 0 for r in out)
    assert isinstance(out, list) and (out or script == 'scst') and all({'name', 'ours_s', 'peer_s', 'ratio'} <= {*r} for r in out)


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('name', plain.FAMILIES)
def test_plain_and_ours_agree(name):
    row = plain.compare(name, small=True, repeats=1, with_profile=name in ('updown', 'transformer'))     # asserts that the losses agree
    assert row['ours_s'] > 0 and row['peer_s'] > 0
    if 'ours_peak_mb' in row: assert 0 < row['ours_products'] < 1 and 0 < row['ours_peak_mb'] <= row['peer_peak_mb']


def test_metrics_smoke():
    "Every row that needs no other program: made-up captions, and a plain reward scorer that must agree."
    import metrics
    rows = {r['name']: r for part in ('tokenizer', 'BLEU', 'ROUGE_L', 'CIDEr', 'METEOR', 'reward') for r in metrics.main(['--here', '--smoke', '--images', '12', '--repeats', '1', '--only', part])}
    assert {'tokenizer', 'BLEU', 'ROUGE_L', 'CIDEr', 'CIDEr-D reward'} <= set(rows) and all(r['ours_s'] > 0 for r in rows.values())
    assert rows['CIDEr-D reward']['ratio'] > rows['CIDEr-D reward']['target']/2


def rows(capsys, *args):
    decode.main([*args, '--small', '--images', '3', '--repeats', '1', '--json'])
    return json.loads(capsys.readouterr().out)

def test_both_ways_of_decoding_say_the_same(capsys):
    out = rows(capsys, 'transformer', 'clip_transformer', 'meshed_memory', 'updown', 'attention', 'xlan', '--beams', '3')
    assert len(out) == 6 and all(r['same_sentences'] == 1 and r['ratio'] > 0 for r in out), out

def test_variants_of_decoding(capsys):
    out = rows(capsys, 'updown', 'transformer', '--against', 'variants', '--beams', '2')
    assert [r['name'] for r in out if 'updown' in r['name']] == [f'updown beam 2, {w}' for w in ('traced', 'bf16', 'greedy')]

def test_decoding_against_transformers(capsys):
    if not importlib.util.find_spec('transformers'): pytest.skip('needs transformers: pip install -e .[bench]')      # not imported here: the script says how
    assert len(rows(capsys, '--against', 'bart', '--beams', '2', '3')) == 2

def test_cost_of_the_engine(capsys):
    engine.main(['--small', '--json'])
    out = json.loads(capsys.readouterr().out.strip().splitlines()[-1])     # a logger that another test set up may speak before
    assert [r['name'].split(':')[0] for r in out] == ['training step'] + ['batch']*4 and all(r['ours_s'] > 0 and r['peer_s'] > 0 for r in out) and out[0]['ratio'] > .5
