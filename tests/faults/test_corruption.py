"""One byte of an artefact changed: found before the artefact is used, in whatever file and wherever it is."""

import shutil
from pathlib import Path

import pytest

from vq_prior.cli import main
from vq_prior.core.disk.checkpoints import latest_checkpoint, load_checkpoint
from vq_prior.core.disk.code_store import CodeStore
from vq_prior.core.errors import ArtifactError
from vq_prior.judge.verify import verify
from vq_prior.model.pipeline import VQPriorPipeline


def load_model(path: Path) -> None:
    VQPriorPipeline.from_pretrained(path)


def open_codes(path: Path) -> None:
    CodeStore.open(path).verify()


def continue_training(path: Path) -> None:
    """A training passes over what is damaged; that it says so is what counts here."""
    _, passed_over = latest_checkpoint(path / "checkpoints")
    if passed_over:
        raise ArtifactError(passed_over[0])


USES = {"model": load_model, "codes": open_codes, "vqvae-training": continue_training}


@pytest.fixture(scope="module")
def run(tiny_run, tmp_path_factory) -> Path:
    """A copy to damage, with one checkpoint of the training of the codec."""
    return Path(shutil.copytree(tiny_run, tmp_path_factory.mktemp("damaged") / "run"))


def sealed_files(folder: Path) -> list[Path]:
    """Every file of an artefact but a card, which people may edit, and the diary of a training."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "README.md"]
    return [path for path in files if "-training" not in str(path) or "checkpoints" in path.parts]


def is_found(check, folder: Path, rng) -> str:
    """Change one byte of one file, each file as likely as another; return what was not found, or ""."""
    path = rng.choice(sealed_files(folder))
    whole = path.read_bytes()
    place, other = rng.randrange(len(whole)), rng.randrange(1, 256)
    path.write_bytes(whole[:place] + bytes([whole[place] ^ other]) + whole[place + 1 :])
    try:
        check(folder)
    except ArtifactError as error:
        return "" if "\n" not in str(error) else f"{error} has several lines"
    finally:
        path.write_bytes(whole)
    return f"byte {place} of {path.name}: {whole[place]} -> {whole[place] ^ other}"


@pytest.mark.fault("F12", "F32", "R7")
@pytest.mark.parametrize("part", ["model", "codes", "vqvae", "prior", "vqvae-training", "prior-training"])
def test_verify_finds_any_changed_byte(part, run, faults):
    count = faults.number(40, 2000)
    missed = [note for _ in range(count) if (note := is_found(verify, run / part, faults.rng))]
    assert missed == []
    assert verify(run / part)
    faults.planted(count)


@pytest.mark.fault("F12", "F32", "R7")
@pytest.mark.parametrize("part", USES)
def test_nothing_is_used_with_a_changed_byte(part, run, faults):
    def check(folder: Path) -> None:
        USES[part](folder)
        # Blanks between the values of an index mean nothing where it is read; `verify` finds them all the same.
        verify(folder)

    count = faults.number(20, 1000)
    assert [note for _ in range(count) if (note := is_found(check, run / part, faults.rng))] == []
    USES[part](run / part)
    faults.planted(count)


@pytest.mark.fault("F12", "F32", "R7")
@pytest.mark.parametrize(("part", "command"), [("model", "generate"), ("codes", "train-prior"), ("vqvae", "verify")])
def test_a_changed_byte_is_one_line(part, command, run, faults, tmp_path, capsys):
    words = {
        "generate": ["generate", "--model", run / "model", "--num-images", 1, "--out", tmp_path / "out"],
        "train-prior": ["train-prior", "--codes", run / "codes", "--steps", 1, "--out", tmp_path / "out"],
        "verify": ["verify", run / "vqvae"],
    }[command]
    for _ in range(faults.number(2, 50)):
        path = faults.rng.choice([path for path in sealed_files(run / part) if path.suffix == ".safetensors"])
        whole = path.read_bytes()
        place = faults.rng.randrange(len(whole))
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert main([*map(str, words)]) == 3
        path.write_bytes(whole)
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1, lines
        assert lines[0].startswith("error: ")
        assert path.name in lines[0]
        assert not (tmp_path / "out").exists()
    faults.planted(faults.number(2, 50))


@pytest.mark.fault("F12")
@pytest.mark.parametrize("how", ["truncated", "replaced", "an extra file", "deleted"])
def test_a_damaged_checkpoint_that_is_named_is_refused(how, run, tmp_path, capsys):
    checkpoint = next((run / "prior-training" / "checkpoints").iterdir())
    copy = Path(shutil.copytree(checkpoint, tmp_path / checkpoint.name))
    path, *_, other = sorted(copy.glob("*.safetensors"))
    if how == "truncated":
        path.write_bytes(path.read_bytes()[:-1])
    elif how == "replaced":
        shutil.copyfile(other, path)
    elif how == "an extra file":
        (copy / "optimizers.more.safetensors").write_bytes(path.read_bytes())
    else:
        path.unlink()
    with pytest.raises(ArtifactError):
        load_checkpoint(copy)
    assert main(["verify", str(copy)]) == 3
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert str(copy) in lines[0]
