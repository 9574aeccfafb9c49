"What every strategy must keep: few looks at the device, untouched batches, keys that arrive, models that step in half precision."
import copy
import pytest, torch
from torch.utils._python_dispatch import TorchDispatchMode
from xmodaler_nb.config import Batch, kfg
from xmodaler_nb.modeling import load_cfg_file
from xmodaler_nb.modeling import build_model
from xmodaler_nb.modeling.layers.history import can_share
from xmodaler_nb.modeling.layers.rows import unique_rows
from xmodaler_nb.modeling.layers.word_gates import can_look_up
from xmodaler_nb.modeling.decode_strategy import BeamSearcher, DiverseBeamSearcher, EnsembleBeamSearcher, GreedyDecoder, build_beam_searcher, build_greedy_decoder

V, T = 40, 12
TINY = ['MODEL.DEVICE', 'cpu', 'INFERENCE.VOCAB', '', 'MODEL.VOCAB_SIZE', V, 'MODEL.MAX_SEQ_LEN', T]
UPDOWN = ('image_caption/updown/updown.yaml', ['MODEL.VISUAL_EMBED.IN_DIM', 20, 'MODEL.DECODER_DIM', 16, 'MODEL.TOKEN_EMBED.DIM', 16, 'MODEL.VISUAL_EMBED.OUT_DIM', 16, 'MODEL.UPDOWN.ATT_EMBED_SIZE', 8])
TRANSFORMER = ('image_caption/transformer/transformer.yaml', ['MODEL.VISUAL_EMBED.IN_DIM', 20, 'MODEL.VISUAL_EMBED.OUT_DIM', 16, 'MODEL.TOKEN_EMBED.DIM', 16, 'MODEL.BERT.HIDDEN_SIZE', 16, 'MODEL.DECODER_DIM', 16, 'MODEL.BERT.NUM_ATTENTION_HEADS', 4,
               'MODEL.BERT.INTERMEDIATE_SIZE', 24, 'MODEL.BERT.NUM_HIDDEN_LAYERS', 2, 'MODEL.BERT.NUM_GENERATION_LAYERS', 2])


def make(which, *more):
    torch.manual_seed(2)
    yaml, opts = which
    cfg = load_cfg_file(yaml, [*TINY, *opts, *more])
    model = build_model(cfg).eval()
    with torch.no_grad():
        for p in model.predictor.parameters(): p.mul_(4)
    return cfg, model

def batch(n=6):
    torch.manual_seed(3)
    masks = torch.ones(n, 5); masks[1, 3:] = 0
    return Batch(IDS=list(range(n)), ATT_FEATS=torch.randn(n, 5, 20)*masks[...,None], ATT_MASKS=masks, G_TOKENS_TYPE=torch.ones(n, T, dtype=torch.long))


class Looks(TorchDispatchMode):
    "Counts what would make the program wait for an accelerator: reading a value, sizes that depend on values, and numbers sent there."
    READS = ('_local_scalar_dense', 'nonzero', 'is_nonzero', 'equal', 'masked_select', '_unique2', 'repeat_interleave.Tensor', 'lift_fresh')
    def __init__(self): super().__init__(); self.seen = []
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func).removeprefix('aten.')
        masked = name.startswith('index.Tensor') and any(getattr(i, 'dtype', None) == torch.bool for i in args[1])
        if masked or any(name.startswith(r) for r in self.READS): self.seen.append(name)
        return func(*args, **(kwargs or {}))

STRATEGIES = {
    'greedy': (GreedyDecoder, {}), 'greedy, rows leave': (GreedyDecoder, dict(tail='drop')), 'sampling': (GreedyDecoder, dict(temperature=.8, top_k=10, top_p=.9)),
    'beam': (BeamSearcher, dict(beam_size=3)), 'beam, penalty': (BeamSearcher, dict(beam_size=3, length_penalty=.7)), 'diverse': (DiverseBeamSearcher, dict(beam_size=4, groups=2)),
    'rules': (BeamSearcher, dict(beam_size=3, min_length=3, max_length=9, no_repeat_ngram=2, banned_words=[5, 6])), 'required': (BeamSearcher, dict(beam_size=3, required_words=[7, 9])),
    'ensemble': (EnsembleBeamSearcher, dict(beam_size=3)), 'beam, traced': (BeamSearcher, dict(beam_size=3, trace=True))}

