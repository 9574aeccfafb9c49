"mmf: the registry, SampleList as our Batch, losses, BaseModel's life cycle, both bridges."
import pickle, subprocess, sys, warnings
import pytest, torch
from torch import nn
from xmodaler_nb.config import Batch, CfgNode, get_cfg, kfg
from xmodaler_nb.mmf.common.registry import MMFRegistry, registry
from xmodaler_nb.mmf.common.sample import Sample, SampleList, as_sample_list
from xmodaler_nb.mmf.meta_arch import find, wrap_captioner
from xmodaler_nb.mmf.models.base_model import BaseModel
from xmodaler_nb.mmf.modules.losses import LossConfig, Losses
from xmodaler_nb.modeling.meta_arch.build import build_model, meta_architecture


class Toy(BaseModel):
    def build(self): self.linear = nn.Linear(3, 2)
    def forward(self, sample_list): return dict(scores=self.linear(sample_list.x))


@registry.register_loss('test_parts')
class Parts(nn.Module):
    def __init__(self, weight=1.):
        super().__init__()
        self.weight = weight
    def forward(self, sample_list, output): return dict(a=output['scores'].mean()*self.weight, b=torch.ones(2))


def toy(losses=('logit_bce',), cls=Toy):
    m = cls(dict(model='toy', losses=list(losses)))
    m.build()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        m.init_losses()
    return m


def batch(**kw): return SampleList(dict(x=torch.ones(4, 3), targets=torch.ones(4, 2), **kw))


def test_registry():
    r = MMFRegistry()
    r.require_base('model', BaseModel)
    assert r.register_model('toy')(Toy) is Toy and r.get_model_class('toy') is Toy
    with pytest.raises(AssertionError): r.register_model('bad')(nn.Linear)
    with pytest.raises(KeyError, match="Did you mean 'toy'"): r.get_model_class('toi')
    with pytest.raises(AssertionError): r.register_model('toy')(type('Other', (BaseModel,), {'__module__': 'elsewhere'}))
    for kind in ('loss', 'metric', 'processor', 'trainer', 'builder'):
        assert getattr(r, f'register_{kind}')('x')(int) is int and getattr(r, f'get_{kind}_class')('x') is int
    r.register('config', CfgNode({'a': {'b': 3}}))
    assert (r.get('config.a.b'), r.get('config.z'), r.get('nothing.at.all', 5)) == (3, None, 5)
    r.unregister('config')
    assert r.get('config') is None


def test_sample_list_from_samples():
    s = SampleList([Sample(x=torch.ones(2), t='a', d=dict(y=torch.zeros(1), n=[1])), Sample(x=torch.zeros(2), t='b', d=dict(y=torch.ones(1), n=[2]))])
    assert s.x.shape == (2, 2) and s.t == ['a', 'b'] and isinstance(s.d, SampleList) and s.d.y.tolist() == [[0], [1]] and s.d.n == [[1], [2]]
    assert s.get_batch_size() == 2 and s.fields() == ['x', 't', 'd'] and s.get_field('t') == ['a', 'b']
    with pytest.raises(KeyError, match="sample 1 has no field 'y'"): SampleList([dict(x=1, y=2), dict(x=1)])


def test_sample_list_from_others():
    assert SampleList([('x', torch.ones(2)), ('n', 3)]).fields() == SampleList(dict(x=torch.ones(2), n=3)).fields() == ['x', 'n']
    assert SampleList().fields() == SampleList([]).fields() == []
    for bad in ([('x', torch.ones(2)), ('y', torch.ones(3))], dict(x=torch.ones(2), y=torch.ones(3)), [dict(x=torch.ones(1)), dict(x=torch.ones(2))]):
        with pytest.raises(AssertionError): SampleList(bad)
    s = SampleList(dict(x=torch.ones(2), zero=torch.tensor(1.)))
    s.add_field('z', torch.ones(2, 5))
    with pytest.raises(AssertionError): s.add_field('w', torch.ones(3))
    with pytest.raises(AssertionError): SampleList(dict(n=1)).get_batch_size()
    with pytest.raises(AttributeError, match='x, zero, z'): s.nothing
    assert s.get_fields(['z', 'x']).fields() == ['z', 'x'] and isinstance(s.get_fields(['z']), SampleList)


