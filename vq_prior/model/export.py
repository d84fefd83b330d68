"""Export: a codec's `encode` and `decode` as files that other programs run, checked against ours before they appear."""

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stage1_vqvae.codecs import open_codec
from stage1_vqvae.modalities.pictures.settings import chosen_size
from vq_prior.core.config import pretty_json, read_json, to_json
from vq_prior.core.disk.artifacts import new_folder, require_replaceable, verify_manifest, write_atomic
from vq_prior.core.errors import ArtifactError, EnvironmentFault, NumericError, UsageError, in_one_line
from vq_prior.core.identity import content_id
from vq_prior.core.processes.packages import broken
from vq_prior.core.settings import require_folder_to_write
from vq_prior.core.spec import Codec, CodeSpec
from vq_prior.settings import Export

DESCRIPTION = "export.json"
SUFFIXES = {"onnx": ".onnx", "torch": ".pt2"}
BATCHES = (1, 2, 5)  # the number of rows is open: a file that fixed it would fail one of them
TOLERANCE = 1e-4  # of values

Run = Callable[[Sequence[Tensor]], tuple[Tensor, ...]]
Say = Callable[[str], object]


def export(settings: Export, *, say: Say = print) -> None:
    """Write a codec's encoder and decoder into `settings.out`, whole or not at all; what is there already stays.

    Raises:
        UsageError: If `out` holds something else, or the codec is of a kind that cannot be exported.
        ArtifactError: If the codec is missing or damaged, or the exporter does not know a part of it.
        EnvironmentFault: If a package of the extra `export` is missing.
        NumericError: If what was written does not compute what the codec computes.
    """
    require_folder_to_write(settings.out)
    require_replaceable(settings.out, DESCRIPTION, "export of a codec", overwrite=settings.overwrite)
    if settings.format == "onnx":
        require_onnx()
    codec = open_codec(settings.codec, shape=chosen_size(settings), to_decode=False)
    codec.to(torch.device("cpu"))
    encoder, decoder = halves_of(codec)
    asked = {
        "format": settings.format,
        "codec_id": codec.codec_id,  # which says nothing of the decoder
        "decoder_id": None if decoder is None else content_id("decoder", decoder.state_dict()),
    }
    if not settings.overwrite and _holds(settings.out, asked):
        say(f"{settings.out} is finished; nothing to do")
        return
    spec = codec.spec
    levels = [f"codes.{level}" for level in range(len(spec.levels))]
    values, codes = _examples(codec, BATCHES[1])
    with new_folder(settings.out) as staging:
        files = {"encode": f"encode{SUFFIXES[settings.format]}"}
        run = _written(encoder, (values,), ["values"], levels, staging / files["encode"])
        measured: dict[str, Any] = _check_encoder(codec, run)
        if decoder is not None:
            files["decode"] = f"decode{SUFFIXES[settings.format]}"
            run = _written(decoder, codes, levels, ["values"], staging / files["decode"])
            measured |= _check_decoder(codec, run)
        description = _described(codec, asked, files, measured)
        write_atomic(staging / DESCRIPTION, pretty_json(description))
    _tell(settings, files, measured, decoder is not None, say)


def _holds(out: Path, asked: dict[str, Any]) -> bool:
    """Return whether `out` holds the export that is asked for; raises `UsageError` if it holds another."""
    path = out / DESCRIPTION
    if not path.is_file():
        return False
    try:
        sealed, held = verify_manifest(out), read_json(path)
    except ArtifactError as error:
        raise UsageError(f"{error}; --overwrite exports anew") from error
    if not (sealed and isinstance(held, dict)):
        raise UsageError(f"{out} holds no whole export; choose another --out or pass --overwrite")
    other = [f"{key} {held.get(key)} -> {value}" for key, value in asked.items() if held.get(key) != value]
    if other:
        raise UsageError(f"{out} holds another export ({'; '.join(other)}); choose another --out or pass --overwrite")
    return True


