-- The benchmark: Opero beside what else is installed, as ratios. `make bench` runs this.
--
-- Each measurement is a process of its own that prints one line of key=value pairs. The rounds are
-- interleaved (Opero, peer, peer, Opero, peer, ...), so that a machine that is slow for a while is
-- slow for everybody, and the medians are compared.

local HELP = [[
usage: lua5.4 bench/run.lua [row ...] [--quick] [--rounds=N]

rows:      %s
           (default: all of them); "pool" stands for all that begin with "pool-"
--quick    small numbers, one round: does everything work?
--rounds=N how often each thing is measured (default: 3); the median counts
]]

local LEGEND = [[

Ratio: how many times as good Opero is. Memory is the growth of VmRSS, per task; of imap, in all.
Executor is Python's concurrent.futures.ProcessPoolExecutor, Pool its multiprocessing.Pool, both
forked; bare fork: two processes that are sent nothing. Pools have two workers. LoggerAdapter is
Python's, with a FileHandler; bare write: a loop in C that writes such a line again and again.]]

local here = arg[0]:match("^(.*)/[^/]*$") or "."
local top = here .. "/.."

---@param word string
---@return string # as one word for the shell
local function quote(word)
  return "'" .. word:gsub("'", "'\\''") .. "'"
end

---@return string output, boolean ok
local function shell(command)
  local pipe <close> = assert(io.popen(command .. " 2>&1"))
  local output = pipe:read("a")
  return output, pipe:close() == true
end

-- The programs ----------------------------------------------------------------------------------

-- What the environment names comes first, then the build of this checkout.
local LUA = ("env LUA_PATH=%s LUA_CPATH=%s %s "):format(
  quote(("%s/?.lua;%s;%s/lua/?.lua;%s/lua/?/init.lua"):format(here, package.path, top, top)),
  quote(("%s;%s/build/lua/?.so"):format(package.cpath, top)),
  quote(arg[-1] or "lua5.4")
)

---@return string? command the first python3 on the PATH that has the module
local function python(module)
  for folder in (os.getenv("PATH") or ""):gmatch("[^:]+") do
    local program = quote(folder .. "/python3")
    if select(2, shell(("%s -c 'import %s'"):format(program, module))) then
      return program .. " "
    end
  end
end

---@param name string of a loop in C
---@param libraries? string a package of pkg-config's
---@return string? command compiles it
local function compile(name, libraries)
  local cc = os.getenv("CC") or "cc"
  local folder = quote(top .. "/build/bench")
  local program = quote(top .. "/build/bench/" .. name)
  local _, ok = shell(
    ("mkdir -p %s && %s -std=c11 -D_POSIX_C_SOURCE=200809L -O2 -o %s %s %s"):format(
      folder, cc, program, quote(here .. "/" .. name .. ".c"),
      libraries and ("$(pkg-config --cflags --libs %s)"):format(libraries) or ""
    )
  )
  return ok and program .. " " or nil
end

---@class Program
---@field name string
---@field command (fun(): string?)|string? what starts it, up to its arguments; nil: cannot be had
---@field why? string said when it is not there

---@param name string
---@param file string
---@return Program
local function lua(name, file)
  return { name = name, command = LUA .. quote(here .. "/" .. file) .. " " }
end

---@param name string
---@param module string what a python3 must have
---@param file string
---@param how? string its first argument
---@return Program
local function python_peer(name, module, file, how)
  return {
    name = name,
    why = ("no python3 with %s on the PATH"):format(module),
    command = function()
      local start = python(module)
      return start and ("%s%s %s"):format(start, quote(here .. "/peers/" .. file), how or "")
    end,
  }
end

---@param method string of one of Python's pools
---@return Program
local function python_pool(method)
  return python_peer(method, "multiprocessing", "pool_peer.py", quote(method) .. " ")
end

---@type table<string, Program>
local programs = {
  opero = lua("Opero", "ours.lua"),
  opero_pool = lua("Opero", "ours_pool.lua"),
  opero_log = lua("Opero", "ours_log.lua"),
  cqueues = lua("cqueues", "peers/cqueues.lua"),
  copas = lua("copas", "peers/copas.lua"),
  luv = lua("luv", "peers/luv.lua"),
  bare_lua = lua("bare Lua", "peers/bare.lua"),
  lualogging = lua("lualogging", "peers/lualogging.lua"),
  bare_c = {
    name = "bare C",
    why = "no C compiler or no Lua headers",
    command = function()
      return compile("bare", "lua5.4")
    end,
  },
  bare_write = {
    name = "bare write",
    why = "no C compiler",
    command = function()
      return compile("bare_write")
    end,
  },
  bare_fork = lua("bare fork", "peers/fork.lua"),
  asyncio = python_peer("asyncio", "asyncio", "asyncio_peer.py"),
  tenacity = python_peer("tenacity", "tenacity", "tenacity_peer.py"),
  cockatiel = {
    name = "cockatiel",
    why = "no Node.js",
    command = function()
      local _, ok = shell("command -v node")
      return ok and "node " .. quote(here .. "/peers/cockatiel_peer.cjs") .. " " or nil
    end,
  },
  logger_adapter = python_peer("LoggerAdapter", "logging", "logging_peer.py"),
  executor = python_pool("Executor"),
  executor_map = python_pool("Executor.map"),
  pool = python_pool("Pool"),
  pool_apply = python_pool("Pool.apply"),
  pool_imap = python_pool("Pool.imap"),
  pool_map = python_pool("Pool.map"),
}

---@param program Program
---@return string? command
local function command_of(program)
  if type(program.command) == "function" then
    program.command = program.command()
  end
  return program.command
end

-- What is measured ------------------------------------------------------------------------------

local rows_for = dofile(here .. "/rows.lua")

-- What a measurement gives: which value counts, whether more of it is better, how it is printed.
local kinds = {
  rate = {
    more = true,
    show = function(v)
      if v.rate < 1e5 then
        return ("%.1f k/s"):format(v.rate / 1e3)
      end
      return ("%.2f M/s"):format(v.rate / 1e6)
    end,
  },
  throughput = {
    more = true,
    show = function(v)
      return ("%.2f GB/s"):format(v.throughput / 1e9)
    end,
  },
  speedup = {
    more = true,
    show = function(v)
      return ("%.2fx alone"):format(v.speedup)
    end,
  },
  mean = {
    show = function(v)
      return ("%.2f ms, p99 %.1f"):format(v.mean * 1e3, v.p99 * 1e3)
    end,
  },
  bytes = {
    show = function(v)
      return ("%.0f B"):format(v.bytes)
    end,
  },
  ns = {
    show = function(v)
      return ("%.0f ns"):format(v.ns)
    end,
  },
  us = {
    show = function(v)
      return ("%.1f us, p99 %.0f"):format(v.us, v.p99)
    end,
  },
  ms = {
    show = function(v)
      return ("%.2f ms"):format(v.ms)
    end,
  },
  growth = {
    show = function(v)
      return ("%+.1f MiB in %.1f s"):format(v.growth / 2 ^ 20, v.seconds)
    end,
  },
}

-- Measuring -------------------------------------------------------------------------------------

---@return table<string, number>? values, string? why not
local function measure(program, args)
  local command = command_of(program)
  if not command then
    return nil, program.why
  end
  local output = shell(command .. args)
  local last = output:match("([^\n]*)\n?$")
  local why = last:match("^missing=(.*)")
  if why then
    return nil, why
  end
  local values = {}
  for key, value in last:gmatch("(%w+)=(%S+)") do
    values[key] = tonumber(value)
  end
  if not next(values) then
    return nil, output:match("[^\n]+") or "it printed nothing"
  end
  if values.before then
    values.growth = math.max(values.peak, values.after) - values.before
  end
  return values
end

---@param list table<string, number>[]
---@param key string what to sort by
---@return table<string, number>
local function median(list, key)
  table.sort(list, function(a, b)
    return a[key] < b[key]
  end)
  return list[(#list + 1) // 2]
end

---@class Contestant
---@field program Program
---@field args string
---@field values? table<string, number> the median
---@field why? string why there are none

---Measures all of them in turn, round by round.
---@param contestants Contestant[]
local function compete(contestants, kind, rounds)
  local found = {}
  for i = 1, #contestants do
    found[i] = {}
  end
  for _ = 1, rounds do
    for i, one in ipairs(contestants) do
      if not one.why then
        local values
        values, one.why = measure(one.program, one.args)
        table.insert(found[i], values)
      end
    end
  end
  for i, one in ipairs(contestants) do
    one.values = median(found[i], kind)
  end
end

-- The table -------------------------------------------------------------------------------------

local FORMAT = "%-36s %-22s %-13s %-22s %7s  %-17s %s"

local function line(...)
  print((FORMAT:format(...):gsub("%s+$", "")))
end

---@param goal Goal
---@param values table<string, number>
local function met(goal, kind, values, ratio)
  local fine
  if goal.max then
    fine = values[kind] <= goal.max
  elseif goal.min then
    fine = values[kind] >= goal.min
  else
    fine = ratio >= goal.ratio
  end
  return fine and "met" or "NOT MET"
end

---@param one Contestant Opero
---@param peers Contestant[]
local function show(variant, one, peers, kind)
  local goal = variant.goal
  local mine = one.values
  local show_value = kinds[kind].show
  local what, shown = variant.what, mine and show_value(mine) or "FAILED"
  local function put(name, value, ratio, goal_here)
    line(
      what, shown, name, value, ratio and ("%.2fx"):format(ratio) or "",
      goal_here and goal_here.text or "",
      goal_here and (mine and met(goal_here, kind, mine, ratio) or "NOT MET") or ""
    )
    what, shown = "", ""
  end
  if goal and not goal.than then
    put("", "", nil, goal)
  end
  for _, peer in ipairs(peers) do
    if peer.values then
      local ratio = mine and mine[kind] / peer.values[kind]
      if ratio and not kinds[kind].more then
        ratio = 1 / ratio
      end
      put(
        peer.program.name, show_value(peer.values), ratio,
        goal and goal.than == peer.program.name and goal or nil
      )
    else
      put(peer.program.name, "- (" .. peer.why .. ")")
    end
  end
  if what ~= "" then
    put("", "")
  end
  if one.why then
    print("  " .. one.why)
  end
end

---@param row Row
---@param variant Variant
---@param name string a peer, a key of programs
---@return string args
local function args_of_peer(row, variant, name)
  local args = row.peer_args
  if type(args) == "table" then
    args = args[name]
  end
  return args or (row.apart and variant or row.variants[1]).args
end

---@param row Row
---@return boolean ok whether Opero could be measured
local function run(row, rounds)
  local all, known = {}, {}
  local function contestant(program, args)
    local id = program .. " " .. args
    if not known[id] then
      known[id] = { program = programs[program], args = args }
      table.insert(all, known[id])
    end
    return known[id]
  end
  local own, peers = {}, {}
  for i, variant in ipairs(row.variants) do
    own[i] = contestant(row.program or "opero", variant.args)
  end
  for i, variant in ipairs(row.variants) do
    peers[i] = {}
    for _, name in ipairs(variant.peers or row.peers) do
      table.insert(peers[i], contestant(name, args_of_peer(row, variant, name)))
    end
  end
  compete(all, row.kind, rounds)
  local ok = true
  for i, variant in ipairs(row.variants) do
    show(variant, own[i], peers[i], row.kind)
    ok = ok and own[i].values ~= nil
  end
  return ok
end

-- The command line ------------------------------------------------------------------------------

local function keys_of(rows)
  local keys = {}
  for _, row in ipairs(rows) do
    table.insert(keys, row.key)
  end
  return table.concat(keys, " ")
end

local function refuse(message)
  io.stderr:write("bench: ", message, "\n")
  os.exit(2)
end

---@param rows Row[]
---@param words string[] keys, or what the keys of several rows have before the first "-"
---@return table<Row, true>
local function pick(rows, words)
  local picked = {}
  for _, word in ipairs(words) do
    local known
    for _, row in ipairs(rows) do
      if row.key == word or row.key:match("^(.-)%-") == word then
        picked[row], known = true, true
      end
    end
    if not known then
      refuse(("no row '%s'; there are: %s"):format(word, keys_of(rows)))
    end
  end
  return picked
end

---@return number? # how many programs wanted to run, on average of the last minute
local function load_average()
  local file <close> = io.open("/proc/loadavg")
  return file and file:read("n")
end

local function main(words)
  local quick, rounds, wanted = false, nil, {}
  for _, word in ipairs(words) do
    local number = word:match("^%-%-rounds=(.*)$")
    if word == "--help" then
      io.write(HELP:format(keys_of(rows_for(false))))
      os.exit(0)
    elseif word == "--quick" then
      quick = true
    elseif number then
      rounds = math.tointeger(tonumber(number))
      if not rounds or rounds < 1 then
        refuse("--rounds takes a positive integer, not '" .. number .. "'")
      end
    elseif word:sub(1, 1) == "-" then
      refuse("unknown option '" .. word .. "' (see --help)")
    else
      table.insert(wanted, word)
    end
  end
  local rows = rows_for(quick)
  local picked = pick(rows, wanted)

  local load = load_average()
  if load and load > 0.5 then
    print(("The machine is busy (load average %.1f): take these figures with care.\n"):format(load))
  end
  line("what", "Opero", "peer", "the peer's", "ratio", "goal", "")
  local ok = true
  for _, row in ipairs(rows) do
    if #wanted == 0 or picked[row] then
      ok = run(row, rounds or (quick and 1 or 3)) and ok
    end
  end
  print(LEGEND)
  return ok
end

os.exit(main(arg))
