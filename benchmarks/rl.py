"""A step of self-critical training against the plain recipe, as ratios in one run.

    python benchmarks/rl.py                          # Up-Down and Transformer at the published sizes, both sample modes
    python benchmarks/rl.py transformer --mode eval --json
    python benchmarks/rl.py --alike                  # in the setting in which X-modaler's own code was timed, with that ratio beside
    python benchmarks/rl.py --small                  # a smoke test

One step = draw 5 captions for each of 16 images, decode the greedy baseline, score both, loss, backward, clip, Adam. Images have up to 50 regions; captions may have 20 words and
have 8 at least, 10.3 on average (an untrained model would not stop; both sides get the same push towards the end mark, from the ninth word on).
The plain recipe does it as X-modaler does: features expanded to all 80 rows first, greedy decoding of all 80 rows, then drawing 80 captions in training mode with the gradient through every
step, one after the other; finished rows stay; keys and values of regions and words projected again at every word; attention with explicit weights; one optimizer kernel per tensor. Same parameters, same reward.
"""
import argparse, json, math, statistics, time
import numpy as np
import torch
from torch import nn
from xmodaler_nb.config import config_file, kfg
from xmodaler_nb.modeling import load_cfg_file
from xmodaler_nb.datasets.collate import collate
from xmodaler_nb.engine.learner import CaptionLearner
from xmodaler_nb.engine.self_critical import SelfCritical, evaluating
from xmodaler_nb.losses import build_rl_losses
from xmodaler_nb.modeling import build_model
from xmodaler_nb.scorer import BaseScorer, Cider
from decode import plain_greedy
from plain import SMALL, beside, plain_recipe, samples, without_dropout

FAMILIES = dict(updown='image_caption/updown/updown_rl.yaml', transformer='image_caption/transformer/transformer_rl.yaml')
UPSTREAM = dict(updown=(2., 2.1), transformer=(5.7, 6.))     # X-modaler's own code in the place of the plain recipe
WORDS = 20
FIRST, HAZARD = 8, .3       # words before the end mark may come, its chance at every word from there on


def bias_end_mark(model, vocab):
    "Give an untrained model captions of a natural length: a bias on the end mark that depends on the position alone."
    table = torch.full((64,), -30.)
    table[FIRST:] = math.log(HAZARD/(1 - HAZARD)) + math.log(vocab - 1)
    mark = torch.zeros(vocab)
    mark[0] = 1.
    def push(module, args, out):
        x, t = out[kfg.G_LOGITS], args[0].get(kfg.TIME_STEP)
        at = t if t is not None else slice(x.size(1)) if x.dim() == 3 else torch.cat([torch.arange(n) for n in args[0][kfg.TOKENS_LENGTHS]])
        return {**out, kfg.G_LOGITS: x + table[at][...,None]*mark}
    model.predictor.register_forward_hook(push)
    return model


class TimedScorer:
    "The scorer, and the processor seconds it took."
    def __init__(self, scorer): self.scorer, self.seconds = scorer, 0.
    def __call__(self, batch):
        start = time.thread_time()
        try: return self.scorer(batch)
        finally: self.seconds += time.thread_time() - start


def reference_scorer(items, vocab):
    "CIDEr-D against the items' own captions, with the document frequencies of a larger set."
    rng = np.random.default_rng(0)
    refs = {i[kfg.IDS]: [[w for w in t.tolist() if w >= 0] for t in i[kfg.G_TARGET_IDS]] for i in items}
    df = {(w,): float(n) for w, n in enumerate(rng.integers(1, 5000, vocab))}
    return BaseScorer(types=['Cider'], scorers=[Cider(cider_cached={'document_frequency': df, 'ref_len': math.log(113287)})], weights=[1.], gt_path=refs, eos_id=0)


