-- What is measured: the rows of the table, each a thing to do and who does it beside Opero.

---@class Goal
---@field text string
---@field than? string the peer that `ratio` is meant against
---@field ratio? number
---@field max? number the most that the value may be
---@field min? number the least

---@class Variant
---@field what string
---@field args string what Opero is asked to do
---@field goal? Goal
---@field peers? string[] in place of the row's

---@class Row
---@field key string as given on the command line
---@field kind string a key of kinds
---@field program? string that of Opero's which measures it, a key of programs (default: opero)
---@field peers string[] keys of programs
---@field variants Variant[]
---@field peer_args? string|table<string, string> what peers are asked, or some of them by key; the
---rest are asked what the first variant is
---@field apart? boolean those are asked what each variant is, not the first one for all

local function times(ratio, peer)
  return { text = ("%gx %s"):format(ratio, peer), than = peer, ratio = ratio }
end

local ALL = { "cqueues", "copas", "luv", "asyncio", "bare_lua", "bare_c" }
local LOOPS = { "cqueues", "copas", "luv", "asyncio" }

---@param calls integer
---@return table[] variants
local function each_policy(calls)
  local variants = {}
  for _, name in ipairs {
    "retry", "retry budget", "fallbacks", "timeout", "circuit breaker", "failure rate", "hedge",
    "cache hit", "rate limit", "concurrency", "adaptive limit", "chaos",
  } do
    variants[#variants + 1] = {
      what = ("policy: %s, nothing fails"):format(name),
      args = ("policy %d %s"):format(calls, (name:gsub(" ", "_"))),
      goal = { text = "250 ns", max = 250 },
    }
  end
  return variants
end

