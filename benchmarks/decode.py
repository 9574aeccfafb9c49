"""How fast are captions searched for, against the plain recipe, against `transformers`, and with what else we offer?

    python benchmarks/decode.py                              # greedy, beam 3 and 5 of 32 images, against the plain recipe
    python benchmarks/decode.py --alike                      # in the setting in which X-modaler's own code was timed, with that ratio beside
    python benchmarks/decode.py --images 1 --beams 3         # one image at a time
    python benchmarks/decode.py --ending                     # sentences end where COCO's do (10.5 words on average), not all at 20 words; with --alike, too: 36 regions each
    python benchmarks/decode.py updown --alike --shortlist   # words that cannot be among the best are not multiplied (DECODE_STRATEGY.SHORTLIST)
    python benchmarks/decode.py --alike --precision int8     # with weights of one byte
    python benchmarks/decode.py --against bart               # the Transformer against `BartForConditionalGeneration.generate`
    python benchmarks/decode.py --against variants           # traced, bf16, compiled, greedy: against our own plain call
    python benchmarks/decode.py --memory                     # also the peak of memory above the start, of either way in a process of its own
    python benchmarks/decode.py --small                      # tiny sizes: a smoke test

Full size as in the YAMLs, 20 words, nobody ends early (but see `--ending`). The plain recipe decodes as X-modaler does: encoded features copied to every beam, keys and values of
the regions and of the whole history projected again at every word, attention with explicit weights over all rows at once, a full sort of beams x vocabulary (greedy:
the maximum), and history tensors gathered into new ones. `nbs/30_howto/70_how_fast.ipynb` says cost by cost what it has of X-modaler's and what not. Both ways must say the same words. Seconds are processor seconds (`--wall`: wall clock), medians of runs taken in turns; ratio = peer/ours.
"""
import argparse
import contextlib
import copy
import ctypes
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
import torch
from torch import nn
from xmodaler_nb.config import Batch, config_file, kfg
from xmodaler_nb.modeling import load_cfg_file
from xmodaler_nb.datasets.collate import collate
from xmodaler_nb.modeling import build_model
from xmodaler_nb.functional import decodes_word_pieces
from xmodaler_nb.modeling.decode_strategy import BeamSearcher, GreedyDecoder
from xmodaler_nb.modeling.decode_strategy.decode_strategy import BERT_SEP
from xmodaler_nb.modeling.decode_strategy.state import DictState
from xmodaler_nb.modeling.layers import base_attention, few_rows
from xmodaler_nb.modeling.layers.low_precision import PRECISIONS, lower_precision
from plain import FAMILIES, SMALL, SMALL_MORE, beside, explicit_attention, plain_recipe, samples

DEFAULT = ['transformer', 'meshed_memory', 'updown']
REPEATED = (kfg.ATT_FEATS, kfg.GLOBAL_FEATS, kfg.ATT_MASKS, kfg.EXT_ATT_MASKS, kfg.P_ATT_FEATS, kfg.EXT_G_TOKENS_MASKS, kfg.G_TOKENS_TYPE)
TARGETS = dict(transformer=3., meshed_memory=3., updown=2.)
# X-modaler's own code in the place of the plain recipe: 32 images of 36 regions, 1 thread
UPSTREAM = {('updown', 1): 1.07, ('updown', 3): 1.6, ('updown', 5): 1.9, ('transformer', 1): 2.3, ('transformer', 3): 4., ('transformer', 5): 4.9, ('meshed_memory', 5): 6.5, ('xlan', 5): 1.7}


def make(name, images, small=False, alike=False, ending=False):
    "Config, model in evaluation mode whose sentences do not end early, and a batch."
    opts = ['MODEL.DEVICE', 'cpu', 'INFERENCE.VOCAB', '', 'MODEL.MAX_SEQ_LEN', 20] + (SMALL + SMALL_MORE.get(name, []) if small else [])
    if small and name == 'tden': opts += ['MODEL.VOCAB_SIZE', 120]             # [CLS] and [SEP] are 101 and 102
    cfg = load_cfg_file(config_file(FAMILIES[name]), opts)
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    with torch.no_grad(): never_ends(model.predictor, cfg)
    batch = pictures(cfg, images, alike)
    if ending: end_sentences(model, batch)
    return cfg, model, batch