@pytest.mark.parametrize('which', [UPDOWN, TRANSFORMER], ids=['updown', 'transformer'])
@pytest.mark.parametrize('name', STRATEGIES)
def test_at_most_one_look_every_four_steps(which, name, monkeypatch):
    monkeypatch.setattr('xmodaler_nb.modeling.decoder.recurrent.unique_rows', lambda names, rows=None: None)      # as on a device (next test)
    monkeypatch.setattr('xmodaler_nb.modeling.decode_strategy.state.can_share', lambda rows: False)
    monkeypatch.setattr('xmodaler_nb.modeling.decoder.recurrent.can_look_up', lambda words: False)
    cfg, model = make(which)
    kind, kw = STRATEGIES[name]
    s = kind(cfg, sync_every=4, **kw)
    b = batch().merge({kfg.DECODE_BY_SAMPLE: True} if name == 'sampling' else {})
    with torch.no_grad():
        s(b, False, model)                                              # ids become tensors once
        once = Looks()
        with once: model.init_state(Batch(b))                           # what the model itself does before the first word is not the loop's
        looks = Looks()
        with looks: s(b, False, model)
    allowed = (T-1)//4                                                  # none after the last step
    setup = len(once.seen) + (name == 'ensemble')                       # its weights go to the device once
    assert len(looks.seen) - setup <= allowed, looks.seen


def test_only_the_processor_looks_for_equal_rows():
    names = torch.tensor([3, 3, 3, 3])
    assert unique_rows(names) is not None and unique_rows(names.to('meta')) is None
    assert can_look_up(torch.ones(4, 2)) and not can_look_up(torch.ones(4, 2, device='meta'))
    with torch.no_grad(): assert can_share(names) and not can_share(names.to('meta'))


@pytest.mark.parametrize('name', ['beam', 'beam, penalty', 'diverse', 'rules', 'required', 'ensemble', 'sampling'])
def test_a_shared_history_changes_nothing(name, monkeypatch):
    "The same captions and log-probabilities as with a history for every sentence, and a smaller history."
    cfg, model = make(TRANSFORMER)
    kind, kw = STRATEGIES[name]
    b, sizes = batch().merge({kfg.DECODE_BY_SAMPLE: True, kfg.OUT_SIZE: 3} if name == 'sampling' else {}), []
    forward = model.decoder.forward
    def watched(batch):
        out = forward(batch)
        sizes[-1] = max(sizes[-1], *(h.size(0)*h.size(1) for h in out[kfg.HISTORY_STATES]))
        return out
    model.decoder.forward = watched
    def decode():
        sizes.append(0)
        torch.manual_seed(1)
        with torch.no_grad(): return kind(cfg, **kw)(b, False, model)
    shared = decode()
    monkeypatch.setattr('xmodaler_nb.modeling.decode_strategy.state.can_share', lambda rows: False)
    own = decode()
    assert torch.equal(shared[kfg.G_SENTS_IDS], own[kfg.G_SENTS_IDS])
    assert torch.allclose(shared[kfg.G_LOGP], own[kfg.G_LOGP], atol=1e-5)
    assert sizes[0] < sizes[1]


@pytest.mark.parametrize('which', [UPDOWN, TRANSFORMER], ids=['updown', 'transformer'])
@pytest.mark.parametrize('name', STRATEGIES)
def test_how_often_it_looks_changes_nothing(which, name):
    if name == 'sampling': pytest.skip('rows that never leave draw more numbers')
    cfg, model = make(which)
    kind, kw = STRATEGIES[name]
    kw = {**kw, 'trace': False}
    with torch.no_grad(): first, *rest = [kind(cfg, sync_every=e, **kw)(batch(), False, model)[kfg.G_SENTS_IDS] for e in (1, 3, 4, 99)]
    assert all(torch.equal(first, r) for r in rest)


