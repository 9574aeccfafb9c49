"""Understanding: training steps against the plain recipe, and the work around a retrieval evaluation.

    python benchmarks/understanding.py                      # everything; the training steps are at the published sizes, the batch is cut
    python benchmarks/understanding.py uniter tden          # the training steps alone
    python benchmarks/understanding.py retrieval --captions 50
    python benchmarks/understanding.py --json               # rows as JSON
    python benchmarks/understanding.py --small              # a smoke test

Training. One step = list of samples → batch → forward → loss → backward → clip → AdamW, for 8 captions of up to 36 word pieces (Conceptual Captions' lengths) beside 20 to
50 regions. The plain recipe does it as X-modaler does (numbers: sections of its description, ../shared/spec): batch made on the training thread once (system 9, 11), padded to its longest text and
picture (system 9) and computed so, attention with explicit weights that are returned (understanding 2), every class of every region and the whole vocabulary at every word scored (8), one group
and so one kernel of the optimizer per tensor (system 19), old gradients dropped after the forward pass (system 11), for `tden` a deep copy of the batch for the second pass (understanding 14).
Ours is the engine's way: a collated batch, our optimizer with its clipping, gradients dropped after the step. Clipping as the YAML says: `uniter` by norm, `tden` not at all. Same parameters, same loss. `uniter` restores hidden words, `tden` takes its two steps per batch.

Retrieval. 1,000 pictures (36 regions, 2,048 numbers each) and 5,000 captions; `chunks` (timed for a few captions, scaled) hands a single-stream model the
pictures beside each caption, 200 at a time: X-modaler clones the features of all pictures for every caption. `ranks` finds the ranks of all captions and pictures: the plain way
scores chunk by chunk of cloned vectors, sorts each row and looks where the right one is.
"""
import argparse, copy, json, statistics, time
import numpy as np
import torch
from torch import nn
from xmodaler_nb.config import config_file, kfg
from xmodaler_nb.datasets.collate import collate
from xmodaler_nb.datasets.images.flickr30k_single_stream import Flickr30kDatasetForSingleStreamVal
from xmodaler_nb.engine.tden_pretrainer import own_words
from xmodaler_nb.evaluation import RetrievalEvaler
from xmodaler_nb.losses import build_losses
from xmodaler_nb.modeling import build_model, load_cfg_file
from xmodaler_nb.optim import build_optimizer
from xmodaler_nb.modeling.layers.bert import REAL_ONLY
from xmodaler_nb.modeling.meta_arch.tden_pretrain import SIMILARITY
from xmodaler_nb.modeling.predictor.bert_predictor import ASKED
import plain

FAMILIES = dict(uniter='pretrain/uniter/uniter.yaml', tden='pretrain/tden/tden.yaml')
SMALL = [*plain.SMALL, 'MODEL.BERT.NUM_ATTENTION_HEADS', 4, 'MODEL.BERT.V_NUM_HIDDEN_LAYERS', 2, 'MODEL.BERT.NUM_UNDERSTANDING_LAYERS', 2, 'MODEL.BERT.V_TARGET_SIZE', 9,
         'MODEL.VISUAL_EMBED.IN_DIM', 16]
SMALL_TDEN = ['MODEL.MM_PREDICTOR.POOLER_INPUT_SIZE', 32, 'MODEL.MM_PREDICTOR.POOLER_OUTPUT_SIZE', 32]


def samples(cfg, rows, seed=0):
    "What the data set would return: captions of 8 to 20 pieces, 15 % of them hidden, and regions, 15 % of them hidden."
    g, m = torch.Generator().manual_seed(seed), cfg.MODEL
    ints = lambda low, high, *size: torch.randint(low, high, size, generator=g)
    out = []
    for i in range(rows):
        t, n = int(ints(8, 21, 1)), int(ints(20, 51, 1))
        whole, hidden, lost = ints(5, m.VOCAB_SIZE, t), torch.rand(t, generator=g) < .15, torch.rand(n, generator=g) < .15
        hidden[1], lost[1] = True, True
        ids = whole.masked_fill(hidden, 4)
        feats, none = torch.randn(n, m.VISUAL_EMBED.IN_DIM, generator=g), torch.full((1,), -1)
        seen = feats.masked_fill(lost[:,None], 0.)
        item = {kfg.IDS: str(i), kfg.ATT_FEATS: seen, kfg.ATT_FEATS_LOC: torch.rand(n, 5, generator=g), kfg.U_TOKENS_IDS: ids, kfg.U_TOKENS_TYPE: torch.zeros_like(ids),
                kfg.U_TARGET_IDS: whole.masked_fill(~hidden, -1), kfg.V_TARGET: torch.rand(n, m.BERT.V_TARGET_SIZE, generator=g).softmax(-1),
                kfg.V_TARGET_LABELS: lost.long()*2 - 1}
        if m.META_ARCHITECTURE == 'UniterPretrain': item |= {kfg.U_TOKENS_IDS_WO_MASK: whole, kfg.ATT_FEATS_WO_MASK: feats, kfg.ITM_NEG_LABEL: torch.tensor(0)}
        else: item |= {kfg.G_TOKENS_IDS: ids, kfg.G_TOKENS_TYPE: torch.ones_like(ids), kfg.G_TARGET_IDS: torch.cat([whole[1:], none])}
        out.append(item)
    return out


