-- The examples of logging in the documentation of the Python package of the same name, put into
-- Lua: who comes from there finds all of it.

local log_support = require "spec.logging.support"
local opero = require "opero"

describe("as in the Python package, one", function()
  local records

  before_each(function()
    records = log_support.record()
  end)

  after_each(function()
    log_support.restore()
    opero.get_logger("my_app"):set_level()
  end)

  it("uses structured logging", function()
    local logger = opero.ContextAdapter(opero.get_logger("my_app", { level = "debug" }))

    local function api_call(item)
      logger:debug("Processing item %d", item)
      opero.sleep(0.1)
      return "Result: " .. item
    end

    local results
    opero.simulate(function()
      -- global context
      logger:add_context { service = "api_service", version = "1.0.0" }
      local orchestrator = opero.Orchestrator {
        config = opero.OrchestratorConfig { logger = logger },
      }
      -- temporary context
      opero.log_context(logger, { operation = "batch_process", batch_id = "123" }, function()
        logger:info("Starting batch processing")
        results = orchestrator:process({ api_call }, 0, 1, 2, 3, 4)
        logger:info("Completed batch processing with %d results", results.n)
      end)
      logger:info("Continuing with other operations")
    end)

    assert.same({ n = 5, "Result: 0", "Result: 1", "Result: 2", "Result: 3", "Result: 4" }, results)
    assert.same({
      "Starting batch processing",
      "Processing item 0", "Processing item 1", "Processing item 2", "Processing item 3",
      "Processing item 4",
      "Completed batch processing with 5 results",
      "Continuing with other operations",
    }, log_support.messages(records))
    local global = { service = "api_service", version = "1.0.0" }
    local batch = {
      service = "api_service", version = "1.0.0", operation = "batch_process", batch_id = "123",
    }
    assert.same(batch, records[1].fields)
    for i = 2, 6 do -- in tasks of their own, and executions
      local fields = records[i].fields
      assert.is_string(fields.correlation_id)
      fields.correlation_id = nil
      assert.same(batch, fields)
    end
    assert.same(batch, records[7].fields)
    assert.same(global, records[8].fields)
  end)

  it("creates a logger of a name, with a level", function()
    local logger = opero.get_logger("my_app", { level = "debug" })
    assert.equal("my_app", logger:name())
    assert.is_true(logger:enabled("debug"))
  end)

  it("enhances a logger with context", function()
    local logger = opero.ContextAdapter(opero.get_logger("my_app", { level = "debug" }))
    logger:add_context { service = "api_service", version = "1.0.0" }
    logger:info("Starting service")
    assert.same({ service = "api_service", version = "1.0.0" }, records[1].fields)
  end)

  it("has context for a while", function()
    local logger = opero.ContextAdapter(opero.get_logger("my_app"))
    do
      local _ <close> = opero.log_context(logger, {
        operation = "batch_process", batch_id = "123",
      })
      logger:info("Starting batch processing")
      logger:info("Completed batch processing")
    end
    logger:info("Continuing with other operations")
    local batch = { operation = "batch_process", batch_id = "123" }
    assert.same(batch, records[1].fields)
    assert.same(batch, records[2].fields)
    assert.same({}, records[3].fields)
  end)

  it("configures logging and passes a logger to the orchestrator", function()
    opero.configure_logging {
      level = "info", output = function(line) records[#records + 1] = line end,
    }
    local logger = opero.get_logger("my_app")
    local orchestrator = opero.Orchestrator {
      config = opero.OrchestratorConfig {
        logger = logger,
        retry_config = { max_attempts = 2, wait_min = 0, wait_max = 0 },
      },
    }
    local attempts = 0
    orchestrator:execute(function()
      attempts = attempts + 1
      if attempts == 1 then
        error("no answer", 0)
      end
    end)
    assert.equal(1, #records)
    assert.matches("^%d%d%d%d%-%d%d%-%d%dT%d%d:%d%d:%d%d%.%d+Z INFO     my_app: "
      .. "attempt failed, will retry  .*error=\"no answer\"", records[1])
  end)

  it("logs with what is relevant where a function is decorated", function()
    local logger = opero.get_logger("my_app")
    local process_item = opero.orchestrate {
      config = opero.OrchestratorConfig { logger = logger },
    }(function(item_id, context)
      logger:info("Processing item %s", item_id, { context = context or {} })
      return item_id
    end)
    assert.equal("a", process_item("a", { user = "ann" }))
    assert.equal("Processing item a", records[1].message)
    assert.same({ user = "ann" }, records[1].fields.context)
  end)

  it("configures logging in one call, which returns a logger", function()
    local logger = opero.configure_logging {
      level = "debug",
      output = function(_, record) records[#records + 1] = record end,
    }
    logger:info("Opero initialized")
    assert.equal("Opero initialized", records[1].message)
    assert.is_true(opero.get_logger("anything.below"):enabled("debug"))
    opero.get_logger("retry"):debug("Retry attempt %d failed", 1)
    assert.equal("Retry attempt 1 failed", records[2].message)
  end)

  it("logs to a file", function()
    local path = os.tmpname()
    opero.configure_logging { output = { file = path } }
    opero.get_logger("my_app"):error("An error occurred", { error = "why" })
    opero.configure_logging()
    local file <close> = assert(io.open(path))
    assert.matches("ERROR    my_app: An error occurred  error=why\n$", file:read("a"))
    os.remove(path)
  end)

  it("has a correlation id in all that belongs together", function()
    local logger = opero.ContextAdapter(opero.get_logger("my_app"))
    assert.is_nil(opero.correlation_id())
    opero.log_context(logger, { correlation_id = "request-123" }, function()
      assert.equal("request-123", opero.correlation_id())
      local _ <close> = opero.log_context(logger, { correlation_id = "inner" })
      assert.equal("inner", opero.correlation_id())
    end)
    opero.Orchestrator():execute(function()
      assert.matches("^%x+$", opero.correlation_id())
    end)
    assert.is_nil(opero.correlation_id())
  end)
end)
