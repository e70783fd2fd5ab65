#define _GNU_SOURCE
#include "pool_parts.h"
#include "worker.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/* So many starts fail in a row before what waits is told that no worker can be had; more when there
 * were some before, for then it may be by chance. */
#define FAILED_STARTS 3
#define FAILED_STARTS_LATER 20
#define PATIENCE_NS 10000000000         /* with somebody who kills workers that start */
#define RETRY_NS 1000000000             /* until it is tried again, where there are other workers */
#define CONTEXT_MAX (PORT_CAPACITY / 4) /* bytes of a context that is sent */
#define STOP_NS 1000000000              /* from being told to end until it is killed */

/* ---- what a worker has begun, and what not --------------------------------------------------------- */

/* Tasks of this epoch that run. */
static uint32_t running_of_epoch(const Worker *worker) {
    uint32_t begun = port_begun(&worker->port);
    return begun > worker->answered ? begun - worker->answered : 0;
}

/* How many tasks a worker has that it has not begun. */
uint32_t crew_count_waiting(const Worker *worker) {
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
            rest = call_split(call, call->done + begun); /* the part that has begun stays */
        else
            call_unplace(call);
        if (rest == NULL)
            continue; /* no memory now: see chunk_ended */
        worker->assigned -= rest->count;
        list_append(&taken, &rest->link);
    }
    while (!list_is_empty(&taken)) {
        Call *call = CONTAINER_OF(taken.prev, Call, link);
        link_remove(&call->link);
        call_put_into_queue(call, true);
    }
}

bool crew_recall(Worker *worker) {
    uint32_t epoch = worker->port.epoch, begun;
    if (worker->sending != NULL)
        return false;
    begun = port_revoke(&worker->port);
    take_back(worker, epoch, begun > worker->answered ? begun - worker->answered : 0);
    worker->answered = 0;
    pool_due(worker->pool);
    return true;
}

/* ---- what there is to tell ------------------------------------------------------------------------- */

static void put_count(Bytes *fields, Slice name, int64_t value) {
    fields_put_string(fields, name);
    fields_put_integer(fields, value);
}

/* A record of what has happened to a worker. */
static void note(const Worker *worker, LogLevel level, const char *message) {
    Runtime *runtime = worker->pool->runtime;
    Bytes fields = {.data = NULL};
    if (!log_is_noted(runtime, level))
        return;
    put_count(&fields, SLICE("pid"), worker->process.pid);
    log_note(runtime, level, message, &fields);
    bytes_free(&fields);
}

/* The same of one that has ended when it should not. */
static void note_crash(const Worker *worker, const Death *death, uint32_t tasks) {
    Runtime *runtime = worker->pool->runtime;
    Bytes fields = {.data = NULL};
    bool was_interrupted = /* from the terminal, most likely, as everybody */
        death->is_known && WIFSIGNALED(death->status) && WTERMSIG(death->status) == SIGINT;
    LogLevel level = was_interrupted ? LOG_INFO : LOG_WARNING;
    if (!log_is_noted(runtime, level))
        return;
    put_count(&fields, SLICE("pid"), death->pid);
    if (death->is_known && !WIFSIGNALED(death->status))
        put_count(&fields, SLICE("status"), WEXITSTATUS(death->status));
    put_count(&fields, SLICE("tasks"), tasks);
    if (death->is_known && WIFSIGNALED(death->status))
        put_count(&fields, SLICE("signal"), WTERMSIG(death->status));
    fields_sort(&fields, 0);
    log_note(runtime, level, was_interrupted ? "worker interrupted" : "worker crashed", &fields);
    bytes_free(&fields);
}

bool crew_send_settings(Worker *worker) {
    const Log *log = worker->pool->runtime->log;
    Bytes settings = {.data = NULL};
    bool is_sent;
    if (log == NULL || worker->settings == log->generation)
        return true;
    log_encode_settings(log, &settings);
    if (settings.length > PORT_CAPACITY / 2) {
        note(worker, LOG_WARNING, "too many levels of loggers for a worker: it has those before");
        settings.has_failed = true;
    }
    is_sent = settings.has_failed ||
              parcel_send_whole(&worker->port, RECORD_SETTINGS, settings.data, settings.length);
    bytes_free(&settings);
    if (!is_sent)
        return false;
    worker->settings = log->generation;
    worker->has_news = true;
    return true;
}

