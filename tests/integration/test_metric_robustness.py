"Whatever a caption is, no metric crashes and no score is NaN; ids and inputs of every kind."
import json, math, random, tracemalloc
import numpy as np
import pytest
from xmodaler_nb.evaluation import compare, diversity, evaluate, ngrams
from xmodaler_nb.evaluation.captions import ALL_METRICS
from xmodaler_nb.evaluation.metrics import available, problem

ODD = ['', ' ', '.', '!!! ???', '...', '-- -', "'", '``', '|||', 'a ||| b', '😀', '😀😀 dog', '👨‍👩‍👧 family', 'ﬁne', 'İstanbul ς Σ', 'người đàn ông', '人 行道', 'مرحبا', '\u0000', '\u200b', '\ufeff', '\u2028', 'a\nb',
       'a\rb', '\ud800', '\udfff\ud800 x', '\t\t', 'x'*3000, 'e\u0301'*40, '1,000,000.00', '<b>', '&amp; &lt;', '_', 'a_b', "n't", 'S.O.S. U.S.', '50%', '#1 @x http://a.b/c?d=e', '\x85', '\xa0', 'A'*40+' '+'b'*40, '-LRB-', 'NaN', 'None']
NAMES = [m for m in ALL_METRICS if not problem(m)]

def finite(result):
    for name, v in result.corpus.items(): assert math.isfinite(v) and v >= 0, name
    for i, row in result.per_image.items():
        for name, v in row.items(): assert math.isfinite(v) and v >= 0, (i, name, v)

def strange(rng):
    "A random string over many scripts."
    ranges = [(32, 127), (0, 32), (0xa0, 0x250), (0x300, 0x370), (0x400, 0x500), (0x2000, 0x2070), (0x4e00, 0x4f00), (0x1f300, 0x1f650), (0xd800, 0xe000), (0x1e00, 0x1f00)]
    out = []
    for _ in range(rng.randint(0, 30)):
        a, b = rng.choice(ranges)
        out.append(chr(rng.randrange(a, b)) if rng.random() < .7 else rng.choice([' ', "'", '.', '-', ',', 'a', 'dog']))
    return ''.join(out)

def test_odd_captions_on_both_sides():
    preds, refs = {}, {}
    for h in ODD+[None]:
        for r in ([], [None], [''], ['a dog'], [h], [h, 'a dog on the beach']): preds[len(preds)], refs[len(refs)] = h, r
    result = evaluate(preds, refs)
    finite(result)
    assert len(result.ids) == len(preds) and 'no reference text' in ' '.join(result.notes)

@pytest.mark.parametrize('seed', range(3))
def test_fuzz(seed):
    rng = random.Random(seed)
    n = 150
    finite(evaluate({i: strange(rng) for i in range(n)}, {i: [strange(rng) for _ in range(rng.randint(0, 4))] for i in range(n)}))

def test_fuzz_without_tokenising():
    rng = random.Random(9)
    finite(evaluate({i: strange(rng) for i in range(100)}, {i: [strange(rng) for _ in range(3)] for i in range(100)}, tokenize=False))

def test_ten_thousand_words():
    rng = random.Random(1)
    long = ' '.join(rng.choices('a man rides the horse on a beach with dogs and 3 birds'.split(), k=10_000))
    result = evaluate({1: long, 2: 'a man', 3: 'a '*2000}, {1: ['a man rides a horse', 'a dog'], 2: [long], 3: ['a dog on a beach']})
    finite(result)
    if 'METEOR' in NAMES: assert any('more than 1000 words' in n for n in result.notes)

def test_another_script_is_remarked():
    if 'METEOR' not in NAMES: pytest.skip(problem('METEOR'))
    texts = ['người đàn ông cưỡi ngựa', 'một con chó trên bãi biển']
    result = evaluate(dict(enumerate(texts)), {i: [t] for i, t in enumerate(texts)}, metrics='METEOR')
    assert result.corpus['METEOR'] == 1. and any('English only' in n for n in result.notes)

@pytest.mark.parametrize('name', NAMES)
def test_each_metric_alone(name):
    one, all_of_them = (evaluate({1: 'a dog runs', 2: ''}, {1: ['a dog', 'dogs run'], 2: ['a cat']}, metrics=m) for m in (name, NAMES))
    assert one.per_image == {i: {k: row[k] for k in one.corpus} for i, row in all_of_them.per_image.items()}

