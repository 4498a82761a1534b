#!/usr/bin/env python3
"""Writes the small random models and goldens of tests/data/models.

Optional: the goldens are committed. To make them again, in an environment of
its own (torch is large):
  python3 -m venv /tmp/parity && /tmp/parity/bin/pip install torch transformers
  /tmp/parity/bin/python tests/parity/transformers_parity.py [--check]

Every directory is what a user would have: config.json and safetensors, read
back by transformers itself before its logits are noted. --check compares with
the committed goldens instead of writing them. The format is described in
tests/data/models/README.md.
"""

import argparse
import json
import pathlib
import shutil
import sys
import tempfile

import torch
import transformers
from safetensors.torch import save_file

DATA = pathlib.Path(__file__).resolve().parents[1] / "data" / "models"
NUM_TOKENS = 14
NUM_GREEDY = 8

QWEN3_MOE = dict(
    model_type="qwen3_moe", architectures=["Qwen3MoeForCausalLM"],
    vocab_size=72, hidden_size=40, intermediate_size=56,
    moe_intermediate_size=24, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2, head_dim=16, num_experts=6, num_experts_per_tok=2,
    max_position_embeddings=64, rms_norm_eps=1e-6, hidden_act="silu",
    attention_bias=False, decoder_sparse_step=1, mlp_only_layers=[],
    use_sliding_window=False, sliding_window=None, norm_topk_prob=True,
    tie_word_embeddings=False, bos_token_id=0, eos_token_id=1)

MIXTRAL = dict(
    model_type="mixtral", architectures=["MixtralForCausalLM"],
    vocab_size=72, hidden_size=48, intermediate_size=32, num_hidden_layers=2,
    num_attention_heads=6, num_key_value_heads=2, num_local_experts=5,
    num_experts_per_tok=2, max_position_embeddings=64, rms_norm_eps=1e-5,
    hidden_act="silu", sliding_window=None, tie_word_embeddings=False,
    bos_token_id=0, eos_token_id=1)

V4_ROPE = dict(rope_theta=10000.0, rope_scaling=None)
V5_ROPE = dict(rope_parameters=dict(rope_type="default", rope_theta=10000.0))

# name: config, dtype, experts fused?, shards. Configs are written as older
# releases of transformers do (rope_theta, rope_scaling) or as newer ones do.
CASES = {
    "qwen3_moe_bf16": (
        QWEN3_MOE | V4_ROPE, torch.bfloat16, False, 1),
    "qwen3_moe_tied_sharded_f32": (
        QWEN3_MOE | V5_ROPE | dict(tie_word_embeddings=True,
                                   norm_topk_prob=False, mlp_only_layers=[0],
                                   num_hidden_layers=2, intermediate_size=40,
                                   num_experts=5, num_key_value_heads=1),
        torch.float32, False, 3),
    "qwen3_moe_fused_bias_f16": (
        QWEN3_MOE | dict(attention_bias=True, num_key_value_heads=4,
                         num_experts_per_tok=3, rope_theta=10000.0,
                         rope_scaling=dict(rope_type="linear", factor=2.0)),
        torch.float16, True, 1),
    "mixtral_bf16": (
        MIXTRAL | dict(rope_theta=1e6), torch.bfloat16, False, 2),
    "mixtral_fused_window_f32": (
        MIXTRAL | dict(
            sliding_window=5, tie_word_embeddings=True, num_local_experts=4,
            num_attention_heads=4, intermediate_size=16, head_dim=16,
            rope_parameters=dict(
                rope_type="llama3", rope_theta=10000.0, factor=4.0,
                low_freq_factor=1.0, high_freq_factor=4.0,
                original_max_position_embeddings=32)),
        torch.float32, True, 1),
}


