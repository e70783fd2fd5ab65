--- Opero runs operations that fail, stall or burn CPU, and gets them done.
--
-- The runtime (tasks, time, waiting) is opero.core, written in C; see meta.lua for what it offers.
-- The policies stand one in a file and are composed by the orchestrator.

local backoff = require "opero.backoff"
local cache = require "opero.cache"
local chaos = require "opero.chaos"
local circuit_breaker = require "opero.circuit_breaker"
local combine = require "opero.combine"
local concurrency = require "opero.concurrency"
local core = require "opero.core"
local errors = require "opero.errors"
local fallback = require "opero.fallback"
local hedge = require "opero.hedge"
local logging = require "opero.logging"
local metrics = require "opero.metrics"
local orchestrate = require "opero.orchestrate"
local orchestrator = require "opero.orchestrator"
local pipeline = require "opero.pipeline"
local pool = require "opero.pool"
local rate_limit = require "opero.rate_limit"
local retry = require "opero.retry"
local retry_budget = require "opero.retry_budget"
local timeout = require "opero.timeout"

-- The core raises errors of the classes that are defined in Lua.
core.set_error_factory(errors.make)

---@type opero
return {
  _VERSION = "Opero scm",

  -- running
  all = combine.all,
  any = combine.any,
  await = core.await,
  channel = core.channel,
  current = core.current,
  deadline = core.deadline,
  event = core.event,
  now = core.now,
  pollfd = core.pollfd,
  race = combine.race,
  run = core.run,
  scope = core.scope,
  semaphore = core.semaphore,
  shield = core.shield,
  simulate = core.simulate,
  sleep = core.sleep,
  spawn = core.spawn,
  step = core.step,
  tasks = core.tasks,
  timeout = core.timeout,
  traceback = core.traceback,
  wait = core.wait,
  wrap = core.wrap,
  yield = core.yield,

  -- orchestrating
  Bulkhead = concurrency.new,
  CacheConfig = cache.config,
  Chaos = chaos.new,
  CircuitBreaker = circuit_breaker.new,
  CircuitBreakerConfig = circuit_breaker.config,
  ConcurrencyConfig = concurrency.config,
  FallbackChain = fallback.chain,
  HedgeConfig = hedge.config,
  MultiprocessConfig = pool.config,
  Orchestrator = orchestrator.new,
  OrchestratorConfig = orchestrator.config,
  Pool = pool.new,
  RateLimitConfig = rate_limit.config,
  RateLimiter = rate_limit.new,
  RetryBudget = retry_budget.new,
  RetryConfig = retry.config,
  TimeoutConfig = timeout.config,
  backoff = backoff.generators,
  errors = errors,
  metrics = { prometheus = metrics.prometheus },
  orchestrate = orchestrate,
  pipeline = pipeline.new,
  value = fallback.value,

  -- logging
  ContextAdapter = logging.ContextAdapter,
  configure_logging = logging.configure,
  correlation_id = core.correlation_id,
  get_logger = logging.get_logger,
  log_context = logging.log_context,
  reopen_logs = logging.reopen,
}