bool crew_send_context(Worker *worker, Context *context) {
    uint64_t serial = context != NULL ? context->serial : 0;
    Bytes shorter = {.data = NULL};
    Slice fields;
    bool is_sent;
    if (worker->context == serial)
        return true;
    fields = context_fields(context);
    if (fields.length > CONTEXT_MAX) {
        context_shorten(&shorter, fields, CONTEXT_MAX);
        fields = bytes_slice(&shorter);
    }
    is_sent = parcel_send_whole(&worker->port, RECORD_CONTEXT, fields.data, fields.length);
    bytes_free(&shorter);
    if (!is_sent)
        return false;
    worker->context = serial;
    worker->has_news = true;
    return true;
}

/* ---- watching workers ------------------------------------------------------------------------------ */

/* While a pool has nothing to do, its descriptors wake no task: tells the loop so. */
void crew_count_watches(Pool *pool) {
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

/* Watches the worker's bell, and its process where that can be. */
static bool watch_all(Worker *worker) {
    return watch(worker, &worker->bell, worker->port.bell) &&
           (worker->process.end_fd < 0 || watch(worker, &worker->end, worker->process.end_fd));
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
void crew_reset_alarm(Worker *worker) {
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
    if (worker->alarm_ns == CLOCK_NEVER) /* there is nothing that would do it later */
        process_signal(&worker->process, SIGKILL);
}

void crew_kill(Worker *worker, Outcome fate) {
    signal_worker(worker, SIGKILL, fate, CLOCK_NEVER);
}

/* Lets what runs in it clean up, for a while. */
void crew_interrupt(Worker *worker) {
    if (worker->state != WORKER_ENDING)
        signal_worker(worker, SIGINT, CALL_CRASHED, POOL_GRACE_NS);
}

static void free_worker(Worker *worker) {
    unwatch(worker);
    timers_cancel(&worker->pool->service.loop->timers, &worker->alarm.timer);
    link_remove(&worker->link);
    worker->pool->worker_count--;
    port_close(&worker->port);
    process_forget(&worker->process);
    if (worker->failure != NULL)
        call_free(worker->failure);
    free(worker);
}

void crew_receive(Worker *worker);

/* All that waits in the queue cannot be done. `failure` has an encoded error as its reply, or is NULL. */
void crew_fail_queue(Pool *pool, const Call *failure, Death death) {
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
        call_end(call, CALL_NO_WORKER);
    }
}

bool crew_is_alive(const Pool *pool) {
    for (const Link *link = pool->workers.next; link != &pool->workers; link = link->next) {
        const Worker *worker = CONTAINER_OF(link, Worker, link);
        if (worker->state == WORKER_READY || worker->state == WORKER_STARTING)
            return true;
    }
    return false;
}

/* Whether it is worth while to start another worker. */
bool crew_can_start(const Pool *pool) {
    uint32_t limit = pool->has_started ? FAILED_STARTS_LATER : FAILED_STARTS;
    int64_t now_ns = clock_real_ns();
    if (pool->failed_starts < limit || now_ns - pool->failed_ns >= RETRY_NS)
        return true;
    return pool->has_started && pool->was_killed && now_ns - pool->failing_ns < PATIENCE_NS;
}

/* The process has ended: what became of its calls. */
void crew_bury(Worker *worker) {
    Pool *pool = worker->pool;
    Death death;
    bool was_unasked = worker->state == WORKER_STARTING || worker->state == WORKER_READY;
    bool has_failed_start = worker->state == WORKER_STARTING || worker->failure != NULL;
    uint32_t lost = 0;
    process_has_ended(&worker->process, true);
    crew_receive(worker); /* what it had still to say */
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
        lost += !is_whole;
        call_end(call, is_whole ? CALL_ANSWERED : fate);
    }
    if (was_unasked)
        pool->crashed++;
    if (was_unasked)
        note_crash(worker, &death, lost);
    else
        note(worker, worker->fate == CALL_TIMED_OUT ? LOG_INFO : LOG_DEBUG,
             worker->fate == CALL_TIMED_OUT ? "worker killed: a task took too long"
                                            : "worker ended");
    if (has_failed_start) {
        pool->failed_ns = clock_real_ns();
        if (pool->failed_starts == 0)
            pool->failing_ns = pool->failed_ns;
        pool->was_killed =
            death.is_known && WIFSIGNALED(death.status) && WTERMSIG(death.status) == SIGKILL;
        pool->failed_starts =
            worker->failure != NULL ? FAILED_STARTS_LATER : pool->failed_starts + 1;
    }
    link_remove(&worker->link);
    if (!crew_can_start(pool) && !crew_is_alive(pool)) {
        if (has_failed_start)
            crew_fail_queue(pool, worker->failure, death);
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
    crew_bury(worker);
    crew_count_watches(pool);
}

/* ---- what workers say ------------------------------------------------------------------------------ */

/* What it sends makes no sense. */
static void kill_mad(Worker *worker) {
    note(worker, LOG_WARNING, "worker killed: what it sent makes no sense");
    crew_kill(worker, CALL_CRASHED);
}

static Call *find_call(const Worker *worker, uint32_t id) {
    for (Link *link = worker->calls.next; link != &worker->calls; link = link->next)
        if (CONTAINER_OF(link, Call, link)->id == id)
            return CONTAINER_OF(link, Call, link);
    return NULL;
}

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
        call->has_lost_reply = true; /* whose items can no longer be told apart */
}

