"""Two machines, imitated by two `torchrun` agents: one store, one writer; a machine is lost, the other ends in time, and one machine alone goes on
from the last checkpoint."""
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import pytest
from conftest import ROOT
from xmodaler_nb.config import config_file
from xmodaler_nb.datasets.layout import write_tiny
from xmodaler_nb.engine.launch import free_port
from xmodaler_nb.own.store_import import import_npz

pytestmark = pytest.mark.skipif(not sys.platform.startswith('linux'), reason='reads /proc')
SMALL = '''MODEL.DECODER_DIM 16 MODEL.TOKEN_EMBED.DIM 8 MODEL.VISUAL_EMBED.IN_DIM 4 MODEL.VISUAL_EMBED.OUT_DIM 16 MODEL.UPDOWN.ATT_EMBED_SIZE 8 MODEL.VOCAB_SIZE 9
MODEL.DEVICE cpu DATALOADER.TRAIN_BATCH_SIZE 5 DATALOADER.NUM_WORKERS 0 DATALOADER.MAX_FEAT_NUM 6 DECODE_STRATEGY.BEAM_SIZE 1 SOLVER.WRITE_PERIOD 1 ENGINE.PROGRESS False INFERENCE.ID_KEY image_id'''.split()


@pytest.fixture(scope='module')
def command(tmp_path_factory):
    "The command of every node, but for `torchrun`."
    d = write_tiny(tmp_path_factory.mktemp('data')/'data', n=80)
    import_npz(d/'features', d/'store')
    files = ['DATALOADER.ANNO_FOLDER', d, 'DATALOADER.FEATS_FOLDER', d/'store', 'INFERENCE.VOCAB', d/'vocabulary.txt', 'INFERENCE.VAL_ANNFILE', d/'captions_val.json', 'INFERENCE.TEST_ANNFILE', d/'captions_test.json']
    return [str(ROOT/'train_net.py'), '--config-file', str(config_file('image_caption/updown/updown.yaml')), '--resume', *map(str, files), *SMALL]


def start(cmd, out): return subprocess.Popen([sys.executable, *cmd], stdout=subprocess.DEVNULL, stderr=open(out, 'w'), env={**os.environ, 'OMP_NUM_THREADS': '1'})


def family(pid):
    "A process and all that it started, here or in sessions of their own."
    with contextlib.suppress(OSError):
        return [pid, *(d for c in open(f'/proc/{pid}/task/{pid}/children').read().split() for d in family(int(c)))]
    return [pid]


def lose(p):
    "The plug is pulled: everything of this machine ends at once."
    if p.poll() is not None: return
    for pid in family(p.pid):
        with contextlib.suppress(ProcessLookupError): os.kill(pid, signal.SIGKILL)
    p.wait()


def wait_for(what, seconds, procs, err):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, err.read_text()[-2000:]
        assert all(p.poll() is None for p in procs), err.read_text()[-3000:]
        time.sleep(.1)


@pytest.mark.slow
def test_a_node_is_lost_and_one_goes_on(command, tmp_path):
    run, port = tmp_path/'run', free_port()
    where = ['OUTPUT_DIR', str(run), 'ENGINE.CHECKPOINT_ITERS', '4']
    node = lambda r: ['-m', 'torch.distributed.run', '--nnodes', '2', '--nproc-per-node', '1', '--node-rank', str(r), '--master-addr', '127.0.0.1', '--master-port', str(port), *command, *where, 'SOLVER.EPOCH', '5000', 'SOLVER.EVAL_PERIOD', '5000']
    procs = [start(node(r), tmp_path/f'{r}.err') for r in (0, 1)]
    try:
        wait_for((run/'last_checkpoint').is_file, 240, procs, tmp_path/'0.err')
        lose(procs[1])
        begin = time.monotonic()
        assert procs[0].wait(60) != 0
        print(f'the other node ended after {time.monotonic() - begin:.0f} s')
    finally:
        for p in procs: lose(p)
    said = (tmp_path/'0.err').read_text()
    assert re.search(r'error: process 0 of 2: another process was killed, or its machine is gone.*--resume', said), said[-3000:]
    tag = (run/'last_checkpoint').read_text()
    done = int(re.search(r'Iter_0*(\d+)', tag)[1]) + 1
    epochs = -(-done//8) + 1
    alone = start([*command, *where, 'SOLVER.EPOCH', str(epochs), 'SOLVER.EVAL_PERIOD', '1'], tmp_path/'alone.err')
    assert alone.wait(240) == 0, (tmp_path/'alone.err').read_text()[-3000:]
    steps = [l['iteration'] for l in map(json.loads, (run/'events.jsonl').read_text().splitlines()) if 'total_loss' in l]
    assert (run/'model_final').is_dir() and steps == sorted(set(steps)) and steps[-1] == 8*epochs - 1
