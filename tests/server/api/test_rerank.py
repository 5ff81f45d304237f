"""The order of documents."""

from enginehouse.server.api.rerank import similarities


def test_similarities_are_the_products_of_vectors() -> None:
    assert similarities([1.0, 2.0], [3.0, 4.0], [0.0, 1.0]) == [11.0, 2.0]
