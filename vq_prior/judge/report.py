"""`vq-prior report RUN`: one page, in one file, of what a run learnt and how; needs neither network nor script.

Curves and settings come from the training folders, pictures from the finished parts: the newest held-out
reconstructions, what each code draws, samples of every class, completions of held-out codes. What a run does not
have yet is left out, and said.
"""

import base64
import json
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from stage1_vqvae.modalities.sheets import png_bytes
from stage1_vqvae.settings import TrainVQVAE
from stage2_prior.sampling_settings import temperature_text
from stage2_prior.settings import TrainPrior
from vq_prior import __version__
from vq_prior.core.config import read_json
from vq_prior.core.disk.artifacts import write_atomic
from vq_prior.core.disk.code_store import INDEX, CodeStore, shard_ranges
from vq_prior.core.disk.places import make_folder, true_place
from vq_prior.core.disk.records import TrainingRecord, public_name, read_record
from vq_prior.core.errors import ArtifactError, UsageError
from vq_prior.core.settings import Place, names_marked
from vq_prior.core.training.runs import by_number, flatten, read_run_config
from vq_prior.judge.chart import Chart, line_chart

if TYPE_CHECKING:
    from vq_prior.core.spec import Codec
    from vq_prior.model.pipeline import VQPriorPipeline
    from vq_prior.settings import Report

MOST_CODES, MOST_CLASSES, OF_A_CLASS, COMPLETED = 512, 10, 8, 6
CODES_AT_ONCE = 64
BUDGET = {
    "error_budget.fid": "FID of samples",
    "error_budget.rfid": "of it, rFID of reconstructions: the codec's part",
    "error_budget.fid_less_rfid": "the rest: the prior's part",
    "samples.precision": "precision: samples that look real",
    "samples.recall": "recall: real images within the samples' range",
    "samples.classification_accuracy.fitted_to_samples": "classifier fitted to samples, on held-out images",
    "samples.classification_accuracy.fitted_to_images": "the same fitted to images",
}


@dataclass(frozen=True)
class Table:
    """Rows of two columns; with a title it can be folded."""

    rows: tuple[tuple[str, str], ...]
    title: str = ""
    open: bool = False


@dataclass(frozen=True)
class Picture:
    """A PNG in base64 and the words above it."""

    caption: str
    png: str
    width: int
    height: int


@dataclass
class Section:
    """A part of the page."""

    title: str
    text: str = ""
    tables: list[Table] = field(default_factory=list)
    charts: list[Chart] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)


def report(settings: "Report") -> Path:
    """Write the page of RUN and return its path.

    Raises:
        UsageError: If OUT is a folder.
        ArtifactError: If RUN is no run, or a part of it is damaged.
    """
    run, out = settings.run, settings.out or settings.run / "report.html"
    if not run.is_dir():
        raise ArtifactError(f"{run} is not a folder" if run.exists() else f"{run} does not exist")
    if out.is_dir():
        raise UsageError(f"--out must be a file to write, {out} is a folder")
    codec_run, prior_run = (_training(run / name) for name in ("vqvae-training", "prior-training"))
    if codec_run is None and prior_run is None:
        raise ArtifactError(f"{run} is not a RUN: it has neither vqvae-training nor prior-training")
    sections = [_overview(run, codec_run, prior_run)]
    sections += [_codec_section(run, codec_run)] if codec_run else []
    sections += _levels(run)
    sections += _atlas(run)
    sections += [_prior_section(prior_run)] if prior_run else []
    sections += _drawn(run)
    sections += _evaluation(run)
    sections.append(_configuration(codec_run, prior_run))
    make_folder(true_place(out).parent)
    title = run.absolute().name
    write_atomic(out, _page(title, f"Written by vq-prior {__version__}.", sections).encode("utf-8", "backslashreplace"))
    print(f"wrote {out}: open it in a browser", flush=True)
    return out


def _page(title: str, subtitle: str, sections: Sequence[Section]) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(loader=PackageLoader("vq_prior.judge", ""), autoescape=True, undefined=StrictUndefined)
    return environment.get_template("report.html.j2").render(title=title, subtitle=subtitle, sections=sections)


