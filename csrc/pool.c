#define _GNU_SOURCE
#include "pool.h"
#include "loop.h"
#include "parcel.h"
#include "process.h"
#include "scope.h"
#include "worker.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define POOL_METATABLE "opero.Pool"
#define CALL_METATABLE "opero.Call"

#define AHEAD 30          /* calls that a busy worker is sent at most beside those it runs */
#define CHUNK_BYTES 65536 /* of a chunk's items, about: it fits into the ring with another one */
/* So many starts fail in a row before what waits is told that no worker can be had; more when there
 * were some before, for then it may be by chance: somebody kills them. */
#define FAILED_STARTS 3
#define FAILED_STARTS_LATER 20
#define GRACE_NS 100000000 /* from an interruption until the worker is killed */
#define STOP_NS 1000000000 /* from being told to end until it is killed */
#define RECORD_SANE (1u << 30)

typedef struct Pool Pool;
typedef struct Worker Worker;
typedef struct Call Call;

typedef enum Outcome {
    CALL_PENDING,
    CALL_ANSWERED, /* `status` says with what */
    CALL_CRASHED,
    CALL_TIMED_OUT,
    CALL_CLOSED,
    CALL_NO_WORKER, /* `reply` has why, encoded, or `death` */
} Outcome;

typedef struct Death {
    pid_t pid;
    int status;
    bool is_known;
} Death;

struct Call {  /* malloc'ed; a chunk may come to be several of them, `root` and its further parts */
    Link link; /* in the pool's queue or in its worker's calls */
    Pool *pool;
    Worker *worker; /* NULL: it is in the queue, or nowhere */
    Call *root, *next_part;
    uint32_t pending; /* root: parts that have no outcome yet */
    Task *task;       /* root: that waits for it, or NULL */
    bool has_handle;  /* root: Lua holds it */
    bool is_chunk;
    bool is_placed; /* in the queue or with a worker */
    uint8_t outcome;
    uint8_t status;      /* RecordStatus */
    uint32_t id;         /* unique among those that are pending */
    uint32_t epoch;      /* in which it was sent */
    uint32_t generation; /* what its worker has to have */
    uint32_t count;      /* items; 1 for a call */
    uint32_t done;       /* items that were answered */
    uint32_t index;      /* of the first item, in the root's counting */
    CodecMessage message;
    Parcel parcel;
    char *reply;
    size_t reply_length, reply_capacity;
    bool has_lost_reply; /* there was no memory for it */
    int64_t elapsed_ns;
    Death death;
};

typedef enum WorkerState {
    WORKER_STARTING,
    WORKER_READY,
    WORKER_STOPPING, /* it was told to end */
    WORKER_ENDING,   /* it was interrupted, or killed */
} WorkerState;

struct Worker { /* malloc'ed */
    Link link;  /* in the pool's workers */
    Pool *pool;
    Process process;
    Port port;
    Watcher bell, end;
    Alarm alarm;
    int64_t alarm_ns; /* when it is to ring; CLOCK_NEVER: not */
    WorkerState state;
    Outcome fate;        /* of the calls that run, when we end it */
    uint32_t timed_out;  /* the id of that which took too long */
    uint32_t generation; /* it knows the functions with lower numbers */
    Link calls;          /* in the order in which they were sent */
    uint32_t load;       /* their number */
    uint32_t assigned;   /* tasks it was given, ever */
    uint32_t answered;   /* tasks of this epoch that were */
    Call *sending;       /* the last of them, when a part of it is not sent yet */
    Parcel init;         /* is sent before any */
    bool is_init_sent;
    bool has_news;    /* things were sent: wake it */
    Record receiving; /* a record that comes in pieces, */
    size_t missing;   /* and what there is still to come of it */
    Call *receiver;   /* who gets it; NULL: nobody */
    bool is_receiving, is_lost;
    bool has_hung_up;
    Call *failure; /* why it cannot begin: stands nowhere, its reply is the error */
};

struct Pool { /* a userdata */
    Service service;
    Runtime *runtime;
    pid_t owner;
    bool is_fork, waits_on_cancel, accepts_functions;
    uint32_t max_workers, max_tasks;
    int64_t task_timeout_ns, idle_timeout_ns; /* CLOCK_NEVER: none */
    PortSetup setup;
    CodecMessage init;
    char *interpreter, *code; /* spawn: the program, and what it is to run */
    uint32_t next_known;      /* number for the next function */
    uint32_t next_id;
    Link accepted; /* calls whose tasks have not begun */
    Link queue, workers, closers;
    uint32_t queued, worker_count;
    uint64_t outstanding; /* calls without an outcome */
    uint64_t completed, failed, crashed, started;
    uint32_t failed_starts; /* in a row */
    bool has_started;       /* a worker was ready once */
    size_t idle_watches;    /* as counted in the loop */
    bool is_closing, is_closed;
};

/* Whether it was made before this process was forked: its workers are not ours. */
static bool is_foreign(const Pool *pool) {
    return pool->owner != getpid();
}

/* ---- calls --------------------------------------------------------------------------------------- */

static void free_part(Call *part) {
    codec_message_free(&part->message);
    free(part->reply);
    free(part);
}

/* Frees a root and its parts, unless somebody still has to do with it. */
static void release(Call *root) {
    if (root->has_handle || root->pending > 0)
        return;
    while (root != NULL) {
        Call *next = root->next_part;
        free_part(root);
        root = next;
    }
}

static void place(Call *call, Link *list, bool at_front) {
    if (at_front)
        list_append(list->next, &call->link);
    else
        list_append(list, &call->link);
    call->is_placed = true;
}

static void put_into_queue(Call *call, bool at_front) {
    place(call, &call->pool->queue, at_front);
    call->worker = NULL;
    call->pool->queued++;
}

/* Takes a call from wherever it stands. */
static void unplace(Call *call) {
    Worker *worker = call->worker;
    if (!call->is_placed)
        return;
    link_remove(&call->link);
    call->is_placed = false;
    if (worker == NULL) {
        call->pool->queued--;
    } else {
        worker->load--;
        if (worker->sending == call)
            worker->sending = NULL;
        if (worker->receiver == call)
            worker->receiver = NULL;
        call->worker = NULL;
    }
}

/* A part of a call has its outcome. */
static void end_part(Call *part, Outcome outcome) {
    Pool *pool = part->pool;
    Call *root = part->root;
    unplace(part);
    part->outcome = (uint8_t)outcome;
    pool->outstanding--;
    root->pending--;
    if (root->pending > 0)
        return;
    if (root->task != NULL) {
        Task *task = root->task;
        root->task = NULL;
        task_wake(pool->service.loop, task, WAKE_OK, 0);
    }
    release(root);
}

static Call *make_call(Pool *pool) {
    Call *call = calloc(1, sizeof *call);
    if (call == NULL)
        return NULL;
    link_init(&call->link);
    call->pool = pool;
    call->root = call;
    call->count = 1;
    return call;
}

/* Where the items of a chunk begin. */
static size_t items_at(const CodecMessage *message) {
    uint32_t length;
    memcpy(&length, message->bytes, sizeof length);
    return sizeof length + length;
}

/* Makes the items of a chunk from the n-th on a part of its own, which is placed nowhere. NULL when
 * there is no memory: nothing has changed then. */
static Call *split(Call *chunk, uint32_t n) {
    Call *part = make_call(chunk->pool), *root = chunk->root;
    size_t head = items_at(&chunk->message), at = head;
    if (part == NULL)
        return NULL;
    for (uint32_t i = 0; i < n; i++)
        at += item_length(chunk->message.bytes + at, chunk->message.length - at);
    if (!message_append(&part->message, chunk->message.bytes, head) ||
        !message_append(&part->message, chunk->message.bytes + at, chunk->message.length - at)) {
        free_part(part);
        return NULL;
    }
    chunk->message.length = at; /* or, should it be sent yet, it would be with those */
    part->is_chunk = true;
    part->root = root;
    part->next_part = chunk->next_part; /* who goes through the parts comes to it next */
    chunk->next_part = part;
    root->pending++;
    part->pool->outstanding++;
    part->id = part->pool->next_id++;
    part->generation = chunk->generation;
    part->index = chunk->index + n;
    part->count = chunk->count - n;
    chunk->count = n;
    return part;
}

/* ---- what a worker has begun, and what not --------------------------------------------------------- */

/* Tasks of this epoch that run. */
static uint32_t running_of_epoch(const Worker *worker) {
    uint32_t begun = port_begun(&worker->port);
    return begun > worker->answered ? begun - worker->answered : 0;
}

/* How many tasks a worker has that it has not begun. */
static uint32_t count_waiting(const Worker *worker) {
    uint32_t count = 0, running = running_of_epoch(worker);
    for (const Link *link = worker->calls.next; link != &worker->calls; link = link->next) {
        const Call *call = CONTAINER_OF(link, Call, link);
        if (call->epoch == worker->port.epoch)
            count += call->count - call->done;
    }
    return count > running ? count - running : 0;
}

/* Takes back what the worker has not begun of what it was sent in that epoch; `running` are the tasks
 * of it that have begun and were not answered. To the front of the queue, in order. */
static void take_back(Worker *worker, uint32_t epoch, uint32_t running) {
    Link *link = worker->calls.next, taken;
    link_init(&taken);
    while (link != &worker->calls) {
        Call *call = CONTAINER_OF(link, Call, link), *rest = call;
        uint32_t left = call->count - call->done, begun = running < left ? running : left;
        link = link->next;
        if (call->epoch != epoch)
            continue;
        running -= begun;
        if (begun == left)
            continue;
        if (call->done + begun > 0)
            rest = split(call, call->done + begun); /* the part that has begun stays */
        else
            unplace(call);
        if (rest == NULL)
            continue; /* no memory now: see chunk_ended */
        worker->assigned -= rest->count;
        list_append(&taken, &rest->link);
    }
    while (!list_is_empty(&taken)) {
        Call *call = CONTAINER_OF(taken.prev, Call, link);
        link_remove(&call->link);
        put_into_queue(call, true);
    }
}

