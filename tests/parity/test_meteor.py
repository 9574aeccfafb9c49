"METEOR's statistics and scores equal to the Java program's: known pairs, and (slow) random ones against Java itself."
import random, shutil, subprocess
import numpy as np
import pytest
from xmodaler_nb.evaluation.meteor import Meteor, meteor_score
from xmodaler_nb.evaluation.meteor_tables import JAR, meteor_folder
from xmodaler_nb.evaluation.metrics import problem

pytestmark = pytest.mark.skipif(bool(problem('METEOR')), reason=f"METEOR cannot run: {problem('METEOR')}")

# hypothesis, references, 23 statistics (lengths and function words; four stages; chunks and matches), score
KNOWN = """a cat sits on a mat = the cat sat on the mat = 6 6 3 3 2 2 1 1 0 0 0 0 1 1 0 0 0 0 0 0 2 4 4 = 0.37417456858415504
a man rides a horse = a man riding a horse on a beach = 5 8 2 4 2 2 2 2 1 1 0 0 0 0 0 0 0 0 0 0 1 5 5 = 0.363166923119682
dogs are playing = a dog plays = 3 3 1 1 0 0 0 0 1 1 0 0 0 0 0 0 1 1 1 0 1 3 2 = 0.2630197185418911
the child sits on the sofa = a kid is seated on a couch = 6 7 3 4 0 0 1 1 0 0 0 0 2 2 0 0 0 0 0 0 2 3 3 = 0.2016392582135088
a lot of people near the street = many people in the road = 7 5 4 3 0 0 2 2 0 0 0 0 0 0 0 0 1 1 0 0 2 3 3 = 0.17683270435642304
a man and a dog and a man = a dog and a man and a dog = 8 8 5 5 2 2 5 5 0 0 0 0 0 0 0 0 0 0 0 0 3 7 7 = 0.38777158521634814
next to the the side of a of = beside the next to a side of the = 8 8 6 5 2 2 5 5 0 0 0 0 0 0 0 0 0 0 0 0 5 7 7 = 0.35252035163650347
a bus = two buses / a bus on a street / the car = 2 5 1 3 1 1 1 1 0 0 0 0 0 0 0 0 0 0 0 0 1 2 2 = 0.2315974118896124
it 's a dog 's life = a dog 's life it is = 8 7 6 5 2 2 4 4 0 0 0 0 0 0 0 0 0 0 0 0 2 6 6 = 0.46489243313350814
a two-year-old's U.S. cap, size 3.5... = two year old 's us cap , size 3.5 ... = 11 11 5 5 6 6 3 3 0 0 0 0 0 0 0 0 0 0 0 0 2 9 9 = 0.5075347501445102
a person is taking a picture of the food on the plate = someone takes photos of a plate of food / a photograph of the meal = 12 5 7 3 0 0 3 3 0 0 0 0 1 1 0 0 1 1 0 0 1 5 5 = 0.37159377652167624
women and children = woman and child = 3 3 1 1 0 0 0 0 0 0 0 0 1 1 0 0 1 1 1 1 1 3 3 = 0.6857142857142857
geese flying = a goose flies = 2 3 0 1 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 = 0.0
xqz = a man on a horse / a cat = 1 5 0 3 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 = 0.0"""
KNOWN = [line.split(' = ') for line in KNOWN.splitlines()]

@pytest.fixture(scope='module')
def metric(): return Meteor()

@pytest.mark.parametrize('hyp, refs, stats, score', KNOWN, ids=[k[0][:20] for k in KNOWN])
def test_known_pairs(metric, hyp, refs, stats, score):
    assert metric.statistics([hyp], [refs.split(' / ')]).tolist() == [list(map(int, stats.split()))]
    assert metric([hyp], [refs.split(' / ')]).image['METEOR'][0] == pytest.approx(float(score), abs=1e-12)

def test_corners(metric):
    s = metric(['', 'a cat', 'a , cat .', '...', '', 'a dog'], [['a cat'], [''], ['a , cat .'], ['...'], [''], ['a cat|||a dog']])
    assert s.image['METEOR'].tolist() == [0., 0., 1., 1., 0., 1.]

def test_a_caption_that_is_a_reference_elsewhere(metric):
    "Captions and references are kept apart: which strings occur on both sides must not matter."
    a, b = 'a bunch of bananas left out in the open', 'some people a table some bananas and plastic cups'
    together = metric([a, b], [[b], [a]]).image['METEOR']
    fresh = Meteor(metric.tables)
    assert together.tolist() == [fresh([a], [[b]]).image['METEOR'][0], fresh([b], [[a]]).image['METEOR'][0]]

def test_the_order_of_calls_does_not_matter(metric):
    rng = random.Random(3)
    words = 'a man woman riding rides horse the bike bicycle on of lot many people street road is sitting sits , .'.split()
    hyps, refs = ([' '.join(rng.choices(words, k=rng.randint(1, 12))) for _ in range(60)] for _ in range(2))
    warm = metric(hyps, [[r] for r in refs]).image['METEOR']
    assert (warm == metric(hyps, [[r] for r in refs]).image['METEOR']).all()
    fresh = Meteor(metric.tables)
    assert [fresh([h], [[r]]).image['METEOR'][0] for h, r in zip(hyps, refs)] == warm.tolist()

def java_statistics(hyps, refs):
    "What the Java program says."
    lines = ''.join(' ||| '.join(['SCORE', *rs, h.replace('|||', '').replace('  ', ' ')])+'\n' for h, rs in zip(hyps, refs))
    cmd = ['java', '-Dfile.encoding=UTF-8', '-jar', '-Xmx2G', JAR, '-', '-', '-stdio', '-l', 'en', '-norm']
    out = subprocess.run(cmd, cwd=meteor_folder(), input=lines.encode(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True).stdout.decode()
    return [[int(float(x)) for x in line.split()] for line in out.splitlines()]

ODD = ["'", '``', "''", '-', '--', '...', '.', ',', '3.5', '1,000', '90\'s', 'u.s.', 'e.g.', 'mr.', 'é', 'naïve', '犬', 'người', '😀', '50%', '$5', 'a_b', '“x”', '‘y’', '–', "isn't", 'dogs\'', 'K.', '|||', '\u00a0', '#1']

@pytest.mark.slow
@pytest.mark.skipif(shutil.which('java') is None, reason='no Java on this machine')
def test_random_sentences_against_java(metric):
    rng = random.Random(7)
    vocab = 'a the man men woman women child children dog dogs riding rides rode ride horse on of in is are was a lot of many people next to beside sitting sits sat seated couch sofa photo picture taking took plays playing'.split()
    hyps, refs = [], []
    for k in range(3000):
        some = rng.sample(vocab, rng.choice((4, 8, len(vocab))))+(rng.sample(ODD, 6) if k % 3 == 0 else [])
        def sentence(top): return ' '.join(rng.choices(some, k=rng.randint(0, top)))
        top = 60 if k % 20 == 0 else 14
        hyps.append(sentence(top))
        refs.append([r for _ in range(rng.randint(1, 4)) if '|||' not in (r := sentence(top))] or ['a'])
    theirs, ours = java_statistics(hyps, refs), metric.statistics(hyps, refs).tolist()
    assert [(h, r, a, b) for h, r, a, b in zip(hyps, refs, ours, theirs) if a != b] == []

def test_scores_come_from_statistics(metric):
    s = metric.statistics(['a man rides a horse'], [['a man riding a horse on a beach']])[0]
    assert meteor_score(s.tolist()) == pytest.approx(0.363166923119682, abs=1e-12)
    assert np.issubdtype(s.dtype, np.integer)
