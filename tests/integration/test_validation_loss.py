"`learn.validate()` of a trainer made from a config: the loss of true captions, in evaluation mode, beside the metrics; and where there is none, why."
import logging
import pytest, torch
from test_bad_data import config
from xmodaler_nb.datasets.build import build_xmodaler_train_loader
from xmodaler_nb.datasets.layout import write_pickle, write_tiny
from xmodaler_nb.engine import build_engine
from xmodaler_nb.utils.safe_pickle import safe_load

SMALL = ['DATALOADER.TEST_BATCH_SIZE', 2, 'MODEL.MAX_SEQ_LEN', 6, 'MODEL.VISUAL_EMBED.OUT_DIM', 8, 'MODEL.TOKEN_EMBED.DIM', 8]
UPDOWN = SMALL + ['MODEL.DECODER_DIM', 8, 'MODEL.UPDOWN.ATT_EMBED_SIZE', 4]


@pytest.fixture
def root(tmp_path): return write_tiny(tmp_path/'data', n=12)

def trainer(root, tmp_path, *opts, file='image_caption/updown/updown.yaml', small=UPDOWN):
    return build_engine(config(root, *small, 'OUTPUT_DIR', str(tmp_path/'out'), *opts, file=file))


def test_the_loss_is_that_of_the_true_captions(root, tmp_path):
    t = trainer(root, tmp_path)
    before, rng = {k: v.clone() for k, v in t.model.state_dict().items()}, torch.get_rng_state()
    t.model.train()
    found = t.learn.validate()
    assert list(found)[0] == 'loss' and any(k.startswith('val/') for k in found)
    assert t.model.training and torch.equal(rng, torch.get_rng_state()) and all(torch.equal(v, before[k]) for k, v in t.model.state_dict().items())
    assert found == t.learn.validate()                                  # the same draws
    # the same captions as a training list: a second data set whose training pictures are the validation pictures
    loader, total, rows = t.learn.with_targets(), 0., 0
    t.model.eval()
    for b in loader:
        with torch.no_grad(): losses = t.learn.compute_losses(t.learn.predict_batch(b))
        total, rows = total + sum(v.item() for v in losses.values())*len(b['G_TARGET_IDS']), rows + len(b['G_TARGET_IDS'])
    assert found['loss'] == pytest.approx(total/rows, rel=1e-5)


def test_rows_are_those_of_a_training_list(root, tmp_path):
    "What is made from references equals what the training list holds of the same pictures."
    cfg = config(root, *UPDOWN)
    t = trainer(root, tmp_path)
    made = {i: rows for b in t.learn.with_targets() for i, rows in zip(b['IDS'], b['G_TARGET_IDS'].split(cfg.DATALOADER.SEQ_PER_SAMPLE))}
    assert sorted(made) == sorted(e['image_id'] for e in safe_load(root/'mscoco_caption_anno_val.pkl'))
    train = safe_load(root/'mscoco_caption_anno_train.pkl')
    known = {tuple(int(x) for x in row if x > 0) for e in train for row in e['target_ids']}
    assert all(len(known) and row[row >= 0][-1] == 0 for rows in made.values() for row in rows)
    first = next(iter(build_xmodaler_train_loader(cfg)))
    assert first['G_TARGET_IDS'].dtype == next(iter(t.learn.with_targets()))['G_TARGET_IDS'].dtype


def test_a_list_that_holds_targets_is_taken_as_it_is(root, tmp_path):
    val = safe_load(root/'mscoco_caption_anno_val.pkl')
    like = safe_load(root/'mscoco_caption_anno_train.pkl')[0]
    write_pickle(root/'mscoco_caption_anno_val.pkl', [{**like, **e} for e in val])
    assert 'loss' in trainer(root, tmp_path).learn.validate()


@pytest.mark.parametrize('opts, why', [(['INFERENCE.VOCAB', ''], 'INFERENCE.VOCAB'), (['DATASETS.VAL', ''], 'DATASETS.VAL')])
def test_no_loss_is_said_by_name(root, tmp_path, caplog, opts, why):
    t = trainer(root, tmp_path, *opts)
    t.learn.evaluations = {'val': lambda epoch: {'x': 1.}}
    with caplog.at_level(logging.WARNING): assert t.learn.validate() == {'val/x': 1.}
    assert any('validate gives no loss' in r.message and why in r.message for r in caplog.records)


BERT = ['MODEL.BERT.HIDDEN_SIZE', 8, 'MODEL.BERT.INTERMEDIATE_SIZE', 8, 'MODEL.BERT.NUM_ATTENTION_HEADS', 2, 'MODEL.BERT.NUM_HIDDEN_LAYERS', 1, 'MODEL.BERT.NUM_GENERATION_LAYERS', 1]

@pytest.mark.parametrize('position', ['SinusoidEncoding', 'NNEmbeddingEncoding'])
@pytest.mark.parametrize('positions', [6, 7, 50])
def test_a_table_of_positions(root, tmp_path, position, positions):
    "A table that is enough for decoding (one position for each of MAX_SEQ_LEN = 6 words) is enough for the loss; longer captions are cut as in a training list."
    opts = ['MODEL.TOKEN_EMBED.POSITION', position, 'MODEL.TOKEN_EMBED.POSITION_MAX_LEN', positions, 'MODEL.DECODER_DIM', 8]
    t = trainer(root, tmp_path, *BERT, *opts, file='image_caption/transformer/transformer.yaml', small=SMALL)
    rows = next(iter(t.learn.with_targets()))['G_TOKENS_IDS']
    assert rows.shape[1] == min(positions, 7) and t.learn.validate()['loss'] > 0


def word_pieces(root):
    "Boxes, captions as text and BERT pieces beside the tiny data set."
    import json
    import numpy as np
    from xmodaler_nb.datasets.layout import write_features
    words, images = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', 'a', 'dog', 'sees', 'bird', '##s'], []
    (root/'wordpieces.txt').write_text('\n'.join(words) + '\n')
    for stage in ('train', 'val', 'test'):
        ids = [e['image_id'] for e in safe_load(root/f'mscoco_caption_anno_{stage}.pkl')]
        (root/f'coco_{stage}_image_id.txt').write_text('\n'.join(ids) + '\n')
        images += [dict(cocoid=int(i), sentences=[dict(raw='A dog sees birds.'), dict(raw='a bird sees')]) for i in ids]
        for i in ids: write_features(root/'features', i, features=np.ones((2, 4), np.float32), boxes=np.array([[0, 0, 32, 24], [16, 8, 64, 48]], np.float32), image_h=np.array([48]), image_w=np.array([64]))
    (root/'dataset_coco.json').write_text(json.dumps(dict(images=images)))
    return len(words)

def test_captions_of_word_pieces(root, tmp_path):
    n = word_pieces(root)
    opts = ['MODEL.VOCAB_SIZE', n, 'MODEL.PRETRAINING.MODEL_NAME', str(root/'wordpieces.txt'), 'MODEL.WEIGHTS', '', 'MODEL.BERT.V_NUM_HIDDEN_LAYERS', 1, 'INFERENCE.VOCAB', 'BERT']
    t = trainer(root, tmp_path, *BERT, *opts, file='image_caption/tden/tden.yaml', small=SMALL)
    batch = next(iter(t.learn.with_targets()))
    assert {int(x) for x in batch['G_TARGET_IDS'].flatten()} <= {-1, *range(n)} and (batch['G_TARGET_IDS'] == 9).any()    # birds = bird ##s
    found = t.learn.validate()
    assert found['loss'] > 0 and 'val/CIDEr' in found and found == t.learn.validate()
