"""Texts: tokens, vocabularies, splits, batches that read on."""

import lzma

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sup_tickets.data.sequences import (
    cut,
    evaluation_sequences,
    in_rows,
    text_batches,
)
from sup_tickets.data.text import TOPICS, is_text, load_text, read_text
from tests.helpers import quick
from tests.test_data_resident import placement_on

LINES = "a b, a\nb <unk> @-@ c\n"


def written(folder, text, name="text.txt"):
    (folder / name).write_text(text, encoding="utf-8")
    return f"text:{folder / name}"


# --- Tokens ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("unit", "vocabulary", "tokens"),
    [
        (
            "words",
            ("<unk>", "a", "b", "<eos>", ",", "@-@", "c"),
            [1, 2, 4, 1, 3, 2, 0, 5, 6, 3],
        ),
        (
            "spaced",
            ("<unk>", "a", "<eos>", "b,", "b", "@-@", "c"),
            [1, 3, 1, 2, 4, 0, 5, 6, 2],
        ),
        (
            "characters",
            ("<unk>", *" ab\n@,<unk>-c"),
            [2, 1, 3, 6, 1, 2, 4, 3, 1, 7, 8, 9, 10, 11, 1, 5, 12, 5, 1, 13, 4],
        ),
    ],
)
def test_a_text_by_hand(tmp_path, unit, vocabulary, tokens):
    """Numbers by how often a token is there, of equals by which comes first."""
    for part in ("train", "valid", "test"):
        written(tmp_path, LINES if part == "train" else "zz a\n", f"{part}.txt")
    text = load_text(f"text:{tmp_path}", unit=unit)
    assert text.vocabulary == vocabulary
    assert text.train.tolist() == tokens and text.train.dtype == np.int32
    other = {"words": [0, 1, 3], "spaced": [0, 1, 2], "characters": [0, 0, 1, 2, 4]}
    assert text.validation.tolist() == text.test.tolist() == other[unit]


def test_the_vocabulary_has_the_most_frequent_tokens(tmp_path):
    name = written(tmp_path, "x y x z y x " * 10)
    text = load_text(name, vocabulary=3, validation_examples=0)
    assert text.vocabulary == ("<unk>", "x", "y")
    assert text.train[:6].tolist() == [1, 2, 1, 0, 2, 1]
    assert load_text(name, vocabulary=1).vocabulary == ("<unk>",)
    first = load_text(name, training_examples=4)
    assert first.vocabulary == ("<unk>", "x", "y", "z") and len(first.train) == 4


def test_one_file_is_cut_in_three(tmp_path):
    name = written(tmp_path, " ".join(f"w{i}" for i in range(40)))
    text = load_text(name)
    assert [len(part) for part in text[2:]] == [32, 4, 4]
    words = [f"w{i}" for i in range(32)]
    assert [text.vocabulary[i] for i in text.train] == words
    cuts = load_text(name, validation_examples=6, training_examples=20)
    assert [len(part) for part in cuts[2:]] == [20, 6, 4]


def test_folders_and_packed_files(tmp_path):
    for part, words in (("train", 50), ("valid", 20), ("test", 10)):
        with lzma.open(tmp_path / f"{part}.txt.xz", "wt", encoding="utf-8") as file:
            file.write("a b " * words)
    text = load_text(f"text:{tmp_path}", unit="spaced", validation_examples=7)
    assert [len(part) for part in text[2:]] == [100, 7, 20]
    packed = read_text(f"text:{tmp_path / 'test.txt.xz'}")
    assert packed.parts == ("a b " * 10,)
    assert packed.digest == read_text(written(tmp_path, "a b " * 10)).digest
    assert packed.digest != read_text(f"text:{tmp_path}").digest


