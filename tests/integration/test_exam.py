"Every captioner passes the same exam (`modeling.exam.check_model`): learn, decode, save, ignore the neighbours. A new model adds its name."
import sys
from pathlib import Path
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]/'parity'))
from golden_models import Golden
from xmodaler_nb.modeling.exam import check_model

CAPTIONERS = ['updown', 'attention', 'lstm_a', 'gcn', 'transformer', 'xlan', 'video_mplstm', 'video_salstm', 'video_transformer', 'meshed_memory', 'clip_transformer', 'cosnet', 'video_tdconved', 'tden_captioner']


@pytest.mark.parametrize('name', CAPTIONERS)
def test_exam(name):
    "From the published YAML at small sizes, with several captions per image."
    g = Golden(name)
    got = check_model(g.cfg(), g.images(), steps=30, lr=1e-2)
    assert got['parameters'] > 0 and got['loss'][1] < got['loss'][0]
