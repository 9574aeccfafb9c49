"Decoders and strategies written for X-modaler: they know one dict and no states, and must decode as their authors expect."
import pytest, torch
from torch import nn
from xmodaler_nb.config import Batch, kfg
from xmodaler_nb.modeling.decode_strategy import BeamSearcher, DictModel, EnsembleBeamSearcher, GreedyDecoder
from xmodaler_nb.utils.testing import test_near as near

V, D, T = 12, 6, 7
ARG = dict(vocab_path='', beam_size=3, max_seq_len=T, bert_tokenizer=None, bos_token_id=0, eos_token_id=0)


class ForeignRnn(nn.Module):
    "A recurrent decoder in X-modaler's manner: hidden and cell states live in the dict; features come one row per sentence."
    def __init__(self):
        super().__init__()
        self.cell = nn.LSTMCell(2*D, D)

    def preprocess(self, batched_inputs):
        zeros = torch.zeros(batched_inputs[kfg.ATT_FEATS].size(0), D)
        return {kfg.G_HIDDEN_STATES: [zeros], kfg.G_CELL_STATES: [zeros], kfg.P_ATT_FEATS: batched_inputs[kfg.ATT_FEATS]*2}

    def forward(self, batched_inputs):
        h, c = batched_inputs[kfg.G_HIDDEN_STATES][0], batched_inputs[kfg.G_CELL_STATES][0]
        assert batched_inputs[kfg.ATT_FEATS].size(0) == h.size(0), 'a foreign decoder sees one row of features per sentence'
        a = ((batched_inputs[kfg.P_ATT_FEATS]*h[:,None]).sum(-1) + batched_inputs[kfg.EXT_ATT_MASKS]).softmax(-1)
        h, c = self.cell(torch.cat([batched_inputs[kfg.G_TOKEN_EMBED], (a[...,None]*batched_inputs[kfg.ATT_FEATS]).sum(1)], -1), (h, c))
        return {kfg.G_HIDDEN_STATES: [h], kfg.G_CELL_STATES: [c]}


class ForeignHistory(nn.Module):
    "A transformer-like decoder in X-modaler's manner: it keeps the inputs of all steps in HISTORY_STATES."
    def __init__(self):
        super().__init__()
        self.map = nn.Linear(D, D)

    def preprocess(self, batched_inputs): return {}

    def forward(self, batched_inputs):
        x = batched_inputs[kfg.G_TOKEN_EMBED][:,None]
        if batched_inputs[kfg.TIME_STEP] == 0: history = x
        else: history = torch.cat([batched_inputs[kfg.HISTORY_STATES][0], x], 1)
        assert history.size(1) == batched_inputs[kfg.TIME_STEP] + 1
        a = (x*history).sum(-1).softmax(-1)
        y = self.map((a[...,None]*history).sum(1) + (batched_inputs[kfg.ATT_FEATS]*(batched_inputs[kfg.EXT_ATT_MASKS] == 0)[...,None]).mean(1))
        return {kfg.G_HIDDEN_STATES: [y[:,None]], kfg.HISTORY_STATES: [history]}


class ForeignModel(nn.Module):
    "The parts a decode strategy of X-modaler expects, and nothing else: no `init_state`, no `step`."
    def __init__(self, decoder):
        super().__init__()
        self.decoder, self.words, self.out = decoder, nn.Embedding(V, D), nn.Linear(D, V)

    def get_extended_attention_mask(self, batched_inputs): return {kfg.EXT_ATT_MASKS: (1 - batched_inputs[kfg.ATT_MASKS])*-10000.}
    def visual_embed(self, batched_inputs): return {kfg.ATT_FEATS: batched_inputs[kfg.ATT_FEATS].tanh()}
    def encoder(self, batched_inputs, mode=None): return {kfg.GLOBAL_FEATS: batched_inputs[kfg.ATT_FEATS].mean(1)} if mode == 'v' else {}
    def token_embed(self, batched_inputs): return {kfg.G_TOKEN_EMBED: self.words(batched_inputs[kfg.G_TOKENS_IDS])}
    def predictor(self, batched_inputs): return {kfg.G_LOGITS: self.out(batched_inputs[kfg.G_HIDDEN_STATES][-1]*3)}


