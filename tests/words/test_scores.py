"`xm-score`: what it reads, and what it says beside a number and about ids that differ."
import json
import logging
import pytest
from xmodaler_nb.commands.score import score_main
from xmodaler_nb.config import get_cfg
from xmodaler_nb.evaluation import COCOEvaler, evaluate
from xmodaler_nb.evaluation.captions import as_predictions
from xmodaler_nb.own.check import Sample
from xmodaler_nb.own.data import CaptionData

COCO = dict(images=[dict(id=1, file_name='p1.png'), dict(id=2, file_name='p2.png')],
            annotations=[dict(id=k, image_id=i, caption=c) for k, (i, c) in enumerate([(1, 'A red ball.'), (1, 'a ball'), (2, 'two green boats')])])
SAID = {1: 'a red ball', 2: 'two boats'}


@pytest.fixture
def refs(tmp_path):
    (tmp_path/'refs.json').write_text(json.dumps(COCO))
    return tmp_path/'refs.json'


def numbers(said, refs, capsys, *more):
    "The scores that `xm-score --json` prints."
    code = score_main([str(said), str(refs), '--metrics', 'BLEU', 'CIDEr', '--json', *more])
    out = capsys.readouterr()
    assert code == 0, out.err
    return json.loads(out.out)


FORMS = {'results.json': json.dumps([dict(image_id=i, caption=c) for i, c in SAID.items()]),
         'dict.json': json.dumps(SAID),
         'captions.json': json.dumps(dict(greedy={i: 'x' for i in SAID}, beam=SAID)),
         'one_decoder.json': json.dumps(dict(greedy=SAID)),
         'caption.jsonl': ''.join(json.dumps(dict(picture=f'photos/p{i}.png', caption=c, log_prob=-1.5)) + '\n' for i, c in SAID.items()),
         'windows.jsonl': ''.join(json.dumps(dict(picture=f'C:\\photos\\p{i}.png', caption=c)) + '\n' for i, c in SAID.items()),
         'per_image.csv': 'image_id,caption,CIDEr\n' + ''.join(f'{i},{c},0.5\n' for i, c in SAID.items()),
         'quoted.tsv': 'image\tcaption\n' + ''.join(f'p{i}.png\t"{c}"\n' for i, c in SAID.items())}


@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'utf-16'])
@pytest.mark.parametrize('name', FORMS)
def test_files_that_our_commands_write(tmp_path, refs, capsys, name, encoding):
    want = evaluate(SAID, COCO, metrics=('BLEU', 'CIDEr')).corpus
    (tmp_path/name).write_bytes(FORMS[name].encode(encoding))
    refs.write_bytes(json.dumps(COCO).encode(encoding))
    assert numbers(tmp_path/name, refs, capsys) == want


@pytest.mark.parametrize('name', ['r.json', 'r.jsonl', 'r.csv', 'r.tsv'])
def test_saved_data_as_references(tmp_path, capsys, name):
    (tmp_path/'said.json').write_text(json.dumps(SAID))
    data = CaptionData([Sample('1', '', ['A red ball.', 'a ball']), Sample('2', '', ['two green boats'])])
    assert numbers(tmp_path/'said.json', data.save(tmp_path/name), capsys) == evaluate(SAID, COCO, metrics=('BLEU', 'CIDEr')).corpus


def test_its_own_table_is_read_again(tmp_path, refs, capsys):
    (tmp_path/'said.json').write_text(json.dumps(SAID))
    first = numbers(tmp_path/'said.json', refs, capsys, '--per-image', str(tmp_path/'each.csv'))
    assert numbers(tmp_path/'each.csv', refs, capsys) == first


def test_files_without_captions_are_refused(tmp_path, refs, capsys):
    for name, text, why in (('each.json', json.dumps({'1': {'CIDEr': 0.5}, '2': {'CIDEr': 1.}}), "a dict with 'caption'; got one with CIDEr"),
                            ('x.csv', 'image_id,caption\n1,a,b\n', 'x.csv, row 0: has another number of cells than the header'),
                            ('x.jsonl', '{"picture": "p1.png"\n', 'x.jsonl: not a JSON object per line'),
                            ('x.json', '{"1": "一只狗"}', 'x.json: not in UTF-8')):
        (tmp_path/name).write_bytes(text.encode('gbk' if name == 'x.json' else 'utf-8'))
        assert score_main([str(tmp_path/name), str(refs)]) == 1
        assert why in capsys.readouterr().err


def test_two_pictures_of_one_name(tmp_path, refs, capsys):
    (tmp_path/'s.jsonl').write_text('\n'.join(json.dumps(dict(picture=f'{d}/p1.png', caption='a ball')) for d in 'ab'))
    assert score_main([str(tmp_path/'s.jsonl'), str(refs)]) == 1
    assert "more than one prediction for picture 'p1.png' (id 1)" in capsys.readouterr().err


def test_the_advice_names_the_options_of_the_command(tmp_path, refs, capsys):
    (tmp_path/'part.json').write_text(json.dumps({'1': 'a ball', '9': 'a fish'}))
    assert score_main([str(tmp_path/'part.json'), str(refs)]) == 1
    err = capsys.readouterr().err
    assert 'no prediction for 1 id: 2; no references for 1 id' in err and 'Give --partial to score the 1 images that have both' in err and 'strict' not in err
    with pytest.raises(ValueError, match='Pass strict=False to score the 1 images that have both'): evaluate({1: 'a', 9: 'b'}, COCO)


