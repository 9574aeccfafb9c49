"The chance of a decoder's own word at every iteration, as X-modaler's hook sets it."
import json
import pytest
from xmodaler_nb.engine.hooks import ScheduledSampling


def test_every_iteration(golden):
    file = golden/'misc'/'scheduled_sampling.json'
    for case in json.loads(file.read_text()):
        n = case['iters_per_epoch']
        h = ScheduledSampling(case['START_EPOCH']*n, case['INC_EVERY_EPOCH']*n, case['INC_PROB'], case['MAX_PROB'])
        assert [h.prob(i) for i in range(len(case['ss_prob_at_iteration']))] == pytest.approx(case['ss_prob_at_iteration'], abs=1e-12), case['START_EPOCH']
