import Anthropic from "@anthropic-ai/sdk";

const client = new Anthropic({ apiKey: "node", baseURL: "https://api.test", maxRetries: 0 });
const content = "input=60 cached=30 written=20 output=120 " + "x".repeat(200);
const asked = { model: "claude-opus-4", max_tokens: 150, messages: [{ role: "user", content }] };
const words = [...Array(120).keys()].map((n) => ((n * 2654435761) % 2 ** 32).toString(16) + " ").join("");

function check({ content, usage }) {
  const right = content[0].text === words && usage.input_tokens === 60 && usage.output_tokens === 120;
  if (!right) throw new Error(`${content[0].text.length} characters, ${JSON.stringify(usage)}`);
}

check(await client.messages.create(asked));
check(await client.messages.stream(asked).finalMessage());
console.log("ok");
