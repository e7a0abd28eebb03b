"""Which engine a request is sent to."""

from vlm_trt.fleet.favourites import favourite, ranked

KEYS = [f"key {number}" for number in range(400)]


def test_a_key_has_one_favourite_wherever_it_is_asked() -> None:
    assert favourite("k", ["a", "b", "c"]) == favourite("k", ["c", "a", "b"])


def test_keys_are_spread_over_the_engines() -> None:
    counts = [sum(favourite(key, "abcd") == name for key in KEYS) for name in "abcd"]
    assert min(counts) > 60, counts  # of a hundred each


def test_an_engine_that_goes_moves_its_own_keys_alone() -> None:
    moved = {key for key in KEYS if favourite(key, "abcd") != favourite(key, "abc")}
    assert moved == {key for key in KEYS if favourite(key, "abcd") == "d"}


def test_the_favourite_comes_first_and_the_others_where_it_has_no_room() -> None:
    first = favourite("k", "abc")
    ranks = ranked("k", dict.fromkeys("abc", 3), 4)
    assert ranks == [[first], [name for name in "abc" if name != first]]


def test_a_favourite_that_is_much_busier_is_passed_by() -> None:
    first = favourite("k", "abc")
    queues = {name: 5 if name == first else 1 for name in "abc"}
    assert ranked("k", queues, 4)[0] == [first]
    assert ranked("k", queues | {first: 6}, 4) == [[name for name in "abc" if name != first], [first]]


def test_one_engine_and_none() -> None:
    assert ranked("k", {"a": 99}, 1) == [["a"]]
    assert ranked("k", {}, 1) == []
