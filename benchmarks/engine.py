"""What does the engine cost on top of the bare step, and do the loaders keep up?

    python benchmarks/engine.py            # both tables
    python benchmarks/engine.py --smoke    # a few steps, for CI: half the target

The bare step is forward, loss, backward, optimizer step on a batch that is already there. The same model, batches and optimizer then run through
`DefaultTrainer` with all its hooks (writers, schedule, timer, checkpoints off). Both alternate in short blocks, and medians are compared, so that a
busy machine disturbs both alike.
"""
import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
import torch
from xmodaler_nb.config import load_cfg_file
from xmodaler_nb.config.constants import kfg
from xmodaler_nb.datasets.scenes import make_scenes
from xmodaler_nb.engine import DefaultTrainer, EndlessLoader, HookBase


class Bench(DefaultTrainer):
    "The default trainer without evaluation."
    def build_evaluators(self, cfg): return None, None
    @classmethod
    def build_val_loader(cls, cfg): return None
    @classmethod
    def build_test_loader(cls, cfg): return None


class Marks(HookBase):
    "When each step began, outside everything else."
    order = -1000
    def before_train(self): self.times = []
    def __call__(self, event_name):
        if event_name == 'before_fit': self.times = []
        if event_name == 'before_batch': self.times.append(time.perf_counter())
    def hears(self, event_name): return event_name in ('before_fit', 'before_batch')


def config(data, out, workers=0):
    return load_cfg_file('demo.yaml', [*data.cfg_overrides, 'OUTPUT_DIR', str(out), 'DATALOADER.NUM_WORKERS', str(workers), 'ENGINE.PROGRESS', 'False',
                                       'SOLVER.CHECKPOINT_PERIOD', '1000', 'SOLVER.EPOCH', '1000'])


class Ready:
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
        t.learn.dls.loaders[0] = Ready(batches, 10**6)
        marks = Marks()
        t.learn.add_cb(marks)
        bare, full, at = [], [], 0
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
            t.train(at, at+steps+1)
            at += steps+1
            full += [b-a for a, b in zip(marks.times, marks.times[1:])]
        return statistics.median(bare), statistics.median(full)


def fed(data, workers, batches):
    "Images per second that the training loader gives."
    with tempfile.TemporaryDirectory() as d:
        loader = EndlessLoader(Bench.build_train_loader(config(data, d, workers)))
        next(loader)                                       # workers are up
        start = time.perf_counter()
        n = sum(len(next(loader)) for _ in range(batches))
        return n/(time.perf_counter() - start)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--smoke', action='store_true', help='a few steps on tiny data')
    p.add_argument('--size', default='', help='scenes: tiny or demo')
    args = p.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as d:
        data = make_scenes(Path(d)/'scenes', args.size or ('tiny' if args.smoke else 'demo'))
        bare, full = overhead(data, *((3, 6) if args.smoke else (8, 20)))
        share = full/bare - 1
        print(f'bare step {bare*1e3:.2f} ms   trainer {full*1e3:.2f} ms   overhead {share:+.1%} (target < 5%)')
        speed = {w: fed(data, w, 4 if args.smoke else 30) for w in (0, 1, 2)}
        need = len(next(iter(Bench.build_train_loader(config(data, d)))))/full
        for w, s in speed.items(): print(f'{w} workers: {s:7.0f} images/s from npz ({s/need:.1f} x what one training process eats)')
        print(json.dumps(dict(bare_ms=bare*1e3, trainer_ms=full*1e3, overhead=share, images_per_second=speed, needed=need)))
        if share > (.10 if args.smoke else .05): raise SystemExit(f'the engine costs {share:.1%}')


if __name__ == '__main__': main()