/* The worker is through with a chunk. */
static void chunk_ended(Call *chunk) {
    if (chunk->done < chunk->count) { /* taken back, but there was no memory to do it properly */
        Call *rest = call_split(chunk, chunk->done);
        if (rest != NULL) /* else they have failed for lack of memory */
            call_put_into_queue(rest, true);
    }
    call_end(chunk, CALL_ANSWERED);
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
            kill_mad(worker);
            return;
        }
        call->status = is_lost ? STATUS_MEMORY : record->status;
        note_answered(worker, call, call->count - call->done, has_failed);
        call_end(call, CALL_ANSWERED);
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
    default:
        kill_mad(worker);
        return;
    }
    crew_reset_alarm(worker);
}

/* Who is to have the bytes of the record. */
static Call *receiver_of(Worker *worker, const Record *record) {
    Call *call;
    if (record->kind == RECORD_RESULT && record->id == 0 && worker->state == WORKER_STARTING) {
        if (worker->failure == NULL)
            worker->failure = call_make(worker->pool);
        worker->state = WORKER_STOPPING; /* it ends by itself */
        set_alarm(worker, clock_add_ns(clock_now_ns(&worker->pool->service.loop->clock), STOP_NS));
        return worker->failure;
    }
    call = find_call(worker, record->id);
    if (call != NULL && !call->is_chunk && record->kind != RECORD_RESULT)
        return NULL;
    return call;
}