static void pool_due(Pool *pool) {
    runtime_service_due(pool->runtime, &pool->service);
}

/* The same for a worker that goes on. False: a call is on its way to it in pieces, and nothing can be
 * taken back before it is there. */
static bool recall(Worker *worker) {
    uint32_t epoch = worker->port.epoch, begun;
    if (worker->sending != NULL)
        return false;
    begun = port_revoke(&worker->port);
    take_back(worker, epoch, begun > worker->answered ? begun - worker->answered : 0);
    worker->answered = 0;
    pool_due(worker->pool);
    return true;
}

/* ---- watching workers ------------------------------------------------------------------------------ */

/* While a pool has nothing to do, its descriptors wake no task: tells the loop so. */
static void count_watches(Pool *pool) {
    Loop *loop = pool->service.loop;
    size_t count = 0;
    if (pool->outstanding == 0 && list_is_empty(&pool->closers))
        for (Link *link = pool->workers.next; link != &pool->workers; link = link->next) {
            const Worker *worker = CONTAINER_OF(link, Worker, link);
            count += (size_t)worker->bell.watch.is_waiting + (size_t)worker->end.watch.is_waiting;
        }
    loop->idle_watches += count - pool->idle_watches;
    pool->idle_watches = count;
}

static bool watch(Worker *worker, Watcher *watcher, int fd) {
    if (watcher->watch.is_waiting)
        return true;
    watcher->watch.fd = fd;
    watcher->watch.owner = watcher;
    watcher->watch.kind = WATCH_OF_SERVICE;
    watcher->watch.wanted = REACTOR_READ;
    return reactor_add(&worker->pool->service.loop->reactor, &watcher->watch) == 0;
}

static void unwatch(Worker *worker) {
    Reactor *reactor = &worker->pool->service.loop->reactor;
    reactor_remove(reactor, &worker->bell.watch);
    reactor_remove(reactor, &worker->end.watch);
}

/* When the worker has to be looked at. */
static int64_t alarm_due_ns(const Worker *worker, int64_t now_ns) {
    const Pool *pool = worker->pool;
    if (worker->state == WORKER_ENDING || worker->state == WORKER_STOPPING)
        return worker->alarm_ns; /* was set then */
    if (worker->state == WORKER_READY && worker->load == 0)
        return clock_add_ns(now_ns, pool->idle_timeout_ns);
    if (worker->load > 0)
        return clock_add_ns(now_ns, pool->task_timeout_ns);
    return CLOCK_NEVER;
}

static void set_alarm(Worker *worker, int64_t at_ns) {
    Timers *timers = &worker->pool->service.loop->timers;
    timers_cancel(timers, &worker->alarm.timer);
    worker->alarm_ns = at_ns;
    /* without memory for it: a limit that is not kept is better than a pool that fails */
    if (at_ns != CLOCK_NEVER && !timers_add(timers, &worker->alarm.timer, at_ns))
        worker->alarm_ns = CLOCK_NEVER;
}

/* It has something to do now, or nothing any more. */
static void reset_alarm(Worker *worker) {
    const Pool *pool = worker->pool;
    if (pool->idle_timeout_ns != CLOCK_NEVER || pool->task_timeout_ns != CLOCK_NEVER)
        set_alarm(worker, alarm_due_ns(worker, clock_now_ns(&pool->service.loop->clock)));
}

/* ---- the end of a worker --------------------------------------------------------------------------- */

static void signal_worker(Worker *worker, int signal, Outcome fate, int64_t grace_ns) {
    worker->state = WORKER_ENDING;
    worker->fate = fate;
    process_signal(&worker->process, signal);
    set_alarm(worker,
              grace_ns == CLOCK_NEVER
                  ? CLOCK_NEVER
                  : clock_add_ns(clock_now_ns(&worker->pool->service.loop->clock), grace_ns));
}

static void kill_worker(Worker *worker, Outcome fate) {
    signal_worker(worker, SIGKILL, fate, CLOCK_NEVER);
}

/* Lets what runs in it clean up, for a while. */
static void interrupt_worker(Worker *worker) {
    if (worker->state != WORKER_ENDING)
        signal_worker(worker, SIGINT, CALL_CRASHED, GRACE_NS);
}

static void free_worker(Worker *worker) {
    unwatch(worker);
    timers_cancel(&worker->pool->service.loop->timers, &worker->alarm.timer);
    link_remove(&worker->link);
    worker->pool->worker_count--;
    port_close(&worker->port);
    process_forget(&worker->process);
    if (worker->failure != NULL)
        free_part(worker->failure);
    free(worker);
}

static void receive(Worker *worker);

/* All that waits in the queue cannot be done. `failure` has an encoded error as its reply, or is NULL. */
static void fail_queue(Pool *pool, const Call *failure, Death death) {
    while (!list_is_empty(&pool->queue)) {
        Call *call = CONTAINER_OF(pool->queue.next, Call, link);
        call->death = death;
        if (failure != NULL && failure->reply_length > 0 && call->reply == NULL) {
            call->reply = malloc(failure->reply_length);
            if (call->reply != NULL) {
                memcpy(call->reply, failure->reply, failure->reply_length);
                call->reply_length = failure->reply_length;
            }
        }
        end_part(call, CALL_NO_WORKER);
    }
}

static bool has_live_worker(const Pool *pool) {
    for (const Link *link = pool->workers.next; link != &pool->workers; link = link->next) {
        const Worker *worker = CONTAINER_OF(link, Worker, link);
        if (worker->state == WORKER_READY || worker->state == WORKER_STARTING)
            return true;
    }
    return false;
}

/* Whether it is worth while to start another worker. */
static bool can_start(const Pool *pool) {
    return pool->failed_starts < (pool->has_started ? FAILED_STARTS_LATER : FAILED_STARTS);
}

/* The process has ended: what became of its calls. */
static void bury(Worker *worker) {
    Pool *pool = worker->pool;
    Death death;
    bool was_unasked = worker->state == WORKER_STARTING || worker->state == WORKER_READY;
    bool has_failed_start = worker->state == WORKER_STARTING || worker->failure != NULL;
    process_has_ended(&worker->process, true);
    receive(worker); /* what it had still to say */
    death = (Death){worker->process.pid, worker->process.status, worker->process.is_known};
    worker->sending = NULL;
    take_back(worker, worker->port.epoch, running_of_epoch(worker));
    while (!list_is_empty(&worker->calls)) {
        Call *call = CONTAINER_OF(worker->calls.next, Call, link);
        bool is_whole = call->is_chunk && call->done == call->count;
        Outcome fate = CALL_CRASHED;
        if (worker->fate == CALL_CLOSED ||
            (worker->fate == CALL_TIMED_OUT && (call->id == worker->timed_out)))
            fate = worker->fate;
        call->death = death;
        end_part(call, is_whole ? CALL_ANSWERED : fate);
    }
    if (was_unasked)
        pool->crashed++;
    if (has_failed_start)
        pool->failed_starts =
            worker->failure != NULL ? FAILED_STARTS_LATER : pool->failed_starts + 1;
    link_remove(&worker->link);
    if (!can_start(pool) && !has_live_worker(pool)) {
        if (has_failed_start)
            fail_queue(pool, worker->failure, death);
        pool->failed_starts = 0;
    }
    free_worker(worker);
    pool_due(pool);
}

static void ended(lua_State *L, Watcher *watcher) { /* the process, or its descriptor was closed */
    Worker *worker = CONTAINER_OF(watcher, Worker, end);
    Pool *pool = worker->pool;
    (void)L;
    if (watcher->watch.error != 0)
        process_signal(&worker->process, SIGKILL);
    bury(worker);
    count_watches(pool);
}

/* ---- what workers say ------------------------------------------------------------------------------ */

static Call *find_call(const Worker *worker, uint32_t id) {
    for (Link *link = worker->calls.next; link != &worker->calls; link = link->next)
        if (CONTAINER_OF(link, Call, link)->id == id)
            return CONTAINER_OF(link, Call, link);
    return NULL;
}

/* In a chunk's reply an item is its status in 1 byte, its length in 4, and that many bytes. */
enum { REPLY_ITEM_HEAD = 5 };

/* Makes room in the reply of a call. */
static bool reserve_reply(Call *call, size_t length) {
    size_t needed = call->reply_length + length, capacity = call->reply_capacity;
    char *bytes;
    if (needed <= capacity)
        return true;
    if (call->is_chunk)
        capacity = capacity < 256 ? 256 : capacity * 2;
    if (capacity < needed)
        capacity = needed;
    bytes = realloc(call->reply, capacity);
    if (bytes == NULL)
        return false;
    call->reply = bytes;
    call->reply_capacity = capacity;
    return true;
}

/* A record begins that the call is to have; false when there is no memory for it. */
static bool begin_reply(Call *call, const Record *record) {
    bool is_item = record->kind == RECORD_ITEM;
    if (!reserve_reply(call, record->length + (is_item ? (size_t)REPLY_ITEM_HEAD : 0)))
        return false;
    if (is_item) {
        call->reply[call->reply_length] = (char)record->status;
        memcpy(call->reply + call->reply_length + 1, &record->length, sizeof record->length);
        call->reply_length += REPLY_ITEM_HEAD;
    }
    return true;
}

/* An item whose result there was no memory for: it has no bytes. */
static void lose_item(Call *call) {
    const Record lost = {.kind = RECORD_ITEM, .status = STATUS_MEMORY};
    if (!begin_reply(call, &lost))
        call->has_lost_reply = true;
}

/* The worker is through with a chunk. */
static void chunk_ended(Call *chunk) {
    if (chunk->done < chunk->count) { /* taken back, but there was no memory to do it properly */
        Call *rest = split(chunk, chunk->done);
        if (rest != NULL)
            put_into_queue(rest, true);
        else
            chunk->has_lost_reply = true;
    }
    end_part(chunk, CALL_ANSWERED);
}

