"Captioning with packed weights: every captioner, every precision that this processor has."
import logging
import sys
from pathlib import Path
import numpy as np
import pytest
import torch

sys.path[:0] = [str(Path(__file__).resolve().parents[1]/'parity'), str(Path(__file__).resolve().parent)]
from golden_models import Golden, no_dropout
from small import small_captioner
from test_exam import CAPTIONERS
from xmodaler_nb.captioner import Answerer, Captioner, Retriever
from xmodaler_nb.commands.caption import caption_main, made_by
from xmodaler_nb.config import kfg
from xmodaler_nb.modeling.layers import low_precision
from xmodaler_nb.modeling.layers.low_precision import input_levels, PRECISIONS, PackedLSTMCell, lower_precision, weight_bytes, why_not

HERE = [p for p in PRECISIONS if p != 'float32' and not why_not(p)]
NEAR = dict(int8=.1 if input_levels() == 127 else .2, bf16=.05, fp16=.01)   # of the logits' norm; some processors take inputs of seven bits only
pytestmark = pytest.mark.skipif(not HERE, reason='no lower precision on this processor')


@pytest.mark.parametrize('name', CAPTIONERS)
def test_every_captioner_packed(name):
    "Logits stay near, captions consist of words, log-probabilities are such."
    g = Golden(name)
    plain = no_dropout(g.model()).eval()
    for precision in HERE:
        model = lower_precision(no_dropout(g.model()).eval(), precision)
        assert weight_bytes(model) < weight_bytes(plain)
        with torch.no_grad():
            want, got = (m(g.batch())[kfg.G_LOGITS] for m in (plain, model))
            assert (want - got).norm() < NEAR[precision]*want.norm(), precision
            out = model(g.batch('input_gen'), use_beam_search=True)
        ids, lps = out[kfg.G_SENTS_IDS], out[kfg.G_LOGP]
        assert ids.min() >= 0 and ids.max() < g.cfg().MODEL.VOCAB_SIZE
        assert lps.isfinite().all() and (lps <= 0).all()


def test_float_weights_of_cells_are_let_go():
    "After the first caption every column of every cell is packed, and the weights take a quarter."
    c = small_captioner()
    before = weight_bytes(c.model.decoder)
    lower_precision(c.model, HERE[-1])
    c.caption(np.ones((2, 4), np.float32))
    cells = [m for m in c.model.modules() if isinstance(m, PackedLSTMCell)]
    assert len(cells) == 2 and all(m.weight_ih.weight is None for m in cells)
    assert weight_bytes(c.model.decoder) < .62*before


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    sizes = ['MODEL.VISUAL_EMBED.OUT_DIM', 32, 'MODEL.TOKEN_EMBED.DIM', 32, 'MODEL.DECODER_DIM', 32, 'MODEL.UPDOWN.ATT_EMBED_SIZE', 16]
    return small_captioner(*sizes).save_pretrained(tmp_path_factory.mktemp('c')/'captioner')


def test_a_caption_does_not_depend_on_its_batch(folder):
    rng = np.random.default_rng(0)
    pictures = [rng.normal(size=(n, 4)).astype(np.float32)*s for n, s in ((3, 1), (7, 30), (1, .01))]
    for precision in HERE:
        c = Captioner.from_pretrained(folder, precision=precision)
        together, alone = c.describe(pictures), [c.describe(p) for p in pictures]
        assert [x.words for x in together] == [x.words for x in alone]
        for a, b in zip(together, alone): assert np.allclose(a.log_probs, b.log_probs, atol=1e-3 if precision != 'bf16' else .05)


def test_float32_is_what_it_was(folder):
    pictures = [np.ones((2, 4), np.float32), np.zeros((1, 4), np.float32)]
    assert Captioner.from_pretrained(folder, precision='float32').caption(pictures) == Captioner.from_pretrained(folder).caption(pictures)


def test_a_packed_captioner_is_not_saved(folder, tmp_path):
    c = Captioner.from_pretrained(folder, precision=HERE[-1])
    with pytest.raises(ValueError, match='weights of lower precision are not saved'): c.save_pretrained(tmp_path/'again')
    assert not (tmp_path/'again'/'model.safetensors').exists()


def test_refused_with_a_sentence(folder, monkeypatch):
    with pytest.raises(ValueError, match="precision 'int4' is not one of float32, bf16, fp16, int8"): Captioner.from_pretrained(folder, precision='int4')
    for kind in (Answerer, Retriever):
        with pytest.raises(ValueError, match=f"a {kind.kind} has float32 only"): kind.from_pretrained(folder, precision=HERE[-1])
    with pytest.raises(ValueError, match='the model is on cuda'): Captioner.from_pretrained(folder, device='cuda', precision=HERE[-1])

    class Absent:
        def __init__(self, weight): raise RuntimeError('no such product\nand more lines')
    monkeypatch.setitem(PRECISIONS, 'int8', Absent)
    why_not.cache_clear()
    try:
        with pytest.raises(ValueError, match="'int8' cannot be had on this processor: no such product$"): Captioner.from_pretrained(folder, precision='int8')
    finally: why_not.cache_clear()


@pytest.mark.skipif('bf16' not in HERE, reason='no bf16 here')
def test_imitated_bf16_is_said(monkeypatch, caplog):
    monkeypatch.setattr(low_precision, 'processor_has', lambda *flags: False)
    with caplog.at_level(logging.WARNING): low_precision.check_precision('bf16')
    assert 'slower than float32' in caplog.text


def test_command(folder, tmp_path, capsys):
    np.save(tmp_path/'a.npy', np.ones((2, 4), np.float32))
    assert caption_main([str(tmp_path/'a.npy'), '--model', str(folder), '--precision', HERE[-1]]) in (None, 0)
    assert Captioner.from_pretrained(folder, precision=HERE[-1]).caption(tmp_path/'a.npy') in capsys.readouterr().out
    assert made_by(str(folder), 3, 1) != made_by(str(folder), 3, 1, 'int8')


def test_not_learnt():
    model = lower_precision(small_captioner().model, HERE[-1])
    layer = next(m for m in model.modules() if isinstance(m, PackedLSTMCell))
    with pytest.raises(ValueError, match='do not learn'): layer(torch.zeros(1, layer.input_size, requires_grad=True))


def test_input_is_cut_where_bytes_overflow():
    "With 63 levels, as for processors without instructions for bytes, the product is nearly as good."
    torch.manual_seed(0)
    x, w = torch.randn(7, 40), torch.randn(30, 40)
    y = low_precision.Int8Weight(w, 63)(x)
    assert ((y - x @ w.T).norm()/(x @ w.T).norm()) < .02
