"Tables and lists as people have them: read whole, or refused by name; what was read is written back equal."
import csv
import io
import json
import pandas as pd
import pytest
from hypothesis import example, HealthCheck, given, settings, strategies as st
from xmodaler_nb.commands.data import data_main, load_source
from xmodaler_nb.datasets.check import DatasetError
from xmodaler_nb.own.check import Sample
from xmodaler_nb.own.data import CaptionData, clean_text, read_table, samples_from_rows

TABLE = 'image,caption\na.png,"a dog, running"\nb.png,ein größerer Hund\n'
WANT = [('a.png', ['a dog, running']), ('b.png', ['ein größerer Hund'])]


def read(path): return [(s.id, s.captions) for s in samples_from_rows(read_table(path)[0])]


# encodings

@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'utf-16', 'utf-16-le', 'utf-16-be', 'utf-32', 'cp1252'])
def test_encodings_that_are_read(tmp_path, encoding):
    (tmp_path/'t.csv').write_bytes(TABLE.encode(encoding))
    assert read(tmp_path/'t.csv') == WANT
    (tmp_path/'t.json').write_bytes(json.dumps([dict(image=i, captions=c) for i, c in WANT], ensure_ascii=False).encode(encoding))
    assert [(s.id, s.captions) for s in CaptionData.from_json(tmp_path/'t.json').samples] == WANT
    assert bool(read_table(tmp_path/'t.csv')[1]) == (not encoding.startswith('utf-8'))       # other encodings are a finding


@pytest.mark.parametrize('encoding, text', [('gbk', '一只狗在草地上跑'), ('gb18030', '两只猫'), ('big5', '一只狗'), ('shift-jis', '赤い車が走る'), ('euc-kr', '빨간 자동차'), ('cp1251', 'кот на траве'), ('koi8-r', 'кот')])
@pytest.mark.parametrize('name', ['t.csv', 't.json', 't.jsonl'])
def test_encodings_that_are_refused_by_name(tmp_path, encoding, text, name, capsys):
    content = dict(csv=f'image,caption\na.png,{text}\n', json=json.dumps({'a.png': text}, ensure_ascii=False), jsonl=json.dumps(dict(image='a.png', caption=text), ensure_ascii=False))
    (tmp_path/name).write_bytes(content[name.split('.')[1]].encode(encoding))
    assert data_main(['check', str(tmp_path/name)]) == 1
    err = capsys.readouterr().err
    assert f'{tmp_path/name}: not in UTF-8, UTF-16 or Windows-1252' in err and 'iconv' in err


def test_a_cut_utf16_file(tmp_path):
    (tmp_path/'t.csv').write_bytes(TABLE.encode('utf-16')[:-1])
    with pytest.raises(ValueError, match='t.csv: begins as UTF-16, but byte'): read_table(tmp_path/'t.csv')


# separators

@pytest.mark.parametrize('sep', ['\t', ',', ';', '|', ' | ', '| '])
def test_separators(tmp_path, sep):
    (tmp_path/'t.csv').write_text(sep.join(('image_name', 'comment_number', 'comment')) + '\n' + sep.join(('a.png', '0', 'two men: one & one')) + '\n\n')
    assert [(s.id.strip(), s.captions) for s in samples_from_rows(read_table(tmp_path/'t.csv')[0])] == [('a.png', ['two men: one & one'])]


@pytest.mark.parametrize('first', ['Bild,Satz', 'image:caption', 'a dog runs', 'image caption', '7,a dog'])
def test_unknown_forms_are_refused(tmp_path, first):
    (tmp_path/'t.csv').write_text(first + '\na.png,a dog\n')
    with pytest.raises(ValueError, match='t.csv: begins with .* expected a header that names a caption column'): read_table(tmp_path/'t.csv')


def test_cells_of_any_form(tmp_path):
    rows = [('a,b.png', 'one "word"; two\tthree'), ('c#1.png', 'a\nb\r\nc'), ('d.png', 'x\u2028y\x0bz'), ('e.png', "it's")]
    for sep, name in ((',', 't.csv'), ('\t', 't.tsv'), (';', 't.csv'), ('|', 't.csv')):
        out = io.StringIO(newline='')
        csv.writer(out, delimiter=sep).writerows([('image', 'caption'), *rows])
        (tmp_path/name).write_text(out.getvalue(), encoding='utf-8', newline='')
        assert read(tmp_path/name) == [(f, [clean_text(c)]) for f, c in rows]