static void note_answered(Worker *worker, const Call *call, uint32_t tasks, bool has_failed) {
    Pool *pool = worker->pool;
    pool->completed += tasks;
    if (has_failed)
        pool->failed += tasks;
    if (call->epoch == worker->port.epoch)
        worker->answered += tasks;
}

/* A record has come; its bytes are in the call's reply, unless they were lost. */
static void handle(Worker *worker, const Record *record, Call *call, bool is_lost) {
    Pool *pool = worker->pool;
    bool has_failed = record->status == STATUS_ERROR || record->status == STATUS_MEMORY;
    switch (record->kind) {
    case RECORD_READY:
        pool->failed_starts = 0;
        pool->has_started = true;
        if (worker->state == WORKER_STARTING)
            worker->state = WORKER_READY;
        break;
    case RECORD_RESULT:
        if (call == NULL || call == worker->failure)
            break;
        if (call == worker->sending) { /* it cannot have read that */
            kill_worker(worker, CALL_CRASHED);
            return;
        }
        call->status = is_lost ? STATUS_MEMORY : record->status;
        note_answered(worker, call, call->count - call->done, has_failed);
        end_part(call, CALL_ANSWERED);
        break;
    case RECORD_ITEM:
        if (call == NULL || call->done == call->count)
            break;
        if (is_lost)
            lose_item(call);
        call->done++;
        note_answered(worker, call, 1, has_failed);
        break;
    case RECORD_DONE:
        if (call == NULL || !call->is_chunk)
            break;
        chunk_ended(call);
        break;
    default: /* it has gone mad */
        kill_worker(worker, CALL_CRASHED);
        return;
    }
    reset_alarm(worker);
}

/* Who is to have the bytes of the record. */
static Call *receiver_of(Worker *worker, const Record *record) {
    Call *call;
    if (record->kind == RECORD_RESULT && record->id == 0 && worker->state == WORKER_STARTING) {
        if (worker->failure == NULL)
            worker->failure = make_call(worker->pool);
        worker->state = WORKER_STOPPING; /* it ends by itself */
        set_alarm(worker, clock_add_ns(clock_now_ns(&worker->pool->service.loop->clock), STOP_NS));
        return worker->failure;
    }
    call = find_call(worker, record->id);
    return call != NULL && call->is_chunk == (record->kind != RECORD_RESULT) ? call : NULL;
}

/* Takes a whole record from the ring, which stands at `bytes`. */
static void take_record(Worker *worker, const Record *record, const char *bytes) {
    Call *call = record->kind == RECORD_READY ? NULL : receiver_of(worker, record);
    bool is_lost = false;
    if (record->kind == RECORD_DONE) {
        if (call != NULL && record->length == sizeof call->elapsed_ns)
            memcpy(&call->elapsed_ns, bytes, sizeof call->elapsed_ns);
    } else if (call != NULL) {
        is_lost = !begin_reply(call, record);
        if (!is_lost) {
            memcpy(call->reply + call->reply_length, bytes, record->length);
            call->reply_length += record->length;
        }
    }
    ring_consume(&worker->port.in, sizeof *record + record->length);
    handle(worker, record, call, is_lost);
}

/* Takes what has come of a record that comes in pieces. */
static void take_piece(Worker *worker, const char *bytes, size_t there) {
    size_t length = there < worker->missing ? there : worker->missing;
    Call *call = worker->receiver;
    if (call != NULL) {
        memcpy(call->reply + call->reply_length, bytes, length);
        call->reply_length += length;
    }
    ring_consume(&worker->port.in, length);
    worker->missing -= length;
    if (worker->missing > 0)
        return;
    worker->is_receiving = false;
    worker->receiver = NULL;
    if (call == NULL && worker->is_lost) /* it is still there, or nobody wants it any more */
        call = find_call(worker, worker->receiving.id);
    handle(worker, &worker->receiving, call, worker->is_lost);
}

static void begin_pieces(Worker *worker, const Record *record) {
    Call *call = receiver_of(worker, record);
    worker->receiving = *record;
    worker->missing = record->length;
    worker->is_receiving = true;
    worker->is_lost = call != NULL && !begin_reply(call, record);
    worker->receiver = worker->is_lost ? NULL : call;
    ring_consume(&worker->port.in, sizeof *record);
}

/* Takes all that the worker has said. */
static void receive(Worker *worker) {
    Ring *in = &worker->port.in;
    for (;;) {
        const char *bytes;
        int64_t there = ring_peek(in, &bytes);
        Record record;
        if (there < 0) {
            kill_worker(worker, CALL_CRASHED);
            return;
        }
        if (worker->is_receiving && there > 0) {
            take_piece(worker, bytes, (size_t)there);
            port_wake(&worker->port); /* it waits for room */
            continue;
        }
        if (!worker->is_receiving && (size_t)there >= sizeof record) {
            memcpy(&record, bytes, sizeof record);
            if ((size_t)there - sizeof record >= record.length) {
                take_record(worker, &record, bytes + sizeof record);
                continue;
            }
            if (record.length > in->capacity / 2) {
                begin_pieces(worker, &record);
                continue;
            }
        }
        if (ring_wait_for_bytes(in, (size_t)there))
            break;
    }
    worker->has_news = true; /* there is room, for one */
}

/* Goes on with what could be sent in part only. */
static void send_rest(Worker *worker) {
    do {
        if (!worker->is_init_sent)
            worker->is_init_sent = parcel_send(&worker->init, &worker->port);
        else if (worker->sending != NULL && parcel_send(&worker->sending->parcel, &worker->port))
            worker->sending = NULL;
        worker->has_news = true;
    } while ((!worker->is_init_sent || worker->sending != NULL) &&
             !ring_wait_for_room(&worker->port.out, sizeof(Record)));
}

static void wake_worker(Worker *worker) {
    if (worker->has_news)
        port_wake(&worker->port);
    worker->has_news = false;
}

static void bell_rings(lua_State *L, Watcher *watcher) {
    Worker *worker = CONTAINER_OF(watcher, Worker, bell);
    Pool *pool = worker->pool;
    bool is_there = watcher->watch.error == 0 && port_answer(&worker->port);
    (void)L;
    receive(worker);
    if (!worker->is_init_sent || worker->sending != NULL)
        send_rest(worker);
    wake_worker(worker);
    if (!is_there || !watch(worker, watcher, worker->port.bell)) {
        if (worker->state == WORKER_STARTING || worker->state == WORKER_READY)
            worker->has_hung_up = true;
        process_signal(&worker->process, SIGKILL);
        if (worker->process.end_fd < 0)
            bury(worker);
    }
    pool_due(pool);
    count_watches(pool);
}

/* ---- alarms ---------------------------------------------------------------------------------------- */

static void stop_worker(Worker *worker);

/* Ends the worker if a task has run too long in it; returns when to look again. */
static int64_t check_tasks(Worker *worker, int64_t now_ns) {
    const Pool *pool = worker->pool;
    int64_t real_ns = clock_real_ns(), left_ns = pool->task_timeout_ns;
    for (uint32_t i = 0; i < pool->setup.slots; i++) {
        const PortSlot *slot = &worker->port.shared->slots[i];
        int64_t began_ns = atomic_load(&slot->began_ns), ran_ns = real_ns - began_ns;
        if (began_ns == 0)
            continue;
        if (ran_ns >= pool->task_timeout_ns) {
            worker->timed_out = atomic_load(&slot->id);
            kill_worker(worker, CALL_TIMED_OUT);
            return CLOCK_NEVER;
        }
        if (pool->task_timeout_ns - ran_ns < left_ns)
            left_ns = pool->task_timeout_ns - ran_ns;
    }
    return clock_add_ns(now_ns, left_ns);
}

static void alarm_rings(lua_State *L, Alarm *alarm) {
    Worker *worker = CONTAINER_OF(alarm, Worker, alarm);
    int64_t now_ns = clock_now_ns(&worker->pool->service.loop->clock);
    (void)L;
    worker->alarm_ns = CLOCK_NEVER;
    switch (worker->state) {
    case WORKER_READY:
    case WORKER_STARTING:
        if (worker->load > 0 && worker->pool->task_timeout_ns != CLOCK_NEVER)
            set_alarm(worker, check_tasks(worker, now_ns));
        else if (worker->load == 0 && worker->state == WORKER_READY)
            stop_worker(worker);
        break;
    case WORKER_STOPPING:
    case WORKER_ENDING:
        kill_worker(worker, worker->fate);
        break;
    }
    count_watches(worker->pool);
}

/* Tells a worker that has nothing to do to end. */
static void stop_worker(Worker *worker) {
    Parcel parcel;
    parcel_init(&parcel, RECORD_STOP, STATUS_OK, 0, NULL);
    worker->state = WORKER_STOPPING;
    worker->fate = CALL_CLOSED;
    if (!worker->is_init_sent || !parcel_send(&parcel, &worker->port)) {
        kill_worker(worker, CALL_CLOSED);
        return;
    }
    worker->has_news = true;
    wake_worker(worker);
    set_alarm(worker, clock_add_ns(clock_now_ns(&worker->pool->service.loop->clock), STOP_NS));
}

/* ---- starting workers ------------------------------------------------------------------------------ */

/* The pool's functions that forked workers know by number, function: number, weak: so a pool is not
 * kept by what it knows. The table is in the registry, under the pool's address. */
static void push_known(lua_State *L, const Pool *pool) {
    lua_rawgetp(L, LUA_REGISTRYINDEX, pool);
}

static void link_worker(Worker *worker) {
    Pool *pool = worker->pool;
    list_append(&pool->workers, &worker->link);
    pool->worker_count++;
    pool->started++;
    worker->generation = pool->next_known;
    receive(worker); /* which says that we wait for more */
    if (!watch(worker, &worker->bell, worker->port.bell) ||
        (worker->process.end_fd >= 0 && !watch(worker, &worker->end, worker->process.end_fd)))
        kill_worker(worker, CALL_CRASHED);
    if (!worker->is_init_sent)
        send_rest(worker);
}

