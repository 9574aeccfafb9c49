"A log that a power cut left torn, and a lock file that says nothing: neither keeps a training from going on."
import json
import os
import time
import pytest
from xmodaler_nb.utils.run_lock import RunLock
from xmodaler_nb.utils.events import truncate_jsonl

GOOD = b'{"iteration": 1}\n{"iteration": 2}\n'

@pytest.mark.parametrize('torn', [b'{"iter', b'\0'*40, '{"x": "ä'.encode()[:-1], b'5', b'null', b'{"iteration": "x"}', b'{"iteration": null}', b'['*100_000, b'\n', b'\n\n{"iteration": 9}\n'])
def test_a_torn_end(tmp_path, torn):
    (tmp_path/'e.jsonl').write_bytes(GOOD + torn)
    assert truncate_jsonl(tmp_path/'e.jsonl', 5) >= 1 and (tmp_path/'e.jsonl').read_bytes() == GOOD


def test_only_the_last_line_end_is_missing(tmp_path):
    "What is appended then begins a new line."
    (tmp_path/'e.jsonl').write_bytes(GOOD[:-1])
    assert truncate_jsonl(tmp_path/'e.jsonl', 5) == 0 and (tmp_path/'e.jsonl').read_bytes() == GOOD


@pytest.mark.parametrize('mark', ['\u2028', '\u0085', '\x0b', '\x1e'])
def test_marks_within_a_text(tmp_path, mark):
    "Python's splitlines ends a line there, JSON does not."
    lines = GOOD + json.dumps({'iteration': 3, 'text': f'a{mark}b'}, ensure_ascii=False).encode() + b'\n{"iteration": 4}\n'
    (tmp_path/'e.jsonl').write_bytes(lines)
    assert truncate_jsonl(tmp_path/'e.jsonl', 3) == 1 and (tmp_path/'e.jsonl').read_bytes() == lines[:-len(b'{"iteration": 4}\n')]


def test_no_lines(tmp_path):
    (tmp_path/'e.jsonl').touch()
    assert truncate_jsonl(tmp_path/'e.jsonl', 3) == truncate_jsonl(tmp_path/'none.jsonl', 3) == 0


def test_damage_in_the_middle_is_named(tmp_path):
    (tmp_path/'e.jsonl').write_bytes(b'\xff\xfe\n' + GOOD)
    with pytest.raises(ValueError, match="e.jsonl, line 1: not a JSON object with an 'iteration'"): truncate_jsonl(tmp_path/'e.jsonl', 3)


@pytest.mark.parametrize('pid', ['"x"', 'null', '0', '-1', '1e400', '[]', 'true', '1' + '0'*30, '1.5'])
def test_a_lock_without_a_process(tmp_path, pid):
    lock = tmp_path/'run.lock'
    lock.write_text(f'{{"pid": {pid}, "host": {json.dumps(os.uname().nodename)}, "started": "5"}}')
    with pytest.raises(FileExistsError, match='a process whose name cannot be read'): RunLock(tmp_path).take()    # it may be written just now
    os.utime(lock, (time.time() - 60,)*2)
    with RunLock(tmp_path).take(): assert json.loads(lock.read_text())['pid'] == os.getpid()
    assert not lock.exists()
