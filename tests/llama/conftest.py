"""Fixtures of the tests of classifiers: files of reviews, and pretrained weights."""

import pytest

from tests.llama.reviews import write_reviews, write_weights


@pytest.fixture
def reviews(tmp_path):
    return write_reviews(tmp_path / "reviews")


@pytest.fixture
def weights(tmp_path):
    return write_weights(tmp_path / "base.bin")
