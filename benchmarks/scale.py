"""Does the cost stay in proportion? Loading, evaluation, reward and retrieval at growing sizes, on made-up data.

    python benchmarks/scale.py                         # everything, at COCO's size (113,000 images of 36 × 2048); some minutes
    python benchmarks/scale.py --only loading          # one part: loading, evaluation, reward, retrieval
    python benchmarks/scale.py --images 20000 --json
    python benchmarks/scale.py --small                 # a smoke test

Every row compares a large size (`ours_s`) with a small one that is scaled up in proportion (`peer_s`): a ratio of 1 is proportional growth, above 1 is less. `exponent` is the slope between the two largest
sizes, in processor seconds, for a busy machine has no say there.
*loading*: the training loader of Up-Down over one store file with a hole in it (36 × 2048 numbers an image that take no disk) and annotations of five captions an image. `first batch` is the time from the
configuration to the first batch, beside the 5 s it may take. `image, n workers` is what an image costs the process and its workers at `--images` beside a tenth of it (before and after), in processor seconds after the first tenth of
`--steps` batches; all images lie in the same places of the file, so that the pages of both sizes are in memory. `memory_mb` is how much more (pages of their own, without those of a file) process and workers hold
at the most in the second half of the batches than in the first, `peak_mb` how much more at the most than at the first batch. `image from the disk` reads images at random from a file of full length of which no page is in memory; `read_mb` is what the system brought for one.
*evaluation*: BLEU, METEOR, ROUGE-L and CIDEr of captions with five references each, sizes in turns, the median of three rounds unless one takes 10 s. Above 20,000 captions part of
the time is the system's, which takes freed memory back and hands it out again; with MALLOC_TRIM_THRESHOLD_=4000000000 MALLOC_MMAP_THRESHOLD_=4000000000 (glibc) the process keeps it, and what is left is ours. *reward*: CIDEr-D of a step of 80 captions with a table of 500,000 document frequencies, for few and for many images.
*retrieval*: ranks of five texts an image, both ways, in blocks; the peer is scaled with the number of pairs; `memory_mb` is the growth of the peak.
"""
import argparse
import contextlib
import io
import json
import math
import os
import random
import resource
import statistics
import tempfile
import time
import zlib
from pathlib import Path
import numpy as np

REGIONS, WIDTH, BATCH, PLACES, PARTS = 36, 2048, 64, 1000, ('loading', 'evaluation', 'reward', 'retrieval')
WORDS = 'a the man woman dog cat horse rides holds red small on in with near grass street table two standing sitting running large white black and of'.split()


def row(name, ours, peer, **more): return dict(name=name, ours_s=ours, peer_s=peer, ratio=peer/ours, **more)


def slope(sizes, seconds): return math.log(seconds[-1]/seconds[-2])/math.log(sizes[-1]/sizes[-2])


def cpu(f):
    "Processor seconds, and what came out."
    start = time.process_time()
    with contextlib.redirect_stdout(io.StringIO()): out = f()
    return time.process_time()-start, out


# loading

def sparse_store(folder, n, regions, width, places=None):
    "A store of zeros that take no disk; with `places`, several images lie in one place of the file."
    from xmodaler_nb.utils.store import FeatureWriter, write_index
    size = regions*width*4
    with FeatureWriter(folder): pass
    with open(folder/'all-00000.bin', 'wb') as f: f.truncate((places or n)*size)
    crc = zlib.crc32(bytes(size))
    write_index(folder/'all-00000.npz', [('features', np.float32, (width,))], [str(i) for i in range(n)], [i % (places or n)*size for i in range(n)], [[regions]]*n, [crc]*n, (places or n)*size)
    return folder


def training_set(folder, n, regions, width):
    "Configuration of Up-Down over n made-up images."
    from xmodaler_nb.datasets.layout import annotation, folder_paths, write_pickle, write_vocabulary
    from xmodaler_nb.modeling import load_cfg_file
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    write_vocabulary(folder/'vocabulary.txt', [f'w{i}' for i in range(9999)])
    some = [annotation(0, [rng.integers(1, 10000, rng.integers(8, 14)).tolist() for _ in range(5)]) for _ in range(500)]
    write_pickle(folder_paths(folder, 'mscoco')['annotations_train'], [{**some[i % 500], 'image_id': str(i), 'tokens_ids': some[i % 500]['tokens_ids'].copy()} for i in range(n)])
    feats = sparse_store(folder/'features', n, regions, width, min(n, PLACES))
    return load_cfg_file('image_caption/updown/updown.yaml', ['DATALOADER.ANNO_FOLDER', str(folder), 'DATALOADER.FEATS_FOLDER', str(feats), 'DATALOADER.TRAIN_BATCH_SIZE', BATCH,
        'MODEL.VISUAL_EMBED.IN_DIM', width, 'INFERENCE.VOCAB', '', 'DATALOADER.MAX_FEAT_NUM', regions, 'MODEL.DEVICE', 'cpu', 'DATALOADER.RELATION_FILE', '', 'DATALOADER.ATTRIBUTE_FILE', ''])


