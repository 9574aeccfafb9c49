"`xm-train` with an MMF model from a YAML: trained, resumed, evaluated; by the shell command and in this process."
import json, os, subprocess, sys
from pathlib import Path
import pytest, torch
from safetensors.torch import load_file
from xmodaler_nb.commands.train import train_main
from xmodaler_nb.own.scenes.tasks import write_tasks
from xmodaler_nb.own.scenes.write import make_scenes

ROOT = Path(__file__).resolve().parents[2]
MODEL = '''
import torch
from torch import nn
from xmodaler_nb.mmf.common.registry import registry
from xmodaler_nb.mmf.models.base_model import BaseModel

@registry.register_model('bag_of_words')
class Bag(BaseModel):
    def build(self):
        c = self.config
        self.words = nn.EmbeddingBag(c.vocab_size, c.hidden, padding_idx=0)
        self.look, self.answer = nn.Linear(c.feature_dim, c.hidden), nn.Sequential(nn.Dropout(.2), nn.Linear(c.hidden, c.num_answers))

    def forward(self, sample_list):
        seen = self.look(sample_list.ATT_FEATS).relu().mean(1)
        return dict(scores=self.answer(seen*self.words(sample_list.U_TOKENS_IDS)))

def setup_environment(): "Being imported is enough: the model is registered."
'''
YAML = '''
DATASETS: {TRAIN: VQADataset, VAL: VQADataset, TEST: ''}
DATALOADER: {TRAIN_BATCH_SIZE: 32, TEST_BATCH_SIZE: 64, NUM_WORKERS: 0, SEQ_PER_SAMPLE: 1}
MODEL:
  META_ARCHITECTURE: mmf/NAME
  DEVICE: cpu
  MMF: {hidden: 8, losses: [logit_bce]}
ENGINE: {PROGRESS: false}
SOLVER: {NAME: Adam, BASE_LR: 0.01, EVAL_PERIOD: 1, CHECKPOINT_PERIOD: 1, WRITE_PERIOD: 1}
LR_SCHEDULER: {NAME: StepLR, STEP_SIZE: 100, GAMMA: 1.0}
LOSSES: {NAMES: [MMFLosses]}
INFERENCE: {NAME: VQAEvaler, ID_KEY: question_id, VALUE: answer, VOCAB: '', GENERATION_MODE: false}
SEED: 3
'''


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp('mmf')
    (folder/'people_models.py').write_text(MODEL)
    for file, name in (('by_path.yaml', 'people_models.Bag'), ('by_name.yaml', 'bag_of_words')): (folder/file).write_text(YAML.replace('NAME', name, 1))
    task = write_tasks(folder/'tasks', make_scenes(folder/'scenes', counts=dict(train=12, val=4, test=2)), mirror=False)['vqa']
    return folder, [str(o) for o in task.cfg_overrides]


def arguments(home, run, epochs, *flags, yaml='by_path.yaml'):
    folder, overrides = home
    return ['--config-file', str(folder/yaml), *flags, *overrides, 'OUTPUT_DIR', str(folder/run), 'SOLVER.EPOCH', str(epochs)]


def weights(home, run):
    folder = home[0]/run
    return load_file(folder/(folder/'last_checkpoint').read_text().strip()/'model.safetensors')


def lines(home, run): return [{k: v for k, v in json.loads(l).items() if 'time' not in k and 'eta' not in k} for l in (home[0]/run/'events.jsonl').read_text().splitlines()]


def shell(home, *args, **env):
    "The command as the shell starts it."
    code = 'import sys; from xmodaler_nb.commands.train import train_main; sys.exit(train_main())'
    path = os.pathsep.join([str(ROOT), str(home[0])])
    return subprocess.run([sys.executable, '-c', code, *args], capture_output=True, text=True, timeout=300, env={**os.environ, 'PYTHONPATH': path, 'OMP_NUM_THREADS': '1', **env})


def test_train_resume_and_evaluate(home, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(home[0]))
    train_main(arguments(home, 'whole', 3))
    train_main(arguments(home, 'parts', 1))
    train_main(arguments(home, 'parts', 3, '--resume'))
    whole, parts = weights(home, 'whole'), weights(home, 'parts')
    assert any(k.startswith('model.words') for k in whole) and all(torch.equal(whole[k], parts[k]) for k in whole)
    assert lines(home, 'whole') == lines(home, 'parts')
    log = lines(home, 'whole')
    loss = [l['total_loss'] for l in log if 'total_loss' in l]
    assert sum(loss[-3:]) < sum(loss[:3])
    scores = [v for l in log for k, v in l.items() if k.startswith('val/')]
    assert len(scores) >= 3
    capsys.readouterr()
    train_main(arguments(home, 'whole', 3, '--eval-only', '--resume'))
    said, = (l for l in capsys.readouterr().out.splitlines() if l.startswith('val {'))
    assert set(json.loads(said[4:])) >= {'accuracy', 'official'}


def test_the_shell_command_finds_a_model_by_its_registered_name(home):
    "A set-up module that is named in the environment registers it; without that, the error names what is known."
    done = shell(home, *arguments(home, 'named', 1, yaml='by_name.yaml'), XMODALER_NB_ENV_MODULE='people_models')
    assert done.returncode == 0, done.stderr[-2000:]
    assert any(k.startswith('model.words') for k in weights(home, 'named'))
    lost = shell(home, *arguments(home, 'lost', 1, yaml='by_name.yaml'))
    assert lost.returncode and 'bag_of_words' in lost.stderr and 'captioner' in lost.stderr and 'Traceback' not in lost.stderr
