"""What does the engine cost on top of the bare step, and do the loaders keep up?

    python benchmarks/engine.py            # both tables
    python benchmarks/engine.py --small    # a smoke test

The bare step is forward, loss, backward, optimizer step on a batch that is already there. The same model, batches and optimizer then run through
`DefaultTrainer` with all its hooks (writers, schedule, timer, checkpoints off). Both alternate in short blocks, and medians are compared, so that a
busy machine disturbs both alike. The loaders are timed from `.npz` files and from a memory-mapped store; a ratio above 1 says that a batch is there before
the trainer's step is over.
"""
import argparse
import contextlib
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
import numpy as np
import torch
from xmodaler_nb.modeling import load_cfg_file
from xmodaler_nb.config.constants import kfg
from xmodaler_nb.own.scenes import make_scenes
from xmodaler_nb.engine import DefaultTrainer, EndlessLoader, HookBase
from xmodaler_nb.utils.store import FeatureWriter


class Bench(DefaultTrainer):
    "The default trainer without evaluation."
    def build_evaluators(self, cfg): return None, None
    @classmethod
    def build_val_loader(cls, cfg): return None
    @classmethod
    def build_test_loader(cls, cfg): return None


class StepTimes(HookBase):
    "When each step began, outside everything else."
    order = -1000
    def before_train(self): self.times = []
    def __call__(self, event_name):
        if event_name == 'before_fit': self.times = []
        if event_name == 'before_batch': self.times.append(time.perf_counter())
    def handles_event(self, event_name): return event_name in ('before_fit', 'before_batch')


def config(data, out, workers=0, more=()):
    return load_cfg_file('demo.yaml', [*data.cfg_overrides, *more, 'OUTPUT_DIR', str(out), 'DATALOADER.NUM_WORKERS', str(workers), 'ENGINE.PROGRESS', 'False',
                                       'SOLVER.CHECKPOINT_PERIOD', '1000', 'SOLVER.EPOCH', '1000'])


class FixedLoader:
    "The same batches over and over, without cost."
    def __init__(self, batches, n): self.batches, self.n = batches, n
    def __len__(self): return self.n
    def set_position(self, epoch, start): self.start = start
    def __iter__(self): return (self.batches[i % len(self.batches)] for i in range(self.start, self.n))


def overhead(data, blocks, steps):
    "Median seconds of a bare step and of a step of the trainer."
    with tempfile.TemporaryDirectory() as d:
        cfg = config(data, d)
        t = Bench(cfg)
        batches = [b for b, _ in zip(t.train_data_loader, range(8))]
        t.learn.dls.loaders[0] = FixedLoader(batches, 10**6)
        step_times = StepTimes()
        t.learn.add_cb(step_times)
        bare, full, step = [], [], 0
        for _ in range(blocks):
            t.model.train()
            for i in range(steps):
                b = batches[i % len(batches)].merge({kfg.SS_PROB: 0.})
                start = time.perf_counter()
                out = t.model(b)
                loss = sum(v for l in t.losses for v in l(out).values())
                loss.backward()
                t.optimizer.step()
                t.optimizer.zero_grad()
                bare.append(time.perf_counter() - start)
            t.train(step, step+steps+1)
            step += steps+1
            full += [b-a for a, b in zip(step_times.times, step_times.times[1:])]
        return statistics.median(bare), statistics.median(full)


def write_store(data, folder):
    "The features of all images in a memory-mapped store; the config entries that point to it."
    position = data.cfg_overrides.index('DATALOADER.FEATS_FOLDER') + 1
    with FeatureWriter(folder) as w:
        for f in sorted(Path(data.cfg_overrides[position]).glob('*.npz')): w.add(f.stem, **np.load(f, allow_pickle=False))
    return ['DATALOADER.FEATS_FOLDER', str(folder)]


def loader_speed(data, workers, batches, more=()):
    "Images per second that the training loader gives."
    with tempfile.TemporaryDirectory() as d:
        loader = EndlessLoader(Bench.build_train_loader(config(data, d, workers, more)))
        next(loader)                                       # workers are up
        start = time.perf_counter()
        n = sum(len(next(loader)) for _ in range(batches))
        return n/(time.perf_counter() - start)


def compare(small=False, size=''):
    "Rows of the table, as dicts: name, seconds of ours and of the peer, ratio, and images per second for loaders."
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as d:
        data = make_scenes(Path(d)/'scenes', size or ('tiny' if small else 'demo'))
        bare, full = overhead(data, *((2, 4) if small else (8, 20)))
        rows, store = [dict(name='training step: trainer | bare', ours_s=full, peer_s=bare, ratio=bare/full)], write_store(data, Path(d)/'store')
        batch = len(next(iter(Bench.build_train_loader(config(data, d)))))
        for kind, more in (('npz', []), ('store', store)):
            for workers in (0, 2) if small else (0, 1, 2):
                speed = loader_speed(data, workers, 2 if small else 30, more)
                rows.append(dict(name=f'batch: {kind}, {workers} workers | trainer step', ours_s=batch/speed, peer_s=full, ratio=full*speed/batch, images_s=speed))
    return rows


def main(args=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--small', action='store_true', help='a few steps on tiny data: a smoke test')
    p.add_argument('--size', default='', help='scenes: tiny or demo')
    p.add_argument('--json', action='store_true', help='print the rows as one JSON list and nothing else')
    args = p.parse_args(args)
    with contextlib.redirect_stdout(sys.stderr if args.json else sys.stdout): rows = compare(args.small, args.size)
    if args.json: print(json.dumps(rows)); return
    print(f"{'':42}{'ours ms':>9}{'peer ms':>9}{'ratio':>8}{'images/s':>10}")
    for r in rows: print(f"{r['name']:42}{r['ours_s']*1e3:9.2f}{r['peer_s']*1e3:9.2f}{r['ratio']:8.2f}{r['images_s'] if 'images_s' in r else float('nan'):10.0f}")
    share = 1/rows[0]['ratio'] - 1
    print(f'the engine adds {share:+.1%} to the bare step (target < 5%)')
    if share > (.10 if args.small else .05): raise SystemExit(1)


if __name__ == '__main__': main()