@pytest.fixture(params=[ForeignRnn, ForeignHistory])
def model(request):
    torch.manual_seed(3)
    return ForeignModel(request.param()).eval()

@pytest.fixture
def batch():
    torch.manual_seed(4)
    masks = torch.ones(5, 4); masks[1, 2:] = 0; masks[3, 3:] = 0
    return Batch(IDS=list('abcde'), ATT_FEATS=torch.randn(5, 4, D)*masks[...,None], ATT_MASKS=masks)


def score_of(model, batch, i, ids):
    "Log-probability of a sentence of picture i, word by word, one row, no search."
    one = Batch({k: v[i:i+1] for k, v in batch.items()})
    m, lps = DictModel(model), []
    state, last = m.init_state(one), torch.tensor([0])
    for w in ids:
        logits, state = m.step(last, state)
        lps.append(logits.log_softmax(-1)[0, w])
        last = torch.tensor([w])
        if w == 0: break
    return torch.stack(lps)


@pytest.mark.parametrize('sync_every', [1, 4])
def test_beam_search_moves_foreign_states(model, batch, sync_every):
    before = dict(batch)
    with torch.no_grad():
        out = BeamSearcher(**ARG, sync_every=sync_every)(batch.merge({kfg.OUT_SIZE: 3}), model=model)
        for i in range(5):
            for ids, lps in zip(out[kfg.G_SENTS_IDS][i].tolist(), out[kfg.G_LOGP][i]):
                want = score_of(model, batch, i, ids)
                near(lps[:len(want)], want, atol=1e-5)
    assert all(batch[k] is v for k, v in before.items()) and batch.keys() == before.keys()


def test_one_picture_or_many(model, batch):
    with torch.no_grad():
        for s in (GreedyDecoder(**ARG, tail='drop'), GreedyDecoder(**ARG), BeamSearcher(**ARG)):
            many = s(batch, model=model)[kfg.G_SENTS_IDS]
            assert torch.equal(many, torch.cat([s(Batch({k: v[i:i+1] for k, v in batch.items()}), model=model)[kfg.G_SENTS_IDS] for i in range(5)]))


def test_ensemble_of_foreign_models(model, batch):
    with torch.no_grad():
        one = BeamSearcher(**ARG)(batch, model=model)
        two = EnsembleBeamSearcher(**ARG)(batch, model=[model, model])
    assert torch.equal(one[kfg.G_SENTS_IDS], two[kfg.G_SENTS_IDS])


def test_states_go_through_the_documented_method(model, batch):
    "X-modaler's searchers move states in `_expand_state`; a subclass that overrides it is asked."
    class Watching(BeamSearcher):
        calls = 0
        def _expand_state(self, states, selected_beam, batch_size, beam_size, cur_beam_size):
            self.calls += 1
            assert isinstance(states, list) and selected_beam.shape == (batch_size, beam_size)
            assert all(s.size(0) == batch_size*cur_beam_size for s in states)
            super()._expand_state(states, selected_beam, batch_size, beam_size, cur_beam_size)
            assert all(s.size(0) == batch_size*beam_size for s in states)
    s = Watching(**ARG)
    with torch.no_grad(): assert torch.equal(s(batch, model=model)[kfg.G_SENTS_IDS], BeamSearcher(**ARG)(batch, model=model)[kfg.G_SENTS_IDS])
    assert s.calls


def test_gradients_reach_foreign_decoders(model, batch):
    out = BeamSearcher(**ARG)(batch.merge({kfg.OUT_SIZE: 3}), model=model)
    out[kfg.G_LOGP].sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