/* Takes a whole record from the ring, which stands at `bytes`. */
static void take_record(Worker *worker, const Record *record, const char *bytes) {
    Call *call;
    bool is_lost = false;
    if (record->kind == RECORD_LOG) {
        log_note_forwarded(worker->pool->runtime, worker->process.pid,
                           (Slice){bytes, record->length});
        ring_consume(&worker->port.in, sizeof *record + record->length);
        return;
    }
    call = record->kind == RECORD_READY ? NULL : receiver_of(worker, record);
    if (record->kind == RECORD_DONE) {
        if (call != NULL && record->length == sizeof call->elapsed_ns)
            memcpy(&call->elapsed_ns, bytes, sizeof call->elapsed_ns);
    } else if (call != NULL) {
        is_lost = !begin_reply(call, record);
        if (!is_lost && record->length > 0) {
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
void crew_receive(Worker *worker) {
    Ring *in = &worker->port.in;
    for (;;) {
        const char *bytes;
        int64_t there = ring_peek(in, &bytes);
        Record record;
        if (there < 0) {
            kill_mad(worker);
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
void crew_send_rest(Worker *worker) {
    do {
        if (!worker->is_init_sent)
            worker->is_init_sent = parcel_send(&worker->init, &worker->port);
        else if (worker->sending != NULL && parcel_send(&worker->sending->parcel, &worker->port))
            worker->sending = NULL;
        worker->has_news = true;
    } while ((!worker->is_init_sent || worker->sending != NULL) &&
             !ring_wait_for_room(&worker->port.out, sizeof(Record)));
}

void crew_wake(Worker *worker) {
    if (worker->has_news)
        port_wake(&worker->port);
    worker->has_news = false;
}

static void bell_rings(lua_State *L, Watcher *watcher) {
    Worker *worker = CONTAINER_OF(watcher, Worker, bell);
    Pool *pool = worker->pool;
    bool is_there = watcher->watch.error == 0 && port_answer(&worker->port);
    (void)L;
    crew_receive(worker);
    if (!worker->is_init_sent || worker->sending != NULL)
        crew_send_rest(worker);
    crew_wake(worker);
    if (!is_there || !watch(worker, watcher, worker->port.bell)) {
        if (worker->state == WORKER_STARTING || worker->state == WORKER_READY)
            worker->has_hung_up = true;
        process_signal(&worker->process, SIGKILL);
        if (worker->process.end_fd < 0)
            crew_bury(worker);
    }
    pool_due(pool);
    crew_count_watches(pool);
}

/* ---- alarms ---------------------------------------------------------------------------------------- */

void crew_stop(Worker *worker);

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
            crew_kill(worker, CALL_TIMED_OUT);
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
            crew_stop(worker);
        break;
    case WORKER_STOPPING:
    case WORKER_ENDING:
        crew_kill(worker, worker->fate);
        break;
    }
    crew_count_watches(worker->pool);
}

/* Tells a worker that has nothing to do to end. */
void crew_stop(Worker *worker) {
    Parcel parcel;
    parcel_init(&parcel, RECORD_STOP, STATUS_OK, 0, NULL);
    worker->state = WORKER_STOPPING;
    worker->fate = CALL_CLOSED;
    if (!worker->is_init_sent || !parcel_send(&parcel, &worker->port)) {
        crew_kill(worker, CALL_CLOSED);
        return;
    }
    worker->has_news = true;
    crew_wake(worker);
    set_alarm(worker, clock_add_ns(clock_now_ns(&worker->pool->service.loop->clock), STOP_NS));
}

/* ---- starting workers ------------------------------------------------------------------------------ */

/* False when it cannot be watched: then it is gone again. */
static bool link_worker(Worker *worker) {
    Pool *pool = worker->pool;
    list_append(&pool->workers, &worker->link);
    pool->worker_count++;
    pool->started++;
    worker->generation = pool->next_known;
    if (pool->is_fork && pool->runtime->log != NULL) /* it has them from here */
        worker->settings = pool->runtime->log->generation;
    crew_send_settings(worker); /* there is room: it is the first thing */
    note(worker, LOG_DEBUG, "worker started");
    if (pool->replaced < pool->crashed) {
        pool->replaced++;
        note(worker, LOG_INFO, "worker replaced");
    }
    crew_receive(worker); /* which says that we wait for more */
    if (!watch_all(worker)) {
        crew_kill(worker, CALL_CRASHED);
        crew_bury(worker);
        return false;
    }
    if (!worker->is_init_sent)
        crew_send_rest(worker);
    return true;
}

/* Forks. In the child it does not return. */
static int fork_worker(lua_State *L, Worker *worker, int peer, int memory) {
    int error = process_fork(&worker->process);
    if (error == 0 && worker->process.pid == 0) {
        Port port = worker->port;
        close(memory);
        port_turn(&port, peer);
        pool_push_known(L, worker->pool);
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
int crew_start(lua_State *L, Pool *pool) {
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
    return link_worker(worker) ? 0 : ENOMEM;
}

/* ---- moving, and being left behind ----------------------------------------------------------------- */

void crew_move(Pool *pool, Loop *loop) {
    Loop *before = pool->service.loop;
    before->idle_watches -= pool->idle_watches;
    pool->idle_watches = 0;
    for (Link *link = pool->workers.next; link != &pool->workers; link = link->next) {
        Worker *worker = CONTAINER_OF(link, Worker, link);
        unwatch(worker);
        timers_cancel(&before->timers, &worker->alarm.timer);
    }
    pool->service.loop = loop;
    for (Link *link = pool->workers.next; link != &pool->workers;) {
        Worker *worker = CONTAINER_OF(link, Worker, link);
        link = link->next;
        if (!watch_all(worker)) {
            crew_kill(worker, CALL_CRASHED);
            crew_bury(worker);
        } else if (worker->state == WORKER_STOPPING || worker->state == WORKER_ENDING)
            crew_kill(worker, worker->fate);
        else
            crew_reset_alarm(worker);
    }
    pool_due(pool);
    crew_count_watches(pool);
}

void crew_forget(Pool *pool) {
    Link *link;
    while ((link = list_pop(&pool->workers)) != NULL) {
        Worker *worker = CONTAINER_OF(link, Worker, link);
        while (!list_is_empty(&worker->calls))
            call_unplace(CONTAINER_OF(worker->calls.next, Call, link));
        unwatch(worker);
        timers_cancel(&pool->service.loop->timers, &worker->alarm.timer);
        port_close(&worker->port);
        process_forget(&worker->process);
        if (worker->failure != NULL)
            call_free(worker->failure);
        free(worker);
    }
    pool->worker_count = 0;
}
