"Data of questions, choices, retrieval and pre-training: bad input is named, caches are safe, draws are keyed."
import json, pickle, random, subprocess, sys
from pathlib import Path
import numpy as np, pytest, torch
from xmodaler_nb.config import get_cfg, kfg
from xmodaler_nb.datasets import (DATASETS_REGISTRY, ConceptualCaptionsDatasetForSingleStream, Flickr30kDataset, Flickr30kDatasetForSingleStream,
    Flickr30kDatasetForSingleStreamVal, VCRDataset, VQADataset, build_dataset_mapper, build_xmodaler_train_loader, build_xmodaler_valtest_loader)
from xmodaler_nb.datasets.check import DatasetError, check_dataset, check_datasets
from xmodaler_nb.datasets.task_layout import (vcr_line, write_conceptual_captions, write_flickr30k, write_lines, write_pieces, write_regions, write_vqa)
from xmodaler_nb.utils.safe_pickle import UnsafePickleError

TEXTS = ['a red ball', 'a blue box', 'two cones', 'the green star', 'a small red box', 'what is left', 'nothing right', 'one big ball']
NAMES = dict(cc='ConceptualCaptionsDatasetForSingleStream', cc2='ConceptualCaptionsDataset', vqa='VQADataset', vcr='VCRDataset', flickr='Flickr30kDataset',
             single='Flickr30kDatasetForSingleStream')


@pytest.fixture
def root(tmp_path):
    "All four layouts in one folder, eight pictures, features of width 6."
    rng = np.random.default_rng(0)
    for i in range(1, 9):
        for folder in ('f', 'f_gt', 'f_mirror', 'f_gt_mirror', 'f_test2015'):
            n = 2 + i % 3
            write_regions(tmp_path/folder, i, rng.normal(size=(n, 6)), rng.random((n, 4))*40, (48, 64), rng.dirichlet(np.ones(4), n))
    write_pieces(tmp_path/'vocab.txt', [*TEXTS, 'ball and box'])
    questions = [dict(question_id=10 + i, image_id=i, question=TEXTS[i - 1], answers=['yes']*7 + ['no']*3) for i in range(1, 9)]
    write_vqa(tmp_path, dict(train=questions[:4], val=questions[4:6], test=questions[6:]), ['yes', 'no', 'left', 'right'])
    choices = [[t for t in text.split()] for text in TEXTS[:4]]
    for split in ('train', 'val'): write_lines(tmp_path/f'{split}.jsonl', [vcr_line(i, f'{i}.json', ['ball', 'box'], ['what', [0, 1]], choices, choices, (0, 3)) for i in range(1, 5)])
    write_flickr30k(tmp_path, dict(train={i: TEXTS[i - 1:i + 1] for i in range(1, 6)}, val={i: TEXTS[i - 1:i] for i in (6, 7)}, test={8: TEXTS[7:]}))
    write_conceptual_captions(tmp_path, dict(train={i: TEXTS[i - 1] for i in range(1, 7)}))
    return tmp_path


def config(root, name='', **more):
    cfg = get_cfg()
    cfg.SEED, cfg.MODEL.MAX_SEQ_LEN, cfg.MODEL.VOCAB_SIZE, cfg.MODEL.PRETRAINING.MODEL_NAME = 0, 8, 30, str(root/'vocab.txt')
    cfg.MODEL.VISUAL_EMBED.NAME, cfg.MODEL.VISUAL_EMBED.IN_DIM, cfg.INFERENCE.VOCAB = 'VisualBaseEmbedding', 6, ''
    cfg.DATALOADER.merge_from_list(['ANNO_FOLDER', str(root), 'FEATS_FOLDER', str(root/'f'), 'MAX_FEAT_NUM', 5, 'TRAIN_BATCH_SIZE', 2, 'NUM_WORKERS', 0, 'SEQ_PER_SAMPLE', 4,
                                    'NEGATIVE_SIZE', 1])
    cfg.DATASETS.TRAIN = name
    for k, v in more.items(): cfg.merge_from_list([k.replace('__', '.'), v])
    return cfg


