-- The command line of mirror.lua.

local folder = require "folder"

local mirror_options = {}

local HELP = [[
usage: lua5.4 examples/mirror.lua [FOLDER] [OPTION ...]

Fetches the files of FOLDER (default: one of this system that has many) over HTTP from a flaky
server, with retries, a fallback to a sound one, a rate and a concurrency limit, and compares each
with the file on disk.

--files=N        how many files, spread over the folder (300)
--seed=N         which requests fail, and how; the same seed, the same faults (1)
--faults=SHARE   how many of the requests to the flaky server fail, from 0 to 1 (0.4)
--rate=N         requests a second at most (200)
--concurrency=N  files under way at once at most (16)
--timeout=S      seconds that an attempt at the flaky server may take (0.5)
--wait-max=S     seconds to wait before a retry at most (1)
--serve=FOLDER   what the servers serve (default: FOLDER itself)
--help
]]

---@class MirrorOptions
---@field folder string
---@field serve string
---@field files integer at most
---@field paths string[] the files, relative to the folder
---@field seed integer
---@field faults number
---@field rate number
---@field concurrency integer
---@field timeout number
---@field wait_max number

---@param message string
local function refuse(message, ...)
  io.stderr:write("mirror: ", message:format(...), " (see --help)\n")
  os.exit(2, true)
end

---@param least number
---@param most? number
local function number(least, most, integer)
  return function(name, text)
    local value = tonumber(text)
    if integer then
      value = value and math.tointeger(value)
    end
    -- This form of the comparison refuses NaN, too.
    if not (value and value >= least and value <= (most or math.maxinteger)) then
      local kind = integer and "an integer" or "a number"
      local range = most and "from %s to %s" or "of at least %s"
      range = range:format(least, most)
      refuse("%s takes %s %s, not '%s'", name, kind, range, text)
    end
    return value
  end
end

local function existing(name, text)
  if not folder.exists(text) then
    refuse("%s: there is no folder '%s'", name, text)
  end
  return text
end

---@type table<string, { [1]: string, [2]: fun(name: string, text: string): any }>
local OPTIONS = {
  ["--files"] = { "files", number(1, nil, true) },
  ["--seed"] = { "seed", number(0, nil, true) },
  ["--faults"] = { "faults", number(0, 1) },
  ["--rate"] = { "rate", number(0.001) },
  ["--concurrency"] = { "concurrency", number(1, nil, true) },
  ["--timeout"] = { "timeout", number(0.001) },
  ["--wait-max"] = { "wait_max", number(0.01) },
  ["--serve"] = { "serve", existing },
}

---Ends the program where the words are wrong, or ask for help.
---@param words string[]
---@return MirrorOptions
function mirror_options.parse(words)
  local options = {
    files = 300,
    seed = 1,
    faults = 0.4,
    rate = 200,
    concurrency = 16,
    timeout = 0.5,
    wait_max = 1,
  }
  for _, word in ipairs(words) do
    local name, text = word:match("^(%-%-[%w-]+)=(.*)$")
    local option = OPTIONS[name]
    if word == "--help" then
      io.write(HELP)
      os.exit(0, true)
    elseif option then
      options[option[1]] = option[2](name, text)
    elseif OPTIONS[word] then
      refuse("%s needs a value: %s=...", word, word)
    elseif word:sub(1, 1) == "-" then
      refuse("there is no option '%s'", word)
    elseif options.folder then
      refuse("one folder, not two: '%s' and '%s'", options.folder, word)
    else
      options.folder = existing("FOLDER", word)
    end
  end
  options.folder = options.folder or folder.default() or refuse("which folder? No usual one here")
  options.serve = options.serve or options.folder
  options.paths = folder.list(options.folder, options.files)
  if #options.paths == 0 then
    refuse("no file in '%s' can be read", options.folder)
  end
  return options
end

return mirror_options