def _whole(codec: Codec) -> Any:
    """Return the codec as one with `halves`, `compared` and `bounds`; raises `UsageError` if it cannot be exported."""
    if not hasattr(codec, "halves"):
        raise UsageError(
            f"a codec of kind {codec.kind} cannot be exported; one of train-vqvae or of another library can"
        )
    return codec


def halves_of(codec: Codec) -> tuple[nn.Module, nn.Module | None]:
    """Return a codec's encoder with its quantiser, and its decoder, as modules of tensors; None where it has none.

    Raises:
        UsageError: If it is of a kind that does not tell them.
    """
    halves: tuple[nn.Module, nn.Module | None] = _whole(codec).halves()
    return halves


def require_onnx() -> None:
    """Raise `EnvironmentFault` unless the packages of the extra `export` can be imported."""
    try:
        import onnxscript  # noqa: F401
    except Exception as error:  # absent, or there and broken
        absent = EnvironmentFault(
            'an export to ONNX needs onnx, onnxscript and onnxruntime; run `pip install "vq-prior[export]"`, or take '
            "--format torch"
        )
        raise broken(error) or absent from error


def _examples(codec: Codec, rows: int) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return values [rows, C, *shape] and codes of each level to try a codec with, the same at every call.

    The values are smooth with some noise, of every size within the bounds.
    """
    spec, generator = codec.spec, torch.Generator().manual_seed(rows)
    coarse = torch.randn((rows, spec.channels, *(-(-side // 8) for side in spec.shape)), generator=generator)
    mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[len(spec.shape)]
    smooth = nn.functional.interpolate(coarse, size=spec.shape, mode=mode)
    values = (smooth + 0.1 * torch.randn(smooth.shape, generator=generator)).clamp(-1, 1)
    codes = tuple(
        torch.randint(level.num_codes, (rows, *level.grid), generator=generator, dtype=torch.int64)
        for level in spec.levels
    )
    return values, codes


def _written(half: nn.Module, example: tuple[Tensor, ...], inputs: list[str], outputs: list[str], path: Path) -> Run:
    """Write one half to a file and return what runs that file.

    Raises:
        ArtifactError: If the exporter does not know a part of it.
    """
    batch = torch.export.Dim("batch")
    shapes: Any = ({0: batch},) if len(inputs) == 1 and inputs[0] == "values" else (tuple({0: batch} for _ in inputs),)
    with _silence(), torch.no_grad():
        try:
            if path.suffix == ".onnx":
                return _onnx(half, example, shapes, inputs, outputs, path)
            return _program(half, example, shapes, path)
        except Exception as error:  # exporters raise many kinds
            other = "torch" if path.suffix == ".onnx" else "onnx"
            what = ArtifactError(
                f"the codec's {path.stem}r cannot be exported ({type(error).__name__}: {_first_cause(error)}); "
                f"try --format {other}"
            )
            raise broken(error) or what from error


def _onnx(half: nn.Module, example: Any, shapes: Any, inputs: list[str], outputs: list[str], path: Path) -> Run:
    import onnxruntime

    size = sum(tensor.numel() * tensor.element_size() for tensor in half.state_dict().values())
    torch.onnx.export(
        half,
        example,
        path,
        dynamo=True,
        dynamic_shapes=shapes,
        input_names=inputs,
        output_names=outputs,
        external_data=size > LARGEST_ONNX,
        verbose=False,
    )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        fed = {name: tensor.numpy() for name, tensor in zip(inputs, tensors, strict=True)}
        return tuple(torch.from_numpy(array) for array in session.run(outputs, fed))

    return run


LARGEST_ONNX = (1 << 31) - (1 << 26)  # bytes of weights within the file: what protobuf takes, less some for the rest


def _program(half: nn.Module, example: Any, shapes: Any, path: Path) -> Run:
    program = torch.export.export(half, example, dynamic_shapes=shapes, strict=False)
    program.example_inputs = None  # which would be pickled
    torch.export.save(program, path)
    module = torch.export.load(path).module()

    def run(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        result = module(*tensors)
        return (result,) if isinstance(result, Tensor) else tuple(result)

    return run


def _first_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return re.sub(r"\x1b\[[0-9;]*m", "", in_one_line(error))


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep what exporters print and warn of away from the terminal."""
    nothing = io.StringIO()
    with contextlib.redirect_stdout(nothing), contextlib.redirect_stderr(nothing), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


