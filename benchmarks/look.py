"""How long does a drawing of `xmodaler_nb.look` take?

    python benchmarks/look.py            # 36 regions, 20 words, a picture of 640 × 480
    python benchmarks/look.py --small    # a smoke test

Medians in seconds of processor time; `peer_s` is the limit that is promised, 50 ms, `ratio` = limit / ours, so that 1 or more keeps the promise.
"""
import argparse
import json
import statistics
import time
import numpy as np
from xmodaler_nb.evaluation.cider import DocumentFrequency
from xmodaler_nb.look.render import render_attention, render_attention_strip, render_regions
from xmodaler_nb.look.scores import render_credit, render_links

LIMIT_S = .050


def drawings(regions, words, size):
    "Name → a function without arguments."
    rng = np.random.default_rng(0)
    corner, side = rng.uniform(0, .6, (regions, 2)), rng.uniform(.1, .4, (regions, 2))
    boxes = np.concatenate([corner, corner + side], 1)*np.array([size[1], size[0]]*2)
    picture = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    said = [f'word{i % 7}' for i in range(words)]
    weights = rng.dirichlet(np.full(regions, .3), words)
    refs = [' '.join(f'word{(i*k) % 9}' for i in range(words)) for k in range(1, 6)]
    df, same = DocumentFrequency.from_references([refs, refs[1:]]), [(i, i) for i in range(words)]
    return {'attention over a picture': lambda: render_attention(picture, boxes, said, weights), 'words × regions': lambda: render_attention_strip(said, weights),
            'numbered regions': lambda: render_regions(picture, boxes), 'n-grams by what they earn': lambda: render_credit(' '.join(said), refs, df),
            'lines between words': lambda: render_links(said, refs[0].split(), same)}


def timed(f):
    begun = time.process_time()
    f()
    return time.process_time() - begun


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--repeats', type=int, default=20)
    parser.add_argument('--small', action='store_true', help='a smoke test')
    parser.add_argument('--json', action='store_true', help='print the rows as one JSON list and nothing else')
    args = parser.parse_args(argv)
    if args.small: args.repeats = 1
    rows = []
    for name, f in drawings(*((4, 3, (48, 64)) if args.small else (36, 20, (480, 640)))).items():
        f()
        s = statistics.median(timed(f) for _ in range(args.repeats))
        rows.append(dict(name=name, ours_s=s, peer_s=LIMIT_S, ratio=LIMIT_S/s, target=1.))
    if args.json: return print(json.dumps(rows))
    for r in rows: print(f"{r['name']:28}{1000*r['ours_s']:8.1f} ms   limit {1000*r['peer_s']:.0f} ms   ratio {r['ratio']:.1f}")


if __name__ == '__main__': main()
