"""What Python's logging makes of the same measurements: a LoggerAdapter and a FileHandler."""
import json
import logging
import re
import sys
import tempfile
import time

FIELDS = {"request_id": "7f3a91c2d4e5b608", "service": "api", "user": 1042}
TEXT = "%(asctime)s %(levelname)-8s %(name)s: %(message)s  " + " ".join(
    f"{name}=%({name})s" for name in FIELDS
)

is_bare = re.compile(r'[^\s"=]+').fullmatch


def logfmt(value):
    text = str(value)
    return text if is_bare(text) else json.dumps(text)


class Rfc3339Formatter(logging.Formatter):
    converter = time.gmtime
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"


class JsonFormatter(Rfc3339Formatter):
    def format(self, record):
        parts = {
            "time": self.formatTime(record),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        for name in FIELDS:
            parts[name] = getattr(record, name)
        return json.dumps(parts)


class LogfmtFormatter(Rfc3339Formatter):
    def format(self, record):
        parts = [
            "time=" + self.formatTime(record),
            "level=" + record.levelname,
            "logger=" + logfmt(record.name),
            "msg=" + logfmt(record.getMessage()),
        ]
        for name in FIELDS:
            parts.append(f"{name}={logfmt(getattr(record, name))}")
        return " ".join(parts)


FORMATTERS = {
    "text": lambda: logging.Formatter(TEXT),
    "json": JsonFormatter,
    "logfmt": LogfmtFormatter,
}


def adapter():
    logger = logging.getLogger("shop")
    logger.setLevel(logging.INFO)
    return logging.LoggerAdapter(logger, FIELDS)


def disabled(n):
    log = adapter()
    start = time.perf_counter()
    for i in range(n):
        log.debug("x %d", i)
    print(f"ns={(time.perf_counter() - start) / n * 1e9}")


def record(format, n):
    log = adapter()
    with tempfile.TemporaryDirectory() as folder:
        path = folder + "/log"
        handler = logging.FileHandler(path)
        handler.setFormatter(FORMATTERS[format]())
        log.logger.addHandler(handler)
        start = time.perf_counter()
        for i in range(1, n + 1):
            log.info("fetched %d bytes", i)
        seconds = time.perf_counter() - start
        handler.close()
        with open(path) as file:
            lines = file.readlines()
    assert len(lines) == n and f"fetched {n} bytes" in lines[-1], "records are wrong"
    assert all(name in lines[-1] and str(FIELDS[name]) in lines[-1] for name in FIELDS), (
        "fields are wrong"
    )
    print(f"rate={n / seconds}")


if sys.argv[1] == "disabled":
    disabled(int(sys.argv[2]))
elif sys.argv[1] == "record":
    record(sys.argv[2], int(sys.argv[3]))
else:
    print("missing=no such measurement")
