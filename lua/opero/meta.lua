---@meta opero
-- What editors are told of the runtime, which is written in C. Never loaded.
--
-- All times are seconds, fractions welcome. Every function here works in the main chunk, where it
-- runs the loop until it is done, and in a task, where it suspends that task alone. Whatever
-- suspends raises a CancelledError when its task is cancelled. Every `timeout` raises a
-- TimeoutError when it has passed, and is without limit when left out.

-- luacheck: ignore 212 241 (these functions have no bodies)

---@class opero
---@field Orchestrator fun(given: opero.OrchestratorConfig|table|nil): opero.Orchestrator
---@field OrchestratorConfig fun(given: opero.OrchestratorConfig?): opero.OrchestratorConfig
---@field RetryConfig fun(given: opero.RetryConfig?): opero.RetryConfig
---@field RateLimitConfig fun(given: opero.RateLimitConfig): opero.RateLimitConfig
---@field ConcurrencyConfig fun(given: opero.ConcurrencyConfig): opero.ConcurrencyConfig
---@field MultiprocessConfig fun(given: opero.PoolConfig?): opero.PoolConfig
---@field Pool fun(given: opero.PoolConfig?): opero.Pool
---@field FallbackChain fun(primary: function, fallbacks: any): opero.FallbackChain
---@field orchestrate fun(given: table?): fun(fn: function): opero.Orchestrated
---@field all fun(entries: (function|opero.Task)[]): table
---@field any fun(entries: (function|opero.Task)[]): any ...
---@field race fun(entries: (function|opero.Task)[]): any ...
---@field TimeoutConfig fun(given: opero.TimeoutConfig?): opero.TimeoutConfig
---@field CircuitBreakerConfig fun(given: opero.CircuitBreakerConfig?): opero.CircuitBreakerConfig
---@field CircuitBreaker fun(given: opero.CircuitBreakerConfig?): opero.CircuitBreaker
---@field HedgeConfig fun(given: opero.HedgeConfig?): opero.HedgeConfig
---@field CacheConfig fun(given: opero.CacheConfig): opero.CacheConfig
---@field RateLimiter fun(given: opero.RateLimitConfig): opero.RateLimiter
---@field Bulkhead fun(given: opero.ConcurrencyConfig): opero.Bulkhead
---@field RetryBudget fun(given: opero.RetryBudgetConfig?): opero.RetryBudget
---@field Chaos fun(given: opero.ChaosConfig?): opero.Chaos
---@field pipeline fun(elements: table): opero.Pipeline
---@field value fun(...: any): function a fallback that always has these results
---@field backoff opero.backoff.Generators the waits between attempts
---@field metrics { prometheus: fun(): string }
---@field get_logger fun(name: string?, options: opero.LoggerOptions?): opero.Logger
---@field ContextAdapter fun(logger: opero.Logger, fields: table<string, any>?): opero.Logger
---@field log_context fun(logger: opero.Logger, fields: table, fn: function?, ...: any): any ...
---@field configure_logging fun(given: opero.LoggingConfig?): opero.Logger
---@field reopen_logs fun(): true?, string?
---@field errors opero.errors the error classes, `class` to derive more, and `is`
---@field _VERSION string
local opero = {}

-- ---- tasks --------------------------------------------------------------------------------------

--- Runs fn as a task, and the loop until it has ended and all its children have.
--- Returns its results or raises its error, unchanged.
---@param fn function
---@param ... any its arguments
---@return any ...
function opero.run(fn, ...) end

---@class opero.SimulateOptions
---@field seed integer? shuffles the order of ready tasks; default: they run in order

--- As run, under a virtual clock that starts at 0 and jumps to the next deadline when nothing can
--- run. Random numbers start from the seed. Raises DeadlockError, which lists who waits for what,
--- when nothing can ever run again.
---@param fn function
---@param options opero.SimulateOptions?
---@return any ...
function opero.simulate(fn, options) end

--- Starts a task: a child of the current one, which ends after it. An error that nobody awaits is
--- raised in the parent when that ends.
---@param fn function
---@param ... any its arguments
---@return opero.Task
function opero.spawn(fn, ...) end

--- The running task, nil in the main chunk.
---@return opero.Task?
function opero.current() end

--- Every task that has not ended.
---@return opero.TaskInfo[]
function opero.tasks() end

