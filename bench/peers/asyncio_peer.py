"""What Python's asyncio makes of the same measurements."""
import asyncio
import gc
import math
import sys
import time


def report(**values):
    print(" ".join(f"{key}={value}" for key, value in sorted(values.items())))


def rss():
    gc.collect()
    try:
        with open("/proc/self/status") as status:
            for line in status:
                if line.startswith("VmRSS:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    print("missing=no /proc here")
    sys.exit(0)


def spread(n):
    step = int(n * 0.618) | 1
    while math.gcd(step, n) != 1:
        step += 2
    return lambda i: (i * step % n) / n


async def spawn(n):
    async def work():
        await asyncio.sleep(0)

    start = time.monotonic()
    await asyncio.gather(*[asyncio.create_task(work()) for _ in range(n)])
    report(rate=n / (time.monotonic() - start))


async def empty(n):
    async def nothing():
        pass

    start = time.monotonic()
    await asyncio.gather(*[asyncio.create_task(nothing()) for _ in range(n)])
    report(rate=n / (time.monotonic() - start))


async def beside(alive, total):
    never = asyncio.Event()
    waiting = [asyncio.create_task(never.wait()) for _ in range(alive)]
    await asyncio.sleep(0)

    async def work():
        await asyncio.sleep(0)

    start = time.monotonic()
    for _ in range(total // 100):
        short = [asyncio.create_task(work()) for _ in range(100)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        del short
    report(rate=total / (time.monotonic() - start))
    never.set()
    await asyncio.gather(*waiting)


async def switch(tasks, total):
    rounds = total // tasks

    async def work():
        for _ in range(rounds):
            await asyncio.sleep(0)

    start = time.monotonic()
    await asyncio.gather(*[work() for _ in range(tasks)])
    report(rate=rounds * tasks / (time.monotonic() - start))


async def timers(n, lead):
    at = spread(n)
    lateness = []
    start = time.monotonic() + lead

    async def work(i):
        seconds = at(i) + (start - time.monotonic() if lead else 0)
        due = time.monotonic() + seconds
        await asyncio.sleep(seconds)
        lateness.append(time.monotonic() - due)

    await asyncio.gather(*[work(i) for i in range(1, n + 1)])
    lateness.sort()
    report(mean=sum(lateness) / n, p99=lateness[math.ceil(n * 0.99) - 1])


async def memory(n):
    async def work():
        await asyncio.sleep(3600)

    before = rss()
    tasks = [asyncio.create_task(work()) for _ in range(n)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    report(bytes=(rss() - before) / n)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


ROWS = {
    "spawn": spawn,
    "empty": empty,
    "beside": beside,
    "switch": switch,
    "timers": timers,
    "memory": memory,
}

if sys.argv[1] in ROWS:
    asyncio.run(ROWS[sys.argv[1]](*[int(word) for word in sys.argv[2:]]))
else:
    print("missing=no such measurement")
