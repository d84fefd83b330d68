import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load

from vq_prior.core.config import parse_json
from vq_prior.core.disk.code_store import (
    INDEX,
    CodeIndex,
    CodeStore,
    Column,
    Shard,
    Source,
    code_dtype,
    held_out_rows,
    shard_bytes,
    shard_file,
    shard_ranges,
    store_columns,
    write_index,
)
from vq_prior.core.errors import ArtifactError
from vq_prior.core.identity import file_sha256
from vq_prior.core.spec import CodeSpec, LevelSpec

ROWS_PER_SHARD = 10
SPECS = {
    "1-D": CodeSpec(1, (32,), (LevelSpec((8,), 256),)),
    "2-D": CodeSpec(3, (32, 24), (LevelSpec((4, 3), 257),)),
    "3-D": CodeSpec(3, (8, 16, 16), (LevelSpec((2, 4, 4), 65_537),)),
    "two levels": CodeSpec(3, (32, 32), (LevelSpec((2, 2), 64), LevelSpec((4, 4), 65_536))),
}


def rows_of(spec, first, count, *, labelled=True):
    """Rows first to first + count of a store whose codes reach both ends of their range."""
    rows = {}
    for number, level in enumerate(spec.levels):
        generator = np.random.default_rng([first, number])
        codes = generator.integers(0, level.num_codes, (count, *level.grid))
        codes.flat[0], codes.flat[-1] = 0, level.num_codes - 1
        rows[f"codes.{number}"] = codes
    if labelled:
        rows["label"] = np.arange(first, first + count) % 3
    return rows | {"source_index": np.arange(first, first + count), "view": np.zeros(count, dtype=int)}


def write_store(folder: Path, spec: CodeSpec, *, labelled: bool = True) -> dict[str, dict[str, np.ndarray]]:
    """Write a store of 25 training and 4 validation rows and return the columns of each split."""
    columns = store_columns(spec, labelled=labelled)
    shards, whole = [], {}
    for split, count in (("train", 25), ("validation", 4)):
        (folder / split).mkdir(parents=True)
        parts = []
        for number, part in enumerate(shard_ranges(count, ROWS_PER_SHARD)):
            path = folder / shard_file(split, number)
            parts.append(rows_of(spec, part.start, len(part), labelled=labelled))
            path.write_bytes(shard_bytes(columns, parts[-1]))
            shards.append(Shard(split, shard_file(split, number), part.start, len(part), file_sha256(path)))
        whole[split] = {name: np.concatenate([rows[name] for rows in parts]) for name in parts[0]}
    names = ("cat", "dog", "emu") if labelled else ()
    codec, data = Source("runs/x", "c" * 64), Source("digits", "d" * 64)
    write_index(folder, CodeIndex(1, codec, spec, data, {}, names, columns, ROWS_PER_SHARD, tuple(shards)))
    return whole


@pytest.fixture
def store(tmp_path):
    """The folder of a whole store with two levels."""
    write_store(tmp_path / "codes", SPECS["two levels"])
    return tmp_path / "codes"


def check_all(folder):
    for split in ("train", "validation"):
        CodeStore.open(folder, split).verify()


@pytest.mark.parametrize(
    ("num_codes", "dtype"), [(1, "uint8"), (256, "uint8"), (257, "uint16"), (65_536, "uint16"), (65_537, "int32")]
)
@pytest.mark.fault("F27")
def test_codes_take_the_smallest_dtype_that_holds_the_largest(num_codes, dtype):
    assert code_dtype(num_codes) == dtype
    assert np.array(num_codes - 1).astype(code_dtype(num_codes)) == num_codes - 1


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_what_is_written_is_what_is_read(tmp_path, spec, labelled):
    written = write_store(tmp_path / "codes", spec, labelled=labelled)
    for split, columns in written.items():
        store = CodeStore.open(tmp_path / "codes", split)
        store.verify()
        assert (len(store), store.labelled, store.spec) == (len(columns["view"]), labelled, spec)
        read = store.rows(range(len(store)))
        assert read.keys() == columns.keys()
        assert all((read[name] == columns[name]).all() for name in columns)
        for number, level in enumerate(spec.levels):
            assert read[f"codes.{number}"].dtype == code_dtype(level.num_codes)


@given(rows=st.lists(st.integers(0, 24), max_size=40))
def test_rows_come_in_the_order_asked_across_shards(tmp_path_factory, rows):
    folder = tmp_path_factory.getbasetemp() / "rows"
    if not folder.exists():
        write_store(folder, SPECS["two levels"])
    store = CodeStore.open(folder)
    whole = store.rows(range(25))
    for name, values in store.rows(rows).items():
        assert (values == whole[name][np.array(rows, dtype=int)]).all()


@pytest.mark.parametrize("wrong", [[-1], [25], [0, 99]])
def test_a_row_that_does_not_exist_is_refused(store, wrong):
    with pytest.raises(IndexError, match="between 0 and 24"):
        CodeStore.open(store).rows(wrong)


