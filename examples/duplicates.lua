-- Finds files of equal content in a folder, by digests computed in plain Lua in all processors.
--
-- Each file is a task of a process pool. In the midst of it all, a worker is killed on purpose: the
-- file that it was at is tried again by another one, as the orchestrator's retry_config says, and
-- no other file is lost, or computed twice. All digests are compared with those of sha256sum.
--
--     lua5.4 examples/duplicates.lua --help

local here = debug.getinfo(1, "S").source:match("^@(.*/)") or "./"
package.path = here .. "?.lua;" .. package.path

local folder = require "folder"
local opero = require "opero"
local sha256 = require "sha256"
local signal = require "posix.signal"

local HELP = [[
usage: lua5.4 examples/duplicates.lua [FOLDER] [OPTION ...]

Finds files of equal content in FOLDER (default: one of this system that has many).

--files=N       how many files, spread over the folder (300)
--workers=N     worker processes (one for each processor)
--backend=NAME  fork or spawn (fork)
--kill=N        how many workers to kill on the way (1)
--help
]]

local SAMPLE = 0.25 -- seconds that one process alone is measured

local function refuse(message, ...)
  io.stderr:write("duplicates: ", message:format(...), " (see --help)\n")
  os.exit(2, true)
end

local function integer(name, text, least)
  local value = math.tointeger(tonumber(text))
  if not value or value < least then
    refuse("--%s takes an integer of at least %d, not '%s'", name, least, text)
  end
  return value
end

---@param words string[]
local function parse(words)
  local options = { files = 300, kill = 1, backend = "fork" }
  for _, word in ipairs(words) do
    local name, text = word:match("^%-%-(%w+)=(.*)$")
    if word == "--help" then
      io.write(HELP)
      os.exit(0, true)
    elseif name == "files" or name == "workers" then
      options[name] = integer(name, text, 1)
    elseif name == "kill" then
      options.kill = integer(name, text, 0)
    elseif name == "backend" and (text == "fork" or text == "spawn") then
      options.backend = text
    elseif word:sub(1, 1) == "-" then
      refuse("unknown option or value '%s'", word)
    elseif options.folder then
      refuse("one folder, not also '%s'", word)
    elseif not folder.exists(word) then
      refuse("'%s' is not a folder that can be read", word)
    else
      options.folder = word
    end
  end
  options.folder = options.folder or folder.default() or refuse("name a folder")
  return options
end

-- What the workers do. All that it needs travels along: a path, a string, two modules.
local function digest(job)
  local text = folder.read(job.root, job.path)
  if not text then
    return nil, "cannot be read"
  end
  return { digest = sha256(text), size = #text }
end

-- Bytes a second that this process manages alone.
local function speed_alone(root, paths)
  local bytes, start = 0, opero.now()
  for _, path in ipairs(paths) do
    bytes = bytes + digest({ root = root, path = path }).size
    if opero.now() - start > SAMPLE then
      break
    end
  end
  return bytes / (opero.now() - start)
end

-- The digests that sha256sum finds, by path.
local function reference(root, paths)
  local list = os.tmpname()
  local file <close> = assert(io.open(list, "wb"))
  file:write(table.concat(paths, "\0"), "\0")
  file:close()
  local pipe <close> = assert(io.popen(("cd '%s' && xargs -0 sha256sum -z -- <%s 2>/dev/null")
    :format(root:gsub("'", "'\\''"), list)))
  local digests = {}
  for line in pipe:read("a"):gmatch("[^\0]+") do
    local digits, path = line:match("^(%x+)  (.*)$")
    digests[path] = digits
  end
  os.remove(list)
  return digests
end

local function report(paths, results, errors, seconds, alone, killed)
  local groups, bytes, failed = {}, 0, 0
  for i, path in ipairs(paths) do
    if errors[i] then
      failed = failed + 1
      print(("failed  %s: %s"):format(path, errors[i]))
    else
      local found = results[i]
      bytes = bytes + found.size
      groups[found.digest] = groups[found.digest] or { size = found.size }
      table.insert(groups[found.digest], path)
    end
  end
  local equal = {}
  for _, group in pairs(groups) do
    equal[#equal + 1] = #group > 1 and group or nil
  end
  table.sort(equal, function(a, b)
    return a.size * #a > b.size * #b or a.size * #a == b.size * #b and a[1] < b[1]
  end)
  for i = 1, math.min(3, #equal) do
    print(("equal   %d files of %d bytes: %s ..."):format(#equal[i], equal[i].size, equal[i][1]))
  end
  print(("%d files, %.1f MB, %d groups of equal files; %d failed; %d workers killed on the way")
    :format(#paths, bytes / 1e6, #equal, failed, killed))
  print(("%.2f s in the pool, %.2f MB/s; alone %.2f MB/s: %.2f times as fast")
    :format(seconds, bytes / seconds / 1e6, alone / 1e6, bytes / seconds / alone))
  return failed
end

---@return integer # the exit status
local function main(options)
  local root = options.folder
  local paths = folder.list(root, options.files)
  local jobs = {}
  for i, path in ipairs(paths) do
    jobs[i] = { root = root, path = path }
  end
  local alone = speed_alone(root, paths)

  local pool <close> = opero.Pool{ max_workers = options.workers, backend = options.backend }
  local orchestrator = opero.Orchestrator{
    retry_config = { retry_on = opero.errors.WorkerCrashedError, wait_min = 0, wait_max = 0 },
    multiprocess_config = pool,
  }

  local killed = 0
  local killer = opero.spawn(function()
    while killed < options.kill do
      opero.sleep(0.05)
      local pids = pool:stats().pids
      if pids[1] and signal.kill(pids[1], signal.SIGKILL) == 0 then
        killed = killed + 1
      end
    end
  end)
  local start = opero.now()
  local results, errors = orchestrator:map(digest, jobs, { on_error = "collect" })
  local seconds = opero.now() - start
  killer:cancel()

  local failed, wrong = report(paths, results, errors, seconds, alone, killed), 0
  local expected = reference(root, paths)
  for i, path in ipairs(paths) do
    if not errors[i] and results[i].digest ~= expected[path] then
      wrong = wrong + 1
      print(("wrong   %s: sha256sum says %s"):format(path, expected[path]))
    end
  end
  print(wrong == 0 and "every digest is the one that sha256sum finds"
    or ("%d digests are wrong"):format(wrong))
  return failed + wrong == 0 and 0 or 1
end

os.exit(opero.run(main, parse { ... }), true)
