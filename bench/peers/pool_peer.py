"""What Python's process pools make of the same measurements: both of them, forked, two workers.

usage: pool_peer.py HOW ROW ARGUMENT...  where HOW is the method that the items go through.
"""
import concurrent.futures
import multiprocessing
import sys
import time

now = time.perf_counter
WORKERS = 2


def report(**values):
    print(" ".join(f"{key}={value}" for key, value in sorted(values.items())))


def missing(why):
    print(f"missing={why}")
    sys.exit(0)


# What the workers are asked to do; they import nothing, being forked ---------------------------


def work(x):
    return x + 1


def size_of(block):
    return len(block)


def block_of(size):
    return b"x" * size


def burn(steps):
    x = 1
    for _ in range(steps):
        x = (x * 1103515245 + 12345) % 2147483648
    return x


# The methods, each under the name that the runner has for it -----------------------------------


def open_pool(kind):
    context = multiprocessing.get_context("fork")
    if kind == "Executor":
        return concurrent.futures.ProcessPoolExecutor(WORKERS, mp_context=context)
    return context.Pool(WORKERS)


def close_pool(pool):
    """Like the end of Executor's with statement; that of Pool would kill the workers."""
    if hasattr(pool, "shutdown"):
        pool.shutdown()
    else:
        pool.close()
        pool.join()


def submit(pool, fn, *args):
    """Gives a function that waits for the result."""
    if hasattr(pool, "submit"):
        return pool.submit(fn, *args).result
    return pool.apply_async(fn, args).get


# A chunk is what each method makes it by default: Pool.map cuts the items into four for each
# worker, the others hand them over one by one.
MAPS = {
    "Executor.map": lambda pool, fn, items: pool.map(fn, items),
    "Pool.map": lambda pool, fn, items: pool.map(fn, items),
    "Pool.imap": lambda pool, fn, items: pool.imap(fn, items),
}


def ready(how):
    """A pool whose workers have started."""
    pool = open_pool(how.partition(".")[0])
    waits = [submit(pool, work, i) for i in range(WORKERS)]
    for wait in waits:
        wait()
    return pool


# The rows --------------------------------------------------------------------------------------


def row_submit(how, n):
    pool = ready(how)
    start = now()
    waits = [submit(pool, work, i) for i in range(1, n + 1)]
    total = sum(wait() for wait in waits)
    seconds = now() - start
    assert total == n * (n + 3) // 2, "results are wrong"
    close_pool(pool)
    report(rate=n / seconds)


def row_call(how, n):
    pool = ready(how)
    times = []
    for i in range(n):
        start = now()
        result = pool.apply(work, (i,)) if how == "Pool.apply" else submit(pool, work, i)()
        times.append(now() - start)
        assert result == i + 1, "a result is wrong"
    close_pool(pool)
    times.sort()
    report(us=sum(times) / n * 1e6, p99=times[-(-n * 99 // 100) - 1] * 1e6)


def row_map(how, n):
    pool = ready(how)
    items = list(range(1, n + 1))
    start = now()
    results = list(MAPS[how](pool, work, items))
    seconds = now() - start
    assert len(results) == n and results[-1] == n + 1, "results are wrong"
    close_pool(pool)
    report(rate=n / seconds)


def row_bytes(how, n, size):
    pool = ready(how)
    blocks = [bytes([65 + i]) * size for i in range(16)]
    start = now()
    total = sum(MAPS[how](pool, size_of, (blocks[i % 16] for i in range(n))))
    seconds = now() - start
    assert total == n * size, "results are wrong"
    close_pool(pool)
    report(throughput=n * size / seconds)


def row_back(how, n, size):
    pool = ready(how)
    start = now()
    total = sum(len(block) for block in MAPS[how](pool, block_of, (size for _ in range(n))))
    seconds = now() - start
    assert total == n * size, "results are wrong"
    close_pool(pool)
    report(throughput=n * size / seconds)


def row_cpu(how, tasks, steps, turns):
    pool = ready(how)
    sizes = [steps] * tasks
    ratios = []
    for _ in range(turns):
        start = now()
        alone = [burn(size) for size in sizes]
        middle = now()
        together = pool.map(burn, sizes, chunksize=1)
        end = now()
        assert alone == together, "results are wrong"
        ratios.append((middle - start) / (end - middle))
    close_pool(pool)
    ratios.sort()
    report(speedup=ratios[(turns - 1) // 2])


def row_start(how, n):
    times = []
    for _ in range(n + 1):
        start = now()
        close_pool(ready(how))
        times.append(now() - start)
    del times[0]  # Python prepares itself there
    times.sort()
    report(ms=times[(n - 1) // 2] * 1e3)


def main(how, row, *args):
    if "fork" not in multiprocessing.get_all_start_methods():
        missing("this Python cannot fork")
    measure = globals().get("row_" + row) or missing("no such measurement: " + row)
    measure(how, *[int(word) for word in args])


main(*sys.argv[1:])
