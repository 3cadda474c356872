"""Rows of the table: recurrent layers, norms, convolutions, embeddings."""

from __future__ import annotations

from .refusal import Call, Refusal, one_of

_RECURRENT = "popart_canonicalization/RNNOps.cpp"
_NORMS = "popart_canonicalization/NormalizationOps.cpp"
_EMBEDDINGS = "popart_canonicalization/EmbeddingOps.cpp"


def _constant_offsets(call: Call) -> bool:
    offsets = call["offsets"]
    return offsets is None or call.facts.is_constant(offsets)


def _passes_gradients_frozen(call: Call) -> bool:
    given = (call["input"], call["weight"], call["bias"])
    passes = any(tensor is not None and tensor.requires_grad for tensor in given)
    return call.training and not call["training"] and passes


def _drops_all(call: Call) -> bool:
    draws = call["training"] if "training" in call else call["train"]
    return bool(draws) and call["p"] >= 1.0


ROWS = [
    Refusal(
        "lstm-layers",
        "An LSTM of more than one layer",
        lambda call: call["num_layers"] != 1,
        f"{_RECURRENT}:129",
        "call layers of one nn.LSTM each, one after the other",
        functions="lstm",
    ),
    Refusal(
        "lstm-bias",
        "An LSTM without biases",
        lambda call: not call["has_biases"],
        f"{_RECURRENT}:126",
        "give it biases (bias=True) that start at zero",
        functions="lstm",
    ),
    Refusal(
        "lstm-dropout",
        "An LSTM with dropout",
        lambda call: call["dropout"] != 0.0,
        f"{_RECURRENT}:132",
        "use dropout=0 and apply nn.Dropout to its output",
        functions="lstm",
    ),
    Refusal(
        "lstm-bidirectional",
        "A bidirectional LSTM",
        lambda call: bool(call["bidirectional"]),
        f"{_RECURRENT}:135",
        "run a second nn.LSTM over the flipped sequence and concatenate",
        functions="lstm",
    ),
    Refusal(
        "gru-layers",
        "A GRU of more than one layer",
        lambda call: call["num_layers"] != 1,
        f"{_RECURRENT}:56",
        "call layers of one nn.GRU each, one after the other",
        functions="gru",
    ),
    Refusal(
        "gru-dropout",
        "A GRU with dropout",
        lambda call: call["dropout"] != 0.0,
        f"{_RECURRENT}:57",
        "use dropout=0 and apply nn.Dropout to its output",
        functions="gru",
    ),
    Refusal(
        "gru-bidirectional",
        "A bidirectional GRU",
        lambda call: bool(call["bidirectional"]),
        f"{_RECURRENT}:58",
        "run a second nn.GRU over the flipped sequence and concatenate",
        functions="gru",
    ),
    Refusal(
        "rnn-bias",
        "An RNN without biases",
        lambda call: not call["has_biases"],
        f"{_RECURRENT}:259",
        "give it biases (bias=True) that start at zero",
        functions="rnn_tanh rnn_relu",
    ),
    Refusal(
        "rnn-layers",
        "An RNN of more than one layer",
        lambda call: call["num_layers"] != 1,
        f"{_RECURRENT}:262",
        "call layers of one nn.RNN each, one after the other",
        functions="rnn_tanh rnn_relu",
    ),
    Refusal(
        "rnn-dropout",
        "An RNN with dropout",
        lambda call: call["dropout"] != 0.0,
        f"{_RECURRENT}:265",
        "use dropout=0 and apply nn.Dropout to its output",
        functions="rnn_tanh rnn_relu",
    ),
    Refusal(
        "rnn-bidirectional",
        "A bidirectional RNN",
        lambda call: bool(call["bidirectional"]),
        f"{_RECURRENT}:268",
        "run a second nn.RNN over the flipped sequence and concatenate",
        functions="rnn_tanh rnn_relu",
    ),
    Refusal(
        "norm-affine",
        "A norm with a weight and no bias, or a bias and no weight,",
        lambda call: one_of(call["weight"], call["bias"]),
        f"{_NORMS}:53",
        "give both (a bias of zeros changes nothing) or neither",
        functions="batch_norm group_norm layer_norm instance_norm",
        operators="native_batch_norm _native_batch_norm_legit native_group_norm native_layer_norm",
    ),
    Refusal(
        "norm-statistics",
        "A batch norm with a running mean and no running variance, or the reverse,",
        lambda call: one_of(call["running_mean"], call["running_var"]),
        f"{_NORMS}:73",
        "give both or neither",
        functions="batch_norm",
        operators="native_batch_norm _native_batch_norm_legit",
    ),
    Refusal(
        "norm-frozen",
        "A batch norm in evaluation mode through which gradients pass, in training,",
        _passes_gradients_frozen,
        "popart/op/batchnorm.cpp:162",
        "let it train, freeze all that comes before it (requires_grad_(False)), or fold it into "
        "the convolution",
        functions="batch_norm",
        operators="native_batch_norm _native_batch_norm_legit",
    ),
    Refusal(
        "convolution-bias-type",
        "A conv2d whose bias has another type than its input",
        lambda call: (
            call["bias"] is not None
            and not isinstance(call["padding"], str)  # another overload, which does not look
            and call["bias"].dtype != call["input"].dtype
        ),
        "dispatch_tracer/RegisterOptionalAtenOps.cpp.inc:28: torch 2.0's conv2d comes before it",
        "give weight and bias the input's type, as ipu_proxynorm.norm.Conv2d does, or leave the "
        "bias out",
        functions="conv2d",
    ),
    Refusal(
        "prelu-types",
        "A prelu whose weight has another type than its input",
        lambda call: call["input"].dtype != call["weight"].dtype,
        "dispatch_tracer/RegisterOptionalAtenOps.cpp.inc: torch 2.0's prelu comes before it",
        "give the weight the input's type: F.prelu(x, weight.to(x.dtype))",
        functions="prelu",
    ),
    Refusal(
        "attention-types",
        "An attention whose query, key and value differ in type",
        lambda call: len({call[name].dtype for name in ("query", "key", "value")}) > 1,
        "dispatch_tracer/RegisterOptionalAtenOps.cpp.inc: torch 2.0's attention comes before it",
        "give all three one type",
        functions="scaled_dot_product_attention",
    ),
    Refusal(
        "convolution-output-padding",
        "Output padding of a convolution that is not transposed",
        lambda call: not call["transposed"] and any(size > 0 for size in call["output_padding"]),
        "popart_canonicalization/ConvolutionOps.cpp:60",
        "leave output_padding at 0",
        functions="convolution",
    ),
    Refusal(
        "transposed-dilation",
        "A transposed convolution with dilation",
        lambda call: call["transposed"] and any(size != 1 for size in call["dilation"]),
        "popart/op/convtranspose.cpp:86",
        "leave dilation at 1, or spread the weight with zeros",
        operators="convolution",
    ),
    Refusal(
        "dropout-all",
        "A dropout of everything (p=1)",
        _drops_all,
        "popart/op/dropoutbase.cpp:41",
        "multiply by zero, or use p below 1",
        functions="dropout dropout1d dropout2d dropout3d feature_dropout",
    ),
    Refusal(
        "embedding-scaled",
        "An embedding with scale_grad_by_freq",
        lambda call: bool(call["scale_grad_by_freq"]),
        f"{_EMBEDDINGS}:27",
        "leave scale_grad_by_freq at False",
        operators="embedding",
    ),
    Refusal(
        "embedding-sparse",
        "An embedding with sparse gradients",
        lambda call: bool(call["sparse"]),
        f"{_EMBEDDINGS}:27",
        "leave sparse at False",
        operators="embedding",
    ),
    Refusal(
        "embedding-max-norm",
        "An embedding with max_norm (aten::embedding_renorm_)",
        lambda call: True,
        "ErrorOnUnsupportedAten.cpp:30",
        "scale the rows on the host, or after the look-up",
        operators="embedding_renorm_",
    ),
    Refusal(
        "embedding-bag-scaled",
        "An embedding bag with scale_grad_by_freq",
        lambda call: bool(call["scale_grad_by_freq"]),
        f"{_EMBEDDINGS}:61",
        "leave scale_grad_by_freq at False",
        operators="_embedding_bag _embedding_bag_forward_only",
    ),
    Refusal(
        "embedding-bag-sparse",
        "An embedding bag with sparse gradients",
        lambda call: bool(call["sparse"]),
        f"{_EMBEDDINGS}:61",
        "leave sparse at False",
        operators="_embedding_bag _embedding_bag_forward_only",
    ),
    Refusal(
        "embedding-bag-padding",
        "An embedding bag with padding_idx",
        lambda call: (call["padding_idx"] if call["padding_idx"] is not None else -1) >= 0,
        f"{_EMBEDDINGS}:66",
        "look up with nn.Embedding, mask with torch.where and sum",
        operators="_embedding_bag _embedding_bag_forward_only",
    ),
    Refusal(
        "embedding-bag-offsets",
        "An embedding bag whose offsets are computed or given as input",
        lambda call: not _constant_offsets(call),
        f"{_EMBEDDINGS}:94",
        "register the offsets as a buffer of integers, or give indices of two dimensions",
        operators="_embedding_bag _embedding_bag_forward_only",
    ),
]
