"""What every card on the Hub is made of, and the card of a codec or a prior alone.

A card says what was measured and nothing else. It ends in a mark; one without the
mark was written by a person and is left as it is.
"""

from pathlib import Path
from typing import Any

from vq_prior.core.disk.records import TrainingRecord, read_record

README = "README.md"
MARK = "<!-- written by vq-prior; without this line, the card is yours and is kept -->"
Row = tuple[str, str]

METRICS = {
    "psnr": ("PSNR of reconstructions (dB)", ".2f"),
    "ssim": ("SSIM of reconstructions", ".4f"),
    "nats_per_token": ("nats per token", ".4f"),
    "bits_per_dimension": ("code bits per dimension", ".4f"),
}


def is_ours(card: Path) -> bool:
    """Return whether a card may be written anew: there is none, or it bears the mark."""
    return not card.is_file() or MARK in card.read_text(encoding="utf-8", errors="replace")


def component_card(folder: Path, kind: str, *, repo_id: str | None, license_id: str | None) -> str:
    """Return the card of a codec (`kind` "vqvae") or a prior alone."""
    record = read_record(folder)
    measured = record.measured if record else {}
    name = "VQVAE" if kind == "vqvae" else "CausalPrior"
    what = (
        "A VQ-VAE: images to grids of discrete codes and back. Trained with vq-prior."
        if kind == "vqvae"
        else "An autoregressive transformer prior over the codes of a VQ-VAE; needs that codec to draw images. Trained "
        "with vq-prior."
    )
    codec, prior = (record, None) if kind == "vqvae" else (None, record)
    title = (repo_id or kind).split("/")[-1]
    parts = [
        front_matter(
            license_id=license_id,
            data=record.data if record and kind == "vqvae" else None,
            metrics=numbers(measured),
            name=title,
            pipeline_tag="image-feature-extraction" if kind == "vqvae" else "unconditional-image-generation",
        ),
        f"# {title}",
        what,
        f"## Load\n\n```python\nfrom vq_prior import {name}\n\n"
        f'model = {name}.from_pretrained("{repo_id or kind}")\n```',
        "## Measured\n\n" + measured_table(codec, prior, measured if codec else {}, measured if prior else {}),
        "## How it was made\n\n" + recipe_text(codec, prior),
    ]
    return card_of(parts, license_id)


def card_of(parts: list[str], license_id: str | None) -> str:
    """Return a card of these parts, the empty ones left out, with what is said of the licence and the mark."""
    licence = f"## Licence\n\n{license_id or 'Not stated by the author.'}"
    return "\n\n".join(part for part in (*parts, licence, MARK) if part) + "\n"


def numbers(measured: dict[str, Any]) -> dict[str, float]:
    """Return the plain numbers among results that a card's head lists."""
    wanted = {name: measured[name] for name in METRICS if isinstance(measured.get(name), (int, float))}
    scores = {
        name: measured[name]["value"]
        for name in ("rfid", "fid")
        if isinstance(measured.get(name), dict) and isinstance(measured[name].get("value"), (int, float))
    }
    return {name: round(float(value), 6) for name, value in (wanted | scores).items()}


def front_matter(
    *,
    license_id: str | None,
    data: str | None,
    metrics: dict[str, float],
    name: str,
    pipeline_tag: str = "unconditional-image-generation",
) -> str:
    """Return the head of a model's card, with `metrics` as its model-index."""
    head: dict[str, Any] = {
        "library_name": "vq-prior",
        "pipeline_tag": pipeline_tag,
        "tags": ["vq-prior", "vq-vae", "autoregressive", "image-generation"],
    }
    if license_id:
        head["license"] = license_id
    if metrics:
        result = {
            "task": {"type": pipeline_tag},
            "dataset": {"name": data or "held-out images", "type": data or "images", "split": "held out"},
            "metrics": [{"type": kind, "value": value, "name": kind} for kind, value in metrics.items()],
        }
        head["model-index"] = [{"name": name, "results": [result]}]
    return yaml_head(head)


