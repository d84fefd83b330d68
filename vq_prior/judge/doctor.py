"""`vq-prior doctor`: examine what there is of a codec, its codes, a prior and its samples; end in a verdict in words.

What is not given but was used to make what is given (the codes of a prior, the data of a codec) is taken from where
the training or the store says it came from, if it is still there.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from stage1_vqvae.codecs import find_codec, open_codec
from stage1_vqvae.data.loading import LoadedRows, bytes_of, load_rows
from stage1_vqvae.data.rows import DataRows
from stage1_vqvae.data.sources import Data, open_data_of
from stage2_prior.prior import CausalPrior, load_prior
from vq_prior import __version__
from vq_prior.core.config import pretty_json
from vq_prior.core.disk.artifacts import write_atomic
from vq_prior.core.disk.code_store import INDEX, CodeStore
from vq_prior.core.disk.components import find_component
from vq_prior.core.disk.places import make_folder, true_place
from vq_prior.core.disk.records import read_record
from vq_prior.core.errors import ArtifactError, NumericError, UsageError, VQPriorError
from vq_prior.core.processes.runtime import start_runtime
from vq_prior.core.spec import Codec
from vq_prior.core.training.runs import by_number, flatten, read_run_config
from vq_prior.judge.codec import Codes, compare_codes, examine_codec, examine_codes
from vq_prior.judge.finding import Examined, Finding
from vq_prior.judge.prior import examine_labels, examine_prior, examine_samples, sequences_of
from vq_prior.settings import Doctor

MOST_ROWS, MOST_SEEN, MOST_UNSEEN, SAMPLES = 50_000, 4096, 1024, 256
ROWS_AT_ONCE, MOST_BYTES = 256, 64 << 20
EXAMINED = {"codec", "codes", "agreement", "labels", "prior", "samples"}
# The cause before what follows from it.
ORDER = (
    "wrong codec",
    "codec not trained",
    "codec loses the images in its quantiser",
    "dead level",
    "collapsed codebook",
    "half-precision flips",
    "repeated data",
    "too little data",
    "held-out images in the training set",
    "classes without images",
    "labels shuffled",
    "prior not trained",
    "prior hardly trained",
    "prior overfitted",
    "memorised training set",
    "samples repeat each other",
)


Seen = tuple[torch.Tensor, torch.Tensor] | None  # some training and held-out values, [n, C, *shape]


@dataclass(frozen=True)
class Rows:
    """Codes of one split, [n, *grid] a level, and the class of each row where there are classes."""

    codes: Codes
    labels: NDArray[np.int64] | None
    source_index: NDArray[np.int64]


@dataclass
class Case:
    """What there is to examine, and what was found so far."""

    say: Callable[[str], object]
    codec: Codec | None = None
    prior: CausalPrior | None = None
    store: Path | None = None
    data: Data | None = None
    recorded: float | None = None
    notes: list[str] = field(default_factory=list)
    measured: dict[str, Any] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    def add(self, part: str, examined: Examined) -> Examined:
        """Keep what an examination found."""
        self.measured[part] = examined.measured
        self.findings += examined.findings
        return examined


def doctor(settings: Doctor, *, say: Callable[[str], object] = print) -> dict[str, Any]:
    """Examine, say what was measured and the verdict, and return both.

    Raises:
        UsageError: If nothing is named, or OUT is a folder.
        ArtifactError: If something named is missing or damaged.
        NumericError: After all was printed, on a collapsed codebook or a prior no better than unigram.
    """
    named = [name for name in ("codec", "codes", "prior", "model") if getattr(settings, name) is not None]
    if not named:
        raise UsageError("doctor needs --codec, --codes, --prior or --model")
    if settings.model is not None and ("codec" in named or "prior" in named):
        raise UsageError("--model holds a codec and a prior; leave --codec and --prior out")
    if settings.out is not None and settings.out.is_dir():
        raise UsageError(f"--out must be a file to write, {settings.out} is a folder")
    case = _open_case(settings, say)
    runtime = start_runtime("fp32")
    say(runtime.describe())
    for part in (case.codec, case.prior):
        if part is not None:
            part.to(runtime.device)
    _examine(case, settings)
    return _report(case, settings)


def _open_case(settings: Doctor, say: Callable[[str], object]) -> Case:
    """Return what is named, and what that was made from if it is still there."""
    case = Case(say)
    codec, prior, codes, data = settings.codec, settings.prior, settings.codes, settings.data
    if settings.model is not None:
        codec = prior = settings.model
    source: dict[str, Any] = {}
    places: list[str] = []
    if prior is not None:
        folder = find_component(prior, "prior")
        case.prior = load_prior(folder)
        record = read_record(folder)
        case.recorded = None if record is None else record.measured.get("nats_per_token")
        source |= _made_with(folder.parent, "prior-training") or _made_with(folder.parent.parent, "prior-training")
    if codes is None and (at := source.get("codes")) and (Path(at) / INDEX).is_file():
        codes = Path(at)
        case.notes.append(f"codes: {codes}, which the prior was trained on")
    if codes is not None:
        index = CodeStore.open(codes).index
        case.store = codes
        source.setdefault("codec", index.codec.source)
        places.append(index.data.source)
    if codec is None and (at := source.get("codec")) and _is_codec(Path(at)):
        codec = Path(at)
        case.notes.append(f"codec: {codec}, which the codes are of")
    if codec is not None:
        folder = find_codec(codec)
        case.codec = open_codec(folder)
        trained = _made_with(folder.parent, "vqvae-training") or _made_with(folder.parent.parent, "vqvae-training")
        places.append(trained.get("data") or "")
    there = [place for place in places if place == "digits" or (place and Path(place).exists())]
    if data is None and there:
        case.notes.append(f"data: {there[-1]}, which it was made from")
    for note in case.notes:
        say(note)
    if data is not None:
        case.data = open_data_of(replace(settings, data=data), say=say, **_wanted_of(case))
    elif there:
        try:
            there_data = replace(settings, data=there[-1])
            case.data = open_data_of(there_data, say=say, **_wanted_of(case))
        except VQPriorError as error:  # nobody asked for it
            say(f"not used: {error}")
    return case


def _wanted_of(case: Case) -> dict[str, Any]:
    """Return what the data must be, and the form they are brought to, where a codec says so."""
    codec = case.codec
    return {} if codec is None else {"modality": codec.modality, "form": codec.transform}


def _made_with(run: Path, training: str) -> dict[str, Any]:
    """Return the settings of the training beside a component; none if it lies alone."""
    path = run / training / "config.json"
    return flatten(read_run_config(path).settings) if path.is_file() else {}


def _is_codec(path: Path) -> bool:
    try:
        find_codec(path)
    except VQPriorError:
        return False
    return True


def _examine(case: Case, settings: Doctor) -> None:
    """Run every examination that what there is allows; say which ones it does not."""
    _compare_ids(case)
    values = _values(case, settings)
    if case.codec is not None and values is not None:
        case.add("codec", examine_codec(case.codec, *values))
    rows = _rows(case, settings)
    if rows is None:
        case.say("not examined: codes, prior and samples; name --codes, or --codec and --data")
        return
    train, held_out = rows
    spec = _spec(case)
    codes = examine_codes(train.codes, held_out.codes, [level.num_codes for level in spec.levels])
    known = {finding.fault for finding in case.findings}  # of the codec; the codes need not be told them again
    codes.findings = [finding for finding in codes.findings if finding.fault not in known]
    case.add("codes", codes)
    _compare_codes(case, train, settings)
    tell, classes = True, _label_names(case)
    if train.labels is not None and len(classes) > 1:
        label_findings = case.add("labels", examine_labels(train.codes, train.labels, classes)).findings
        tell = all(finding.fault != "labels shuffled" for finding in label_findings)
    if case.prior is not None:
        _examine_prior(case, train, held_out, values, labels_tell=tell)
    case.measured["estimates"] = _estimates(case, train)


def _loaded(case: Case, rows: DataRows, settings: Doctor) -> LoadedRows:
    """Return rows of the data in the codec's form."""
    codec = case.codec
    assert codec is not None
    return load_rows(rows, codec.modality, codec.transform, num_workers=settings.num_workers)


