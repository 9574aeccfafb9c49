"What people said about 2,811 captions of Flickr8k: our scores are pycocoevalcap's, and agree with people as much."
import gzip, json
from itertools import combinations
import numpy as np
import pytest
from xmodaler_nb.evaluation import evaluate
from xmodaler_nb.evaluation.metrics import problem
from xmodaler_nb.tokenization import ptb_tokenize


def tau_c(score, human):
    "Stuart's tau-c of scores (n,) and judgements (n, 3) on a short scale; each judgement counts."
    levels = [np.sort(np.repeat(score[:, None], human.shape[1], 1)[human == v]) for v in np.unique(human)]
    agree = 0
    for a, b in combinations(levels, 2): agree += int(np.searchsorted(a, b).sum())-int((len(a)-np.searchsorted(a, b, 'right')).sum())
    n, m = human.size, len(levels)
    return 2*agree/(n*n*(m-1)/m)


@pytest.fixture(scope='module')
def expert(real_data):
    with gzip.open(real_data('flickr8k_text')/'expert_pairs.json.gz') as f: d = json.load(f)
    ids, pairs = range(len(d['pairs'])), d['pairs']
    refs = {k: d['refs_tok'][p[0]] for k, p in zip(ids, pairs)}
    said = dict(zip(ids, ptb_tokenize([p[2] for p in pairs])))
    return d, np.array([p[3] for p in pairs]), evaluate(said, refs, tokenize=False)


@pytest.mark.parametrize('name', ['Bleu_1', 'Bleu_2', 'Bleu_3', 'Bleu_4', 'ROUGE_L', 'METEOR'])
def test_scores_per_pair(expert, name):
    d, human, result = expert
    if name == 'METEOR' and problem('METEOR'): pytest.skip(problem('METEOR'))
    ours = np.array([row[name] for row in result.per_image.values()])
    np.testing.assert_allclose(ours, d['per_pair_scores'][name], rtol=0, atol=1e-6)
    assert tau_c(ours.round(12), human) == pytest.approx(d['kendall_tau_c'][name], abs=1e-6)      # the file holds 12 decimals


@pytest.mark.parametrize('name, theirs', [('CIDEr', 'CIDEr'), ('CIDEr_D', 'CIDEr-D')])
def test_agreement_of_cider(expert, name, theirs):
    "Its document frequencies come from all 5,664 pairs; half of them is here."
    d, human, result = expert
    ours = np.array([row[name] for row in result.per_image.values()])
    assert tau_c(ours, human) == pytest.approx(d['kendall_tau_c'][theirs], abs=1e-3)
    assert tau_c(np.array(d['per_pair_scores'][theirs]), human) == pytest.approx(d['kendall_tau_c'][theirs], abs=1e-9)