@dataclass(frozen=True)
class _Training:
    """What a training folder holds: its flat settings, its log, the newest picture."""

    settings: dict[str, Any]
    log: tuple[dict[str, float], ...]
    picture: Path | None

    def points(self, name: str) -> list[tuple[float, float]]:
        """Return (step, value) of every log line that has this number."""
        return [(entry["step"], entry[name]) for entry in self.log if name in entry]

    def of_levels(self, name: str) -> list[str]:
        """Return the names under which the log has a number of each level: NAME, or NAME.0, NAME.1 ... of several."""
        return list(dict.fromkeys(key for entry in self.log for key in entry if key.partition(".")[0] == name))

    def seconds(self) -> float:
        """Return the seconds of all processes that worked on it; each counts from its own start."""
        times = [entry["elapsed_seconds"] for entry in self.log]
        ends = [now for now, after in zip(times, [*times[1:], 0.0], strict=True) if after < now]
        return sum(ends)


def _training(folder: Path) -> _Training | None:
    if not (folder / "config.json").is_file():
        return None
    log = []
    path = folder / "metrics.jsonl"
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            log.append(json.loads(line))
        except json.JSONDecodeError:  # the last line of a run that was killed
            continue
    pictures = sorted((folder / "images").glob("step-*.png"))
    settings = flatten(read_run_config(folder / "config.json").settings)
    return _Training(settings, tuple(log), pictures[-1] if pictures else None)


def _overview(run: Path, codec_run: _Training | None, prior_run: _Training | None) -> Section:
    records = {name: read_record(run / name) if (run / name).is_dir() else None for name in ("vqvae", "prior")}
    missing = [name for name, record in records.items() if record is None]
    section = Section("What was measured", text=f"Not finished yet: {', '.join(missing)}." if missing else "")
    for name, record in records.items():
        if record is not None:
            section.tables.append(Table(_measured(record), title=name, open=True))
    seconds = {"codec": codec_run, "prior": prior_run}
    rows = [(f"{name} training", _clock(training.seconds())) for name, training in seconds.items() if training]
    section.tables.append(Table(tuple(rows), title="time", open=True))
    return section


def _measured(record: TrainingRecord) -> tuple[tuple[str, str], ...]:
    rows = [("command", record.command), ("data", record.data)]
    rows += [("rows", f"{record.num_train} trained on, {record.num_held_out} held out")]
    return (*rows, *((name, _number(value)) for name, value in flatten(by_number(record.measured)).items()))


def _number(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d} h" if minutes >= 60 else f"{minutes}:{rest:02d} min"


def _charts(training: _Training, wanted: Sequence[tuple[str, Sequence[str], Sequence[str]]]) -> list[Chart]:
    """Return the charts of (title, lines, levels) that the log has numbers for."""
    made = []
    for title, lines, levels in wanted:
        last = {name: points[-1][1] for name in levels if (points := training.points(name))}
        chart = line_chart(title, {name: training.points(name) for name in lines}, levels=last)
        made += [chart] if chart is not None else []
    return made


def _codec_section(run: Path, training: _Training) -> Section:
    section = Section("Stage one: images to codes and back")
    section.charts = _charts(
        training,
        [
            ("error of the reconstructions in training", ["reconstruction"], []),
            ("share of the codes in use", training.of_levels("usage"), []),
            ("perplexity: as many codes as if all were used alike", training.of_levels("perplexity"), []),
            (
                "codes that nothing chose, and codes moved to new places",
                [*training.of_levels("num_dead"), "num_revived"],
                [],
            ),
        ],
    )
    if training.picture is not None:
        caption = f"Held-out images, each above its reconstruction ({training.picture.stem.replace('-', ' ')})"
        section.pictures.append(_picture(training.picture.read_bytes(), caption))
    if not (run / "vqvae").is_dir():
        section.text = "The training is not finished."
    return section


def _prior_section(training: _Training) -> Section:
    text = "Held-out nats have to fall below the baselines; where they rise again, the prior learns by heart."
    section = Section("Stage two: which grids of codes are likely", text=text)
    levels = ["previous_token", "unigram"]
    section.charts = _charts(
        training,
        [
            ("nats per token, against the baselines", ["train_nats", "held_out_nats"], levels),
            ("learning rate", ["learning_rate"], []),
        ],
    )
    return section


def _picture(png: bytes, caption: str) -> Picture:
    width, height = struct.unpack(">II", png[16:24])  # of the header, with which a PNG begins
    return Picture(caption, base64.b64encode(png).decode(), width, height)


