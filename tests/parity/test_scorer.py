"Rewards equal to X-modaler's: BaseScorer, BertTokenizedScorer and Cider on its own numbers."
import gzip, json, math
from collections import Counter
import numpy as np
import pytest
from xmodaler_nb.config import kfg
from xmodaler_nb.scorer import BaseScorer, BertTokenizedScorer, Cider
from xmodaler_nb.tokenization import BertTokenizer

def table(d): return {'document_frequency': {tuple(g): c for g, c in d['document_frequency']}, 'ref_len': d['ref_len']}

def test_base_scorer(golden):
    d = json.loads((golden/'misc'/'cider.json').read_text())
    scorer = BaseScorer(types=['Cider'], scorers=[Cider(cider_cached=table(d))], weights=d['weights'], gt_path=d['gts'], eos_id=d['eos_id'])
    batch = {kfg.IDS: d['ids'], kfg.G_SENTS_IDS: d['hypotheses']}
    for _ in range(2):                                     # the table must not grow by looking things up
        out = scorer(batch)
        np.testing.assert_allclose(out[kfg.REWARDS], d['rewards'], rtol=0, atol=1e-12)
        assert out[kfg.REWARDS].dtype == np.dtype(d['rewards_dtype'])
        assert out['Cider'] == pytest.approx(d['Cider'], abs=1e-12)
    assert set(out) == set(d['returned_keys'])

def test_weight_is_applied_to_rewards_only(golden):
    d = json.loads((golden/'misc'/'cider.json').read_text())
    scorer = BaseScorer(types=['Cider'], scorers=[Cider(cider_cached=table(d))], weights=[0.5], gt_path=d['gts'], eos_id=d['eos_id'])
    out = scorer({kfg.IDS: d['ids'], kfg.G_SENTS_IDS: d['hypotheses']})
    np.testing.assert_allclose(out[kfg.REWARDS], 0.5*np.array(d['rewards']), atol=1e-12)
    assert out['Cider'] == pytest.approx(d['Cider'], abs=1e-12)

def test_bert_tokenized_scorer(golden, tmp_path):
    d = json.loads((golden/'misc'/'cider_bert.json').read_text())
    (tmp_path/'vocab.txt').write_text('\n'.join(d['vocab']))
    scorer = BertTokenizedScorer(types=['Cider'], scorers=[Cider(cider_cached=table(d))], weights=[1.], gt_path=d['gts'], bert_tokenizer=BertTokenizer(str(tmp_path/'vocab.txt')))
    assert [scorer.get_sents(h) for h in d['hypotheses']] == d['hypothesis_words']
    np.testing.assert_allclose(scorer({kfg.IDS: d['ids'], kfg.G_SENTS_IDS: d['hypotheses']})[kfg.REWARDS], d['rewards'], rtol=0, atol=1e-12)

def test_self_critical_rewards_on_coco(real_data):
    with gzip.open(real_data('caption_metrics')/'scst_cider_ids.json.gz') as f: d = json.load(f)
    def grams(r): return {tuple(r[i:i+k]) for k in (1, 2, 3, 4) for i in range(len(r)-k+1)}
    df = Counter(g for rs in d['ref_ids'] for g in set().union(*map(grams, rs)))
    scorer = BaseScorer(types=['Cider'], scorers=[Cider(cider_cached={'document_frequency': df, 'ref_len': math.log(len(d['ref_ids']))})], weights=[1.],
                        gt_path=dict(enumerate(d['ref_ids'])), eos_id=d['eos_id'])
    out = scorer({kfg.IDS: d['hyp_index'], kfg.G_SENTS_IDS: d['hyp_ids']})
    np.testing.assert_allclose(out[kfg.REWARDS], d['scores'], rtol=0, atol=1e-9)
    assert out['Cider'] == pytest.approx(d['mean'], abs=1e-9)


def test_captions_that_share_nothing_with_the_references():
    "Not one n-gram in common, in the whole batch: rewards of 0."
    refs = {'1': [[5, 3, 7, 0]], '2': [[4, 4, 0]]}
    scorer = BaseScorer(types=['Cider'], scorers=[Cider(cider_cached={'document_frequency': {(5,): 1., (3,): 1.}, 'ref_len': math.log(2)})], weights=[1.], gt_path=refs, eos_id=0)
    np.testing.assert_array_equal(scorer({kfg.IDS: ['1', '2'], kfg.G_SENTS_IDS: [[9, 9, 9], [8, 8, 8]]})[kfg.REWARDS], [0., 0.])
