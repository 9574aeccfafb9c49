"""On a GPU, loaders pin the memory of what they yield. A view that repeats its numbers cannot be pinned, so no data set may yield one.
(Single-stream retrieval yielded one, and its evaluation on a GPU ended with an error of torch.)"""
import sys
from itertools import islice
from pathlib import Path
import pytest, torch
sys.path.insert(0, str(Path(__file__).parent))
from test_scenes_tasks import config
from test_task_trainers import STEPS, TRAINERS, world  # noqa: F401
from xmodaler_nb.datasets import build_xmodaler_train_loader, build_xmodaler_valtest_loader
from xmodaler_nb.modeling import load_cfg_file


def tensors(x):
    if torch.is_tensor(x): yield x
    elif isinstance(x, dict): yield from (t for v in x.values() for t in tensors(v))
    elif isinstance(x, (list, tuple)): yield from (t for v in x for t in tensors(v))


def repeats(t):
    "Does one number in memory stand for several of the tensor?"
    return any(stride == 0 and n > 1 for stride, n in zip(t.stride(), t.shape))


def check(cfg):
    loaders = [build_xmodaler_train_loader(cfg), *(build_xmodaler_valtest_loader(cfg, stage=s) for s in ('val', 'test'))]
    seen = 0
    for loader in filter(None, loaders):
        for t in tensors(list(islice(loader, 2))):
            seen += 1
            assert not repeats(t), (tuple(t.shape), t.stride())
    assert seen > 5


@pytest.mark.parametrize('path', TRAINERS)
def test_understanding(path, world, tmp_path):  # noqa: F811
    check(config(path, world, **{**STEPS, 'OUTPUT_DIR': str(tmp_path)}))


@pytest.mark.parametrize('kind', ['demo.yaml', 'image_caption/transformer/transformer.yaml', 'image_caption/updown/updown.yaml'])
def test_captions(kind, world, tmp_path):  # noqa: F811
    check(load_cfg_file(kind, [*world[0].cfg_overrides, 'OUTPUT_DIR', str(tmp_path), 'DATALOADER.TRAIN_BATCH_SIZE', 2, 'DATALOADER.NUM_WORKERS', 0]))


def test_a_view_is_recognised():
    assert repeats(torch.zeros(1, 3).expand(4, 3)) and not repeats(torch.zeros(4, 3)) and not repeats(torch.zeros(1, 3).expand(1, 3))
