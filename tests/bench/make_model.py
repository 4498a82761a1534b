#!/usr/bin/env python3
"""Writes one random Qwen3-MoE model in two forms with the very same weights:
a Hugging Face directory (bf16 safetensors), which Portolan reads, and a GGUF
file (bf16 matrices, f32 norms and gates), which llama.cpp reads.

  make_model.py --preset M --hf model-M --gguf model-M.gguf

Presets: M has 1.7 G parameters (64 experts, top-8, 3.4 GB), S 16.6 M. The
weights are a function of the seed and the tensor's name alone, so a model can
be written again anywhere. There is no tokenizer: benches use token ids. Needs
numpy.
"""

import argparse
import concurrent.futures
import dataclasses
import json
import os
import struct
import sys
import zlib

import numpy as np


@dataclasses.dataclass
class Shape:
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    experts: int
    top_k: int
    intermediate: int
    vocab: int
    context: int = 16384


PRESETS = {
    "S": Shape(8, 192, 6, 2, 32, 32, 4, 96, 4096),
    "M": Shape(16, 1024, 16, 4, 64, 64, 8, 512, 32000),
}
ROPE_THETA = 1e6
NORM_EPS = 1e-6


@dataclasses.dataclass
class Tensor:
    """`parts`: the tensors of the Hugging Face model that lie, one after the
    other, in the one tensor of the GGUF file."""

    gguf: str
    parts: list
    shape: tuple  # of one part
    f32_in_gguf: bool = False

    def gguf_shape(self):
        stack = (len(self.parts),) if len(self.parts) > 1 else ()
        return stack + self.shape

    def elements(self):
        return int(np.prod(self.gguf_shape(), dtype=np.int64))

    def gguf_bytes(self):
        return self.elements() * (4 if self.f32_in_gguf else 2)


def layer_tensors(shape, layer):
    here, there = f"blk.{layer}.", f"model.layers.{layer}."
    q = shape.heads * shape.head_dim
    kv = shape.kv_heads * shape.head_dim
    plain = [
        ("attn_norm", "input_layernorm", (shape.hidden,), True),
        ("attn_q", "self_attn.q_proj", (q, shape.hidden), False),
        ("attn_k", "self_attn.k_proj", (kv, shape.hidden), False),
        ("attn_v", "self_attn.v_proj", (kv, shape.hidden), False),
        ("attn_output", "self_attn.o_proj", (shape.hidden, q), False),
        ("attn_q_norm", "self_attn.q_norm", (shape.head_dim,), True),
        ("attn_k_norm", "self_attn.k_norm", (shape.head_dim,), True),
        ("ffn_norm", "post_attention_layernorm", (shape.hidden,), True),
        ("ffn_gate_inp", "mlp.gate", (shape.experts, shape.hidden), True),
    ]
    tensors = [
        Tensor(f"{here}{gguf}.weight", [f"{there}{hf}.weight"], dims, f32)
        for gguf, hf, dims, f32 in plain
    ]
    up = (shape.intermediate, shape.hidden)
    for name, dims in (("gate", up), ("up", up), ("down", up[::-1])):
        parts = [
            f"{there}mlp.experts.{e}.{name}_proj.weight"
            for e in range(shape.experts)
        ]
        tensors.append(Tensor(f"{here}ffn_{name}_exps.weight", parts, dims))
    return tensors


def all_tensors(shape):
    words = (shape.vocab, shape.hidden)
    tensors = [Tensor("token_embd.weight", ["model.embed_tokens.weight"], words)]
    for layer in range(shape.layers):
        tensors += layer_tensors(shape, layer)
    tensors.append(
        Tensor("output_norm.weight", ["model.norm.weight"], (shape.hidden,), True)
    )
    tensors.append(Tensor("output.weight", ["lm_head.weight"], words))
    return tensors