/* Forks. In the child it does not return. */
static int fork_worker(lua_State *L, Worker *worker, int peer, int memory) {
    int error = process_fork(&worker->process);
    if (error == 0 && worker->process.pid == 0) {
        Port port = worker->port;
        close(memory);
        port_turn(&port, peer);
        push_known(L, worker->pool);
        worker_run(L, &port, lua_gettop(L));
    }
    return error;
}

static int spawn_worker(Worker *worker, int peer, int memory) {
    const Pool *pool = worker->pool;
    const char *argv[] = {pool->interpreter, "-e", pool->code, NULL};
    const int descriptors[] = {peer, memory};
    return process_spawn(&worker->process, argv, descriptors, 2);
}

/* Starts a worker; 0, or an errno. */
static int start_worker(lua_State *L, Pool *pool) {
    Worker *worker = calloc(1, sizeof *worker);
    int peer, memory, error;
    if (worker == NULL)
        return ENOMEM;
    error = port_open(&worker->port, &peer, &memory);
    if (error != 0) {
        free(worker);
        return error;
    }
    worker->pool = pool;
    link_init(&worker->link);
    link_init(&worker->calls);
    link_init(&worker->bell.watch.link);
    link_init(&worker->end.watch.link);
    worker->bell.ready = bell_rings;
    worker->end.ready = ended;
    worker->alarm.timer.kind = TIMER_OF_SERVICE;
    worker->alarm.rings = alarm_rings;
    worker->alarm_ns = CLOCK_NEVER;
    worker->is_init_sent = !pool->setup.has_init;
    parcel_init(&worker->init, RECORD_INIT, STATUS_OK, 0, &pool->init);
    worker->port.shared->setup = pool->setup;
    error =
        pool->is_fork ? fork_worker(L, worker, peer, memory) : spawn_worker(worker, peer, memory);
    close(peer);
    close(memory);
    if (error != 0) {
        port_close(&worker->port);
        free(worker);
        return error;
    }
    link_worker(worker);
    return 0;
}

/* ---- who does what --------------------------------------------------------------------------------- */

/* How many more tasks the worker may be given. */
static uint32_t allowance(const Worker *worker) {
    uint32_t max = worker->pool->max_tasks;
    if (max == 0)
        return UINT32_MAX;
    return worker->assigned < max ? max - worker->assigned : 0;
}

static bool can_take(const Worker *worker) {
    return (worker->state == WORKER_READY || worker->state == WORKER_STARTING) &&
           !worker->has_hung_up && worker->is_init_sent && worker->sending == NULL &&
           allowance(worker) > 0 && worker->load < worker->pool->setup.slots + AHEAD;
}

/* The worker with the least to do of those that can take the call. */
static Worker *choose(const Pool *pool, const Call *call) {
    Worker *best = NULL;
    for (Link *link = pool->workers.next; link != &pool->workers; link = link->next) {
        Worker *worker = CONTAINER_OF(link, Worker, link);
        if (can_take(worker) && worker->generation >= call->generation &&
            (best == NULL || worker->load < best->load))
            best = worker;
    }
    return best;
}

/* Sends the call, which is in the queue. False: there is no room for it yet. */
static bool send_call(Worker *worker, Call *call) {
    uint32_t allowed = allowance(worker);
    if (call->count > allowed) {
        Call *rest = split(call, allowed);
        if (rest == NULL)
            return false;
        list_append(call->link.next, &rest->link);
        rest->is_placed = true;
        worker->pool->queued++;
    }
    parcel_init(&call->parcel, call->is_chunk ? RECORD_CHUNK : RECORD_CALL, STATUS_OK, call->id,
                &call->message);
    call->parcel.record.epoch = call->epoch = worker->port.epoch;
    call->parcel.record.count = (uint16_t)call->count;
    if (worker->load > 0 && parcel_size(&call->parcel) > ring_room(&worker->port.out))
        return false;
    unplace(call);
    place(call, &worker->calls, false);
    call->worker = worker;
    worker->load++;
    worker->assigned += call->count;
    worker->has_news = true;
    if (!parcel_send(&call->parcel, &worker->port)) {
        worker->sending = call;
        send_rest(worker);
    }
    if (worker->load == 1)
        reset_alarm(worker);
    return true;
}

/* The call needs a worker that is younger than all there are: one of them makes room. */
static void make_way(const Pool *pool, const Call *call) {
    for (Link *link = pool->workers.next; link != &pool->workers; link = link->next) {
        Worker *worker = CONTAINER_OF(link, Worker, link);
        if (worker->state == WORKER_STOPPING || worker->state == WORKER_ENDING)
            return; /* there will be */
        if (worker->state == WORKER_READY && worker->load == 0 &&
            worker->generation < call->generation) {
            stop_worker(worker);
            return;
        }
    }
}

static void dispatch(lua_State *L, Pool *pool) {
    while (!list_is_empty(&pool->queue)) {
        Call *call = CONTAINER_OF(pool->queue.next, Call, link);
        Worker *worker = choose(pool, call);
        if ((worker == NULL || worker->load > 0) && pool->worker_count < pool->max_workers &&
            can_start(pool)) {
            int error = start_worker(L, pool);
            if (error != 0 && pool->worker_count == 0) {
                fail_queue(pool, NULL, (Death){.pid = 0, .status = error});
                return;
            }
            worker = choose(pool, call);
        }
        if (worker == NULL) {
            make_way(pool, call);
            return;
        }
        if (!send_call(worker, call))
            return;
    }
}

static Worker *find_idle(const Pool *pool) {
    for (Link *link = pool->workers.next; link != &pool->workers; link = link->next) {
        Worker *worker = CONTAINER_OF(link, Worker, link);
        if (worker->load == 0 && worker->state == WORKER_READY && can_take(worker))
            return worker;
    }
    return NULL;
}

static Worker *find_busiest(const Pool *pool, uint32_t *waiting) {
    Worker *busiest = NULL;
    *waiting = 0;
    for (Link *link = pool->workers.next; link != &pool->workers; link = link->next) {
        Worker *worker = CONTAINER_OF(link, Worker, link);
        uint32_t count = worker->sending == NULL ? count_waiting(worker) : 0;
        if (count > *waiting) {
            *waiting = count;
            busiest = worker;
        }
    }
    return busiest;
}

/* When a worker has nothing to do while others have tasks they have not begun, it gets some. */
static void balance(lua_State *L, Pool *pool) {
    for (uint32_t i = 0; i < pool->max_workers; i++) {
        uint32_t waiting;
        Worker *busiest;
        Call *first;
        if (!list_is_empty(&pool->queue) || find_idle(pool) == NULL)
            return;
        busiest = find_busiest(pool, &waiting);
        if (busiest == NULL || !recall(busiest) || list_is_empty(&pool->queue))
            return;
        first = CONTAINER_OF(pool->queue.next, Call, link);
        if (pool->queued == 1 && first->count > 1) { /* to each his half */
            Call *rest = split(first, (first->count + 1) / 2);
            if (rest != NULL)
                put_into_queue(rest, false);
        }
        dispatch(L, pool);
    }
}

/* Whether tasks were accepted that have yet to begin; some may have been cancelled before they did. */
static bool has_accepted(Pool *pool) {
    Link *link = pool->accepted.next;
    while (link != &pool->accepted) {
        Call *call = CONTAINER_OF(link, Call, link);
        link = link->next;
        if (task_has_ended(call->task))
            link_remove(&call->link);
    }
    return !list_is_empty(&pool->accepted);
}

/* Whether all is done that was handed in before the pool began to close. */
static bool is_done(Pool *pool) {
    if (!pool->is_closing || pool->outstanding > 0)
        return false;
    if (!has_accepted(pool))
        return true;
    pool_due(pool); /* they begin, or not, in this turn or the next */
    return false;
}

static void stop_if_done(Pool *pool) {
    Link *link = pool->workers.next;
    bool is_all_done = is_done(pool);
    while (link != &pool->workers) {
        Worker *worker = CONTAINER_OF(link, Worker, link);
        link = link->next;
        if (worker->load > 0 || (worker->state != WORKER_READY && worker->state != WORKER_STARTING))
            continue;
        if (allowance(worker) == 0 || is_all_done)
            stop_worker(worker);
    }
    if (is_all_done && pool->worker_count == 0) {
        Task *task;
        pool->is_closed = true;
        while ((task = task_first(&pool->closers)) != NULL)
            task_wake(pool->service.loop, task, WAKE_OK, 0);
    }
}

static Pool *pool_of(Service *service) {
    return CONTAINER_OF(service, Pool, service);
}

static void work(lua_State *L, Service *service) {
    Pool *pool = pool_of(service);
    if (!lua_checkstack(L, LUA_MINSTACK))
        return;
    dispatch(L, pool);
    balance(L, pool);
    stop_if_done(pool);
    for (Link *link = pool->workers.next; link != &pool->workers; link = link->next)
        wake_worker(CONTAINER_OF(link, Worker, link));
    count_watches(pool);
}

/* ---- taking calls back ----------------------------------------------------------------------------- */

/* Nobody wants the part any more. */
static void drop_part(Call *part) {
    Worker *worker = part->worker;
    if (!part->is_placed)
        return;
    if (worker != NULL && worker->state != WORKER_ENDING) {
        recall(worker); /* then it is in the queue again, unless it has begun */
        worker = part->worker;
    }
    if (worker != NULL && part->pool->waits_on_cancel && worker->sending != part)
        return;
    if (worker != NULL)
        interrupt_worker(worker);
    end_part(part, CALL_CLOSED);
}

/* Nobody waits for the call any more. What runs is ended, or left to end. */
static void drop_call(Call *root) {
    bool had_handle = root->has_handle;
    root->task = NULL;
    if (is_foreign(root->pool))
        return;
    root->has_handle = true; /* stays while we are at it */
    for (Call *part = root; part != NULL; part = part->next_part)
        drop_part(part);
    pool_due(root->pool);
    root->has_handle = had_handle;
}

