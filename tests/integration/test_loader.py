"Loaders: the same batches whatever the number of workers, the place of an interruption, or the kind of mapper."
import random
import numpy as np, pytest, torch
from xmodaler_nb.config import Batch
from xmodaler_nb.modeling import load_cfg_file
from xmodaler_nb.datasets import MSCoCoDataset, build_xmodaler_train_loader, build_xmodaler_valtest_loader, collate
from xmodaler_nb.datasets.collate import SHARE_BYTES
from xmodaler_nb.datasets.layout import write_tiny


@pytest.fixture
def cfg(tmp_path):
    root = write_tiny(tmp_path, n=24, captions=7)
    return load_cfg_file('image_caption/updown/updown.yaml', ['DATALOADER.ANNO_FOLDER', str(root), 'DATALOADER.FEATS_FOLDER', str(root/'features'), 'DATALOADER.TRAIN_BATCH_SIZE', 2,
        'DATALOADER.TEST_BATCH_SIZE', 5, 'DATALOADER.NUM_WORKERS', 0, 'DATALOADER.SEQ_PER_SAMPLE', 3, 'MODEL.DEVICE', 'cpu', 'SEED', 5], freeze=False)


def take(loader, n):
    "n batches, over epochs."
    out = []
    while len(out) < n: out += [b for _, b in zip(range(n - len(out)), loader)]
    return out

def same(a, b): return len(a) == len(b) and all(set(x) == set(y) and all(torch.equal(v, y[k]) if isinstance(v, torch.Tensor) else v == y[k] for k, v in x.items()) for x, y in zip(a, b))


class Foreign(MSCoCoDataset):
    "A mapper as X-modaler has them: chance from the global generators."
    def __call__(self, dataset_dict):
        item = super().__call__(dataset_dict)
        item['ATT_FEATS'] = item['ATT_FEATS']*(random.random() < .5) + float(np.random.rand())
        return item


@pytest.mark.parametrize('mapper', [MSCoCoDataset, Foreign])
def test_workers_and_resume(cfg, mapper):
    make = lambda: build_xmodaler_train_loader(cfg, dataset_mapper=mapper(cfg, 'train'))
    whole = take(make(), 15)
    assert len(make()) == 6 and not same(whole[:6], whole[6:12])
    cfg.DATALOADER.NUM_WORKERS = 2
    assert same(take(make(), 15), whole)
    for done in (1, 6, 8):
        first = make(); take(first, done)
        state = first.state_dict()
        assert (state['epoch'], state['batch']) == divmod(done, 6)
        again = make(); again.load_state_dict(state)
        assert same(take(again, 15 - done), whole[done:])


def test_a_running_loader_can_be_moved(cfg):
    "Also one whose workers live on and have fetched ahead."
    cfg.DATALOADER.NUM_WORKERS = 2
    loader = build_xmodaler_train_loader(cfg)
    whole = take(loader, 12)
    loader.set_position(0, 4); it = iter(loader)
    assert same([next(it)], whole[4:5]) and loader.position == (0, 5)
    loader.set_position(1, 1)
    assert same(take(loader, 5), whole[7:])
    loader.set_position(0); take(loader, 3)              # left early: the epoch begins again
    assert same(take(loader, 6), whole[:6])


def test_global_generators_are_left_alone(cfg):
    random.seed(1); np.random.seed(1); torch.manual_seed(1)
    take(build_xmodaler_train_loader(cfg, dataset_mapper=Foreign(cfg, 'train')), 8)
    list(build_xmodaler_valtest_loader(cfg, stage='val'))
    got = random.random(), np.random.rand(), torch.rand(1)
    random.seed(1); np.random.seed(1); torch.manual_seed(1)
    assert got == (random.random(), np.random.rand(), torch.rand(1))


def test_set_position_reads_nothing_in_vain(cfg, monkeypatch):
    loader = build_xmodaler_train_loader(cfg)
    mapper, asked = loader.dataset._map_func, []
    monkeypatch.setattr(type(mapper), 'feature_path', lambda self, e, f=type(mapper).feature_path: asked.append(e['image_id']) or f(self, e))
    loader.set_position(2, 5)
    last = list(loader)
    assert len(last) == 1 and sorted(asked) == sorted(last[0].IDS)


def test_evaluation_loader(cfg):
    loader = build_xmodaler_valtest_loader(cfg, stage='val')
    batches = list(loader)
    assert all(isinstance(b, Batch) for b in batches) and [i for b in batches for i in b.IDS] == [str(112 + i) for i in range(6)]
    assert [len(b) for b in batches] == [5, 1] and 'G_TOKENS_IDS' not in batches[0]
    cfg.DATASETS.VAL = ''
    assert build_xmodaler_valtest_loader(cfg, stage='val') is None
    cfg.DATASETS.TRAIN = ''
    assert build_xmodaler_train_loader(cfg) is None


def test_documented_draws(cfg):
    "With Python's generator seeded, a direct call chooses the sentences that `random.sample` and `random.choices` give."
    mapper = MSCoCoDataset(cfg, 'train')
    entry = mapper.load_data(cfg)[0]
    for k in (3, 9):
        mapper.seq_per_img = k
        random.seed(11); item = mapper(entry)
        random.seed(11); want = random.sample(range(7), k) if k <= 7 else random.choices(range(7), k=k-7) + list(range(7))
        assert [t.tolist() for t in item['G_TOKENS_IDS']] == entry['tokens_ids'][want].tolist()


def noting(items):
    "`collate`, and which of its tensors lie in memory that processes share, before they are sent."
    batch = collate(items)
    batch['shared'] = [k for k, v in batch.items() if isinstance(v, torch.Tensor) and v.is_shared()]
    return batch


@pytest.mark.parametrize('lengths', [(40, 40), (40, 17), (1, 40)])
@pytest.mark.parametrize('kind', ['float32', 'float16', 'int64', 'bool'])
def test_a_large_batch_is_built_where_the_training_reads_it(lengths, kind):
    "One copy less, and a loader's process that does not grow; the batch is the one of a single process."
    rng = np.random.default_rng(0)
    items = [{'IDS': str(n), 'ATT_FEATS': (rng.normal(size=(n, 8192))*9).astype(kind), 'SEQ_PER_SAMPLE': torch.tensor(1), 'G_TOKENS_IDS': [np.arange(n)]} for n in lengths]
    alone, = torch.utils.data.DataLoader(items, batch_size=2, collate_fn=noting)
    batch, = torch.utils.data.DataLoader(items, batch_size=2, collate_fn=noting, num_workers=1)
    large = alone.ATT_FEATS.nbytes >= SHARE_BYTES
    assert not alone.pop('shared') and batch.pop('shared') == ['ATT_FEATS']*large
    assert same([alone], [batch]) and list(alone) == list(batch) and alone.ATT_FEATS.dtype == batch.ATT_FEATS.dtype
    assert large or kind == 'bool'
