#define _GNU_SOURCE
#include "worker.h"
#include "loop.h"
#include "process.h"
#include "scope.h"
#include "worker_parts.h"

#include <errno.h>
#include <fcntl.h>
#include <lualib.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#define WORKER_METATABLE "opero.Worker"
#define OUTPUT_BUFFER (64 * 1024)

/* Pushes a function of this file as a closure over the worker at index `worker`. */
void worker_push_own(lua_State *L, int self, lua_CFunction function) {
    lua_pushvalue(L, self);
    runtime_push_function(L, function, 1);
}

/* Wakes the receiver, if it waits for the bell and has not been woken yet. */
void worker_wake_receiver(Loop *loop, Self *self) {
    if (!self->is_waiting || self->receiver->state != TASK_SUSPENDED)
        return;
    reactor_remove(&loop->reactor, &self->bell);
    self->is_waiting = false;
    task_wake(loop, self->receiver, WAKE_OK, 0);
}

/* ---- Ctrl-C -------------------------------------------------------------------------------------- *
 *
 * The process is ours, so its handler may be: it makes the Lua code that runs, whatever it is doing,
 * raise a cancellation, and the loop end the rest in the way it does when it is interrupted. */

static Runtime *interrupted_runtime;
static int interruptions[2] = {-1, -1}; /* a pipe: wakes a loop that has just begun to wait */
static Watcher interruption;
volatile sig_atomic_t worker_is_interrupted;

static void interrupt_hook(lua_State *L, lua_Debug *debug) {
    (void)debug;
    lua_sethook(L, NULL, 0, 0);
    runtime_push_error(L, "CancelledError", "the worker was interrupted", NULL);
    lua_error(L);
}

static void on_interrupt(int signal) {
    lua_State *active = interrupted_runtime->active;
    (void)signal;
    if (worker_is_interrupted)
        return;
    worker_is_interrupted = 1;
    (void)!write(interruptions[1], "", 1);
    /* only between instructions of Lua code: what is done in C is not to be torn apart */
    lua_sethook(interrupted_runtime->main, interrupt_hook, LUA_MASKCOUNT, 1);
    if (active != NULL)
        lua_sethook(active, interrupt_hook, LUA_MASKCOUNT, 1);
}

/* The loop looks for interruptions after each wait, so there is nothing else to do. */
static void interruption_came(lua_State *L, Watcher *watcher) {
    (void)watcher;
    runtime_of(L)->loop->idle_watches--;
}

/* Has the loop woken by interruptions. Without it they come too late at worst, if a signal arrives just
 * before the loop waits. */
static void watch_interrupts(Loop *loop) {
    interruption.ready = interruption_came;
    interruption.watch.owner = &interruption;
    interruption.watch.kind = WATCH_OF_SERVICE;
    interruption.watch.fd = interruptions[0];
    interruption.watch.wanted = REACTOR_READ;
    if (reactor_add(&loop->reactor, &interruption.watch) == 0)
        loop->idle_watches++;
}

static void handle_interrupts(Runtime *runtime) {
    struct sigaction action;
    if (pipe(interruptions) == 0)
        for (int i = 0; i < 2; i++)
            fcntl(interruptions[i], F_SETFD, FD_CLOEXEC);
    memset(&action, 0, sizeof action);
    action.sa_handler = on_interrupt;
    sigemptyset(&action.sa_mask);
    interrupted_runtime = runtime;
    sigaction(SIGINT, &action, NULL);
}

_Noreturn static void end_interrupted(void) {
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = SIG_DFL;
    sigaction(SIGINT, &action, NULL);
    raise(SIGINT);
    _exit(128 + SIGINT);
}

/* ---- log records --------------------------------------------------------------------------------- */

_Noreturn static void give_up(void);

/* Waits until the pool has made room for so many bytes, and for all that waits already. */
static void wait_for_room(lua_State *L, Self *self, size_t length) {
    struct pollfd polled = {.fd = self->port.bell, .events = POLLIN};
    for (;;) {
        reply_send_outgoing(L, self);
        if (list_is_empty(&self->outgoing) && ring_room(&self->port.out) >= length)
            return;
        port_wake(&self->port);
        if (!ring_wait_for_room(&self->port.out, length) || worker_is_interrupted)
            continue;
        if (poll(&polled, 1, -1) < 0)
            continue; /* interrupted */
        if ((polled.revents & POLLNVAL) != 0 || !port_answer(&self->port))
            give_up();
        worker_wake_receiver(self->runtime->loop, self); /* the bell may have been for it */
    }
}