def test_the_same_rows_give_the_same_bytes(tmp_path):
    for name in ("first", "second"):
        write_store(tmp_path / name, SPECS["2-D"])
    for path in (tmp_path / "first").rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (tmp_path / "second" / path.relative_to(tmp_path / "first")).read_bytes()


@pytest.mark.fault("F27")
def test_a_code_that_its_dtype_cannot_hold_is_never_wrapped():
    columns = store_columns(SPECS["2-D"], labelled=False)
    rows = rows_of(SPECS["2-D"], 0, 2, labelled=False)
    rows["codes.0"][0, 0, 0] = 70_000  # numpy would wrap it to 4464 in silence
    with pytest.raises(AssertionError):
        shard_bytes(columns, rows)


def edit_index(store, change: Callable[[dict], None]):
    document = parse_json((store / INDEX).read_bytes(), "x")
    change(document)
    (store / INDEX).write_text(json.dumps(document))


def reseal(store, file):
    """Give the index the present hash of one shard, as someone would who edits codes by hand."""

    def change(document):
        for shard in document["shards"]:
            if shard["file"] == file:
                shard["sha256"] = file_sha256(store / file)

    edit_index(store, change)


def test_every_flipped_byte_of_a_shard_is_found(store):
    path = store / shard_file("validation", 0)
    whole = path.read_bytes()
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 0x10
        path.write_bytes(damaged)
        with pytest.raises(ArtifactError, match=r"shard-00000|header"):
            check_all(store)
    path.write_bytes(whole)
    check_all(store)


def test_every_truncation_of_a_shard_is_found_on_opening(store):
    path = store / shard_file("train", 2)
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(ArtifactError, match="shard-00002"):
            CodeStore.open(store)


@pytest.mark.fault("F27")
def test_shards_that_changed_places_are_found(store):
    first, second = store / shard_file("train", 0), store / shard_file("train", 1)
    first_bytes = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(first_bytes)
    with pytest.raises(ArtifactError, match=r"shard-00000.* is damaged"):
        CodeStore.open(store).verify()


@pytest.mark.fault("F27")
def test_rows_that_changed_places_within_a_shard_are_found(store):
    spec = SPECS["two levels"]
    rows = {name: values[::-1] for name, values in rows_of(spec, 0, 10).items()}
    (store / shard_file("train", 0)).write_bytes(shard_bytes(store_columns(spec, labelled=True), rows))
    with pytest.raises(ArtifactError, match=r"shard-00000.* is damaged"):
        CodeStore.open(store).verify()


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_missing_shard_is_found_whichever_split_was_opened(store, split):
    (store / shard_file(split, 0)).unlink()
    with pytest.raises(ArtifactError, match=f"{split}/shard-00000"):
        CodeStore.open(store, "train").verify()


def test_a_renamed_shard_is_found(store):
    (store / shard_file("train", 2)).rename(store / shard_file("train", 3))
    with pytest.raises(ArtifactError, match="shard-00002"):
        CodeStore.open(store)


def test_a_file_that_does_not_belong_is_named(store):
    (store / "train" / "notes.txt").write_text("x")
    with pytest.raises(ArtifactError, match=r"notes\.txt does not belong"):
        CodeStore.open(store).verify()


@pytest.mark.parametrize(("column", "value"), [("codes.0", 64), ("codes.0", 255), ("label", 3), ("label", -1)])
def test_a_resealed_shard_with_a_value_out_of_range_is_refused(store, column, value):
    spec, file = SPECS["two levels"], shard_file("train", 1)
    rows = rows_of(spec, 10, 10)
    rows[column].flat[3] = value
    (store / file).write_bytes(shard_bytes(store_columns(spec, labelled=True), rows))
    reseal(store, file)
    with pytest.raises(ArtifactError, match=rf"shard-00001.*{column} must lie in \[0, "):
        CodeStore.open(store).verify()


def test_a_shard_of_another_dtype_grid_or_length_is_refused(store):
    file = shard_file("train", 0)
    two_levels = SPECS["two levels"].levels
    others = [
        (CodeSpec(3, (32, 32), (two_levels[0], LevelSpec((4, 4), 65_537))), 10),
        (CodeSpec(3, (32, 32), (two_levels[0], LevelSpec((4, 2), 65_536))), 10),
        (CodeSpec(3, (32, 32), two_levels[:1]), 10),
        (SPECS["two levels"], 9),
    ]
    for spec, count in others:
        rows = rows_of(spec, 0, count)
        (store / file).write_bytes(shard_bytes(store_columns(spec, labelled=True), rows))
        reseal(store, file)
        with pytest.raises(ArtifactError, match=r"shard-00000.* (column|has columns)"):
            CodeStore.open(store)


def set_shard(number, **changes):
    return lambda document: document["shards"][number].update(changes)


