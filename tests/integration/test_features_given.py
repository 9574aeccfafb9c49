"Features, clips and pictures that are given to a captioner: every type, size and range is right or refused; a clip by its path gives the frames that extraction took; one broken picture does not cost the others."
import itertools
import numpy as np
import pytest
import torch
from PIL import Image
from xmodaler_nb.captioner import Captioner
from xmodaler_nb.commands.caption import caption_main
from xmodaler_nb.commands.data import data_main
from xmodaler_nb.config import kfg
from xmodaler_nb.datasets.features import as_features
from xmodaler_nb.modeling import build_model, load_cfg_file
from xmodaler_nb.own.extract import BackboneExtractor, extract_features
from xmodaler_nb.own.scenes.features import ClipFeatures, SceneFeatures
from xmodaler_nb.utils.store import FeatureStore

ROWS = np.array([[1, 2, 3], [4, 5, 6]])
NUMBERS = 'float16 float32 float64 int8 int16 int32 int64 uint8 uint16'.split()


@pytest.mark.parametrize('dtype', [*NUMBERS, 'bool', 'complex64', '<U1', 'object', 'M8[s]'])
@pytest.mark.parametrize('kind', ['numpy', 'torch', 'list'])
def test_the_table_of_types(dtype, kind):
    x = ROWS.astype(dtype)
    if kind == 'torch':
        if np.dtype(dtype).kind not in 'fiubc': return
        x = torch.from_numpy(x)
    if kind == 'list': x = x.tolist()
    if dtype in NUMBERS or (kind == 'list' and dtype == 'object'):
        got = as_features(x, 3)
        assert got.dtype == np.float32 and np.array_equal(got, ROWS)
    else:
        with pytest.raises(ValueError, match='features: type'): as_features(x, 3)


@pytest.mark.parametrize('n', range(5))
def test_every_number_of_dimensions(n):
    for shape in itertools.product((0, 1, 3), repeat=n):
        a = np.ones(shape)
        if n == 2 and 0 not in shape: assert as_features(a).shape == shape
        else:
            with pytest.raises(ValueError) as e: as_features(a)
            assert str(shape) in str(e.value)


def captioner(extractor, width):
    "Small, untrained, on features of that width."
    torch.manual_seed(0)
    vocab = ['.', *'a red green ball box grass'.split()]
    cfg = load_cfg_file('image_caption/updown/updown.yaml', INFERENCE=dict(VOCAB=''), MODEL=dict(
        DEVICE='cpu', VOCAB_SIZE=len(vocab), MAX_SEQ_LEN=6, DECODER_DIM=16, UPDOWN=dict(ATT_EMBED_SIZE=8), TOKEN_EMBED=dict(DIM=16), VISUAL_EMBED=dict(IN_DIM=width, OUT_DIM=16)))
    cfg.defrost(); cfg.merge_from_list(['DATALOADER.MAX_FEAT_NUM', 0])
    return Captioner(build_model(cfg), cfg, vocab, extractor)


def gif(path, n=23):
    frames = [Image.new('RGB', (32, 24), (10*k, 255 - 10*k, 40)) for k in range(n)]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=40)


def movie(path, n=23):
    av = pytest.importorskip('av')
    with av.open(str(path), 'w') as f:
        stream = f.add_stream('mpeg4', rate=8); stream.width, stream.height, stream.pix_fmt = 32, 24, 'yuv420p'
        for k in range(n):
            for p in stream.encode(av.VideoFrame.from_ndarray(np.full((24, 32, 3), 10*k, np.uint8), format='rgb24')): f.mux(p)
        for p in stream.encode(): f.mux(p)


def clip_file(tmp_path, kind):
    path = tmp_path/f'clip{kind}'
    if kind == '.gif': gif(path)
    if kind == '.mp4': movie(path)
    if kind == '.npy': np.save(path, np.random.default_rng(0).integers(0, 256, (23, 24, 32, 3), dtype=np.uint8))
    if kind == '':
        path.mkdir()
        for k in range(23): Image.new('RGB', (32, 24), (10*k, 0, 0)).save(path/f'{k:02}.png')
    return path


