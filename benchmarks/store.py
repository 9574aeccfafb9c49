"""Reading features: the store against one .npz per image, and against the bare disk and memory.

    python benchmarks/store.py                 # 10,000 images of 36 regions, 1024 wide, float32 (1.5 GB twice), then float16
    python benchmarks/store.py --dtype float16 # one of the two
    python benchmarks/store.py --small         # a smoke test

*random* reads images in a random order, as a loader does, and looks at every number: once as arrays that the caller owns (what a data set gets), once as views of the file. The peer opens the `.npz` of each image.
*sequential* goes through everything once and looks at every number. Its peers are one pass over a plain array in memory (pages cached) and a plain read of the same files (pages dropped from the cache before).
Ours and peer are measured in turns in one process; times are medians over repeats.
"""
import argparse, json, os, random, shutil, statistics, tempfile, time
from pathlib import Path
import numpy as np
from xmodaler_nb.functional import read_np
from xmodaler_nb.utils.store import FeatureStore, FeatureWriter


def make(folder, n, regions, width, dtype, npz=True):
    "The same made-up features in both forms."
    rng = np.random.default_rng(0)
    some = [rng.normal(size=(regions - i % 5, width)).astype(dtype) for i in range(50)]
    (folder/'npz').mkdir(parents=True)
    with FeatureWriter(folder/'store', dtype) as w:
        for i in range(n):
            w.add(i, features=some[i % 50])
            if npz: np.savez(folder/'npz'/f'{i}.npz', features=some[i % 50])
    return sum(some[i % 50].nbytes for i in range(n))


def drop_cache(folder):
    "Ask the system to forget the pages of these files."
    os.sync()
    for p in folder.glob('*.bin'):
        fd = os.open(p, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED); os.close(fd)


def scan(a):
    "One pass over all bytes; numbers of two bytes as integers, for numpy has no fast path for float16."
    return int(a.view(np.uint16).max()) if a.dtype == np.float16 else float(a.max())


def time_alternately(ours, peer, repeats, before=lambda: None):
    "Median seconds of both."
    times = {ours: [], peer: []}
    for _ in range(repeats):
        for f in (peer, ours):
            before()
            start = time.perf_counter(); f(); times[f].append(time.perf_counter() - start)
    return statistics.median(times[ours]), statistics.median(times[peer])


def rows(folder, n, regions, width, dtype, repeats, reads):
    "(name, ours, peer, bytes) for each comparison."
    size = make(folder, n, regions, width, dtype)
    order = random.Random(0).sample(range(n), min(n, reads))
    store = FeatureStore(folder/'store')
    assert all(np.array_equal(store[i]['features'], read_np(folder/'npz'/f'{i}.npz')['features']) for i in order[:20])
    def npz():
        for i in order: scan(read_np(f'{folder}/npz/{i}.npz')['features'])
    def owned():
        for i in order: scan(store.read(i)['features'])
    def views():
        for i in order: scan(store[i]['features'])
    part = size*len(order)//n
    out = [('random, owned arrays', *time_alternately(owned, npz, repeats), part), ('random, views', *time_alternately(views, npz, repeats), part)]
    shutil.rmtree(folder/'npz')
    plain = np.concatenate([np.frombuffer(s.data, dtype) for s in store.shards])
    block = regions*width
    def memory():
        for i in range(0, len(plain), block): scan(plain[i:i+block])
    def items():
        for _, a in store.items(): scan(a['features'])
    items()
    out.append(('sequential, memory', *time_alternately(items, memory, repeats), size))
    del plain
    def disk():
        buffer = bytearray(2**20)
        for p in sorted((folder/'store').glob('*.bin')):
            with open(p, 'rb', buffering=0) as f:
                while n := f.readinto(buffer): scan(np.frombuffer(buffer, dtype, n//np.dtype(dtype).itemsize))
    def cold():
        for _, a in FeatureStore(folder/'store').items(): scan(a['features'])
    out.append(('sequential, disk', *time_alternately(cold, disk, repeats, lambda: drop_cache(folder/'store')), size))
    return out


def compare(small=False, n=10000, regions=36, width=1024, dtypes=('float32', 'float16'), repeats=3, reads=3000, folder=None):
    "Rows of the table, as dicts."
    if small: n, regions, width, reads, repeats = 60, 6, 16, 60, 1
    results = []
    for dtype in dtypes:
        with tempfile.TemporaryDirectory(dir=folder) as tmp:
            results += [dict(name=f'{name}, {dtype}', ours_s=a, peer_s=b, ratio=b/a, ours_gb_s=size/a/1e9, peer_gb_s=size/b/1e9) for name, a, b, size in rows(Path(tmp), n, regions, width, dtype, repeats, reads)]
    return results


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--small', action='store_true', help='tiny sizes: a smoke test')
    parser.add_argument('--json', action='store_true', help='print the rows as one JSON list and nothing else')
    parser.add_argument('--dtype', choices=('float32', 'float16'), default=None, help='only this one')
    parser.add_argument('--n', type=int, default=10000, help='images'); parser.add_argument('--width', type=int, default=1024)
    parser.add_argument('--repeats', type=int, default=3); parser.add_argument('--folder', default=None, help='where to write; default: the system\'s temporary folder')
    args = parser.parse_args()
    results = compare(args.small, args.n, 36, args.width, (args.dtype,) if args.dtype else ('float32', 'float16'), args.repeats, folder=args.folder)
    if args.json: print(json.dumps(results)); return
    print(f"{'':34}{'ours s':>9}{'peer s':>9}{'ratio':>8}{'ours GB/s':>11}{'peer GB/s':>11}")
    for r in results: print(f"{r['name']:34}{r['ours_s']:9.3f}{r['peer_s']:9.3f}{r['ratio']:8.2f}{r['ours_gb_s']:11.2f}{r['peer_gb_s']:11.2f}")


if __name__ == '__main__': main()
