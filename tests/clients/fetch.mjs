const get = (url) => fetch(url);
const answers = await Promise.all([...Array(12).keys()].map((n) => get(`${process.env.API}/${n}`)));
console.log(answers.filter((answer) => answer.status === 200).length, "ok");
await get(process.env.OTHER);
const refused = await get(process.env.OTHER);
if (refused.status !== 429) throw new Error(`${refused.status}`);
console.log("told", refused.headers.get("retry-after"));