def random_state(model, seed):
    """Weights large enough that routing and attention are not nearly flat."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, value in sorted(model.state_dict().items()):
        noise = torch.randn(value.shape, generator=generator)
        if name.endswith("norm.weight"):
            state[name] = 1 + 0.1 * noise
        elif name.endswith("bias"):
            state[name] = 0.2 * noise
        elif name.endswith("embed_tokens.weight"):
            state[name] = noise
        else:
            state[name] = noise * 1.5 / value.shape[-1] ** 0.5
    return state


def separate(state, model_type):
    """The per-expert names that published checkpoints have."""
    mixtral = model_type == "mixtral"
    gate, up, down = (("w1", "w3", "w2") if mixtral else
                      ("gate_proj", "up_proj", "down_proj"))
    out = {}
    for name, value in state.items():
        if mixtral:
            name = name.replace(".mlp.", ".block_sparse_moe.")
        if name.endswith("experts.gate_up_proj"):
            base = name.removesuffix("gate_up_proj")
            for e, both in enumerate(value):
                first, second = both.chunk(2)
                out[f"{base}{e}.{gate}.weight"] = first
                out[f"{base}{e}.{up}.weight"] = second
        elif name.endswith("experts.down_proj"):
            base = name.removesuffix("down_proj")
            for e, matrix in enumerate(value):
                out[f"{base}{e}.{down}.weight"] = matrix
        else:
            out[name] = value
    return out


def write_weights(folder, state, num_shards):
    state = {name: value.contiguous() for name, value in state.items()}
    if num_shards == 1:
        save_file(state, folder / "model.safetensors", {"format": "pt"})
        return
    weight_map = {}
    names = sorted(state)
    for shard in range(num_shards):
        file = f"model-{shard + 1:05}-of-{num_shards:05}.safetensors"
        part = {name: state[name] for name in names[shard::num_shards]}
        save_file(part, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": sum(
        value.numel() * value.element_size() for value in state.values())},
        "weight_map": dict(sorted(weight_map.items()))}
    (folder / "model.safetensors.index.json").write_text(
        json.dumps(index, indent=1) + "\n")


def write_model(folder, case, seed):
    fields, dtype, fused, num_shards = case
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(fields, indent=1) + "\n")
    config = transformers.AutoConfig.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_config(config)
    state = {name: value.to(dtype)
             for name, value in random_state(model, seed).items()}
    if config.tie_word_embeddings:
        del state["lm_head.weight"]
    if not fused:
        state = separate(state, config.model_type)
    write_weights(folder, state, num_shards)


def rounded(values):
    return [float(f"{value:.7g}") for value in values]


def gates(model):
    return [layer.mlp.gate for layer in model.model.layers
            if hasattr(layer.mlp, "gate")]


def golden_of(folder, seed):
    """What transformers computes in f32 from the weights rounded to bf16."""
    model, loaded = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager",
        output_loading_info=True)
    for fault in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if loaded[fault]:
            sys.exit(f"{folder}: {fault}: {loaded[fault]}")
    model.eval()
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16().float()
    vocab = model.config.vocab_size
    generator = torch.Generator().manual_seed(seed + 1)
    tokens = torch.randint(vocab, (1, NUM_TOKENS), generator=generator)
    routing = []
    hooks = [gate.register_forward_hook(
        lambda module, args, out: routing.append(out)) for gate in gates(model)]
    with torch.no_grad():
        logits = model(tokens, use_cache=False).logits[0]
    for hook in hooks:
        hook.remove()
    greedy, margins = tokens, []
    with torch.no_grad():
        for _ in range(NUM_GREEDY):
            last = model(greedy, use_cache=False).logits[0, -1]
            top = last.topk(2)
            margins.append((top.values[0] - top.values[1]).item())
            greedy = torch.cat([greedy, top.indices[:1].view(1, 1)], 1)
    return {
        "tokens": tokens[0].tolist(),
        "logits": [rounded(row.tolist()) for row in logits],
        "experts": [out[2].tolist() for out in routing],
        "expert_weights": [[rounded(row.tolist()) for row in out[1]]
                           for out in routing],
        "greedy": greedy[0, NUM_TOKENS:].tolist(),
        "greedy_margins": rounded(margins),
    }


def to_text(golden):
    lines = []
    for key, value in golden.items():
        lines.append(f' "{key}": {json.dumps(value, separators=(",", ":"))}')
    return "{\n" + ",\n".join(lines) + "\n}\n"


def difference(a, b):
    """Largest difference of two nested lists of numbers."""
    if isinstance(a, list):
        if len(a) != len(b):
            return float("inf")
        return max(map(difference, a, b), default=0)
    return abs(a - b)


def check(folder, seed):
    committed = json.loads((folder / "golden.json").read_text())
    fresh = golden_of(folder, seed)
    worst = max(difference(committed[key], fresh[key]) for key in fresh)
    print(f"{folder.name}: largest difference {worst:.3g}")
    return worst < 1e-4


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    ok = True
    for seed, (name, case) in enumerate(CASES.items()):
        folder = DATA / name
        if args.check:
            ok &= check(folder, seed)
            continue
        with tempfile.TemporaryDirectory() as scratch:
            made = pathlib.Path(scratch) / name
            write_model(made, case, seed)
            (made / "golden.json").write_text(to_text(golden_of(made, seed)))
            for file in made.iterdir():
                file.chmod(0o644)
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(made, folder)
        size = sum(file.stat().st_size for file in folder.iterdir())
        print(f"{name}: {size} bytes")
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
