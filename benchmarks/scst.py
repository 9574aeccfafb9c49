"""Does self-critical training raise held-out CIDEr by more than its own seed noise?

    python benchmarks/scst.py --control                        # scenes: Up-Down and Transformer, one XE checkpoint each, three seeds
    python benchmarks/scst.py ucm --control --data ../shared/data/ucm_captions
    python benchmarks/scst.py rsicd --control --data ../shared/data/rsicd
    python benchmarks/scst.py scenes/updown --xe-only          # only the checkpoint to start from
    python benchmarks/scst.py --table                          # what is finished so far
    python benchmarks/scst.py --tiny                           # a smoke test

Each training is a run of its own under --output-dir, and is not repeated if it is there. Small models, 64 images per step, a few minutes a run on one core.
The control goes on from the same checkpoint with cross-entropy, for as many steps on the same images: what more training alone would have given.
Scores are CIDEr-D on the test split, which neither training sees (or with --validation on the validation split); the settings below were chosen on the validation split. The draws are made at temperature 1/2:
at 1 a model fresh from cross-entropy says too much at random, and its greedy captions gain little or lose (nbs/14_engine/62_self_critical.ipynb).
"""
import argparse, contextlib, json, logging, math, statistics, sys, time
from pathlib import Path
from xmodaler_nb.modeling import load_cfg_file
from xmodaler_nb.datasets.layout import Folder
from xmodaler_nb.own.real import write_real_dataset
from xmodaler_nb.own.scenes import make_scenes
from xmodaler_nb.engine.build import build_engine
from xmodaler_nb.evaluation.split import decode, read_references, score_split
from xmodaler_nb.utils.env import seed_all_rng
from xmodaler_nb.utils.events import truncate_jsonl

COMMON = ['MODEL.DEVICE', 'cpu', 'DATALOADER.NUM_WORKERS', 0, 'SCHEDULED_SAMPLING.START_EPOCH', 999, 'SOLVER.EVAL_PERIOD', 999, 'SOLVER.CHECKPOINT_PERIOD', 999,
          'DATALOADER.TEST_BATCH_SIZE', 100, 'DECODE_STRATEGY.BEAM_SIZE', 3, 'INFERENCE.TEST_EVAL_START', 9999, 'INFERENCE.VAL_EVAL_START', 9999]
UPDOWN = ['MODEL.DECODER_DIM', 144, 'MODEL.ENCODER_DIM', 144, 'MODEL.TOKEN_EMBED.DIM', 72, 'MODEL.VISUAL_EMBED.OUT_DIM', 144, 'MODEL.UPDOWN.ATT_EMBED_SIZE', 72,
          'MODEL.PRED_DROPOUT', .1, 'MODEL.TOKEN_EMBED.DROPOUT', .1, 'MODEL.VISUAL_EMBED.DROPOUT', .1]
TRANSFORMER = ['MODEL.DECODER_DIM', 128, 'MODEL.ENCODER_DIM', 128, 'MODEL.TOKEN_EMBED.DIM', 128, 'MODEL.VISUAL_EMBED.OUT_DIM', 128, 'MODEL.PRED_DROPOUT', .1,
               'MODEL.VISUAL_EMBED.DROPOUT', .1, 'MODEL.BERT.HIDDEN_SIZE', 128, 'MODEL.BERT.INTERMEDIATE_SIZE', 256, 'MODEL.BERT.NUM_ATTENTION_HEADS', 4,
               'MODEL.BERT.NUM_HIDDEN_LAYERS', 2, 'MODEL.BERT.NUM_GENERATION_LAYERS', 2]
MODELS = dict(updown=('image_caption/updown/updown.yaml', UPDOWN), transformer=('image_caption/transformer/transformer.yaml', TRANSFORMER))
XE = dict(updown=['SOLVER.BASE_LR', .005, 'SOLVER.GRAD_CLIP', .1, 'SOLVER.GRAD_CLIP_TYPE', 'norm', 'DATALOADER.TRAIN_BATCH_SIZE', 25], transformer=['SOLVER.BASE_LR', .0015, 'SOLVER.GRAD_CLIP', 1., 'SOLVER.GRAD_CLIP_TYPE', 'norm'])
XE_COMMON = ['DATALOADER.TRAIN_BATCH_SIZE', 32, 'DATALOADER.SEQ_PER_SAMPLE', 3, 'LR_SCHEDULER.NAME', 'WarmupCosine', 'LR_SCHEDULER.WARMUP', 1, 'LR_SCHEDULER.MIN_LR', .01,
             'LOSSES.NAMES', ['CrossEntropy'], 'SOLVER.EPOCH', 8]
