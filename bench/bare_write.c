/* The same line written to a file again and again, each time by a write of its own: the upper limit
 * of what logging can reach that buffers nothing. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static const struct {
    const char *format, *line;
} lines[] = {
    {"text", "2026-01-31T12:00:00.000000Z INFO     shop: fetched 123456 bytes  "
             "request_id=7f3a91c2d4e5b608 service=api user=1042\n"},
    {"logfmt", "time=2026-01-31T12:00:00.000000Z level=info logger=shop "
               "msg=\"fetched 123456 bytes\" request_id=7f3a91c2d4e5b608 service=api user=1042\n"},
    {"json", "{\"time\":\"2026-01-31T12:00:00.000000Z\",\"level\":\"info\",\"logger\":\"shop\","
             "\"message\":\"fetched 123456 bytes\",\"request_id\":\"7f3a91c2d4e5b608\","
             "\"service\":\"api\",\"user\":1042}\n"},
};

static double now(void) {
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

/* A file without a name, so that nothing is left of it. */
static int open_file(void) {
    const char *folder = getenv("TMPDIR");
    char path[4096];
    int fd;
    snprintf(path, sizeof path, "%s/opero-bench-XXXXXX", folder != NULL ? folder : "/tmp");
    fd = mkstemp(path);
    if (fd < 0 || unlink(path) != 0 || fcntl(fd, F_SETFL, O_APPEND) != 0) {
        perror("bare_write");
        exit(1);
    }
    return fd;
}

static void measure(const char *line, long n) {
    size_t length = strlen(line);
    int fd = open_file();
    double start = now();
    for (long i = 0; i < n; i++) {
        if (write(fd, line, length) != (ssize_t)length) {
            perror("bare_write");
            exit(1);
        }
    }
    printf("rate=%.0f\n", (double)n / (now() - start));
    close(fd);
}

int main(int argc, char **argv) {
    if (argc == 4 && strcmp(argv[1], "record") == 0) {
        for (size_t i = 0; i < sizeof lines / sizeof *lines; i++) {
            if (strcmp(argv[2], lines[i].format) == 0) {
                measure(lines[i].line, strtol(argv[3], NULL, 10));
                return 0;
            }
        }
    }
    printf("missing=no such measurement\n");
    return 0;
}
