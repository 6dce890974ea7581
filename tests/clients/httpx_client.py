import asyncio, httpx, os

async def main():
    async with httpx.AsyncClient(http2=True, timeout=30) as client:
        answers = await asyncio.gather(*(client.get(f"{os.environ['API']}/{n}") for n in range(12)))
        print(sum(answer.status_code == 200 for answer in answers), "ok")
        await client.get(os.environ["OTHER"])
        refused = await client.get(os.environ["OTHER"])
        assert refused.status_code == 429
        print("told", refused.headers["Retry-After"])

asyncio.run(main())