XE_DATA = {('scenes', 'transformer'): ['SOLVER.EPOCH', 7], ('ucm', 'updown'): ['SOLVER.EPOCH', 12, 'DATALOADER.TRAIN_BATCH_SIZE', 32], ('ucm', 'transformer'): ['SOLVER.EPOCH', 10]}
AFTER = ['DATALOADER.TRAIN_BATCH_SIZE', 64, 'DATALOADER.SEQ_PER_SAMPLE', 4, 'LR_SCHEDULER.NAME', 'WarmupCosine', 'LR_SCHEDULER.WARMUP', 0, 'LR_SCHEDULER.MIN_LR', .05, 'SOLVER.GRAD_CLIP', 1., 'SOLVER.GRAD_CLIP_TYPE', 'norm', 'LOSSES.NAMES', ['CrossEntropy'],
         'RL.SAMPLE_MODE', 'eval', 'DECODE_STRATEGY.TEMPERATURE', .5, 'RL.CHECK', 'error', 'SCORER.NAME', 'BaseScorer', 'SCORER.TYPES', ['Cider'], 'SOLVER.WRITE_PERIOD', 1]
RATE = dict(updown=.0004, transformer=.0003)
SEEDS, EPOCHS = (1, 2, 3), dict(scenes=2, ucm=4, rsicd=1)      # 78, 104 and 136 steps


def data_options(data, out, folder, tiny):
    "Write the data set if it is not there; the options that point a config at it."
    if data == 'scenes':
        counts = dict(train=32, val=4, test=8) if tiny else None
        return make_scenes(out/('scenes-tiny' if tiny else 'scenes'), 'demo', counts=counts).cfg_overrides
    target_folder = out/f'{data}-data'
    if not (target_folder/'report.json').exists(): write_real_dataset(folder, target_folder)
    return Folder(target_folder).cfg_overrides


def train_and_score(cfg, seed, steps=None):
    "Build, load MODEL.WEIGHTS, train, score the test split."
    seed_all_rng(seed)
    trainer = build_engine(cfg)
    trainer.resume_or_load(resume=False)
    start = time.process_time()
    trainer.train(0, steps)
    seconds = time.process_time() - start
    return dict(after=scores_of(trainer, 'test'), validation=scores_of(trainer, 'val'), steps=steps or trainer.max_iter, cpu_seconds=seconds)


def scores_of(trainer, split):
    refs, out = read_references(trainer.cfg.INFERENCE[f'{split.upper()}_ANNFILE']), {}
    for name in ('greedy', 'beam'):
        captions = dict(decode(trainer.model, getattr(trainer, f'{split}_data_loader'), name))
        out[name] = score_split(captions, refs)[0]
        out[name]['length'] = statistics.mean(len(s.split()) for s in captions.values())
    return out


def run_once(folder, work):
    "Do the work unless its result is there."
    file = folder/'scores.json'
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        truncate_jsonl(folder/'events.jsonl', -1)
        file.write_text(json.dumps(work(), indent=1))
    return json.loads(file.read_text())


def xe_run(data, model, opts, out, tiny=False):
    "The cross-entropy checkpoint everything starts from."
    config, sizes = MODELS[model]
    folder = out/f'{data}-{model}-xe'
    def work():
        epochs = ['SOLVER.EPOCH', 1] if tiny else XE_DATA.get((data, model), [])
        return train_and_score(load_cfg_file(config, [*opts, *COMMON, *sizes, *XE_COMMON, *XE[model], *epochs, 'OUTPUT_DIR', str(folder), 'SEED', 1]), 1)
    return run_once(folder, work), folder/'model_final'


def continued_run(data, model, opts, out, seed, engine='RLTrainer', tiny=False):
    "From that checkpoint: rewards (RLTrainer), or the control, more cross-entropy (DefaultTrainer)."
    config, sizes = MODELS[model]
    folder = out/f"{data}-{model}-{'rl' if engine == 'RLTrainer' else 'control'}{seed}"
    def work():
        more = ['DATALOADER.TRAIN_BATCH_SIZE', 12, 'RL.CHECK', 'off'] if tiny else []
        return train_and_score(load_cfg_file(config, [*opts, *COMMON, *sizes, *AFTER, 'SOLVER.EPOCH', EPOCHS[data], 'ENGINE.NAME', engine, 'SOLVER.BASE_LR', RATE[model], *more,
                                              'MODEL.WEIGHTS', str(out/f'{data}-{model}-xe'/'model_final'), 'OUTPUT_DIR', str(folder), 'SEED', seed]), seed, 2 if tiny else None)
    return run_once(folder, work)


