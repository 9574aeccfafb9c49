"""What does a shortlist gain on a trained captioner of full size, and does it change captions?

    python benchmarks/shortlist.py --data ../shared/data/flickr8k --weights updown.pth      # trains for half an hour if the file is not there, then measures
    python benchmarks/shortlist.py --images 128 --repeats 3
    python benchmarks/shortlist.py --small                                                  # a smoke test, on made-up pictures

Up-Down with the sizes of its YAML file, all words of the training captions. The features of the photographs (16 × 128) are widened to 36 × 2048 by a fixed random map and means of pairs. It is trained with cross entropy in bf16.
Rows: greedy and beam 5; `ours_s` with a shortlist (`DECODE_STRATEGY.SHORTLIST`) that has learnt from other pictures, `peer_s` the plain recipe of `decode.py`; beside them the time without a shortlist, how many captions of `--changed` test
pictures the shortlist changes, and how far their CIDEr moves (in points). Processor seconds of `--images` pictures in batches of 32, medians of runs in turns.
"""
import argparse
import collections
import json
import math
import re
import statistics
import time
from pathlib import Path
import numpy as np
import torch
from torch import nn
from xmodaler_nb.config import Batch, config_file, kfg
from xmodaler_nb.datasets.collate import collate
from xmodaler_nb.evaluation.split import score_split
from xmodaler_nb.losses import build_losses
from xmodaler_nb.modeling import build_model, load_cfg_file
from xmodaler_nb.modeling.predictor import shortlist
from decode import ours, plain_beam
from plain import FAMILIES, SMALL

REGIONS, WIDTH, WORDS, PICTURES, BATCH = 36, 2048, 19, 16, 32


def load_split(folder, name):
    "Pictures (n, 16, 128) and their captions as lists of words."
    with np.load(folder/f'features_{name}.npz') as z: features = dict(zip(z['image_id'].tolist(), z['features'].astype(np.float32)))
    lines = [json.loads(line) for line in (folder/f'captions_{name}.jsonl').read_text().splitlines()]
    return [(features[r['image_id']], [re.findall(r"[a-z0-9']+", c.lower()) for c in r['captions']]) for r in lines]


def made_up(n, seed):
    "Pictures of one of eight things of one of eight colours, and what is said of them."
    rng, out = np.random.default_rng(seed), []
    codes = np.random.default_rng(0).standard_normal((16, 128)).astype(np.float32)
    for _ in range(n):
        a, b = rng.integers(8, size=2)
        out.append((codes[[a]*8 + [b + 8]*8] + .1*rng.standard_normal((16, 128)).astype(np.float32), [['a', f'colour{b}', f'thing{a}']]*5))
    return out


class Widen:
    "36 × 2048 numbers from 16 × 128."
    def __init__(self, width):
        rng = np.random.default_rng(0)
        self.map, self.pairs = (rng.standard_normal((128, width))/128**.5).astype(np.float32), rng.integers(0, 16, (REGIONS - 16, 2))
    def __call__(self, x): return torch.from_numpy(np.maximum(np.concatenate([x, x[self.pairs].mean(1)]) @ self.map, 0))


def sample(i, picture, captions, widen, index):
    "What a data set would return."
    tokens, targets = [], []
    for words in captions:
        w = [index.get(x, 0) for x in words][:WORDS]
        pad = WORDS - len(w)
        tokens.append(torch.tensor([0, *w, *[0]*pad]))
        targets.append(torch.tensor([*w, 0, *[-1]*pad]))
    return {kfg.IDS: str(i), kfg.ATT_FEATS: widen(picture), kfg.SEQ_PER_SAMPLE: torch.tensor(len(captions)), kfg.G_TOKENS_IDS: tokens, kfg.G_TARGET_IDS: targets, kfg.G_TOKENS_TYPE: [torch.ones_like(t) for t in tokens]}


def train(model, cfg, data, widen, index, steps, say):
    "Cross entropy with Adam, warm-up and cosine."
    losses, opt, order, rng = build_losses(cfg), torch.optim.Adam(model.parameters(), 5e-4, fused=True), [], torch.Generator().manual_seed(1)
    start, mean = time.time(), None
    for step in range(steps):
        if len(order) < PICTURES: order = torch.randperm(len(data), generator=rng).tolist()
        take, order = order[:PICTURES], order[PICTURES:]
        for group in opt.param_groups: group['lr'] = 5e-4*min(1, (step + 1)/50)*(.5 + .5*math.cos(math.pi*step/steps))
        batch = collate([sample(i, *data[i], widen, index) for i in take])
        valid = batch[kfg.G_TARGET_IDS] >= 0
        with torch.autocast('cpu', torch.bfloat16):
            out = model({**batch, kfg.SS_PROB: 0., kfg.TOKENS_LENGTHS: valid.sum(1).tolist()})
            loss = sum(v for part in losses for v in part({**out, kfg.G_TARGET_IDS: batch[kfg.G_TARGET_IDS][valid]}).values())
        opt.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_value_(model.parameters(), .1)
        opt.step()
        mean = loss.item() if mean is None else .98*mean + .02*loss.item()
        if step % 50 == 0 or step == steps - 1: say(f'step {step} of {steps}, loss {mean:.3f}, {(time.time() - start)/(step + 1)*(steps - step - 1)/60:.0f} min left')


