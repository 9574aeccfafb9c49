"ppe.from_ndarray, as_ndarray, get_xp and the names of types; the alias; requires."
import os, subprocess, sys
from pathlib import Path
import numpy as np
import pytest, torch
import xmodaler_nb.ppe as ppe

ROOT = Path(__file__).resolve().parents[2]
TYPES = [torch.float16, torch.float32, torch.float64, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.bool, torch.complex64, torch.complex128]


@pytest.mark.parametrize('dtype', TYPES, ids=str)
def test_there_and_back(dtype):
    name = ppe.as_numpy_dtype(dtype)
    assert ppe.from_numpy_dtype(name) == dtype and ppe.from_numpy_dtype(name.type) == dtype
    t = torch.ones(2, 3).to(dtype)
    a = ppe.as_ndarray(t)
    assert a.dtype == name and ppe.from_ndarray(a).dtype == dtype
    a[0, 0] = 0
    assert t[0, 0] == 0


def test_types_without_counterpart():
    for bad in (torch.bfloat16, 'float32'):
        with pytest.raises(TypeError): ppe.as_numpy_dtype(bad)
    for bad in ('U3', object):
        with pytest.raises(TypeError): ppe.from_numpy_dtype(np.dtype(bad))


@pytest.mark.parametrize('view, shared', [(np.s_[:], True), (np.s_[::2], True), (np.s_[::-1], False), (np.s_[:, ::-1], False), (np.s_[1:1], True), (np.s_[2, 2], None)])
def test_memory(view, shared):
    a = np.arange(12.).reshape(4, 3)
    part = np.asarray(a[view])
    t = ppe.from_ndarray(part)
    np.testing.assert_array_equal(t.numpy(), part)
    if shared is not None and t.numel(): assert np.shares_memory(t.numpy(), a) == shared


def test_wrong_kinds_and_devices():
    for f, bad in ((ppe.from_ndarray, [1]), (ppe.from_ndarray, torch.ones(1)), (ppe.as_ndarray, np.ones(1)), (ppe.get_xp, 3), (ppe.get_xp, 'cpu')):
        with pytest.raises(TypeError): f(bad)
    for f in (ppe.as_ndarray, ppe.get_xp):
        with pytest.raises(ValueError): f(torch.ones(1, device='meta'))
    assert ppe.get_xp(torch.ones(1)) is ppe.get_xp(np.ones(1)) is ppe.get_xp(torch.device('cpu')) is np


def test_requires():
    assert ppe.requires('1.8') and ppe.requires('1.8.0', 'torch') and not ppe.requires('99.0.0')
    assert not ppe.requires('0', 'a_package_that_is_not_there')
    assert ppe.__version__


def test_alias_in_a_new_process():
    code = '''
import xmodaler_nb.ppe
xmodaler_nb.ppe.install_alias()
import pytorch_pfn_extras as ppe
import pytorch_pfn_extras.config
from pytorch_pfn_extras.config import Config
import xmodaler_nb.ppe.config as ours
assert Config is ours.Config and ppe is xmodaler_nb.ppe and pytorch_pfn_extras.config is ours
assert ours.__name__ == ours.__spec__.name == 'xmodaler_nb.ppe.config'
import pytorch_pfn_extras.training.triggers as triggers, xmodaler_nb.ppe.training.triggers
assert triggers is xmodaler_nb.ppe.training.triggers and ppe.training.ExtensionsManager
try: import pytorch_pfn_extras.nothing
except ModuleNotFoundError: print('done')
'''
    done = subprocess.run([sys.executable, '-W', 'error::ImportWarning', '-c', code], capture_output=True, text=True, env={**os.environ, 'PYTHONPATH': str(ROOT)})
    assert done.stdout.strip() == 'done', done.stderr[-1500:]