def random_bf16(name, shape, seed):
    """The tensor as bf16 bits. Matrices keep the variance of what enters them;
    norms are near 1."""
    rng = np.random.Generator(np.random.SFC64([seed, zlib.crc32(name.encode())]))
    values = rng.standard_normal(shape, dtype=np.float32)
    if name.endswith("norm.weight"):
        values = np.float32(1) + np.float32(0.05) * values
    elif "embed_tokens" not in name:
        values *= np.float32(shape[-1] ** -0.5)
    bits = values.view(np.uint32)
    nearest_even = (bits >> np.uint32(16)) & np.uint32(1)
    return ((bits + np.uint32(0x7FFF) + nearest_even) >> np.uint32(16)).astype("<u2")


def widen(bits):
    return (bits.astype(np.uint32) << np.uint32(16)).view("<f4")


class SafetensorsWriter:
    """Shards of about `shard_bytes`, tensors one after the other."""

    def __init__(self, directory, shape, tensors, shard_bytes):
        os.makedirs(directory, exist_ok=True)
        self.directory = directory
        self.shards = self.split(tensors, shard_bytes)
        self.names = {}
        for i, shard in enumerate(self.shards):
            for name, _ in shard:
                self.names[name] = self.file_name(i)
        self.write_json("config.json", hf_config(shape))
        if len(self.shards) > 1:
            total = sum(2 * int(np.prod(s)) for x in self.shards for _, s in x)
            self.write_json(
                "model.safetensors.index.json",
                {"metadata": {"total_size": total}, "weight_map": self.names},
            )
        self.next_shard = 0
        self.left = 0
        self.file = None

    @staticmethod
    def split(tensors, shard_bytes):
        shards, size = [[]], 0
        for tensor in tensors:
            for part in tensor.parts:
                part_bytes = 2 * int(np.prod(tensor.shape))
                if shards[-1] and size + part_bytes > shard_bytes:
                    shards.append([])
                    size = 0
                shards[-1].append((part, tensor.shape))
                size += part_bytes
        return shards

    def file_name(self, i):
        if len(self.shards) == 1:
            return "model.safetensors"
        return f"model-{i + 1:05d}-of-{len(self.shards):05d}.safetensors"

    def write_json(self, name, value):
        with open(os.path.join(self.directory, name), "w") as file:
            json.dump(value, file, indent=1)

    def open_next(self):
        self.close()
        shard = self.shards[self.next_shard]
        header, at = {"__metadata__": {"format": "pt"}}, 0
        for name, shape in shard:
            end = at + 2 * int(np.prod(shape))
            header[name] = {
                "dtype": "BF16",
                "shape": list(shape),
                "data_offsets": [at, end],
            }
            at = end
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-(8 + len(text)) % 64)
        path = os.path.join(self.directory, self.file_name(self.next_shard))
        self.file = open(path, "wb")
        self.file.write(struct.pack("<Q", len(text)) + text)
        self.next_shard += 1
        self.left = len(shard)

    def add(self, bits):
        if self.left == 0:
            self.open_next()
        self.file.write(bits.data)
        self.left -= 1

    def close(self):
        if self.file is not None:
            self.file.close()


def hf_config(shape):
    return {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "torch_dtype": "bfloat16",
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "num_experts": shape.experts,
        "num_experts_per_tok": shape.top_k,
        "moe_intermediate_size": shape.intermediate,
        "intermediate_size": shape.intermediate * shape.top_k,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "vocab_size": shape.vocab,
        "rms_norm_eps": NORM_EPS,
        "rope_theta": ROPE_THETA,
        "rope_scaling": None,
        "hidden_act": "silu",
        "attention_bias": False,
        "tie_word_embeddings": False,
        "max_position_embeddings": shape.context,
        "use_sliding_window": False,
        "sliding_window": None,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }


