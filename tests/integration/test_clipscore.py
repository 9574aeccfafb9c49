"CLIPScore through a real `transformers` CLIP, small and untrained: the adapter's numbers are the formula's."
import importlib.util
import sys
import numpy as np
import pytest
import torch
from xmodaler_nb.evaluation import evaluate
from xmodaler_nb.evaluation.clipscore import ClipScore

WORDS = {w: i+3 for i, w in enumerate('a photo depicts dog cat runs sits on the beach sofa'.split())}     # 1 begins a text, 2 ends it
HYPS = {'x': 'a dog runs', ('y', 2): 'the cat sits on the sofa', 3: 'beach'}
REFS = {'x': ['a dog runs on the beach', 'the dog'], ('y', 2): ['a cat on a sofa'], 3: ['the beach', 'a dog', 'a sofa']}


def processor(text=None, images=None, **_):
    "What a CLIP processor gives, for a vocabulary of eleven words."
    if text is None: return dict(pixel_values=torch.stack([torch.as_tensor(p, dtype=torch.float32).permute(2, 0, 1)/255 for p in images]))
    rows = [[1, *(WORDS[w] for w in t.lower().split()), 2] for t in text]
    n = max(map(len, rows))
    return dict(input_ids=torch.tensor([r+[0]*(n-len(r)) for r in rows]), attention_mask=torch.tensor([[1]*len(r)+[0]*(n-len(r)) for r in rows]))


@pytest.fixture(scope='module')
def clip():
    if not importlib.util.find_spec('transformers'): pytest.skip('needs transformers: pip install -e .[bench]')
    side = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
    with pytest.MonkeyPatch.context() as m, torch.random.fork_rng():
        m.setitem(sys.modules, 'torchvision', None)        # not needed here, and one that does not fit torch would stop the import
        from transformers import CLIPConfig, CLIPModel
        torch.manual_seed(11)
        return CLIPModel(CLIPConfig(text_config=dict(side, vocab_size=20, max_position_embeddings=16, bos_token_id=1, eos_token_id=2, pad_token_id=0),
                                    vision_config=dict(side, image_size=16, patch_size=8), projection_dim=8)).eval()


@pytest.fixture(scope='module')
def pictures():
    rng = np.random.default_rng(0)
    return {i: rng.integers(0, 256, (16, 16, 3), dtype=np.uint8) for i in HYPS}


@torch.no_grad()
def cosine(clip, picture, text):
    "By the model's own forward pass, one picture and one text at a time."
    out = clip(**processor(text=['A photo depicts '+text]), **processor(images=[picture]))
    return out.image_embeds[0].double(), out.text_embeds[0].double()


def test_the_formula(clip, pictures):
    result = evaluate(HYPS, REFS, metrics=('CLIPScore',), options={'CLIPScore': ClipScore(clip, pictures, processor, processor)})
    signs = set()
    for i, hyp in HYPS.items():
        v, c = cosine(clip, pictures[i], hyp)
        signs.add(bool(v @ c > 0))
        want = 2.5*max(float(v @ c), 0)
        best = max([0., *(float(c @ cosine(clip, pictures[i], r)[1]) for r in REFS[i])])
        assert result.per_image[i]['CLIPScore'] == pytest.approx(want, abs=1e-6)
        assert result.per_image[i]['RefCLIPScore'] == pytest.approx(2*want*best/(want+best) if want+best else 0, abs=1e-6)
    assert signs == {True, False}, 'the example should hold a similarity above zero and one below'
    for k, v in result.corpus.items(): assert v == pytest.approx(np.mean([row[k] for row in result.per_image.values()]))


def test_batches_and_features_change_nothing(clip, pictures):
    "Pictures one by one, or as features made before: the same scores; the model keeps its mode and needs no gradients."
    whole = ClipScore(clip, pictures, processor, processor)(list(HYPS), list(HYPS.values()), list(REFS.values()))
    with torch.no_grad(): features = {i: clip.visual_projection(clip.vision_model(**processor(images=[p])).pooler_output)[0] for i, p in pictures.items()}
    again = ClipScore(clip, features, processor)(list(HYPS), list(HYPS.values()), list(REFS.values()))
    for k in whole.image: np.testing.assert_allclose(again.image[k], whole.image[k], atol=1e-6)
    for k, i in enumerate(HYPS):
        one = ClipScore(clip, pictures, processor, processor)([i], [HYPS[i]], [REFS[i]])
        assert one.corpus['CLIPScore'] == pytest.approx(whole.image['CLIPScore'][k], abs=1e-6)
    assert not clip.training and all(p.grad is None for p in clip.parameters())