def batches(cfg): return list(build_xmodaler_train_loader(cfg))


@pytest.mark.parametrize('name', NAMES.values())
def test_workers_do_not_matter(root, name):
    "Masks, mirrors and wrong pairs are the same with two loader processes as with none."
    one, two = (batches(config(root, name, DATALOADER__NUM_WORKERS=n)) for n in (0, 2))
    assert len(one) == len(two) > 0
    for a, b in zip(one, two):
        assert a.keys() == b.keys()
        for k, v in a.items(): assert torch.equal(v, b[k]) if isinstance(v, torch.Tensor) else v == b[k], k


@pytest.mark.parametrize('name', NAMES.values())
def test_good_data_passes_the_check(root, name):
    reports = check_datasets(config(root, name))
    assert len(reports) == (2 if name == 'VCRDataset' else 1) and all(r.regions[0] > 0 for r in reports if name != 'Flickr30kDatasetForSingleStream')


@pytest.mark.parametrize('name', NAMES.values())
def test_picture_without_regions(root, name):
    for folder in ('f', 'f_mirror'): write_regions(root/folder, 2, np.zeros((0, 6)), np.zeros((0, 4)), (48, 64), np.zeros((0, 4)))
    with pytest.raises(DatasetError, match=r'2\.npz: the picture has no region'): check_dataset(config(root, name), 'train', 'all')


@pytest.mark.parametrize('name', NAMES.values())
def test_caption_without_its_picture(root, name):
    (root/'f'/'3.npz').unlink()
    with pytest.raises(DatasetError, match=r'3\.npz: no such feature file, but the annotations name id'): check_dataset(config(root, name))


@pytest.mark.parametrize('name, folder', [('VQADataset', 'f_mirror'), ('VCRDataset', 'f_gt'), ('VCRDataset', 'f_gt_mirror')])
def test_missing_mirrored_or_annotated_regions(root, name, folder):
    (root/folder/'3.npz').unlink()
    with pytest.raises(DatasetError, match=rf'{folder}/3\.npz: no such feature file'): check_dataset(config(root, name))


@pytest.mark.parametrize('name', NAMES.values())
def test_features_of_another_width(root, name):
    with pytest.raises(DatasetError, match='ATT_FEATS are 6 wide, but the model expects 2048'): check_dataset(config(root, name, MODEL__VISUAL_EMBED__IN_DIM=2048))


@pytest.mark.parametrize('name', NAMES.values())
@pytest.mark.parametrize('lost', ['[MASK]', '[CLS]'])
def test_vocabulary_without_a_special_piece(root, name, lost):
    path = root/'vocab.txt'
    path.write_text(path.read_text().replace(lost + '\n', ''))
    with pytest.raises(ValueError, match=rf'vocab.txt: the vocabulary lacks \{lost[:-1]}\]'): build_dataset_mapper(config(root), name, 'train')


@pytest.mark.parametrize('name', NAMES.values())
def test_more_pieces_than_embeddings(root, name):
    with pytest.raises(DatasetError, match=r'MODEL.VOCAB_SIZE is 7, but the BERT vocabulary .* has 24 pieces'): check_dataset(config(root, name, MODEL__VOCAB_SIZE=7))


def test_classes_of_another_number(root):
    cfg = config(root, NAMES['cc'], MODEL__BERT__V_TARGET_SIZE=1601)
    with pytest.raises(DatasetError, match='V_TARGET are 4 wide, but the model expects 1601'): check_dataset(cfg)


def rewrite(path, change):
    lines = path.read_text().splitlines()
    lines[1] = change(lines[1])
    path.write_text('\n'.join(lines) + '\n')


@pytest.mark.parametrize('name, file, field', [('Flickr30kDataset', 'all_data_final_train_2014.jsonline', 'sentences'), ('Flickr30kDataset', 'all_data_final_train_2014.jsonline', 'img_path'),
                                               ('VCRDataset', 'train.jsonl', 'question'), ('VCRDataset', 'train.jsonl', 'objects'), ('VCRDataset', 'train.jsonl', 'metadata_fn')])
