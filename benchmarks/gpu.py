"""What does the library do on a GPU? Decoding, training, waiting and loading at the published sizes.

    make gpu                                                 # the tests that need a GPU, parity on it, and this file; about 8 minutes
    python benchmarks/gpu.py --out gpu.json --table gpu.md  
    python benchmarks/gpu.py updown --only decode            # one family, one part: decode, generate, train, loader, learn
    python benchmarks/gpu.py --device cpu --small            # a dry run anywhere

*decode*: beam 5, 20 words, nobody ends early, 256 pictures, against the plain recipe of `decode.py` in float32 on the same card. `recorded`: CUDA graphs (DECODE_STRATEGY.CUDA_GRAPHS); `bf16`: weights and
features in bfloat16; `tf32`: float32 with tensor cores. `waits`: how often the program waited for the card during one call. *generate*: our Transformer beside `transformers`' `generate` on a BART decoder of
the same width, depth and vocabulary, the same encoder states handed in. *train*: 64 pictures with 5 captions, against the plain recipe of `plain.py` (which collates on the training thread) in float32; the batch of
ours comes collated from a worker. *loader*: the share of a step that the training loop waits for the next batch. *learn*: a training of Up-Down on made-up scenes whose loss falls.
What was measured so far is in gpu.md. Seconds are wall seconds with the card's queue emptied, medians of calls in turns; rate = pictures a second; ratio = peer/ours; memory_mb = the card's peak.
"""
import argparse, json, os, statistics, sys, tempfile, time, warnings
from pathlib import Path
import torch
from xmodaler_nb.config import Batch, kfg
from xmodaler_nb.datasets.collate import collate
from xmodaler_nb.modeling.decode_strategy import BeamSearcher
from decode import GivenEncoderStates, bart_like, compiled, make, plain_beam
from plain import Step, plain_recipe, samples

FAMILIES, PARTS = ['updown', 'transformer', 'meshed_memory', 'tden'], ['decode', 'generate', 'train', 'loader', 'learn']


class Card:
    "A device, its clock and its memory."
    def __init__(self, name): self.device, self.real = torch.device(name), name.startswith('cuda')
    def wait(self):
        if self.real: torch.cuda.synchronize()
    def reset(self):
        if self.real: torch.cuda.empty_cache(), torch.cuda.reset_peak_memory_stats()
    def peak_mb(self): return torch.cuda.max_memory_allocated()/2**20 if self.real else None
    def name(self): return torch.cuda.get_device_name() if self.real else 'CPU'
    def put(self, x, dtype=None):
        if isinstance(x, (list, tuple)): return [self.put(o, dtype) for o in x]
        return x.to(self.device, dtype if x.is_floating_point() else None, non_blocking=True) if torch.is_tensor(x) else x
    def batch(self, b, dtype=None): return Batch({k: self.put(v, dtype) for k, v in b.items()})


def waits(card, f):
    "How often a call waits for the card."
    if not card.real: return None
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter('always')
        torch.cuda.set_sync_debug_mode('warn')
        try: f()
        finally: torch.cuda.set_sync_debug_mode('default')
    return sum('synchroniz' in str(w.message) for w in seen)


def measure(card, makers, repeats, warm=3):
    "name → (median seconds, peak MB, what else was asked); each is made, warmed up, timed and let go."
    found = {}
    for name, (maker, *asked) in makers.items():
        card.reset()
        try:
            f, seconds = maker(), []
            for _ in range(warm): f()
            for _ in range(repeats):
                card.wait()
                start = time.perf_counter()
                f()
                card.wait()
                seconds.append(time.perf_counter() - start)
            found[name] = statistics.median(seconds), card.peak_mb(), {k: ask(f) for k, ask in asked[0].items()} if asked else {}
        except Exception as e: print(f'  {name} failed: {type(e).__name__}: {str(e)[:160]}', file=sys.stderr, flush=True)
        f = None
    return found


def rows(part, family, found, peer, images):
    "One row per way, with the peer's seconds."
    for name, (s, peak, extra) in found.items():
        yield dict(name=f'{part} {family} {name}', ours_s=s, peer_s=found[peer][0], ratio=found[peer][0]/s, rate=images/s, memory_mb=peak, **extra)


