"""Repositories made to harm: each is refused in one line, or its foreign files are ignored; none runs code."""

import json
import pickle
import re
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hub.resident import Done, Resident
from hub.server import LoopbackHub, hub_environment

MAX_SECONDS, MAX_GROWTH_MB = 5, 300
Files = dict[str, bytes]
PRIOR, CODEC = "prior/model.safetensors", "vqvae/model.safetensors"


class Payload:
    """What runs a program where it is unpickled."""

    def __reduce__(self) -> Any:
        import os

        return os.system, ("touch pwned",)


EVIL_PICKLE = pickle.dumps(Payload())
EVIL_CODE = b"import os\nos.system('touch pwned')\nclass Evil: pass\n"


def sealed(files: Files) -> Files:
    """Return the files with manifests that fit: who makes a repository can write those too."""
    from hashlib import sha256

    result = dict(files)
    for part in ("vqvae", "prior"):
        inside = {
            name.removeprefix(f"{part}/"): content
            for name, content in files.items()
            if name.startswith(f"{part}/") and not name.endswith(("/manifest.json", ".py"))
        }
        entries = {name: {"size": len(c), "sha256": sha256(c).hexdigest()} for name, c in sorted(inside.items())}
        result[f"{part}/manifest.json"] = json.dumps({"format_version": 1, "files": entries}).encode()
    return result


def edit(name: str, **changes: Any) -> Callable[[Files], Files]:
    """Return a change of keys of a JSON file."""
    return lambda files: sealed(files | {name: json.dumps(json.loads(files[name]) | changes).encode()})


def text(name: str, change: Callable[[bytes], bytes]) -> Callable[[Files], Files]:
    """Return a change of a file's bytes."""
    return lambda files: sealed(files | {name: change(files[name])})


def add(added: Files) -> Callable[[Files], Files]:
    """Return an addition of files."""
    return lambda files: sealed(files) | added


def tensors(change: Callable[[dict[str, Any], bytes], Any], name: str = PRIOR) -> Callable[[Files], Files]:
    """Return a change of a safetensors file: of its header, or (as bytes) of the whole."""

    def changed(files: Files) -> Files:
        data = files[name]
        length = struct.unpack("<Q", data[:8])[0]
        header, payload = json.loads(data[8 : 8 + length]), data[8 + length :]
        result = change(header, payload)
        if isinstance(result, bytes):
            return sealed(files | {name: result})
        return sealed(files | {name: with_header(json.dumps(result or header).encode(), payload)})

    return changed