def test_every_key_arrives():
    cfg, _ = make(UPDOWN, 'DECODE_STRATEGY.NAME', 'DiverseBeamSearcher', 'DECODE_STRATEGY.BEAM_SIZE', 6, 'DECODE_STRATEGY.GROUPS', 3, 'DECODE_STRATEGY.DIVERSITY', 1.5, 'DECODE_STRATEGY.TAIL', 'drop',
                  'DECODE_STRATEGY.SYNC_EVERY', 2, 'DECODE_STRATEGY.TEMPERATURE', .7, 'DECODE_STRATEGY.TOP_K', 9, 'DECODE_STRATEGY.TOP_P', .8, 'DECODE_STRATEGY.MIN_LENGTH', 2, 'DECODE_STRATEGY.MAX_LENGTH', 8,
                  'DECODE_STRATEGY.LENGTH_PENALTY', .3, 'DECODE_STRATEGY.NO_REPEAT_NGRAM', 3, 'DECODE_STRATEGY.BANNED_WORDS', '[4, 5]')
    b, g = build_beam_searcher(cfg), build_greedy_decoder(cfg)
    assert (type(b).__name__, b.beam_size, b.groups, b.diversity, b.length_penalty, b.sync_every) == ('DiverseBeamSearcher', 6, 3, 1.5, .3, 2)
    assert (g.tail, g.temperature, g.top_k, g.top_p, g.sync_every) == ('drop', .7, 9, .8, 2)
    for s in (b, g): assert (s.rules.min_length, s.rules.max_length, s.rules.no_repeat_ngram, s.rules.banned) == (2, 8, 3, [4, 5])
    cfg = cfg.clone(); cfg.defrost()
    cfg.DECODE_STRATEGY.GROUPS, cfg.DECODE_STRATEGY.REQUIRED_WORDS = 1, [7]
    assert build_beam_searcher(cfg).rules.required == [7]


def test_rules_hold_in_every_strategy():
    cfg, model = make(UPDOWN)
    kw = dict(min_length=4, max_length=8, no_repeat_ngram=2, banned_words=[5, 6], required_words=[7, 9])
    with torch.no_grad():
        outs = [GreedyDecoder(cfg, **kw)(batch(), False, model), GreedyDecoder(cfg, tail='drop', **kw)(batch().merge({kfg.DECODE_BY_SAMPLE: True}), False, model),
                BeamSearcher(cfg, beam_size=4, **kw)(batch(), False, model), EnsembleBeamSearcher(cfg, beam_size=2, **kw)(batch(), False, [model, model])]
    for out in outs:
        for ids in out[kfg.G_SENTS_IDS].tolist():
            words = ids[:ids.index(0)] if 0 in ids else ids
            pairs = list(zip(words, words[1:]))
            assert 4 <= len(words) <= 8 and not {5, 6} & set(words) and {7, 9} <= set(words) and len(set(pairs)) == len(pairs), words


def test_the_batch_stays_as_it_was_and_a_second_decoding_agrees():
    cfg, model = make(TRANSFORMER)
    b = batch()
    before = copy.deepcopy(dict(b))
    for beam in (False, True):
        model.beam_searcher.beam_size = 3
        with torch.no_grad(): one, two = model(b, use_beam_search=beam), model(b, use_beam_search=beam)
        assert torch.equal(one[kfg.G_SENTS_IDS], two[kfg.G_SENTS_IDS])
    assert b.keys() == before.keys() and all(torch.equal(b[k], v) if torch.is_tensor(v) else b[k] == v for k, v in before.items())


