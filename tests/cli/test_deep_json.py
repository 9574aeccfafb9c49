"JSON that is nested a hundred thousand times, in every place that reads a file of a user's: a sentence that names the file, never a traceback. And JSON that is written holds no NaN."
import json
from pathlib import Path
import numpy as np
import pytest
from xmodaler_nb.asl.clips import sign_names
from xmodaler_nb.captioner import Captioner
from xmodaler_nb.commands.caption_lines import done_before
from xmodaler_nb.datasets.layout import write_json
from xmodaler_nb.evaluation.captions import read_captions
from xmodaler_nb.look.report import read_events
from xmodaler_nb.own.data import CaptionData
from xmodaler_nb.utils.file_io import parse_json, read_json

DEEP = '['*100_000
READERS = {'captions.json': read_captions, 'captions.jsonl': read_captions, 'own.json': CaptionData.from_json, 'own.jsonl': CaptionData.from_json, 'coco.json': CaptionData.from_coco,
           'karpathy.json': CaptionData.from_karpathy, 'any.json': read_json, 'signs.json': sign_names, 'said.jsonl': done_before}


@pytest.mark.parametrize('name', READERS)
@pytest.mark.parametrize('text', [DEEP + '\n', '{"a":'*100_000 + '\n', '{"images": ' + DEEP + '\n', '[1, \n', '{"images": 5}\n', '{"images": [5], "annotations": []}\n'], ids=['lists', 'dicts', 'inside', 'cut off', 'wrong', 'wrong inside'])
def test_deep_json(tmp_path, name, text):
    if text.startswith(('{"images": 5', '{"images": [5')) and name in ('any.json', 'own.json', 'own.jsonl', 'captions.json', 'captions.jsonl', 'signs.json'): return
    (tmp_path/name).write_text(text)
    with pytest.raises((ValueError, FileNotFoundError), match=name): READERS[name](tmp_path/name)

def test_a_log_is_read_up_to_what_cannot_be(tmp_path):
    (tmp_path/'events.jsonl').write_text(json.dumps(dict(iteration=1)) + '\n' + DEEP + '\n')
    assert read_events(tmp_path/'events.jsonl') == [dict(iteration=1)]

def test_a_line_without_a_picture(tmp_path):
    (tmp_path/'said.jsonl').write_text('{"caption": "a"}\n')
    with pytest.raises(ValueError, match='said.jsonl: holds lines without a picture'): done_before(tmp_path/'said.jsonl')

def test_no_nan_in_what_is_written(tmp_path):
    write_json(tmp_path/'a.json', dict(x=float('nan'), y=[np.float32('inf'), np.int64(3)], z='ü'))
    assert (tmp_path/'a.json').read_text(encoding='utf-8') == '{"x": null, "y": [null, 3], "z": "ü"}'

def test_json_is_written_by_one_helper():
    "Where numbers of a user or of a model are written, `json.dumps` is not called directly: it writes NaN."
    root = Path(__file__).parent.parent.parent/'xmodaler_nb'
    for name in ('commands', 'look', 'captioner/card.py', 'own/data.py', 'datasets/layout.py', 'datasets/task_layout.py', 'evaluation/coco_evaler.py', 'evaluation/vqa_evaler.py', 'asl/command.py'):
        files = sorted((root/name).rglob('*.py')) if (root/name).is_dir() else [root/name]
        found = [f'{f.name}: {l.strip()}' for f in files for l in f.read_text(encoding='utf-8').splitlines() if ('json.dumps(' in l or 'json.dump(' in l) and not any(k in l for k in ('nb,', 'cells', '_VARIABLE'))]
        assert not found, found
