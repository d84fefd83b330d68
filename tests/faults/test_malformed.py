"""A thousand wrong inputs of each kind: read, or refused by one `ArtifactError`, in little time and memory.

Manifests and hashes are made to fit, so that it is the readers that are tested: whoever sends a folder can seal it.
"""

import shutil
import time
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
from malformed import bytes_changed, json_changed, odd_pictures, pictures, tensors_changed

from stage1_vqvae.data.checking import check_rows, read_checked
from stage1_vqvae.modalities.pictures import PICTURES
from vq_prior.cli import main
from vq_prior.core.disk.artifacts import MANIFEST, write_manifest
from vq_prior.core.disk.checkpoints import load_checkpoint
from vq_prior.core.disk.code_store import CodeStore, write_index
from vq_prior.core.errors import ArtifactError
from vq_prior.core.training.runs import read_run_config
from vq_prior.model.pipeline import VQPriorPipeline

MAX_SECONDS, MAX_GROWTH_MB = 2.0, 200
STATUS = Path("/proc/self/status")


def memory(field: str) -> float:
    """Return VmRSS or VmHWM of this process in MB; 0 where the system does not tell."""
    lines = STATUS.read_text().splitlines() if STATUS.exists() else []
    return sum(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


class Bounded:
    """Read something wrong: it may be refused, by `ArtifactError` alone, soon and with little memory."""

    def __init__(self) -> None:
        self.refused = 0
        self.slowest, self.largest = 0.0, 0.0

    def __call__(self, read, what) -> None:
        if STATUS.exists():
            Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
        before, started = memory("VmRSS"), time.process_time()  # not the time of whoever else is busy here
        try:
            read()
            told = ""
        except ArtifactError as error:
            told = str(error)
        self.refused += bool(told)
        assert told.isprintable(), (told, what)
        self.slowest = max(self.slowest, time.process_time() - started)
        self.largest = max(self.largest, memory("VmHWM") - before)
        assert self.slowest < MAX_SECONDS, what
        assert self.largest < MAX_GROWTH_MB, what

    def done(self, faults, count: int) -> None:
        assert self.refused > count / 3
        print(f"{self.refused} of {count} refused; at most {self.slowest:.2f} s, {self.largest:.0f} MB")
        faults.planted(count)


class Files:
    """Encoded pictures as rows."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.names, self.contents = list(files), list(files.values())

    def __len__(self) -> int:
        return len(self.names)

    def encoded(self, row: int) -> bytes:
        return self.contents[row]

    def name(self, row: int) -> str:
        return self.names[row]


@pytest.mark.filterwarnings("ignore")  # a command sends them to its log
@pytest.mark.fault("F20", "R8")
def test_pictures(faults):
    good = pictures()
    assert check_rows(Files(good), PICTURES, 1).bad == ()
    bounded, count = Bounded(), faults.number(50, 1000)
    for _ in range(count):
        name = faults.rng.choice(list(good))
        content = bytes_changed(faults.rng, good[name])

        def read(name=name, content=content):
            for picture in check_rows(Files({name: content}), PICTURES, 1).bad:
                raise ArtifactError(picture.reason)

        bounded(read, (name, content))
    bounded.done(faults, count)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.fault("F20")
def test_odd_pictures():
    odd, bounded = odd_pictures(), Bounded()
    assert len(odd) >= 60
    for name, (content, is_read) in odd.items():
        found = []

        def read(name=name, content=content, found=found):
            found += check_rows(Files({name: content}), PICTURES, 1).bad

        bounded(read, name)
        assert (not found) == is_read, (name, found)


def reseal(folder: Path) -> None:
    (folder / MANIFEST).unlink(missing_ok=True)
    write_manifest(folder)


@pytest.fixture(scope="module")
def run(tiny_run, tmp_path_factory) -> Path:
    """A copy to make wrong, with a list of check-data."""
    copy = Path(shutil.copytree(tiny_run, tmp_path_factory.mktemp("wrong") / "run"))
    assert main(["check-data", "digits", "--out", str(copy / "checked.json")]) == 0
    return copy


@pytest.mark.fault("F35", "R8")
def test_safetensors(run, faults):
    bounded, count = Bounded(), faults.number(50, 1000)
    VQPriorPipeline.from_pretrained(run / "model")
    for number in range(count):
        path = run / "model" / ("vqvae", "prior")[number % 2] / "model.safetensors"
        whole = path.read_bytes()
        content = tensors_changed(faults.rng, whole)
        path.write_bytes(content)
        reseal(path.parent)
        bounded(lambda: VQPriorPipeline.from_pretrained(run / "model"), content[:3000])
        path.write_bytes(whole)
        reseal(path.parent)
    bounded.done(faults, count)


def readers(run: Path):
    """Return each JSON file of a run, how it is read, and the folder whose manifest speaks of it."""
    model, checkpoint = run / "model", next((run / "prior-training" / "checkpoints").iterdir())
    inside = ["vqvae/config.json", "vqvae/preprocessor_config.json", "prior/config.json", "prior/prior_config.json"]
    inside += ["prior/generation_config.json", "config.json", "vqvae/manifest.json", "prior/training.json"]
    for name in inside:
        sealed = (model / name).parent if name.count("/") and not name.endswith(MANIFEST) else None
        yield model / name, lambda: VQPriorPipeline.from_pretrained(model), sealed
    yield run / "codes" / "codes.json", lambda: CodeStore.open(run / "codes").verify(), None
    yield checkpoint / "state.json", lambda: load_checkpoint(checkpoint), checkpoint
    yield run / "checked.json", lambda: read_checked(run / "checked.json"), None
    config = run / "vqvae-training" / "config.json"
    yield config, lambda: read_run_config(config), None


@pytest.mark.fault("F37", "R8")
def test_json(run, faults):
    bounded, count = Bounded(), faults.number(50, 1000)
    cases = list(readers(run))
    for number in range(count):
        path, read, sealed = cases[number % len(cases)]
        whole = path.read_bytes()
        content = json_changed(faults.rng, whole)
        path.write_bytes(content)
        if sealed is not None:
            reseal(sealed)
        bounded(read, (path.name, content[:3000]))
        path.write_bytes(whole)
        if sealed is not None:
            reseal(sealed)
    bounded.done(faults, count)


def put_shard(codes: Path, content: bytes) -> None:
    """Write the first shard anew and an index that fits it."""
    index = CodeStore.open(codes).index
    first = replace(index.shards[0], sha256=sha256(content).hexdigest())
    (codes / first.file).write_bytes(content)
    write_index(codes, replace(index, shards=(first, *index.shards[1:])))


@pytest.mark.fault("F27", "R8")
def test_code_shards(run, faults):
    bounded, count, codes = Bounded(), faults.number(50, 1000), run / "codes"
    whole = (codes / CodeStore.open(codes).index.shards[0].file).read_bytes()
    for _ in range(count):
        content = tensors_changed(faults.rng, whole)
        put_shard(codes, content)

        def read():
            CodeStore.open(codes).verify()

        bounded(read, content[:3000])
        (codes / "train" / "shard-00000.safetensors").write_bytes(whole)
        put_shard(codes, whole)
    bounded.done(faults, count)


@pytest.mark.fault("R8")
@pytest.mark.parametrize("kind", ["pictures", "safetensors", "json", "code shards"])
def test_through_the_command(kind, run, run_cli, faults, tmp_path):
    good = pictures()
    cases = list(readers(run))[:8]
    for number in range(faults.number(2, 50)):
        words = ["generate", "--model", run / "model", "--num-images", 1, "--out", tmp_path / "out"]
        sealed = None
        if kind == "pictures":
            name = faults.rng.choice(list(good))
            path, whole, content = tmp_path / "data" / name, b"", bytes_changed(faults.rng, good[name])
            path.parent.mkdir(exist_ok=True)
            for other in range(3):
                (path.parent / f"good-{other}.png").write_bytes(good["00.png"])
            words = ["train-vqvae", "--data", path.parent, "--steps", 1, "--batch-size", 2, "--image-size", 16]
            words += ["--out", tmp_path / "out"]
        elif kind == "safetensors":
            path = run / "model" / ("vqvae", "prior")[number % 2] / "model.safetensors"
            whole, sealed = path.read_bytes(), path.parent
            content = tensors_changed(faults.rng, whole)
        elif kind == "json":
            path, _, sealed = cases[number % len(cases)]
            whole = path.read_bytes()
            content = json_changed(faults.rng, whole)
        else:
            path = run / "codes" / "train" / "shard-00000.safetensors"
            whole = path.read_bytes()
            content = tensors_changed(faults.rng, whole)
            put_shard(run / "codes", content)
            words = [
                "train-prior",
                "--codes",
                run / "codes",
                "--steps",
                1,
                "--batch-size",
                2,
                "--out",
                tmp_path / "out",
            ]
        path.write_bytes(content)
        if sealed is not None:
            reseal(sealed)
        done = run_cli(*words, timeout=60)
        path.unlink()
        if whole:
            path.write_bytes(whole)
        if kind == "code shards":
            put_shard(run / "codes", whole)
        elif sealed is not None:
            reseal(sealed)
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        told = (path.name, content[:2000], lines)
        assert done.returncode in (0, 3, 4), told  # 4: a value that may stand there and makes no finite number
        assert "Traceback" not in done.stdout + done.stderr, told
        if done.returncode:
            assert len(lines) == 1, told
            assert lines[0].startswith("error: "), told
            assert not (tmp_path / "out").exists(), told
            assert not list(tmp_path.glob(".out*")), told
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
    faults.planted(faults.number(2, 50))
