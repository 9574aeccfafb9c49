"The caption tokenizer: what follows a caption, checked against the answers of the Java program; time linear in the length."
import json
import time
from pathlib import Path
import pytest
from xmodaler_nb.evaluation import evaluate
from xmodaler_nb.tokenization import ptb_tokenize

DATA = Path(__file__).resolve().parents[1]/'parity'/'data'
PAIRS = ["a'", "a.", "<a ", ":)", "Σ-", "a\"", "&a", "n't", "a/", "'8", "A. ", "(x", "[^_", "…'", "aΣ", "'Σ", "1 ", "x@", "A&", "´'", "ab'cd.", "http://a|", "\u00a0A."]


def test_a_single_letter_keeps_its_dot():
    assert ptb_tokenize(['plan b.']) == ['plan b.']
    assert ptb_tokenize(['A bus on route D.']) == ['a bus on route d.']
    assert ptb_tokenize(['plan b.', 'Two dogs']) == ['plan b.', 'two dogs']
    assert ptb_tokenize(['plan b.', 'A dog', 'x']) == ['plan b', 'a dog', 'x']
    assert ptb_tokenize(['plan b.', '', 'The dog']) == ['plan b', '', 'the dog']


def test_endings_as_the_java_program():
    "1,819 lists whose last tokens depend on what stands behind (data/make_java_endings.py)."
    rows = json.loads((DATA/'java_endings.json').read_text(encoding='utf-8'))
    assert len(rows) > 1500
    wrong = [(captions, ours, java) for captions, java in rows if (ours := ptb_tokenize(captions)) != java]
    assert not wrong, f'{len(wrong)} of {len(rows)} differ, e.g. {wrong[0]}'
    assert all(ptb_tokenize(captions, as_corpus=True) == java for captions, java in rows)


def test_a_line_break_inside_a_caption_moves_no_other():
    captions = ['a cat.', 'a\rb', 'a dog!', 'x\u2028y']
    assert ptb_tokenize(captions) == ['a cat', 'a b', 'a dog', 'x y']
    assert ptb_tokenize(captions, as_corpus=True)[:3] == ['a cat', 'a', 'b']


def test_on_its_own_a_caption_depends_on_nothing_else():
    captions = ['plan b.', 'A dog', "they've"]
    assert ptb_tokenize(captions, next_caption='A dog') == [ptb_tokenize([c], next_caption='A dog')[0] for c in captions] == ['plan b', 'a dog', "they 've"]
    with pytest.raises(ValueError, match='exclude each other'): ptb_tokenize(captions, as_corpus=True, next_caption='A')


def test_a_verbatim_copy_of_a_lone_letter():
    assert evaluate({1: 'a bus on route D.'}, {1: ['a bus on route D.']}, metrics='BLEU').corpus['Bleu_1'] == pytest.approx(1)


def seconds(text):
    "Processor time of one tokenisation, the better of two."
    out = []
    for _ in range(2):
        before = time.process_time()
        ptb_tokenize([text])
        out.append(time.process_time() - before)
    return min(out)


@pytest.mark.parametrize('pair', PAIRS)
def test_time_is_linear(pair):
    "Four times the text, about four times the time; a quadratic tokenizer needs sixteen times."
    short, long = ((pair*n)[:n] for n in (4_000, 16_000))
    ptb_tokenize([short])                    # builds the states
    assert seconds(long) < 8*seconds(short) + 0.1