def own_pages():
    "Megabytes of this process and its children that are not pages of a file."
    total = 0
    for p in [os.getpid(), *children(os.getpid())]:
        with contextlib.suppress(OSError):
            for line in Path(f'/proc/{p}/smaps_rollup').read_text().splitlines():
                if line.startswith('Anonymous:'): total += int(line.split()[1])/1024
    return total


def children(pid):
    with contextlib.suppress(OSError): return [int(c) for c in Path(f'/proc/{pid}/task/{pid}/children').read_text().split()]
    return []


def spent():
    "Processor seconds of this process and its children so far."
    total = 0
    for p in [os.getpid(), *children(os.getpid())]:
        with contextlib.suppress(OSError): total += sum(map(int, Path(f'/proc/{p}/stat').read_text().rsplit(')', 1)[1].split()[11:13]))
    return total/os.sysconf('SC_CLK_TCK')


def run_loader(cfg, workers, steps):
    "Seconds to the first batch; processor seconds and seconds an image afterwards; growth and peak of memory."
    from xmodaler_nb.datasets import build_xmodaler_train_loader
    cfg = cfg.clone()
    cfg.defrost()
    cfg.DATALOADER.NUM_WORKERS = workers
    start, early, memory = time.perf_counter(), max(1, steps//10), []
    loader = build_xmodaler_train_loader(cfg)
    batches = iter(loader)
    for step in range(steps):
        if next(batches, None) is None: batches = iter(loader)
        if step == 0: first, least = time.perf_counter()-start, own_pages()
        if step == early: begun, before = time.perf_counter(), spent()
        if step >= early and step % (5 if steps > 50 else 1) == 0: memory.append(own_pages())
    drawn, half = max(1, steps-1-early)*BATCH, len(memory)//2
    took = (spent()-before)/drawn, (time.perf_counter()-begun)/drawn
    del batches
    return first, *took, max(memory[half:])-max(memory[:half]), max(memory)-least


def from_disk(folder, n, regions, width, reads):
    "(processor seconds, megabytes brought from the disk) for an image that is read from a store that is not in memory."
    from xmodaler_nb.utils.store import FeatureStore
    store = FeatureStore(sparse_store(folder, n, regions, width))
    fd = os.open(store.shards[0].path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    ids, before = random.Random(0).sample(range(n), reads), allocated()
    seconds, _ = cpu(lambda: [store.read(i) for i in ids])
    os.close(fd)
    return seconds/reads, (allocated()-before)/reads


def allocated():
    "Megabytes of pages that the system has handed out so far, for files and for processes."
    return sum(int(line.split()[1]) for line in Path('/proc/vmstat').read_text().splitlines() if line.startswith('pgalloc_'))*os.sysconf('SC_PAGESIZE')/2**20


def loading(images, steps, small):
    regions, width = (4, 16) if small else (REGIONS, WIDTH)
    rows, few, many = [], max(images//10, BATCH+1), images
    with tempfile.TemporaryDirectory() as d:
        few_cfg, many_cfg = (training_set(Path(d)/str(n), n, regions, width) for n in (few, many))
        for workers in (0,) if small else (0, 2, 4):
            (_, b, *_), (first, a, wall, memory, peak), (_, c, *_) = (run_loader(cfg, workers, n) for cfg, n in ((few_cfg, steps//3), (many_cfg, steps), (few_cfg, steps//3)))
            if not workers: rows.append(row(f'first batch of {images:,}', first, 5.))
            rows.append(row(f'image, {workers} workers', max(a, 1e-9), (b+c)/2, memory_mb=round(memory, 1), peak_mb=round(peak, 1), wall_s=round(wall, 6)))
        (b, _), (a, read) = (from_disk(Path(d)/f'disk{n}', n, regions, width, 50 if small else 1000) for n in (few, many))
        rows.append(row('image from the disk', a, b, read_mb=round(read, 2)))
    return rows


# evaluation

def in_turns(f, data, rounds=3, enough=10.):
    "Median processor seconds of f for each size, the sizes in turns: the first round also pays for memory that the process never had."
    times = []
    while len(times) < rounds and sum(map(sum, times)) < enough: times.append([cpu(lambda: f(*d))[0] for d in data])
    return [statistics.median(s) for s in zip(*times)]


def captions(n, seed=0):
    "n images: a caption and five references each."
    rng = random.Random(seed)
    def one(): return ' '.join(rng.choices(WORDS, k=rng.randint(7, 12))) + f' w{rng.randrange(20000)}'
    refs = [[one() for _ in range(5)] for _ in range(n)]
    return [' '.join(w for k, w in enumerate(rng.choice(r).split()) if k != 3) for r in refs], refs


def evaluation(sizes, small):
    from xmodaler_nb.evaluation.metrics import make_metric, problem
    from xmodaler_nb.evaluation.ngrams import References
    names = ['BLEU', 'ROUGE_L', 'CIDEr'] + ['METEOR']*(not small and not problem('METEOR'))
    rows = []
    data = [captions(n) for n in sizes]
    for name in names:
        make_metric(name)(*[part[:100] for part in data[0]])             # tables are loaded now
        seconds = in_turns(lambda hyps, refs: make_metric(name)(hyps, References(refs)), data)
        rows.append(row(f'{name}, {sizes[-1]:,} captions', seconds[-1], seconds[-2]*sizes[-1]/sizes[-2], exponent=round(slope(sizes, seconds), 2), seconds=[round(s, 3) for s in seconds], sizes=sizes))
    return rows


# reward and retrieval

def reward(sizes, entries):
    "A step of 80 captions, for few and many images in the table of references."
    from xmodaler_nb.config import kfg
    from xmodaler_nb.scorer import BaseScorer, Cider
    rng = random.Random(0)
    df = {tuple(rng.randrange(1, 9000) for _ in range(rng.randint(1, 4))): 1. + rng.randrange(50) for _ in range(entries)}
    scorer, seconds = Cider(cider_cached=dict(document_frequency=df, ref_len=math.log(113287))), []
    for n in sizes:
        gts = {i: [[rng.randrange(1, 9000) for _ in range(10)] + [0] for _ in range(5)] for i in range(n)}
        score = BaseScorer(types=['Cider'], scorers=[scorer], weights=[1.], gt_path=gts, eos_id=0)
        def steps(k=20):
            for _ in range(k):
                ids = [i for i in rng.sample(range(n), 16) for _ in range(5)]
                score({kfg.IDS: ids, kfg.G_SENTS_IDS: [gts[i][0] for i in ids]})
        steps(2)
        seconds.append(cpu(steps)[0]/20)
    return [row(f'reward of 80 captions, {sizes[-1]:,} images, {len(df):,} n-grams', seconds[-1], seconds[-2], seconds=[round(s, 5) for s in seconds], sizes=sizes)]


def retrieval(images, width):
    from xmodaler_nb.evaluation.ranks import image_to_text_ranks, text_to_image_ranks
    sizes, seconds, peak = [images//5, images], [], lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024
    for n in sizes:
        rng = np.random.default_rng(0)
        pictures, texts, of = rng.normal(size=(n, width)).astype(np.float32), rng.normal(size=(5*n, width)).astype(np.float32), np.repeat(np.arange(n), 5)
        before = peak()
        seconds.append(cpu(lambda: (text_to_image_ranks(texts, pictures, of), image_to_text_ranks(pictures, texts, of)))[0])
    return [row(f'retrieval, {images:,} × {5*images:,}', seconds[-1], seconds[0]*25, memory_mb=round(peak()-before, 1), exponent=round(slope(sizes, seconds), 2))]


def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--only', nargs='+', choices=PARTS, default=PARTS)
    p.add_argument('--images', type=int, default=113_000, help='of the training set')
    p.add_argument('--steps', type=int, default=500, help='batches that are drawn of an epoch')
    p.add_argument('--small', action='store_true', help='tiny sizes: a smoke test')
    p.add_argument('--json', action='store_true', help='print the rows as one JSON list and nothing else')
    args = p.parse_args(argv)
    small = args.small
    parts = dict(loading=lambda: loading(700 if small else args.images, 15 if small else args.steps, small), evaluation=lambda: evaluation([20, 60, 120] if small else [1000, 5000, 20000, 40000], small),
                 reward=lambda: reward([50, 200] if small else [1000, 100_000], 500 if small else 500_000), retrieval=lambda: retrieval(50 if small else 5000, 8 if small else 256))
    rows = [r for part in args.only for r in parts[part]()]
    if args.json: return print(json.dumps(rows))
    for r in rows: print(f"{r['name']:52}{r['ours_s']:11.5f}{r['peer_s']:11.5f}{r['ratio']:7.2f}  " + ' '.join(f'{k} {v}' for k, v in r.items() if k in ('exponent', 'memory_mb', 'peak_mb', 'read_mb')))


if __name__ == '__main__': main()