def yaml_head(head: dict[str, Any]) -> str:
    """Return the YAML head of a card."""
    import yaml  # of huggingface_hub, which reads these heads with it

    return "---\n" + yaml.safe_dump(head, sort_keys=False, allow_unicode=True) + "---"


def measured_table(
    codec: TrainingRecord | None, prior: TrainingRecord | None, of_codec: dict[str, Any], of_prior: dict[str, Any]
) -> str:
    """Return the table of results; what was not measured says so."""
    rows: list[Row] = []
    if codec is not None or of_codec:
        count = of_codec.get("num_images") or (codec.num_held_out if codec else None)
        rows.append(("held-out images", f"{count:,}" if isinstance(count, int) else "unknown"))
        for name in ("psnr", "ssim"):
            of = f" of the range {of_codec['psnr_range']}" if name == "psnr" and "psnr_range" in of_codec else ""
            of += f", {of_codec['measures_of']}" if "measures_of" in of_codec else ""
            rows.append((plain_text(METRICS[name][0] + of), _number(of_codec.get(name), METRICS[name][1])))
        for number, level in enumerate(of_codec.get("levels") or ()):
            use = f"{level['usage']:.1%} of {level['num_codes']}, perplexity {level['perplexity']:.1f}"
            rows.append((f"codes used, level {number}", use))
            if "psnr" in (up_to := level.get("to_here") or {}):
                rows.append((f"PSNR from the levels up to {number}", f"{up_to['psnr']:.2f} dB"))
        rows.append(("rFID", _score(of_codec.get("rfid"))))
    if prior is not None or of_prior:
        rows.append(("nats per token, held out", _number(of_prior.get("nats_per_token"), ".4f")))
        baselines = [
            f"{_number(of_prior.get(key), '.4f')} {name}"
            for key, name in (("previous_token", "previous token"), ("unigram", "unigram"), ("uniform", "uniform"))
            if key in of_prior
        ]
        rows.append(("baselines, nats per token", ", ".join(baselines) or "not measured"))
        for number, level in enumerate(of_prior.get("levels") or ()):
            known = "" if level["level_above"] is None else f"; knowing the level above, {level['level_above']:.4f}"
            rows.append((f"nats per token of level {number}", f"{level['nats_per_token']:.4f}{known}"))
        rows.append(("code bits per dimension", _number(of_prior.get("bits_per_dimension"), ".4f")))
        rows.append(("FID", _score(of_prior.get("fid"))))
    return table(rows) if rows else "Nothing: it came without a record of its training."


def _score(score: Any) -> str:
    if not isinstance(score, dict) or "value" not in score:
        return "not measured"
    return (
        f"{score['value']:.2f} ({score.get('evaluator', 'unknown evaluator')}, {score.get('num_samples', '?')} samples)"
    )


def _number(value: Any, form: str) -> str:
    return format(value, form) if isinstance(value, (int, float)) else "not measured"


def recipe_text(codec: TrainingRecord | None, prior: TrainingRecord | None) -> str:
    """Return the commands of both stages and what they were trained on."""
    lines = []
    for record, what in ((codec, "images"), (prior, "codes")):
        if record is not None:
            lines.append(
                f"On {record.num_train:,} {what} of {plain_text(record.data)}, {record.num_held_out:,} held out:\n\n"
                f"```bash\n{record.command}\n```"
            )
            lines += [f"Changed on the way, {plain_text(change)}." for change in record.changes]
    return "\n\n".join(lines) or "It came without a record of its training."


def table(rows: list[Row]) -> str:
    """Return a Markdown table of names and values."""
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def plain_text(text: str) -> str:
    """Return foreign words as plain text inside a table: no markup, no line breaks."""
    cleaned = "".join(c if c.isprintable() else " " for c in text)[:200]
    for mark in "\\`*_[]<>|#":
        cleaned = cleaned.replace(mark, f"\\{mark}")
    return cleaned
