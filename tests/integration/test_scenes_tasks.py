"Scenes written as VQA, VCR, Flickr30k and Conceptual Captions: every published config of these tasks trains a step on them and is scored by its evaluator."
import json, pickle
import numpy as np, pytest, torch
from xmodaler_nb.config import kfg
from xmodaler_nb.datasets import build_dataset_mapper, build_xmodaler_train_loader, build_xmodaler_valtest_loader
from xmodaler_nb.evaluation import RetrievalEvaler, build_evaluation, itm_recalls
from xmodaler_nb.losses import build_losses
from xmodaler_nb.modeling import build_model, load_cfg_file
from xmodaler_nb.own.scenes import choice_questions, make_scenes, retrieval_bound, write_tasks
from xmodaler_nb.own.scenes.choices import scene_facts

MM = 'mm_understanding/'
CONFIGS = {MM + 'vqa/uniter/vqa.yaml': 'vqa', MM + 'vqa/tden/vqa.yaml': 'vqa', MM + 'vcr/uniter/vcr.yaml': 'vcr', MM + 'vcr/tden/vcr.yaml': 'vcr',
           MM + 'flickr30k_retrieval/uniter/flickr30k_retrieval.yaml': 'flickr30k', MM + 'flickr30k_retrieval/uniter/flickr30k_retrieval_hard.yaml': 'flickr30k',
           MM + 'flickr30k_retrieval/tden/flickr30k_retrieval.yaml': 'flickr30k', 'pretrain/uniter/uniter.yaml': 'conceptual_captions', 'pretrain/tden/tden.yaml': 'conceptual_captions'}
BERT = dict(HIDDEN_SIZE=16, NUM_ATTENTION_HEADS=2, INTERMEDIATE_SIZE=32, NUM_HIDDEN_LAYERS=1)
TDEN = {'MODEL.BERT.V_NUM_HIDDEN_LAYERS': 1, 'MODEL.BERT.NUM_UNDERSTANDING_LAYERS': 1, 'MODEL.MM_PREDICTOR.POOLER_INPUT_SIZE': 16, 'MODEL.MM_PREDICTOR.POOLER_OUTPUT_SIZE': 16}


@pytest.fixture(scope='module')
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp('world')
    data = make_scenes(folder/'scenes', counts=dict(train=8, val=4, test=4))
    return data, write_tasks(folder/'tasks', data)


def options(path, world, **more):
    "Key → value: a model of width 16 on this world."
    small = {'MODEL.TOKEN_EMBED.DIM': 16, 'MODEL.VISUAL_EMBED.OUT_DIM': 16, 'MODEL.TOKEN_EMBED.POSITION_MAX_LEN': 96, 'DATALOADER.NUM_WORKERS': 0, 'DATALOADER.TRAIN_BATCH_SIZE': 8,
             'DATALOADER.INF_BATCH_SIZE': 3, 'MODEL.DEVICE': 'cpu', 'MODEL.WEIGHTS': '', 'SEED': 0, **{f'MODEL.BERT.{k}': v for k, v in BERT.items()}, **(TDEN if '/tden/' in path else {}), **more}
    return {**small, **world[1][CONFIGS[path]].entries}


def config(path, world, **more):
    torch.manual_seed(0)
    return load_cfg_file(path, [x for kv in options(path, world, **more).items() for x in kv])


def forward(model, batch, path):
    batch = model.preprocess_batch(batch)
    if path == 'pretrain/tden/tden.yaml': batch['tden_pretrain_similarity'] = True
    out = model(batch)
    if CONFIGS[path] == 'vcr': out[kfg.U_LOGITS] = out[kfg.U_LOGITS].view(-1, 4)
    return out


@pytest.mark.parametrize('path', [p for p in CONFIGS if 'hard' not in p])
def test_a_step(world, path):
    "Loader, model, losses, gradient."
    cfg = config(path, world)
    model, losses = build_model(cfg).train(), build_losses(cfg)
    if hasattr(model, 'sampling_pool'): model.sampling_pool = ['itm']             # of a few rows other tasks may have no target
    out = forward(model, next(iter(build_xmodaler_train_loader(cfg))), path)
    loss = sum(sum(f(out).values()) for f in losses)
    loss.backward()
    assert torch.isfinite(loss) and model.visual_embed.embeddings.weight.grad.abs().sum() > 0


@torch.no_grad()
@pytest.mark.parametrize('path', [p for p, t in CONFIGS.items() if t == 'vqa'])
def test_questions_are_scored(world, path):
    "Validation and test: every question once, upstream's accuracy and the official one."
    cfg = config(path, world)
    model = build_model(cfg).eval()
    for stage in ('val', 'test'):
        results = [dict(question_id=i, answer=a) for b in build_xmodaler_valtest_loader(cfg, stage=stage) for out in [forward(model, b, path)] for i, a in zip(out[kfg.IDS], out[kfg.OUTPUT])]
        scores = build_evaluation(cfg, cfg.INFERENCE[f'{stage.upper()}_ANNFILE'], None).eval(results, 0)
        assert 0 <= scores['accuracy'] <= 1 and scores['official'] == pytest.approx(scores['accuracy'], abs=1e-6) and 'official/yes/no' in scores


