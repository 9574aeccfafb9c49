"NLVR as a task: regions, equal pictures, what is wrong with a folder, and a training of a few steps."
import json
import numpy as np, pytest
from xmodaler_nb.commands.understand import understand_main
from xmodaler_nb.functional import read_np
from xmodaler_nb.own.nlvr import COLOURS, exchanged, nlvr_regions, read_nlvr, write_nlvr


def thing(type, color, x, y, size=20): return dict(type=type, color=color, x_loc=x, y_loc=y, size=size)


def lines(n, seed=0):
    "Sentences about the colour of one tower."
    rng = np.random.default_rng(seed)
    for k in range(n):
        real, said = rng.integers(0, 3, 2)
        boxes = [[thing('square', COLOURS[real], 40, 80)], [thing('circle', 'Black', 0, int(rng.integers(70)), 30)], []]
        yield dict(identifier=str(k), sentence=f"The tower is {('yellow', 'blue', 'black')[said]}.", label=str(bool(real == said)).lower(), structured_rep=boxes)


@pytest.fixture
def folder(tmp_path):
    for k, split in enumerate(('train', 'val', 'test')): (tmp_path/f'{split}.jsonl').write_text(''.join(json.dumps(l) + '\n' for l in lines(16, k)))
    return tmp_path


def test_a_region_is_where_the_shape_is(folder):
    found = nlvr_regions([[], [thing('circle', 'Black', 10, 70, 30)], []])
    assert found['boxes'].tolist() == [[160, 70, 190, 100]] and found['features'][0, -4:].tolist() == [0, 0, 0, 2]
    assert found['cls_prob'].argmax() == 2*3 + 1


def test_other_colours_keep_what_is_said_true():
    for line in lines(8):
        for colours in ((1, 2, 0), (2, 1, 0)):
            new = exchanged(line, colours, (1, 0, 2))
            said, base = new['sentence'].split()[-1], new['structured_rep'][1][0]['color']
            assert (COLOURS.index(base) == ('yellow', 'blue', 'black').index(said)) == (line['label'] == 'true')


def test_the_first_copy_is_the_picture_itself_and_test_pictures_have_one(folder, tmp_path):
    tasks = write_nlvr(folder, tmp_path/'tasks', copies=3)
    want = nlvr_regions(read_nlvr(folder)['train'][4]['structured_rep'])
    assert np.array_equal(read_np(tmp_path/'tasks'/'features'/'5.npz')['features'], want['features'])
    asked = lambda year: len(json.loads((tasks['vqa'].folder/'vqa'/f'v2_OpenEnded_mscoco_{year}_questions.json').read_text())['questions'])
    assert [asked(y) for y in ('train2014', 'val2014', 'test2015')] == [48, 16, 16]


def test_a_line_without_a_label(folder):
    broken = folder/'val.jsonl'
    first, second, *rest = broken.read_text().splitlines()
    line = json.loads(second)
    del line['label']
    broken.write_text('\n'.join([first, json.dumps(line), *rest]))
    with pytest.raises(ValueError, match=r"val\.jsonl.*2.*'label'"): read_nlvr(folder)


def test_pre_training_then_training(folder, tmp_path, capsys):
    out = tmp_path/'run'
    assert understand_main(['nlvr', 'nlvr_pretrain', '--data', str(folder), '--output-dir', str(out), '--opts', 'SOLVER.EPOCH', '1', 'SOLVER.EVAL_PERIOD', '1',
                            'ENGINE.PROGRESS', 'False']) == 0
    assert 0 <= json.loads((out/'nlvr'/'metrics.json').read_text())['accuracy'] <= 1
    assert 'nlvr_pretrain' in (out/'nlvr'/'config.yaml').read_text() and (out/'report.html').is_file()


@pytest.mark.parametrize('words, said', [(['nlvr'], '--data'), (['vqa', '--data', 'x'], '--data'), (['nlvr', '--data', 'nowhere'], 'nowhere')])
def test_sentences_about_the_command(words, said, capsys, tmp_path):
    assert understand_main([*words, '--output-dir', str(tmp_path/'r')]) != 0
    assert said in capsys.readouterr().err
