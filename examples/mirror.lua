-- Mirrors a folder from a server that fails in every way a server can.
--
-- Two HTTP servers run as tasks of this very process. The first one refuses connections, stalls
-- half-way, cuts bodies short and says "503, come back in a second"; the second one is sound, but
-- slow, and asked only where the first one has failed for good. Every body is compared with the
-- file on disk. What it takes to get all of them is one table, further down: `policies`.
--
--     lua5.4 examples/mirror.lua --help

local here = debug.getinfo(1, "S").source:match("^@(.*/)") or "./"
package.path = here .. "?.lua;" .. package.path

local faults = require "faults"
local folder = require "folder"
local http_client = require "http_client"
local http_server = require "http_server"
local mirror_options = require "mirror_options"
local mirror_report = require "mirror_report"
local opero = require "opero"
local signal = require "posix.signal"
local tcp = require "tcp"

local MIRROR_DELAY = 0.05 -- seconds before the sound server begins to answer

---The body is whole, but it is not the file.
local WrongBody = opero.errors.class("WrongBody")

---@param options MirrorOptions
---@return integer # the exit status
local function mirror(options)
  local files = options.paths
  local report = mirror_report.new(options)

  local flaky_respond, injected = faults.flaky(options.seed, options.faults)
  local flaky <close> = http_server.start(options.serve, flaky_respond)
  local sound <close> = http_server.start(options.serve, faults.slow(MIRROR_DELAY))

  ---One attempt: plain code that suspends where it must and raises when it fails.
  local function fetch(path, server)
    server = server or flaky
    report:attempt(path, server)
    local body = http_client.get(server.port, path)
    if body ~= folder.read(options.folder, path) then
      error(WrongBody("the body of " .. path .. " is not the file on disk"))
    end
    report:done(path, #body)
    return #body
  end

  local retry_on = { tcp.ConnectionError, http_client.Unavailable, opero.errors.TimeoutError }

  local policies = {
    -- What may pass is tried again; "404 Not Found" and a wrong body will not pass.
    retry_config = {
      max_attempts = 3,
      wait_min = 0.01,
      wait_max = options.wait_max,
      wait_multiplier = 0.05,
      jitter = "full",
      retry_on = retry_on,
    },
    -- When three attempts have failed, or one for good, the mirror is asked, by the same rules.
    arg_fallback = { position = 2, values = { sound } },
    -- An attempt that takes longer has failed (the sound server takes its time on purpose) ...
    timeout_config = { attempt = options.timeout + MIRROR_DELAY },
    -- ... and a server that hardly answers any more is spared for a moment.
    circuit_breaker_config = {
      failure_rate = 0.9,
      window = { calls = 20 },
      open_for = 0.5,
      failure_on = retry_on,
      key = function(_, server)
        return server and "sound" or "flaky"
      end,
    },
    -- The servers together are to be asked no more often than this, retries included ...
    rate_limit_config = { rate = options.rate, burst = 10 },
    -- ... nor is more than this to be under way at once.
    concurrency_config = { limit = options.concurrency },
  }

  local orchestrator = opero.Orchestrator(policies)
  local errors
  do
    local _ <close> = report:show_progress()
    errors = select(2, orchestrator:map(fetch, files, { on_error = "collect" }))
  end
  return report:finish(files, errors, injected, orchestrator:stats().events)
end

local options = mirror_options.parse { ... }
-- To write to a client that has gone shall be an error of that connection, not our end.
signal.signal(signal.SIGPIPE, signal.SIG_IGN)
os.exit(opero.run(mirror, options), true)