@pytest.mark.parametrize('kind', ['.gif', '.mp4', '.npy', ''])
@pytest.mark.parametrize('extractor, width', [(ClipFeatures(), ClipFeatures.dim), (ClipFeatures(5), ClipFeatures.dim), (BackboneExtractor('patches', 'global', size=16), 43)])
@pytest.mark.parametrize('frames', [None, 7])
def test_a_clip_by_its_path(tmp_path, kind, extractor, width, frames):
    "The features that a saved captioner makes of a path are those that extraction stored, also where `frames` was set."
    path = clip_file(tmp_path, kind)
    extract_features(extractor, {'1': path}, tmp_path/'s', 'global', dtype='float32', frames=frames)
    from xmodaler_nb.captioner import load_extractor
    import json
    cap = captioner(load_extractor(json.loads((tmp_path/'s/extractor.json').read_text())), width)
    cap = Captioner.from_pretrained(cap.save_pretrained(tmp_path/'c'))
    fields, middle, _ = cap.item(str(path))
    stored = FeatureStore(tmp_path/'s')['1']['features']
    assert np.allclose(fields[kfg.ATT_FEATS], stored, atol=1e-5) and middle.shape == (24, 32, 3)
    assert cap.caption(path) == cap.caption(stored.copy())


def test_a_clip_from_the_shell(tmp_path, capsys):
    path = clip_file(tmp_path, '.mp4')
    captioner(BackboneExtractor('patches', 'global', size=16), 43).save_pretrained(tmp_path/'c')
    assert caption_main([str(path), '--model', str(tmp_path/'c')]) == 0
    assert [l for l in capsys.readouterr().out.splitlines() if l.startswith(f'{path}: ')]          # a log line may stand before it
    captioner(SceneFeatures(), SceneFeatures.dim).save_pretrained(tmp_path/'pictures')
    assert caption_main([str(path), '--model', str(tmp_path/'pictures')]) == 1
    assert 'clip.mp4 is a clip, and a picture is expected' in capsys.readouterr().err


@pytest.fixture
def broken(tmp_path):
    "good.png, a broken one of every kind, good2.png."
    from test_pictures import bomb
    rng = np.random.default_rng(0)
    for name in ('good.png', 'good2.png'): Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)).save(tmp_path/name)
    whole = (tmp_path/'good.png').read_bytes()
    (tmp_path/'cut.png').write_bytes(whole[:len(whole)//2])
    (tmp_path/'text.png').write_text('no picture')
    (tmp_path/'empty.png').write_bytes(b'')
    bomb(tmp_path/'bomb.png')
    return tmp_path


BAD = ('cut.png', 'text.png', 'empty.png', 'bomb.png', 'gone.png')

def test_one_broken_picture_among_many(broken, capsys):
    captioner(SceneFeatures(), SceneFeatures.dim).save_pretrained(broken/'c')
    names = ['good.png', *BAD, 'good2.png']
    assert caption_main([*(str(broken/n) for n in names), '--model', str(broken/'c'), '--html', str(broken/'page.html')]) == 1
    out, err = capsys.readouterr()
    said = [l.split(': ')[0] for l in out.splitlines() if l.startswith(str(broken))]               # a log line may stand before them
    assert said == [str(broken/'good.png'), str(broken/'good2.png')]
    assert all(n in err for n in BAD) and err.strip().splitlines()[-1].startswith('5 of 7')
    assert (broken/'page.html').is_file()
    assert caption_main([str(broken/'cut.png'), '--model', str(broken/'c')]) == 1
    assert caption_main([str(broken/'good.png'), '--model', str(broken/'c')]) == 0


@pytest.mark.parametrize('layout', ['store', 'npz'])
@pytest.mark.parametrize('skip', [True, False])
def test_extraction_goes_on(broken, capsys, layout, skip):
    "The others are extracted, the broken ones named at the end, exit code 1; the bomb is one of them."
    files = [str(broken/n) for n in ('good.png', *BAD, 'good2.png')]
    assert data_main(['extract', *files, str(broken/'s'), '--size', '16', '--layout', layout, *(['--skip-errors'] if skip else [])]) == 1
    out, err = capsys.readouterr()
    assert '2 added, 0 were there, 5 failed' in out and all(f'failed: {n[:-4]}: ' in err for n in BAD)
    assert data_main(['extract', *files[:1], files[-1], str(broken/'s'), '--size', '16', '--layout', layout]) == 0
    assert '0 added, 2 were there' in capsys.readouterr().out


def test_a_network_that_returns_no_numbers(broken):
    class Nan(torch.nn.Module):
        def forward(self, x): return torch.full((len(x), 4, 2, 2), float('nan'))
    with pytest.raises(ValueError, match='id good: features of the extractor: 16 numbers that are not finite'):
        extract_features(Nan(), [broken/'good.png'], broken/'s', size=16)
    assert not len(FeatureStore(broken/'s'))
