"Ids that look like numbers but are names: a whole evaluation with the COCO id '007', from files to scores."
import json
from xmodaler_nb.commands.train import train_main
from xmodaler_nb.datasets.layout import write_pickle, write_tiny
from xmodaler_nb.evaluation.split import as_id, read_references
from xmodaler_nb.utils.safe_pickle import safe_load

IN_LISTS = {'104': '007', '105': 7, '106': '0108', '107': 'a-7'}            # as the data set names them
IN_REFERENCES = {'104': '007', '105': '7', '106': '0108', '107': 'a-7'}     # as the file of references does


def renamed(folder):
    "A tiny data set whose evaluation images have awkward names."
    for stage in ('val', 'test'):
        rows = safe_load(folder/f'mscoco_caption_anno_{stage}.pkl')
        write_pickle(folder/f'mscoco_caption_anno_{stage}.pkl', [{**r, 'image_id': IN_LISTS[r['image_id']]} for r in rows])
        file = folder/f'captions_{stage}.json'
        coco = json.loads(file.read_text())
        for row in coco['annotations']: row['image_id'] = IN_REFERENCES[str(row['image_id'])]
        for row in coco.get('images', []): row['id'] = IN_REFERENCES[str(row['id'])]
        file.write_text(json.dumps(coco))
    for old, new in IN_LISTS.items(): (folder/'features'/f'{old}.npz').rename(folder/'features'/f'{new}.npz')
    return folder


def options(data, out):
    sizes = {'VOCAB_SIZE': 9, 'VISUAL_EMBED.IN_DIM': 4, 'VISUAL_EMBED.OUT_DIM': 8, 'TOKEN_EMBED.DIM': 8, 'DECODER_DIM': 8, 'UPDOWN.ATT_EMBED_SIZE': 4, 'MAX_SEQ_LEN': 6}
    files = {'DATALOADER.ANNO_FOLDER': data, 'DATALOADER.FEATS_FOLDER': data/'features', 'INFERENCE.VOCAB': data/'vocabulary.txt',
             'INFERENCE.VAL_ANNFILE': data/'captions_val.json', 'INFERENCE.TEST_ANNFILE': data/'captions_test.json', 'OUTPUT_DIR': out}
    rest = {'DATALOADER.TRAIN_BATCH_SIZE': 2, 'DATALOADER.NUM_WORKERS': 0, 'DATALOADER.MAX_FEAT_NUM': 10, 'MODEL.DEVICE': 'cpu', 'SEED': 1, 'SOLVER.EPOCH': 1}
    pairs = {**{f'MODEL.{k}': v for k, v in sizes.items()}, **files, **rest}
    return [str(x) for pair in pairs.items() for x in pair]


def test_a_whole_evaluation_with_awkward_ids(tmp_path, capsys):
    plain, data = write_tiny(tmp_path/'plain', n=8), renamed(write_tiny(tmp_path/'data', n=8))
    def run(folder, out, *flags): return train_main(['--config-file', 'image_caption/updown/updown.yaml', *flags, *options(folder, tmp_path/out)])
    def scores(): return [l for l in capsys.readouterr().out.splitlines() if l.startswith(('val', 'test'))]
    assert run(data, 'run') == 0                                            # trains, evaluates
    capsys.readouterr()
    weights = ['MODEL.WEIGHTS', str(tmp_path/'run'/'model_final')]
    for folder, out in ((data, 'awkward'), (plain, 'easy')):
        assert train_main(['--config-file', 'image_caption/updown/updown.yaml', '--eval-only', *options(folder, tmp_path/out), *weights]) == 0
    found = scores()
    assert found[:2] == found[2:]                                           # the names of the images are of no matter
    results = json.loads((tmp_path/'awkward'/'results'/'-1.json').read_text())
    assert [r['image_id'] for r in results] == ['0108', 'a-7']
    assert list(read_references(data/'captions_val.json')) == ['007', 7]
    assert [as_id(i) for i in IN_LISTS.values()] == [as_id(i) for i in IN_REFERENCES.values()]
