"""Training steps against the plain recipe, as ratios in one run.

    python benchmarks/plain.py                    # Up-Down and Transformer at the published sizes
    python benchmarks/plain.py --all --repeats 5  # every captioner
    python benchmarks/plain.py --profile updown   # also peak memory and the share of matrix products
    python benchmarks/plain.py --alike            # in the setting in which X-modaler's own code was timed, with that ratio beside
    python benchmarks/plain.py --pack --bf16      # with ENGINE.PACK_WORDS, with ENGINE.AMP
    python benchmarks/plain.py --json             # rows as JSON
    python benchmarks/plain.py --small            # a smoke test

One step = list of samples → batch → forward → loss → backward → clip → Adam, for 8 images with 5 captions of up to 20 words whose lengths are spread as in COCO.
The plain recipe does it as X-modaler does: batch made on the training thread and features expanded to all captions first, visual embedding and encoder on the
expanded rows, one LSTM cell and one predictor call per word, attention with explicit weights, one optimizer kernel per tensor. Same parameters, same loss.
"""
import argparse, json, statistics, time
import torch
from torch import nn
from xmodaler_nb.config import config_file, kfg
from xmodaler_nb.modeling import load_cfg_file
from xmodaler_nb.datasets.collate import collate
from xmodaler_nb.losses import build_losses
from xmodaler_nb.modeling import build_model
from xmodaler_nb.modeling.decoder.recurrent import RecurrentDecoder

FAMILIES = dict(updown='image_caption/updown/updown.yaml', transformer='image_caption/transformer/transformer.yaml',
                attention='image_caption/attention/attention.yaml', xlan='image_caption/xlan/xlan.yaml', meshed_memory='image_caption/meshed_memory/meshed_memory.yaml',
                clip_transformer='image_caption/transformer/clip_transformer.yaml', mplstm='video_caption/msvd/mplstm/mplstm.yaml',
                gcn='image_caption/gcn/gcn.yaml', lstm_a='image_caption/lstm-A/lstm-A.yaml', cosnet='image_caption/cosnet/cosnet.yaml', tden='image_caption/tden/tden.yaml',
                salstm='video_caption/msvd/salstm/salstm.yaml', video_transformer='video_caption/msvd/transformer/transformer.yaml', tdconved='video_caption/msvd/tdconved/tdconved.yaml')
UPSTREAM = dict(updown=(1.9, 2.25), transformer=(2., 2.2))     # X-modaler's own code in the place of the plain recipe, 36 regions each, captions of full length, 1 thread
SMALL = ['MODEL.VOCAB_SIZE', 60, 'MODEL.TOKEN_EMBED.DIM', 32, 'MODEL.VISUAL_EMBED.OUT_DIM', 32, 'MODEL.DECODER_DIM', 32, 'MODEL.BERT.HIDDEN_SIZE', 32,
         'MODEL.BERT.INTERMEDIATE_SIZE', 64, 'MODEL.BERT.NUM_HIDDEN_LAYERS', 2, 'MODEL.BERT.NUM_GENERATION_LAYERS', 2]


SMALL_MORE = dict(xlan=['MODEL.BILINEAR.DIM', 32, 'MODEL.BILINEAR.HEAD', 2, 'MODEL.BILINEAR.ENCODE.ATT_MID_DIM', [16, 8, 16], 'MODEL.BILINEAR.DECODE.ATT_MID_DIM', [16, 8, 16]],
                 meshed_memory=[x for k in ('ENCODER', 'DECODER') for x in (f'MODEL.MESHEDMEORY.{k}.DIM_MODEL', 32, f'MODEL.MESHEDMEORY.{k}.DIM_FEEDFORWARD', 64)],
                 clip_transformer=['MODEL.VISUAL_EMBED.G_IN_DIM', 32], cosnet=['MODEL.VISUAL_EMBED.G_IN_DIM', 32, 'MODEL.COSNET.NUM_CLASSES', 20, 'MODEL.COSNET.NUM_SEMCOMPHDER_LAYERS', 1],
                 gcn=['MODEL.VISUAL_EMBED.IN_DIM', 40, 'MODEL.VISUAL_EMBED.OUT_DIM', 40, 'MODEL.GCN.IN_DIM', 40, 'MODEL.GCN.OUT_DIM', 40],
                 tden=['MODEL.BERT.V_NUM_HIDDEN_LAYERS', 2, 'MODEL.BERT.NUM_ATTENTION_HEADS', 4], tdconved=['MODEL.TDCONVED.ENCODER.HIDDEN_SIZE', 32, 'MODEL.TDCONVED.DECODER.HIDDEN_SIZE', 32])