def with_header(header: bytes, payload: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + payload


def first(header: dict[str, Any]) -> dict[str, Any]:
    return header["model.norm.weight"]


def doubled(header: dict[str, Any], payload: bytes) -> bytes:
    written = json.dumps(header)
    again = json.dumps({"model.norm.weight": first(header)})[1:]
    return with_header((written[:-1] + ", " + again).encode(), payload)


def not_finite(header: dict[str, Any], payload: bytes) -> bytes:
    start, end = first(header)["data_offsets"]
    bad = np.full((end - start) // 4, np.nan, np.float32).tobytes()
    return with_header(json.dumps(header).encode(), payload[:start] + bad + payload[end:])


def crowd(_header: dict[str, Any], _payload: bytes) -> bytes:
    entry = {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}
    return with_header(
        json.dumps({f"model.layers.{n}.input_layernorm.weight": entry for n in range(100_000)}).encode(), b""
    )


def hollow(files: Files) -> Files:
    """A prior of few bytes whose config asks for gigabytes of weights that the file does not have."""
    config = json.loads(files["prior/config.json"]) | {"intermediate_size": 2**20, "num_hidden_layers": 8}
    config.pop("layer_types", None)
    keep = {"model.embed_tokens.weight": np.zeros((config["vocab_size"], config["hidden_size"]), np.float32)}
    data = keep["model.embed_tokens.weight"].tobytes()
    shape = list(keep["model.embed_tokens.weight"].shape)
    header = {"model.embed_tokens.weight": {"dtype": "F32", "shape": shape, "data_offsets": [0, len(data)]}}
    weights = with_header(json.dumps(header).encode(), data)
    return sealed(files | {"prior/config.json": json.dumps(config).encode(), PRIOR: weights})


def hollow_codec(files: Files) -> Files:
    document = json.loads(files["vqvae/config.json"])
    document["architecture"] |= {"width": 4096, "residual_width": 4096, "num_residual_blocks": 64}
    return sealed(files | {"vqvae/config.json": json.dumps(document).encode(), CODEC: with_header(b"{}", b"")})


def without(name: str, added: Files | None = None) -> Callable[[Files], Files]:
    return lambda files: sealed({key: value for key, value in files.items() if key != name}) | (added or {})


def architecture(**changes: Any) -> Callable[[Files], Files]:
    def changed(files: Files) -> Files:
        document = json.loads(files["vqvae/config.json"])
        quantizer = changes.pop("quantizer", {})
        document["architecture"] |= changes
        document["architecture"]["quantizer"] |= quantizer
        return sealed(files | {"vqvae/config.json": json.dumps(document).encode()})

    return changed


def manifest(part: str, change: Callable[[dict[str, Any]], object]) -> Callable[[Files], Files]:
    def changed(files: Files) -> Files:
        document = json.loads(files[f"{part}/manifest.json"])
        change(document)
        return files | {f"{part}/manifest.json": json.dumps(document).encode()}

    return changed


def labelled(names: list[str]) -> Callable[[Files], Files]:
    """Names of the classes, everywhere alike."""

    def changed(files: Files) -> Files:
        result = dict(files)
        for name in ("config.json", "prior/prior_config.json"):
            result[name] = json.dumps(json.loads(files[name]) | {"label_names": names}).encode()
        return sealed(result)

    return changed


def surrogate(content: bytes) -> bytes:
    return content.rstrip()[:-1] + b', "note\\ud800": 1}'


NESTED = b'{"model_type": "qwen3", "x": ' + b"[" * 200_000 + b"]" * 200_000 + b"}"
ESCAPES = "\x1b]0;owned\x07\x1b[2J\x9b31m<script>\u202e"
AUTO_MAP = {"auto_map": {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"}}
FOREIGN = {"evil.py": EVIL_CODE, "prior/evil.py": EVIL_CODE, "vqvae/evil.py": EVIL_CODE}

IGNORED: dict[str, Callable[[Files], Files]] = {
    "a pickle beside the weights": add({"prior/pytorch_model.bin": EVIL_PICKLE, "pytorch_model.bin": EVIL_PICKLE}),
    "pickles of other names": add({f"prior/model.{end}": EVIL_PICKLE for end in ("pkl", "pt", "ckpt", "pth")}),
    "python files": add(FOREIGN | {"setup.py": EVIL_CODE, "conftest.py": EVIL_CODE, "prior/__init__.py": EVIL_CODE}),
    "a generate of its own": add(
        {"custom_generate/generate.py": EVIL_CODE, "prior/custom_generate/generate.py": EVIL_CODE}
    ),
    "a tokenizer that runs": lambda files: (
        sealed(files | {"prior/tokenizer_config.json": json.dumps(AUTO_MAP).encode()}) | {"prior/tok.py": EVIL_CODE}
    ),
    "names of another case": add({"CONFIG.JSON": b"{}", "Prior/config.json": b"{}", "VQVAE/model.safetensors": b""}),
    "deeper folders": add({"prior/vqvae/config.json": b"{}", "model/prior/model.safetensors": EVIL_PICKLE}),
    "an index of shards": add({"prior/model.safetensors.index.json": b'{"weight_map": {"a": "../../x"}}'}),
    "a picture bomb": add(
        {"samples.png": b"\x89PNG\r\n\x1a\n" + b"\0\0\0\rIHDR\x7f\xff\xff\xff\x7f\xff\xff\xff" + b"\0" * 99}
    ),
    "a rubbish evaluation": add({"evaluation.json": b"\xff\xfe{nonsense"}),
    "a card of rubbish": add(
        {"README.md": b"\xff\xfe\0" + b"---\n!!python/object/apply:os.system [touch pwned]\n---\n"}
    ),
    "trailing dots": add({"prior/config.json.": b"{}", "config.json ": b"{}", "..config.json": b"{}"}),
    "generation settings of its own": edit(
        "prior/generation_config.json", custom_generate="owner/evil", trust_remote_code=True, cache_implementation="x"
    ),
    "a rubbish record": lambda files: sealed(files | {"prior/training.json": b'{"command": "rm -rf", "x": NaN}'}),
}

REFUSED: dict[str, tuple[Callable[[Files], Files], str]] = {
    "a pickle for weights": (without(PRIOR, {"prior/pytorch_model.bin": EVIL_PICKLE}), "no prior|holds no|missing"),
    "a pickle named safetensors": (text(PRIOR, lambda _: EVIL_PICKLE), "not a whole safetensors"),
    "auto_map of the prior": (lambda f: edit("prior/config.json", **AUTO_MAP)(f) | FOREIGN, "run code .auto_map"),
    "auto_map of the codec": (lambda f: edit("vqvae/config.json", **AUTO_MAP)(f) | FOREIGN, "run code .auto_map"),
    "auto_map of the index": (lambda f: edit("config.json", **AUTO_MAP)(f) | FOREIGN, "unknown key 'auto_map'"),
    "trust_remote_code": (edit("prior/config.json", trust_remote_code=True), "run code"),
    "_target_": (edit("prior/config.json", _target_="os.system"), "run code"),
    "_target_ inside": (edit("prior/config.json", text_config={"_target_": "os.system"}), "run code"),
    "a foreign attention": (edit("prior/config.json", _attn_implementation="owner/evil"), "run code"),
    "a foreign attention inside": (edit("prior/config.json", _attn_implementation_internal="owner/evil"), "run code"),
    "foreign kernels": (edit("vqvae/config.json", use_kernels=True), "run code"),
    "quantised by a program": (edit("prior/config.json", quantization_config={"quant_method": "x"}), "quantization"),
    **{
        f"a file named {name!r}": (add({name: EVIL_CODE}), "not a plain relative path")
        for name in (
            "../x",
            "prior/../../x",
            "/abs/x",
            "C:\\x",
            "C:x",
            "a\\..\\b",
            "nul\0l",
            "./x",
            "a//b",
            "a/./b",
            "line\nbreak",
            "\x1b[31mred",
            "\x9b31mred",
            "left\u202egnp.exe",
            "what?",
        )
    },
    "a huge header": (tensors(lambda *_: struct.pack("<Q", 2**62) + b"{}"), "not a whole"),
    "a header beyond the file": (tensors(lambda *_: struct.pack("<Q", 10**6) + b"{}"), "not a whole"),
    "a header of no JSON": (tensors(lambda _, p: with_header(b"not JSON", p)), "not valid JSON"),
    "a header of a list": (tensors(lambda _, p: with_header(b"[1]", p)), "not an object"),
    "a nested header": (tensors(lambda _, p: with_header(NESTED, p)), "nested too deeply"),
    "overlapping tensors": (
        tensors(lambda h, _: first(h).update(data_offsets=[0, 4 * first(h)["shape"][0]])),
        "overlaps",
    ),
    "a tensor named twice": (tensors(doubled), "appears twice"),
    "a hundred thousand tensors": (tensors(crowd), "not a whole|tensor|num_hidden"),
    "a shape bomb": (tensors(lambda h, _: first(h).update(shape=[2**40, 2**40])), "malformed at tensor"),
    "a negative shape": (tensors(lambda h, _: first(h).update(shape=[-64])), "malformed at tensor"),
    "an unknown type": (tensors(lambda h, _: first(h).update(dtype="PICKLE")), "malformed at tensor"),
    "numbers that are none": (tensors(not_finite), "not finite"),
    "a prior of nothing": (hollow, "tensor|lacks"),
    "a codec of nothing": (hollow_codec, "tensor|lacks"),
    "a wide prior": (edit("prior/config.json", hidden_size=10**9), "beyond the 1048576"),
    "a prior wider than its weights": (edit("prior/config.json", hidden_size=2**20), "shape"),
    "a deep prior": (edit("prior/config.json", num_hidden_layers=10**6), "num_hidden_layers"),
    "many heads": (edit("prior/config.json", num_attention_heads=2**20, head_dim=2**20), "."),
    "no heads": (edit("prior/config.json", num_attention_heads=0), "."),
    "a prior of another kind": (edit("prior/config.json", model_type="evil"), "model_type"),
    "numbers as texts": (edit("prior/config.json", hidden_size="64"), "."),
    "many codes": (architecture(quantizer={"num_codes": 2**31}), "."),
    "a wide codec": (architecture(width=10**9), "."),
    "large pictures": (architecture(shape=[2**30, 2**30]), "."),
    "an unknown quantiser": (architecture(quantizer={"name": "os.system"}), "quantizer"),
    "an unknown key of the codec": (architecture(path="../x"), "unknown key 'path'"),
    "200,000 levels": (text("prior/config.json", lambda _: NESTED), "nested too deeply"),
    "200,000 levels of the index": (text("config.json", lambda _: NESTED), "nested too deeply"),
    "a key twice": (text("config.json", lambda c: c.rstrip()[:-1] + b', "codec_id": "x"}'), "appears twice"),
    "NaN": (edit("config.json", sampling={"temperature": float("nan"), "guidance_scale": 1.0}), "NaN"),
    "infinity": (text("config.json", lambda c: c.replace(b"0.8", b"1e999").replace(b'"zero"', b"1e999")), "number"),
    "a byte-order mark": (text("config.json", lambda c: b"\xef\xbb\xbf" + c), "not valid"),
    "a lone surrogate": (text("config.json", surrogate), "not valid UTF-8"),
    "UTF-16": (text("config.json", lambda c: c.decode().encode("utf-16")), "not valid UTF-8"),
    "an index of 2 MB": (text("config.json", lambda c: c + b" " * 2**21), "more than the 1048576 allowed"),
    "an index of 70 MB": (text("config.json", lambda c: c + b" " * (70 << 20)), "more than the 67108864 allowed"),
    "20 MB of empty lists": (
        text("prior/prior_config.json", lambda _: b"[" + b"[]," * (6 << 20) + b"[]]"),
        "more values",
    ),
    "an index of a list": (text("config.json", lambda _: b"[]"), "must be an object"),
    "a later version": (edit("config.json", format_version=99), "format version 99"),
    "a later prior": (edit("prior/prior_config.json", format_version=99), "format version 99"),
    "a prior of an unknown kind": (edit("prior/prior_config.json", kind="pickle"), "must be one of causal"),
    "folders elsewhere": (
        edit("config.json", components={n: {"folder": "../../x", "kind": "causal"} for n in ("vqvae", "prior")}),
        "components must hold",
    ),
    "a stranger's codec": (edit("prior/prior_config.json", codec_id="0" * 64), "belongs to codec 0000"),
    "an index of another codec": (edit("config.json", codec_id="0" * 64), "codec_id is not that"),
    "a manifest of other bytes": (
        manifest("prior", lambda m: m["files"]["config.json"].update(sha256="0" * 64)),
        "damaged",
    ),
    "a manifest that lacks a file": (manifest("vqvae", lambda m: m["files"].pop("config.json")), "not in the manifest"),
    "a manifest that names files outside": (
        manifest("prior", lambda m: m["files"].update({"../config.json": {"size": 2, "sha256": "0" * 64}})),
        "missing",
    ),
    "a manifest of a later version": (manifest("prior", lambda m: m.update(format_version=99)), "format version 99"),
    "names that steer a terminal": (
        lambda f: edit("config.json", **{ESCAPES: 1})(f),
        "unknown key",
    ),
    "nothing that we read": (lambda _: {"evil.py": EVIL_CODE, "model.bin": EVIL_PICKLE}, "holds no file"),
    "half a MODEL": (lambda f: {name: f[name] for name in f if not name.startswith("prior/")}, "prior"),
}


@pytest.fixture(scope="module")
def good(tiny_model) -> Files:
    paths = [path for path in tiny_model.rglob("*") if path.is_file()]
    return {path.relative_to(tiny_model).as_posix(): path.read_bytes() for path in paths}


@pytest.fixture(scope="module")
def server(good) -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub:
        hub.add_repo("owner/good", good)
        yield hub
    assert hub.errors == []


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("hostile")


@pytest.fixture(scope="module")
def resident(server, place, child_environment) -> Iterator[Resident]:
    """A process that loaded and pulled once, and is watched since."""
    with Resident(child_environment(**hub_environment(server, place / "cache"))) as process:
        assert process.load("owner/good").code == 0
        assert process.run("pull", "owner/good", "--out", place / "good").code == 0
        words = ("generate", "--model", "owner/good", "--num-images", 1, "--out", place / "images")
        assert process.run(*words).code == 0
        process.watch(place)
        yield process


@pytest.fixture(scope="module")
def start(resident) -> float:
    """Resident memory before the first case."""
    return resident.load("owner/good").peak_mb


def assert_harmless(done: Done, start: float) -> None:
    assert done.events == []
    assert done.seconds < MAX_SECONDS
    assert done.peak_mb - start < MAX_GROWTH_MB
    assert done.code in (0, 3), done
    shown = done.stdout + done.stderr
    assert "\x1b" not in shown
    assert "\x9b" not in shown
    assert not Path("pwned").exists()


@pytest.mark.fault("F36", "R9")
def test_the_audit_hook_sees_what_it_is_there_for(resident, tmp_path):
    seen = [event.split(" ")[0] for event in resident.misbehave(tmp_path / "evil.py").events]
    assert seen == ["pickle.find_class", "compile", "exec", "os.system", "open"]


@pytest.mark.parametrize("name", IGNORED)
@pytest.mark.fault("F36", "R9")
def test_what_does_not_belong_is_ignored(server, resident, start, good, name):
    files = IGNORED[name](good)
    server.add_repo("owner/m", files)
    server.requests.clear()
    done = resident.load("owner/m")
    assert_harmless(done, start)
    assert done.code == 0, done
    foreign = [
        n for n in files if n not in good and not n.endswith(("samples.png", "evaluation.json", "training.json"))
    ]
    assert ("ignored" in done.stdout) == bool(foreign), done
    asked = " ".join(path for _, path, _ in server.requests)
    assert not any(f"/{n}" in asked for n in foreign if n.endswith((".py", ".bin", ".pkl", ".pt", ".ckpt", ".pth")))


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.fault("F35", "F36", "F37", "F38", "R9")
def test_what_would_harm_is_refused_in_one_line(server, resident, start, good, name):
    change, message = REFUSED[name]
    server.add_repo("owner/m", change(good))
    done = resident.load("owner/m")
    assert_harmless(done, start)
    assert (done.code, len(done.stderr.splitlines())) == (3, 1), done
    assert done.stderr.isprintable()
    assert re.search(message, done.stderr), done.stderr


PULLED = (
    "a pickle for weights",
    "auto_map of the prior",
    "a file named '../x'",
    "a file named '/abs/x'",
    "a shape bomb",
    "a prior of nothing",
    "an index of 70 MB",
    "folders elsewhere",
    "a stranger's codec",
    "a manifest that names files outside",
)


@pytest.mark.parametrize("name", PULLED)
@pytest.mark.fault("F38", "R9")
def test_a_pull_of_it_writes_nothing(server, resident, start, place, good, name):
    server.add_repo("owner/m", REFUSED[name][0](good))
    parent = place / "parent"
    parent.mkdir(exist_ok=True)
    done = resident.run("pull", "owner/m", "--out", parent / "model")
    assert_harmless(done, start)
    assert (done.code, done.stderr.count("\n"), done.stderr[:7]) == (3, 1, "error: "), done
    assert list(parent.iterdir()) == []
    assert {path.name for path in place.iterdir()} == {"cache", "good", "images", "images.png", "parent"}


def test_a_large_file_whose_size_the_hub_hides_is_refused(server, resident, start, good):
    server.add_repo("owner/m", text("config.json", lambda c: c + b" " * (70 << 20))(good))
    hide = server.fail("GET", "/api/models/owner/m", change=lambda body: body.replace(b'"size"', b'"mass"'), times=None)
    done = resident.load("owner/m")
    server.faults.remove(hide)
    assert_harmless(done, start)
    assert done.code == 3
    assert "bytes, more than" in done.stderr


@pytest.mark.parametrize("names", [[ESCAPES] * 10, ["<b>|`x`" + str(n) for n in range(10)], ["a" * 50_000] * 10])
@pytest.mark.fault("F38")
def test_names_of_classes_cannot_steer_a_terminal(server, resident, start, place, good, names):
    server.add_repo("owner/m", labelled(names)(good))
    assert_harmless(resident.load("owner/m"), start)
    words = ("generate", "--model", "owner/m", "--num-images", 1, "--labels", "none", "--out", place / "none")
    done = resident.run(*words)
    assert done.code == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.strip().isprintable()
    assert not (place / "none").exists()
