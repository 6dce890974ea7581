import aiohttp, asyncio, os

async def get(session, url):
    async with session.get(url) as response:
        await response.read()
        return response

async def main():
    # Without `trust_env` it obeys no variable of a proxy.
    async with aiohttp.ClientSession(trust_env=True) as session:
        answers = await asyncio.gather(*(get(session, f"{os.environ['API']}/{n}") for n in range(12)))
        print(sum(answer.status == 200 for answer in answers), "ok")
        await get(session, os.environ["OTHER"])
        refused = await get(session, os.environ["OTHER"])
        assert refused.status == 429
        print("told", refused.headers["Retry-After"])

asyncio.run(main())
