--- Metrics: the counts and durations of orchestrators that have a name, as text for Prometheus.

local check = require "opero.check"

local metrics = {}

-- Upper bounds of the histogram's buckets, in seconds.
local BOUNDS <const> = {
  0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60,
}

-- Those that have a name, by it. Weak: they may go.
local registered = setmetatable({}, { __mode = "v" })

--- Adds an orchestrator; a later one of the same name takes its place.
---@param name string
---@param orch opero.Orchestrator
function metrics.register(name, orch)
  registered[name] = orch
end

-- The value of a label, as the exposition format wants it, in UTF-8.
local function escape(text)
  if not utf8.len(text) then
    text = text:gsub("[\x80-\xff]", "?")
  end
  return (text:gsub('[\\"\n]', { ["\\"] = "\\\\", ['"'] = '\\"', ["\n"] = "\\n" }))
end

local function number(value)
  return math.type(value) == "integer" and tostring(value) or ("%.14g"):format(value)
end

---@class opero.metrics.Writer
local Writer = {}
Writer.__index = Writer

-- The samples that follow are of this family. Its head is written before the first of them.
function Writer:family(name, kind, help)
  self.head = ("# HELP %s %s\n# TYPE %s %s\n"):format(name, help, name, kind)
end

function Writer:sample(name, labels, value)
  local said = {}
  for i = 1, #labels, 2 do
    said[#said + 1] = ('%s="%s"'):format(labels[i], escape(labels[i + 1]))
  end
  self[#self + 1] = ("%s%s{%s} %s\n"):format(
    self.head, name, table.concat(said, ","), number(value))
  self.head = ""
end

-- What there is to say of each, by name. They may be collected meanwhile, so they are held here.
local function all()
  local list, held = {}, {}
  for name, orch in pairs(registered) do
    held[name] = orch
  end
  for i, name in ipairs(check.sorted_names(held)) do
    list[i] = { name = name, stats = held[name]:stats(), orchestrator = held[name] }
  end
  return list
end

local STATES <const> = { open = 1, half_open = 0.5, closed = 0 }

--- All of them in Prometheus' text exposition format (version 0.0.4).
---@return string
function metrics.prometheus()
  local writer, list = setmetatable({}, Writer), all()

  writer:family("opero_executions_total", "counter", "Executions that have ended, by outcome.")
  for _, each in ipairs(list) do
    for _, result in ipairs { "succeeded", "failed", "cancelled" } do
      writer:sample("opero_executions_total",
        { "orchestrator", each.name, "outcome", result }, each.stats[result])
    end
  end

  writer:family("opero_events_total", "counter", "What the policies did, by event.")
  for _, each in ipairs(list) do
    local counts = each.stats.events
    for _, event in ipairs(check.sorted_names(counts)) do
      writer:sample("opero_events_total",
        { "orchestrator", each.name, "event", event }, counts[event])
    end
  end

  writer:family("opero_execution_seconds", "histogram",
    "How long executions took that were not cancelled.")
  for _, each in ipairs(list) do
    local meter = each.orchestrator.meter
    local _, _, _, times = meter:read()
    for _, bound in ipairs(BOUNDS) do
      writer:sample("opero_execution_seconds_bucket",
        { "orchestrator", each.name, "le", number(bound) }, meter:below(bound))
    end
    writer:sample("opero_execution_seconds_bucket",
      { "orchestrator", each.name, "le", "+Inf" }, times.count)
    writer:sample("opero_execution_seconds_sum", { "orchestrator", each.name }, times.sum or 0)
    writer:sample("opero_execution_seconds_count", { "orchestrator", each.name }, times.count)
  end

  writer:family("opero_concurrency", "gauge", "Executions under way and waiting, and the limit.")
  for _, each in ipairs(list) do
    local bulkhead = each.stats.concurrency
    for _, what in ipairs(bulkhead and { "in_flight", "limit", "waiting" } or {}) do
      writer:sample("opero_concurrency",
        { "orchestrator", each.name, "what", what }, bulkhead[what])
    end
  end

  writer:family("opero_circuit_breaker_open", "gauge",
    "1 when the circuit breaker is open, 0.5 when half-open, 0 when closed.")
  for _, each in ipairs(list) do
    local breaker = each.orchestrator.breaker
    if breaker and not breaker.config.key then -- of one with keys there is no state as a whole
      writer:sample("opero_circuit_breaker_open",
        { "orchestrator", each.name }, STATES[each.stats.circuit_breaker.state])
    end
  end
  return table.concat(writer)
end

return metrics
