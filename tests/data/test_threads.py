"""Work in threads comes back in order, and a film of any length passes through."""

import itertools
import threading
import time

import pytest

from t3d.data.threads import in_order, prefetched


def test_results_come_in_the_items_order_whoever_is_done_first():
    def work(k):
        time.sleep(0.01 * (k % 3 == 0))
        return k * k

    assert list(in_order(work, range(20), ahead=5)) == [k * k for k in range(20)]
    assert list(in_order(work, [])) == []


def test_no_more_items_are_taken_than_may_wait():
    taken = []
    results = in_order(lambda k: k, (taken.append(k) or k for k in itertools.count()), ahead=4)
    assert [next(results) for _ in range(10)] == list(range(10))
    assert len(taken) <= 10 + 4
    results.close()


def test_an_error_of_an_item_is_raised_in_its_place():
    results = in_order(lambda k: 1 / (2 - k), range(5))
    assert [next(results), next(results)] == [0.5, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_prefetched_items_are_the_items_and_are_made_in_one_other_thread():
    makers = set()

    def items():
        for k in range(30):
            makers.add(threading.get_ident())
            yield k

    assert list(prefetched(items())) == list(range(30))
    assert len(makers) == 1 and threading.get_ident() not in makers


def test_an_error_while_prefetching_is_raised():
    def items():
        yield 1
        raise KeyError("damaged")

    results = prefetched(items())
    assert next(results) == 1
    with pytest.raises(KeyError, match="damaged"):
        next(results)
