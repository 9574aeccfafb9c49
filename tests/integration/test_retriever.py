"From a retrieval training to a person's search: the scores of evaluation, an index that knows unchanged pictures, and what is said of bad input."
import json, logging, os
import numpy as np, pytest, torch
from PIL import Image
from xmodaler_nb.captioner import Answerer, Retriever
from xmodaler_nb.config import kfg
from xmodaler_nb.datasets import build_xmodaler_valtest_loader
from xmodaler_nb.engine import build_engine
from xmodaler_nb.modeling import load_cfg_file
from xmodaler_nb.own.scenes import make_scenes, write_tasks
from test_answerer import SIZES

TDEN = {'MODEL.BERT.V_NUM_HIDDEN_LAYERS': 1, 'MODEL.MM_PREDICTOR.POOLER_INPUT_SIZE': 16, 'MODEL.MM_PREDICTOR.POOLER_OUTPUT_SIZE': 16}


@pytest.fixture(scope='module')
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp('world')
    data = make_scenes(folder/'scenes', counts=dict(train=24, val=4, test=12))
    photos = folder/'photos'
    photos.mkdir()
    for i in data.ids('test'): Image.fromarray(data.image(i)).save(photos/f'{i}.png')
    return data, write_tasks(folder/'tasks', data), photos


@pytest.fixture(scope='module', params=['uniter', 'tden'])
def run(world, request, tmp_path_factory):
    out = tmp_path_factory.mktemp(request.param)
    more = {**SIZES, **(TDEN if request.param == 'tden' else {}), **world[1]['flickr30k'].entries, 'OUTPUT_DIR': str(out)}
    file = f'mm_understanding/flickr30k_retrieval/{request.param}/flickr30k_retrieval.yaml'
    cfg = load_cfg_file(file, [x for kv in more.items() for x in kv], DATASETS=dict(VAL=''))
    torch.manual_seed(0)
    trainer = build_engine(cfg)
    trainer.train(0, 3)
    trainer.checkpointer.save('model_final')
    return cfg, out


@pytest.fixture
def model(run): return Retriever.from_pretrained(run[1]/'model_final')


def captions(world):
    file = world[1]['flickr30k'].folder/'flickr30k'/'all_data_final_test_set0_2014.jsonline'
    return {line['img_path'].split('.')[0]: line['sentences'] for line in map(json.loads, file.read_text().splitlines())}


@torch.no_grad()
def scores_of_the_loader(model, cfg):
    "What evaluation computes, (captions, pictures), with the pictures' ids."
    if not model.two_towers:
        loader = build_xmodaler_valtest_loader(cfg, stage='test')
        ids = loader.dataset.mapper.image_ids
        rows = [torch.cat([model.model(model.model.preprocess_batch(chunk))[kfg.OUTPUT].flatten() for chunk in loader.dataset[i]]) for i in range(0, 10, 5)]
        return torch.stack(rows), ids
    vs, us, ids = [], [], []
    for batch in build_xmodaler_valtest_loader(cfg, stage='test'):
        v, u = model.model(model.model.preprocess_batch(batch))[kfg.OUTPUT]
        vs, us, ids = [*vs, v], [*us, u], [*ids, *(i for i, _ in batch[kfg.IDS])]
    return (torch.cat(us) @ torch.cat(vs).t())[[0, 5]], ids


def test_what_travels(run):
    names = {p.name for p in (run[1]/'model_final').iterdir()}
    assert {'wordpieces.txt', 'captions.txt', 'extractor.json', 'config.yaml'} <= names and 'answers.json' not in names
    with pytest.raises(FileNotFoundError, match='no answers.json beside the weights'): Answerer.from_pretrained(run[1]/'model_final')


def test_scores_are_those_of_the_evaluation(run, world, model):
    "Typed captions and pictures from files against the loader's ids and features: every pair of two captions and all pictures."
    model.index(world[2], store=None)
    wanted, ids = scores_of_the_loader(model, run[0])
    texts = [ts[0] for ts in captions(world).values()][:2]
    for text, row in zip(texts, wanted):
        found = {os.path.basename(m.id)[:-4]: m.score for m in model.find(text, k=99)}
        assert set(found) == set(ids) and [found[i] for i in ids] == pytest.approx(row.tolist(), abs=1e-4)
        best = model.find(text, k=3)
        assert [m.score for m in best] == sorted(found.values(), reverse=True)[:3]
        assert all(m.attention.shape == (len(m.words), len(m.boxes)) and np.isfinite(m.attention).all() for m in best)


