"""One successful call through tenacity: three attempts, exponential waits, a fallback."""
import sys
import time

try:
    import tenacity
except ImportError:
    print("missing=the tenacity module is not installed")
    sys.exit(0)


@tenacity.retry(
    stop=tenacity.stop_after_attempt(3),
    wait=tenacity.wait_exponential(multiplier=1, min=0.1, max=5),
    retry_error_callback=lambda state: None,
)
def work(x):
    return x


def main(n):
    start = time.perf_counter()
    for i in range(n):
        work(i)
    print(f"ns={(time.perf_counter() - start) / n * 1e9}")


main(int(sys.argv[2]))
