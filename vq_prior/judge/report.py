"""`vq-prior report RUN`: one page, in one file, of what a run learnt and how; needs neither network nor script.

It opens with what was drawn and one line of verdict; curves follow, and tables of every number come last, folded.
Curves and settings come from the training folders, pictures from the finished parts. What a run does not have yet is
left out, and said; while a training is under way the page shows its newest picture and the time left.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stage1_vqvae.settings import TrainVQVAE
from stage2_prior.settings import TrainPrior
from vq_prior import __version__
from vq_prior.core.config import read_json
from vq_prior.core.disk.artifacts import write_atomic
from vq_prior.core.disk.code_store import INDEX
from vq_prior.core.disk.places import make_folder, true_place
from vq_prior.core.disk.records import TrainingRecord, public_name, read_record
from vq_prior.core.errors import ArtifactError, UsageError
from vq_prior.core.settings import Place, names_marked
from vq_prior.core.training.runs import by_number, flatten
from vq_prior.judge.chart import Chart, line_chart
from vq_prior.judge.page import Section, Table, render, sheet_tile
from vq_prior.judge.progress import Training, clock, read_training
from vq_prior.judge.verdict import HEAD, explained, figures, verdict
from vq_prior.model.index import read_index

if TYPE_CHECKING:
    from vq_prior.settings import Report

AGAIN_SECONDS = 15  # after which a browser looks for a newer page, while there is to be one
LOOK_SECONDS = 2.0  # between looks at a run that is followed
EVALUATION = "evaluation.json"

# Of a chart: title, unit, and the names of its lines, those of a level with it.
CODEC_CHARTS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("Error of the reconstructions in training", "loss, values from -1 to 1", ("reconstruction", "coarse")),
    ("Share of the codes in use", "0 to 1", ("usage",)),
    ("Perplexity: as many codes as if all were used alike", "codes", ("perplexity",)),
    ("Perceptual term: what the loss says of texture", "its own unit", ("perceptual",)),
    ("Held-out reconstructions, as a fitted network sees them: smaller is better", "rFID", ("rfid",)),
    ("Logits of the discriminator", "logit", ("discriminator_logit_of_data", "discriminator_logit_of_copies")),
    ("Codes that nothing chose, and codes moved to new places", "codes", ("num_dead", "num_revived")),
)
PRIOR_CHARTS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("Nats per token, against the baselines", "nats per token", ("train_nats", "held_out_nats")),
)
LINES = {
    "reconstruction": "reconstruction",
    "coarse": "of the coarse levels alone",
    "usage": "in use",
    "perceptual": "distance",
    "rfid": "held-out reconstructions",
    "discriminator_logit_of_data": "images",
    "discriminator_logit_of_copies": "reconstructions",
    "num_dead": "not chosen",
    "num_revived": "moved",
    "train_nats": "training images",
    "held_out_nats": "held-out images",
}
BASELINES = ("previous_token", "unigram", "uniform")
NO_CURVES = {"step", "elapsed_seconds", *BASELINES}


def report(settings: "Report") -> Path:
    """Write the page of RUN and return its path; with `follow`, again whenever there is news, until the run is whole.

    Raises:
        UsageError: If OUT is a folder.
        ArtifactError: If RUN is no run, or a part of it is damaged.
    """
    run, out = settings.run, settings.out or settings.run / "report.html"
    if out.is_dir():
        raise UsageError(f"--out must be a file to write, {out} is a folder")
    if not run.is_dir():
        raise ArtifactError(f"{run} is not a folder" if run.exists() else f"{run} does not exist")
    gallery = _Gallery(run)
    whole = _write(run, out, gallery)
    print(f"wrote {out}: open it in a browser", flush=True)
    if settings.follow:
        _follow(run, out, gallery, whole=whole)
        print(f"{run} is whole; {out} shows it", flush=True)
    return out


def _follow(run: Path, out: Path, gallery: "_Gallery", *, whole: bool) -> None:
    """Write the page again whenever there is news, until the run is whole."""
    news, failed = _state(run), False
    while not whole:
        time.sleep(LOOK_SECONDS)
        if (now := _state(run)) == news and not failed:
            continue
        try:
            news, whole, failed = now, _write(run, out, gallery), False
        except ArtifactError:
            if failed:
                raise
            failed = True  # a part may have been replaced meanwhile: one more look


def _write(run: Path, out: Path, gallery: "_Gallery") -> bool:
    """Write the page and return whether the run is whole: everything in it finished, samples to be drawn."""
    codec, prior = (read_training(run, name) for name in ("codec", "prior"))
    if codec is None and prior is None:
        raise ArtifactError(f"{run} is not a RUN: it has neither vqvae-training nor prior-training")
    trainings = [training for training in (codec, prior) if training is not None]
    records = {name: _record(run, name) for name in ("vqvae", "prior")}
    of_codec, of_prior = (record.measured if record is not None else None for record in records.values())
    found, of_this = _evaluation(run)
    evaluation = found if of_this else None
    drawn = gallery.sections()
    copies, flat_psnr = _copies(codec, records["vqvae"])
    status = [line for training in trainings if (line := training.status()) is not None]
    times = [(f"training of the {each.name}", clock(each.seconds()), "", "time it took") for each in trainings]
    rows = (*figures(of_codec, of_prior, evaluation, flat_psnr=flat_psnr), *times)
    facts = Section("Figures", tables=[Table(rows, head=HEAD)])
    sections: list[Section | None] = [*drawn["Samples"], *_newest_samples(prior, drawn), *copies, facts]
    sections += [_codec_curves(codec)] if codec else []
    sections += [_prior_curves(prior)] if prior else []
    sections += [*drawn["Levels"], *drawn["Codebook atlas"], *drawn["Completions"]]
    sections += [_other_curves(trainings), _every_number(records, found, of_this=of_this), _configuration(codec, prior)]
    make_folder(true_place(out).parent)
    page = render(
        run.absolute().name,
        verdict(of_codec, of_prior, evaluation),
        status,
        [section for section in sections if section is not None],
        written_by=f"Written by vq-prior {__version__}.",
        again=AGAIN_SECONDS if status else None,
    )
    write_atomic(out, page)
    to_come = prior is not None and any(prior.settings.get(name) for name in ("codec", "from_model"))  # RUN/model
    has_model = (run / "model" / "config.json").is_file()
    return not status and all(record is not None for record in records.values()) and (has_model or not to_come)


def _state(run: Path) -> list[tuple[str, int, int]]:
    """Return what tells of news of a run: sizes and times of logs, pictures and parts."""
    parts = ["*-training/metrics.jsonl", "*-training/images/*.png", f"*/{INDEX}", "*/config.json", EVALUATION]
    found = {path for pattern in parts for path in run.glob(pattern)}
    return sorted((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in found)


def _record(run: Path, name: str) -> TrainingRecord | None:
    """Return the record of the part "vqvae" or "prior" of a RUN, or of its MODEL; None where there is none."""
    return next((read_record(place / name) for place in (run, run / "model") if (place / name).is_dir()), None)


class _Gallery:
    """What finished parts show; drawn anew only where they are others."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self._of: list[int] | None = None
        self._sections: dict[str, list[Section]] = {}

    def sections(self) -> dict[str, list[Section]]:
        """Return at most one section under each title."""
        run = self.run
        parts = [run / "vqvae/config.json", run / "codes" / INDEX, run / "model/config.json"]
        of = [path.stat().st_mtime_ns if path.is_file() else 0 for path in parts]
        if of != self._of:
            self._sections, self._of = self._drawn(), of
        return self._sections

    def _drawn(self) -> dict[str, list[Section]]:
        run, codes = self.run, self.run / "codes"
        found: list[Section | None] = []
        folder = next((p for p in (run / "vqvae", run / "model" / "vqvae") if (p / "config.json").is_file()), None)
        if folder is not None:
            from stage1_vqvae.codecs import open_codec
            from vq_prior.judge.gallery import atlas, levels

            codec = open_codec(folder)
            found += [levels(codec, codes), atlas(codec, codes)]
        if (run / "model" / "config.json").is_file():
            from vq_prior.judge.gallery import completions, samples
            from vq_prior.model.pipeline import VQPriorPipeline

            pipeline = VQPriorPipeline.from_pretrained(run / "model")
            found += [samples(pipeline, codes), completions(pipeline, codes)]
        titles = ("Samples", "Levels", "Codebook atlas", "Completions")
        return {title: [section for section in found if section and section.title == title] for title in titles}