def test_sample_list_is_our_batch():
    b = Batch({kfg.IDS: [1, 2], kfg.ATT_FEATS: torch.ones(2, 3), kfg.G_TOKENS_IDS: torch.ones(10, 3)})
    feats = b.ATT_FEATS
    s = as_sample_list(b)
    assert s is b and isinstance(b, Batch) and s.ATT_FEATS is feats and s.get_batch_size() == 2 == len(b)
    for made in (s.to('cpu'), s.copy(), pickle.loads(pickle.dumps(s))): assert type(made) is SampleList and made.fields() == s.fields()     # sizes differ, and may
    assert s.to('meta').get_device().type == 'meta' and s.get_device().type == 'cpu' and s.merge({'a': 1}).a == 1
    assert as_sample_list(s) is s and as_sample_list(dict(x=1)).x == 1
    assert SampleList(dict(d=dict(y=torch.ones(2)))).to('meta').d.y.is_meta


def test_life_cycle():
    m = Toy(BaseModel.Config(model='toy', losses=['logit_bce']))
    m.build()
    assert m(batch())['losses'] == {}                                   # no losses yet
    m.init_losses()
    out = m(batch(dataset_type='val', dataset_name='scenes'))
    (name, value), = out['losses'].items()
    assert name == 'val/scenes/logit_bce' and value.shape == (1,)
    assert Toy.from_params(model='toy', losses=[]).config.model == 'toy'
    with pytest.raises(ValueError, match='losses'): Toy.from_params(model='toy')
    for use in (lambda: BaseModel({}).build(), lambda: BaseModel(dict(losses=[]))(batch())):
        with pytest.raises(RuntimeError, match='must define'): use()


def test_own_losses_and_outputs():
    class Own(Toy):
        def forward(self, s): return dict(losses=self.losses_given)
    m = toy(cls=Own)
    m.losses_given = dict(mine=torch.ones(1))
    with pytest.warns(UserWarning, match='itself'): assert list(m(batch())['losses']) == ['mine']
    with warnings.catch_warnings():
        warnings.simplefilter('error')                                   # once
        m(batch())
    m.losses_given = [1]
    with pytest.raises(AssertionError): m(batch())
    m.is_pretrained = True
    assert m(batch()) == dict(losses=[1])
    class Bare(Toy):
        def forward(self, s): return s.x
    with pytest.raises(AssertionError, match='dict'): toy(cls=Bare)(batch())


def test_losses():
    out = Losses([LossConfig('test_parts', dict(weight=2.)), 'cross_entropy'])(SampleList(dict(targets=torch.tensor([0, 1]))), dict(scores=torch.ones(2, 2)))
    assert {k: v.tolist() for k, v in out.items() if 'parts' in k} == {'train/unknown/test_parts/a': [2.], 'train/unknown/test_parts/b': [1., 1.]}
    assert out['train/unknown/cross_entropy'].item() == pytest.approx(.6931, abs=1e-3)
    for bad in ('nothing', dict(params={}), LossConfig(), 3):
        with pytest.raises(ValueError): Losses([bad])
    with pytest.warns(UserWarning, match='no losses'):
        m = Toy(dict(losses=[]))
        m.init_losses()
    with pytest.warns(UserWarning, match='targets'): assert toy()(SampleList(dict(x=torch.ones(1, 3))))['losses'] == {}
    scores, targets = torch.randn(3, 5), torch.rand(3, 5)
    expect = nn.functional.binary_cross_entropy_with_logits(scores, targets, reduction='none').sum(1).mean()
    torch.testing.assert_close(Losses(['logit_bce'])(SampleList(dict(targets=targets)), dict(scores=scores))['train/unknown/logit_bce'][0], expect)


def test_steps():
    m = toy(['logit_bce', 'test_parts'])
    out = m.training_step(dict(x=torch.ones(4, 3), targets=torch.ones(4, 2)), 0)
    assert out['loss'].item() == pytest.approx(sum(v.mean().item() for v in out['losses'].values()), rel=1e-5)
    assert out['loss'].requires_grad and not out['scores'].requires_grad and not any(v.requires_grad for v in out['losses'].values())
    assert m.val_meter.n == 0
    m.test_step(batch(), 0)
    assert m.val_meter.n == 0
    for _ in range(2): m.validation_step(batch(), 0)
    assert m.val_meter.n == 2 and set(m.val_meter.means()) == set(out['losses'])
    assert m.format_for_prediction([1], None) == [1]


