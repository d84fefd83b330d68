"""Which class a label means: names first, indices where nothing else can be meant."""

import unicodedata

import numpy as np
import pytest

from stage1_vqvae.data.rows import number_labels
from vq_prior.core.errors import UsageError
from vq_prior.core.labels import is_like_a_number, label_index, split_labels
from vq_prior.model.request import class_of_each

DIGITS = ("zero", "one", "two", "three")
PADDED = ("01", "02", "03", "04", "05")
NFC, NFD = "café", unicodedata.normalize("NFD", "café")


@pytest.mark.parametrize(
    ("label", "names", "expected"),
    [
        ("two", DIGITS, 2),
        ("0", DIGITS, 0),
        ("03", DIGITS, 3),
        ("index:3", DIGITS, 3),
        ("01", PADDED, 0),
        ("index:1", PADDED, 1),
        ("1", ("2", "1"), 1),
        ("1", ("0.5", "1"), 1),
        ("1.0", ("0.0", "1.0"), 1),
        ("+1", ("-1", "+1"), 1),
        ("index:1", ("cat", "dog", "index:1"), 2),
        (NFD, ("cat", NFC), 1),
        (NFC, ("cat", NFD), 1),
        (NFD, (NFC, NFD), 1),
    ],
)
def test_a_whole_name_wins_and_a_number_is_an_index_where_no_name_looks_like_one(label, names, expected):
    assert label_index(label, names, len(names)) == expected


@pytest.mark.parametrize("names", [PADDED, ("1.0", "2.0"), ("+1", "-1"), ("cat", "dog", "7"), ("٣", "٤"), ("1e3", "x")])
@pytest.mark.parametrize("label", ["1", "0", "001", "+2", "1.00"])
def test_a_bare_number_is_refused_with_the_choices_where_a_name_looks_like_a_number(label, names):
    with pytest.raises(UsageError) as refused:
        label_index(label, names, len(names))
    assert all(name in str(refused.value) for name in names)
    assert f"index:0 to index:{len(names) - 1}" in str(refused.value)


@pytest.mark.parametrize("label", ["cow", "4", "-1", "", "1.0", "٣", "9" * 5000, "index:4", "index:-1", "index:"])
def test_an_unknown_label_is_refused_with_what_exists(label):
    with pytest.raises(UsageError, match=r"unknown label .*its classes are zero, one, two, three \(0 to 3\)"):
        label_index(label, DIGITS, 4)


@pytest.mark.parametrize("label", ["0", "index:0", "cat"])
def test_a_model_without_classes_has_no_label(label):
    with pytest.raises(UsageError, match="it has no classes"):
        label_index(label, (), 0)


@pytest.mark.parametrize(
    ("text", "names", "expected"),
    [
        ("cat,dog", ("cat", "dog"), ["cat", "dog"]),
        (" cat , dog ", ("cat", "dog"), ["cat", "dog"]),
        ("tench, Tinca tinca", ("tench, Tinca tinca", "cat"), ["tench, Tinca tinca"]),
        ("cat,tench, Tinca tinca,cat", ("tench, Tinca tinca", "cat"), ["cat", "tench, Tinca tinca", "cat"]),
        ("a, b", ("a", "b", "a, b"), ["a, b"]),
        ("a, b, c, a", ("a", "a, b, c"), ["a, b, c", "a"]),
        ("tench, Tinca", ("tench, Tinca tinca", "cat"), ["tench", "Tinca"]),
        ("01,1", ("01", "1"), ["01", "1"]),
        ("cat,,dog", ("cat", "dog"), ["cat", "", "dog"]),
        ("0,index:1", ("cat", "dog"), ["0", "index:1"]),
        (f"{NFD}, noir,cat", (f"{NFC}, noir", "cat"), [f"{NFD}, noir", "cat"]),
    ],
)
def test_a_whole_name_is_taken_before_a_text_is_cut_at_commas(text, names, expected):
    assert split_labels(text, names) == expected


def test_one_label_of_a_call_is_never_cut():
    names = ("cat", "tench, Tinca tinca")
    assert class_of_each("tench, Tinca tinca", 2, names) == [1]
    with pytest.raises(UsageError, match="'cat,cat'"):
        class_of_each("cat,cat", 2, names)


def test_what_looks_like_a_number():
    numbers = ("0", "01", "1.", ".5", "-3", "+1", "1,000", "1_000", "2.5e-3", " 7 ", "٣")
    words = ("", "cat", "1st", "n01440764", "0-9", "1/2", "nan", "inf", "x1", "0x1f", "e5", "-", "½")
    assert all(map(is_like_a_number, numbers))
    assert not any(map(is_like_a_number, words))


@pytest.mark.parametrize("labels", [[NFC, "dog", NFD], [NFD, "dog", NFC]])
def test_classes_whose_names_differ_in_normalisation_alone_are_one(labels):
    names, numbers = number_labels(labels, None, "data")
    assert names == (NFC, "dog")
    assert numbers.tolist() == [0, 1, 0]
    assert number_labels([NFD, "dog"], None, "data")[0] == (NFD, "dog")  # as it was written where there is one form
    named, numbers = number_labels([0, 1, 2, 3], (NFD, "dog", NFC, "ant"), "data")
    assert named == (NFC, "dog", "ant")
    assert np.array_equal(numbers, [0, 1, 0, 2])
