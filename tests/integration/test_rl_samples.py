"RL.SAMPLES_EVERY: what a self-critical training writes about fixed pictures, by every trainer, interrupted, and in several processes."
import json
import pytest
import torch
from test_rl import scenes, trainer, run          # noqa: F401 (a fixture)
from xmodaler_nb.utils.env import seed_all_rng

OPTS = 'SOLVER.EPOCH', 3, 'ENGINE.CHECKPOINT_ITERS', 3


def lines(folder): return [json.loads(l) for l in (folder/'samples.jsonl').read_text().splitlines()]


@pytest.mark.parametrize('engine,mode', [('RLTrainer', 'upstream'), ('RLMeanTrainer', 'eval'), ('RLBeamTrainer', 'upstream')])
def test_every_trainer_writes_lines_and_learns_the_same(scenes, tmp_path, engine, mode):
    t, other = (run(trainer(scenes, tmp_path/name, 'updown/updown', 'ENGINE.NAME', engine, 'RL.SAMPLE_MODE', mode, 'DATASETS.VAL', '', 'DATASETS.TEST', '', 'RL.SAMPLES_EVERY', every)) for name, every in (('a', 1), ('b', 0)))
    rows = lines(tmp_path/'a')
    assert [r['iteration'] for r in rows] == [0]*4 + [1]*4 and len({r['id'] for r in rows[:4]}) == 4 and [r['id'] for r in rows[:4]] == [r['id'] for r in rows[4:]]
    for r in rows:
        assert len(r['sampled']) == len(r['rewards']) == 2 and r['distinct'] == len(set(r['sampled'])) and abs(r['reward'] - sum(r['rewards'])/2) < 1e-3
        assert all(isinstance(s, str) for s in r['sampled']) and isinstance(r['baseline'], float) and (engine != 'RLBeamTrainer' or r['greedy'] == '')
    assert not (tmp_path/'b'/'samples.jsonl').exists() and t.model.training
    for (n, a), b in zip(t.model.state_dict().items(), other.model.state_dict().values()): assert torch.equal(a, b), n


def test_a_resumed_run_has_each_line_once(scenes, tmp_path):
    "Killed after step 4, saved after step 2: the lines of steps 3 and 4 are written again."
    more = *OPTS, 'RL.SAMPLES_EVERY', 1, 'DATASETS.VAL', '', 'DATASETS.TEST', ''
    run(trainer(scenes, tmp_path/'whole', 'updown/updown', *more))
    class Killed(Exception): pass
    t = trainer(scenes, tmp_path/'parts', 'updown/updown', *more)
    def die():
        if t.iter == 4: raise Killed
    t._hooks[-1].before_step = die
    with pytest.raises(Killed): run(t)
    assert [r['iteration'] for r in lines(tmp_path/'parts')][::4] == [0, 1, 2, 3]
    with open(tmp_path/'parts'/'samples.jsonl', 'a') as f: f.write('{"iteration": 4, "id"')     # a torn line
    seed_all_rng(99)
    run(trainer(scenes, tmp_path/'parts', 'updown/updown', *more), resume=True)
    assert lines(tmp_path/'parts') == lines(tmp_path/'whole')


def test_nothing_is_written_where_it_cannot_be(scenes, tmp_path):
    "The file's place is taken by a folder: the sentence names it."
    (tmp_path/'run'/'samples.jsonl').mkdir(parents=True)
    t = trainer(scenes, tmp_path/'run', 'updown/updown', 'RL.SAMPLES_EVERY', 1)
    with pytest.raises(OSError, match='samples.jsonl'): run(t)
