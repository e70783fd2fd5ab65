--- Checks tables of options against a specification, which is data.
--
-- A policy says once, in a table, which options it has, what each takes and what stands in for one
-- left out; this module refuses everything else, unknown names too, and says where, what and why.

local errors = require "opero.errors"

local check = {}

---@alias opero.check.Kind "integer"|"number"|"boolean"|"enum"|"options"

---@class opero.check.Field
---@field type opero.check.Kind? what the option takes; left out where `check` decides
---@field min number? the least number allowed
---@field above number? a number it has to exceed
---@field max number? the greatest number allowed, where there is a least
---@field values string[]? the values of an enum
---@field options opero.check.Spec? the specification of a nested table of options
---@field check (fun(value: any, path: string): any)? checks (raises through check.fail) and returns
---  the value to keep
---@field default any stands in for an option left out
---@field required boolean? refuses to do without

---@class opero.check.Spec
---@field fields table<string, opero.check.Field>
---@field verify fun(options: table, path: string)? checks that the options agree with each other

-- A name further from a known one than a third of its letters is no slip of the pen.
local FAR <const> = 3
local LONGEST_NAME <const> = 64
local LONGEST_SHOWN <const> = 60

--- A value as an error message quotes it.
---@param value any
---@return string
function check.show(value)
  local kind = type(value)
  if kind == "string" then
    local text = value
    if #text > LONGEST_SHOWN then
      text = text:sub(1, LONGEST_SHOWN) .. "..."
    end
    return ("%s (a string)"):format((("%q"):format(text):gsub("\\\n", "\\n")))
  elseif value ~= value then
    return "NaN"
  elseif kind == "number" or kind == "nil" then
    return tostring(value)
  elseif kind == "boolean" then
    return ("%s (a boolean)"):format(value)
  end
  return "a " .. kind
end

--- Refuses a value. Raises ConfigError.
---@param path string names the option or argument
---@param value any
---@param allowed string what would be taken, "an integer >= 1"
function check.fail(path, value, allowed)
  error(errors.ConfigError(
    ("%s: expected %s, got %s"):format(path, allowed, check.show(value)),
    { path = path, value = value, allowed = allowed }))
end

--- Can it be called: is it a function, or does it have a __call?
---@param value any
---@return boolean
function check.is_callable(value)
  if type(value) == "function" then
    return true
  end
  -- Not getmetatable: what a __metatable field hides can be called all the same.
  local mt = debug.getmetatable(value)
  return type(mt) == "table" and rawget(mt, "__call") ~= nil
end

--- Refuses what cannot be called. Raises ConfigError.
---@param value any
---@param path string
---@return function value
function check.callable(value, path)
  if not check.is_callable(value) then
    check.fail(path, value, "a function")
  end
  return value
end

--- The last index of a table that is to be a list: behind a hole too, where `#` may not look.
--- Raises ConfigError for keys a list has not.
---@param list table
---@param path string
---@return integer
function check.last_index(list, path)
  local last = 0
  for key, element in next, list do
    if math.type(key) ~= "integer" or key < 1 then
      check.fail(check.join(path, key), element, "nothing: a list has no such key")
    end
    last = math.max(last, key)
  end
  return last
end

--- Takes one function or a list of them; returns a list of its own.
--- Raises ConfigError.
---@param value any
---@param path string
---@return function[]
function check.callables(value, path)
  if check.is_callable(value) then
    return { value }
  elseif type(value) ~= "table" then
    check.fail(path, value, "a function or a list of functions")
  end
  local list = {}
  for i = 1, check.last_index(value, path) do
    list[i] = check.callable(value[i], check.join(path, i))
  end
  return list
end

--- The path of a key below another path.
---@param path string
---@param key any
---@return string
function check.join(path, key)
  if type(key) == "string" and key:find("^[%a_][%w_]*$") then
    return ("%s.%s"):format(path, key)
  elseif type(key) == "string" then
    return ("%s[%q]"):format(path, key)
  end
  return ("%s[%s]"):format(path, errors.summary(key))
end

