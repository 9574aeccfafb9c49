"Optional packages: importing the guests needs none; what needs one names the extra, and settings.ini has that extra."
import configparser, sys
from pathlib import Path
import pytest, torch
from torch import nn
from xmodaler_nb.asl.hparam_search import open_study
from xmodaler_nb.ppe.config_types import optuna_types
from xmodaler_nb.ppe.onnx import export, export_testcase
from xmodaler_nb.ppe.training.extensions import LogReport, Slack
from xmodaler_nb.ppe.training.ignite_manager import IgniteExtensionsManager

ROOT = Path(__file__).resolve().parents[2]


def extras():
    "extra → requirements, of settings.ini."
    parser = configparser.ConfigParser(delimiters=['='], interpolation=None)
    parser.read(ROOT/'settings.ini')
    return {k[:-len('_requirements')]: v.split() for k, v in parser['DEFAULT'].items() if k.endswith('_requirements')}


USES = dict(
    optuna=('search', 'optuna', lambda tmp: open_study(tmp/'study.db')),
    pandas=('tables', 'pandas', lambda tmp: LogReport().to_dataframe()),
    ignite=('ignite', 'pytorch-ignite', lambda tmp: IgniteExtensionsManager(None, {}, {}, 1, out_dir=tmp)),
    onnx=('export', 'onnx', lambda tmp: export(nn.Linear(1, 1), (torch.ones(1, 1),), str(tmp/'m.onnx'))),
    onnx_testcase=('export', 'onnx', lambda tmp: export_testcase(nn.Linear(1, 1), torch.ones(1, 1), str(tmp/'case'))))


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('use', USES)
def test_absence_names_the_extra(use, monkeypatch, tmp_path):
    extra, package, call = USES[use]
    module = use.split('_')[0]
    for name in [m for m in sys.modules if m.split('.')[0] == module]: monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"this needs {module}.*: pip install 'xmodaler_nb\[{extra}\]'"): call(tmp_path)
    assert any(r.split('>')[0].split('=')[0] == package for r in extras()[extra])
    assert list(tmp_path.iterdir()) == []                              # nothing half written


def test_slack_only_warns(monkeypatch):
    monkeypatch.setitem(sys.modules, 'slack_sdk', None)
    with pytest.warns(UserWarning, match=r"xmodaler_nb\[slack\]"): Slack('#c', 'x', token='t')
    assert extras()['slack'][0].startswith('slack_sdk')


def test_the_types_of_optuna_need_only_a_trial(monkeypatch):
    monkeypatch.setitem(sys.modules, 'optuna', None)
    class Trial:
        def suggest_categorical(self, name, choices): return choices[0]
        def suggest_float(self, name, low, high, *, step=None, log=False): return low
        def suggest_int(self, name, low, high): return high
    assert optuna_types(Trial())['optuna_suggest_int']('n', 1, 5) == 5


def test_omegaconf_configs_are_plain_mappings(monkeypatch):
    "The package is never imported here; a config that was made with it is read, interpolations resolved."
    assert extras()['omegaconf'][0].startswith('omegaconf')
    conf = pytest.importorskip('omegaconf', reason='the extra `omegaconf` is not installed').OmegaConf
    from xmodaler_nb.mmf.common.sample import SampleList
    from xmodaler_nb.mmf.models.base_model import BaseModel
    class Toy(BaseModel):
        def build(self): self.linear = nn.Linear(self.config.width, 2)
        def forward(self, s): return dict(scores=self.linear(s.x))
    m = Toy(conf.create({'model': 'toy', 'width': '${other}', 'other': 3, 'losses': [{'type': 'logit_bce', 'params': {}}]}))
    m.build()
    m.init_losses()
    assert list(m(SampleList(dict(x=torch.ones(4, 3), targets=torch.ones(4, 2))))['losses']) == ['train/unknown/logit_bce']
    saved = {}
    m.on_save_checkpoint(saved)
    assert type(saved['config']) is dict and saved['config']['width'] == 3
