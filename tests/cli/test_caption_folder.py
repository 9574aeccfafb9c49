"xm-caption on a folder: killed and typed again, names that no one would choose, broken pictures, and the wall."
import json
import os
import re
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path
import numpy as np
import pytest
from PIL import Image
from xmodaler_nb.commands.caption import caption_main

ODD = ['two\nlines.png', '<script>alert(1)<img src=x>.png', '"; rm -rf x;\'.png', ' blank .png', '-rf.png', 'x[1]*?.png', 'été 犬🐕.png', '\x1b[31mred.png',
       '100%.png', '&amp;.png', 'UPPER.PNG', b'\xff\xfe.png'.decode('utf-8', 'surrogateescape')]


@pytest.fixture(scope='module')
def captioner(tmp_path_factory):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]/'integration'))
    from small import small_captioner
    from xmodaler_nb.own.extract import BackboneExtractor
    c = small_captioner('MODEL.VISUAL_EMBED.IN_DIM', 43, extractor=BackboneExtractor('patches'))
    return str(c.save_pretrained(tmp_path_factory.mktemp('c')/'captioner'))


def picture(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(path, 'PNG')
    return path


def rows(file): return [json.loads(line) for line in file.read_text().splitlines()]


def by_name(file):
    "name → line; no picture may have two."
    out = {r['picture']: r for r in rows(file)}
    assert len(out) == len(rows(file))
    return out


class Page(HTMLParser):
    "Tags, sources of pictures and visible text of a page."
    def __init__(self, html):
        super().__init__()
        self.tags, self.sources, self.texts = [], [], []
        self.feed(html)
    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag == 'img': self.sources.append(dict(attrs))
    def handle_data(self, data): self.texts.append(data)


KILLED = '''
import os, sys, time
from xmodaler_nb.commands.caption import caption_main
from xmodaler_nb.commands.caption_lines import CaptionLines
real, calls = CaptionLines.add, []

class Half:
    def __init__(self, f): self.f = f
    def write(self, content):                            # half of the third part's lines reach the disk
        os.write(self.f.fileno(), content[:len(content)//2 + 7])
        print('here', flush=True)
        time.sleep(60)

def add(self, rows):
    calls.append(1)
    if len(calls) == 3: self.f = Half(self.f)
    real(self, rows)

CaptionLines.add = add
caption_main(sys.argv[1:])
'''


def test_killed_and_typed_again(tmp_path, captioner, capsys):
    "SIGKILL while a line is written: the second call does the rest, and the file is that of an uninterrupted call."
    for i in range(36): picture(tmp_path/'box'/f'{i:02}.png', i)
    args = [str(tmp_path/'box'), '--model', captioner, '--beam', '1', '--out']
    assert caption_main([*args, str(tmp_path/'whole.jsonl')]) == 0
    p = subprocess.Popen([sys.executable, '-c', KILLED, *args, str(tmp_path/'cut.jsonl')], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    while p.stdout.readline().strip() != 'here': assert p.poll() is None
    p.send_signal(signal.SIGKILL)
    p.wait()
    half = (tmp_path/'cut.jsonl').read_bytes()
    assert not half.endswith(b'\n') and 16 < half.count(b'\n') < 24
    assert caption_main([*args, str(tmp_path/'cut.jsonl')]) == 0
    assert rows(tmp_path/'cut.jsonl') == rows(tmp_path/'whole.jsonl') and len(by_name(tmp_path/'cut.jsonl')) == 36
    before = (tmp_path/'cut.jsonl').stat().st_mtime_ns
    capsys.readouterr()
    assert caption_main([*args, str(tmp_path/'cut.jsonl')]) == 0
    assert '36 pictures are in' in capsys.readouterr().err
    assert (tmp_path/'cut.jsonl').stat().st_mtime_ns == before


def test_changed_new_and_deleted(tmp_path, captioner):
    box, out = tmp_path/'box', tmp_path/'said.jsonl'
    for i in range(4): picture(box/f'{i}.png', i)
    args = [str(box), '--model', captioner, '--beam', '1', '--out', str(out)]
    assert caption_main(args) == 0
    first = by_name(out)
    time.sleep(.01)
    os.utime(box/'0.png')                                     # a new date is no new picture
    picture(box/'1.png', 77)
    picture(box/'9.png', 9)
    (box/'2.png').unlink()
    assert caption_main(args) == 0
    second = by_name(out)
    assert set(second) == {str(box/f'{i}.png') for i in (0, 1, 2, 3, 9)}
    changed = {Path(n).name for n in first if first[n] != second[n]}
    assert changed == {'1.png'} and second[str(box/'1.png')]['hash'] != first[str(box/'1.png')]['hash']


def test_other_ways_to_write_a_name(tmp_path, captioner, monkeypatch):
    picture(tmp_path/'box'/'a.png')
    monkeypatch.chdir(tmp_path)
    for name in ('box', './box/', 'box/a.png', str(tmp_path/'box')):
        assert caption_main([name, name, '--model', captioner, '--beam', '1', '--out', 'said.jsonl']) == 0
    assert len(rows(tmp_path/'said.jsonl')) == 1


def test_what_does_not_fit_together_is_refused(tmp_path, captioner, capsys):
    "Another beam size, n-best lists beside single captions, a file of somebody else."
    args = [str(picture(tmp_path/'a.png')), '--model', captioner, '--out', str(tmp_path/'said.jsonl')]
    assert caption_main([*args, '--nbest', '2']) == 0
    row, = rows(tmp_path/'said.jsonl')
    assert len(row['others']) == 1 and 'picture' not in row['others'][0]
    before = (tmp_path/'said.jsonl').read_bytes()
    for more in (['--beam', '2'], ['--nbest', '3']):
        assert caption_main([*args, *more]) == 1
        assert 'said.jsonl: holds captions by captioner' in capsys.readouterr().err
    (tmp_path/'mine.jsonl').write_text('{"id": 3}\n')
    assert caption_main([*args[:-1], str(tmp_path/'mine.jsonl')]) == 1
    assert 'mine.jsonl: holds lines without a picture' in capsys.readouterr().err
    assert (tmp_path/'said.jsonl').read_bytes() == before and (tmp_path/'mine.jsonl').read_text() == '{"id": 3}\n'


@pytest.mark.skipif(os.name == 'nt', reason='names that Windows forbids')
def test_names_that_no_one_would_choose(tmp_path, captioner, capsys):
    "One line each on the screen and in the file; text, not tags, on the wall."
    for i, name in enumerate(ODD): picture(tmp_path/'box'/name, i)
    picture(tmp_path/'box'/'more.png')
    broken = 'broken\n<b>.png'
    (tmp_path/'box'/broken).write_text('no picture')
    args = [str(tmp_path/'box'), '--model', captioner, '--beam', '1']
    assert caption_main(args) == 1
    out, err = capsys.readouterr()
    assert sum(str(tmp_path) in line for line in out.splitlines()) == len(ODD) + 1 and '\x1b' not in out + err
    assert re.search(r'^failed: .*broken\\n<b>\.png: ', err, re.M) and re.search('^.*1 of 14 failed$', err, re.M)
    for _ in range(2):                                        # the second time from the lines
        assert caption_main([*args, '--out', str(tmp_path/'s.jsonl'), '--html', str(tmp_path/'w.html')]) == 1
        assert {Path(n).name for n in by_name(tmp_path/'s.jsonl')} == {*ODD, 'more.png'}
        page = Page((tmp_path/'w.html').read_text(encoding='utf-8'))
        assert 'script' not in page.tags and 'b' not in page.tags and len(page.sources) == len(ODD) + 1
        assert all(s['src'].startswith('data:image/jpeg;base64,') and s['loading'] == 'lazy' for s in page.sources)
        assert any('broken\\n<b>.png' in t for t in page.texts) and any('<script>alert(1)' in t for t in page.texts)


@pytest.mark.skipif(os.name == 'nt', reason='names that Windows forbids')
def test_names_that_look_like_addresses(tmp_path, captioner, capsys, monkeypatch):
    "What is there is a file, whatever its name begins with; what is not there is an address."
    monkeypatch.chdir(tmp_path)
    names = ['data:x.png', 'http:x.png', 'C:x.png', 'http://x.png', 'https://box/x.png', 's3://x.png', 'file:x.png', 'file:///x.png']
    for i, name in enumerate(names): picture(tmp_path/name, i)
    args = ['--model', captioner, '--beam', '1', '--out', 'said.jsonl']
    assert caption_main([*names, *args]) == 0
    first = by_name(tmp_path/'said.jsonl')
    assert len(first) == len(names)
    assert caption_main(['http:', 'data:*.png', *names, *args]) == 0          # a folder, a pattern
    assert by_name(tmp_path/'said.jsonl') == first
    capsys.readouterr()
    assert caption_main(['data:x.png', 'data:y.png', 's3://y.png', *args[:4]]) == 1
    out, err = capsys.readouterr()
    assert out.startswith('data:x.png') and 'data: addresses are not read' in err and 's3: addresses are not read' in err
    assert err.strip().endswith('2 of 3 failed')


@pytest.mark.skipif(os.name == 'nt', reason='names that Windows forbids')
def test_other_files_that_look_like_addresses(tmp_path, monkeypatch):
    from xmodaler_nb.config import CfgNode
    from xmodaler_nb.utils.file_io import PathManager
    monkeypatch.chdir(tmp_path)
    Path('s3:').mkdir()
    Path('s3:/base.yaml').write_text('A: 1\n')
    Path('top.yaml').write_text('_BASE_: s3://base.yaml\n')
    assert CfgNode.load_yaml_with_base('top.yaml') == {'A': 1}
    with PathManager.open('s3://base.yaml') as f: assert f.read() == 'A: 1\n'
    with pytest.raises(ValueError, match='only local paths'): PathManager.open('s3://other.yaml')
    Path('top.yaml').write_text('_BASE_: s3://other.yaml\n')
    with pytest.raises(ValueError, match='is a web address'): CfgNode.load_yaml_with_base('top.yaml')


def test_the_wall_has_all_pictures_of_all_calls(tmp_path, captioner):
    for i in range(20): picture(tmp_path/'box'/f'{i:02}.png', i)
    args = ['--model', captioner, '--beam', '1', '--out', str(tmp_path/'s.jsonl'), '--html', str(tmp_path/'w.html')]
    assert caption_main([str(tmp_path/'box'/'03.png'), *args]) == 0
    assert 'log-probability' in (tmp_path/'w.html').read_text()                          # one picture: with its attention
    assert caption_main([str(tmp_path/'box'), *args]) == 0
    page = Page((tmp_path/'w.html').read_text())
    shown = [Path(t).name for t in page.texts if t.endswith('.png')]
    assert shown == [f'{i:02}.png' for i in range(20)] and len(page.sources) == 20


def test_two_calls_at_once(tmp_path, captioner, capsys):
    from xmodaler_nb.commands.caption_lines import CaptionLines
    pytest.importorskip('fcntl')
    args = [str(picture(tmp_path/'a.png')), '--model', captioner, '--out', str(tmp_path/'s.jsonl')]
    with CaptionLines(tmp_path/'s.jsonl'):
        assert caption_main(args) == 1
        assert 'another call is writing it' in capsys.readouterr().err
    assert caption_main(args) == 0