def _values(case: Case, settings: Doctor) -> Seen:
    """Return some training and held-out values."""
    if case.codec is None or case.data is None:
        if case.codec is not None:
            case.say("not examined: errors of the codec; name --data")
        return None
    parts = []
    fitting = max(16, MOST_BYTES // bytes_of(case.codec.modality, case.codec.transform))
    for rows, most in ((case.data.train, MOST_SEEN), (case.data.validation, MOST_UNSEEN)):
        count = min(len(rows), most, fitting)
        some = rows.subset(np.arange(count, dtype=np.int64) * len(rows) // count)
        parts.append(_loaded(case, some, settings).batch(range(count)))
    return parts[0], parts[1]


def _rows(case: Case, settings: Doctor) -> tuple[Rows, Rows] | None:
    """Return the codes of both splits: of the store, or else of the pictures."""
    if case.store is not None:
        return _stored(case.store, "train"), _stored(case.store, "validation")
    if case.codec is None or case.data is None:
        return None
    made = []
    for split in (case.data.train, case.data.validation):
        count = min(len(split), 4 * MOST_SEEN)
        some = split.subset(np.arange(count, dtype=np.int64) * len(split) // count)
        made.append(Rows(_encoded(case.codec, _loaded(case, some, settings)), some.labels, some.source_index))
    return made[0], made[1]


def _encoded(codec: Codec, rows: LoadedRows) -> Codes:
    parts = [[level.cpu().numpy() for level in codec.encode(values)] for values in rows.batches(ROWS_AT_ONCE)]
    return tuple(np.concatenate(level) for level in zip(*parts, strict=True))


def _stored(folder: Path, split: str) -> Rows:
    """Return the rows of a split as they are (view 0), at most 50,000 evenly spread ones."""
    store = CodeStore.open(folder, split)
    count = min(len(store), MOST_ROWS)
    columns = store.rows(np.arange(count, dtype=np.int64) * len(store) // max(1, count))
    plain = columns["view"] == 0
    codes = tuple(columns[f"codes.{n}"][plain] for n in range(len(store.spec.levels)))
    labels = columns["label"][plain] if store.labelled else None
    return Rows(codes, labels, columns["source_index"][plain])


def _spec(case: Case) -> Any:
    if case.store is not None:
        return CodeStore.open(case.store).spec
    assert case.codec is not None
    return case.codec.spec


def _label_names(case: Case) -> tuple[str, ...]:
    if case.store is not None:
        return CodeStore.open(case.store).index.label_names
    return case.data.label_names if case.data is not None else ()


def _compare_ids(case: Case) -> None:
    """Find out by their ids whether codec, codes and prior belong together."""
    ids = {"codec": case.codec.codec_id} if case.codec is not None else {}
    if case.store is not None:
        ids["codes"] = CodeStore.open(case.store).index.codec.id
    if case.prior is not None:
        ids["prior"] = case.prior.codec_id
    if len(ids) > 1:
        case.measured["ids"] = {name: identity[:12] for name, identity in ids.items()}
    if len(set(ids.values())) > 1:
        listed = ", ".join(f"{name} {identity[:12]}" for name, identity in ids.items())
        remedy = "use the codec, codes and prior of one run; extract the codes anew (extract-codes)"
        case.findings.append(Finding("wrong codec", f"codec ids differ: {listed}", remedy))


def _compare_codes(case: Case, train: Rows, settings: Doctor) -> None:
    """Find out whether a store's codes are what the codec says of the same images today."""
    if case.store is None or case.codec is None or case.data is None:
        return
    index = CodeStore.open(case.store).index
    if index.data.id != case.data.data_id or index.spec != case.codec.spec:
        case.say("not compared: the codes with the codec's own; they are of other data or of another size")
        return
    rows = case.data.train
    place = {int(row): number for number, row in enumerate(rows.source_index)}
    some = np.linspace(0, len(train.source_index) - 1, min(512, len(train.source_index)), dtype=np.int64)
    wanted = [place[int(row)] for row in train.source_index[some]]
    own = _encoded(case.codec, _loaded(case, rows.subset(np.array(wanted)), settings))
    case.add("agreement", compare_codes(tuple(level[some] for level in train.codes), own, str(case.store)))


def _examine_prior(case: Case, train: Rows, held_out: Rows, values: Seen, *, labels_tell: bool) -> None:
    prior = case.prior
    assert prior is not None
    try:
        rows = [sequences_of(prior, part.codes, part.labels) for part in (train, held_out)]
    except ArtifactError as error:
        if "left out" not in str(error) and "must be" not in str(error):
            raise
        remedy = "use its own codec and code store"
        case.findings.append(Finding("wrong codec", f"the prior does not take these codes: {error}", remedy))
        return
    strangers = any(finding.fault == "wrong codec" for finding in case.findings)
    belongs = "agreement" in case.measured and not strangers
    recorded = case.recorded
    result = examine_prior(prior, rows[0], rows[1], recorded, belongs=belongs, labels_tell=labels_tell)
    case.add("prior", result)
    if case.codec is None or any(finding.fault == "wrong codec" for finding in case.findings):
        return
    from vq_prior.model.pipeline import VQPriorPipeline

    pipeline = VQPriorPipeline(case.codec, prior)
    case.add("samples", examine_samples(pipeline, train.codes, held_out.codes, values, num_images=SAMPLES))


def _estimates(case: Case, train: Rows) -> dict[str, Any]:
    """Return sizes: of the codes of these rows, of what a sequence takes, of the weights."""
    tokens = sum(level.reshape(len(level), -1).shape[1] for level in train.codes)
    estimates: dict[str, Any] = {
        "tokens_a_row": tokens,
        "bytes_of_codes_in_memory": sum(level.nbytes for level in train.codes),
    }
    if case.store is not None:
        estimates["bytes_of_codes_on_disk"] = sum(p.stat().st_size for p in case.store.rglob("*") if p.is_file())
    modules: dict[str, Any] = {}
    if case.codec is not None:
        modules["codec"] = case.codec
    if case.prior is not None:
        modules["prior"] = case.prior.model
    for name, part in modules.items():
        estimates[f"{name}_parameters"] = sum(p.numel() for p in part.parameters())
        estimates[f"{name}_bytes"] = sum(p.numel() * p.element_size() for p in part.parameters())
    return estimates


def _report(case: Case, settings: Doctor) -> dict[str, Any]:
    findings = sorted(case.findings, key=lambda finding: ORDER.index(finding.fault))
    result = {
        "format_version": 1,
        "vq_prior": __version__,
        "healthy": not findings if EXAMINED & case.measured.keys() else None,
        "findings": [asdict(finding) for finding in findings],
        "measured": case.measured,
    }
    if settings.out is not None:
        make_folder(true_place(settings.out).parent)
        write_atomic(settings.out, pretty_json(result))
    for part, numbers in case.measured.items():
        for name, value in flatten(by_number(numbers)).items():
            if not isinstance(value, list):
                case.say(f"{part} {name} {value:.5g}" if isinstance(value, float) else f"{part} {name} {value}")
    for finding in findings:
        case.say(f"found {finding.fault}: {finding.evidence}")
        case.say(f"  remedy: {finding.remedy}")
    names = list(dict.fromkeys(finding.fault for finding in findings))
    looked_at = [part for part in case.measured if part in EXAMINED]
    verdict = "; ".join(names) or ("healthy" if looked_at else "none; name --data or --codes")
    case.say(f"verdict: {verdict} (examined: {', '.join(looked_at) or 'nothing'})")
    fatal = next((finding for finding in findings if finding.fatal), None)
    if fatal is not None:
        raise NumericError(f"{fatal.fault}: {fatal.evidence}; {fatal.remedy}")
    return result