def _ran(run: Run, tensors: Sequence[Tensor], what: str) -> tuple[Tensor, ...]:
    """Return what a file computes; raises `ArtifactError` if it cannot, as where its number of rows is fixed."""
    try:
        return run(tensors)
    except Exception as error:  # as their library raises
        raise ArtifactError(
            f"the exported {what} does not run on {len(tensors[0])} rows ({_first_cause(error)}); nothing was written"
        ) from error


@torch.no_grad()
def _check_encoder(codec: Codec, run: Run) -> dict[str, Any]:
    """Return how many codes were compared and how many differ, all of them ties; else raise `NumericError`."""
    compared = differ = 0
    for rows in BATCHES:
        values, _ = _examples(codec, rows)
        for other, ties in _whole(codec).compared(values, _ran(run, [values], "encoder")):
            if bool((other & ~ties).any()):
                raise NumericError(
                    f"the exported encoder gives {int(other.sum())} of {other.numel()} cells other codes than the "
                    "codec, and not all are ties; nothing was written"
                )
            compared, differ = compared + other.numel(), differ + int(other.sum())
    return {"cells_compared": compared, "ties_that_differ": differ}


@torch.no_grad()
def _check_decoder(codec: Codec, run: Run) -> dict[str, Any]:
    """Return the largest difference of a value; raise `NumericError` if it is too large."""
    largest = 0.0
    for rows in BATCHES:
        _, codes = _examples(codec, rows)
        difference = float((_ran(run, codes, "decoder")[0] - codec.decode(codes)).abs().max())
        if not difference <= TOLERANCE:
            raise NumericError(
                f"the exported decoder gives values that differ by {difference:.1e} from the codec's, more than "
                f"{TOLERANCE:g}; nothing was written"
            )
        largest = max(largest, difference)
    return {"largest_difference_of_a_value": largest}


def _described(codec: Codec, asked: dict[str, Any], files: dict[str, str], measured: dict[str, Any]) -> dict[str, Any]:
    """Return what `export.json` holds."""
    spec: CodeSpec = codec.spec
    bounds = _whole(codec).bounds
    return {
        "format_version": 1,
        **asked,
        "files": files,
        "spec": to_json(spec),
        "values": {
            "name": "values",
            "dtype": "float32",
            "shape": ["batch", spec.channels, *spec.shape],
            "bounds": None if bounds is None else list(bounds),
        },
        "codes": [
            {"name": f"codes.{number}", "dtype": "int64", "shape": ["batch", *level.grid], "below": level.num_codes}
            for number, level in enumerate(spec.levels)
        ],
        "checked": {"by": _checker(asked["format"]), **measured},
    }


def _checker(form: str) -> str:
    name = "onnxruntime" if form == "onnx" else "torch"
    return f"{name} {version(name)}"


def _tell(settings: Export, files: dict[str, str], measured: dict[str, Any], decodes: bool, say: Say) -> None:
    differ = f"{measured['ties_that_differ']:,} of {measured['cells_compared']:,} cells differ"
    differ += ", all of them ties" if measured["ties_that_differ"] else ""
    line = f"wrote {settings.out}: {' and '.join(files.values())}, checked by {_checker(settings.format)}: {differ}"
    if decodes:
        line += f"; values within {measured['largest_difference_of_a_value']:.1e}"
    say(line)
    if not decodes:
        say("no decoder was written: this kind of codec has none")
