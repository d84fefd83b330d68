#!/usr/bin/env bash
# llama.cpp, as xllamacpp 2026.10.11549 carries it, with gguf 0.19.0; GGUF of format 3.
#
# A key-value cache of float32 (`-ctk f32 -ctv f32`) takes twice the memory of one of float16 and changes not one bit of
# what is computed: flash attention, which is on by default ("auto"), casts keys and values to float16 before it reads
# them. Only with flash attention off does the cache compute in the type that was asked for. Seen:
#
#     flash attention auto: 8 steps, log-probabilities of f32 cache and f16 cache differ by 0.0e+00
#     flash attention off:  8 steps, log-probabilities of f32 cache and f16 cache differ by 6.7e-03
#
# Who compares an engine with its reference asks for a float32 cache to take rounding out of the comparison, sees the
# same rows differ as before, and looks for the fault elsewhere: of 128 rows of 64 greedy tokens 10 differed with either
# cache, none with `-ctk f32 -ctv f32 -fa off`. This project names the three settings in docs/share.md.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q xllamacpp==2026.10.11549 gguf==0.19.0 numpy==2.4.2

cat > "$folder/model.py" <<'PY'
"""A model of two layers with random weights, and a vocabulary of the numbers below 64."""

import sys

import gguf
import numpy as np

WIDTH, HEADS, INNER, WORDS = 64, 4, 96, 64
rng = np.random.default_rng(0)
writer = gguf.GGUFWriter(sys.argv[1], "llama")
writer.add_block_count(2)
writer.add_context_length(128)
writer.add_embedding_length(WIDTH)
writer.add_feed_forward_length(INNER)
writer.add_head_count(HEADS)
writer.add_head_count_kv(HEADS)
writer.add_layer_norm_rms_eps(1e-6)
writer.add_rope_dimension_count(WIDTH // HEADS)
writer.add_rope_freq_base(100.0)
writer.add_vocab_size(WORDS)
writer.add_tokenizer_model("llama")
writer.add_tokenizer_pre("default")
writer.add_token_list([f"\u2581{n}".encode() for n in range(WORDS)])
writer.add_token_scores([0.0] * WORDS)
writer.add_token_types([gguf.TokenType.NORMAL] * WORDS)
writer.add_eos_token_id(WORDS - 1)
writer.add_add_bos_token(False)


def matrix(name: str, rows: int, columns: int) -> None:
    writer.add_tensor(name, (rng.standard_normal((rows, columns)) * 0.3).astype(np.float32))


matrix("token_embd.weight", WORDS, WIDTH)
matrix("output.weight", WORDS, WIDTH)
writer.add_tensor("output_norm.weight", np.ones(WIDTH, np.float32))
for layer in range(2):
    for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
        matrix(f"blk.{layer}.{name}.weight", WIDTH, WIDTH)
    matrix(f"blk.{layer}.ffn_gate.weight", INNER, WIDTH)
    matrix(f"blk.{layer}.ffn_up.weight", INNER, WIDTH)
    matrix(f"blk.{layer}.ffn_down.weight", WIDTH, INNER)
    for name in ("attn_norm", "ffn_norm"):
        writer.add_tensor(f"blk.{layer}.{name}.weight", np.ones(WIDTH, np.float32))
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
PY

cat > "$folder/draw.py" <<'PY'
"""Print the tokens and log-probabilities of eight greedy steps with a cache of a type."""

import json
import sys
import urllib.request

import xllamacpp

path, cache, flash = sys.argv[1:]
params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.n_parallel, params.warmup, params.verbosity = path, 128, 1, False, 0
params.cache_type_k = params.cache_type_v = getattr(xllamacpp.ggml_type, f"GGML_TYPE_{cache}")
params.flash_attn_type = getattr(xllamacpp.llama_flash_attn_type, f"LLAMA_FLASH_ATTN_TYPE_{flash}")
server = xllamacpp.Server(params)
asked = {"prompt": list(range(40)), "n_predict": 8, "temperature": 0, "n_probs": 5, "cache_prompt": False}
request = urllib.request.Request(
    server.listening_address + "/completion", json.dumps(asked).encode(), {"Content-Type": "application/json"}
)
steps = json.load(urllib.request.urlopen(request))["completion_probabilities"]
print("DRAWN", json.dumps([[each["id"], each["logprob"]] for step in steps for each in step["top_logprobs"]]))
PY

python=$folder/venv/bin/python
"$python" "$folder/model.py" "$folder/model.gguf"
for flash in AUTO DISABLED; do
    for cache in F16 F32; do
        "$python" "$folder/draw.py" "$folder/model.gguf" $cache $flash 2> "$folder/log" | grep '^DRAWN' \
            | cut -c7- > "$folder/$flash-$cache.json"
    done
done
"$python" - "$folder" <<'PY'
import json
import sys


def difference(flash: str) -> float:
    half, single = (json.load(open(f"{sys.argv[1]}/{flash}-{cache}.json")) for cache in ("F16", "F32"))
    return max(abs(a[1] - b[1]) for a, b in zip(half, single, strict=True))


auto, off = difference("AUTO"), difference("DISABLED")
print(f"flash attention auto: 8 steps, log-probabilities of f32 cache and f16 cache differ by {auto:.1e}")
print(f"flash attention off:  8 steps, log-probabilities of f32 cache and f16 cache differ by {off:.1e}")
sys.exit(0 if auto == 0 < off else 1)
PY
