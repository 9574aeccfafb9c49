"One function decides which ids name the same picture: in tables, annotation files, references and results."
import json
import numpy as np
import pytest
import torch
from xmodaler_nb.datasets.annotations import attach_table
from xmodaler_nb.datasets.layout import write_coco, write_pickle
from xmodaler_nb.evaluation import evaluate
from xmodaler_nb.evaluation.split import as_id as split_as_id, read_references
from xmodaler_nb.functional import as_id, id_key
from xmodaler_nb.scorer.base_scorer import BaseScorer

FORMS = ['007', 7, '7', 'a/7', np.int64(8), np.str_('08'), '²', '٣', 'x 1', '-0', 8.5]


def test_one_function(): assert split_as_id is as_id


@pytest.mark.parametrize('x, want', [('007', '007'), (7, 7), ('7', 7), ('a/7', 'a/7'), (np.int32(7), 7), (np.uint8(7), 7), (np.str_('7'), 7), (np.str_('007'), '007'), (torch.tensor(7), 7), (7., 7),
                                     ('-7', -7), ('-0', '-0'), ('+7', '+7'), (' 7', ' 7'), ('7_0', '7_0'), ('²', '²'), ('٣', '٣'), ('', ''), ('7.0', '7.0')])
def test_as_id(x, want):
    got = as_id(x)
    assert got == want and type(got) is type(want) and as_id(got) == got


def test_a_mix_in_a_file_of_references(tmp_path):
    "Written and read back, no two ids become one and none changes."
    ids = ['007', '7', 'a/7', '08', '8', '²', '٣', '-0']
    write_coco(tmp_path/'c.json', {i: [f'caption of {i}'] for i in ids})
    assert read_references(tmp_path/'c.json') == {as_id(i): [f'caption of {i}'] for i in ids}
    assert [i['id'] for i in json.loads((tmp_path/'c.json').read_text(encoding='utf-8'))['images']] == ['007', 7, 'a/7', '08', 8, '²', '٣', '-0']


def test_a_table_by_any_form_of_id(tmp_path):
    write_pickle(tmp_path/'t.pkl', {7: [1.], 'a/7': [2.], '08': [3.]})
    entries = [dict(image_id=i) for i in ('007', '7', 'a/7', '8', '08', '²')]
    attach_table(entries, tmp_path/'t.pkl', 'x')
    assert [e.get('x') for e in entries] == [None, [1.], [2.], None, [3.], None]      # 007 is not 7


def test_references_of_the_reward(tmp_path):
    write_pickle(tmp_path/'gts.pkl', {7: [[1, 0]], '08': [[2, 0]], '9': [[3, 0]]})
    scorer = BaseScorer(types=[], scorers=[], weights=[], gt_path=str(tmp_path/'gts.pkl'), eos_id=0)
    assert [scorer.references(i) for i in (7, '7', np.int64(7), '08', 9, torch.tensor(9))] == [[[1, 0]]]*3 + [[[2, 0]]] + [[[3, 0]]]*2
    for unknown in ('007', 8, '²'):
        with pytest.raises(KeyError, match='no references for id'): scorer.references(unknown)


def test_scores_of_a_mix():
    "Result files hold texts, references numbers: matched one by one, even where some match as they are."
    said = {str(as_id(i)): f'picture {k} of many' for k, i in enumerate(['007', 7, 'a/7', '08', 8])}
    refs = {i: [f'picture {k} of many'] for k, i in enumerate(['007', 7, 'a/7', '08', np.int64(8)])}
    result = evaluate(said, refs, metrics='BLEU')
    assert result.ids == list(refs) and result.corpus['Bleu_4'] == pytest.approx(1)
    with pytest.raises(ValueError, match='more than one prediction for 1 id: 7'): evaluate({7: 'a', '7': 'b', '8': 'c'}, {7: ['a'], 8: ['c']}, metrics='BLEU')


def test_keys():
    assert [id_key({'7': 0, '007': 0}, x) for x in (7, '7', '007', '07', np.int64(7))] == ['7', '7', '007', None, '7']
    for x in FORMS: assert id_key({as_id(x): 0}, x) == as_id(x)
