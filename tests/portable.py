"""Run notebooks and pytest as another processor, another number of threads, or other seeds would.
No claim may hang on how one processor rounds, or on one draw of random numbers.

    python tests/portable.py                                     # every variant, everything: hours
    python tests/portable.py --variant avx2 nbs/14_engine        # one variant, some notebooks
    python tests/portable.py --variant today --no-pytest nbs/01_tour"""
import argparse
import datetime
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VARIANTS = {'default': {'ATEN_CPU_CAPABILITY': 'default'}, 'avx2': {'ATEN_CPU_CAPABILITY': 'avx2'}, 'sse41': {'ONEDNN_MAX_CPU_ISA': 'SSE41'},
            'one-thread': {'OMP_NUM_THREADS': '1'}, 'two-threads': {'OMP_NUM_THREADS': '2'},
            'seeds-1': {'XMODALER_SHIFT_EVERY_SEED': '1'}, 'seeds-2': {'XMODALER_SHIFT_EVERY_SEED': '2'}}
SHIFTED = ROOT/'tests'/'shifted'   # its sitecustomize.py shifts every seed of a process that has the variable above


def environment(variant):
    "The variables under which a variant runs."
    path = os.pathsep.join(filter(None, [str(SHIFTED), os.environ.get('PYTHONPATH')]))
    return {'OMP_NUM_THREADS': '1', **os.environ, **VARIANTS[variant], **({'PYTHONPATH': path} if variant.startswith('seeds') else {})}


def chosen(name, day=None):
    "Names of the variants: one, all, or today's."
    if name == 'all': return list(VARIANTS)
    if name == 'today': return [list(VARIANTS)[(day or datetime.date.today().toordinal()) % len(VARIANTS)]]
    return [name]


def commands(notebooks, pytest, workers):
    "What a variant runs."
    bin_dir = Path(sys.executable).parent
    out = [[str(bin_dir/'nbdev_test'), '--path', p, '--n_workers', str(workers)] for p in notebooks or ['nbs']]
    return out + ([[sys.executable, '-m', 'pytest', '-q', '-m', 'not slow and not cuda', 'tests']] if pytest else [])


def main(argv=None):
    "Run; name every part that failed; 0 if none did."
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('notebooks', nargs='*', help='notebooks or folders of them; default: all')
    p.add_argument('--variant', default='all', choices=[*VARIANTS, 'all', 'today'])
    p.add_argument('--no-pytest', action='store_true', help='notebooks only')
    p.add_argument('--workers', type=int, default=1, help='notebooks at a time')
    args, failed = p.parse_args(argv), []
    for name in chosen(args.variant):
        for command in commands(args.notebooks, not args.no_pytest, args.workers):
            what, start = f"{name}: {' '.join(command[1:])}", time.time()
            code = subprocess.run(command, cwd=ROOT, env=environment(name)).returncode
            print(f"{'ok' if not code else 'FAILED'} {what} ({time.time()-start:.0f} s)", flush=True)
            if code: failed.append(what)
    print('\n'.join(['failed:', *failed]) if failed else 'all variants passed')
    return int(bool(failed))


if __name__ == '__main__': sys.exit(main())
