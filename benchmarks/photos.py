"""How long does a user of the model `photos` wait?

    python benchmarks/photos.py            # from process start to the sentence; a picture after that, with 1 and 2 threads
    python benchmarks/photos.py --parts    # also: how a picture's time divides into reading, features and words
    python benchmarks/photos.py --small    # a smoke test

Each number is a median of processes or of pictures, in seconds of wall clock; `peer_s` is the limit that is promised, `ratio` = limit / ours, so that 1 or more keeps the promise. Pictures are the photographs of
`nbs/images`, each from its file to its sentence, one at a time, beam of 3. Measure on a machine that does nothing else. Needs the extra `photos`.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PICTURES = [str(ROOT/'nbs'/'images'/f'{name}.jpg') for name in ('dog', 'sheep', 'horses', 'cat')]
START_S, PICTURE_S = 5., .150

ONE = "import sys; from xmodaler_nb.captioner import Captioner; print(Captioner.from_pretrained('photos').caption(sys.argv[1]), flush=True)"


def start():
    "Seconds from the start of a process to its sentence."
    begun = time.perf_counter()
    with subprocess.Popen([sys.executable, '-c', ONE, PICTURES[0]], stdout=subprocess.PIPE, text=True) as process:
        sentence = process.stdout.readline()
        seconds = time.perf_counter() - begun
    assert len(sentence.split()) > 3 and process.returncode == 0, sentence
    return seconds


def timed(f):
    begun = time.perf_counter()
    f()
    return time.perf_counter() - begun


def pictures(repeats):
    "Seconds per picture, and of its parts; called in a process of its own."
    from xmodaler_nb.captioner import Captioner
    from xmodaler_nb.datasets.pictures import load_picture
    c = Captioner.from_pretrained('photos')
    rows = {p: c.extractor(p)['features'] for p in PICTURES}
    parts = dict(picture=c.caption, read=load_picture, features=c.extractor, words=lambda p: c.caption(rows[p]))
    for p in PICTURES: c.caption(p)
    return {name: statistics.median(timed(lambda: f(p)) for _ in range(repeats) for p in PICTURES) for name, f in parts.items()}


def in_process(threads, repeats):
    "`pictures`, with so many threads."
    done = subprocess.run([sys.executable, __file__, '--repeats', str(repeats), '--threads', str(threads)], text=True, check=True, capture_output=True,
                          env={**os.environ, 'OMP_NUM_THREADS': str(threads)})
    return json.loads(done.stdout.splitlines()[-1])


def row(name, seconds, limit): return dict(name=name, ours_s=seconds, peer_s=limit, ratio=limit/seconds, target=1.)


def measure(args):
    rows = [row('process start to sentence', statistics.median(start() for _ in range(args.starts)), START_S)]
    for threads in (1, 2):
        seconds = in_process(threads, args.repeats)
        rows.append(row(f"a picture, {threads} thread{'s'*(threads > 1)}", seconds['picture'], PICTURE_S))
        if args.parts: rows += [row(f'  {name}, of these', s, PICTURE_S) for name, s in seconds.items() if name != 'picture']
    return rows


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--starts', type=int, default=5, help='processes')
    parser.add_argument('--repeats', type=int, default=10, help='times each picture is described')
    parser.add_argument('--parts', action='store_true', help='rows for reading, features (reading included) and words')
    parser.add_argument('--small', action='store_true', help='a smoke test')
    parser.add_argument('--threads', type=int, help=argparse.SUPPRESS)
    parser.add_argument('--json', action='store_true', help='print the rows as one JSON list and nothing else')
    args = parser.parse_args(argv)
    if args.threads: return print(json.dumps(pictures(args.repeats)))
    if args.small: args.starts = args.repeats = 1
    rows = measure(args)
    if args.json: return print(json.dumps(rows))
    for r in rows: print(f"{r['name']:28}{1000*r['ours_s']:8.0f} ms   limit {1000*r['peer_s']:5.0f} ms   ratio {r['ratio']:.2f}")


if __name__ == '__main__': main()