def test_every_python_has_a_text():
    assert is_text(TOPICS) and is_text("text:x") and not is_text("digits")
    text = load_text(TOPICS, vocabulary=2000)
    assert len(text.vocabulary) == 2000 and len(text.train) > 80_000
    assert (text.train == 0).mean() < 0.05
    assert len(text.test) == (len(text.train) + len(text.validation)) // 9


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("", {}, "text.txt' is empty"),
        (" \n\n", {}, "text.txt' is empty"),
        ("a b c", {"unit": "letters"}, "unit must be one of .* got 'letters'"),
        ("a b c", {"vocabulary": -1}, "vocabulary must be a whole number .* got -1"),
        ("a " * 20, {"training_examples": 17}, "training_examples=17 is more than"),
        ("a " * 20, {"validation_examples": 18}, "=18 leaves nothing to train on"),
        (b"\xff\xfe\xff", {}, "text.txt' is no UTF-8 text"),
    ],
)
def test_bad_texts_are_told_in_one_line(tmp_path, text, options, message):
    (tmp_path / "text.txt").write_bytes(
        text if isinstance(text, bytes) else text.encode()
    )
    with pytest.raises(ValueError, match=message) as caught:
        load_text(f"text:{tmp_path / 'text.txt'}", **options)
    assert "\n" not in str(caught.value)


def test_what_is_not_there_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no text '.*book.txt'"):
        load_text(f"text:{tmp_path / 'book.txt'}")
    with pytest.raises(ValueError, match="'text:' must name a file or a folder"):
        load_text("text:")
    written(tmp_path, "a b", "train.txt")
    with pytest.raises(FileNotFoundError, match=r"has no valid.txt or valid.txt.xz"):
        load_text(f"text:{tmp_path}")
    (tmp_path / "x.xz").write_bytes(b"no archive")
    with pytest.raises(ValueError, match="is no UTF-8 text"):
        load_text(f"text:{tmp_path / 'x.xz'}")
    for part in ("valid", "test"):
        written(tmp_path, "a b", f"{part}.txt")
    with pytest.raises(ValueError, match="=3 is more than the 2 of the validation"):
        load_text(f"text:{tmp_path}", validation_examples=3)


# --- Batches --------------------------------------------------------------------------


@pytest.mark.parametrize("devices", [1, 8])
def test_batches_read_on(devices):
    rows, length, tokens = 8, 3, np.arange(70, dtype=np.int32)
    source, per_epoch = text_batches(
        tokens, batch_size=rows, length=length, shardings=placement_on(devices)
    )
    assert per_epoch == 2  # of 8 tokens a row the last 2 are left over
    whole = in_rows(tokens, rows)
    cut_of = jax.jit(cut, static_argnums=1)
    for step in (0, 1, 2, 5):
        batch, begin = cut_of(source(step), length), step % 2 * length
        np.testing.assert_array_equal(batch.tokens, whole[:, begin : begin + length])
        np.testing.assert_array_equal(batch.labels, batch.tokens + 1)
    block = source.block(1, 3)
    for i in range(3):
        batch = cut_of(source.at(block, jnp.int32(i)), length)
        wanted = cut_of(source(1 + i), length)
        np.testing.assert_array_equal(batch.tokens, wanted.tokens)


@quick
@given(st.integers(2, 60), st.integers(1, 5), st.integers(1, 7))
def test_every_token_is_a_label_once(count, rows, length):
    tokens = np.arange(count, dtype=np.int32)
    batches = evaluation_sequences(
        tokens, batch_size=rows, length=length, shardings=placement_on(1)
    )
    stacked = [np.concatenate(part, axis=1) for part in zip(*batches, strict=True)]
    read, labels, weights = stacked
    assert {b.tokens.shape for b in batches} == {(rows, length)}
    counted = weights > 0
    np.testing.assert_array_equal(np.sort(labels[counted]), tokens[1:])
    np.testing.assert_array_equal(labels[counted], read[counted] + 1)
    # Each row is read on without a gap, whatever is padded stands at its end.
    for row, counts in zip(labels, counted, strict=True):
        kept = row[counts]
        assert (np.diff(kept) == 1).all() and counts[: len(kept)].all()


def test_a_text_shorter_than_a_batch_is_told():
    place = placement_on(1)
    with pytest.raises(ValueError, match=r"has 12 tokens .* one batch of 4 rows of 3"):
        text_batches(np.zeros(12, np.int32), batch_size=4, length=3, shardings=place)
    source, steps = text_batches(
        np.zeros(13, np.int32), batch_size=4, length=3, shardings=place
    )
    assert steps == 1 and source(0).rows.shape == (4, 4)
    with pytest.raises(ValueError, match="needs 2 tokens, got 1"):
        evaluation_sequences(
            np.zeros(1, np.int32), batch_size=4, length=3, shardings=place
        )