class Step(plain.Step):
    "One training step (of TDEN two), in either way."
    def __init__(self, cfg, plain, rows):
        self.cfg, self.plain, self.two = cfg, plain, cfg.MODEL.META_ARCHITECTURE == 'TDENPretrain'
        torch.manual_seed(0)
        self.model, self.losses, self.items = build_model(cfg).train(), build_losses(cfg), samples(cfg, rows)
        if not self.two: self.model.sampling_pool = ['mlm']
        self.opt = torch.optim.AdamW(self.model.parameters(), 1e-4, foreach=False) if plain else build_optimizer(cfg, self.model)
        self.collated = collate(self.items)

    def loss(self, second=None):
        if not self.plain: batch = self.collated
        elif second is not None: batch = self.kept
        else:
            batch = self.model.preprocess_batch([*self.items])
            self.kept = copy.deepcopy(batch) if self.two else None
        if self.two: batch = batch.merge({SIMILARITY: second is None, ASKED: not self.plain, REAL_ONLY: not self.plain, **(second or {})})
        if self.plain and not self.two:                   # UNITER asks by itself while it is trained
            out = self.model.forward_task(batch, 'mlm')
        else: out = self.model(batch)
        self.second = own_words(batch, out) if self.two and second is None else None
        return sum(v for loss in self.losses for v in loss(out).values())

    def step(self):
        first = self.update(self.loss())
        return first if not self.two else first + self.update(self.loss(self.second))

    def update(self, loss):
        if self.plain: self.opt.zero_grad(set_to_none=True)
        loss.backward()
        if self.plain and self.cfg.SOLVER.GRAD_CLIP > 0: nn.utils.clip_grad_norm_(self.model.parameters(), self.cfg.SOLVER.GRAD_CLIP, foreach=False)
        self.opt.step()
        if not self.plain: self.opt.zero_grad(set_to_none=True)
        return loss.item()


def compare(name, small, repeats, rows):
    "Medians of processor seconds per step, plain and ours, in turns; peak memory; the losses without dropout must agree."
    sizes = (SMALL + (SMALL_TDEN if name == 'tden' else [])) if small else []
    cfg = load_cfg_file(config_file(FAMILIES[name]), ['MODEL.DEVICE', 'cpu', 'MODEL.WEIGHTS', '', 'INFERENCE.VOCAB', '', *sizes])
    row = dict(name=f'{name} training step')
    want, steps = None, {}
    for key in ('peer', 'ours'):
        step = Step(cfg, key == 'peer', rows)
        if want is None: want, state = lossless(step), step.model.state_dict()
        else:
            step.model.load_state_dict(state)
            got = lossless(step)
            assert abs(got - want) < 1e-4*abs(want), f'{name}: losses differ, {want} and {got}'
        steps[key] = step
    seconds = {k: [] for k in steps}
    for i in range(repeats + 1):
        for k, step in steps.items():
            start = time.process_time()
            step()
            if i: seconds[k].append(time.process_time() - start)
    for k, step in steps.items(): row |= {f'{k}_s': statistics.median(seconds[k]), f'{k}_peak_mb': plain.profile_step(step)[0]}
    return row | dict(ratio=row['peer_s']/row['ours_s'])


def lossless(step):
    "The loss of the first pass without dropout, in the step's own way; everything is left as it was."
    kept, drops = {k: v.clone() for k, v in step.model.named_buffers()}, {m: m.p for m in step.model.modules() if isinstance(m, nn.Dropout)}
    for m in drops: m.p = 0.
    with torch.no_grad():
        if step.plain:
            with plain.plain_recipe(step.model): value = step.loss().item()
        else: value = step.loss().item()
        for k, v in step.model.named_buffers(): v.copy_(kept[k])
    for m, p in drops.items(): m.p = p
    return value


class Pool(Flickr30kDatasetForSingleStreamVal):
    "The evaluation data set with made-up pictures in memory."
    def __init__(self, images, regions, width):
        self.feats, self.locs, self.masks = torch.rand(images, regions, width), torch.rand(images, regions, 5), torch.ones(images, regions)
        self.inf_batch_size, self.broken = 200, {}

    def cloned(self, entry):
        "The chunks of a caption from features that are cloned first."
        pool = [x.clone() for x in (self.feats, self.locs, self.masks)]
        text = torch.tensor(entry['caption'])
        for feats, locs, masks in zip(*(x.split(self.inf_batch_size) for x in pool)):
            n = int(masks.sum(1).max())
            ids = text[None].repeat(len(feats), 1)
            yield {kfg.ATT_FEATS: feats[:,:n], kfg.ATT_FEATS_LOC: locs[:,:n], kfg.ATT_MASKS: masks[:,:n], kfg.U_TOKENS_IDS: ids, kfg.TOKENS_MASKS: torch.ones_like(ids)}