class tf32:
    "Within this context, float32 products use tensor cores."
    def __enter__(self): self.before = torch.get_float32_matmul_precision(); torch.set_float32_matmul_precision('high')
    def __exit__(self, *_): torch.set_float32_matmul_precision(self.before)


def search(cfg, model, batch, **kw):
    "A function that decodes the batch by beam search."
    strategy = BeamSearcher(cfg, beam_size=5, **kw)
    return lambda: strategy(batch, False, model)[kfg.G_SENTS_IDS]


def under(context, f):
    def run():
        with context(): return f()
    return run


def decode(args, card):
    for family in args.families:
        cfg, model, batch = make(family, args.images, args.small)
        model, half = model.to(card.device), make(family, 1, args.small)[1].bfloat16().to(card.device)
        b, h, said = card.batch(batch), card.batch(batch, torch.bfloat16), {}
        def same(f): return (f() == said['plain']).all(-1).float().mean().item()
        def plain():
            said['plain'] = plain_beam(family, model, b, 5)
            return lambda: plain_beam(family, model, b, 5)
        asked = dict(waits=lambda f: waits(card, f), same_sentences=same)
        makers = {'plain': (plain,), 'float32': (lambda: search(cfg, model, b), asked), 'recorded': (lambda: search(cfg, model, b, cuda_graphs=True), asked),
                  'tf32 recorded': (lambda: under(tf32, search(cfg, model, b, cuda_graphs=True)), asked), 'bf16': (lambda: search(cfg, half, h), asked),
                  'bf16 recorded': (lambda: search(cfg, half, h, cuda_graphs=True), asked)}
        if family in args.compile: makers['bf16 compiled'] = (lambda: search(cfg, compiled(make(family, 1, args.small)[1].bfloat16().to(card.device)), h), asked)
        with torch.no_grad(): yield from rows('decode', family, measure(card, makers, args.repeats), 'plain', args.images)


def generate(args, card):
    sys.modules.setdefault('torchvision', None)
    try: from transformers.modeling_outputs import BaseModelOutput
    except ImportError as e: return print(f'  generate: {e}', file=sys.stderr)
    for dtype in (torch.float32, torch.bfloat16):
        cfg, model, _ = make('transformer', 1, args.small)
        model, peer, n, d = model.to(card.device, dtype), bart_like(cfg).to(card.device, dtype), args.images, cfg.MODEL.BERT.HIDDEN_SIZE
        states, mask = torch.randn(n, 50, d, device=card.device, dtype=dtype), torch.ones(n, 50, dtype=torch.long, device=card.device)
        batch = Batch({kfg.ATT_FEATS: states, kfg.ATT_MASKS: mask.to(dtype), kfg.G_TOKENS_TYPE: torch.ones(n, 20, dtype=torch.long, device=card.device)})
        def bart():
            return peer.generate(encoder_outputs=BaseModelOutput(last_hidden_state=states), attention_mask=mask, num_beams=5, max_new_tokens=20, min_new_tokens=20, do_sample=False, length_penalty=0., early_stopping=False)
        given = GivenEncoderStates(model)
        makers = {'generate': (lambda: bart,), 'ours': (lambda: search(cfg, given, batch),), 'ours recorded': (lambda: search(cfg, given, batch, cuda_graphs=True),)}
        with torch.no_grad(): yield from rows('generate', str(dtype).split('.')[-1], measure(card, makers, args.repeats), 'generate', n)


