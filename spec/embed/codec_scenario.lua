-- What the codec does, ways to errors included, for the host (memory.c) to refuse it memory at
-- another place each time. See scenario.lua for how the two work together. It needs the string
-- library.

local core, host = ...

local errors = {} -- classes by name

local function new_class(name, base)
  local class = { name = name, base = base, __name = name }
  class.__tostring = function(e)
    return name .. ": " .. tostring(e.message)
  end
  return class
end

local function class_of(name)
  if not errors[name] then
    errors[name] = new_class(name)
  end
  return errors[name]
end

core.set_error_factory(function(name, message)
  return setmetatable({ class = name, message = message }, class_of(name))
end)
core.set_class_maker(new_class)

local function expect(ok, what)
  if not ok then
    error("expected: " .. what, 2)
  end
end

--- The SerializationError of fn, or what is left of it when the memory was short on its way.
local function refusal(fn, ...)
  local ok, err = pcall(fn, ...)
  expect(not ok, "a refusal")
  if type(err) ~= "table" or err.class ~= "SerializationError" then
    error(err, 0)
  end
  return err.message
end

local function sent(...)
  return core.decode(core.encode(...), { functions = true })
end

local sections = {}
local function section(fn)
  sections[#sections + 1] = fn
end

section(function() -- values of every kind
  local list, long = {}, ("x"):rep(5000)
  for i = 1, 70 do
    list[i] = { i, i + 0.5, tostring(i), k = i % 2 == 0 }
  end
  list.self, list.long, list.longer = list, long, { long, ("y"):rep(100) }
  local again = sent(list)
  expect(again.self == again and #again == 70 and again[70][3] == "70", "the list")
  expect(again.long == long and again.longer[1] == long, "the strings")
end)

section(function() -- levels that do not fit on the stack
  local value = {}
  for i = 1, 140 do
    value = i % 2 == 0 and { value } or { [{ i }] = i, v = value }
  end
  local depth, again = 0, sent(value)
  while again.v or again[1] do
    depth, again = depth + 1, again.v or again[1]
  end
  expect(depth == 140, "all levels")
end)

section(function() -- functions, names
  local count = 0
  local function step(n)
    count = count + 1
    return n > 0 and step(n - 1) or print
  end
  local again, get = sent(step, function() return count, coroutine, core end)
  expect(again(3) == print, "print")
  local counted, module = get()
  expect(counted == 4 and module == coroutine and count == 0, "shared upvalues")
  expect(sent(step, coroutine.wrap) ~= step, "another function")
end)

section(function() -- known values and segments
  local text, known = ("z"):rep(700), {}
  local message, segments = core.encode_with({ known = { [known] = 9 }, segment_min = 500 }, text,
    { known, text }, ("w"):rep(900))
  expect(segments == 2, "segments")
  local a, b = core.decode(message, { known = { [9] = known } })
  expect(a == text and b[1] == known and b[2] == text, "what was sent")
end)

section(function() -- classes: two of a name, and one that is to be stood in for
  local base, first, second = new_class("Base"), new_class("Twin"), new_class("Twin")
  core.register_class("Base", base)
  core.register_class("Twin", first, base)
  core.register_class("Twin", second, base)
  local a, b = sent(setmetatable({ 1 }, first), setmetatable({ 2 }, second))
  expect(getmetatable(a) == first and getmetatable(b) == second, "the twins apart")
  local message = core.encode(a)
  local at
  for i = 1, #message do
    at = at or message:sub(i, i + 3) == "Twin" and i
  end
  local away = core.decode(message:sub(1, at - 1) .. "Away" .. message:sub(at + 4))
  expect(getmetatable(away).name == "Away" and getmetatable(away).base == base, "a stand-in")
  expect(getmetatable(sent(away)) == getmetatable(away), "the same again")
end)

section(function() -- refusals
  local thread = coroutine.create(print)
  local value = { list = { 1, { thread } } }
  local function fn() return value end
  expect(refusal(core.encode, value) == "value 1: field 'list'[2][1] is a thread", "its path")
  expect(refusal(core.encode, fn), "a refusal")
  expect(refusal(core.encode, setmetatable({}, { __name = "Thing" })), "a refusal")
  for _ = 1, 70 do
    value = { value }
  end
  expect(refusal(core.encode, value), "a refusal")
  local message = core.encode({ { "a" }, fn = print })
  expect(refusal(core.decode, message), "a refusal")
  for length = 1, #message - 1, 5 do
    expect(refusal(core.decode, message:sub(1, length)), "a refusal")
  end
end)

section(function() -- what is left suspended, and a finalizer that comes late
  local closing = setmetatable({}, { __close = function() host.closed() end })
  for _ = 1, 3 do
    core.spawn(function() local _ <close> = closing core.sleep(1000) end)
  end
  core.step()
  sections.late = setmetatable({}, { __gc = function() pcall(core.encode, { {} }) end })
end)

return sections
