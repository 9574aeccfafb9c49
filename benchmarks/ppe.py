"""What does a manager with extensions cost per iteration, on top of a bare loop?

    python benchmarks/ppe.py            # the table
    python benchmarks/ppe.py --small    # a smoke test

Both loops do the same steps of a small model (forward, backward, optimizer step). One of them runs inside `manager.run_iteration()` with a log report, a
printed table, an early stop and a trigger of the best value, and reports its loss. Short blocks of the two alternate, the processor's time is measured, not
the clock's, and the median of the paired differences counts, so a busy machine disturbs both alike. The second row does nothing in its steps: what is left is
the bookkeeping itself. In the first row the same code costs two to three times as much where other programs share the processor's caches, as the model does.
"""
import argparse
import io
import json
import statistics
import tempfile
import time
import torch
from torch import nn
from xmodaler_nb.ppe.reporting import report
from xmodaler_nb.ppe.training.extensions import LogReport, PrintReport
from xmodaler_nb.ppe.training.manager import ExtensionsManager
from xmodaler_nb.ppe.training.triggers import EarlyStoppingTrigger, MinValueTrigger

EPOCH = 100      # iterations of an epoch: a log line each
TARGET = 50e-6   # seconds per iteration


def manager(model, folder):
    "A manager with a log, a table and two triggers that watch the loss."
    m = ExtensionsManager(model, {}, 10**6, iters_per_epoch=EPOCH, out_dir=folder, stop_trigger=EarlyStoppingTrigger(monitor='loss', patience=10**9, max_trigger=(10**6, 'epoch')))
    m.extend(LogReport(filename='log.jsonl', append=True))
    m.extend(PrintReport(out=io.StringIO()))
    m.extend(lambda manager: None, name='best', trigger=MinValueTrigger('loss'))
    return m


def steps(model, width):
    "A training step that returns its loss; without a width, a constant."
    if not width: return lambda: 1.
    opt, x = torch.optim.SGD(model.parameters(), 1e-6), torch.ones(8, width)
    def step():
        opt.zero_grad()
        loss = model(x).pow(2).mean()
        loss.backward()
        opt.step()
        return loss.item()
    return step


def block(step, n, m=None):
    "Seconds of the processor per iteration of a block."
    begin = time.process_time()
    for _ in range(n):
        if m is None: step()
        else:
            with m.run_iteration(): report({'loss': step()})
    return (time.process_time() - begin)/n


def compare(small=False):
    "Rows of the table: name, seconds per iteration of ours and of the bare loop, ratio, and the median difference."
    torch.set_num_threads(1)
    rows, rounds, n = [], *((3, 100) if small else (40, 200))
    for name, width in (('steps of a small model', 64), ('empty steps', 0)):
        model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))
        with tempfile.TemporaryDirectory() as d:
            m, step = manager(model, d), steps(model, width)
            block(step, n, m)
            pairs = [(block(step, n), block(step, n, m)) for _ in range(rounds)]
        bare, ours = (statistics.median(p) for p in zip(*pairs))
        rows.append(dict(name=name, ours_s=ours, peer_s=bare, ratio=bare/ours, added_s=statistics.median(b - a for a, b in pairs)))
    return rows


def main(args=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--small', action='store_true', help='a few steps: a smoke test')
    p.add_argument('--json', action='store_true', help='print the rows as one JSON list and nothing else')
    args = p.parse_args(args)
    rows = compare(args.small)
    if args.json: print(json.dumps(rows)); return
    print(f"{'':26}{'managed µs':>12}{'bare µs':>10}{'added µs':>10}")
    for r in rows: print(f"{r['name']:26}{r['ours_s']*1e6:12.1f}{r['peer_s']*1e6:10.1f}{r['added_s']*1e6:10.1f}")
    if max(r['added_s'] for r in rows) > TARGET*(2 if args.small else 1): raise SystemExit(f'more than {TARGET*1e6:.0f} µs per iteration were added')


if __name__ == '__main__': main()