---@param n fun(full: integer, small: integer): integer the number for this run
---@return Row[]
local function rows_of_tasks(n)
  local timers, sleepers = n(100000, 10000), n(100000, 20000)
  local calls, items = n(2000000, 100000), n(10000000, 200000)
  local alive = n(200000, 20000)
  return {
    {
      key = "spawn",
      kind = "rate",
      peers = ALL,
      variants = {
        {
          what = ("spawn and finish, %d k alive"):format(alive // 1000),
          args = ("spawn %d"):format(alive),
          goal = times(2, "cqueues"),
        },
      },
    },
    {
      key = "empty",
      kind = "rate",
      peers = { "cqueues", "asyncio", "bare_c" },
      variants = {
        {
          what = "the same, nothing suspends",
          args = ("empty %d"):format(alive),
        },
      },
    },
    {
      key = "beside",
      kind = "rate",
      peers = { "cqueues", "luv", "asyncio" },
      variants = {
        {
          what = ("spawn and finish, beside %d k"):format(alive // 1000),
          args = ("beside %d %d"):format(alive, n(1000000, 20000)),
        },
      },
    },
    {
      key = "switch",
      kind = "rate",
      peers = ALL,
      variants = {
        {
          what = "switch among 100 tasks",
          args = ("switch 100 %d"):format(n(4000000, 200000)),
          goal = times(5, "cqueues"),
        },
      },
    },
    {
      key = "switch2",
      kind = "rate",
      peers = ALL,
      variants = {
        {
          what = "switch between 2 tasks",
          args = ("switch 2 %d"):format(n(4000000, 200000)),
          goal = times(5, "cqueues"),
        },
      },
    },
    {
      key = "timers",
      kind = "mean",
      peers = LOOPS,
      variants = {
        {
          what = ("%d k timers over 1 s: lateness"):format(timers // 1000),
          args = ("timers %d %d"):format(timers, n(2, 1)),
          goal = { text = "mean < 1 ms", max = 0.001 },
        },
      },
    },
    {
      key = "burst",
      kind = "mean",
      peers = LOOPS,
      variants = {
        {
          what = "the same, set in that second",
          args = ("timers %d 0"):format(timers),
        },
      },
    },
    {
      key = "memory",
      kind = "bytes",
      peers = { "cqueues", "copas", "luv", "asyncio", "bare_lua" },
      variants = {
        {
          what = "a sleeping task: resident memory",
          args = ("memory %d"):format(sleepers),
        },
      },
    },
    {
      key = "asked",
      kind = "bytes",
      peers = {},
      variants = {
        {
          what = "a sleeping task: memory asked for",
          args = ("asked %d"):format(sleepers),
          goal = { text = "1.3 KiB", max = 1.3 * 1024 },
        },
      },
    },
    {
      key = "call",
      kind = "ns",
      peers = { "bare_lua", "tenacity" },
      peer_args = ("call %d"):format(n(2000000, 20000) // 10),
      variants = {
        { what = "call: bare pcall, in a task", args = ("call pcall %d task"):format(calls) },
        { what = "call: FallbackChain, main chunk", args = ("call chain %d main"):format(calls) },
        { what = "call: FallbackChain, in a task", args = ("call chain %d task"):format(calls) },
        {
          what = "call: retry + fallback, main chunk",
          args = ("call retry %d main"):format(calls),
          goal = { text = "300 ns", max = 300 },
        },
        {
          what = "call: retry + fallback, in a task",
          args = ("call retry %d task"):format(calls),
          goal = { text = "300 ns", max = 300 },
        },
        {
          what = "call: the same by the decorator",
          args = ("call decorator %d task"):format(calls),
          goal = { text = "300 ns", max = 300 },
        },
        { what = "call: all four, main chunk", args = ("call all %d main"):format(calls) },
        { what = "call: all four, in a task", args = ("call all %d task"):format(calls) },
      },
    },
    {
      key = "policy",
      kind = "ns",
      peers = { "cockatiel" },
      peer_args = ("policy %d"):format(n(200000, 2000)),
      variants = each_policy(n(200000, 2000)),
    },
    {
      key = "imap",
      kind = "growth",
      peers = {},
      variants = {
        {
          what = ("imap over %g M items: memory"):format(items / 1e6),
          args = ("imap %d"):format(items),
          goal = { text = "constant", max = 4 * 2 ^ 20 },
        },
      },
    },
  }
end

---@param n fun(full: integer, small: integer): integer
---@return Row[]
local function rows_of_pools(n)
  local singles, calls, items = n(50000, 2000), n(10000, 500), n(4000000, 100000)
  local blocks, stream, starts = n(2000, 64), n(10000000, 200000), n(100, 5)
  local cpu = ("cpu %d %%d %d"):format(n(200, 20), n(3, 1))
  return {
    {
      key = "pool-submit",
      kind = "rate",
      program = "opero_pool",
      peers = { "executor", "pool" },
      peer_args = ("submit %d"):format(singles),
      variants = {
        {
          what = "pool: single submitted tasks",
          args = ("submit %d fork"):format(singles),
          goal = times(10, "Executor"),
        },
        {
          what = "the same, backend spawn",
          args = ("submit %d spawn"):format(singles),
          goal = times(10, "Executor"),
        },
      },
    },
    {
      key = "pool-call",
      kind = "us",
      program = "opero_pool",
      peers = { "executor", "pool_apply" },
      peer_args = ("call %d"):format(calls),
      variants = {
        { what = "pool: one call at a time, in a task", args = ("call %d task"):format(calls) },
        { what = "the same, main chunk", args = ("call %d main"):format(calls) },
      },
    },
    {
      key = "pool-map",
      kind = "rate",
      program = "opero_pool",
      peers = { "pool_map", "pool_imap", "executor_map" },
      peer_args = {
        pool_imap = ("map %d"):format(items // 40),
        executor_map = ("map %d"):format(items // 80),
      },
      variants = {
        {
          what = ("pool: map of %g M small items"):format(items / 1e6),
          args = ("map %d"):format(items),
          goal = times(1, "Pool.map"),
        },
        {
          what = "the same, in chunks of 1",
          args = ("map %d 1"):format(items // 40),
          peers = { "pool_imap", "executor_map" },
        },
      },
    },
    {
      key = "pool-bytes",
      kind = "throughput",
      program = "opero_pool",
      peers = { "pool_imap", "executor_map" },
      apart = true,
      variants = {
        {
          what = "pool: 1 MiB strings as arguments",
          args = ("bytes %d %d"):format(blocks, 2 ^ 20),
          goal = times(2, "Pool.imap"),
        },
        {
          what = "pool: 1 MiB strings as results",
          args = ("back %d %d"):format(blocks, 2 ^ 20),
          goal = times(2, "Pool.imap"),
        },
      },
    },
    {
      key = "pool-cpu",
      kind = "speedup",
      program = "opero_pool",
      peers = { "pool", "bare_fork" },
      peer_args = { pool = cpu:format(40000) },
      variants = {
        {
          what = "pool: CPU-bound, 2 workers",
          args = cpu:format(400000),
          goal = { text = "1.9x alone", min = 1.9 },
        },
      },
    },
    {
      key = "pool-start",
      kind = "ms",
      program = "opero_pool",
      peers = { "executor", "pool", "bare_fork" },
      peer_args = ("start %d"):format(starts),
      variants = {
        {
          what = "pool: start, use and stop 2 workers",
          args = ("start %d fork"):format(starts),
          goal = { text = "2 ms", max = 2 },
        },
        {
          what = "the same, backend spawn",
          args = ("start %d spawn"):format(starts),
          peers = {},
        },
      },
    },
    {
      key = "pool-imap",
      kind = "growth",
      program = "opero_pool",
      peers = {},
      variants = {
        {
          what = ("pool: imap over %g M items: memory"):format(stream / 1e6),
          args = ("imap %d"):format(stream),
          goal = { text = "constant", max = 4 * 2 ^ 20 },
        },
      },
    },
  }
end

---@param n fun(full: integer, small: integer): integer
---@return Row[]
local function rows_of_logging(n)
  local calls, records = n(10000000, 100000), n(400000, 10000)
  local function to_file(format, what, peers)
    local args = ("record %s %%d"):format(format)
    return {
      key = "logging-" .. format,
      kind = "rate",
      program = "opero_log",
      peers = peers,
      peer_args = {
        logger_adapter = args:format(records // 10),
        lualogging = args:format(records // 4),
      },
      variants = {
        { what = what, args = args:format(records), goal = times(10, "LoggerAdapter") },
      },
    }
  end
  return {
    {
      key = "logging-disabled",
      kind = "ns",
      program = "opero_log",
      peers = { "logger_adapter", "lualogging" },
      peer_args = { logger_adapter = ("disabled %d"):format(calls // 10) },
      variants = {
        {
          what = "logging: a call below the level",
          args = ("disabled %d"):format(calls),
          goal = { text = "60 ns", max = 60 },
        },
      },
    },
    to_file("text", "logging: three fields, to a file", {
      "logger_adapter", "lualogging", "bare_write",
    }),
    to_file("json", "the same as JSON", { "logger_adapter", "bare_write" }),
    to_file("logfmt", "the same as logfmt", { "logger_adapter", "bare_write" }),
  }
end

---@param quick boolean
---@return Row[]
return function(quick)
  local function n(full, small)
    return quick and small or full
  end
  local rows = {}
  for _, group in ipairs { rows_of_tasks(n), rows_of_pools(n), rows_of_logging(n) } do
    table.move(group, 1, #group, #rows + 1, rows)
  end
  return rows
end
