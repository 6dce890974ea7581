import anthropic, llm_load


def connect(cell, options):
    return anthropic.AsyncAnthropic(
        api_key=cell["key"],
        base_url="https://api.test",
        max_retries=0,
        default_headers={"accept-encoding": cell["coding"]},
        http_client=anthropic.DefaultAsyncHttpxClient(**options),
    )


async def ask(client, mode, prompt, call):
    asked = dict(model="claude-opus-4", max_tokens=call["max"], messages=[{"role": "user", "content": prompt}])
    if mode == "messages":
        done = await client.messages.create(**asked)
    else:
        async with client.messages.stream(**asked) as stream:
            done = await stream.get_final_message()
    assert done.stop_reason == "end_turn"
    usage = done.usage
    return done.content[0].text, {
        "input": usage.input_tokens,
        "cached": usage.cache_read_input_tokens,
        "written": usage.cache_creation_input_tokens,
        "output": usage.output_tokens,
    }


llm_load.main(connect, ask)
