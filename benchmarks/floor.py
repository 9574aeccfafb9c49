"""How near is our time to that of the matrix products alone?

    python benchmarks/floor.py                                  # Up-Down and Transformer: training step, greedy, beam 3 and 5
    python benchmarks/floor.py --all                            # the 14 captioners; UNITER's and TDEN's pre-training step
    python benchmarks/floor.py xlan --what "beam 5" --lines 8   # which lines of ours take the time that is not spent in products
    python benchmarks/floor.py updown --products                # the products themselves: how often, which shapes, what share
    python benchmarks/floor.py --small                          # a smoke test

While a step or a search runs once, each matrix product that torch is asked for is written down: its kind, and the shapes, strides and types of its factors. Products, convolutions and fused attention count,
forwards and backwards. Then exactly these are computed again in the same order, with the model's own weights and made-up numbers for everything else. That is the floor: whatever a program does besides, it must
at least do this, unless it finds fewer or cheaper products. Ours and the floor are timed in turns, in processor seconds (`--wall`: wall clock); `ratio` = floor / ours, `above` = ours / floor, `spread` = half the
range between the quartiles of the pairs' `above`. Sizes are those of the YAML files; a training step has 8 images of 5 captions, a search `--images`.
"""
import argparse
import collections
import json
import statistics
import sys
import time
from pathlib import Path
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from xmodaler_nb.config import config_file
from xmodaler_nb.modeling import load_cfg_file
import decode
import plain
import understanding

PRODUCTS = {'mm', 'addmm', 'addmm_', 'bmm', 'baddbmm', 'mv', 'addmv', 'dot', 'linear', 'matmul', 'mkldnn_linear', 'mkl_linear', 'convolution', 'convolution_backward', 'mkldnn_convolution',
            '_scaled_dot_product_flash_attention_for_cpu', '_scaled_dot_product_flash_attention_for_cpu_backward'}
WHAT = ('training', 'greedy', 'beam 3', 'beam 5')
PRETRAINING = {f'{k} pre-training': k for k in understanding.FAMILIES}
ROOT = Path(__file__).resolve().parents[1]
TARGET = 1.25


# ---- writing down ----------------------------------------------------------------------------------------------------------------------------------

def name_of(op): return op.overloadpacket.__name__


class Recorder(TorchDispatchMode):
    "Write down the products that are asked for within this context."
    def __init__(self, kept):
        super().__init__()
        self.kept, self.calls = {t.untyped_storage().data_ptr() for t in kept}, []

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        out = op(*args, **(kwargs or {}))
        if name_of(op) in PRODUCTS: self.calls.append((op, tree_map(self.describe, args), tree_map(self.describe, kwargs or {})))
        return out

    def describe(self, x):
        "The tensor itself if it is a weight, else what it takes to make one like it."
        if not isinstance(x, torch.Tensor): return x
        if x.untyped_storage().data_ptr() in self.kept: return x.detach()
        return Like(tuple(x.shape), x.stride(), x.dtype)


Like = collections.namedtuple('Like', 'shape stride dtype')

def is_like(x): return isinstance(x, Like)


class Floor:
    "The products that were written down, to be computed again."
    def __init__(self, calls):
        self.made, self.calls = {}, []
        for op, args, kwargs in calls: self.calls.append((op, self.fill(op, args), self.fill(op, kwargs)))

    def fill(self, op, args):
        "Made-up tensors for descriptions; equal ones are shared."
        return torch.utils._pytree.tree_map(self.make, args, is_leaf=is_like)

    def make(self, x):
        if not is_like(x): return x
        if x not in self.made:
            t = torch.empty_strided(x.shape, x.stride, dtype=x.dtype)
            self.made[x] = t.normal_(0, .01) if x.dtype.is_floating_point else t.zero_()
        return self.made[x]

    def __call__(self):
        with torch.no_grad():
            for op, args, kwargs in self.calls: op(*args, **kwargs)


def record(f, module):
    "The products of one call."
    with Recorder(list(module.parameters())) as r: f()
    return r.calls


# ---- lines -----------------------------------------------------------------------------------------------------------------------------------------

class Lines(TorchDispatchMode):
    "Processor seconds of every torch operation within this context, by the line of the library that asked for it."
    def __init__(self):
        super().__init__()
        self.seconds, self.products = collections.Counter(), 0.

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        start = time.thread_time()
        out = op(*args, **(kwargs or {}))
        seconds, name = time.thread_time() - start, name_of(op)
        if name in PRODUCTS: self.products += seconds
        else: self.seconds[f'{asking_line()}  {name}'] += seconds
        return out


def asking_line():
    "The innermost line of ours that is being computed."
    frame = sys._getframe(2)
    while frame is not None:
        path = frame.f_code.co_filename
        if '/xmodaler_nb/' in path or path.startswith(str(ROOT/'benchmarks')) and frame.f_code.co_name != 'backward': return f"{path.split('/xmodaler_nb/')[-1].removeprefix(str(ROOT) + '/')}:{frame.f_lineno}"
        frame = frame.f_back
    return '?'


