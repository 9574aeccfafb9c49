"A small untrained captioner that takes features (n, 4)."
import torch
from xmodaler_nb.captioner import Captioner
from xmodaler_nb.modeling import build_model, load_cfg_file

WORDS = 'a red dog runs on the road near two cats'.split()
SIZES = ['MODEL.DEVICE', 'cpu', 'MODEL.VOCAB_SIZE', 11, 'MODEL.VISUAL_EMBED.IN_DIM', 4, 'MODEL.VISUAL_EMBED.OUT_DIM', 8, 'MODEL.TOKEN_EMBED.DIM', 8, 'MODEL.DECODER_DIM', 8,
         'MODEL.UPDOWN.ATT_EMBED_SIZE', 4, 'MODEL.MAX_SEQ_LEN', 6, 'DATALOADER.MAX_FEAT_NUM', 10, 'DECODE_STRATEGY.BEAM_SIZE', 3]


def small_captioner(*opts, extractor=None):
    cfg = load_cfg_file('image_caption/updown/updown.yaml', [*SIZES, *opts])
    torch.manual_seed(0)
    return Captioner(build_model(cfg), cfg, ['.', *WORDS], extractor)
