"What a word is: the same in training and in the scores, in every script; what is cut or joined is said before training."
import json
import numpy as np
import pytest
from PIL import Image
from xmodaler_nb.commands.data import data_main
from xmodaler_nb.evaluation import evaluate
from xmodaler_nb.functional import decode_sequence, load_vocab
from xmodaler_nb.own.check import Sample, check_samples, split_words, word_findings
from xmodaler_nb.own.data import CaptionData
from xmodaler_nb.tokenization import ptb_tokenize
from xmodaler_nb.utils.safe_pickle import safe_load

# language → words
SPACED = dict(hindi='लाल गाड़ी सड़क पर खड़ी है', bengali='একটি ছোট কুকুর দৌড়াচ্ছে', tamil='சிவப்பு கார் தெருவில் நிற்கிறது', telugu='ఎర్ర కారు రోడ్డు మీద ఉంది', malayalam='ചുവന്ന കാർ റോഡിൽ', kannada='ಕೆಂಪು ಕಾರು ರಸ್ತೆಯಲ್ಲಿ', gujarati='લાલ ગાડી રસ્તા પર',
              arabic='رَجُلٌ يَمْشِي فِي الشَّارِعِ', hebrew='כֶּלֶב רָץ', persian='می‌خواهم کتاب', sinhala='රතු මෝටර් රථය', nepali='रातो गाडी', vietnamese='một người đàn ông', korean='빨간 자동차', greek='ένας σκύλος', amharic='ቀይ መኪና', yoruba='ọ̀kan ẹ̀ṣọ́')
UNSPACED = {'一只狗在草地上跑。': '一 只 狗 在 草 地 上 跑', 'สุนัขสีแดง': 'สุ นั ข สี แ ด ง', '赤い車が走る': '赤 い 車 が 走 る', 'ကားအနီ': 'ကာ း အ နီ', '两只 dogs 跑着': '两 只 dogs 跑 着'}


@pytest.mark.parametrize('language', SPACED)
def test_vowel_signs_belong_to_their_word(language):
    for segment in ('words', 'characters'): assert split_words(SPACED[language] + ' !', segment) == SPACED[language].split()


@pytest.mark.parametrize('text', [*UNSPACED][:3] + [[*UNSPACED][4]])
def test_characters(text): assert split_words(text, 'characters') == UNSPACED[text].split()


def test_every_character_is_kept():
    for text in UNSPACED:
        letters = [c for c in text.lower() if c.isalnum()]
        assert [c for c in ''.join(split_words(text, 'characters')) if c.isalnum()] == letters == [c for c in ''.join(split_words(text)) if c.isalnum()]


@pytest.mark.parametrize('text', ['a t-shirt on a chair', "the dog's ball", "the dog 's ball", 'a T.V. on the U.S. flag', 'at 10:30 a.m.', '1,000 men and 2.5 dogs', 'black-and-white', 'and/or', "don't look at Bob's", 'a criss_crossing road',
                                  'a Red, round ball!', 'a 1/2 cup', "rock'n'roll", 'the café', *SPACED.values()])
def test_a_copy_gets_the_full_score(text):
    "What is trained on and what is scored are the same words."
    said = ' '.join(split_words(text))
    assert evaluate({1: said}, {1: [text]}, metrics='BLEU').corpus['Bleu_1'] == pytest.approx(1)
    assert not [f for f in word_findings([Sample('1', '', [text], 'train')]) if f.kind == 'scored as other words']


@pytest.mark.parametrize('text, word', [('a dog & a cat', '&'), ('a (red) dog', '-lrb-'), ('a man on Main St. today', 'st.'), ('50% off', '%')])
def test_what_is_scored_otherwise_is_said(text, word):
    finding, = word_findings([Sample('1', '', [text, 'a dog'], 'train')])
    assert finding.kind == 'scored as other words' and finding.level == 'warning'
    assert '1 of 2 training captions (50.0%)' in finding.detail and repr(word) in finding.detail


def test_real_captions_are_scored_as_they_are_trained(real_data):
    "Less than 0.3 % of COCO's and Flickr8k's captions differ; before, hyphens alone made it 1 and 3.5 %."
    rows = [json.loads(l) for l in (real_data('flickr8k')/'captions_train.jsonl').read_text(encoding='utf-8').splitlines()[:2000]]
    captions = [c for r in rows for c in r['captions']]
    scored, said = (ptb_tokenize(texts, next_caption='a dog') for texts in (captions, [' '.join(split_words(c)) for c in captions]))
    assert sum(a != b for a, b in zip(scored, said)) < 0.003*len(captions)


