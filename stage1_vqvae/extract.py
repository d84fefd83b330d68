"""Extraction: the codes of every image, once, to disk.

A shard is a function of (data, codec, shard number), so processes, batch size and
interruptions leave no trace in the bytes. Work in progress lies in `.NAME.partial/`
beside OUT: `request.json` says what is being written, `store/` holds finished shards.
"""

import json
from collections.abc import Generator, Sequence
from contextlib import closing
from hashlib import sha256
from math import prod
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from stage1_vqvae.codecs import open_codec
from stage1_vqvae.data.columns import condition_columns, with_columns
from stage1_vqvae.data.loading import ahead, batched, stored_ahead, stored_views
from stage1_vqvae.data.rows import DataRows
from stage1_vqvae.data.sources import Data, open_data_of, rows_called
from stage1_vqvae.fast.joined import joined_layers
from stage1_vqvae.modalities import preprocessing
from stage1_vqvae.modalities.pictures.settings import chosen_size
from stage1_vqvae.settings import ExtractCodes, check
from vq_prior.core.config import pretty_json, read_json
from vq_prior.core.disk.artifacts import publish, remove, require_replaceable, staging_path, write_atomic
from vq_prior.core.disk.code_store import (
    INDEX,
    ROWS_PER_SHARD,
    SPLITS,
    CodeIndex,
    CodeStore,
    Column,
    Shard,
    Source,
    shard_bytes,
    shard_file,
    shard_ranges,
    store_columns,
    write_index,
)
from vq_prior.core.disk.locks import claim, releasing
from vq_prior.core.disk.records import public_name
from vq_prior.core.errors import ArtifactError, UsageError
from vq_prior.core.identity import file_sha256
from vq_prior.core.modality import Modality, Stored
from vq_prior.core.processes.fixed_calls import rows_per_call
from vq_prior.core.processes.runtime import Runtime, start_runtime
from vq_prior.core.spec import Codec, CodeSpec
from vq_prior.core.training.code_use import perplexity, usage
from vq_prior.core.training.runs import require_free_space

Codes = NDArray[np.int64]
SMALL = 1 << 12  # places of a row (pixels) up to which calls of the encoder run side by side


@releasing
def extract_codes(settings: ExtractCodes) -> Path:
    """Write the code store OUT and return its path; an interrupted extraction is continued.

    Raises:
        UsageError: If a setting is out of range, or OUT holds something else.
        ArtifactError: If codec or data are missing or damaged.
        EnvironmentFault: If another process is writing OUT.
    """
    check(settings)
    require_replaceable(settings.out, INDEX, "code store")
    codec = open_codec(settings.codec, shape=chosen_size(settings), to_decode=False)
    _check_views(codec.modality, settings.views)
    runtime = start_runtime("fp32")
    say = runtime.say
    say(runtime.describe())
    for note in codec.notes:
        say(note)
    data = open_data_of(settings, say=say, modality=codec.modality, form=codec.transform)
    data = with_columns(data, settings.condition)
    request = _request(codec, data, settings.views)
    if (settings.out / INDEX).exists() and not settings.overwrite:
        if _answers(settings.out, request, data):
            say(f"{settings.out} is finished ({' + '.join(map(str, request['num_rows']))} rows); nothing to do")
            return settings.out
        raise UsageError(
            f"{settings.out} holds the codes of another codec, other data, other conditions or other views; "
            "choose another --out or pass --overwrite"
        )
    spec = codec.spec
    num_bytes = sum(request["num_rows"]) * (spec.num_tokens * 4 + 32)
    say(f"codec {request['codec_id'][:12]}: {spec.num_tokens} tokens a row, at most {num_bytes / 2**20:.1f} MiB")
    if settings.dry_run:
        say("nothing was written (--dry-run)")
        return settings.out
    require_free_space(settings.out, num_bytes)
    partial_folder = staging_path(settings.out)
    if runtime.is_main:
        claim(settings.out)
        _open_partial(partial_folder, request)
    runtime.barrier()
    _write_shards(settings, runtime, codec, data, partial_folder / "store")
    runtime.barrier()
    if runtime.is_main:
        _publish(settings, codec, data, partial_folder)
    runtime.barrier()
    return settings.out


def _check_views(modality: Modality, views: str) -> None:
    if views not in modality.values.views:
        known = ", ".join(modality.values.views)
        raise UsageError(f"--views must be one of {known} for {modality.name}, got {views}")