def test_describe_is_the_other_direction(model, world):
    picture, texts = world[2]/f"{world[0].ids('test')[0]}.png", [ts[0] for ts in captions(world).values()]
    model.index(world[2], store=None)
    back = {m.text: m.score for m in model.describe(picture, k=99, sentences=texts)}
    for t in texts[:3]:
        there = next(m.score for m in model.find(t, k=99) if m.id == str(picture))
        assert back[t] == pytest.approx(there, abs=1e-4)
    assert {m.text for m in model.describe(picture)} <= set(model.sentences)              # its training's captions


def test_the_index_knows_what_is_unchanged(model, world, tmp_path, caplog):
    folder = tmp_path/'photos'
    folder.mkdir()
    paths = [p for p in sorted(world[2].iterdir()) if p.suffix == '.png'][:4]
    for p in paths: (folder/p.name).write_bytes(p.read_bytes())
    seen, look = [], model._look_at
    model._look_at = lambda files, errors: (seen.extend(f.name for f in files), look(files, errors))[1]
    assert model.index(folder).new == 4 and sorted(seen) == sorted(p.name for p in paths)
    first = [m.score for m in model.find('a red ball', k=9)]
    seen.clear()
    os.rename(folder/paths[0].name, folder/'renamed.png')
    os.utime(folder/paths[1].name)
    assert model.index(folder).new == 0 and not seen and [m.score for m in model.find('a red ball', k=9)] == first
    Image.new('RGB', (64, 64), (10, 200, 10)).save(folder/'renamed.png')
    (folder/'broken.png').write_text('no picture')
    index = model.index(folder)
    assert seen == ['broken.png', 'renamed.png'] and index.new == 1 and len(index) == 4 and list(index.failed) == [str(folder/'broken.png')]
    store, = (folder/'.xm-index').iterdir()
    store.write_bytes(store.read_bytes()[:100])
    seen.clear()
    with caplog.at_level(logging.WARNING): assert model.index(folder).new == 4
    assert 'cannot be read' in caplog.text and len(seen) == 5
    with torch.no_grad(): next(model.model.parameters()).add_(1)
    assert model.index(folder).new == 4 and len(list((folder/'.xm-index').iterdir())) == 2  # another model, another store


def test_few_pictures_and_bad_input(model, world, tmp_path):
    with pytest.raises(ValueError, match=r'call index\(folder\) first'): model.find('a ball')
    with pytest.raises(FileNotFoundError, match='no such folder'): model.index(tmp_path/'none')
    with pytest.raises(FileNotFoundError, match='holds no pictures'): model.index(tmp_path)
    (tmp_path/'one.png').write_text('no picture')
    with pytest.raises(ValueError, match='none of 1 pictures can be read'): model.index(tmp_path, store=None)
    Image.fromarray(world[0].image(world[0].ids('test')[0])).save(tmp_path/'one.png')
    Image.new('RGB', (64, 64), (190, 190, 190)).save(tmp_path/'two.png')                   # nothing on it
    assert len(model.index(tmp_path, store=None)) == 2 and len(model.find('a ball')) == 2
    with pytest.raises(ValueError, match='the sentence: the text is empty'): model.find('')
    with pytest.raises(ValueError, match='has none of its words'): model.find('zwei Kisten')
    with pytest.raises(ValueError, match='k is 0'): model.find('a ball', k=0)
    assert model.find('a snork ball')[0].unknown == ['snork']
    arrays = dict(features=np.zeros((0, 156)), boxes=np.zeros((0, 4)), image_h=64, image_w=64)
    with pytest.raises(ValueError, match='no regions'): model.describe(arrays)
    with pytest.raises(ValueError, match='no sentences to choose from'): model.describe(tmp_path/'one.png', sentences=[])
