"""Makes java_endings.json: what the Java tokenizer of pycocoevalcap (Stanford CoreNLP 3.4.1) answers for lists of captions whose last tokens depend on what follows.
Needs Java and pycocoevalcap: python make_java_endings.py"""
import itertools, json, subprocess, tempfile
from pathlib import Path
import pycocoevalcap.tokenizer.ptbtokenizer as p

JAR = Path(p.__file__).parent/p.STANFORD_CORENLP_3_4_1_JAR
ENDINGS = """plan b. plan·B. on·route·D. on·12th·Ave·S. u.s. U.S.A. a.m. e.g. the·letter·x. I. no. look·at·No. fig. pp. art. op. ca. prop. nos. etc. Jan. in·Jan. Jr. Ph.D. co. Co. Inc. mass. Mass. St. Mr. vs.
they've we'll you're it's shouldn't've in·'80 '9 rock·'n' :) :-( ;) =D <3 3.mp3 photo.jpg al.h non-U.S c++ 5. 5 2·1/2 1/2. ... . ! dog.. dog?! $ a·$ t-shirt t-shirt. well- ' " a' (x) b) @x #tag http://a.b/ x.com. Σ. É. é. 犬. ²
<a·b='x 1. 10:30. A a The b x.y x.y.z. Ala. pa. Pa. in. oz. lbs. Sat. May. tel. Blvd. p. v. c. &amp; AT&T. R&D. 50% ½ 555-1234""".split()
BEHIND = ['', '\n', '\nA dog', '\nThe cat', '\nthe cat', '\nTwo men', '\nThere', '\n5 dogs', '\n\n\nAn apple', '\n  \nThis is', '\nA', '\nA.', "\n'A x", "\ny'> z", '\n1/2 cup', '\nX', '\n<b> x']


PROGRAM = """
import edu.stanford.nlp.ling.*; import edu.stanford.nlp.process.*;
import java.io.*; import java.nio.charset.StandardCharsets; import java.util.Locale;
public class Lists {     // texts that end in U+0001 in, their tokens that end in U+0001 out
  static String tokens(String text) {
    PTBTokenizer<CoreLabel> t = new PTBTokenizer<CoreLabel>(new StringReader(text), new CoreLabelTokenFactory(), "tokenizeNLs");
    StringBuilder s = new StringBuilder();
    while (t.hasNext()) { String w = t.next().word(); s.append(w.equals("*NL*") ? "\\n" : w.toLowerCase(Locale.ENGLISH) + " "); }
    return s.toString();
  }
  public static void main(String[] args) throws IOException {
    PrintStream out = new PrintStream(System.out, false, "UTF-8");
    for (String text : new String(System.in.readAllBytes(), StandardCharsets.UTF_8).split("\\u0001")) out.print(tokens(text) + (char)1);
    out.flush();
  }
}"""


def java(lists) -> list:
    "The program's final strings for lists of captions, each a text of its own."
    with tempfile.TemporaryDirectory() as d:
        (Path(d)/'Lists.java').write_text(PROGRAM)
        texts = ''.join('\n'.join(captions) + '\x01' for captions in lists)
        done = subprocess.run(['java', '-cp', str(JAR), str(Path(d)/'Lists.java')], input=texts.encode(), capture_output=True, check=True)
    found = [text.split('\n') for text in done.stdout.decode().split('\x01')]
    final = [[' '.join(w for w in line.rstrip().split(' ') if w not in p.PUNCTUATIONS) for line in lines] for lines in found]
    return [(lines + ['']*len(captions))[:len(captions)] for captions, lines in zip(lists, final)]


if __name__ == '__main__':
    lists = [(e.replace('·', ' ') + behind).split('\n') for e, behind in itertools.product(ENDINGS, BEHIND)]
    rows = [list(pair) for pair in zip(lists, java(lists))]
    Path(__file__).with_name('java_endings.json').write_text(json.dumps(rows, ensure_ascii=False, separators=(',', ':')) + '\n', encoding='utf-8')