def trained(args, data, say):
    "The captioner, its config and its words; from the file if it is there."
    counts = collections.Counter(w for _, captions in data for c in captions for w in c)
    words = ['.', *(w for w, _ in counts.most_common())]
    small = ['MODEL.VOCAB_SIZE', len(words), *(SMALL[2:] if args.small else []), 'MODEL.VISUAL_EMBED.IN_DIM', args.width]
    cfg = load_cfg_file(config_file(FAMILIES['updown']), ['MODEL.DEVICE', 'cpu', 'INFERENCE.VOCAB', '', *small])
    torch.manual_seed(0)
    model, index = build_model(cfg), {w: i for i, w in enumerate(words)}
    if args.weights and args.weights.is_file():
        model.load_state_dict(torch.load(args.weights, weights_only=True))
        return cfg, model.eval(), words
    train(model.train(), cfg, data, Widen(args.width), index, args.steps, say)
    if args.weights: torch.save(model.state_dict(), args.weights)
    return cfg, model.eval(), words


def batches(data, widen):
    "Pictures without captions."
    drop = (kfg.G_TOKENS_IDS, kfg.G_TARGET_IDS, kfg.TOKENS_MASKS)
    items = [sample(i, picture, [[]], widen, {}) for i, (picture, _) in enumerate(data)]
    return [Batch({k: v for k, v in collate(items[i:i+BATCH]).items() if k not in drop}) for i in range(0, len(items), BATCH)]


def say_all(decode, groups):
    "Sentences (n, 20)."
    with torch.inference_mode(): return torch.cat([s if s.dim() == 2 else s[:,0] for s in map(decode, groups)])


def measure(k, cfg, model, words, learn, test, references, args):
    "One row."
    def way(**kw): return lambda batch: ours(cfg, model, batch, k, **kw)()
    ways = dict(ours=way(shortlist=True), without=way(), plain=lambda batch: plain_beam('updown', model, batch, k))
    say_all(ways['ours'], learn)
    with_it, without = (say_all(ways[w], test) for w in ('ours', 'without'))
    texts = lambda ids: {str(i): ' '.join(words[w] for w in row if w) for i, row in enumerate(ids.tolist())}
    cider = [100*score_split(texts(ids), references)[0]['CIDEr'] for ids in (without, with_it)]
    timed, seconds = test[:max(1, args.images//BATCH)], {w: [] for w in ways}
    for _ in range(args.repeats):
        for w, f in ways.items():
            start = time.process_time()
            say_all(f, timed)
            seconds[w].append(time.process_time() - start)
    s = {w: statistics.median(t) for w, t in seconds.items()}
    parts = next((p for p in model.predictor.logits.shortlist.parts.values() if p is not None), None) if hasattr(model.predictor.logits, 'shortlist') else None
    model.predictor.logits.__dict__.pop('shortlist', None)
    return dict(name='updown greedy' if k == 1 else f'updown beam {k}', ours_s=s['ours'], peer_s=s['plain'], ratio=s['plain']/s['ours'], without_s=s['without'], changed=(with_it != without).any(1).sum().item(),
                captions=len(with_it), cider=cider[0], cider_moved=cider[1] - cider[0], directions=parts and parts.k, words_multiplied=parts and parts.share(), vocabulary=len(words))


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', type=Path, default=Path(__file__).resolve().parents[1].parent/'shared/data/flickr8k', help='features_{train,val,test}.npz and captions_{train,val,test}.jsonl')
    parser.add_argument('--weights', type=Path, help='of the trained captioner; written if it is not there')
    parser.add_argument('--steps', type=int, default=1125, help='of training, 16 pictures each')
    parser.add_argument('--images', type=int, default=128, help='of the timed runs')
    parser.add_argument('--changed', type=int, default=300, help='captions that are compared')
    parser.add_argument('--repeats', type=int, default=3)
    parser.add_argument('--small', action='store_true', help='a smoke test')
    parser.add_argument('--json', action='store_true', help='print the rows as one JSON list and nothing else')
    args = parser.parse_args(argv)
    args.width = 64 if args.small else WIDTH
    if args.small: args.steps, args.images, args.changed, args.repeats, shortlist.SMALL = 40, 32, 64, 1, 0
    elif not (args.data/'features_train.npz').is_file(): raise SystemExit(f'{args.data} has no features_train.npz: give --data a folder with features and captions, or --small')
    data = {n: made_up(64, i) if args.small else load_split(args.data, n) for i, n in enumerate(('train', 'val', 'test'))}
    cfg, model, words = trained(args, data['train'], lambda line: None if args.json else print(line, flush=True))
    widen = Widen(args.width)
    test = data['test'][:args.changed]
    references = {str(i): [' '.join(c) for c in captions] for i, (_, captions) in enumerate(test)}
    rows = [measure(k, cfg, model, words, batches(data['val'][:320], widen), batches(test, widen), references, args) for k in (1, 5)]
    if args.json: return print(json.dumps(rows))
    for r in rows:
        print(f"{r['name']:16} ours {r['ours_s']:.2f} s   plain {r['peer_s']:.2f} s   ratio {r['ratio']:.2f}   without a shortlist {r['peer_s']/r['without_s']:.2f}   changed {r['changed']} of {r['captions']}, CIDEr {r['cider']:.2f} {r['cider_moved']:+.2f}"
              f"   {r['directions']} directions, {r['words_multiplied'] or 1:.1%} of {r['vocabulary']} words")


if __name__ == '__main__': main()