static void leave_call(Loop *loop, Task *task) {
    (void)loop;
    drop_call(task->object);
}

static const WaitKind wait_call = {.name = "pool:call", .leave = leave_call};

/* ---- the end of a pool ----------------------------------------------------------------------------- */

/* Waits, at most until then, for workers to end that were interrupted. */
static void wait_for_interrupted(Pool *pool, int64_t until_ns) {
    for (Link *link = pool->workers.next; link != &pool->workers; link = link->next) {
        Worker *worker = CONTAINER_OF(link, Worker, link);
        int64_t left_ns = until_ns - clock_real_ns();
        struct pollfd polled = {.fd = worker->process.end_fd, .events = POLLIN};
        if (worker->state == WORKER_ENDING && worker->alarm_ns != CLOCK_NEVER && left_ns > 0)
            poll(&polled, 1, (int)(left_ns / 1000000) + 1);
    }
}

/* Ends all that there is, at once. */
static void end_all(Pool *pool) {
    Task *task;
    pool->is_closing = true;
    while (!list_is_empty(&pool->queue))
        end_part(CONTAINER_OF(pool->queue.next, Call, link), CALL_CLOSED);
    wait_for_interrupted(pool, clock_real_ns() + GRACE_NS);
    for (Link *link = pool->workers.next; link != &pool->workers; link = link->next) {
        Worker *worker = CONTAINER_OF(link, Worker, link);
        receive(worker);
        kill_worker(worker, CALL_CLOSED);
    }
    while (!list_is_empty(&pool->workers))
        bury(CONTAINER_OF(pool->workers.next, Worker, link));
    while (!list_is_empty(&pool->queue)) /* what had not begun */
        end_part(CONTAINER_OF(pool->queue.next, Call, link), CALL_CLOSED);
    pool->is_closed = true;
    while ((task = task_first(&pool->closers)) != NULL)
        task_wake(pool->service.loop, task, WAKE_OK, 0);
    count_watches(pool);
}

/* In another process: the workers are not ours, their ports need not stay open here. */
static void forget(Service *service) {
    Pool *pool = pool_of(service);
    Link *link;
    while ((link = list_pop(&pool->workers)) != NULL) {
        Worker *worker = CONTAINER_OF(link, Worker, link);
        port_close(&worker->port);
        process_forget(&worker->process);
    }
    pool->worker_count = 0;
}

static void end(Service *service) {
    if (is_foreign(pool_of(service)))
        forget(service);
    else
        end_all(pool_of(service));
}

static void move(Service *service, Loop *loop) {
    Pool *pool = pool_of(service);
    service->loop->idle_watches -= pool->idle_watches;
    pool->idle_watches = 0;
    for (Link *link = pool->workers.next; link != &pool->workers; link = link->next) {
        Worker *worker = CONTAINER_OF(link, Worker, link);
        unwatch(worker);
        timers_cancel(&service->loop->timers, &worker->alarm.timer);
    }
    service->loop = loop;
    for (Link *link = pool->workers.next; link != &pool->workers; link = link->next) {
        Worker *worker = CONTAINER_OF(link, Worker, link);
        if (!watch(worker, &worker->bell, worker->port.bell) ||
            (worker->process.end_fd >= 0 && !watch(worker, &worker->end, worker->process.end_fd)))
            kill_worker(worker, CALL_CRASHED);
        else if (worker->state == WORKER_STOPPING || worker->state == WORKER_ENDING)
            kill_worker(worker, worker->fate);
        else
            reset_alarm(worker);
    }
    pool_due(pool);
    count_watches(pool);
}

static int pool_gc(lua_State *L) {
    Pool *pool = lua_touserdata(L, 1);
    if (!list_is_empty(&pool->service.link)) { /* else the runtime has ended it already */
        end(&pool->service);
        runtime_remove_service(pool->runtime, &pool->service);
    }
    pool->is_closing = pool->is_closed = true;
    codec_message_free(&pool->init);
    free(pool->interpreter);
    free(pool->code);
    pool->interpreter = pool->code = NULL;
    lua_pushnil(L);
    lua_rawsetp(L, LUA_REGISTRYINDEX, pool);
    return 0;
}

/* ---- handing in ------------------------------------------------------------------------------------ */

typedef struct Handle { /* a userdata: what Lua holds of a call */
    Call *call;
} Handle;

enum { /* user values */
       HANDLE_POOL = 1,
       HANDLE_FUNCTION, /* that is sent as a number */
       HANDLE_STRINGS,  /* that are sent from where they are */
       HANDLE_TASK,     /* that was spawned for it */
       HANDLE_USER_VALUES = HANDLE_TASK,
};

static void drop_handle(Handle *handle) {
    Call *call = handle->call;
    if (call == NULL)
        return;
    handle->call = NULL;
    if (is_foreign(call->pool))
        return;
    if (call->pending == 0)
        link_remove(&call->link); /* accepted, perhaps */
    else
        drop_call(call); /* its task was closed by hand */
    call->has_handle = false;
    release(call);
}

static int handle_gc(lua_State *L) {
    drop_handle(lua_touserdata(L, 1));
    return 0;
}

static Pool *check_pool(lua_State *L) {
    return luaL_checkudata(L, 1, POOL_METATABLE);
}

static int raise_closed(lua_State *L, const char *message) {
    runtime_push_error(L, "ClosedError", message, NULL);
    return lua_error(L);
}

static void check_open(lua_State *L, const Pool *pool) {
    if (is_foreign(pool))
        raise_closed(L, "the pool belongs to the parent process: it was made before the fork");
    if (pool->is_closing)
        raise_closed(L, "the pool is closed");
}

/* Pushes a handle with a call for the pool at index 1. */
static Call *push_handle(lua_State *L, Pool *pool) {
    Handle *handle = lua_newuserdatauv(L, sizeof *handle, HANDLE_USER_VALUES);
    handle->call = NULL;
    luaL_setmetatable(L, CALL_METATABLE);
    lua_pushvalue(L, 1);
    lua_setiuservalue(L, -2, HANDLE_POOL);
    handle->call = make_call(pool);
    if (handle->call == NULL)
        luaL_error(L, "not enough memory");
    handle->call->has_handle = true;
    return handle->call;
}

/* The number below which all workers know the functions. */
static uint32_t known_to_all(const Pool *pool) {
    uint32_t least = pool->next_known;
    for (const Link *link = pool->workers.next; link != &pool->workers; link = link->next) {
        const Worker *worker = CONTAINER_OF(link, Worker, link);
        if ((worker->state == WORKER_READY || worker->state == WORKER_STARTING) &&
            worker->generation < least)
            least = worker->generation;
    }
    return least;
}

/* The number of the function at `index` among those known; UINT32_MAX: none. */
static uint32_t number_of(lua_State *L, int known, int index) {
    uint32_t number = UINT32_MAX;
    lua_pushvalue(L, index);
    if (lua_rawget(L, known) == LUA_TNUMBER)
        number = (uint32_t)lua_tointeger(L, -1);
    lua_pop(L, 1);
    return number;
}

/* From now on the workers that are forked know the function at `index`. */
static void make_known(lua_State *L, Pool *pool, int known, int index) {
    if (number_of(L, known, index) != UINT32_MAX)
        return;
    lua_pushvalue(L, index);
    lua_pushinteger(L, pool->next_known);
    lua_rawset(L, known);
    pool->next_known++;
}

typedef struct Encoding {
    CodecMessage *message;
    CodecEncoding options;
} Encoding;

static int encode_values(lua_State *L) { /* encoding, known or nil, strings or nil, values... */
    Encoding *encoding = lua_touserdata(L, 1);
    encoding->options.known = lua_istable(L, 2) ? 2 : 0;
    encoding->options.anchors = lua_istable(L, 3) ? 3 : 0;
    codec_encode(L, 4, lua_gettop(L) - 3, encoding->message, &encoding->options);
    return 0;
}

/* Pushes encode_values with its arguments, for the values from `first` on. Returns their number. */
static int push_encoding(lua_State *L, Encoding *encoding, int known, int strings, int first,
                         int count) {
    luaL_checkstack(L, count + 8, "too many arguments");
    lua_pushcfunction(L, encode_values);
    lua_pushlightuserdata(L, encoding);
    lua_pushvalue(L, known);
    lua_pushvalue(L, strings);
    for (int i = 0; i < count; i++)
        lua_pushvalue(L, first + i);
    return count + 3;
}

static bool is_serialization_error(lua_State *L) {
    bool is_it = false;
    if (lua_type(L, -1) == LUA_TTABLE) {
        lua_getfield(L, -1, "name");
        is_it = lua_type(L, -1) == LUA_TSTRING &&
                strcmp(lua_tostring(L, -1), "SerializationError") == 0;
        lua_pop(L, 1);
    }
    return is_it;
}

/* Encodes the function at `first` and the values behind it into call->message. A function that the
 * forked workers know is sent as its number, and kept by the handle. If it, or what it holds, cannot
 * be sent to workers that were there before it was known, it has to be a worker that is forked yet. */
