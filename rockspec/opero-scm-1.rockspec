rockspec_format = "3.0"
package = "opero"
version = "scm-1"
source = {
  -- This checkout: `luarocks make` builds it where it stands.
  url = "git+file://.",
}
description = {
  summary = "Runs operations that fail, stall or burn CPU, and gets them done",
  detailed = [[
A scheduler of tasks in C, with timers, readiness of descriptors, cancellation, a virtual clock for
tests and pools of worker processes; and in Lua, on top of it, retries, fallbacks, rate and
concurrency limits around any function, whether it suspends or not.]],
  license = "MIT",
  labels = { "async", "retry", "rate-limit", "scheduler", "coroutine" },
}
supported_platforms = { "unix" }
dependencies = {
  "lua >= 5.4, < 5.5",
  "luaposix >= 36",
}
build = {
  type = "builtin",
  modules = {
    ["opero.core"] = {
      sources = {
        "csrc/bytes.c",
        "csrc/call.c",
        "csrc/calls.c",
        "csrc/cancel.c",
        "csrc/capture.c",
        "csrc/catalogue.c",
        "csrc/chunk.c",
        "csrc/clock.c",
        "csrc/codec.c",
        "csrc/context.c",
        "csrc/crew.c",
        "csrc/decode.c",
        "csrc/describe.c",
        "csrc/encode.c",
        "csrc/fields.c",
        "csrc/generator.c",
        "csrc/guard.c",
        "csrc/job.c",
        "csrc/log.c",
        "csrc/logger.c",
        "csrc/loop.c",
        "csrc/module.c",
        "csrc/parcel.c",
        "csrc/pool.c",
        "csrc/port.c",
        "csrc/process.c",
        "csrc/reactor.c",
        "csrc/record.c",
        "csrc/reply.c",
        "csrc/ring.c",
        "csrc/runtime.c",
        "csrc/scope.c",
        "csrc/sink.c",
        "csrc/submit.c",
        "csrc/sync.c",
        "csrc/task.c",
        "csrc/timers.c",
        "csrc/tracing.c",
        "csrc/wait.c",
        "csrc/worker.c",
      },
      defines = { "_GNU_SOURCE=" },
      libraries = { "m" },
      incdirs = { "csrc" },
    },
    ["opero"] = "lua/opero/init.lua",
    ["opero.backoff"] = "lua/opero/backoff.lua",
    ["opero.batch"] = "lua/opero/batch.lua",
    ["opero.check"] = "lua/opero/check.lua",
    ["opero.combine"] = "lua/opero/combine.lua",
    ["opero.concurrency"] = "lua/opero/concurrency.lua",
    ["opero.errors"] = "lua/opero/errors.lua",
    ["opero.fallback"] = "lua/opero/fallback.lua",
    ["opero.logging"] = "lua/opero/logging.lua",
    ["opero.lualogging"] = "lua/opero/lualogging.lua",
    ["opero.matcher"] = "lua/opero/matcher.lua",
    ["opero.meta"] = "lua/opero/meta.lua",
    ["opero.orchestrate"] = "lua/opero/orchestrate.lua",
    ["opero.orchestrator"] = "lua/opero/orchestrator.lua",
    ["opero.outcome"] = "lua/opero/outcome.lua",
    ["opero.pool"] = "lua/opero/pool.lua",
    ["opero.rate_limit"] = "lua/opero/rate_limit.lua",
    ["opero.report"] = "lua/opero/report.lua",
    ["opero.retry"] = "lua/opero/retry.lua",
  },
}