def test_cider_of_a_single_picture(tmp_path, capsys, caplog):
    "0 even for a perfect caption, and that is said beside the number."
    alone = {1: ['a dog runs']}
    result = evaluate({1: 'a dog runs'}, alone, metrics=('BLEU', 'CIDEr', 'CIDEr_D'))
    line, = [l for l in repr(result).splitlines() if l.startswith('CIDEr:')]
    assert result.corpus['CIDEr'] == 0 and '0 by construction' in line and list(result.remarks) == ['CIDEr', 'CIDEr_D']
    (tmp_path/'s.json').write_text('{"1": "a dog runs"}')
    (tmp_path/'r.json').write_text(json.dumps(alone))
    assert score_main([str(tmp_path/'s.json'), str(tmp_path/'r.json'), '--metrics', 'CIDEr']) == 0
    assert '0.0000 (0 by construction' in capsys.readouterr().out
    (tmp_path/'coco.json').write_text(json.dumps(dict(annotations=[dict(image_id=1, caption='a dog runs')])))
    with caplog.at_level(logging.WARNING): COCOEvaler(get_cfg(), tmp_path/'coco.json', None).eval([dict(image_id=1, caption='a dog runs')], 0)
    assert any('CIDEr is 0 by construction' in r.getMessage() for r in caplog.records)
    assert not evaluate({1: 'a dog', 2: 'a cat'}, {1: ['a dog'], 2: ['a cat']}, metrics='CIDEr').remarks


def test_a_caption_in_a_dict():
    assert as_predictions({7: dict(caption='a dog')}) == {7: 'a dog'}
    with pytest.raises(TypeError, match="got one with CIDEr"): as_predictions({7: dict(CIDEr=1.)})


@pytest.mark.parametrize('name', ['r.json', 'r.jsonl', 'r.csv', 'r.tsv', 'dict.json', 'stems.json', 'plain.csv'])
def test_pictures_are_found_in_every_kind_of_references(tmp_path, capsys, name):
    "`xm-caption photos` writes photos/a/1.png; references name it 1.png, a/1.png, /data/a/1.png or 1."
    samples = [Sample('a/1.png', '/data/a/1.png', ['A red ball.', 'a ball']), Sample('b/2.png', '/data/b/2.png', ['two green boats'])]
    if name[:2] == 'r.': CaptionData(samples).save(tmp_path/name)
    else:
        key = dict(dict=lambda s: s.id, stems=lambda s: s.id[2:-4], plain=lambda s: s.id[2:])[name.split('.')[0]]
        if name == 'plain.csv': (tmp_path/name).write_text('image,caption\n' + ''.join(f'{key(s)},{c}\n' for s in samples for c in s.captions))
        else: (tmp_path/name).write_text(json.dumps({key(s): s.captions for s in samples}))
    (tmp_path/'said.jsonl').write_text('\n'.join(json.dumps(dict(picture=f'photos/{d}/{k}.png', caption=SAID[k])) for d, k in (('a', 1), ('b', 2))))
    assert numbers(tmp_path/'said.jsonl', tmp_path/name, capsys) == evaluate(SAID, COCO, metrics=('BLEU', 'CIDEr')).corpus


def test_equal_names_in_two_folders(tmp_path, capsys):
    "Folders decide; where they do not, nothing is guessed, and no advice leads to scoring nothing."
    CaptionData([Sample(f'{d}/1.png', f'/data/{d}/1.png', [f'a {d}']) for d in 'xy']).save(tmp_path/'r.json')
    def said(*names): (tmp_path/'s.jsonl').write_text('\n'.join(json.dumps(dict(picture=n, caption=f'a {n[-7]}')) for n in names))
    said('photos/y/1.png', 'photos/x/1.png')
    assert numbers(tmp_path/'s.jsonl', tmp_path/'r.json', capsys)['Bleu_2'] == pytest.approx(1)
    said('photos/1.png')
    assert score_main([str(tmp_path/'s.jsonl'), str(tmp_path/'r.json')]) == 1
    err = capsys.readouterr().err
    assert 'No id is in both files' in err and '--partial' not in err
    coco = dict(COCO, images=[dict(id=1, file_name='p1.png'), dict(id=2, file_name='1.png')])       # 1.png is picture 2, not 1
    (tmp_path/'c.json').write_text(json.dumps(coco))
    said('photos/1.png')
    assert score_main([str(tmp_path/'s.jsonl'), str(tmp_path/'c.json'), '--partial', '--worst', '1', '--json', '--metrics', 'BLEU']) == 0
    assert json.loads(capsys.readouterr().out)['worst'][0]['id'] == 2


@pytest.mark.parametrize('option', ['references', 'predictions', 'train', 'link', 'picture', 'folder'])
def test_scores_do_not_replace_what_is_read(tmp_path, refs, capsys, option):
    said, train, out = tmp_path/'said.json', tmp_path/'train.json', tmp_path/'out.json'
    said.write_text(json.dumps(SAID))
    train.write_text(json.dumps(COCO))
    (tmp_path/'photo.png').write_bytes(b'mine')
    out.symlink_to(refs)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    target = dict(references=refs, predictions=said, train=train, link=out, picture=tmp_path/'photo.png', folder=tmp_path/'no'/'x.csv')[option]
    assert score_main([str(said), str(refs), '--train', str(train), '--per-image', str(target), '--metrics', 'BLEU']) == 1
    assert '--per-image' in capsys.readouterr().err and {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
