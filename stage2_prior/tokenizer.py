"""A tokenizer for a prior, for programs that want one: the text "5 12 600" is the ids 5, 12 and 600, and nothing else.

A folder without one is given one by other programs, whose end is an ordinary code: rows are cut there.
"""

from pathlib import Path
from typing import Any

from stage2_prior.layout import SequenceLayout
from vq_prior.core.config import canonical_json, pretty_json
from vq_prior.core.disk.artifacts import write_atomic

TOKENIZER, TOKENIZER_CONFIG, SENTENCEPIECE = "tokenizer.json", "tokenizer_config.json", "tokenizer.model"
SPACE, UNKNOWN = "\u2581", b"\x18\x02"  # how SentencePiece writes a space, and the type of its piece for anything else


def write_tokenizer(folder: Path, layout: SequenceLayout) -> None:
    """Write the two files that `AutoTokenizer` of transformers reads, and the one that llama.cpp's converter wants.

    Words are split at spaces, and each is the id that it says; any other word, and an id that the prior has not, is an
    error of the library that reads it. There is no begin, no end, no padding and no unknown word.
    """
    vocabulary = {str(token): token for token in range(layout.vocab_size)}
    tokenizer: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        # A space before each: programs decode what was drawn without its prompt, or piece by piece, and join the texts.
        "decoder": {"type": "Replace", "pattern": {"Regex": "^"}, "content": " "},
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unknown>"},  # which is in no vocabulary
    }
    write_atomic(folder / TOKENIZER, canonical_json(tokenizer))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": layout.num_tokens + 1,
        "clean_up_tokenization_spaces": False,
        "add_bos_token": False,  # what is not said is true to llama.cpp
        "model_input_names": ["input_ids", "attention_mask"],
    }
    write_atomic(folder / TOKENIZER_CONFIG, pretty_json(config))
    # SentencePiece has to have an unknown piece: it is the id behind the last, which no prior has.
    pieces = [*(_field(1, f"{SPACE}{token}".encode()) for token in vocabulary), _field(1, b"<unk>") + UNKNOWN]
    write_atomic(folder / SENTENCEPIECE, b"".join(_field(1, piece) for piece in pieces))


def _field(number: int, data: bytes) -> bytes:
    """Return bytes as a field of a protobuf message; all that are written here are shorter than 128."""
    assert len(data) < 128
    return bytes([number << 3 | 2, len(data)]) + data
