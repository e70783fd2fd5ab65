-- What every measuring process shares: a clock, the memory in use, percentiles, the line it prints.

local measure = {}

---@return fun(): number # seconds, of a clock that goes on while the process waits
function measure.clock()
  local ok, time = pcall(require, "posix.time")
  if not ok then
    measure.missing "the luaposix module is not installed"
  end
  return function()
    local spec = time.clock_gettime(time.CLOCK_MONOTONIC)
    return spec.tv_sec + spec.tv_nsec / 1e9
  end
end

---Resident memory of this process: VmRSS, the counter that /proc/self/statm gives in pages.
---Garbage is collected first, so that only what is alive counts, unless `dirty` is set.
---@param dirty? boolean
---@param pid? integer of another process, whose garbage is left alone
---@return number bytes
function measure.rss(dirty, pid)
  if not dirty then
    collectgarbage()
    collectgarbage()
  end
  local path = ("/proc/%s/status"):format(pid or "self")
  local file <close> = io.open(path)
  local kib = file and file:read("a"):match("VmRSS:%s*(%d+) kB")
  return kib and tonumber(kib) * 1024 or measure.missing("no " .. path .. " here")
end

---@param list number[] is sorted in place
---@param p number between 0 and 100
---@return number # by nearest rank
function measure.percentile(list, p)
  table.sort(list)
  return list[math.max(1, math.ceil(#list * p / 100))]
end

---@param list number[]
---@return number
function measure.mean(list)
  local sum = 0
  for i = 1, #list do
    sum = sum + list[i]
  end
  return sum / #list
end

---@param lateness number[] seconds
function measure.report_lateness(lateness)
  measure.report { mean = measure.mean(lateness), p99 = measure.percentile(lateness, 99) }
end

---Prints the one line that the runner reads.
---@param values table<string, number|string>
function measure.report(values)
  local parts = {}
  for key, value in pairs(values) do
    parts[#parts + 1] = ("%s=%s"):format(key, value)
  end
  table.sort(parts)
  print(table.concat(parts, " "))
end

---Ends the process: what it was to measure cannot be measured here, which is not an error.
---@param why string
function measure.missing(why)
  print("missing=" .. why)
  os.exit(0)
end

---n timers spread evenly over one second, in an order that is scattered but the same for each
---peer: a multiplicative step through 0 .. n-1 by a number that shares no factor with n.
---@param n integer
---@param lead number seconds until that second begins, enough to set all timers before the first
---one is due; 0: each timer counts from when it is set, while others are still being set
---@param now fun(): number
---@return number[] lateness an empty list
---@return fun(i: integer): number delay the seconds that timer i, set at this moment, shall take
function measure.timers(n, lead, now)
  local step = math.floor(n * 0.618) | 1
  local function gcd(a, b)
    return b == 0 and a or gcd(b, a % b)
  end
  while gcd(step, n) ~= 1 do
    step = step + 2
  end
  local start = now() + lead
  return {}, function(i)
    local at = (i * step % n) / n
    return lead > 0 and start + at - now() or at
  end
end

---What each record of a log has beside its message.
measure.FIELDS = { request_id = "7f3a91c2d4e5b608", service = "api", user = 1042 }

---Has n records written to a log, in a folder that is removed afterwards, and prints how many a
---second those were. They say "fetched I bytes", I from 1 to n, and FIELDS.
---@param n integer
---@param write fun(path: string): number gives the seconds it took
function measure.records(n, write)
  local mktemp <close> = assert(io.popen "mktemp -d")
  local folder = assert(mktemp:read("l"), "mktemp made no folder")
  local path = folder .. "/log"
  local _ <close> = setmetatable({}, {
    __close = function()
      os.remove(path)
      os.remove(folder)
    end,
  })
  local seconds = write(path)
  local count, last = 0, ""
  for line in io.lines(path) do
    count, last = count + 1, line
  end
  assert(count == n and last:find(("fetched %d bytes"):format(n), 1, true), "records are wrong")
  for name, value in pairs(measure.FIELDS) do
    assert(last:find(name, 1, true) and last:find(value, 1, true), "fields are wrong")
  end
  measure.report { rate = n / seconds }
end

---Runs the function named by the first command-line argument on the rest of them.
---@param rows table<string, function>
function measure.main(rows)
  local row = rows[arg[1]]
  if not row then
    measure.missing("no such measurement: " .. tostring(arg[1]))
  end
  local args = {}
  for i = 2, #arg do
    args[#args + 1] = math.tointeger(arg[i]) or arg[i]
  end
  row(table.unpack(args))
end

return measure