/* Sends a log record to the pool. A worker that logs faster than the pool can take waits here; its
 * records are in shared memory then, whatever becomes of it. */
static bool forward_record(lua_State *L, void *owner, Slice record) {
    Self *self = owner;
    if (self->pid != getpid() || sizeof(Record) + record.length > PORT_CAPACITY / 2)
        return false;
    if (!list_is_empty(&self->outgoing) ||
        !parcel_send_whole(&self->port, RECORD_LOG, record.data, record.length)) {
        wait_for_room(L, self, sizeof(Record) + record.length);
        parcel_send_whole(&self->port, RECORD_LOG, record.data, record.length);
    }
    port_wake(&self->port);
    return true;
}

/* ---- receiving ----------------------------------------------------------------------------------- */

/* The pool is gone, or has gone mad, or this process can do no more. */
_Noreturn static void give_up(void) {
    fflush(stdout);
    if (worker_is_interrupted)
        end_interrupted();
    _exit(1);
}

typedef struct Received {
    const Record *record;
    const char *bytes;
} Received;

/* Pushes the values of a call: its function, the arguments. */
static int decode_call(lua_State *L) { /* Received */
    CodecDecoding options = {.functions = true, .known = 2};
    const Received *received = lua_touserdata(L, 1);
    lua_getiuservalue(L, UPVALUE_OWN, WORKER_KNOWN);
    return codec_decode(L, received->bytes, received->record->length, &options);
}

/* Gives a task the context in which its call was handed in. */
static void set_context(Runtime *runtime, const Task *task, Context *context) {
    Context **place;
    if (context == NULL)
        return;
    place = contexts_place(&runtime->contexts, task->anchor);
    if (place != NULL) /* else it goes without */
        context_set(&runtime->contexts, place, context_keep(context));
}

/* Takes the context of the calls that follow. */
static void take_context(Runtime *runtime, Self *self, const Record *record, const char *bytes) {
    Bytes fields = {.data = NULL};
    context_release(&runtime->contexts, self->context);
    self->context = NULL;
    bytes_append(&fields, bytes, record->length);
    if (fields.length > 0)
        self->context = context_make(&runtime->contexts, &fields);
    bytes_free(&fields);
}

/* Spawns a task of the function and its arguments above stack index `base`, for a record. */
static void spawn_job(lua_State *L, Self *self, const Record *record, int base) {
    Runtime *runtime = runtime_of(L);
    uint32_t place = 0;
    Task *task =
        task_spawn(L, runtime, runtime->loop, scope_current(L, runtime), lua_gettop(L) - base - 1);
    while (self->jobs[place].task != NULL) /* there is room, or nothing would have been taken */
        place++;
    lua_getiuservalue(L, UPVALUE_OWN, WORKER_JOBS);
    lua_insert(L, -2);
    lua_rawseti(L, -2, (lua_Integer)place + 1);
    set_context(runtime, task, self->context);
    self->jobs[place] = (Job){.task = task, .id = record->id, .kind = record->kind};
    self->running++;
}

/* A job is over: its place is free. */
static void free_job(lua_State *L, Self *self, Job *job) {
    lua_getiuservalue(L, UPVALUE_OWN, WORKER_JOBS);
    lua_pushboolean(L, false);
    lua_rawseti(L, -2, job - self->jobs + 1);
    lua_pop(L, 1);
    job->task = NULL;
    self->running--;
}

void worker_job_ended(lua_State *L, Self *self) {
    const Runtime *runtime = runtime_of(L);
    for (uint32_t i = 0; i < self->slots; i++)
        if (self->jobs[i].task == runtime->current) {
            free_job(L, self, &self->jobs[i]);
            break;
        }
    worker_wake_receiver(runtime->loop, self);
}

/* Answers for a task that has ended without having answered: it was cancelled before it began, or has
 * yielded where no task may. When memory was short in what is done here, the process ends. */
