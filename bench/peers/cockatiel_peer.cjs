// What one policy of cockatiel costs a call: a circuit breaker of consecutive failures, beside the
// function awaited as it is.
let cockatiel;
try {
  cockatiel = require("cockatiel");
} catch {
  console.log("missing=the cockatiel module is not installed where Node.js looks");
  process.exit(0);
}

const { circuitBreaker, ConsecutiveBreaker, handleAll } = cockatiel;
const n = Number(process.argv[3]);

async function time(call) {
  const start = process.hrtime.bigint();
  for (let i = 0; i < n; i++) await call(i);
  return Number(process.hrtime.bigint() - start) / n;
}

async function main() {
  const primary = async (x) => x;
  const policy = circuitBreaker(handleAll, {
    halfOpenAfter: 1000,
    breaker: new ConsecutiveBreaker(5),
  });
  const through = (x) => policy.execute(() => primary(x));
  await time(primary);
  await time(through);
  const bare = await time(primary);
  console.log(`ns=${(await time(through)) - bare}`);
}

main();
