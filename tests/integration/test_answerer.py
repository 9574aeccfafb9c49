"From a VQA training to a person's question: what travels in the checkpoint, the same answers as evaluation, and what is said of bad input."
import json
from pathlib import Path
import numpy as np, pytest, torch
from PIL import Image
from xmodaler_nb.captioner import Answerer, Captioner
from xmodaler_nb.config import kfg
from xmodaler_nb.datasets import build_xmodaler_valtest_loader
from xmodaler_nb.engine import DefaultTrainer
from xmodaler_nb.functional import read_np
from xmodaler_nb.modeling import load_cfg_file
from xmodaler_nb.own.scenes import make_scenes, write_tasks

SIZES = {'MODEL.TOKEN_EMBED.DIM': 16, 'MODEL.VISUAL_EMBED.OUT_DIM': 16, 'MODEL.TOKEN_EMBED.POSITION_MAX_LEN': 96, 'MODEL.BERT.HIDDEN_SIZE': 16, 'MODEL.BERT.NUM_ATTENTION_HEADS': 2,
         'MODEL.BERT.INTERMEDIATE_SIZE': 32, 'MODEL.BERT.NUM_HIDDEN_LAYERS': 1, 'MODEL.DEVICE': 'cpu', 'MODEL.WEIGHTS': '', 'SEED': 0, 'DATALOADER.NUM_WORKERS': 0,
         'DATALOADER.TRAIN_BATCH_SIZE': 40, 'SOLVER.EPOCH': 1, 'ENGINE.PROGRESS': False, 'LR_SCHEDULER.NAME': 'FixLR', 'SOLVER.BASE_LR': .003}
TDEN = {'MODEL.BERT.V_NUM_HIDDEN_LAYERS': 1, 'MODEL.BERT.NUM_UNDERSTANDING_LAYERS': 1, 'MODEL.BERT.NUM_GENERATION_LAYERS': 1, 'MODEL.MM_PREDICTOR.POOLER_INPUT_SIZE': 16,
        'MODEL.MM_PREDICTOR.POOLER_OUTPUT_SIZE': 16, 'MODEL.MM_PREDICTOR.POOLER_BN': False}


@pytest.fixture(scope='module')
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp('world')
    data = make_scenes(folder/'scenes', counts=dict(train=24, val=4, test=4))
    return data, write_tasks(folder/'tasks', data)


@pytest.fixture(scope='module', params=['uniter', 'tden'])
def run(world, request, tmp_path_factory):
    "Config and folder of a trained run."
    out = tmp_path_factory.mktemp(request.param)
    more = {**SIZES, **(TDEN if request.param == 'tden' else {}), **world[1]['vqa'].entries, 'OUTPUT_DIR': str(out)}
    cfg = load_cfg_file(f'mm_understanding/vqa/{request.param}/vqa.yaml', [x for kv in more.items() for x in kv], DATASETS=dict(VAL='', TEST='VQADataset'))
    torch.manual_seed(0)
    DefaultTrainer(cfg).train()
    return cfg, out


def questions(world):
    folder = world[1]['vqa'].folder/'vqa'
    return json.loads((folder/'v2_OpenEnded_mscoco_test2015_questions.json').read_text())['questions']


def test_everything_travels(run, world):
    names = {p.name for p in (run[1]/'model_final').iterdir()}
    assert {'config.yaml', 'wordpieces.txt', 'answers.json', 'extractor.json', 'familiar.json', 'model.safetensors'} <= names
    assert (run[1]/'model_final'/'wordpieces.txt').read_text() == (world[1]['vqa'].folder/'wordpieces.txt').read_text()


def test_a_person_gets_the_answer_of_the_evaluation(run, world):
    "From pixels and typed words, what the loader's features and ids give: every test question, answers and probabilities."
    model, asked = Answerer.from_pretrained(run[1]), questions(world)
    said = {}
    for batch in build_xmodaler_valtest_loader(run[0], stage='test'):
        with torch.no_grad(): out = model.model(model.model.preprocess_batch(batch))
        said |= {str(i): model.answers[int(a)] for i, a in zip(batch[kfg.IDS], out[kfg.OUTPUT])}
    answers = model.answer([world[0].image(q['image_id']) for q in asked], [q['question'] for q in asked])
    assert {str(q['question_id']): a.text for q, a in zip(asked, answers)} == said
    for a in answers:
        probs = [p for _, p in a.best]
        assert len(probs) == 5 and probs == sorted(probs, reverse=True) and 0 <= a.sure <= 1 and not a.unknown
        assert a.attention.shape == (len(a.words), len(a.boxes)) and (a.attention >= 0).all() and (a.attention.sum(1) <= 1 + 1e-5).all()
        assert a.seen.shape == (len(a.boxes),)


