"Position tables follow from the config: a packed captioner leaves them out, and files are for everybody to read."
import os
import torch
from xmodaler_nb.captioner import Captioner
from xmodaler_nb.modeling import build_model, load_cfg_file
from xmodaler_nb.utils.checkpoint_files import load_weights, save_weights


def transformer():
    "A small Transformer with a sinusoid of 5,000 positions."
    cfg = load_cfg_file('image_caption/transformer/transformer.yaml', [
        'MODEL.DEVICE', 'cpu', 'MODEL.VOCAB_SIZE', 3, 'MODEL.DECODER_DIM', 8, 'MODEL.ENCODER_DIM', 8,
        'MODEL.TOKEN_EMBED.DIM', 8, 'MODEL.VISUAL_EMBED.IN_DIM', 4, 'MODEL.VISUAL_EMBED.OUT_DIM', 8,
        'MODEL.BERT.HIDDEN_SIZE', 8, 'MODEL.BERT.NUM_ATTENTION_HEADS', 2, 'MODEL.BERT.INTERMEDIATE_SIZE', 8,
        'MODEL.BERT.NUM_HIDDEN_LAYERS', 1, 'MODEL.BERT.NUM_GENERATION_LAYERS', 1])
    return Captioner(build_model(cfg).eval(), cfg, ['.', 'red', 'ball'])


def test_a_packed_captioner_computes_its_positions(tmp_path):
    captioner = transformer()
    full = captioner.save_pretrained(tmp_path/'full')
    packed = captioner.save_pretrained(tmp_path/'packed', half=True)
    tables = {k for k in load_weights(full/'model.safetensors') if k.endswith('.pe')}
    assert tables and not tables & set(load_weights(packed/'model.safetensors'))
    pe, = tables
    assert torch.equal(Captioner.from_pretrained(packed).model.state_dict()[pe], captioner.model.state_dict()[pe])


def test_a_changed_table_is_kept(tmp_path):
    captioner = transformer()
    name = next(k for k in captioner.model.state_dict() if k.endswith('.pe'))
    captioner.model.state_dict()[name].mul_(2)
    packed = captioner.save_pretrained(tmp_path/'packed', half=True)
    assert name in load_weights(packed/'model.safetensors')


def test_weights_are_as_readable_as_other_files(tmp_path):
    (tmp_path/'other').write_text('')
    save_weights({'a': torch.zeros(2)}, tmp_path/'a.safetensors')
    assert os.stat(tmp_path/'a.safetensors').st_mode == os.stat(tmp_path/'other').st_mode
