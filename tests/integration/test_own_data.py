"Own data: what `CaptionData.write` makes is read back by a reader written from X-modaler's layout alone; extraction in several processes; from pictures to a captioner."
import io
import json
import math
import os
import pickle
import subprocess
import sys
import contextlib
from collections import Counter
from pathlib import Path
import numpy as np
import pytest
import torch
from PIL import Image
from xmodaler_nb.captioner import Captioner
from xmodaler_nb.modeling import load_cfg_file
from xmodaler_nb.datasets import build_xmodaler_train_loader
from xmodaler_nb.datasets.check import DatasetError, check_datasets
from xmodaler_nb.commands.data import data_main
from xmodaler_nb.own.extract import BackboneExtractor, extract_features, read_clip
from xmodaler_nb.own.data import CaptionData, WrittenData
from xmodaler_nb.own.check import Sample
from xmodaler_nb.utils.store import FeatureStore

COLOURS = dict(red=(220, 30, 30), green=(30, 180, 60), blue=(40, 60, 220), black=(10, 10, 10), yellow=(230, 210, 40))


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    "Twenty pictures of squares, two captions each."
    d, rng, rows = tmp_path_factory.mktemp('own')/'photos', np.random.default_rng(0), []
    d.mkdir()
    for i in range(20):
        name = list(COLOURS)[i % 5]
        a = np.full((48, 64, 3), 255, np.uint8); y, x = rng.integers(2, 24), rng.integers(2, 40)
        a[y:y+20, x:x+20] = COLOURS[name]
        Image.fromarray(a).save(d/f'pic{i}.png')
        rows += [dict(image=f'pic{i}.png', caption=f'A {name} square.'), dict(image=f'pic{i}.png', caption=f'one {name} square on white paper')]
    (d/'captions.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    return d


# The reader: numpy, pickle and the description of the layout, nothing of this package.

def read_layout(d, prefix='mscoco', key='image_id'):
    "Everything a training would read; asserts names, types and sizes on the way."
    words = (d/'vocabulary.txt').read_text(encoding='utf-8').split('\n')
    assert words[-1] == '' and all(w and w == w.strip() for w in words[:-1])
    vocab = {i: w for i, w in enumerate(words[:-1], 1)}
    vocab[0] = '.'
    out = {}
    for split in ('train', 'val', 'test'):
        with open(d/f'{prefix}_caption_anno_{split}.pkl', 'rb') as f: entries = pickle.load(f, encoding='bytes')
        assert type(entries) is list and all(type(e) is dict and type(e[key]) is str and e[key].isdigit() for e in entries)
        out[split] = {e[key]: [] for e in entries}
        if split != 'train': continue
        for e in entries:
            tokens, targets = e['tokens_ids'], e['target_ids']
            assert tokens.dtype == np.uint32 and targets.dtype == np.int32 and tokens.shape == targets.shape and tokens.ndim == 2
            for t, y in zip(tokens.tolist(), targets.tolist()):
                n = y.index(0) if 0 in y else len(y) - y.count(-1)
                assert t[0] == 0 and t[1:n+1] == y[:n][:len(t)-1] and set(t[n+1:]) <= {0} and set(y[n+1:]) <= {-1}
                out[split][e[key]].append(' '.join(vocab[i] for i in y[:n]))
    return vocab, out


def read_references(path):
    "COCO captions."
    content = json.loads(Path(path).read_text(encoding='utf-8'))
    assert {'images', 'annotations', 'info', 'licenses', 'type'} <= set(content)
    ids = [i['id'] for i in content['images']]
    assert all(type(i) is int for i in ids) and all('file_name' in i for i in content['images']) and len({a['id'] for a in content['annotations']}) == len(content['annotations'])
    return {i: [a['caption'] for a in content['annotations'] if a['image_id'] == i] for i in ids}


@pytest.mark.parametrize('layout', ['xmodaler', 'store'])
def test_the_layout_by_an_independent_reader(photos, tmp_path, layout):
    written = CaptionData.from_folder(photos).write(tmp_path/'out', backbone='patches', layout=layout, min_count=1, val=0.2, test=0.2, size=56)
    vocab, splits = read_layout(tmp_path/'out')
    assert {k: len(v) for k, v in splits.items()} == dict(train=12, val=4, test=4)
    files = json.loads((tmp_path/'out'/'files.json').read_text())
    source = {i: ['a {} square', 'one {} square on white paper'] for i in files}
    for i, said in splits['train'].items():
        colour = list(COLOURS)[int(Path(files[i]).stem.removeprefix('pic')) % 5]
        assert said == [c.format(colour) for c in source[i]]
    refs = read_references(tmp_path/'out'/'captions_test.json')
    assert {str(i) for i in refs} == set(splits['test']) and all(len(v) == 2 for v in refs.values())
    # references and document frequencies of CIDEr-D
    with open(tmp_path/'out'/'mscoco_train_gts.pkl', 'rb') as f: gts = pickle.load(f)
    with open(tmp_path/'out'/'mscoco_train_cider.pkl', 'rb') as f: cider = pickle.load(f)
    number = {w: i for i, w in vocab.items()}
    assert gts == {i: [[*(number[w] for w in c.split()), 0] for c in said] for i, said in splits['train'].items()}
    count = Counter(g for refs in gts.values() for g in {tuple(r[i:i+n]) for r in refs for n in (1, 2, 3, 4) for i in range(len(r) - n + 1)})
    assert dict(cider['document_frequency']) == dict(count) and cider['document_frequency'][('never',)] == 0 and cider['ref_len'] == math.log(12)
    # features
    for i, f in files.items():
        if layout == 'xmodaler':
            with np.load(tmp_path/'out'/'features'/f'{i}.npz') as z: assert z.files == ['features']; a = z['features']
        else: a = FeatureStore(tmp_path/'out'/'features')[i]['features']
        assert a.shape == (49, 43) and a.dtype == np.float32
        assert np.allclose(a, BackboneExtractor('patches', size=56)(np.asarray(Image.open(f)))['features'], atol=1e-5)
    assert repr(written).startswith('WrittenData(out') and WrittenData(tmp_path/'out').report['coverage'] == 1


def test_clips_in_the_layout_of_msvd(tmp_path):
    clips = tmp_path/'clips'
    clips.mkdir()
    for i in range(10):
        frames = [Image.fromarray(np.full((24, 24, 3), 20*i + j, np.uint8)) for j in range(6)]
        frames[0].save(clips/f'{i}.gif', save_all=True, append_images=frames[1:])
        (clips/f'{i}.txt').write_text('something gets brighter\na grey square')
    written = CaptionData.from_folder(clips).write(tmp_path/'out', backbone='patches', frames=4, min_count=1)
    assert written.report['prefix'] == 'msvd'
    read_layout(tmp_path/'out', 'msvd', 'video_id')
    assert np.load(tmp_path/'out'/'features'/'1.npy').shape == (4, 43)
    cfg = load_cfg_file('video_caption/msvd/mplstm/mplstm.yaml', [*written.cfg_overrides, 'DATALOADER.TRAIN_BATCH_SIZE', 2, 'DATALOADER.NUM_WORKERS', 0, 'MODEL.DEVICE', 'cpu'])
    assert len(check_datasets(cfg)) == 3 and len(next(iter(build_xmodaler_train_loader(cfg)))) == 2


def test_every_way_in_gives_the_same_data(photos, tmp_path):
    "Folder, records, data frame, COCO's and Karpathy's form, X-modaler's layout and back."
    pd = pytest.importorskip('pandas')
    want = {s.file: s.captions for s in CaptionData.from_folder(photos).samples}
    rows = [json.loads(l) for l in (photos/'captions.jsonl').read_text().splitlines()]
    coco = dict(images=[dict(id=i, file_name=Path(f).name) for i, f in enumerate(want)], annotations=[dict(id=0, image_id=i, caption=c) for i, f in enumerate(want) for c in want[f]])
    karpathy = dict(images=[dict(filename=Path(f).name, filepath='', imgid=i, split='restval', sentences=[dict(raw=c, tokens=c.split()) for c in want[f]]) for i, f in enumerate(want)])
    (tmp_path/'coco.json').write_text(json.dumps(coco)); (tmp_path/'karpathy.json').write_text(json.dumps(karpathy))
    (tmp_path/'dict.json').write_text(json.dumps({Path(f).name: c for f, c in want.items()}))
    ways = [CaptionData.from_json(photos/'captions.jsonl'), CaptionData.from_df(pd.DataFrame(rows), photos), CaptionData.from_coco(tmp_path/'coco.json', photos),
            CaptionData.from_karpathy(tmp_path/'karpathy.json', photos), CaptionData.from_json(tmp_path/'karpathy.json', photos), CaptionData.from_json(tmp_path/'coco.json', photos), CaptionData.from_json(tmp_path/'dict.json', photos)]
    for data in ways:
        assert {s.file: s.captions for s in data.samples} == want
        assert not data.check().errors
    assert {s.split for s in ways[3].samples} == {'train'}
    first = ways[0].write(tmp_path/'a', backbone='patches', size=28, min_count=1)
    again = CaptionData.from_xmodaler(tmp_path/'a').write(tmp_path/'b', min_count=1, layout='store')
    assert again.report['counts'] == first.report['counts'] and read_layout(tmp_path/'a') == read_layout(tmp_path/'b')


def test_the_table_names_everything(photos, tmp_path):
    d = tmp_path/'bad'
    d.mkdir()
    for i in range(6): (d/f'{i}.png').write_bytes((photos/f'pic{i}.png').read_bytes())
    (d/'1.png').write_bytes((d/'0.png').read_bytes()); (d/'2.png').write_bytes(b'no picture'); (d/'extra.png').write_bytes((photos/'pic9.png').read_bytes())
    lines = ['image;caption', '0.png;a square', '1.png;a square', '2.png;a square', '3.png; ', '4.png;cafÃ© square', '9.png;gone', '5.png;café']
    (d/'captions.csv').write_bytes('\n'.join(lines).replace('Ã©', '\u00c3\u00a9').encode('cp1252'))
    table = CaptionData.from_folder(d).check()
    assert table.counts() == {'missing file': 1, 'no caption': 1, 'unreadable file': 1, 'duplicate file': 1, 'empty caption': 1, 'file without caption': 1, 'odd encoding': 2}
    where = {f.kind: f"{f.id} {f.where}" for f in table}
    assert '9.png' in where['missing file'] and '2.png' in where['unreadable file'] and '1.png' in where['duplicate file'] and 'extra.png' in where['file without caption'] and '3.png' in where['no caption']
    with pytest.raises(DatasetError, match='unreadable file: 2.png'): CaptionData.from_folder(d).write(tmp_path/'out')
    assert not (tmp_path/'out').exists()
    assert sum(CaptionData.from_folder(d).write(tmp_path/'out', drop=True).report['counts'].values()) == 4
    leak = CaptionData([Sample('0', str(d/'0.png'), ['x'], 'train'), Sample('1', str(d/'1.png'), ['x'], 'test')])
    assert leak.check().counts()['duplicate across splits'] == 1


def test_torchrun_fills_one_store(photos, tmp_path):
    "Two processes, told apart by what torchrun sets."
    code = f"from xmodaler_nb.commands.data import data_main; raise SystemExit(data_main(['extract', {str(photos)!r}, {str(tmp_path/'s')!r}, '--size', '56', '--batch-size', '3']))"
    (tmp_path/'run.py').write_text(code)
    done = subprocess.run([sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2', str(tmp_path/'run.py')], capture_output=True, text=True, env={**os.environ, 'OMP_NUM_THREADS': '1'})
    assert done.returncode == 0, done.stderr[-1500:]
    assert done.stdout.count('10 added, 0 were there, 0 failed') == 2
    store = FeatureStore(tmp_path/'s')
    assert len(store) == 20 and {s.path.name.split('-')[0] for s in store.shards} == {'r0of2', 'r1of2'} and store.verify() == []


def test_a_killed_extraction_goes_on(photos, tmp_path):
    "The network dies at the eleventh picture; the second call does only the rest."
    count = dict(seen=0, limit=10)               # outside: a network with other attributes is another network
    class Dies(torch.nn.Module):
        def forward(self, x):
            count['seen'] += len(x)
            if count['seen'] > count['limit']: raise KeyboardInterrupt
            return x.mean((2, 3))
    net = Dies()
    with pytest.raises(KeyboardInterrupt): extract_features(net, photos, tmp_path/'s', kind='global', size=16, batch_size=2, shard='0/1')
    assert len(FeatureStore(tmp_path/'s')) == 10
    count['limit'] = 99
    done = extract_features(net, photos, tmp_path/'s', kind='global', size=16, batch_size=2)
    assert (done.added, done.skipped) == (10, 10) and len(FeatureStore(tmp_path/'s')) == 20


def test_a_backbone_by_name(photos, tmp_path):
    """Without weights nothing is downloaded; the shapes are those of the published features. Weights come from a file as well, also for a model that looks at pictures, and a failed download says so.

    In a process of its own, which declares torchvision's operators where its compiled part does not fit this torch; the networks do not use them."""
    code = f'''
import importlib.util, sys
if importlib.util.find_spec('torchvision') is None: sys.exit(5)
import torch
lib = torch.library.Library('torchvision', 'FRAGMENT')
for op in ('nms', 'qnms'):
    if not hasattr(torch.ops.torchvision, op): lib.define(f'{{op}}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
import numpy as np
from PIL import Image
from xmodaler_nb.own.extract import BackboneExtractor, load_backbone
ex = BackboneExtractor('torchvision/resnet18', 'grid', size=64, weights=None)
assert ex(np.asarray(Image.open({str(photos/'pic0.png')!r})))['features'].shape == (4, 512)
assert BackboneExtractor.from_dict(ex.to_dict()).to_dict() == ex.to_dict()
assert load_backbone('torchvision/mobilenet_v3_small', None)[0](torch.zeros(1, 3, 64, 64)).dim() == 4
for name, says in (('nosuchnet', 'nosuchnet'), ('vit_b_16', 'no convolutional map')):
    try: load_backbone(f'torchvision/{{name}}', None)
    except ValueError as e: assert says in str(e), e
    else: raise AssertionError(name)
from torchvision import models
from xmodaler_nb.modeling import load_cfg_file
from xmodaler_nb.modeling.backbone import build_backbone
net = models.resnet18(num_classes=7)                 # own classes: the head does not fit, and does not matter
torch.save(net.state_dict(), {str(tmp_path/'mine.pth')!r})
pic = np.asarray(Image.open({str(photos/'pic0.png')!r}))
mine = BackboneExtractor('torchvision/resnet18', 'grid', size=64, weights={str(tmp_path/'mine.pth')!r})
x = mine.preprocess(pic)[None]
net.eval()
with torch.no_grad(): want = net.layer4(net.layer3(net.layer2(net.layer1(net.maxpool(net.relu(net.bn1(net.conv1(x))))))))
assert np.allclose(mine(pic)['features'], want[0].flatten(1).T, atol=1e-5)
assert np.array_equal(BackboneExtractor.from_dict(mine.to_dict())(pic)['features'], mine(pic)['features'])
cfg = load_cfg_file('image_caption/transformer/clip_transformer_test_raw.yaml', ['MODEL.BACKBONE.NAME', 'torchvision/resnet18', 'MODEL.BACKBONE.WEIGHTS', {str(tmp_path/'mine.pth')!r}])
with torch.no_grad(): assert torch.allclose(build_backbone(cfg).eval().net(x), want, atol=1e-5)
torch.hub.set_dir({str(tmp_path/'hub')!r})
import urllib.error, urllib.request
def no_internet(*args, **kwargs): raise urllib.error.URLError('no route to host')
urllib.request.urlopen = torch.hub.urlopen = no_internet
try: load_backbone('torchvision/resnet18')
except OSError as e: assert 'could not be downloaded' in str(e) and 'no route to host' in str(e) and 'weights=' in str(e), e
else: raise AssertionError('nothing was downloaded, and nobody said so')
'''
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env={**os.environ, 'OMP_NUM_THREADS': '1'})
    if done.returncode == 5: pytest.skip('torchvision is not installed')
    assert done.returncode == 0, done.stderr[-1500:]


def test_without_the_extra_vision(photos, tmp_path, monkeypatch, capsys):
    "What to install is said, in Python and in a shell."
    monkeypatch.setitem(sys.modules, 'torchvision', None)
    with pytest.raises(ImportError, match=r"this needs torchvision: pip install 'xmodaler_nb\[vision\]'"): BackboneExtractor('torchvision/resnet50')
    assert data_main(['extract', str(photos), str(tmp_path/'s'), '--backbone', 'torchvision/resnet50', '--weights', 'mine.pth']) == 1
    assert "pip install 'xmodaler_nb[vision]'" in capsys.readouterr().err


def test_a_video_file(tmp_path):
    av = pytest.importorskip('av')
    path = tmp_path/'x.mp4'
    with av.open(str(path), 'w') as f:
        stream = f.add_stream('mpeg4', rate=10); stream.width = stream.height = 32; stream.pix_fmt = 'yuv420p'
        for i in range(20):
            for p in stream.encode(av.VideoFrame.from_ndarray(np.full((32, 32, 3), 10*i, np.uint8), format='rgb24')): f.mux(p)
        for p in stream.encode(): f.mux(p)
    grey = [int(a.mean()) for a in read_clip(path, 4)]
    assert len(grey) == 4 and all(abs(g - w) < 8 for g, w in zip(grey, (20, 70, 120, 170)))
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match='x.mp4'): read_clip(path, 4)


def test_from_twenty_pictures_to_a_caption(photos, tmp_path):
    "write → train a few steps → one line about a new picture, also from a saved folder and from a console command."
    from xmodaler_nb.commands.caption import caption_main
    from xmodaler_nb.commands.experiment import run_training
    written = CaptionData.from_folder(photos).write(tmp_path/'data', backbone='patches', size=56, min_count=1, val=0.1, test=0.1, layout='store')
    cfg = load_cfg_file('demo.yaml', [*written.cfg_overrides, 'OUTPUT_DIR', str(tmp_path/'run'), 'SOLVER.EPOCH', 24, 'DATALOADER.TRAIN_BATCH_SIZE', 8, 'DATALOADER.SEQ_PER_SAMPLE', 2, 'DATASETS.VAL', '', 'SOLVER.CHECKPOINT_PERIOD', 24, 'SOLVER.EVAL_PERIOD', 24,
                                      'MODEL.DECODER_DIM', 48, 'MODEL.TOKEN_EMBED.DIM', 32, 'MODEL.VISUAL_EMBED.OUT_DIM', 48, 'MODEL.UPDOWN.ATT_EMBED_SIZE', 32, 'SOLVER.BASE_LR', 0.02])
    run_training(cfg)
    captioner = Captioner.from_pretrained(tmp_path/'run')
    assert captioner.extractor.to_dict()['backbone'] == 'patches'
    new = np.full((48, 64, 3), 255, np.uint8); new[10:30, 20:40] = COLOURS['blue']
    said = captioner.caption(new)
    assert 'square' in said
    assert captioner.metrics['test']['CIDEr'] >= 0 and set(captioner.metrics) == {'test'}                # what the run measured
    folder = captioner.save_pretrained(tmp_path/'saved')
    assert sorted(p.name for p in folder.iterdir()) == ['README.md', 'config.yaml', 'extractor.json', 'meta.json', 'metrics.json', 'model.safetensors', 'vocabulary.txt']
    assert f"| CIDEr | {captioner.metrics['test']['CIDEr']:.4f} |" in (folder/'README.md').read_text()
    assert Captioner.from_pretrained(folder).caption([new, new]) == [said, said]
    Image.fromarray(new).save(tmp_path/'new.png')
    out = io.StringIO()
    with contextlib.redirect_stdout(out): assert caption_main([str(tmp_path/'new.png'), str(tmp_path/'new.png'), '--model', str(folder), '--beam', '5', '--html', str(tmp_path/'out.html')]) == 0
    assert out.getvalue().count(captioner.caption(new, beam_size=5)) == 2
    assert (tmp_path/'out.html').read_text().count('<image') >= 1        # inside the drawing of the attention
    with contextlib.redirect_stderr(out): assert caption_main([str(tmp_path/'new.png'), '--model', str(tmp_path/'none')]) == 1
    assert 'name the folder of a captioner or of a run with --model' in out.getvalue()


def test_weights_of_xmodaler_with_their_yaml(tmp_path, golden):
    "A .pth as X-modaler writes it, the published YAML with its overrides, and a vocabulary."
    from safetensors.torch import load_file
    meta, tensors = json.loads((golden/'models'/'updown.json').read_text()), load_file(golden/'models'/'updown.safetensors')
    torch.save({'model': {'module.' + k[len('state_dict.'):]: v for k, v in tensors.items() if k.startswith('state_dict.')}, 'iteration': 9}, tmp_path/'updown.pth')
    (tmp_path/'vocabulary.txt').write_text('\n'.join(f'w{i}' for i in range(1, meta['overrides']['MODEL.VOCAB_SIZE'])) + '\n')
    opts = [x for kv in meta['overrides'].items() for x in kv]
    cfg = load_cfg_file(meta['config'].removeprefix('configs/'), [*opts, 'MODEL.DEVICE', 'cpu'])
    (tmp_path/'updown.yaml').write_text(cfg.dump())
    captioner = Captioner.from_pretrained(tmp_path/'updown.pth', config=tmp_path/'updown.yaml', vocab=tmp_path/'vocabulary.txt')
    feats = tensors['sample_gen.0.ATT_FEATS'].numpy()
    one, many = captioner.caption(feats, strategy='greedy'), captioner.caption([feats, feats[:3]], strategy='greedy')
    assert many[0] == one
    best = captioner.describe(feats, beam_size=3, nbest=3, trace=True)
    assert best[0].score >= best[1].score >= best[2].score and best[0].attention.shape[0] == len(best[0].words)
    again = Captioner.from_pretrained(captioner.save_pretrained(tmp_path/'saved'))
    assert again.caption(feats, strategy='greedy') == one


def test_the_command_says_what_is_wrong(tmp_path, capsys):
    assert data_main(['check', str(tmp_path/'nowhere')]) == 1
    assert 'no such file or folder' in capsys.readouterr().err
    with pytest.raises(SystemExit): data_main(['--help'])
    assert 'check | write | extract | import | verify' in capsys.readouterr().out


def test_an_edited_config_survives(photos, tmp_path, caplog):
    "Written again: the same config stays the only one, an edited one is kept under another name, and the log names it."
    write = lambda: CaptionData.from_folder(photos).write(tmp_path/'out', backbone='patches', size=28, min_count=1)
    write()
    first = (tmp_path/'out'/'captioner.yaml').read_text()
    write()
    assert sorted(p.name for p in (tmp_path/'out').glob('captioner*')) == ['captioner.yaml']
    (tmp_path/'out'/'captioner.yaml').write_text(first + '# mine\n')
    write()
    assert (tmp_path/'out'/'captioner.yaml').read_text() == first
    assert (tmp_path/'out'/'captioner.1.yaml').read_text().endswith('# mine\n')
    assert 'captioner.1.yaml' in caplog.text
