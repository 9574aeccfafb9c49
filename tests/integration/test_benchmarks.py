"The benchmark scripts run, and both ways of a training step have the same loss."
import sys
import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT/'benchmarks'))
import plain


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('name', plain.FAMILIES)
def test_plain_and_ours_agree(name):
    seconds = plain.compare(name, small=True, repeats=1)     # asserts that the losses agree
    assert all(s > 0 for s in seconds)
