import llm_load, openai


def connect(cell, options):
    return openai.AsyncOpenAI(
        api_key=cell["key"],
        base_url="https://api.test/v1",
        max_retries=0,
        default_headers={"accept-encoding": cell["coding"]},
        http_client=openai.DefaultAsyncHttpxClient(**options),
    )


async def ask(client, mode, prompt, call):
    if mode.startswith("chat"):
        asked = dict(model="m", messages=[{"role": "user", "content": prompt}], max_completion_tokens=call["max"])
        if mode == "chat":
            done = await client.chat.completions.create(**asked)
            return done.choices[0].message.content, tokens(done.usage, "prompt", "completion")
        if mode == "chat-stream":
            asked["stream_options"] = {"include_usage": True}
        text, usage = "", {}
        async for chunk in await client.chat.completions.create(stream=True, **asked):
            text += "".join(choice.delta.content or "" for choice in chunk.choices)
            if chunk.usage:
                usage = tokens(chunk.usage, "prompt", "completion")
        assert bool(usage) == (mode == "chat-stream"), usage
        return text, usage
    asked = dict(model="m", input=prompt, max_output_tokens=call["max"])
    if mode == "responses":
        done = await client.responses.create(**asked)
    else:
        async with client.responses.stream(**asked) as stream:
            done = await stream.get_final_response()
    assert done.status == "completed"
    return done.output_text, tokens(done.usage, "input", "output")


def tokens(usage, first, second):
    used = [getattr(usage, f"{name}_tokens") for name in (first, second)]
    assert usage.total_tokens == sum(used)
    return {"input": used[0], "output": used[1]}


llm_load.main(connect, ask)
