"Small YAML files that would need hours or gigabytes: each ends with a sentence, in time."
import shutil
import time
import pytest
import yaml
from xmodaler_nb.config import CfgNode
from xmodaler_nb.config.lazy import LazyConfig
from xmodaler_nb.config.safe_yaml import parse_yaml

def doubling(n, form): return 'a0: &a0 {x: 1}\n' + '\n'.join(f'a{i}: &a{i} {form.format(i-1)}' for i in range(1, n))

BAD = {'aliased lists': 'a0: &a0 [1]\n' + '\n'.join(f'a{i}: &a{i} [*a{i-1}, *a{i-1}]' for i in range(1, 60)), 'aliased mappings': doubling(60, '{{l: *a{0}, r: *a{0}}}'), 'merged mappings': doubling(60, '{{<<: [*a{0}, *a{0}]}}'),
       'merged and nested': doubling(60, '{{<<: *a{0}, k: *a{0}}}'), 'brackets': '['*100_000, 'braces': '{a: '*50_000, 'dashes': '- '*50_000, 'indents': '\n'.join(' '*i + 'a:' for i in range(300)), 'itself': 'a: &a {b: *a}',
       'itself in a list': '&a [*a]', 'key is a list': '? [1]\n: 2', 'key is an alias of pairs': 'a: &a {x: 1}\n? *a\n: 2', 'digits': 'a: ' + '9'*200_000, 'base 60': 'a: 1' + ':59'*60_000, 'hexadecimal': 'a: 0x' + 'f'*200_000,
       'many values': 'a: [' + '1,'*110_000 + ']', 'many keys': '\n'.join(f'k{i}: 1' for i in range(26_000)), 'too long': '#'*300_000, 'date': 'a: 2001-99-99', 'tag of a float': 'a: !!float x', 'zero': 'a: \x00', 'tab': 'a:\n\t- b',
       'timestamp': 'a: !!timestamp "x"', 'int': 'a: !!int ""', 'pairs': 'a: !!pairs [1]', 'omap': 'a: !!omap 3'}

@pytest.mark.parametrize('kind', list(BAD))
def test_small_files_end_with_a_sentence(tmp_path, kind):
    f = tmp_path/'small.yaml'
    f.write_text(BAD[kind])
    start = time.process_time()
    for read in (CfgNode.load_yaml_with_base, LazyConfig.load, lambda p: CfgNode.load_cfg(f.read_text())):
        with pytest.raises(ValueError) as e: read(str(f))
        assert ('small.yaml' in str(e.value) or 'this text' in str(e.value)) and len(str(e.value)) < 500
    assert time.process_time() - start < 6*3

def test_a_diamond_of_bases_reads_each_file_once(tmp_path, monkeypatch):
    from xmodaler_nb.config import node
    read, real = [], node.read_yaml
    monkeypatch.setattr(node, 'read_yaml', lambda p: (read.append(p), real(p))[1])
    for i in range(18): (tmp_path/f'{i}.yaml').write_text(f'_BASE_: [{i+1}.yaml, {i+1}.yaml]\nK{i}: {i}\nSHARED: {{A: {i}, B{i}: 1}}\n')
    (tmp_path/'18.yaml').write_text('SHARED: {A: 99, C: []}\n')
    start = time.process_time()
    c = CfgNode.load_yaml_with_base(str(tmp_path/'0.yaml'))
    assert len(read) == 19 and time.process_time() - start < 2
    assert c['SHARED']['A'] == 0 and c['SHARED']['C'] == [] and c['K17'] == 17 and len(c['SHARED']) == 20
    assert CfgNode.load_yaml_with_base(str(tmp_path/'5.yaml'))['SHARED']['A'] == 5

def test_two_files_on_one_base_do_not_change_it_for_each_other(tmp_path):
    (tmp_path/'base.yaml').write_text('M: {A: 1, L: [1]}\n')
    (tmp_path/'left.yaml').write_text('_BASE_: base.yaml\nM: {A: 2}\n')
    (tmp_path/'right.yaml').write_text('_BASE_: base.yaml\nM: {B: 3}\n')
    (tmp_path/'top.yaml').write_text('_BASE_: [left.yaml, right.yaml]\n')
    assert CfgNode.load_yaml_with_base(str(tmp_path/'top.yaml')) == {'M': {'A': 1, 'L': [1], 'B': 3}}

def test_too_many_bases(tmp_path):
    for i in range(150): (tmp_path/f'{i}.yaml').write_text(f'_BASE_: {i+1}.yaml\nA: 1\n')
    (tmp_path/'150.yaml').write_text('A: 1\n')
    (tmp_path/'wide.yaml').write_text('_BASE_: [' + '150.yaml, '*200 + ']\n')
    (tmp_path/'odd.yaml').write_text('_BASE_: 5\n')
    for name in ('0.yaml', 'wide.yaml'):
        with pytest.raises(ValueError, match='more than 100 times'): CfgNode.load_yaml_with_base(str(tmp_path/name))
    with pytest.raises(ValueError, match='odd.yaml: _BASE_ names a file or a list of files'): CfgNode.load_yaml_with_base(str(tmp_path/'odd.yaml'))

