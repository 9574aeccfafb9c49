"`ENGINE.PACK_WORDS` changes how long a step takes, not the loss or its gradient."
from types import SimpleNamespace
import pytest
import torch
from xmodaler_nb.config import Batch, kfg
from xmodaler_nb.engine.methods import TeacherForcing
from xmodaler_nb.losses import build_losses
from xmodaler_nb.modeling import build_model, load_cfg_file

SIZES = dict(DEVICE='cpu', VOCAB_SIZE=9, MAX_SEQ_LEN=6, DECODER_DIM=8, ENCODER_DIM=8, PRED_DROPOUT=0.,
             TOKEN_EMBED=dict(DIM=8, DROPOUT=0.), VISUAL_EMBED=dict(IN_DIM=5, OUT_DIM=8, DROPOUT=0.))
BERT = dict(HIDDEN_SIZE=8, NUM_ATTENTION_HEADS=2, NUM_HIDDEN_LAYERS=1, NUM_GENERATION_LAYERS=1, INTERMEDIATE_SIZE=8,
            HIDDEN_DROPOUT_PROB=0., ATTENTION_PROBS_DROPOUT_PROB=0., FFN_DROPOUT_PROB=0., INTERMEDIATE_DROP=0.)


def batch():
    "Two pictures; captions of three and of five words, the end mark included."
    targets = torch.tensor([[3, 4, 0, -1, -1, -1], [5, 6, 7, 8, 0, -1]])
    tokens = torch.tensor([[0, 3, 4, 0, 0, 0], [0, 5, 6, 7, 8, 0]])
    return Batch({kfg.IDS: ['a', 'b'], kfg.ATT_FEATS: torch.randn(2, 4, 5), kfg.ATT_MASKS: torch.ones(2, 4),
                  kfg.G_TOKENS_IDS: tokens, kfg.G_TARGET_IDS: targets, kfg.G_TOKENS_TYPE: torch.ones_like(tokens),
                  kfg.TOKENS_MASKS: (targets >= 0).float()})


@pytest.mark.parametrize('name, more', [('updown/updown.yaml', dict(UPDOWN=dict(ATT_EMBED_SIZE=8))),
                                        ('transformer/transformer.yaml', dict(BERT=BERT))])
def test_the_same_loss_and_gradient(name, more):
    torch.manual_seed(0)
    cfg = load_cfg_file(f'image_caption/{name}', MODEL={**SIZES, **more}, INFERENCE=dict(VOCAB=''))
    model, losses, b, seen = build_model(cfg).train(), build_losses(cfg), batch(), []
    for pack in (False, True):
        method = TeacherForcing(pack)
        method.learn = SimpleNamespace(predict_batch=model,
                                       compute_losses=lambda out: {k: v for f in losses for k, v in f(out).items()})
        loss = sum(next(method.losses(b)).values())
        gradients = torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad], allow_unused=True)
        seen.append((loss.detach(), gradients))
    (one, g), (two, h) = seen
    assert torch.allclose(one, two, atol=1e-6)
    assert all(torch.allclose(x, y, atol=1e-6) for x, y in zip(g, h) if x is not None)
