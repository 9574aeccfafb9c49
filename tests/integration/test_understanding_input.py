"Data for understanding that is broken in one place: a sentence names file, line and field before the training begins."
import json, pickle, shutil
import numpy as np, pytest
from xmodaler_nb.commands.run_report import build_checked_engine
from xmodaler_nb.modeling import load_cfg_file
from xmodaler_nb.own.scenes import make_scenes, write_tasks
from xmodaler_nb.own.scenes.tasks import TaskFolder
from xmodaler_nb.utils.store import FeatureStore
from test_answerer import SIZES

STEPS = {**SIZES, 'DATALOADER.TRAIN_BATCH_SIZE': 4}
FILES = dict(vqa='mm_understanding/vqa/uniter/vqa.yaml', vcr='mm_understanding/vcr/uniter/vcr.yaml', flickr30k='mm_understanding/flickr30k_retrieval/uniter/flickr30k_retrieval.yaml',
             conceptual_captions='pretrain/uniter/uniter.yaml')
CAPTIONS = 'flickr30k/all_data_final_train_2014.jsonline'


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp('world')
    write_tasks(folder/'tasks', make_scenes(folder/'scenes', counts=dict(train=6, val=3, test=3)))
    for part in (folder/'tasks').glob('features*'): unpack(part)
    return folder/'tasks'


def unpack(folder):
    "A file of features per picture in place of a store, as upstream's folders have it; easier to break, too."
    found = {i: {k: np.array(v) for k, v in a.items()} for i, a in FeatureStore(folder).items()}
    shutil.rmtree(folder)
    folder.mkdir()
    for i, arrays in found.items(): np.savez(folder/f'{i}.npz', **arrays)


@pytest.fixture
def folder(whole, tmp_path):
    "A copy that a test may break."
    return shutil.copytree(whole, tmp_path/'tasks')


def start(folder, task, **more):
    cfg = load_cfg_file(FILES[task], [x for kv in {**STEPS, **TaskFolder(folder, task).entries, 'OUTPUT_DIR': str(folder.parent/'out'), **more}.items() for x in kv])
    build_checked_engine(cfg)


def refused(folder, task, *words, **more):
    with pytest.raises((ValueError, FileNotFoundError, KeyError)) as e: start(folder, task, **more)
    said = str(e.value.args[0] if isinstance(e.value, KeyError) else e.value)
    for w in words: assert w in said, said


def edit_lines(path, number, change):
    "Change one line of JSON."
    lines = path.read_text().splitlines()
    row = json.loads(lines[number-1])
    change(row)
    lines[number-1] = json.dumps(row)
    path.write_text('\n'.join(lines) + '\n')


@pytest.mark.parametrize('task', FILES)
def test_the_whole_folder_is_fine(folder, task): start(folder, task)


@pytest.mark.parametrize('field', ['sentences', 'img_path'])
def test_captions_with_a_missing_field(folder, field):
    edit_lines(folder/CAPTIONS, 3, lambda row: row.pop(field))
    refused(folder, 'flickr30k', 'all_data_final_train_2014.jsonline', 'line 3', f"'{field}'")


@pytest.mark.parametrize('field', ['question', 'answer_choices', 'objects', 'metadata_fn'])
def test_choices_with_a_missing_field(folder, field):
    edit_lines(folder/'vcr'/'train.jsonl', 2, lambda row: row.pop(field))
    refused(folder, 'vcr', 'train.jsonl', 'line 2', f"'{field}'")


def test_a_line_that_is_cut_off(folder):
    (folder/CAPTIONS).write_text((folder/CAPTIONS).read_text()[:-20])
    refused(folder, 'flickr30k', 'all_data_final_train_2014.jsonline', 'line 6', 'not JSON, or cut off')


def test_a_question_with_a_missing_field_or_without_words(folder):
    path = folder/'vqa'/'v2_OpenEnded_mscoco_train2014_questions.json'
    content = json.loads(path.read_text())
    question = content['questions'][1].pop('question')
    path.write_text(json.dumps(content))
    refused(folder, 'vqa', 'train2014_questions.json', "question 1 has no field 'question'")
    content['questions'][1]['question'] = '  '
    path.write_text(json.dumps(content))
    refused(folder, 'vqa', f"question {content['questions'][1]['question_id']}", 'the text is empty')


def test_a_vocabulary_without_a_known_word(folder):
    (folder/'wordpieces.txt').write_text('\n'.join(['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', *(f'w{k}' for k in range(170))]))
    refused(folder, 'vqa', 'not one of', 'is it the right one?')


@pytest.mark.parametrize('task', FILES)
def test_a_vocabulary_that_lacks_mask(folder, task):
    path = folder/'wordpieces.txt'
    path.write_text(path.read_text().replace('[MASK]', '[MUSK]'))
    refused(folder, task, 'wordpieces.txt', 'lacks [MASK]')


def test_an_answer_list_shorter_than_the_labels(folder):
    for name in ('ans2label', 'label2ans'):
        path = folder/'vqa'/f'trainval_{name}.pkl'
        old = pickle.loads(path.read_bytes())
        path.write_bytes(pickle.dumps(dict(list(old.items())[:3]) if isinstance(old, dict) else old[:3]))
    refused(folder, 'vqa', 'LABELS_NUM is 17', 'has 3 answers')
    refused(folder, 'vqa', 'train_target.pkl', 'the list of answers has 3 entries', **{'MODEL.MM_PREDICTOR.LABELS_NUM': 3})
    (folder/'vqa'/'trainval_label2ans.pkl').write_bytes(pickle.dumps(['yes']))
    refused(folder, 'vqa', 'trainval_label2ans.pkl has 1 answers', '3')


@pytest.mark.parametrize('task', ['flickr30k', 'conceptual_captions', 'vqa'])
def test_a_caption_without_its_image(folder, task):
    gone = sorted((folder/'features').glob('*.npz'))[0]
    gone.unlink()
    refused(folder, task, gone.name)


@pytest.mark.parametrize('change, words', [
    (lambda a: dict(a, features=a['features'][:, :7]), ('7 wide', '156')), (lambda a: dict(a, boxes=a['boxes'][:-1]), ('features but', 'boxes')),
    (lambda a: dict(a, features=a['features'][:0], boxes=a['boxes'][:0]), ('no region',)), (lambda a: {k: v for k, v in a.items() if k != 'image_w'}, ("no array 'image_w'",))])
@pytest.mark.parametrize('task', ['vqa', 'flickr30k'])
def test_features_that_do_not_fit(folder, task, change, words):
    for path in (folder/'features').glob('*.npz'):
        with np.load(path) as z: arrays = change(dict(z))
        np.savez(path, **arrays)
    refused(folder, task, '.npz', *words)