def _atlas(run: Path) -> list[Section]:
    """Return a picture of each code, decoded where every cell around has that code too; the most used codes first."""
    if not (run / "vqvae" / "config.json").is_file():
        return []
    from stage1_vqvae.codecs import open_codec

    codec = open_codec(run / "vqvae")
    number, level = len(codec.spec.levels) - 1, codec.spec.levels[-1]
    counts = _counts(run / "codes", number, level.num_codes)
    order = np.arange(level.num_codes) if counts is None else np.argsort(-counts, kind="stable")
    shown = torch.from_numpy(order[:MOST_CODES].copy())
    drawn = torch.cat([middles(codec, some) for some in shown.split(CODES_AT_ONCE)])
    text = f"{len(shown)} of {level.num_codes} codes, each where its neighbours are the same code"
    if number:
        text += ", of the finest level; the coarser ones have code 0"
    if counts is not None:
        text += f"; the most used first. {int((counts > 0).sum())} of them occur in the training images"
    return [Section("Codebook atlas", text=f"{text}.", pictures=[_sheet(codec, drawn, 32, "codes")])]


def _levels(run: Path) -> list[Section]:
    """Return what the first levels of held-out codes show, one level more a column."""
    if not (run / "vqvae" / "config.json").is_file() or not (run / "codes" / INDEX).is_file():
        return []
    from stage1_vqvae.codecs import open_codec

    codec, store = open_codec(run / "vqvae"), CodeStore.open(run / "codes", "validation")
    count = len(codec.spec.levels)
    if count == 1 or not codec.separable or store.index.codec.id != codec.codec_id or not len(store):
        return []
    rows = store.rows(np.linspace(0, len(store) - 1, min(COMPLETED, len(store)), dtype=np.int64))
    codes = [torch.from_numpy(rows[f"codes.{n}"].astype(np.int64)) for n in range(count)]
    drawn = torch.stack([codec.decode(codes[: n + 1]) for n in range(count)], dim=1).flatten(0, 1)
    text = f"A row is a held-out image: from the codes of its first level alone, and so on to all {count} levels."
    return [Section("Levels", text=text, pictures=[_sheet(codec, drawn, count, "Decoded from the first levels")])]


def _counts(codes: Path, number: int, num_codes: int) -> Any:
    """Return how often each code of a level occurs in the training rows of a store, [K]; None without a store."""
    if not (codes / INDEX).is_file():
        return None
    store = CodeStore.open(codes)
    counts = np.zeros(num_codes, dtype=np.int64)
    for rows in shard_ranges(len(store)):
        values = store.rows(np.arange(rows.start, rows.stop))[f"codes.{number}"]
        counts += np.bincount(values.reshape(-1), minlength=num_codes)
    return counts


def _sheet(codec: "Codec", values: Tensor, columns: int, caption: str) -> Picture:
    return _picture(png_bytes(codec.modality.show.sheet(values, columns=columns)), caption)


