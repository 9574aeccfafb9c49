"What the check sums add to opening a model and to continuing a training, at full size; and what is not read at all."
import gc
import os
import time
from contextlib import nullcontext
from unittest import mock
import pytest
import torch
from torch import nn
from xmodaler_nb.captioner import Captioner
from xmodaler_nb.checkpoint import XmodalerCheckpointer
from xmodaler_nb.modeling import build_model, load_cfg_file
from xmodaler_nb.utils import checkpoint_files, torch_files


class NoSum(torch_files.BlockSum):
    "Stands for a sum that is known and right."
    def add(self, *block): pass
    def __str__(self): return 'none'

def no_sums():
    "The same reader without sums."
    off, state = mock.patch.multiple, {'BlockSum': NoSum, 'page_sums': lambda block: (), 'sum_file': lambda f: 'none'}
    stack = mock.patch.object(checkpoint_files, 'check_sum', lambda *a: None)
    return stack, off(torch_files, **state), mock.patch.object(checkpoint_files, 'load_pth', lambda p, known='': REAL(p, 'none'))

REAL = checkpoint_files.load_pth

def timed(f):
    "Processor time of all threads: on a machine with other work, steadier than the clock. What the call before left behind is freed first, and forgotten."
    gc.collect()
    checkpoint_files._SUMMED.clear()
    start = time.process_time()
    f()
    return time.process_time() - start

def ratio(f, pairs=7):
    "Least time with sums over least time without, the order alternating; and both times. Other work on the machine only ever adds."
    both = {True: [], False: []}
    for k in range(pairs):
        for sums in (k % 2 == 0, k % 2 == 1):
            a, b, c = (nullcontext(),)*3 if sums else no_sums()
            with a, b, c: both[sums].append(timed(f))
    return min(both[True])/min(both[False]), min(both[True]), min(both[False])


def full_size(words=4000):
    "Up-Down as its YAML has it, with words for its vocabulary."
    cfg = load_cfg_file('image_caption/updown/updown.yaml', ['MODEL.DEVICE', 'cpu', 'INFERENCE.VOCAB', '', 'MODEL.VOCAB_SIZE', str(words)])
    return cfg, build_model(cfg), ['.', *(f'w{i}' for i in range(1, words))]

@pytest.mark.slow
@pytest.mark.parametrize('threads', [1, 2])
def test_cost(tmp_path, threads, capsys):
    "Measured on two loaded cores, one thread: 5 % of opening a model, 5 % of building a model and continuing, 17 % of the files alone (with two threads -2, -11 and 33: noise of this size is left); the bounds leave a margin for it."
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    cfg, model, vocab = full_size()
    opt = torch.optim.Adam(model.parameters())
    for p in model.parameters(): p.grad = torch.zeros_like(p)
    opt.step()
    XmodalerCheckpointer(model, tmp_path/'run', optimizer=opt).save('a', iteration=1)
    Captioner(model, cfg, vocab).save_pretrained(tmp_path/'model')
    def start():
        fresh = build_model(cfg)
        XmodalerCheckpointer(fresh, tmp_path/'run', optimizer=torch.optim.Adam(fresh.parameters())).resume_or_load('')
    files = XmodalerCheckpointer(model, tmp_path/'run', optimizer=opt)
    found = {'opening a model': ratio(lambda: Captioner.from_pretrained(tmp_path/'model')), 'building and continuing': ratio(start), 'files into memory alone': ratio(lambda: files.resume_or_load(''))}
    torch.set_num_threads(before)
    size = sum(p.stat().st_size for p in (tmp_path/'run'/'a').iterdir())/1e6
    with capsys.disabled():
        for name, (r, a, b) in found.items(): print(f'\n{threads} threads, {size:.0f} MB: {name}: {a:.3f} s of processor time with sums, {b:.3f} s without, ratio {r:.3f}', end='')
    assert found['opening a model'][0] < 1.2 and found['building and continuing'][0] < 1.3 and found['files into memory alone'][0] < 2


def test_a_model_is_opened_without_the_training_state(tmp_path, monkeypatch):
    "What is not needed is not read: a state of twice the model's size, damaged or not."
    net, opt = nn.Linear(40, 3), None
    opt = torch.optim.Adam(net.parameters())
    XmodalerCheckpointer(net, tmp_path, optimizer=opt).save('a', iteration=3)
    monkeypatch.setattr(checkpoint_files, 'load_pth', lambda *a: pytest.fail('the training state is read'))
    other = nn.Linear(40, 3)
    rest = XmodalerCheckpointer(other).load(str(tmp_path/'a'), checkpointables=[], strict=True)
    assert torch.equal(net.weight, other.weight) and rest['meta']['iteration'] == 3


def test_a_resume_sums_each_large_file_once(tmp_path, monkeypatch):
    "Before anything is changed; where the numbers are read, files that have not changed are known. Those that have are summed again."
    net = nn.Linear(600, 600)
    opt = torch.optim.Adam(net.parameters())
    net(torch.ones(2, 600)).sum().backward()
    opt.step()
    files = XmodalerCheckpointer(net, tmp_path, optimizer=opt)
    files.save('a', iteration=3)
    for p in (tmp_path/'a').iterdir(): os.utime(p, (1e9, 1e9))
    later = time.time_ns() + 2*10**9                         # `ctime` cannot be set: time passes instead
    monkeypatch.setattr(checkpoint_files.time, 'time_ns', lambda: later)
    bytes_summed, real = [], torch_files.page_sums
    monkeypatch.setattr(torch_files, 'page_sums', lambda block: bytes_summed.append(len(block)) or real(block))
    large = sum(p.stat().st_size for p in (tmp_path/'a').iterdir() if p.stat().st_size > 2**20)
    small = sum(p.stat().st_size for p in (tmp_path/'a').iterdir()) - large
    checkpoint_files.check_files(tmp_path/'a', weights=True)
    assert large > 4e6 and large <= sum(bytes_summed) <= large + small
    bytes_summed.clear()
    files.resume_or_load('')
    assert sum(bytes_summed) <= 2*small
    state = (tmp_path/'a'/'training_state.pt')
    content = bytearray(state.read_bytes())
    content[len(content)//2] ^= 1
    state.write_bytes(content)
    os.utime(state, (1e9, 1e9))
    with pytest.raises(ValueError, match='is damaged'): checkpoint_files.read_checkpoint(tmp_path/'a')
