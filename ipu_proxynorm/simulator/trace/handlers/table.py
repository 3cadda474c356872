"""The table of what is refused by argument: the rows of all families."""

from __future__ import annotations

from typing import Dict, List, Tuple

from . import integers, layers, losses, pooling, tensors
from .refusal import Refusal, rows_by_name

ROWS: List[Refusal] = [
    *integers.ROWS,
    *layers.ROWS,
    *losses.ROWS,
    *pooling.ROWS,
    *tensors.ROWS,
]

FUNCTION_ROWS = rows_by_name(ROWS, "functions")
OPERATOR_ROWS = rows_by_name(ROWS, "operators")
#: Looked at for every operator that writes to its first argument.
IN_PLACE_ROWS = OPERATOR_ROWS.pop("*in-place*")

_RECURRENT = "input hx params has_biases num_layers dropout train bidirectional batch_first"
#: The parameters of functions that are not written in Python, as Python calls them.
SIGNATURES: Dict[str, str] = {
    "lstm": _RECURRENT,
    "gru": _RECURRENT,
    "rnn_tanh": _RECURRENT,
    "rnn_relu": _RECURRENT,
    "batch_norm": "input weight bias running_mean running_var training momentum eps cudnn_enabled",
    "group_norm": "input num_groups weight bias eps cudnn_enabled",
    "layer_norm": "input normalized_shape weight bias eps cudnn_enable",
    "instance_norm": "input weight bias running_mean running_var use_input_stats momentum eps "
    "cudnn_enabled",
    "conv2d": "input weight bias stride padding dilation groups",
    "prelu": "input weight",
    "dropout": "input p train",
    "feature_dropout": "input p train",
    "scaled_dot_product_attention": "query key value attn_mask dropout_p is_causal scale",
    "convolution": "input weight bias stride padding dilation transposed output_padding groups",
    "ctc_loss": "log_probs targets input_lengths target_lengths blank reduction zero_infinity",
    "max_pool1d": "input kernel_size stride padding dilation ceil_mode",
    "max_pool2d": "input kernel_size stride padding dilation ceil_mode",
    "max_pool3d": "input kernel_size stride padding dilation ceil_mode",
    "max_pool3d_with_indices": "input kernel_size stride padding dilation ceil_mode",
    "avg_pool2d": "input kernel_size stride padding ceil_mode count_include_pad divisor_override",
    "avg_pool3d": "input kernel_size stride padding ceil_mode count_include_pad divisor_override",
    "adaptive_avg_pool1d": "input output_size",
    "adaptive_avg_pool2d": "input output_size",
    "adaptive_avg_pool3d": "input output_size",
    "as_strided": "input size stride storage_offset",
    "as_strided_": "input size stride storage_offset",
    "argsort": "input dim descending",
    "linalg_matrix_norm": "A ord dim keepdim dtype",
    "linalg_norm": "A ord dim keepdim dtype",
    "norm": "input p dim keepdim dtype",
}

#: Results that PopTorch's handler does not make: using them is refused
#: (PopartCanonicalization.cpp:223, EmbeddingOps.cpp:73).
UNREAD_RESULTS: Dict[str, Tuple[int, ...]] = {
    "max_pool2d_with_indices": (1,),
    "native_layer_norm": (1, 2),
    "_embedding_bag": (1, 2, 3),
    "_embedding_bag_forward_only": (1, 2, 3),
}