static void encode(lua_State *L, Pool *pool, Call *call, int handle, int first, int count,
                   const char *what) {
    Encoding encoding = {.message = &call->message,
                         .options = {.what = what, .leads_with_function = true}};
    int known, strings, top = lua_gettop(L), arguments;
    bool has_long = false;
    for (int i = first + 1; i < first + count; i++)
        has_long = has_long || (lua_type(L, i) == LUA_TSTRING &&
                                lua_rawlen(L, i) >= (lua_Unsigned)CODEC_SEGMENT_MIN);
    luaL_checkstack(L, count + 16, "too many arguments");
    push_known(L, pool);
    known = top + 1;
    if (has_long)
        lua_newtable(L);
    else
        lua_pushnil(L);
    strings = top + 2;
    if (pool->is_fork) {
        if (!has_live_worker(pool))
            make_known(L, pool, known, first);
        encoding.options.known_limit = known_to_all(pool);
        lua_pushvalue(L, first);
        lua_setiuservalue(L, handle, HANDLE_FUNCTION);
    }
    arguments = push_encoding(L, &encoding, known, strings, first, count);
    if (!pool->is_fork || number_of(L, known, first) < encoding.options.known_limit) {
        lua_call(L, arguments, 0);
    } else if (lua_pcall(L, arguments, 0, 0) != LUA_OK) {
        if (!is_serialization_error(L))
            lua_error(L);
        make_known(L, pool, known, first);
        encoding.options.known_limit = call->generation = pool->next_known;
        lua_call(L, push_encoding(L, &encoding, known, strings, first, count), 0);
    }
    if (has_long) {
        lua_pushvalue(L, strings);
        lua_setiuservalue(L, handle, HANDLE_STRINGS);
    }
    lua_settop(L, top);
    if (call->message.length + call->message.segmented > RECORD_SANE) {
        runtime_push_error(L, "SerializationError", "the arguments take more than 1 GiB", NULL);
        lua_error(L);
    }
}

/* Puts the call of the handle at index 1 into the queue: its task waits. `return hand_in(...)`. */
static int hand_in(lua_State *L, Call *call, lua_KFunction k) {
    Runtime *runtime = runtime_of(L);
    Pool *pool = call->pool;
    Task *me = runtime->current;
    if (pool->is_closed)
        return raise_closed(L, "the pool was closed before the task had ended");
    link_remove(&call->link);
    if (pool->service.loop != runtime->loop) {
        if (pool->outstanding > 0)
            return luaL_error(L, "the pool is in use outside this simulation");
        move(&pool->service, runtime->loop);
    }
    call->id = pool->next_id++;
    call->pending = 1;
    call->task = me;
    pool->outstanding++;
    put_into_queue(call, false);
    pool_due(pool);
    return task_suspend(L, runtime, me, &wait_call, NULL, call, CLOCK_NEVER, k);
}

/* ---- what came of it ------------------------------------------------------------------------------- */

/* Sets a field of the error on the top of the stack to the value there, which it pops. */
static void set_field(lua_State *L, const char *name) {
    if (lua_istable(L, -2)) {
        lua_pushstring(L, name);
        lua_insert(L, -2);
        lua_rawset(L, -3);
    } else
        lua_pop(L, 1);
}

/* Pushes what happened to a process, in words. */
static void push_death(lua_State *L, const Death *death) {
    if (!death->is_known)
        lua_pushfstring(L, "worker %d has ended: how is not known, for other code waited for it",
                        (int)death->pid);
    else if (WIFSIGNALED(death->status))
        lua_pushfstring(L, "worker %d was killed by signal %d (%s)", (int)death->pid,
                        WTERMSIG(death->status), strsignal(WTERMSIG(death->status)));
    else
        lua_pushfstring(L, "worker %d exited with status %d", (int)death->pid,
                        WEXITSTATUS(death->status));
}

static void set_death(lua_State *L, const Death *death) {
    lua_pushinteger(L, death->pid);
    set_field(L, "pid");
    if (!death->is_known)
        return;
    if (WIFSIGNALED(death->status)) {
        lua_pushinteger(L, WTERMSIG(death->status));
        set_field(L, "signal");
    } else {
        lua_pushinteger(L, WEXITSTATUS(death->status));
        set_field(L, "status");
    }
}

/* Pushes what a worker has sent; returns how many values. */
static int decode(lua_State *L, const Pool *pool, const char *bytes, size_t length) {
    const CodecDecoding options = {.functions = pool->accepts_functions};
    return codec_decode(L, bytes, length, &options);
}

/* Pushes the two values of an encoded error: it, and its traceback. */
static void push_reported(lua_State *L, const Pool *pool, const char *bytes, size_t length) {
    int top = lua_gettop(L);
    decode(L, pool, bytes, length);
    lua_settop(L, top + 2);
}

static void push_no_worker(lua_State *L, const Call *call) {
    int top = lua_gettop(L);
    if (call->reply_length > 0) {
        push_reported(L, call->pool, call->reply, call->reply_length);
        lua_pushfstring(L, "a worker could not begin: %s", luaL_tolstring(L, top + 1, NULL));
        lua_pushvalue(L, top + 1);
        runtime_push_error(L, "WorkerCrashedError", lua_tostring(L, -2), "cause");
    } else if (call->death.pid == 0) {
        lua_pushfstring(L, "a worker cannot be started: %s%s%s",
                        call->pool->is_fork ? "" : call->pool->interpreter,
                        call->pool->is_fork ? "" : ": ", strerror(call->death.status));
        runtime_push_error(L, "WorkerCrashedError", lua_tostring(L, -1), NULL);
    } else {
        push_death(L, &call->death);
        lua_pushfstring(L, "%s before it was ready, and so did those before it",
                        lua_tostring(L, -1));
        runtime_push_error(L, "WorkerCrashedError", lua_tostring(L, -1), NULL);
        set_death(L, &call->death);
    }
    lua_copy(L, -1, top + 1);
    lua_settop(L, top + 1);
}

/* Pushes the error of a part that was not answered; `item` is the index of what it was about. */
static void push_failure(lua_State *L, const Call *call, int item) {
    int top = lua_gettop(L);
    switch (call->outcome) {
    case CALL_TIMED_OUT:
        lua_pushnumber(L, clock_to_seconds(call->pool->task_timeout_ns));
        lua_pushfstring(L, "the task timed out after %f s: its worker was killed",
                        lua_tonumber(L, -1));
        lua_insert(L, -2);
        runtime_push_error(L, "TimeoutError", lua_tostring(L, -2), "timeout");
        break;
    case CALL_CLOSED:
        runtime_push_error(L, "ClosedError", "the pool was closed before the task had ended", NULL);
        break;
    case CALL_NO_WORKER:
        push_no_worker(L, call);
        break;
    default:
        push_death(L, &call->death);
        lua_pushfstring(L, "%s while it ran the task", lua_tostring(L, -1));
        runtime_push_error(L, "WorkerCrashedError", lua_tostring(L, -1), NULL);
        set_death(L, &call->death);
        break;
    }
    lua_pushvalue(L, item);
    set_field(L, "item");
    lua_copy(L, -1, top + 1);
    lua_settop(L, top + 1);
}

/* Raises the error on the top of the stack but one, with the traceback above it. */
static int raise_reported(lua_State *L) {
    if (lua_isstring(L, -1)) {
        lua_pushvalue(L, -2);
        lua_setiuservalue(L, UPVALUE_RUNTIME, RUNTIME_ERROR);
        lua_pushliteral(L, "in a worker process:\n");
        lua_insert(L, -2);
        lua_concat(L, 2);
        lua_setiuservalue(L, UPVALUE_RUNTIME, RUNTIME_TRACEBACK);
    } else
        lua_pop(L, 1);
    return runtime_rethrow(L);
}

static int deliver(lua_State *L) { /* handle, first argument */
    Handle *handle = lua_touserdata(L, 1);
    const Call *call = handle->call;
    int count = 0;
    lua_settop(L, 2);
    if (call->outcome != CALL_ANSWERED) {
        push_failure(L, call, 2);
        drop_handle(handle);
        return lua_error(L);
    }
    switch (call->status) {
    case STATUS_OK:
        count = decode(L, call->pool, call->reply, call->reply_length);
        drop_handle(handle);
        return count;
    case STATUS_ERROR:
        push_reported(L, call->pool, call->reply, call->reply_length);
        drop_handle(handle);
        return raise_reported(L);
    default:
        drop_handle(handle);
        lua_pushliteral(L, "not enough memory");
        return lua_error(L);
    }
}

static int call_answered(lua_State *L, int status, lua_KContext context) {
    (void)status;
    task_resumed(L, task_regain(L, call_answered, context), 0);
    return deliver(L);
}

static int run_submitted(lua_State *L) { /* handle, first argument */
    return hand_in(L, ((Handle *)lua_touserdata(L, 1))->call, call_answered);
}

/* Replaces the arguments (pool, function, ...) by the handle of an encoded call and the first of what
 * the function is given. */
static Call *encode_arguments(lua_State *L, Pool *pool) {
    int top = lua_gettop(L);
    Call *call = push_handle(L, pool); /* which keeps the pool */
    encode(L, pool, call, top + 1, 2, top - 1, "argument");
    if (top > 2)
        lua_pushvalue(L, 3);
    else
        lua_pushnil(L);
    lua_copy(L, top + 1, 1);
    lua_copy(L, top + 2, 2);
    lua_settop(L, 2);
    return call;
}

static int pool_call(lua_State *L) {
    Runtime *runtime = runtime_of(L);
    Pool *pool = check_pool(L);
    check_callable(L, 2);
    check_open(L, pool);
    if (task_enter(L, runtime, "pool:call") == NULL)
        return loop_call(L, runtime, pool_call);
    return hand_in(L, encode_arguments(L, pool), call_answered);
}

static int pool_submit(lua_State *L) { /* its own upvalue is run_submitted */
    Runtime *runtime = runtime_of(L);
    Pool *pool = check_pool(L);
    Call *call;
    check_callable(L, 2);
    check_open(L, pool);
    call = encode_arguments(L, pool);
    lua_pushvalue(L, UPVALUE_OWN);
    lua_insert(L, 1);
    lua_pushvalue(L, 2);
    lua_insert(L, 1); /* handle, function, handle, first argument */
    call->task = task_spawn(L, runtime, runtime->loop, scope_current(L, runtime), 2);
    list_append(&pool->accepted, &call->link);
    lua_pushvalue(L, 2);
    lua_setiuservalue(L, 1, HANDLE_TASK);
    return 1;
}

/* ---- chunks ---------------------------------------------------------------------------------------- *
 *
 * pool:_chunk(fn, items, first, last, results, failures) -> next, seconds, count
 *
 * Runs fn for items[first], items[first + 1] ... up to items[last] at most, and enters the result of
 * each into `results` at the same place, or { error, traceback } into `failures`. `next` is the first
 * item it did not come to: a chunk has so many bytes. The seconds are those that workers spent on the
 * `count` that were run. For the Lua layer: what it is given is as it should be.
 */
