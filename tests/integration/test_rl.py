"Self-critical training from the published configs: end to end on scenes, by every trainer, with several rewards, interrupted and continued."
import json
import numpy as np
import pytest
import torch
from xmodaler_nb.config import kfg, load_cfg_file
from xmodaler_nb.datasets.scenes import make_scenes
from xmodaler_nb.engine import build_engine
from xmodaler_nb.utils.env import seed_all_rng

SMALL = ['MODEL.DEVICE', 'cpu', 'MODEL.WEIGHTS', '', 'MODEL.DECODER_DIM', 16, 'MODEL.TOKEN_EMBED.DIM', 16, 'MODEL.VISUAL_EMBED.OUT_DIM', 16, 'DATALOADER.NUM_WORKERS', 0, 'DATALOADER.TRAIN_BATCH_SIZE', 4,
         'DATALOADER.SEQ_PER_SAMPLE', 2, 'SOLVER.EPOCH', 1, 'SOLVER.WRITE_PERIOD', 1, 'SEED', 3, 'ENGINE.PROGRESS', False, 'DECODE_STRATEGY.BEAM_SIZE', 2, 'RL.CHECK', 'off']
BERT = ['MODEL.BERT.HIDDEN_SIZE', 16, 'MODEL.BERT.INTERMEDIATE_SIZE', 32, 'MODEL.BERT.NUM_ATTENTION_HEADS', 2, 'MODEL.BERT.NUM_HIDDEN_LAYERS', 1, 'MODEL.BERT.NUM_GENERATION_LAYERS', 1, 'MODEL.ENCODER_DIM', 16]
BILINEAR = ['MODEL.BILINEAR.DIM', 16, 'MODEL.BILINEAR.HEAD', 2, 'MODEL.BILINEAR.ENCODE.ATT_MID_DIM', [8, 4, 8], 'MODEL.BILINEAR.DECODE.ATT_MID_DIM', [8, 4, 8], 'MODEL.BILINEAR.ENCODE.LAYERS', 1]
MESHED = [x for k in ('ENCODER', 'DECODER') for x in (f'MODEL.MESHEDMEORY.{k}.DIM_MODEL', 16, f'MODEL.MESHEDMEORY.{k}.DIM_FEEDFORWARD', 32, f'MODEL.MESHEDMEORY.{k}.NUM_LAYER', 1, f'MODEL.MESHEDMEORY.{k}.NUM_ATT_HEAD', 2)]
CONFIGS = {'updown/updown': ([], {}), 'attention/attention': ([], {}), 'transformer/transformer': (BERT, {}), 'xlan/xlan': (BILINEAR, {}), 'meshed_memory/meshed_memory': (MESHED, {}),
           'gcn/gcn': (['MODEL.VISUAL_EMBED.NAME', 'VisualBaseEmbedding', 'MODEL.GCN.IN_DIM', 16, 'MODEL.GCN.OUT_DIM', 16], dict(variant='regions36', relation=True)),
           'lstm-A/lstm-A': (['DATALOADER.FEATS_FOLDER', ''], dict(attribute=True, gv_feat=True))}


@pytest.fixture(scope='module')
def scenes(tmp_path_factory):
    return make_scenes(tmp_path_factory.mktemp('rl')/'scenes', counts=dict(train=8, val=2, test=2), variants=('regions36',))


def trainer(scenes, folder, config='updown/updown', *opts, **data):
    folder.mkdir(exist_ok=True)
    seed_all_rng(3)
    cfg = load_cfg_file(f'image_caption/{config}_rl.yaml', [*scenes.overrides(**data), *SMALL, 'OUTPUT_DIR', str(folder), *opts])
    return build_engine(cfg)


def run(t, resume=False):
    t.resume_or_load(resume=resume)
    t.train()
    return t


def events(folder):
    timing = ('time', 'data_time', 'eta_seconds')
    return [{k: v for k, v in json.loads(l).items() if k not in timing} for l in (folder/'events.jsonl').read_text().splitlines()]


@pytest.mark.parametrize('config', CONFIGS)
def test_published_configs_run(scenes, tmp_path, config):
    opts, data = CONFIGS[config]
    more = ['MODEL.VISUAL_EMBED.OUT_DIM', scenes.extractor().dim] if 'lstm' in config else []
    t = run(trainer(scenes, tmp_path, config, *opts, *more, 'RL.SAMPLE_MODE', 'eval', **data))
    log = events(tmp_path)[-1]
    assert {f'rl/{k}' for k in ('reward', 'baseline', 'advantage', 'advantage_std', 'entropy', 'length', 'distinct')} | {'Cider', 'total_loss'} <= set(log)
    assert t.method.captions['drawn'].shape == (8, t.cfg.MODEL.MAX_SEQ_LEN) and (tmp_path/'model_final').exists()


