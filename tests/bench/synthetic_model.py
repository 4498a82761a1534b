#!/usr/bin/env python3
"""Writes a Qwen3-MoE model of random weights, as large as one likes, as a
Hugging Face directory that `portolan` loads: for measurements and tests whose
point is size. Needs nothing but Python.

    synthetic_model.py DIR [--layers 8] [--experts 32] [--hidden 256] ...

The same arguments give the same bytes. The tokenizer of the bundled model is
copied, so text prompts work; what comes out is noise.
"""

import argparse
import json
import pathlib
import random
import shutil
import struct

BUNDLED = pathlib.Path(__file__).resolve().parents[2] / "models" / "tiny-moe"

# High bytes of bf16: sign and exponents of 2^-7 .. 2^-4, by a random byte.
HIGH = bytes((0x80 if i & 1 else 0) | (0x3C + (i >> 1 & 1)) for i in range(256))
ONES = b"\x80\x3f"


def weights(source, count):
    """`count` bf16 values of magnitude around 2^-6, either sign."""
    noise = source.randbytes(2 * count)
    values = bytearray(noise)
    values[1::2] = noise[1::2].translate(HIGH)
    return bytes(values)


def tensors(a):
    """(name, shape) of every tensor, in file order."""
    head = a.hidden // a.heads
    yield "model.embed_tokens.weight", [a.vocab, a.hidden]
    yield "model.norm.weight", [a.hidden]
    yield "lm_head.weight", [a.vocab, a.hidden]
    for layer in range(a.layers):
        prefix = f"model.layers.{layer}."
        yield prefix + "input_layernorm.weight", [a.hidden]
        yield prefix + "post_attention_layernorm.weight", [a.hidden]
        attention = prefix + "self_attn."
        yield attention + "q_proj.weight", [a.hidden, a.hidden]
        yield attention + "k_proj.weight", [a.kv_heads * head, a.hidden]
        yield attention + "v_proj.weight", [a.kv_heads * head, a.hidden]
        yield attention + "o_proj.weight", [a.hidden, a.hidden]
        yield attention + "q_norm.weight", [head]
        yield attention + "k_norm.weight", [head]
        yield prefix + "mlp.gate.weight", [a.experts, a.hidden]
        for expert in range(a.experts):
            mlp = f"{prefix}mlp.experts.{expert}."
            yield mlp + "gate_proj.weight", [a.width, a.hidden]
            yield mlp + "up_proj.weight", [a.width, a.hidden]
            yield mlp + "down_proj.weight", [a.hidden, a.width]


def elements(shape):
    count = 1
    for size in shape:
        count *= size
    return count


def config(a):
    return {"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe",
            "attention_bias": False, "bos_token_id": 0, "eos_token_id": 1,
            "decoder_sparse_step": 1, "head_dim": a.hidden // a.heads,
            "hidden_act": "silu", "hidden_size": a.hidden,
            "intermediate_size": a.width, "max_position_embeddings": a.context,
            "mlp_only_layers": [], "moe_intermediate_size": a.width,
            "norm_topk_prob": True, "num_attention_heads": a.heads,
            "num_experts": a.experts, "num_experts_per_tok": a.top_k,
            "num_hidden_layers": a.layers, "num_key_value_heads": a.kv_heads,
            "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
            "tie_word_embeddings": False, "torch_dtype": "bfloat16",
            "vocab_size": a.vocab}


def write(a):
    directory = pathlib.Path(a.directory)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config(a)))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(BUNDLED / name, directory / name)
    header, end = {}, 0
    for name, shape in tensors(a):
        size = 2 * elements(shape)
        header[name] = {"dtype": "BF16", "shape": shape,
                        "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(directory / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        if a.sparse:  # zeros that take no disk: for plans, not for runs
            file.truncate(8 + len(text) + end)
            return
        source = random.Random(a.seed)
        for name, shape in tensors(a):
            count = elements(shape)
            norm = name.endswith("norm.weight")
            file.write(ONES * count if norm else weights(source, count))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory")
    for flag, default in (("layers", 8), ("experts", 32), ("top-k", 4),
                          ("hidden", 256), ("width", 256), ("heads", 4),
                          ("kv-heads", 2), ("vocab", 4096), ("context", 512),
                          ("seed", 1)):
        parser.add_argument("--" + flag, type=int, default=default)
    parser.add_argument("--sparse", action="store_true",
                        help="the right size and headers, but no weights")
    write(parser.parse_args())


if __name__ == "__main__":
    main()
