import OpenAI from "openai";

const client = (base, maxRetries) => new OpenAI({ apiKey: "k", baseURL: `${base}/v1`, maxRetries });
const api = client(process.env.API, 0);
const lists = await Promise.all([...Array(12).keys()].map(() => api.models.list()));
console.log(lists.length, "ok");
const other = client(process.env.OTHER, 2);
for (let n = 0; n < 2; n++) await other.models.list();
console.log("retried");
