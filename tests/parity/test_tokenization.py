"Tokenizers against other implementations."
import json
from pathlib import Path
import pytest
from xmodaler_nb.tokenization import BertTokenizer

DATA = Path(__file__).parent/'data'


@pytest.mark.parametrize('lower', [True, False])
def test_bert_pieces(tmp_path, lower):
    "Same pieces as the `tokenizers` library for 300 texts (data/make_bert_tokenizer.py)."
    ref = json.loads((DATA/'bert_tokenizer.json').read_text())
    (tmp_path/'vocab.txt').write_text('\n'.join(ref['vocab']) + '\n', encoding='utf-8')
    tok = BertTokenizer(tmp_path/'vocab.txt', do_lower_case=lower)
    want = next(c['tokens'] for c in ref['cases'] if c['do_lower_case'] == lower)
    assert len(want) == 300
    wrong = [(t, tok.tokenize(t), w) for t, w in zip(ref['texts'], want) if tok.tokenize(t) != w]
    assert not wrong, f'{len(wrong)} of {len(want)} differ, e.g. {wrong[0]}'


def test_bert_decode(golden, tmp_path):
    "The golden captions through the real tokenizer."
    from xmodaler_nb.functional import decode_sequence_bert
    c = json.loads((golden/'misc'/'functional.json').read_text())['decode_sequence_bert']
    (tmp_path/'vocab.txt').write_text('\n'.join(c['vocab']) + '\n')
    assert decode_sequence_bert(BertTokenizer(tmp_path/'vocab.txt'), c['seq'], c['sep_token_id']) == c['out']