def samples(cfg, images=8, captions=5, words=20, regions=50, seed=0, alike=False):
    "What a data set would return: features, and captions with COCO's spread of lengths (mean 10.5, standard deviation 2.4); `alike`: 36 regions each, captions of full length."
    if alike: regions = 36
    g = torch.Generator().manual_seed(seed)
    grid, out = cfg.MODEL.VISUAL_EMBED.NAME == 'VisualGridEmbedding', []
    for i in range(images):
        n = cfg.DATALOADER.MAX_FEAT_NUM - 1 if grid else 36 if cfg.MODEL.ENCODER == 'GCNEncoder' else int(torch.randint(regions//2, regions + 1, (1,), generator=g)) if i and not alike else regions
        tokens, targets = [], []
        for _ in range(captions):
            k = words - 1 if alike else int((torch.randn(1, generator=g)*2.4 + 10.5).round().clamp(5, words - 1))
            w = torch.randint(1, cfg.MODEL.VOCAB_SIZE, (k,), generator=g)
            tokens.append(torch.cat([torch.zeros(1), w, torch.zeros(words - 1 - k)]).long())
            targets.append(torch.cat([w, torch.zeros(1), torch.full((words - 1 - k,), -1)]).long())
        item = {kfg.IDS: str(i), kfg.ATT_FEATS: torch.randn(n, cfg.MODEL.VISUAL_EMBED.IN_DIM, generator=g), kfg.SEQ_PER_SAMPLE: torch.tensor(captions),
                kfg.G_TOKENS_IDS: tokens, kfg.G_TARGET_IDS: targets, kfg.G_TOKENS_TYPE: [torch.ones_like(t) for t in tokens]}
        if grid: item[kfg.GLOBAL_FEATS] = torch.randn(1, cfg.MODEL.VISUAL_EMBED.G_IN_DIM, generator=g)
        out.append({**item, **extra_fields(cfg.MODEL, n, captions, g)})
    return out


def extra_fields(m, n, captions, g):
    "What some models eat besides features."
    ints = lambda high, *size: torch.randint(high, size, generator=g)
    if m.ENCODER == 'GCNEncoder': return {kfg.RELATION: ints(m.GCN.RELATION_NUM, n, n)}
    if m.DECODER == 'AttributeDecoder': return {kfg.ATT_FEATS: torch.zeros(1, 1), kfg.ATTRIBUTE: torch.rand(m.LSTMA.ATTRIBUTE_DIM, generator=g), kfg.GLOBAL_FEATS: torch.randn(m.VISUAL_EMBED.IN_DIM, generator=g)}
    if m.VISUAL_EMBED.LOCATION_SIZE > 0: return {kfg.ATT_FEATS_LOC: torch.rand(n, 5, generator=g)}
    if m.ENCODER != 'COSNetEncoder': return {}
    c, words = m.COSNET.NUM_CLASSES, 12
    return {kfg.SEMANTICS_IDS: [ints(c, words) for _ in range(captions)], kfg.SEMANTICS_LABELS: [ints(c + 1, words) for _ in range(captions)], kfg.SEMANTICS_MISS_LABELS: [ints(2, c + 1) for _ in range(captions)]}


def explicit_attention(q, k, v, mask, heads, dropout=0., probs=False):
    "Attention as X-modaler computes it: scores, softmax, dropout, product."
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    s = q @ k.transpose(-1, -2)/q.size(-1)**.5
    p = (s if mask is None else s + mask).softmax(-1)
    return (nn.functional.dropout(p, dropout) @ v).transpose(1, 2).flatten(2), p


class plain_recipe:
    "Within this context our modules work as the plain recipe does."
    def __init__(self, model): self.model = model
    def __enter__(self):
        self.nested = not hasattr(RecurrentDecoder, 'unroll')      # already within such a context
        if self.nested: return
        from xmodaler_nb.modeling.layers import base_attention, bert, cosnet_layer, dropout
        self.switches, dropout.FEW_BITS, base_attention.BLOCKS = (dropout, base_attention, dropout.FEW_BITS, base_attention.BLOCKS), False, False
        self.attention_modules, self.attend = (bert, cosnet_layer), bert.attend
        self.model.expand = 'early'
        for m in self.attention_modules: m.attend = explicit_attention
        self.unroll = RecurrentDecoder.unroll
        del RecurrentDecoder.unroll
    def __exit__(self, *_):
        if self.nested: return
        dropout, base_attention, dropout.FEW_BITS, base_attention.BLOCKS = self.switches
        self.model.expand = 'late'
        for m in self.attention_modules: m.attend = self.attend
        RecurrentDecoder.unroll = self.unroll


class Step:
    "One training step, in either way."
    def __init__(self, cfg, plain, alike=False, pack=False, half=False):
        self.cfg, self.plain, self.pack, self.half = cfg, plain, pack, half
        torch.manual_seed(0)
        self.model, self.losses, self.items = build_model(cfg).train(), build_losses(cfg), samples(cfg, alike=alike)
        self.opt = torch.optim.Adam(self.model.parameters(), 1e-4, foreach=False, **({} if plain else {'fused': True}))
        self.collated = collate(self.items)                       # our loader's workers do this

    def loss(self):
        with torch.autocast('cpu', torch.bfloat16, enabled=self.half): return self.forward()

    def forward(self):
        batch = self.model.preprocess_batch([*self.items]) if self.plain else self.collated
        valid = batch[kfg.G_TARGET_IDS] >= 0
        lengths = {kfg.TOKENS_LENGTHS: valid.sum(1).tolist()} if self.pack else {}
        out = self.model({**batch, kfg.SS_PROB: 0., **lengths})
        if out[kfg.G_LOGITS].dim() == 2: out = {**out, kfg.G_TARGET_IDS: batch[kfg.G_TARGET_IDS][valid]}   # words of all captions in a row
        return sum(v for loss in self.losses for v in loss(out).values())

    def __call__(self):
        if not self.plain: return self.step()
        with plain_recipe(self.model): return self.step()

    def step(self):
        self.opt.zero_grad(set_to_none=True)
        loss = self.loss()
        loss.backward()
        nn.utils.clip_grad_value_(self.model.parameters(), 0.1, foreach=not self.plain)
        self.opt.step()
        return loss.item()


def without_dropout(step):
    for m in step.model.modules():
        if isinstance(m, nn.Dropout): m.p = 0.
    return step


PRODUCTS = ('mm', 'addmm', 'bmm', 'baddbmm', 'mv', 'linear', 'mkldnn_linear', 'mkldnn_convolution', 'convolution_backward', '_scaled_dot_product_flash_attention_for_cpu',
            '_scaled_dot_product_flash_attention_for_cpu_backward')

def allocated_peak(profiled):
    "The most that torch had allocated at once while a profiler watched (MB)."
    now = peak = 0
    for e in sorted((e for e in profiled.profiler.kineto_results.events() if e.name() == '[memory]'), key=lambda e: e.start_ns()):
        now += e.nbytes()
        peak = max(peak, now)
    return peak/2**20


def profile_step(step):
    "Peak of what one step allocates (MB), and the share of its time that matrix products take."
    from torch.profiler import ProfilerActivity, profile
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as p: step()
    rows = p.key_averages()
    return allocated_peak(p), sum(r.self_cpu_time_total for r in rows if r.key.removeprefix('aten::') in PRODUCTS)/sum(r.self_cpu_time_total for r in rows)


def compare(name, small=False, repeats=3, with_profile=False, alike=False, pack=False, half=False):
    "Medians of processor seconds per step, plain and ours, taken in turns; the first losses must agree."
    opts = ['MODEL.DEVICE', 'cpu', 'INFERENCE.VOCAB', ''] + (SMALL + SMALL_MORE.get(name, []) if small else [])
    cfg = load_cfg_file(config_file(FAMILIES[name]), opts)
    plain, ours = Step(cfg, True, alike), Step(cfg, False, alike, pack, half)
    seconds = {plain: [], ours: []}
    for i in range(repeats + 1):
        for step in (plain, ours):
            start = time.process_time()
            step()
            if i: seconds[step].append(time.process_time() - start)
    a, b = (statistics.median(seconds[s]) for s in (plain, ours))
    row = dict(name=name, ours_s=b, peer_s=a, ratio=a/b, upstream=UPSTREAM.get(name) if alike else None)
    if with_profile: (row['peer_peak_mb'], row['peer_products']), (row['ours_peak_mb'], row['ours_products']) = profile_step(plain), profile_step(ours)
    without_dropout(ours).model.load_state_dict(without_dropout(plain).model.state_dict())
    with plain_recipe(plain.model): want = plain.loss().item()
    got = ours.loss().item()
    assert abs(got - want) < (1e-2 if half else 1e-4)*abs(want), f'{name}: losses differ, {want} and {got}'
    return row


def beside(r):
    "What X-modaler's own code took, as a multiple of ours, when both were timed side by side: the least and the most that was seen."
    if not r.get('upstream'): return ''
    least, most = r['upstream']
    return f"   against X-modaler's own code {least}" + (f'–{most}' if most > least else '')


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('families', nargs='*', default=['updown', 'transformer'], help=', '.join(FAMILIES))
    parser.add_argument('--all', action='store_true', help='every family')
    parser.add_argument('--alike', action='store_true', help="36 regions each and captions of full length, as when X-modaler's own code was timed; its ratio is printed beside ours")
    parser.add_argument('--pack', action='store_true', help='with ENGINE.PACK_WORDS: what is behind the end of a caption is left out')
    parser.add_argument('--bf16', action='store_true', help='our products in bf16 (ENGINE.AMP)')
    parser.add_argument('--small', action='store_true', help='tiny sizes: a smoke test')
    parser.add_argument('--repeats', type=int, default=3)
    parser.add_argument('--profile', action='store_true', help='also peak memory and the share of matrix products')
    parser.add_argument('--json', action='store_true', help='print the rows as one JSON list and nothing else')
    args = parser.parse_args()
    if not args.json: print(f"{'':20}{'plain s':>9}{'ours s':>9}{'ratio':>8}   ({torch.get_num_threads()} threads)")
    rows = []
    for name in FAMILIES if args.all else args.families:
        r = compare(name, args.small, args.repeats, args.profile, args.alike, args.pack, args.bf16)
        rows.append(r)
        more = f"   peak {r['peer_peak_mb']:.0f} → {r['ours_peak_mb']:.0f} MB, products {r['peer_products']:.0%} → {r['ours_products']:.0%}" if args.profile else ''
        if not args.json: print(f"{name:20}{r['peer_s']:9.2f}{r['ours_s']:9.2f}{r['ratio']:8.2f}{beside(r)}{more}", flush=True)
    if args.json: print(json.dumps(rows))


if __name__ == '__main__': main()