def test_line_with_a_missing_field(root, name, file, field):
    "File, line and field."
    rewrite(root/file, lambda l: json.dumps({k: v for k, v in json.loads(l).items() if k != field}))
    with pytest.raises(ValueError, match=rf"{file}, line 2: has no field '{field}'"): build_dataset_mapper(config(root), name, 'train').load_data()
    rewrite(root/file, lambda l: l[:10])
    with pytest.raises(ValueError, match=f'{file}, line 2: not JSON'): build_dataset_mapper(config(root), name, 'train').load_data()


def test_question_file_with_a_missing_field(root):
    path = root/'v2_OpenEnded_mscoco_train2014_questions.json'
    content = json.loads(path.read_text())
    del content['questions'][1]['image_id']
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="train2014_questions.json: question 1 has no field 'image_id'"): VQADataset(config(root), 'train').load_data()


def ask(root, *texts):
    questions = [dict(question_id=k, image_id=1, question=t, answers=['yes']*10) for k, t in enumerate(texts)]
    write_vqa(root, dict(train=questions, val=[]), ['yes', 'no', 'left', 'right'])


def test_empty_question(root):
    ask(root, 'a ball', '  ')
    with pytest.raises(ValueError, match=r"question 1: the text is empty"): VQADataset(config(root), 'train').load_data()


def test_question_with_no_known_word(root, caplog):
    "One among others: the log says so. All: the vocabulary is the wrong one."
    ask(root, 'a ball', 'was ist das')
    assert len(VQADataset(config(root), 'train').load_data()) == 2
    assert '1 of 2 texts have no known word' in caplog.text
    ask(root, 'wieviele', 'was ist das')
    with pytest.raises(ValueError, match='not one of 2 texts has a piece of the vocabulary, which has 24 pieces'): VQADataset(config(root), 'train').load_data()


def test_answer_list_shorter_than_the_labels(root):
    for name, data in (('label2ans', ['yes']), ('ans2label', dict(yes=0))): (root/f'trainval_{name}.pkl').write_bytes(pickle.dumps(data))
    with pytest.raises(ValueError, match='train_target.pkl: question 11 has label 1, but the list of answers has 1 entries'): VQADataset(config(root), 'train').load_data()


def test_number_of_answers_of_the_model(root):
    cfg = config(root)
    cfg.MODEL.MM_PREDICTOR = type(cfg)(dict(LABELS_NUM=3129))
    with pytest.raises(ValueError, match='MODEL.MM_PREDICTOR.LABELS_NUM is 3129, but trainval_label2ans.pkl has 4 answers'): VQADataset(cfg, 'train').load_data(cfg)


def test_targets_of_other_questions(root):
    targets = pickle.loads((root/'train_target.pkl').read_bytes())
    (root/'train_target.pkl').write_bytes(pickle.dumps([dict(targets[0], image_id=99), *targets[1:]]))
    with pytest.raises(ValueError, match='question 11 about image 1 stands beside target 11 about 99'): VQADataset(config(root), 'train').load_data()


@pytest.mark.parametrize('name', ['VQADataset', 'VCRDataset', 'Flickr30kDataset'])
def test_cache_follows_text_and_vocabulary(root, name):
    "The second load reads the cache; a changed text or vocabulary is noticed; nothing half-written stays."
    load = lambda: json.dumps(build_dataset_mapper(config(root), name, 'train').load_data(), default=np.ndarray.tolist)
    first = load()
    files = sorted(p.name for p in (root/'cache').iterdir())
    assert len(files) == 1 and files[0].endswith('.jsonl')
    before = (root/'cache'/files[0]).stat().st_mtime_ns
    assert load() == first and (root/'cache'/files[0]).stat().st_mtime_ns == before
    write_pieces(root/'vocab.txt', ['aaa', *TEXTS, 'ball and box'])                     # all ids move by one
    assert load() != first and (root/'cache'/files[0]).stat().st_mtime_ns != before
    assert sorted(p.name for p in (root/'cache').iterdir()) == files