class CardStep(Step):
    "A training step on a card: in float32 or under bfloat16 autocast."
    def __init__(self, cfg, plain, card, images, half=False, compile=False):
        from xmodaler_nb.losses import build_losses
        from xmodaler_nb.modeling import build_model
        self.cfg, self.plain, self.card, self.half = cfg, plain, card, half
        torch.manual_seed(0)
        self.model, self.losses, self.items = build_model(cfg).to(card.device).train(), build_losses(cfg), samples(cfg, images=images)
        self.opt = torch.optim.Adam(self.model.parameters(), 1e-4, foreach=False, **({} if plain else {'fused': card.real or None}))
        self.collated = collate(self.items)
        if card.real: self.collated = Batch({k: v.pin_memory() if torch.is_tensor(v) else v for k, v in self.collated.items()})
        if compile: self.model.compile(dynamic=True)

    def loss(self):
        batch = self.card.batch(self.model.preprocess_batch([*self.items]) if self.plain else self.collated)
        with torch.autocast(self.card.device.type, torch.bfloat16, enabled=self.half): out = self.model({**batch, kfg.SS_PROB: 0.})
        return sum(v for loss in self.losses for v in loss(out).values())

    def step(self):
        self.opt.zero_grad(set_to_none=True)
        loss = self.loss()
        loss.backward()
        torch.nn.utils.clip_grad_value_(self.model.parameters(), 0.1, foreach=not self.plain)
        self.opt.step()
        return loss.detach()


