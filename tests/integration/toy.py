"A captioner for engine tests: reads a number, says one of three words. Small, with dropout and scheduled sampling, bit for bit repeatable."
import json
from pathlib import Path
import torch
from torch import nn
from xmodaler_nb.config import get_cfg
from xmodaler_nb.config.constants import Batch, kfg
from xmodaler_nb.engine import DefaultTrainer

WORDS = ['a dog', 'a cat', 'a bird']


class ToySet(torch.utils.data.Dataset):
    "Twelve items; the answer is the index modulo three."
    def __init__(self, n=12, answers=True): self.n, self.answers = n, answers
    def __len__(self): return self.n
    def __getitem__(self, i):
        i = int(i)
        b = Batch({kfg.IDS: [i], 'x': torch.full((1, 3), i/12.)})
        return b.merge({kfg.G_TARGET_IDS: torch.tensor([[i % 3]])}) if self.answers else b


def join(items):
    "Collate."
    return Batch({k: sum((list(i[k]) for i in items), []) if k == kfg.IDS else torch.cat([i[k] for i in items]) for k in items[0]})


class ToyModel(nn.Module):
    "Two layers, dropout, noise that grows with SS_PROB."
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Dropout(.3), nn.Linear(16, 3))

    def forward(self, b, use_beam_search=None, output_sents=False):
        y = self.net(b['x'])
        if self.training and kfg.SS_PROB in b: y = y*(1 + torch.rand(1).to(y)*b[kfg.SS_PROB])
        return b.merge({kfg.G_LOGITS: y, kfg.OUTPUT: [WORDS[i] for i in y.argmax(1)]})


class ToyEval:
    "Share of right words."
    def eval(self, results, epoch): return {'acc': sum(r['caption'] == WORDS[r['image_id'] % 3] for r in results)/len(results)}


def xe(o): return {'xe': nn.functional.cross_entropy(o[kfg.G_LOGITS], o[kfg.G_TARGET_IDS].flatten())}


def loader(n=12, bs=4, shuffle=True, workers=0, answers=True):
    from xmodaler_nb.datasets.sampler import TrainingLoader
    if shuffle: return TrainingLoader(ToySet(n, answers), bs, seed=5, collate_fn=join, num_workers=workers)
    return torch.utils.data.DataLoader(ToySet(n, answers), batch_size=bs, collate_fn=join, num_workers=workers)


class ToyTrainer(DefaultTrainer):
    workers = 0
    @classmethod
    def build_model(cls, cfg): torch.manual_seed(1); return ToyModel()
    @classmethod
    def build_optimizer(cls, cfg, model): return torch.optim.Adam([{'params': [p], 'lr': cfg.SOLVER.BASE_LR} for p in model.parameters()])
    @classmethod
    def build_lr_scheduler(cls, cfg, optimizer, n): return torch.optim.lr_scheduler.StepLR(optimizer, n, .9)
    @classmethod
    def build_losses(cls, cfg): return [xe]
    @classmethod
    def build_train_loader(cls, cfg): return loader(workers=cls.workers)
    @classmethod
    def build_val_loader(cls, cfg): return loader(bs=5, shuffle=False)
    @classmethod
    def build_test_loader(cls, cfg): return None
    def build_evaluators(self, cfg): return ToyEval(), None


def toy_cfg(folder, **engine):
    "A config whose engine part can be changed by keyword."
    cfg = get_cfg()
    Path(folder).mkdir(parents=True, exist_ok=True)
    cfg.OUTPUT_DIR, cfg.MODEL.DEVICE, cfg.INFERENCE.VOCAB = str(folder), 'cpu', ''
    cfg.SOLVER.EPOCH, cfg.SOLVER.BASE_LR, cfg.SOLVER.WRITE_PERIOD = 3, .02, 1
    cfg.SCHEDULED_SAMPLING.INC_EVERY_EPOCH = 1
    for k, v in {"PROGRESS": False, **engine}.items(): cfg.ENGINE[k] = v
    return cfg


def fresh(cfg, cls=ToyTrainer, resume=False):
    "A trainer, ready to train."
    t = cls(cfg)
    t.resume_or_load(resume=resume)
    return t


def events(folder) -> list:
    "The lines of events.jsonl without times."
    lines = (Path(folder)/'events.jsonl').read_text().splitlines()
    return [{k: v for k, v in json.loads(l).items() if 'time' not in k and 'eta' not in k} for l in lines]


def same_weights(a, b): return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values()))
