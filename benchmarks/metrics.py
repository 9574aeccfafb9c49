"""Caption metrics beside pycocoevalcap's, in one run: 5,000 images with 5 references each.

    python benchmarks/metrics.py                       # everything, about three minutes on two idle cores
    python benchmarks/metrics.py --only METEOR CIDEr   # some rows
    python benchmarks/metrics.py --images 20 --smoke   # a smoke test: no peers, made-up captions
    python benchmarks/metrics.py --json

Captions: COCO val2017 and Flickr8k from the real-data folder (`XMODALER_DATA`), made-up ones without it. Half of the hypotheses are captions of the image itself with every fourth word
dropped, half are captions of another image. Both sides get the same strings, take turns, and must agree on the scores; each row is the best of `--repeats` turns in wall-clock seconds.
`cold` rows run once, in a process of their own, and include loading tables and starting programs. `warm` METEOR: the references have been seen, the hypotheses have not; Java is warm too.
The reward row compares a prepared scorer with one that counts every reference anew for each hypothesis, dictionary by dictionary, as the usual Python scorers do.
"""
import argparse
import contextlib
import gzip
import io
import json
import math
import os
import random
import resource
import subprocess
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
TARGETS = {'tokenizer cold': 3, 'tokenizer': 3, 'BLEU': 5, 'ROUGE_L': 10, 'CIDEr': 10, 'METEOR cold': 1.5, 'METEOR warm': 2, 'CIDEr-D reward': 20}
WORDS = 'a the man woman dog cat horse rides holds red small on in with near grass street table two standing sitting running large white black and of'.split()


def random_captions(n, rng): return [[' '.join(rng.choices(WORDS, k=rng.randint(7, 14))).capitalize()+'.' for _ in range(5)] for _ in range(n)]


def captions(n, smoke=False, seed=0):
    "n images with five raw captions each: half COCO, half Flickr8k."
    rng, folder = random.Random(seed), Path(os.environ.get('XMODALER_DATA', ROOT.parent/'shared'/'data'))
    sources = [folder/'caption_metrics'/'refs.json.gz', folder/'flickr8k_text'/'captions.json.gz']
    if smoke or not all(s.is_file() for s in sources): return random_captions(n, rng)
    coco, flickr = (json.loads(gzip.decompress(s.read_bytes())) for s in sources)
    both = coco['refs'][:n//2]+[r['captions'] for r in flickr if len(r['captions']) == 5]
    refs = [r[:5] for r in both[:n]]
    rng.shuffle(refs)
    return refs


def hypotheses(refs, shift=1):
    "One caption per image: its own with words dropped, or another image's."
    own = [' '.join(w for k, w in enumerate(r[(i+shift) % len(r)].split()) if k % 4 != 3) for i, r in enumerate(refs)]
    return [own[i] if i % 2 else refs[(i+shift) % len(refs)][0] for i in range(len(refs))]


def timed(f):
    "Wall-clock seconds, and what came out."
    start = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()): out = f()
    return time.perf_counter()-start, out


def time_alternately(ours, peer, repeats):
    "Best times of both and the last results; they take turns."
    a, b = [], []
    for _ in range(repeats):
        s, our_result = timed(ours)
        a.append(s)
        if peer:
            s, peer_result = timed(peer)
            b.append(s)
    return min(a), min(b, default=None), our_result, peer_result if peer else None


def row(name, ours, peer, **more):
    return dict(name=name, ours_s=ours, peer_s=peer, ratio=peer/ours if peer else None, target=TARGETS.get(name), **more)


def check_equal(ours, peer_result, name, tolerance=1e-9):
    if peer_result is not None: np.testing.assert_allclose(ours, peer_result, rtol=0, atol=tolerance, err_msg=name)


def to_coco(texts, wrap=False):
    "{id: [captions]} as pycocoevalcap takes it."
    return {i: ([t] if isinstance(t, str) else list(t)) if not wrap else [{'caption': c} for c in ([t] if isinstance(t, str) else t)] for i, t in enumerate(texts)}


def tokenizer(refs, hyps, peers, repeats):
    from xmodaler_nb.tokenization import ptb_tokenize
    flat = [c for r in refs for c in r]
    def ours(): return ptb_tokenize(hyps), ptb_tokenize(flat)
    cold, first = timed(ours)
    peer = None
    if peers:
        from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer
        h, r = to_coco(hyps, True), to_coco(refs, True)
        def peer(): return PTBTokenizer().tokenize(h), PTBTokenizer().tokenize(r)
    a, b, our_result, peer_result = time_alternately(ours, peer, repeats)
    if peer_result:
        want = [[c for cs in t.values() for c in cs] for t in peer_result]
        for our_result, strings, text in zip(our_result, want, (hyps, flat)):
            assert ptb_tokenize(text, as_corpus=True) == strings      # the Java program reads across captions: as one text the two are equal
            wrong = sum(x != y for x, y in zip(our_result, strings))        # and on its own a caption may differ if it ends in a single letter and a dot
            assert wrong <= sum(c.rstrip(' .')[-2:-1] == ' ' for c in text)+2, f'{wrong} captions differ'
    return [row('tokenizer cold', cold, b), row('tokenizer', a, b)]


