"UNITER and TDEN compute no padding while they are trained: the same losses, gradients and draws as with it."
import random
import pytest
import torch
from torch import nn
from xmodaler_nb.config import config_file, kfg
from xmodaler_nb.datasets.collate import collate
from xmodaler_nb.engine.tden_pretrainer import own_words
from xmodaler_nb.losses import build_losses
from xmodaler_nb.modeling import build_model, load_cfg_file
from xmodaler_nb.modeling.layers import bert
from xmodaler_nb.modeling.meta_arch.tden_pretrain import SIMILARITY
from xmodaler_nb.modeling.predictor.bert_predictor import ASKED

SIZES = ['MODEL.DEVICE', 'cpu', 'MODEL.WEIGHTS', '', 'INFERENCE.VOCAB', '', 'MODEL.VOCAB_SIZE', 20, 'MODEL.TOKEN_EMBED.DIM', 8,
         'MODEL.VISUAL_EMBED.OUT_DIM', 8, 'MODEL.VISUAL_EMBED.IN_DIM', 6, 'MODEL.BERT.HIDDEN_SIZE', 8, 'MODEL.BERT.NUM_ATTENTION_HEADS', 2,
         'MODEL.BERT.INTERMEDIATE_SIZE', 12, 'MODEL.BERT.NUM_HIDDEN_LAYERS', 2, 'MODEL.BERT.NUM_GENERATION_LAYERS', 2,
         'MODEL.BERT.V_NUM_HIDDEN_LAYERS', 2, 'MODEL.BERT.NUM_UNDERSTANDING_LAYERS', 2, 'MODEL.BERT.V_TARGET_SIZE', 5]
TDEN = ['MODEL.MM_PREDICTOR.POOLER_INPUT_SIZE', 8, 'MODEL.MM_PREDICTOR.POOLER_OUTPUT_SIZE', 8]


def items(two):
    "Three pairs; texts of 4, 7 and 5 pieces beside 3, 2 and 6 regions; one word and one region of each is hidden."
    out = []
    for i, (t, n) in enumerate([(4, 3), (7, 2), (5, 6)]):
        words, feats, hidden, lost = torch.randint(5, 20, (t,)), torch.randn(n, 6), torch.arange(t) == 2, torch.arange(n) == 1
        item = {kfg.IDS: str(i), kfg.ATT_FEATS: feats*~lost[:,None], kfg.ATT_FEATS_LOC: torch.rand(n, 5), kfg.U_TOKENS_IDS: words.masked_fill(hidden, 4),
                kfg.U_TOKENS_TYPE: torch.zeros_like(words), kfg.U_TARGET_IDS: words.masked_fill(~hidden, -1), kfg.V_TARGET: torch.rand(n, 5).softmax(-1),
                kfg.V_TARGET_LABELS: lost.long()*2 - 1}
        one = {kfg.U_TOKENS_IDS_WO_MASK: words, kfg.ATT_FEATS_WO_MASK: feats, kfg.ITM_NEG_LABEL: torch.tensor(0)}
        more = {kfg.G_TOKENS_IDS: item[kfg.U_TOKENS_IDS], kfg.G_TOKENS_TYPE: torch.ones_like(words), kfg.G_TARGET_IDS: torch.cat([words[1:], torch.tensor([-1])])}
        out.append({**item, **(more if two else one)})
    return out


def trained(model, batch, losses, two):
    "Losses and gradients of what a training step computes; Python's next random number."
    random.seed(0)
    model.zero_grad()
    flags = {ASKED: True, bert.REAL_ONLY: True, SIMILARITY: True} if two else {}
    out = model(batch.merge(flags))
    found = [v for f in losses for v in f(out).values()]
    if two:
        again = model(batch.merge({**flags, SIMILARITY: False, **own_words(batch, out)}))
        found += [v for f in losses for v in f(again).values()]
    sum(found).backward()
    return torch.stack(found).detach(), {k: p.grad for k, p in model.named_parameters() if p.grad is not None}, random.random()


@pytest.fixture(autouse=True)
def double_precision():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize('name, task', [('uniter', 'itm'), ('uniter', 'mlm'), ('uniter', 'mrfr'), ('uniter', 'mrc-kl'), ('tden', None)])
def test_the_same_losses_and_gradients(name, task, monkeypatch):
    two = name == 'tden'
    torch.manual_seed(0)
    cfg = load_cfg_file(config_file(f'pretrain/{name}/{name}.yaml'), SIZES + (TDEN if two else []))
    model, losses, batch = build_model(cfg).train(), build_losses(cfg), collate(items(two))
    for m in model.modules():
        if isinstance(m, nn.Dropout): m.p = 0.
    if task: model.sampling_pool = [task]
    calls, attend = [], bert.Packed.attend
    monkeypatch.setattr(bert.Packed, 'attend', lambda *a: calls.append(a) or attend(*a))
    packed = trained(model, batch, losses, two)
    assert len(calls) == (20 if two else 2)                  # 2 + 2 + 2 + 2·2 attentions, twice
    monkeypatch.setattr(bert, 'PACK', 0.)
    padded = trained(model, batch, losses, two)
    assert len(calls) == (20 if two else 2)
    assert torch.allclose(packed[0], padded[0], atol=1e-9) and packed[2] == padded[2]
    assert packed[1].keys() == padded[1].keys()
    apart = {k: (g - padded[1][k]).abs().max().item() for k, g in packed[1].items()}
    assert max(apart.values()) < 1e-9, {k: d for k, d in apart.items() if d >= 1e-9}