def _newest_samples(prior: Training | None, drawn: dict[str, list[Section]]) -> list[Section]:
    """Return the newest samples of a training that is not finished."""
    if prior is None or (prior.finished and drawn["Samples"]):
        return []
    if prior.picture is None:
        model = "there is no RUN/model, which draws them: `vq-prior assemble` makes one"
        return [Section("Samples", text=f"None: {model if prior.finished else 'none were drawn in training yet'}.")]
    text = "The newest of the training, as they were drawn then."
    tile = sheet_tile(prior.picture.read_bytes(), prior.picture.stem.replace("-", " "))
    return [Section("Samples while training", text=text, tiles=[tile])]


def _copies(codec: Training | None, record: TrainingRecord | None) -> tuple[list[Section], float | None]:
    """Return the newest reconstructions of a training, and the PSNR if the images shown were flat."""
    if codec is None or codec.picture is None:
        return [], None
    step = int(codec.picture.stem.rpartition("-")[2])
    text = f"Held-out images, each above its reconstruction, after step {step:,}."
    sheet = codec.picture.read_bytes()
    if record is None or not codec.finished:
        return [Section("Reconstructions", text=text, tiles=[sheet_tile(sheet, "")])], None
    from vq_prior.judge.gallery import pairs

    in_db = "psnr" in record.measured and "psnr_range" not in record.measured
    tiles, flat_psnr = pairs(sheet, record.num_held_out, in_db=in_db)
    text += " A click shows a pair larger."
    return [Section("Reconstructions", text=text, tiles=tiles)], flat_psnr