def test_upstream_pickle_is_read_safely(root, caplog):
    "X-modaler's cache is used as it is; one that would run code is refused and nothing runs."
    (root/'cache').mkdir()
    path = root/'cache'/'RetrievalFlickr30k_train_8.pkl'
    path.write_bytes(pickle.dumps([dict(image_id='5', captions=np.array([2, 7, 3]))]))
    assert Flickr30kDataset(config(root), 'train').load_data()[0]['image_id'] == '5' and "X-modaler's cache, read" in caplog.text
    class Evil:
        def __reduce__(self): return (open, (str(root/'ran'), 'w'))
    path.write_bytes(pickle.dumps([Evil()]))
    with pytest.raises(UnsafePickleError): Flickr30kDataset(config(root), 'train').load_data()
    assert not (root/'ran').exists()


def test_cache_that_cannot_be_written(root, caplog):
    (root/'cache').write_text('a file, not a folder')
    assert len(Flickr30kDataset(config(root), 'train').load_data()) == 10 and 'cannot be written' in caplog.text


@pytest.mark.slow
def test_two_processes_make_one_cache(root):
    "Both load at the same time; both see all entries, one file is left."
    code = (f'import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\nfrom pathlib import Path\nfrom test_task_data import config\n'
            f'from xmodaler_nb.datasets import Flickr30kDataset\nprint(len(Flickr30kDataset(config(Path({str(root)!r})), "train").load_data()))')
    runs = [subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [r.communicate()[0].strip() for r in runs] == ['10', '10']
    assert [p.name for p in (root/'cache').iterdir()] == ['RetrievalFlickr30k_train_8.jsonl']


@pytest.mark.slow
def test_wrong_pairs_do_not_depend_on_the_hash_seed(root):
    "X-modaler draws from a list made of a set."
    code = (f'import random, sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\nfrom pathlib import Path\nfrom test_task_data import config\n'
            f'from xmodaler_nb.datasets import Flickr30kDatasetForSingleStream as D\nd = D(config(Path({str(root)!r})))\n'
            f'print([d.pairs(e["image_id"], (), random.Random(1))[2][0] for e in d.load_data()])')
    out = {subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env={**__import__('os').environ, 'PYTHONHASHSEED': s}).stdout for s in '12'}
    assert len(out) == 1 and out.pop().startswith('[')


def test_left_and_right_in_any_vocabulary(root):
    "Mirrored items exchange the words of this vocabulary; without them no picture is mirrored."
    cfg = config(root, 'VQADataset')
    data = VQADataset(cfg, 'train')
    assert data.mirror
    left, right = (data.tokenizer.vocab[w] for w in ('left', 'right'))
    entry = dict(question_id='1', image_id='1', question=np.array([2, left, right, 3]), answer=dict(labels=np.array([2]), scores=np.array([.6])))
    item = data(entry, rng=type('R', (), dict(random=lambda s: .9))())
    assert item[kfg.U_TOKENS_IDS].tolist() == [2, right, left, 3] and torch.allclose(item[kfg.U_TARGET_IDS], torch.tensor([0, 0, 0, .6]))
    write_pieces(root/'vocab.txt', ['a ball'])
    assert not VQADataset(cfg, 'train').mirror


def test_evaluation_of_every_pair(root):
    cfg = config(root, DATALOADER__INF_BATCH_SIZE=1)
    cfg.DATASETS.VAL = 'Flickr30kDatasetForSingleStreamVal'
    got = list(build_xmodaler_valtest_loader(cfg, stage='val'))
    assert [len(chunks) for chunks in got] == [2, 2] and [int(c[0]['matched_imgfeatidx']) for c in got] == [0, 1]
    assert check_dataset(cfg, 'val').entries == 2


def test_registered():
    for name in (*NAMES.values(), 'Flickr30kDatasetForSingleStreamVal'): assert name in DATASETS_REGISTRY