---@class opero.TaskInfo
---@field task opero.Task
---@field name string
---@field status "ready"|"running"|"suspended"
---@field waiting_for string? what it is suspended in
---@field traceback string?

---@class opero.Task
local Task = {}

--- Waits for its end. Returns its results or raises its error, a CancelledError when it was
--- cancelled.
---@param timeout number?
---@return any ...
function Task:await(timeout) end

--- Raises a CancelledError in it, where it is suspended and at every further suspension, and in its
--- children.
---@param reason any? the field `reason` of the error; a string is put in its message as well
---@return boolean cancelled false when it had ended
function Task:cancel(reason) end

---@return "ready"|"running"|"suspended"|"done"|"failed"|"cancelled"
function Task:status() end

--- Its name; given one, sets it and returns the task.
---@param name string?
---@return string|opero.Task
function Task:name(name) end

--- Where it stands, or where its error was raised.
---@return string?
function Task:traceback() end

---@class opero.Scope
local Scope = {}

--- Starts a task in the scope.
---@param fn function
---@param ... any its arguments
---@return opero.Task
function Scope:spawn(fn, ...) end

--- Cancels all tasks of the scope, and its function where it is suspended.
---@param reason any?
function Scope:cancel(reason) end

--- Calls fn with a scope for tasks, and returns when all of these have ended. The first failure
--- cancels the rest and is raised; several are raised as an AggregateError.
---@param fn fun(scope: opero.Scope): ...
---@return any ... the results of fn
function opero.scope(fn) end

--- Calls fn and cancels it, and all that it started, after so many seconds: TimeoutError.
---@param seconds number
---@param fn function
---@param ... any its arguments
---@return any ...
function opero.timeout(seconds, fn, ...) end

--- Calls fn, which a cancellation from outside does not reach; it is raised when fn has returned.
---@param fn function
---@param ... any its arguments
---@return any ...
function opero.shield(fn, ...) end

-- ---- time and waiting ---------------------------------------------------------------------------

--- Seconds of a clock that only goes forward; from 0 in a simulation.
---@return number
function opero.now() end

---@param seconds number 0 or less: lets others run; infinity: until cancelled
function opero.sleep(seconds) end

--- Lets the other tasks run that are ready.
function opero.yield() end

--- Waits until a descriptor is ready. Regular files always are.
---@param fd integer|file*|table|userdata a descriptor, or an object with getfd, pollfd or fileno
---@param direction "r"|"w"|"rw"
---@param timeout number?
---@return "r"|"w"|"rw" ready
function opero.wait(fd, direction, timeout) end

--- Waits for a callback: fn is given `resume`, and what that is called with is returned. All calls
--- of it but the first do nothing and return false.
---@param fn fun(resume: fun(...: any): boolean)
---@return any ...
function opero.await(fn) end

--- Like coroutine.wrap, for generators in which opero may suspend.
---@param fn function
---@return function
function opero.wrap(fn) end

-- ---- synchronisation ----------------------------------------------------------------------------

---@class opero.Semaphore
local Semaphore = {}

--- Takes a permit; waits for one, first come first served.
---@param timeout number?
---@return true
function Semaphore:acquire(timeout) end

---@return boolean acquired
function Semaphore:try_acquire() end

--- Gives a permit back, to whoever has waited longest.
function Semaphore:release() end

---@return integer permits that are free
function Semaphore:available() end

---@return integer tasks that wait for one
function Semaphore:waiting() end

---@param permits integer >= 0
---@return opero.Semaphore
function opero.semaphore(permits) end

---@class opero.Channel
local Channel = {}

--- Hands a value over, waiting while there is no room. Raises ClosedError when it is closed.
---@param value any not nil
---@param timeout number?
---@return true
function Channel:send(value, timeout) end

--- Takes the next value, waiting for one.
---@param timeout number?
---@return any value nil when the channel is closed and empty
---@return "closed"? why
function Channel:receive(timeout) end

--- What it holds can still be received; nothing can be sent.
function Channel:close() end

---@return boolean
function Channel:is_closed() end

--- `for value in channel:iter() do`: until it is closed and empty.
---@return fun(): any
function Channel:iter() end

---@param capacity integer >= 0; 0: a sender waits for its receiver
---@return opero.Channel
function opero.channel(capacity) end

---@class opero.Event
local Event = {}

--- Wakes all who wait; nobody waits from now on.
function Event:set() end

function Event:clear() end

