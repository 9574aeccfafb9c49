"Weights of a public BERT: the same hidden states as `transformers` (where it is installed) and as torch's own layers (the notebook), and the published way of loading them."
import importlib.util
import pytest, torch
from xmodaler_nb.checkpoint import XmodalerCheckpointer, from_bert, load_bert, to_bert
from xmodaler_nb.config import Batch, kfg
from xmodaler_nb.modeling import build_model, load_cfg_file
from xmodaler_nb.utils.testing import test_near as near

SIZES = dict(HIDDEN_SIZE=24, INTERMEDIATE_SIZE=40, NUM_HIDDEN_LAYERS=3, V_NUM_HIDDEN_LAYERS=2, NUM_UNDERSTANDING_LAYERS=1, NUM_GENERATION_LAYERS=1,
             NUM_ATTENTION_HEADS=3, V_TARGET_SIZE=5)
POOLERS = dict(POOLER_INPUT_SIZE=24, POOLER_OUTPUT_SIZE=16)

def small(name, **model):
    more = dict(MM_PREDICTOR=POOLERS) if 'tden' in name else {}
    cfg = load_cfg_file(f'pretrain/{name}/{name}.yaml', INFERENCE=dict(VOCAB=''), MODEL=dict(
        VOCAB_SIZE=50, DEVICE='cpu', TOKEN_EMBED=dict(DIM=24, POSITION_MAX_LEN=20), VISUAL_EMBED=dict(IN_DIM=7, OUT_DIM=24), BERT=SIZES, **more, **model))
    return build_model(cfg).eval()

def text_states(model, ids, mask):
    "Last states of a text under hidden regions."
    batch = Batch(U_TOKENS_IDS=ids, U_TOKENS_TYPE=ids % 2, TOKENS_MASKS=mask, ATT_FEATS=torch.randn(len(ids), 3, 7), ATT_MASKS=torch.zeros(len(ids), 3))
    with torch.no_grad(): batch = model._embed_words(model.encode_for_decoder(batch))
    return batch[kfg.U_HIDDEN_STATES] if kfg.U_HIDDEN_STATES in batch else batch[kfg.U_TOKEN_EMBED][-1]


@pytest.mark.skipif(importlib.util.find_spec('transformers') is None, reason='transformers is not installed (pip install .[bench]); the notebook compares with torch layers')
@pytest.mark.parametrize('name', ['uniter', 'tden'])
@pytest.mark.parametrize('head', [False, True])
def test_hidden_states_of_transformers(name, head):
    "A `BertModel` and a `BertForPreTraining` made here: states, pooled state and word scores."
    from transformers import BertConfig, BertForPreTraining, BertModel
    torch.manual_seed(0)
    config = BertConfig(vocab_size=50, hidden_size=24, num_hidden_layers=3, num_attention_heads=3, intermediate_size=40, max_position_embeddings=20)
    bert = (BertForPreTraining if head else BertModel)(config).eval()
    model = small(name)
    report = load_bert(model, bert, bert_eps=True)
    ids, mask = torch.randint(50, (4, 9)), torch.ones(4, 9)
    mask[1,6:] = 0
    with torch.no_grad(): want = (bert.bert if head else bert)(ids, attention_mask=mask, token_type_ids=ids % 2)
    got = text_states(model, ids, mask)
    assert (got - want.last_hidden_state)[mask.bool()].abs().max() < 1e-5
    if name == 'uniter': assert (model.itm_predictor.pooler(got) - want.pooler_output)[[0, 2, 3]].abs().max() < 1e-5
    if head:
        with torch.no_grad(): scores = model.predictor({kfg.U_HIDDEN_STATES: got})[kfg.U_LOGITS]
        with torch.no_grad(): theirs = bert(ids, attention_mask=mask, token_type_ids=ids % 2).prediction_logits
        assert (scores - theirs)[mask.bool()].abs().max() < 1e-5
    assert [k for k in report['unused'] if 'seq_relationship' not in k and 'position_ids' not in k and 'pooler' not in k] == []
    back = to_bert(model.state_dict())
    theirs = {k.removeprefix('bert.'): v for k, v in bert.state_dict().items()}
    assert {k: v.shape for k, v in back.items() if k in theirs} == {k: theirs[k].shape for k in back if k in theirs}
    for k, v in back.items():
        if k in theirs: near(v, theirs[k])
    bert.load_state_dict({(f'bert.{k}' if head and not k.startswith('cls') else k): v for k, v in back.items() if head or not k.startswith('cls')}, strict=False)


@pytest.mark.parametrize('name', ['uniter', 'tden'])
@pytest.mark.parametrize('prefix', ['', 'bert.'])
def test_a_training_starts_from_a_public_file(tmp_path, name, prefix):
    "`MODEL.WEIGHTS` may name a public file: the checkpointer converts it, old spellings included."
    source, model = small(name), small(name)
    public = to_bert(source.state_dict())
    old = lambda k: k.replace('LayerNorm.weight', 'LayerNorm.gamma').replace('LayerNorm.bias', 'LayerNorm.beta')
    torch.save({(prefix if not k.startswith('cls') else '') + (old(k) if prefix else k): v for k, v in public.items()}, tmp_path/'pytorch_model.bin')
    third = model.token_embed.embeddings_token_type.weight[2].clone()
    XmodalerCheckpointer(model, str(tmp_path/'run')).load(str(tmp_path/'pytorch_model.bin'), checkpointables=[])
    got, want = model.state_dict(), source.state_dict()
    filled = from_bert(public, got)
    assert len(filled) > 40
    for k in filled:
        if 'token_type' not in k and k in got: assert torch.equal(got[k], want[k]), k
    assert torch.equal(model.token_embed.embeddings_token_type.weight[:2], source.token_embed.embeddings_token_type.weight[:2])
    assert torch.equal(model.token_embed.embeddings_token_type.weight[2], third)
