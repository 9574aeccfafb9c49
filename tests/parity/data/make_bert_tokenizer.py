"""Make bert_tokenizer.json: what the `tokenizers` library answers for made-up texts and a made-up vocabulary.

    pip install tokenizers && python tests/parity/data/make_bert_tokenizer.py
"""
import json, random
from pathlib import Path
import tokenizers
from tokenizers import BertWordPieceTokenizer

rng = random.Random(0)
special = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]']
stems = 'a an the man woman dog snow board play walk run umbrella street naive zoe uber resume 狗 人 2 20 is in on of red bench surf'.split()
ends = 's ed ing er board surf ly 0 é e'.split()
letters = list('abcdefghijklmnopqrstuvwxyz0123456789')
punct = list(".,!?'\"-()[]{}$^`~@#%&*_+=/\\<>|:;") + ['—', '…', '¿', '。']
vocab = list(dict.fromkeys(special + stems + letters[:20] + ['##' + e for e in ends] + ['##' + c for c in letters[:30]] + punct))
odd = ['\u00a0', '\u200b', '\u200d', '\ufeff', '\x00', '\ufffd', '\t', '\n', '\r', '\u3000', '\u2028', '\u0301', 'İ', 'ß', 'ﬁ', 'Ω', 'é', 'É', 'ñ', 'Å', '狗', '人', '한', '🙂', '½', '№', '\u0600', 'q'*101]


def word():
    "A word, known, half known or odd."
    r = rng.random()
    if r < .45: return rng.choice(stems) + ''.join(rng.choice(ends) for _ in range(rng.choice([0, 0, 1, 1, 2])))
    if r < .6: return ''.join(rng.choice(letters) for _ in range(rng.randint(1, 8)))
    if r < .75: return rng.choice(punct)*rng.randint(1, 2)
    if r < .85: return rng.choice(special)
    return rng.choice(stems)[:2] + rng.choice(odd) + rng.choice(stems)


def text():
    "A few words, most of them separated."
    case = lambda w: rng.choice([str.lower, str.upper, str.title, str])(w) if rng.random() < .9 else w
    return ''.join(case(word()) + rng.choice([' ', ' ', ' ', '']) for _ in range(rng.randint(1, 9)))


texts = ['', ' ', '[CLS]'] + [text() for _ in range(297)]
cases = []
for lower in (True, False):
    tok = BertWordPieceTokenizer({t: i for i, t in enumerate(vocab)}, lowercase=lower, strip_accents=lower, clean_text=True, handle_chinese_chars=True)
    tok.add_special_tokens(special)
    cases.append(dict(do_lower_case=lower, tokens=[tok.encode(t, add_special_tokens=False).tokens for t in texts]))
Path(__file__).with_name('bert_tokenizer.json').write_text(json.dumps(dict(made_with=f'tokenizers {tokenizers.__version__}', vocab=vocab, texts=texts, cases=cases), ensure_ascii=True))
