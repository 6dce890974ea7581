"""Load of the tests of language models: reads a JSON file of cells, sends the calls of each cell
through the replicas, and prints what each cell got."""

import asyncio, json, ssl, sys, traceback


def words(tokens):
    return "".join(f"{token * 2654435761 % 2**32:x} " for token in range(tokens))


def prompt(call):
    head = " ".join(f"{name}={call[name]}" for name in ("input", "cached", "written", "output"))
    tokens = call["input"] + call["cached"] + call["written"]
    return head.ljust(4 * tokens, "x") + " ."


async def run_cell(cell, replicas, parallel, connect, ask):
    """Sends all calls of a cell, at most `parallel` at a time, each by the next replica."""
    clients = []
    for replica in replicas:
        context = ssl.create_default_context(cafile=replica["ca"])
        clients.append(connect(cell, {"proxy": replica["proxy"], "verify": context, "timeout": 600}))
    result = {"key": cell["key"], "answered": 0, "faults": []}
    calls = iter(enumerate(cell["calls"]))

    async def work():
        for number, call in calls:
            try:
                text, usage = await ask(clients[number % len(clients)], cell["mode"], prompt(call), call)
            except Exception:
                result["faults"].append(traceback.format_exc()[-2000:])
                continue
            result["answered"] += 1
            if text != words(call["output"]):
                result["faults"].append(f"{call}: wrong text of {len(text)} characters")
            expected = {name: call[name] for name in usage}
            if usage != expected:
                result["faults"].append(f"{call}: wrong usage {usage}")

    await asyncio.gather(*(work() for _ in range(parallel)))
    return result


async def run_all(connect, ask):
    with open(sys.argv[1]) as file:
        load = json.load(file)
    cells = [run_cell(cell, load["replicas"], load["parallel"], connect, ask) for cell in load["cells"]]
    for done in asyncio.as_completed(cells):
        print(json.dumps(await done), flush=True)


def main(connect, ask):
    asyncio.run(run_all(connect, ask))