def test_half_precision():
    cfg, model = make(UPDOWN)
    model, b = model.bfloat16(), batch()
    b = b.merge({k: v.bfloat16() for k, v in b.items() if torch.is_tensor(v) and v.is_floating_point()})
    with torch.no_grad(): out = BeamSearcher(cfg, beam_size=3)(b, False, model)
    assert out[kfg.G_LOGP].dtype == torch.float32 and out[kfg.G_LOGP].isfinite().all()


def test_self_critical_gradients_through_beams():
    "All beams of a picture carry gradients, also when pictures leave the batch in between."
    for which in (UPDOWN, TRANSFORMER):
        cfg, model = make(which)
        model.beam_searcher.beam_size = 3
        out = model(batch().merge({kfg.OUT_SIZE: 3}), use_beam_search=True)
        assert out[kfg.G_SENTS_IDS].shape == (6, 3, T)
        reward = torch.randn(6, 3, 1)
        (-(out[kfg.G_LOGP]*reward)).mean().backward()
        got = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        assert all(g.isfinite().all() for g in got.values()) and any(n.startswith('decoder') and g.abs().sum() > 0 for n, g in got.items())


@pytest.mark.parametrize('which', [UPDOWN, TRANSFORMER], ids=['updown', 'transformer'])
@pytest.mark.parametrize('name', STRATEGIES)
def test_a_trace_tells_what_happened_and_changes_nothing(which, name):
    "Same words with and without; the sum of a path's log-probabilities is its score; attention follows the path."
    import xmodaler_nb.look.trace  # gives a trace its `to_html`
    cfg, model = make(which)
    kind, kw = STRATEGIES[name]
    b = batch().merge({kfg.DECODE_BY_SAMPLE: True} if name == 'sampling' else {})
    steps, outs = [], []
    step = model.step
    for trace in (False, True):
        torch.manual_seed(5)
        model.step = lambda tokens, state: (steps.append(len(tokens)), step(tokens, state))[1]
        with torch.no_grad(): outs.append(kind(cfg, **{**kw, 'trace': trace})(b, False, model))
        steps.append(None)
    plain, traced = outs
    assert torch.equal(plain[kfg.G_SENTS_IDS], traced[kfg.G_SENTS_IDS]) and kfg.TRACE not in plain
    at = steps.index(None)
    assert steps[:at] == steps[at+1:-1]                                       # the same rows at the same steps
    for i in range(6):
        h = traced[kfg.TRACE].best(i)
        assert h.ids == traced[kfg.G_SENTS_IDS][i].tolist()[:len(h.ids)]
        assert abs(h.score - sum(h.log_probs)) < 1e-4 and torch.allclose(torch.tensor(h.log_probs), traced[kfg.G_LOGP][i,:len(h.ids)], atol=1e-5)
        assert h.attention.shape == (len(h.ids), 5) and torch.allclose(h.attention.sum(-1), torch.ones(len(h.ids)), atol=1e-4)
        if i == 1: assert h.attention[:,3:].max() < 1e-6                      # this picture has three regions
        assert traced[kfg.TRACE].to_json(i) and '<svg' in traced[kfg.TRACE].to_html(i)


def test_equal_scores_are_decided_the_same_way_every_time():
    from xmodaler_nb.modeling.decode_strategy.toy import TableModel
    arg = dict(vocab_path='', max_seq_len=5, bert_tokenizer=None, bos_token_id=0, eos_token_id=0)
    for v in (7, 300):                                                        # small tables are sorted, large ones searched
        flat = TableModel(torch.zeros(1, v, v))
        first, *rest = [BeamSearcher(**arg, beam_size=3)({kfg.IDS: [0, 1]}, model=flat)[kfg.G_SENTS_IDS] for _ in range(4)]
        assert all(torch.equal(first, r) for r in rest) and torch.equal(first[0], first[1])
        assert GreedyDecoder(**arg, beam_size=1)({kfg.IDS: [0]}, model=TableModel(torch.cat([torch.full((1, v, 1), -9.), torch.zeros(1, v, v-1)], -1)))[kfg.G_SENTS_IDS].tolist() == [[1]*5]
