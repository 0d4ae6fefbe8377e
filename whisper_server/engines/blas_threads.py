"""One thread for numpy's matrix products."""

from threadpoolctl import threadpool_limits


def use_one_blas_thread() -> None:
    """Let numpy's BLAS compute on the calling thread, from now on and in the whole process.

    The products here take a millisecond. With several threads OpenBLAS's own keep spinning for tens of
    milliseconds after each, on cores that the model needs: 8 % of a short request on two cores.
    """
    threadpool_limits(limits=1, user_api="blas")