---@return boolean
function Event:is_set() end

--- Waits until it is set.
---@param timeout number?
---@return true
function Event:wait(timeout) end

---@return opero.Event not set
function opero.event() end

-- ---- pools --------------------------------------------------------------------------------------

--- Worker processes; made by opero.Pool. `map` and `imap` are annotated in pool.lua. Closing a
--- `<close>` variable closes it: as `close()` does, or at once when an error leaves the block.
---@class opero.Pool
local Pool = {}

--- Runs fn in a worker. Returns all its results or raises its error.
--- Raises SerializationError when fn, its arguments or results cannot travel, WorkerCrashedError
--- (pid, signal or status, item, cause) when the worker died or none could be had, TimeoutError
--- when it took longer than `task_timeout`, ClosedError when the pool is closed.
---@param fn function
---@param ... any its arguments
---@return any ...
function Pool:call(fn, ...) end

--- The same in a task, a child of the current one. What cannot travel is refused here; all other
--- errors are those of the task.
---@param fn function
---@param ... any
---@return opero.Task
function Pool:submit(fn, ...) end

---@class opero.PoolStats
---@field workers integer processes
---@field idle integer those that have no task
---@field busy integer those that have
---@field pids integer[] their process ids
---@field queued integer tasks that have not begun; of map and imap: items
---@field running integer tasks that have
---@field completed integer tasks that came back
---@field failed integer those of them with an error
---@field started integer workers ever started
---@field crashed integer those of them that ended unasked

---@return opero.PoolStats
function Pool:stats() end

--- Refuses new tasks, lets those end that were submitted, and ends the workers. What is left after
--- the timeout ends with ClosedError. When it returns there is no process left.
---@param timeout number? seconds; default: no limit
function Pool:close(timeout) end

--- Whether it takes no tasks any more.
---@return boolean
function Pool:is_closed() end

-- ---- logging ------------------------------------------------------------------------------------

--- A logger. Its methods that log take a format, as string.format has it, its arguments, and then,
--- if there is one more and it is a table, fields. They raise no errors but for a level that there
--- is not.
---@class opero.Logger
local Logger = {}

---@param message any a format
---@param ... any its arguments, then fields
function Logger:debug(message, ...) end

---@param message any a format
---@param ... any its arguments, then fields
function Logger:info(message, ...) end

---@param message any a format
---@param ... any its arguments, then fields
function Logger:warning(message, ...) end

---@param message any a format
---@param ... any its arguments, then fields
function Logger:error(message, ...) end

---@param message any a format
---@param ... any its arguments, then fields
function Logger:critical(message, ...) end

---@param level opero.Level
---@param message any a format
---@param ... any its arguments, then fields
function Logger:log(level, message, ...) end

--- Whether a record of that level would go anywhere.
---@param level opero.Level
---@return boolean
function Logger:enabled(level) end

--- The level in force: its own, or that of the nearest logger above it that has one.
---@return opero.Level|"off"
function Logger:level() end

--- Sets its own level.
---@param level opero.Level|"off"|nil nil: it has none of its own
---@return opero.Logger self
function Logger:set_level(level) end

---@return string name of the root "root"
function Logger:name() end

--- Adds fields to the context of the current task, in place of those of the same names. Raises
--- ConfigError.
---@param fields table<string, any> as they are now
function Logger:add_context(fields) end

--- Takes fields out of the context of the current task; names that are not there are no error.
---@param ... string
function Logger:remove_context(...) end

--- The context of the current task.
---@return table<string, any> fields a copy; values that are no scalars as they were captured
function Logger:context() end

--- The correlation id of the current execution of an orchestrator: 16 hexadecimal digits, or what
--- the context has under that name.
---@return string?
function opero.correlation_id() end

-- ---- for a loop of one's own, and for finding faults --------------------------------------------

--- One turn of the loop: runs what is ready, waiting for it as long as the timeout says.
---@param timeout number? seconds; default 0
---@return boolean alive
function opero.step(timeout) end

--- A descriptor that is readable when a step has something to do, besides the next deadline.
---@return integer
function opero.pollfd() end

--- Seconds until a step has something to do; nil when there is nothing to wait for.
---@return number?
function opero.deadline() end

--- Where an error was raised, if it was the last one that passed through a task or an attempt; else
--- where this is called.
---@param err any?
---@return string
function opero.traceback(err) end

return opero