def _request(codec: Codec, data: Data, views: str) -> dict[str, Any]:
    """Return what the store is a function of."""
    values = [(split.columns, name) for split in (data.train, data.validation) for name in sorted(split.columns)]
    digests = [sha256(np.ascontiguousarray(columns[name]).tobytes()).hexdigest() for columns, name in values]
    return ({"conditions": [sorted(data.train.columns), digests]} if digests else {}) | {
        "format_version": 1,
        "codec_id": codec.codec_id,
        "data_id": data.data_id,
        "transform": _described(codec, views),
        "num_rows": [codec.modality.values.views[views] * len(data.train), len(data.validation)],
    }


def _described(codec: Codec, views: str) -> dict[str, Any]:
    return preprocessing(codec.modality, codec.transform) | ({} if views == "none" else {"views": views})


def _answers(out: Path, request: dict[str, Any], data: Data) -> bool:
    """Return whether the store at `out` is complete and is what `request` asks for."""
    stores = [CodeStore.open(out, split) for split in SPLITS]
    index = stores[0].index
    if index.columns != _columns(index.spec, data):
        return False
    for store, rows in zip(stores, (data.train, data.validation), strict=True):
        there = store.rows(np.arange(len(store))) if rows.columns else {}
        each = len(store) // len(rows)
        if any(not np.array_equal(there[name], values.repeat(each, axis=0)) for name, values in rows.columns.items()):
            return False
    held = [index.codec.id, index.data.id, index.transform, [len(store) for store in stores]]
    return held == [request["codec_id"], request["data_id"], request["transform"], request["num_rows"]]


def _columns(spec: CodeSpec, data: Data) -> tuple[Column, ...]:
    return store_columns(spec, labelled=data.train.labels is not None, more=condition_columns(data))


def _open_partial(folder: Path, request: dict[str, Any]) -> None:
    """Prepare the folder of work in progress; what is there is kept if it answers the same request."""
    try:
        same = folder.is_dir() and read_json(folder / "request.json") == json.loads(pretty_json(request))
    except ArtifactError:
        same = False
    # An index is written last, just before the store becomes visible: what has one is no work in progress, but may be
    # a store that was replaced and not yet deleted.
    if not same or (folder / "store" / INDEX).exists():
        remove(folder)
    for split in SPLITS:
        (folder / "store" / split).mkdir(parents=True, exist_ok=True)
    for torn in (folder / "store").rglob(".*.partial"):
        torn.unlink()
    write_atomic(folder / "request.json", pretty_json(request))


def _rows_per_shard(views: int) -> int:
    """Return the code rows of a shard, so that the views of a row stand in one."""
    return ROWS_PER_SHARD // views * views