static void answer_for(lua_State *L, Self *self, Job *job) {
    Runtime *runtime = runtime_of(L);
    Task *task = job->task;
    uint32_t id = job->id;
    RecordKind kind = job->kind;
    lua_getiuservalue(L, UPVALUE_OWN, WORKER_JOBS);
    lua_rawgeti(L, -1, job - self->jobs + 1);
    task_push_error(L, task, -1);
    if (task->state == TASK_FAILED && task->home != NULL)
        scope_forget_failure(L, runtime, task);
    free_job(L, self, job);
    job_note_end(self, id);
    if (worker_is_interrupted || (lua_type(L, -1) == LUA_TSTRING &&
                                  strstr(lua_tostring(L, -1), "not enough memory") != NULL))
        give_up();
    reply_send_later(
        L, self,
        reply_push_outcome(L, kind == RECORD_CHUNK ? RECORD_ITEM : RECORD_RESULT, id, 0, true));
    if (kind == RECORD_CHUNK) {
        if (!job_push_done(L, id, 1))
            give_up();
        reply_send_later(L, self, lua_touserdata(L, -1));
    }
    if (kind == RECORD_INIT)
        self->is_stopping = true;
}

static void answer_for_ended(lua_State *L, Self *self) {
    for (uint32_t i = 0; i < self->slots && self->running > 0; i++)
        if (self->jobs[i].task != NULL && task_has_ended(self->jobs[i].task))
            answer_for(L, self, &self->jobs[i]);
}

/* Spawns a task that runs what was received, by the function that is that user value. */
static void spawn(lua_State *L, Self *self, int function, const Received *received) {
    int base = lua_gettop(L);
    lua_getiuservalue(L, UPVALUE_OWN, function);
    lua_pushinteger(L, received->record->id);
    lua_getiuservalue(L, UPVALUE_OWN, WORKER_DECODE);
    lua_pushlightuserdata(L, (void *)received);
    if (lua_pcall(L, 1, LUA_MULTRET, 0) == LUA_OK) {
        spawn_job(L, self, received->record, base);
    } else {
        reply_send_later(L, self,
                         reply_push_outcome(L, RECORD_RESULT, received->record->id, 0, true));
        self->is_stopping = self->is_stopping || !self->is_ready;
    }
    lua_settop(L, base);
}

static void spawn_chunk(lua_State *L, Self *self, const Received *received) {
    int base = lua_gettop(L);
    lua_getiuservalue(L, UPVALUE_OWN, WORKER_RUN_CHUNK);
    job_push_chunk(L, received->record, received->bytes);
    spawn_job(L, self, received->record, base);
    lua_settop(L, base);
}

/* Begins with what a whole record asks for. */
static void handle(lua_State *L, Self *self, const Record *record, const char *bytes) {
    Received received = {record, bytes};
    switch (record->kind) {
    case RECORD_INIT:
        spawn(L, self, WORKER_RUN_INIT, &received);
        break;
    case RECORD_CALL:
        if (port_claim(&self->port, record->epoch))
            spawn(L, self, WORKER_RUN_CALL, &received);
        break;
    case RECORD_CHUNK: /* the other items are claimed one by one */
        if (port_claim(&self->port, record->epoch))
            spawn_chunk(L, self, &received);
        break;
    case RECORD_STOP:
        self->is_stopping = true;
        break;
    case RECORD_SETTINGS:
        log_decode_settings(L, runtime_of(L), (Slice){bytes, record->length});
        break;
    case RECORD_CONTEXT:
        take_context(runtime_of(L), self, record, bytes);
        break;
    default:
        give_up();
    }
}

/* There was no memory for a long record: what it is about has begun, and failed. */
static void refuse_long(lua_State *L, Self *self, const Record *record) {
    Reply *reply;
    if (record->kind != RECORD_CALL && record->kind != RECORD_CHUNK)
        give_up();
    for (uint32_t i = 0; i < record->count; i++)
        if (!port_claim(&self->port, record->epoch))
            return;
    reply = reply_push(L);
    parcel_init(&reply->parcel, RECORD_RESULT, STATUS_MEMORY, record->id, NULL);
    reply_send_later(L, self, reply);
}

/* Takes what has come of a record too long for the ring. */
static bool assemble(lua_State *L, Self *self, const char *bytes, size_t there) {
    const Record *record = &self->assembling;
    size_t count = record->length - self->assembled_length;
    if (count > there)
        count = there;
    if (self->assembled != NULL)
        memcpy(self->assembled + self->assembled_length, bytes, count);
    self->assembled_length += count;
    ring_consume(&self->port.in, count);
    if (self->assembled_length == record->length) {
        self->is_assembling = false;
        if (self->assembled != NULL)
            handle(L, self, record, self->assembled);
        else
            refuse_long(L, self, record);
        free(self->assembled);
        self->assembled = NULL;
        return true;
    }
    return count > 0;
}

