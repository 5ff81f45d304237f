"""What `bench --plot` draws."""

from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st

from enginehouse.server.cli.plot import Point, beats, draw, front

SPEEDS, SIZES = st.floats(0.1, 1000), st.integers(1 << 20, 1 << 36)
points = st.lists(st.builds(Point, st.text("<&a/", min_size=1), SPEEDS, st.floats(0, 2), SIZES), min_size=1, max_size=8)


@given(points)
def test_the_front_is_beaten_by_nothing_and_what_is_not_in_it_is_beaten_by_it(points: list[Point]) -> None:
    best = front(points)
    assert best
    for point in points:
        assert (point in best) is not any(beats(other, point) for other in best)


@given(points)
def test_every_candidate_is_a_point_within_the_picture_and_the_front_is_marked(points: list[Point]) -> None:
    picture = ElementTree.fromstring(draw("a <model> & its host", points))
    circles = picture.findall(".//{*}circle")
    assert len(circles) == len(points)
    assert sum(circle.get("class") == "front" for circle in circles) == sum(point in front(points) for point in points)
    for circle in circles:
        assert 0 <= float(circle.get("cx", "-1")) <= 760
        assert 0 <= float(circle.get("cy", "-1")) <= 440