def ngram_metric(name, refs, hyps, peers, repeats):
    "BLEU, ROUGE-L, CIDEr: first with encoding of the references, then with references prepared before, as every evaluation of a run but its first has them."
    from xmodaler_nb.evaluation.metrics import make_metric
    from xmodaler_nb.evaluation.ngrams import References
    metric, peer = make_metric(name), None
    def ours(): return metric(hyps, References(refs))
    if peers:
        from pycocoevalcap.bleu.bleu import Bleu
        from pycocoevalcap.cider.cider import Cider
        from pycocoevalcap.rouge.rouge import Rouge
        g, h = to_coco(refs), to_coco(hyps)
        scorer = {'BLEU': lambda: Bleu(4), 'ROUGE_L': Rouge, 'CIDEr': Cider}[name]
        def peer(): return scorer().compute_score(g, h)
    a, b, our_result, peer_result = time_alternately(ours, peer, repeats)
    if peer_result: check_equal(list(our_result.image.values()), np.array(peer_result[1]).reshape(len(our_result.image), -1), name)
    prepared = References(refs)
    return [row(name, a, b), row(f'{name} prepared', time_alternately(lambda: metric(hyps, prepared), None, repeats)[0], b)]


def meteor(refs, hyps, others, peers, repeats):
    from xmodaler_nb.evaluation.meteor import Meteor
    from xmodaler_nb.evaluation.metrics import problem
    if problem('METEOR'): return []
    from xmodaler_nb.evaluation.meteor_tables import load_tables
    load_tables()
    load_tables.cache_clear()                                          # the index is on disk; everything else is cold
    cold, (our_result, metric) = timed(lambda: (lambda m: (m(hyps, refs), m))(Meteor()))
    peer_result, peer, cold_peer = None, None, None
    if peers:
        import pycocoevalcap.meteor.meteor as peer_module
        g, h, o = to_coco(refs), to_coco(hyps), to_coco(others)
        cold_peer, (peer_result, java) = timed(lambda: (lambda m: (m.compute_score(g, h), m))(peer_module.Meteor()))
        check_equal(our_result.image['METEOR'], peer_result[1], 'METEOR')
        def peer(): return java.compute_score(g, o)
    def ours():
        metric.hyps.clear()                                            # hypotheses are new in every turn
        return metric(others, refs)
    a, b, our_result, peer_result = time_alternately(ours, peer, repeats)
    if peer_result: check_equal(our_result.image['METEOR'], peer_result[1], 'METEOR')
    return [row('METEOR cold', cold, cold_peer), row('METEOR warm', a, b)]


class PlainCider:
    "CIDEr-D as the usual Python scorers have it: everything is counted again for every hypothesis."
    def __init__(self, df, ref_len): self.df, self.ref_len = df, ref_len

    def counts(self, words):
        out = defaultdict(int)
        for k in range(1, 5):
            for i in range(len(words)-k+1): out[tuple(words[i:i+k])] += 1
        return out

    def vector(self, counts):
        vec, norm, length = [defaultdict(float) for _ in range(4)], [0.]*4, 0
        for g, tf in counts.items():
            n = len(g)-1
            vec[n][g] = float(tf)*(self.ref_len-np.log(max(1., self.df.get(g, 0.))))
            norm[n] += pow(vec[n][g], 2)
            if n == 1: length += tf
        return vec, [np.sqrt(x) for x in norm], length

    def similarity(self, hyp, ref):
        (vh, nh, lh), (vr, nr, lr) = hyp, ref
        out = np.zeros(4)
        for n in range(4):
            for g in vh[n]: out[n] += min(vh[n][g], vr[n][g])*vr[n][g]
            if nh[n] and nr[n]: out[n] /= nh[n]*nr[n]
            out[n] *= np.e**(-(lh-lr)**2/(2*6.**2))
        return out

    def __call__(self, refs, hyps):
        scores = []
        for hyp, rs in zip(hyps, refs):
            our_result = self.vector(self.counts(hyp))
            total = sum(self.similarity(our_result, self.vector(self.counts(r))) for r in rs)
            scores.append(np.mean(total)/len(rs)*10)
        return np.array(scores)


