"""Landmark files and clips of signs, beside the plain ways, in one run.

    python benchmarks/signs.py            # 1,000 files, 10,000 clips against 500 in a loop over landmarks
    python benchmarks/signs.py --smoke    # a smoke test: 8 files, 20 clips
    python benchmarks/signs.py --json

Files and clips come from the embedded world of signers. `read 1,000 files`: parquet to (frames, 543, 2), beside a loop of `pandas.read_parquet(path)[['x', 'y']]`; `read, two columns`: the same, beside
`pandas.read_parquet(path, columns=['x', 'y'])`; `read, two columns, two threads`: `load_landmark_files` beside that loop. Both loops believe that the rows stand in order; ours checks it.
`decode two columns`: pyarrow's decoding of x and y alone, one thread, beside the same loop. No reader that calls pyarrow in one thread can have a higher ratio.
`prepare`: 543 rows to 32 × 96 × 2, beside the same rule written as a loop over landmarks and coordinates; the loop does a twentieth of the clips, and its seconds are multiplied by 20.
Both sides take turns, each row is the best of `--repeats` turns in wall-clock seconds, and both must give the same numbers.
"""
import argparse
import json
import tempfile
import time
from pathlib import Path
import numpy as np

SHARE = 20                                             # the loop over landmarks does one clip of so many
TARGETS = {'read': 3, 'prepare': 20}                 # first word of a row's name


def timed(f):
    start = time.perf_counter()
    out = f()
    return time.perf_counter()-start, out


def take_turns(ours, peer, repeats):
    "Best seconds of both, and their last results."
    a, b = [], []
    for _ in range(repeats):
        s, x = timed(ours)
        a.append(s)
        s, y = timed(peer)
        b.append(s)
    return min(a), min(b), x, y


def row(name, ours, peer): return dict(name=name, ours_s=ours, peer_s=peer, ratio=peer/ours, target=TARGETS.get(name.split()[0]))


def read_files(n, repeats):
    import pandas as pd
    import pyarrow.parquet as pq
    from xmodaler_nb.asl.parquet import load_landmark_files, load_relevant_data_subset
    from xmodaler_nb.asl.signs import write_signs
    with tempfile.TemporaryDirectory() as d:
        files = sorted(write_signs(d, signs=min(12, n), signers=2, takes=4).rglob('*.parquet'))
        files = [files[i % len(files)] for i in range(n)]
        def plain(path, **how): return pd.read_parquet(path, **how)[['x', 'y']].to_numpy(np.float32).reshape(-1, 543, 2)
        def ours(): return [load_relevant_data_subset(f).sum() for f in files]
        def two(): return [plain(f, columns=['x', 'y']).sum() for f in files]
        def together(): return [x.sum() for x in load_landmark_files(files)]
        def decode(): return [pq.ParquetFile(f).read(columns=['x', 'y'], use_threads=False).num_rows for f in files]
        ways = {f'read {n:,} files': (ours, lambda: [plain(f).sum() for f in files]), 'read, two columns': (ours, two),
                'read, two columns, two threads': (together, two), 'decode two columns': (decode, two)}
        rows = [row(name, *take_turns(*pair, repeats)[:2]) for name, pair in ways.items()]
        for x in load_landmark_files(files[:8]): np.testing.assert_array_equal(x, plain(files.pop(0)))
    return rows


def fill(x, max_gap=3):
    "Gaps of one landmark and coordinate."
    there = np.flatnonzero(~np.isnan(x))
    for a, b in zip(there, there[1:]):
        if 1 < b-a <= max_gap: x[a+1:b] = x[a]+(x[b]-x[a])*np.arange(1, b-a)/(b-a)
    return x


def resample(x, size=32):
    "One landmark and coordinate, any number of frames to 32."
    n = len(x)
    if n < size: return np.interp(np.linspace(0, n-1, size), np.arange(n), x)
    if n == size: return x
    if n < size*size: x = np.repeat(x, size*size//n)
    pad = -len(x) % size
    x = np.pad(x, (pad//2+size//2, pad//2+pad % 2+size//2), 'edge').reshape(size, -1)
    return np.array([np.nan if np.isnan(block).all() else np.nanmean(block) for block in x])


def prepare_plainly(rows):
    "The rule as a loop over landmarks and coordinates."
    from xmodaler_nb.asl.config import settings
    rows, hands = rows.astype(np.float64), settings.USEFUL_HAND_LANDMARKS
    for k in hands:
        for d in range(2): rows[:,k,d] = fill(rows[:,k,d])
    rows = rows[[not np.isnan(f).all() and np.nanmean(f) > 0 for f in rows[:,hands]]]
    out = np.zeros((32, 96, 2))
    for i, k in enumerate(settings.USEFUL_ALL_LANDMARKS if len(rows) else ()):
        for d in range(2): out[:,i,d] = resample(rows[:,k,d])
    return np.nan_to_num(out)


def prepare(n, repeats):
    from xmodaler_nb.asl.data.resample import preprocess_data_to_same_size
    from xmodaler_nb.asl.signs import SIGN_NAMES, sign_rows
    few = [sign_rows(SIGN_NAMES[i % 12], signer=i//12 % 20)[...,:2] for i in range(max(1, n//SHARE))]
    many = [few[i % len(few)] for i in range(n)]
    a, b, x, y = take_turns(lambda: [preprocess_data_to_same_size(c)[0] for c in many][:len(few)], lambda: [prepare_plainly(c) for c in few], repeats)
    np.testing.assert_allclose(x, y, atol=1e-4)
    return [row(f'prepare {n:,} clips', a, b*n/len(few))]


def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--repeats', type=int, default=2)
    p.add_argument('--smoke', action='store_true', help='8 files, 20 clips')
    p.add_argument('--json', action='store_true', help='print the rows as one JSON list and nothing else')
    args = p.parse_args(argv)
    files, clips = (8, 20) if args.smoke else (1000, 10000)
    rows = read_files(files, args.repeats)+prepare(clips, args.repeats)
    for r in rows if not args.json else (): print(f"{r['name']:32}{r['ours_s']:9.3f}{r['peer_s']:9.3f}{r['ratio']:8.1f}{'' if r['target'] is None else '   target '+str(r['target'])}")
    if args.json: print(json.dumps(rows))
    return rows


if __name__ == '__main__': main()
