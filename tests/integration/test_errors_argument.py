"`errors=` of the calls that read pictures: what is no dict is refused with a sentence, and of pictures with one name each that cannot be read is listed. Counts of answers and matches are refused by name."
import types
import numpy as np
import pytest
from PIL import Image
from small import small_captioner
from test_answerer import SIZES
from xmodaler_nb.captioner import Answerer, Retriever
from xmodaler_nb.modeling import build_model, load_cfg_file
from xmodaler_nb.tokenization import BertTokenizer

FEATS, BAD, WORSE = np.ones((2, 4), np.float32), np.full((2, 4), np.nan), np.ones((2, 5))
WORDS = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', 'what', 'is', 'a', 'ball', '?']
WRONG = {'list': [], 'tuple': (), 'set': set(), 'text': 'raise', 'number': 0, 'truth': True, 'false': False, 'type': dict}
ODD = {'zero': 0, 'minus': -1, 'fraction': 2.5, 'nan': float('nan'), 'infinite': float('inf'), 'truth': True, 'text': '3', 'list': [1]}

def picture(x=FEATS): return dict(features=x, boxes=np.array([[0, 0, 9, 9], [3, 3, 8, 8.]]), image_h=64, image_w=64)

def untrained(task, tmp_path_factory, labels=1):
    "A small network with random weights."
    pieces = tmp_path_factory.mktemp('words')/'pieces.txt'
    pieces.write_text('\n'.join(WORDS) + '\n')
    opts = {**SIZES, 'MODEL.VOCAB_SIZE': len(WORDS), 'MODEL.VISUAL_EMBED.IN_DIM': 4, 'MODEL.MM_PREDICTOR.LABELS_NUM': labels, 'MODEL.TOKEN_EMBED.TYPE_VOCAB_SIZE': 2}
    cfg = load_cfg_file(task, [x for kv in opts.items() for x in kv])
    return build_model(cfg), cfg, BertTokenizer(str(pieces))

@pytest.fixture(scope='module')
def cap(): return small_captioner()

@pytest.fixture(scope='module')
def answerer(tmp_path_factory): return Answerer(*untrained('mm_understanding/vqa/uniter/vqa.yaml', tmp_path_factory, 3), ['yes', 'no', 'two'])

@pytest.fixture(scope='module')
def retriever(tmp_path_factory): return Retriever(*untrained('mm_understanding/flickr30k_retrieval/uniter/flickr30k_retrieval.yaml', tmp_path_factory), ['a ball', 'what is a ball'])


@pytest.mark.parametrize('wrong', WRONG.values(), ids=WRONG)
def test_what_is_no_dict(cap, answerer, wrong):
    "Also where every picture can be read: it is no matter of luck."
    for x in (FEATS, BAD):
        for f in (lambda: cap.describe(x, errors=wrong), lambda: cap.caption([x], errors=wrong), lambda: answerer.answer(picture(x), 'what is a ball?', errors=wrong)):
            with pytest.raises(ValueError, match='^errors is a .*, but must be a dict, which is filled with name → what is wrong'): f()

def test_other_mappings(cap):
    "What behaves as a dict is one."
    import collections
    errors = collections.UserDict()
    assert cap.caption([BAD], errors=errors) == [None] and list(errors) == ['0']

@pytest.mark.parametrize('size', [1, 32])
def test_each_picture_of_one_name(cap, size):
    errors = {}
    said = cap.caption([BAD, FEATS, WORSE, BAD, BAD], ids=['a', 'a', 'a', 'b', 7], errors=errors, batch_size=size)
    assert [s is None for s in said] == [True, False, True, True, True] and list(errors) == ['a', 'a (3)', 'b', 7]
    assert 'not finite' in errors['a'] and 'sizes (2, 5)' in errors['a (3)'] and errors['a (3)'].startswith('picture a: ')

def test_each_file_of_one_name(cap, tmp_path):
    (tmp_path/'x.npz').write_text('no features')
    errors = {}
    assert cap.caption([str(tmp_path/'x.npz')]*2, errors=errors) == [None, None] and list(errors) == [str(tmp_path/'x.npz'), f"{tmp_path/'x.npz'} (2)"]

def test_each_picture_of_one_name_among_questions(answerer):
    "A picture of which several things are asked is listed once, two pictures with one name are listed twice, and one with two names under both."
    bad, worse, errors = picture(BAD), picture(WORSE), {}
    said = answerer.answer([bad, bad, worse, picture(), bad], ['what is a ball?']*5, ids=['a', 'a', 'a', 'a', 'b'], errors=errors)
    assert [s is None for s in said] == [True, True, True, False, True] and list(errors) == ['a', 'a (2)', 'b']


@pytest.mark.parametrize('value', ODD.values(), ids=ODD)
@pytest.mark.parametrize('name', ['k', 'batch_size'])
def test_numbers_of_an_answer(answerer, name, value):
    with pytest.raises(ValueError, match=f'^{name} is '): answerer.answer(picture(), 'what is a ball?', **{name: value})

def test_more_answers_than_there_are(answerer): assert len(answerer.answer(picture(), 'what is a ball?', k=10**12, batch_size=10**12).best) == 3

@pytest.mark.parametrize('value', ODD.values(), ids=ODD)
def test_numbers_of_a_search(retriever, value):
    looked = retriever.look([picture(), picture(FEATS + 1)])
    retriever.pictures = types.SimpleNamespace(paths=['p'], row=lambda i: looked[i][1], __len__=lambda: 1)
    for f in (lambda: retriever.among('a ball', looked, k=value), lambda: retriever.describe(picture(), k=value)):
        with pytest.raises(ValueError, match='^k is '): f()

@pytest.mark.parametrize('value', ODD.values(), ids=ODD)
def test_numbers_of_a_search_in_an_index(retriever, tmp_path, monkeypatch, value):
    "Refused before a picture is compared."
    Image.new('RGB', (9, 9)).save(tmp_path/'p.png')
    monkeypatch.setattr(retriever, 'item', lambda x, id: ({**item(retriever), 'IDS': id}, None, None), raising=False)
    retriever.index(tmp_path, store=None)
    monkeypatch.setattr(retriever, 'scores', lambda *a: pytest.fail('it was compared'), raising=False)
    with pytest.raises(ValueError, match='^k is '): retriever.find('a ball', k=value)

def item(model): return type(model).item(model, picture())[0]

def test_more_matches_than_there_are(retriever):
    looked = retriever.look([picture(), picture(FEATS + 1)])
    assert len(retriever.among('a ball', looked, k=10**12)) == 2 and len(retriever.describe(picture(), k=np.int64(9))) == 2