def pictures(cfg, images, alike=False, seed=0):
    "A batch without captions."
    batch = collate(samples(cfg, images=images, captions=1, alike=alike, seed=seed))
    words = (kfg.G_TOKENS_IDS, kfg.G_TARGET_IDS, kfg.TOKENS_MASKS)
    return Batch({k: v for k, v in batch.items() if k not in words})


def never_ends(predictor, cfg):
    "Take the end mark out of the vocabulary: word 0, or [SEP] where words are pieces."
    end = BERT_SEP if decodes_word_pieces(cfg) else 0
    bias = predictor.logits.bias if hasattr(predictor, 'logits') else predictor.bias
    if end < len(bias): bias[end] = -1e4


def first_numbers(feats):
    "Eight numbers of each image by which it can be told from the others."
    return (feats[-1] if isinstance(feats, list) else feats).flatten(1)[:,:8]


def end_sentences(model, batch):
    "Let the sentences of each image end after a number of words drawn as COCO's are (mean 10.5, standard deviation 2.4); the others of a beam end there, too."
    with torch.no_grad(): known = first_numbers(model.encode(batch)[kfg.ATT_FEATS])
    words = (torch.randn(len(known), generator=torch.Generator().manual_seed(1))*2.4 + 10.5).round().clamp(5, 19)
    def end(module, args, out):
        b, x = args[0], out[kfg.G_LOGITS]
        image = torch.cdist(first_numbers(b[kfg.ATT_FEATS]), known).argmin(-1)
        over = (words[image] <= b[kfg.TIME_STEP]).repeat_interleave(len(x)//len(image))
        x[...,0] = torch.where(over.view(-1, *[1]*(x.dim() - 2)), 1e4, x[...,0])
    model.predictor.register_forward_hook(end)


# ---- the plain recipe ----------------------------------------------------------------------------------------------------------------------------------

def plain_bert(block, x, kv, mask):
    "Attention of x (b, 1, d) to kv (b, n, d), keys and values projected here and now; residual and norm."
    s = block.self
    a, _ = explicit_attention(s.query(x), s.key(kv), s.value(kv), mask, s.num_attention_heads, s.dropout.p if s.training else 0.)
    return block.output(a, x)


def plain_transformer(model, b):
    "All layers, keys and values of all words so far and of all regions projected again."
    x, t, past = b[kfg.G_TOKEN_EMBED][:,None], b[kfg.TIME_STEP], []
    for layer, seen in zip(model.decoder.g_layers, b[kfg.HISTORY_STATES]):
        past.append(torch.cat([seen, x], 1))
        x = plain_bert(layer.self_attn, x, past[-1], b[kfg.EXT_G_TOKENS_MASKS][:,:,t:t+1,:t+1])
        x = plain_bert(layer.x_att, x, b[kfg.ATT_FEATS], b[kfg.EXT_ATT_MASKS])
        x = layer.output(layer.intermediate(x), x)
    return {kfg.G_HIDDEN_STATES: [x], kfg.HISTORY_STATES: past}


def plain_meshed(model, b):
    "The same with three levels of regions."
    x, past = b[kfg.G_TOKEN_EMBED][:,None], []
    hidden = b[kfg.ATT_MASKS].float()*-1e9
    def attend(m, q, kv, mask):
        a = m.attention
        return m.add_and_norm(q, a.fc_o(explicit_attention(a.fc_q(q), a.fc_k(kv), a.fc_v(kv), mask, a.num_head)[0]))
    for layer, seen in zip(model.decoder.layers, b[kfg.HISTORY_STATES]):
        past.append(torch.cat([seen, x], 1))
        s = attend(layer.self_att, x, past[-1], None)
        e = [attend(layer.enc_att, s, b[kfg.ATT_FEATS][:,j], hidden) for j in range(len(layer.fc_alpha))]
        x = layer.pwff(sum(torch.sigmoid(fc(torch.cat([s, y], -1)))*y for fc, y in zip(layer.fc_alpha, e))/len(e)**.5)
    return {kfg.G_HIDDEN_STATES: [x], kfg.HISTORY_STATES: past}


def plain_tden(model, b):
    "The text layers first, with the inputs of all words so far kept for each; then as the Transformer."
    x, t, past = b[kfg.G_TOKEN_EMBED][:,None], b[kfg.TIME_STEP], []
    for layer, seen in zip(model.encoder.layers, b[kfg.ENC_HISTORY_STATES]):
        past.append(torch.cat([seen, x], 1))
        x = plain_bert(layer.attention, x, past[-1], b[kfg.EXT_G_TOKENS_MASKS][:,:,t:t+1,:t+1])
        x = layer.output(layer.intermediate(x), x)
    return {**plain_transformer(model, b.merge({kfg.G_TOKEN_EMBED: x[:,0]})), kfg.ENC_HISTORY_STATES: past}


PLAIN_STEPS = dict(transformer=plain_transformer, clip_transformer=plain_transformer, tden=plain_tden, meshed_memory=plain_meshed)

def plain_start(name, model, batch):
    "Encode; one row per image."
    b = model.encode(Batch(batch).merge({kfg.G_TOKENS_TYPE: batch[kfg.G_TOKENS_TYPE][:,:20]}))
    if isinstance(b[kfg.ATT_FEATS], list): b = b.merge({kfg.ATT_FEATS: b[kfg.ATT_FEATS][-1]})      # the last layer
    if name not in PLAIN_STEPS: return Batch({k: v for k, v in b.merge(model.decoder.preprocess(b)).items() if k != kfg.P_GLOBAL_FEATS})   # multiplied again at every word
    layers = model.decoder.layers if name == 'meshed_memory' else model.decoder.g_layers
    d = b[kfg.ATT_FEATS].size(-1)
    empty = b[kfg.ATT_FEATS].new_zeros(len(batch[kfg.ATT_FEATS]), 0, d)
    return b.merge({kfg.HISTORY_STATES: [empty for _ in layers], **({kfg.ENC_HISTORY_STATES: [empty for _ in model.encoder.layers]} if name == 'tden' else {})})


class as_written(contextlib.ContextDecorator):
    "Within this context matrix products are asked for as written, and additive attention takes all rows at once."
    def __enter__(self): self.were, few_rows.MAX_ROWS, base_attention.BLOCKS = (few_rows.MAX_ROWS, base_attention.BLOCKS), 0, False
    def __exit__(self, *_): few_rows.MAX_ROWS, base_attention.BLOCKS = self.were


def plain_step(name, model, b, words, t):
    "The batch after one word, and the log-probabilities (rows, v) of the next."
    b = b.merge({kfg.G_TOKENS_IDS: words, kfg.TIME_STEP: t})
    b = b.merge(model.token_embed(b))
    b = b.merge(PLAIN_STEPS.get(name, lambda model, b: model.decoder(b))(model, b))
    return b, model.predictor(b)[kfg.G_LOGITS].view(len(words), -1).log_softmax(-1)


@as_written()
def plain_greedy(name, model, batch, steps=20, sample=False):
    "Sentences (n, steps) and log-probabilities of their words: the likeliest word at every step, or a drawn one; all rows stay until the last has ended."
    with plain_recipe(model): b = plain_start(name, model, batch)
    n, on = len(batch[kfg.ATT_FEATS]), dict(device=batch[kfg.ATT_FEATS].device)
    words, alive, sentences, log_probs = torch.zeros(n, dtype=torch.long, **on), torch.ones(n, dtype=torch.bool, **on), torch.zeros(n, steps, dtype=torch.long, **on), torch.zeros(n, steps, **on)
    for t in range(steps):
        b, lp = plain_step(name, model, b, words, t)
        if sample: words = torch.multinomial(lp.detach().exp(), 1)[:,0]
        said, words = (lp.gather(1, words[:,None])[:,0], words) if sample else lp.max(-1)
        alive = alive & (words != 0)
        words = words*alive
        sentences[:,t], log_probs[:,t] = words, said
        if not alive.any(): break
    return sentences, log_probs


@as_written()
def plain_beam(name, model, batch, k, steps=20):
    "Sentences (n, steps): full sort, everything gathered, always all steps."
    if k == 1: return plain_greedy(name, model, batch, steps)[0]
    with plain_recipe(model): b = plain_start(name, model, batch)
    n, on = len(batch[kfg.ATT_FEATS]), dict(device=batch[kfg.ATT_FEATS].device)
    words, scores, active, said = torch.zeros(n, dtype=torch.long, **on), torch.zeros(n, 1, **on), torch.ones(n, 1, 1, **on), []
    for t in range(steps):
        b, lp = plain_step(name, model, b, words, t)
        lp = lp.view(n, scores.size(1), -1)
        total = scores[...,None] + lp
        if t:
            active = active*(words.view(n, -1, 1) != 0)
            lp = lp*active
            finished_scores = scores[...,None].repeat(1, 1, lp.size(-1)); finished_scores[...,1:] = -999.
            total = active*total + (1 - active)*finished_scores
        scores, order = total.flatten(1).sort(-1, descending=True)
        scores, order = scores[:,:k], order[:,:k]
        beams, word = order//lp.size(-1), order % lp.size(-1)
        rows = (beams + torch.arange(n, **on)[:,None]*lp.size(1)).flatten()
        for key in (k for k in (kfg.HISTORY_STATES, kfg.ENC_HISTORY_STATES) if k in b) if kfg.HISTORY_STATES in b else (kfg.G_HIDDEN_STATES, kfg.G_CELL_STATES): b[key] = [s[rows] for s in b[key]]
        word_lp = lp.gather(1, beams[...,None].expand(-1, -1, lp.size(-1))).gather(2, word[...,None])[...,0]
        active, said = active.gather(1, beams[...,None]), [(w.gather(1, beams), p.gather(1, beams)) for w, p in said] + [(word, word_lp)]
        words = word.flatten()
        if t == 0: b = b.merge({key: b[key].repeat_interleave(k, 0) for key in REPEATED if torch.is_tensor(b.get(key)) and len(b[key]) == n})
    return torch.stack([w for w, _ in said], -1)[:,0]


# ---- ours ----------------------------------------------------------------------------------------------------------------------------------------------

def ours(cfg, model, batch, k, **kw):
    "A function that decodes the batch."
    strategy = BeamSearcher(cfg, beam_size=k, **kw) if k > 1 else GreedyDecoder(cfg, tail='drop', **kw)   # as evaluation and captioner do it
    return lambda: strategy(batch, False, model)[kfg.G_SENTS_IDS]


def with_shortlist(args, cfg, model, batch, k):
    "The same with a shortlist that has learnt from other pictures."
    for seed in range(1, 1 + 8*args.shortlist):
        with torch.inference_mode(): ours(cfg, model, pictures(cfg, args.images, args.alike, seed), k, shortlist=True)()
    return ours(cfg, model, batch, k, shortlist=args.shortlist)


def timed(functions, repeats, clock):
    "Median seconds of each function, called in turns; the first round warms up."
    seconds = {name: [] for name in functions}
    with torch.inference_mode():
        for i in range(repeats + 1):
            for name, f in functions.items():
                start = clock()
                f()
                if i: seconds[name].append(clock() - start)
    return {name: statistics.median(s) for name, s in seconds.items()}


def row(name, ours_s, peer_s, **more): return dict(name=name, ours_s=ours_s, peer_s=peer_s, ratio=peer_s/ours_s, **more)

def equal_share(a, b): return (a == b).all(-1).float().mean().item()


def resident(field):
    "A number of megabytes from the kernel's record of this process (Linux)."
    return int(Path('/proc/self/status').read_text().split(field + ':')[1].split()[0])/1024


def peak_above_start(f, warm_up):
    "Megabytes of resident memory that a call needs at most, above what is there before it; what was freed earlier is given back first."
    warm_up()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path('/proc/self/clear_refs').write_text('5')                  # the peak begins anew
    start = resident('VmRSS')
    f()
    return resident('VmHWM') - start


def measure_memory(name, k, way, images, small, alike):
    "The peak of one search, in this process."
    cfg, model, batch = make(name, images, small, alike)
    one = make(name, 1, small, alike)[2]
    run = lambda batch: ours(cfg, model, batch, k)() if way == 'ours' else plain_beam(name, model, batch, k)
    with torch.inference_mode(): return peak_above_start(lambda: run(batch), lambda: run(one))


def memory_of(name, k, args):
    "Peaks of both ways, each in a fresh process."
    call = lambda way: f'import decode; print(decode.measure_memory({name!r}, {k}, {way!r}, {args.images}, {args.small}, {args.alike}))'
    fresh = lambda way: subprocess.run([sys.executable, '-c', call(way)], cwd=Path(__file__).parent, env={**os.environ, 'OMP_NUM_THREADS': str(torch.get_num_threads())}, capture_output=True, text=True, check=True)
    return {f'{side}_peak_mb': float(fresh(way).stdout.split()[-1]) for side, way in (('ours', 'ours'), ('peer', 'plain'))}


def against_plain(args):
    "Rows: family, beam."
    for name in args.families:
        cfg, model, batch = make(name, args.images, args.small, args.alike, args.ending)
        packed = lower_precision(copy.deepcopy(model), args.precision)
        for k in args.beams:
            functions = dict(ours=with_shortlist(args, cfg, packed, batch, k), plain=lambda: plain_beam(name, model, batch, k))
            with torch.inference_mode(): same = equal_share(functions['ours'](), functions['plain']())
            if same < 0.9 and args.precision == 'float32': raise SystemExit(f'{name}, beam {k}: only {same:.0%} of the sentences agree')         # now and then a tie falls the other way
            s = timed(functions, args.repeats, args.clock)
            upstream = UPSTREAM.get((name, k)) if args.alike and args.images == 32 and not args.ending else None
            memory = memory_of(name, k, args) if args.memory else {}
            yield row(f'{name} beam {k}' if k > 1 else f'{name} greedy', s['ours'], s['plain'], target=TARGETS.get(name) if k > 1 else None, same_sentences=same, upstream=upstream and (upstream, upstream), **memory)


# ---- transformers --------------------------------------------------------------------------------------------------------------------------------------

class GivenEncoderStates:
    "Our Transformer with encoder states handed in."
    def __init__(self, model): self.model = model
    def init_state(self, batch):
        b = batch.merge(self.model.get_extended_attention_mask(batch))
        return DictState.from_batch(b.merge(self.model.decoder.preprocess(b)), self.model.decoder)
    def step(self, tokens, state): return self.model.step(tokens, state)


def bart_like(cfg, words=20):
    "A BART decoder of the same width, depth and vocabulary."
    from transformers import BartConfig, BartForConditionalGeneration
    m = cfg.MODEL
    c = BartConfig(vocab_size=m.VOCAB_SIZE, d_model=m.BERT.HIDDEN_SIZE, decoder_layers=m.BERT.NUM_GENERATION_LAYERS, decoder_attention_heads=m.BERT.NUM_ATTENTION_HEADS,
                   decoder_ffn_dim=m.BERT.INTERMEDIATE_SIZE, encoder_layers=1, encoder_attention_heads=m.BERT.NUM_ATTENTION_HEADS, encoder_ffn_dim=m.BERT.INTERMEDIATE_SIZE,
                   activation_function='relu', max_position_embeddings=64, bos_token_id=0, eos_token_id=0, pad_token_id=0, decoder_start_token_id=0, forced_eos_token_id=None)
    return BartForConditionalGeneration(c).eval()


def against_bart(args):
    "Rows: beam. Both get the same encoder states (n, 50, d) and all of them are real."
    sys.modules.setdefault('torchvision', None)        # not needed for text, and one that does not fit torch would stop the import
    from transformers.modeling_outputs import BaseModelOutput
    cfg, model, _ = make('transformer', 1, args.small)
    d, n = cfg.MODEL.BERT.HIDDEN_SIZE, args.images
    peer, states, mask = bart_like(cfg), torch.randn(n, 50, d), torch.ones(n, 50, dtype=torch.long)
    batch = Batch({kfg.ATT_FEATS: states, kfg.ATT_MASKS: mask.float(), kfg.G_TOKENS_TYPE: torch.ones(n, 20, dtype=torch.long)})
    for k in args.beams:
        def generate():
            out = peer.generate(encoder_outputs=BaseModelOutput(last_hidden_state=states), attention_mask=mask, num_beams=k, max_new_tokens=20, min_new_tokens=20, do_sample=False,
                                length_penalty=0., early_stopping=False)
            assert out.shape == (n, 21), out.shape
        s = timed(dict(ours=ours(cfg, GivenEncoderStates(model), batch, k), bart=generate), args.repeats, args.clock)
        yield row(f'transformer beam {k}, states handed in, against BART', s['ours'], s['bart'], target=1.)


# ---- what else we offer --------------------------------------------------------------------------------------------------------------------------------

def compiled(model):
    "The model with its decoder and predictor compiled, shapes free."
    model.decoder.forward = torch.compile(model.decoder.forward, dynamic=True)
    model.predictor.forward = torch.compile(model.predictor.forward, dynamic=True)
    return model


def variants(args):
    "Rows: what another way of decoding costs; ratio < 1: it is slower than the plain call of ours."
    for name in args.families:
        for k in args.beams[:1]:
            cfg, model, batch = make(name, args.images, args.small)
            half = make(name, args.images, args.small)[1].bfloat16()
            half_batch = batch.merge({key: v.bfloat16() for key, v in batch.items() if torch.is_tensor(v) and v.is_floating_point()})
            functions = dict(ours=ours(cfg, model, batch, k), traced=ours(cfg, model, batch, k, trace=True), bf16=ours(cfg, half, half_batch, k))
            if args.compile: functions['compiled'] = ours(cfg, compiled(make(name, args.images, args.small)[1]), batch, k)
            s = timed({**functions, 'greedy': ours(cfg, model, batch, 1)}, args.repeats, args.clock)
            for other in list(s)[1:]: yield row(f'{name} beam {k}, {other}', s[other], s['ours'], target=1/1.15 if other == 'traced' else None)


AGAINST = dict(plain=against_plain, bart=against_bart, variants=variants)

def parse(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('families', nargs='*', default=DEFAULT, help=', '.join(FAMILIES))
    parser.add_argument('--against', default='plain', choices=AGAINST)
    parser.add_argument('--images', type=int, default=32)
    parser.add_argument('--beams', type=int, nargs='+', default=None, help='1: greedy; default: 1, 3 and 5 against the plain recipe, else 3 and 5')
    parser.add_argument('--repeats', type=int, default=3)
    parser.add_argument('--alike', action='store_true', help="36 regions each, as when X-modaler's own code was timed; its ratio is printed beside ours")
    parser.add_argument('--ending', action='store_true', help="sentences end where COCO's do")
    parser.add_argument('--precision', default='float32', choices=PRECISIONS, help="against the plain recipe: of our weights; untrained captions then differ now and then")
    parser.add_argument('--shortlist', action='store_true', help='against the plain recipe: multiply only words that may be among the best')
    parser.add_argument('--memory', action='store_true', help='against the plain recipe: also the peak of resident memory above the start (Linux)')
    parser.add_argument('--compile', action='store_true', help='with --against variants: torch.compile, too (needs a C++ compiler)')
    parser.add_argument('--wall', action='store_true', help='wall clock instead of processor time')
    parser.add_argument('--small', action='store_true', help='tiny sizes: a smoke test')
    parser.add_argument('--json', action='store_true', help='print the rows as one JSON list and nothing else')
    args = parser.parse_args(argv)
    args.clock, args.beams = time.perf_counter if args.wall else time.process_time, args.beams or ([1, 3, 5] if args.against == 'plain' else [3, 5])
    return args


def main(argv=None):
    args = parse(argv)
    if not args.json: print(f"{'':58}{'ours s':>9}{'peer s':>9}{'ratio':>8}{'target':>8}   ({args.images} images, {torch.get_num_threads()} threads)")
    rows = []
    for r in AGAINST[args.against](args):
        rows.append(r)
        if not args.json: print(f"{r['name']:58}{r['ours_s']:9.3f}{r['peer_s']:9.3f}{r['ratio']:8.2f}{str(r['target'] or '')[:5]:>8}{beside(r)}{peaks(r)}", flush=True)
    if args.json: print(json.dumps(rows))


def peaks(r): return f"   peak {r['peer_peak_mb']:.0f} → {r['ours_peak_mb']:.0f} MB" if 'ours_peak_mb' in r else ''


if __name__ == '__main__': main()