/* Takes the next record, or a part of it, from the ring. False: there is none yet. */
static bool take(lua_State *L, Self *self) {
    Ring *in = &self->port.in;
    const char *bytes;
    int64_t there = ring_peek(in, &bytes);
    Record record;
    if (there < 0)
        give_up();
    self->seen = (size_t)there;
    if (self->is_assembling)
        return assemble(L, self, bytes, (size_t)there);
    if ((size_t)there < sizeof record)
        return false;
    memcpy(&record, bytes, sizeof record);
    if (record.length > in->capacity / 2) {
        self->assembling = record;
        self->assembled = malloc(record.length);
        self->assembled_length = 0;
        self->is_assembling = true;
        ring_consume(in, sizeof record);
        return true;
    }
    if ((size_t)there < sizeof record + record.length)
        return false;
    handle(L, self, &record, bytes + sizeof record);
    ring_consume(in, sizeof record + record.length);
    return true;
}

static void leave_bell(Loop *loop, Task *task) {
    Self *self = task->object;
    reactor_remove(&loop->reactor, &self->bell);
    self->is_waiting = false;
}

static const WaitKind wait_bell = {.name = "the pool", .leave = leave_bell};

static int receive(lua_State *L, int status, lua_KContext context);

/* Suspends the receiver until the bell is rung or a task has ended, or returns -1 when there is no
 * need to. */
static int wait_for_bell(lua_State *L, Self *self, bool wants_records) {
    Runtime *runtime = runtime_of(L);
    if (wants_records && !ring_wait_for_bytes(&self->port.in, self->seen))
        return -1;
    if (!list_is_empty(&self->outgoing) && !ring_wait_for_room(&self->port.out, sizeof(Record)))
        return -1;
    self->bell.fd = self->port.bell;
    self->bell.owner = self->receiver;
    self->bell.kind = WATCH_OF_TASK;
    self->bell.wanted = REACTOR_READ;
    if (reactor_add(&runtime->loop->reactor, &self->bell) != 0)
        give_up(); /* a task has closed it */
    self->is_waiting = true;
    return task_suspend(L, runtime, self->receiver, &wait_bell, NULL, self, CLOCK_NEVER, receive);
}

/* The receiver's loop; `context` is 0 at first. */
static int receive(lua_State *L, int status, lua_KContext context) {
    Runtime *runtime = context != 0 ? task_regain(L, receive, context) : runtime_of(L);
    Self *self = worker_self(L);
    Task *me = runtime->current;
    (void)status;
    if (self->is_waiting && me->wake == WAKE_OK) { /* the bell was rung */
        self->is_waiting = false;
        if (self->bell.error != 0 || !port_answer(&self->port))
            give_up();
    }
    if (context != 0)
        task_resumed(L, runtime, 0);
    for (;;) {
        bool wants_records;
        int result;
        lua_settop(L, 1); /* the worker: a stack of no height would look like a beginning */
        answer_for_ended(L, self);
        reply_send_outgoing(L, self);
        wants_records = !self->is_stopping && self->running < self->slots &&
                        (self->is_ready || self->running == 0);
        if (wants_records && take(L, self)) {
            port_wake(&self->port); /* there is room */
            self->has_yielded = false;
            continue;
        }
        if (self->is_stopping && self->running == 0 && list_is_empty(&self->outgoing))
            return 0;
        if (self->running > 0 && !self->has_yielded) {
            self->has_yielded = true; /* most calls are short */
            return task_yield(L, runtime, me, receive);
        }
        result = wait_for_bell(L, self, wants_records);
        if (result >= 0)
            return result;
    }
}

/* ---- beginning ----------------------------------------------------------------------------------- */

/* The address space that the process takes up now. */
static uint64_t address_space(void) {
    uint64_t pages = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    if (file != NULL) {
        unsigned long long count;
        if (fscanf(file, "%llu", &count) == 1)
            pages = count;
        fclose(file);
    }
    return pages * (uint64_t)sysconf(_SC_PAGESIZE);
}