def test_state():
    class Renames(Toy):
        @classmethod
        def format_state_key(cls, key): return key.replace('old.', '')
    m, state = toy(cls=Renames), {f'old.{k}': v for k, v in toy().state_dict().items()}
    m.load_state_dict(state)
    assert list(state)[0].startswith('old.') and torch.equal(m.linear.weight, state['old.linear.weight'])
    ckpt = {}
    m.on_save_checkpoint(ckpt)
    assert ckpt['config'] == dict(model='toy', losses=['logit_bce']) and type(ckpt['config']) is dict
    new = Renames(ckpt['config'])
    new.on_load_checkpoint(ckpt)
    new.load_state_dict(m.state_dict())
    registry.register('config', {'whole': CfgNode({'a': 1})})
    try: m.on_save_checkpoint(ckpt)
    finally: registry.unregister('config')
    assert ckpt['config'] == {'whole': {'a': 1}}
    assert BaseModel.format_state_key('k') == 'k'


def frame(name):
    cfg = get_cfg()
    arch = meta_architecture(f'mmf/{name}')
    arch.add_config(cfg, None)
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.DEVICE = f'mmf/{name}', 'cpu'
    cfg.MODEL.MMF.losses = ['logit_bce']
    return build_model(cfg)


def test_a_config_finds_the_model():
    with registry.tables['model'].scratch():
        registry.register_model('test_toy')(Toy)
        for name in ('test_toy', f'{__name__}.Toy'):
            net = frame(name)
            b = Batch({'x': torch.ones(4, 3), kfg.U_TARGET_IDS: torch.ones(4, 2)})
            out = net(b)
            assert list(out['losses']) and out[kfg.U_LOGITS] is out['scores'] and set(b) == {'x', kfg.U_TARGET_IDS} and kfg.OUTPUT not in out
            assert len(net.eval()(b, use_beam_search=False)[kfg.OUTPUT]) == 4
    with pytest.raises(KeyError): find('never_registered')
    with pytest.raises(ImportError): meta_architecture('nobody/Model')


def test_wrapped_captioner():
    from xmodaler_nb.modeling import load_cfg_file
    from xmodaler_nb.losses import build_losses
    small = dict(DECODER_DIM=8, VOCAB_SIZE=11, MAX_SEQ_LEN=4, DEVICE='cpu', UPDOWN=dict(ATT_EMBED_SIZE=4), TOKEN_EMBED=dict(DIM=8), VISUAL_EMBED=dict(IN_DIM=6, OUT_DIM=8))
    cfg = load_cfg_file('image_caption/updown/updown.yaml', MODEL=small, INFERENCE=dict(VOCAB=''))
    model = wrap_captioner(build_model(cfg), build_losses(cfg))
    ids = torch.tensor([[0, 1, 2, 3], [0, 4, 0, 0]])
    b = Batch({kfg.IDS: [1, 2], kfg.ATT_FEATS: torch.randn(2, 3, 6), kfg.ATT_MASKS: torch.ones(2, 3), kfg.G_TOKENS_IDS: ids, kfg.G_TARGET_IDS: torch.tensor([[1, 2, 3, 0], [4, 0, -1, -1]]),
               kfg.TOKENS_MASKS: torch.ones(2, 4)})
    out = model.training_step(b, 0)
    out['loss'].backward()
    assert all(k.startswith('train/captions/') for k in out['losses']) and any(p.grad is not None for p in model.parameters())
    assert isinstance(model, registry.get_model_class('captioner'))


def test_importing_needs_no_optional_package():
    code = "import sys\nfor m in ('omegaconf', 'pandas', 'onnx', 'optuna', 'ignite', 'slack_sdk', 'mmf', 'cupy'): sys.modules[m] = None\nimport xmodaler_nb.mmf, xmodaler_nb.ppe\nprint('done')"
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.stdout.strip() == 'done', done.stderr[-1500:]
