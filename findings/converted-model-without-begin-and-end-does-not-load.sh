#!/usr/bin/env bash
# CTranslate2 4.8.5 (with transformers 4.57.6): a decoder that has no begin and no end token.
#
# The converter takes such a model without a word and writes `null` for both into its `config.json`; the loader of the same
# package wants text there, and what it says names neither the entry nor the file. Any token in their place will do: what
# is drawn from a prompt of ids is what transformers draws. Seen here:
#
#     written: bos_token None, eos_token None
#     as written: RuntimeError [json.exception.type_error.302] type must be string, but is null
#     with "11" for both: the ids of transformers, True
#
# It costs whoever converts a model over ids that are no text (codes of pictures, of sound, of motion): the conversion
# looks done, and the first program that serves it stops.
#
# Here: docs/share.md says what to write there, in the table of other engines.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/environment"
"$folder/environment/bin/pip" install -q --disable-pip-version-check ctranslate2==4.8.5 transformers==4.57.6 torch==2.13.0
cd "$folder"
environment/bin/python - <<'PYTHON'
import json
from pathlib import Path

import ctranslate2
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

IDS, STEPS = 12, 8
torch.manual_seed(0)
sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2}
none = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
model = LlamaForCausalLM(LlamaConfig(vocab_size=IDS, max_position_embeddings=32, **sizes, **none)).eval()
model.save_pretrained("model")
words = Tokenizer(models.WordLevel({str(number): number for number in range(IDS)}, unk_token="0"))
words.pre_tokenizer = pre_tokenizers.Whitespace()
PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained("model")
ctranslate2.converters.TransformersConverter("model").convert("converted")

config = Path("converted/config.json")
written = json.loads(config.read_text())
print(f"written: bos_token {written['bos_token']}, eos_token {written['eos_token']}")
assert written["bos_token"] is None and written["eos_token"] is None
try:
    ctranslate2.Generator("converted")
except RuntimeError as error:
    print(f"as written: RuntimeError {error}")
    assert "null" in str(error)
else:
    raise SystemExit("it loads as written")
config.write_text(json.dumps(written | {"bos_token": "11", "eos_token": "11"}))
engine = ctranslate2.Generator("converted", compute_type="float32")
drawn = engine.generate_batch([["11"]], max_length=STEPS, include_prompt_in_result=False, end_token=[])
wanted = model.generate(torch.tensor([[11]]), max_new_tokens=STEPS, do_sample=False)[0, 1:].tolist()
same = drawn[0].sequences_ids[0] == wanted
print(f'with "11" for both: the ids of transformers, {same}')
assert same
PYTHON
