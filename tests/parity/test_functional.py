"`xmodaler_nb.functional` against the numbers X-modaler computed."
import json, random
import numpy as np, pytest, torch
from safetensors.numpy import load_file
from xmodaler_nb import functional as F
from xmodaler_nb.utils.testing import test_near as near


@pytest.fixture(scope='module')
def ref(golden):
    "The json and the arrays of the golden file."
    return json.loads((golden/'misc'/'functional.json').read_text()), load_file(golden/'misc'/'functional.safetensors')


class WordTokenizer:
    "Splits at spaces; enough of a BERT tokenizer for the masking functions."
    mask_token, cls_token, sep_token = '[MASK]', '[CLS]', '[SEP]'
    def __init__(self, vocab): self.vocab = {w: i for i, w in enumerate(vocab)}; self.ids_to_tokens = dict(enumerate(vocab))
    def __len__(self): return len(self.vocab)
    def encode(self, text): return [self.vocab[w] for w in text.split()]
    def convert_tokens_to_ids(self, t): return self.vocab[t]
    def convert_tokens_to_string(self, tokens): return ' '.join(tokens).replace(' ##', '').strip()


def test_pad_tensor(ref):
    js, t = ref
    out, mask = F.pad_tensor([torch.from_numpy(t[f'pad_tensor.in.{i}']) for i in range(3)], 0, True)
    near(out, t['pad_tensor.out']); near(mask, t['pad_tensor.mask'])
    assert mask.dtype == torch.float32
    nested = [[np.array(r) for r in group] for group in js['pad_tensor_nested.in']]
    want = torch.from_numpy(t['pad_tensor_nested.out'])
    # the fill value is not in the file's name; it stands where the mask says padding
    fill = want[torch.from_numpy(t['pad_tensor_nested.mask']) == 0]
    out, mask = F.pad_tensor(nested, int(fill[0]), True)
    near(out, want); near(mask, t['pad_tensor_nested.mask'])
    near(F.pad_tensor(nested, int(fill[0]), False), want)


@pytest.mark.parametrize('size,dim', [(1, 1), (2, 2), (3, 0), (3, 1)])
def test_expand_tensor(ref, size, dim):
    _, t = ref
    near(F.expand_tensor(torch.from_numpy(t['expand.in']), size, dim), t[f'expand.size{size}.dim{dim}'])


def test_clip_inputs(ref):
    _, t = ref
    got = F.clip_v_inputs(*(torch.from_numpy(t[f'clip_v.in.{k}']) for k in ('v_feats', 'spatials', 'mask')))
    for k, v in zip(('v_feats', 'spatials', 'mask'), got): near(v, t[f'clip_v.out.{k}'])
    got = F.clip_t_inputs(*(torch.from_numpy(t[f'clip_t.in.{k}']) for k in ('ids', 'segment', 'mask')))
    for k, v in zip(('ids', 'segment', 'mask'), got): near(v, t[f'clip_t.out.{k}'])


def test_boxes(ref):
    js, t = ref
    near(F.iou(t['iou.a'], t['iou.b']), t['iou.out'])
    near(F.iou(t['read_np_bbox.boxes'], t['read_np_bbox.boxes']), t['random_region.overlaps'])
    loc = F.boxes_to_locfeats(t[js['locfeats']['boxes']], js['locfeats']['image_w'], js['locfeats']['image_h'])
    near(loc, t['locfeats.out'])
    assert loc.dtype == np.float32 and F.bboxes_to_locfeats is F.boxes_to_locfeats


@pytest.mark.parametrize('n,use_global', [(10, True), (10, False), (4, True), (4, False)])
def test_read_np_bbox(ref, tmp_path, n, use_global):
    _, t = ref
    np.savez(tmp_path/'f.npz', features=t['read_np_bbox.features'], boxes=t['read_np_bbox.boxes'], image_h=np.array([48]), image_w=np.array([64]))
    feats, loc = F.read_np_bbox(tmp_path/'f.npz', n, use_global_v=use_global)
    name = f'read_np_bbox.max{n}.global{use_global}'
    near(feats, t[f'{name}.features']); near(loc, t[f'{name}.loc'])
    assert loc.dtype == t[f'{name}.loc'].dtype


def test_files(ref, tmp_path):
    js, _ = ref
    path = tmp_path/'v.txt'
    path.write_text(js['load_vocab']['file'])
    assert F.load_vocab(path) == js['load_vocab']['out'] and F.load_vocab('') is js['load_vocab']['empty_path']
    assert F.read_lines(path) == js['read_lines']['out'] and F.read_lines_set(path) == set(js['read_lines']['out'])
    np.save(tmp_path/'a.npy', np.zeros(2)); np.savez(tmp_path/'b.npz', foo=np.zeros(2))
    assert list(F.read_np(tmp_path/'a.npy')) == js['read_np']['npy']
    assert list(F.read_np(tmp_path/'b.npz')) == js['read_np']['npz with one array foo']


def test_decode_sequence(ref):
    js, _ = ref
    c = js['decode_sequence']
    assert F.decode_sequence(c['vocab'], torch.tensor(c['seq'])) == c['out']
    c = js['decode_sequence_bert']
    assert F.decode_sequence_bert(WordTokenizer(c['vocab']), torch.tensor(c['seq']), c['sep_token_id']) == c['out']


def test_dict_as_tensor(ref):
    js, _ = ref
    d = F.dict_as_tensor(dict(a=np.zeros(2), s='x', l=[np.array([1]), np.zeros(1, dtype=np.float32)], i=3))
    kind = lambda v: [kind(x) for x in v] if isinstance(v, list) else 'str' if isinstance(v, str) else str(v.dtype)
    assert {k: kind(v) for k, v in d.items()} == js['dict_as_tensor']


def test_flat_list(ref):
    c = ref[0]['flat_list_of_lists']
    assert F.flat_list_of_lists(c['in']) == c['out']


def test_caption_to_mask_tokens(ref):
    c = ref[0]['caption_to_mask_tokens']
    tok = WordTokenizer(c['vocab'])
    assert len(c['cases']) > 30
    for case in c['cases']:
        options = {k: v for k, v in case.items() if k in ('need_g_tokens', 'need_no_mask_tokens', 'must_mask')}
        random.seed(case['python_seed']); np.random.seed(case['numpy_seed'])
        got = F.caption_to_mask_tokens(c['caption'], c['max_seq_length'], tok, **options)
        assert [g.tolist() for g in got] == case['out'], case


def test_random_region(ref):
    js, t = ref
    for case in js['random_region']['cases']:
        feats = t['read_np_bbox.features'].copy()
        random.seed(case['python_seed'])
        out, labels, n = F.random_region(feats, t['random_region.overlaps'])
        zero = [i for i, r in enumerate(feats) if not r.any()]
        assert (labels, n, zero, out is feats) == (case['labels'], case['masked_num'], case['zero_rows'], case['in_place'])
        keep = [i for i in range(len(feats)) if i not in zero]
        near(feats[keep], t['read_np_bbox.features'][keep])
