"A metric that is called by itself refuses captions and references that do not belong together."
import pytest
from xmodaler_nb.evaluation.bleu import Bleu
from xmodaler_nb.evaluation.cider import CiderD
from xmodaler_nb.evaluation.meteor import Meteor
from xmodaler_nb.evaluation.rouge import RougeL


@pytest.mark.parametrize('metric', [Bleu, CiderD, Meteor, RougeL])
@pytest.mark.parametrize('refs, message', [([[]], 'image 0, counted from 0, has no references'), ([['a dog'], ['b']], 'references of 2 images for 1 hypotheses'),
                                           ([], 'references of 0 images for 1 hypotheses')])
def test_pairs_that_do_not_match(metric, refs, message):
    with pytest.raises(ValueError, match=message): metric()(['a dog'], refs)