class Step:
    "One step, in either way."
    def __init__(self, name, cfg, mode, alike=False):
        self.name, self.mode, self.items = name, mode, samples(cfg, images=16, alike=alike)
        torch.manual_seed(0)
        model = build_model(cfg).train()
        self.model = model if alike else bias_end_mark(model, cfg.MODEL.VOCAB_SIZE)
        self.scorer, self.losses = TimedScorer(reference_scorer(self.items, cfg.MODEL.VOCAB_SIZE)), build_rl_losses(cfg)
        self.opt = torch.optim.Adam(self.model.parameters(), 1e-6, foreach=False, **({} if mode == 'plain' else {'fused': True}))
        method = SelfCritical(self.scorer, 'upstream' if mode == 'plain' else mode, check='off')
        self.collated = collate(self.items)                       # our loader's workers do this
        self.learn = CaptionLearner([[self.collated]], self.model, self.losses, opt_func=self.opt, method=method)

    def plain_loss(self):
        batch = self.model.preprocess_batch([*self.items])
        ids = batch[kfg.IDS]
        batch = type(batch)({k: v for k, v in batch.items() if k not in (kfg.G_TOKENS_IDS, kfg.G_TARGET_IDS, kfg.TOKENS_MASKS)})
        batch = batch.merge({kfg.G_TOKENS_TYPE: torch.ones(len(ids), WORDS, dtype=torch.long)})
        with evaluating(self.model), torch.no_grad(): greedy, _ = plain_greedy(self.name, self.model, batch, WORDS)
        base = self.scorer({kfg.IDS: ids, kfg.G_SENTS_IDS: greedy})
        sampled, log_probs = plain_greedy(self.name, self.model, batch, WORDS, sample=True)
        rewards = self.scorer({kfg.IDS: ids, kfg.G_SENTS_IDS: sampled})[kfg.REWARDS] - base[kfg.REWARDS]
        out = {kfg.G_SENTS_IDS: sampled, kfg.G_LOGP: log_probs, kfg.REWARDS: torch.as_tensor(rewards, dtype=torch.float32)}
        return {k: v for loss in self.losses for k, v in loss(out).items()}

    def __call__(self):
        self.opt.zero_grad(set_to_none=True)
        if self.mode == 'plain':
            with plain_recipe(self.model): return self.finish(self.plain_loss())
        return self.finish(next(self.learn.method.losses(self.collated)))

    def finish(self, entries):
        sum(entries.values()).backward()
        nn.utils.clip_grad_value_(self.model.parameters(), 0.1, foreach=self.mode != 'plain')
        self.opt.step()
        self.scorer.last, self.scorer.seconds = self.scorer.seconds, 0.


def same_gradient(step):
    "At dropout 0 the gradient of one forced pass is that of the steps that drew the captions."
    without_dropout(step)
    model, method, grads = step.model, step.learn.method, {}
    for mode in SelfCritical.modes:
        method.sample_mode = mode
        torch.manual_seed(1)
        model.zero_grad()
        sum(next(method.losses(step.collated)).values()).backward()
        grads[mode] = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    return (grads['eval'] - grads['upstream']).abs().max().item()/grads['upstream'].abs().max().item()


def compare(name, modes=SelfCritical.modes, small=False, repeats=3, alike=False):
    "Rows: medians of processor seconds per step, ours and plain, taken in turns, and the reward's share of our step."
    cfg = load_cfg_file(config_file(FAMILIES[name]), ['MODEL.DEVICE', 'cpu', 'INFERENCE.VOCAB', '', 'MODEL.WEIGHTS', ''] + (SMALL if small else []))
    steps = {mode: Step(name, cfg, mode, alike) for mode in ('plain', *modes)}
    seconds, share = {mode: [] for mode in steps}, {mode: [] for mode in steps}
    for i in range(repeats + 1):
        for mode, step in steps.items():
            start = time.process_time()
            step()
            elapsed = time.process_time() - start
            if i: seconds[mode].append(elapsed); share[mode].append(step.scorer.last/elapsed)
    median = {mode: statistics.median(s) for mode, s in seconds.items()}
    return [dict(name=f'{name} {m}', ours_s=median[m], peer_s=median['plain'], ratio=median['plain']/median[m], upstream=UPSTREAM[name] if alike else None, reward_share=statistics.median(share[m]),
                 **({'gradient_difference': same_gradient(steps[m])} if m == 'eval' and not alike else {})) for m in modes]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('families', nargs='*', default=list(FAMILIES), help=', '.join(FAMILIES))
    parser.add_argument('--mode', action='append', choices=SelfCritical.modes, help='default: both')
    parser.add_argument('--alike', action='store_true', help="36 regions each and captions that do not end, as when X-modaler's own code was timed; its ratio is printed beside ours")
    parser.add_argument('--small', action='store_true', help='tiny sizes: a smoke test')
    parser.add_argument('--repeats', type=int, default=3)
    parser.add_argument('--json', action='store_true', help='print the rows as one JSON list and nothing else')
    args = parser.parse_args()
    if not args.json: print(f"{'':24}{'plain s':>9}{'ours s':>9}{'ratio':>8}{'reward':>9}   ({torch.get_num_threads()} threads)")
    rows = []
    for name in args.families:
        for row in compare(name, args.mode or SelfCritical.modes, args.small, args.repeats, args.alike):
            if not args.json: print(f"{row['name']:24}{row['peer_s']:9.2f}{row['ours_s']:9.2f}{row['ratio']:8.2f}{row['reward_share']:9.2%}{beside(row)}", flush=True)
            rows.append(row)
    if args.json: print(json.dumps(rows))


if __name__ == '__main__': main()