def test_text_without_blanks_gets_a_remark():
    for segment, said in (('words', "one word, such as '一只狗在跑'"), ('characters', 'each character counts as a word: 一 只 狗 在 跑')):
        finding, = [f for f in word_findings([Sample('1', '', ['一只狗在跑', 'a dog'])], segment) if f.kind == 'text without blanks']
        assert said in finding.detail and '1 of 2 training captions (50.0%)' in finding.detail
    assert not word_findings([Sample('1', '', ['一只 狗 在 跑', '빨간 자동차', SPACED['hindi']])])


def test_long_captions_are_found():
    texts = ['a dog '*15, 'a dog', 'one '*21, 'two '*20]
    finding, = word_findings([Sample('1', '', texts, 'train'), Sample('2', '', ['x '*50], 'test')])
    assert finding.kind == 'long caption' and '2 of 4 training captions (50.0%) have more than 20 words' in finding.detail and 'the longest has 30' in finding.detail
    assert not word_findings([Sample('1', '', texts)], max_len=30)
    assert 'long caption' in check_samples([Sample('1', '', texts, 'train')], max_len=29)[0].counts()


@pytest.fixture
def photos(tmp_path):
    "Twelve pictures without captions."
    for i in range(12):
        (tmp_path/'photos').mkdir(exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(tmp_path/'photos'/f'{i:02d}.png')
    return tmp_path/'photos'


def caption(photos, text):
    for p in photos.glob('*.png'): p.with_suffix('.txt').write_text(text + '\n', encoding='utf-8')


def test_a_cut_caption_has_no_end_mark(photos, tmp_path):
    "Thirty words, twenty kept: the row says nothing of an end; a caption of twenty words has its end."
    caption(photos, ' '.join(f'w{i}' for i in range(30)) + '\n' + ' '.join(f'w{i}' for i in range(20)))
    written = CaptionData.from_folder(photos).write(tmp_path/'out', min_count=1)
    assert written.report['findings']['long caption'] == 1
    for entry in safe_load(tmp_path/'out'/'mscoco_caption_anno_train.pkl'):
        cut, whole = entry['target_ids']
        assert 0 not in cut and -1 not in cut and whole[20] == 0 and len(cut) == len(whole) == 21
    references = safe_load(tmp_path/'out'/'mscoco_train_gts.pkl')
    assert all(0 not in cut and whole[-1] == 0 for cut, whole in references.values())


@pytest.mark.parametrize('segment, words', [('characters', set('一只狗在草地上跑坐着')), ('words', {'一只狗在草地上跑', '一只狗在坐着'})])
def test_chinese_captions(photos, tmp_path, capsys, segment, words):
    "From captions without blanks to a vocabulary, rows and references that are scored as they are said."
    caption(photos, '一只狗在草地上跑。\n一只狗在坐着。')
    assert data_main(['write', str(photos), str(tmp_path/'out'), '--segment', segment, '--min-count', '1']) == 0
    assert 'text without blanks 1' in capsys.readouterr().out
    assert set((tmp_path/'out'/'vocabulary.txt').read_text(encoding='utf-8').split()) == words
    entry = safe_load(tmp_path/'out'/'mscoco_caption_anno_train.pkl')[0]
    said = decode_sequence(load_vocab(tmp_path/'out'/'vocabulary.txt'), entry['tokens_ids'][:1, 1:].astype(int))[0]
    references = [a['caption'] for a in json.loads((tmp_path/'out'/'captions_train.json').read_text(encoding='utf-8'))['annotations']][:2]
    if segment == 'characters': assert evaluate({1: said}, {1: references}, metrics='BLEU').corpus['Bleu_4'] == pytest.approx(1)
    assert data_main(['check', str(photos), '--segment', segment]) == 0
    out = capsys.readouterr().out
    assert ('each character counts as a word: 一 只 狗' if segment == 'characters' else '--segment characters') in out


def test_an_unknown_segment():
    with pytest.raises(ValueError, match="segment is 'letters', but must be 'words' or 'characters'"): CaptionData([], segment='letters')


def test_what_is_odd_about_the_words_is_said_while_writing(photos, tmp_path, capsys):
    "Not only how many findings: who types `xm-data write` reads the share, the longest caption and the way out."
    caption(photos, '一只狗在草地上跑。\n' + 'a dog '*15)
    assert data_main(['write', str(photos), str(tmp_path/'out')]) == 0
    out = capsys.readouterr().out
    assert 'long caption: 12 of 24 training captions (50.0%) have more than 20 words' in out and 'the longest has 30' in out
    assert 'text without blanks: 12 of 24 training captions' in out and '--segment characters' in out
    assert data_main(['write', str(photos), str(tmp_path/'none'), '--backbone', 'none']) == 0
    out = capsys.readouterr().out
    assert 'no features were written' in out and 'train with' not in out
