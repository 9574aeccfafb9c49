"Evaluators of answers, choices and retrieval: X-modaler's numbers, and the official VQA rules on cases computed by hand."
import copy, json, pickle, resource
import numpy as np
import pytest, torch
from safetensors.torch import load_file
from xmodaler_nb.config import get_cfg
from xmodaler_nb.evaluation import RetrievalEvaler, VCREvaler, VQAEvaler, build_evaluation, itm_recalls, vqa_accuracy
from xmodaler_nb.evaluation.ranks import BLOCK, block_rows


@pytest.fixture(scope='module')
def misc(golden):
    path = golden/'misc'/'evaluators'
    return json.loads(path.with_suffix('.json').read_text()), load_file(path.with_suffix('.safetensors'))


def cfg_for(name, folder='.'):
    cfg = get_cfg()
    cfg.INFERENCE.merge_from_list(['NAME', name, 'ID_KEY', 'question_id', 'VALUE', 'answer'])
    cfg.DATALOADER.ANNO_FOLDER = str(folder)
    return cfg


def test_retrieval_equals_upstream(misc):
    "230 texts, 46 images."
    js, t = misc
    got = build_evaluation(cfg_for('RetrievalEvaler'), '', None).eval(t['n230.vfeats'], t['n230.tfeats'], t['n230.labels'])
    assert {k: got[k] for k in js['retrieval.n230']} == pytest.approx(js['retrieval.n230'], abs=1e-9)


def test_fewer_than_hundred_texts(misc):
    "X-modaler evaluates none of 60 texts; here the ranks are those of sorting, in both directions."
    js, t = misc
    v, x, labels = t['n60.vfeats'], t['n60.tfeats'], t['n60.labels']
    got = RetrievalEvaler(get_cfg(), '', None).eval(v, x, labels)
    assert js['retrieval.n60']['r10'] == 0 and js['retrieval.n60']['meanr'] == len(v) + 1      # the defect
    order = (x @ v.T).argsort(dim=1, descending=True, stable=True)
    ranks = [1 + row.index(int(i)) for row, i in zip(order.tolist(), labels.argmax(1).tolist())]
    assert got['meanr'] == pytest.approx(np.mean(ranks)) and got['r5'] == pytest.approx(100*np.mean(np.array(ranks) <= 5))
    order = (v @ x.T).argsort(dim=1, descending=True, stable=True)
    ranks = [1 + min(row.index(k) for k in labels[:, i].nonzero().flatten().tolist()) for i, row in enumerate(order.tolist())]
    assert got['i2t_meanr'] == pytest.approx(np.mean(ranks)) and got['i2t_mder'] == int(np.median(ranks))


def test_single_stream_recalls(misc):
    js, t = misc
    assert itm_recalls(t['itm.scores'], js['single_stream_itm_eval']['gt']) == pytest.approx(js['single_stream_itm_eval']['out'])


def test_fewer_than_ten_images():
    assert itm_recalls(torch.eye(4), [0, 1, 2, 0]) == pytest.approx(dict(img_r1=.75, img_r5=1, img_r10=1, img_r_mean=2.75/3))


def test_memory_of_a_large_set():
    "5,000 images and 25,000 texts: a block of scores, its comparisons and the vectors; the process stays under 2 GB more."
    rng, n = np.random.default_rng(0), 5000
    assert block_rows(25000)*25000 <= BLOCK
    v, image_of = rng.normal(size=(n, 32)).astype(np.float32), np.repeat(np.arange(n), 5)
    x = v[image_of] + rng.normal(size=(5*n, 32)).astype(np.float32)*.5
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    got = RetrievalEvaler(get_cfg(), '', None).eval(v, x, image_of)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300*1024          # kB
    assert 0 < got['r1'] < 100 and got['r1'] < got['i2t_r10']


def test_vcr_equals_upstream(misc):
    js, _ = misc
    assert build_evaluation(cfg_for('VCREvaler'), '', None).eval(js['vcr']['results'], 0) == pytest.approx(js['vcr']['out'])


@pytest.fixture
def vqa(misc, tmp_path):
    js = misc[0]['vqa']
    (tmp_path/'trainval_label2ans.pkl').write_bytes(pickle.dumps(js['label2ans']))
    (tmp_path/'val_target.pkl').write_bytes(pickle.dumps(js['annotations']))
    return js, tmp_path


def test_vqa_equals_upstream(vqa):
    js, folder = vqa
    evaler = build_evaluation(cfg_for('VQAEvaler', folder), folder/'val_target.pkl', folder)
    results = copy.deepcopy(js['results'])
    assert evaler.eval(results, 3) == pytest.approx(js['out'])
    assert [r['answer'] for r in results] == [js['label2ans'][r['answer']] for r in js['results']]          # replaced in place
    assert json.loads((folder/'results'/'3.json').read_text()) == results
    assert evaler.eval(copy.deepcopy(js['results_unknown_question']), 4) == js['out_unknown_question']


def test_answer_list_shorter_than_the_labels(vqa):
    "Label file, question, label and length are named, at the start."
    js, folder = vqa
    (folder/'trainval_label2ans.pkl').write_bytes(pickle.dumps(js['label2ans'][:2]))
    with pytest.raises(ValueError, match='val_target.pkl: question 11 has label 2, but the list of answers has 2 entries'):
        VQAEvaler(cfg_for('VQAEvaler', folder), folder/'val_target.pkl', None)
    with pytest.raises(ValueError, match='question 11.*label 3.*2 answers'):
        VQAEvaler(cfg_for('VQAEvaler', folder), '', None).eval([dict(question_id=11, answer=3)], 0)


@pytest.mark.parametrize('answer, people, want', [
    ('yes', ['yes']*10, 1), ('Yes', ['yes']*10, 0),                                         # unanimous: as written
    ('Yes', ['yes']*9 + ['no'], 1), ('two', ['2']*3 + ['3']*7, .9), ('a dog', ['dog']*2 + ['cat']*8, .6),
    ('1,000', ['1000']*1 + ['many']*9, .3), ('dont know', ["don't know"]*4 + ['?']*6, 1), ('red and blue', ['red']*10, 0),
    ('t-shirt', ['t shirt']*5 + ['shirt']*5, 1), ('3.5', ['3.5']*4 + ['35']*6, 1), ('none', ['0']*4 + ['no']*6, 1)])
def test_official_accuracy_by_hand(answer, people, want):
    a = dict(question_id=1, answers=[dict(answer=p) for p in people], answer_type='other', question_type='what')
    assert vqa_accuracy({1: answer}, [a])['overall'] == pytest.approx(want)


def test_tables_per_type():
    "Two types of answer, weighted by their questions."
    def q(i, kind): return dict(question_id=i, answers=[dict(answer='yes')]*4 + [dict(answer='no')]*6, answer_type=kind, question_type='is')
    annotations = [q(1, 'yes/no'), q(2, 'yes/no'), q(3, 'other')]
    got = vqa_accuracy([dict(question_id=i, answer=a) for i, a in ((1, 'yes'), (2, 'maybe'), (3, 'no'))], annotations)
    assert got['answer_type'] == {'yes/no': .5, 'other': 1.} and got['overall'] == pytest.approx(2/3)
