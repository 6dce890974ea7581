import Stripe from "stripe";

const client = (base) => {
  const url = new URL(base);
  const protocol = url.protocol.replace(":", "");
  return new Stripe("sk_test_1", { host: url.hostname, port: url.port || 443, protocol, maxNetworkRetries: 0 });
};
const api = client(process.env.API);
const answers = await Promise.all([...Array(12).keys()].map(() => api.balance.retrieve()));
console.log(answers.length, "ok");
const other = client(process.env.OTHER);
await other.balance.retrieve();
const refused = await other.balance.retrieve().catch((error) => error);
if (refused.type !== "StripeRateLimitError") throw refused;
console.log("told", refused.headers["retry-after"]);
