"Decoding of whole models: what X-modaler said with the same weights and pictures."
import pytest, torch
from golden_models import DEVICE, Golden, seeded_draw
from xmodaler_nb.config import kfg
from xmodaler_nb.utils.testing import test_near as near

FAMILIES = ['updown', 'attention', 'video_mplstm', 'video_salstm', 'lstm_a', 'gcn', 'xlan', 'transformer', 'clip_transformer', 'video_transformer', 'meshed_memory', 'cosnet', 'video_tdconved', 'tden_captioner']

LOOK_BACK = ['transformer', 'clip_transformer', 'video_transformer', 'meshed_memory', 'cosnet', 'tden_captioner']       # at their own words, by attention


@pytest.fixture(scope='module', params=FAMILIES)
def golden(request):
    g = Golden(request.param)
    g.built = g.model()
    return g

def same(g, out, key, cut_after_eos=False):
    "Ids exact, log-probabilities near."
    ids, lp = g.tensors[f'output.{key}.G_SENTS_IDS'], g.tensors[f'output.{key}.G_LOGP']
    assert torch.equal(out[kfg.G_SENTS_IDS], ids), (g, key)
    near(out[kfg.G_LOGP], lp, max((v for k, v in g.meta['float32_vs_float64_max_abs_diff'].items() if k.endswith('logp') and isinstance(v, float)), default=None))


def test_greedy(golden):
    batch = golden.batch('input_gen')
    before = dict(batch)
    with torch.no_grad(): out = golden.built(batch, use_beam_search=False)
    same(golden, out, 'greedy')
    assert dict(batch).keys() == before.keys() and all(batch[k] is before[k] for k in before)


def test_greedy_from_a_training_batch(golden):
    if 'output.greedy_from_train_input.' not in golden: pytest.skip(f'{golden}: X-modaler cannot decode a training batch of this model')
    batch = golden.batch()
    with torch.no_grad(): out = golden.built(batch, use_beam_search=False)
    ids, lp = golden.tensors['output.greedy_from_train_input.G_SENTS_IDS'], golden.tensors['output.greedy_from_train_input.G_LOGP']
    assert torch.equal(out[kfg.G_SENTS_IDS], ids)
    # X-modaler masks words beyond the length of the reference caption, so its last words know how long that was; decoding must not (spec N10)
    inside = batch[kfg.TOKENS_MASKS][:,:ids.size(1)] > 0
    near(out[kfg.G_LOGP][inside], lp[inside])


@pytest.mark.parametrize('key', ['beam', 'beam_all', 'beam2', 'beam2_all', 'beam3', 'beam3_all'])
def test_beam(golden, key):
    if f'output.{key}.' not in golden: pytest.skip(f'{golden}: no golden output with this beam size')
    searcher, size = golden.built.beam_searcher, golden.meta['beam_size']
    searcher.beam_size = int(key[4]) if key[4:5].isdigit() else size
    try:
        batch = golden.batch('input_gen')
        if key.endswith('_all'): batch[kfg.OUT_SIZE] = searcher.beam_size
        with torch.no_grad(): out = golden.built(batch, use_beam_search=True)
        same(golden, out, key)
    finally: searcher.beam_size = size


@seeded_draw
def test_sampling(golden):
    if 'output.sample.' not in golden: pytest.skip(f'{golden}: no golden samples')
    batch = golden.batch('input_gen').merge({kfg.DECODE_BY_SAMPLE: True})
    torch.manual_seed(1234)
    with torch.no_grad(): out = golden.built(batch, use_beam_search=False)
    same(golden, out, 'sample')


def test_one_picture_or_many(golden):
    "Ids, and log-probabilities up to and including the end mark, do not depend on the company."
    if golden.name == 'video_tdconved': pytest.skip('its encoder sees the padding frames, which depend on the batch (upstream, too)')
    batch = golden.batch('input_gen')
    n = len(batch[kfg.ATT_FEATS])
    row = lambda i: type(batch)({k: v[i:i+1] if hasattr(v, '__len__') and len(v) == n else v for k, v in batch.items()})
    with torch.no_grad():
        for beam in (False, True):
            many = golden.built(batch, use_beam_search=beam)
            for i in range(n):
                one = golden.built(row(i), use_beam_search=beam)
                assert torch.equal(one[kfg.G_SENTS_IDS][0], many[kfg.G_SENTS_IDS][i])
                said = (many[kfg.G_SENTS_IDS][i] == golden.meta['eos_id']).cumsum(0)
                said = (said == 0) | ((said == 1) & (many[kfg.G_SENTS_IDS][i] == golden.meta['eos_id']))
                near(one[kfg.G_LOGP][0][said], many[kfg.G_LOGP][i][said], atol=1e-4)


