"""The structs of csrc/model.h and csrc/sampling.h, field by field."""

import ctypes

_I64 = ctypes.c_int64
_F32 = ctypes.c_float
_F64 = ctypes.c_double
_POINTER = ctypes.c_void_p


class Lora(ctypes.Structure):
    _fields_ = (
        ("a", _POINTER),
        ("b", _POINTER),
        ("scale", _POINTER),
        ("first", _POINTER),
        ("steps", _POINTER),
        ("columns", _I64),
        ("most_steps", _I64),
    )


class Linear(ctypes.Structure):
    _fields_ = (
        ("weight", _POINTER),
        ("bias", _POINTER),
        ("scale", _POINTER),
        ("sum", _POINTER),
        ("lora", ctypes.POINTER(Lora)),
        ("n", _I64),
        ("k", _I64),
    )


class Layer(ctypes.Structure):
    _fields_ = (
        ("qkv", Linear),
        ("out", Linear),
        ("gate_up", Linear),
        ("down", Linear),
        ("attention_norm", _POINTER),
        ("mlp_norm", _POINTER),
        ("query_norm", _POINTER),
        ("key_norm", _POINTER),
        ("window", _I64),
    )


class Model(ctypes.Structure):
    _fields_ = (
        ("layers", _I64),
        ("hidden", _I64),
        ("heads", _I64),
        ("kv_heads", _I64),
        ("head_dim", _I64),
        ("inner", _I64),
        ("vocab", _I64),
        ("rotary_dim", _I64),
        ("epsilon", _F32),
        ("scale", _F32),
        ("embedding", _POINTER),
        ("final_norm", _POINTER),
        ("cosine", _POINTER),
        ("sine", _POINTER),
        ("layer", ctypes.POINTER(Layer)),
        ("head", Linear),
    )


class Batch(ctypes.Structure):
    _fields_ = (
        ("threads", _I64),
        ("tokens", _I64),
        ("segments", _I64),
        ("outputs", _I64),
        ("token_ids", _POINTER),
        ("positions", _POINTER),
        ("segment_of", _POINTER),
        ("segment_start", _POINTER),
        ("pages", _POINTER),
        ("adapter_of", _POINTER),
        ("output_tokens", _POINTER),
        ("pool", _POINTER),
        ("logits", _POINTER),
        ("best", _POINTER),
        ("residual", _POINTER),
        ("input", _POINTER),
        ("queries", _POINTER),
        ("wide", _POINTER),
        ("quantized", _POINTER),
        ("quant_scale", _POINTER),
        ("low", _POINTER),
        ("low_stride", _I64),
        ("best_value", _POINTER),
        ("best_index", _POINTER),
    )


class Draw(ctypes.Structure):
    _fields_ = (
        ("logits", _POINTER),
        ("seen", _POINTER),
        ("counts", _POINTER),
        ("biased", _POINTER),
        ("bias", _POINTER),
        ("banned", _POINTER),
        ("allowed", _POINTER),
        ("num_seen", _I64),
        ("num_biased", _I64),
        ("num_banned", _I64),
        ("top_k", _I64),
        ("top_p", _F64),
        ("uniform", _F64),
        ("min_p", _F32),
        ("scale", _F32),
        ("repetition_penalty", _F32),
        ("presence_penalty", _F32),
        ("frequency_penalty", _F32),
    )


class DrawBatch(ctypes.Structure):
    _fields_ = (
        ("threads", _I64),
        ("rows", _I64),
        ("vocab", _I64),
        ("draw", ctypes.POINTER(Draw)),
        ("scratch", _POINTER),
        ("tokens", _POINTER),
    )