enum {
    CHUNK_POOL = 1,
    CHUNK_FN,
    CHUNK_ITEMS,
    CHUNK_FIRST,
    CHUNK_LAST,
    CHUNK_RESULTS,
    CHUNK_FAILURES,
    CHUNK_HANDLE,
    CHUNK_NEXT,
    CHUNK_SLOTS = CHUNK_NEXT
};

/* Enters the error on the top of the stack but one and its traceback above it; pops them. */
static void set_failure(lua_State *L, lua_Integer index) {
    lua_createtable(L, 2, 0);
    lua_insert(L, -3);
    lua_rawseti(L, -3, 2);
    lua_rawseti(L, -2, 1);
    lua_rawseti(L, CHUNK_FAILURES, index);
}

static bool append_or_raise(lua_State *L, CodecMessage *message, const void *bytes, size_t length) {
    if (!message_append(message, bytes, length))
        luaL_error(L, "not enough memory");
    return true;
}

/* Encodes the item on the top of the stack, which is no scalar. False: it cannot travel, and the error
 * is on the top of the stack. */
static bool append_item(lua_State *L, const Pool *pool, CodecMessage *message, uint32_t limit,
                        bool is_long) {
    Encoding encoding = {.message = message,
                         .options = {.what = "item", .leads_with_function = true}};
    size_t before = message->length;
    uint32_t length = 0;
    const char mark = CODEC_NO_SCALAR;
    int item = lua_gettop(L);
    encoding.options.known_limit = limit;
    append_or_raise(L, message, &mark, 1);
    append_or_raise(L, message, &length, sizeof length);
    push_known(L, pool);
    if (is_long) {
        lua_newtable(L);
        lua_pushvalue(L, -1);
        lua_setiuservalue(L, CHUNK_HANDLE, HANDLE_STRINGS);
    } else
        lua_pushnil(L);
    if (lua_pcall(L, push_encoding(L, &encoding, item + 1, item + 2, item, 1), 0, 0) != LUA_OK) {
        message->length = before;
        return false;
    }
    length = (uint32_t)(message->length - before - ITEM_HEAD + message->segmented);
    memcpy(message->bytes + before + 1, &length, sizeof length);
    lua_settop(L, item);
    return true;
}

/* Encodes items into the chunk; returns the first index that is not in it. */
static lua_Integer append_items(lua_State *L, const Pool *pool, Call *call, lua_Integer first,
                                lua_Integer last) {
    CodecMessage *message = &call->message;
    uint32_t limit = pool->is_fork ? known_to_all(pool) : 0;
    lua_Integer index = first;
    call->count = 0;
    for (; index <= last && message->length < CHUNK_BYTES && call->count < UINT16_MAX; index++) {
        bool is_long;
        size_t length;
        lua_geti(L, CHUNK_ITEMS, index);
        if (!codec_message_reserve(message, CODEC_SCALAR_MAX))
            luaL_error(L, "not enough memory");
        length = codec_put_scalar(L, -1, message->bytes + message->length);
        message->length += length;
        if (length == 0) {
            is_long = lua_type(L, -1) == LUA_TSTRING &&
                      lua_rawlen(L, -1) >= (lua_Unsigned)CODEC_SEGMENT_MIN;
            if (is_long && call->count > 0)
                return index; /* it is sent from where it is, and alone */
            if (!append_item(L, pool, message, limit, is_long)) {
                lua_pushnil(L);
                set_failure(L, index);
                return index + 1;
            }
            if (is_long) {
                call->count = 1;
                return index + 1;
            }
        }
        call->count++;
        lua_settop(L, CHUNK_HANDLE);
    }
    return index;
}

/* Enters the outcome of one item, as it stands in the reply; returns its length. */
static size_t deliver_item(lua_State *L, const Pool *pool, const char *bytes, lua_Integer index) {
    uint32_t length;
    int top = lua_gettop(L);
    memcpy(&length, bytes + 1, sizeof length);
    switch ((unsigned char)*bytes) {
    case STATUS_SCALAR:
        if (codec_get_scalar(L, bytes + REPLY_ITEM_HEAD, length) != length)
            luaL_error(L, "malformed result");
        lua_rawseti(L, CHUNK_RESULTS, index);
        break;
    case STATUS_OK:
        decode(L, pool, bytes + REPLY_ITEM_HEAD, length);
        lua_settop(L, top + 1);
        lua_rawseti(L, CHUNK_RESULTS, index);
        break;
    case STATUS_ERROR:
        push_reported(L, pool, bytes + REPLY_ITEM_HEAD, length);
        set_failure(L, index);
        break;
    default:
        lua_pushliteral(L, "not enough memory");
        lua_pushnil(L);
        set_failure(L, index);
        break;
    }
    return REPLY_ITEM_HEAD + length;
}

static int deliver_item_protected(lua_State *L) { /* ..., as in a chunk; bytes, index */
    const char *bytes = lua_touserdata(L, CHUNK_SLOTS + 1);
    lua_Integer index = lua_tointeger(L, CHUNK_SLOTS + 2);
    deliver_item(L, lua_touserdata(L, CHUNK_POOL), bytes, index);
    return 0;
}

/* The same for one that may be refused: then that is what became of the item. */
static size_t deliver_carefully(lua_State *L, const char *bytes, lua_Integer index) {
    uint32_t length;
    memcpy(&length, bytes + 1, sizeof length);
    lua_pushcfunction(L, deliver_item_protected);
    for (int i = 1; i <= CHUNK_SLOTS; i++)
        lua_pushvalue(L, i);
    lua_pushlightuserdata(L, (void *)bytes);
    lua_pushinteger(L, index);
    if (lua_pcall(L, CHUNK_SLOTS + 2, 0, 0) != LUA_OK) {
        lua_pushnil(L);
        set_failure(L, index);
    }
    return REPLY_ITEM_HEAD + length;
}

/* Enters what became of the items of a part. */
static void deliver_part(lua_State *L, const Call *part) {
    lua_Integer first = lua_tointeger(L, CHUNK_FIRST) + part->index;
    size_t at = 0;
    uint32_t i = 0;
    for (; i < part->done && at + REPLY_ITEM_HEAD <= part->reply_length; i++) {
        const char *bytes = part->reply + at;
        at += *bytes == STATUS_OK ? deliver_carefully(L, bytes, first + i)
                                  : deliver_item(L, part->pool, bytes, first + i);
    }
    for (; i < part->count; i++) {
        if (part->outcome == CALL_ANSWERED && part->status == STATUS_ERROR) {
            push_reported(L, part->pool, part->reply + at,
                          part->reply_length - at); /* of them all */
        } else if (part->outcome == CALL_ANSWERED) {
            lua_pushliteral(L, "not enough memory");
            lua_pushnil(L);
        } else {
            lua_geti(L, CHUNK_ITEMS, first + i);
            push_failure(L, part, lua_gettop(L));
            lua_replace(L, -2);
            lua_pushnil(L);
        }
        set_failure(L, first + i);
    }
}

static int deliver_chunk(lua_State *L) {
    Handle *handle = lua_touserdata(L, CHUNK_HANDLE);
    int64_t elapsed_ns = 0;
    lua_Integer count = 0;
    for (const Call *part = handle->call; part != NULL; part = part->next_part) {
        lua_settop(L, CHUNK_SLOTS);
        deliver_part(L, part);
        elapsed_ns += part->elapsed_ns;
        count += part->elapsed_ns > 0 ? part->done : 0;
    }
    drop_handle(handle);
    lua_settop(L, CHUNK_SLOTS);
    lua_pushnumber(L, clock_to_seconds(elapsed_ns));
    lua_pushinteger(L, count);
    return 3;
}

static int chunk_answered(lua_State *L, int status, lua_KContext context) {
    (void)status;
    task_resumed(L, task_regain(L, chunk_answered, context), 0);
    return deliver_chunk(L);
}

static int pool_chunk(lua_State *L) {
    Runtime *runtime = runtime_of(L);
    Pool *pool = check_pool(L);
    uint32_t length = 0;
    lua_Integer next;
    Call *call;
    check_open(L, pool);
    if (task_enter(L, runtime, "pool:map") == NULL)
        return loop_call(L, runtime, pool_chunk);
    lua_settop(L, CHUNK_FAILURES);
    call = push_handle(L, pool);
    call->is_chunk = true;
    append_or_raise(L, &call->message, &length, sizeof length);
    encode(L, pool, call, CHUNK_HANDLE, CHUNK_FN, 1, "argument");
    length = (uint32_t)(call->message.length - sizeof length);
    memcpy(call->message.bytes, &length, sizeof length);
    next = append_items(L, pool, call, lua_tointeger(L, CHUNK_FIRST), lua_tointeger(L, CHUNK_LAST));
    lua_settop(L, CHUNK_HANDLE);
    lua_pushinteger(L, next);
    if (call->count > 0)
        return hand_in(L, call, chunk_answered);
    drop_handle(lua_touserdata(L, CHUNK_HANDLE));
    lua_pushnumber(L, 0);
    lua_pushinteger(L, 0);
    return 3;
}

/* ---- the pool itself ------------------------------------------------------------------------------- */

static void set_count(lua_State *L, const char *name, uint64_t count) {
    lua_pushinteger(L, (lua_Integer)count);
    lua_setfield(L, -2, name);
}

