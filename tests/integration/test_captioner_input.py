"What a captioner cannot describe is refused by the picture's name; half precision decodes with every family."
import json, sys
from pathlib import Path
import numpy as np, pytest, torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]/'parity'))
from golden_models import Golden
from test_exam import CAPTIONERS
from small import small_captioner
from xmodaler_nb.captioner import Captioner
from xmodaler_nb.config import kfg
from xmodaler_nb.evaluation.split import decode_batches


@pytest.fixture(scope='module')
def cap(): return small_captioner()


def two(): return np.random.default_rng(0).normal(size=(2, 4)).astype('float32')


@pytest.mark.parametrize('call, message', [
    (dict(ids=['a']), '2 pictures, 1 names'), (dict(ids=['a', 'b', 'c']), '2 pictures, 3 names'), (dict(ids='a'), '2 pictures, 1 names'), (dict(batch_size=-1), 'batch_size is -1'),
    (dict(batch_size=0), 'batch_size is 0'), (dict(batch_size=1.5), 'batch_size is 1.5'), (dict(nbest=0), 'nbest is 0'), (dict(nbest=-2), 'nbest is -2'), (dict(beam_size=-1), 'beam_size is -1')])
def test_wrong_arguments(cap, call, message):
    with pytest.raises(ValueError, match=message): cap.describe([two(), two()], **call)


@pytest.mark.parametrize('bad, message', [
    (np.full((2, 4), np.nan), '8 numbers that are not finite'), (np.array([[1, 2, np.inf, 4.]]), '1 numbers that are not finite'), (np.zeros((0, 4)), 'no regions'),
    (np.zeros((2, 5)), r'sizes \(2, 5\)'), (dict(boxes=np.zeros((2, 4))), 'features')])
@pytest.mark.parametrize('strategy', ['beam', 'greedy'])
def test_wrong_features_name_the_picture(cap, bad, message, strategy):
    with pytest.raises(ValueError, match=f'picture sea: .*{message}|sea.*{message}'): cap.describe([two(), bad], ids=['land', 'sea'], strategy=strategy)


def test_wrong_features_in_a_file(cap, tmp_path):
    for name, x in (('nan', np.full((2, 4), np.nan)), ('none', np.zeros((0, 4)))):
        np.savez(tmp_path/f'{name}.npz', features=x)
        with pytest.raises(ValueError, match=f'{name}.npz'): cap.describe([tmp_path/f'{name}.npz'])


@pytest.mark.parametrize('value', [float('nan'), float('inf'), 1e38])
@pytest.mark.parametrize('strategy', ['beam', 'greedy', 'sample'])
def test_broken_weights_say_nothing(tmp_path, value, strategy):
    "No invented words with a score of NaN: an error when the weights are opened, or at the first picture."
    cap = small_captioner()
    torch.nn.init.constant_(next(p for k, p in cap.model.predictor.named_parameters() if p.dim() == 2), value)
    with pytest.raises((ValueError, RuntimeError), match='picture sea|finite|inf|nan'):
        for c in cap.describe([two()], ids=['sea'], strategy=strategy): assert np.isfinite(c.score), c
        raise ValueError('all scores are finite')
    if not np.isfinite(value):
        cap.save_pretrained(tmp_path/'c')
        with pytest.raises(ValueError, match='c: 1 weights hold numbers that are not finite'): Captioner.from_pretrained(tmp_path/'c')


def test_vocabulary_of_another_size(cap, tmp_path):
    with pytest.raises(ValueError, match=r"10 words \('.' included\), the model knows MODEL.VOCAB_SIZE = 11"): Captioner(cap.model, cap.cfg, cap.vocab[:-1])
    c = cap.save_pretrained(tmp_path/'c')
    (tmp_path/'short.txt').write_text('\n'.join(cap.vocab[1:-1]) + '\n')
    with pytest.raises(ValueError, match='MODEL.VOCAB_SIZE = 11'): Captioner.from_pretrained(c, vocab=tmp_path/'short.txt')


@pytest.mark.parametrize('name', CAPTIONERS)
@pytest.mark.parametrize('strategy', ['greedy', 'beam'])
def test_half_precision(name, strategy):
    "Under autocast and with bf16 weights: finite scores near those of float32, and mostly the same words."
    g = Golden(name)
    model, batch = g.model().eval(), g.batch('input_gen')
    def decode():
        search = model.greedy_decoder if strategy == 'greedy' else model.beam_searcher
        out, = decode_batches(model, [batch], search, output_sents=False)
        return out[kfg.G_SENTS_IDS], out[kfg.G_LOGP].float()
    ids, scores = decode()
    with torch.autocast('cpu', torch.bfloat16): results = [decode()]
    model = model.bfloat16()
    results.append(decode())
    for half_ids, half in results:
        assert half.isfinite().all() and (half <= 0).all()
        same = (half_ids[:, 0] == ids[:, 0])
        assert same.any() and (half[same][:, 0] - scores[same][:, 0]).abs().max() < .1, (half, scores)


def test_captioner_under_autocast(cap):
    for n in (1, 2, 7, 40):                                  # few rows and many take different paths
        xs = [two() for _ in range(n)]
        with torch.autocast('cpu', torch.bfloat16): half = cap.describe(xs)
        assert all(np.isfinite(c.score) for c in half) and len(half) == n


def test_names_of_any_kind(cap):
    "Numbers of numpy and torch name a picture as Python's do."
    pair = [two(), two()]
    for ids in ([1, 2], np.array([1, 2]), torch.tensor([1, 2]), ['1', '2'], (1., 2.)):
        assert [c.id for c in cap.describe(pair, ids=ids)] == ['1', '2']
    assert [c.id for c in cap.describe(pair, ids=['007', 'a/7'])] == ['007', 'a/7']