/* Makes the process as it is to be. */
static int set_up(lua_State *L) { /* setup, as a light userdata */
    const PortSetup *setup = lua_touserdata(L, 1);
    if (setup->memory_limit > 0) {
        struct rlimit limit;
        if (getrlimit(RLIMIT_AS, &limit) == 0) {
            rlim_t wanted = (rlim_t)(address_space() + setup->memory_limit);
            if (limit.rlim_max == RLIM_INFINITY || wanted < limit.rlim_max)
                limit.rlim_cur = wanted;
            if (setrlimit(RLIMIT_AS, &limit) != 0)
                return luaL_error(L, "the memory limit cannot be set: %s", strerror(errno));
        }
    }
    if (setup->has_nice && setpriority(PRIO_PROCESS, 0, setup->nice) != 0)
        return luaL_error(L, "niceness %d cannot be set: %s", (int)setup->nice, strerror(errno));
    return 0;
}

static int work(lua_State *L) { /* the first function of the receiver */
    Self *self = worker_self(L);
    Runtime *runtime = runtime_of(L);
    PortSetup setup = self->port.shared->setup;
    Reply *reply = NULL;
    self->receiver = runtime->current;
    self->receiver->flags |= TASK_IS_INTERNAL;
    scope_open(L, runtime->current, SCOPE_ROOT)->tells_ends = true;
    /* now, while the standard descriptors are there: should a task close those, ours is none of them */
    reactor_pollfd(&runtime->loop->reactor);
    watch_interrupts(runtime->loop);
    self->slots = setup.slots >= 1 && setup.slots <= PORT_SLOTS ? setup.slots : 1;
    lua_settop(L, 0);
    lua_pushvalue(L, UPVALUE_OWN);
    lua_pushcfunction(L, set_up);
    lua_pushlightuserdata(L, &setup);
    if (lua_pcall(L, 1, 0, 0) != LUA_OK) {
        self->is_stopping = true;
        reply = reply_push_outcome(L, RECORD_RESULT, 0, 0, true);
    } else if (!setup.has_init) {
        self->is_ready = true;
        reply = reply_push(L);
        parcel_init(&reply->parcel, RECORD_READY, STATUS_OK, 0, NULL);
    }
    if (reply != NULL)
        reply_send_later(L, self, reply);
    return receive(L, LUA_OK, 0);
}

/* The process closes its state. The port stays: something may still be logged. */
static int worker_gc(lua_State *L) {
    Self *self = lua_touserdata(L, 1);
    context_release(&self->runtime->contexts, self->context);
    free(self->assembled);
    self->context = NULL;
    self->assembled = NULL;
    return 0;
}

/* Pushes a worker at the port, and a function that runs it. */
static void push_worker(lua_State *L, const Port *port, int known) {
    Self *self = lua_newuserdatauv(L, sizeof *self, WORKER_USER_VALUES);
    int index = lua_gettop(L);
    memset(self, 0, sizeof *self);
    self->runtime = runtime_of(L);
    lua_pushvalue(L, -1); /* as long as the state: it is what log records go through */
    lua_rawsetp(L, LUA_REGISTRYINDEX, self);
    luaL_setmetatable(L, WORKER_METATABLE);
    self->port = *port;
    self->pid = getpid();
    link_init(&self->outgoing);
    lua_newtable(L);
    if (known != 0)
        for (lua_pushnil(L); lua_next(L, known); lua_pop(L, 1)) {
            lua_pushvalue(L, -2);
            lua_rawseti(L, -4, lua_tointeger(L, -2));
        }
    lua_setiuservalue(L, index, WORKER_KNOWN);
    lua_newtable(L);
    lua_setiuservalue(L, index, WORKER_JOBS);
    worker_push_own(L, index, job_run_call);
    lua_setiuservalue(L, index, WORKER_RUN_CALL);
    worker_push_own(L, index, job_run_chunk);
    lua_setiuservalue(L, index, WORKER_RUN_CHUNK);
    worker_push_own(L, index, job_run_init);
    lua_setiuservalue(L, index, WORKER_RUN_INIT);
    worker_push_own(L, index, decode_call);
    lua_setiuservalue(L, index, WORKER_DECODE);
    worker_push_own(L, index, job_call_item);
    lua_setiuservalue(L, index, WORKER_CALL_ITEM);
    log_forward(L, runtime_of(L), forward_record, self);
    worker_push_own(L, index, work);
}

/* So that what a task prints goes out in one piece, when it has ended, unless somebody watches. */
static void keep_output_together(void) {
    static char buffer[OUTPUT_BUFFER];
    if (isatty(STDOUT_FILENO))
        return;
    /* A stream that has been written to would write once more before it makes use of another buffer,
     * unless it forgets, as it does for this, that it was writing. */
    fseeko(stdout, 0, SEEK_CUR);
    setvbuf(stdout, buffer, _IOFBF, sizeof buffer);
}