def print_lines(f, n):
    "The n lines that take most of what is not spent in products."
    with Lines() as lines: f()
    total = lines.products + sum(lines.seconds.values())
    print(f'    {lines.products/total:6.1%}  products')
    for line, s in lines.seconds.most_common(n): print(f'    {s/total:6.1%}  {line}')


def print_products(calls):
    "Each kind of product: how often, which shapes, what share of the floor's time."
    groups = collections.Counter((name_of(op), tuple(tuple(a.shape) for a in args if hasattr(a, 'shape'))) for op, args, _ in calls)
    seconds = {}
    for op, args, kwargs in calls:
        key = name_of(op), tuple(tuple(a.shape) for a in args if hasattr(a, 'shape'))
        if key in seconds: continue
        one = Floor([(op, args, kwargs)])
        one()
        seconds[key] = statistics.median(timed(one) for _ in range(5))*groups[key]
    total = sum(seconds.values())
    for key in sorted(seconds, key=seconds.get, reverse=True)[:12]: print(f"    {seconds[key]/total:6.1%}  {groups[key]:5} × {key[0]} {' '.join('×'.join(map(str, s)) for s in key[1])}")


# ---- what is measured ------------------------------------------------------------------------------------------------------------------------------

def training(name, small):
    "A training step of ours, and its model."
    if name in PRETRAINING:
        family = PRETRAINING[name]
        sizes = understanding.SMALL + (understanding.SMALL_TDEN if family == 'tden' else []) if small else []
        cfg = load_cfg_file(config_file(understanding.FAMILIES[family]), ['MODEL.DEVICE', 'cpu', 'MODEL.WEIGHTS', '', 'INFERENCE.VOCAB', '', *sizes])
        return understanding.Step(cfg, False, 4 if small else 8)
    sizes = plain.SMALL + plain.SMALL_MORE.get(name, []) if small else []
    return plain.Step(load_cfg_file(config_file(plain.FAMILIES[name]), ['MODEL.DEVICE', 'cpu', 'INFERENCE.VOCAB', '', *sizes]), False)


def work(name, what, images, small):
    "A function without arguments, and the model that it runs."
    if what == 'training':
        step = training(name, small)
        return step, step.model
    cfg, model, batch = decode.make(name, images, small)
    search = decode.ours(cfg, model, batch, 1 if what == 'greedy' else int(what.split()[1]))
    def f():
        with torch.no_grad(): return search()
    return f, model


def timed(f, clock=time.process_time):
    start = clock()
    f()
    return clock() - start


def measure(name, what, args):
    "A row: medians of ours and of the floor, in turns."
    ours, model = work(name, what, args.images, args.small)
    ours()                                                       # optimizer states and caches are there from now on
    calls = record(ours, model)
    floor = Floor(calls)
    floor()
    pairs = [(timed(ours, args.clock), timed(floor, args.clock)) for _ in range(args.repeats)]
    a, b = (statistics.median(s) for s in zip(*pairs))
    above = sorted(x/y for x, y in pairs)
    spread = (above[3*len(above)//4] - above[len(above)//4])/2
    if not args.json: show(name, what, a, b, spread, len(calls))
    if args.lines: print_lines(ours, args.lines)
    if args.products: print_products(calls)
    return dict(name=f'{name} {what}', ours_s=a, peer_s=b, ratio=b/a, above=a/b, spread=spread, products=len(calls), target=TARGET)


def show(name, what, a, b, spread, n):
    print(f"{name:22}{what:10}{a:9.3f}{b:9.3f}{a/b:8.2f} ± {spread:.2f}{n:8}{'' if a/b <= TARGET else '   above ' + str(TARGET)}", flush=True)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('families', nargs='*', default=['updown', 'transformer'], help=', '.join([*plain.FAMILIES, *PRETRAINING]))
    parser.add_argument('--all', action='store_true', help='every family')
    parser.add_argument('--what', nargs='+', default=WHAT, choices=WHAT)
    parser.add_argument('--images', type=int, default=32, help='of a search')
    parser.add_argument('--repeats', type=int, default=5)
    parser.add_argument('--lines', type=int, default=0, help='show so many lines that take time besides the products')
    parser.add_argument('--products', action='store_true', help='show the products')
    parser.add_argument('--wall', action='store_true', help='wall clock instead of processor time')
    parser.add_argument('--small', action='store_true', help='tiny sizes: a smoke test')
    parser.add_argument('--json', action='store_true', help='print the rows as one JSON list and nothing else')
    args = parser.parse_args(argv)
    args.clock = time.perf_counter if args.wall else time.process_time
    if args.json: args.lines = args.products = 0
    else: print(f"{'':32}{'ours s':>9}{'floor s':>9}{'ours / floor':>15}{'products':>8}   ({args.images} images, {torch.get_num_threads()} threads)")
    names = [*plain.FAMILIES, *PRETRAINING] if args.all else args.families
    rows = [measure(name, what, args) for name in names for what in args.what if what == 'training' or name not in PRETRAINING]
    if args.json: print(json.dumps(rows))


if __name__ == '__main__': main()
