import axios from "axios";

const answers = await Promise.all([...Array(12).keys()].map((n) => axios.get(`${process.env.API}/${n}`)));
console.log(answers.filter((answer) => answer.status === 200).length, "ok");
await axios.get(process.env.OTHER);
const refused = await axios.get(process.env.OTHER).catch((error) => error.response);
if (refused.status !== 429) throw new Error(`${refused.status}`);
console.log("told", refused.headers["retry-after"]);