def test_aliases_and_merges_of_a_sane_size_are_read():
    text = 'a: &a {x: 1, y: [1, 2]}\nb: {<<: *a, z: 3}\nc: [*a, *a]\nd: {<<: [*a, {x: 9, w: 1}]}\n'
    content = parse_yaml(text)[1]
    assert content == {'a': {'x': 1, 'y': [1, 2]}, 'b': {'x': 1, 'y': [1, 2], 'z': 3}, 'c': [{'x': 1, 'y': [1, 2]}]*2, 'd': {'x': 1, 'y': [1, 2], 'w': 1}}

@pytest.mark.parametrize('value', ['('*100_000, '-'*100_000 + '1', '9'*10_000, '{'*300, '1+'*50_000 + '1'])
def test_values_of_the_command_line(value):
    c = CfgNode({'A': 'text'})
    c.merge_from_list(['A', value])
    assert c.A is not None

@pytest.mark.parametrize('text', ['!<' + 'a'*250_000 + '> x', '!' + 'a'*250_000 + ' x', 'a: *' + 'b'*250_000])
def test_messages_stay_short(text):
    with pytest.raises(ValueError) as e: parse_yaml(text, 'small.yaml')
    assert 'small.yaml' in str(e.value) and len(str(e.value)) < 600

def test_the_file_of_sign_models_is_read_within_limits(tmp_path):
    from xmodaler_nb.asl.models.pytorch.models import get_model_params
    for kind in ('aliased lists', 'aliased mappings', 'merged mappings', 'brackets'):
        (tmp_path/'models.yaml').write_text(BAD[kind])
        start = time.process_time()
        with pytest.raises(ValueError, match='models.yaml'): get_model_params('LSTMPredictor', str(tmp_path/'models.yaml'))
        assert time.process_time() - start < 4
    (tmp_path/'models.yaml').write_text('models: 3\n')
    with pytest.raises(ValueError, match='no group `models`'): get_model_params('LSTMPredictor', str(tmp_path/'models.yaml'))


# configs of a saved model

@pytest.fixture(scope='module')
def model(tmp_path_factory):
    from small import small_captioner
    return small_captioner().save_pretrained(tmp_path_factory.mktemp('saved')/'model')

def with_key(text, key, value):
    content = yaml.safe_load(text)
    node, *path = content, *key.split('.')
    for k in path[:-1]: node = node[k]
    node[path[-1]] = value
    return yaml.safe_dump(content)

HOSTILE = {'a large vocabulary': ('MODEL.VOCAB_SIZE', 10**7, 'more numbers than the weights'), 'a wide decoder': ('MODEL.DECODER_DIM', 20_000, 'more numbers than the weights'),
           'wide words': ('MODEL.TOKEN_EMBED.DIM', 10**9, 'more numbers than the weights'), 'long captions': ('MODEL.MAX_SEQ_LEN', 10**9, 'MODEL.MAX_SEQ_LEN is 1000000000'),
           'no words': ('MODEL.VOCAB_SIZE', -5, 'cannot be built'), 'no model': ('MODEL', None, 'nothing cannot replace a group'), 'a list': ('MODEL', [1], 'config key MODEL .*expected CfgNode'),
           'no solver': ('SOLVER', None, 'nothing cannot replace a group'), 'a name that is a list': ('MODEL.META_ARCHITECTURE', [1], 'MODEL.META_ARCHITECTURE'), 'no name': ('MODEL.META_ARCHITECTURE', None, 'no MODEL.META_ARCHITECTURE')}

@pytest.mark.parametrize('why', HOSTILE)
def test_a_config_that_does_not_fit_its_weights(model, tmp_path, why):
    "One sentence, at once: no memory is taken for a model that its weights cannot fill."
    from xmodaler_nb.captioner import Captioner
    key, value, text = HOSTILE[why]
    copy = shutil.copytree(model, tmp_path/'model')
    (copy/'config.yaml').write_text(with_key((copy/'config.yaml').read_text(), key, value))
    start = time.process_time()
    with pytest.raises(ValueError, match=text) as e: Captioner.from_pretrained(copy)
    assert time.process_time() - start < 2 and ('config.yaml' in str(e.value) or why == 'long captions')

@pytest.mark.parametrize('kind', ['aliased lists', 'aliased mappings', 'merged mappings', 'brackets'])
def test_small_files_through_the_commands(model, tmp_path, kind, capsys):
    "xm-train --config-file, xm-caption --model."
    from xmodaler_nb.commands.caption import caption_main
    from xmodaler_nb.commands.train import train_main
    copy, f = shutil.copytree(model, tmp_path/'model'), tmp_path/'bomb.yaml'
    (copy/'config.yaml').write_text(BAD[kind])
    f.write_text(BAD[kind])
    start = time.process_time()
    assert caption_main(['x.png', '--model', str(copy)]) == 1
    assert 'config.yaml: not a config file' in capsys.readouterr().err and time.process_time() - start < 4
    assert train_main(['--config-file', str(f), 'OUTPUT_DIR', str(tmp_path/'out')]) == 1
    assert 'bomb.yaml: not a config file' in capsys.readouterr().err and not (tmp_path/'out').exists()
