"""What every kind of data has to hold. Letters: B batch, C channels."""

import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from vq_prior.core.config import from_json, to_json
from vq_prior.core.errors import ArtifactError
from vq_prior.core.modality import Encoded, Form, Modality, facts_of


def check_modality(modality: Modality, rows: Sequence[Encoded]) -> None:
    """Raise `AssertionError` unless a kind of data keeps its contract on some rows.

    Args:
        modality: The kind.
        rows: At least two, as sources hold them (bytes of files, or arrays), of more than one shape if they may have.
    """
    assert len(rows) > 1, "give at least two rows"
    _check_names(modality)
    form = _check_form(modality, rows)
    stored = _check_files(modality, rows, form)
    _check_values(modality, rows[0], stored, form)
    _check_quality_and_show(modality, stored, form)


def _name(row: int = 0) -> Callable[[], str]:
    return lambda: f"row {row}"


def _check_names(modality: Modality) -> None:
    assert modality.name.isidentifier(), f"{modality.name!r} must be of letters, digits and _"
    assert modality.signs.column.isidentifier(), f"column {modality.signs.column!r} must be of letters, digits and _"
    for suffix in modality.signs.suffixes:
        assert suffix == "." + suffix[1:].lower(), f"suffix {suffix!r} must be lower case, with a dot"
    extension = modality.files.extension
    assert extension is None or extension in modality.signs.suffixes, f"its own files ({extension}) must be known again"


def _check_form(modality: Modality, rows: Sequence[Encoded]) -> Form:
    """Return the form that training would choose, after a look at how it is chosen, told and read back."""
    headers = [modality.files.inspect(row, _name(number)) for number, row in enumerate(rows)]
    assert all(len(header.shape) == modality.rank for header in headers), f"shapes must have {modality.rank} axes"
    own = modality.signs.settings() if modality.signs.settings else None
    values = modality.values
    form = values.transform(own, facts_of(len(rows), headers), channels=None, device_type="cpu")
    assert len(form.shape) == modality.rank
    settings = values.settings_of(form)
    again = values.transform(settings, None, channels=form.channels, device_type="cuda")
    assert again == form, "settings_of must give what transform makes the same form of, on any device"
    if own is not None:
        assert from_json(type(own), json.loads(json.dumps(to_json(settings))), "settings") == settings
    described = json.loads(json.dumps(form.describe()))
    assert "modality" not in described, "the kind's name is written by others"
    assert values.from_description(described, "described") == form, "describe must be read back"
    for key in described:
        _refused(partial(values.from_description, described | {key: "absurd"}, "described"), key)
    return form


def _refused(read: Callable[[], Any], what: str) -> None:
    try:
        read()
    except ArtifactError:
        return
    except Exception as error:
        raise AssertionError(f"{what} that is damaged must be an ArtifactError, not {type(error).__name__}") from error
    if what not in ("rule",):
        raise AssertionError(f"{what} that is damaged must be refused")


def _check_files(modality: Modality, rows: Sequence[Encoded], form: Form) -> "np.ndarray[Any, Any]":
    """Return the rows as they are stored."""
    files = modality.files
    shape, dtype = modality.values.stored_like(form)
    stored = [files.read(row, form, _name(number)) for number, row in enumerate(rows)]
    for one in stored:
        assert one.shape == shape, f"read gives {one.shape}, stored_like says {shape}"
        assert one.dtype == dtype, f"read gives {one.dtype}, stored_like says {dtype}"
    assert np.array_equal(files.read(rows[0], form, _name()), stored[0]), "reading twice must give the same"
    header = files.inspect(rows[0], _name())
    as_it_is = files.own_transform(header)
    assert (tuple(as_it_is.shape), as_it_is.channels) == (tuple(header.shape), header.channels)
    if files.extension is not None:
        file = files.encode(stored[0])
        assert files.encode(stored[0]) == file, "the same value must give the same bytes"
        assert np.array_equal(files.read(file, form, _name()), stored[0]), "a file that was written must be read back"
        for damaged in (b"", file[:3], file[: len(file) // 2]):
            _refused(partial(files.read, damaged, form, _name(7)), "a file")
    return np.stack(stored)


def _check_values(modality: Modality, row: Encoded, stored: "np.ndarray[Any, Any]", form: Form) -> None:
    values = modality.values
    before = stored.copy()
    numbers = values.to_values(torch.from_numpy(stored))
    assert numbers.dtype == torch.float32
    assert numbers.shape == (len(stored), form.channels, *form.shape), f"values are {list(numbers.shape)}"
    assert np.array_equal(stored, before), "to_values must leave what is stored as it is"
    assert np.array_equal(values.to_stored(numbers), stored), "to_stored must undo to_values"
    if values.bounds is not None:
        low, high = values.bounds
        assert low <= float(numbers.min()) <= float(numbers.max()) <= high, "values must lie within the bounds"
        beyond = values.to_values(torch.from_numpy(values.to_stored(numbers * 0 + high + (high - low))))
        assert float(beyond.max()) <= high + 1e-6, "numbers beyond the bounds must be cut"
    assert values.views["none"] == 1
    for name, count in values.views.items():
        views = values.read_views(partial(modality.files.read, row, name=_name()), form, name)
        assert len(views) == count, f"views {name} are {len(views)}, not {count}"
        assert np.array_equal(views[0], stored[0]), "the first view is the row as it is"
    whole = values.augment(stored, np.random.default_rng(3), most=1, rows=slice(0, len(stored)))
    assert whole.shape == stored.shape
    assert whole.dtype == stored.dtype
    half = len(stored) // 2
    parts = [
        values.augment(stored[share], np.random.default_rng(3), most=1, rows=share)
        for share in (slice(0, half), slice(half, len(stored)))
    ]
    assert np.array_equal(np.concatenate(parts), whole), "what happens to a row must not depend on the processes"


def _check_quality_and_show(modality: Modality, stored: "np.ndarray[Any, Any]", form: Form) -> None:
    numbers, show = modality.values.to_values(torch.from_numpy(stored)), modality.show
    copies = numbers.roll(1, dims=0)
    assert "mse" in modality.quality.measures, "mse must be one of the measures"
    for name, measure in modality.quality.measures.items():
        measured = measure.function(numbers, copies)
        assert measured.shape == (len(numbers),), f"{name} must give a number for each value"
        alone = measure.function(numbers[:1], copies[:1])
        assert torch.allclose(alone[0], measured[0], rtol=1e-4, atol=1e-6), f"{name} of a value must be its own"
        assert format(float(measured[0]), measure.form)
    assert torch.equal(modality.quality.measures["mse"].function(numbers, numbers), torch.zeros(len(numbers)))
    pixels = show.pictures(numbers)
    assert pixels.dtype == np.uint8
    assert pixels.ndim == 4
    assert pixels.shape[0] == len(numbers)
    assert pixels.shape[3] in (1, 3), "pictures are grey or colour"
    for sheet in (show.sheet(numbers, columns=2), show.pairs(numbers, copies, columns=2)):
        assert sheet.width > 0
        assert sheet.height > 0
    nats = torch.ones(len(numbers), *(2 for _ in form.shape))
    heated = show.heat(numbers, (nats,), (1.0,))
    assert heated.dtype == np.uint8
    assert heated.shape[0] == len(numbers)
    assert heated.shape[3] == 3
    assert show.output in ("images", "audios", "frames", "arrays")
    assert (show.sampling_rate is not None) == (show.output == "audios")
