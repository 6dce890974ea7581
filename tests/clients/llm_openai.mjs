import OpenAI from "openai";

const client = new OpenAI({ apiKey: "node", baseURL: "https://api.test/v1", maxRetries: 0 });
const content = "input=60 cached=0 written=0 output=120 " + "x".repeat(200);
const asked = { model: "m", messages: [{ role: "user", content }], max_completion_tokens: 150 };
const words = [...Array(120).keys()].map((n) => ((n * 2654435761) % 2 ** 32).toString(16) + " ").join("");

function check(text, usage, input, output) {
  const right = text === words && usage[input] === 60 && usage[output] === 120;
  if (!right) throw new Error(`${text.length} characters, ${JSON.stringify(usage)}`);
}

const whole = await client.chat.completions.create(asked);
check(whole.choices[0].message.content, whole.usage, "prompt_tokens", "completion_tokens");
let text = "", usage;
for await (const chunk of await client.chat.completions.create({ ...asked, stream: true, stream_options: { include_usage: true } })) {
  text += chunk.choices[0]?.delta.content ?? "";
  usage = chunk.usage ?? usage;
}
check(text, usage, "prompt_tokens", "completion_tokens");
const request = { model: "m", input: content, max_output_tokens: 150 };
const response = await client.responses.create(request);
check(response.output_text, response.usage, "input_tokens", "output_tokens");
const final = await client.responses.stream(request).finalResponse();
check(final.output_text, final.usage, "input_tokens", "output_tokens");
console.log("ok");
