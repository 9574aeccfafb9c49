"""Add XMODALER_SHIFT_EVERY_SEED to every seed that a process sets. Python imports this file when its folder is on PYTHONPATH (`tests/portable.py`).

Shifted: `random.seed`, `random.Random(int)`, `numpy.random.seed`, `numpy.random.default_rng(int)`, `torch.manual_seed`, `torch.Generator().manual_seed`,
and with them all that calls these (`seed_all_rng`, fastai's `set_seed`). A module is changed when it is imported: nothing is imported early.
Not shifted: seeds that name stored data, which are lists (`default_rng([seed, k])`: the scenes), and what runs inside `unshifted()`:
tests that compare with stored numbers (all of tests/parity, and those marked `stored_numbers`)."""
import functools
import importlib.abc
import importlib.util
import os
import sys
from contextlib import contextmanager

SHIFT = int(os.environ.get('XMODALER_SHIFT_EVERY_SEED') or 0)
_state = {'shift': SHIFT}


@contextmanager
def unshifted():
    "Seeds mean what they say: for what is compared with stored numbers."
    before, _state['shift'] = _state['shift'], 0
    try: yield
    finally: _state['shift'] = before


def shifted(seed):
    "The seed to use instead of this one; what is no whole number stays."
    if isinstance(seed, bool) or not hasattr(seed, '__index__') or getattr(seed, 'ndim', 0): return seed
    return seed.__index__() + _state['shift'] if seed.__index__() >= 0 else seed


def _shifting(fn, at=0):
    "This function with its seed, the argument at this place, shifted."
    @functools.wraps(fn)
    def call(*args, **kwargs):
        args = [shifted(a) if i == at else a for i, a in enumerate(args)]
        return fn(*args, **{k: shifted(v) if k in ('seed', 'a') else v for k, v in kwargs.items()})
    return call


def _subclass(base, name):
    "This class with a method whose seed is shifted, under its own name, so that it pickles as before."
    parts = {'__module__': base.__module__, '__qualname__': base.__qualname__, name: _shifting(getattr(base, name), at=1)}
    return type(base.__name__, (base,), parts)


def _change_random(module): module.seed, module.Random = _shifting(module.seed), _subclass(module.Random, 'seed')

def _change_numpy(module): module.seed, module.default_rng = _shifting(module.seed), _shifting(module.default_rng)

def _change_torch(module):
    module.manual_seed = module.random.manual_seed = _shifting(module.manual_seed)
    module.Generator = _subclass(module.Generator, 'manual_seed')


CHANGES = {'random': _change_random, 'numpy.random': _change_numpy, 'torch': _change_torch}


class _Loader(importlib.abc.Loader):
    "Loads as the real loader does, then changes the module."
    def __init__(self, loader, change): self.loader, self.change = loader, change
    def create_module(self, spec): return self.loader.create_module(spec)
    def exec_module(self, module):
        self.loader.exec_module(module)
        self.change(module)
    def __getattr__(self, name): return getattr(self.loader, name)


class _Finder(importlib.abc.MetaPathFinder):
    "Finds the three modules as the others would, and puts our loader around theirs."
    def find_spec(self, name, path=None, target=None):
        if name not in CHANGES: return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(name, path, target)
            if spec is not None:
                spec.loader = _Loader(spec.loader, CHANGES[name])
                return spec


if SHIFT:
    for _name in CHANGES.keys() & sys.modules.keys(): CHANGES[_name](sys.modules[_name])
    sys.meta_path.insert(0, _Finder())