def _shards(data: Data, views: str) -> list[tuple[str, DataRows, int, range]]:
    """Return every shard of both splits: split, its rows, number, range of code rows; only training has views."""
    num_views = data.modality.values.views[views]
    splits = (("train", data.train, num_views), ("validation", data.validation, 1))
    return [
        (split, images.subset(range(rows.start // each, rows.stop // each)), number, rows)
        for split, images, each in splits
        for number, rows in enumerate(shard_ranges(each * len(images), _rows_per_shard(num_views)))
    ]


def _write_shards(settings: ExtractCodes, runtime: Runtime, codec: Codec, data: Data, store: Path) -> None:
    """Write this process's shards that are not there yet: r, r + W, ..."""
    codec.to(runtime.device)
    columns = _columns(codec.spec, data)
    mine = _shards(data, settings.views)[runtime.process_index :: runtime.num_processes]
    todo = [shard for shard in mine if not (store / shard_file(shard[0], shard[2])).exists()]
    num_rows = sum(len(rows) for *_, rows in mine)
    num_todo = sum(len(rows) for *_, rows in todo)
    started = monotonic()
    bar = tqdm(
        total=num_rows,
        initial=num_rows - num_todo,
        unit=rows_called(data.modality)[:-1],
        disable=None if runtime.is_main else True,
        leave=False,
    )
    shards = [(images, settings.views if split == "train" else "none") for split, images, *_ in todo]
    batches = _encoded(codec, shards, runtime.device, settings)
    with joined_layers(codec), closing(batches):
        for split, images, number, rows in todo:
            codes: list[list[Any]] = [[] for _ in codec.spec.levels]
            done = 0
            while done < len(rows):
                parts = next(batches)
                for level, part in zip(codes, parts, strict=True):
                    level.append(part)
                done += (count := len(parts[0]))
                bar.update(count)
            values = {f"codes.{n}": np.concatenate(level) for n, level in enumerate(codes)}
            each = len(rows) // len(images)
            if images.labels is not None:
                values["label"] = images.labels.repeat(each)
            values |= {name: each_row.repeat(each, axis=0) for name, each_row in images.columns.items()}
            values["source_index"] = images.source_index.repeat(each)
            values["view"] = np.tile(np.arange(each, dtype=np.uint8), len(images))
            write_atomic(store / shard_file(split, number), shard_bytes(columns, values))
    bar.close()
    if runtime.is_main and num_todo:
        speed = f"{num_todo / (monotonic() - started):.0f} {rows_called(data.modality)}/s"
        print(f"encoded {speed} in this process", flush=True)


def _encoded(
    codec: Codec,
    shards: Sequence[tuple[DataRows, str]],
    device: torch.device,
    settings: ExtractCodes,
) -> Generator[tuple[Codes, ...], None, None]:
    """Yield the codes of batches of rows, shard after shard, each with its views; rows are read ahead.

    On the host, small rows are read and encoded by threads side by side, each with its share of the cores: calls
    as short as theirs, and the Python between them, leave cores idle when all work on one call. A batch holds rows of
    one shard.
    """
    threads = torch.get_num_threads()
    modality, transform = codec.modality, codec.transform
    area, to_values, num_views = prod(transform.shape), modality.values.to_values, modality.values.views
    lanes = min(threads, settings.num_workers or threads) if device.type == "cpu" and area <= SMALL else 1
    size = -(-settings.batch_size // lanes) if settings.batch_size else rows_per_call(device, area)

    def encode(stored: Stored) -> tuple[Codes, ...]:
        images = to_values(torch.from_numpy(stored).to(device))
        return tuple(level.cpu().numpy() for level in codec.encode(images))

    def images_a_batch(views: str) -> int:
        return max(1, size // num_views[views])

    def read_and_encode(batch: tuple[DataRows, str, Sequence[int]]) -> tuple[Codes, ...]:
        images, views, rows = batch
        return encode(np.concatenate([stored_views(images, row, modality, transform, views) for row in rows]))

    if lanes == 1:
        for images, views in shards:
            of_shard = images_a_batch(views)
            workers = settings.num_workers
            for stored in stored_ahead(images, modality, transform, of_shard, num_workers=workers, views=views):
                yield encode(stored)
        return
    batches = (
        (images, views, rows) for images, views in shards for rows in batched(range(len(images)), images_a_batch(views))
    )
    try:
        yield from ahead(read_and_encode, batches, lanes, prepare=lambda: torch.set_num_threads(threads // lanes))
    finally:
        torch.set_num_threads(threads)  # the count is the thread's own, but some libraries know one for all


def _publish(settings: ExtractCodes, codec: Codec, data: Data, partial_folder: Path) -> None:
    """Write the index, make the store visible, and say what was written (main process)."""
    store = partial_folder / "store"
    shards = []
    for split, _, number, rows in _shards(data, settings.views):
        name = shard_file(split, number)
        shards.append(Shard(split, name, rows.start, len(rows), file_sha256(store / name)))
    index = CodeIndex(
        format_version=1,
        codec=Source(public_name(settings.codec), codec.codec_id),
        spec=codec.spec,
        data=Source(public_name(settings.data), data.data_id),
        transform=_described(codec, settings.views),
        label_names=data.label_names,
        columns=_columns(codec.spec, data),
        rows_per_shard=_rows_per_shard(codec.modality.values.views[settings.views]),
        shards=tuple(shards),
    )
    write_index(store, index)
    publish(store, settings.out)
    remove(partial_folder)
    _report(settings, codec, index)


def _report(settings: ExtractCodes, codec: Codec, index: CodeIndex) -> None:
    """Print what was written: use of the codes over the training rows, counts, the next command."""
    train = CodeStore.open(settings.out, "train")
    for number, level in enumerate(index.spec.levels):
        counts = torch.zeros(level.num_codes, dtype=torch.int64)
        for rows in shard_ranges(len(train)):
            codes = train.rows(np.arange(rows.start, rows.stop))[f"codes.{number}"].astype(np.int64)
            counts += torch.bincount(torch.from_numpy(codes).reshape(-1), minlength=level.num_codes)
        print(
            f"level {number}: {usage(counts):.0%} of {level.num_codes} codes used, perplexity {perplexity(counts):.1f}"
        )
    held_out = sum(shard.num_rows for shard in index.shards) - len(train)
    print(f"wrote {settings.out}: {len(train)} + {held_out} rows in {len(index.shards)} shards")
    folder = Path(settings.codec)
    run = folder.parent if folder.name == "vqvae" else folder
    if codec.loaded_from is None:  # a folder that is not ours to write into
        run = settings.out.with_name(f"{settings.out.name}-prior")
    flag = f" --codec {settings.codec}" if codec.can_decode else ""
    print(f"next: vq-prior train-prior --codes {settings.out}{flag} --out {run}", flush=True)