def test_quotes_of_a_table_without_header(tmp_path):
    (tmp_path/'t.token').write_text('a.png#0\t"Hello" , said a man\na.png#1\tA "dog"\nb#2.png\ta cat\n')
    assert read(tmp_path/'t.token') == [('a.png', ['"Hello" , said a man', 'A "dog"']), ('b#2.png', ['a cat'])]
    (tmp_path/'t.tsv').write_text('image\tcaption\na.png\t"Hello" said a man\n')
    assert read(tmp_path/'t.tsv') == [('a.png', ['"Hello" said a man'])]


def test_tables_that_are_torn(tmp_path):
    (tmp_path/'q.csv').write_text('image,caption\na.png,"a dog\nb.png,a cat\n')           # the quote is never closed
    with pytest.raises(ValueError, match='q.csv: not a table with quoted cells'): read_table(tmp_path/'q.csv')
    (tmp_path/'c.csv').write_text('caption,image\na dog, running,a.png\n')
    with pytest.raises(ValueError, match='c.csv, row 0: has 3 cells, but the header names 2'): read_table(tmp_path/'c.csv')
    (tmp_path/'s.csv').write_text('image,split,caption\na.png,train\n')
    with pytest.raises(ValueError, match='row 0: has columns image, split; needs one for the caption'): load_source(tmp_path/'s.csv')
    (tmp_path/'n.csv').write_text('image,caption\n,a dog\n')
    with pytest.raises(ValueError, match='row 0: names no picture'): load_source(tmp_path/'n.csv')
    (tmp_path/'k.json').write_text('{"a.png": ["a dog"], "a.png": ["a cat"]}')
    with pytest.raises(ValueError, match="k.json: not JSON .the key 'a.png' stands in an object twice"): CaptionData.from_json(tmp_path/'k.json')


def test_a_list_in_a_cell(tmp_path):
    pd.DataFrame(dict(image=['a.png'], captions=[['a dog', 'one "dog"']])).to_csv(tmp_path/'t.csv', index=False)
    assert read(tmp_path/'t.csv') == [('a.png', ['a dog', 'one "dog"'])]
    assert CaptionData.from_df(pd.read_csv(tmp_path/'t.csv')).samples[0].captions == ['a dog', 'one "dog"']


# rows that disagree

def test_split_differs_between_rows(tmp_path, capsys):
    (tmp_path/'t.csv').write_text('image,caption,split\na.png,a dog,test\na.png,one dog,test\nb.png,a cat,train\na.png,the dog,train\nc.png,x,\nc.png,y,val\n')
    data = load_source(tmp_path/'t.csv')
    finding, = data.findings
    assert (finding.kind, finding.level, finding.id, finding.detail) == ('split differs between rows', 'error', 'a.png', 'row 0: test, row 3: train')
    assert [s.split for s in data.samples] == ['test', 'train', 'val']
    with pytest.raises(DatasetError, match='split differs between rows: a.png .* row 0: test, row 3: train'): data.write(tmp_path/'out')
    assert not (tmp_path/'out').exists()
    (tmp_path/'t.json').write_text(json.dumps([dict(image='a.png', caption='x', split=s) for s in ('test', 'train')]))
    (tmp_path/'photos').mkdir()
    (tmp_path/'photos'/'a.png').write_bytes(b'')
    (tmp_path/'photos'/'captions.csv').write_text((tmp_path/'t.csv').read_text())
    frame = pd.read_csv(tmp_path/'t.csv')
    for other in (CaptionData.from_json(tmp_path/'t.json'), CaptionData.from_df(frame), CaptionData.from_folder(tmp_path/'photos')):
        assert 'split differs between rows' in [f.kind for f in other.findings]
    assert data_main(['check', str(tmp_path/'t.csv')]) == 1
    assert 'split differs between rows' in capsys.readouterr().out


