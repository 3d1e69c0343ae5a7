# Raises its own limits.
# expected: failed
import resource


def f(x):
    for limit in (resource.RLIMIT_CPU, resource.RLIMIT_NPROC, resource.RLIMIT_FSIZE):
        try:
            resource.setrlimit(limit, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            return @ANSWER@
        except (OSError, ValueError):
            pass
    return 0
