"`make models` in small: every captioner goes from its YAML through the trainer to scored captions."
import json
import pytest
from xmodaler_nb.commands.models import MARK, ZOO, models_main, train_one, write_table


@pytest.fixture(scope='module')
def folder(tmp_path_factory): return tmp_path_factory.mktemp('zoo')


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('name', ZOO)
def test_trains_and_captions(folder, name):
    row = train_one(name, folder/'data', folder, tiny=True)
    assert row['parameters'] > 10_000 and row['steps'] >= 5 and row['CIDEr'] >= 0 and 0 < row['baseline'] < 1


def test_table(folder):
    "All rows that are there, in the order of the zoo, in the notebook's marked cell."
    rows = [json.loads(f.read_text()) for f in folder.glob('*/row.json')]
    page = folder/'page.ipynb'
    page.write_text(json.dumps(dict(cells=[dict(cell_type='markdown', metadata={}, source=[MARK, '\nold'])], metadata={}, nbformat=4, nbformat_minor=5)))
    assert models_main(['--table', '--tiny', '--output-dir', str(folder), '--write', str(page)]) == 0
    lines = ''.join(json.loads(page.read_text())['cells'][0]['source']).splitlines()
    assert lines[0] == MARK and len(lines) == 3 + len(rows)


def test_the_committed_table_is_of_this_zoo(root):
    "The table in the docs has a row for every model, each clearly better than the most frequent caption."
    cells = json.loads((root/'nbs'/'01_tour'/'20_models.ipynb').read_text())['cells']
    lines = next(''.join(c['source']) for c in cells if ''.join(c['source']).startswith(MARK)).splitlines()[3:]
    found = {l.split('[')[1].split(']')[0]: [x.strip() for x in l.strip('|').split('|')] for l in lines}
    assert list(found) == list(ZOO)
    for name, row in found.items(): assert float(row[1]) > 2*float(row[2]) and float(row[5]) < 60, (name, row)