def read_entry(file, key):
    "One entry of a run's scores."
    scores = json.loads(file.read_text())
    if key not in scores: raise SystemExit(f'{file}: has no {key!r} (it has: {", ".join(scores)}); it is of an older version of this script: remove its folder to train again')
    return scores[key]


def table(out, split='after'):
    "One row per data set, model and decoder: the start, three seeds, the control, on the test split (`after`) or on `validation`; `ours_s`, `peer_s`: processor seconds of a run with rewards and of a control."
    rows = []
    for folder in sorted(out.glob('*-xe')):
        name = folder.name[:-3]
        def read(pattern, key=split): return [read_entry(f, key) for f in sorted(out.glob(f'{name}-{pattern}/scores.json'))]
        def seconds(pattern): return statistics.mean(read(pattern, 'cpu_seconds') or [math.nan])
        start, rl, control = read('xe'), read('rl*'), read('control*')
        if not start or not rl: continue
        for decoder in ('greedy', 'beam'):
            scores = [s[decoder]['CIDEr_D'] for s in rl]
            gain, noise = statistics.mean(scores) - start[0][decoder]['CIDEr_D'], statistics.stdev(scores) if len(scores) > 1 else float('nan')
            rows.append(dict(name=name, decoder=decoder, ours_s=seconds('rl*'), peer_s=seconds('control*'), ratio=seconds('control*')/seconds('rl*'), xe=start[0][decoder]['CIDEr_D'], rl=scores, gain=gain, noise=noise, gain_per_noise=gain/noise if noise else float('nan'),
                             control=[s[decoder]['CIDEr_D'] for s in control], length=[start[0][decoder]['length'], statistics.mean(s[decoder]['length'] for s in rl)],
                             distinct=[start[0][decoder]['distinct_captions'], statistics.mean(s[decoder]['distinct_captions'] for s in rl)]))
    return rows


def print_table(rows):
    print(f"{'':20}{'':8}{'XE':>7}   {'RL, three seeds':24}{'gain':>7}{'noise':>8}{'ratio':>7}   {'control':18}{'length':>13}{'distinct':>12}")
    for r in rows:
        print(f"{r['name']:20}{r['decoder']:8}{r['xe']:7.3f}   {' '.join(f'{x:.3f}' for x in r['rl']):24}{r['gain']:+7.3f}{r['noise']:8.3f}{r['gain_per_noise']:7.1f}   "
              f"{' '.join(f'{x:.3f}' for x in r['control']):18}{r['length'][0]:7.1f} → {r['length'][1]:.1f}{r['distinct'][0]:6.0f} → {r['distinct'][1]:.0f}", flush=True)


def train(which, out, args):
    "All runs of a data set, or of one model on it, that are not there yet."
    data, _, model = which.partition('/')
    opts = data_options(data, out, args.data, args.tiny)
    for m in [model] if model else MODELS:
        xe_run(data, m, opts, out, args.tiny)
        for seed in [] if args.xe_only else args.seeds:
            for engine in ('RLTrainer', 'DefaultTrainer') if args.control else ('RLTrainer',): continued_run(data, m, opts, out, seed, engine, args.tiny)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('which', nargs='*', default=['scenes'], help='scenes, ucm, rsicd, or with a model: scenes/updown')
    parser.add_argument('--data', default='../shared/data/ucm_captions', help='folder of the real data set')
    parser.add_argument('--output-dir', default='runs/scst')
    parser.add_argument('--xe-only', action='store_true', help='only the checkpoints to start from')
    parser.add_argument('--seeds', type=int, nargs='*', default=SEEDS)
    parser.add_argument('--control', action='store_true', help='also the control')
    parser.add_argument('--validation', action='store_true', help='scores on the validation split instead of the test split')
    parser.add_argument('--table', action='store_true', help='train nothing; print what is finished')
    parser.add_argument('--tiny', action='store_true', help='two steps on a few scenes: a smoke test')
    parser.add_argument('--json', action='store_true', help='print the rows as one JSON list and nothing else')
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING)
    out = Path(args.output_dir)
    with contextlib.redirect_stdout(sys.stderr if args.json else sys.stdout):
        for which in [] if args.table else args.which: train(which, out, args)
    rows = table(out, 'validation' if args.validation else 'after')
    if args.json: print(json.dumps([{k: None if isinstance(v, float) and math.isnan(v) else v for k, v in r.items()} for r in rows]))
    else: print_table(rows)


if __name__ == '__main__': main()
