"""Signs of real people: unknown signers one by one, the ideas of the model, random splits; --ship trains the model in configs.

python benchmarks/signers.py [FOLDER with sequences.npz] [--quick] [--small] [--json] [--ship] [--evaluate FILE.npz]

With --json one row on the standard output: seconds and accuracy (mean over signers) of both ways when every signer is left
out once, ours and the ridge regression on six frames; the mean that could be reached (signs that another signer has, too, and
signs alike: the label check decides) and both accuracies on these clips alone. --small takes made-up signers instead of the file.
"""
import argparse, json, os, time
from pathlib import Path
import numpy as np
from xmodaler_nb.asl import metrics
from xmodaler_nb.asl.clips import load_clips
from xmodaler_nb.asl.data.resample import prepare_clips
from xmodaler_nb.asl.signer.machine import SignerModel
from xmodaler_nb.asl.signer.numbers import compare_ideas, evaluate, leave_signers_out, possible, random_splits, ridge_baseline
from xmodaler_nb.asl.signer.numbers import signer_machine, signer_table, six_frames
from xmodaler_nb.asl.signs import make_signs

ROOT = Path(__file__).resolve().parents[1]


def options():
    p = argparse.ArgumentParser(description=__doc__)
    default = Path(os.environ.get('XMODALER_DATA', ROOT.parent/'shared'/'data'))/'isolated_signs'
    p.add_argument('folder', nargs='?', default=default, help='holds sequences.npz and the label map')
    p.add_argument('--quick', action='store_true', help='only the table of signers')
    p.add_argument('--small', action='store_true', help='made-up signers: a smoke test')
    p.add_argument('--json', action='store_true', help='print one JSON list of rows and nothing else')
    p.add_argument('--ship', action='store_true', help='train on all signers and write configs/asl/signers')
    p.add_argument('--evaluate', metavar='FILE', help='only: the shipped model on the clips of this file')
    return p.parse_args()


def left_out(clips):
    "Both ways with every signer left out once: {way: chosen signs}, {way: processor seconds}."
    y, who, chosen, seconds = clips.sign, clips.participant, {}, {}
    ways = dict(ridge=(lambda a, b, _, new: ridge_baseline(a, b, new), six_frames(clips)),
                signer=(signer_machine(clips.names), prepare_clips(clips)))
    for name, (model_of, x) in ways.items():
        start = time.process_time()
        chosen[name] = leave_signers_out(model_of, x, y, who)
        seconds[name] = time.process_time() - start
    return chosen, seconds


def row(clips):
    "What --json prints."
    chosen, seconds = left_out(clips)
    mean = {k: float(np.mean(list(metrics.per_signer(c, clips.sign, clips.participant).values()))) for k, c in chosen.items()}
    return dict(name='one signer left out', ours_s=seconds['signer'], peer_s=seconds['ridge'], ratio=seconds['ridge']/seconds['signer'],
                ours_accuracy=mean['signer'], peer_accuracy=mean['ridge'], **reachable(clips, chosen))


def reachable(clips, chosen):
    "The mean that could be reached, and what each way reaches on the clips that can be recognised."
    y, who = clips.sign, clips.participant
    fine = possible(y, who, SignerModel(clips.names).fit(prepare_clips(clips), y, who).doubted)
    most = float(np.mean([fine[who == s].mean() for s in np.unique(who)]))
    of = {k: float(np.mean(list(metrics.per_signer(c[fine], y[fine], who[fine]).values()))) for k, c in chosen.items()}
    return dict(reachable=most, ours_of_reachable=of['signer'], peer_of_reachable=of['ridge'])


def tables(clips, quick):
    y, who = clips.sign, clips.participant
    print('One signer left out\n' + signer_table(left_out(clips)[0], y, who))
    if quick: return
    x, six = prepare_clips(clips), six_frames(clips)
    print('\nWhat each idea brings')
    for k, v in compare_ideas(x, y, who, clips.names).items(): print(f'{k:24} {v:.1%}')
    print('\nRandom split, 80/20, three seeds')
    for k, v in random_splits(x, six, y, clips.names).items(): print(f'{k:8}', *(f'{a:.1%}' for a in v), f'mean {np.mean(v):.1%}')


def ship(clips):
    model = SignerModel(clips.names)
    model.fit(prepare_clips(clips), clips.sign, clips.participant)
    print('left out:', [(s, clips.names[c]) for s, c in model.doubted])
    folder = model.save_pretrained(ROOT/'configs'/'asl'/'signers')
    print(folder, f"{(folder/'model.safetensors').stat().st_size/1e6:.2f} MB")


def main():
    args, start = options(), time.time()
    if args.evaluate: return print(evaluate(args.evaluate))
    file = Path(args.folder)/'sequences.npz'
    if not args.small and not file.is_file(): return print('[]' if args.json else f'{file} is not there: nothing is measured')
    clips = make_signs(signs=3, signers=3, takes=2) if args.small else load_clips(file)
    if args.json: return print(json.dumps([row(clips)]))
    if args.ship: ship(clips)
    else: tables(clips, args.quick)
    print(f'{time.time() - start:.0f} s')


if __name__ == '__main__': main()