/* ---- the process --------------------------------------------------------------------------------- */

/* Workers must not draw all the same numbers: those of the process they were forked from, or those that
 * Lua begins with in this second. */
static void reseed(lua_State *L, const Runtime *runtime) {
    luaL_getsubtable(L, LUA_REGISTRYINDEX, LUA_LOADED_TABLE);
    lua_getfield(L, -1, LUA_MATHLIBNAME);
    if (lua_istable(L, -1)) {
        lua_getfield(L, -1, "randomseed");
        if (lua_isfunction(L, -1)) {
            lua_pushinteger(L, (lua_Integer)runtime->random[0]); /* seeded anew for this process */
            lua_pushinteger(L, (lua_Integer)runtime->random[1]);
            lua_call(L, 2, 0);
        }
    }
}

static int run_forked(lua_State *L) { /* port, as a light userdata; known functions or nil */
    Runtime *runtime = runtime_of(L);
    runtime_forget_tasks(L, runtime);
    lua_settop(L, 2);
    reseed(L, runtime);
    lua_settop(L, 2);
    push_worker(L, lua_touserdata(L, 1), lua_istable(L, 2) ? 2 : 0);
    lua_replace(L, 1);
    lua_settop(L, 1);
    return loop_run(L, runtime);
}

/* The same, whatever happens; returns whether it ended well. */
static int begin_forked(lua_State *L) {
    bool has_failed;
    runtime_push_function(L, run_forked, 0);
    lua_insert(L, 1);
    has_failed = lua_pcall(L, 2, 0, 0) != LUA_OK;
    if (has_failed && !worker_is_interrupted) {
        const char *message = luaL_tolstring(L, -1, NULL);
        /* without memory, which a stack that cannot grow is too: the pool tells of its end, as of any */
        if (strstr(message, "memory") == NULL && strstr(message, "overflow") == NULL)
            fprintf(stderr, "opero: a worker failed: %s\n", message);
    }
    lua_pushboolean(L, !has_failed);
    return 1;
}

static int run_program(lua_State *L) { /* port, as a light userdata */
    reseed(L, runtime_of(L));
    lua_settop(L, 1);
    push_worker(L, lua_touserdata(L, 1), 0);
    lua_replace(L, 1);
    lua_settop(L, 1);
    return loop_run(L, runtime_of(L));
}

void worker_run(lua_State *L, Port *port, int known) {
    bool has_ended_well;
    /* nothing here allocates: an error that was not caught would go on in the parent's code */
    lua_pushcfunction(L, begin_forked);
    lua_pushlightuserdata(L, port);
    if (known != 0)
        lua_pushvalue(L, known);
    else
        lua_pushnil(L);
    keep_output_together();
    handle_interrupts(runtime_of(L));
    has_ended_well = lua_pcall(L, 2, 1, 0) == LUA_OK && lua_toboolean(L, -1);
    fflush(NULL);
    if (worker_is_interrupted)
        end_interrupted();
    _exit(has_ended_well ? 0 : 1);
}

static int call_work(lua_State *L) { /* bell, memory */
    Port port;
    int bell = (int)luaL_checkinteger(L, 1), memory = (int)luaL_checkinteger(L, 2), status;
    int error = port_attach(&port, bell, memory);
    if (error != 0)
        return luaL_error(L, "this is no worker of a pool: %s", strerror(error));
    process_die_with(port.shared->setup.parent);
    keep_output_together();
    handle_interrupts(runtime_of(L));
    runtime_push_function(L, run_program, 0);
    lua_pushlightuserdata(L, &port);
    status = lua_pcall(L, 1, 0, 0);
    if (worker_is_interrupted) {
        fflush(NULL);
        end_interrupted();
    }
    return status == LUA_OK ? 0 : lua_error(L);
}

static const luaL_Reg functions[] = {{"work", call_work}, {NULL, NULL}};

void worker_register(lua_State *L, int module) {
    runtime_new_metatable(L, WORKER_METATABLE, NULL);
    lua_pushcfunction(L, worker_gc);
    lua_setfield(L, -2, "__gc");
    lua_pop(L, 1);
    runtime_set_functions(L, module, functions);
    reply_register(L);
}