def test_equal_captions_are_perfect():
    texts = {'x': 'a dog runs on the beach', ('y', 2): 'two men play chess in a park', 3.5: 'a cat sleeps on a sofa'}
    result = evaluate(texts, {i: [t] for i, t in texts.items()})
    assert list(result.per_image) == list(texts)
    for row in result.per_image.values():
        for k, v in row.items(): assert v == pytest.approx(10 if k.startswith('CIDEr') else 1, abs=1e-6), k

def test_ids_and_frames(tmp_path):
    pd = pytest.importorskip('pandas')
    preds = pd.DataFrame({'image_id': [2, 1], 'caption': ['a cat', None]})
    refs = pd.DataFrame({'image_id': [1, 1, 2, 2], 'caption': ['a dog', 'dogs', 'a cat', float('nan')]})
    coco = {'images': [{'id': 1}, {'id': 2}], 'annotations': [{'id': k, **r} for k, r in enumerate(refs.dropna().to_dict('records'))]}
    (tmp_path/'p.json').write_text(json.dumps([{'image_id': 1, 'caption': ''}, {'image_id': 2, 'caption': 'a cat'}]))
    (tmp_path/'r.json').write_text(json.dumps(coco))
    a, b = evaluate(preds, refs), evaluate(tmp_path/'p.json', tmp_path/'r.json')
    assert {k: v for k, v in a.corpus.items()} == pytest.approx(b.corpus)
    json_objects = pytest.importorskip('pycocotools.coco').COCO(tmp_path/'r.json')
    assert evaluate(preds, json_objects).corpus == a.corpus
    with pytest.raises(TypeError, match='a caption must be a string or None, or several in a list; got int: 3'): evaluate({1: 3, 2: 'a'}, refs)
    with pytest.raises(ValueError, match='no prediction for 1 id: 1; no references for 1 id: 3'): evaluate({2: 'a', 3: 'b'}, refs)

def test_table_of_metrics_gives_reasons():
    rows = {r['metric']: r for r in available()}
    assert {'BLEU', 'METEOR', 'ROUGE_L', 'CIDEr', 'CIDEr_D', 'SPICE', 'CLIPScore'} <= set(rows)
    assert all(r['available'] or r['reason'] for r in rows.values()) and not rows['CLIPScore']['available']
    result = evaluate({1: 'a'}, {1: ['a']}, metrics=('BLEU', 'CLIPScore'))
    assert result.skipped.keys() == {'CLIPScore'} and 'Bleu_4' in result.corpus

def test_without_meteors_tables(tmp_path, monkeypatch):
    "Named and skipped, never approximated."
    monkeypatch.setenv('XMODALER_METEOR', str(tmp_path))
    result = evaluate({1: 'a dog'}, {1: ['a dog']})
    assert 'METEOR' not in result.corpus and 'meteor-1.5.jar' in result.skipped['METEOR'] and 'CIDEr' in result.corpus

def test_resampling_is_reproducible():
    rng = random.Random(0)
    refs = {i: [' '.join(rng.choices('a dog cat runs sits on the beach sofa'.split(), k=6)) for _ in range(3)] for i in range(30)}
    good, poor = evaluate({i: r[0] for i, r in refs.items()}, refs), evaluate({i: refs[(i+1) % 30][0] for i in refs}, refs)
    assert good.confidence(n=50) == good.confidence(n=50)
    for k, (low, high) in good.confidence(n=50).items(): assert low <= good.corpus[k]+1e-9 and good.corpus[k] <= high+1e-9, k
    assert compare(good, poor, n=50)['CIDEr']['low'] > 0

def test_diversity_of_anything():
    rng = random.Random(5)
    for captions in ([strange(rng) for _ in range(40)], [[strange(rng) for _ in range(5)] for _ in range(8)]):
        assert all(np.isfinite(v) for v in diversity(captions, train=['a dog']).values())

@pytest.mark.parametrize('distinct', [300, 100_000])
def test_the_table_of_words_does_not_grow_with_the_text(distinct, monkeypatch):
    "A table for every piece was handed out by the system anew for every evaluation, which took longer than the sums."
    rng = random.Random(distinct)
    pieces = [f'w{rng.randrange(distinct)}' for _ in range(600_000)]
    vocab, plain = ngrams.new_vocab(), ngrams.new_vocab()
    tracemalloc.start()
    numbers = ngrams.word_numbers(' '.join(pieces)+' ', vocab)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100e6 and numbers.tolist() == [plain[p] for p in pieces] and vocab == plain
    monkeypatch.setattr(ngrams, '_MOST', 8)                              # 256 slots: most words share theirs
    assert (ngrams.word_numbers(' '.join(pieces[:50_000])+' ', ngrams.new_vocab()) == numbers[:50_000]).all()
