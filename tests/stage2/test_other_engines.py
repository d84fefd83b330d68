"""What other programs need beside the weights: the rotary base where they look, and a tokenizer that ends nothing."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from stage2_prior.prior import CausalPrior, load_prior, save_prior
from stage2_prior.sampling import sample_tokens
from vq_prior.core.disk.artifacts import new_folder, verify_manifest
from vq_prior.core.errors import ArtifactError
from vq_prior.core.spec import CodeSpec, LevelSpec


@pytest.fixture(params=["qwen3", "llama"])
def folder(request: pytest.FixtureRequest, make_prior: Callable[..., CausalPrior], tmp_path: Path) -> Path:
    with new_folder(tmp_path / "prior") as staging:
        save_prior(make_prior(request.param), staging)
    return tmp_path / "prior"


def test_the_rotary_base_stands_where_either_version_of_transformers_reads_it(folder: Path) -> None:
    values = json.loads((folder / "config.json").read_text())
    assert values["rope_theta"] == values["rope_parameters"]["rope_theta"] != 10000.0  # what version 4 would take


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rope_theta": 20000.0}, "rope_theta is 20000.0"),
        ({"rope_parameters": "default"}, "rope_parameters is 'default'"),
    ],
)
def test_two_bases_that_differ_are_refused(folder: Path, change: dict[str, Any], message: str) -> None:
    (folder / "manifest.json").unlink()
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | change))
    with pytest.raises(ArtifactError, match=message):
        load_prior(folder)


@pytest.mark.parametrize("gone", ["rope_theta", "rope_parameters"])
def test_a_base_in_one_place_is_the_base(folder: Path, gone: str) -> None:
    """As older versions of vq-prior wrote it, and version 4 of transformers."""
    before = load_prior(folder)
    for name in ("manifest.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model"):
        (folder / name).unlink()
    values = json.loads((folder / "config.json").read_text())
    del values[gone]
    (folder / "config.json").write_text(json.dumps(values))
    tokens, labels = torch.arange(before.layout.num_tokens)[None] % 3, torch.tensor([1])
    assert torch.equal(load_prior(folder).log_probs(tokens, labels), before.log_probs(tokens, labels))


def test_the_tokenizer_is_the_ids_and_nothing_else(folder: Path) -> None:
    from transformers import AutoTokenizer

    assert verify_manifest(folder)
    vocab_size = load_prior(folder).layout.vocab_size
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer) == vocab_size
    assert tokenizer("5 12 0")["input_ids"] == [5, 12, 0]
    assert tokenizer(["7", "15"])["input_ids"] == [[7], [15]]
    everything = list(range(vocab_size))
    assert tokenizer(tokenizer.decode(everything))["input_ids"] == everything
    assert tokenizer.decode([5, 12, 0], skip_special_tokens=True) == " 5 12 0"
    specials = [tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token]
    assert (specials, tokenizer.all_special_tokens) == ([None] * 4, [])
    for text in (str(vocab_size), "cat", "5,12", "-1"):
        with pytest.raises(Exception, match=r"Missing \[UNK\]|unk"):
            tokenizer(text)


def test_the_end_that_llama_cpp_reads_ends_nothing_in_transformers(folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    null = load_prior(folder).layout.null_token
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.config.eos_token_id == null  # in its place llama.cpp would take code 2
    assert model.generation_config.eos_token_id is None
    assert null in model.generation_config.suppress_tokens
    assert json.loads((folder / "tokenizer_config.json").read_text())["add_bos_token"] is False


def test_the_sentencepiece_model_is_the_ids_and_one_unknown_piece(folder: Path) -> None:
    """Read by the message that SentencePiece publishes, as transformers carries it."""
    from transformers.convert_slow_tokenizer import import_protobuf

    message = import_protobuf().ModelProto()
    message.ParseFromString((folder / "tokenizer.model").read_bytes())
    *words, unknown = message.pieces
    assert [piece.piece for piece in words] == [f"\u2581{n}" for n in range(load_prior(folder).layout.vocab_size)]
    assert {piece.type for piece in words} == {message.SentencePiece.NORMAL}
    assert unknown.type == message.SentencePiece.UNKNOWN


def test_sentencepiece_reads_ids_as_they_stand(make_prior: Callable[..., CausalPrior], tmp_path: Path) -> None:
    sentencepiece = pytest.importorskip("sentencepiece", reason="only llama.cpp's converter reads with it")
    spec = CodeSpec(3, (16, 16), (LevelSpec((8, 8), 1200),))  # ids of one to four digits
    with new_folder(tmp_path / "prior") as staging:
        save_prior(make_prior(spec=spec), staging)
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "prior" / "tokenizer.model"))
    everything = list(range(load_prior(tmp_path / "prior").layout.vocab_size))
    assert tokenizer.encode(" ".join(map(str, everything))) == everything
    assert tokenizer.decode(everything) == " ".join(map(str, everything))


def test_the_server_of_transformers_draws_greedily_what_we_draw(folder: Path) -> None:
    pytest.importorskip("openai", reason="the server of transformers needs its extra `serving`")
    client = pytest.importorskip("fastapi.testclient", reason="the server of transformers needs its extra `serving`")
    from transformers.cli.serving.completion import CompletionHandler
    from transformers.cli.serving.model_manager import ModelManager
    from transformers.cli.serving.server import build_server
    from transformers.cli.serving.utils import GenerationState

    models, state = ModelManager(device="cpu", force_model=str(folder)), GenerationState()
    others: Any = [None] * 3  # chats, responses, transcriptions
    handler = CompletionHandler(model_manager=models, generation_state=state)
    app = build_server(models, others[0], handler, *others[1:], systemone_handler=None, generation_state=state)
    prior = load_prior(folder)
    layout = prior.layout
    with client.TestClient(app) as asking:
        for label in (0, layout.num_classes):
            asked = {"prompt": str(layout.num_codes + label), "max_tokens": layout.num_tokens, "temperature": 0}
            said = asking.post("/v1/completions", json={"model": str(folder), **asked}).json()["choices"][0]["text"]
            tokens = sample_tokens(prior, torch.tensor([label]), seed=0, indices=[0], top_k=1)
            assert said.split() == list(map(str, tokens[0].tolist()))


def test_the_pipeline_of_transformers_draws_greedily_what_we_draw(folder: Path) -> None:
    from transformers import pipeline

    prior = load_prior(folder)
    layout = prior.layout
    draw = pipeline("text-generation", model=str(folder), device="cpu")
    for label in (0, layout.num_classes):  # a class, and the null token
        prompt = str(layout.num_codes + label)
        said = draw(prompt, do_sample=False, max_new_tokens=layout.num_tokens)[0]["generated_text"]
        tokens = sample_tokens(prior, torch.tensor([label]), seed=0, indices=[0], top_k=1)
        assert said.split() == [prompt, *map(str, tokens[0].tolist())]
