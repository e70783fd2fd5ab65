-- test.lua [--lint] [BUILD...]
--
-- Runs the C unit tests and the specs over the builds named (specs tagged #once over the first
-- alone), with --lint the checks of style too. Whatever a program says is passed on; the last line
-- sums up: "N passed, N failed". Exits non-zero when anything failed.

local seconds_a_suite = 900 -- a hang ends as a failure; a busy machine does not

local total = { passed = 0, failed = 0 }
local failures = {}

local function add(title, passed, failed)
  total.passed = total.passed + passed
  total.failed = total.failed + failed
  if failed > 0 then
    failures[#failures + 1] = title
  end
end

--- The output of a short command, without its last line end.
local function output_of(command)
  local pipe <close> = assert(io.popen(command))
  return (pipe:read("a"):gsub("\n$", ""))
end

--- Runs a command and shows what it says, line by line, as it comes.
---@param command string for the shell
---@param on_line? fun(line: string)
---@return boolean ok whether it exited with zero
local function run(command, on_line)
  io.stdout:write("$ ", command, "\n")
  io.stdout:flush()
  local pipe = assert(io.popen(command .. " 2>&1"))
  for line in pipe:lines() do
    io.stdout:write(line, "\n")
    io.stdout:flush()
    if on_line then
      on_line(line)
    end
  end
  return pipe:close() == true
end

local function first_line(path)
  local file <close> = io.open(path)
  return file and file:read("l") or "nothing"
end

--- Runs a program that counts its own tests and says so in a line `read_tally` knows. In the file
--- `note` it keeps the name of the test that runs.
local function run_suite(title, command, read_tally, note)
  local passed, failed
  local ok = run(command, function(line)
    local p, f = read_tally(line)
    if p then
      passed, failed = (passed or 0) + p, (failed or 0) + f
    end
  end)
  if not passed then
    print(title .. ": ended without a tally" .. (note and ", in " .. first_line(note) or ""))
    add(title, 0, 1)
  elseif not ok and failed == 0 then
    -- Every test passed and yet: a crash at the end, a leak found when the state was closed.
    print(title .. ": exited with a failure after its tests")
    add(title, passed, 1)
  else
    add(title, passed, failed)
  end
end

local function run_check(title, command)
  local ok = run(command)
  add(title, ok and 1 or 0, ok and 0 or 1)
end

local function c_tally(line)
  local passed, failed = line:match("^[%w_]+: (%d+) passed, (%d+) failed$")
  return tonumber(passed), tonumber(failed)
end

local function busted_tally(line)
  local passed, failures_, errors =
    line:match("^(%d+) success%a* / (%d+) failures? / (%d+) errors? / %d+ pending")
  if passed then
    return tonumber(passed), failures_ + errors
  end
end

--- Those of the paths (patterns of the shell) that exist, as words for a command.
local function existing(...)
  return (output_of("ls -d " .. table.concat({ ... }, " ") .. " 2>/dev/null"):gsub("\n", " "))
end

local function run_build(build, busted_options)
  local in_build = ("timeout --foreground -k 10 %d tools/with-build.sh %s "):format(
    seconds_a_suite, build)
  for source in output_of("ls spec/c/*_test.c 2>/dev/null"):gmatch("[^\n]+") do
    local name = source:match("([^/]+)%.c$")
    run_suite(name .. " in " .. build, in_build .. build .. "/c_tests/" .. name, c_tally)
  end
  local note = build .. "/running_test"
  os.remove(note)
  run_suite("busted in " .. build,
    "OPERO_TEST_NOTE=" .. note .. " " .. in_build .. arg[-1] .. " tools/busted.lua "
      .. "--helper=tools/busted_note.lua --output=plainTerminal " .. busted_options,
    busted_tally, note)
end

local function check_style()
  run_check("luacheck", "luacheck --no-color -q " .. existing(
    "lua", "spec", "bench", "examples", "tools", ".busted"))
  local version = output_of("clang-format --version 2>/dev/null"):match("version (%d+)")
  if version ~= "14" then
    print("clang-format 14 is not here, so the form of the C files is not checked")
  else
    run_check("clang-format", "find csrc spec bench examples -name '*.[ch]' "
      .. "-exec clang-format --dry-run -Werror {} +")
  end
end

local builds, lint = {}, false
for _, word in ipairs(arg) do
  if word == "--lint" then
    lint = true
  else
    builds[#builds + 1] = word
  end
end

for i, build in ipairs(builds) do
  run_build(build, i == 1 and "spec" or "--exclude-tags=once spec")
end
if lint then
  check_style()
end

if #failures > 0 then
  print("failed: " .. table.concat(failures, ", "))
end
print(("%d passed, %d failed"):format(total.passed, total.failed))
os.exit(total.failed == 0, true)