@pytest.mark.parametrize('engine,opts', [('RLTrainer', ['SCORER.TYPES', ['Cider', 'Bleu', 'RougeL', 'Length'], 'SCORER.WEIGHTS', [1., .5, .5, 1.]]), ('RLMeanTrainer', []),
                                         ('RLBeamTrainer', ['DATALOADER.SEQ_PER_SAMPLE', 1])])
def test_trainers_continue_bit_for_bit(scenes, tmp_path, engine, opts):
    opts = ['ENGINE.NAME', engine, *opts, 'SOLVER.EPOCH', 2, 'ENGINE.CHECKPOINT_ITERS', 1, 'DATASETS.VAL', '', 'DATASETS.TEST', '']
    whole = run(trainer(scenes, tmp_path/'whole', 'updown/updown', *opts))
    first = trainer(scenes, tmp_path/'parts', 'updown/updown', *opts)
    first.resume_or_load(resume=False)
    first.train(0, 3)
    seed_all_rng(77)
    np.random.rand(5)
    second = trainer(scenes, tmp_path/'parts', 'updown/updown', *opts)
    seed_all_rng(78)
    run(second, resume=True)
    assert second.start_iter == 3 and events(tmp_path/'whole') == events(tmp_path/'parts')
    for (n, a), b in zip(whole.model.state_dict().items(), second.model.state_dict().values()): assert torch.equal(a, b), n
    assert set(whole.scorer.types) <= set(events(tmp_path/'whole')[-1])


def test_a_bad_start_is_noticed_before_the_first_step(scenes, tmp_path, caplog):
    t = trainer(scenes, tmp_path/'a', 'updown/updown', 'RL.CHECK', 'error')
    before = {k: v.clone() for k, v in t.model.state_dict().items()}
    with pytest.raises(ValueError, match='Start from an XE checkpoint'): run(t)
    assert all(torch.equal(v, before[k]) for k, v in t.model.state_dict().items())
    t = trainer(scenes, tmp_path/'b', 'updown/updown', 'RL.CHECK', 'warn', 'DATASETS.VAL', '', 'DATASETS.TEST', '')
    caplog.clear()
    run(t)
    assert sum('Start from an XE checkpoint' in r.message for r in caplog.records) == 1        # once, not at every step


@pytest.mark.parametrize('opts,message', [(['ENGINE.NAME', 'RLMeanTrainer', 'DATALOADER.SEQ_PER_SAMPLE', 1], 'SEQ_PER_SAMPLE is 1'), (['ENGINE.NAME', 'RLBeamTrainer', 'DECODE_STRATEGY.BEAM_SIZE', 1], 'BEAM_SIZE is 1'),
                                          (['RL.SAMPLE_MODE', 'both'], 'RL.SAMPLE_MODE'), (['RL.CHECK', 'maybe'], 'RL.CHECK'), (['SCORER.NAME', ''], 'SCORER.NAME')])
def test_mistakes_are_named(scenes, tmp_path, opts, message):
    with pytest.raises(ValueError, match=message): trainer(scenes, tmp_path, 'updown/updown', *opts)


def test_the_baseline_uses_no_dropout_and_no_dice(scenes, tmp_path):
    t = trainer(scenes, tmp_path)
    batch = next(iter(t.train_data_loader))
    images, k = t.method.prepare(batch)
    torch.manual_seed(0)
    a = t.method.baseline(images)
    assert torch.equal(a, t.method.baseline(images)) and t.model.training and len(a) == len(batch[kfg.IDS]) and k == 2
    assert not torch.equal(t.method.draw(images, k)[kfg.G_SENTS_IDS], t.method.draw(images, k)[kfg.G_SENTS_IDS])


def test_benchmark_runs_and_gradients_agree():
    import sys
    from conftest import ROOT
    sys.path.insert(0, str(ROOT/'benchmarks'))
    import rl
    for row in rl.compare('updown', small=True, repeats=1):
        assert row['ratio'] > 0 and row.get('gradient_difference', 0.) < 1e-5