def _charts(training: Training, wanted: Sequence[tuple[str, str, tuple[str, ...]]]) -> list[Chart]:
    """Return the charts of (title, unit, lines) that the log has numbers for."""
    made = []
    for title, unit, names in wanted:
        lines = [line for name in names for line in training.of_levels(name)]
        last = {name.replace("_", " "): some[-1][1] for name in BASELINES if (some := training.points(name))}
        levels = last if "held_out_nats" in names else {}
        points = {_words(name): training.points(name) for name in lines}
        made.append(line_chart(title, points, levels=levels, unit=unit))
    return [chart for chart in made if chart is not None]


def _words(key: str) -> str:
    """Return what a number of the log is called, of a level with it."""
    name, _, level = key.partition(".")
    return LINES.get(name, name.replace("_", " ")) + (f", level {level}" if level else "")


def _codec_curves(codec: Training) -> Section:
    return Section("Stage one: images to codes and back", charts=_charts(codec, [*CODEC_CHARTS, *_held_out(codec)]))


def _held_out(training: Training) -> list[tuple[str, str, tuple[str, ...]]]:
    """Return a chart for each number of held-out images that the log has beside the nats."""
    names = dict.fromkeys(key.partition(".")[0] for entry in training.log for key in entry)
    wanted = [name for name in names if name.startswith("held_out_") and name != "held_out_nats"]
    return [(name.replace("_", " ").capitalize(), "", (name,)) for name in wanted]


def _prior_curves(prior: Training) -> Section:
    text = "Held-out nats have to fall below the baselines; where they rise again, the prior learns by heart."
    points = prior.points("held_out_nats")
    if points:
        step, least = min(points, key=lambda point: point[1])
        text += f" Least after step {int(step):,}: {least:.4f}, whose weights are kept."
    charts = _charts(prior, [*PRIOR_CHARTS, *_held_out(prior)])
    return Section("Stage two: which grids of codes are likely", text=text, charts=charts)


def _other_curves(trainings: Sequence[Training]) -> Section | None:
    """Return every number of the logs that has no chart above."""
    section = Section("Every other curve", folded=True)
    for training in trainings:
        wanted = [*CODEC_CHARTS, *PRIOR_CHARTS, *_held_out(training)]
        drawn = {name for _, _, names in wanted for name in names} | NO_CURVES
        names = dict.fromkeys(key.partition(".")[0] for entry in training.log for key in entry)
        others = [(f"{training.name}: {name.replace('_', ' ')}", "", (name,)) for name in names if name not in drawn]
        section.charts += _charts(training, others)
    return section if section.charts else None


def _evaluation(run: Path) -> tuple[dict[str, Any], bool]:
    """Return what `vq-prior evaluate --out RUN/evaluation.json` measured, and whether it was of this run's codec."""
    path = run / EVALUATION
    if not path.is_file():
        return {}, False
    found = read_json(path)
    if not isinstance(found, dict):
        raise ArtifactError(f"{path} is not what vq-prior evaluate writes: it is no object")
    own = read_index(run / "model").codec_id if (run / "model" / "config.json").is_file() else None
    return found, own is not None and found.get("codec_id") == own


def _number(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def _numbers(values: Any) -> tuple[tuple[str, ...], ...]:
    return tuple((name, _number(value), explained(name)) for name, value in flatten(by_number(values)).items())


def _every_number(
    records: dict[str, TrainingRecord | None], evaluation: dict[str, Any], *, of_this: bool
) -> Section | None:
    section = Section("Every number", folded=True, text="By their keys in the files, with what they are.")
    for name, record in records.items():
        if record is not None:
            rows = [("command", record.command, explained("command")), ("data", record.data, explained("data"))]
            rows.append(("rows", f"{record.num_train} trained on, {record.num_held_out} held out", ""))
            section.tables.append(Table((*rows, *_numbers(record.measured)), title=f"{name}/training.json"))
    if evaluation:
        title = EVALUATION if of_this else f"{EVALUATION}, which is not of this run's codec and counts for nothing here"
        section.tables.append(Table(_numbers(evaluation), title=title))
    return section if section.tables else None


def _configuration(codec: Training | None, prior: Training | None) -> Section:
    text = "Every setting, as it was chosen for this data and this machine."
    section = Section("Configuration", folded=True, text=text)
    runs = (("train-vqvae", TrainVQVAE, codec), ("train-prior", TrainPrior, prior))
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