def reward(refs, peers, repeats, entries=500_000, batch=80):
    "80 hypotheses, 5 references each, a large table of document frequencies."
    from xmodaler_nb.scorer import Cider
    words = {}
    ids = [[[words.setdefault(w, len(words)+1) for w in c.split()]+[0] for c in r] for r in refs]
    df, rng = Counter(), random.Random(0)
    plain = PlainCider(df, math.log(max(2, len(ids))))
    for r in ids: df.update({g for c in r for g in plain.counts(c)})
    while len(df) < entries: df[tuple(rng.randrange(1, len(words)+1) for _ in range(rng.randint(2, 4)))] += 1
    scorer = Cider(cider_cached={'document_frequency': dict(df), 'ref_len': plain.ref_len})
    gts = [ids[i % len(ids)] for i in range(batch)]
    scorer.compute_score(gts, [g[0] for g in gts])                     # references are prepared now
    hyps = [[rng.choice(gts[i])[k] if rng.random() < .7 else rng.randrange(1, len(words)) for k in range(rng.randint(3, min(map(len, gts[i]))))] if min(map(len, gts[i])) > 3 else [0] for i in range(batch)]
    a, b, our_result, peer_result = time_alternately(lambda: scorer.compute_score(gts, hyps)[1], (lambda: plain(gts, hyps)) if peers else None, 5*repeats)
    check_equal(our_result, peer_result, 'CIDEr-D reward')
    return [row('CIDEr-D reward', a, b, entries=len(df))]


def measure_in_subprocess(args):
    "Rows of a process of its own: cold, and with its own peak memory."
    cmd = [sys.executable, __file__, '--here', '--json', *args]
    return json.loads(subprocess.run(cmd, check=True, stdout=subprocess.PIPE, env={**os.environ, 'PYTHONPATH': os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')])}).stdout)


def whole(raw_refs, raw_hyps):
    "`evaluate` from raw captions, all metrics, nothing else in the process: seconds and peak memory; no other program may start."
    def refuse(*a, **k): raise RuntimeError('a metric started a program')
    subprocess.Popen.__init__ = refuse
    from xmodaler_nb.evaluation import evaluate
    seconds, result = timed(lambda: evaluate(dict(enumerate(raw_hyps)), dict(enumerate(raw_refs))))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/2**20
    return [dict(name='evaluate, all metrics', ours_s=seconds, peer_s=None, ratio=None, target=None, peak_gb=peak, skipped=result.skipped)]


def build():
    "Seconds and peak memory of compiling METEOR's paraphrase table, which happens once."
    import tempfile
    from xmodaler_nb.evaluation.meteor_tables import PARAPHRASES, load_index, meteor_folder
    with tempfile.TemporaryDirectory() as d: seconds, _ = timed(lambda: load_index(meteor_folder()/PARAPHRASES, d))
    return [dict(name='METEOR index, once', ours_s=seconds, peer_s=None, ratio=None, target=None, peak_gb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/2**20)]


PARTS = ('tokenizer', 'BLEU', 'ROUGE_L', 'CIDEr', 'METEOR', 'reward', 'whole', 'build')


def measure(part, args):
    "Rows of one part, in this process."
    if part == 'build': return build()
    raw = captions(args.images, args.smoke)
    hyps, others, peers = hypotheses(raw), hypotheses(raw, 2), not args.smoke
    if part == 'whole': return whole(raw, hyps)
    if part == 'tokenizer': return tokenizer(raw, hyps, peers, args.repeats)
    from xmodaler_nb.tokenization import ptb_tokenize
    refs = [ptb_tokenize(r) for r in raw]
    hyps, others = ptb_tokenize(hyps), ptb_tokenize(others)
    if part == 'reward': return reward(refs, peers or args.smoke, args.repeats, 2_000 if args.smoke else 500_000)
    if part == 'METEOR': return meteor(refs, hyps, others, peers, args.repeats)
    return ngram_metric(part, refs, hyps, peers, args.repeats)


def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--images', type=int, default=5000)
    p.add_argument('--repeats', type=int, default=3)
    p.add_argument('--only', nargs='+', choices=PARTS, default=PARTS)
    p.add_argument('--smoke', action='store_true', help='made-up captions, no peers but the plain reward scorer')
    p.add_argument('--json', action='store_true', help='print the rows as one JSON list and nothing else')
    p.add_argument('--here', action='store_true', help='in this process (each part has its own otherwise)')
    args = p.parse_args(argv)
    rows = []
    for part in args.only:
        passed = ['--only', part, '--images', str(args.images), '--repeats', str(args.repeats), *['--smoke']*args.smoke]
        new = measure(part, args) if args.here else measure_in_subprocess(passed)
        rows += new
        for r in new if not args.json else ():
            peer, ratio = (f"{r['peer_s']:9.3f}", f"{r['ratio']:8.1f}") if r['peer_s'] else (' '*9, ' '*8)
            print(f"{r['name']:24}{r['ours_s']:9.3f}{peer}{ratio}{'' if r['target'] is None else '   target '+str(r['target'])}{'   peak %.2f GB' % r['peak_gb'] if 'peak_gb' in r else ''}", flush=True)
    if args.json: print(json.dumps(rows))
    return rows


if __name__ == '__main__': main()
