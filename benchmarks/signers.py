"""Signs of real people: unknown signers one by one, the ideas of the model, random splits; --ship trains the model in configs.

python benchmarks/signers.py [FOLDER with sequences.npz] [--quick] [--ship] [--evaluate FILE.npz]
"""
import argparse, os, time
from pathlib import Path
import numpy as np
from xmodaler_nb.asl.clips import load_clips
from xmodaler_nb.asl.data.resample import prepare_clips
from xmodaler_nb.asl.signer.machine import SignerModel
from xmodaler_nb.asl.signer.numbers import compare_ideas, evaluate, leave_signers_out, random_splits, ridge_baseline
from xmodaler_nb.asl.signer.numbers import signer_machine, signer_table, six_frames

ROOT = Path(__file__).resolve().parents[1]


def options():
    p = argparse.ArgumentParser(description=__doc__)
    default = Path(os.environ.get('XMODALER_DATA', ROOT.parent/'shared'/'data'))/'isolated_signs'
    p.add_argument('folder', nargs='?', default=default, help='holds sequences.npz and the label map')
    p.add_argument('--quick', action='store_true', help='only the table of signers')
    p.add_argument('--ship', action='store_true', help='train on all signers and write configs/asl/signers')
    p.add_argument('--evaluate', metavar='FILE', help='only: the shipped model on the clips of this file')
    return p.parse_args()


def tables(clips, quick):
    x, six, y, who = prepare_clips(clips), six_frames(clips), clips.sign, clips.participant
    chosen = dict(ridge=leave_signers_out(lambda a, b, _, new: ridge_baseline(a, b, new), six, y, who),
                  signer=leave_signers_out(signer_machine(clips.names), x, y, who))
    print('One signer left out\n' + signer_table(chosen, y, who))
    if quick: return
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
    if not file.is_file(): return print(f'{file} is not there: nothing is measured')
    clips = load_clips(file)
    if args.ship: ship(clips)
    else: tables(clips, args.quick)
    print(f'{time.time() - start:.0f} s')


if __name__ == '__main__': main()