def train(args, card):
    n = max(args.images//4, 2)
    for family in args.families:
        cfg = make(family, 1, args.small)[0]
        step = lambda plain=False, **kw: lambda: CardStep(cfg, plain, card, n, **kw)
        asked = dict(waits=lambda f: waits(card, f))
        makers = {'plain': (step(True),), 'float32': (step(), asked), 'tf32': (lambda: under(tf32, step()()), asked), 'bf16': (step(half=True), asked)}
        if family in args.compile: makers['bf16 compiled'] = (step(half=True, compile=True), asked)
        yield from rows('train', family, measure(card, makers, args.repeats, warm=2), 'plain', n)


def loader(args, card):
    "The wait for a batch beside the step: Up-Down at full size, bf16, one store file, 8 workers."
    from scale import BATCH, training_set
    from xmodaler_nb.datasets import build_xmodaler_train_loader
    steps, regions, width = (3, 4, 16) if args.small else (80, 36, 2048)
    with tempfile.TemporaryDirectory() as d:
        cfg = training_set(Path(d), steps*BATCH, regions, width).clone()
        cfg.defrost()
        cfg.DATALOADER.NUM_WORKERS = 0 if args.small else min(8, os.cpu_count())
        cfg.MODEL.DEVICE = str(card.device)                       # the loader's thread pins batches for it
        if args.small: cfg.MODEL.TOKEN_EMBED.DIM = cfg.MODEL.VISUAL_EMBED.OUT_DIM = cfg.MODEL.DECODER_DIM = 16
        step, times = CardStep(cfg, False, card, 2, half=card.real), []
        batches = iter(build_xmodaler_train_loader(cfg))
        for _ in range(steps - 1):
            start = time.perf_counter()
            step.collated = next(batches)
            got = time.perf_counter()
            step()
            card.wait()
            times.append((got - start, time.perf_counter() - got))
    wait, work = (statistics.fmean(t[i] for t in times[len(times)//4:]) for i in (0, 1))
    yield dict(name='loader updown, wait beside 5 % of a step', ours_s=wait, peer_s=.05*(wait + work), ratio=.05*(wait + work)/max(wait, 1e-9), rate=BATCH/(wait + work), share=wait/(wait + work))


def learn(args, card):
    "Up-Down on scenes with the trainer that people use, bf16: the loss of the first and of the last tenth of the steps."
    from xmodaler_nb.commands.experiment import run_training
    from xmodaler_nb.modeling import load_cfg_file
    from xmodaler_nb.own.scenes import make_scenes
    with tempfile.TemporaryDirectory() as d:
        data, device = make_scenes(Path(d)/'scenes', 'tiny' if args.small else 'demo'), str(card.device)
        more = ['SOLVER.EPOCH', 1] if args.small else []
        cfg = load_cfg_file('demo.yaml', [*data.cfg_overrides, 'OUTPUT_DIR', f'{d}/run', 'MODEL.DEVICE', device, 'ENGINE.AMP', 'bf16' if card.real else '', *more])
        seconds = run_training(cfg)[1]
        events = [json.loads(line) for line in (Path(d)/'run'/'events.jsonl').read_text().splitlines()]
    losses = [e['total_loss'] for e in events if 'total_loss' in e]
    tenth = max(1, len(losses)//10)
    first, last = statistics.fmean(losses[:tenth]), statistics.fmean(losses[-tenth:])
    cider = [v for e in events for k, v in e.items() if k.endswith('CIDEr')]
    yield dict(name='learn scenes, seconds beside 120', ours_s=seconds, peer_s=120., ratio=120/seconds, first_loss=first, last_loss=last, falls=last < first, cider=cider[-1:] or None)


def profile(args, card):
    "What the card does during one decoding: its kernels by time."
    from torch.profiler import ProfilerActivity, profile as watch
    for family in args.families:
        cfg, model, batch = make(family, args.images, args.small)
        for dtype in (torch.float32, torch.bfloat16):
            m, f = model.to(card.device, dtype), None
            f = search(cfg, m, card.batch(batch, dtype))
            with torch.no_grad():
                for _ in range(2): f()
                with watch(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if card.real else [])]) as p:
                    f()
                    card.wait()
            print(f'{family} {dtype}', file=sys.stderr)
            print('\n'.join(line[:58] + line[-110:] for line in p.key_averages().table(sort_by='self_cuda_time_total' if card.real else 'self_cpu_time_total', row_limit=22, max_name_column_width=70).splitlines()), file=sys.stderr, flush=True)
    yield from ()


RUN = dict(profile=profile, decode=decode, generate=generate, train=train, loader=loader, learn=learn)

def parse(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('families', nargs='*', default=FAMILIES)
    p.add_argument('--only', nargs='+', choices=RUN, default=PARTS)
    p.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    p.add_argument('--images', type=int, default=256)
    p.add_argument('--repeats', type=int, default=3)
    p.add_argument('--compile', nargs='*', default=['transformer'], help='families that are compiled, too (a minute each)')
    p.add_argument('--budget', type=float, default=420, help='seconds after which no further part begins')
    p.add_argument('--small', action='store_true', help='tiny sizes: a dry run')
    p.add_argument('--json', action='store_true', help='print the rows as one JSON list and nothing else')
    p.add_argument('--out', help='write the rows here, after every row')
    p.add_argument('--table', help='write a Markdown table here')
    args = p.parse_args(argv)
    if args.small: args.images, args.repeats, args.compile = min(args.images, 8), 1, []
    return args


def shown(x): return '' if x is None else f'{x:.0f}' if x >= 100 else f'{x:.2f}' if x >= .1 else f'{x:.4f}'

def table(rows, card):
    "Markdown."
    head = ['what', 's', 'plain s', 'ratio', 'pictures/s', 'peak MB', 'waits', 'same sentences']
    keys = ['ours_s', 'peer_s', 'ratio', 'rate', 'memory_mb', 'waits', 'same_sentences']
    lines = [f"| {' | '.join(head)} |", '|---'*len(head) + '|'] + [f"| {r['name']} | {' | '.join(shown(r.get(k)) for k in keys)} |" for r in rows]
    return f'# On a GPU\n\n{card.name()}, torch {torch.__version__}. Made by `python benchmarks/gpu.py` (its first lines say what each row means).\n\n' + '\n'.join(lines) + '\n'


def main(argv=None):
    args, start, found = parse(argv), time.perf_counter(), []
    card = Card(args.device)
    if not args.json: print(f'{card.name()}, torch {torch.__version__}', flush=True)
    for part in args.only:
        if time.perf_counter() - start > args.budget:
            print(f'  {part}: no time left', file=sys.stderr)
            continue
        try:
            for r in RUN[part](args, card):
                found.append(dict(r, card=card.name()))
                if args.out: Path(args.out).write_text(json.dumps(found, indent=1))
                if not args.json: print(f"{time.perf_counter() - start:5.0f} s  {r['name']:44}", *(f'{k} {shown(v) if isinstance(v, float) else v}' for k, v in r.items() if k != 'name' and v is not None), flush=True)
        except Exception as e:
            if args.small: raise
            print(f'  {part} failed: {type(e).__name__}: {str(e)[:300]}', file=sys.stderr, flush=True)
        if args.table: Path(args.table).write_text(table(found, card))
    if args.json: print(json.dumps(found))


if __name__ == '__main__': main()