def middles(codec: "Codec", codes: Tensor) -> Tensor:
    """Return the middle (two cells a side) of the value whose cells all hold one code of the finest level, for each
    code; coarser codes are 0.

    [n, C, *shape of the middle].
    """
    level = codec.spec.levels[-1]
    coarser = [torch.zeros((len(codes), *other.grid), dtype=torch.int64) for other in codec.spec.levels[:-1]]
    filled = codes.reshape(-1, *(1 for _ in level.grid)).expand(-1, *level.grid)
    values = codec.decode((*coarser, filled))
    for axis, (size, cells) in enumerate(zip(codec.spec.shape, level.grid, strict=True), start=2):
        length = min(size, 2 * -(-size // cells))
        values = values.narrow(axis, (size - length) // 2, length)
    return values


def _drawn(run: Path) -> list[Section]:
    """Return samples of every class, and completions of held-out rows, of RUN/model."""
    if not (run / "model" / "config.json").is_file():
        return []
    from vq_prior.draw.given_codes import open_given
    from vq_prior.model.pipeline import VQPriorPipeline

    pipeline = VQPriorPipeline.from_pretrained(run / "model")
    names = pipeline.index.label_names
    classes = range(min(len(names), MOST_CLASSES)) if names else range(MOST_CLASSES)
    labels = [names[number] for number in classes for _ in range(OF_A_CLASS)] if names else None
    given, count = None, OF_A_CLASS * len(classes)
    if pipeline.prior.layout.given_levels:
        if not (run / "codes" / INDEX).is_file():
            return []
        known = open_given(run / "codes", pipeline.index, pipeline.prior.layout.given_levels)
        assert known is not None
        given = known.tokens(pipeline.prior.layout, range(count))
        labels = [names[number] for number in known.classes(pipeline.index) or []] or labels
    drawn = pipeline(count, labels=labels, given=given, output_type="pt").drawn
    sampling = pipeline.index.sampling
    temperature = temperature_text(sampling.temperature)
    text = f"Seed 0, temperature {temperature}, guidance {sampling.guidance_scale:g}; nothing was picked."
    rows = f"; a row a class: {', '.join(names[:MOST_CLASSES])}" if names and given is None else ""
    picture = _sheet(pipeline.codec, drawn, OF_A_CLASS, f"Samples{rows}")
    sections = [Section("Samples", text=text, pictures=[picture])]
    return sections + _completions(run / "codes", pipeline)


def _completions(codes: Path, pipeline: "VQPriorPipeline") -> list[Section]:
    spec = pipeline.index.spec
    if not (codes / INDEX).is_file() or (rows := spec.levels[0].grid[0] // 2) < 1:
        return []
    store = CodeStore.open(codes, "validation")
    if store.index.codec.id != pipeline.codec.codec_id or not len(store):
        return []
    chosen = store.rows(np.linspace(0, len(store) - 1, min(COMPLETED, len(store)), dtype=np.int64))
    grids = tuple(torch.from_numpy(chosen[f"codes.{n}"].astype(np.int64)) for n in range(len(spec.levels)))
    layout, each = pipeline.prior.layout, OF_A_CLASS - 1
    # A row whose codes the prior has no tokens for cannot be gone on from.
    of_each = [tuple(grid[n : n + 1] for grid in grids) for n in range(len(grids[0]))]
    fitting = [n for n, codes in enumerate(of_each) if _has_tokens(layout.given_rows, codes, rows)]
    if not fitting:
        return []
    grids = tuple(grid[fitting] for grid in grids)
    given = layout.given_rows(grids, rows).repeat_interleave(each, dim=0)
    names = pipeline.index.label_names
    labels = [names[n] for n in chosen["label"][fitting].repeat(each)] if store.labelled and names else None
    drawn = pipeline(len(given), labels=labels, given=given, output_type="pt").drawn
    originals = pipeline.codec.decode(grids)
    strips = [torch.cat([originals[n : n + 1], drawn[n * each : (n + 1) * each]]) for n in range(len(fitting))]
    text = "Left a held-out image as its codes show it; the others keep the upper half of its codes."
    picture = _sheet(pipeline.codec, torch.cat(strips), OF_A_CLASS, "Completions of held-out images")
    return [Section("Completions", text=text, pictures=[picture])]


def _has_tokens(given_rows: Callable[[tuple[Tensor, ...], int], Tensor], codes: tuple[Tensor, ...], rows: int) -> bool:
    try:
        given_rows(codes, rows)
    except (UsageError, ArtifactError):
        return False
    return True


def _evaluation(run: Path) -> list[Section]:
    """Return what `vq-prior evaluate --out RUN/evaluation.json` measured."""
    path = run / "evaluation.json"
    if not path.is_file():
        return []
    numbers = {name: _number(value) for name, value in flatten(by_number(read_json(path))).items()}
    budget = tuple((text, numbers[name]) for name, text in BUDGET.items() if name in numbers)
    tables = [Table(budget, title="error budget", open=True)] if budget else []
    text = f"{path.name}, by vq-prior evaluate; distances are in the features of its evaluator, smaller is better."
    return [Section("Evaluation", text, [*tables, Table(tuple(numbers.items()), title="every number")])]


def _configuration(codec_run: _Training | None, prior_run: _Training | None) -> Section:
    section = Section("Configuration", text="Every setting, as it was chosen for this data and this machine.")
    runs = (("train-vqvae", TrainVQVAE, codec_run), ("train-prior", TrainPrior, prior_run))
    for command, settings_class, training in runs:
        if training is not None:
            # Where something lies on this machine is nobody else's business.
            places = names_marked(settings_class, Place)
            rows = tuple(
                (
                    f"--{name.replace('_', '-')}",
                    public_name(value) if value is not None and name in places else str(value),
                )
                for name, value in training.settings.items()
            )
            section.tables.append(Table(rows, title=command))
    return section
