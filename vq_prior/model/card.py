"""The cards of a MODEL and of a code store, for people and for the Hub."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from stage2_prior.sampling_settings import temperature_text
from vq_prior.core.config import read_json
from vq_prior.core.disk.records import TrainingRecord, read_record
from vq_prior.core.hub.cards import (
    Row,
    card_of,
    front_matter,
    measured_table,
    numbers,
    plain_text,
    recipe_text,
    table,
    yaml_head,
)
from vq_prior.core.spec import CodeSpec, by

if TYPE_CHECKING:
    from stage2_prior.folder import SamplingDefaults
    from vq_prior.core.disk.code_store import CodeIndex
    from vq_prior.model.index import ModelIndex

EVALUATION = "evaluation.json"


def model_card(
    model: Path,
    index: "ModelIndex",
    *,
    repo_id: str | None = None,
    license_id: str | None = None,
    picture: bool = False,
) -> str:
    """Return the card of a MODEL, in Markdown, from its index, the records of both stages and `evaluation.json`.

    Args:
        model: The folder, complete but for its card.
        index: Its index.
        repo_id: Where it will be on the Hub; None for a local one.
        license_id: Licence as the Hub writes it, such as "apache-2.0"; None if nobody stated one.
        picture: Whether `samples.png` lies beside the card.
    """
    codec, prior = read_record(model / "vqvae"), read_record(model / "prior")
    evaluation = _evaluation(model, index.codec_id)
    codec_measured = evaluation.get("codec") or (codec.measured if codec else {})
    prior_measured = (prior.measured if prior else {}) | evaluation.get("prior", {})
    label = f', labels="{index.label_names[0]}"' if index.label_names and '"' not in index.label_names[0] else ""
    load = (
        "from vq_prior import VQPriorPipeline\n\n"
        f'pipe = VQPriorPipeline.from_pretrained("{repo_id or "MODEL"}")\n'
        f"images = pipe(num_images=16{label}, seed=0).images\n"
        'images[0].save("image.png")'
    )
    parts = [
        front_matter(
            license_id=license_id,
            data=codec.data if codec else None,
            metrics=numbers(codec_measured) | numbers(prior_measured),
            name=(repo_id or "model").split("/")[-1],
        ),
        f"# {(repo_id or 'A two-stage image generator').split('/')[-1]}",
        "A VQ-VAE turns images into grids of discrete codes; an autoregressive transformer prior draws new grids; the "
        "VQ-VAE's decoder turns them into new images. Trained with vq-prior.",
        "![samples, a class after the other, seed 0](samples.png)" if picture else "",
        "## Load\n\n```bash\npip install vq-prior\n```\n\n```python\n" + load + "\n```",
        "## What it is\n\n" + table(_description(index.spec, index.label_names, index.sampling, index.codec_id, model)),
        "## Measured\n\n" + measured_table(codec, prior, codec_measured, prior_measured),
        "## How it was made\n\n" + recipe_text(codec, prior),
        "## Limits\n\n" + _limits(index.spec, codec),
    ]
    return card_of(parts, license_id)


def codes_card(index: "CodeIndex", *, repo_id: str, license_id: str | None) -> str:
    """Return the card of a code store on the Hub; its head tells `datasets` where the rows are."""
    counts = {split: sum(s.num_rows for s in index.shards if s.split == split) for split in ("train", "validation")}
    splits = [split for split, count in counts.items() if count]
    head: dict[str, Any] = {
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": split, "path": f"data/{split}-*.parquet"} for split in splits],
            }
        ],
        "tags": ["vq-prior", "vq-vae", "discrete-codes"],
    }
    if license_id:
        head["license"] = license_id
    grids = "; ".join(f"{by(level.grid)} of {level.num_codes} codes" for level in index.spec.levels)
    rows = [
        ("rows", ", ".join(f"{counts[split]:,} {split}" for split in splits)),
        ("code grids, coarse to fine", grids),
        ("of images", f"{by(index.spec.shape)}, {index.spec.channels} channels"),
        ("classes", _classes(index.label_names)),
        ("codec", plain_text(index.codec.source)),
        ("codec id", f"`{index.codec.id}`"),
        ("data", plain_text(index.data.source)),
        ("data id", f"`{index.data.id}`"),
    ]
    parts = [
        yaml_head(head),
        f"# {repo_id.split('/')[-1]}",
        "Discrete codes of images, written by the codec named below. They mean nothing to another codec: vq-prior "
        "compares the codec ids and refuses.",
        table(rows),
        f"## Train a prior on them\n\n```bash\nvq-prior train-prior --codes {repo_id} --out runs/mine\n```",
    ]
    return card_of(parts, license_id)


def _evaluation(model: Path, codec_id: str) -> dict[str, Any]:
    """Return what `vq-prior evaluate` wrote into a MODEL, if it is of this codec."""
    path = model / EVALUATION
    result = read_json(path) if path.is_file() else {}
    return result if isinstance(result, dict) and result.get("codec_id") == codec_id else {}


def _description(
    spec: CodeSpec, label_names: tuple[str, ...], sampling: "SamplingDefaults", codec_id: str, model: Path
) -> list[Row]:
    temperature = temperature_text(sampling.temperature)
    return [
        ("images", f"{by(spec.shape)}, {spec.channels} channel{'s' if spec.channels > 1 else ''}"),
        ("code grids, coarse to fine", "; ".join(f"{by(level.grid)} of {level.num_codes}" for level in spec.levels)),
        ("tokens an image", f"{spec.num_tokens:,}"),
        ("parameters of the codec", _parameters(model / "vqvae")),
        ("parameters of the prior", _parameters(model / "prior")),
        ("classes", _classes(label_names)),
        ("temperature, guidance scale", f"{temperature}, {sampling.guidance_scale:g} (by measurement)"),
        ("codec id", f"`{codec_id}`"),
    ]


def _parameters(folder: Path) -> str:
    from math import prod

    from vq_prior.core.disk.components import WEIGHTS
    from vq_prior.core.disk.tensors import read_header

    return f"{sum(prod(header.shape) for header in read_header(folder / WEIGHTS).values()):,}"


def _limits(spec: CodeSpec, codec: TrainingRecord | None) -> str:
    return (
        f"It draws images of {by(spec.shape)} only, of the kind it was trained on"
        f"{f' ({codec.num_train:,} images)' if codec else ''}; fine detail below one code's patch is lost. Samples can "
        "come close to training images. What the training images lack or exaggerate, the samples do too."
    )


def _classes(names: tuple[str, ...]) -> str:
    shown = ", ".join(plain_text(name) for name in names[:20])
    return f"{len(names)}: {shown}{', ...' if len(names) > 20 else ''}" if names else "none (unconditional)"
