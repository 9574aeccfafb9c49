"The first lesson is a part of the questions, each task begins with one that comes before it, and stored regions are those of the pixels."
import json
import numpy as np, pytest
from xmodaler_nb.commands.understand import TASKS, baseline, majority_accuracy, make_world
from xmodaler_nb.config import config_file
from xmodaler_nb.functional import read_np
from xmodaler_nb.modeling import build_model, load_cfg_file
from xmodaler_nb.own.scenes.tasks import drawn_regions, found_regions


@pytest.fixture(scope='module')
def world(tmp_path_factory): return make_world(tmp_path_factory.mktemp('lessons'), 'tiny')


def asked(world, task, split='train2014'):
    folder = world.tasks[task].folder/task
    return {q['question_id']: q['question'] for q in json.loads((folder/f'v2_OpenEnded_mscoco_{split}_questions.json').read_text())['questions']}


def test_the_first_lesson_is_about_colours(world):
    for split in ('train2014', 'val2014', 'test2015'):
        every, colours = asked(world, 'vqa', split), asked(world, 'vqa_colour', split)
        assert colours == {i: q for i, q in every.items() if q.startswith('what color')} and 0 < len(colours) < len(every)
    own, whole = baseline('colours', world), baseline('vqa', world)
    assert own == {'most frequent answer': majority_accuracy(world.tasks['vqa_colour'].folder/'vqa_colour')} and own != whole


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