@torch.no_grad()
@pytest.mark.parametrize('path', [p for p, t in CONFIGS.items() if t == 'vcr'])
def test_choices_are_scored(world, path):
    cfg, results = config(path, world), []
    model = build_model(cfg).eval()
    for task in ('VCR_Q-A', 'VCR_QA-R'):
        loader = build_xmodaler_valtest_loader(cfg, build_dataset_mapper(cfg, 'VCRDataset', f'val;{task}'))
        results.append([])
        for b in loader:
            out = forward(model, b, path)
            chosen, right, ids = out[kfg.U_LOGITS].argmax(1).tolist(), out[kfg.U_TARGET_IDS].flatten().tolist(), list(out[kfg.IDS])
            results[-1] += [dict(question_id=i, answer=c, U_TARGET_IDS=r) for i, c, r in zip(ids[::len(ids)//len(chosen)], chosen, right)]
    scores = build_evaluation(cfg, '', None).eval(results, 0)
    assert set(scores) == {'Q -> A', 'QA -> R', 'Q -> AR'} and scores['Q -> AR'] <= min(scores['Q -> A'], scores['QA -> R'])


@torch.no_grad()
def test_search_with_vectors(world):
    cfg = config(MM + 'flickr30k_retrieval/tden/flickr30k_retrieval.yaml', world)
    model, v, t, owners, images = build_model(cfg).eval(), [], [], [], []
    for b in build_xmodaler_valtest_loader(cfg, stage='test'):
        out = model(model.preprocess_batch(b))
        v.append(out[kfg.OUTPUT][0]), t.append(out[kfg.OUTPUT][1])
        images += [i for i, _ in b.IDS]
        owners += [o for _, os in b.IDS for o in os]
    scores = RetrievalEvaler(cfg, '', None).eval(torch.cat(v), torch.cat(t), torch.tensor([images.index(o) for o in owners]))
    assert scores['r5'] == 100 and 0 < scores['i2t_r10'] <= 100 and len(owners) == 20


@torch.no_grad()
def test_search_pair_by_pair(world):
    "A chunk is a batch; the same score comes out whatever the size of the chunks."
    path = MM + 'flickr30k_retrieval/uniter/flickr30k_retrieval.yaml'
    matrices = []
    for size in (1, 3, 200):
        cfg = config(path, world, **{'DATALOADER.INF_BATCH_SIZE': size})
        model, rows, gt = build_model(cfg).eval(), [], []
        for chunks in build_xmodaler_valtest_loader(cfg, stage='test'):
            rows.append(torch.cat([model(dict(c))[kfg.OUTPUT].reshape(-1) for c in chunks]))
            gt.append(int(chunks[0]['matched_imgfeatidx']))
        matrices.append(torch.stack(rows))
    assert matrices[0].shape == (20, 4) and all(torch.allclose(m, matrices[0], atol=1e-5) for m in matrices[1:])
    assert itm_recalls(matrices[0], gt)['img_r5'] == 1


def test_what_is_written_is_true(world):
    "Targets follow from the scenes: colours of what is asked, sides, and who is in the picture."
    data, tasks = world
    target = {t['question_id']: t for t in pickle.loads((tasks['vqa'].folder/'vqa'/'test_target.pkl').read_bytes())}
    answers = pickle.loads((tasks['vqa'].folder/'vqa'/'trainval_label2ans.pkl').read_bytes())
    seen = set()
    for q in json.loads((tasks['vqa'].folder/'vqa'/'v2_OpenEnded_mscoco_test2015_questions.json').read_text())['questions']:
        t, things = target[q['question_id']], data.scene(q['image_id']).things
        best = answers[t['labels'][int(np.argmax(t['scores']))]]
        words = q['question'].rstrip('?').split()
        seen.add(words[0])
        if words[:3] == ['what', 'color', 'is']: assert best in {x.colour for x in things if x.category == words[-1]}
        if words[:2] == ['is', 'there']: assert (best == 'yes') == any((x.colour, x.category) == tuple(words[-2:]) for x in things)
    assert seen == {'what', 'is', 'how'}
    for line in map(json.loads, (tasks['vcr'].folder/'vcr'/'test.jsonl').read_text().splitlines()):
        things, right = data.scene(line['metadata_fn'][:-5]).things, line['answer_choices'][line['answer_label']]
        assert line['objects'] == [t.category for t in things]
        if len(right) == 3 and right[1] == 'is': assert things[right[0][0]].colour == right[-1]


def test_captions_identify(world):
    data, _ = world
    scenes = [data.scene(i) for i in data.ids('train')]
    assert retrieval_bound(scenes) == len(set(map(scene_facts, scenes)))/len(scenes)
    assert retrieval_bound(scenes[:1]*4) == .25


def test_same_seed_same_files(world, tmp_path):
    data, tasks = world
    again = write_tasks(tmp_path/'again', data)
    files = lambda t: {p.relative_to(t.folder): p.read_bytes() for p in t.folder.rglob('*') if p.is_file() and 'cache' not in p.parts and p.suffix != '.npz'}
    assert files(again['vqa']) == files(tasks['vqa'])
    for q in choice_questions(data.scene(1), np.random.default_rng(0)): assert len({str(a) for a in q['answers']}) == len({str(r) for r in q['rationales']}) == 4