INDEX_EDITS = {
    "later version": lambda document: document.update(format_version=2),
    "unknown key": lambda document: document.update(note="x"),
    "missing key": lambda document: document.pop("shards"),
    "no shards": lambda document: document.update(shards=[]),
    "no training rows": lambda document: document.update(shards=document["shards"][3:]),
    "first shard dropped": lambda document: document["shards"].pop(0),
    "shards in another order": lambda document: document["shards"].reverse(),
    "a shard twice": lambda document: document["shards"].insert(0, document["shards"][0]),
    "short shard in the middle": set_shard(0, num_rows=9),
    "negative rows": set_shard(2, num_rows=-5),
    "zero rows": set_shard(2, num_rows=0),
    "more rows than a shard holds": lambda document: document.update(rows_per_shard=4),
    "zero rows per shard": lambda document: document.update(rows_per_shard=0),
    "unknown split": set_shard(3, split="test"),
    "path outside": set_shard(0, file="../train/shard-00000.safetensors"),
    "absolute path": set_shard(0, file="/etc/passwd"),
    "wrong grid": lambda document: document["spec"]["levels"][0].update(grid=[2, 3]),
    "other number of codes": lambda document: document["spec"]["levels"][0].update(num_codes=300),
    "huge grid": lambda document: document["spec"]["levels"][0].update(grid=[65_536, 65_536]),
    "column dropped": lambda document: document["columns"].pop(0),
    "column of another dtype": lambda document: document["columns"][0].update(dtype="int32"),
    "extra column that no shard has": lambda document: document["columns"].append(
        {"name": "caption", "dtype": "int64", "shape": []}
    ),
    "dtype that numpy lacks": lambda document: document["columns"].append(
        {"name": "vector", "dtype": "bfloat16", "shape": [4]}
    ),
    "labels without names": lambda document: document.update(label_names=[]),
}


@pytest.mark.parametrize("change", INDEX_EDITS.values(), ids=INDEX_EDITS)
def test_an_index_that_contradicts_itself_or_its_shards_is_refused(store, change):
    edit_index(store, change)
    with pytest.raises(ArtifactError, match=r"codes\.json|spec|shard-"):
        CodeStore.open(store)


def test_what_is_no_store_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match="does not exist"):
        CodeStore.open(tmp_path / "none")
    with pytest.raises(ArtifactError, match=r"codes\.json is missing"):
        CodeStore.open(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="is not a code store"):
        CodeStore.open(tmp_path / "file")


def test_an_unknown_split_is_refused(store):
    with pytest.raises(ArtifactError, match="train, validation, got 'test'"):
        CodeStore.open(store, "test")


def test_the_store_id_depends_on_content_and_not_on_where_things_came_from(tmp_path):
    for name in ("first", "second", "third"):
        write_store(tmp_path / name, SPECS["2-D"])
    edit_index(tmp_path / "second", lambda document: document["data"].update(source="elsewhere"))
    edit_index(tmp_path / "third", lambda document: document["codec"].update(id="e" * 64))
    first, second, third = (CodeStore.open(tmp_path / name).store_id for name in ("first", "second", "third"))
    assert first == second != third
    assert first == CodeStore.open(tmp_path / "first", "validation").store_id


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_the_dataset_holds_the_same_rows(tmp_path, spec):
    columns = write_store(tmp_path / "codes", spec)["train"]
    dataset = CodeStore.open(tmp_path / "codes").to_dataset()
    assert dataset.num_rows == 25
    assert dataset.features["label"].names == ["cat", "dog", "emu"]
    for name, values in columns.items():
        assert (np.array(dataset[:][name]) == values).all()


@given(st.integers(2, 300_000))
def test_held_out_rows_follow_the_written_rule(num_rows):
    rows = held_out_rows(num_rows)
    assert 1 <= len(rows) <= 5000
    assert (np.diff(rows) > 0).all()
    assert rows[0] >= 0
    assert rows[-1] < num_rows
    if 20 <= num_rows <= 100_000:
        assert rows.tolist() == list(range(19, num_rows, 20))


def test_a_single_row_cannot_be_split():
    assert held_out_rows(2).tolist() == [1]
    with pytest.raises(ArtifactError, match=r"at least 2 images .*got 1"):
        held_out_rows(1)


@given(st.integers(0, 200), st.integers(1, 30))
def test_shards_cover_every_row_once(num_rows, rows_per_shard):
    ranges = shard_ranges(num_rows, rows_per_shard)
    assert [row for part in ranges for row in part] == list(range(num_rows))
    assert all(len(part) == rows_per_shard for part in ranges[:-1])


def test_float_columns_are_written_and_change_nothing_else():
    plain, more = (
        store_columns(SPECS["2-D"], labelled=False),
        [Column("ink", "float32", ()), Column("place", "float64", (2,))],
    )
    assert store_columns(SPECS["2-D"], labelled=False, more=more) == (*plain, *more)
    values = {"ink": np.array([0.5, -1e30]), "place": np.array([[1.0, 2.0], [3.0, 0.1]])}
    assert load(shard_bytes(more, values))["place"].tolist() == values["place"].tolist()
    assert load(shard_bytes(more, values))["ink"].dtype == np.float32


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf, 1e39])
def test_a_number_that_is_not_finite_is_refused_by_column_and_row(wrong):
    values = {"ink": np.array([0.5, 0.25, wrong])}
    with pytest.raises(ArtifactError, match="column ink is not finite in row 2"):
        shard_bytes([Column("ink", "float32", ())], values)
