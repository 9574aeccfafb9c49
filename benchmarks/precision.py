"""What do weights of one or two bytes gain, and what do they cost?

    python benchmarks/precision.py                                    # beam 5 at the published sizes, one picture and 32, against our float32
    python benchmarks/precision.py --what changes                     # small models trained on scenes (minutes): how many of 300 captions change, and CIDEr
    python benchmarks/precision.py --what changes --photos FOLDER     # the same for the model that comes with the library, FOLDER like shared/data/flickr8k
    python benchmarks/precision.py --what training                    # a training step with products in bf16, weights in float32
    python benchmarks/precision.py --small                            # a smoke test

Speed: seconds are processor seconds (`--wall`: wall clock), medians of runs taken in turns; `ratio` = float32 / packed. `products` are the seconds of one run that were spent in packed products alone, `load_s` the time
that packing takes, `mb` the weights afterwards. `upstream` multiplies the ratio by what our float32 gained over X-modaler's own code when that was timed (beam 5, 32 pictures: Up-Down 1.9, Transformer 4.9; training
2.1 each): derived, not measured. Changes: `ours_s` and `peer_s` are the seconds of decoding, `changed` counts captions, `moved` is the difference in points of CIDEr.
"""
import argparse
import contextlib
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
import torch
from xmodaler_nb.config import config_file
from xmodaler_nb.evaluation.split import decode as captions_of, read_references, score_split
from xmodaler_nb.modeling import build_model, load_cfg_file
from xmodaler_nb.modeling.layers.low_precision import PRECISIONS, lower_precision, weight_bytes, why_not
import decode
import floor
import plain

UPSTREAM = dict(updown=1.9, transformer=4.9)
UPSTREAM_TRAINING = dict(updown=2.1, transformer=2.1)
TARGETS = dict(updown=4., transformer=8.)             # times X-modaler
TARGET_TRAINING, MOVED = 3.5, .5
ZOO = {'updown': 'Up-Down', 'transformer': 'Transformer'}


def available(names): return [p for p in names if p == 'float32' or not why_not(p)]

def clocked(f, clock=time.process_time):
    start = clock()
    f()
    return clock() - start


# ---- speed -----------------------------------------------------------------------------------------------------------------------------------------

def products_s(f, precision, clock):
    "Seconds of one run that are spent in packed products."
    kind, total = PRECISIONS[precision], [0.]
    call = kind.__call__
    def timed_call(*args):
        start = clock()
        out = call(*args)
        total[0] += clock() - start
        return out
    kind.__call__ = timed_call
    try: f()
    finally: kind.__call__ = call
    return total[0]


def speed(args):
    "Rows: family, pictures, precision."
    for name in args.families:
        for images in args.images:
            cfg, model, batch = decode.make(name, images, args.small)
            functions, load, packed = dict(float32=decode.ours(cfg, model, batch, args.beam)), {}, {}
            for p in available(args.precision):
                packed[p] = decode.make(name, images, args.small)[1]
                load[p] = clocked(lambda: lower_precision(packed[p], p))
                functions[p] = decode.ours(cfg, packed[p], batch, args.beam)
            s = decode.timed(functions, args.repeats, args.clock)
            for p in packed:
                with torch.inference_mode(): inside = products_s(functions[p], p, args.clock)
                more = dict(upstream=s['float32']/s[p]*UPSTREAM[name], target=TARGETS[name]) if images == 32 and not args.small and name in UPSTREAM and args.beam == 5 else {}
                yield decode.row(f'{name} beam {args.beam}, {images} pictures, {p}', s[p], s['float32'], products=inside, load_s=load[p], mb=weight_bytes(packed[p])/2**20, mb_float32=weight_bytes(model)/2**20, **more)


# ---- captions that change --------------------------------------------------------------------------------------------------------------------------

def compared(name, plain_said, said, seconds, plain_seconds, references):
    "A row: what changed."
    points = {k: 100*score_split(c, references)[0]['CIDEr'] for k, c in (('float32', plain_said), ('packed', said))}
    changed = sum(said[i] != plain_said[i] for i in said)
    return decode.row(name, seconds, plain_seconds, changed=changed, of=len(said), cider=points['float32'], moved=points['packed'] - points['float32'], allowed=MOVED)