static int pool_stats(lua_State *L) {
    const Pool *pool = check_pool(L);
    uint64_t idle = 0, busy = 0, waiting = 0, running = 0;
    lua_Integer pids = 0;
    lua_createtable(L, 0, 10);
    lua_newtable(L);
    for (const Link *link = pool->workers.next; link != &pool->workers; link = link->next) {
        const Worker *worker = CONTAINER_OF(link, Worker, link);
        uint32_t ahead = count_waiting(worker), all = 0;
        for (const Link *at = worker->calls.next; at != &worker->calls; at = at->next)
            all += CONTAINER_OF(at, Call, link)->count - CONTAINER_OF(at, Call, link)->done;
        waiting += ahead;
        running += all > ahead ? all - ahead : 0;
        if (worker->load > 0)
            busy++;
        else
            idle++;
        lua_pushinteger(L, worker->process.pid);
        lua_rawseti(L, -2, ++pids);
    }
    for (const Link *link = pool->queue.next; link != &pool->queue; link = link->next)
        waiting += CONTAINER_OF(link, Call, link)->count;
    lua_setfield(L, -2, "pids");
    set_count(L, "workers", idle + busy);
    set_count(L, "idle", idle);
    set_count(L, "busy", busy);
    set_count(L, "queued", waiting);
    set_count(L, "running", running);
    set_count(L, "completed", pool->completed);
    set_count(L, "failed", pool->failed);
    set_count(L, "crashed", pool->crashed);
    set_count(L, "started", pool->started);
    return 1;
}

static const WaitKind wait_closed = {.name = "pool:close"};

static int close_waited(lua_State *L, int status, lua_KContext context) {
    Runtime *runtime = task_regain(L, close_waited, context);
    Pool *pool = lua_touserdata(L, 1);
    (void)status;
    if (runtime->current->wake != WAKE_OK && !pool->is_closed)
        end_all(pool);
    if (runtime->current->wake == WAKE_CANCEL)
        task_resumed(L, runtime, 0);
    return 0;
}

/* Ends the pool: what was handed in may end, until then. */
static int close_until(lua_State *L, Runtime *runtime, Pool *pool, Task *me, int64_t deadline_ns) {
    pool->is_closing = true;
    pool_due(pool);
    lua_settop(L, 1);
    return task_suspend(L, runtime, me, &wait_closed, &pool->closers, pool, deadline_ns,
                        close_waited);
}

static int pool_close(lua_State *L) { /* pool, timeout */
    Runtime *runtime = runtime_of(L);
    Pool *pool = check_pool(L);
    int64_t deadline_ns = check_deadline(L, runtime, 2);
    Task *me;
    if (pool->is_closed || is_foreign(pool)) {
        pool->is_closing = true;
        return 0;
    }
    if (pool->outstanding == 0 && pool->worker_count == 0 && list_is_empty(&pool->accepted)) {
        pool->is_closing = pool->is_closed = true;
        return 0;
    }
    me = task_enter(L, runtime, "pool:close");
    if (me == NULL)
        return loop_call(L, runtime, pool_close);
    if (pool->service.loop != runtime->loop) {
        if (pool->outstanding > 0)
            return luaL_error(L, "the pool is in use outside this simulation");
        move(&pool->service, runtime->loop);
    }
    return close_until(L, runtime, pool, me, deadline_ns);
}

static int pool_tbc(lua_State *L) { /* __close: pool, error */
    Pool *pool = check_pool(L);
    if (!lua_isnil(L, 2) && !is_foreign(pool) && !pool->is_closed)
        end_all(pool);
    lua_settop(L, 1);
    return pool_close(L);
}

static int pool_tostring(lua_State *L) {
    const Pool *pool = check_pool(L);
    lua_pushfstring(L, "%s: %p (%s, %d of %d workers%s)", POOL_METATABLE, (const void *)pool,
                    pool->is_fork ? "fork" : "spawn", (int)pool->worker_count,
                    (int)pool->max_workers, pool->is_closing ? ", closed" : "");
    return 1;
}

static lua_Integer integer_option(lua_State *L, const char *name, lua_Integer otherwise) {
    lua_Integer value = otherwise;
    if (lua_getfield(L, 1, name) != LUA_TNIL)
        value = lua_tointeger(L, -1);
    lua_pop(L, 1);
    return value;
}

static int64_t seconds_option(lua_State *L, const char *name) {
    int64_t value = CLOCK_NEVER;
    if (lua_getfield(L, 1, name) != LUA_TNIL)
        value = clock_from_seconds((double)lua_tonumber(L, -1));
    lua_pop(L, 1);
    return value;
}

static bool is_option(lua_State *L, const char *name, const char *value) {
    bool is_it = lua_getfield(L, 1, name) == LUA_TSTRING && strcmp(lua_tostring(L, -1), value) == 0;
    lua_pop(L, 1);
    return is_it;
}

static char *string_option(lua_State *L, const char *name) {
    char *copy;
    lua_getfield(L, 1, name);
    copy = strdup(luaL_checkstring(L, -1));
    lua_pop(L, 1);
    if (copy == NULL)
        luaL_error(L, "not enough memory");
    return copy;
}

/* Encodes the option `init`, for every worker to get it. */
static void encode_init(lua_State *L, Pool *pool, int known) {
    Encoding encoding = {.message = &pool->init,
                         .options = {.what = "init", .leads_with_function = true}};
    int top = lua_gettop(L);
    if (lua_getfield(L, 1, "init") != LUA_TNIL) {
        lua_pushnil(L);
        if (pool->is_fork) {
            make_known(L, pool, known, top + 1);
            lua_pushvalue(L, top + 1);
            lua_setiuservalue(L, known - 1, 1); /* it is known weakly, and the pool keeps it */
        }
        lua_call(L, push_encoding(L, &encoding, known, top + 2, top + 1, 1), 0);
        pool->setup.has_init = true;
    }
    lua_settop(L, top);
}

/* pool(options): they are checked and complete, see lua/opero/pool.lua. */
static int new_pool(lua_State *L) {
    Runtime *runtime = runtime_of(L);
    Pool *pool;
    luaL_checktype(L, 1, LUA_TTABLE);
    lua_settop(L, 1);
    pool = lua_newuserdatauv(L, sizeof *pool, 1);
    memset(pool, 0, sizeof *pool);
    link_init(&pool->service.link);
    link_init(&pool->accepted);
    link_init(&pool->queue);
    link_init(&pool->workers);
    link_init(&pool->closers);
    pool->runtime = runtime;
    pool->owner = getpid();
    pool->next_id = 1;
    luaL_setmetatable(L, POOL_METATABLE);
    lua_newtable(L); /* known functions */
    lua_createtable(L, 0, 1);
    lua_pushliteral(L, "k");
    lua_setfield(L, -2, "__mode");
    lua_setmetatable(L, -2);
    lua_pushvalue(L, -1);
    lua_rawsetp(L, LUA_REGISTRYINDEX, pool);
    pool->is_fork = is_option(L, "backend", "fork");
    pool->waits_on_cancel = is_option(L, "cancel", "wait");
    lua_getfield(L, 1, "accept_functions");
    pool->accepts_functions = lua_toboolean(L, -1);
    lua_pop(L, 1);
    pool->max_workers = (uint32_t)integer_option(L, "max_workers", 1);
    pool->max_tasks = (uint32_t)integer_option(L, "max_tasks_per_worker", 0);
    pool->task_timeout_ns = seconds_option(L, "task_timeout");
    pool->idle_timeout_ns = seconds_option(L, "idle_timeout");
    pool->setup.slots = (uint32_t)integer_option(L, "tasks_per_worker", 1);
    pool->setup.memory_limit = (uint64_t)integer_option(L, "memory_limit", 0);
    pool->setup.has_nice = lua_getfield(L, 1, "nice") != LUA_TNIL;
    lua_pop(L, 1);
    pool->setup.nice = (int32_t)integer_option(L, "nice", 0);
    pool->setup.is_timed = pool->task_timeout_ns != CLOCK_NEVER;
    pool->setup.parent = pool->owner;
    if (!pool->is_fork) {
        pool->interpreter = string_option(L, "interpreter");
        pool->code = string_option(L, "code");
    }
    encode_init(L, pool, 3);
    lua_settop(L, 2);
    pool->service.work = work;
    pool->service.move = move;
    pool->service.forget = forget;
    pool->service.end = end;
    runtime_add_service(runtime, &pool->service);
    return 1;
}

static int is_closed(lua_State *L) {
    lua_pushboolean(L, check_pool(L)->is_closing);
    return 1;
}

/* pool:_limits() -> max_workers, tasks_per_worker; of a pool that takes tasks */
static int limits(lua_State *L) {
    const Pool *pool = check_pool(L);
    check_open(L, pool);
    lua_pushinteger(L, pool->max_workers);
    lua_pushinteger(L, pool->setup.slots);
    return 2;
}

/* processors() -> how many are online */
static int processors(lua_State *L) {
    long count = sysconf(_SC_NPROCESSORS_ONLN);
    lua_pushinteger(L, count > 0 ? count : 1);
    return 1;
}

static const luaL_Reg functions[] = {{"pool", new_pool}, {"processors", processors}, {NULL, NULL}};

static const luaL_Reg methods[] = {
    {"call", pool_call},   {"_chunk", pool_chunk},   {"_limits", limits}, {"stats", pool_stats},
    {"close", pool_close}, {"is_closed", is_closed}, {NULL, NULL},
};

static const luaL_Reg metamethods[] = {
    {"__gc", pool_gc}, {"__close", pool_tbc}, {"__tostring", pool_tostring}, {NULL, NULL}};

void pool_register(lua_State *L, int module) {
    module = lua_absindex(L, module);
    runtime_set_functions(L, module, functions);
    runtime_new_metatable(L, POOL_METATABLE, methods);
    runtime_set_functions(L, -1, metamethods);
    lua_getfield(L, -1, "__index");
    runtime_push_function(L, run_submitted, 0);
    runtime_push_function(L, pool_submit, 1);
    lua_setfield(L, -2, "submit");
    lua_setfield(L, module, "pool_methods"); /* the Lua layer has more of them */
    lua_pop(L, 1);
    runtime_new_metatable(L, CALL_METATABLE, NULL);
    lua_pushcfunction(L, handle_gc);
    lua_setfield(L, -2, "__gc");
    lua_pop(L, 1);
}
