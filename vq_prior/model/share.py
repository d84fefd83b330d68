"""Sharing: a MODEL, a codec, a prior or a code store on the Hub, and back.

What is sent is verified first and goes as one commit; what is fetched is verified
before anybody sees it. How an artefact is opened is the caller's to know.
"""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stage1_vqvae.modalities.sheets import save_png
from vq_prior.core.disk.artifacts import new_folder, require_replaceable, write_atomic
from vq_prior.core.disk.code_store import CodeStore
from vq_prior.core.disk.code_tables import CODES_FILE, read_tables, write_tables
from vq_prior.core.disk.records import public_name
from vq_prior.core.errors import ArtifactError, UsageError
from vq_prior.core.hub import client as hub
from vq_prior.core.hub import repository
from vq_prior.core.hub.cards import README, is_ours
from vq_prior.core.settings import require_folder_to_write
from vq_prior.model.card import EVALUATION, codes_card, model_card
from vq_prior.model.index import INDEX, kind_of

SAMPLES = "samples.png"
NUM_SAMPLES = 40

Say = Callable[[str], object]
Open = Callable[[Path], Any]  # gives what a folder holds, every byte of it checked: `open_artefact`, or less at hand


def push(
    model: Path,
    repo_id: str,
    *,
    open_whole: Open,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    license_id: str | None = None,
    token: str | bool | None = None,
) -> str:
    """Send a MODEL, a codec or a prior as one commit and return where it can be seen.

    Args:
        model: MODEL folder, or the folder of one component.
        repo_id: `owner/name`; made if it does not exist.
        open_whole: Opens what is sent; a MODEL is a pipeline, which draws the samples beside its card.
        private: Whether a repository made now is private.
        revision: Branch; None is main, another one is made from main.
        create_pr: Whether to open a pull request instead.
        license_id: Licence for the card, as the Hub writes it.
        token: Access token; None takes the stored one.

    Raises:
        UsageError: If an argument is malformed.
        ArtifactError: If the folder is damaged, or the repository may not be written.
        EnvironmentFault: If the Hub cannot be reached, or the repository moved meanwhile.
    """
    repo = repository.target(repo_id, revision, license_id)
    kind = kind_of(model)
    loaded = open_whole(model)
    options: dict[str, Any] = {"private": private, "create_pr": create_pr, "token": token}
    if kind != "model":
        return repository.push_component(model, kind, repo_id, revision=revision, license_id=license_id, **options)
    with tempfile.TemporaryDirectory(prefix="vq-prior-") as temporary:
        folder = Path(temporary) / "model"
        _lay_out(loaded, model, folder, repo.name, license_id)
        message = "Codec and prior by vq-prior"
        return hub.push(folder, repo, message=message, owns=repository.is_model_file, **options)


def _lay_out(pipeline: Any, model: Path, folder: Path, repo_id: str, license_id: str | None) -> None:
    """Copy a verified MODEL into the new folder `folder`, with its card and a grid of samples and nothing else."""
    index = pipeline.index
    for name in ("vqvae", "prior"):
        repository.copy_component(model / name, folder / name)
    for name in (INDEX, EVALUATION):
        if (model / name).is_file():
            shutil.copyfile(model / name, folder / name)
    columns = len(index.label_names) if 2 <= len(index.label_names) <= 10 else 8
    drawn = pipeline(NUM_SAMPLES, seed=0, output_type="pt").drawn
    save_png(folder / SAMPLES, pipeline.codec.modality.show.sheet(drawn, columns=columns))
    if is_ours(model / README):
        card = model_card(folder, index, repo_id=repo_id, license_id=license_id, picture=True)
        write_atomic(folder / README, card.encode("utf-8"))
    else:
        shutil.copyfile(model / README, folder / README)


def pull(repo_id: str, out: Path, *, open_whole: Open, overwrite: bool = False, say: Say = print) -> Path:
    """Fetch a MODEL, codec or prior into the folder `out`, whole or not at all, and return it.

    Args:
        repo_id: `owner/name[@revision]`.
        out: Folder to write; one with the same bytes is left as it is.
        open_whole: Opens what was fetched.
        overwrite: Whether another artefact at `out` is replaced.
        say: Takes notes, a line each.

    Raises:
        UsageError: If `out` holds something else.
        ArtifactError: If the repository is missing, hostile or damaged.
        EnvironmentFault: If the Hub cannot be reached and the cache holds no copy.
    """
    repo = hub.HubId.parse(repo_id)
    require_folder_to_write(out)
    require_replaceable(out, INDEX, "artefact of vq-prior", overwrite=overwrite)
    source = hub.fetch(repo, wanted=repository.MODEL_FILE, say=say)
    with repository.cache_of(source):
        kind = kind_of(source)
        if (out / INDEX).is_file() and not overwrite:
            if not _same_files(source, out):
                raise UsageError(f"{out} exists and holds something else; choose another --out or pass --overwrite")
            open_whole(out)
            say(f"{out} is that {kind} already; nothing to do")
            return out
        with new_folder(out, manifest=False) as staging:
            for path in repository.files_of(source):
                copy = staging / path.relative_to(source)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, copy)
            open_whole(staging)
    say(f"wrote {out}: the {kind} {repo}, commit {source.name[:12]}, every byte verified")
    if kind == "model":
        say(f"next: vq-prior generate --model {out} --num-images 16 --out samples")
    return out


def _same_files(first: Path, second: Path) -> bool:
    names = [[path.relative_to(folder) for path in repository.files_of(folder)] for folder in (first, second)]
    return names[0] == names[1] and all((first / n).read_bytes() == (second / n).read_bytes() for n in names[0])


def push_codes(
    codes: Path,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    license_id: str | None = None,
    token: str | bool | None = None,
) -> str:
    """Send a code store as a data set of parquet files, one commit, and return where it can be seen.

    Arguments and errors are those of `push`.
    """
    repo = repository.target(repo_id, revision, license_id)
    index = CodeStore.open(codes).index
    for what, source in (("codec", index.codec.source), ("data", index.data.source)):
        if public_name(source) != source:
            raise ArtifactError(f"{codes} names its {what} by a path of this machine; extract the codes anew")
    CodeStore.open(codes).verify()
    with tempfile.TemporaryDirectory(prefix="vq-prior-") as temporary:
        folder = Path(temporary)
        write_tables(codes, folder)
        card = codes_card(index, repo_id=repo.name, license_id=license_id)
        write_atomic(folder / README, card.encode("utf-8"))
        return hub.push(
            folder,
            repo,
            message="Codes by vq-prior",
            repo_type="dataset",
            private=private,
            create_pr=create_pr,
            owns=lambda name: bool(CODES_FILE.fullmatch(name)),
            token=token,
        )


def pull_codes(repo_id: str, out: Path, *, say: Say = print) -> Path:
    """Bring a code store back from the Hub into the folder `out`, byte for byte, and return it.

    Raises:
        UsageError: If `out` holds something else.
        ArtifactError: If the repository is missing, or its rows do not give the shards that its index promises.
        EnvironmentFault: If the Hub cannot be reached and the cache holds no copy.
    """
    repo = hub.HubId.parse(repo_id)
    folder = hub.fetch(repo, wanted=CODES_FILE, repo_type="dataset", say=say)
    with repository.cache_of(folder, named=CODES_FILE):
        written = read_tables(folder, out)
    say(f"{'wrote' if written else 'kept'} {out}: the codes {repo}, commit {folder.name[:12]}, every byte verified")
    return out
