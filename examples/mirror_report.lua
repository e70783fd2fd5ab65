-- What mirror.lua counts and prints.

local faults = require "faults"
local opero = require "opero"
local unistd = require "posix.unistd"

local mirror_report = {}

local REDRAW_SECONDS = 0.1

---@class Report
---@field title string
---@field total integer files
---@field finished integer files that are here and right
---@field bytes integer
---@field attempts integer
---@field retries integer attempts at the server that has just failed
---@field fallbacks integer files that the second server was asked for
---@field private began number
---@field private began_at table<string, number> when a file was first asked for
---@field private asked table<string, table> which server was asked last
---@field private latencies number[] seconds from the first attempt to the file, retries included
local report_methods = {}
local report_mt = { __name = "Report", __index = report_methods }

---@param options MirrorOptions
---@return Report
function mirror_report.new(options)
  return setmetatable({
    title = ("%s, seed %d"):format(options.folder, options.seed),
    total = #options.paths,
    finished = 0,
    bytes = 0,
    attempts = 0,
    retries = 0,
    fallbacks = 0,
    began = opero.now(),
    began_at = {},
    asked = {},
    latencies = {},
  }, report_mt)
end

---@param path string
---@param server table
function report_methods:attempt(path, server)
  self.attempts = self.attempts + 1
  if self.asked[path] == server then
    self.retries = self.retries + 1
  elseif self.asked[path] then
    self.fallbacks = self.fallbacks + 1
  else
    self.began_at[path] = opero.now()
  end
  self.asked[path] = server
end

---@param path string
---@param size integer
function report_methods:done(path, size)
  self.finished = self.finished + 1
  self.bytes = self.bytes + size
  self.latencies[self.finished] = opero.now() - self.began_at[path]
end

---@param bytes integer
local function size(bytes)
  return ("%.2f MB"):format(bytes / 1e6)
end

---Keeps a line up to date while tasks run, on a terminal only.
---@return table # takes the line away when it is closed
function report_methods:show_progress()
  if unistd.isatty(unistd.STDOUT_FILENO) ~= 1 then
    return setmetatable({}, { __close = function() end })
  end
  local task = opero.spawn(function()
    while true do
      io.write(
        ("\r\27[K%d of %d files, %s, %d retries, %d fallbacks"):format(
          self.finished, self.total, size(self.bytes), self.retries, self.fallbacks
        )
      )
      io.flush()
      opero.sleep(REDRAW_SECONDS)
    end
  end)
  return setmetatable({}, {
    __close = function()
      task:cancel()
      io.write("\r\27[K")
    end,
  })
end

---@param sorted number[]
---@param p number in percent
---@return string # the nearest rank
local function percentile(sorted, p)
  local seconds = sorted[math.max(1, math.ceil(#sorted * p / 100))] or 0
  return seconds < 1 and ("%.0f ms"):format(seconds * 1000) or ("%.2f s"):format(seconds)
end

---Prints the summary.
---@param files string[]
---@param errors table<integer, any> of the files that are not here, by their index
---@param injected table<string, integer>
---@param events table<string, integer> what the policies did
---@return integer # the exit status: 0 when every file is here and right
function report_methods:finish(files, errors, injected, events)
  local seconds = opero.now() - self.began
  for i, path in ipairs(files) do
    if errors[i] ~= nil then
      local why = tostring(errors[i]):match("[^\n]*")
      io.write("FAILED ", path, ": ", why, "\n")
    end
  end
  local kinds = {}
  for i, kind in ipairs(faults.KINDS) do
    kinds[i] = ("%s %d"):format(kind, injected[kind])
  end
  local lat = self.latencies
  table.sort(lat)
  io.write(
    ("folder     %s\n"):format(self.title),
    ("files      %d of %d, %s, each the same as on disk\n"):format(
      self.finished, self.total, size(self.bytes)
    ),
    ("attempts   %d, of them %d retries, %d fallbacks to the mirror\n"):format(
      self.attempts, self.retries, self.fallbacks
    ),
    ("faults     %s\n"):format(table.concat(kinds, ", ")),
    ("policies   %d attempts timed out, %d waited for the rate, breakers opened %d times\n"):format(
      events.timeout or 0, events.rate_limited or 0, events.breaker_open or 0
    ),
    ("latency    p50 %s, p90 %s, p99 %s, max %s\n"):format(
      percentile(lat, 50), percentile(lat, 90), percentile(lat, 99), percentile(lat, 100)
    ),
    ("time       %.2f s\n"):format(seconds)
  )
  if self.finished < self.total then
    io.write(
      ("INCOMPLETE %d of %d files are missing or wrong\n"):format(
        self.total - self.finished, self.total
      )
    )
    return 1
  end
  return 0
end

return mirror_report