def scenes(args):
    "Rows: small models, trained here on drawn scenes."
    from xmodaler_nb.commands.models import zoo_config
    from xmodaler_nb.commands.experiment import run_training
    from xmodaler_nb.own.scenes import make_scenes
    counts = dict(train=40, val=5, test=10) if args.small else dict(train=1500, val=20, test=300)
    with tempfile.TemporaryDirectory() as tmp:
        data = make_scenes(Path(tmp)/'scenes', counts=counts, variants=())
        for name in args.families:
            with open(os.devnull, 'w') as devnull, contextlib.redirect_stdout(devnull): trainer, _ = run_training(zoo_config(ZOO[name], data, Path(tmp)/name, args.small))
            references, loader, said = read_references(trainer.cfg.INFERENCE.TEST_ANNFILE), trainer.test_data_loader, {}
            weights = trainer.model.state_dict()
            seconds = {}
            for p in ['float32', *available(args.precision)]:
                model = build_model(trainer.cfg).eval()
                model.load_state_dict(weights)
                lower_precision(model, p)
                seconds[p] = clocked(lambda: said.update({p: dict(captions_of(model, loader, 'beam'))}), args.clock)
                if p != 'float32': yield compared(f'{name} trained on scenes, {p}', said['float32'], said[p], seconds[p], seconds['float32'], references)


def photographs(args):
    "Rows: the model that comes with the library, on the first photographs of a split."
    from xmodaler_nb.captioner import Captioner
    from xmodaler_nb.commands.photos import split_inputs
    inputs, references = split_inputs(args.photos, args.split)
    ids = list(inputs)[:args.count]
    said, seconds = {}, {}
    for p in ['float32', *available(args.precision)]:
        c = Captioner.from_pretrained('photos', precision=p)
        seconds[p] = clocked(lambda: said.update({p: dict(zip(ids, c.caption([inputs[i] for i in ids])))}), args.clock)
        if p != 'float32': yield compared(f'photos, {p}', said['float32'], said[p], seconds[p], seconds['float32'], {i: references[i] for i in ids})


def changes(args): return photographs(args) if args.photos else scenes(args)


# ---- training --------------------------------------------------------------------------------------------------------------------------------------

def training(args):
    "Rows: family."
    for name in args.families:
        sizes = plain.SMALL + plain.SMALL_MORE.get(name, []) if args.small else []
        cfg = load_cfg_file(config_file(plain.FAMILIES[name]), ['MODEL.DEVICE', 'cpu', 'INFERENCE.VOCAB', '', *sizes])
        full, half = plain.Step(cfg, False), plain.Step(cfg, False, half=True)
        full(), half()
        alone = floor.Floor(floor.record(half, half.model))
        alone()
        rounds = [[clocked(f, args.clock) for f in (full, half, alone)] for _ in range(args.repeats)]
        a, b, c = map(statistics.median, zip(*rounds))
        more = dict(upstream=a/b*UPSTREAM_TRAINING[name], target=TARGET_TRAINING) if name in UPSTREAM_TRAINING and not args.small else {}
        yield decode.row(f'{name} training, bf16', b, a, products=c, **more)


WHAT = dict(speed=speed, changes=changes, training=training)

def show(r):
    "One line."
    more = {k: r[k] for k in ('products', 'load_s', 'mb', 'mb_float32', 'upstream', 'target', 'changed', 'of', 'cider', 'moved') if k in r}
    return f"{r['name']:46}{r['ours_s']:9.3f}{r['peer_s']:9.3f}{r['ratio']:7.2f}   " + ', '.join(f'{k} {v:.3g}' for k, v in more.items())


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('families', nargs='*', default=['updown', 'transformer'], help=', '.join(plain.FAMILIES))
    parser.add_argument('--what', default='speed', choices=WHAT)
    parser.add_argument('--precision', nargs='+', default=['int8', 'bf16', 'fp16'], choices=list(PRECISIONS)[1:])
    parser.add_argument('--images', type=int, nargs='+', default=[1, 32])
    parser.add_argument('--beam', type=int, default=5)
    parser.add_argument('--photos', default='', help='folder with photographs\' features and captions, for --what changes')
    parser.add_argument('--split', default='test', choices=['train', 'val', 'test'], help='whose photographs, with --photos')
    parser.add_argument('--count', type=int, default=300, help='of how many photographs, with --photos')
    parser.add_argument('--repeats', type=int, default=3)
    parser.add_argument('--wall', action='store_true', help='wall clock instead of processor time')
    parser.add_argument('--small', action='store_true', help='tiny sizes: a smoke test')
    parser.add_argument('--json', action='store_true', help='print the rows as one JSON list and nothing else')
    args = parser.parse_args(argv)
    args.clock = time.perf_counter if args.wall else time.process_time
    if not args.json: print(f"{'':46}{'ours s':>9}{'peer s':>9}{'ratio':>7}   ({torch.get_num_threads()} threads)")
    rows = []
    for r in WHAT[args.what](args):
        rows.append(r)
        if not args.json: print(show(r), flush=True)
    if args.json: print(json.dumps(rows))


if __name__ == '__main__': main()