-- How many letters must be put in, left out, replaced or swapped with a neighbour to get from one
-- word to the other (the distance of Damerau and Levenshtein, each place edited once).
local function distance(a, b)
  local rows = { [0] = { [0] = 0 } }
  for j = 1, #b do
    rows[0][j] = j
  end
  for i = 1, #a do
    local row, above = { [0] = i }, rows[i - 1]
    rows[i] = row
    for j = 1, #b do
      local letter, other = a:byte(i), b:byte(j)
      row[j] = math.min(above[j] + 1, row[j - 1] + 1, above[j - 1] + (letter == other and 0 or 1))
      if i > 1 and j > 1 and letter == b:byte(j - 1) and a:byte(i - 1) == other then
        row[j] = math.min(row[j], rows[i - 2][j - 2] + 1)
      end
    end
  end
  return rows[#a][#b]
end

local function nearest(name, known)
  if type(name) ~= "string" or #name > LONGEST_NAME then
    return nil
  end
  name = name:lower()
  local best, best_distance
  for _, candidate in ipairs(known) do
    local far = distance(name, candidate)
    local near = far * FAR <= math.max(#name, #candidate)
      or #name >= 3 and candidate:find(name, 1, true)
    if near and (not best or far < best_distance) then
      best, best_distance = candidate, far
    end
  end
  return best
end

--- The keys of a table of which all are strings, in order.
---@param fields table<string, any>
---@return string[]
function check.sorted_names(fields)
  local names = {}
  for name in pairs(fields) do
    names[#names + 1] = name
  end
  table.sort(names)
  return names
end

local function refuse_unknown(fields, given, path)
  local unknown
  for key in next, given do
    -- Of several the first by name is reported: the same message in every run.
    if fields[key] == nil and (unknown == nil or errors.summary(key) < errors.summary(unknown)) then
      unknown = key
    end
  end
  if unknown == nil then
    return
  end
  local known = check.sorted_names(fields)
  local allowed = "the options are " .. table.concat(known, ", ")
  local near = nearest(unknown, known)
  local advice = near and ('did you mean "%s"?'):format(near) or allowed
  path = check.join(path, unknown)
  error(errors.ConfigError(
    ("%s: unknown option; %s"):format(path, advice),
    { path = path, value = given[unknown], allowed = allowed }))
end

local function is_finite(value)
  return value == value and value ~= math.huge and value ~= -math.huge
end

local function range(field, what)
  if field.max then
    return ("%s from %s to %s"):format(what, field.min, field.max)
  elseif field.min then
    return ("%s >= %s"):format(what, field.min)
  elseif field.above then
    return ("%s > %s"):format(what, field.above)
  end
  return what
end

local function in_range(field, value)
  return (not field.min or value >= field.min) and (not field.above or value > field.above)
    and (not field.max or value <= field.max)
end

local kinds = {}

function kinds.integer(field, value, path)
  -- 3.0 is an integer to users; what is kept is one to Lua too.
  local integer = math.type(value) and math.tointeger(value)
  if not integer or not in_range(field, integer) then
    check.fail(path, value, range(field, "an integer"))
  end
  return integer
end

function kinds.number(field, value, path)
  if type(value) ~= "number" or not is_finite(value) or not in_range(field, value) then
    check.fail(path, value, range(field, "a finite number"))
  end
  return value
end

function kinds.boolean(_, value, path)
  if type(value) ~= "boolean" then
    check.fail(path, value, "true or false")
  end
  return value
end

function kinds.enum(field, value, path)
  for _, allowed in ipairs(field.values) do
    if value == allowed then
      return value
    end
  end
  return check.fail(path, value, ('one of "%s"'):format(table.concat(field.values, '", "')))
end

function kinds.options(field, value, path)
  return check.options(field.options, value, path)
end

local function check_field(field, value, path)
  if field.check then
    return field.check(value, path)
  end
  return kinds[field.type](field, value, path)
end

--- Checks a table of options and completes a copy of it; the given one stays as it is.
--- A completed table passes again and comes out the same. Raises ConfigError.
---@param spec opero.check.Spec
---@param given table
---@param path string how messages name the table
---@return table
function check.options(spec, given, path)
  if type(given) ~= "table" then
    check.fail(path, given, "a table of options")
  end
  refuse_unknown(spec.fields, given, path)
  local options = {}
  for _, name in ipairs(check.sorted_names(spec.fields)) do
    local field, value = spec.fields[name], given[name]
    if value ~= nil or field.required then
      options[name] = check_field(field, value, check.join(path, name))
    else
      options[name] = field.default
    end
  end
  if spec.verify then
    spec.verify(options, path)
  end
  return options
end

--- Makes the constructor of a table of options: RetryConfig and its like.
---@param name string its name, with which paths begin
---@param spec opero.check.Spec
---@return fun(given: table?): table
function check.constructor(name, spec)
  return function(given)
    if given == nil then
      given = {}
    end
    return check.options(spec, given, name)
  end
end

return check