def scored(chunks):
    "A made-up score per picture, which reads a little of every chunk; a network's time is the same in both ways and would hide the rest."
    return torch.cat([c[kfg.ATT_FEATS][:,0,0] + c[kfg.U_TOKENS_IDS].sum(1) for c in chunks])


def chunks_row(images, captions, total, regions=36, width=2048):
    "The pictures beside each caption, as views and as clones."
    pool = Pool(images, regions, width)
    entries = [dict(caption=[2, *range(5, 17), 3], image_id=k, image_index=k, total_img_num=images) for k in range(captions)]
    assert torch.equal(scored(pool(entries[0])), scored(pool.cloned(entries[0])))
    ours, peer = (seconds(lambda: [scored(chunks(e)) for e in entries])*total/captions for chunks in (pool, pool.cloned))
    clone = sum(x.nbytes for x in (pool.feats, pool.locs, pool.masks))/2**20
    return dict(name=f'retrieval chunks, {total} captions × {images} pictures', ours_s=ours, peer_s=peer, ratio=peer/ours, ours_peak_mb=0., peer_peak_mb=clone)


def plain_ranks(v, t, image_of, chunk=200):
    "Ranks of the right pictures and of the first right captions: clone, score a chunk, sort, look."
    scores = []
    for row in t:
        pool = v.clone()
        scores.append(torch.cat([part @ row for part in pool.split(chunk)]))
    scores = torch.stack(scores)                                                  # (t, i)
    t2i = [int((row.argsort(descending=True, stable=True) == k).nonzero()[0]) + 1 for row, k in zip(scores, image_of)]
    i2t = []
    for k in image_of.unique().tolist():
        order = scores[:,k].argsort(descending=True, stable=True)
        i2t.append(int((image_of[order] == k).nonzero()[0]) + 1)
    return np.array(t2i), np.array(i2t)


def ranks_row(images, captions, total, width=256):
    "Recall in both directions from vectors."
    g = torch.Generator().manual_seed(0)
    v = torch.nn.functional.normalize(torch.randn(images, width, generator=g), dim=1)
    image_of = torch.arange(captions)*images//captions
    t = torch.nn.functional.normalize(v[image_of] + .1*torch.randn(captions, width, generator=g), dim=1)
    evaluator = RetrievalEvaler(None, '', '')
    plain_way = lambda: summary(*plain_ranks(v, t, image_of))
    ours_way = lambda: evaluator.eval(v, t, image_of)
    want, got = plain_way(), ours_way()
    for k in want: assert abs(want[k] - got[k]) < 1e-6, (k, want[k], got[k])
    ours, peer = (min(seconds(f) for _ in range(2))*total/captions for f in (ours_way, plain_way))
    return dict(name=f'retrieval ranks, {total} captions × {images} pictures', ours_s=ours, peer_s=peer, ratio=peer/ours,
                ours_peak_mb=peak(ours_way), peer_peak_mb=peak(plain_way))


def summary(t2i, i2t): return dict(r1=100*(t2i == 1).mean(), i2t_r1=100*(i2t == 1).mean(), meanr=t2i.mean())

def seconds(f):
    start = time.process_time()
    f()
    return time.process_time() - start

def peak(f):
    "Megabytes that torch allocates at once."
    from torch.profiler import ProfilerActivity, profile
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as p: f()
    return plain.allocated_peak(p)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('parts', nargs='*', default=[*FAMILIES, 'retrieval'], help=f"{', '.join(FAMILIES)}, retrieval")
    parser.add_argument('--small', action='store_true', help='tiny sizes: a smoke test')
    parser.add_argument('--repeats', type=int, default=3)
    parser.add_argument('--rows', type=int, default=8, help='captions of a training batch')
    parser.add_argument('--pictures', type=int, default=1000)
    parser.add_argument('--captions', type=int, default=5000, help='of the ranks; the chunks are timed for a few and scaled')
    parser.add_argument('--json', action='store_true', help='print the rows as one JSON list and nothing else')
    args, rows = parser.parse_args(argv), []
    if args.small: args.pictures, args.captions, args.rows, args.repeats = 20, 40, 3, 1
    for part in args.parts:
        if part in FAMILIES: made = [compare(part, args.small, args.repeats, args.rows)]
        else: made = [chunks_row(args.pictures, max(2, args.captions//500), 5000), ranks_row(args.pictures, args.captions, 5000)]
        for r in made:
            rows.append(r)
            if not args.json: print(f"{r['name']:55}{r['peer_s']:9.2f} → {r['ours_s']:8.2f} s{r['ratio']:8.2f} ×   peak {r['peer_peak_mb']:.0f} → {r['ours_peak_mb']:.0f} MB", flush=True)
    if args.json: print(json.dumps(rows))


if __name__ == '__main__': main()
