"METEOR of texts that repeat their words: the alignment of the plain beam search, in steps that grow with the length."
import random
import pytest
from hypothesis import given, settings, strategies as st
from xmodaler_nb.evaluation import meteor
from xmodaler_nb.evaluation.meteor import Related, Sentence, candidates, search
from xmodaler_nb.evaluation.meteor_tables import MeteorTables

TABLES = MeteorTables('a the of'.split(), {'child': '1', 'kid': '1', 'dog': '3', 'hound': '3'}, {}, index=None)
WORDS = 'a the dog dogs hound child kid kids b'.split()
PHRASES = ((1, 1), (2, 1), (1, 2), (2, 3), (3, 3))       # lengths of both sides


def links(hyp, ref, phrases=()):
    hyp, ref = (Sentence(s, TABLES) for s in (hyp, ref))
    hyp.index_words()
    return candidates(hyp, ref, Related(hyp.words, TABLES), phrases)


def plain(rows, n):
    "The search that extends every path by every link."
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(meteor, '_SHORT', 10**9)
        return search(rows, n)


def pruned(rows, n):
    "The search that never extends link by link."
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(meteor, '_SHORT', 0)
        return search(rows, n)


def some_phrases(rng, n1, n2, count):
    "Places of paraphrases, in any order."
    out = []
    for _ in range(count):
        l, k = rng.choice(PHRASES)
        if l <= n2 and k <= n1: out.append((rng.randint(0, n2-l), l, rng.randint(0, n1-k), k))
    return out


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10**9), st.integers(1, len(WORDS)), st.integers(1, 45), st.integers(1, 45), st.integers(0, 12))
def test_the_same_alignment(seed, kinds, n1, n2, count):
    rng = random.Random(seed)
    words = rng.sample(WORDS, kinds)
    hyp, ref = rng.choices(words, k=n1), rng.choices(words, k=n2)
    rows = links(hyp, ref, some_phrases(rng, n1, n2, count))
    want = plain(rows, n1)
    assert search(rows, n1) == want and pruned(rows, n1) == want


def steps(hyp, ref, monkeypatch):
    "How many links the search looks at."
    seen, free = [0], meteor.LongRow.free
    def counted(self, used):
        for pair in free(self, used):
            seen[0] += 1
            yield pair
    with monkeypatch.context() as patch:
        patch.setattr(meteor.LongRow, 'free', counted)
        patch.setattr(meteor, '_extend_paths', None)                  # every row is long
        assert search(links(hyp, ref), len(hyp))
    return seen[0]


@pytest.mark.parametrize('hyp, ref', [('a', 'a'), ('a dog', 'dog a'), ('a a b', 'b a a a')])
def test_steps_grow_with_the_length(hyp, ref, monkeypatch):
    few, many = (steps((hyp.split()*n)[:n], (ref.split()*n)[:n], monkeypatch) for n in (100, 400))
    assert 40 < few and many < 8*few                                   # extending every path by every link: 16 times


def test_equal_words_share_their_row():
    rows = links(['a']*300, ['b', *['a']*300])
    assert len({id(r) for r in rows if r}) == 1
