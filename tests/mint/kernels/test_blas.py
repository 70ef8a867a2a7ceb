"""The limit of matrix products to one thread."""

import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from mint.kernels.blas import single_threaded_products


def threads() -> set[int]:
    """The threads of every library that multiplies here and can be told so."""
    return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}


def test_products_have_one_thread_until_the_outermost_caller_leaves() -> None:
    if not threads():
        pytest.skip("the BLAS of this machine has no such setting")
    with threadpool_limits(2, "blas"):
        with single_threaded_products():
            assert threads() == {1}
            with single_threaded_products():
                assert threads() == {1}
            assert threads() == {1}
        assert threads() == {2}


def test_an_error_inside_ends_the_limit() -> None:
    before = threads()
    with pytest.raises(ValueError, match="inside"), single_threaded_products():
        raise ValueError("inside")
    assert threads() == before


def test_products_have_all_threads_again_in_whatever_order_callers_leave() -> None:
    if not threads():
        pytest.skip("the BLAS of this machine has no such setting")
    with threadpool_limits(2, "blas"):
        first, second = single_threaded_products(), single_threaded_products()
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert threads() == {1}, "the second still needs it"
        second.__exit__(None, None, None)
        assert threads() == {2}
