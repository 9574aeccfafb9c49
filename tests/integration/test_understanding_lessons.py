"The first lesson is a part of the questions, each task begins with one that comes before it, and stored regions are those of the pixels."
import json
import re
import numpy as np, pytest
from xmodaler_nb.commands.understand import TASKS, baseline, majority_accuracy, make_world
from xmodaler_nb.config import config_file
from xmodaler_nb.functional import read_np
from xmodaler_nb.modeling import build_model, load_cfg_file
from xmodaler_nb.own.scenes.tasks import drawn_regions, found_regions
from xmodaler_nb.utils.safe_pickle import safe_load


@pytest.fixture(scope='module')
def world(tmp_path_factory): return make_world(tmp_path_factory.mktemp('lessons'), 'tiny')


def asked(world, task, split='train2014'):
    folder = world.tasks[task].folder/task
    return {q['question_id']: q['question'] for q in json.loads((folder/f'v2_OpenEnded_mscoco_{split}_questions.json').read_text())['questions']}


def test_a_lesson_is_about_colours(world):
    for split in ('train2014', 'val2014', 'test2015'):
        every, colours = asked(world, 'vqa', split), asked(world, 'vqa_colour', split)
        assert colours == {i: q for i, q in every.items() if q.startswith('what color')} and 0 < len(colours) < len(every)
    own, whole = baseline('colours', world), baseline('vqa', world)
    assert own == {'most frequent answer': majority_accuracy(world.tasks['vqa_colour'].folder/'vqa_colour')} and own != whole


def test_the_first_lesson_asks_for_places_in_the_words_of_sides(world):
    "Colours as before; and of one thing, on which side of the picture its middle is."
    asks = re.compile(r'is the (\w+) (to the left|to the right|above|below)\?')
    for split, year in (('train', 'train2014'), ('val', 'val2014'), ('test', 'test2015')):
        lesson, colours = asked(world, 'vqa_place', year), asked(world, 'vqa_colour', year)
        places = {i: q for i, q in lesson.items() if i not in colours}
        assert colours.items() <= lesson.items() and len(places) > len(colours)
        answers = {t['question_id']: t for t in safe_load(world.tasks['vqa_place'].folder/'vqa_place'/f'{split}_target.pkl')}
        for i, q in places.items():
            kind, side = asks.fullmatch(q).groups()
            x1, y1, x2, y2 = next(t.box for t in world.data.scene(answers[i]['image_id']).things if t.category == kind)
            right = {'to the left': x1 + x2 < 64, 'to the right': x1 + x2 > 64, 'above': y1 + y2 < 64, 'below': y1 + y2 > 64}[side]
            assert (answers[i]['labels'], answers[i]['scores']) == ([1 - right], [1.]), q                # yes is 0, no is 1


def test_a_small_network_is_drawn_wider_and_reads_places(world):
    "The keys of the small configs, and nothing of them in published ones."
    build = lambda path, task: build_model(load_cfg_file(config_file(path), world.tasks[task].cfg_overrides))
    small = build('scenes/vqa_uniter.yaml', 'vqa')
    assert small.visual_embed.embeddings_pos.weight.shape == (96, 5 + 2*12) and small.predictor.pooler.act is None
    assert .09 < float(small.encoder.layers[0].attention.self.query.weight.std()) < .11
    published = load_cfg_file(config_file('mm_understanding/vqa/uniter/vqa.yaml'))
    assert (published.MODEL.INIT_STD, published.MODEL.VISUAL_EMBED.PLACE_POINTS, published.MODEL.BERT.POOLER_ACT) == (0., 0, 'tanh')


def test_each_task_begins_with_an_earlier_one_of_its_kind():
    names = list(TASKS)
    for name, task in TASKS.items():
        if not task.start: continue
        assert names.index(task.start) < names.index(name) and TASKS[task.start].model == task.model


@pytest.mark.parametrize('name', ['vqa', 'vcr'])
def test_the_weights_of_the_task_before_fit(name, world):
    "Encoder and embeddings have the same names and sizes; a head may differ."
    build = lambda n: build_model(load_cfg_file(config_file(TASKS[n].config), world.tasks[TASKS[n].folder].cfg_overrides)).state_dict()
    mine, first = build(name), build(TASKS[name].start)
    body = [k for k in mine if k.startswith(('encoder.', 'token_embed.', 'visual_embed.'))]
    assert body and all(first[k].shape == mine[k].shape for k in body)


def test_stored_regions_are_those_of_the_pixels(world):
    data, folder = world.data, world.tasks['vqa'].folder
    for i in data.ids('train')[:5]:
        scene, pixels = data.scene(i), data.image(i)
        for name, want in dict(features=found_regions(pixels), features_mirror=found_regions(pixels[:,::-1]), features_gt=drawn_regions(scene, pixels),
                               features_gt_mirror=drawn_regions(scene, pixels, True)).items():
            got = read_np(folder/name/f'{i}.npz')
            assert np.array_equal(got['features'], want[0]) and np.array_equal(got['boxes'], want[1]) and got['image_w'][0] == 64