def test_saved_and_opened(run, world, tmp_path):
    model, q, picture = Answerer.from_pretrained(run[1]), questions(world)[0]['question'], world[0].image(questions(world)[0]['image_id'])
    again = Answerer.from_pretrained(model.save_pretrained(tmp_path/'a'))
    assert again.answer(picture, q).best == model.answer(picture, q).best and again.familiar is not None
    assert 'answers pictures' not in (tmp_path/'a'/'README.md').read_text() and 'Answerer.from_pretrained' in (tmp_path/'a'/'README.md').read_text()
    Image.fromarray(picture).save(tmp_path/'p.png')
    assert again.answer(tmp_path/'p.png', q).id == str(tmp_path/'p.png')
    with pytest.raises(FileNotFoundError, match='no vocabulary.txt beside the weights'): Captioner.from_pretrained(tmp_path/'a')
    model.save_pretrained(tmp_path/'a')                                                    # its own folder may be replaced


def test_features_from_a_file_and_from_memory(run, world, tmp_path):
    model, q = Answerer.from_pretrained(run[1]), questions(world)[0]
    arrays, file = read_np(world[1]['vqa'].folder/'features_test2015'/f"{q['image_id']}.npz"), tmp_path/'features.npz'
    np.savez(file, **arrays)
    by_file, by_arrays, by_picture = (model.answer(x, q['question']) for x in (file, arrays, world[0].image(q['image_id'])))
    for a in (by_file, by_arrays): assert a.text == by_picture.text and a.prob == pytest.approx(by_picture.prob, abs=1e-5)


def test_bad_input(run, world, tmp_path):
    model, picture = Answerer.from_pretrained(run[1]), world[0].image(world[0].ids('test')[0])
    n = model.extractor.dim
    arrays = dict(features=np.zeros((2, n)), boxes=np.array([[0, 0, 9, 9], [3, 3, 8, 8.]]), image_h=64, image_w=64)
    ask = lambda x=picture, q='how many balls are there?', **kw: model.answer(x, q, **kw)
    with pytest.raises(ValueError, match='the question: the text is empty'): ask(q='  ')
    with pytest.raises(ValueError, match="the question 'qwerty asdf\\?'.* has none of its words"): ask(q='qwerty asdf?')
    assert ask(q='how many snorks are there?').unknown == ['snorks']
    with pytest.raises(ValueError, match='picture sea: .*no regions'): ask(dict(arrays, features=np.zeros((0, n)), boxes=np.zeros((0, 4))), ids=['sea'])
    with pytest.raises(ValueError, match=rf'picture 0: features have sizes \([23], 7\), this model was trained on \(n, {n}\)'): ask(dict(arrays, features=np.zeros((2, 7))))
    with pytest.raises(ValueError, match='2 features but 1 boxes'): ask(dict(arrays, boxes=np.zeros((1, 4))))
    with pytest.raises(ValueError, match='finite'): ask(dict(arrays, features=np.full((2, n), np.nan)))
    with pytest.raises(TypeError, match='the question is a int'): ask(q=7)
    with pytest.raises(ValueError, match='k is 0'): ask(k=0)
    assert ask(np.full((64, 64, 3), 190, np.uint8)).boxes[-1].tolist() == [0, 0, 64, 64]     # nothing found: the whole picture is one region
    errors = {}
    (tmp_path/'x.png').write_text('no picture')
    assert [a and a.text for a in ask([tmp_path/'x.png', tmp_path/'none.png'], errors=errors)] == [None, None] and len(errors) == 2
    assert ask([], 'how many balls are there?') == [] and ask(picture, []) == []


def test_answers_of_another_length(run, tmp_path):
    (tmp_path/'answers.json').write_text('["yes", "no"]')
    with pytest.raises(ValueError, match='the list has 2 answers, the model has MODEL.MM_PREDICTOR.LABELS_NUM'): Answerer.from_pretrained(run[1], answers=tmp_path/'answers.json')
    (tmp_path/'answers.json').write_text('{"yes": 0}')
    with pytest.raises(ValueError, match='answers.json: expected a list of texts'): Answerer.from_pretrained(run[1], answers=tmp_path/'answers.json')
    (tmp_path/'pieces.txt').write_text('[PAD]\n[UNK]\n[CLS]\n[SEP]\nball\n')
    with pytest.raises(ValueError, match=r'pieces.txt: the vocabulary lacks \[MASK\]'): Answerer.from_pretrained(run[1], pieces=tmp_path/'pieces.txt')
    with pytest.raises(TypeError, match="unexpected argument 'vocab'"): Answerer.from_pretrained(run[1], vocab='x')