def test_traces(golden):
    "A trace of greedy and beam search tells the same story as their result."
    for beam in (False, True):
        with torch.no_grad(): out = golden.built(golden.batch('input_gen').merge({kfg.TRACE: True}), use_beam_search=beam)
        trace = out[kfg.TRACE]
        for i in range(len(trace)):
            h = trace.best(i)
            assert h.ids == out[kfg.G_SENTS_IDS][i].tolist()[:len(h.ids)]
            near(torch.tensor(h.log_probs), out[kfg.G_LOGP][i][:len(h.ids)])
            assert abs(h.score - sum(h.log_probs)) < 1e-4
            assert (h.attention is None) == (golden.name in ('video_mplstm', 'lstm_a'))      # these two see one vector only
            if h.attention is not None: near(h.attention.sum(-1), torch.ones(len(h.ids)), atol=1e-3)
            assert (h.word_attention is None) == (golden.name not in LOOK_BACK)
            if h.word_attention is not None:
                assert h.word_attention.shape == (len(h.ids),)*2 and h.word_attention.triu(1).abs().max() == 0
                near(h.word_attention.sum(-1), torch.ones(len(h.ids)), atol=1e-3)


def test_attention_follows_the_surviving_beam(golden):
    "Say the best sentence once more, alone: the model looks where the trace of the search says it looked, at regions and at words."
    model, batch = golden.built, golden.batch('input_gen')
    n = len(batch[kfg.ATT_FEATS])
    with torch.no_grad():
        trace = model(batch.merge({kfg.TRACE: True}), use_beam_search=True)[kfg.TRACE]
        for i in range(0 if golden.name in ('video_mplstm', 'lstm_a') else n):
            h, words = trace.best(i), [model.beam_searcher.bos_token_id, *trace.best(i).ids]
            state = model.init_state(batch).reorder(torch.tensor([[i]], device=DEVICE), whole=False).record_attention()
            for t in range(len(h.ids)):
                _, state = model.step(torch.tensor(words[t:t+1], device=DEVICE), state)
                near(h.attention[t], state.attention()[0], atol=1e-5)
                if golden.name in LOOK_BACK: near(h.word_attention[t,:t+1], state.word_attention()[0], atol=1e-5)


def test_dropping_rows(golden):
    decoder = golden.built.greedy_decoder
    decoder.tail = 'drop'
    try:
        with torch.no_grad(): out = golden.built(golden.batch('input_gen'), use_beam_search=False)
    finally: decoder.tail = 'upstream'
    assert torch.equal(out[kfg.G_SENTS_IDS], golden.tensors['output.greedy.G_SENTS_IDS'])


@pytest.mark.parametrize('name', ['ensemble_updown', 'ensemble_transformer'])
def test_ensemble(name):
    g = Golden(name, 'models_ensemble')
    from xmodaler_nb.modeling import build_model
    members = []
    for i in range(2):
        m = build_model(g.cfg())
        m.load_state_dict(g.group(f'state_dict.{i}.'), strict=True)
        members.append(m.eval())
    searcher, weights = members[0].beam_searcher, g.meta['overrides'].get('MODEL.MODEL_WEIGHTS', [1., 1.])
    for key, size in (('beam', 1), ('beam_all', searcher.beam_size)):
        with torch.no_grad(): out = searcher(g.batch('input_gen').merge({kfg.OUT_SIZE: size}), False, members, weights)
        ids, lp = g.tensors[f'output.{key}.G_SENTS_IDS'], g.tensors[f'output.{key}.G_LOGP']
        assert torch.equal(out[kfg.G_SENTS_IDS], ids)
        near(out[kfg.G_LOGP], lp)