class GgufWriter:
    """GGUF version 3, little-endian, data aligned to 32 bytes."""

    ALIGNMENT = 32
    U32, F32, STRING = 4, 6, 8  # kinds of values
    F32_DATA, BF16_DATA = 0, 30  # kinds of tensors

    def __init__(self, path, shape, tensors):
        values = self.values(shape)
        infos, at = [], 0
        for tensor in tensors:
            dims = tensor.gguf_shape()[::-1]  # innermost first
            kind = self.F32_DATA if tensor.f32_in_gguf else self.BF16_DATA
            infos.append(
                self.text(tensor.gguf)
                + struct.pack("<I", len(dims))
                + struct.pack(f"<{len(dims)}Q", *dims)
                + struct.pack("<IQ", kind, at)
            )
            at += tensor.gguf_bytes() + -tensor.gguf_bytes() % self.ALIGNMENT
        head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(values))
        head += b"".join(values) + b"".join(infos)
        self.file = open(path, "wb")
        self.file.write(head + b"\0" * (-len(head) % self.ALIGNMENT))

    @staticmethod
    def text(value):
        return struct.pack("<Q", len(value.encode())) + value.encode()

    def values(self, shape):
        def pair(key, kind, packed):
            return self.text(key) + struct.pack("<I", kind) + packed

        numbers = {
            "block_count": shape.layers,
            "context_length": shape.context,
            "embedding_length": shape.hidden,
            "feed_forward_length": shape.intermediate * shape.top_k,
            "expert_feed_forward_length": shape.intermediate,
            "expert_count": shape.experts,
            "expert_used_count": shape.top_k,
            "attention.head_count": shape.heads,
            "attention.head_count_kv": shape.kv_heads,
            "attention.key_length": shape.head_dim,
            "attention.value_length": shape.head_dim,
            "vocab_size": shape.vocab,
        }
        floats = {
            "rope.freq_base": ROPE_THETA,
            "attention.layer_norm_rms_epsilon": NORM_EPS,
        }
        texts = {
            "general.architecture": "qwen3moe",
            "general.name": "random weights",
            "tokenizer.ggml.model": "none",
        }
        values = [pair(k, self.STRING, self.text(v)) for k, v in texts.items()]
        values.append(pair("general.file_type", self.U32, struct.pack("<I", 32)))
        for key, number in numbers.items():
            packed = struct.pack("<I", number)
            values.append(pair(f"qwen3moe.{key}", self.U32, packed))
        for key, number in floats.items():
            packed = struct.pack("<f", number)
            values.append(pair(f"qwen3moe.{key}", self.F32, packed))
        return values

    def add(self, tensor, bits):
        data = widen(bits) if tensor.f32_in_gguf else bits
        self.file.write(data.data)
        if self.file.tell() % self.ALIGNMENT and len(tensor.parts) == 1:
            self.file.write(b"\0" * (-self.file.tell() % self.ALIGNMENT))

    def close(self):
        self.file.close()


def write_model(shape, hf=None, gguf=None, seed=1, shard_bytes=1 << 30):
    """Writes what is asked for, in one pass; returns the parameters."""
    tensors = all_tensors(shape)
    writers = []
    if hf:
        to_hf = SafetensorsWriter(hf, shape, tensors, shard_bytes)
        writers.append(to_hf)
    if gguf:
        to_gguf = GgufWriter(gguf, shape, tensors)
        writers.append(to_gguf)
    # Threads suffice: numpy draws and rounds without the interpreter's lock.
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for tensor in tensors:
            def draw(part, dims=tensor.shape):
                return random_bf16(part, dims, seed)

            for bits in pool.map(draw, tensor.parts):
                if hf:
                    to_hf.add(bits)
                if gguf:
                    to_gguf.add(tensor, bits)
    for writer in writers:
        writer.close()
    return sum(tensor.elements() for tensor in tensors)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", choices=PRESETS, required=True)
    parser.add_argument("--hf", metavar="DIR", help="write the Hugging Face form")
    parser.add_argument("--gguf", metavar="FILE", help="write the GGUF form")
    parser.add_argument("--seed", type=int, default=1)
    for field in dataclasses.fields(Shape):
        name = "--" + field.name.replace("_", "-")
        parser.add_argument(name, type=int, help="instead of the preset's")
    args = parser.parse_args()
    if not args.hf and not args.gguf:
        parser.error("give --hf, --gguf or both")
    changed = {
        field.name: getattr(args, field.name)
        for field in dataclasses.fields(Shape)
        if getattr(args, field.name) is not None
    }
    shape = dataclasses.replace(PRESETS[args.preset], **changed)
    parameters = write_model(shape, args.hf, args.gguf, args.seed)
    print(f"{parameters} parameters")
    return 0


if __name__ == "__main__":
    sys.exit(main())
