import httpx2, llm_load
from google import genai


def connect(cell, options):
    client = httpx2.AsyncClient(headers={"accept-encoding": cell["coding"]}, **options)
    http = {"base_url": "https://api.test", "httpx_async_client": client}
    return genai.Client(api_key=cell["key"], http_options=http).aio


async def ask(client, mode, prompt, call):
    asked = dict(model="gemini-3.5-flash", contents=prompt, config={"max_output_tokens": call["max"]})
    if mode == "generate":
        done = await client.models.generate_content(**asked)
        text = done.text
    else:
        text = ""
        async for done in await client.models.generate_content_stream(**asked):
            text += done.text or ""
    usage = done.usage_metadata
    return text, {"input": usage.prompt_token_count, "output": usage.candidates_token_count}


llm_load.main(connect, ask)
