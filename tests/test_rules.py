"""What is a kernel and what is dense by design, by the names of many libraries."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sup_tickets.rules import default_rule, judge

MATRIX = (4, 2)

KERNELS = """
Dense_0/kernel Conv_0/kernel ConvNormAct_0/Conv_0/kernel PreNorm_0/ff/kernel
LayerNormMLP_0/dense/kernel normed_linear normed_linear/kernel enormous enormous/w
normalizer/kernel NormAct_0/kernel ConvNorm_0/kernel conv_norm/w PreNorm_0/kernel
LayerNormMLP_0/wi_kernel LayerNormLinear/weight norm_act/conv/weight formal/kernel
batch_norm_block/conv/kernel block_with_layer_norm/Dense_0/kernel bn_block/fc/kernel
WeightNorm_0/Dense_0/kernel spectral_norm/kernel weight_norm/layer/weight
attention/query/kernel attn/out/kernel LSTMCell_0/ii/kernel cell/hi/kernel
linear/w mlp/~/linear_0/w mlp/~/linear_1/w conv2_d/w multi_head_attention/query/w
gru/w_i gru/w_h lstm/linear/w separable_depthwise_conv2_d/w
layers/0/weight layers.0.weight layer1.0.conv1.weight blocks.3.mlp.fc1.weight weight
query_proj/weight cell/weight_ih cell/weight_hh in_proj_weight rnn.weight_ih_l0
blocks.0.attn.qkv.weight downsample.0.weight patch_embed.proj.weight head.weight
adaLN_modulation.1.weight blocks/0/adaLN_modulation/1/weight
relative_position_bias_mlp/0/weight cpb_mlp/fc1/weight rel_pos_proj/kernel
pos_conv_embed/conv/kernel position_proj/kernel linear_pos/weight bias_net/kernel
scale_net/kernel gamma/kernel token_mixer/kernel tokens/Dense_0/kernel mean/kernel
Embed_0/embedding embed/embeddings token_embedding/weight tok_embeddings/weight
token_type_embeddings/embedding wte/embedding query_embed/weight class_embed/embedding
lora_a dense/lora_b q_proj k_proj a b verb hidden x unbiased/kernel
mlp/gate/kernel Transformer/encoderblock_0/MlpBlock_3/Dense_0/kernel abn/kernel
head/kernel conv/kernel_x normal/kernel gaussian/kernel lnet/kernel bnet/kernel
expert/0/in_layers/2/weight proj_in/weight
"""

DENSE = """
Dense_0/bias attention/query/bias linear/b multi_head_attention/query/b gru/b lstm/b_h
cell/bias_ih rnn.bias_hh_l0 cell/bias_n in_proj_bias q_bias v_bias attention_biases
blocks/attn/qkv/bias layer_stack/linear/b bias/b relative_position_bias_table
relative_position_bias/rel_embedding relpos_bias/rel_embedding dt_bias r_w_bias
relative_attention_bias/embedding relative_attention_bias/weight
layers.0.rel_pos.relative_position_bias_table rel_pos_h rel_pos_w height_rel
LayerNorm_0/scale LayerNorm_0/bias BatchNorm_0/scale RMSNorm_0/scale GroupNorm_1/scale
InstanceNorm_0/scale query_ln/scale WeightNorm_0/Dense_0/kernel/scale
layer_norm/scale layer_norm/offset batch_norm/offset resnet/~/block/~/batch_norm/scale
batch_norm/~/mean_ema/average batch_norm/~/var_ema/hidden
norm/weight norm1/weight norms/0/weight blocks.0.norm2.weight ln_f/weight ln_1/g ln/w
norm.weight bn1.weight bn/weight layernorm/kernel batch_norm/kernel block/bn1/kernel
attn_norm/weight ffn_norm/weight norm_pre/weight norm_out/weight final_layer_norm/weight
q_norm/weight SyncBatchNorm/weight BatchNorm2d_0/weight layer_norm_weight norm_g
PreNorm_0/weight conv_norm/weight LayerNormMLP_0/layer_norm_weight LayerNormMLP/ln_bias
running_mean bn1.running_var BatchNorm_0/mean BatchNorm_0/var moving_mean
gamma beta x/gamma x/beta x/offset gamma_1 blocks.0.gamma2 ls1/gamma ls1.scale
layer_scale layer_scale_1 blocks/0/layer_scale/scale lambda_1 logit_scale
kernel_scale weight_scale affine/alpha skipinit_gain temperature PReLU_0/negative_slope
class_token cls_token cls dist_token mask_token reg_token register_tokens registers
storage_tokens latents prompts patch_embed/cls_token
positions x/positions pos_embed pos_embedding posembed_input/pos_embedding
rope/freqs rope.freqs position_embeddings/embedding position_embedding/weight
wpe/embedding abs_pos
embed_positions/embedding positional_embedding pos_emb rel_embeddings/weight
A_log mixer/A_log log_dt conv_ghost/kernel x_ghost/bridge/kernel skip_ghost
"""


@pytest.mark.parametrize("name", KERNELS.split())
def test_kernels_and_embeddings_are_sparse_whatever_their_blocks_are_called(name):
    assert default_rule(name, jax.ShapeDtypeStruct(MATRIX, jnp.float32)) is True
    stacked = jax.ShapeDtypeStruct((3, *MATRIX), jnp.bfloat16)
    assert default_rule(name, stacked) is True
    vector = jax.ShapeDtypeStruct((4,), jnp.float32)
    assert default_rule(name, vector) is False


@pytest.mark.parametrize("name", DENSE.split())
def test_what_is_dense_by_design_is_so_at_any_rank(name):
    for shape in ((), (4,), MATRIX, (3, 3, 4, 2)):
        verdict = judge(name, jax.ShapeDtypeStruct(shape, jnp.float32))
        assert verdict.sparse is False and verdict.kernel_of is None
        assert verdict.reason


@pytest.mark.parametrize(
    ("name", "shape", "sparse"),
    [
        ("head/kernel", (8, 1), True),  # one output
        ("stem/weight", (1, 8), True),
        ("linear/w", (1, 1), True),
        ("pool/probe", (1, 1, 8), False),
        ("conv2_d/b", (8, 1, 1), False),
        ("block/mix", (1, 8), False),
        ("block/mix", (2, 8), True),
        ("mix", (1, 8), True),
        ("weight_norm/g", (8, 1), False),
        ("conv/weight_g", (8, 1, 1, 1), False),
        ("conv/weight_v", (8, 1, 1, 1), True),
        ("cell/weight_g", (8, 8), True),
        ("kernel", (0, 8), True),
        ("block/mix", (0, 8), True),
        ("", (2, 8), True),  # the whole tree is one array
        ("0", (2, 8), True),
        ("~/w", (2, 8), True),
    ],
)
def test_a_vector_may_have_the_shape_of_a_matrix(name, shape, sparse):
    assert default_rule(name, np.ones(shape, np.float32)) is sparse


@pytest.mark.parametrize(
    ("name", "module_type", "sparse"),
    [
        ("layers/0/weight", "LayerNorm", False),
        ("layers/0/weight", "RMSNorm", False),
        ("layers/0/weight", "Linear", True),
        ("norm/weight", "Linear", True),  # the class knows better than the name
        ("norm/weight", "Conv2d", True),
        ("norm/weight", "Embedding", False),
        ("norm/weight", "", False),
        ("mix/weight", "Block", True),
        ("conv/bias", "Conv2d", False),
    ],
)
def test_the_class_of_a_module_decides_before_its_name(name, module_type, sparse):
    leaf = jax.ShapeDtypeStruct(MATRIX, jnp.float32)
    assert judge(name, leaf, module_type).sparse is sparse


@pytest.mark.parametrize(
    "dtype", ["int8", "uint8", "int32", "bool", "complex64", "float8_e4m3fn", "int4"]
)
def test_a_kernel_that_cannot_be_scored_says_so(dtype):
    verdict = judge("dense/kernel", jax.ShapeDtypeStruct(MATRIX, jnp.dtype(dtype)))
    assert verdict == (False, f"of {dtype}", dtype)
    other = judge("dense/steps", jax.ShapeDtypeStruct(MATRIX, jnp.dtype(dtype)))
    assert other.kernel_of is None and not other.sparse


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("dense/kernel", "a kernel"),
        ("embed/embedding", "an embedding"),
        ("mix", "a matrix"),
        ("dense/bias", "a bias"),
        ("LayerNorm_0/scale", "of a norm"),
        ("pos_embed", "of positions"),
        ("cls_token", "a token"),
        ("block/gamma", "a scale"),
        ("bn/running_mean", "a statistic"),
        ("skip_ghost/kernel", "a ghost, gone before training ends"),
    ],
)
def test_reasons(name, reason):
    verdict = judge(name, jax.ShapeDtypeStruct(MATRIX, jnp.float32))
    # A scale of a norm is both.
    assert verdict.reason in (reason, "a scale")