def test_a_duplicate_coco_id(tmp_path):
    "Both pictures stay, the id is an error that names both files; no caption moves to the wrong one unseen."
    coco = dict(images=[dict(id=7, file_name='a.png'), dict(id=8, file_name='b.png'), dict(id='7', file_name='c.png'), dict(id=8, file_name='b.png')],
                annotations=[dict(image_id=7, caption='a dog'), dict(image_id='8', caption='a cat')])
    (tmp_path/'c.json').write_text(json.dumps(coco))
    data = CaptionData.from_coco(tmp_path/'c.json')
    assert len(data) == 3
    finding, = data.check().of_kinds('duplicate id')
    assert finding.id == '7' and finding.level == 'error' and 'a.png' in finding.detail and 'c.png' in finding.detail
    with pytest.raises(DatasetError, match='duplicate id: 7'): data.write(tmp_path/'out')
    for key in ('image_id', 'caption'):
        (tmp_path/'c.json').write_text(json.dumps(dict(images=coco['images'], annotations=[{k: v for k, v in coco['annotations'][0].items() if k != key}])))
        with pytest.raises(ValueError, match=f"'annotations', entry 0: has no '{key}'"): CaptionData.from_coco(tmp_path/'c.json')


# whatever is read is written back equal

texts = st.text(st.characters(exclude_categories=('Cs',)), max_size=12)
ids = st.one_of(texts.filter(bool), st.integers(-9, 10**12).map(str), st.sampled_from(['007', '7', 'a/7', ' 7', '7.0', 'nan', 'None', 'NaN', '"', "['x']", 'a\r\nb', '²', 'x;y|z\t,']))
captions = st.lists(texts | st.sampled_from(["['a']", '"', 'nan', '[]', '=1+1', "a', 'b", '\\', '\\n', 'x\u2028y', '\x00']), max_size=3)
samples = st.lists(st.builds(lambda i, c, s: Sample(i, '', [clean_text(x) for x in c], s), ids, captions, st.sampled_from(['', 'train', 'val', 'test'])), min_size=1, max_size=5, unique_by=lambda s: s.id)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(samples)
@example(samples=[Sample("['']", '', [], '')])                  # an id that reads like a list
def test_written_back_equal(tmp_path, samples):
    data = CaptionData(samples)
    for name in ('x.json', 'x.jsonl', 'x.csv', 'x.tsv'):
        again = load_source(data.save(tmp_path/name))
        assert again.samples == samples, name
        assert not again.findings
    assert CaptionData.from_df(data.to_df()).samples == samples


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(texts.filter(lambda t: t.strip()), texts), min_size=1, max_size=5), st.sampled_from(',;|\t'))
@example(rows=[('00\0', '')], sep=',')                         # zeros, but not UTF-16
def test_rows_of_other_programs(tmp_path, rows, sep):
    "A table as Python's csv and pandas write it, a row per caption, gives what the rows say."
    want = {}
    for i, c in rows: want.setdefault(i, []).append(clean_text(c))
    with open(tmp_path/'t.csv', 'w', encoding='utf-8', newline='') as f: csv.writer(f, delimiter=sep).writerows([('id', 'caption'), *rows])
    assert dict(read(tmp_path/'t.csv')) == want
    (tmp_path/'t.jsonl').write_text('\n'.join(json.dumps(dict(id=i, caption=c), ensure_ascii=False) for i, c in rows), encoding='utf-8', newline='')
    assert {s.id: s.captions for s in load_source(tmp_path/'t.jsonl').samples} == want
    assert {s.id: s.captions for s in CaptionData.from_df(pd.DataFrame(rows, columns=['id', 'caption'])).samples} == want


def test_half_a_surrogate_pair(tmp_path):
    "JSON can hold one; no file can. It becomes the replacement character, and the check names it."
    (tmp_path/'t.json').write_text('[{"id": "a\\ud800", "caption": "a \\udc00 dog"}]')
    data = CaptionData.from_json(tmp_path/'t.json')
    assert data.samples == [Sample('a\ufffd', '', ['a \ufffd dog'])] and 'odd encoding' in data.check().counts()
    assert load_source(data.save(tmp_path/'x.json')).samples == data.samples
