#define _GNU_SOURCE
#include "port.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

/* ---- the memory ---------------------------------------------------------------------------------- */

static size_t shared_size(void) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    return (sizeof(PortShared) + page - 1) / page * page;
}

/* The address space: what is shared, and either ring twice. */
static size_t mapped_size(void) {
    return shared_size() + 4 * PORT_CAPACITY;
}

/* A descriptor of memory without a name. */
static int make_memory(void) {
#ifdef __linux__
    return memfd_create("opero", MFD_CLOEXEC);
#else
    static unsigned count;
    char name[64];
    int fd;
    do {
        snprintf(name, sizeof name, "/opero-%ld-%u", (long)getpid(), count++);
        fd = shm_open(name, O_RDWR | O_CREAT | O_EXCL, 0600);
    } while (fd < 0 && errno == EEXIST);
    if (fd >= 0)
        shm_unlink(name);
    return fd;
#endif
}

static bool map_at(char *at, size_t size, int memory, size_t offset) {
    return mmap(at, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, memory, (off_t)offset) !=
           MAP_FAILED;
}

/* Maps the memory; 0, or an errno. `is_worker`: which of the rings is read. */
static int map(Port *port, int memory, bool is_worker) {
    size_t head = shared_size();
    char *base = mmap(NULL, mapped_size(), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    char *to_worker, *to_pool;
    if (base == MAP_FAILED)
        return errno;
    to_worker = base + head;
    to_pool = to_worker + 2 * PORT_CAPACITY;
    if (!map_at(base, head, memory, 0) || !map_at(to_worker, PORT_CAPACITY, memory, head) ||
        !map_at(to_worker + PORT_CAPACITY, PORT_CAPACITY, memory, head) ||
        !map_at(to_pool, PORT_CAPACITY, memory, head + PORT_CAPACITY) ||
        !map_at(to_pool + PORT_CAPACITY, PORT_CAPACITY, memory, head + PORT_CAPACITY)) {
        int error = errno;
        munmap(base, mapped_size());
        return error;
    }
    port->shared = (PortShared *)(void *)base;
    ring_init(is_worker ? &port->in : &port->out, &port->shared->to_worker, to_worker,
              PORT_CAPACITY);
    ring_init(is_worker ? &port->out : &port->in, &port->shared->to_pool, to_pool, PORT_CAPACITY);
    return 0;
}

/* ---- opening and closing ------------------------------------------------------------------------- */

static int make_bells(int *bell, int *peer) {
    int pair[2], error = 0;
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) != 0)
        return errno;
    for (int i = 0; i < 2 && error == 0; i++) {
        int flags = fcntl(pair[i], F_GETFL);
        if (flags < 0 || fcntl(pair[i], F_SETFL, flags | O_NONBLOCK) != 0 ||
            fcntl(pair[i], F_SETFD, FD_CLOEXEC) != 0)
            error = errno;
    }
    if (error != 0) {
        close(pair[0]);
        close(pair[1]);
        return error;
    }
    *bell = pair[0];
    *peer = pair[1];
    return 0;
}

int port_open(Port *port, int *peer, int *memory) {
    int error;
    memset(port, 0, sizeof *port);
    error = make_bells(&port->bell, peer);
    if (error != 0)
        return error;
    *memory = make_memory();
    if (*memory < 0)
        error = errno;
    else {
        if (ftruncate(*memory, (off_t)(shared_size() + 2 * PORT_CAPACITY)) != 0)
            error = errno;
        else
            error = map(port, *memory, false);
        if (error != 0)
            close(*memory);
    }
    if (error != 0) {
        close(port->bell);
        close(*peer);
    }
    return error;
}

void port_turn(Port *port, int bell) {
    Ring in = port->in;
    port->in = port->out;
    port->out = in;
    port->in.position = port->out.position = 0;
    close(port->bell);
    port->bell = bell;
}

int port_attach(Port *port, int bell, int memory) {
    int error;
    memset(port, 0, sizeof *port);
    error = map(port, memory, true);
    close(memory);
    if (error != 0) {
        close(bell);
        return error;
    }
    fcntl(bell, F_SETFD, FD_CLOEXEC);
    port->bell = bell;
    return 0;
}

void port_close(Port *port) {
    if (port->shared == NULL)
        return;
    munmap(port->shared, mapped_size());
    close(port->bell);
    port->shared = NULL;
    port->bell = -1;
}

/* ---- the bell ------------------------------------------------------------------------------------ */

void port_wake(Port *port) {
    bool reader = ring_must_wake_reader(&port->out), writer = ring_must_wake_writer(&port->in);
    if (!reader && !writer)
        return;
    /* a full socket has been rung often enough, and a closed one shows when it is read */
    while (send(port->bell, "", 1, MSG_NOSIGNAL) < 0 && errno == EINTR)
        ;
}

bool port_answer(Port *port) {
    char bytes[64];
    ssize_t count;
    do
        count = recv(port->bell, bytes, sizeof bytes, 0);
    while (count == (ssize_t)sizeof bytes || (count < 0 && errno == EINTR));
    return count > 0 || (count < 0 && (errno == EAGAIN || errno == EWOULDBLOCK));
}

/* ---- claims -------------------------------------------------------------------------------------- */

bool port_claim(const Port *port, uint32_t epoch) {
    uint64_t claims = atomic_load(&port->shared->claims), next;
    do {
        if (claims >> 32 != epoch)
            return false;
        next = (uint64_t)epoch << 32 | (uint32_t)(claims + 1); /* the count may go round */
    } while (!atomic_compare_exchange_weak(&port->shared->claims, &claims, next));
    return true;
}

uint32_t port_begun(const Port *port) {
    return (uint32_t)atomic_load(&port->shared->claims);
}

uint32_t port_revoke(Port *port) {
    uint64_t next = (uint64_t)++port->epoch << 32;
    return (uint32_t)atomic_exchange(&port->shared->claims, next);
}
